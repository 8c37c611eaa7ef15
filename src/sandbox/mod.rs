//! Sandboxes: the traits, one file per backend, one table.
//!
//! Knows no LLM, no run log and no HTTP server of ours.

mod def;
pub mod e2b;
pub mod files;
pub mod local;
mod report;
mod script;
mod types;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::spec::Network;

pub use def::{BackendConfig, BackendDef, Build, LocalLimits};
pub use report::{SandboxNews, SandboxReport};
pub(crate) use script::{Script, exec_sh, require_shell, unforked};
pub use types::{
    ExecCollected, ExecControl, ExecOutput, ExecSpec, ExecStream, FileErrorKind, FoundSandbox,
    Labels, Sandbox, SandboxBackend, SandboxError, SandboxSpec, Short,
};

/// Every backend that a request may name, in the order in which one is chosen.
pub static BACKENDS: &[BackendDef] = &[e2b::DEF, VERCEL, CLOUDFLARE, DOCKER, local::DEF];

const VERCEL: BackendDef = BackendDef {
    name: "vercel",
    key_vars: &["VERCEL_TOKEN"],
    url_vars: &[],
    host_vars: &[],
    default_network: Network::Full,
    working_dir: "/vercel/sandbox",
    dies_with_server: false,
    isolates: "a microVM per run at Vercel",
    build: Build::NotYet,
};

const CLOUDFLARE: BackendDef = BackendDef {
    name: "cloudflare",
    key_vars: &["CLOUDFLARE_API_TOKEN", "CLOUDFLARE_SANDBOX_WORKER_URL"],
    url_vars: &[],
    host_vars: &[],
    default_network: Network::Full,
    working_dir: "/workspace",
    dies_with_server: false,
    isolates: "a container per run at Cloudflare",
    build: Build::NotYet,
};

const DOCKER: BackendDef = BackendDef {
    name: "docker",
    key_vars: &[],
    url_vars: &[],
    host_vars: &[],
    default_network: Network::None,
    working_dir: "/workspace",
    dies_with_server: false,
    isolates: "a container per run on this machine's Docker engine",
    build: Build::NotYet,
};

/// Backends that were built, by name.
pub type Backends = BTreeMap<&'static str, Arc<dyn SandboxBackend>>;

/// Builds every backend that can be built and has all its keys.
pub fn build(config: &BackendConfig) -> Backends {
    let has = |var: &&str| config.keys.iter().any(|(name, _)| name == var);
    BACKENDS
        .iter()
        .filter(|def| def.key_vars.iter().all(has))
        .filter_map(|def| match def.build {
            Build::With(build) => Some((def.name, build(config))),
            Build::NotYet => None,
        })
        .collect()
}

/// The row named `name`.
pub fn backend(name: &str) -> Option<&'static BackendDef> {
    BACKENDS.iter().find(|def| def.name == name)
}
