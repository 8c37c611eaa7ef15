//! The one thread that writes. Whatever is queued when it is free goes into one transaction, so the cost
//! of a commit is shared the more, the more there is to write, and nothing is ever held back on purpose.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, params};
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::types::StoreError;
use super::checkpoint::{self, Checkpointer};
use super::data_dir::Locks;
use super::fault::{Fault, failure};
use super::health::Healthy;
use super::names::{Names, Seen};
use super::ops::{self, Known};
use super::queue::{Job, Next, Outcome, Queue, SyncWish, Work};
use super::sync::Syncer;
use crate::clock::Clock;
use crate::spec::StoreDurability;

/// The most that goes into one transaction: under full load about 20 ms of work.
const BATCH: usize = 4096;

/// How long an idle writer sleeps; also how often it tries whether a store that failed is well again, and
/// looks after its locks.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long readers that hold a part of the log are waited for, while nothing can be written.
const HEAL_WAIT: Duration = Duration::from_millis(100);

/// How long another process's transaction is waited for when the store is closed.
const LAST_WAIT: Duration = Duration::from_millis(500);

const LOST: &str = "a file of the run store was removed or replaced while it was in use";

/// The writer, to be moved to its thread.
pub(super) struct Writer {
    pub(super) db: Connection,
    pub(super) queue: Arc<Queue>,
    pub(super) clock: Clock,
    pub(super) durability: StoreDurability,
    pub(super) healthy: Arc<Healthy>,
    pub(super) syncer: Syncer,
    pub(super) checkpointer: Checkpointer,
    /// Held until the last write is done, so that nobody takes the directory before.
    pub(super) locks: Locks,
    /// Those of the database's files.
    pub(super) names: Names,
    /// The name of this process in the rows of its runs.
    pub(super) owner: Arc<str>,
    /// How long another process's transaction is waited for at a time.
    pub(super) busy_timeout: Duration,
    /// Told when all is closed.
    pub(super) closed: watch::Sender<bool>,
}

impl Writer {
    /// Writes until the queue is closed and empty, then closes the database.
    pub(super) fn run(mut self) {
        // If this thread ever panics, those who wait must hear of it instead of waiting for ever.
        let abandon = Abandon(Arc::clone(&self.queue), Arc::clone(&self.healthy));
        let mut known = Known::default();
        let mut looked_after = Instant::now();
        loop {
            match self.queue.take(BATCH, PATIENCE) {
                Next::Jobs(jobs) => self.write(&mut known, jobs),
                Next::Idle if !self.healthy.get() => self.probe(),
                Next::Idle => {}
                Next::Closed => break,
            }
            if self.checkpointer.wanted_inline() {
                self.checkpointer.inline(&self.db);
            }
            if looked_after.elapsed() >= PATIENCE {
                looked_after = Instant::now();
                self.look_after();
            }
        }
        if self.leaves_runs() {
            self.locks.leave_mark();
        }
        let Self {
            db,
            syncer,
            checkpointer,
            locks,
            closed,
            ..
        } = self;
        drop(syncer);
        drop(checkpointer);
        if let Err((_, error)) = db.close() {
            tracing::warn!(%error, "the run store did not close cleanly; nothing is lost");
        }
        drop(abandon);
        drop(locks);
        closed.send_replace(true);
    }

    fn look_after(&mut self) {
        self.locks.renew();
        let there = self.names.look() == Seen::There;
        self.healthy.files(there);
        if !there || self.healthy.synced() {
            return;
        }
        let heal = || {
            self.db.busy_timeout(HEAL_WAIT)?;
            let healed = checkpoint::complete(&self.db);
            self.db.busy_timeout(self.busy_timeout)?;
            healed
        };
        match heal() {
            Ok(true) => self.healthy.sync(Ok(())),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "what a failed sync has lost can't be written again yet");
            }
        }
    }

    /// Whether runs of this process have no end. When in doubt there are.
    fn leaves_runs(&self) -> bool {
        let sql = "SELECT EXISTS (SELECT 1 FROM runs WHERE state IN ('queued', 'running') AND owner = ?1)";
        self.db
            .query_row(sql, params![&*self.owner], |row| row.get(0))
            .unwrap_or(true)
    }

    /// Has what was written before the writer runs (the schema, the store's id) synced.
    pub(super) fn sync_soon(&self) {
        self.syncer.soon();
    }

    fn write(&mut self, known: &mut Known, jobs: Vec<Job>) {
        if !self.healthy.get() && self.names.look() == Seen::Lost {
            for job in jobs {
                job.tell(Err(StoreError::Unusable(LOST.to_owned())));
            }
            return;
        }
        let outcomes = self.transact(known, &jobs);
        let failed = outcomes.iter().find_map(|outcome| match outcome {
            Err(error @ StoreError::Failed(_)) => Some(error.clone()),
            _ => None,
        });
        // A transaction of refusals wrote nothing, and says nothing about the disk.
        let written = jobs
            .iter()
            .zip(&outcomes)
            .any(|(job, outcome)| matches!(outcome, Ok(true)) && !matches!(job.work, Work::Flush));
        match &failed {
            Some(error) => self.healthy.commit(Err(error)),
            None if written => self.healthy.commit(Ok(())),
            None => {}
        }
        let mut bytes = 0;
        for (job, outcome) in jobs.into_iter().zip(outcomes) {
            bytes += job.weight();
            let sync = match self.durability {
                StoreDurability::Full => SyncWish::Whenever,
                StoreDurability::Normal => job.sync,
            };
            match sync {
                SyncWish::Wait if outcome.is_ok() => self.syncer.wait(job.into_waiter()),
                SyncWish::Soon => {
                    job.tell(outcome);
                    self.syncer.soon();
                }
                SyncWish::Wait | SyncWish::Whenever => job.tell(outcome),
            }
        }
        self.checkpointer.written(bytes);
    }

    /// All of `jobs` in one transaction, or each in its own if that fails as a whole.
    fn transact(&mut self, known: &mut Known, jobs: &[Job]) -> Vec<Outcome> {
        if jobs.iter().all(|job| matches!(job.work, Work::Flush)) {
            return jobs.iter().map(|_| Ok(true)).collect();
        }
        match self.together(known, jobs) {
            Ok(outcomes) => outcomes,
            // Busy to the last: each alone would wait as long again.
            Err(error) if jobs.len() == 1 || is_busy(&error) => {
                jobs.iter().map(|_| ops::failed_outcome(&error)).collect()
            }
            Err(_) => jobs
                .iter()
                .map(
                    |job| match self.together(known, std::slice::from_ref(job)) {
                        Ok(outcomes) => outcomes.into_iter().next().unwrap_or(Ok(true)),
                        Err(error) => ops::failed_outcome(&error),
                    },
                )
                .collect(),
        }
    }

    /// All of `jobs` in one transaction. `Err` means that none of them is in the store. While another process
    /// keeps the database busy they wait, and behind them all that is queued: nothing is lost by that.
    fn together(
        &mut self,
        known: &mut Known,
        jobs: &[Job],
    ) -> Result<Vec<Outcome>, rusqlite::Error> {
        loop {
            if !self.queue.is_open() {
                self.db.busy_timeout(LAST_WAIT.min(self.busy_timeout))?;
            }
            match self.once(known, jobs) {
                Err(error) if is_busy(&error) && self.queue.is_open() => {
                    self.healthy.commit(Err(&failure(&error)));
                    self.locks.renew();
                }
                other => return other,
            }
        }
    }

    fn once(&self, known: &mut Known, jobs: &[Job]) -> Result<Vec<Outcome>, rusqlite::Error> {
        let db = &self.db;
        let now = self.clock.now();
        let undo = |known: &mut Known, error| {
            ops::roll_back(db);
            known.forget();
            error
        };
        db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        known.check(db).map_err(|error| undo(known, error))?;
        let mut outcomes = Vec::with_capacity(jobs.len());
        for job in jobs {
            match ops::apply(db, known, &job.work, now) {
                Ok(fresh) => outcomes.push(Ok(fresh)),
                // SQLite gave up the transaction, and with it what the other jobs had written.
                Err(Fault::Theirs(error)) if db.is_autocommit() => {
                    return Err(undo(known, error));
                }
                Err(fault) => outcomes.push(Err(fault.into())),
            }
        }
        db.prepare_cached("COMMIT")
            .and_then(|mut commit| commit.execute([]))
            .map_err(|error| undo(known, error))?;
        Ok(outcomes)
    }

    fn probe(&self) {
        let result = ops::probe(&self.db, self.clock.now()).map_err(|error| failure(&error));
        ops::roll_back(&self.db);
        self.healthy.commit(result.as_ref().copied());
        self.syncer.soon();
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
}

/// Told when the writer is gone, however it went.
struct Abandon(Arc<Queue>, Arc<Healthy>);

impl Drop for Abandon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.1.writer_gone();
        }
        self.0.abandon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_panicked_makes_the_store_unhealthy_for_good_and_one_that_ended_does_not() {
        let healthy = Arc::new(Healthy::new());
        drop(Abandon(Arc::new(Queue::new()), Arc::clone(&healthy)));
        assert!(healthy.get());
        let queue = Arc::new(Queue::new());
        let abandon = Abandon(Arc::clone(&queue), Arc::clone(&healthy));
        let writer = std::thread::spawn(move || {
            let _abandon = abandon;
            panic!("the writer has a fault");
        });
        assert!(writer.join().is_err());
        assert!(!queue.is_open());
        healthy.commit(Ok(()));
        assert!(!healthy.get());
    }
}
