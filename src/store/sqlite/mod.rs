//! The run store in one `SQLite` file: nothing to set up, one writer thread, any number of readers.
//!
//! | file | what it does |
//! |---|---|
//! | `data_dir` | the directory and its locks: who may use it, which processes are alive |
//! | `schema` | tables, and the triggers that hold a log together; migrations; connections |
//! | `queue` | the bounded queue in front of the writer |
//! | `writer`, `ops` | the thread that writes, in grouped transactions, and each write as SQL |
//! | `sync`, `checkpoint` | durability and the log's size, each beside the writer |
//! | `reads` | every query |
//!
//! Several processes may write to one directory (a server, and one-shot commands); each has its own writer,
//! and `BEGIN IMMEDIATE` makes them take turns.

mod checkpoint;
mod data_dir;
mod health;
mod inode;
mod ops;
mod options;
mod queue;
mod reads;
mod schema;
mod sync;
mod writer;

use std::sync::Arc;
use std::thread;

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};

use self::checkpoint::Checkpointer;
use self::data_dir::DataDir;
use self::health::Healthy;
pub use self::options::{Role, StoreDurability, StoreOptions};
use self::queue::{Queue, SyncWish, Work};
use self::reads::Readers;
use self::schema::Purpose;
use self::sync::Syncer;
use self::writer::Writer;
use super::types::{
    Append, FileRecord, Finish, NewRun, RunRecord, RunStore, SandboxRecord, StoreError, StoredFile,
    WebhookDelivery,
};
use crate::events::StoredEvent;
use crate::ids::{RunId, Seq};

/// The store. [`RunStore::close`] lets go of the directory; dropping it does so soon after.
pub struct SqliteStore {
    id: String,
    data_dir: DataDir,
    queue: Arc<Queue>,
    readers: Arc<Readers>,
    healthy: Arc<Healthy>,
    closed: watch::Receiver<bool>,
}

impl SqliteStore {
    /// Opens the store, making or migrating what needs it. Blocks for some milliseconds.
    ///
    /// # Errors
    /// `InUse` when another server has the directory; `Unusable` when the directory can't be written, the
    /// database is damaged or newer than this program, or `SQLite` is too old.
    pub fn open(options: StoreOptions) -> Result<Arc<Self>, StoreError> {
        let StoreOptions {
            data_dir,
            role,
            durability,
            clock,
            max_pages,
        } = options;
        let (data_dir, locks) = DataDir::open(&data_dir, role)?;
        let turn = data_dir.take_turn()?;
        let path = data_dir.database()?;
        let fault = |error: rusqlite::Error| schema::unusable(&path, &error);
        let mut db = schema::connect(&path, Purpose::Write, durability).map_err(fault)?;
        let id = schema::prepare(&mut db, &path)?;
        if let Some(pages) = max_pages {
            db.pragma_update(None, "max_page_count", pages)
                .map_err(fault)?;
        }
        let checkpoints = schema::connect(&path, Purpose::Checkpoint, durability).map_err(fault)?;
        drop(turn);

        let no_thread = |error: std::io::Error| {
            StoreError::Unusable(format!(
                "could not start a thread of the run store: {error}"
            ))
        };
        let queue = Arc::new(Queue::new());
        let healthy = Arc::new(Healthy::new());
        let (tell_closed, closed) = watch::channel(false);
        let writer = Writer {
            db,
            queue: Arc::clone(&queue),
            clock,
            durability,
            healthy: Arc::clone(&healthy),
            syncer: Syncer::start(&path, Arc::clone(&healthy)).map_err(no_thread)?,
            checkpointer: Checkpointer::start(checkpoints).map_err(no_thread)?,
            locks,
            closed: tell_closed,
        };
        writer.sync_soon();
        thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(no_thread)?;
        Ok(Arc::new(Self {
            id,
            data_dir,
            queue,
            readers: Arc::new(Readers::new(path)),
            healthy,
            closed,
        }))
    }

    /// The name of this process in the rows of its runs ([`NewRun::owner`]).
    pub fn owner(&self) -> &str {
        self.data_dir.owner()
    }

    /// Whether the process named `owner` is alive. When in doubt it is.
    pub fn owner_alive(&self, owner: &str) -> bool {
        self.data_dir.owner_alive(owner)
    }

    /// Removes the lock files of processes that have died. For the server alone, after it has recovered their
    /// runs: at the moment of removal an owner seems alive to others.
    pub fn forget_dead_owners(&self) {
        self.data_dir.sweep();
    }

    /// Whether a process had died without closing the store before it was opened: time to [`Self::check`].
    pub fn unclean(&self) -> bool {
        self.data_dir.unclean()
    }

    /// Looks for damage: `Some` says what was found. Reads the whole database (rule DB-3).
    ///
    /// # Errors
    /// When it can't be read at all.
    pub async fn check(&self) -> Result<Option<String>, StoreError> {
        self.readers.run(reads::quick_check).await
    }

    async fn write(&self, work: Work, sync: SyncWish) -> Result<bool, StoreError> {
        let (tell, told) = oneshot::channel();
        self.queue.push(work, sync, Some(tell)).await?;
        told.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.queue.close();
    }
}

#[async_trait]
impl RunStore for SqliteStore {
    fn id(&self) -> &str {
        &self.id
    }

    async fn create(&self, run: NewRun) -> Result<(), StoreError> {
        self.write(Work::Create(Box::new(run)), SyncWish::Soon)
            .await
            .map(|_| ())
    }

    async fn append(&self, append: Append) -> Result<(), StoreError> {
        if append.events.is_empty() {
            return Ok(());
        }
        self.queue
            .push(Work::Append(append), SyncWish::Whenever, None)
            .await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.write(Work::Flush, SyncWish::Wait).await.map(|_| ())
    }

    async fn finish(&self, finish: Finish) -> Result<(), StoreError> {
        self.write(Work::Finish(Box::new(finish)), SyncWish::Wait)
            .await
            .map(|_| ())
    }

    async fn read(
        &self,
        run: &RunId,
        after: Seq,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let run = run.clone();
        self.readers
            .run(move |db| reads::events(db, &run, after, limit))
            .await
    }

    async fn get(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
        let run = run.clone();
        self.readers.run(move |db| reads::get(db, &run)).await
    }

    async fn list(&self, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        self.readers.run(move |db| reads::list(db, limit)).await
    }

    async fn unfinished(&self) -> Result<Vec<RunRecord>, StoreError> {
        self.readers.run(reads::unfinished).await
    }

    async fn put_file(&self, run: &RunId, file: StoredFile) -> Result<(), StoreError> {
        self.write(Work::PutFile(run.clone(), file), SyncWish::Whenever)
            .await
            .map(|_| ())
    }

    async fn get_file(&self, run: &RunId, path: &str) -> Result<Option<StoredFile>, StoreError> {
        let (run, path) = (run.clone(), path.to_owned());
        self.readers
            .run(move |db| reads::file(db, &run, &path))
            .await
    }

    async fn list_files(&self, run: &RunId) -> Result<Vec<FileRecord>, StoreError> {
        let run = run.clone();
        self.readers.run(move |db| reads::files(db, &run)).await
    }

    async fn put_sandbox(&self, sandbox: SandboxRecord) -> Result<(), StoreError> {
        self.write(Work::PutSandbox(sandbox), SyncWish::Soon)
            .await
            .map(|_| ())
    }

    async fn sandboxes(&self, run: &RunId) -> Result<Vec<SandboxRecord>, StoreError> {
        let run = run.clone();
        self.readers.run(move |db| reads::sandboxes(db, &run)).await
    }

    async fn sandbox_owner(&self, sandbox_id: &str) -> Result<Option<RunId>, StoreError> {
        let sandbox = sandbox_id.to_owned();
        self.readers
            .run(move |db| reads::sandbox_owner(db, &sandbox))
            .await
    }

    async fn put_webhook(&self, delivery: WebhookDelivery) -> Result<bool, StoreError> {
        self.write(Work::PutWebhook(Box::new(delivery)), SyncWish::Soon)
            .await
    }

    async fn webhooks(&self, run: &RunId) -> Result<Vec<WebhookDelivery>, StoreError> {
        let run = run.clone();
        self.readers.run(move |db| reads::webhooks(db, &run)).await
    }

    fn healthy(&self) -> bool {
        self.healthy.get()
    }

    async fn close(&self) {
        self.readers.close().await;
        self.queue.close();
        let mut closed = self.closed.clone();
        // An error means that the writer is gone, which is what is waited for.
        drop(closed.wait_for(|closed| *closed).await);
    }
}
