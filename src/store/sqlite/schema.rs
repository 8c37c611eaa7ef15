//! The schema, its migrations, and how a connection is set up.
//!
//! What must hold of a log is held here, by the database itself, whatever the code above does: the
//! unique key and `events_follow` make sequence numbers dense and the terminal event the last one,
//! `one_end` allows a single terminal event, and `ended_stays_ended` keeps a run's end (rule ST-2).
//! The head of a log is the greatest `seq` of its events: it is stored nowhere else, so that it can't
//! disagree with them.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::super::types::StoreError;
use super::options::StoreDurability;
use crate::ids::nonce;

/// The first `SQLite` without the WAL-reset corruption (3.51.3).
const OLDEST_SQLITE: i32 = 3_051_003;

/// Waiting for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Cached statements per connection; all that a connection uses.
const STATEMENTS: usize = 48;

/// Forward only: a database at version `n` has had the first `n` of them.
const MIGRATIONS: &[&str] = &["
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    no INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    sandbox_provider TEXT NOT NULL,
    background INTEGER NOT NULL CHECK (background IN (0, 1)),
    state TEXT NOT NULL CHECK (state IN
        ('queued', 'running', 'completed', 'failed', 'cancelled', 'timed_out', 'interrupted')),
    started_at INTEGER NOT NULL,
    completed_at INTEGER CHECK ((completed_at IS NULL) = (state IN ('queued', 'running'))),
    error_code TEXT,
    error TEXT,
    cost_nanos INTEGER,
    input_tokens INTEGER,
    output_tokens INTEGER,
    num_turns INTEGER,
    duration_secs REAL,
    prompt TEXT NOT NULL
) STRICT;

CREATE INDEX runs_by_start ON runs (started_at DESC, no DESC);
CREATE INDEX runs_unfinished ON runs (no) WHERE state IN ('queued', 'running');

CREATE TRIGGER ended_stays_ended BEFORE UPDATE OF state ON runs
WHEN OLD.state NOT IN ('queued', 'running')
BEGIN
    SELECT RAISE(ABORT, 'the run has ended');
END;

-- In the order of commits, so that a commit fills pages one after the other, however many runs it is from;
-- keyed by run, it would rewrite a page of each. Only the small entries of the index are scattered.
CREATE TABLE events (
    no INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (no),
    seq INTEGER NOT NULL CHECK (seq >= 1),
    kind TEXT NOT NULL,
    at INTEGER NOT NULL,
    json TEXT NOT NULL,
    UNIQUE (run, seq)
) STRICT;

CREATE UNIQUE INDEX one_end ON events (run) WHERE kind IN ('result', 'error');

CREATE TRIGGER events_follow BEFORE INSERT ON events
WHEN NEW.seq > 1
BEGIN
    SELECT RAISE(ABORT, 'the event does not follow the one before')
    WHERE NOT EXISTS (SELECT 1 FROM events WHERE run = NEW.run AND seq = NEW.seq - 1);
    SELECT RAISE(ABORT, 'the run has ended')
    WHERE EXISTS (SELECT 1 FROM events WHERE run = NEW.run AND kind IN ('result', 'error'));
END;

CREATE TRIGGER events_stay BEFORE UPDATE ON events
BEGIN
    SELECT RAISE(ABORT, 'an event never changes');
END;

CREATE TABLE files (
    run INTEGER NOT NULL REFERENCES runs (no),
    path TEXT NOT NULL,
    mime_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (run, path)
) STRICT;

CREATE TABLE sandboxes (
    run INTEGER NOT NULL REFERENCES runs (no),
    attempt INTEGER NOT NULL,
    backend TEXT NOT NULL,
    sandbox_id TEXT,
    expires INTEGER NOT NULL,
    destroyed INTEGER NOT NULL CHECK (destroyed IN (0, 1)),
    PRIMARY KEY (run, attempt)
) STRICT, WITHOUT ROWID;

CREATE INDEX sandboxes_by_id ON sandboxes (sandbox_id) WHERE sandbox_id IS NOT NULL;

CREATE TABLE webhooks (
    no INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    event_type TEXT NOT NULL,
    sandbox_id TEXT,
    run INTEGER REFERENCES runs (no),
    signed INTEGER NOT NULL CHECK (signed IN (0, 1)),
    received_at INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;

CREATE INDEX webhooks_by_run ON webhooks (run) WHERE run IS NOT NULL;
"];

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The writer's.
    Write,
    /// A checkpoint's: it writes the database, but no rows.
    Checkpoint,
    /// Reading only.
    Read,
}

/// Opens a connection to the database at `path`, set up for `purpose`.
pub(super) fn connect(
    path: &Path,
    purpose: Purpose,
    durability: StoreDurability,
) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    let synchronous = match durability {
        StoreDurability::Normal => "NORMAL",
        StoreDurability::Full => "FULL",
    };
    db.execute_batch(&format!(
        "PRAGMA synchronous = {synchronous};
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA mmap_size = 0;
         PRAGMA journal_size_limit = 67108864;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA cache_size = -{};
         PRAGMA query_only = {};",
        match purpose {
            Purpose::Write => 16_384,
            Purpose::Checkpoint => 256,
            Purpose::Read => 1024,
        },
        u8::from(purpose == Purpose::Read),
    ))?;
    Ok(db)
}

/// Brings the database up to date and gives the store's id.
pub(super) fn prepare(db: &mut Connection, path: &Path) -> Result<String, StoreError> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(StoreError::Unusable(format!(
            "SQLite {} can corrupt a write-ahead log: 3.51.3 or newer is needed",
            rusqlite::version()
        )));
    }
    let mode: String = db
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(|error| unusable(path, &error))?;
    if mode != "wal" {
        return Err(StoreError::Unusable(format!(
            "the database {} can't use a write-ahead log: it needs a local disk",
            path.display()
        )));
    }
    migrate(db, path)?;
    store_id(db).map_err(|error| unusable(path, &error))
}

fn migrate(db: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let unusable = |error| unusable(path, &error);
    // Immediate, so that two processes that start on a new directory take turns.
    let tx = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(unusable)?;
    let version: i64 = tx
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(unusable)?;
    let ours = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if version > ours {
        return Err(StoreError::Unusable(format!(
            "the database {} has schema version {version}, and this sandcaster ({}) knows versions up to {ours}: use a newer one, or another --data-dir",
            path.display(),
            env!("CARGO_PKG_VERSION"),
        )));
    }
    let done = usize::try_from(version).unwrap_or(0);
    for sql in MIGRATIONS.iter().skip(done) {
        tx.execute_batch(sql).map_err(unusable)?;
    }
    if version < ours {
        tx.pragma_update(None, "user_version", ours)
            .map_err(unusable)?;
    }
    tx.commit().map_err(unusable)
}

fn store_id(db: &mut Connection) -> Result<String, rusqlite::Error> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let known = tx
        .query_row("SELECT value FROM meta WHERE name = 'id'", [], |row| {
            row.get::<_, String>(0)
        })
        .optional()?;
    let id = if let Some(id) = known {
        id
    } else {
        let id = nonce();
        tx.execute(
            "INSERT INTO meta (name, value) VALUES ('id', ?1)",
            params![id],
        )?;
        id
    };
    tx.commit()?;
    Ok(id)
}

pub(super) fn unusable(path: &Path, error: &rusqlite::Error) -> StoreError {
    StoreError::Unusable(format!(
        "could not use the database {}: {error}",
        path.display()
    ))
}
