//! The HTTP API: parse, call, map errors, stream. No business rule lives here.
//!
//! Every request passes, in this order: the connection cap and head limits ([`listen`]), framing, the
//! browser rules, authentication, and only then a handler that may read a body. Every response gets a
//! request id and the security headers.

mod access;
mod answers;
mod auth;
mod browser;
mod error;
mod extract;
mod files;
mod framing;
mod gate;
mod guard;
mod health;
mod limits;
pub mod listen;
mod params;
mod query;
mod refusal;
mod routes;
mod runs;
mod socket;
pub mod sse;
mod state;
mod view;
mod webhooks;

pub use access::{Access, RouteDef};
pub use limits::{ApiLimits, Limits};
pub use listen::Shutdown;
pub use routes::{ROUTES, guarded, router, serve};
pub use state::ApiState;
