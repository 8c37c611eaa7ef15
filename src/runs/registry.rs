//! The runs of this process: admitted, started, found again, stopped.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::control::{RunControl, Stop};
use super::lease::{ReaderLease, Readers};
use super::log::{LogLimits, LogWriter, Logs};
use super::problems::{
    RETRY, cursor_ahead, events_problem, run_not_found, store_problem, unwritable,
};
use super::reader::{CursorError, LogReader};
use super::reaper::{self, Reaper};
use super::retention::{self, Keep};
use super::sandbox::{BackendEntry, Owner, RunSandbox};
use super::signal::SandboxSignal;
use super::tail::Live;
use super::task::RunTask;
use super::tasks::{TaskKind, Tasks};
use crate::clock::{Clock, Deadline, rfc3339_seconds};
use crate::error::{ErrorCode, Problem};
use crate::events::{RunEvent, StoredEvent, SystemEvent};
use crate::ids::{RunId, Seq};
use crate::llm::LlmProvider;
use crate::sandbox::SandboxBackend;
use crate::secrets::Redactor;
use crate::spec::{InputFile, Presence, RunSpec};
use crate::store::{Deletion, Role, RunFacts, RunHead, RunRecord, RunStore, StoreError};

/// Readers of one run at once (rule CL-6).
const READERS_PER_RUN: usize = 64;
/// What [`Runs`] is made from.
pub struct RunsConfig {
    /// Where runs are kept.
    pub store: Arc<dyn RunStore>,
    /// How long they are kept.
    pub keep: Keep,
    /// LLM providers by name.
    pub providers: BTreeMap<&'static str, Arc<dyn LlmProvider>>,
    /// Sandbox backends by name, with the number of sandboxes that each may have at once.
    pub backends: BTreeMap<&'static str, (Arc<dyn SandboxBackend>, Option<usize>)>,
    /// Runs at once.
    pub max_concurrent_runs: usize,
    /// Cleans what is shown and stored.
    pub redactor: Redactor,
    /// Wall time.
    pub clock: Clock,
    /// Every task of the process.
    pub tasks: Tasks,
}

/// The runs of this process. Cheap to clone.
#[derive(Clone)]
pub struct Runs(Arc<Inner>);

struct Inner {
    store: Arc<dyn RunStore>,
    keep: Keep,
    logs: Logs,
    providers: BTreeMap<&'static str, Arc<dyn LlmProvider>>,
    backends: BTreeMap<&'static str, BackendEntry>,
    places: Arc<Semaphore>,
    max_concurrent_runs: usize,
    redactor: Redactor,
    clock: Clock,
    tasks: Tasks,
    live: Mutex<HashMap<RunId, LiveRun>>,
    deleted: Arc<Notify>,
    draining: AtomicBool,
    stop_background: CancellationToken,
}

/// A run that goes on in this process.
#[derive(Clone)]
struct LiveRun {
    log: Arc<Live>,
    control: RunControl,
    readers: Readers,
    sandbox: RunSandbox,
}

/// A run that is in the store and can be read; where and until when it runs is not decided yet.
struct Accepted {
    id: RunId,
    spec: Arc<RunSpec>,
    inputs: Vec<InputFile>,
    writer: Arc<LogWriter>,
    at: Instant,
}

/// What a run needs to run.
struct Means {
    provider: Arc<dyn LlmProvider>,
    backend: BackendEntry,
    place: OwnedSemaphorePermit,
}

/// Whether work can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Ok,
    /// The server is stopping.
    Draining,
    /// The store can't be written.
    Unavailable,
}

/// A run that was started.
pub struct RunHandle {
    /// Its id.
    pub id: RunId,
    /// A reader of its log from the first event, which counts as attached until it is dropped.
    pub reader: RunReader,
}

/// Reads a run's log: replay, then live. Dropping it may start the run's grace period.
pub struct RunReader {
    log: LogReader,
    _lease: Option<ReaderLease>,
}

/// What `POST /runs/{id}/cancel` found.
#[derive(Clone, Debug)]
pub struct CancelOutcome {
    /// The run had ended before; its record says how.
    pub already_ended: bool,
    /// The run, as it is now.
    pub record: RunRecord,
}

impl Runs {
    /// The runs of a process, none yet.
    pub fn new(config: RunsConfig) -> Self {
        Self::with_log_limits(config, LogLimits::default())
    }

    /// As [`Self::new`], with other limits for each run's log.
    pub fn with_log_limits(config: RunsConfig, limits: LogLimits) -> Self {
        let backends = config
            .backends
            .into_iter()
            .map(|(name, (backend, most))| {
                let places = most.map(|most| Arc::new(Semaphore::new(most)));
                (
                    name,
                    BackendEntry {
                        name,
                        backend,
                        places,
                    },
                )
            })
            .collect();
        Self(Arc::new(Inner {
            logs: Logs::redacted(Arc::clone(&config.store), limits, config.redactor.clone()),
            store: config.store,
            keep: config.keep,
            providers: config.providers,
            backends,
            places: Arc::new(Semaphore::new(config.max_concurrent_runs)),
            max_concurrent_runs: config.max_concurrent_runs,
            redactor: config.redactor,
            clock: config.clock,
            tasks: config.tasks,
            live: Mutex::default(),
            deleted: Arc::default(),
            draining: AtomicBool::new(false),
            stop_background: CancellationToken::new(),
        }))
    }

    /// Starts looking, now and every minute, for runs whose process died, for sandboxes that nobody needs, and, in
    /// a server, for what is to be deleted: how long runs are kept is said by the server's settings alone.
    pub fn start_housekeeping(&self, role: Role) {
        let inner = &self.0;
        let reaping = reaper::reap(
            Reaper {
                store: Arc::clone(&inner.store),
                backends: inner.backends.values().cloned().collect(),
                clock: inner.clock.clone(),
            },
            inner.stop_background.clone(),
        );
        // It ends by its token, as does the other.
        let _detached = inner.tasks.spawn(TaskKind::Housekeeping, reaping);
        if role == Role::OneShot {
            return;
        }
        let retaining = retention::retain(
            Arc::clone(&inner.store),
            inner.keep,
            inner.clock.clone(),
            Arc::clone(&inner.deleted),
            inner.stop_background.clone(),
        );
        let _detached = inner.tasks.spawn(TaskKind::Housekeeping, retaining);
    }

    /// Admits and starts a run.
    ///
    /// # Errors
    /// `QUEUE_FULL`, `DRAINING`, `STORE_UNAVAILABLE`.
    pub async fn start(&self, spec: RunSpec) -> Result<RunHandle, Problem> {
        let runs = self.clone();
        let (tell, told) = oneshot::channel();
        let id = RunId::new();
        // On every line of the log about the run, whatever the log's level.
        let span = tracing::error_span!("run", run.id = %id);
        // The run's own task from the beginning: a client that leaves in the middle must not leave a run without
        // one. It runs to its terminal event by itself; nobody waits for it but the process's end.
        let running = async move {
            match Box::pin(runs.admit(id, spec)).await {
                Ok((task, handle)) => {
                    let _ended = Gone(&runs, handle.id.clone());
                    // A client that has left drops its reader with this.
                    drop(tell.send(Ok(handle)));
                    task.run().await;
                }
                Err(problem) => drop(tell.send(Err(problem))),
            }
        };
        let _detached = self.0.tasks.spawn(TaskKind::Run, running.instrument(span));
        told.await.unwrap_or_else(|_dropped| {
            Err(if self.0.draining.load(Ordering::Acquire) {
                draining()
            } else {
                Problem::new(
                    ErrorCode::Internal,
                    "a fault in sandcaster itself kept the run from starting",
                )
                .hint("the server's log has the details")
            })
        })
    }

    /// Whether a run would be taken now, so that what would be refused anyway is refused before it is read
    /// (rule AD-1). Reserves nothing, and does no I/O.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn admits(&self) -> Result<(), Problem> {
        let inner = &self.0;
        if inner.draining.load(Ordering::Acquire) {
            return Err(draining());
        }
        if !inner.store.healthy() {
            return Err(unwritable());
        }
        if inner.places.available_permits() == 0 {
            return Err(self.full());
        }
        Ok(())
    }

    fn full(&self) -> Problem {
        Problem::new(
            ErrorCode::QueueFull,
            format!(
                "{} runs are under way, which is this server's limit",
                self.0.max_concurrent_runs
            ),
        )
        .hint("wait and send the request again, or raise server.maxConcurrentRuns")
        .retry_after(RETRY)
    }

    async fn admit(&self, id: RunId, spec: RunSpec) -> Result<(RunTask, RunHandle), Problem> {
        let means = self.means(&spec)?;
        let accepted = self.accept(id, spec).await?;
        // A reader that is attached before anything can be awaited: a client that leaves at once is counted.
        let (task, readers) = self.launch(accepted, means);
        let lease = readers.attach(READERS_PER_RUN);
        let live = Some(Arc::clone(task.writer.live()));
        let log = LogReader::open(Arc::clone(&self.0.store), &task.id, Seq::ZERO, live).await;
        let handle = RunHandle {
            id: task.id.clone(),
            reader: RunReader {
                log: log.map_err(|error| cursor_problem(&task.id, error))?,
                _lease: lease,
            },
        };
        Ok((task, handle))
    }

    fn means(&self, spec: &RunSpec) -> Result<Means, Problem> {
        self.admits()?;
        let inner = &self.0;
        let Ok(place) = Arc::clone(&inner.places).try_acquire_owned() else {
            return Err(self.full());
        };
        let provider = inner
            .providers
            .get(spec.model.provider)
            .cloned()
            .ok_or_else(|| missing("LLM provider", spec.model.provider))?;
        let backend = match inner.backends.get(spec.sandbox.backend) {
            Some(backend) => backend.clone(),
            None if spec.needs_sandbox() => {
                return Err(missing("sandbox backend", spec.sandbox.backend));
            }
            None => BackendEntry::none(spec.sandbox.backend),
        };
        Ok(Means {
            provider,
            backend,
            place,
        })
    }

    /// Puts the run into the store.
    async fn accept(&self, id: RunId, mut spec: RunSpec) -> Result<Accepted, Problem> {
        let inner = &self.0;
        let at = Instant::now();
        let started_at = inner.clock.now();
        let facts = RunFacts {
            id: id.clone(),
            prompt: spec.prompt.clone(),
            model: spec.model.id.clone(),
            provider: spec.model.provider.to_owned(),
            sandbox_provider: spec.sandbox.backend.to_owned(),
            background: spec.presence == Presence::Background,
            started_at,
        };
        let deadline = started_at
            .checked_add(spec.timeout)
            .map_or_else(|_| String::new(), rfc3339_seconds);
        let first = SystemEvent::init(id.clone(), &spec.model, spec.sandbox.backend, deadline);
        let writer = inner
            .logs
            .create(facts, RunEvent::System(first))
            .await
            .map_err(|error| store_problem(&error))?;
        // The spec, which lives as long as the run, keeps their names alone.
        let inputs = spec.files.iter_mut().map(|file| InputFile {
            path: file.path.clone(),
            bytes: std::mem::take(&mut file.bytes),
        });
        let inputs = inputs.collect();
        Ok(Accepted {
            id,
            spec: Arc::new(spec),
            inputs,
            writer: Arc::new(writer),
            at,
        })
    }

    /// Makes what was accepted a live run.
    fn launch(&self, accepted: Accepted, means: Means) -> (RunTask, Readers) {
        let inner = &self.0;
        let Accepted {
            id,
            spec,
            inputs,
            writer,
            at,
        } = accepted;
        let control = RunControl::default();
        let deadline = Deadline::at(at + spec.timeout);
        let owner = Owner {
            run: id.clone(),
            lease: writer.lease().clone(),
            spec: Arc::clone(&spec),
            inputs: Mutex::new(inputs),
            sink: writer.clone(),
            control: control.clone(),
            deadline,
            store: Arc::clone(&inner.store),
            tasks: inner.tasks.clone(),
            clock: inner.clock.clone(),
            redactor: inner.redactor.clone(),
        };
        let live = LiveRun {
            log: Arc::clone(writer.live()),
            control,
            readers: Readers::default(),
            sandbox: RunSandbox::new(owner, means.backend),
        };
        inner.live.lock().insert(id.clone(), live.clone());
        tracing::info!(
            llm.provider = spec.model.provider,
            llm.model = spec.model.id,
            sandbox.backend = spec.sandbox.backend,
            "run started"
        );
        // A stop that began meanwhile has not seen this run.
        if inner.draining.load(Ordering::Acquire) {
            live.control.stop(Stop::ServerStopping);
        }
        let working_dir =
            crate::sandbox::backend(spec.sandbox.backend).map_or("/", |def| def.working_dir);
        let task = RunTask {
            id,
            spec,
            writer,
            control: live.control,
            readers: live.readers.clone(),
            provider: means.provider,
            sandbox: live.sandbox,
            working_dir,
            store: Arc::clone(&inner.store),
            tasks: inner.tasks.clone(),
            clock: inner.clock.clone(),
            redactor: inner.redactor.clone(),
            started: at,
            deadline,
            place: Some(means.place),
        };
        (task, live.readers)
    }

    fn live_run(&self, run: &RunId) -> Option<LiveRun> {
        self.0.live.lock().get(run).cloned()
    }

    /// How far the log of a live run has come, where readers have not been told of its end. The store may have
    /// committed more, which is not known to survive a power cut yet, so that nobody should see it.
    fn open_head(&self, run: &RunId) -> Option<Seq> {
        let log = Arc::clone(&self.0.live.lock().get(run)?.log);
        log.open().then(|| log.head().committed)
    }

    /// One run.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`, `STORE_UNAVAILABLE`.
    pub async fn get(&self, run: &RunId) -> Result<RunRecord, Problem> {
        let found = self.0.store.get(run).await;
        let record = found.map_err(|error| store_problem(&error))?;
        let record = record.ok_or_else(|| run_not_found(run))?;
        Ok(self.as_told(record))
    }

    /// The newest runs, at most `limit`, with the beginnings of their prompts.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn list(&self, limit: u32) -> Result<Vec<RunRecord>, Problem> {
        let found = self.0.store.list(limit).await;
        let records = found.map_err(|error| store_problem(&error))?;
        Ok(records
            .into_iter()
            .map(|record| self.as_told(record))
            .collect())
    }

    fn as_told(&self, mut record: RunRecord) -> RunRecord {
        if let Some(last) = self.open_head(&record.facts.id) {
            record.end = None;
            record.last_seq = record.last_seq.min(last);
        }
        record
    }

    /// How far a run's log has come.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`, `EVENTS_EXPIRED`, `STORE_UNAVAILABLE`.
    pub async fn head(&self, run: &RunId) -> Result<RunHead, Problem> {
        let found = self.0.store.head(run).await;
        let mut head = found.map_err(|error| cursor_problem(run, error.into()))?;
        if let Some(last) = self.open_head(run) {
            head.ended = false;
            head.last_seq = head.last_seq.min(last);
        }
        Ok(head)
    }

    /// Deletes a run that has ended, with all that belongs to it.
    ///
    /// # Errors
    /// `RUN_ACTIVE` while it goes on; `RUN_NOT_FOUND`, `STORE_UNAVAILABLE`.
    pub async fn delete(&self, run: &RunId) -> Result<(), Problem> {
        let deletion = if self.open_head(run).is_some() {
            Deletion::Live
        } else {
            let deleted = self.0.store.delete(run).await;
            deleted.map_err(|error| store_problem(&error))?
        };
        match deletion {
            Deletion::Done => {
                self.0.deleted.notify_one();
                tracing::info!(run.id = %run, "run deleted");
                Ok(())
            }
            Deletion::Live => Err(Problem::new(
                ErrorCode::RunActive,
                "the run has not ended, so it can't be deleted",
            )
            .hint(match self.live_run(run) {
                Some(_) => format!("POST /runs/{run}/cancel ends it"),
                None => END_THERE.to_owned(),
            })
            .about(run)),
            Deletion::Unknown => Err(run_not_found(run)),
        }
    }

    /// A reader of the events after `after`, of a live run or one that has ended.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`, `EVENTS_EXPIRED`, `CURSOR_AHEAD`, `SERVER_BUSY` for too many readers,
    /// `STORE_UNAVAILABLE`.
    pub async fn reader(&self, run: &RunId, after: Seq) -> Result<RunReader, Problem> {
        let live = self.live_run(run);
        let lease = match &live {
            Some(live) => Some(live.readers.attach(READERS_PER_RUN).ok_or_else(|| {
                Problem::new(
                    ErrorCode::ServerBusy,
                    format!("{READERS_PER_RUN} clients read this run already, which is the limit"),
                )
                .retry_after(RETRY)
                .about(run)
            })?),
            None => None,
        };
        let log = LogReader::open(
            Arc::clone(&self.0.store),
            run,
            after,
            live.map(|live| live.log),
        );
        let log = log.await.map_err(|error| cursor_problem(run, error))?;
        Ok(RunReader { log, _lease: lease })
    }

    /// Asks a run to stop. Idempotent. The record has the beginning of the prompt.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`, `NOT_IMPLEMENTED` for a run of another process, `STORE_UNAVAILABLE`, also where the run was
    /// stopped and how it is can't be read.
    pub async fn cancel(&self, run: &RunId) -> Result<CancelOutcome, Problem> {
        // First, by what this process knows: what acts must not go on because the store hangs or fails.
        let live = self.live_run(run).filter(|live| live.log.open());
        if let Some(live) = &live {
            live.control.stop(Stop::Cancelled);
        }
        let found = self.0.store.beginning(run).await;
        let record = found.map_err(|error| store_problem(&error))?;
        let record = self.as_told(record.ok_or_else(|| run_not_found(run))?);
        if live.is_none() && !record.state().terminal() {
            return Err(Problem::new(
                ErrorCode::NotImplemented,
                "the run belongs to another process on this store and can't be cancelled from here",
            )
            .hint(END_THERE)
            .about(run));
        }
        Ok(CancelOutcome {
            already_ended: live.is_none(),
            record,
        })
    }

    /// Tells a run what its sandbox's backend said by itself. A run that is not live here, and a sandbox that
    /// isn't the run's, are not affected. Returns at once.
    pub(super) fn sandbox_event(&self, run: &RunId, signal: SandboxSignal) {
        if let Some(live) = self.live_run(run) {
            live.sandbox.heed(signal);
        }
    }

    /// Whether work can be taken. No I/O.
    pub fn health(&self) -> Health {
        if self.0.draining.load(Ordering::Acquire) {
            Health::Draining
        } else if self.0.store.healthy() {
            Health::Ok
        } else {
            Health::Unavailable
        }
    }

    /// The store, for reading.
    pub fn store(&self) -> &Arc<dyn RunStore> {
        &self.0.store
    }

    /// The tasks of the process.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// How many runs are under way.
    pub fn live(&self) -> usize {
        self.0.live.lock().len()
    }

    /// Takes no more runs from now on.
    pub fn refuse_new(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Takes no more runs and ends those under way, each with its terminal event; returns when all tasks
    /// are over, or after `limit`.
    pub async fn shutdown(&self, limit: Duration) {
        self.refuse_new();
        self.0.stop_background.cancel();
        let live: Vec<_> = self.0.live.lock().values().cloned().collect();
        for run in live {
            run.control.stop(Stop::ServerStopping);
        }
        for (kind, count) in self.0.tasks.close_and_wait(Deadline::after(limit)).await {
            tracing::warn!(
                task = kind.as_str(),
                count,
                "tasks were still running at the end; the next start cleans up after them"
            );
        }
    }
}

impl RunReader {
    /// The next event; `None` after the terminal one. Cancel-safe.
    ///
    /// # Errors
    /// When the store fails: the stream must then look cut, not ended.
    pub async fn next(&mut self) -> Result<Option<Arc<StoredEvent>>, StoreError> {
        self.log.next().await
    }
}

/// How a run of another process is ended.
const END_THERE: &str = "stop the `sandcaster query` that started it; where that is gone, the run is ended within \
                         two minutes";

fn draining() -> Problem {
    Problem::new(
        ErrorCode::Draining,
        "the server is stopping and takes no new runs",
    )
    .hint("send the request to another instance, or again in a moment")
    .retry_after(RETRY)
}

fn missing(what: &str, name: &str) -> Problem {
    Problem::new(
        ErrorCode::Internal,
        format!("the {what} {name} was resolved but never built"),
    )
}

fn cursor_problem(run: &RunId, error: CursorError) -> Problem {
    match error {
        CursorError::Ahead { head } => cursor_ahead(run, head),
        CursorError::Store(error) => events_problem(run, &error),
    }
}

/// Takes a run off the live ones when its task is over, however it ends.
struct Gone<'r>(&'r Runs, RunId);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.0.live.lock().remove(&self.1);
    }
}
