//! Reads, on connections of their own: a few, shared by all readers, never the writer's.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::Semaphore;

use super::super::types::{
    FileRecord, RunRecord, SandboxRecord, StoreError, StoredFile, WebhookDelivery,
};
use super::ops::{Fault, failure, int, number, state};
use super::options::StoreDurability;
use super::schema::{self, Purpose};
use crate::events::{EventType, StoredEvent};
use crate::ids::{RunId, Seq};

/// Reads side by side; more wait.
const CONNECTIONS: u32 = 4;

/// A page of events stops here, so that a reader's memory is bounded by bytes as well.
const PAGE_BYTES: usize = 64 * 1024;

/// The reading half of the store.
pub(super) struct Readers {
    path: PathBuf,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            places: Arc::new(Semaphore::new(CONNECTIONS as usize)),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Runs `read` on a connection, off the runtime's threads.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(|_closed| StoreError::Closed)?;
        let readers = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let idle = readers.idle.lock().pop();
            let db = match idle {
                Some(db) => db,
                None => schema::connect(&readers.path, Purpose::Read, StoreDurability::Normal)
                    .map_err(|error| failure(&error))?,
            };
            let result = read(&db);
            readers.idle.lock().push(db);
            drop(place);
            result
        })
        .await
        .unwrap_or_else(|error| {
            if error.is_panic() {
                Err(StoreError::Failed("a read panicked".to_owned()))
            } else {
                Err(StoreError::Closed)
            }
        })
    }

    /// Waits for the reads under way and closes the connections.
    pub(super) async fn close(&self) {
        if let Ok(all) = self.places.acquire_many(CONNECTIONS).await {
            self.places.close();
            self.idle.lock().clear();
            drop(all);
        }
    }
}

fn known(db: &Connection, run: &RunId) -> Result<i64, StoreError> {
    number(db, run)
        .map_err(|error| failure(&error))?
        .ok_or_else(|| StoreError::NotFound(run.clone()))
}

fn all<T>(
    db: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    mut of: impl FnMut(&Row<'_>) -> Result<T, Fault>,
) -> Result<Vec<T>, StoreError> {
    let read = || -> Result<Vec<T>, Fault> {
        let mut statement = db.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(of(row)?);
        }
        Ok(found)
    };
    read().map_err(StoreError::from)
}

pub(super) fn events(
    db: &Connection,
    run: &RunId,
    after: Seq,
    limit: u32,
) -> Result<Vec<StoredEvent>, StoreError> {
    let no = known(db, run)?;
    let read = || -> Result<Vec<StoredEvent>, Fault> {
        let mut statement = db.prepare_cached(
            "SELECT seq, kind, json FROM events WHERE run = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
        )?;
        let mut rows = statement.query(params![no, int(after.0), limit])?;
        let mut page = Vec::new();
        let mut bytes = 0;
        while bytes < PAGE_BYTES
            && let Some(row) = rows.next()?
        {
            let event = event(row)?;
            bytes += event.json.len();
            page.push(event);
        }
        Ok(page)
    };
    read().map_err(StoreError::from)
}

fn event(row: &Row<'_>) -> Result<StoredEvent, Fault> {
    let kind: String = row.get(1)?;
    Ok(StoredEvent {
        seq: Seq(count(row, 0)?),
        kind: EventType::parse(&kind)
            .ok_or_else(|| unreadable(&format!("an event of unknown type {kind:?}")))?,
        json: row.get(2)?,
    })
}

macro_rules! records {
    ($duration:literal, $rest:literal) => {
        concat!(
            "SELECT id, owner, prompt, model, provider, sandbox_provider, background, state, started_at,
                completed_at, error_code, error, cost_nanos, input_tokens, output_tokens, num_turns, ",
            $duration,
            ", (SELECT max(seq) FROM events WHERE run = runs.no), (SELECT count(*) FROM files WHERE run = runs.no)
             FROM runs ",
            $rest
        )
    };
}

pub(super) fn get(db: &Connection, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
    let found = all(
        db,
        records!("duration_secs", "WHERE id = ?1"),
        [run.as_str()],
        record,
    )?;
    Ok(found.into_iter().next())
}

pub(super) fn list(db: &Connection, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
    let sql = records!(
        "duration_secs",
        "ORDER BY started_at DESC, no DESC LIMIT ?1"
    );
    all(db, sql, [limit], record)
}

pub(super) fn unfinished(db: &Connection) -> Result<Vec<RunRecord>, StoreError> {
    let sql = records!(
        "max(0.0, ((SELECT at FROM events WHERE run = runs.no ORDER BY seq DESC LIMIT 1) - started_at) / 1e6)",
        "WHERE state IN ('queued', 'running') ORDER BY no"
    );
    all(db, sql, [], record)
}

fn record(row: &Row<'_>) -> Result<RunRecord, Fault> {
    let name: String = row.get(7)?;
    Ok(RunRecord {
        id: run_id(row, 0)?,
        owner: row.get(1)?,
        prompt: row.get(2)?,
        model: row.get(3)?,
        provider: row.get(4)?,
        sandbox_provider: row.get(5)?,
        background: row.get(6)?,
        state: state(&name)?,
        started_at: time(row.get(8)?)?,
        completed_at: row.get::<_, Option<i64>>(9)?.map(time).transpose()?,
        error_code: row.get(10)?,
        error: row.get(11)?,
        cost_nanos: maybe_count(row, 12)?,
        input_tokens: maybe_count(row, 13)?,
        output_tokens: maybe_count(row, 14)?,
        num_turns: row.get(15)?,
        duration_secs: row.get(16)?,
        last_seq: Seq(maybe_count(row, 17)?.unwrap_or(0)),
        files_count: count(row, 18)?,
    })
}

pub(super) fn file(
    db: &Connection,
    run: &RunId,
    path: &str,
) -> Result<Option<StoredFile>, StoreError> {
    let no = known(db, run)?;
    let found = all(
        db,
        "SELECT path, mime_type, size, sha256, bytes FROM files WHERE run = ?1 AND path = ?2",
        params![no, path],
        |row| {
            Ok(StoredFile {
                record: file_record(row)?,
                bytes: Bytes::from(row.get::<_, Vec<u8>>(4)?),
            })
        },
    )?;
    Ok(found.into_iter().next())
}

pub(super) fn files(db: &Connection, run: &RunId) -> Result<Vec<FileRecord>, StoreError> {
    let no = known(db, run)?;
    all(
        db,
        "SELECT path, mime_type, size, sha256 FROM files WHERE run = ?1 ORDER BY path",
        [no],
        file_record,
    )
}

fn file_record(row: &Row<'_>) -> Result<FileRecord, Fault> {
    Ok(FileRecord {
        path: row.get(0)?,
        mime_type: row.get(1)?,
        size: count(row, 2)?,
        sha256: row.get(3)?,
    })
}

pub(super) fn sandboxes(db: &Connection, run: &RunId) -> Result<Vec<SandboxRecord>, StoreError> {
    let no = known(db, run)?;
    all(
        db,
        "SELECT attempt, backend, sandbox_id, expires, destroyed FROM sandboxes WHERE run = ?1 ORDER BY attempt",
        [no],
        |row| {
            Ok(SandboxRecord {
                run: run.clone(),
                attempt: row.get(0)?,
                backend: row.get(1)?,
                sandbox_id: row.get(2)?,
                expires: row.get(3)?,
                destroyed: row.get(4)?,
            })
        },
    )
}

pub(super) fn sandbox_owner(db: &Connection, sandbox: &str) -> Result<Option<RunId>, StoreError> {
    let found = all(
        db,
        "SELECT id FROM sandboxes JOIN runs ON runs.no = sandboxes.run
         WHERE sandbox_id = ?1 ORDER BY runs.no DESC LIMIT 1",
        [sandbox],
        |row| run_id(row, 0),
    )?;
    Ok(found.into_iter().next())
}

pub(super) fn webhooks(db: &Connection, run: &RunId) -> Result<Vec<WebhookDelivery>, StoreError> {
    let no = known(db, run)?;
    all(
        db,
        "SELECT event_id, event_type, sandbox_id, signed, received_at, body FROM webhooks WHERE run = ?1 ORDER BY no",
        [no],
        |row| {
            let body: String = row.get(5)?;
            Ok(WebhookDelivery {
                event_id: row.get(0)?,
                event_type: row.get(1)?,
                sandbox_id: row.get(2)?,
                run: Some(run.clone()),
                signed: row.get(3)?,
                received_at: time(row.get(4)?)?,
                body: serde_json::from_str(&body)
                    .map_err(|_error| unreadable("a webhook's body"))?,
            })
        },
    )
}

/// The first damage found, if any.
pub(super) fn quick_check(db: &Connection) -> Result<Option<String>, StoreError> {
    let first: Option<String> = db
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .optional()
        .map_err(|error| failure(&error))?;
    Ok(first.filter(|text| text != "ok"))
}

fn run_id(row: &Row<'_>, column: usize) -> Result<RunId, Fault> {
    let text: String = row.get(column)?;
    RunId::parse(&text).ok_or_else(|| unreadable("a run's id"))
}

fn count(row: &Row<'_>, column: usize) -> Result<u64, Fault> {
    let count: i64 = row.get(column)?;
    u64::try_from(count).map_err(|_negative| unreadable("a count"))
}

fn maybe_count(row: &Row<'_>, column: usize) -> Result<Option<u64>, Fault> {
    let count: Option<i64> = row.get(column)?;
    count
        .map(|count| u64::try_from(count).map_err(|_negative| unreadable("a count")))
        .transpose()
}

fn time(micros: i64) -> Result<Timestamp, Fault> {
    Timestamp::from_microsecond(micros).map_err(|_error| unreadable("a time"))
}

fn unreadable(what: &str) -> Fault {
    Fault::Ours(StoreError::Failed(format!(
        "the database holds {what} that can't be read"
    )))
}
