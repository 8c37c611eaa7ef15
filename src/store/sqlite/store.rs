//! The store itself: opening it, and the trait's face of its queue and its readers.

use std::sync::Arc;
use std::thread;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::InterruptHandle;
use tokio::sync::{oneshot, watch};

use super::super::types::{
    Append, Believed, Check, Deletion, FileRecord, Flush, LeftSandbox, OpenRun, Retention, RunEnd,
    RunFacts, RunHead, RunLease, RunRecord, RunStore, SandboxRecord, StoreError, StoredFile,
    TurnRecord, WebhookDelivery,
};
use super::checkpoint::Checkpointer;
use super::data_dir::DataDir;
use super::fault::failure;
use super::health::Healthy;
use super::names::Names;
use super::options::StoreOptions;
use super::queue::{Queue, SyncWish, Work};
use super::reads::{self, Readers};
use super::retention;
use super::schema::{self, Purpose};
use super::sync::Syncer;
use super::watch::Followed;
use super::writer::Writer;
use crate::events::StoredEvent;
use crate::ids::{RunId, Seq};
use crate::spec::StoreDurability;

/// The store. [`RunStore::close`] lets go of the directory; dropping it does so soon after.
pub struct SqliteStore {
    id: String,
    data_dir: Arc<DataDir>,
    queue: Arc<Queue>,
    readers: Arc<Readers>,
    healthy: Arc<Healthy>,
    followed: Followed,
    checking: Arc<Mutex<Checking>>,
    closed: watch::Receiver<bool>,
}

/// The look for damage.
#[derive(Default)]
struct Checking {
    wanted: bool,
    interrupt: Option<InterruptHandle>,
}

impl Checking {
    fn stop(&mut self) {
        self.wanted = false;
        if let Some(look) = self.interrupt.take() {
            look.interrupt();
        }
    }
}

/// Ends the look when it is dropped.
struct Look(Arc<Mutex<Checking>>);

impl Drop for Look {
    fn drop(&mut self) {
        self.0.lock().stop();
    }
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
            busy_timeout,
            away,
        } = options;
        let (data_dir, locks, turn) = DataDir::open(&data_dir, role)?;
        let path = data_dir.database()?;
        let fault = |error: rusqlite::Error| schema::unusable(&path, &error);
        let mut db = schema::connect(&path, Purpose::Write, durability).map_err(fault)?;
        // An older process that runs could not use it any more.
        if schema::outdated(&db).map_err(fault)? {
            data_dir.without_older()?;
        }
        let id = schema::prepare(&mut db, &path)?;
        if let Some(pages) = max_pages {
            db.pragma_update(None, "max_page_count", pages)
                .map_err(fault)?;
        }
        db.busy_timeout(busy_timeout).map_err(fault)?;
        let checkpoints = schema::connect(&path, Purpose::Checkpoint, durability).map_err(fault)?;
        let names = Names::of(&path, away);
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
            names,
            owner: Arc::clone(data_dir.owner()),
            busy_timeout,
            closed: tell_closed,
        };
        writer.sync_soon();
        thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(no_thread)?;
        Ok(Arc::new(Self {
            id,
            data_dir: Arc::new(data_dir),
            queue,
            readers: Arc::new(Readers::new(path)),
            healthy,
            followed: Followed::default(),
            checking: Arc::default(),
            closed,
        }))
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

    async fn create(&self, facts: RunFacts, first: StoredEvent) -> Result<RunLease, StoreError> {
        let lease = RunLease {
            run: facts.id.clone(),
            owner: Arc::clone(self.data_dir.owner()),
            epoch: 1,
        };
        let work = Work::Create(lease.clone(), Box::new((facts, first)));
        self.write(work, SyncWish::Soon).await?;
        Ok(lease)
    }

    async fn append(&self, append: Append) -> Result<(), StoreError> {
        if append.events.is_empty() {
            return Ok(());
        }
        self.queue
            .push(Work::Append(append), SyncWish::Whenever, None)
            .await
    }

    async fn flush(&self, until: Flush) -> Result<(), StoreError> {
        let sync = match until {
            Flush::Committed => SyncWish::Whenever,
            Flush::Synced => SyncWish::Wait,
        };
        self.write(Work::Flush, sync).await.map(|_| ())
    }

    async fn finish(
        &self,
        lease: &RunLease,
        event: Arc<StoredEvent>,
        end: RunEnd,
    ) -> Result<(), StoreError> {
        let work = Work::Finish(lease.clone(), event, Box::new(end));
        self.write(work, SyncWish::Wait).await.map(|_| ())
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

    async fn watch(&self, run: &RunId, after: Seq) -> Result<(), StoreError> {
        let head = || async { self.head(run).await.map(|head| head.last_seq) };
        self.followed.past(run, after, head).await
    }

    async fn head(&self, run: &RunId) -> Result<RunHead, StoreError> {
        let run = run.clone();
        self.readers.run(move |db| reads::head(db, &run)).await
    }

    async fn get(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
        let run = run.clone();
        self.readers.run(move |db| reads::get(db, &run)).await
    }

    async fn beginning(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
        let run = run.clone();
        self.readers.run(move |db| reads::beginning(db, &run)).await
    }

    async fn list(&self, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        self.readers.run(move |db| reads::list(db, limit)).await
    }

    async fn expired_runs(&self) -> Result<Vec<OpenRun>, StoreError> {
        let data_dir = Arc::clone(&self.data_dir);
        let gone = self.readers.run(move |db| {
            let mut owners = reads::owners_of_open_runs(db)?;
            owners.retain(|owner| data_dir.gone(owner));
            Ok(owners)
        });
        for from in gone.await? {
            let by = Arc::clone(self.data_dir.owner());
            self.write(Work::TakeOver { from, by }, SyncWish::Whenever)
                .await?;
        }
        let owner = Arc::clone(self.data_dir.owner());
        self.readers
            .run(move |db| reads::taken_over(db, &owner))
            .await
    }

    async fn put_turn(&self, lease: &RunLease, turn: TurnRecord) -> Result<(), StoreError> {
        self.write(Work::PutTurn(lease.clone(), turn), SyncWish::Whenever)
            .await
            .map(|_| ())
    }

    async fn put_file(&self, lease: &RunLease, file: StoredFile) -> Result<(), StoreError> {
        self.write(Work::PutFile(lease.clone(), file), SyncWish::Whenever)
            .await
            .map(|_| ())
    }

    async fn file(&self, run: &RunId, path: &str) -> Result<Option<FileRecord>, StoreError> {
        let (run, path) = (run.clone(), path.to_owned());
        self.readers
            .run(move |db| reads::file(db, &run, &path))
            .await
    }

    async fn read_file(
        &self,
        run: &RunId,
        file: &FileRecord,
        offset: u64,
    ) -> Result<Bytes, StoreError> {
        let (run, file) = (run.clone(), file.clone());
        self.readers
            .run(move |db| reads::file_bytes(db, &run, &file, offset))
            .await
    }

    async fn list_files(&self, run: &RunId) -> Result<Vec<FileRecord>, StoreError> {
        let run = run.clone();
        self.readers.run(move |db| reads::files(db, &run)).await
    }

    async fn put_sandbox(
        &self,
        lease: &RunLease,
        sandbox: SandboxRecord,
    ) -> Result<(), StoreError> {
        self.write(Work::PutSandbox(lease.clone(), sandbox), SyncWish::Soon)
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

    async fn left_sandboxes(&self, backend: &str) -> Result<Vec<LeftSandbox>, StoreError> {
        let backend = backend.to_owned();
        self.readers
            .run(move |db| reads::left_sandboxes(db, &backend))
            .await
    }

    async fn sandbox_gone(&self, run: &RunId, attempt: u32) -> Result<(), StoreError> {
        let work = Work::SandboxGone(run.clone(), attempt);
        self.write(work, SyncWish::Whenever).await.map(|_| ())
    }

    async fn put_webhook(&self, delivery: WebhookDelivery) -> Result<bool, StoreError> {
        let work = Work::PutWebhook(Box::new(delivery));
        self.write(work, SyncWish::Soon).await
    }

    async fn webhooks(&self, run: &RunId) -> Result<Vec<WebhookDelivery>, StoreError> {
        let run = run.clone();
        self.readers.run(move |db| reads::webhooks(db, &run)).await
    }

    async fn delete(&self, run: &RunId) -> Result<Deletion, StoreError> {
        match self.head(run).await {
            Ok(RunHead { ended: true, .. }) => {}
            Ok(_) => return Ok(Deletion::Live),
            Err(StoreError::NotFound(_) | StoreError::Expired(_)) => return Ok(Deletion::Unknown),
            Err(error) => return Err(error),
        }
        let deleted = self
            .write(Work::Delete(run.clone()), SyncWish::Wait)
            .await?;
        Ok(if deleted {
            Deletion::Done
        } else {
            Deletion::Unknown
        })
    }

    async fn maintain(&self, retention: &Retention) -> Result<bool, StoreError> {
        let rules = retention.clone();
        let expired = self
            .readers
            .run(move |db| retention::expired(db, &rules))
            .await?;
        if expired.is_empty() {
            let purge = Work::Purge(retention.clone());
            return self.write(purge, SyncWish::Whenever).await;
        }
        let runs = expired.len();
        let more = self
            .write(Work::Expire(expired), SyncWish::Whenever)
            .await?;
        tracing::info!(runs, "deleted runs that are kept no longer");
        Ok(more)
    }

    async fn believed(&self) -> Result<Option<Believed>, StoreError> {
        self.readers.run(retention::believed).await
    }

    async fn believe(&self, believed: Believed) -> Result<(), StoreError> {
        let work = Work::Believe(believed);
        self.write(work, SyncWish::Whenever).await.map(drop)
    }

    async fn check(&self) -> Result<Check, StoreError> {
        if !self.data_dir.unclean() {
            return Ok(Check::NotNeeded);
        }
        self.checking.lock().wanted = true;
        let ends_with_this = Look(Arc::clone(&self.checking));
        let (path, checking) = (self.readers.path().to_owned(), Arc::clone(&self.checking));
        let look = tokio::task::spawn_blocking(move || {
            let db = schema::connect(&path, Purpose::Read, StoreDurability::Normal)
                .map_err(|error| failure(&error))?;
            {
                let mut checking = checking.lock();
                if !checking.wanted {
                    return Err(StoreError::Closed);
                }
                checking.interrupt = Some(db.get_interrupt_handle());
            }
            reads::quick_check(&db)
        });
        let found = look.await.map_err(|_panicked| StoreError::Closed)??;
        drop(ends_with_this);
        Ok(match found {
            None => {
                self.data_dir.sweep();
                Check::Whole
            }
            Some(damage) => Check::Damaged(damage),
        })
    }

    fn healthy(&self) -> bool {
        self.healthy.get()
    }

    async fn close(&self) {
        self.checking.lock().stop();
        self.readers.close().await;
        self.queue.close();
        let mut closed = self.closed.clone();
        // An error means that the writer is gone, which is what is waited for.
        drop(closed.wait_for(|closed| *closed).await);
    }
}
