//! Ends runs whose process died, then finds sandboxes that nobody needs any more, by their labels, and
//! destroys them.
//!
//! Decided from the store, never from this process's memory: a sandbox goes when its run has ended, or when
//! the store whose id it carries does not know its run and it is not brand new (rule RC-3). Runs are looked
//! at because a `sandcaster query` can die while the server on the same store goes on.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::recovery::recover;
use super::sandbox::BackendEntry;
use crate::clock::Clock;
use crate::ids::random_fraction;
use crate::sandbox::FoundSandbox;
use crate::store::{RunStore, StoreError};

/// Between sweeps, give or take a fifth.
const EVERY: Duration = Duration::from_mins(1);
/// For one backend's list or kill call.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// A sandbox of an unknown run is left alone for so long.
const UNKNOWN_AGE: SignedDuration = SignedDuration::from_secs(120);

/// What it looks at.
pub(super) struct Reaper {
    pub(super) store: Arc<dyn RunStore>,
    pub(super) backends: Vec<BackendEntry>,
    pub(super) clock: Clock,
}

/// Sweeps at once and then every minute, until `stop`.
pub(super) async fn reap(reaper: Reaper, stop: CancellationToken) {
    let store = reaper.store.as_ref();
    loop {
        let sweep = async {
            // First, so that the sandboxes of these runs go with this sweep.
            if let Err(error) = recover(store).await {
                tracing::warn!(%error, "failed to look for runs whose process died; the next sweep tries again");
            }
            for entry in &reaper.backends {
                sweep(store, entry, &reaper.clock).await;
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sweep => {}
        }
        let pause = EVERY.mul_f64(0.8 + 0.4 * random_fraction());
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One look at one backend.
async fn sweep(store: &dyn RunStore, entry: &BackendEntry, clock: &Clock) {
    let found = match tokio::time::timeout(CALL_LIMIT, entry.backend.list(store.id())).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::warn!(backend = entry.name, %error, "failed to list sandboxes; the next sweep tries again");
            return;
        }
        Err(_elapsed) => {
            tracing::warn!(
                backend = entry.name,
                "listing sandboxes took too long; the next sweep tries again"
            );
            return;
        }
    };
    let mut there = Vec::new();
    let mut killed = Vec::new();
    for sandbox in found {
        let ended = match &sandbox.run {
            Some(run) => match store.head(run).await {
                Ok(head) => Some(head.ended),
                Err(StoreError::Expired(_)) => Some(true),
                Err(StoreError::NotFound(_)) => None,
                // Without an answer of the store nothing is decided.
                Err(_) => Some(false),
            },
            None => None,
        };
        let needed = match ended {
            Some(ended) => !ended,
            None => is_new(&sandbox, clock.now()),
        };
        if !needed && kill(entry, &sandbox).await {
            killed.push(sandbox);
        } else {
            there.push(sandbox);
        }
    }
    if let Err(error) = record_gone(store, entry.name, &there, &killed, clock.now()).await {
        tracing::warn!(backend = entry.name, %error, "failed to record which sandboxes are gone; the next sweep tries again");
    }
}

/// Whether it is gone now.
async fn kill(entry: &BackendEntry, sandbox: &FoundSandbox) -> bool {
    match tokio::time::timeout(CALL_LIMIT, entry.backend.kill(&sandbox.id)).await {
        Ok(Ok(())) => {
            tracing::info!(
                backend = entry.name,
                sandbox.id = sandbox.id,
                "destroyed a sandbox that no run needs"
            );
            return true;
        }
        Ok(Err(error)) => {
            tracing::warn!(backend = entry.name, sandbox.id = sandbox.id, %error, "failed to destroy a sandbox");
        }
        Err(_elapsed) => tracing::warn!(
            backend = entry.name,
            sandbox.id = sandbox.id,
            "destroying a sandbox took too long"
        ),
    }
    false
}

/// Records as gone what ended runs had: what was killed now, and what is not `there`, had time to
/// show, and has reached the end of its life.
async fn record_gone(
    store: &dyn RunStore,
    backend: &str,
    there: &[FoundSandbox],
    killed: &[FoundSandbox],
    now: Timestamp,
) -> Result<(), StoreError> {
    for left in store.left_sandboxes(backend).await? {
        // Where the create call was not answered, the sandbox is known by its run alone.
        let is_it = |found: &FoundSandbox| match &left.sandbox_id {
            Some(id) => *id == found.id,
            None => found.run.as_ref() == Some(&left.run),
        };
        // A list may be cut short, or be another account's: until it has ended by itself it may be there.
        let settled =
            now.duration_since(left.ended_at) >= UNKNOWN_AGE && now.as_second() >= left.expires;
        let gone = killed.iter().any(is_it) || settled;
        if gone && !there.iter().any(is_it) {
            store.sandbox_gone(&left.run, left.attempt).await?;
        }
    }
    Ok(())
}

/// Whether it is too young to be an orphan for sure. What doesn't tell its age is not.
fn is_new(sandbox: &FoundSandbox, now: Timestamp) -> bool {
    let young = |at| now.duration_since(at) < UNKNOWN_AGE;
    sandbox.started_at.is_some_and(young)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_sandbox_of_an_unknown_run_is_left_alone() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let aged = |seconds: i64| FoundSandbox {
            id: "sb".to_owned(),
            run: None,
            started_at: Some(now - SignedDuration::from_secs(seconds)),
        };
        assert!(is_new(&aged(0), now) && is_new(&aged(119), now));
        assert!(is_new(&aged(-3), now), "the backend's clock is ahead");
        assert!(!is_new(&aged(120), now));
        let ageless = FoundSandbox {
            started_at: None,
            ..aged(0)
        };
        assert!(!is_new(&ageless, now));
    }
}
