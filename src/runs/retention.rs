//! Keeps the store well: deletes old runs, and what is left of deleted ones, in small steps, so that it does not
//! grow for ever; looks for damage after an unclean end.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::store::{Check, Retention, RunStore};

/// Between looks.
const EVERY: Duration = Duration::from_mins(1);
/// Between steps: the writes of runs go first.
const PAUSE: Duration = Duration::from_millis(2);
/// For how long a webhook delivery is kept (rule WH-2).
const WEBHOOKS: SignedDuration = SignedDuration::from_hours(7 * 24);
/// For how long it is known of a deleted run that there was one.
const DELETED: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How far ahead of what was expected the clock is believed at once, and how long it must stay so else.
const BELIEVED: Duration = Duration::from_hours(24);

/// The time by which runs are deleted, for good: a clock that jumps ahead must not delete all of them.
struct Believed {
    at: Timestamp,
    since: Instant,
    /// The clock has been far ahead since then.
    ahead: Option<Instant>,
}

impl Believed {
    fn new(at: Timestamp) -> Self {
        Self {
            at,
            since: Instant::now(),
            ahead: None,
        }
    }

    /// What is believed when the clock says `said`: that, or what it said at last and the time since.
    fn now(&mut self, said: Timestamp) -> Timestamp {
        let passed = SignedDuration::try_from(self.since.elapsed()).unwrap_or(SignedDuration::MAX);
        let expected = self.at.checked_add(passed).unwrap_or(Timestamp::MAX);
        let jump = said.duration_since(expected);
        let far = Duration::try_from(jump).is_ok_and(|jump| jump > BELIEVED);
        if far {
            let ahead = *self.ahead.get_or_insert_with(|| {
                tracing::warn!(
                    hours = jump.as_hours(),
                    "the clock is far ahead of the last run and the time since: until it has been for a day, old \
                     runs are deleted by the earlier time"
                );
                Instant::now()
            });
            if ahead.elapsed() < BELIEVED {
                return expected;
            }
        }
        *self = Self::new(said);
        said
    }
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
    fn at(self, now: Timestamp) -> Retention {
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
        let mut believed =
            Believed::new(newest(store.as_ref()).await.unwrap_or_else(|| clock.now()));
        loop {
            let retention = keep.at(believed.now(clock.now()));
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
async fn newest(store: &dyn RunStore) -> Option<Timestamp> {
    let run = store.list(1).await.ok()?.pop()?;
    let ended = run.end.map(|end| end.completed_at);
    Some(
        ended
            .unwrap_or(run.facts.started_at)
            .max(run.facts.started_at),
    )
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

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_ahead_is_believed_once_it_has_been_so_for_a_day() {
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let hours = SignedDuration::from_hours;
        let after = |hours| tokio::time::advance(Duration::from_hours(hours));
        let mut believed = Believed::new(start);
        assert_eq!(believed.now(start + hours(20)), start + hours(20));
        after(30).await;
        assert_eq!(believed.now(start + hours(50)), start + hours(50));
        // Forty days ahead: time goes on as before.
        let jumped = start + hours(50 + 40 * 24);
        assert_eq!(believed.now(jumped), start + hours(50));
        after(2).await;
        assert_eq!(believed.now(jumped + hours(2)), start + hours(52));
        // And back.
        assert_eq!(believed.now(start + hours(52)), start + hours(52));
        assert_eq!(believed.now(jumped), start + hours(52));
        after(23).await;
        assert_eq!(believed.now(jumped + hours(23)), start + hours(75));
        after(1).await;
        assert_eq!(believed.now(jumped + hours(24)), jumped + hours(24));
        // Back without a limit: it only makes runs younger.
        assert_eq!(believed.now(start), start);
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
            keep.at(now),
            Retention {
                ended_before: Some(at(48)),
                most_runs: 7,
                webhooks_before: at(7 * 24),
                forget_before: at(30 * 24),
            }
        );
        let for_ever = Keep { age: None, ..keep };
        assert_eq!(for_ever.at(now).ended_before, None);
        let longer_than_time = Keep {
            age: Some(Duration::MAX),
            ..keep
        };
        assert_eq!(longer_than_time.at(now).ended_before, Some(Timestamp::MIN));
    }
}
