//! What the writer of a run and its readers share: the head, and a ring of the latest events.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::events::StoredEvent;
use crate::ids::{RunId, Seq};
use crate::store::{CommitListener, StoreError};

/// The latest events kept for readers near the head; enough for what one commit brings, since all else is
/// in the store. Small, because every live run has one.
const RING_EVENTS: usize = 64;
const RING_BYTES: usize = 64 * 1024;

/// How far a run's log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The last committed event.
    pub(super) committed: Seq,
    /// The last event of which it is known whether it is committed.
    settled: Seq,
    /// An event was not.
    failed: bool,
    /// The terminal event is committed and synced.
    pub(super) ended: bool,
    /// The writer has gone without a terminal event.
    pub(super) abandoned: bool,
}

/// A log that is written by this process, as its readers see it.
#[derive(Debug)]
pub struct Live {
    run: RunId,
    head: watch::Sender<Head>,
    latest: Mutex<Latest>,
}

#[derive(Debug, Default)]
struct Latest {
    events: VecDeque<Arc<StoredEvent>>,
    bytes: usize,
    failure: Option<String>,
}

impl Live {
    pub(super) fn new(run: RunId, first: &StoredEvent) -> Self {
        let live = Self {
            run,
            head: watch::Sender::new(Head {
                committed: first.seq,
                settled: first.seq,
                failed: false,
                ended: false,
                abandoned: false,
            }),
            latest: Mutex::default(),
        };
        live.latest.lock().push(Arc::new(first.clone()));
        live
    }

    pub(super) fn run(&self) -> &RunId {
        &self.run
    }

    pub(super) fn head(&self) -> Head {
        *self.head.borrow()
    }

    /// Whether readers have neither been told of the end, nor that there won't be one from here.
    pub(super) fn open(&self) -> bool {
        let head = self.head();
        !head.ended && !head.abandoned
    }

    pub(super) fn watch(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// The event after `seq`, if it is among the latest.
    pub(super) fn after(&self, seq: Seq) -> Option<Arc<StoredEvent>> {
        let latest = self.latest.lock();
        let first = latest.events.front()?.seq;
        let at = usize::try_from(seq.next().0.checked_sub(first.0)?).ok()?;
        latest.events.get(at).cloned()
    }

    /// Why an event could not be written, once one could not.
    pub(super) fn failure(&self) -> Option<String> {
        if !self.head.borrow().failed {
            return None;
        }
        self.latest.lock().failure.clone()
    }

    /// Waits until all events up to `seq` are committed, or one is known not to be.
    pub(super) async fn settled(&self, seq: Seq) {
        let mut watch = self.watch();
        // The sender lives in `self`.
        drop(watch.wait_for(|head| head.settled >= seq).await);
    }

    /// Notes that an event never came into the store's queue.
    pub(super) fn fail(&self, error: &StoreError) {
        self.latest
            .lock()
            .failure
            .get_or_insert_with(|| error.to_string());
        self.head.send_modify(|head| head.failed = true);
    }

    /// The terminal event is committed and synced.
    pub(super) fn end(&self, event: Arc<StoredEvent>) {
        let seq = event.seq;
        self.latest.lock().push(event);
        self.head.send_modify(|head| {
            head.committed = seq;
            head.settled = seq;
            head.ended = true;
        });
    }

    /// The writer goes, and may not have ended the run.
    pub(super) fn abandon(&self) {
        self.head.send_if_modified(|head| {
            head.abandoned = !head.ended;
            head.abandoned
        });
    }
}

impl Latest {
    fn push(&mut self, event: Arc<StoredEvent>) {
        self.bytes += event.json.len();
        self.events.push_back(event);
        while self.events.len() > RING_EVENTS || self.bytes > RING_BYTES {
            let Some(oldest) = self.events.pop_front() else {
                break;
            };
            self.bytes -= oldest.json.len();
        }
    }
}

impl CommitListener for Live {
    fn committed(&self, events: &[Arc<StoredEvent>]) {
        let Some(last) = events.last().map(|event| event.seq) else {
            return;
        };
        let mut latest = self.latest.lock();
        for event in events {
            latest.push(Arc::clone(event));
        }
        drop(latest);
        self.head.send_modify(|head| {
            head.committed = last;
            head.settled = last;
        });
    }

    fn failed(&self, events: &[Arc<StoredEvent>], error: &StoreError) {
        self.fail(error);
        if let Some(last) = events.last().map(|event| event.seq) {
            self.head
                .send_modify(|head| head.settled = head.settled.max(last));
        }
    }
}
