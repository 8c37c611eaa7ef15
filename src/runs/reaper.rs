//! Ends runs whose process died, then finds sandboxes that nobody needs any more, by their labels, and
//! destroys them.
//!
//! Decided from the store, never from this process's memory: a sandbox goes when its run has ended, or when
//! the store whose id it carries does not know its run and it is not brand new (rule RC-3). One that its backend ends
//! in time is left to that: the store may be a clone that did not notice, and the run the first one's. Runs are looked
//! at because a `sandcaster query` can die while the server on the same store goes on.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
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
/// Sandboxes of one backend looked at, and killed, side by side.
const AT_ONCE: usize = 16;
/// A sandbox of an unknown run is left alone for so long.
const UNKNOWN_AGE: SignedDuration = SignedDuration::from_secs(120);

/// What it looks at.
pub(super) struct Reaper {
    pub(super) store: Arc<dyn RunStore>,
    pub(super) backends: Vec<BackendEntry>,
    pub(super) clock: Clock,
}

/// Sweeps at once and then every minute, until `stop`. Neither the runs nor any backend wait for one that hangs.
pub(super) async fn reap(reaper: Reaper, stop: CancellationToken) {
    let store = reaper.store.as_ref();
    // One each: who sweeps meanwhile hears of it after.
    let ended: Vec<Notify> = reaper.backends.iter().map(|_| Notify::new()).collect();
    let sweeps = reaper
        .backends
        .iter()
        .zip(&ended)
        .map(|(entry, ended)| keep_swept(store, entry, &reaper.clock, ended));
    let work = async {
        // First, so that the sandboxes of these runs go with the first sweep.
        end_dead(store).await;
        tokio::join!(keep_ended(store, &ended), join_all(sweeps))
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        _ = work => {}
    }
}

/// Ends dead runs every minute, and says so.
async fn keep_ended(store: &dyn RunStore, ended: &[Notify]) {
    loop {
        tokio::time::sleep(pause()).await;
        if end_dead(store).await {
            ended.iter().for_each(Notify::notify_one);
        }
    }
}

/// Whether there were any.
async fn end_dead(store: &dyn RunStore) -> bool {
    match recover(store).await {
        Ok(ended) => !ended.is_empty(),
        Err(error) => {
            tracing::warn!(%error, "failed to look for runs whose process died; the next look tries again");
            false
        }
    }
}

/// Sweeps one backend at once, every minute, and when dead runs have `ended`.
async fn keep_swept(store: &dyn RunStore, entry: &BackendEntry, clock: &Clock, ended: &Notify) {
    loop {
        sweep(store, entry, clock).await;
        drop(tokio::time::timeout(pause(), ended.notified()).await);
    }
}

fn pause() -> Duration {
    EVERY.mul_f64(0.8 + 0.4 * random_fraction())
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
    let looks = stream::iter(found).map(|sandbox| async move {
        let gone = !needed(store, &sandbox, clock).await && kill(entry, &sandbox).await;
        (sandbox, gone)
    });
    let (mut there, mut killed) = (Vec::new(), Vec::new());
    let mut looks = pin!(looks.buffer_unordered(AT_ONCE));
    while let Some((sandbox, gone)) = looks.next().await {
        if gone {
            killed.push(sandbox);
        } else {
            there.push(sandbox);
        }
    }
    if let Err(error) = record_gone(store, entry.name, &there, &killed, clock.now()).await {
        tracing::warn!(backend = entry.name, %error, "failed to record which sandboxes are gone; the next sweep tries again");
    }
}

/// Whether a run may still use it.
async fn needed(store: &dyn RunStore, sandbox: &FoundSandbox, clock: &Clock) -> bool {
    let Some(run) = &sandbox.run else {
        return may_be_anothers(sandbox, clock.now());
    };
    match store.head(run).await {
        Ok(head) => !head.ended,
        Err(StoreError::Expired(_)) => false,
        Err(StoreError::NotFound(_)) => may_be_anothers(sandbox, clock.now()),
        // Without an answer of the store nothing is decided.
        Err(_) => true,
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

/// Whether a sandbox of an unknown run is left alone: for a while where its run may not be stored yet, and for as long
/// as it lives where it surely ends by itself.
fn may_be_anothers(sandbox: &FoundSandbox, now: Timestamp) -> bool {
    let young = |at| now.duration_since(at) < UNKNOWN_AGE;
    let ends = |at| now.as_second() < at;
    sandbox.started_at.is_some_and(young) || sandbox.expires.is_some_and(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_of_an_unknown_run_is_left_alone_while_it_is_new_or_ends_by_itself() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let aged = |seconds: i64| FoundSandbox {
            id: "sb".to_owned(),
            run: None,
            started_at: Some(now - SignedDuration::from_secs(seconds)),
            expires: None,
        };
        let left = |sandbox: FoundSandbox| may_be_anothers(&sandbox, now);
        assert!(left(aged(0)) && left(aged(119)));
        assert!(left(aged(-3)), "the backend's clock is ahead");
        assert!(!left(aged(120)));
        let expiring = |expires, started_at| FoundSandbox {
            started_at,
            expires: Some(now.as_second() + expires),
            ..aged(0)
        };
        assert!(left(expiring(1, aged(4000).started_at)) && left(expiring(1, None)));
        assert!(!left(expiring(0, aged(4000).started_at)) && !left(expiring(0, None)));
        let ageless = FoundSandbox {
            started_at: None,
            ..aged(0)
        };
        assert!(!left(ageless));
    }
}
