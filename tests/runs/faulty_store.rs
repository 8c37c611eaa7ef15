//! A store that can be made to fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use sandcaster::events::StoredEvent;
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::{
    Append, FileRecord, Finish, NewRun, RunRecord, RunStore, SandboxRecord, SqliteStore,
    StoreError, StoredFile, WebhookDelivery,
};

/// The real store, behind a switch that makes every write fail.
pub struct FaultyStore {
    pub inner: Arc<SqliteStore>,
    down: AtomicBool,
}

impl FaultyStore {
    pub fn new(inner: Arc<SqliteStore>) -> Self {
        Self {
            inner,
            down: AtomicBool::new(false),
        }
    }

    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), StoreError> {
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
    async fn create(&self, run: NewRun) -> Result<(), StoreError> {
        self.check()?;
        self.inner.create(run).await
    }
    async fn append(&self, append: Append) -> Result<(), StoreError> {
        match self.check() {
            Ok(()) => self.inner.append(append).await,
            Err(error) => {
                append.listener.failed(&append.events, &error);
                Ok(())
            }
        }
    }
    async fn sync(&self) -> Result<(), StoreError> {
        self.check()?;
        self.inner.sync().await
    }
    async fn finish(&self, finish: Finish) -> Result<(), StoreError> {
        self.check()?;
        self.inner.finish(finish).await
    }
    async fn read(
        &self,
        run: &RunId,
        after: Seq,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.read(run, after, limit).await
    }
    async fn get(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
        self.inner.get(run).await
    }
    async fn list(&self, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        self.inner.list(limit).await
    }
    async fn unfinished(&self) -> Result<Vec<RunRecord>, StoreError> {
        self.inner.unfinished().await
    }
    async fn put_file(&self, run: &RunId, file: StoredFile) -> Result<(), StoreError> {
        self.inner.put_file(run, file).await
    }
    async fn get_file(&self, run: &RunId, path: &str) -> Result<Option<StoredFile>, StoreError> {
        self.inner.get_file(run, path).await
    }
    async fn list_files(&self, run: &RunId) -> Result<Vec<FileRecord>, StoreError> {
        self.inner.list_files(run).await
    }
    async fn put_sandbox(&self, sandbox: SandboxRecord) -> Result<(), StoreError> {
        self.inner.put_sandbox(sandbox).await
    }
    async fn sandboxes(&self, run: &RunId) -> Result<Vec<SandboxRecord>, StoreError> {
        self.inner.sandboxes(run).await
    }
    async fn sandbox_owner(&self, sandbox_id: &str) -> Result<Option<RunId>, StoreError> {
        self.inner.sandbox_owner(sandbox_id).await
    }
    async fn put_webhook(&self, delivery: WebhookDelivery) -> Result<bool, StoreError> {
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
