//! Anthropic's Messages API, streaming.
//!
//! Oddities of the protocol, and where they are dealt with: usage figures replace each other and are
//! never added ([`AnthropicDecoder`]); a gateway that retries sends a second `message_start` (restart, unless it
//! is a literal duplicate); an overload after a 200 comes as an `error` event; blocks that we don't know
//! are echoed as they came; empty text arrives but must not be sent; results stand before any text of
//! their message; at most four cache marks (`body.rs`).

mod block;
mod body;
mod decoder;
mod errors;
mod usage;
mod wire;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::def::{Build, ProviderConfig, ProviderDef};
use super::driver;
use super::fault;
use super::json::Json;
use super::protocol::{Protocol, Wire, media};
use super::types::{LlmError, LlmErrorKind, LlmRequest};
use crate::chat::CallIds;

pub use decoder::AnthropicDecoder;

/// The row of the table.
pub const DEF: ProviderDef = ProviderDef {
    name: wire::NAME,
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
    build: Build::With(driver::build::<Anthropic>),
};

/// The variable whose value is sent as a Bearer token instead of a key.
const AUTH_TOKEN: &str = "ANTHROPIC_AUTH_TOKEN";
const VERSION: &str = "2023-06-01";

/// The protocol.
#[derive(Clone, Debug)]
pub struct Anthropic {
    config: ProviderConfig,
    url: String,
}

impl Protocol for Anthropic {
    const NAME: &'static str = DEF.name;
    const REQUEST_ID: &'static str = "request-id";
    const MOST_BYTES: usize = 32_000_000;
    type Decoder = AnthropicDecoder;

    fn new(config: &ProviderConfig) -> Self {
        // A gateway's own path prefix stays; a base URL that already has the version is taken as well.
        let base = config.base_url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        Self {
            url: format!("{base}/v1/messages"),
            config: config.clone(),
        }
    }

    fn request(&self, request: &LlmRequest<'_>) -> Result<Wire, LlmError> {
        let mut warnings = Vec::new();
        let written = Json::write(&body::body(request, &mut warnings), media(request.messages));
        let body = written.map_err(|error| {
            LlmError::new(
                LlmErrorKind::BadRequest,
                format!("anthropic's request can't be written as JSON: {error}"),
            )
        })?;
        Ok(Wire {
            url: self.url.clone(),
            headers: self.headers()?,
            body,
            warnings,
        })
    }

    fn decoder(ids: &CallIds) -> AnthropicDecoder {
        AnthropicDecoder::new(ids.clone())
    }

    fn fault(status: u16, headers: &HeaderMap, body: &str) -> LlmError {
        let (kind, words) = errors::classify(status, body);
        fault::refused(kind, words, headers, Self::REQUEST_ID)
    }
}

impl Anthropic {
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
