//! What a tool is: arguments in, text for the model out.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::apart::apart_for_tools;
use crate::chat::Image;
use crate::clock::Deadline;
use crate::sandbox::{Sandbox, SandboxError};
use crate::secrets::Redactor;

use super::session::ShellSession;

/// One thing that a model can ask for.
#[async_trait]
pub trait Tool: Send + Sync {
    /// Runs a call. `args` have been repaired and checked against the tool's schema.
    ///
    /// A cancelled call still answers, saying so: a provider refuses a history in which a call has no
    /// result.
    ///
    /// # Errors
    /// [`Failure`]: told to the model, or the end of the run.
    async fn call(
        &self,
        args: Map<String, Value>,
        context: &ToolContext,
    ) -> Result<ToolAnswer, Failure>;
}

/// What a call may use.
#[derive(Clone)]
pub struct ToolContext {
    /// The sandbox, ready.
    pub sandbox: Arc<dyn Sandbox>,
    /// What is remembered between calls: the working directory, the probed facts.
    pub session: Arc<ShellSession>,
    /// When the call must be over.
    pub deadline: Deadline,
    /// Fires when the run is to stop.
    pub cancel: CancellationToken,
    /// Cleans what is shown.
    pub redactor: Redactor,
}

/// Why a call did not come to its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Told to the model.
    Complaint(String),
    /// The sandbox is lost.
    Fatal(SandboxError),
    /// The run is to stop.
    Cancelled,
}

/// What a call gives back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolAnswer {
    /// For the model: text that a person could read, never empty.
    pub text: String,
    /// Images, for models that can see.
    pub images: Vec<Image>,
    /// The command failed (a non-zero exit), or was stopped. No complaint: it is what the model asked to see.
    pub is_error: bool,
    /// The command's exit code.
    pub exit_code: Option<i32>,
    /// Part of the output was left out of `text`.
    pub truncated: bool,
    /// How long the whole output was, when truncated.
    pub total_chars: Option<u64>,
    /// Where the whole output lies in the sandbox.
    pub output_path: Option<String>,
    /// The working directory, when this call changed it.
    pub cwd: Option<String>,
    /// A short diff, for edits.
    pub diff: Option<String>,
    /// A fingerprint of what came of the call, where the text also says what differs from time to time
    /// (how long it took, the name of a file of ours, a process id), or not all of it (an image).
    pub outcome: Option<u64>,
}

impl ToolAnswer {
    /// An answer of plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// Equal for calls that came to the same, as far as that can be told; the same within one process.
    pub fn fingerprint(&self) -> u64 {
        self.outcome.unwrap_or_else(|| fingerprint(&self.text))
    }
}

/// Does what may take long where it holds nobody up.
///
/// # Errors
/// The server is stopping.
pub(super) async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    apart_for_tools(work).await.ok_or(Failure::Cancelled)
}

/// A number for `facts`; equal for equal ones, within one process.
pub(super) fn fingerprint(facts: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    facts.hash(&mut hasher);
    hasher.finish()
}

impl From<SandboxError> for Failure {
    fn from(error: SandboxError) -> Self {
        match error {
            error if error.is_fatal() => Self::Fatal(error),
            SandboxError::NoShell(why) => {
                Self::Complaint(format!("only file_write works here: {why}"))
            }
            // Of all that tools ask for, that is what a template may refuse.
            SandboxError::TemplateIncompatible(why) => Self::Complaint(format!(
                "this sandbox can't give a command any input, so grep can't be used here: use bash ({why})"
            )),
            SandboxError::NotStarted(why) => Self::Complaint(format!(
                "nothing was run, for it could not be started: {why}"
            )),
            error => Self::Complaint(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sandbox_without_a_shell_is_said_to_have_no_tool_but_one() {
        let told = |error| match Failure::from(error) {
            Failure::Complaint(why) => why,
            other => panic!("{other:?}"),
        };
        let input = told(SandboxError::TemplateIncompatible("old".to_owned()));
        assert!(
            input.contains("use bash") && !input.contains("file_write"),
            "{input}"
        );
        let shell = told(SandboxError::NoShell("none".to_owned()));
        assert!(shell.starts_with("only file_write works here"), "{shell}");
    }
}
