//! The neutral form of an LLM request and its streamed answer, and the trait that providers implement.
//!
//! # Adding a provider
//! One file with a `DEF`, a pure `request_body`, a pure decoder and an error mapping, and one line in
//! [`super::PROVIDERS`]. What must hold: no delta after an error; every completed block of the answer
//! is given as [`LlmDelta::Block`] in the order received, so that the next request can echo it; usage is
//! cumulative for the request; a stream that ends without [`LlmDelta::Stop`] was cut.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;

use crate::chat::{AssistantBlock, Message, ToolSpec};
use crate::clock::Deadline;
use crate::error::ErrorCode;
use crate::net::retry::Backoff;
use crate::spec::ThinkingLevel;

/// One request for one response.
#[derive(Clone, Debug)]
pub struct LlmRequest {
    /// The model's full id.
    pub model: String,
    /// The system prompt: blocks in order. The same for every request of a run.
    pub system: Vec<String>,
    /// The tools, in a fixed order. The same for every request of a run.
    pub tools: Vec<ToolSpec>,
    /// Whether tools may be called.
    pub tool_choice: ToolChoice,
    /// The conversation so far; the first message is the user's.
    pub messages: Vec<Message>,
    /// The most tokens of the answer; `None` lets the provider's table decide
    /// (min of the model's limit and 32,000).
    pub max_tokens: Option<u32>,
    /// How much the model may think.
    pub thinking: ThinkingLevel,
    /// When the answer must be complete.
    pub deadline: Deadline,
}

/// Whether tools may be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// Not at all, though they stay listed.
    None,
}

/// A piece of a response.
#[derive(Clone, Debug, PartialEq)]
pub enum LlmDelta {
    /// The model that answers, as the provider names it.
    ServedModel(String),
    /// A piece of the answer's text.
    Text(String),
    /// A piece of the thinking's text.
    Thinking(String),
    /// A completed block, for the next request and for the calls.
    Block(AssistantBlock),
    /// The request's usage so far: replaces what was said before.
    Usage(Usage),
    /// The response began anew (a gateway retried): everything before it is void.
    Restarted,
    /// The response is complete. Nothing follows it.
    Stop(LlmStop),
}

/// Why a response ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LlmStop {
    /// Done, or a stop sequence.
    End,
    /// At least one call.
    ToolUse,
    /// The output limit.
    MaxTokens,
    /// A server tool's loop paused: send the conversation back as it is.
    Pause,
    /// The model refused.
    Refusal {
        /// The provider's category, if it gives one.
        category: Option<String>,
        /// The provider's words, if it gives some.
        explanation: Option<String>,
    },
    /// The context window is full.
    ContextFull,
    /// A reason that is not known: treated as an end, with a warning.
    Unknown(String),
}

/// Tokens of one request. `input` counts the uncached part only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Input that was neither read from nor written to a cache.
    pub input: u64,
    /// Input read from the cache.
    pub cache_read: u64,
    /// Input written to the cache for five minutes.
    pub cache_write_5m: u64,
    /// Input written to the cache for an hour.
    pub cache_write_1h: u64,
    /// Output, thinking included.
    pub output: u64,
}

impl Usage {
    /// All input.
    pub const fn total_input(&self) -> u64 {
        self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h
    }
}

/// A response as it streams in. Dropping it closes the connection; read to its end, after
/// [`LlmDelta::Stop`], it leaves the connection for the next request.
pub type LlmStream = Pin<Box<dyn Stream<Item = Result<LlmDelta, LlmError>> + Send>>;

/// An LLM API.
#[async_trait]
pub trait LlmProvider: Send + Sync {
    /// Sends `request` and waits for the head of the answer. Cancelled by dropping the future.
    ///
    /// # Errors
    /// Any of [`LlmError`]; those that are [`LlmError::retryable`] may be sent again.
    async fn open(&self, request: &LlmRequest) -> Result<LlmStream, LlmError>;

    /// What the table knows of `model`: limits and price. `None` for an unknown model.
    fn model(&self, model: &str) -> Option<ModelFacts>;
}

/// What is known of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Tokens that fit, input and output together.
    pub context_window: Option<u64>,
    /// The most tokens of an answer.
    pub max_output_tokens: Option<u32>,
}

/// How an LLM request failed, by what the caller can do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct LlmError {
    /// What kind.
    pub kind: LlmErrorKind,
    /// What happened, for a person: no key, no internal address.
    pub message: String,
    /// The provider's own wish for when to come back.
    pub retry_after: Option<Duration>,
    /// The provider's own word on whether to try again; overrides the kind's.
    pub should_retry: Option<bool>,
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlmErrorKind {
    /// The key was refused.
    Auth,
    /// No credit.
    Billing,
    /// Throttled.
    RateLimited,
    /// Overloaded.
    Overloaded,
    /// 5xx, or a body that says so.
    Unavailable,
    /// The connection could not be made or was lost before the answer's head.
    Unreachable,
    /// Silence for longer than the limit.
    Timeout,
    /// The stream broke off.
    Cut,
    /// Bytes that are not the protocol.
    BadResponse,
    /// The provider refused the request itself.
    BadRequest,
    /// No such model.
    ModelNotFound,
    /// The conversation does not fit the model's window.
    ContextTooLong,
}

impl LlmError {
    /// A failure of `kind`.
    pub fn new(kind: LlmErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
            should_retry: None,
        }
    }

    /// The public code.
    pub const fn code(&self) -> ErrorCode {
        match self.kind {
            LlmErrorKind::Auth => ErrorCode::LlmAuth,
            LlmErrorKind::Billing => ErrorCode::LlmBilling,
            LlmErrorKind::RateLimited => ErrorCode::LlmRateLimited,
            LlmErrorKind::Overloaded => ErrorCode::LlmOverloaded,
            LlmErrorKind::Unavailable | LlmErrorKind::Unreachable => ErrorCode::LlmUnavailable,
            LlmErrorKind::Timeout => ErrorCode::LlmTimeout,
            LlmErrorKind::Cut => ErrorCode::LlmStreamCut,
            LlmErrorKind::BadResponse => ErrorCode::LlmBadResponse,
            LlmErrorKind::BadRequest => ErrorCode::LlmBadRequest,
            LlmErrorKind::ModelNotFound => ErrorCode::LlmModelNotFound,
            LlmErrorKind::ContextTooLong => ErrorCode::ContextTooLong,
        }
    }

    /// How long to wait before the request is sent again.
    pub const fn backoff(&self) -> Backoff {
        match self.kind {
            LlmErrorKind::RateLimited | LlmErrorKind::Overloaded => Backoff::Throttled,
            LlmErrorKind::Auth
            | LlmErrorKind::Billing
            | LlmErrorKind::Unavailable
            | LlmErrorKind::Unreachable
            | LlmErrorKind::Timeout
            | LlmErrorKind::Cut
            | LlmErrorKind::BadResponse
            | LlmErrorKind::BadRequest
            | LlmErrorKind::ModelNotFound
            | LlmErrorKind::ContextTooLong => Backoff::Transport,
        }
    }

    /// Whether sending the same request again at once is worth a try within the run. An answer that can't be
    /// understood is not asked for again here, though a later run may well get a better one: that is what
    /// `retryable` in an `error` event speaks of ([`ErrorCode::retryable`]).
    pub fn retryable(&self) -> bool {
        self.should_retry.unwrap_or(match self.kind {
            LlmErrorKind::RateLimited
            | LlmErrorKind::Overloaded
            | LlmErrorKind::Unavailable
            | LlmErrorKind::Unreachable
            | LlmErrorKind::Timeout
            | LlmErrorKind::Cut => true,
            LlmErrorKind::Auth
            | LlmErrorKind::Billing
            | LlmErrorKind::BadResponse
            | LlmErrorKind::BadRequest
            | LlmErrorKind::ModelNotFound
            | LlmErrorKind::ContextTooLong => false,
        })
    }
}

impl fmt::Display for LlmStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::End => "end",
            Self::ToolUse => "tool_use",
            Self::MaxTokens => "max_tokens",
            Self::Pause => "pause",
            Self::Refusal { .. } => "refusal",
            Self::ContextFull => "context_full",
            Self::Unknown(reason) => reason,
        })
    }
}
