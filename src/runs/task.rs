//! One run's task: starts its agent and its sandbox, watches what may stop them, and ends the run, in one
//! terminal event, whatever happened.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::control::{RunControl, Stop};
use super::lease::Readers;
use super::log::LogWriter;
use super::problems::store_failed;
use super::sandbox::RunSandbox;
use super::tasks::{TaskKind, Tasks};
use crate::agent::{Answer, Halt, RunContext, Tally, WorkspaceSource as _, run_agent};
use crate::clock::{Clock, Deadline};
use crate::error::{ErrorCode, Problem, WarningCode};
use crate::events::{ErrorEvent, EventSink, LogFailed, ResultEvent, RunEvent, WarningEvent};
use crate::ids::{RunId, Seq};
use crate::llm::{LlmError, LlmErrorKind, LlmProvider};
use crate::sandbox::files;
use crate::secrets::Redactor;
use crate::spec::{NanoUsd, Presence, RunSpec, SandboxStart};
use crate::store::{FileRecord, RunEnd, RunState, RunStore, RunUsage, StoredFile, TurnRecord};

/// How long a stopped agent may take to answer its open calls.
const AGENT_GRACE: Duration = Duration::from_secs(3);
/// For collecting files after the run's time.
const COLLECT_LIMIT: Duration = Duration::from_secs(10);
/// For collecting files when somebody waits for the end.
const COLLECT_LIMIT_STOPPED: Duration = Duration::from_secs(2);

/// For collecting files when the process is to end.
const COLLECT_LIMIT_STOPPING: Duration = Duration::from_secs(1);

/// Said of an end that may be worth another try.
const ACTED: &str = "its tools have acted already, and would act again";

/// What a run's task is given.
pub(super) struct RunTask {
    pub(super) id: RunId,
    pub(super) spec: Arc<RunSpec>,
    pub(super) writer: Arc<LogWriter>,
    pub(super) control: RunControl,
    pub(super) readers: Readers,
    pub(super) provider: Arc<dyn LlmProvider>,
    pub(super) sandbox: RunSandbox,
    pub(super) working_dir: &'static str,
    pub(super) store: Arc<dyn RunStore>,
    pub(super) tasks: Tasks,
    pub(super) clock: Clock,
    pub(super) redactor: Redactor,
    pub(super) started: Instant,
    pub(super) deadline: Deadline,
    /// Given back when there is nothing left to do but to write the end.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

type AgentTask = JoinHandle<Option<Result<Answer, Halt>>>;

impl RunTask {
    /// Runs to the terminal event.
    pub(super) async fn run(mut self) {
        let tally = Arc::new(Tally::new(&self.spec.model));
        // A fault of ours ends this run alone, and what it had goes as it would at any other end.
        let work = AssertUnwindSafe(self.work(&tally)).catch_unwind();
        let ended = work.await.unwrap_or_else(|_panic| {
            tracing::error!("the run's task panicked");
            Err(panicked())
        });
        // Behind the end, which nobody should wait for. Its place at the backend is free when it is gone.
        self.sandbox.end();
        // Before the end is told: who has read it finds the place free.
        drop(self.place.take());
        let finishing = AssertUnwindSafe(Box::pin(self.finish(ended, &tally))).catch_unwind();
        if finishing.await.is_err() {
            tracing::error!("writing the run's end panicked; it is tried once more");
            Box::pin(self.finish(Err(panicked()), &tally)).await;
        }
    }

    async fn work(&self, tally: &Arc<Tally>) -> Result<Answer, Problem> {
        let deadline = self.deadline;
        let sandbox = self.sandbox.clone();
        if self.spec.sandbox.start == SandboxStart::Eager && self.spec.needs_sandbox() {
            sandbox.start();
        }
        let context = RunContext {
            id: self.id.clone(),
            spec: Arc::clone(&self.spec),
            provider: Arc::clone(&self.provider),
            sink: Arc::new(Account {
                writer: Arc::clone(&self.writer),
                store: Arc::clone(&self.store),
                tally: Arc::clone(tally),
            }),
            workspace: Arc::new(sandbox.clone()),
            token: self.control.token().clone(),
            deadline,
            tally: Arc::clone(tally),
            redactor: self.redactor.clone(),
            working_dir: self.working_dir,
            today: self.clock.now().strftime("%Y-%m-%d").to_string(),
        };
        // A task of its own, so that a panic in it is an error here and not the end of the story.
        let agent = self
            .tasks
            .spawn(TaskKind::Agent, async move { run_agent(&context).await });
        let ended = self.watch(agent, deadline).await;

        // Boxed, so that a run under way holds no room for what comes at its end.
        Box::pin(self.collect(&sandbox, &ended)).await;
        ended
    }

    /// Waits for the agent, or for a reason to stop it.
    async fn watch(&self, mut agent: AgentTask, deadline: Deadline) -> Result<Answer, Problem> {
        let grace = match self.spec.presence {
            Presence::Attached { grace } => Some(grace),
            Presence::Background => None,
        };
        let abandoned = async {
            match grace {
                Some(grace) => self.readers.abandoned(grace).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The finished result first: a run that has its answer is not cancelled any more. No branch
            // loses data: the agent goes on as a task.
            biased;
            joined = &mut agent => return self.outcome(joined, deadline),
            () = self.control.token().cancelled() => {}
            () = tokio::time::sleep_until(deadline.instant()) => self.control.stop(self.out_of_time()),
            () = abandoned => self.control.stop(Stop::ClientGone {
                grace_secs: grace.unwrap_or_default().as_secs(),
            }),
        }
        if let Ok(joined) = tokio::time::timeout(AGENT_GRACE, &mut agent).await {
            return self.outcome(joined, deadline);
        }
        tracing::warn!("the agent did not stop in time and is aborted");
        agent.abort();
        Err(self.stopped())
    }

    fn outcome(
        &self,
        joined: Result<Option<Result<Answer, Halt>>, JoinError>,
        deadline: Deadline,
    ) -> Result<Answer, Problem> {
        match joined {
            Ok(Some(Ok(answer))) => Ok(answer),
            Ok(None | Some(Err(Halt::Stopped))) => Err(self.stopped()),
            // A stop that came first explains what then failed: a killed sandbox, a closed log.
            Ok(Some(Err(_))) if self.control.reason().is_some() => Err(self.stopped()),
            Ok(Some(Err(Halt::Problem(problem)))) => Err(problem),
            // A request ends with the run's time, and may notice it a moment sooner than this task.
            Ok(Some(Err(Halt::Llm(error))))
                if error.kind == LlmErrorKind::Timeout && deadline.passed() =>
            {
                Err(self.out_of_time().problem())
            }
            Ok(Some(Err(Halt::Llm(error)))) => Err(self.clean(llm_problem(&error))),
            Ok(Some(Err(Halt::Log(failed)))) => Err(log_problem(&failed)),
            Err(error) => {
                tracing::error!(%error, "the run's agent panicked");
                Err(panicked())
            }
        }
    }

    fn out_of_time(&self) -> Stop {
        Stop::DeadlineReached {
            timeout_secs: self.spec.timeout.as_secs(),
        }
    }

    fn stopped(&self) -> Problem {
        let reason = self.control.reason().unwrap_or(Stop::Cancelled);
        self.clean(reason.problem())
    }

    fn clean(&self, mut problem: Problem) -> Problem {
        problem.message = self.redactor.clean(&problem.message).into_owned();
        problem
    }

    /// Returns the files that the run made, and names those that it leaves out.
    async fn collect(&self, sandbox: &RunSandbox, ended: &Result<Answer, Problem>) {
        let Some(workspace) = sandbox.ready() else {
            return;
        };
        let lost = matches!(ended, Err(problem) if problem.code == ErrorCode::SandboxLost);
        if lost {
            return;
        }
        let limit = match self.control.reason() {
            None | Some(Stop::DeadlineReached { .. }) => COLLECT_LIMIT,
            Some(Stop::ServerStopping) => COLLECT_LIMIT_STOPPING,
            Some(_) => COLLECT_LIMIT_STOPPED,
        };
        let mut collecting = files::Collecting::begin(
            workspace.sandbox.as_ref(),
            &workspace.baseline,
            files::CollectLimits::default(),
            Deadline::after(limit),
        )
        .await;
        let ended = collecting.ended();
        if ended > 0 {
            let message = format!(
                "what commands had left running was ended ({ended} process{}), since the run's files could not be \
                 listed beside it",
                if ended == 1 { "" } else { "es" }
            );
            let warning =
                WarningEvent::new(WarningCode::ProcessesEnded, message).fact("count", ended);
            let _shown = self.writer.emit(RunEvent::Warning(warning)).await;
        }
        let mut refused = Vec::new();
        while let Some(file) = collecting.next().await {
            let event = files::file_event(&file, self.id.file_url(&file.path));
            let stored = StoredFile {
                record: FileRecord {
                    path: event.path.clone(),
                    mime_type: event.mime_type.clone(),
                    size: event.size,
                    sha256: event.sha256.clone(),
                },
                bytes: file.bytes,
            };
            if let Err(error) = self.store.put_file(self.writer.lease(), stored).await {
                refused.push(files::Omitted {
                    path: file.path,
                    reason: store_failed(&error).message,
                });
                continue;
            }
            if let Err(error) = self.writer.emit(RunEvent::File(event)).await {
                refused.push(files::Omitted {
                    path: file.path,
                    reason: format!(
                        "{}; GET /runs/{} lists it",
                        log_problem(&error).message,
                        self.id
                    ),
                });
            }
        }
        let mut omitted = collecting.omitted();
        omitted.append(&mut refused);
        if !omitted.is_empty() {
            self.warn_omitted(&omitted).await;
        }
    }

    /// Names every file that is not returned.
    async fn warn_omitted(&self, omitted: &[files::Omitted]) {
        let shown: Vec<String> = omitted
            .iter()
            .take(20)
            .map(|file| format!("{} ({})", file.path, file.reason))
            .collect();
        let more = omitted.len() - shown.len();
        let tail = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let facts: Vec<serde_json::Value> = omitted
            .iter()
            .map(|file| serde_json::json!({ "path": file.path, "reason": file.reason }))
            .collect();
        let message = format!("not returned: {}{tail}", shown.join(", "));
        let warning = WarningEvent::new(WarningCode::FileOmitted, message).fact("files", facts);
        let _shown = self.writer.emit(RunEvent::Warning(warning)).await;
    }

    /// The one terminal event.
    async fn finish(&self, ended: Result<Answer, Problem>, tally: &Tally) {
        let totals = tally.totals(self.started.elapsed());
        let ended = if totals.tool_calls.is_empty() {
            ended
        } else {
            ended.map_err(after_acting)
        };
        let tokens = totals.tokens;
        let facts = |state: RunState, problem: Option<&Problem>| RunEnd {
            state,
            completed_at: self.clock.now(),
            error: problem.map(|problem| (problem.code, problem.message.clone())),
            cost_nanos: tally.cost().map(|NanoUsd(nanos)| nanos),
            usage: tokens.map(|tokens| RunUsage {
                input_tokens: tokens.input_tokens,
                output_tokens: tokens.output_tokens,
                complete: totals.usage_complete,
            }),
            num_turns: totals.num_turns,
            duration_secs: totals.duration_secs,
        };
        let (event, end) = match ended {
            Ok(answer) => {
                let end = facts(RunState::Completed, None);
                let event = RunEvent::Result(ResultEvent {
                    subtype: answer.stop_reason.subtype(),
                    content: answer.content,
                    stop_reason: answer.stop_reason,
                    truncated: answer.truncated,
                    totals,
                });
                (event, end)
            }
            Err(problem) => {
                let end = facts(RunState::of_error(problem.code), Some(&problem));
                (RunEvent::Error(ErrorEvent::new(&problem, totals)), end)
            }
        };
        let state = end.state;
        let code = end.error.as_ref().map(|(code, _)| *code);
        match self.writer.finish(event, end, &never()).await {
            Ok(_seq) => tracing::info!(
                state = state.as_str(),
                code = code.map(ErrorCode::as_str),
                duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
                "run ended"
            ),
            Err(error) => {
                tracing::error!(state = state.as_str(), %error, "failed to write the run's end");
            }
        }
    }
}

/// The log as the agent writes to it: what is synced before a tool acts tells also what the run has used by then,
/// for whoever ends it if this process can't.
struct Account {
    writer: Arc<LogWriter>,
    store: Arc<dyn RunStore>,
    tally: Arc<Tally>,
}

#[async_trait]
impl EventSink for Account {
    async fn emit(&self, event: RunEvent) -> Result<Seq, LogFailed> {
        self.writer.emit(event).await
    }

    async fn sync(&self) -> Result<Seq, LogFailed> {
        let totals = self.tally.totals(Duration::ZERO);
        let turn = totals.tokens.map(|tokens| TurnRecord {
            turn: totals.num_turns,
            tokens,
            cost_nanos: self.tally.cost().map(|NanoUsd(nanos)| nanos),
        });
        let Some(turn) = turn.filter(|turn| turn.turn > 0) else {
            return self.writer.sync().await;
        };
        // Queued one after the other: they share a commit.
        let (put, synced) = tokio::join!(
            self.store.put_turn(self.writer.lease(), turn),
            self.writer.sync()
        );
        put.map_err(|error| LogFailed::Store(error.to_string()))?;
        synced
    }
}

/// A run's end is tried for as long as the process lives: the next start closes what is left.
fn never() -> CancellationToken {
    CancellationToken::new()
}

/// What ended a run whose tools have acted: when it is worth sending again is for nobody to heed by himself, since
/// they would act a second time.
fn after_acting(mut problem: Problem) -> Problem {
    problem.retry_after = None;
    if problem.code.retryable() {
        let hint = problem.hint.take();
        let hint = hint.map_or_else(String::new, |hint| format!("{hint}; "));
        problem.hint = Some(format!("{hint}{ACTED}"));
    }
    problem
}

fn panicked() -> Problem {
    Problem::new(
        ErrorCode::Internal,
        "a fault in sandcaster itself ended the run",
    )
    .hint("the server's log has the details under this run's id")
}

fn llm_problem(error: &LlmError) -> Problem {
    let hint = match error.kind {
        LlmErrorKind::Auth => {
            "check the provider's key on the server; `sandcaster doctor` shows which one is used"
        }
        LlmErrorKind::Billing => "add credit to the provider's account",
        LlmErrorKind::RateLimited => {
            "wait and send the request again, or raise the provider's limits"
        }
        LlmErrorKind::Overloaded | LlmErrorKind::Unavailable => {
            "the provider has trouble; send the request again later"
        }
        LlmErrorKind::Unreachable => "check the server's network and the provider's base URL",
        LlmErrorKind::Timeout | LlmErrorKind::Cut | LlmErrorKind::BadResponse => {
            "send the request again"
        }
        LlmErrorKind::BadRequest | LlmErrorKind::ContentRefused => {
            "the provider refused the request as it was built; see the message"
        }
        LlmErrorKind::ModelNotFound => "check the model's id, and that the key may use it",
        LlmErrorKind::ContextTooLong => {
            "send a smaller task or smaller files, or use a model with a larger window"
        }
    };
    let mut problem = Problem::new(error.code(), error.message.clone()).hint(hint);
    problem.retry_after = error.retry_after;
    problem
}

fn log_problem(failed: &LogFailed) -> Problem {
    if *failed == LogFailed::TooLarge {
        return Problem::new(ErrorCode::LogLimit, failed.to_string()).hint("ask for less output");
    }
    // Why is for the log alone: it may tell of the disk.
    tracing::warn!(%failed, "a run's log has failed");
    Problem::new(
        ErrorCode::StoreUnavailable,
        "the run's log can't be written",
    )
    .hint("check the disk of the data directory")
}
