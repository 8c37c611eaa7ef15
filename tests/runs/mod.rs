//! Runs: their logs, readers, admission and ends.

mod admission;
mod backends;
mod death;
mod ends;
mod faulty_store;
mod harness;
#[cfg(target_os = "linux")]
mod leaks;
mod life;
mod log;
#[cfg(target_os = "linux")]
mod memory;
mod moments;
mod one_shot;
mod resume;
mod secrets;
