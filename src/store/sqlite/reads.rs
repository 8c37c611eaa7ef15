//! Reads, on connections of their own: a few, shared by all readers, never the writer's.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::Semaphore;

use super::super::types::{
    FileRecord, LeftSandbox, OpenRun, RunEnd, RunFacts, RunHead, RunLease, RunRecord, RunUsage,
    SandboxRecord, StoreError, TOLD_WEBHOOKS, TurnRecord, WebhookDelivery,
};
use super::fault::{Fault, failure, int};
use super::ops::{number, state};
use super::schema::{self, PART, Purpose};
use crate::error::ErrorCode;
use crate::events::{EventType, StoredEvent, Tokens};
use crate::ids::{RunId, Seq};
use crate::spec::StoreDurability;

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

    /// The database's.
    pub(super) fn path(&self) -> &Path {
        &self.path
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
    number(db, run).map_err(StoreError::from)
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

pub(super) fn head(db: &Connection, run: &RunId) -> Result<RunHead, StoreError> {
    let no = known(db, run)?;
    let found = all(
        db,
        "SELECT (SELECT max(seq) FROM events WHERE run = runs.no), state NOT IN ('queued', 'running')
         FROM runs WHERE no = ?1 AND deleted_at IS NULL",
        [no],
        |row| {
            Ok(RunHead {
                last_seq: Seq(maybe_count(row, 0)?.unwrap_or(0)),
                ended: row.get(1)?,
            })
        },
    )?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| StoreError::Expired(run.clone()))
}

macro_rules! records {
    ($prompt:literal, $rest:literal) => {
        concat!(
            "SELECT id, ",
            $prompt,
            ", model, provider, sandbox_provider, background, started_at, state, completed_at,
                error_code, error, cost_nanos, input_tokens, output_tokens, usage_complete, num_turns,
                duration_secs, (SELECT max(seq) FROM events WHERE run = runs.no),
                (SELECT count(*) FROM files WHERE run = runs.no)
             FROM runs WHERE deleted_at IS NULL ",
            $rest
        )
    };
}

pub(super) fn get(db: &Connection, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
    let sql = records!(
        "(SELECT text FROM prompts WHERE run = runs.no)",
        "AND id = ?1"
    );
    let found = all(db, sql, [run.as_str()], record)?;
    Ok(found.into_iter().next())
}

pub(super) fn beginning(db: &Connection, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
    let found = all(
        db,
        records!("beginning", "AND id = ?1"),
        [run.as_str()],
        record,
    )?;
    Ok(found.into_iter().next())
}

pub(super) fn list(db: &Connection, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
    let sql = records!("beginning", "ORDER BY started_at DESC, no DESC LIMIT ?1");
    all(db, sql, [limit], record)
}

fn record(row: &Row<'_>) -> Result<RunRecord, Fault> {
    Ok(RunRecord {
        facts: RunFacts {
            id: run_id(row, 0)?,
            prompt: row.get(1)?,
            model: row.get(2)?,
            provider: row.get(3)?,
            sandbox_provider: row.get(4)?,
            background: row.get(5)?,
            started_at: time(row.get(6)?)?,
        },
        last_seq: Seq(maybe_count(row, 17)?.unwrap_or(0)),
        files_count: count(row, 18)?,
        end: match row.get::<_, Option<i64>>(8)? {
            Some(completed_at) => Some(end(row, time(completed_at)?)?),
            None => None,
        },
    })
}

fn end(row: &Row<'_>, completed_at: Timestamp) -> Result<RunEnd, Fault> {
    let name: String = row.get(7)?;
    let error = match row.get::<_, Option<String>>(9)? {
        Some(code) => {
            let known = ErrorCode::parse(&code);
            let code =
                known.ok_or_else(|| unreadable(&format!("an error of unknown code {code:?}")))?;
            Some((code, row.get::<_, Option<String>>(10)?.unwrap_or_default()))
        }
        None => None,
    };
    let usage = match (maybe_count(row, 12)?, maybe_count(row, 13)?) {
        (Some(input_tokens), Some(output_tokens)) => Some(RunUsage {
            input_tokens,
            output_tokens,
            complete: row.get::<_, Option<bool>>(14)?.unwrap_or(true),
        }),
        _ => None,
    };
    Ok(RunEnd {
        state: state(&name)?,
        completed_at,
        error,
        cost_nanos: maybe_count(row, 11)?,
        usage,
        num_turns: row.get(15)?,
        duration_secs: row.get(16)?,
    })
}

/// Who holds runs without an end.
pub(super) fn owners_of_open_runs(db: &Connection) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT DISTINCT owner FROM runs WHERE state IN ('queued', 'running')";
    all(db, sql, [], |row| Ok(row.get(0)?))
}

/// The runs without an end that `owner` took over. Of their logs the last events alone are read, and the index of
/// their calls.
pub(super) fn taken_over(db: &Connection, owner: &Arc<str>) -> Result<Vec<OpenRun>, StoreError> {
    let mut calls = calls_of_taken_over(db, owner)?;
    all(
        db,
        "SELECT id, epoch, model, started_at, seq, at,
             turn, turns.input_tokens, turns.output_tokens, cache_read_tokens, cache_write_tokens, turns.cost_nanos,
             (SELECT max(CASE WHEN json_valid(late.json) THEN json_extract(late.json, '$.turn') END)
                 FROM events AS late WHERE late.run = runs.no AND late.seq > events.seq - 8)
         FROM runs JOIN events ON events.run = runs.no
         LEFT JOIN turns ON turns.run = runs.no AND turn = (SELECT max(turn) FROM turns WHERE run = runs.no)
         WHERE state IN ('queued', 'running') AND owner = ?1 AND epoch > 1
             AND seq = (SELECT max(seq) FROM events WHERE run = runs.no)
         ORDER BY runs.no",
        [&**owner],
        |row| {
            let started_at = time(row.get(3)?)?;
            let run = run_id(row, 0)?;
            Ok(OpenRun {
                model: row.get(2)?,
                last_seq: Seq(count(row, 4)?),
                started_at,
                // A clock may have been set back.
                last_event_at: time(row.get(5)?)?.max(started_at),
                last_turn: match row.get(6)? {
                    Some(turn) => Some(turn_record(row, turn)?),
                    None => None,
                },
                turns: row.get::<_, Option<u32>>(12)?.unwrap_or_default(),
                calls: calls.remove(&run).unwrap_or_default(),
                lease: RunLease {
                    run,
                    owner: Arc::clone(owner),
                    epoch: count(row, 1)?,
                },
            })
        },
    )
}

fn calls_of_taken_over(
    db: &Connection,
    owner: &Arc<str>,
) -> Result<HashMap<RunId, BTreeMap<String, u64>>, StoreError> {
    let counted = all(
        db,
        "SELECT id, CASE WHEN json_valid(json) THEN json_extract(json, '$.toolName') END AS tool, count(*)
         FROM runs CROSS JOIN events INDEXED BY calls ON run = runs.no AND kind = 'tool_use'
         WHERE state IN ('queued', 'running') AND owner = ?1 AND epoch > 1
         GROUP BY runs.no, tool",
        [&**owner],
        |row| {
            let tool: Option<String> = row.get(1)?;
            Ok((run_id(row, 0)?, tool, count(row, 2)?))
        },
    )?;
    let mut calls = HashMap::<_, BTreeMap<_, _>>::new();
    for (run, tool, count) in counted {
        if let Some(tool) = tool {
            calls.entry(run).or_default().insert(tool, count);
        }
    }
    Ok(calls)
}

fn turn_record(row: &Row<'_>, turn: u32) -> Result<TurnRecord, Fault> {
    Ok(TurnRecord {
        turn,
        tokens: Tokens {
            input_tokens: count(row, 7)?,
            output_tokens: count(row, 8)?,
            cache_read_tokens: count(row, 9)?,
            cache_write_tokens: count(row, 10)?,
        },
        cost_nanos: maybe_count(row, 11)?,
    })
}

pub(super) fn file(
    db: &Connection,
    run: &RunId,
    path: &str,
) -> Result<Option<FileRecord>, StoreError> {
    let no = known(db, run)?;
    let found = all(
        db,
        "SELECT path, mime_type, size, sha256 FROM files WHERE run = ?1 AND path = ?2",
        params![no, path],
        file_record,
    )?;
    Ok(found.into_iter().next())
}

/// The rest of the part of a file that `offset` lies in.
pub(super) fn file_bytes(
    db: &Connection,
    run: &RunId,
    file: &FileRecord,
    offset: u64,
) -> Result<Bytes, StoreError> {
    if offset >= file.size {
        return Ok(Bytes::new());
    }
    let no = known(db, run)?;
    let part = PART as u64;
    let found = all(
        db,
        "SELECT bytes FROM files JOIN file_parts ON file_parts.file = files.no
         WHERE run = ?1 AND path = ?2 AND sha256 = ?3 AND part = ?4",
        params![no, file.path, file.sha256, int(offset / part)],
        |row| Ok(Bytes::from(row.get::<_, Vec<u8>>(0)?)),
    )?;
    let skipped = usize::try_from(offset % part).unwrap_or(PART);
    match found.into_iter().next() {
        Some(bytes) if skipped < bytes.len() => Ok(bytes.slice(skipped..)),
        _ => Err(StoreError::Failed(
            "the file has changed, or is cut short".to_owned(),
        )),
    }
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
         WHERE sandbox_id = ?1 AND deleted_at IS NULL ORDER BY runs.no DESC LIMIT 1",
        [sandbox],
        |row| run_id(row, 0),
    )?;
    Ok(found.into_iter().next())
}

pub(super) fn left_sandboxes(
    db: &Connection,
    backend: &str,
) -> Result<Vec<LeftSandbox>, StoreError> {
    all(
        db,
        "SELECT id, attempt, sandbox_id, expires, completed_at FROM sandboxes JOIN runs ON runs.no = sandboxes.run
         WHERE destroyed = 0 AND backend = ?1 AND completed_at IS NOT NULL AND deleted_at IS NULL",
        [backend],
        |row| {
            Ok(LeftSandbox {
                run: run_id(row, 0)?,
                attempt: row.get(1)?,
                sandbox_id: row.get(2)?,
                expires: row.get(3)?,
                ended_at: time(row.get(4)?)?,
            })
        },
    )
}

pub(super) fn webhooks(db: &Connection, run: &RunId) -> Result<Vec<WebhookDelivery>, StoreError> {
    let no = known(db, run)?;
    all(
        db,
        "SELECT event_id, event_type, sandbox_id, signed, received_at, kill_reason FROM
             (SELECT no, event_id, event_type, sandbox_id, signed, received_at, kill_reason FROM webhooks
                 WHERE run = ?1 ORDER BY no DESC LIMIT ?2) ORDER BY no",
        params![no, int(TOLD_WEBHOOKS as u64)],
        |row| {
            Ok(WebhookDelivery {
                event_id: row.get(0)?,
                event_type: row.get(1)?,
                sandbox_id: row.get(2)?,
                run: Some(run.clone()),
                signed: row.get(3)?,
                received_at: time(row.get(4)?)?,
                kill_reason: row.get(5)?,
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
