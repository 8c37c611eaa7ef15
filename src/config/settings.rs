//! The process's settings, merged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::sandbox::LocalLimits;
use crate::secrets::Secret;

/// Settings of the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where and how the server listens.
    pub server: ServerSettings,
    /// Where the store lies.
    pub data_dir: PathBuf,
    /// Keys by variable name: of LLM providers and sandbox backends, those that are set.
    pub keys: BTreeMap<&'static str, Secret>,
    /// Base URLs by variable name, those that are set; checked, without a trailing slash.
    pub base_urls: BTreeMap<&'static str, String>,
    /// Limits of `local` sandboxes.
    pub local: LocalLimits,
    /// The program that `local` re-executes.
    pub launcher: PathBuf,
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
    /// Further `Host` names that are answered.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages that may use the API.
    pub allowed_origins: Vec<String>,
    /// The secret of E2B's webhook signatures.
    pub webhook_secret: Option<Secret>,
    /// Runs at once; beyond it requests are refused.
    pub max_concurrent_runs: usize,
    /// Sandboxes at once, by backend.
    pub max_sandboxes: BTreeMap<&'static str, usize>,
    /// Silence on a stream before a comment is sent.
    pub heartbeat: Duration,
}

/// Settings that can't be used: what, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);
