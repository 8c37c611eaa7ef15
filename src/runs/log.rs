//! A run's log: one writer, any number of readers, and no channel between them.
//!
//! The writer queues events to the store and never waits for a reader. A commit moves the run's *head* and
//! puts the events into a small ring of the latest ones. A reader learns only that the head has moved, and
//! takes what is after its own cursor at its own pace: from the ring if it is near the head, else page by
//! page from the store. So a slow reader costs one cursor, whatever it lags behind, and there is no moment
//! of changing over from replay to live at which an event could be lost or come twice.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::tail::Live;
use crate::events::{EventSink, EventType, LogFailed, RunEvent, StoredEvent};
use crate::ids::{RunId, Seq};
use crate::secrets::Redactor;
use crate::store::{Append, Flush, RunEnd, RunFacts, RunLease, RunStore, StoreError};

/// The most that a run's log may hold; its terminal event fits beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Events.
    pub events: u64,
    /// Bytes of the events' JSON.
    pub bytes: u64,
}

impl Default for LogLimits {
    /// Rule AD-4: 200,000 events, 64 MiB.
    fn default() -> Self {
        Self {
            events: 200_000,
            bytes: 64 * 1024 * 1024,
        }
    }
}

/// For warnings alone, beyond the limits: what had no room in the log is still named there.
const RESERVE: LogLimits = LogLimits {
    events: 16,
    bytes: 64 * 1024,
};

/// What an event should not exceed, files aside (rule EV-1). Emitters cut; here it is only noticed.
const LARGE_EVENT: usize = 256 * 1024;

/// Waits between tries to write a terminal event: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Makes the logs of new runs in one store. Cheap to clone.
#[derive(Clone)]
pub struct Logs(Arc<Shared>);

struct Shared {
    store: Arc<dyn RunStore>,
    limits: LogLimits,
    redactor: Redactor,
}

impl Logs {
    /// The logs in `store`, with the usual limits.
    pub fn new(store: Arc<dyn RunStore>) -> Self {
        Self::with_limits(store, LogLimits::default())
    }

    /// The logs in `store`.
    pub fn with_limits(store: Arc<dyn RunStore>, limits: LogLimits) -> Self {
        Self::redacted(store, limits, Redactor::default())
    }

    /// The logs in `store`, in which no event but a `file` says a secret (rule SE-4). What the agent emits is
    /// clean already; this is for what slips through. A returned file stays what its checksum says: no key of
    /// ours is where files are made.
    pub fn redacted(store: Arc<dyn RunStore>, limits: LogLimits, redactor: Redactor) -> Self {
        Self(Arc::new(Shared {
            store,
            limits,
            redactor,
        }))
    }

    /// Creates a run with `first` as event 1. It is committed, and can be read, when this returns.
    ///
    /// Dropping the future may leave a run that has no writer and stays open until this process is gone: call
    /// it where it is not dropped, in a task of its own.
    ///
    /// # Errors
    /// When the store refuses or fails; then there is no run.
    pub async fn create(
        &self,
        mut facts: RunFacts,
        first: RunEvent,
    ) -> Result<LogWriter, StoreError> {
        let first = self.stored(Seq::ZERO.next(), first)?;
        facts.prompt = storable(facts.prompt);
        let live = Arc::new(Live::new(facts.id.clone(), &first));
        let bytes = first.json.len() as u64;
        let lease = self.0.store.create(facts, first).await?;
        Ok(LogWriter {
            logs: self.clone(),
            lease,
            live,
            last: tokio::sync::Mutex::new(Last {
                seq: Seq::ZERO.next(),
                bytes,
                full: false,
            }),
            ending: AtomicBool::new(false),
        })
    }

    fn stored(&self, seq: Seq, mut event: RunEvent) -> Result<StoredEvent, StoreError> {
        event.clean(&self.0.redactor);
        StoredEvent::new(seq, &event).map_err(|error| {
            StoreError::Refused(format!("an event can't be written as JSON: {error}"))
        })
    }
}

/// `text` without what not every store can keep (rule EV-3).
fn storable(text: String) -> String {
    if text.contains('\0') {
        return text.replace('\0', "\u{FFFD}");
    }
    text
}

/// The writing end of a run's log. Dropped without [`LogWriter::finish`], its readers' streams break off.
pub struct LogWriter {
    logs: Logs,
    lease: RunLease,
    live: Arc<Live>,
    /// An async lock, held while an event waits for its place in the store's queue: the order in the queue
    /// is the order of the numbers, and that wait is the backpressure.
    last: tokio::sync::Mutex<Last>,
    ending: AtomicBool,
}

struct Last {
    seq: Seq,
    bytes: u64,
    full: bool,
}

impl LogWriter {
    /// The run.
    pub fn run_id(&self) -> &RunId {
        self.live.run()
    }

    /// The last committed event.
    pub fn head(&self) -> Seq {
        self.live.head().committed
    }

    /// What readers of this process need to follow the log as it is written.
    pub const fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// The right to write the run.
    pub(super) const fn lease(&self) -> &RunLease {
        &self.lease
    }

    /// Ends the run with `event`, a `result` or `error`, and gives its number. Tries again for as long as
    /// the store fails (rule ST-7), until `give_up` fires. Also works after an event could not be written:
    /// the terminal event then follows the last one that was. From the call on, nothing more can be emitted.
    ///
    /// Dropping the future leaves the run open, or ended if the write was already queued.
    ///
    /// # Errors
    /// `Refused` when the run was ended by someone else; `Closed`; the last failure when `give_up` fired.
    pub async fn finish(
        &self,
        event: RunEvent,
        mut end: RunEnd,
        give_up: &CancellationToken,
    ) -> Result<Seq, StoreError> {
        if !event.kind().terminal() {
            return Err(StoreError::Refused(format!(
                "{} does not end a run",
                event.kind()
            )));
        }
        self.ending.store(true, Ordering::Release);
        if let Some((_, message)) = &mut end.error {
            let clean = self.logs.0.redactor.clean(message);
            if let Cow::Owned(clean) = clean {
                *message = clean;
            }
            *message = storable(std::mem::take(message));
        }
        let last = self.last.lock().await;
        let mut wait = RETRY.0;
        loop {
            // Every earlier event has its answer, so the number is right even if one of them failed.
            self.live.settled(last.seq).await;
            let event = Arc::new(self.logs.stored(self.head().next(), event.clone())?);
            let store = &self.logs.0.store;
            let written = store.finish(&self.lease, Arc::clone(&event), end.clone());
            let error = match written.await {
                Ok(()) => {
                    let seq = event.seq;
                    self.live.end(event);
                    return Ok(seq);
                }
                Err(error @ StoreError::Failed(_)) => error,
                Err(error) => return Err(error),
            };
            tracing::warn!(%error, "the end of a run could not be stored yet");
            tokio::select! {
                biased;
                () = give_up.cancelled() => return Err(error),
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY.1),
            }
        }
    }

    fn check(&self) -> Result<(), LogFailed> {
        if let Some(error) = self.live.failure() {
            return Err(LogFailed::Store(error));
        }
        if self.ending.load(Ordering::Acquire) {
            return Err(LogFailed::Store("the run is being ended".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl EventSink for LogWriter {
    async fn emit(&self, event: RunEvent) -> Result<Seq, LogFailed> {
        // Before the lock too: `finish` may hold it for as long as the store is down.
        self.check()?;
        let mut last = self.last.lock().await;
        self.check()?;
        let warning = event.kind() == EventType::Warning;
        if last.full && !warning {
            return Err(LogFailed::TooLarge);
        }
        if event.kind().terminal() {
            return Err(LogFailed::Store(format!(
                "{} is for finish to write",
                event.kind()
            )));
        }
        let event = self
            .logs
            .stored(last.seq.next(), event)
            .map_err(|error| LogFailed::Store(error.to_string()))?;
        if event.json.len() > LARGE_EVENT && event.kind != EventType::File {
            tracing::warn!(kind = %event.kind, bytes = event.json.len(), "an event is larger than events should be");
        }
        let (seq, bytes) = (event.seq, last.bytes + event.json.len() as u64);
        let mut limits = self.logs.0.limits;
        if warning {
            limits.events += RESERVE.events;
            limits.bytes += RESERVE.bytes;
        }
        if seq.0 > limits.events || bytes > limits.bytes {
            last.full |= !warning;
            return Err(LogFailed::TooLarge);
        }
        let append = Append {
            lease: self.lease.clone(),
            events: vec![Arc::new(event)],
            listener: Arc::clone(&self.live) as _,
        };
        if let Err(error) = self.logs.0.store.append(append).await {
            self.live.fail(&error);
            return Err(LogFailed::Store(error.to_string()));
        }
        (last.seq, last.bytes) = (seq, bytes);
        Ok(seq)
    }

    async fn sync(&self) -> Result<Seq, LogFailed> {
        let seq = self.last.lock().await.seq;
        let synced = self.logs.0.store.flush(Flush::Synced).await;
        synced.map_err(|error| LogFailed::Store(error.to_string()))?;
        match self.live.failure() {
            Some(error) => Err(LogFailed::Store(error)),
            None => Ok(seq),
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.live.abandon();
    }
}
