//! The tasks of this process: the only place that spawns, so that every task has a kind and an owner.
//!
//! The kind says what stopping means for the task and what its panic means for the process. Nothing is
//! spawned and forgotten: [`Tasks::close_and_wait`] ends all of it, in time or by force.

use std::fmt;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::clock::Deadline;

/// How long tasks that were dropped by force may take to reach their next await.
const LAST_MOMENTS: Duration = Duration::from_secs(1);

/// What a task is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskKind {
    /// One run, from admission to its terminal event.
    Run,
    /// The agent inside a run's task; its panic is the run's failure.
    Agent,
    /// Looks after the store and after what dead runs left, again and again.
    Housekeeping,
    /// Work that a run leaves for after its end, such as destroying its sandbox.
    Cleanup,
}

/// What [`Tasks::close_and_wait`] does to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// Waits for it: it has something to finish, and learns by other means that it should.
    Wait,
    /// Drops it at its next await: nothing is lost.
    Drop,
}

/// What a task's panic does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// It is logged; the others go on.
    Log,
    /// It is logged and the process is asked to stop, for it can't do its work without the task.
    ShutDown,
}

impl TaskKind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[Self::Run, Self::Agent, Self::Housekeeping, Self::Cleanup];

    /// The name in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Agent => "agent",
            Self::Housekeeping => "housekeeping",
            Self::Cleanup => "cleanup",
        }
    }

    /// What stopping does to it.
    pub const fn on_stop(self) -> OnStop {
        match self {
            Self::Run | Self::Agent | Self::Cleanup => OnStop::Wait,
            Self::Housekeeping => OnStop::Drop,
        }
    }

    /// What its panic does.
    pub const fn on_panic(self) -> OnPanic {
        match self {
            Self::Run | Self::Agent | Self::Cleanup => OnPanic::Log,
            Self::Housekeeping => OnPanic::ShutDown,
        }
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// All tasks of the process. Cheap to clone; clones are the same tasks.
#[derive(Clone, Debug)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tracker: TaskTracker,
    stop: CancellationToken,
    force: CancellationToken,
    broken: CancellationToken,
    running: [AtomicUsize; TaskKind::ALL.len()],
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// No task yet.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            force: CancellationToken::new(),
            broken: CancellationToken::new(),
            running: std::array::from_fn(|_| AtomicUsize::new(0)),
        }))
    }

    /// Starts a task. It goes on when the handle is dropped. The handle yields `None` when the task was
    /// dropped because of a stop, and a panic as a `JoinError`.
    pub fn spawn<F>(&self, kind: TaskKind, future: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let inner = Arc::clone(&self.0);
        let running = Running::new(&self.0, kind);
        let stop = match kind.on_stop() {
            OnStop::Wait => self.0.force.clone(),
            OnStop::Drop => self.0.stop.clone(),
        };
        // Boxed: moved into the task by value, the future would take its room twice for as long as it runs.
        let caught = Box::pin(AssertUnwindSafe(future).catch_unwind());
        let guarded = async move {
            let _running = running;
            // The finished task first: what it has done is not thrown away because of a stop.
            let ended = tokio::select! {
                biased;
                ended = caught => ended,
                () = stop.cancelled() => return None,
            };
            match ended {
                Ok(output) => Some(output),
                Err(panic) => {
                    tracing::error!(
                        task = kind.as_str(),
                        "a task panicked; this is a fault in sandcaster"
                    );
                    match kind.on_panic() {
                        OnPanic::Log => {}
                        OnPanic::ShutDown => inner.broken.cancel(),
                    }
                    resume_unwind(panic)
                }
            }
        };
        // What a task logs is about what it was started for.
        self.0.tracker.spawn(guarded.in_current_span())
    }

    /// Fires when a task has died without which the process can't do its work.
    pub fn broken(&self) -> &CancellationToken {
        &self.0.broken
    }

    /// How many tasks of a kind there are.
    pub fn running(&self, kind: TaskKind) -> usize {
        self.0
            .running
            .get(kind as usize)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Drops the tasks that may be dropped and waits for the others until `deadline`; then drops those too.
    /// Gives the kinds of which tasks had to be dropped by force, and how many.
    pub async fn close_and_wait(&self, deadline: Deadline) -> Vec<(TaskKind, usize)> {
        self.0.tracker.close();
        self.0.stop.cancel();
        if tokio::time::timeout_at(deadline.instant(), self.0.tracker.wait())
            .await
            .is_ok()
        {
            return Vec::new();
        }
        let left: Vec<_> = TaskKind::ALL
            .iter()
            .map(|kind| (*kind, self.running(*kind)))
            .filter(|(_, count)| *count > 0)
            .collect();
        self.0.force.cancel();
        if tokio::time::timeout(LAST_MOMENTS, self.0.tracker.wait())
            .await
            .is_err()
        {
            tracing::error!("tasks do not end even by force; something blocks a thread");
        }
        left
    }
}

/// Counts a task for as long as it is there, however it ends.
struct Running(Arc<Inner>, TaskKind);

impl Running {
    fn new(inner: &Arc<Inner>, kind: TaskKind) -> Self {
        if let Some(count) = inner.running.get(kind as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Self(Arc::clone(inner), kind)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(count) = self.0.running.get(self.1 as usize) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn stopping_drops_what_may_be_dropped_and_waits_for_the_rest() {
        let tasks = Tasks::new();
        let reaper = tasks.spawn(TaskKind::Housekeeping, pending::<()>());
        let (go, wait) = oneshot::channel::<()>();
        let run = tasks.spawn(TaskKind::Run, async move { wait.await.is_ok() });
        assert_eq!(
            (
                tasks.running(TaskKind::Run),
                tasks.running(TaskKind::Housekeeping)
            ),
            (1, 1)
        );
        let closing = tasks.close_and_wait(Deadline::after(Duration::from_secs(30)));
        let (left, dropped) = tokio::join!(closing, async {
            let dropped = reaper.await.unwrap();
            go.send(()).unwrap();
            dropped
        });
        assert_eq!(left, []);
        assert_eq!(dropped, None);
        assert_eq!(run.await.unwrap(), Some(true));
        assert_eq!(tasks.running(TaskKind::Run), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_does_not_end_is_dropped_at_the_deadline_and_named() {
        let tasks = Tasks::new();
        let run = tasks.spawn(TaskKind::Run, pending::<()>());
        let left = tasks
            .close_and_wait(Deadline::after(Duration::from_secs(5)))
            .await;
        assert_eq!(left, [(TaskKind::Run, 1)]);
        assert_eq!(run.await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_panic_is_a_join_error_and_breaks_the_process_only_where_it_must() {
        let tasks = Tasks::new();
        let agent = tasks.spawn(TaskKind::Agent, async { panic!("in an agent") });
        assert!(agent.await.unwrap_err().is_panic());
        assert!(!tasks.broken().is_cancelled());
        let reaper = tasks.spawn(TaskKind::Housekeeping, async { panic!("in the reaper") });
        assert!(reaper.await.unwrap_err().is_panic());
        assert!(tasks.broken().is_cancelled());
    }
}
