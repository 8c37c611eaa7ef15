//! Runs: their logs, readers, admission and ends.

mod faulty_store;
#[cfg(target_os = "linux")]
mod leaks;
mod log;
