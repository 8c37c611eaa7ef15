//! Who reads a run: a count, and the grace period that starts when it falls to zero.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Counts the readers attached to a run. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Readers(Arc<watch::Sender<usize>>);

/// A reader: attached until it is dropped.
#[derive(Debug)]
pub(super) struct ReaderLease(Arc<watch::Sender<usize>>);

impl Default for Readers {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Readers {
    /// Attaches a reader, unless `most` are attached already.
    pub(super) fn attach(&self, most: usize) -> Option<ReaderLease> {
        let mut attached = false;
        self.0.send_if_modified(|count| {
            attached = *count < most;
            *count += usize::from(attached);
            attached
        });
        attached.then(|| ReaderLease(Arc::clone(&self.0)))
    }

    /// Returns once nobody has been attached for the whole of `grace`.
    pub(super) async fn abandoned(&self, grace: Duration) {
        let mut count = self.0.subscribe();
        loop {
            // The sender lives as long as `self`, so waiting can't fail; if it did, nobody can attach.
            if count.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            let back = count.wait_for(|count| *count > 0);
            if tokio::time::timeout(grace, back).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for ReaderLease {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
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

    #[test]
    fn readers_are_bounded() {
        let readers = Readers::default();
        let held: Vec<_> = (0..3).map_while(|_| readers.attach(2)).collect();
        assert_eq!(held.len(), 2);
        drop(held);
        assert!(readers.attach(1).is_some());
    }
}
