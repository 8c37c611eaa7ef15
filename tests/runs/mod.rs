//! Runs: their logs, readers, admission and ends.

mod log;
