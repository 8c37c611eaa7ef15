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
use super::inode::{inode, machine};
use crate::ids::nonce;
use crate::spec::StoreDurability;

/// The first `SQLite` without the WAL-reset corruption (3.51.3).
const OLDEST_SQLITE: i32 = 3_051_003;

/// Waiting for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Cached statements per connection; all that a connection uses.
const STATEMENTS: usize = 48;

/// A larger database of version 1 keeps its free pages for itself: rewriting it would hold up the start.
const REWRITABLE_PAGES: i64 = 256 * 1024;

/// The bytes of a file are kept in parts of this size, so that any of them is found at once.
pub(super) const PART: usize = 64 * 1024;

/// Forward only: a database at version `n` has had the first `n` of them.
const MIGRATIONS: &[&str] = &[
    "
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
",
    "
-- Prompts may be large: who reads rows of runs should not have to read past them.
CREATE TABLE prompts (
    run INTEGER PRIMARY KEY REFERENCES runs (no),
    text TEXT NOT NULL
) STRICT;
INSERT INTO prompts SELECT no, prompt FROM runs;
ALTER TABLE runs RENAME COLUMN prompt TO beginning;
UPDATE runs SET beginning = substr(beginning, 1, 100);

ALTER TABLE runs ADD COLUMN epoch INTEGER NOT NULL DEFAULT 1;
ALTER TABLE runs ADD COLUMN usage_complete INTEGER CHECK (usage_complete IN (0, 1));
UPDATE runs SET usage_complete = 1 WHERE input_tokens IS NOT NULL;
-- These were never known.
UPDATE runs SET input_tokens = NULL, output_tokens = NULL, usage_complete = NULL
WHERE error_code = 'SERVER_CRASHED';

-- A deleted run's row stays for a while, empty, to tell it from one that never was.
ALTER TABLE runs ADD COLUMN deleted_at INTEGER;
ALTER TABLE runs ADD COLUMN purged INTEGER NOT NULL DEFAULT 0 CHECK (purged IN (0, 1));
DROP INDEX runs_by_start;
CREATE INDEX runs_by_start ON runs (started_at DESC, no DESC) WHERE deleted_at IS NULL;
CREATE INDEX runs_to_purge ON runs (no) WHERE deleted_at IS NOT NULL AND purged = 0;
CREATE INDEX runs_to_forget ON runs (deleted_at) WHERE purged = 1;

ALTER TABLE files RENAME TO whole_files;
CREATE TABLE files (
    no INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (no),
    path TEXT NOT NULL,
    mime_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    UNIQUE (run, path)
) STRICT;
CREATE TABLE file_parts (
    no INTEGER PRIMARY KEY,
    file INTEGER NOT NULL REFERENCES files (no),
    part INTEGER NOT NULL CHECK (part >= 0),
    bytes BLOB NOT NULL,
    UNIQUE (file, part)
) STRICT;
INSERT INTO files SELECT rowid, run, path, mime_type, size, sha256 FROM whole_files;
-- Their bytes are split by `split_files`.

CREATE INDEX sandboxes_left ON sandboxes (backend) WHERE destroyed = 0;
CREATE INDEX webhooks_by_age ON webhooks (received_at);
",
    "
-- Bodies may be large: they come last, so that nothing has to be read past them.
ALTER TABLE webhooks RENAME TO old_webhooks;
CREATE TABLE webhooks (
    no INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    event_type TEXT NOT NULL,
    sandbox_id TEXT,
    run INTEGER REFERENCES runs (no),
    signed INTEGER NOT NULL CHECK (signed IN (0, 1)),
    received_at INTEGER NOT NULL,
    kill_reason TEXT,
    body TEXT NOT NULL
) STRICT;
INSERT INTO webhooks
SELECT no, event_id, event_type, sandbox_id, run, signed, received_at,
    CASE WHEN json_valid(body) THEN substr(coalesce(
        json_extract(body, '$.event_data.kill_reason'), json_extract(body, '$.event_data.killReason'),
        json_extract(body, '$.eventData.kill_reason'), json_extract(body, '$.eventData.killReason')
    ), 1, 200) END,
    body
FROM old_webhooks;
DROP TABLE old_webhooks;
CREATE INDEX webhooks_by_run ON webhooks (run) WHERE run IS NOT NULL;
CREATE INDEX webhooks_by_age ON webhooks (received_at);
",
    "
-- What a run had used when a turn of it was answered.
CREATE TABLE turns (
    run INTEGER NOT NULL REFERENCES runs (no),
    turn INTEGER NOT NULL CHECK (turn >= 1),
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    cost_nanos INTEGER,
    PRIMARY KEY (run, turn)
) STRICT, WITHOUT ROWID;
",
    "
-- Nothing reads them.
ALTER TABLE webhooks DROP COLUMN body;
",
    "
-- What a dead run had called is counted here, without reading its log.
CREATE INDEX calls ON events (run) WHERE kind = 'tool_use';
",
];

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
         PRAGMA checkpoint_fullfsync = ON;
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
    give_pages_back(db, path)?;
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
    store_id(db, path).map_err(|error| unusable(path, &error))
}

/// Has free pages kept so that they can be given back to the file system a few at a time. To be chosen before
/// there is a table; later it takes a rewrite, which a database gets once.
fn give_pages_back(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let number = |pragma: &str| {
        db.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0))
            .map_err(|error| unusable(path, &error))
    };
    if number("auto_vacuum")? != 0 {
        return Ok(());
    }
    db.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")
        .map_err(|error| unusable(path, &error))?;
    let pages = number("page_count")?;
    if pages == 0 || number("user_version")? > 1 {
        return Ok(());
    }
    if pages > REWRITABLE_PAGES {
        tracing::info!(
            "the database is large: the room of deleted runs is used again, but not given back"
        );
    } else if let Err(error) = db.execute_batch("VACUUM") {
        tracing::warn!(%error, "the database could not be rewritten: the room of deleted runs is used again, but not given back");
    }
    Ok(())
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
    let meta: bool = tx
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'meta')",
            [],
            |row| row.get(0),
        )
        .map_err(unusable)?;
    if version < 0 || (version > 0 && !meta) {
        return Err(StoreError::Unusable(format!(
            "the database {} is not one of sandcaster's: choose another --data-dir",
            path.display(),
        )));
    }
    let done = usize::try_from(version).unwrap_or(0);
    if version > 0 && version < ours {
        tracing::info!(
            from = version,
            to = ours,
            "migrating the run store; a large one takes a while"
        );
    }
    for (sql, to) in MIGRATIONS.iter().zip(1..).skip(done) {
        tx.execute_batch(sql).map_err(unusable)?;
        if to == 2 {
            split_files(&tx).map_err(unusable)?;
        }
    }
    if version < ours {
        tx.pragma_update(None, "user_version", ours)
            .map_err(unusable)?;
    }
    tx.commit().map_err(unusable)
}

/// Moves the bytes of files into parts, reading each file once: in SQL alone each part would.
fn split_files(db: &Connection) -> Result<(), rusqlite::Error> {
    let mut files = db.prepare("SELECT rowid, bytes FROM whole_files")?;
    let mut insert =
        db.prepare("INSERT INTO file_parts (file, part, bytes) VALUES (?1, ?2, ?3)")?;
    let mut rows = files.query([])?;
    while let Some(row) = rows.next()? {
        let file: i64 = row.get(0)?;
        let bytes = row.get_ref(1)?.as_blob()?;
        for (part, bytes) in (0_i64..).zip(bytes.chunks(PART)) {
            insert.execute(params![file, part, bytes])?;
        }
    }
    drop(rows);
    drop(files);
    db.execute_batch("DROP TABLE whole_files")
}

/// Whether the database is older than this program, and has something in it.
pub(super) fn outdated(db: &Connection) -> Result<bool, rusqlite::Error> {
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(usize::try_from(version).is_ok_and(|version| (1..MIGRATIONS.len()).contains(&version)))
}

/// The store's id. It is bound to the file, by its number on the disk, its path and the machine: a copy, where two
/// of them differ, gets an id of its own, so that two servers never destroy each other's sandboxes.
fn store_id(db: &mut Connection, path: &Path) -> Result<String, rusqlite::Error> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let meta = |name: &str| {
        tx.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| {
            row.get::<_, String>(0)
        })
        .optional()
    };
    let put = |name: &str, value: &str| {
        tx.execute(
            "INSERT INTO meta (name, value) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            params![name, value],
        )
    };
    let here = std::fs::canonicalize(path).unwrap_or_else(|_unknown| path.to_owned());
    let here = here.to_string_lossy().into_owned();
    let inode = inode(path).unwrap_or_default();
    // `disk:inode`, or the inode alone.
    let file = meta("file")?;
    let bound_inode = file
        .as_deref()
        .map(|file| file.rsplit_once(':').map_or(file, |(_, inode)| inode));
    let bound_path = meta("path")?;
    let machine = machine();
    // Stores of older versions are not bound to one.
    let same_machine = meta("machine")?.is_none_or(|bound| bound == machine);
    let bound = bound_inode.is_some() || bound_path.is_some();
    let same_inode = !inode.is_empty() && bound_inode == Some(inode.as_str());
    let same_path = bound_path.as_deref() == Some(here.as_str());
    let same = [same_inode, same_path, same_machine];
    let same_place = same.iter().filter(|same| **same).count() >= 2;
    let id = match meta("id")? {
        Some(id) if same_place || !bound => id,
        moved => {
            if moved.is_some() {
                tracing::warn!(
                    "the database was copied or restored: it gets a new id, and the sandboxes of the old one are left alone"
                );
            }
            let id = nonce();
            put("id", &id)?;
            id
        }
    };
    put("file", &inode)?;
    put("path", &here)?;
    put("machine", &machine)?;
    tx.commit()?;
    Ok(id)
}

pub(super) fn unusable(path: &Path, error: &rusqlite::Error) -> StoreError {
    StoreError::Unusable(format!(
        "could not use the database {}: {error}",
        path.display()
    ))
}
