//! A complete store in memory, for tests that are not about storage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use sandcaster::events::StoredEvent;
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::{
    Append, FileRecord, Finish, NewRun, RunRecord, RunState, RunStore, SandboxRecord, StoreError,
    StoredFile, WebhookDelivery,
};

/// The store. `broken` makes everything but `healthy` and `id` fail.
#[derive(Default)]
pub struct MemoryStore {
    runs: Mutex<BTreeMap<RunId, Run>>,
    sandboxes: Mutex<Vec<SandboxRecord>>,
    webhooks: Mutex<Vec<WebhookDelivery>>,
    broken: AtomicBool,
}

struct Run {
    record: RunRecord,
    events: Vec<Arc<StoredEvent>>,
    files: BTreeMap<String, StoredFile>,
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

    fn works(&self) -> Result<(), StoreError> {
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
        let found = runs
            .get_mut(run)
            .ok_or_else(|| StoreError::NotFound(run.clone()))?;
        work(found)
    }
}

impl Run {
    fn push(&mut self, event: &Arc<StoredEvent>) -> Result<(), StoreError> {
        if self.record.state.terminal() {
            return Err(StoreError::Refused("the run has ended".to_owned()));
        }
        if event.seq != self.record.last_seq.next() {
            return Err(StoreError::Refused(format!("{} leaves a gap", event.seq)));
        }
        self.record.last_seq = event.seq;
        self.events.push(Arc::clone(event));
        Ok(())
    }
}

#[async_trait]
impl RunStore for MemoryStore {
    fn id(&self) -> &'static str {
        "store-in-memory"
    }

    async fn create(&self, run: NewRun) -> Result<(), StoreError> {
        self.works()?;
        let record = RunRecord {
            id: run.id.clone(),
            owner: run.owner,
            prompt: run.prompt,
            model: run.model,
            provider: run.provider,
            sandbox_provider: run.sandbox_provider,
            background: run.background,
            state: RunState::Running,
            started_at: run.started_at,
            completed_at: None,
            last_seq: Seq::ZERO,
            error_code: None,
            error: None,
            cost_nanos: None,
            input_tokens: None,
            output_tokens: None,
            num_turns: None,
            duration_secs: None,
            files_count: 0,
        };
        let mut created = Run {
            record,
            events: Vec::new(),
            files: BTreeMap::new(),
        };
        created.push(&Arc::new(run.first_event))?;
        self.runs.lock().insert(run.id, created);
        Ok(())
    }

    async fn append(&self, append: Append) -> Result<(), StoreError> {
        let written = self.with(&append.run, |run| {
            append.events.iter().try_for_each(|event| run.push(event))
        });
        match &written {
            Ok(()) => append.listener.committed(&append.events),
            Err(error) => append.listener.failed(&append.events, error),
        }
        Ok(())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.works()
    }

    async fn finish(&self, finish: Finish) -> Result<(), StoreError> {
        self.with(&finish.run, |run| {
            run.push(&finish.event)?;
            run.record.state = finish.state;
            run.record.completed_at = Some(finish.completed_at);
            run.record.error_code = finish.error_code.map(|code| code.as_str().to_owned());
            run.record.error = finish.error;
            run.record.cost_nanos = finish.cost_nanos;
            run.record.input_tokens = Some(finish.input_tokens);
            run.record.output_tokens = Some(finish.output_tokens);
            run.record.num_turns = Some(finish.num_turns);
            run.record.duration_secs = Some(finish.duration_secs);
            Ok(())
        })
    }

    async fn read(
        &self,
        run: &RunId,
        after: Seq,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.with(run, |run| {
            let events = run.events.iter().filter(|event| event.seq > after);
            Ok(events
                .take(limit as usize)
                .map(|event| StoredEvent::clone(event))
                .collect())
        })
    }

    async fn get(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
        self.works()?;
        Ok(self.runs.lock().get(run).map(|run| run.record.clone()))
    }

    async fn list(&self, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        self.works()?;
        let runs = self.runs.lock();
        let mut records: Vec<_> = runs.values().map(|run| run.record.clone()).collect();
        records.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
        records.truncate(limit as usize);
        Ok(records)
    }

    async fn unfinished(&self) -> Result<Vec<RunRecord>, StoreError> {
        self.works()?;
        let runs = self.runs.lock();
        let records = runs.values().map(|run| run.record.clone());
        Ok(records.filter(|run| !run.state.terminal()).collect())
    }

    async fn put_file(&self, run: &RunId, file: StoredFile) -> Result<(), StoreError> {
        self.with(run, |run| {
            run.files.insert(file.record.path.clone(), file);
            run.record.files_count = run.files.len() as u64;
            Ok(())
        })
    }

    async fn get_file(&self, run: &RunId, path: &str) -> Result<Option<StoredFile>, StoreError> {
        self.works()?;
        let runs = self.runs.lock();
        Ok(runs.get(run).and_then(|run| run.files.get(path).cloned()))
    }

    async fn list_files(&self, run: &RunId) -> Result<Vec<FileRecord>, StoreError> {
        self.with(run, |run| {
            Ok(run.files.values().map(|file| file.record.clone()).collect())
        })
    }

    async fn put_sandbox(&self, sandbox: SandboxRecord) -> Result<(), StoreError> {
        self.works()?;
        let mut sandboxes = self.sandboxes.lock();
        sandboxes.retain(|known| (&known.run, known.attempt) != (&sandbox.run, sandbox.attempt));
        sandboxes.push(sandbox);
        Ok(())
    }

    async fn sandboxes(&self, run: &RunId) -> Result<Vec<SandboxRecord>, StoreError> {
        self.works()?;
        let sandboxes = self.sandboxes.lock();
        Ok(sandboxes
            .iter()
            .filter(|s| s.run == *run)
            .cloned()
            .collect())
    }

    async fn sandbox_owner(&self, sandbox_id: &str) -> Result<Option<RunId>, StoreError> {
        self.works()?;
        let sandboxes = self.sandboxes.lock();
        let owner = sandboxes
            .iter()
            .find(|sandbox| sandbox.sandbox_id.as_deref() == Some(sandbox_id));
        Ok(owner.map(|sandbox| sandbox.run.clone()))
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
        self.works()?;
        let webhooks = self.webhooks.lock();
        let about = |delivery: &&WebhookDelivery| delivery.run.as_ref() == Some(run);
        Ok(webhooks.iter().filter(about).cloned().collect())
    }

    fn healthy(&self) -> bool {
        !self.broken.load(Ordering::SeqCst)
    }

    async fn close(&self) {}
}
