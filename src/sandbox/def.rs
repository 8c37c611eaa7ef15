//! A row of the table of backends, and what a backend is made from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::types::SandboxBackend;
use crate::net::HttpClient;
use crate::secrets::Secret;
use crate::spec::Network;

/// A row of [`super::BACKENDS`].
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
    /// Its sandboxes are processes that end with the one that made them, however that ends.
    pub dies_with_server: bool,
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
    /// Base URLs and domains of backends that are set, by variable name ([`super::e2b::API_URL_VAR`] and its
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
