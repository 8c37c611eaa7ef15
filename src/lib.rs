//! sandcaster: runs AI agents in isolated sandboxes and streams what they do.
//!
//! A *run* is one agent execution for one prompt, and a run is a log: everything that happens in it
//! is an event with a sequence number, stored before any client sees it. Streams, `GET /runs` and
//! crash recovery are views of that log.
//!
//! The way down: [`cli`] and [`api`] parse, [`config`] resolves to a [`spec::RunSpec`], [`runs`] admits
//! it and owns its life, [`agent`] drives an [`llm`] provider and the [`tools`] in a [`sandbox`],
//! [`store`] keeps the log, whose entries are [`events`]. [`chat`], [`clock`], [`encoding`], [`error`],
//! [`ids`], [`paths`], [`secrets`], `apart`, `show` and [`spec`] are the words that all of them use.
//! `ARCHITECTURE.md` has the map and the invariants.

pub mod agent;
pub(crate) mod apart;
pub mod api;
pub mod app;
pub mod chat;
pub mod cli;
pub mod clock;
pub mod config;
pub mod encoding;
pub mod error;
pub mod events;
#[doc(hidden)]
pub mod fuzz;
pub mod ids;
pub(crate) mod lifecycle;
pub mod llm;
pub mod net;
pub mod paths;
pub mod runs;
pub mod sandbox;
pub mod secrets;
pub(crate) mod show;
pub(crate) mod signals;
pub mod spec;
pub mod store;
pub mod telemetry;
pub mod tools;
