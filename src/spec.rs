//! What a run will do, with every choice made: the outcome of `config::resolve`.
//!
//! No `Option` here means "decided later"; `None` only ever means "none".

use std::time::Duration;

use bytes::Bytes;

use crate::paths::SandboxPath;

/// A request after resolution.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// The user's prompt, whole.
    pub prompt: String,
    /// Which model of which provider.
    pub model: ModelChoice,
    /// How much the model may think before it answers.
    pub thinking: ThinkingLevel,
    /// The tools offered to the model, by our names, in the order of the tool table.
    pub tools: Vec<&'static str>,
    /// Tools that the project's file names but this run can't have: each becomes a warning.
    pub unavailable_tools: Vec<String>,
    /// At most this many turns (1 to 1000).
    pub max_turns: u32,
    /// From the start of running to the deadline.
    pub timeout: Duration,
    /// The most that the run may cost, in nano-dollars.
    pub max_budget: Option<NanoUsd>,
    /// Files to place in the working directory before the first tool call.
    pub files: Vec<InputFile>,
    /// Where the tools act.
    pub sandbox: SandboxChoice,
    /// Replacements of parts of the system prompt.
    pub system_prompt: SystemPrompt,
    /// What happens when nobody reads the run's stream.
    pub presence: Presence,
}

impl RunSpec {
    /// Whether the run has anything that a sandbox is for.
    pub fn needs_sandbox(&self) -> bool {
        !self.tools.is_empty() || !self.files.is_empty()
    }
}

/// A resolved model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelChoice {
    /// The provider's name in the provider table.
    pub provider: &'static str,
    /// The model's full id at that provider.
    pub id: String,
}

/// The request's `thinkingLevel`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThinkingLevel {
    /// The provider's default.
    #[default]
    Unset,
    /// Off, where the model can be told so.
    None,
    /// A small budget.
    Low,
    /// A middling budget.
    Medium,
    /// A large budget.
    High,
}

/// Money, exactly: 10⁻⁹ US dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NanoUsd(pub u64);

impl NanoUsd {
    /// As dollars with at most 6 decimals, as the wire shows it.
    pub fn to_usd(self) -> f64 {
        let micros = (self.0 + 500) / 1000;
        #[expect(
            clippy::cast_precision_loss,
            reason = "below 2^53 micro-dollars, which is 9 billion dollars"
        )]
        let micros = micros as f64;
        micros / 1e6
    }

    /// From dollars; negative and non-finite become zero.
    pub fn from_usd(usd: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped, and casts saturate"
        )]
        let nanos = (usd.max(0.0) * 1e9).round() as u64;
        Self(nanos)
    }
}

/// A file to place in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// Where, below the working directory.
    pub path: SandboxPath,
    /// What.
    pub bytes: Bytes,
}

/// A resolved sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxChoice {
    /// The backend's name in the backend table.
    pub backend: &'static str,
    /// The template or image; the backend's default when none was chosen.
    pub template: Option<String>,
    /// What the sandbox may reach.
    pub network: Network,
    /// When it is created.
    pub start: SandboxStart,
}

/// What a sandbox may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Everything.
    Full,
    /// Nothing.
    None,
}

/// When the sandbox is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxStart {
    /// At once, beside the first LLM request.
    Eager,
    /// At the first tool call or upload.
    Lazy,
}

/// Replacements of parts of the system prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemPrompt {
    /// Replaces the role, never the rules.
    pub role: Option<String>,
    /// Comes last.
    pub append: Option<String>,
}

/// What happens when nobody reads the run's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The run is cancelled once nobody has read for `grace`.
    Attached {
        /// How long nobody may read.
        grace: Duration,
    },
    /// The run goes on.
    Background,
}

#[cfg(test)]
impl RunSpec {
    /// What a run is asked for, for unit tests.
    pub(crate) fn plain() -> Self {
        Self {
            prompt: "hi".to_owned(),
            model: ModelChoice {
                provider: "anthropic",
                id: "claude-sonnet-4-6".to_owned(),
            },
            thinking: ThinkingLevel::Unset,
            tools: vec!["bash"],
            unavailable_tools: Vec::new(),
            max_turns: 100,
            timeout: Duration::from_mins(5),
            max_budget: None,
            files: Vec::new(),
            sandbox: SandboxChoice {
                backend: "local",
                template: None,
                network: Network::None,
                start: SandboxStart::Eager,
            },
            system_prompt: SystemPrompt::default(),
            presence: Presence::Background,
        }
    }
}

/// What a commit of the store survives (`storeDurability`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreDurability {
    /// The death of the process. What asks to be synced, as the end of a run does, survives a power cut too, with
    /// all before it.
    #[default]
    Normal,
    /// A power cut, each commit.
    Full,
}
