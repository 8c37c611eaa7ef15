//! Keeps the store well: deletes old runs, and what is left of deleted ones, in small steps, so that it does not
//! grow for ever; looks for damage after an unclean end.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
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
        loop {
            let retention = keep.at(clock.now());
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
