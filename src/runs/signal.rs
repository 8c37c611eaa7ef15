//! What follows for a run from what its sandbox's backend says by itself.
//!
//! However well signed, it is never more than a hint: deliveries come late, twice and in any order. So a
//! death is believed only after the backend was asked (rules WH-4 and RC-6).

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::sandbox::{SandboxBackend, SandboxError, SandboxNews};
use crate::secrets::Redactor;
use crate::show::prose;

/// Between two questions about one sandbox.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// An answer that takes longer is none.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// The longest foreign word that is repeated in a run's log.
const WORD: usize = 100;

/// A foreign word fit for a run's log. Cleaned as a whole: a cut could leave half a secret.
pub(super) fn word(text: &str, redactor: &Redactor) -> String {
    prose(&redactor.clean(text), WORD)
}

/// News about a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SandboxSignal {
    /// The backend's id for it.
    pub(super) sandbox_id: String,
    /// What happened.
    pub(super) news: SandboxNews,
    /// The sender has proven to be the backend.
    pub(super) signed: bool,
}

/// A sandbox that was reported dead, to be asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Suspicion {
    reason: Option<String>,
    signed: bool,
}

/// The questions about one sandbox: at most one every [`ASK_EVERY`], and no report is left unasked.
#[derive(Debug, Default)]
pub(super) struct Questions(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    asked: Option<Instant>,
    waiting: Option<Suspicion>,
}

impl Questions {
    /// Asks `backend` about the sandbox that was reported dead for `reason` (a [`word`]), soon; gives why it is
    /// lost, if it is. `None` too when a question that is still to be asked answers this report as well.
    pub(super) async fn ask(
        &self,
        backend: &dyn SandboxBackend,
        name: &str,
        sandbox_id: &str,
        reason: Option<String>,
        signed: bool,
    ) -> Option<SandboxError> {
        let pause = {
            let mut state = self.0.lock();
            if let Some(waiting) = &mut state.waiting {
                waiting.signed |= signed;
                if signed && reason.is_some() {
                    waiting.reason = reason;
                }
                return None;
            }
            state.waiting = Some(Suspicion { reason, signed });
            state.asked.map_or(Duration::ZERO, |asked| {
                (asked + ASK_EVERY).saturating_duration_since(Instant::now())
            })
        };
        tokio::time::sleep(pause).await;
        let Suspicion { reason, signed } = {
            let mut state = self.0.lock();
            state.asked = Some(Instant::now());
            state.waiting.take().unwrap_or_default()
        };
        let because = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        match tokio::time::timeout(ASK_LIMIT, backend.alive(sandbox_id)).await {
            Ok(Ok(true)) => {
                tracing::info!(
                    sandbox.id = sandbox_id,
                    "a sandbox was reported dead that is alive"
                );
                None
            }
            Ok(Ok(false)) => Some(SandboxError::Gone(format!("{name} ended it{because}"))),
            Ok(Err(_)) | Err(_) if signed => Some(SandboxError::Gone(format!(
                "{name} reports that it ended it{because}, and can't be asked"
            ))),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

#[cfg(test)]
#[path = "signal_tests.rs"]
mod tests;
