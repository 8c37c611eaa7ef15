//! The events themselves: one variant per thing that can happen, and its fields on the wire.

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::facts::{Fact, Facts, Name};
use crate::error::{ErrorCode, Problem, WarningCode};
use crate::ids::RunId;
use crate::spec::ModelChoice;

/// One thing that happened in a run. Its JSON starts with `type`; `seq` is added when it is stored.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RunEvent {
    /// Lifecycle: run started, sandbox created.
    System(SystemEvent),
    /// A piece of the model's answer.
    Assistant(Delta),
    /// A piece of the model's thinking.
    Thinking(Delta),
    /// A message given to the model in the user's name, after the prompt.
    User(UserEvent),
    /// The model asks for a tool; sent when the arguments are complete, before the tool runs.
    ToolUse(ToolUseEvent),
    /// What the tool answered, as the model saw it.
    ToolResult(ToolResultEvent),
    /// A file that the run created or changed.
    File(FileEvent),
    /// Something that the run survived.
    Warning(WarningEvent),
    /// The end of a run that has an answer. Terminal.
    Result(ResultEvent),
    /// The end of a run that has none. Terminal.
    Error(ErrorEvent),
}

/// `system`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemEvent {
    /// What happened, for a program: `init`, `sandbox_created`, ….
    pub subtype: &'static str,
    /// What happened, for a person (`Sandbox created`).
    pub message: String,
    /// The same text, for clients that read `content`.
    pub content: String,
    /// The sandbox, once known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// The run; in the first event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// Further facts (model, provider, backend, deadline), flattened.
    #[serde(flatten)]
    pub facts: Facts,
}

impl SystemEvent {
    /// A system event with its text in both places.
    pub fn new(subtype: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            subtype,
            content: message.clone(),
            message,
            ..Self::default()
        }
    }

    /// The first event of `run`, which is to end by `deadline` (RFC 3339).
    pub fn init(
        run: RunId,
        model: &ModelChoice,
        backend: &'static str,
        deadline: impl Into<String>,
    ) -> Self {
        let mut event = Self::new("init", "Run started");
        event.run_id = Some(run);
        event.facts.add("model", Fact::id(model.id.clone()));
        event.facts.add("provider", model.provider);
        event.facts.add("sandboxProvider", backend);
        event.facts.add("deadline", Fact::id(deadline));
        event
    }
}

/// `assistant` and `thinking`: adding up `content` gives the text once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Delta {
    /// Always `delta`.
    pub subtype: DeltaSubtype,
    /// The piece of text.
    pub content: String,
    /// The turn it belongs to, from 1.
    pub turn: u32,
}

/// The only subtype of `assistant` and `thinking`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeltaSubtype {
    /// A piece.
    #[default]
    Delta,
}

impl Delta {
    /// A piece of `turn`'s text.
    pub fn new(content: impl Into<String>, turn: u32) -> Self {
        Self {
            subtype: DeltaSubtype::Delta,
            content: content.into(),
            turn,
        }
    }
}

/// `user`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UserEvent {
    /// The message.
    pub content: String,
}

/// Who runs a call: `"sandbox": "primary"`, or `"executor": "provider"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RanBy {
    /// We, in the run's sandbox.
    #[default]
    Primary,
    /// The LLM's provider, which gives what came of it to the model itself.
    Provider,
}

impl Serialize for RanBy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([match self {
            Self::Primary => ("sandbox", "primary"),
            Self::Provider => ("executor", "provider"),
        }])
    }
}

/// `tool_use`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolUseEvent {
    /// Our name of the tool, or the model's if there is no such tool.
    pub tool_name: Name,
    /// The arguments as JSON text.
    pub content: String,
    /// The arguments.
    pub input: Value,
    /// Long strings of `input` were shortened here (not for the tool).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub input_truncated: bool,
    /// Joins the call to its result.
    pub tool_call_id: String,
    /// Who ran it.
    #[serde(flatten)]
    pub ran_by: RanBy,
    /// The turn, from 1.
    pub turn: u32,
}

/// `tool_result`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolResultEvent {
    /// Our name of the tool, or the model's if there is no such tool.
    pub tool_name: Name,
    /// What the model saw: plain text.
    pub content: String,
    /// Joins the result to its call.
    pub tool_call_id: String,
    /// The tool failed, or the call was refused.
    pub is_error: bool,
    /// The command's exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Part of the output was left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// How long the output was, in characters, when truncated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_chars: Option<u64>,
    /// Where the whole output lies in the sandbox, when truncated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_path: Option<String>,
    /// The working directory afterwards, when it changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// A short diff, for edits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
    /// How long the call took.
    pub duration_ms: u64,
    /// Who ran it.
    #[serde(flatten)]
    pub ran_by: RanBy,
}

/// How a file's `content` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum FileEncoding {
    /// Text as is.
    #[serde(rename = "utf-8")]
    Utf8,
    /// Bytes in standard base64.
    #[serde(rename = "base64")]
    Base64,
}

/// `file`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEvent {
    /// Relative to the working directory.
    pub path: String,
    /// Guessed from name and bytes.
    pub mime_type: String,
    /// In bytes.
    pub size: u64,
    /// Of the bytes, in hex.
    pub sha256: String,
    /// How `content` is written.
    pub encoding: FileEncoding,
    /// The file itself, up to 1 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Where it can be downloaded: a path on this server.
    pub url: String,
}

/// `warning`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WarningEvent {
    /// What kind.
    pub code: WarningCode,
    /// For a person.
    pub message: String,
    /// The same text, for clients that read `content`.
    pub content: String,
    /// Further facts, flattened.
    #[serde(flatten)]
    pub facts: Facts,
}

impl WarningEvent {
    /// A warning with its text in both places.
    pub fn new(code: WarningCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code,
            content: message.clone(),
            message,
            facts: Facts::default(),
        }
    }

    /// With one more fact.
    #[must_use]
    pub fn fact(mut self, name: &'static str, value: impl Into<Fact>) -> Self {
        self.facts.add(name, value);
        self
    }
}

/// What a run used: on every terminal event.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// US dollars; absent when a price is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Tokens; absent when nothing is known of them.
    #[serde(flatten)]
    pub tokens: Option<Tokens>,
    /// False when some figures are not the provider's own: it told none, or not all before its answer ended. Those
    /// are estimates or missing.
    #[serde(skip_serializing_if = "is_true")]
    pub usage_complete: bool,
    /// Turns taken.
    pub num_turns: u32,
    /// From the start of running.
    pub duration_secs: f64,
    /// The resolved model id.
    pub model: String,
    /// The model that answered, where it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_model: Option<String>,
    /// Calls per tool.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub tool_calls: serde_json::Map<String, Value>,
    /// The sources that the model's texts name, each once, up to 100.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub citations: Vec<Citation>,
}

/// What the model read and wrote for a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tokens {
    /// All input tokens, cache reads and writes included.
    pub input_tokens: u64,
    /// All output tokens.
    pub output_tokens: u64,
    /// Of the input tokens, those read from the cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_read_tokens: u64,
    /// Of the input tokens, those written to the cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_write_tokens: u64,
}

/// A source that a text of the model names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Citation {
    /// Where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The words of it that the text stands on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quote: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_true(b: &bool) -> bool {
    *b
}

/// Why a run with an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model was done.
    End,
    /// All turns were used.
    MaxTurns,
    /// The time was nearly over.
    MaxTime,
    /// The budget was nearly used.
    MaxBudget,
    /// The model went in circles.
    Loop,
}

impl StopReason {
    /// The event's `subtype`: `success` for a proper end, else the reason itself.
    pub const fn subtype(self) -> &'static str {
        match self {
            Self::End => "success",
            Self::MaxTurns => "max_turns",
            Self::MaxTime => "max_time",
            Self::MaxBudget => "max_budget",
            Self::Loop => "loop",
        }
    }
}

/// `result`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultEvent {
    /// See [`StopReason::subtype`].
    pub subtype: &'static str,
    /// The answer: the text of the last turn.
    pub content: String,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// The answer was cut: at the model's output limit, at its window, by the budget, by its provider's pauses, or
    /// since it is too long for an event: then all of it stands in the `assistant` events.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// What it used.
    #[serde(flatten)]
    pub totals: Totals,
}

/// `error`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorEvent {
    /// What went wrong, for a person.
    pub message: String,
    /// The same text, for clients that read `content`.
    pub content: String,
    /// The stable code.
    pub code: ErrorCode,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether sending the request again may help.
    pub retryable: bool,
    /// When to come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_secs: Option<u64>,
    /// What it used until then.
    #[serde(flatten)]
    pub totals: Totals,
}

impl ErrorEvent {
    /// The event for `problem`.
    pub fn new(problem: &Problem, totals: Totals) -> Self {
        Self {
            message: problem.message.clone(),
            content: problem.message.clone(),
            code: problem.code,
            hint: problem.hint.clone(),
            retryable: problem.code.retryable(),
            retry_after_secs: problem
                .retry_after
                .map(|after| after.as_secs() + u64::from(after.subsec_nanos() > 0)),
            totals,
        }
    }
}
