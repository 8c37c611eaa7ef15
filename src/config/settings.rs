//! The process's settings, every choice made.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::env::Source;
use crate::net::{HttpClient, Proxies};
use crate::sandbox::{BackendConfig, LocalLimits};
use crate::secrets::{Redactor, Secret};
use crate::spec::{NanoUsd, Network, SandboxStart, StoreDurability, SystemPrompt, ThinkingLevel};

/// The file that is looked for in the working directory.
pub const FILE_NAME: &str = "sandcaster.json";

/// Settings of the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where and how the server listens.
    pub server: ServerSettings,
    /// What the project chose for its runs.
    pub project: ProjectSettings,
    /// Where the store lies.
    pub data_dir: PathBuf,
    /// How sure a commit is.
    pub store_durability: StoreDurability,
    /// Keys by variable name: of LLM providers and sandbox backends, those that are set.
    pub keys: BTreeMap<&'static str, Secret>,
    /// Where each key and secret comes from, by variable name.
    pub key_sources: BTreeMap<&'static str, Source>,
    /// Base URLs by variable name, those that are set; checked, without a trailing slash.
    pub base_urls: BTreeMap<&'static str, String>,
    /// The proxies of the environment.
    pub proxies: Proxies,
    /// Limits of `local` sandboxes.
    pub local: LocalLimits,
    /// The program that `local` re-executes.
    pub launcher: PathBuf,
    /// What is logged, and how.
    pub log: LogSettings,
    /// The `sandcaster.json` that was read.
    pub file: Option<PathBuf>,
    /// What is odd in the settings but no reason to stop: logged at start.
    pub warnings: Vec<String>,
}

/// Where and how the server listens.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Address to bind.
    pub host: String,
    /// Port to bind; 0 lets the system choose.
    pub port: u16,
    /// Accepted Bearer tokens; empty: no authentication.
    pub api_keys: Vec<Secret>,
    /// Further `Host` names that are answered; lower case.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages that may use the API, as browsers send them.
    pub allowed_origins: Vec<String>,
    /// The secret of E2B's webhook signatures.
    pub webhook_secret: Option<Secret>,
    /// Runs at once; beyond it requests are refused.
    pub max_concurrent_runs: usize,
    /// Sandboxes at once, by backend.
    pub max_sandboxes: BTreeMap<&'static str, usize>,
    /// Silence on a stream before a comment is sent.
    pub heartbeat: Duration,
    /// How long an ended run is kept; `None`: for ever.
    pub retention: Option<Duration>,
    /// Runs that are kept at most, the youngest; at least 1.
    pub max_stored_runs: u64,
}

/// What the project chose for its runs: the top level of `sandcaster.json`, and its variables.
#[derive(Clone, Debug)]
pub struct ProjectSettings {
    /// Parts of the system prompt.
    pub system_prompt: SystemPrompt,
    /// The model when a request names none.
    pub model: Option<String>,
    /// The LLM provider when a request names none; known, not always built.
    pub provider: Option<&'static str>,
    /// The sandbox backend when a request names none; known, not always built.
    pub sandbox_provider: Option<&'static str>,
    /// Turns when a request says nothing.
    pub max_turns: u32,
    /// Time when a request says nothing.
    pub timeout: Duration,
    /// Tools that runs may have at most; `None`: all.
    pub allowed_tools: Option<Vec<&'static str>>,
    /// Tools that the project names and that are not built yet.
    pub unavailable_tools: Vec<String>,
    /// How much the model may think when a request says nothing.
    pub thinking: ThinkingLevel,
    /// The sandbox's template or image.
    pub template: Option<String>,
    /// What sandboxes may reach; `None`: the backend's default.
    pub network: Option<Network>,
    /// The most that a run may cost; a request may only lower it.
    pub max_budget: Option<NanoUsd>,
    /// When sandboxes are created.
    pub sandbox_start: SandboxStart,
    /// How long nobody may read a run before it is cancelled.
    pub disconnect_grace: Duration,
    /// Further short names of models, or other meanings of the known ones.
    pub model_aliases: BTreeMap<String, String>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Directives as in `info,sandcaster=debug`; `None`: the command's default.
    pub filter: Option<String>,
    /// One JSON object per line instead of text.
    pub json: bool,
}

/// Settings that can't be used: what, where, and what to do. One line per fault, never a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// What the command line says over everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--host`.
    pub host: Option<String>,
    /// `--port`.
    pub port: Option<u16>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--config`: must exist, unlike the default file.
    pub config: Option<PathBuf>,
    /// `--template`.
    pub template: Option<String>,
    /// `--require-auth`: no start without an API key.
    pub require_auth: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerSettings {
                host: "127.0.0.1".to_owned(),
                port: 3000,
                api_keys: Vec::new(),
                allowed_hosts: Vec::new(),
                allowed_origins: Vec::new(),
                webhook_secret: None,
                max_concurrent_runs: 1000,
                max_sandboxes: BTreeMap::from([("local", local_sandboxes()), ("docker", 8)]),
                heartbeat: Duration::from_secs(15),
                retention: Some(Duration::from_hours(30 * 24)),
                max_stored_runs: 100_000,
            },
            project: ProjectSettings {
                system_prompt: SystemPrompt::default(),
                model: None,
                provider: None,
                sandbox_provider: None,
                max_turns: 100,
                timeout: Duration::from_mins(5),
                allowed_tools: None,
                unavailable_tools: Vec::new(),
                thinking: ThinkingLevel::Unset,
                template: None,
                network: None,
                max_budget: None,
                sandbox_start: SandboxStart::Eager,
                disconnect_grace: Duration::from_secs(10),
                model_aliases: BTreeMap::new(),
            },
            data_dir: PathBuf::from(".sandcaster"),
            store_durability: StoreDurability::Normal,
            keys: BTreeMap::new(),
            key_sources: BTreeMap::new(),
            base_urls: BTreeMap::new(),
            proxies: Proxies::default(),
            local: LocalLimits::default(),
            launcher: PathBuf::from("/proc/self/exe"),
            log: LogSettings {
                filter: None,
                json: false,
            },
            file: None,
            warnings: Vec::new(),
        }
    }
}

impl Config {
    /// What it means that the server can be reached from elsewhere without a key, if that is so.
    pub fn exposure(&self) -> Option<String> {
        let open = self.server.api_keys.is_empty() && !self.listens_on_loopback();
        open.then(|| {
            format!(
                "NO AUTHENTICATION on {}: everyone who can reach this port can run commands in \
                 sandboxes here, read every run, and spend your LLM credit. Set SANDCASTER_API_KEY, \
                 or listen on 127.0.0.1; --require-auth refuses such a start",
                self.server.host
            )
        })
    }

    /// Whether only this machine can reach the server.
    pub fn listens_on_loopback(&self) -> bool {
        let host = self.server.host.as_str();
        host.eq_ignore_ascii_case("localhost")
            || host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    /// Every secret of the process, for the redactor.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.keys
            .values()
            .chain(&self.server.api_keys)
            .chain(&self.server.webhook_secret)
    }

    /// A redactor of [`Self::secrets`].
    pub fn redactor(&self) -> Redactor {
        Redactor::new(self.secrets())
    }

    /// What sandbox backends are made from.
    pub fn backend_config(&self, http: HttpClient) -> BackendConfig {
        BackendConfig {
            http,
            keys: self
                .keys
                .iter()
                .map(|(name, key)| (*name, key.clone()))
                .collect(),
            base_urls: self.base_urls.clone(),
            launcher: self.launcher.clone(),
            local: self.local.clone(),
        }
    }

    /// Home and `/tmp` of a `local` sandbox count as its memory.
    pub(super) fn tight_memory(&self) -> Option<String> {
        const TMP_MB: u64 = 256;
        let LocalLimits {
            memory_mb, disk_mb, ..
        } = self.local;
        (disk_mb + TMP_MB >= memory_mb).then(|| {
            format!(
                "local.diskMb ({disk_mb}) and {TMP_MB} MiB of /tmp count as memory, and local.memoryMb \
                 is {memory_mb}: a sandbox that fills its disk will run out of memory"
            )
        })
    }
}

/// Sandboxes that this machine's memory carries: one per GiB, from 4 to 64.
fn local_sandboxes() -> usize {
    const KIB_PER_GIB: usize = 1024 * 1024;
    let kib = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("MemTotal:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()
        });
    (kib.unwrap_or_default() / KIB_PER_GIB).clamp(4, 64)
}
