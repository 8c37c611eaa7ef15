//! Each write as SQL. A write that fails leaves nothing behind in the transaction it shares with others.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode as Sqlite, OptionalExtension, params};

use super::super::types::{
    Append, Finish, NewRun, RunState, SandboxRecord, StoreError, StoredFile, WebhookDelivery,
};
use super::queue::{Outcome, Work};
use crate::events::StoredEvent;
use crate::ids::RunId;

/// Runs whose row number is remembered between writes.
const KNOWN_RUNS: usize = 4096;

/// The row numbers of runs that were written lately. A row number never changes once committed.
#[derive(Default)]
pub(super) struct Numbers(HashMap<RunId, i64>);

impl Numbers {
    /// To be called when a transaction or a part of one was rolled back.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    fn note(&mut self, run: &RunId, no: i64) {
        if self.0.len() >= KNOWN_RUNS {
            self.0.clear();
        }
        self.0.insert(run.clone(), no);
    }

    fn of(&mut self, db: &Connection, run: &RunId) -> Result<i64, Fault> {
        if let Some(no) = self.0.get(run) {
            return Ok(*no);
        }
        let no = number(db, run)?.ok_or_else(|| StoreError::NotFound(run.clone()))?;
        self.note(run, no);
        Ok(no)
    }
}

/// Why a write failed.
pub(super) enum Fault {
    /// It asked for what can't be: the database and the other writes are well.
    Ours(StoreError),
    /// `SQLite` failed.
    Theirs(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Theirs(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Ours(error)
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Ours(error) => error,
            Fault::Theirs(error) => failure(&error),
        }
    }
}

/// What an error of `SQLite` means to a caller. Its message names tables and columns, never values.
pub(super) fn failure(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(Sqlite::ConstraintViolation) => StoreError::Refused(error.to_string()),
        Some(Sqlite::DiskFull) => StoreError::Failed("the disk is full".to_owned()),
        Some(Sqlite::DatabaseBusy) => {
            StoreError::Failed("another process kept the database busy".to_owned())
        }
        _ => StoreError::Failed(error.to_string()),
    }
}

/// Does one write inside the transaction that is open on `db`.
pub(super) fn apply(
    db: &Connection,
    numbers: &mut Numbers,
    work: &Work,
    now: Timestamp,
) -> Result<bool, Fault> {
    match work {
        Work::Flush => Ok(true),
        Work::Append(append) if append.events.iter().any(|event| event.kind.terminal()) => {
            Err(StoreError::Refused("a run is ended by finishing it".to_owned()).into())
        }
        Work::Append(append) => match append.events.as_slice() {
            // One statement is undone as a whole by itself.
            [event] => {
                let no = numbers.of(db, &append.run)?;
                insert_event(db, no, event, now)?;
                Ok(true)
            }
            _ => whole(db, |db| append_events(db, numbers, append, now)),
        },
        Work::Create(run) => whole(db, |db| create(db, numbers, run, now)),
        Work::Finish(finish) => whole(db, |db| finish_run(db, numbers, finish, now)),
        Work::PutFile(run, file) => put_file(db, numbers, run, file),
        Work::PutSandbox(sandbox) => put_sandbox(db, numbers, sandbox),
        Work::PutWebhook(delivery) => put_webhook(db, delivery),
    }
}

/// Runs `work` so that it happens wholly or not at all.
fn whole(
    db: &Connection,
    work: impl FnOnce(&Connection) -> Result<bool, Fault>,
) -> Result<bool, Fault> {
    db.prepare_cached("SAVEPOINT work")?.execute([])?;
    let outcome = work(db);
    if outcome.is_err() {
        if db.is_autocommit() {
            return outcome;
        }
        let undone = db
            .prepare_cached("ROLLBACK TO work")
            .and_then(|mut undo| undo.execute([]));
        if let Err(error) = undone {
            // Half a write must not be committed with the others: give up the whole transaction.
            roll_back(db);
            return Err(error.into());
        }
    }
    db.prepare_cached("RELEASE work")?.execute([])?;
    outcome
}

fn create(
    db: &Connection,
    numbers: &mut Numbers,
    run: &NewRun,
    now: Timestamp,
) -> Result<bool, Fault> {
    db.prepare_cached(
        "INSERT INTO runs (id, owner, model, provider, sandbox_provider, background, state, started_at, prompt)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'running', ?7, ?8)",
    )?
    .execute(params![
        run.id.as_str(),
        run.owner,
        run.model,
        run.provider,
        run.sandbox_provider,
        run.background,
        run.started_at.as_microsecond(),
        run.prompt,
    ])?;
    let no = db.last_insert_rowid();
    if run.first_event.seq.0 != 1 || run.first_event.kind.terminal() {
        return Err(StoreError::Refused("a log starts with event 1".to_owned()).into());
    }
    insert_event(db, no, &run.first_event, now)?;
    numbers.note(&run.id, no);
    Ok(true)
}

fn append_events(
    db: &Connection,
    numbers: &mut Numbers,
    append: &Append,
    now: Timestamp,
) -> Result<bool, Fault> {
    let no = numbers.of(db, &append.run)?;
    for event in &append.events {
        insert_event(db, no, event, now)?;
    }
    Ok(true)
}

fn insert_event(
    db: &Connection,
    no: i64,
    event: &StoredEvent,
    now: Timestamp,
) -> Result<(), Fault> {
    db.prepare_cached("INSERT INTO events (run, seq, kind, at, json) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            no,
            int(event.seq.0),
            event.kind.as_str(),
            now.as_microsecond(),
            event.json,
        ])?;
    Ok(())
}

fn finish_run(
    db: &Connection,
    numbers: &mut Numbers,
    finish: &Finish,
    now: Timestamp,
) -> Result<bool, Fault> {
    if !finish.event.kind.terminal() || !finish.state.terminal() {
        return Err(
            StoreError::Refused("a run ends with a terminal event and state".to_owned()).into(),
        );
    }
    let no = numbers.of(db, &finish.run)?;
    let ended = db
        .prepare_cached(
            "UPDATE runs SET state = ?2, completed_at = ?3, error_code = ?4, error = ?5, cost_nanos = ?6,
                 input_tokens = ?7, output_tokens = ?8, num_turns = ?9, duration_secs = ?10
             WHERE no = ?1 AND state IN ('queued', 'running')",
        )?
        .execute(params![
            no,
            finish.state.as_str(),
            finish.completed_at.as_microsecond(),
            finish.error_code.map(crate::error::ErrorCode::as_str),
            finish.error,
            finish.cost_nanos.map(int),
            int(finish.input_tokens),
            int(finish.output_tokens),
            finish.num_turns,
            finish.duration_secs,
        ])?;
    if ended == 0 {
        // The same end once more is the retry of a write whose answer was lost.
        return if same_event(db, no, &finish.event)? {
            Ok(true)
        } else {
            Err(StoreError::Refused("the run has ended".to_owned()).into())
        };
    }
    insert_event(db, no, &finish.event, now)?;
    numbers.0.remove(&finish.run);
    Ok(true)
}

fn same_event(db: &Connection, no: i64, event: &StoredEvent) -> Result<bool, Fault> {
    let json = db
        .prepare_cached("SELECT json FROM events WHERE run = ?1 AND seq = ?2")?
        .query_row(params![no, int(event.seq.0)], |row| row.get::<_, String>(0))
        .optional()?;
    Ok(json.as_deref() == Some(event.json.as_str()))
}

fn put_file(
    db: &Connection,
    numbers: &mut Numbers,
    run: &RunId,
    file: &StoredFile,
) -> Result<bool, Fault> {
    let no = numbers.of(db, run)?;
    db.prepare_cached(
        "INSERT INTO files (run, path, mime_type, size, sha256, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (run, path) DO UPDATE SET
             mime_type = excluded.mime_type, size = excluded.size, sha256 = excluded.sha256, bytes = excluded.bytes",
    )?
    .execute(params![
        no,
        file.record.path,
        file.record.mime_type,
        int(file.record.size),
        file.record.sha256,
        &file.bytes[..],
    ])?;
    Ok(true)
}

fn put_sandbox(
    db: &Connection,
    numbers: &mut Numbers,
    sandbox: &SandboxRecord,
) -> Result<bool, Fault> {
    let no = numbers.of(db, &sandbox.run)?;
    db.prepare_cached(
        "INSERT INTO sandboxes (run, attempt, backend, sandbox_id, expires, destroyed) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (run, attempt) DO UPDATE SET
             backend = excluded.backend, sandbox_id = excluded.sandbox_id,
             expires = excluded.expires, destroyed = excluded.destroyed",
    )?
    .execute(params![
        no,
        sandbox.attempt,
        sandbox.backend,
        sandbox.sandbox_id,
        sandbox.expires,
        sandbox.destroyed,
    ])?;
    Ok(true)
}

fn put_webhook(db: &Connection, delivery: &WebhookDelivery) -> Result<bool, Fault> {
    let no = match &delivery.run {
        Some(run) => number(db, run)?,
        None => None,
    };
    let fresh = db
        .prepare_cached(
            "INSERT INTO webhooks (event_id, event_type, sandbox_id, run, signed, received_at, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (event_id) DO NOTHING",
        )?
        .execute(params![
            delivery.event_id,
            delivery.event_type,
            delivery.sandbox_id,
            no,
            delivery.signed,
            delivery.received_at.as_microsecond(),
            delivery.body.to_string(),
        ])?;
    Ok(fresh == 1)
}

/// The row number of a run.
pub(super) fn number(db: &Connection, run: &RunId) -> Result<Option<i64>, rusqlite::Error> {
    db.prepare_cached("SELECT no FROM runs WHERE id = ?1")?
        .query_row([run.as_str()], |row| row.get(0))
        .optional()
}

/// A count as `SQLite` keeps it. Counts stay far below 2⁶³.
pub(super) fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Writes one row that means nothing, to find out whether writing works again.
pub(super) fn probe(db: &Connection, now: Timestamp) -> Result<(), rusqlite::Error> {
    db.execute(
        "INSERT INTO meta (name, value) VALUES ('probe', ?1)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        params![now.to_string()],
    )?;
    Ok(())
}

/// Ends whatever transaction is still open on `db`.
pub(super) fn roll_back(db: &Connection) {
    if !db.is_autocommit()
        && let Err(error) = db.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "a transaction of the run store could not be rolled back");
    }
}

/// The state named in a row.
pub(super) fn state(name: &str) -> Result<RunState, StoreError> {
    RunState::parse(name)
        .ok_or_else(|| StoreError::Failed(format!("a run is in an unknown state, {name:?}")))
}

/// An outcome of every job of a batch whose transaction never came to be.
pub(super) fn failed_outcome(error: &rusqlite::Error) -> Outcome {
    Err(failure(error))
}
