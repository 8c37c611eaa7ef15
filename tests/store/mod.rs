//! The run store: one contract for every implementation, and what is `SQLite`'s own.

mod contract;
mod crash;
mod durability;
#[cfg(target_os = "linux")]
mod full_disk;
mod kept;
mod model;
mod retention;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use sandcaster::error::ErrorCode;
use sandcaster::events::{Delta, RunEvent, StoredEvent};
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::{
    Append, CommitListener, Flush, Role, RunEnd, RunFacts, RunLease, RunState, RunStore, RunUsage,
    SqliteStore, StoreError, StoreOptions,
};
use tempfile::TempDir;

use crate::support::records::{facts, first_event};

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_mins(1);

pub fn sqlite() -> (TempDir, Arc<SqliteStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, Role::Serve).unwrap();
    (dir, store)
}

pub fn open(dir: &TempDir, role: Role) -> Result<Arc<SqliteStore>, StoreError> {
    SqliteStore::open(StoreOptions::new(dir.path().join("data"), role))
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub fn event(seq: u64, event: &RunEvent) -> StoredEvent {
    StoredEvent::new(Seq(seq), event).unwrap()
}

pub fn delta(seq: u64, text: &str) -> Arc<StoredEvent> {
    Arc::new(event(seq, &RunEvent::Assistant(Delta::new(text, 1))))
}

/// A terminal event; only its type and bytes matter to a store.
pub fn end_event(seq: u64, text: &str) -> Arc<StoredEvent> {
    let mut event = event(seq, &RunEvent::Assistant(Delta::new(text, 1)));
    event.kind = sandcaster::events::EventType::Error;
    Arc::new(event)
}

/// A run to create.
#[derive(Clone, Debug)]
pub struct NewRun {
    pub facts: RunFacts,
    pub first: StoredEvent,
}

impl NewRun {
    pub async fn create(self, store: &dyn RunStore) -> Result<RunLease, StoreError> {
        store.create(self.facts, self.first).await
    }
}

pub fn new_run(started_at: Timestamp) -> NewRun {
    NewRun {
        facts: RunFacts {
            prompt: "Say \"hi\"\n\u{1f44b}".to_owned(),
            background: true,
            ..facts(started_at)
        },
        first: first_event(),
    }
}

pub async fn created(store: &dyn RunStore) -> RunLease {
    new_run(at(0)).create(store).await.unwrap()
}

pub fn end() -> RunEnd {
    RunEnd {
        state: RunState::Failed,
        completed_at: at(9),
        error: Some((ErrorCode::MaxTurns, "all turns were used".to_owned())),
        cost_nanos: Some(1_234_567_890_123),
        usage: Some(RunUsage {
            input_tokens: 10,
            output_tokens: 20,
            complete: true,
        }),
        num_turns: 3,
        duration_secs: 8.5,
    }
}

/// Ends the run with `event`.
pub async fn finish(
    store: &dyn RunStore,
    run: &RunLease,
    event: Arc<StoredEvent>,
) -> Result<(), StoreError> {
    store.finish(run, event, end()).await
}

/// Keeps what it hears.
#[derive(Default)]
pub struct Heard {
    pub committed: Mutex<Vec<u64>>,
    pub failed: Mutex<Vec<(u64, StoreError)>>,
}

impl CommitListener for Heard {
    fn committed(&self, events: &[Arc<StoredEvent>]) {
        self.committed.lock().extend(events.iter().map(|e| e.seq.0));
    }

    fn failed(&self, events: &[Arc<StoredEvent>], error: &StoreError) {
        let mut failed = self.failed.lock();
        failed.extend(events.iter().map(|e| (e.seq.0, error.clone())));
    }
}

/// Appends `event`, whose fate `listener` hears of.
pub async fn queue(
    store: &dyn RunStore,
    run: &RunLease,
    event: Arc<StoredEvent>,
    listener: &Arc<impl CommitListener + 'static>,
) {
    let append = Append {
        lease: run.clone(),
        events: vec![event],
        listener: Arc::clone(listener) as _,
    };
    store.append(append).await.unwrap();
}

/// Appends and waits until its fate is known.
pub async fn append(
    store: &dyn RunStore,
    run: &RunLease,
    events: Vec<Arc<StoredEvent>>,
) -> Result<(), StoreError> {
    let heard = Arc::new(Heard::default());
    let count = events.len();
    store
        .append(Append {
            lease: run.clone(),
            events,
            listener: Arc::clone(&heard) as _,
        })
        .await?;
    drop(store.flush(Flush::Committed).await);
    let failed = heard.failed.lock();
    assert_eq!(heard.committed.lock().len() + failed.len(), count);
    failed
        .first()
        .map_or(Ok(()), |(_, error)| Err(error.clone()))
}

/// All events of a run, page by page.
pub async fn log(store: &dyn RunStore, run: &RunId) -> Vec<StoredEvent> {
    let mut all: Vec<StoredEvent> = Vec::new();
    loop {
        let after = all.last().map_or(Seq::ZERO, |event| event.seq);
        let page = store.read(run, after, 500).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}
