#![doc = include_str!("error.md")]

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::ids::RunId;

macro_rules! codes {
    ($(#[$outer:meta])* $name:ident retryable { $($variant:ident = $wire:literal, $retryable:literal, $meaning:literal;)* }) => {
        codes! { $(#[$outer])* $name { $($variant = $wire, $meaning;)* } }

        impl $name {
            /// Whether sending the same request again may succeed.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)* }
            }
        }
    };
    ($(#[$outer:meta])* $name:ident { $($variant:ident = $wire:literal, $meaning:literal;)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $(#[doc = $meaning] $variant,)* }

        impl $name {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $wire,)* }
            }

            /// The code with this wire name.
            pub fn parse(wire: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.as_str() == wire)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

codes! {
    /// Why a request was refused or a run ended: one closed list, stable names, never renamed.
    ErrorCode retryable {
        InvalidJson = "INVALID_JSON", false, "the body is not one JSON object";
        ValidationFailed = "VALIDATION_FAILED", false, "a field is unknown, missing, of the wrong type or out of its limits";
        UnknownModel = "UNKNOWN_MODEL", false, "no provider is known for the model";
        ProviderUnknown = "PROVIDER_UNKNOWN", false, "no such LLM provider or sandbox backend";
        InvalidTemplateForProvider = "INVALID_TEMPLATE_FOR_PROVIDER", false, "the template's name has the wrong form for the backend";
        LlmKeyMissing = "LLM_KEY_MISSING", false, "the named LLM provider has no key on this server";
        CursorInvalid = "CURSOR_INVALID", false, "the cursor is not a sequence number";
        ProviderAuthMissing = "PROVIDER_AUTH_MISSING", false, "the sandbox backend's key is missing or was refused";
        Unauthorized = "UNAUTHORIZED", false, "the Bearer token is missing, malformed or wrong";
        ForbiddenHost = "FORBIDDEN_HOST", false, "the Host header names a host that this server does not answer to";
        ForbiddenOrigin = "FORBIDDEN_ORIGIN", false, "the request comes from a web page of another origin";
        NotFound = "NOT_FOUND", false, "there is nothing at this path";
        RunNotFound = "RUN_NOT_FOUND", false, "there is no such run";
        MethodNotAllowed = "METHOD_NOT_ALLOWED", false, "the path exists, but not with this method";
        RequestTimeout = "REQUEST_TIMEOUT", true, "the body did not arrive in time";
        CursorAhead = "CURSOR_AHEAD", false, "the cursor is past the end of the run's log";
        RunActive = "RUN_ACTIVE", true, "the run has not ended, so it can't be deleted";
        SessionBusy = "SESSION_BUSY", true, "the session is answering another message";
        EventsExpired = "EVENTS_EXPIRED", false, "the events asked for are no longer kept";
        BodyTooLarge = "BODY_TOO_LARGE", false, "the body is over the limit";
        UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", false, "the body is not application/json, or is encoded";
        IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", false, "the idempotency key belongs to another request";
        QueueFull = "QUEUE_FULL", true, "the server runs as many agents as it may";
        TooManyRequests = "TOO_MANY_REQUESTS", true, "this address failed to authenticate too often, or sends too fast";
        ServerBusy = "SERVER_BUSY", true, "too many connections, request bodies or readers of one run at once";
        NotImplemented = "NOT_IMPLEMENTED", false, "known, but not built yet";
        NoModelConfigured = "NO_MODEL_CONFIGURED", false, "no model was named and no LLM key is set";
        NoSandboxConfigured = "NO_SANDBOX_CONFIGURED", false, "no sandbox backend is usable on this server";
        Draining = "DRAINING", true, "the server is stopping";
        StoreUnavailable = "STORE_UNAVAILABLE", true, "the run store can't be written or read";
        Cancelled = "CANCELLED", false, "the run was cancelled by request";
        ClientGone = "CLIENT_GONE", false, "nobody read the run's stream any more";
        DeadlineExceeded = "DEADLINE_EXCEEDED", false, "the run's time was over";
        QueueTimeout = "QUEUE_TIMEOUT", true, "the run waited too long for a place";
        MaxTurns = "MAX_TURNS", false, "all turns were used without an answer";
        BudgetExceeded = "BUDGET_EXCEEDED", false, "the budget was used without an answer";
        OutputInvalid = "OUTPUT_INVALID", false, "the answer did not fit the output format";
        LogLimit = "LOG_LIMIT", false, "the run's log reached its size limit";
        ContextTooLong = "CONTEXT_TOO_LONG", false, "the conversation no longer fits the model's context window";
        LlmRefused = "LLM_REFUSED", false, "the model refused to answer";
        LlmAuth = "LLM_AUTH", false, "the LLM provider refused the key";
        LlmBilling = "LLM_BILLING", false, "the LLM account has no credit left";
        LlmRateLimited = "LLM_RATE_LIMITED", true, "the LLM provider's rate limit was reached";
        LlmOverloaded = "LLM_OVERLOADED", true, "the LLM provider is overloaded";
        LlmUnavailable = "LLM_UNAVAILABLE", true, "the LLM provider can't be reached or failed";
        LlmTimeout = "LLM_TIMEOUT", true, "the LLM provider went silent";
        LlmStreamCut = "LLM_STREAM_CUT", true, "the LLM's answer was cut off";
        LlmBadResponse = "LLM_BAD_RESPONSE", true, "the LLM provider's answer could not be understood";
        LlmBadRequest = "LLM_BAD_REQUEST", false, "the LLM provider refused the request";
        LlmModelNotFound = "LLM_MODEL_NOT_FOUND", false, "the LLM provider does not know the model";
        RateLimit = "RATE_LIMIT", true, "the sandbox backend's rate limit was reached";
        TemplateNotFound = "TEMPLATE_NOT_FOUND", false, "the sandbox backend does not know the template";
        TemplateIncompatible = "TEMPLATE_INCOMPATIBLE", false, "the template lacks what a sandbox needs";
        SandboxTimeout = "SANDBOX_TIMEOUT", true, "the sandbox was not ready in time";
        SandboxError = "SANDBOX_ERROR", true, "the sandbox backend failed";
        SandboxLost = "SANDBOX_LOST", true, "the sandbox died while the run went on";
        ServerShutdown = "SERVER_SHUTDOWN", true, "the server stopped while the run went on";
        ServerCrashed = "SERVER_CRASHED", true, "the process that ran it died while the run went on";
        LeaseLost = "LEASE_LOST", true, "another server took the run over";
        Internal = "INTERNAL", true, "a fault in sandcaster itself";
    }
}

codes! {
    /// What a run survived but its client should know: the `code` of `warning` events.
    WarningCode {
        SoftLimit = "SOFT_LIMIT", "80 % of the turns, the time or the budget are used";
        MaxTurns = "MAX_TURNS", "the last turn was asked without tools";
        MaxTime = "MAX_TIME", "the time is nearly over: the last turn was asked without tools";
        MaxBudget = "MAX_BUDGET", "the budget is nearly used: the last turn was asked without tools";
        LoopDetected = "LOOP_DETECTED", "the model repeats a call without effect";
        ToolDenied = "TOOL_DENIED", "the model called a tool that this run does not allow";
        ToolUnknown = "TOOL_UNKNOWN", "the model called a tool that does not exist";
        ToolUnavailable = "TOOL_UNAVAILABLE", "a configured tool is not available in this run";
        LlmRetry = "LLM_RETRY", "an LLM request failed and is sent again";
        TurnRestarted = "TURN_RESTARTED", "a turn was cut off and asked again";
        EmptyAnswer = "EMPTY_ANSWER", "the model ended without an answer and is asked once more";
        AnswerTruncated = "ANSWER_TRUNCATED", "the answer was cut: at the model's output limit, at its window, by the budget, by its provider's pauses, where the request for its rest failed, or in the middle since it is too long for the result's event";
        PriceUnknown = "PRICE_UNKNOWN", "no price is known for the model, so no cost is given";
        PriceDearer = "PRICE_DEARER", "a dearer model answered than was asked for, and the cost goes by its price";
        FileOmitted = "FILE_OMITTED", "a file of the run was not returned";
        ProcessesEnded = "PROCESSES_ENDED", "what commands had left running was ended, since the run's files could not be listed beside it";
        ContextCompacted = "CONTEXT_COMPACTED", "the conversation was summarised to fit the context window";
        ContextCleared = "CONTEXT_CLEARED", "old tool results were cleared to fit the context window or the rest of the budget";
        SummaryFailed = "SUMMARY_FAILED", "the conversation could not be summarised, and goes on as it is";
        SandboxWait = "SANDBOX_WAIT", "the sandbox backend is at its limit and the run waits for a place";
        SandboxEvent = "SANDBOX_EVENT", "the sandbox backend reported something about the run's sandbox";
        ContentRefused = "CONTENT_REFUSED", "the LLM provider refused an image or document, and is asked again without it";
        ToolCallsLimit = "TOOL_CALLS_LIMIT", "the model made more calls in one response than are run";
        ThinkingAdjusted = "THINKING_ADJUSTED", "the model can't think as little or as much as was asked";
        StopReasonUnknown = "STOP_REASON_UNKNOWN", "the LLM ended with a reason that is not known";
    }
}

/// One thing wrong with a request, by its place in the body (`files[2].name`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Detail {
    /// The field, as a path.
    pub path: String,
    /// What is wrong with it, and the limit.
    pub message: String,
}

/// The one public form of a fault, for HTTP bodies and `error` events alike.
///
/// The message says what was wrong and where; the hint what to do. Neither ever holds a secret.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The stable code.
    pub code: ErrorCode,
    /// What was wrong, for a person.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// All faults of a request body; the first one's path is the body's `field`.
    pub details: Vec<Detail>,
    /// When to come back.
    pub retry_after: Option<Duration>,
    /// The run that it is about.
    pub run_id: Option<RunId>,
}

impl Problem {
    /// A problem with a code and a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
            details: Vec::new(),
            retry_after: None,
            run_id: None,
        }
    }

    /// A fault of one field of a request: its path becomes `field`.
    pub fn field(code: ErrorCode, path: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into();
        let mut problem = Self::new(code, message.clone());
        problem.details.push(Detail {
            path: path.into(),
            message,
        });
        problem
    }

    /// With advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With a time to come back after.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// About `run`.
    #[must_use]
    pub fn about(mut self, run: &RunId) -> Self {
        self.run_id = Some(run.clone());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Problem {}
