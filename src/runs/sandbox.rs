//! A run's sandbox: asked for, made ready, watched, destroyed, whatever happens to the run meanwhile.
//!
//! The intent is in the store before the backend is asked, so that no crash can forget a sandbox. Creation and
//! destruction are tasks of their own: a run that ends waits for neither.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use super::control::{RunControl, Stop};
use super::lifetime::{extend, lifetime};
use super::problems::store_failed;
use super::signal::{Questions, SandboxSignal, word};
use super::tasks::{TaskKind, Tasks};
use crate::agent::{Workspace, WorkspaceSource};
use crate::clock::{Clock, Deadline};
use crate::error::{ErrorCode, Problem, WarningCode};
use crate::events::{EventSink, Fact, RunEvent, SystemEvent, WarningEvent};
use crate::ids::RunId;
use crate::sandbox::{
    FoundSandbox, Labels, Sandbox, SandboxBackend, SandboxError, SandboxNews, SandboxSpec,
};
use crate::secrets::Redactor;
use crate::spec::{InputFile, RunSpec};
use crate::store::{RunLease, RunStore, SandboxRecord};

/// One create call.
const CREATE_LIMIT: Duration = Duration::from_mins(1);
/// Tries to destroy a sandbox before it is left to the reaper.
const KILL_TRIES: u32 = 3;
const KILL_LIMIT: Duration = Duration::from_secs(10);
const KILL_PAUSE: Duration = Duration::from_secs(1);
/// Between tries to get a place at a backend whose account is full, where it does not say when to come back.
const CAPACITY_PAUSE: Duration = Duration::from_secs(5);
/// Whatever the backend says of when to come back, the pause is at least the first of these, and at each further try
/// twice as much, up to the second.
const LEAST_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Tries to create in the face of throttling.
const CREATE_TRIES: u32 = 3;
/// The number of a run's one sandbox: what is refused for want of room was not made, so that it is asked for again
/// under the same number.
const ATTEMPT: u32 = 1;

/// Where sandboxes of one backend come from.
#[derive(Clone)]
pub(super) struct BackendEntry {
    pub(super) name: &'static str,
    pub(super) backend: Arc<dyn SandboxBackend>,
    /// Places for sandboxes of ours; `None` for no limit of ours.
    pub(super) places: Option<Arc<Semaphore>>,
}

impl BackendEntry {
    /// For a run that needs no sandbox, on a server that has none.
    pub(super) fn none(name: &'static str) -> Self {
        Self {
            name,
            backend: Arc::new(NoBackend),
            places: None,
        }
    }
}

struct NoBackend;

#[async_trait]
impl SandboxBackend for NoBackend {
    async fn create(&self, _: &SandboxSpec, _: &Labels) -> Result<Arc<dyn Sandbox>, SandboxError> {
        self.probe().await?;
        Err(SandboxError::Backend(
            "there is no sandbox backend".to_owned(),
        ))
    }

    async fn list(&self, _: &str) -> Result<Vec<FoundSandbox>, SandboxError> {
        Ok(Vec::new())
    }

    async fn kill(&self, _: &str) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn alive(&self, _: &str) -> Result<bool, SandboxError> {
        Ok(false)
    }

    async fn probe(&self) -> Result<(), SandboxError> {
        Err(SandboxError::HostCannot {
            message: "this server has no usable sandbox backend".to_owned(),
            hint: "`sandcaster doctor` says what each backend lacks".to_owned(),
        })
    }
}

/// What a sandbox needs to know of its run.
pub(super) struct Owner {
    pub(super) run: RunId,
    pub(super) lease: RunLease,
    pub(super) spec: Arc<RunSpec>,
    /// What is put into the sandbox: let go once it is there.
    pub(super) inputs: Mutex<Vec<InputFile>>,
    pub(super) sink: Arc<dyn EventSink>,
    pub(super) control: RunControl,
    pub(super) deadline: Deadline,
    pub(super) store: Arc<dyn RunStore>,
    pub(super) tasks: Tasks,
    pub(super) clock: Clock,
    pub(super) redactor: Redactor,
}

type Made = Option<Result<Arc<Workspace>, Problem>>;

/// A run's sandbox, at whatever stage. Cheap to clone.
#[derive(Clone)]
pub(super) struct RunSandbox(Arc<Inner>);

struct Inner {
    owner: Owner,
    /// The run's: what is heard of the sandbox from outside belongs to it as well.
    span: Span,
    entry: BackendEntry,
    started: AtomicBool,
    made: watch::Sender<Made>,
    /// The sandbox from the moment that it exists, ready or not, and its place.
    held: Mutex<Option<Held>>,
    /// The run has ended: what is still being created is to be destroyed.
    ended: CancellationToken,
    /// The creation task has nothing more to do.
    settled: CancellationToken,
    /// What the backend was asked because of reports.
    questions: Questions,
}

struct Held {
    sandbox: Arc<dyn Sandbox>,
    attempt: u32,
    /// When the backend ends it by itself.
    end: Instant,
    _place: Option<OwnedSemaphorePermit>,
}

#[async_trait]
impl WorkspaceSource for RunSandbox {
    async fn workspace(&self) -> Result<Arc<Workspace>, Problem> {
        self.start();
        let mut made = self.0.made.subscribe();
        // The sender lives as long as `self`.
        match made.wait_for(Option::is_some).await {
            Ok(made) => made.clone().unwrap_or_else(|| Err(gone_before())),
            Err(_closed) => Err(gone_before()),
        }
    }

    fn ready(&self) -> Option<Arc<Workspace>> {
        self.0
            .made
            .borrow()
            .as_ref()
            .and_then(|made| made.as_ref().ok())
            .cloned()
    }
}

fn gone_before() -> Problem {
    Problem::new(
        ErrorCode::SandboxError,
        "the run ended before its sandbox was ready",
    )
}

impl RunSandbox {
    pub(super) fn new(owner: Owner, entry: BackendEntry) -> Self {
        Self(Arc::new(Inner {
            owner,
            span: Span::current(),
            entry,
            started: AtomicBool::new(false),
            made: watch::Sender::new(None),
            held: Mutex::new(None),
            ended: CancellationToken::new(),
            settled: CancellationToken::new(),
            questions: Questions::default(),
        }))
    }

    /// Starts the creation, once.
    pub(super) fn start(&self) {
        if self.0.started.swap(true, Ordering::SeqCst) {
            return;
        }
        // After the swap: who ends it either sees that it was started, or is seen here.
        if self.0.ended.is_cancelled() {
            self.0.made.send_replace(Some(Err(gone_before())));
            self.0.settled.cancel();
            return;
        }
        let this = Arc::clone(&self.0);
        // Detached on purpose: it ends by itself, and destroys what it made if the run has ended.
        let _detached = self.0.owner.tasks.spawn(TaskKind::Cleanup, async move {
            let work = AssertUnwindSafe(this.create_and_watch());
            if work.catch_unwind().await.is_err() {
                tracing::error!(backend = this.entry.name, "making the sandbox panicked");
                this.failed(Problem::new(
                    ErrorCode::Internal,
                    "a fault in sandcaster itself kept the sandbox from being made",
                ));
            }
            this.settled.cancel();
        });
    }

    /// Heeds what the backend says of the sandbox by itself, in the background. What is not about the sandbox
    /// that this run holds now has no effect.
    pub(super) fn heed(&self, signal: SandboxSignal) {
        let this = Arc::clone(&self.0);
        let heeding = async move {
            // The end first: its own kill is reported too, and is no news.
            tokio::select! {
                biased;
                () = this.ended.cancelled() => {}
                () = this.heed(signal) => {}
            }
        };
        // Ends by itself within seconds, and with the run.
        let _detached = self
            .0
            .owner
            .tasks
            .spawn(TaskKind::Cleanup, heeding.instrument(self.0.span.clone()));
    }

    /// Has the sandbox destroyed, whether it is there or still being made. Nobody waits for that but the process's
    /// end; what is left then, or can't be destroyed, is the reaper's.
    pub(super) fn end(&self) {
        self.0.ended.cancel();
        if !self.0.started.load(Ordering::SeqCst) {
            return;
        }
        let this = Arc::clone(&self.0);
        let _detached = self.0.owner.tasks.spawn(TaskKind::Cleanup, async move {
            this.settled.cancelled().await;
            this.destroy().await;
        });
    }
}

impl Inner {
    async fn create_and_watch(&self) {
        let sandbox = match self.make().await {
            Ok(workspace) => {
                let sandbox = Arc::clone(&workspace.sandbox);
                self.made.send_replace(Some(Ok(workspace)));
                sandbox
            }
            Err(problem) => {
                self.failed(problem);
                return;
            }
        };
        let Some(end) = self.held.lock().as_ref().map(|held| held.end) else {
            return;
        };
        tokio::select! {
            // The end comes first: a sandbox that we destroy is not lost.
            biased;
            () = self.ended.cancelled() => {}
            error = sandbox.gone() => self.lost(&error),
            never = extend(sandbox.as_ref(), end, self.owner.deadline) => match never {},
        }
    }

    fn lost(&self, error: &SandboxError) {
        self.owner.control.stop(Stop::Sandbox(problem_of(error)));
    }

    fn holds(&self, sandbox_id: &str) -> bool {
        let held = self.held.lock();
        held.as_ref()
            .is_some_and(|held| held.sandbox.id() == sandbox_id)
    }

    async fn heed(&self, signal: SandboxSignal) {
        let SandboxSignal {
            sandbox_id,
            news,
            signed,
        } = signal;
        if !self.holds(&sandbox_id) {
            return;
        }
        let BackendEntry { name, backend, .. } = &self.entry;
        match news {
            SandboxNews::Killed { reason } => {
                let reason = reason.map(|reason| word(&reason, &self.owner.redactor));
                let asked = self
                    .questions
                    .ask(backend.as_ref(), name, &sandbox_id, reason, signed);
                if let Some(error) = asked.await {
                    self.lost(&error);
                }
            }
            SandboxNews::Other { event } if signed => {
                let event = word(&event, &self.owner.redactor);
                let message = format!("{name} reports {event} for the run's sandbox");
                let warning = WarningEvent::new(WarningCode::SandboxEvent, message)
                    .fact("event", event)
                    .fact("sandboxId", Fact::id(sandbox_id));
                // A log that is closed needs no warning any more.
                let _told = self.owner.sink.emit(RunEvent::Warning(warning)).await;
            }
            // Known already; or no more than hearsay.
            SandboxNews::Created | SandboxNews::Other { .. } => {}
        }
    }

    /// There is no sandbox, and there won't be one.
    fn failed(&self, problem: Problem) {
        // Whatever ran out of the run's time is told as that: by the run's task, which has the same deadline.
        if !self.ended.is_cancelled() && !self.owner.deadline.passed() {
            self.owner.control.stop(Stop::Sandbox(problem.clone()));
        }
        self.made.send_replace(Some(Err(problem)));
    }

    async fn make(&self) -> Result<Arc<Workspace>, Problem> {
        let place = self.place().await?;
        let (sandbox, record, end) = self.create().await?;
        *self.held.lock() = Some(Held {
            sandbox: Arc::clone(&sandbox),
            attempt: record.attempt,
            end,
            _place: place,
        });
        self.remember(record).await?;
        let mut event = SystemEvent::new("sandbox_created", "Sandbox created");
        event.sandbox_id = Some(sandbox.id().to_owned());
        event.facts.add("sandboxProvider", self.entry.name);
        // A log that fails ends the run by itself.
        let _told = self.owner.sink.emit(RunEvent::System(event)).await;
        let inputs = std::mem::take(&mut *self.owner.inputs.lock());
        let preparing = Workspace::prepare(sandbox, &inputs, self.owner.deadline);
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(gone_before()),
            prepared = tokio::time::timeout_at(self.owner.deadline.instant(), preparing) => match prepared {
                Ok(Ok(workspace)) => Ok(Arc::new(workspace)),
                Ok(Err(error)) => Err(problem_of(&error)),
                Err(_elapsed) => Err(problem_of(&SandboxError::Timeout(
                    "the sandbox was not ready for commands before the run's deadline".to_owned(),
                ))),
            },
        }
    }

    /// Waits for a place of ours at the backend.
    async fn place(&self) -> Result<Option<OwnedSemaphorePermit>, Problem> {
        let Some(places) = &self.entry.places else {
            return Ok(None);
        };
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Ok(Some(place));
        }
        self.tell_waiting(
            "all places for sandboxes of this server are taken; the run waits for one",
        )
        .await;
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(gone_before()),
            place = Arc::clone(places).acquire_owned() => Ok(place.ok()),
        }
    }

    /// Asks the backend, again where waiting may help. What is asked for is in the store before.
    /// Gives when it ends by itself, too.
    async fn create(&self) -> Result<(Arc<dyn Sandbox>, SandboxRecord, Instant), Problem> {
        let owner = &self.owner;
        let mut throttled = 0;
        let mut least = LEAST_PAUSE.0;
        let mut told = false;
        loop {
            let lifetime = lifetime(owner.deadline);
            let end = Instant::now() + lifetime;
            let expires = owner
                .clock
                .now()
                .as_second()
                .saturating_add_unsigned(lifetime.as_secs());
            let record = SandboxRecord {
                backend: self.entry.name.to_owned(),
                attempt: ATTEMPT,
                sandbox_id: None,
                expires,
                destroyed: false,
            };
            self.remember(record.clone()).await?;
            let spec = SandboxSpec {
                template: owner.spec.sandbox.template.clone(),
                network: owner.spec.sandbox.network,
                lifetime,
                deadline: owner.deadline.within(CREATE_LIMIT),
            };
            let labels = Labels {
                run: owner.run.clone(),
                instance: owner.store.id().to_owned(),
                attempt: ATTEMPT,
                expires,
            };
            let error = match self.entry.backend.create(&spec, &labels).await {
                Ok(sandbox) => {
                    let record = SandboxRecord {
                        sandbox_id: Some(sandbox.id().to_owned()),
                        ..record
                    };
                    return Ok((sandbox, record, end));
                }
                Err(error) => error,
            };
            let SandboxError::RateLimited {
                retry_after,
                at_capacity,
                ..
            } = &error
            else {
                return Err(problem_of(&error));
            };
            if !at_capacity {
                throttled += 1;
                if throttled >= CREATE_TRIES {
                    return Err(problem_of(&error));
                }
            }
            let pause = retry_after.unwrap_or(CAPACITY_PAUSE).max(least);
            if pause >= owner.deadline.remaining() {
                return Err(problem_of(&error));
            }
            least = (least * 2).min(LEAST_PAUSE.1);
            if !std::mem::replace(&mut told, true) {
                self.tell_waiting(&format!("{error}; it is asked again until it has room"))
                    .await;
            }
            tokio::select! {
                biased;
                () = self.ended.cancelled() => return Err(gone_before()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn tell_waiting(&self, message: &str) {
        let warning = WarningEvent::new(WarningCode::SandboxWait, message)
            .fact("sandboxProvider", self.entry.name);
        let _told = self.owner.sink.emit(RunEvent::Warning(warning)).await;
    }

    async fn remember(&self, record: SandboxRecord) -> Result<(), Problem> {
        let put = self.owner.store.put_sandbox(&self.owner.lease, record);
        put.await.map_err(|error| store_failed(&error))
    }

    async fn destroy(&self) {
        let Some(held) = self.held.lock().take() else {
            return;
        };
        for attempt in 1..=KILL_TRIES {
            match tokio::time::timeout(KILL_LIMIT, held.sandbox.kill()).await {
                Ok(Ok(())) => {
                    let told = self.owner.store.sandbox_gone(&self.owner.run, held.attempt);
                    if let Err(error) = told.await {
                        tracing::warn!(%error, "failed to record that the sandbox is gone");
                    }
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(sandbox.id = held.sandbox.id(), attempt, %error, "failed to destroy the sandbox");
                }
                Err(_elapsed) => {
                    tracing::warn!(
                        sandbox.id = held.sandbox.id(),
                        attempt,
                        "destroying the sandbox took too long"
                    );
                }
            }
            tokio::time::sleep(KILL_PAUSE).await;
        }
        tracing::warn!(
            sandbox.id = held.sandbox.id(),
            "the sandbox is left to the next sweep"
        );
    }
}

/// What a run's `error` event says of a sandbox's failure.
pub(super) fn problem_of(error: &SandboxError) -> Problem {
    let mut problem = Problem::new(error.code(), error.to_string());
    problem.hint = error.hint();
    if let SandboxError::RateLimited { retry_after, .. } = error {
        problem.retry_after = *retry_after;
    }
    problem
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
