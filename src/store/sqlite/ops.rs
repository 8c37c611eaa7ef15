//! Each write as SQL. A write that fails leaves nothing behind in the transaction it shares with others.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::super::types::{
    LISTED_PROMPT, RunEnd, RunFacts, RunLease, RunState, SandboxRecord, StoreError, StoredFile,
    TurnRecord, WebhookDelivery,
};
use super::fault::{Fault, failure, int};
use super::queue::{Outcome, Work};
use super::retention;
use super::schema::PART;
use crate::error::ErrorCode;
use crate::events::{StoredEvent, Tokens};
use crate::ids::RunId;

/// Runs whose row number is remembered between writes.
const KNOWN_RUNS: usize = 4096;

/// The runs that were written lately, and who holds them: true for as long as no other connection writes.
#[derive(Default)]
pub(super) struct Known {
    runs: HashMap<RunId, Row>,
    version: i64,
}

struct Row {
    no: i64,
    owner: Arc<str>,
    epoch: u64,
}

impl Known {
    /// To be called when a transaction or a part of one was rolled back.
    pub(super) fn forget(&mut self) {
        self.runs.clear();
    }

    /// To be called at a transaction's begin: whether another process has written since the last one.
    pub(super) fn check(&mut self, db: &Connection) -> Result<(), rusqlite::Error> {
        let version = db
            .prepare_cached("PRAGMA data_version")?
            .query_row([], |row| row.get(0))?;
        if self.version != version {
            self.version = version;
            self.forget();
        }
        Ok(())
    }

    fn note(&mut self, lease: &RunLease, no: i64) {
        if self.runs.len() >= KNOWN_RUNS {
            self.forget();
        }
        let row = Row {
            no,
            owner: Arc::clone(&lease.owner),
            epoch: lease.epoch,
        };
        self.runs.insert(lease.run.clone(), row);
    }

    /// The row number of the run that `lease` is for; refused if it is another's.
    fn of(&mut self, db: &Connection, lease: &RunLease) -> Result<i64, Fault> {
        if let Some(row) = self.runs.get(&lease.run)
            && row.owner == lease.owner
            && row.epoch == lease.epoch
        {
            return Ok(row.no);
        }
        let found = db
            .prepare_cached(
                "SELECT no, owner, epoch FROM runs WHERE id = ?1 AND deleted_at IS NULL",
            )?
            .query_row([lease.run.as_str()], |row| {
                Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
            })
            .optional()?;
        let (no, owner, epoch) = found.ok_or_else(|| StoreError::NotFound(lease.run.clone()))?;
        if *owner != *lease.owner || epoch != int(lease.epoch) {
            return Err(StoreError::Refused("another process holds the run".to_owned()).into());
        }
        self.note(lease, no);
        Ok(no)
    }
}

/// Does one write inside the transaction that is open on `db`.
pub(super) fn apply(
    db: &Connection,
    known: &mut Known,
    work: &Work,
    now: Timestamp,
) -> Result<bool, Fault> {
    match work {
        Work::Flush => Ok(true),
        Work::Append(append) if append.events.iter().any(|event| event.kind.terminal()) => {
            Err(StoreError::Refused("a run is ended by finishing it".to_owned()).into())
        }
        Work::Append(append) => {
            let no = known.of(db, &append.lease)?;
            match append.events.as_slice() {
                // One statement is undone as a whole by itself.
                [event] => insert_event(db, no, event, now),
                events => whole(db, |db| {
                    for event in events {
                        insert_event(db, no, event, now)?;
                    }
                    Ok(true)
                }),
            }
        }
        Work::Create(lease, run) => {
            let no = whole(db, |db| create(db, lease, &run.0, &run.1, now))?;
            known.note(lease, no);
            Ok(true)
        }
        Work::Finish(lease, event, end) => {
            let no = known.of(db, lease)?;
            whole(db, |db| finish_run(db, no, event, end, now))?;
            known.runs.remove(&lease.run);
            Ok(true)
        }
        Work::PutTurn(lease, turn) => put_turn(db, known.of(db, lease)?, turn),
        Work::PutFile(lease, file) => {
            let no = known.of(db, lease)?;
            whole(db, |db| put_file(db, no, file))
        }
        Work::PutSandbox(lease, sandbox) => put_sandbox(db, known.of(db, lease)?, sandbox),
        Work::SandboxGone(run, attempt) => sandbox_gone(db, run, *attempt),
        Work::PutWebhook(delivery) => put_webhook(db, delivery),
        Work::TakeOver { from, by } => {
            known.forget();
            take_over(db, from, by)
        }
        // What is remembered of a run that is deleted would let writes to it through.
        Work::Delete(run) => {
            known.forget();
            retention::delete(db, run, now)
        }
        Work::Expire(runs) => {
            known.forget();
            retention::expire(db, runs, now)
        }
        Work::Believe(believed) => retention::believe(db, *believed),
        Work::Purge(rules) => whole(db, |db| retention::purge(db, rules)),
    }
}

/// Runs `work` so that it happens wholly or not at all.
fn whole<T>(
    db: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, Fault> {
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
    lease: &RunLease,
    run: &RunFacts,
    first: &StoredEvent,
    now: Timestamp,
) -> Result<i64, Fault> {
    if first.seq.0 != 1 || first.kind.terminal() {
        return Err(StoreError::Refused("a log starts with event 1".to_owned()).into());
    }
    let beginning = match run.prompt.char_indices().nth(LISTED_PROMPT) {
        Some((end, _)) => run.prompt.get(..end).unwrap_or_default(),
        None => &run.prompt,
    };
    db.prepare_cached(
        "INSERT INTO runs (id, owner, epoch, model, provider, sandbox_provider, background, state, started_at, beginning)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'running', ?8, ?9)",
    )?
    .execute(params![
        run.id.as_str(),
        &*lease.owner,
        int(lease.epoch),
        run.model,
        run.provider,
        run.sandbox_provider,
        run.background,
        run.started_at.as_microsecond(),
        beginning,
    ])?;
    let no = db.last_insert_rowid();
    db.prepare_cached("INSERT INTO prompts (run, text) VALUES (?1, ?2)")?
        .execute(params![no, run.prompt])?;
    insert_event(db, no, first, now)?;
    Ok(no)
}

fn insert_event(
    db: &Connection,
    no: i64,
    event: &StoredEvent,
    now: Timestamp,
) -> Result<bool, Fault> {
    db.prepare_cached("INSERT INTO events (run, seq, kind, at, json) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            no,
            int(event.seq.0),
            event.kind.as_str(),
            now.as_microsecond(),
            event.json,
        ])?;
    Ok(true)
}

fn finish_run(
    db: &Connection,
    no: i64,
    event: &StoredEvent,
    end: &RunEnd,
    now: Timestamp,
) -> Result<(), Fault> {
    if !event.kind.terminal() || !end.state.terminal() {
        return Err(
            StoreError::Refused("a run ends with a terminal event and state".to_owned()).into(),
        );
    }
    let (code, message) = end.error.as_ref().map_or((None, None), |(code, message)| {
        (Some(ErrorCode::as_str(*code)), Some(message))
    });
    // The clock may have been set back since the start.
    let ended = db
        .prepare_cached(
            "UPDATE runs SET state = ?2, completed_at = max(?3, started_at), error_code = ?4, error = ?5, cost_nanos = ?6,
                 input_tokens = ?7, output_tokens = ?8, usage_complete = ?9, num_turns = ?10, duration_secs = ?11
             WHERE no = ?1 AND state IN ('queued', 'running')",
        )?
        .execute(params![
            no,
            end.state.as_str(),
            end.completed_at.as_microsecond(),
            code,
            message,
            end.cost_nanos.map(int),
            end.usage.map(|usage| int(usage.input_tokens)),
            end.usage.map(|usage| int(usage.output_tokens)),
            end.usage.map(|usage| usage.complete),
            end.num_turns,
            end.duration_secs,
        ])?;
    if ended == 0 {
        // The same end once more is the retry of a write whose answer was lost.
        return if same_event(db, no, event)? {
            Ok(())
        } else {
            Err(StoreError::Refused("the run has ended".to_owned()).into())
        };
    }
    insert_event(db, no, event, now)?;
    Ok(())
}

fn take_over(db: &Connection, from: &str, by: &str) -> Result<bool, Fault> {
    let taken = db
        .prepare_cached(
            "UPDATE runs SET owner = ?2, epoch = epoch + 1 WHERE state IN ('queued', 'running') AND owner = ?1",
        )?
        .execute(params![from, by])?;
    Ok(taken > 0)
}

fn same_event(db: &Connection, no: i64, event: &StoredEvent) -> Result<bool, Fault> {
    let json = db
        .prepare_cached("SELECT json FROM events WHERE run = ?1 AND seq = ?2")?
        .query_row(params![no, int(event.seq.0)], |row| row.get::<_, String>(0))
        .optional()?;
    Ok(json.as_deref() == Some(event.json.as_str()))
}

fn put_turn(db: &Connection, no: i64, turn: &TurnRecord) -> Result<bool, Fault> {
    let Tokens {
        input_tokens,
        output_tokens,
        cache_read_tokens,
        cache_write_tokens,
    } = turn.tokens;
    db.prepare_cached(
        "INSERT INTO turns (run, turn, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_nanos)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (run, turn) DO UPDATE SET
             input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
             cache_read_tokens = excluded.cache_read_tokens, cache_write_tokens = excluded.cache_write_tokens,
             cost_nanos = excluded.cost_nanos",
    )?
    .execute(params![
        no,
        turn.turn,
        int(input_tokens),
        int(output_tokens),
        int(cache_read_tokens),
        int(cache_write_tokens),
        turn.cost_nanos.map(int),
    ])?;
    Ok(true)
}

fn put_file(db: &Connection, no: i64, file: &StoredFile) -> Result<bool, Fault> {
    let id: i64 = db
        .prepare_cached(
            "INSERT INTO files (run, path, mime_type, size, sha256) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (run, path) DO UPDATE SET
                 mime_type = excluded.mime_type, size = excluded.size, sha256 = excluded.sha256
             RETURNING no",
        )?
        .query_row(
            params![
                no,
                file.record.path,
                file.record.mime_type,
                int(file.record.size),
                file.record.sha256,
            ],
            |row| row.get(0),
        )?;
    db.prepare_cached("DELETE FROM file_parts WHERE file = ?1")?
        .execute([id])?;
    let mut insert =
        db.prepare_cached("INSERT INTO file_parts (file, part, bytes) VALUES (?1, ?2, ?3)")?;
    for (part, bytes) in (0_i64..).zip(file.bytes.chunks(PART)) {
        insert.execute(params![id, part, bytes])?;
    }
    Ok(true)
}

fn put_sandbox(db: &Connection, no: i64, sandbox: &SandboxRecord) -> Result<bool, Fault> {
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

fn sandbox_gone(db: &Connection, run: &RunId, attempt: u32) -> Result<bool, Fault> {
    let told = db
        .prepare_cached(
            "UPDATE sandboxes SET destroyed = 1
             WHERE run = (SELECT no FROM runs WHERE id = ?1) AND attempt = ?2",
        )?
        .execute(params![run.as_str(), attempt])?;
    Ok(told > 0)
}

fn put_webhook(db: &Connection, delivery: &WebhookDelivery) -> Result<bool, Fault> {
    let no = match &delivery.run {
        Some(run) => match number(db, run) {
            Ok(no) => Some(no),
            Err(Fault::Ours(_)) => None,
            Err(error) => return Err(error),
        },
        None => None,
    };
    let fresh = db
        .prepare_cached(
            "INSERT INTO webhooks (event_id, event_type, sandbox_id, run, signed, received_at, kill_reason)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (event_id) DO NOTHING",
        )?
        .execute(params![
            delivery.event_id,
            delivery.event_type,
            delivery.sandbox_id,
            no,
            delivery.signed,
            delivery.received_at.as_microsecond(),
            delivery.kill_reason,
        ])?;
    Ok(fresh == 1)
}

/// The row number of a run.
pub(super) fn number(db: &Connection, run: &RunId) -> Result<i64, Fault> {
    let found = db
        .prepare_cached("SELECT no, deleted_at IS NOT NULL FROM runs WHERE id = ?1")?
        .query_row([run.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match found {
        Some((no, false)) => Ok(no),
        Some((_, true)) => Err(StoreError::Expired(run.clone()).into()),
        None => Err(StoreError::NotFound(run.clone()).into()),
    }
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
