//! The HTTP API over sockets. The files mirror those of `src/api/`.

mod auth;
mod bodies;
mod browser;
mod files;
mod framing;
mod listen;
mod routes;
mod runs;
mod sse;
mod webhooks;
