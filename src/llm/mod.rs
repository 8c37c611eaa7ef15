//! LLM APIs: one neutral request and stream, one file per provider, one table.
//!
//! Knows no sandbox, no HTTP server and no store.

pub mod anthropic;
#[cfg(test)]
mod asked;
pub mod demo;
mod driver;
pub mod models;
pub mod prices;
mod types;

use std::sync::Arc;

use crate::net::HttpClient;
use crate::secrets::Secret;

pub use driver::StreamLimits;
pub use types::{
    AnswerSize, Citation, LlmDelta, LlmError, LlmErrorKind, LlmProvider, LlmRequest, LlmStop,
    LlmStream, ModelFacts, ServerTool, ToolChoice, Usage,
};

/// Every provider that a request may name, in the order in which keys suggest one.
pub static PROVIDERS: &[ProviderDef] = &[anthropic::DEF, OPENAI, GOOGLE, OPENROUTER, demo::DEF];

const OPENAI: ProviderDef = ProviderDef {
    name: "openai",
    key_vars: &["OPENAI_API_KEY"],
    base_url_var: "OPENAI_BASE_URL",
    default_base_url: "https://api.openai.com/v1",
    default_model: "gpt-5.4",
    aliases: &[("gpt5", "gpt-5.4"), ("gpt5mini", "gpt-5-mini")],
    model_prefixes: &["gpt-", "o1", "o3", "o4"],
    recordings: &["openai", "openai-compatible"],
    build: Build::NotYet,
};

const GOOGLE: ProviderDef = ProviderDef {
    name: "google",
    key_vars: &[
        "GOOGLE_API_KEY",
        "GEMINI_API_KEY",
        "GOOGLE_GENERATIVE_AI_API_KEY",
    ],
    base_url_var: "GOOGLE_GEMINI_BASE_URL",
    default_base_url: "https://generativelanguage.googleapis.com",
    default_model: "gemini-3.1-pro-preview",
    aliases: &[("gemini", "gemini-3.1-pro-preview")],
    model_prefixes: &["gemini-"],
    recordings: &["gemini"],
    build: Build::NotYet,
};

const OPENROUTER: ProviderDef = ProviderDef {
    name: "openrouter",
    key_vars: &["OPENROUTER_API_KEY"],
    base_url_var: "OPENROUTER_BASE_URL",
    default_base_url: "https://openrouter.ai/api/v1",
    default_model: "anthropic/claude-sonnet-4.6",
    aliases: &[],
    model_prefixes: &[],
    recordings: &["openrouter"],
    build: Build::NotYet,
};

/// A row of [`PROVIDERS`].
#[derive(Clone, Copy, Debug)]
pub struct ProviderDef {
    /// The request's `provider`.
    pub name: &'static str,
    /// Variables that may hold its key, the first one set wins. Empty: it needs no key.
    pub key_vars: &'static [&'static str],
    /// The variable for another base URL; empty if there is none.
    pub base_url_var: &'static str,
    /// Where it is reached otherwise.
    pub default_base_url: &'static str,
    /// The model when none was named.
    pub default_model: &'static str,
    /// Short names of models.
    pub aliases: &'static [(&'static str, &'static str)],
    /// How full ids of its models begin.
    pub model_prefixes: &'static [&'static str],
    /// Folders of recorded traffic that its decoder must replay.
    pub recordings: &'static [&'static str],
    /// Makes it.
    pub build: Build,
}

/// How a provider is made.
#[derive(Clone, Copy, Debug)]
pub enum Build {
    /// By this function.
    With(fn(ProviderConfig) -> Arc<dyn LlmProvider>),
    /// Known, but not built yet: a request that names it gets `NOT_IMPLEMENTED`.
    NotYet,
}

/// What a provider is made from.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// Shared by all requests.
    pub http: HttpClient,
    /// Its key; `None` for a provider that needs none.
    pub key: Option<Secret>,
    /// The variable that the key was read from: some providers send a token differently from a key.
    /// Empty without a key.
    pub key_var: &'static str,
    /// Where it is reached, without a trailing slash.
    pub base_url: String,
}

impl ProviderDef {
    /// What to make the provider from, by its variables: the first key variable that is set, and the base
    /// URL if one is set.
    pub fn config(
        &self,
        http: HttpClient,
        key: impl Fn(&str) -> Option<Secret>,
        base_url: Option<&str>,
    ) -> ProviderConfig {
        let found = self
            .key_vars
            .iter()
            .find_map(|name| Some((*name, key(name)?)));
        let (key_var, key) = found.map_or(("", None), |(name, key)| (name, Some(key)));
        let base_url = base_url.unwrap_or(self.default_base_url);
        ProviderConfig {
            http,
            key,
            key_var,
            base_url: base_url.trim_end_matches('/').to_owned(),
        }
    }
}

/// The row named `name`.
pub fn provider(name: &str) -> Option<&'static ProviderDef> {
    PROVIDERS.iter().find(|def| def.name == name)
}
