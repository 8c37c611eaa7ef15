//! Moves what the write-ahead log holds into the database, beside the writer.
//!
//! A checkpoint syncs twice; in the writer it would hold up every run for as long. A passive checkpoint on
//! a connection of its own holds up nobody. Under unbroken load it never quite catches up, though, and only
//! a log that was moved whole can be started over: so past [`LARGE`] the writer moves the small rest itself.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

/// Frames (of 4 KiB) in the log that are worth a checkpoint.
const WORTHWHILE: i64 = 1000;

/// Frames in the log beyond which the writer helps: 32 MiB.
const LARGE: i64 = 8192;

/// Frames that the writer may have written before the log is looked at.
const LOOK: usize = 500;

/// Handle of the thread that checkpoints. Dropping it ends the thread.
pub(super) struct Checkpointer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// About how many frames were written since the thread looked.
    frames: Cell<usize>,
}

struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    inline: AtomicBool,
}

struct Wanted {
    look: bool,
    open: bool,
}

impl Checkpointer {
    /// Starts the thread on its own connection.
    pub(super) fn start(db: Connection) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: Mutex::new(Wanted {
                look: false,
                open: true,
            }),
            changed: Condvar::new(),
            inline: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("store-checkpoint".to_owned())
            .spawn(move || {
                while theirs.next() {
                    if let Err(error) = theirs.look(&db) {
                        tracing::warn!(%error, "the run store's log could not be moved into the database; it grows meanwhile");
                    }
                }
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            frames: Cell::new(0),
        })
    }

    /// To be told of every transaction: about how many bytes it wrote.
    pub(super) fn written(&self, bytes: usize) {
        // Even a small row costs its leaf, an index page and the page above.
        let frames = self.frames.get() + 3 + bytes / 4096;
        if frames < LOOK {
            self.frames.set(frames);
            return;
        }
        self.frames.set(0);
        self.shared.wanted.lock().look = true;
        self.shared.changed.notify_one();
    }

    /// Whether the writer is asked to help.
    pub(super) fn wanted_inline(&self) -> bool {
        self.shared.inline.load(Ordering::Relaxed)
    }

    /// Moves the rest, on the writer's own connection and between its transactions.
    pub(super) fn inline(&self, db: &Connection) {
        self.shared.inline.store(false, Ordering::Relaxed);
        if let Err(error) = checkpoint(db, "PASSIVE") {
            tracing::warn!(%error, "the run store's log could not be moved into the database; it grows meanwhile");
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.shared.wanted.lock().open = false;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that checkpoints the run store panicked");
        }
    }
}

impl Shared {
    /// Waits until a look is wanted; false when none will be.
    fn next(&self) -> bool {
        let mut wanted = self.wanted.lock();
        while wanted.open && !wanted.look {
            self.changed.wait(&mut wanted);
        }
        wanted.look = false;
        wanted.open
    }

    fn look(&self, db: &Connection) -> Result<(), rusqlite::Error> {
        let log = checkpoint(db, "NOOP")?;
        if log.frames - log.moved < WORTHWHILE {
            return Ok(());
        }
        let log = checkpoint(db, "PASSIVE")?;
        if log.frames >= LARGE {
            self.inline.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Moves the whole log into the database, syncs that, and starts the log over. True if it was all of it:
/// readers may hold some of it back.
pub(super) fn complete(db: &Connection) -> Result<bool, rusqlite::Error> {
    checkpoint(db, "TRUNCATE").map(|log| !log.busy)
}

struct Log {
    busy: bool,
    frames: i64,
    moved: i64,
}

fn checkpoint(db: &Connection, mode: &'static str) -> Result<Log, rusqlite::Error> {
    db.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?
        .query_row([], |row| {
            Ok(Log {
                busy: row.get(0)?,
                frames: row.get(1)?,
                moved: row.get(2)?,
            })
        })
}
