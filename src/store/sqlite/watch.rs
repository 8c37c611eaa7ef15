//! Following the runs of other processes: one look at the database per run and pause, however many follow.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::types::StoreError;
use crate::ids::{RunId, Seq};

/// Between two looks at a run.
const PAUSE: Duration = Duration::from_millis(250);

/// The runs that are followed.
#[derive(Default)]
pub(super) struct Followed(Mutex<HashMap<RunId, Weak<Run>>>);

struct Run {
    head: watch::Sender<Seq>,
    /// Held by the one that looks for all.
    turn: tokio::sync::Mutex<()>,
}

impl Followed {
    /// Waits until `look` gives a head past `after`. Dropped, it leaves the looking to another that waits.
    pub(super) async fn past<F>(
        &self,
        run: &RunId,
        after: Seq,
        look: impl Fn() -> F + Send + Sync,
    ) -> Result<(), StoreError>
    where
        F: Future<Output = Result<Seq, StoreError>> + Send,
    {
        let followed = self.run(run);
        let mut head = followed.head.subscribe();
        let looking = async {
            let _turn = followed.turn.lock().await;
            while *followed.head.borrow() <= after {
                let found = look().await?;
                followed.head.send_replace(found);
                if found <= after {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Ok(())
        };
        tokio::select! {
            // What another has found first.
            biased;
            _found = head.wait_for(|head| *head > after) => Ok(()),
            looked = looking => looked,
        }
    }

    fn run(&self, run: &RunId) -> Arc<Run> {
        let mut runs = self.0.lock();
        if let Some(followed) = runs.get(run).and_then(Weak::upgrade) {
            return followed;
        }
        runs.retain(|_, followed| followed.strong_count() > 0);
        let followed = Arc::new(Run {
            head: watch::Sender::new(Seq::ZERO),
            turn: tokio::sync::Mutex::new(()),
        });
        runs.insert(run.clone(), Arc::downgrade(&followed));
        followed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn however_many_follow_a_run_it_is_looked_at_once_at_a_time() {
        let followed = Followed::default();
        let run = RunId::new();
        let looks = AtomicUsize::new(0);
        let look = || async {
            // The fifth look finds something.
            let seen = looks.fetch_add(1, Ordering::SeqCst);
            Ok(Seq(if seen < 4 { 1 } else { 2 }))
        };
        let all = (0..50).map(|_| followed.past(&run, Seq(1), look));
        let first = futures::future::try_join_all(all);
        // One that leaves does not take the looking with it.
        drop(tokio::time::timeout(PAUSE / 2, followed.past(&run, Seq(1), look)).await);
        first.await.unwrap();
        assert_eq!(looks.load(Ordering::SeqCst), 5);
        assert!(
            followed
                .0
                .lock()
                .values()
                .all(|run| run.strong_count() == 0)
        );
    }
}
