//! Sandbox backends, and the stand-ins that prove them.

#[cfg(target_os = "linux")]
mod e2b_breaks;
#[cfg(target_os = "linux")]
mod e2b_client;
#[cfg(target_os = "linux")]
mod e2b_faults;
#[cfg(target_os = "linux")]
mod e2b_files;
#[cfg(target_os = "linux")]
mod e2b_standin;
#[cfg(target_os = "linux")]
mod e2b_standin_faults;
#[cfg(target_os = "linux")]
mod e2b_standin_life;
#[cfg(target_os = "linux")]
mod e2b_support;
