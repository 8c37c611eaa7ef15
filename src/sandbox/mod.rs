//! Sandboxes: the traits, one file per backend, one table.
//!
//! Knows no LLM, no run log and no HTTP server of ours.

pub mod e2b;
pub mod files;
pub mod local;
mod script;
mod types;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::net::HttpClient;
use crate::secrets::Secret;
use crate::spec::Network;

pub(crate) use script::{Script, require_shell};
pub use types::{
    ExecCollected, ExecControl, ExecOutput, ExecSpec, ExecStream, FileErrorKind, FoundSandbox,
    Labels, Sandbox, SandboxBackend, SandboxError, SandboxSpec,
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
    isolates: "a container per run on this machine's Docker engine",
    build: Build::NotYet,
};

/// A row of [`BACKENDS`].
#[derive(Clone, Copy, Debug)]
pub struct BackendDef {
    /// The request's `sandboxProvider`.
    pub name: &'static str,
    /// Variables that must all be set. Empty: it needs no key.
    pub key_vars: &'static [&'static str],
    /// Variables for other base URLs of it.
    pub url_vars: &'static [&'static str],
    /// Variables for another host name of it.
    pub host_vars: &'static [&'static str],
    /// What a sandbox may reach unless `network` says otherwise.
    pub default_network: Network,
    /// Where its sandboxes' relative paths start.
    pub working_dir: &'static str,
    /// In a few words, for `doctor` and the README.
    pub isolates: &'static str,
    /// Makes it.
    pub build: Build,
}

/// How a backend is made.
#[derive(Clone, Copy, Debug)]
pub enum Build {
    /// By this function.
    With(fn(&BackendConfig) -> Arc<dyn SandboxBackend>),
    /// Known, but not built yet: a request that names it gets `NOT_IMPLEMENTED`.
    NotYet,
}

/// What a backend is made from.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Shared by all requests.
    pub http: HttpClient,
    /// Values of its key variables that are set, by name.
    pub keys: Vec<(&'static str, Secret)>,
    /// Base URLs and domains of backends that are set, by variable name ([`e2b::API_URL_VAR`] and its
    /// like); checked, URLs without a trailing slash.
    pub base_urls: BTreeMap<&'static str, String>,
    /// The program that `local` re-executes: `/proc/self/exe`, but for tests.
    pub launcher: PathBuf,
    /// Limits of `local` sandboxes.
    pub local: LocalLimits,
}

/// Limits of a `local` sandbox, and where it runs (`local` in `sandcaster.json`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalLimits {
    /// Memory of all its processes together, in MiB.
    pub memory_mb: u64,
    /// Size of its home, in MiB.
    pub disk_mb: u64,
    /// Processes and threads.
    pub max_processes: u64,
    /// The host's uid and gid that it runs as when the server is root.
    pub host_uid: u32,
    /// Further host directories that it may read.
    pub read_only_paths: Vec<PathBuf>,
}

impl Default for LocalLimits {
    fn default() -> Self {
        Self {
            memory_mb: 1024,
            disk_mb: 512,
            max_processes: 256,
            host_uid: 65534,
            read_only_paths: Vec::new(),
        }
    }
}

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
