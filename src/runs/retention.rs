//! Keeps the store well: deletes old runs, and what is left of deleted ones, in small steps, so that it does not
//! grow for ever; looks for damage after an unclean end.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::store::{Believed, Check, Retention, RunStore, StoreError};

/// Between looks.
const EVERY: Duration = Duration::from_mins(1);
/// Between steps: the writes of runs go first.
const PAUSE: Duration = Duration::from_millis(2);
/// For how long a webhook delivery is kept (rule WH-2).
const WEBHOOKS: SignedDuration = SignedDuration::from_hours(7 * 24);
/// For how long it is known of a deleted run that there was one.
const DELETED: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How far ahead of what was expected the clock is believed at once, and how long it must stay so else.
const BELIEVED: SignedDuration = SignedDuration::from_hours(24);
/// How old what is kept of the looks may be, and how far a clock may be from where it should be and go on.
const KEPT: SignedDuration = SignedDuration::from_hours(1);

/// The time by which runs are deleted, for good: a clock that jumps ahead must not delete all of them.
#[derive(Default)]
struct Looks {
    last: Option<(Believed, Instant)>,
    kept: Option<Believed>,
}

impl Looks {
    /// What is believed when the clock says `said`. It goes on from what was at the last look, also in another process.
    async fn look(
        &mut self,
        store: &dyn RunStore,
        said: Timestamp,
    ) -> Result<Timestamp, StoreError> {
        let (last, passed) = if let Some((last, at)) = self.last {
            (last, Some(at.elapsed()))
        } else {
            self.kept = store.believed().await?;
            let first = if let Some(kept) = self.kept {
                kept
            } else {
                let at = newest(store).await?.unwrap_or(said);
                Believed {
                    at,
                    said: at,
                    ahead_for: None,
                }
            };
            (first, None)
        };
        let now = next(last, passed, said);
        self.last = Some((now, Instant::now()));
        let old = |kept: Believed| {
            now.ahead_for < kept.ahead_for
                || now.ahead_for.is_some() != kept.ahead_for.is_some()
                || said.duration_since(kept.said).abs() >= KEPT
        };
        if self.kept.is_none_or(old) {
            store.believe(now).await?;
            self.kept = Some(now);
        }
        Ok(now.at)
    }
}

/// What is believed when the clock says `said`, `passed` after `last`: that, or what was believed and the time since.
/// Of the first look of a process it is not known how much has passed.
fn next(last: Believed, passed: Option<Duration>, said: Timestamp) -> Believed {
    let after = |time: Timestamp| {
        let passed = passed.unwrap_or_default();
        time.checked_add(passed).unwrap_or(Timestamp::MAX)
    };
    let believed = Believed {
        at: said,
        said,
        ahead_for: None,
    };
    if said.duration_since(after(last.at)) <= BELIEVED {
        return believed;
    }
    // By the time that passes, not by the clock that is doubted; and one that jumps again begins again.
    let went_on = said.duration_since(after(last.said)).abs() <= KEPT;
    let ahead_for = match (last.ahead_for, passed) {
        (Some(so_far), None) => so_far,
        (Some(so_far), Some(passed)) if went_on => so_far.saturating_add(passed),
        (Some(_), Some(_)) | (None, _) => {
            tracing::warn!(
                hours = said.duration_since(after(last.at)).as_hours(),
                "the clock is far ahead of the last look, or the last run, and the time since: until it has been for \
                 a day of this server's work, old runs are deleted by the earlier time"
            );
            Duration::ZERO
        }
    };
    if SignedDuration::try_from(ahead_for).is_ok_and(|ahead| ahead < BELIEVED) {
        return Believed {
            at: after(last.at),
            said,
            ahead_for: Some(ahead_for),
        };
    }
    believed
}

/// How long runs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// After their end; `None` for ever.
    pub age: Option<Duration>,
    /// The most that are stored.
    pub runs: u64,
}

impl Keep {
    /// Where the time is not known nothing is old.
    fn at(self, now: Option<Timestamp>) -> Retention {
        let now = now.unwrap_or(Timestamp::MIN);
        let before = |age: SignedDuration| now.checked_sub(age).unwrap_or(Timestamp::MIN);
        Retention {
            ended_before: self
                .age
                .map(|age| before(age.try_into().unwrap_or(SignedDuration::MAX))),
            most_runs: self.runs,
            webhooks_before: before(WEBHOOKS),
            forget_before: before(DELETED),
        }
    }
}

/// Deletes what is to go, at once, every minute and when woken, until `stop`; after an unclean end it looks for
/// damage meanwhile.
pub(super) async fn retain(
    store: Arc<dyn RunStore>,
    keep: Keep,
    clock: Clock,
    wake: Arc<Notify>,
    stop: CancellationToken,
) {
    let look = look_for_damage(store.as_ref());
    let delete = async {
        let mut looks = Looks::default();
        loop {
            let now = looks.look(store.as_ref(), clock.now()).await;
            if let Err(error) = &now {
                tracing::warn!(
                    %error,
                    "by what time old runs are deleted can't be told: none is for its age; the next look tries again"
                );
            }
            let retention = keep.at(now.ok());
            loop {
                match store.maintain(&retention).await {
                    Ok(true) => tokio::time::sleep(PAUSE).await,
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(%error, "failed to delete old runs; the next look tries again");
                        break;
                    }
                }
            }
            // Woken or not, there may be more to do. What was missed meanwhile is found by the next look.
            drop(tokio::time::timeout(EVERY, wake.notified()).await);
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        // The deleting never ends.
        ((), ()) = async { tokio::join!(look, delete) } => {}
    }
}

/// When the newest run began or ended; `None` without one.
async fn newest(store: &dyn RunStore) -> Result<Option<Timestamp>, StoreError> {
    let run = store.list(1).await?.pop();
    Ok(run.map(|run| {
        let started = run.facts.started_at;
        run.end.map_or(started, |end| end.completed_at.max(started))
    }))
}

/// Dropped when the process stops, which ends the look; the next start looks again.
async fn look_for_damage(store: &dyn RunStore) {
    match store.check().await {
        Ok(Check::NotNeeded) => {}
        Ok(Check::Whole) => tracing::info!("the store is whole after an unclean end"),
        Ok(Check::Damaged(fault)) => {
            tracing::error!(%fault, "the store is damaged; restore it from a backup");
        }
        Err(error) => tracing::warn!(%error, "failed to check the store after an unclean end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Role, SqliteStore, StoreOptions};

    const START: Timestamp = Timestamp::constant(1_800_000_000, 0);

    const fn hours(hours: i64) -> SignedDuration {
        SignedDuration::from_hours(hours)
    }

    #[test]
    fn a_clock_that_jumps_ahead_is_believed_once_it_has_been_so_for_a_day() {
        let mut last = Believed {
            at: START,
            said: START,
            ahead_for: None,
        };
        let mut believed = |passed, said| {
            last = next(last, Some(Duration::from_hours(passed)), said);
            last.at
        };
        assert_eq!(believed(0, START + hours(20)), START + hours(20));
        assert_eq!(believed(30, START + hours(50)), START + hours(50));
        // Forty days ahead: time goes on as before.
        let jumped = START + hours(50 + 40 * 24);
        assert_eq!(believed(0, jumped), START + hours(50));
        assert_eq!(believed(2, jumped + hours(2)), START + hours(52));
        // And back.
        assert_eq!(believed(0, START + hours(52)), START + hours(52));
        assert_eq!(believed(0, jumped), START + hours(52));
        assert_eq!(believed(23, jumped + hours(23)), START + hours(75));
        // A second jump is not as good as a day.
        let further = jumped + hours(23 + 40 * 24);
        assert_eq!(believed(0, further), START + hours(75));
        assert_eq!(believed(23, further + hours(23)), START + hours(98));
        assert_eq!(believed(1, further + hours(24)), further + hours(24));
        // Nor is one of a day.
        let again = further + hours(24 + 40 * 24);
        assert_eq!(believed(0, again), further + hours(24));
        assert_eq!(believed(0, again + hours(24)), further + hours(24));
        assert_eq!(believed(23, again + hours(47)), further + hours(47));
        assert_eq!(believed(1, again + hours(48)), again + hours(48));
        // Back without a limit: it only makes runs younger.
        assert_eq!(believed(0, START), START);
    }

    fn store(dir: &tempfile::TempDir) -> Arc<SqliteStore> {
        SqliteStore::open(StoreOptions::new(dir.path(), Role::Serve)).unwrap()
    }

    /// What is believed after `uptime` hours of a process at whose start the clock says `said`, in hours.
    async fn session(dir: &tempfile::TempDir, said: Timestamp, uptime: i64) -> i64 {
        let store = store(dir);
        let mut looks = Looks::default();
        let mut believed = looks.look(store.as_ref(), said).await.unwrap();
        for hour in 1..=uptime {
            let (last, at) = looks.last.unwrap();
            looks.last = Some((last, at - Duration::from_hours(1)));
            believed = looks
                .look(store.as_ref(), said + hours(hour))
                .await
                .unwrap();
        }
        store.close().await;
        believed.duration_since(START).as_hours()
    }

    #[tokio::test]
    async fn a_server_that_runs_now_and_then_believes_its_clock_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(session(&dir, START, 3).await, 3);
        // Three hours every three days: a day of them, and what was far ahead is believed.
        for n in 1..8 {
            let at = session(&dir, START + hours(72 * n), 3).await;
            assert_eq!(at, 3 + 3 * n);
        }
        assert_eq!(session(&dir, START + hours(72 * 8), 3).await, 72 * 8 + 3);
    }

    #[tokio::test]
    async fn a_restart_believes_no_clock_that_jumped_and_is_no_beginning_of_the_day() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(session(&dir, START, 0).await, 0);
        let jumped = START + hours(40 * 24);
        // What began under that clock says nothing for it.
        let other = store(&dir);
        let facts = crate::store::RunFacts {
            id: crate::ids::RunId::new(),
            prompt: "x".to_owned(),
            model: "m".to_owned(),
            provider: "p".to_owned(),
            sandbox_provider: "s".to_owned(),
            background: false,
            started_at: jumped,
        };
        let first = crate::events::StoredEvent::new(
            crate::ids::Seq(1),
            &crate::events::RunEvent::Assistant(crate::events::Delta::new("x".to_owned(), 1)),
        );
        other.create(facts, first.unwrap()).await.unwrap();
        other.close().await;
        for hour in [0, 1, 12, 23, 24] {
            assert_eq!(session(&dir, jumped + hours(hour), 0).await, 0);
        }
        // Restarts are no beginning: what was worked before counts.
        assert_eq!(session(&dir, jumped + hours(24), 12).await, 12);
        assert_eq!(session(&dir, jumped + hours(36), 12).await, 42 * 24);
        // Daily restarts of a store without a new run.
        for day in 43..50 {
            let said = START + hours(day * 24);
            assert_eq!(session(&dir, said, 0).await, day * 24);
        }
    }

    #[tokio::test]
    async fn what_can_not_be_read_makes_no_run_old() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        store.close().await;
        let looked = Looks::default().look(store.as_ref(), START).await;
        assert!(looked.is_err(), "{looked:?}");
        let keep = Keep {
            age: Some(Duration::from_hours(48)),
            runs: 7,
        };
        let retention = keep.at(looked.ok());
        assert_eq!(retention.ended_before, Some(Timestamp::MIN));
        assert_eq!(retention.webhooks_before, Timestamp::MIN);
        assert_eq!(retention.forget_before, Timestamp::MIN);
    }

    #[test]
    fn ages_are_counted_back_from_now() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let keep = Keep {
            age: Some(Duration::from_hours(48)),
            runs: 7,
        };
        let at = |hours: i64| now - SignedDuration::from_hours(hours);
        assert_eq!(
            keep.at(Some(now)),
            Retention {
                ended_before: Some(at(48)),
                most_runs: 7,
                webhooks_before: at(7 * 24),
                forget_before: at(30 * 24),
            }
        );
        let for_ever = Keep { age: None, ..keep };
        assert_eq!(for_ever.at(Some(now)).ended_before, None);
        let longer_than_time = Keep {
            age: Some(Duration::MAX),
            ..keep
        };
        assert_eq!(
            longer_than_time.at(Some(now)).ended_before,
            Some(Timestamp::MIN)
        );
    }
}
