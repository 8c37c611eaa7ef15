//! What those hear who ask for a run that can't be had.

use std::time::Duration;

use crate::error::{ErrorCode, Problem};
use crate::ids::{RunId, Seq};
use crate::store::StoreError;

/// When a server that can't do it now is worth asking again.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// There is no such run.
pub fn run_not_found(run: &RunId) -> Problem {
    Problem::new(ErrorCode::RunNotFound, format!("there is no run {run}"))
        .hint("GET /runs lists the newest runs")
        .about(run)
}

/// The store's failure under a request. What it says of the disk is for the log alone.
pub fn store_problem(error: &StoreError) -> Problem {
    match error {
        StoreError::NotFound(run) | StoreError::Expired(run) => run_not_found(run),
        StoreError::Refused(_)
        | StoreError::InUse(_)
        | StoreError::Unusable(_)
        | StoreError::Failed(_)
        | StoreError::Closed => {
            tracing::error!(%error, "the store failed under a request");
            unwritable()
        }
    }
}

/// The store can't be written or read.
pub(super) fn unwritable() -> Problem {
    Problem::new(
        ErrorCode::StoreUnavailable,
        "the run store can't be read or written now; retrying is safe",
    )
    .hint("the server's log says what failed")
    .retry_after(RETRY)
}

/// A cursor past the last event.
pub fn cursor_ahead(run: &RunId, head: Seq) -> Problem {
    Problem::new(
        ErrorCode::CursorAhead,
        format!("the cursor is past the end of the run's log, whose last event is {head}"),
    )
    .hint("resume from an id that this server has sent for this run")
    .about(run)
}

/// The run was deleted, and its events with it.
pub fn events_expired(run: &RunId) -> Problem {
    Problem::new(
        ErrorCode::EventsExpired,
        "the run was deleted, by request or by age, and its events are no longer kept",
    )
    .about(run)
}
