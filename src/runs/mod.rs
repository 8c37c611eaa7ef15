//! Runs: admission, the task of each, its log, its readers, and what is left when something dies.

mod log;
mod reader;
mod recovery;
mod registry;
mod tail;
mod tasks;

pub use log::{EndFacts, LogLimits, LogWriter, Logs, RunFacts};
pub use reader::{CursorError, LogReader};
pub use recovery::recover;
pub use registry::{CancelOutcome, Health, RunHandle, RunReader, Runs};
pub use tasks::{OnPanic, OnStop, TaskKind, Tasks};
