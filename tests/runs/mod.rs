//! Runs: their logs, readers, admission and ends.

mod faulty_store;
mod log;
