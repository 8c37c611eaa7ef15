//! A store that can be made to fail.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sandcaster::events::StoredEvent;
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::{
    Append, Believed, Check, Deletion, FileRecord, Flush, LeftSandbox, OpenRun, Retention, Role,
    RunEnd, RunFacts, RunHead, RunLease, RunRecord, RunStore, SandboxRecord, SqliteStore,
    StoreError, StoreOptions, StoredFile, TurnRecord, WebhookDelivery,
};
use tokio_util::sync::CancellationToken;

/// The real store, behind a switch that makes every write fail.
pub struct FaultyStore {
    pub inner: Arc<SqliteStore>,
    down: AtomicBool,
    held: Mutex<Option<CancellationToken>>,
    panics: AtomicBool,
    unreadable: AtomicBool,
}

impl FaultyStore {
    /// Over the real store in `dir`.
    pub fn over(dir: &Path) -> Self {
        Self {
            inner: SqliteStore::open(StoreOptions::new(dir, Role::Serve)).unwrap(),
            down: AtomicBool::new(false),
            held: Mutex::default(),
            panics: AtomicBool::new(false),
            unreadable: AtomicBool::new(false),
        }
    }

    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Ends are committed at once, and synced when `until` fires; webhooks are stored then.
    pub fn hold_ends(&self, until: &CancellationToken) {
        *self.held.lock() = Some(until.clone());
    }

    /// The next end panics.
    pub fn panic_at_an_end(&self) {
        self.panics.store(true, Ordering::SeqCst);
    }

    /// No log can be read any more.
    pub fn lose_logs(&self) {
        self.unreadable.store(true, Ordering::SeqCst);
    }

    fn up(&self) -> Result<(), StoreError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Failed("the disk is full".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl RunStore for FaultyStore {
    fn id(&self) -> &str {
        self.inner.id()
    }
    async fn create(&self, facts: RunFacts, first: StoredEvent) -> Result<RunLease, StoreError> {
        self.up()?;
        self.inner.create(facts, first).await
    }
    async fn append(&self, append: Append) -> Result<(), StoreError> {
        match self.up() {
            Ok(()) => self.inner.append(append).await,
            Err(error) => {
                append.listener.failed(&append.events, &error);
                Ok(())
            }
        }
    }
    async fn flush(&self, until: Flush) -> Result<(), StoreError> {
        self.up()?;
        self.inner.flush(until).await
    }
    async fn finish(
        &self,
        lease: &RunLease,
        event: Arc<StoredEvent>,
        end: RunEnd,
    ) -> Result<(), StoreError> {
        self.up()?;
        let rotten = self.panics.swap(false, Ordering::SeqCst);
        assert!(!rotten, "the store has a fault");
        let finished = self.inner.finish(lease, event, end).await;
        let held = self.held.lock().clone();
        if let Some(until) = held {
            until.cancelled().await;
        }
        finished
    }
    async fn read(
        &self,
        run: &RunId,
        after: Seq,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        if self.unreadable.load(Ordering::SeqCst) {
            return Err(StoreError::Failed("a page is damaged".to_owned()));
        }
        self.inner.read(run, after, limit).await
    }
    async fn watch(&self, run: &RunId, after: Seq) -> Result<(), StoreError> {
        self.inner.watch(run, after).await
    }
    async fn head(&self, run: &RunId) -> Result<RunHead, StoreError> {
        self.inner.head(run).await
    }
    async fn get(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
        self.inner.get(run).await
    }
    async fn beginning(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
        self.up()?;
        self.inner.beginning(run).await
    }
    async fn list(&self, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        self.inner.list(limit).await
    }
    async fn expired_runs(&self) -> Result<Vec<OpenRun>, StoreError> {
        self.inner.expired_runs().await
    }
    async fn put_turn(&self, lease: &RunLease, turn: TurnRecord) -> Result<(), StoreError> {
        self.up()?;
        self.inner.put_turn(lease, turn).await
    }
    async fn put_file(&self, lease: &RunLease, file: StoredFile) -> Result<(), StoreError> {
        self.inner.put_file(lease, file).await
    }
    async fn file(&self, run: &RunId, path: &str) -> Result<Option<FileRecord>, StoreError> {
        self.inner.file(run, path).await
    }
    async fn read_file(
        &self,
        run: &RunId,
        file: &FileRecord,
        offset: u64,
    ) -> Result<Bytes, StoreError> {
        self.inner.read_file(run, file, offset).await
    }
    async fn list_files(&self, run: &RunId) -> Result<Vec<FileRecord>, StoreError> {
        self.inner.list_files(run).await
    }
    async fn put_sandbox(
        &self,
        lease: &RunLease,
        sandbox: SandboxRecord,
    ) -> Result<(), StoreError> {
        self.inner.put_sandbox(lease, sandbox).await
    }
    async fn left_sandboxes(&self, backend: &str) -> Result<Vec<LeftSandbox>, StoreError> {
        self.inner.left_sandboxes(backend).await
    }
    async fn sandbox_gone(&self, run: &RunId, attempt: u32) -> Result<(), StoreError> {
        self.inner.sandbox_gone(run, attempt).await
    }
    async fn delete(&self, run: &RunId) -> Result<Deletion, StoreError> {
        self.inner.delete(run).await
    }
    async fn maintain(&self, retention: &Retention) -> Result<bool, StoreError> {
        self.inner.maintain(retention).await
    }
    async fn believed(&self) -> Result<Option<Believed>, StoreError> {
        self.inner.believed().await
    }
    async fn believe(&self, believed: Believed) -> Result<(), StoreError> {
        self.inner.believe(believed).await
    }
    async fn check(&self) -> Result<Check, StoreError> {
        self.inner.check().await
    }
    async fn sandboxes(&self, run: &RunId) -> Result<Vec<SandboxRecord>, StoreError> {
        self.inner.sandboxes(run).await
    }
    async fn sandbox_owner(&self, sandbox_id: &str) -> Result<Option<RunId>, StoreError> {
        self.inner.sandbox_owner(sandbox_id).await
    }
    async fn put_webhook(&self, delivery: WebhookDelivery) -> Result<bool, StoreError> {
        let held = self.held.lock().clone();
        if let Some(until) = held {
            until.cancelled().await;
        }
        self.inner.put_webhook(delivery).await
    }
    async fn webhooks(&self, run: &RunId) -> Result<Vec<WebhookDelivery>, StoreError> {
        self.inner.webhooks(run).await
    }
    fn healthy(&self) -> bool {
        self.inner.healthy()
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}
