//! The command line: `serve`, `query` (also without its name), `doctor` and `webhook`.
//!
//! Exit codes: 0 done; 1 the run or the server failed; 2 wrong usage or settings, nothing was started;
//! 130 interrupted twice, or once while a query starts.

mod args;
mod descriptors;
mod doctor;
mod exit;
mod memory;
mod printer;
mod query;
mod serve;
mod show;
mod start;
mod webhook;

pub use start::main;
