//! A row of the table of providers, and what a provider is made from.

use std::sync::Arc;
use std::time::Duration;

use super::types::LlmProvider;
use crate::net::HttpClient;
use crate::net::sse::SseLimits;
use crate::secrets::{Redactor, Secret};

/// A row of [`super::PROVIDERS`].
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
    /// How long it may take, and how much it may say.
    pub limits: StreamLimits,
    /// Knows what may not be shown of what it says: its key at least, better all that the process has, since what
    /// is shown is cut to a length, and of half a secret nobody can tell later that it is one.
    pub redactor: Redactor,
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
            redactor: Redactor::new(key.as_ref()),
            key,
            key_var,
            base_url: base_url.trim_end_matches('/').to_owned(),
            limits: StreamLimits::default(),
        }
    }
}

/// How long an answer may keep silent, and how much of it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// From the request to the head of the answer.
    pub first_byte: Duration,
    /// Between two pieces of the body; comments and pings count as life.
    pub silence: Duration,
    /// Between two pieces of the answer itself: pings alone are no answer.
    pub content: Duration,
    /// How long the mark of the end is waited for when all else of the answer is there.
    pub end: Duration,
    /// Sizes.
    pub sse: SseLimits,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_mins(2),
            silence: Duration::from_secs(90),
            content: Duration::from_mins(10),
            end: Duration::from_secs(5),
            sse: SseLimits::default(),
        }
    }
}
