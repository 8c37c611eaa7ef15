//! Anthropic's Messages API, streaming.
//!
//! Oddities of the protocol, and where they are dealt with: usage figures replace each other and are
//! never added ([`AnthropicDecoder`]); a gateway that retries sends a second `message_start` (restart, unless it
//! is a literal duplicate); an overload after a 200 comes as an `error` event; blocks that we don't know
//! are echoed as they came; empty text arrives but must not be sent; results stand before any text of
//! their message; at most four cache marks (`request_body`).

mod body;
mod decoder;
mod errors;

use std::sync::Arc;

use async_trait::async_trait;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::driver::{self, Call, StreamLimits};
use super::prices;
use super::types::{LlmError, LlmErrorKind, LlmProvider, LlmRequest, LlmStream, ModelFacts};
use super::{Build, ProviderConfig, ProviderDef};
use crate::secrets::Redactor;

pub use body::request_body;
pub use decoder::{AnthropicDecoder, events_of};
pub use errors::classify;

/// The row of the table.
pub const DEF: ProviderDef = ProviderDef {
    name: "anthropic",
    key_vars: &["ANTHROPIC_API_KEY", AUTH_TOKEN],
    base_url_var: "ANTHROPIC_BASE_URL",
    default_base_url: "https://api.anthropic.com",
    default_model: "claude-sonnet-4-6",
    aliases: &[
        ("sonnet", "claude-sonnet-4-6"),
        ("opus", "claude-opus-4-6"),
        ("haiku", "claude-haiku-4-5"),
    ],
    model_prefixes: &["claude-"],
    recordings: &["anthropic"],
    build: Build::With(build),
};

/// The variable whose value is sent as a Bearer token instead of a key.
const AUTH_TOKEN: &str = "ANTHROPIC_AUTH_TOKEN";
const VERSION: &str = "2023-06-01";

fn build(config: ProviderConfig) -> Arc<dyn LlmProvider> {
    Arc::new(Anthropic::new(config, StreamLimits::default()))
}

/// The provider.
#[derive(Clone, Debug)]
pub struct Anthropic {
    config: ProviderConfig,
    url: String,
    limits: StreamLimits,
    redactor: Redactor,
}

impl Anthropic {
    /// The provider with other limits than the usual ones, for tests.
    pub fn new(config: ProviderConfig, limits: StreamLimits) -> Self {
        // A gateway's own path prefix stays; a base URL that already has the version is taken as well.
        let base = config.base_url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        Self {
            url: format!("{base}/v1/messages"),
            redactor: Redactor::new(config.key.as_ref()),
            config,
            limits,
        }
    }

    fn headers(&self) -> Result<HeaderMap, LlmError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        headers.insert(
            HeaderName::from_static("anthropic-version"),
            HeaderValue::from_static(VERSION),
        );
        let Some(key) = &self.config.key else {
            return Ok(headers);
        };
        let (name, value) = if self.config.key_var == AUTH_TOKEN {
            (AUTHORIZATION, format!("Bearer {}", key.expose()))
        } else {
            (
                HeaderName::from_static("x-api-key"),
                key.expose().to_owned(),
            )
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| {
            LlmError::new(
                LlmErrorKind::Auth,
                format!(
                    "anthropic can't be asked: {} holds characters that no header may have",
                    self.config.key_var
                ),
            )
        })?;
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok(headers)
    }
}

#[async_trait]
impl LlmProvider for Anthropic {
    async fn open(&self, request: &LlmRequest<'_>) -> Result<LlmStream, LlmError> {
        let body = serde_json::to_vec(&request_body(request)).map_err(|error| {
            LlmError::new(
                LlmErrorKind::BadRequest,
                format!("anthropic's request can't be written as JSON: {error}"),
            )
        })?;
        let call = Call {
            provider: DEF.name,
            http: &self.config.http,
            url: &self.url,
            headers: self.headers()?,
            body,
            deadline: request.deadline,
            limits: self.limits,
            redactor: self.redactor.clone(),
            classify,
        };
        driver::open(call, AnthropicDecoder::new(request.call_ids.clone())).await
    }

    fn model(&self, model: &str) -> Option<ModelFacts> {
        prices::entry(DEF.name, model).map(prices::ModelEntry::facts)
    }
}
