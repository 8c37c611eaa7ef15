//! Makes commits survive a power cut, beside the writer instead of in its way.
//!
//! At `synchronous=NORMAL` a commit is a write into the `-wal` file and survives the death of the process.
//! For the commits that must survive more, `PRAGMA synchronous=FULL` would have the one writer wait for the
//! disk (2 ms and more) while every other run waits for the writer. Instead this thread calls `fdatasync`
//! on a descriptor of its own for the same file, for all waiters at once. Why that is as good:
//!
//! - A waiter is handed over after its `COMMIT`, so its frames, and those of everything committed before,
//!   are in the page cache of the file's inode; `fdatasync` is about the inode, whoever wrote to it.
//! - If a checkpoint has moved the frames into the database meanwhile, it had synced the WAL before, and
//!   syncs the database before the WAL may be overwritten: at NORMAL too, and from whichever process.
//! - The descriptor is of the `-wal` file, never of the database: `SQLite` takes its POSIX locks on the
//!   database and the `-shm` file, and closing any descriptor of *those* would drop them.
//! - A new WAL file needs its directory entry synced as well. The file is made when the first connection
//!   of the store writes and stays until the last one closes; still, every sync compares the inodes and
//!   starts anew when the name leads elsewhere.
//!
//! After a failed `fdatasync` the kernel may have dropped the pages that it could not write, and the next one
//! succeeds without them. So from the first failure on no sync is tried, nor believed: all waiters hear of a
//! failure until the writer has moved the whole log into the database and started it over, which writes the
//! contents once more and syncs them there; or until a restart, which verifies the log's checksums.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::super::types::StoreError;
use super::health::Healthy;
use super::inode::{is_same_file, sync_dir};
use super::queue::{Outcome, answer};

/// Handle of the thread that syncs. Dropping it syncs what is wanted, then ends the thread.
pub(super) struct Syncer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

struct Wanted {
    sync: bool,
    /// Bounded by their callers, each of whom waits for the answer.
    waiters: Vec<oneshot::Sender<Outcome>>,
    open: bool,
}

impl Syncer {
    /// Starts the thread for the WAL of `database`.
    pub(super) fn start(database: &Path, healthy: Arc<Healthy>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: Mutex::new(Wanted {
                sync: false,
                waiters: Vec::new(),
                open: true,
            }),
            changed: Condvar::new(),
        });
        let mut wal = Wal::of(database);
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("store-sync".to_owned())
            .spawn(move || {
                while let Some(waiters) = theirs.next() {
                    let result = if healthy.synced() {
                        wal.sync().map_err(|error| error.to_string())
                    } else {
                        Err("an earlier sync failed".to_owned())
                    };
                    let result = result.map_err(|error| {
                        StoreError::Failed(format!("the write-ahead log can't be synced: {error}"))
                    });
                    if let Err(error) = &result {
                        healthy.sync(Err(error));
                    }
                    for waiter in waiters {
                        answer(Some(waiter), result.clone().map(|()| true));
                    }
                }
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Syncs all that is committed by now, and tells `waiter` how that went.
    pub(super) fn wait(&self, waiter: Option<oneshot::Sender<Outcome>>) {
        let mut wanted = self.shared.wanted.lock();
        wanted.sync = true;
        wanted.waiters.extend(waiter);
        drop(wanted);
        self.shared.changed.notify_one();
    }

    /// Syncs all that is committed by now; nobody waits.
    pub(super) fn soon(&self) {
        self.wait(None);
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.wanted.lock().open = false;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that syncs the run store panicked");
        }
    }
}

impl Shared {
    /// Whose commits to sync next, perhaps nobody's; `None` when all is done.
    fn next(&self) -> Option<Vec<oneshot::Sender<Outcome>>> {
        let mut wanted = self.wanted.lock();
        while !wanted.sync {
            if !wanted.open {
                return None;
            }
            self.changed.wait(&mut wanted);
        }
        wanted.sync = false;
        Some(std::mem::take(&mut wanted.waiters))
    }
}

struct Wal {
    path: PathBuf,
    file: Option<File>,
}

impl Wal {
    fn of(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        Self {
            path: path.into(),
            file: None,
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file
            && is_same_file(file, &self.path)
        {
            return file.sync_data();
        }
        self.file = None;
        // For writing, because some systems sync only what could be written.
        let file = OpenOptions::new().write(true).open(&self.path)?;
        file.sync_data()?;
        if let Some(dir) = self.path.parent() {
            sync_dir(dir)?;
        }
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wal_that_was_made_anew_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("x.db");
        let mut wal = Wal::of(&database);
        assert_eq!(wal.sync().unwrap_err().kind(), io::ErrorKind::NotFound);
        let path = dir.path().join("x.db-wal");
        std::fs::write(&path, "one").unwrap();
        wal.sync().unwrap();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        std::fs::write(&path, "two").unwrap();
        wal.sync().unwrap();
        assert!(is_same_file(wal.file.as_ref().unwrap(), &path));
    }

    #[test]
    fn waiters_are_told_when_the_syncer_is_dropped_right_after() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("x.db");
        std::fs::write(dir.path().join("x.db-wal"), "frames").unwrap();
        let syncer = Syncer::start(&database, Arc::new(Healthy::new())).unwrap();
        let waiters: Vec<_> = (0..20)
            .map(|_| {
                let (tell, told) = oneshot::channel();
                syncer.wait(Some(tell));
                told
            })
            .collect();
        drop(syncer);
        for told in waiters {
            assert!(told.blocking_recv().unwrap().unwrap());
        }
    }

    #[test]
    fn a_sync_that_failed_is_not_believed_when_it_works_again_until_the_store_is_healed() {
        let dir = tempfile::tempdir().unwrap();
        let healthy = Arc::new(Healthy::new());
        let syncer = Syncer::start(&dir.path().join("x.db"), Arc::clone(&healthy)).unwrap();
        let sync = || {
            let (tell, told) = oneshot::channel();
            syncer.wait(Some(tell));
            told.blocking_recv().unwrap()
        };
        assert!(matches!(sync(), Err(StoreError::Failed(_))));
        assert!(!healthy.get());
        std::fs::write(dir.path().join("x.db-wal"), "frames").unwrap();
        assert!(matches!(sync(), Err(StoreError::Failed(_))));
        assert!(!healthy.get());
        healthy.sync(Ok(()));
        assert!(sync().is_ok());
        assert!(healthy.get());
    }
}
