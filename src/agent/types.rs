//! What a run's agent is given, and how it may end.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::tally::Tally;
use super::workspace::WorkspaceSource;
use crate::clock::Deadline;
use crate::error::{Problem, WarningCode};
use crate::events::{EventSink, LogFailed, RunEvent, StopReason, WarningEvent};
use crate::ids::RunId;
use crate::llm::{LlmError, LlmProvider};
use crate::secrets::Redactor;
use crate::show;
use crate::spec::RunSpec;

/// What an agent is given.
pub struct RunContext {
    /// Which run it is.
    pub id: RunId,
    /// What to do.
    pub spec: Arc<RunSpec>,
    /// The LLM.
    pub provider: Arc<dyn LlmProvider>,
    /// Where events go.
    pub sink: Arc<dyn EventSink>,
    /// Where tools act.
    pub workspace: Arc<dyn WorkspaceSource>,
    /// Fires when the run is to stop.
    pub token: CancellationToken,
    /// When the run's time is over.
    pub deadline: Deadline,
    /// What it uses.
    pub tally: Arc<Tally>,
    /// Cleans what is shown.
    pub redactor: Redactor,
    /// The backend's working directory.
    pub working_dir: &'static str,
    /// Today, as `2026-11-25`.
    pub today: String,
}

impl RunContext {
    pub(super) async fn emit(&self, event: RunEvent) -> Result<(), Halt> {
        self.sink.emit(event).await?;
        Ok(())
    }

    /// Waits until everything emitted so far survives a power cut.
    pub(super) async fn sync(&self) -> Result<(), Halt> {
        self.sink.sync().await?;
        Ok(())
    }

    pub(super) async fn warn(
        &self,
        code: WarningCode,
        message: impl Into<String>,
    ) -> Result<(), Halt> {
        let warning = WarningEvent::new(code, message);
        self.emit(RunEvent::Warning(warning)).await
    }

    /// The beginning of somebody's words on one line, without secrets: cleaned before it is cut.
    pub(super) fn shown(&self, words: &str, most: usize) -> String {
        show::short(&self.redactor.clean(words), most)
    }
}

/// What clients were warned of: the same thing in every response is told once.
#[derive(Debug, Default)]
pub(super) struct Told(Vec<(WarningCode, String)>);

impl Told {
    /// At most so many things in a run.
    const MOST: usize = 20;

    pub(super) fn is_new(&mut self, code: WarningCode, what: &str) -> bool {
        let known = |(told, words): &(WarningCode, String)| *told == code && words == what;
        if self.0.len() == Self::MOST || self.0.iter().any(known) {
            return false;
        }
        self.0.push((code, what.to_owned()));
        true
    }
}

/// The answer of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text of the last turn.
    pub content: String,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// It was cut: at the model's output limit, at its window, by the budget, by its provider's pauses, or since it
    /// is too long for an event.
    pub truncated: bool,
}

/// Why an agent ended without an answer.
#[derive(Debug)]
pub enum Halt {
    /// A fault with a name.
    Problem(Problem),
    /// The LLM failed.
    Llm(LlmError),
    /// The token fired.
    Stopped,
    /// The log can't be written.
    Log(LogFailed),
}

impl From<LogFailed> for Halt {
    fn from(failed: LogFailed) -> Self {
        Self::Log(failed)
    }
}

impl From<Problem> for Halt {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}
