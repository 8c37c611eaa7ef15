//! Whether the store can be written.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::types::StoreError;

/// Whether writing works.
#[derive(Debug)]
pub(super) struct Healthy {
    commit: AtomicBool,
    sync: AtomicBool,
}

impl Healthy {
    pub(super) const fn new() -> Self {
        Self {
            commit: AtomicBool::new(true),
            sync: AtomicBool::new(true),
        }
    }

    pub(super) fn get(&self) -> bool {
        self.commit.load(Ordering::Relaxed) && self.sync.load(Ordering::Relaxed)
    }

    /// Notes how a commit went; logs a change once.
    pub(super) fn commit(&self, result: Result<(), &StoreError>) {
        note(&self.commit, result, "commit");
    }

    /// Notes how a sync went; logs a change once.
    pub(super) fn sync(&self, result: Result<(), &StoreError>) {
        note(&self.sync, result, "sync");
    }
}

fn note(flag: &AtomicBool, result: Result<(), &StoreError>, what: &str) {
    let was = flag.swap(result.is_ok(), Ordering::Relaxed);
    match result {
        Err(error) if was => tracing::error!(%error, what, "the run store can't be written"),
        Ok(()) if !was => tracing::info!(what, "the run store can be written again"),
        _ => {}
    }
}
