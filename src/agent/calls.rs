//! The tool calls of one response: checked, run side by side where that is safe, answered each and all.
//!
//! A tool is given the arguments that the model wrote, or is not run: nothing is taken out of them on the way.
//! What comes back is cleaned, noted and shortened here, for all tools.

use std::borrow::Cow;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::context::{MOST_MEDIA, MOST_MEDIA_BYTES};
use super::loops::{LoopGuard, Outcome, Refused, call_key};
use super::shown;
use super::types::{Halt, RunContext, Told};
use crate::apart::aside;
use crate::chat::{Image, Part, ToolCall, ToolResult};
use crate::clock::Deadline;
use crate::error::{Problem, WarningCode};
use crate::events::{Name, RunEvent, ToolUseEvent, WarningEvent};
use crate::sandbox::SandboxError;
use crate::secrets::Redactor;
use crate::tools::{self, BuiltTool, Called, Failure, ToolAnswer, ToolContext, ToolDef};

/// At most so many calls of one response are run and shown (rule AD-4).
const CALLS_PER_TURN: usize = 64;
/// The model is told so of as many more; yet others are not kept in its reply.
pub(super) const TOLD_CALLS: usize = 2 * CALLS_PER_TURN;
/// A long result is shortened to what is left of its turn, but not below this.
const LEAST_CHARS: usize = 2000;
/// So many side by side.
const SIDE_BY_SIDE: usize = 8;
/// A tool that ignores its deadline is left behind so much later, or after half of the last turn's time.
const TOOL_GRACE: Duration = Duration::from_secs(5);
/// A tool that ignores a cancel is left behind so much later, so that its call has a result all the same.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// Said in the place of an image for which there is no room.
const IMAGE_LEFT_OUT: &str = "[the image is left out: all images of one turn may have 13 MB, or 10 of them; read it again in a later turn]";
/// How much is shown of a tool's name that the model made up.
const SHOWN_NAME: usize = 100;

/// What bounds the calls of a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallLimits {
    /// When tools must be done.
    pub(super) wrap_up: Deadline,
    /// How many characters all results together may have.
    pub(super) chars: usize,
    /// Calls that were not even kept.
    pub(super) too_many: usize,
}

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
    /// Refused as a repeat.
    Repeat(Refused),
}

struct Planned<'a> {
    call: &'a ToolCall,
    /// Our name of the tool, or the model's where it isn't one of ours.
    name: Name,
    key: u64,
    plan: Plan,
}

/// Runs `calls` and answers every one of them, also when the run is stopped meanwhile.
pub(super) async fn run_calls(
    context: &RunContext,
    guard: &mut LoopGuard,
    told: &mut Told,
    calls: &[&ToolCall],
    turn: u32,
    limits: CallLimits,
) -> Result<CallResults, Halt> {
    let (calls, too_many) = calls.split_at(calls.len().min(CALLS_PER_TURN));
    let mut warned = Warned::default();
    let bytes = calls.iter().map(|call| call.args.text_bytes()).sum();
    let (mut planned, events) = aside(bytes, || {
        let planned = calls
            .iter()
            .map(|call| plan(context, guard, call, &mut warned));
        let planned: Vec<Planned<'_>> = planned.collect();
        let events = planned.iter().map(|one| {
            let args = match &one.plan {
                Plan::Run { args, .. } => Some(args),
                Plan::Refuse(_) | Plan::Repeat(_) => None,
            };
            shown::tool_use(context, one.call, &one.name, args, turn)
        });
        let events: Vec<ToolUseEvent> = events.collect();
        (planned, events)
    });
    warned.emit(context, told).await?;
    for event in events {
        context.emit(RunEvent::ToolUse(event)).await?;
    }
    warn_of_too_many(context, too_many.len() + limits.too_many).await?;
    // The intent is durable before a tool acts on the world.
    context.sync().await?;

    let room = Room::new(limits.chars, planned.len());
    let mut answers = Vec::with_capacity(planned.len());
    let mut halt = None;
    for batch in planned.chunk_by_mut(|a, b| beside_others(a) && beside_others(b)) {
        let ending = halt.is_some();
        let running: Vec<_> = batch
            .iter_mut()
            .map(|one| answer(context, one, &room, limits.wrap_up, ending).boxed())
            .collect();
        let mut answered = futures::stream::iter(running).buffered(SIDE_BY_SIDE);
        while let Some(answered) = answered.next().await {
            match answered {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    halt.get_or_insert(error);
                    answers.push(Answered::failed("the call was not run: the run ends"));
                }
            }
        }
    }
    if let Some(halt) = halt {
        return Err(halt);
    }

    let outcomes: Vec<Outcome<'_>> = planned
        .iter()
        .zip(&answers)
        .map(|(one, answered)| Outcome {
            tool: &one.name,
            call: one.key,
            result: answered.fingerprint,
            took: answered.took,
            complaint: answered.complaint,
        })
        .collect();
    let notices = guard.record(&outcomes);
    let results = planned.iter().zip(answers);
    let results = results.map(|(one, answered)| result(one.call, &one.name, answered.answer));
    let not_run = too_many.iter().map(|call| {
        let text = format!("Not run: at most {CALLS_PER_TURN} calls are run in one turn.");
        let name = context.shown(&call.name, SHOWN_NAME);
        result(call, &name, Answered::failed(text).answer)
    });
    Ok(CallResults {
        results: results.chain(not_run).collect(),
        notices,
    })
}

async fn warn_of_too_many(context: &RunContext, count: usize) -> Result<(), Halt> {
    if count == 0 {
        return Ok(());
    }
    let message = format!(
        "{count} calls of one response were not run: at most {CALLS_PER_TURN} are run in one turn"
    );
    let warning = WarningEvent::new(WarningCode::ToolCallsLimit, message)
        .fact("count", u64::try_from(count).unwrap_or(u64::MAX));
    context.emit(RunEvent::Warning(warning)).await
}

/// Consecutive calls of this kind run side by side; any other call alone.
fn beside_others(one: &Planned<'_>) -> bool {
    match &one.plan {
        Plan::Run { def, .. } => def.parallel_safe,
        Plan::Refuse(_) | Plan::Repeat(_) => true,
    }
}

/// What is said of the calls of one response: the same thing once, with how often.
#[derive(Debug, Default)]
struct Warned {
    told: Vec<Complaint>,
    /// Calls of yet other tools that don't exist.
    others: u64,
}

#[derive(Debug)]
struct Complaint {
    code: WarningCode,
    tool: Name,
    message: String,
    count: u64,
}

impl Warned {
    /// The model's own names are told of so many; of ours there are few.
    const MOST: usize = 8;

    fn of(&mut self, code: WarningCode, tool: &Name, message: String) {
        let known = |told: &&mut Complaint| told.code == code && told.tool == *tool;
        if let Some(told) = self.told.iter_mut().find(known) {
            told.count += 1;
        } else if code == WarningCode::ToolUnknown && self.told.len() >= Self::MOST {
            self.others += 1;
        } else {
            let (tool, count) = (tool.clone(), 1);
            self.told.push(Complaint {
                code,
                tool,
                message,
                count,
            });
        }
    }

    async fn emit(self, context: &RunContext, run: &mut Told) -> Result<(), Halt> {
        // The guard bounds what it refuses.
        let news = |told: &Complaint| {
            told.code == WarningCode::LoopDetected || run.is_new(told.code, &told.tool)
        };
        let mut told = self.told;
        told.retain(news);
        let others = self.others > 0 && run.is_new(WarningCode::ToolUnknown, "");
        let told = told.into_iter().map(|told| {
            let (message, count) = (told.message, told.count);
            let message = match count {
                1 => message,
                _ => format!("{message}, {count} times in one response"),
            };
            WarningEvent::new(told.code, message)
                .fact("toolName", told.tool)
                .fact("count", count)
        });
        let others = others.then(|| {
            let message = format!("{} calls of yet other tools that do not exist", self.others);
            WarningEvent::new(WarningCode::ToolUnknown, message).fact("count", self.others)
        });
        for warning in told.chain(others) {
            context.emit(RunEvent::Warning(warning)).await?;
        }
        Ok(())
    }
}

fn plan<'a>(
    context: &RunContext,
    guard: &mut LoopGuard,
    call: &'a ToolCall,
    warned: &mut Warned,
) -> Planned<'a> {
    let planned = |name: Name, plan: Plan| Planned {
        key: call_key(&name, &call.args),
        call,
        name,
        plan,
    };
    let (def, built) = match tools::resolve_called(&call.name, &context.spec.tools) {
        Called::Tool(def, built) => (def, built),
        Called::NotAllowed(name) => {
            let text = format!(
                "{name} is not available in this run. Available: {}.",
                tool_list(context)
            );
            let message = format!("the model called {name}, which this run does not allow");
            let name = name.into();
            warned.of(WarningCode::ToolDenied, &name, message);
            return planned(name, Plan::Refuse(text));
        }
        Called::Unknown => {
            let name = context.shown(&call.name, SHOWN_NAME);
            let text = format!(
                "There is no tool {name:?}. Available: {}.",
                tool_list(context)
            );
            let message = format!("the model called {name:?}, which does not exist");
            let name = name.into();
            warned.of(WarningCode::ToolUnknown, &name, message);
            return planned(name, Plan::Refuse(text));
        }
    };
    let name = || Name::from(def.name);
    let prepared = match tools::prepare(built.spec, &call.args, &context.redactor) {
        Ok(prepared) => prepared,
        Err(mut complaint) => {
            if guard.misunderstood(def.name) {
                complaint.push_str("\nExample: ");
                complaint.push_str(&tools::example(built.spec));
            }
            return planned(name(), Plan::Refuse(complaint));
        }
    };
    guard.understood();
    let note = prepared.note();
    let args = prepared.args;
    if args.values().any(|arg| holds_key(&context.redactor, arg)) {
        let text = "Not run: the arguments hold a key of this server, and keys never enter the sandbox. Leave it out.";
        return planned(name(), Plan::Refuse(text.to_owned()));
    }
    let mut planned = planned(
        name(),
        Plan::Run {
            def,
            built,
            args,
            note,
        },
    );
    if let Some(before) = guard.refuses(planned.key) {
        let message = format!("the model repeats a call of {} without effect", def.name);
        warned.of(WarningCode::LoopDetected, &planned.name, message);
        planned.plan = Plan::Repeat(before);
    } else {
        context.tally.tool_called(def.name);
    }
    planned
}

fn tool_list(context: &RunContext) -> String {
    if context.spec.tools.is_empty() {
        "none".to_owned()
    } else {
        context.spec.tools.join(", ")
    }
}

/// Whether a key of this server, or an encoding of one, stands in a string of `value`.
fn holds_key(redactor: &Redactor, value: &Value) -> bool {
    match value {
        Value::String(text) => redactor.finds(text),
        Value::Array(items) => items.iter().any(|item| holds_key(redactor, item)),
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| redactor.finds(name) || holds_key(redactor, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

struct Answered {
    answer: ToolAnswer,
    /// Of the answer as the tool gave it.
    fingerprint: u64,
    /// How long the tool was at work.
    took: Duration,
    complaint: bool,
}

impl Answered {
    fn new(answer: ToolAnswer, complaint: bool) -> Self {
        Self {
            fingerprint: answer.fingerprint(),
            took: Duration::ZERO,
            answer,
            complaint,
        }
    }

    fn failed(text: impl Into<String>) -> Self {
        let answer = ToolAnswer {
            text: text.into(),
            is_error: true,
            ..ToolAnswer::default()
        };
        Self::new(answer, true)
    }
}

/// Answers one call and emits its result.
async fn answer(
    context: &RunContext,
    one: &mut Planned<'_>,
    room: &Room,
    wrap_up: Deadline,
    ending: bool,
) -> Result<Answered, Halt> {
    let started = tokio::time::Instant::now();
    let (mut answered, halt) = match &mut one.plan {
        Plan::Refuse(text) => (Answered::failed(std::mem::take(text)), None),
        Plan::Repeat(before) => {
            let what = if before.among_others {
                "this call and others were made in turn several times, each with the same result as before"
            } else {
                "this call was made several times in a row with the same result"
            };
            let mut answered = Answered::failed(format!(
                "Not run: {what}. Try another way, or answer with what you have."
            ));
            answered.fingerprint = before.result;
            (answered, None)
        }
        Plan::Run { .. } if ending || context.token.is_cancelled() => {
            (Answered::failed("cancelled: the run ends"), None)
        }
        Plan::Run { built, args, .. } => act(context, built, std::mem::take(args), wrap_up).await,
    };
    let note = match &one.plan {
        Plan::Run { note, .. } => note.as_deref(),
        Plan::Refuse(_) | Plan::Repeat(_) => None,
    };
    finish(&context.redactor, &mut answered.answer, note, room);
    let event = shown::tool_result(one.call, &one.name, &answered.answer, started.elapsed());
    context.emit(RunEvent::ToolResult(event)).await?;
    match halt {
        Some(halt) => Err(halt),
        None => Ok(answered),
    }
}

async fn act(
    context: &RunContext,
    built: &BuiltTool,
    args: Map<String, Value>,
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
    let limit = left_behind_at(wrap_up, context.deadline);
    let started = tokio::time::Instant::now();
    let outcome = match bounded(built.call(args, &tool_context), limit, &context.token).await {
        Ok(outcome) => outcome,
        Err(left_behind) => return (Answered::failed(left_behind), None),
    };
    match outcome {
        // That a command failed is no complaint: a test that fails is what it is run for.
        Ok(answer) => {
            let mut answered = Answered::new(answer, false);
            answered.took = started.elapsed();
            (answered, None)
        }
        Err(Failure::Complaint(text)) => (Answered::failed(text), None),
        // A call without a result would spoil the history, even that of a run that is over.
        Err(Failure::Cancelled) => (Answered::failed("[cancelled]"), None),
        Err(Failure::Fatal(error)) => (
            Answered::failed(error.to_string()),
            Some(Halt::Problem(lost(&error))),
        ),
    }
}

/// When a tool that should be done at `wrap_up` is waited for no longer: before `deadline`, so that there is
/// time for a last turn.
fn left_behind_at(wrap_up: Deadline, deadline: Deadline) -> Deadline {
    let last_turn = deadline.instant() - wrap_up.instant();
    wrap_up.plus(TOOL_GRACE.min(last_turn / 2))
}

/// What comes of `call`, or why it was left behind: its time was over, or the run long cancelled.
async fn bounded<T>(
    call: impl Future<Output = T>,
    limit: Deadline,
    token: &CancellationToken,
) -> Result<T, &'static str> {
    tokio::select! {
        biased;
        outcome = call => Ok(outcome),
        () = tokio::time::sleep_until(limit.instant()) => {
            Err("left behind, since the run's time was nearly over: it may still be at work")
        }
        () = long_cancelled(token) => {
            Err("left behind, since the run was cancelled: it may still be at work")
        }
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

/// What all answers have in common on their way out: no secret, the note on the arguments, a bounded length.
fn finish(redactor: &Redactor, answer: &mut ToolAnswer, note: Option<&str>, room: &Room) {
    let images = answer.images.len();
    answer.images.retain(|image| room.take_image(image));
    let too_many = (answer.images.len() < images).then_some(IMAGE_LEFT_OUT);
    for note in [note, too_many].into_iter().flatten() {
        answer.text.push('\n');
        answer.text.push_str(note);
    }
    let ToolAnswer {
        text,
        output_path,
        cwd,
        diff,
        ..
    } = &mut *answer;
    for text in [
        Some(text),
        output_path.as_mut(),
        cwd.as_mut(),
        diff.as_mut(),
    ]
    .into_iter()
    .flatten()
    {
        redactor.clean_text(text);
    }
    let chars = answer.text.chars().count();
    let most = room.take(chars);
    if let Cow::Owned(shorter) = tools::shorten(&answer.text, most) {
        answer.text = shorter;
        answer.truncated = true;
        answer.total_chars.get_or_insert(chars as u64);
    }
}

/// How much a turn's results may still have. Of characters every call has its own least share, so that the last
/// ones get something too.
struct Room {
    least: usize,
    shared: Mutex<Shared>,
}

struct Shared {
    chars: usize,
    images: usize,
    image_bytes: usize,
}

impl Room {
    fn new(chars: usize, calls: usize) -> Self {
        let least = LEAST_CHARS.min(chars / calls.max(1));
        Self {
            least,
            shared: Mutex::new(Shared {
                chars: chars - least * calls,
                images: MOST_MEDIA,
                image_bytes: MOST_MEDIA_BYTES,
            }),
        }
    }

    /// Takes room for a result of `chars` characters; how many of them it may have.
    fn take(&self, chars: usize) -> usize {
        let mut shared = self.shared.lock();
        let taken = chars.saturating_sub(self.least).min(shared.chars);
        shared.chars -= taken;
        self.least + taken
    }

    /// Takes room for an image, if there is some: what could not be sent is not kept until then.
    fn take_image(&self, image: &Image) -> bool {
        let mut shared = self.shared.lock();
        let fits = shared.images > 0 && image.base64.len() <= shared.image_bytes;
        if fits {
            shared.images -= 1;
            shared.image_bytes -= image.base64.len();
        }
        fits
    }
}

fn result(call: &ToolCall, name: &str, answer: ToolAnswer) -> ToolResult {
    let mut content = vec![Part::Text(answer.text)];
    content.extend(answer.images.into_iter().map(Part::Image));
    ToolResult {
        id: call.id.clone(),
        name: name.to_owned(),
        content,
        is_error: answer.is_error,
    }
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
