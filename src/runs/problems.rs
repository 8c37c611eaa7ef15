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

/// The store's failure under a request that can be repeated. What it says of the disk is for the log alone.
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

/// What the store's failure means to who reads a run's events.
pub fn events_problem(run: &RunId, error: &StoreError) -> Problem {
    match error {
        StoreError::Expired(_) => events_expired(run),
        error => store_problem(error),
    }
}

/// The store's failure under a run, which may have acted already: so nothing in it asks for another try.
pub(super) fn store_failed(error: &StoreError) -> Problem {
    tracing::error!(%error, "the store failed under a run");
    Problem::new(
        ErrorCode::StoreUnavailable,
        "the run store can't be read or written",
    )
    .hint("the server's log says what failed")
}

/// The run goes on or has ended, and its log can't be read: for who waits for its end. To send the request again
/// would run it again.
pub fn end_unknown(run: &RunId, error: &StoreError) -> Problem {
    tracing::error!(run.id = %run, %error, "the store failed under a client that waits for a run's end");
    Problem::new(
        ErrorCode::StoreUnavailable,
        "the run was started, and its end can't be read now",
    )
    .hint(format!(
        "GET /runs/{run} tells how it ended; tools may have acted already"
    ))
    .about(run)
}

/// The store can't be written or read, and nothing was done.
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
fn events_expired(run: &RunId) -> Problem {
    Problem::new(
        ErrorCode::EventsExpired,
        "the run was deleted, by request or by age, and its events are no longer kept",
    )
    .about(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_a_deleted_run_are_expired_and_those_of_no_run_are_not_found() {
        let run = RunId::new();
        for (error, code) in [
            (StoreError::Expired(run.clone()), ErrorCode::EventsExpired),
            (StoreError::NotFound(run.clone()), ErrorCode::RunNotFound),
            (StoreError::Closed, ErrorCode::StoreUnavailable),
        ] {
            assert_eq!(events_problem(&run, &error).code, code);
        }
    }
}
