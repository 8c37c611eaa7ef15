//! Deleting runs, in steps that are small enough to stand between the writes of live ones.
//!
//! A run is deleted at once, by a mark that every read heeds. What belongs to it goes later, some rows at a
//! time; its row stays, empty, to tell a deleted run from one that never was, and is forgotten at last.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::super::types::{Believed, Retention, StoreError};
use super::fault::{Fault, int};
use crate::ids::RunId;

/// Runs marked in one step.
const RUNS: usize = 64;
/// Rows deleted of one table in one step, of however many runs.
const ROWS: usize = 512;
/// Parts of files, of 64 KiB, deleted in one step.
const PARTS: usize = 64;
/// Free pages that are kept: they are used again soon.
const SPARE_PAGES: i64 = 1024;
/// Pages given back in one step.
const GIVEN_BACK: u32 = 512;

const MARK: &str = "UPDATE runs SET deleted_at = ?2, beginning = '', error = NULL
    WHERE no = ?1 AND deleted_at IS NULL AND state NOT IN ('queued', 'running')";

/// All that belongs to a run.
const BELONGINGS: &[&str] = &[
    "DELETE FROM events WHERE run = ?1",
    "DELETE FROM file_parts WHERE file IN (SELECT no FROM files WHERE run = ?1)",
    "DELETE FROM files WHERE run = ?1",
    "DELETE FROM turns WHERE run = ?1",
    "DELETE FROM sandboxes WHERE run = ?1",
    "DELETE FROM webhooks WHERE run = ?1",
    "DELETE FROM prompts WHERE run = ?1",
];

/// Marks a run that has ended as deleted. False if there is none.
pub(super) fn delete(db: &Connection, run: &RunId, now: Timestamp) -> Result<bool, Fault> {
    let no: Option<i64> = db
        .prepare_cached("SELECT no FROM runs WHERE id = ?1")?
        .query_row([run.as_str()], |row| row.get(0))
        .optional()?;
    no.map_or(Ok(false), |no| expire(db, &[no], now))
}

/// Marks runs as deleted, but for those that have not ended.
pub(super) fn expire(db: &Connection, runs: &[i64], now: Timestamp) -> Result<bool, Fault> {
    let mut marked = 0;
    for no in runs {
        marked += db
            .prepare_cached(MARK)?
            .execute(params![no, now.as_microsecond()])?;
    }
    Ok(marked > 0)
}

/// Some runs to delete by `rules`, oldest first, by their row numbers.
pub(super) fn expired(db: &Connection, rules: &Retention) -> Result<Vec<i64>, StoreError> {
    let read = || -> Result<Vec<i64>, rusqlite::Error> {
        let mut found = Vec::new();
        if let Some(before) = rules.ended_before {
            let mut old = db.prepare_cached(
                // A dead run has ended with its last event, and that is told when it was found.
                "SELECT no FROM runs WHERE deleted_at IS NULL AND started_at < ?1 AND completed_at < ?1
                     AND (SELECT at FROM events WHERE run = runs.no AND kind IN ('result', 'error')) < ?1
                 ORDER BY started_at, no LIMIT ?2",
            )?;
            let old = old.query_map(params![before.as_microsecond(), int(RUNS as u64)], |row| {
                row.get(0)
            })?;
            for no in old {
                found.push(no?);
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let newest_too_many = db
            .prepare_cached(
                "SELECT started_at, no FROM runs WHERE deleted_at IS NULL
                 ORDER BY started_at DESC, no DESC LIMIT 1 OFFSET ?1",
            )?
            .query_row([int(rules.most_runs)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
            .optional()?;
        if let Some((started_at, no)) = newest_too_many {
            let mut many = db.prepare_cached(
                "SELECT no FROM runs WHERE deleted_at IS NULL AND (started_at, no) <= (?1, ?2)
                     AND state NOT IN ('queued', 'running')
                 ORDER BY started_at, no LIMIT ?3",
            )?;
            let many =
                many.query_map(params![started_at, no, int(RUNS as u64)], |row| row.get(0))?;
            for no in many {
                found.push(no?);
            }
        }
        Ok(found)
    };
    read().map_err(|error| Fault::from(error).into())
}

/// What was believed at the last look, in microseconds: the time, what the clock said, and for how long that was far ahead.
pub(super) fn believed(db: &Connection) -> Result<Option<Believed>, StoreError> {
    let text = db
        .query_row(
            "SELECT value FROM meta WHERE name = 'believed'",
            [],
            |row| row.get::<_, String>(0),
        )
        .optional()
        .map_err(|error| StoreError::from(Fault::from(error)))?;
    let Some(text) = text else {
        return Ok(None);
    };
    let read = || {
        let mut numbers = text.split(' ');
        let mut time = || Timestamp::from_microsecond(numbers.next()?.parse().ok()?).ok();
        let (at, said) = (time()?, time()?);
        let ahead_for = numbers.next().map(str::parse).transpose().ok()?;
        Some(Believed {
            at,
            said,
            ahead_for: ahead_for.map(Duration::from_micros),
        })
    };
    read().map(Some).ok_or_else(|| {
        StoreError::Failed("the times by which old runs are deleted can't be read".to_owned())
    })
}

/// Keeps what is believed.
pub(super) fn believe(db: &Connection, believed: Believed) -> Result<bool, Fault> {
    let ahead_for = believed.ahead_for.map(|ahead| ahead.as_micros());
    let numbers: Vec<String> = [believed.at, believed.said]
        .map(|time| time.as_microsecond().to_string())
        .into_iter()
        .chain(ahead_for.map(|ahead| ahead.to_string()))
        .collect();
    db.execute(
        "INSERT INTO meta (name, value) VALUES ('believed', ?1)
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        [numbers.join(" ")],
    )?;
    Ok(true)
}

/// Deletes some of what belongs to deleted runs, or is too old; gives some pages back when there is nothing
/// of it. True if anything was done.
pub(super) fn purge(db: &Connection, rules: &Retention) -> Result<bool, Fault> {
    let runs = db
        .prepare_cached("SELECT no FROM runs WHERE deleted_at IS NOT NULL AND purged = 0 LIMIT ?1")?
        .query_map([int(RUNS as u64)], |row| row.get(0))?
        .collect::<Result<Vec<i64>, _>>()?;
    let mut work = runs.len();
    let (mut rows, mut parts) = (ROWS, PARTS);
    for run in runs {
        let gone = purge_large(db, run, rows, parts)?;
        rows -= gone.0;
        parts -= gone.1;
        // There may be more of this run.
        if rows == 0 || parts == 0 {
            break;
        }
        delete_all(db, run)?;
        db.prepare_cached("UPDATE runs SET purged = 1 WHERE no = ?1")?
            .execute([run])?;
    }
    let limit = int(ROWS as u64);
    work += db
        .prepare_cached(
            "DELETE FROM webhooks WHERE no IN (SELECT no FROM webhooks WHERE received_at < ?1 LIMIT ?2)",
        )?
        .execute(params![rules.webhooks_before.as_microsecond(), limit])?;
    let forgotten = db
        .prepare_cached("SELECT no FROM runs WHERE purged = 1 AND deleted_at < ?1 LIMIT ?2")?
        .query_map(
            params![rules.forget_before.as_microsecond(), limit],
            |row| row.get(0),
        )?
        .collect::<Result<Vec<i64>, _>>()?;
    for run in &forgotten {
        // Whatever was written to it after all would keep its row for ever, and with it all purging.
        delete_all(db, *run)?;
        db.prepare_cached("DELETE FROM runs WHERE no = ?1")?
            .execute([run])?;
    }
    if work > 0 || !forgotten.is_empty() {
        return Ok(true);
    }
    give_back(db)
}

fn delete_all(db: &Connection, run: i64) -> Result<(), Fault> {
    for sql in BELONGINGS {
        db.prepare_cached(sql)?.execute([run])?;
    }
    Ok(())
}

/// Deletes events and parts of files of a run, at most so many, and gives how many.
fn purge_large(
    db: &Connection,
    run: i64,
    rows: usize,
    parts: usize,
) -> Result<(usize, usize), Fault> {
    let events = db
        .prepare_cached(
            "DELETE FROM events WHERE no IN (SELECT no FROM events WHERE run = ?1 ORDER BY seq LIMIT ?2)",
        )?
        .execute(params![run, int(rows as u64)])?;
    let parts = db
        .prepare_cached(
            "DELETE FROM file_parts WHERE no IN (SELECT file_parts.no FROM files
                 JOIN file_parts ON file_parts.file = files.no WHERE files.run = ?1 LIMIT ?2)",
        )?
        .execute(params![run, int(parts as u64)])?;
    Ok((events, parts))
}

fn give_back(db: &Connection) -> Result<bool, Fault> {
    let number = |pragma: &str| db.query_row(pragma, [], |row| row.get::<_, i64>(0));
    if number("PRAGMA auto_vacuum")? == 0 || number("PRAGMA freelist_count")? <= SPARE_PAGES {
        return Ok(false);
    }
    // A row for each page: it goes on for as long as they are read.
    let mut give = db.prepare(&format!("PRAGMA incremental_vacuum({GIVEN_BACK})"))?;
    let mut pages = give.query([])?;
    while pages.next()?.is_some() {}
    Ok(true)
}
