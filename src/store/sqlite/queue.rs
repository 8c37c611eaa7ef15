//! The writer's queue: jobs in order, bounded by what they weigh.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::super::types::{
    Append, Believed, Retention, RunEnd, RunFacts, RunLease, SandboxRecord, StoreError, StoredFile,
    TurnRecord, WebhookDelivery,
};
use crate::events::StoredEvent;
use crate::ids::RunId;

/// What may wait to be written, in units of [`UNIT`] bytes: 32 MiB.
const CAPACITY: u32 = 32 * 1024;
const UNIT: usize = 1024;

/// A write.
pub(super) enum Work {
    Create(RunLease, Box<(RunFacts, StoredEvent)>),
    Append(Append),
    Finish(RunLease, Arc<StoredEvent>, Box<RunEnd>),
    /// Nothing: it is told when all before it is done.
    Flush,
    PutTurn(RunLease, TurnRecord),
    PutFile(RunLease, StoredFile),
    PutSandbox(RunLease, SandboxRecord),
    SandboxGone(RunId, u32),
    PutWebhook(Box<WebhookDelivery>),
    /// The runs without an end of this owner are another's from now on.
    TakeOver {
        from: String,
        by: Arc<str>,
    },
    Delete(RunId),
    /// Deletes runs by their row numbers.
    Expire(Vec<i64>),
    Purge(Retention),
    Believe(Believed),
}

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Self::Create(_, run) => run.0.prompt.len() + run.1.json.len(),
            Self::Append(append) => append.events.iter().map(|event| event.json.len()).sum(),
            Self::Finish(_, event, _) => event.json.len(),
            Self::PutFile(_, file) => file.bytes.len(),
            Self::Flush
            | Self::PutTurn(..)
            | Self::PutWebhook(_)
            | Self::PutSandbox(..)
            | Self::SandboxGone(..)
            | Self::TakeOver { .. }
            | Self::Delete(_)
            | Self::Expire(_)
            | Self::Purge(_)
            | Self::Believe(_) => 0,
        }
    }
}

/// When the write must have reached the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyncWish {
    /// With the next sync, whenever that is.
    Whenever,
    /// Soon, but nobody waits for it.
    Soon,
    /// Before it is told.
    Wait,
}

/// The answer to a write: whether it changed anything, or leaves more to do.
pub(super) type Outcome = Result<bool, StoreError>;

/// A write and who wants to know of it. Whoever that is is told exactly once, also when it is dropped.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) sync: SyncWish,
    waiter: Option<oneshot::Sender<Outcome>>,
    told: bool,
    _place: OwnedSemaphorePermit,
}

impl Job {
    /// About how many bytes it writes.
    pub(super) fn weight(&self) -> usize {
        self.work.bytes()
    }

    /// Tells the listener or the waiter.
    pub(super) fn tell(mut self, outcome: Outcome) {
        self.told = true;
        match (&self.work, outcome) {
            (Work::Append(append), Ok(_)) => append.listener.committed(&append.events),
            (Work::Append(append), Err(error)) => append.listener.failed(&append.events, &error),
            (_, outcome) => answer(self.waiter.take(), outcome),
        }
    }

    /// The waiter alone, to be told later; the place in the queue is given back.
    pub(super) fn into_waiter(mut self) -> Option<oneshot::Sender<Outcome>> {
        self.told = true;
        self.waiter.take()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.told {
            if let Work::Append(append) = &self.work {
                append.listener.failed(&append.events, &StoreError::Closed);
            }
            answer(self.waiter.take(), Err(StoreError::Closed));
        }
    }
}

/// Sends `outcome`; a caller that no longer waits is no fault.
pub(super) fn answer(waiter: Option<oneshot::Sender<Outcome>>, outcome: Outcome) {
    if let Some(waiter) = waiter {
        drop(waiter.send(outcome));
    }
}

/// What the writer finds.
pub(super) enum Next {
    /// Jobs, in the order in which they were queued.
    Jobs(Vec<Job>),
    /// Nothing for a while.
    Idle,
    /// Nothing, and nothing will come.
    Closed,
}

/// The queue. Full means that callers wait, which slows their runs; memory stays flat.
pub(super) struct Queue {
    places: Arc<Semaphore>,
    inner: Mutex<Inner>,
    filled: Condvar,
}

struct Inner {
    jobs: VecDeque<Job>,
    open: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(CAPACITY as usize)),
            inner: Mutex::new(Inner {
                jobs: VecDeque::new(),
                open: true,
            }),
            filled: Condvar::new(),
        }
    }

    /// Waits for a place and takes it. Dropping the future before it is ready leaves no trace.
    pub(super) async fn push(
        &self,
        work: Work,
        sync: SyncWish,
        waiter: Option<oneshot::Sender<Outcome>>,
    ) -> Result<(), StoreError> {
        let units = u32::try_from(work.bytes() / UNIT + 1).unwrap_or(CAPACITY);
        let place = Arc::clone(&self.places)
            .acquire_many_owned(units.min(CAPACITY))
            .await
            .map_err(|_closed| StoreError::Closed)?;
        let job = Job {
            work,
            sync,
            waiter,
            told: false,
            _place: place,
        };
        let mut inner = self.inner.lock();
        if !inner.open {
            // Not told through the listener: the caller gets the error itself.
            drop(inner);
            drop(job.into_waiter());
            return Err(StoreError::Closed);
        }
        inner.jobs.push_back(job);
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// At most `limit` jobs, waiting up to `patience` for the first one.
    pub(super) fn take(&self, limit: usize, patience: Duration) -> Next {
        let mut inner = self.inner.lock();
        if inner.jobs.is_empty() && inner.open {
            self.filled.wait_for(&mut inner, patience);
        }
        if inner.jobs.is_empty() {
            return if inner.open { Next::Idle } else { Next::Closed };
        }
        let count = inner.jobs.len().min(limit);
        Next::Jobs(inner.jobs.drain(..count).collect())
    }

    /// Whether more may come.
    pub(super) fn is_open(&self) -> bool {
        self.inner.lock().open
    }

    /// Refuses further jobs; those queued are still written.
    pub(super) fn close(&self) {
        self.inner.lock().open = false;
        self.places.close();
        self.filled.notify_all();
    }

    /// Refuses further jobs and tells all queued ones that they are not written.
    pub(super) fn abandon(&self) {
        self.close();
        let jobs = std::mem::take(&mut self.inner.lock().jobs);
        drop(jobs);
    }
}
