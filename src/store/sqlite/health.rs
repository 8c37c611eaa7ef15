//! Whether the store can be written: noted by the writer and by what syncs, asked by everyone.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::types::StoreError;

/// Whether writing works.
#[derive(Debug)]
pub(super) struct Healthy {
    commit: AtomicBool,
    sync: AtomicBool,
    /// The writer is there.
    writer: AtomicBool,
    /// The files are where their names lead.
    files: AtomicBool,
}

impl Healthy {
    pub(super) const fn new() -> Self {
        Self {
            commit: AtomicBool::new(true),
            sync: AtomicBool::new(true),
            writer: AtomicBool::new(true),
            files: AtomicBool::new(true),
        }
    }

    pub(super) fn get(&self) -> bool {
        self.synced()
            && [&self.commit, &self.writer, &self.files]
                .iter()
                .all(|well| well.load(Ordering::Relaxed))
    }

    /// Whether what is synced is on the disk. False from a failed sync until all of the log was moved into
    /// the database.
    pub(super) fn synced(&self) -> bool {
        self.sync.load(Ordering::Acquire)
    }

    /// Notes how a commit went; logs a change once.
    pub(super) fn commit(&self, result: Result<(), &StoreError>) {
        note(&self.commit, result, "commit");
    }

    /// Notes that a sync failed, or that it no longer matters; logs a change once.
    pub(super) fn sync(&self, result: Result<(), &StoreError>) {
        note(&self.sync, result, "sync");
    }

    /// Notes whether the files are where their names lead; logs once that they aren't. What was synced since is not
    /// believed, also when they are back.
    pub(super) fn files(&self, there: bool) {
        let were = self.files.swap(there, Ordering::Relaxed);
        if !there {
            self.sync.store(false, Ordering::Release);
            if were {
                tracing::error!(
                    "a file of the run store was removed or replaced while it is in use: no runs are taken, and \
                     unless it is back within seconds none will be until the server is restarted"
                );
            }
        }
    }

    /// Notes that nothing will ever be written again.
    pub(super) fn writer_gone(&self) {
        self.writer.store(false, Ordering::Relaxed);
    }
}

fn note(flag: &AtomicBool, result: Result<(), &StoreError>, what: &str) {
    let was = flag.swap(result.is_ok(), Ordering::AcqRel);
    match result {
        Err(error) if was => tracing::error!(%error, what, "the run store can't be written"),
        Ok(()) if !was => tracing::info!(what, "the run store can be written again"),
        _ => {}
    }
}
