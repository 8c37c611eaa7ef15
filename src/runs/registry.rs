//! The runs of this process: admitted, started, found again, stopped.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::control::{RunControl, Stop};
use super::lease::{ReaderLease, Readers};
use super::log::{LogLimits, Logs, RunFacts};
use super::reader::{CursorError, LogReader};
use super::reaper::{self, Reaper};
use super::sandbox::{BackendEntry, Owner, RunSandbox};
use super::signal::SandboxSignal;
use super::task::RunTask;
use super::tasks::{TaskKind, Tasks};
use crate::clock::{Clock, Deadline, rfc3339_seconds};
use crate::error::{ErrorCode, Problem};
use crate::events::{RunEvent, StoredEvent, SystemEvent};
use crate::ids::{RunId, Seq};
use crate::llm::LlmProvider;
use crate::sandbox::SandboxBackend;
use crate::secrets::Redactor;
use crate::spec::{Presence, RunSpec};
use crate::store::{RunRecord, RunStore, StoreError};

/// Readers of one run at once (rule CL-6).
const READERS_PER_RUN: usize = 64;
/// When a full server is worth asking again.
const FULL_RETRY: Duration = Duration::from_secs(5);

/// What [`Runs`] is made from.
pub struct RunsConfig {
    /// Where runs are kept.
    pub store: Arc<dyn RunStore>,
    /// Names this process in the store.
    pub owner: String,
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
    owner: String,
    logs: Logs,
    providers: BTreeMap<&'static str, Arc<dyn LlmProvider>>,
    backends: BTreeMap<&'static str, BackendEntry>,
    places: Arc<Semaphore>,
    max_concurrent_runs: usize,
    redactor: Redactor,
    clock: Clock,
    tasks: Tasks,
    live: Mutex<HashMap<RunId, LiveRun>>,
    draining: AtomicBool,
    stop_background: CancellationToken,
}

#[derive(Clone)]
struct LiveRun {
    control: RunControl,
    readers: Readers,
    sandbox: RunSandbox,
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
            owner: config.owner,
            providers: config.providers,
            backends,
            places: Arc::new(Semaphore::new(config.max_concurrent_runs)),
            max_concurrent_runs: config.max_concurrent_runs,
            redactor: config.redactor,
            clock: config.clock,
            tasks: config.tasks,
            live: Mutex::default(),
            draining: AtomicBool::new(false),
            stop_background: CancellationToken::new(),
        }))
    }

    /// Starts looking, now and every minute, for runs whose process died (by `owner_alive`) and for
    /// sandboxes that nobody needs.
    pub fn start_reaper(&self, owner_alive: impl Fn(&str) -> bool + Send + Sync + 'static) {
        let inner = &self.0;
        let work = reaper::reap(
            Reaper {
                store: Arc::clone(&inner.store),
                backends: inner.backends.values().cloned().collect(),
                owner_alive: Box::new(owner_alive),
                clock: inner.clock.clone(),
            },
            inner.stop_background.clone(),
        );
        // Ends by its token.
        let _detached = inner.tasks.spawn(TaskKind::Reaper, work);
    }

    /// Admits and starts a run.
    ///
    /// # Errors
    /// `QUEUE_FULL`, `DRAINING`, `STORE_UNAVAILABLE`.
    pub async fn start(&self, spec: RunSpec) -> Result<RunHandle, Problem> {
        let runs = self.clone();
        // A task of its own: a client that leaves in the middle must not leave a run without a task.
        let started = self
            .0
            .tasks
            .spawn(TaskKind::Run, async move { runs.admit(spec).await });
        match started.await {
            Ok(Some(started)) => started,
            Ok(None) => Err(draining()),
            Err(_panicked) => Err(Problem::new(
                ErrorCode::Internal,
                "a fault in sandcaster itself kept the run from starting",
            )
            .hint("the server's log has the details")),
        }
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
            return Err(store_problem(&StoreError::Failed(
                "its last write failed".to_owned(),
            )));
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
        .retry_after(FULL_RETRY)
    }

    async fn admit(&self, spec: RunSpec) -> Result<RunHandle, Problem> {
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
        let working_dir =
            crate::sandbox::backend(spec.sandbox.backend).map_or("/", |def| def.working_dir);

        let id = RunId::new();
        let started = tokio::time::Instant::now();
        let started_at = inner.clock.now();
        let new = RunFacts {
            id: id.clone(),
            owner: inner.owner.clone(),
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
            .create(new, RunEvent::System(first))
            .await
            .map_err(|error| store_problem(&error))?;
        let log = inner
            .logs
            .reader(&id, Seq::ZERO)
            .await
            .map_err(|error| cursor_problem(&id, error))?;

        let writer = Arc::new(writer);
        let spec = Arc::new(spec);
        let control = RunControl::default();
        let deadline = Deadline::at(started + spec.timeout);
        let owner = Owner {
            run: id.clone(),
            spec: Arc::clone(&spec),
            sink: writer.clone(),
            control: control.clone(),
            deadline,
            store: Arc::clone(&inner.store),
            tasks: inner.tasks.clone(),
            clock: inner.clock.clone(),
            redactor: inner.redactor.clone(),
        };
        let live = LiveRun {
            control,
            readers: Readers::default(),
            sandbox: RunSandbox::new(owner, backend),
        };
        // Attached before anything can be awaited: a client that leaves at once is counted.
        let lease = live.readers.attach(READERS_PER_RUN);
        inner.live.lock().insert(id.clone(), live.clone());
        tracing::info!(run.id = %id, llm.provider = spec.model.provider, llm.model = spec.model.id, sandbox.backend = spec.sandbox.backend, "run started");
        let task = RunTask {
            id: id.clone(),
            spec,
            writer,
            control: live.control,
            readers: live.readers,
            provider,
            sandbox: live.sandbox,
            working_dir,
            store: Arc::clone(&inner.store),
            tasks: inner.tasks.clone(),
            clock: inner.clock.clone(),
            redactor: inner.redactor.clone(),
            started,
            deadline,
            place: Some(place),
        };
        // A stop that began meanwhile has not seen this run.
        if inner.draining.load(Ordering::Acquire) {
            task.control.stop(Stop::ServerStopping);
        }
        let runs = self.clone();
        let ended = id.clone();
        // Runs to its terminal event by itself; nobody waits for it but the process's end.
        let _detached = inner.tasks.spawn(TaskKind::Run, async move {
            let after_panic = task.after_panic();
            if runs.0.tasks.spawn(TaskKind::Run, task.run()).await.is_err() {
                Box::pin(after_panic.finish()).await;
            }
            runs.0.live.lock().remove(&ended);
        });
        Ok(RunHandle {
            id,
            reader: RunReader { log, _lease: lease },
        })
    }

    /// A reader of the events after `after`, of a live run or one that has ended.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`, `CURSOR_AHEAD`, `QUEUE_FULL` for too many readers, `STORE_UNAVAILABLE`.
    pub async fn reader(&self, run: &RunId, after: Seq) -> Result<RunReader, Problem> {
        let readers = self.0.live.lock().get(run).map(|live| live.readers.clone());
        let lease = match readers {
            Some(readers) => Some(readers.attach(READERS_PER_RUN).ok_or_else(|| {
                Problem::new(
                    ErrorCode::QueueFull,
                    format!("{READERS_PER_RUN} clients read this run already, which is the limit"),
                )
                .retry_after(FULL_RETRY)
                .about(run)
            })?),
            None => None,
        };
        let log = self
            .0
            .logs
            .reader(run, after)
            .await
            .map_err(|error| cursor_problem(run, error))?;
        Ok(RunReader { log, _lease: lease })
    }

    /// Asks a run to stop. Idempotent.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`, `STORE_UNAVAILABLE`, `NOT_IMPLEMENTED` for a run of another process.
    pub async fn cancel(&self, run: &RunId) -> Result<CancelOutcome, Problem> {
        let live = self.0.live.lock().get(run).cloned();
        let record = self
            .0
            .store
            .get(run)
            .await
            .map_err(|error| store_problem(&error))?
            .ok_or_else(|| run_not_found(run))?;
        let already_ended = record.state.terminal();
        match live {
            Some(live) if !already_ended => live.control.stop(Stop::Cancelled),
            None if !already_ended => {
                return Err(Problem::new(
                    ErrorCode::NotImplemented,
                    "the run belongs to another process on this store and can't be cancelled from here",
                )
                .hint("stop the `sandcaster query` that started it")
                .about(run));
            }
            _ => {}
        }
        Ok(CancelOutcome {
            already_ended,
            record,
        })
    }

    /// Tells a run what its sandbox's backend said by itself. A run that is not live here, and a sandbox that
    /// isn't the run's, are not affected. Returns at once.
    pub(super) fn sandbox_event(&self, run: &RunId, signal: SandboxSignal) {
        let sandbox = self.0.live.lock().get(run).map(|live| live.sandbox.clone());
        if let Some(sandbox) = sandbox {
            sandbox.heed(signal);
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

fn draining() -> Problem {
    Problem::new(
        ErrorCode::Draining,
        "the server is stopping and takes no new runs",
    )
    .hint("send the request to another instance, or again in a moment")
    .retry_after(FULL_RETRY)
}

fn run_not_found(run: &RunId) -> Problem {
    Problem::new(ErrorCode::RunNotFound, format!("there is no run {run}")).about(run)
}

fn missing(what: &str, name: &str) -> Problem {
    Problem::new(
        ErrorCode::Internal,
        format!("the {what} {name} was resolved but never built"),
    )
}

fn store_problem(error: &StoreError) -> Problem {
    Problem::new(ErrorCode::StoreUnavailable, error.to_string())
        .hint("check the disk of the data directory; the server tries again with the next request")
        .retry_after(FULL_RETRY)
}

fn cursor_problem(run: &RunId, error: CursorError) -> Problem {
    match error {
        CursorError::NotFound(_) => run_not_found(run),
        CursorError::Ahead { head } => Problem::new(
            ErrorCode::CursorAhead,
            format!("the cursor is past the end of the run's log, whose last event is {head}"),
        )
        .hint("resume from an id that this server has sent for this run")
        .about(run),
        CursorError::Store(error) => store_problem(&error),
    }
}
