//! The neutral form of an LLM request and its streamed answer, and the trait that providers implement.
//!
//! # Adding a provider
//! One file (or folder) with a `DEF` and a [`Protocol`](super::protocol::Protocol), and one line in
//! [`super::PROVIDERS`]; facts and prices of its models are data, in `model-prices.json`. What must hold: no
//! delta after an error; every completed block of the answer is given as [`LlmDelta::Block`] in the order
//! received, so that the next request can echo it; usage is cumulative for the request.

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use serde::Deserialize;
use serde_json::Value;

use super::effort::Efforts;
use crate::chat::{Block, CallIds, Message, ToolSpec};
use crate::clock::Deadline;
use crate::error::{ErrorCode, WarningCode};
use crate::net::retry::Backoff;
use crate::spec::{NanoUsd, ThinkingLevel};

/// One request for one response. Borrows the conversation: nothing of it is copied for a request.
#[derive(Clone, Copy, Debug)]
pub struct LlmRequest<'a> {
    /// The model's full id.
    pub model: &'a str,
    /// The system prompt: blocks in order. The same for every request of a run.
    pub system: &'a [String],
    /// The tools, in a fixed order. The same for every request of a run.
    pub tools: &'a [&'static ToolSpec],
    /// Tools that the provider runs itself. The same for every request of a run.
    pub server_tools: &'a [ServerTool],
    /// Whether tools may be called.
    pub tool_choice: ToolChoice,
    /// The conversation so far; the first message is the user's.
    pub messages: &'a [Message],
    /// JSON Schema that the answer's text must follow, where the provider can hold it to that.
    pub output_schema: Option<&'a Value>,
    /// How long the answer may be.
    pub answer: AnswerSize,
    /// The most output tokens, thinking included, that the rest of the run's budget pays for and the rest of the
    /// model's window holds; `None` where nothing bounds them.
    pub affordable: Option<u32>,
    /// How much the model may think.
    pub thinking: ThinkingLevel,
    /// The same for every request of a run, other for other runs: steers a provider's cache.
    pub cache_key: &'a str,
    /// Makes the ids of the calls that come back.
    pub call_ids: &'a CallIds,
    /// When the answer must be complete.
    pub deadline: Deadline,
}

impl<'a> LlmRequest<'a> {
    /// With `messages` alone: no system prompt, no tools, and everything else as the model likes.
    pub const fn plain(
        model: &'a str,
        messages: &'a [Message],
        call_ids: &'a CallIds,
        deadline: Deadline,
    ) -> Self {
        Self {
            model,
            system: &[],
            tools: &[],
            server_tools: &[],
            tool_choice: ToolChoice::Auto,
            messages,
            output_schema: None,
            answer: AnswerSize::Usual,
            affordable: None,
            thinking: ThinkingLevel::Unset,
            cache_key: "",
            call_ids,
            deadline,
        }
    }
}

/// How long an answer may be, thinking not counted where the provider tells them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerSize {
    /// The model's limit, but at most 32,000 tokens.
    #[default]
    Usual,
    /// The model's limit.
    Full,
    /// At most so many tokens.
    AtMost(u32),
}

/// A tool that the provider runs itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerTool {
    /// A web search, at most so many times in one response.
    WebSearch {
        /// The bound.
        max_uses: u32,
    },
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
    Block(Block),
    /// A source that the answer's text names.
    Citation(Citation),
    /// The provider ran a tool of its own.
    ServerToolUse {
        /// Which.
        tool: &'static str,
        /// What for: the query of a search.
        query: String,
    },
    /// The request could not be followed to the letter; the client is told.
    Warning {
        /// Its kind.
        code: WarningCode,
        /// What, and what was done instead.
        message: String,
    },
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
    /// The model tried a call that its provider could not read: the same request is worth another try.
    MalformedCall {
        /// What the provider shows of it.
        attempt: String,
    },
    /// A reason that is not known: treated as an end, with a warning.
    Unknown(String),
}

/// A source that an answer names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Citation {
    /// Where it is.
    pub url: Option<String>,
    /// What it is called.
    pub title: Option<String>,
    /// The words of it that the answer stands on.
    pub quote: Option<String>,
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
    /// Thinking, as far as the provider tells: a part of `output`.
    pub reasoning: u64,
    /// Searches that the provider ran.
    pub searches: u64,
    /// What the provider says that the request cost: the truth, where it says so.
    pub given_cost: Option<NanoUsd>,
    /// The tokens that the conversation has after this response, where that is not all input and output: a
    /// provider that ran several passes for one request counts each of them.
    pub last_pass: Option<u64>,
    /// The provider gave no figures: these are made from the sizes of the texts.
    pub estimated: bool,
}

impl Usage {
    /// All input.
    pub const fn total_input(&self) -> u64 {
        self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h
    }

    /// The tokens that the conversation has after this response.
    pub const fn context(&self) -> u64 {
        match self.last_pass {
            Some(tokens) => tokens,
            None => self.total_input() + self.output,
        }
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
    /// What costs nothing: the request never left, or was refused. Whatever else fails is told by the stream, after
    /// an estimate of what it may have cost. Those that are [`LlmError::retryable`] may be sent again.
    async fn open(&self, request: &LlmRequest<'_>) -> Result<LlmStream, LlmError>;

    /// What is known of `model`, or likely by its name: what requests are made by.
    fn model(&self, model: &str) -> ModelFacts;
}

/// What is known of a model. What is not known is `None` or `false`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ModelFacts {
    /// Tokens that fit, input and output together.
    pub context_window: Option<u64>,
    /// The most tokens of an answer.
    pub max_output_tokens: Option<u32>,
    /// Input tokens, cached ones included, above which all tokens of a request cost more.
    #[serde(skip)]
    pub price_step: Option<u64>,
    /// It sees pictures.
    pub vision: bool,
    /// It reads PDFs.
    pub documents: bool,
    /// Its provider can hold its answer to a JSON Schema.
    pub native_schema: bool,
    /// That also while there are tools.
    pub tools_with_schema: bool,
    /// How it is told to think.
    pub thinking: ThinkingStyle,
    /// What efforts it takes.
    pub efforts: Efforts,
}

impl ModelFacts {
    /// The tokens of thinking that `level` stands for, where the model is told a number; the same for every request of
    /// a run, since another one voids what its provider has cached of the messages. `None` where it is told none.
    pub fn thinking_budget(&self, level: ThinkingLevel) -> Option<u32> {
        let tokens = match (self.thinking, level) {
            (ThinkingStyle::Budget, ThinkingLevel::Low) => 2048,
            (ThinkingStyle::Budget, ThinkingLevel::Medium) => 10_000,
            (ThinkingStyle::Budget, ThinkingLevel::High) => 16_384,
            (_, _) => return None,
        };
        let half = self.max_output_tokens.map_or(u32::MAX, |most| most / 2);
        Some(half.min(tokens))
    }

    /// The least [`LlmRequest::affordable`] with which the model thinks as `level` asks: with less it doesn't think at
    /// all. `None` where it thinks with any.
    pub fn least_with_thinking(&self, level: ThinkingLevel) -> Option<u32> {
        Some(self.thinking_budget(level)? + LEAST_ANSWER)
    }
}

/// So many tokens of an answer are left when all that may be thought was thought.
const LEAST_ANSWER: u32 = 1024;

/// How a model is told how much to think.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThinkingStyle {
    /// It doesn't think, or nothing is known.
    #[default]
    Unknown,
    /// By a number of tokens; off unless asked.
    Budget,
    /// By effort; off unless asked.
    OptIn,
    /// By effort; on unless told not to.
    OptOut,
    /// By effort; never quite off, but it can be kept to the time between calls.
    BetweenTools,
    /// By effort; never off.
    Always,
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
    /// The provider's name for the request, where it gave one.
    pub request_id: Option<String>,
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
    /// The request never left: there was no connection to carry it.
    Unreachable,
    /// Silence for longer than the limit.
    Timeout,
    /// The connection or the stream broke off after the request was sent.
    Cut,
    /// Bytes that are not the protocol.
    BadResponse,
    /// The provider refused the request itself.
    BadRequest,
    /// No such model.
    ModelNotFound,
    /// The conversation does not fit the model's window.
    ContextTooLong,
    /// The provider can't take an image or document of the conversation, or not so much of them.
    ContentRefused,
}

impl LlmErrorKind {
    /// Whether the provider may have worked on what failed so, and bill it: nobody said that it was refused.
    pub const fn may_be_billed(self) -> bool {
        matches!(self, Self::Timeout | Self::Cut | Self::BadResponse)
    }
}

impl LlmError {
    /// A failure of `kind`.
    pub fn new(kind: LlmErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
            should_retry: None,
            request_id: None,
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
            LlmErrorKind::BadRequest | LlmErrorKind::ContentRefused => ErrorCode::LlmBadRequest,
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
            | LlmErrorKind::ContextTooLong
            | LlmErrorKind::ContentRefused => Backoff::Transport,
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
            | LlmErrorKind::ContextTooLong
            | LlmErrorKind::ContentRefused => false,
        })
    }
}
