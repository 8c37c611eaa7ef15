//! What a backend reports of a sandbox: joined to its run, stored, and, if it is fresh and new, told to the run.

use std::time::Duration;

use jiff::SignedDuration;

use super::registry::Runs;
use super::signal::SandboxSignal;
use super::tasks::TaskKind;
use crate::clock::Clock;
use crate::ids::RunId;
use crate::sandbox::{SandboxNews, SandboxReport};
use crate::store::{RunStore, StoreError, WebhookDelivery};

/// The backend tries again after 10 s, so it is better answered late than not, but not by much.
const STORE_LIMIT: Duration = Duration::from_secs(2);
/// Nobody waits for it any more then, but the run should still hear of it.
const LATE_LIMIT: Duration = Duration::from_secs(30);
/// How old a report may be, and how far ahead its clock.
const OLDEST: SignedDuration = SignedDuration::from_mins(15);
const AHEAD: SignedDuration = SignedDuration::from_mins(2);

/// Takes a report whose sender has proven to be the backend, or not (`signed`). A repeat, a stale report, and one of
/// an unknown sandbox are stored and have no effect.
///
/// What is taken of it is small, and may wait for the store for half a minute; how many of them do is bounded by
/// who lets reports pass.
///
/// # Errors
/// When it could not be stored: it is worth sending again.
pub async fn take_report(
    runs: &Runs,
    clock: &Clock,
    report: SandboxReport,
    signed: bool,
) -> Result<(), StoreError> {
    let received_at = clock.now();
    let age = received_at.duration_since(report.sent_at);
    let fresh = age <= OLDEST && age >= -AHEAD;
    let signal = report.sandbox_id.clone().map(|sandbox_id| SandboxSignal {
        sandbox_id,
        news: report.news.clone(),
        signed,
    });
    let all = runs.clone();
    let stored = async move {
        let store = all.store().as_ref();
        let run = owner(store, &report).await?;
        let delivery = WebhookDelivery {
            event_id: report.event_id,
            event_type: report.event_type,
            sandbox_id: report.sandbox_id,
            run: run.clone(),
            signed,
            received_at,
            kill_reason: match report.news {
                SandboxNews::Killed { reason } => reason,
                SandboxNews::Created | SandboxNews::Other { .. } => None,
            },
        };
        let new = store.put_webhook(delivery).await?;
        tracing::debug!(signed, fresh, new, "took a report of a sandbox");
        if let (true, true, Some(run), Some(signal)) = (fresh, new, run, signal) {
            all.sandbox_event(&run, signal);
        }
        Ok(())
    };
    // A task of its own: what is stored late is known when it is sent again, and would never be told to the run.
    let taken = runs
        .tasks()
        .spawn(TaskKind::Cleanup, tokio::time::timeout(LATE_LIMIT, stored));
    match tokio::time::timeout(STORE_LIMIT, taken).await {
        Ok(Ok(Some(Ok(outcome)))) => outcome,
        _ => Err(StoreError::Failed(
            "a webhook was not stored in time".to_owned(),
        )),
    }
}

/// The run that the sandbox belongs to: by our own records, else by the label that it carries, if this
/// store has such a run.
async fn owner(store: &dyn RunStore, report: &SandboxReport) -> Result<Option<RunId>, StoreError> {
    if let Some(sandbox) = &report.sandbox_id
        && let Some(run) = store.sandbox_owner(sandbox).await?
    {
        return Ok(Some(run));
    }
    let instance = report.instance.as_deref();
    let ours = instance.is_none_or(|instance| instance == store.id());
    let Some(run) = report.run.as_ref().filter(|_| ours) else {
        return Ok(None);
    };
    match store.head(run).await {
        Ok(_) => Ok(Some(run.clone())),
        Err(StoreError::NotFound(_) | StoreError::Expired(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
