//! Runs: admission, the task of each, its log, its readers, and what is left when something dies.
//!
//! Knows neither axum nor clap. Everything that lives longer than a request is spawned here.

mod control;
mod lease;
mod lifetime;
mod log;
mod problems;
mod reader;
mod reaper;
mod recovery;
mod registry;
mod report;
mod retention;
mod sandbox;
mod signal;
mod tail;
mod task;
mod tasks;

pub use log::{LogLimits, LogWriter, Logs};
pub use problems::{cursor_ahead, end_unknown, events_problem, run_not_found, store_problem};
pub use reader::{CursorError, LogReader};
pub use recovery::recover;
pub use registry::{CancelOutcome, Health, RunHandle, RunReader, Runs, RunsConfig};
pub use report::take_report;
pub use retention::Keep;
pub use tail::Live;
pub use tasks::{OnPanic, OnStop, TaskKind, Tasks};
