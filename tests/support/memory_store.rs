//! A complete store in memory, for tests that are not about storage. Under the same contract as the real one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use sandcaster::events::{EventType, StoredEvent};
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::{
    Append, Believed, Check, Deletion, FileRecord, Flush, LISTED_PROMPT, LeftSandbox, OpenRun,
    Retention, RunEnd, RunFacts, RunHead, RunLease, RunRecord, RunStore, SandboxRecord, StoreError,
    StoredFile, TOLD_WEBHOOKS, TurnRecord, WebhookDelivery,
};
use serde_json::Value;
use tokio::sync::watch;

const OWNER: &str = "this";
/// Owner of runs whose process is gone.
const NOBODY: &str = "nobody";
const PAGE_BYTES: usize = 64 * 1024;

/// The store. `broken` makes everything but `healthy` and `id` fail.
#[derive(Default)]
pub struct MemoryStore {
    runs: Mutex<BTreeMap<RunId, Run>>,
    webhooks: Mutex<Vec<WebhookDelivery>>,
    changed: watch::Sender<u64>,
    believed: Mutex<Option<Believed>>,
    broken: AtomicBool,
    closed: AtomicBool,
}

struct Run {
    facts: RunFacts,
    lease: RunLease,
    events: Vec<Arc<StoredEvent>>,
    end: Option<RunEnd>,
    turns: BTreeMap<u32, TurnRecord>,
    files: BTreeMap<String, StoredFile>,
    sandboxes: BTreeMap<u32, SandboxRecord>,
    deleted: bool,
}

impl MemoryStore {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Whether everything fails from now on.
    pub fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    /// Every delivery kept, in order of arrival.
    pub fn deliveries(&self) -> Vec<WebhookDelivery> {
        self.webhooks.lock().clone()
    }

    /// The process that the run belongs to is gone.
    pub fn orphan(&self, run: &RunId) {
        self.runs.lock().get_mut(run).unwrap().lease.owner = NOBODY.into();
    }

    /// Sandboxes of ended runs that are not recorded as destroyed.
    pub fn left(&self, backend: &str) -> Vec<LeftSandbox> {
        let mut left = Vec::new();
        for run in self.runs.lock().values().filter(|run| !run.deleted) {
            let Some(end) = &run.end else {
                continue;
            };
            for sandbox in run.sandboxes.values() {
                if sandbox.backend == backend && !sandbox.destroyed {
                    left.push(LeftSandbox {
                        run: run.facts.id.clone(),
                        attempt: sandbox.attempt,
                        sandbox_id: sandbox.sandbox_id.clone(),
                        expires: sandbox.expires,
                        ended_at: end.completed_at,
                    });
                }
            }
        }
        left
    }

    fn works(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(StoreError::Failed(
                "the disk is full at /secret/path".to_owned(),
            ));
        }
        Ok(())
    }

    fn with<T>(
        &self,
        run: &RunId,
        work: impl FnOnce(&mut Run) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.works()?;
        let mut runs = self.runs.lock();
        match runs.get_mut(run) {
            Some(found) if !found.deleted => work(found),
            Some(_) => Err(StoreError::Expired(run.clone())),
            None => Err(StoreError::NotFound(run.clone())),
        }
    }

    fn leased<T>(
        &self,
        lease: &RunLease,
        work: impl FnOnce(&mut Run) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.with(&lease.run, |run| {
            if run.lease != *lease {
                return Err(StoreError::Refused("another holds the run".to_owned()));
            }
            work(run)
        })
    }

    fn write(&self, lease: &RunLease, events: &[Arc<StoredEvent>]) -> Result<(), StoreError> {
        self.leased(lease, |run| {
            if run.end.is_some() {
                return Err(StoreError::Refused("the run has ended".to_owned()));
            }
            for (event, at) in events.iter().zip(run.events.len() as u64 + 1..) {
                if event.seq.0 != at || event.kind.terminal() {
                    return Err(StoreError::Refused(format!("not at {}", event.seq)));
                }
            }
            run.events.extend(events.iter().cloned());
            Ok(())
        })
    }
}

fn shorten(record: &mut RunRecord) {
    let prompt = &mut record.facts.prompt;
    *prompt = prompt.chars().take(LISTED_PROMPT).collect();
}

impl Run {
    fn last_seq(&self) -> Seq {
        Seq(self.events.len() as u64)
    }

    fn turns_told(&self) -> u32 {
        let late = self.events.iter().rev().take(8).map(|event| {
            let event: Value = serde_json::from_str(&event.json).unwrap();
            event["turn"].as_u64().unwrap_or_default()
        });
        late.max().unwrap_or_default().try_into().unwrap()
    }

    fn calls(&self) -> BTreeMap<String, u64> {
        let mut calls = BTreeMap::new();
        let called = self.events.iter();
        for event in called.filter(|event| event.kind == EventType::ToolUse) {
            let event: Value = serde_json::from_str(&event.json).unwrap();
            let name = event["toolName"].as_str().unwrap().to_owned();
            *calls.entry(name).or_default() += 1;
        }
        calls
    }

    fn record(&self) -> RunRecord {
        RunRecord {
            facts: self.facts.clone(),
            last_seq: self.last_seq(),
            files_count: self.files.len() as u64,
            end: self.end.clone(),
        }
    }
}

#[async_trait]
impl RunStore for MemoryStore {
    fn id(&self) -> &'static str {
        "store-in-memory"
    }

    async fn create(&self, facts: RunFacts, first: StoredEvent) -> Result<RunLease, StoreError> {
        self.works()?;
        let mut runs = self.runs.lock();
        if first.seq.0 != 1 || first.kind.terminal() || runs.contains_key(&facts.id) {
            return Err(StoreError::Refused("no new log".to_owned()));
        }
        let lease = RunLease {
            run: facts.id.clone(),
            owner: OWNER.into(),
            epoch: 1,
        };
        let run = Run {
            facts: facts.clone(),
            lease: lease.clone(),
            events: vec![Arc::new(first)],
            end: None,
            turns: BTreeMap::new(),
            files: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            deleted: false,
        };
        runs.insert(facts.id, run);
        Ok(lease)
    }

    async fn append(&self, append: Append) -> Result<(), StoreError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        match self.write(&append.lease, &append.events) {
            Ok(()) => append.listener.committed(&append.events),
            Err(error) => append.listener.failed(&append.events, &error),
        }
        self.changed.send_modify(|changes| *changes += 1);
        Ok(())
    }

    async fn flush(&self, _: Flush) -> Result<(), StoreError> {
        self.works()
    }

    async fn finish(
        &self,
        lease: &RunLease,
        event: Arc<StoredEvent>,
        end: RunEnd,
    ) -> Result<(), StoreError> {
        let finished = self.leased(lease, |run| {
            let again = run.end.is_some() && run.events.last() == Some(&event);
            let follows = run.end.is_none() && event.seq == run.last_seq().next();
            if again {
                return Ok(());
            }
            if !follows || !event.kind.terminal() || !end.state.terminal() {
                return Err(StoreError::Refused("no end of this run".to_owned()));
            }
            run.events.push(event);
            run.end = Some(end);
            Ok(())
        });
        self.changed.send_modify(|changes| *changes += 1);
        finished
    }

    async fn read(
        &self,
        run: &RunId,
        after: Seq,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.with(run, |run| {
            let mut bytes = 0;
            let events = run.events.iter().filter(|event| event.seq > after);
            let page = events.take(limit as usize).take_while(|event| {
                let fits = bytes < PAGE_BYTES;
                bytes += event.json.len();
                fits
            });
            Ok(page.map(|event| StoredEvent::clone(event)).collect())
        })
    }

    async fn watch(&self, run: &RunId, after: Seq) -> Result<(), StoreError> {
        let mut changed = self.changed.subscribe();
        while self.head(run).await?.last_seq <= after {
            changed.changed().await.unwrap();
        }
        Ok(())
    }

    async fn head(&self, run: &RunId) -> Result<RunHead, StoreError> {
        self.with(run, |run| {
            Ok(RunHead {
                last_seq: run.last_seq(),
                ended: run.end.is_some(),
            })
        })
    }

    async fn get(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
        self.works()?;
        let runs = self.runs.lock();
        let found = runs.get(run).filter(|run| !run.deleted);
        Ok(found.map(Run::record))
    }

    async fn beginning(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
        let mut found = self.get(run).await?;
        if let Some(record) = &mut found {
            shorten(record);
        }
        Ok(found)
    }

    async fn list(&self, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        self.works()?;
        let runs = self.runs.lock();
        let kept = runs.values().filter(|run| !run.deleted);
        let mut records: Vec<_> = kept.map(Run::record).collect();
        records.sort_by(|a, b| {
            let key = |run: &RunRecord| (run.facts.started_at, run.facts.id.clone());
            key(b).cmp(&key(a))
        });
        records.truncate(limit as usize);
        records.iter_mut().for_each(shorten);
        Ok(records)
    }

    async fn expired_runs(&self) -> Result<Vec<OpenRun>, StoreError> {
        self.works()?;
        let mut taken = Vec::new();
        for run in self.runs.lock().values_mut() {
            if run.end.is_some() {
                continue;
            }
            if *run.lease.owner == *NOBODY {
                run.lease.owner = OWNER.into();
                run.lease.epoch += 1;
            }
            if run.lease.epoch > 1 {
                taken.push(OpenRun {
                    lease: run.lease.clone(),
                    model: run.facts.model.clone(),
                    last_seq: run.last_seq(),
                    started_at: run.facts.started_at,
                    last_event_at: run.facts.started_at,
                    last_turn: run.turns.values().next_back().copied(),
                    turns: run.turns_told(),
                    calls: run.calls(),
                });
            }
        }
        Ok(taken)
    }

    async fn put_turn(&self, lease: &RunLease, turn: TurnRecord) -> Result<(), StoreError> {
        self.leased(lease, |run| {
            run.turns.insert(turn.turn, turn);
            Ok(())
        })
    }

    async fn put_file(&self, lease: &RunLease, file: StoredFile) -> Result<(), StoreError> {
        self.leased(lease, |run| {
            run.files.insert(file.record.path.clone(), file);
            Ok(())
        })
    }

    async fn file(&self, run: &RunId, path: &str) -> Result<Option<FileRecord>, StoreError> {
        self.with(run, |run| {
            Ok(run.files.get(path).map(|file| file.record.clone()))
        })
    }

    async fn read_file(
        &self,
        run: &RunId,
        file: &FileRecord,
        offset: u64,
    ) -> Result<Bytes, StoreError> {
        self.with(run, |run| {
            let bytes = match run.files.get(&file.path) {
                Some(found) if found.record == *file => &found.bytes,
                _ => return Err(StoreError::Failed("the file has changed".to_owned())),
            };
            let from = usize::try_from(offset).unwrap().min(bytes.len());
            Ok(bytes.slice(from..bytes.len().min(from + 65_536)))
        })
    }

    async fn list_files(&self, run: &RunId) -> Result<Vec<FileRecord>, StoreError> {
        self.with(run, |run| {
            Ok(run.files.values().map(|file| file.record.clone()).collect())
        })
    }

    async fn put_sandbox(
        &self,
        lease: &RunLease,
        sandbox: SandboxRecord,
    ) -> Result<(), StoreError> {
        self.leased(lease, |run| {
            run.sandboxes.insert(sandbox.attempt, sandbox);
            Ok(())
        })
    }

    async fn sandboxes(&self, run: &RunId) -> Result<Vec<SandboxRecord>, StoreError> {
        self.with(run, |run| Ok(run.sandboxes.values().cloned().collect()))
    }

    async fn sandbox_owner(&self, sandbox_id: &str) -> Result<Option<RunId>, StoreError> {
        self.works()?;
        let runs = self.runs.lock();
        let holds = |run: &&Run| {
            let mut ids = run.sandboxes.values().map(|sandbox| &sandbox.sandbox_id);
            ids.any(|id| id.as_deref() == Some(sandbox_id)) && !run.deleted
        };
        Ok(runs.values().find(holds).map(|run| run.facts.id.clone()))
    }

    async fn left_sandboxes(&self, backend: &str) -> Result<Vec<LeftSandbox>, StoreError> {
        self.works()?;
        Ok(self.left(backend))
    }

    async fn sandbox_gone(&self, run: &RunId, attempt: u32) -> Result<(), StoreError> {
        self.works()?;
        let mut runs = self.runs.lock();
        let run = runs.get_mut(run);
        if let Some(sandbox) = run.and_then(|run| run.sandboxes.get_mut(&attempt)) {
            sandbox.destroyed = true;
        }
        Ok(())
    }

    async fn put_webhook(&self, delivery: WebhookDelivery) -> Result<bool, StoreError> {
        self.works()?;
        let mut webhooks = self.webhooks.lock();
        if webhooks
            .iter()
            .any(|known| known.event_id == delivery.event_id)
        {
            return Ok(false);
        }
        webhooks.push(delivery);
        Ok(true)
    }

    async fn webhooks(&self, run: &RunId) -> Result<Vec<WebhookDelivery>, StoreError> {
        self.with(run, |_| Ok(()))?;
        let webhooks = self.webhooks.lock();
        let about = |delivery: &&WebhookDelivery| delivery.run.as_ref() == Some(run);
        let mut told: Vec<_> = webhooks.iter().filter(about).cloned().collect();
        told.drain(..told.len().saturating_sub(TOLD_WEBHOOKS));
        Ok(told)
    }

    async fn delete(&self, run: &RunId) -> Result<Deletion, StoreError> {
        self.works()?;
        let mut runs = self.runs.lock();
        Ok(match runs.get_mut(run) {
            Some(run) if run.deleted => Deletion::Unknown,
            Some(run) if run.end.is_none() => Deletion::Live,
            Some(run) => {
                run.deleted = true;
                Deletion::Done
            }
            None => Deletion::Unknown,
        })
    }

    async fn believed(&self) -> Result<Option<Believed>, StoreError> {
        self.works()?;
        Ok(*self.believed.lock())
    }

    async fn believe(&self, believed: Believed) -> Result<(), StoreError> {
        self.works()?;
        *self.believed.lock() = Some(believed);
        Ok(())
    }

    async fn maintain(&self, rules: &Retention) -> Result<bool, StoreError> {
        self.works()?;
        let mut runs = self.runs.lock();
        let mut kept: Vec<_> = runs.values_mut().filter(|run| !run.deleted).collect();
        kept.sort_by_key(|run| (run.facts.started_at, run.facts.id.clone()));
        let mut too_many = kept
            .len()
            .saturating_sub(usize::try_from(rules.most_runs).unwrap_or(usize::MAX));
        for run in kept {
            let Some(end) = &run.end else {
                too_many = too_many.saturating_sub(1);
                continue;
            };
            let old = |before: Timestamp| end.completed_at < before;
            run.deleted = too_many > 0 || rules.ended_before.is_some_and(old);
            too_many = too_many.saturating_sub(1);
        }
        let mut webhooks = self.webhooks.lock();
        webhooks.retain(|delivery| delivery.received_at >= rules.webhooks_before);
        Ok(false)
    }

    async fn check(&self) -> Result<Check, StoreError> {
        Ok(Check::NotNeeded)
    }

    fn healthy(&self) -> bool {
        !self.broken.load(Ordering::SeqCst)
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}
