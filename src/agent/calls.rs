//! The tool calls of one response: checked, run side by side where that is safe, answered each and all.

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::loops::{LoopGuard, Verdict};
use super::run::{Halt, RunContext};
use crate::chat::{Part, ToolArgs, ToolCall, ToolResult};
use crate::clock::Deadline;
use crate::error::{Problem, WarningCode};
use crate::events::{RunEvent, ToolResultEvent, ToolUseEvent, WarningEvent};
use crate::sandbox::SandboxError;
use crate::tools::{self, BuiltTool, Called, Failure, ToolAnswer, ToolContext, ToolDef};

/// At most so many calls of one response are run (rule AD-4).
const CALLS_PER_TURN: usize = 64;
/// All results of one turn together show at most so many characters; a long one is shortened to what is
/// left, but not below the second figure.
const TURN_CHARS: usize = 200_000;
const LEAST_CHARS: usize = 2000;
/// So many side by side.
const SIDE_BY_SIDE: usize = 8;
/// A tool that ignores its deadline is left behind so much later.
const TOOL_GRACE: Duration = Duration::from_secs(5);
/// A tool that ignores a cancel is left behind so much later, so that its call has a result all the same.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// Longer strings of a call's arguments are shortened in its event.
const SHOWN_ARGUMENT: usize = 16 * 1024;
/// Arguments that are longer in all are shown as the beginning of their JSON text, so that the event with
/// both of their forms stays within rule EV-1.
const SHOWN_ARGUMENTS: usize = 64 * 1024;
/// The only sandbox that calls can act in so far.
const PRIMARY: &str = "primary";

/// The results of a response's calls, in the order asked, and what is to be said besides.
pub(super) struct CallResults {
    pub(super) results: Vec<ToolResult>,
    pub(super) notices: Vec<String>,
}

/// A call, checked.
enum Plan {
    /// To be run.
    Run {
        def: &'static ToolDef,
        built: &'static BuiltTool,
        args: Map<String, Value>,
        note: Option<String>,
    },
    /// Answered without running anything.
    Refuse(String),
}

struct Planned<'a> {
    call: &'a ToolCall,
    /// Our name of the tool, or the model's where it isn't one of ours.
    name: String,
    plan: Plan,
}

/// Runs `calls` and answers every one of them, also when the run is stopped meanwhile.
pub(super) async fn run_calls(
    context: &RunContext,
    guard: &mut LoopGuard,
    calls: &[ToolCall],
    turn: u32,
    wrap_up: Deadline,
) -> Result<CallResults, Halt> {
    let mut planned = Vec::with_capacity(calls.len());
    for (index, call) in calls.iter().enumerate() {
        let one = plan(context, guard, call, index).await?;
        context
            .emit(RunEvent::ToolUse(tool_use(context, &one, turn)))
            .await?;
        planned.push(one);
    }
    // The intent is durable before a tool acts on the world.
    context.sync().await?;

    let room = AtomicUsize::new(TURN_CHARS);
    let mut outcomes = Vec::with_capacity(planned.len());
    let mut halt = None;
    for batch in batches(&planned) {
        let ending = halt.is_some();
        let running: Vec<_> = batch
            .iter()
            .map(|one| answer(context, one, &room, wrap_up, ending).boxed())
            .collect();
        let mut answered = futures::stream::iter(running).buffered(SIDE_BY_SIDE);
        while let Some(answered) = answered.next().await {
            match answered {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => {
                    halt.get_or_insert(error);
                    outcomes.push(Answered::failed("the call was not run: the run ends"));
                }
            }
        }
    }

    let mut called = CallResults {
        results: Vec::with_capacity(planned.len()),
        notices: Vec::new(),
    };
    for (one, outcome) in planned.iter().zip(outcomes) {
        let args = json_of(&one.call.args);
        if matches!(one.plan, Plan::Run { .. })
            && let Verdict::Nudge(text) =
                guard.record(&one.name, &args, &outcome.answer.text, outcome.complaint)
        {
            called.notices.push(text);
        }
        called.results.push(result_of(one, outcome.answer));
    }
    match halt {
        Some(halt) => Err(halt),
        None => Ok(called),
    }
}

/// Consecutive calls that may run beside each other; any other call alone.
fn batches<'p, 'c>(planned: &'p [Planned<'c>]) -> Vec<&'p [Planned<'c>]> {
    planned
        .chunk_by(|a, b| beside_others(a) && beside_others(b))
        .collect()
}

fn beside_others(one: &Planned<'_>) -> bool {
    match &one.plan {
        Plan::Run { def, .. } => def.parallel_safe,
        Plan::Refuse(_) => true,
    }
}

async fn plan<'a>(
    context: &RunContext,
    guard: &mut LoopGuard,
    call: &'a ToolCall,
    index: usize,
) -> Result<Planned<'a>, Halt> {
    let refuse = |name: &str, text: String| Planned {
        call,
        name: name.to_owned(),
        plan: Plan::Refuse(text),
    };
    let (def, built) = match tools::resolve_called(&call.name, &context.spec.tools) {
        Called::Tool(def, built) => (def, built),
        Called::NotAllowed(name) => {
            let text = format!(
                "{name} is not available in this run. Available: {}.",
                context.tool_list()
            );
            context
                .emit(RunEvent::Warning(
                    WarningEvent::new(
                        WarningCode::ToolDenied,
                        format!("the model called {name}, which this run does not allow"),
                    )
                    .fact("toolName", name),
                ))
                .await?;
            return Ok(refuse(name, text));
        }
        Called::Unknown => {
            let shown: String = call.name.chars().take(100).collect();
            let text = format!(
                "There is no tool {shown:?}. Available: {}.",
                context.tool_list()
            );
            context
                .emit(RunEvent::Warning(
                    WarningEvent::new(
                        WarningCode::ToolUnknown,
                        format!("the model called {shown:?}, which does not exist"),
                    )
                    .fact("toolName", shown.clone()),
                ))
                .await?;
            return Ok(refuse(&shown, text));
        }
    };
    if index >= CALLS_PER_TURN {
        return Ok(refuse(
            def.name,
            format!("Not run: at most {CALLS_PER_TURN} calls are run in one turn."),
        ));
    }
    let mut prepared = match tools::prepare(built.spec, &call.args) {
        Ok(prepared) => prepared,
        Err(mut complaint) => {
            if guard.misunderstood(def.name) {
                complaint.push_str("\nExample: ");
                complaint.push_str(&tools::example(built.spec));
            }
            return Ok(refuse(def.name, complaint));
        }
    };
    // A key that a model got hold of goes no further: not into the sandbox either.
    prepared
        .args
        .values_mut()
        .for_each(|value| clean(context, value));
    if guard.refuses(def.name, &json_of(&call.args)) {
        context
            .emit(RunEvent::Warning(
                WarningEvent::new(
                    WarningCode::LoopDetected,
                    format!("the model repeats a call of {} without effect", def.name),
                )
                .fact("toolName", def.name),
            ))
            .await?;
        return Ok(refuse(
            def.name,
            "Not run: this call was made several times in a row with the same result. Try another way, or answer with what you have."
                .to_owned(),
        ));
    }
    context.tally.tool_called(def.name);
    Ok(Planned {
        call,
        name: def.name.to_owned(),
        plan: Plan::Run {
            def,
            built,
            note: prepared.note(),
            args: prepared.args,
        },
    })
}

struct Answered {
    answer: ToolAnswer,
    complaint: bool,
}

impl Answered {
    fn failed(text: impl Into<String>) -> Self {
        Self {
            answer: ToolAnswer {
                text: text.into(),
                is_error: true,
                ..ToolAnswer::default()
            },
            complaint: true,
        }
    }
}

/// Runs one call and emits its result.
async fn answer(
    context: &RunContext,
    one: &Planned<'_>,
    room: &AtomicUsize,
    wrap_up: Deadline,
    ending: bool,
) -> Result<Answered, Halt> {
    let started = tokio::time::Instant::now();
    let (mut answered, halt) = match &one.plan {
        Plan::Refuse(text) => (Answered::failed(context.redactor.clean(text)), None),
        Plan::Run { .. } if ending || context.token.is_cancelled() => {
            (Answered::failed("cancelled: the run ends"), None)
        }
        Plan::Run {
            built, args, note, ..
        } => {
            let (mut answered, halt) = act(context, built, args, wrap_up).await;
            if let Some(note) = note {
                answered.answer.text.push('\n');
                answered.answer.text.push_str(note);
            }
            (answered, halt)
        }
    };
    fit(&mut answered.answer, room);
    let event = tool_result(one, &answered, started.elapsed());
    context.emit(RunEvent::ToolResult(event)).await?;
    match halt {
        Some(halt) => Err(halt),
        None => Ok(answered),
    }
}

async fn act(
    context: &RunContext,
    built: &BuiltTool,
    args: &Map<String, Value>,
    wrap_up: Deadline,
) -> (Answered, Option<Halt>) {
    let workspace = tokio::select! {
        biased;
        () = context.token.cancelled() => return (Answered::failed("cancelled: the run ends"), None),
        workspace = context.workspace.workspace() => workspace,
        () = tokio::time::sleep_until(wrap_up.instant()) => {
            let text = "not run: the sandbox was not ready before the run's time was nearly over";
            return (Answered::failed(text), None);
        }
    };
    let workspace = match workspace {
        Ok(workspace) => workspace,
        Err(problem) => {
            return (
                Answered::failed(problem.message.clone()),
                Some(Halt::Problem(problem)),
            );
        }
    };
    let tool_context = ToolContext {
        sandbox: workspace.sandbox.clone(),
        session: workspace.session.clone(),
        deadline: wrap_up,
        cancel: context.token.clone(),
        redactor: context.redactor.clone(),
    };
    // A tool keeps to its own limits and stops when it is told to; the others are for one that does not.
    let outcome = tokio::select! {
        biased;
        outcome = built.tool.call(args.clone(), &tool_context) => outcome,
        () = tokio::time::sleep_until(context.deadline.plus(TOOL_GRACE).instant()) => {
            return (Answered::failed("stopped: the run's time was over"), None);
        }
        () = long_cancelled(&context.token) => {
            return (Answered::failed("cancelled: the run ends"), None);
        }
    };
    match outcome {
        Ok(answer) => {
            let complaint = answer.is_error;
            (Answered { answer, complaint }, None)
        }
        Err(Failure::Complaint(text)) => (Answered::failed(context.redactor.clean(&text)), None),
        // A call without a result would spoil the history, even that of a run that is over.
        Err(Failure::Cancelled) => (Answered::failed("[cancelled]"), None),
        Err(Failure::Fatal(error)) => (
            Answered::failed(error.to_string()),
            Some(Halt::Problem(lost(&error))),
        ),
    }
}

/// Returns once the run was cancelled and tools have had their time to notice.
async fn long_cancelled(token: &CancellationToken) {
    token.cancelled().await;
    tokio::time::sleep(CANCEL_GRACE).await;
}

/// The problem that a lost sandbox ends a run with.
fn lost(error: &SandboxError) -> Problem {
    let mut problem = Problem::new(error.code(), error.to_string());
    problem.hint = error.hint();
    problem
}

fn json_of(args: &ToolArgs) -> Value {
    match args {
        ToolArgs::Json(value) => value.clone(),
        ToolArgs::Malformed { raw, .. } => Value::String(raw.clone()),
    }
}

fn tool_use(context: &RunContext, one: &Planned<'_>, turn: u32) -> ToolUseEvent {
    let mut input = match &one.plan {
        Plan::Run { args, .. } => Value::Object(args.clone()),
        Plan::Refuse(_) => json_of(&one.call.args),
    };
    clean(context, &mut input);
    let mut input_truncated = shorten(&mut input);
    let mut content = input.to_string();
    if content.len() > SHOWN_ARGUMENTS {
        input = Value::String(content);
        input_truncated |= shorten(&mut input);
        content = input.to_string();
    }
    ToolUseEvent {
        tool_name: one.name.clone().into(),
        content,
        input,
        input_truncated,
        tool_call_id: one.call.id.to_string(),
        sandbox: PRIMARY.to_owned(),
        turn,
    }
}

/// Shortens a result to the room that its turn has left.
fn fit(answer: &mut ToolAnswer, room: &AtomicUsize) {
    let most = room.load(Ordering::Relaxed).max(LEAST_CHARS);
    let chars = answer.text.chars().count();
    if let Cow::Owned(shorter) = tools::shorten(&answer.text, most) {
        answer.text = shorter;
        answer.truncated = true;
        answer.total_chars.get_or_insert(chars as u64);
    }
    let used = chars.min(most);
    let left = room.load(Ordering::Relaxed).saturating_sub(used);
    room.store(left, Ordering::Relaxed);
}

/// Takes secrets out of every string.
fn clean(context: &RunContext, value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(cleaned) = context.redactor.clean(text) {
                *text = cleaned;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| clean(context, item)),
        Value::Object(map) => map.values_mut().for_each(|item| clean(context, item)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Shortens long strings; whether there were some.
fn shorten(value: &mut Value) -> bool {
    match value {
        Value::String(text) if text.len() > SHOWN_ARGUMENT => {
            let at = (0..=SHOWN_ARGUMENT)
                .rev()
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(0);
            let left_out = text.len() - at;
            text.truncate(at);
            text.extend(["[… ", &left_out.to_string(), " bytes more]"]);
            true
        }
        Value::Array(items) => items
            .iter_mut()
            .fold(false, |any, item| shorten(item) | any),
        Value::Object(map) => map
            .values_mut()
            .fold(false, |any, item| shorten(item) | any),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn tool_result(one: &Planned<'_>, answered: &Answered, took: Duration) -> ToolResultEvent {
    let answer = &answered.answer;
    ToolResultEvent {
        tool_name: one.name.clone().into(),
        content: answer.text.clone(),
        tool_call_id: one.call.id.to_string(),
        is_error: answer.is_error,
        exit_code: answer.exit_code,
        truncated: answer.truncated,
        total_chars: answer.total_chars,
        output_path: answer.output_path.clone(),
        cwd: answer.cwd.clone(),
        diff: answer.diff.clone(),
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        sandbox: PRIMARY.to_owned(),
    }
}

fn result_of(one: &Planned<'_>, answer: ToolAnswer) -> ToolResult {
    let mut content = vec![Part::Text(answer.text)];
    content.extend(answer.images.into_iter().map(Part::Image));
    ToolResult {
        id: one.call.id.clone(),
        name: one.name.clone(),
        content,
        is_error: answer.is_error,
    }
}
