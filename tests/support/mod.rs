//! Helpers shared by the tests.

pub mod clients;
#[cfg(target_os = "linux")]
pub mod fake_e2b;
