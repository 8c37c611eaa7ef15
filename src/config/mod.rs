//! Settings and requests: what was typed, and what was decided.
//!
//! [`Config`] is the process's settings after flags, environment, `.env` and `sandcaster.json` have been
//! merged; [`QueryRequest`] a request's body as sent; [`Config::resolve`] makes a [`crate::spec::RunSpec`]
//! of both.

mod request;
mod resolve;
mod settings;

pub use request::QueryRequest;
pub use resolve::Usable;
pub use settings::{Config, ConfigError, ServerSettings};
