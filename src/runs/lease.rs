//! Who reads a run: a count, and the grace period that starts when it falls to zero.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Counts the readers attached to a run. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Readers(Arc<watch::Sender<Attached>>);

/// A reader: attached until it is dropped.
#[derive(Debug)]
pub(super) struct ReaderLease(Arc<watch::Sender<Attached>>);

#[derive(Clone, Copy, Debug)]
struct Attached {
    count: usize,
    /// When the last reader left, or the run began.
    alone_since: Instant,
}

impl Default for Readers {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Attached {
            count: 0,
            alone_since: Instant::now(),
        })))
    }
}

impl Readers {
    /// Attaches a reader, unless `most` are attached already.
    pub(super) fn attach(&self, most: usize) -> Option<ReaderLease> {
        let mut attached = false;
        self.0.send_if_modified(|readers| {
            attached = readers.count < most;
            readers.count += usize::from(attached);
            attached
        });
        attached.then(|| ReaderLease(Arc::clone(&self.0)))
    }

    /// Returns once nobody has been attached for the whole of `grace`: however short a visit, it starts anew.
    pub(super) async fn abandoned(&self, grace: Duration) {
        let mut readers = self.0.subscribe();
        loop {
            let now = *readers.borrow_and_update();
            let over = async {
                if now.count > 0 {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep_until(now.alone_since + grace).await;
            };
            tokio::select! {
                // A change first: who came back in time counts.
                biased;
                // The sender lives as long as `self`, so waiting can't fail; if it did, nobody can attach.
                changed = readers.changed() => if changed.is_err() { return },
                () = over => return,
            }
        }
    }
}

impl Drop for ReaderLease {
    fn drop(&mut self) {
        self.0.send_modify(|readers| {
            readers.count -= 1;
            readers.alone_since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_comes_back_within_the_grace_keeps_the_run() {
        let readers = Readers::default();
        let first = readers.attach(64).unwrap();
        let abandoned = readers.abandoned(Duration::from_secs(10));
        tokio::pin!(abandoned);
        drop(first);
        assert!(
            tokio::time::timeout(Duration::from_secs(9), &mut abandoned)
                .await
                .is_err()
        );
        let second = readers.attach(64).unwrap();
        assert!(
            tokio::time::timeout(Duration::from_mins(1), &mut abandoned)
                .await
                .is_err()
        );
        drop(second);
        assert!(
            tokio::time::timeout(Duration::from_secs(9), &mut abandoned)
                .await
                .is_err()
        );
        tokio::time::timeout(Duration::from_secs(2), abandoned)
            .await
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_visit_that_nobody_saw_starts_the_grace_anew() {
        let readers = Readers::default();
        let abandoned = readers.abandoned(Duration::from_secs(10));
        tokio::pin!(abandoned);
        assert!(
            tokio::time::timeout(Duration::from_secs(9), &mut abandoned)
                .await
                .is_err()
        );
        // Come and gone before the watcher is polled again.
        drop(readers.attach(64).unwrap());
        let left = Instant::now();
        abandoned.await;
        assert_eq!(left.elapsed(), Duration::from_secs(10));
    }

    #[test]
    fn readers_are_bounded() {
        let readers = Readers::default();
        let held: Vec<_> = (0..3).map_while(|_| readers.attach(2)).collect();
        assert_eq!(held.len(), 2);
        drop(held);
        assert!(readers.attach(1).is_some());
    }
}
