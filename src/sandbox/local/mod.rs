//! `local`: sandboxes on this machine, made by this program from the kernel's own parts.
//!
//! The program re-executes itself as a small single-threaded launcher (`launch`), which makes
//! namespaces, a tree of its own (`mounts`) and walls (`walls`, `filters`), and stays in the sandbox as
//! its PID 1 (`agent`). One inherited socket carries everything between it and the host (`protocol`).
//! On the host, `backend` makes and finds sandboxes, `link` speaks with one agent, `sandbox` is the
//! trait's face of it, `diagnosis` says why a host can't.
//!
//! What must hold:
//! - The host opens no path that the sandbox names, and treats every frame as hostile.
//! - Nothing runs without isolation: a step that fails ends the launcher, and creation with an error.
//! - Everything in a sandbox dies with its PID 1, and PID 1 with the server, whichever way that ends.
//! - `launcher_main` runs before the program has a second thread.

#[cfg(target_os = "linux")]
mod agent;
#[cfg(target_os = "linux")]
mod backend;
#[cfg(target_os = "linux")]
mod diagnosis;
#[cfg(target_os = "linux")]
mod filters;
#[cfg(target_os = "linux")]
mod launch;
#[cfg(target_os = "linux")]
mod launcher;
#[cfg(target_os = "linux")]
mod link;
#[cfg(target_os = "linux")]
mod mounts;
#[cfg(target_os = "linux")]
mod protocol;
#[cfg(target_os = "linux")]
mod sandbox;
#[cfg(target_os = "linux")]
mod settings;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(target_os = "linux")]
mod walls;

use super::def::{BackendDef, Build};
use crate::spec::Network;

#[cfg(target_os = "linux")]
use self::backend::make;
#[cfg(not(target_os = "linux"))]
use self::unsupported::make;

#[cfg(all(debug_assertions, target_os = "linux"))]
pub use self::backend::make_without;
#[cfg(target_os = "linux")]
pub use self::launch::launcher_main;
#[cfg(target_os = "linux")]
pub(crate) use self::protocol::fuzz_link;
#[cfg(all(debug_assertions, target_os = "linux"))]
pub use self::settings::Wall;
#[cfg(not(target_os = "linux"))]
pub use self::unsupported::launcher_main;

/// The row of `local`.
pub const DEF: BackendDef = BackendDef {
    name: "local",
    key_vars: &[],
    url_vars: &[],
    host_vars: &[],
    default_network: Network::None,
    working_dir: "/home/user",
    dies_with_server: true,
    isolates: "namespaces, seccomp and Landlock on this machine's kernel, without network",
    build: Build::With(make),
};
