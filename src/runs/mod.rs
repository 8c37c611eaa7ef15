//! Runs: admission, the task of each, its log, its readers, and what is left when something dies.

mod registry;

pub use registry::{CancelOutcome, Health, RunHandle, RunReader, Runs};
