use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::tally::Tally;
use super::super::workspace::{Workspace, WorkspaceSource};
use super::*;
use crate::chat::{Block, CallIds, ToolArgs, ToolCall};
use crate::clock::Deadline;
use crate::events::{EventSink, LogFailed};
use crate::ids::{RunId, Seq};
use crate::llm::{
    LlmDelta, LlmError, LlmErrorKind, LlmProvider, LlmRequest, LlmStream, ModelFacts, Usage,
};
use crate::secrets::Redactor;
use crate::spec::{
    ModelChoice, Network, Presence, SandboxChoice, SandboxStart, SystemPrompt, ThinkingLevel,
};

type Deltas = Vec<Result<LlmDelta, LlmError>>;

/// An LLM that answers by a script and remembers what it was sent.
#[derive(Default)]
struct Scripted {
    replies: Mutex<VecDeque<Deltas>>,
    requests: Mutex<Vec<String>>,
    /// What opening comes to, before the answers.
    faults: Mutex<VecDeque<LlmError>>,
    /// Requests longer than this are too long.
    most_chars: Option<usize>,
    /// No request is ever answered.
    silent: bool,
    /// How many answers were read to their end.
    ended: Arc<AtomicUsize>,
}

#[async_trait]
impl LlmProvider for Scripted {
    async fn open(&self, request: &LlmRequest<'_>) -> Result<LlmStream, LlmError> {
        let sent = format!(
            "{:?} {:?} {:?} most={:?}",
            request.messages, request.tool_choice, request.cache_key, request.affordable
        );
        let too_long = self.most_chars.is_some_and(|most| sent.len() > most);
        self.requests.lock().push(sent);
        if too_long {
            return Err(LlmError::new(LlmErrorKind::ContextTooLong, "too long"));
        }
        if self.silent {
            std::future::pending::<()>().await;
        }
        if let Some(fault) = self.faults.lock().pop_front() {
            return Err(fault);
        }
        let reply = self.replies.lock().pop_front().expect("one more request");
        let ended = Arc::clone(&self.ended);
        let end = futures::stream::poll_fn(move |_| {
            ended.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(None)
        });
        Ok(futures::stream::iter(reply).chain(end).boxed())
    }

    fn model(&self, _model: &str) -> Option<ModelFacts> {
        None
    }
}

#[derive(Default)]
struct Events(Mutex<Vec<Value>>);

#[async_trait]
impl EventSink for Events {
    async fn emit(&self, event: RunEvent) -> Result<Seq, LogFailed> {
        self.0.lock().push(serde_json::to_value(event).unwrap());
        Ok(Seq(1))
    }

    async fn sync(&self) -> Result<Seq, LogFailed> {
        Ok(Seq(1))
    }
}

/// No sandbox: no tool of these runs acts.
struct Nowhere;

#[async_trait]
impl WorkspaceSource for Nowhere {
    async fn workspace(&self) -> Result<Arc<Workspace>, Problem> {
        Err(Problem::new(ErrorCode::SandboxError, "there is none"))
    }

    fn ready(&self) -> Option<Arc<Workspace>> {
        None
    }
}

fn spec() -> RunSpec {
    RunSpec {
        prompt: "hi".to_owned(),
        model: ModelChoice {
            provider: "anthropic",
            id: "claude-sonnet-4-6".to_owned(),
        },
        thinking: ThinkingLevel::Unset,
        tools: vec!["bash"],
        unavailable_tools: Vec::new(),
        max_turns: 100,
        timeout: Duration::from_mins(5),
        max_budget: None,
        files: Vec::new(),
        sandbox: SandboxChoice {
            backend: "local",
            template: None,
            network: Network::None,
            start: SandboxStart::Eager,
        },
        system_prompt: SystemPrompt::default(),
        presence: Presence::Background,
    }
}

/// What came of a run: its end, its events, the requests that it sent, its costs.
struct Ran {
    end: Result<Answer, Halt>,
    events: Vec<Value>,
    requests: Vec<String>,
    tally: Arc<Tally>,
    ended: usize,
}

impl Ran {
    fn code(&self) -> Option<ErrorCode> {
        match &self.end {
            Err(Halt::Problem(problem)) => Some(problem.code),
            Err(Halt::Llm(error)) => Some(error.code()),
            _ => None,
        }
    }

    fn warnings(&self) -> Vec<&str> {
        let codes = self
            .events
            .iter()
            .filter_map(|event| event["code"].as_str());
        codes.collect()
    }
}

async fn run(replies: impl IntoIterator<Item = Deltas>) -> Ran {
    run_with(Scripted::default(), spec(), replies).await
}

async fn run_with(
    provider: Scripted,
    spec: RunSpec,
    replies: impl IntoIterator<Item = Deltas>,
) -> Ran {
    let provider = Arc::new(provider);
    provider.replies.lock().extend(replies);
    let sink = Arc::new(Events::default());
    let tally = Arc::new(Tally::new(&spec.model));
    let context = RunContext {
        id: RunId::new(),
        deadline: Deadline::after(spec.timeout),
        spec: Arc::new(spec),
        provider: provider.clone(),
        sink: sink.clone(),
        workspace: Arc::new(Nowhere),
        token: CancellationToken::new(),
        tally: Arc::clone(&tally),
        redactor: Redactor::default(),
        working_dir: "/home/user",
        today: "2026-11-25".to_owned(),
    };
    let stop = async {
        if provider.silent {
            tokio::time::sleep(Duration::from_secs(1)).await;
            context.token.cancel();
        }
    };
    let (end, ()) = tokio::join!(run_agent(&context), stop);
    assert!(provider.replies.lock().is_empty(), "not all was asked for");
    let requests = provider.requests.lock().clone();
    assert!(
        requests
            .iter()
            .all(|request| request.contains(context.id.as_str()))
    );
    Ran {
        end,
        events: sink.0.lock().clone(),
        requests,
        tally,
        ended: provider.ended.load(Ordering::Relaxed),
    }
}

fn says(text: &str) -> Deltas {
    stops(text, LlmStop::End)
}

fn stops(text: &str, stop: LlmStop) -> Deltas {
    vec![
        Ok(LlmDelta::Text(text.to_owned())),
        Ok(LlmDelta::Block(Block::text(text))),
        Ok(LlmDelta::Stop(stop)),
    ]
}

fn unreadable_call() -> Deltas {
    let attempt = "call:bash{command:".to_owned();
    stops("Looking. ", LlmStop::MalformedCall { attempt })
}

fn used(input: u64) -> LlmDelta {
    LlmDelta::Usage(Usage {
        input,
        ..Usage::default()
    })
}

#[tokio::test]
async fn a_call_that_its_provider_cannot_read_is_asked_for_twice_more_by_the_same_request() {
    let ran = run([unreadable_call(), unreadable_call(), says("Done.")]).await;
    assert_eq!(ran.end.as_ref().unwrap().content, "Done.");
    assert_eq!(ran.warnings(), ["TURN_RESTARTED"; 2]);
    assert!(
        ran.requests
            .iter()
            .all(|request| *request == ran.requests[0])
    );

    let ran = run([unreadable_call(), unreadable_call(), unreadable_call()]).await;
    assert_eq!(ran.code(), Some(ErrorCode::LlmBadResponse));
    assert_eq!(ran.requests.len(), 3);
    assert_eq!(ran.ended, 3, "read to its end, or its connection is lost");
}

#[tokio::test]
async fn what_a_provider_warns_of_reaches_the_client_once() {
    let warned = |message: &str, reply: Deltas| -> Deltas {
        let warning = LlmDelta::Warning {
            code: WarningCode::StopReasonUnknown,
            message: message.to_owned(),
        };
        std::iter::once(Ok(warning)).chain(reply).collect()
    };
    let ran = run([
        warned("thinking can't be turned off", unreadable_call()),
        warned("thinking can't be turned off", unreadable_call()),
        warned("something else", says("Done.")),
    ])
    .await;
    let told = ran
        .events
        .iter()
        .filter(|event| event["code"] == "STOP_REASON_UNKNOWN");
    let told: Vec<&str> = told.filter_map(|event| event["message"].as_str()).collect();
    assert_eq!(told, ["thinking can't be turned off", "something else"]);
}

#[tokio::test]
async fn an_answer_that_begins_anew_is_paid_for_twice_and_shown_once() {
    let mut reply = vec![Ok(used(1000)), Ok(LlmDelta::Restarted), Ok(used(10))];
    reply.extend(says("Done."));
    let ran = run([reply]).await;
    assert_eq!(ran.end.unwrap().content, "Done.");
    let totals = ran.tally.totals(Duration::ZERO);
    assert_eq!((totals.input_tokens, totals.usage_complete), (1010, false));

    let mut reply = says("Half");
    reply.insert(2, Ok(LlmDelta::Restarted));
    let ran = run([reply]).await;
    assert_eq!(ran.code(), Some(ErrorCode::LlmStreamCut));
}

#[tokio::test]
async fn a_refusal_of_content_without_any_ends_the_run() {
    let refused = LlmError::new(LlmErrorKind::ContentRefused, "could not process image");
    let ran = run([vec![Err(refused)]]).await;
    assert_eq!(ran.code(), Some(ErrorCode::LlmBadRequest));
    assert_eq!(ran.requests.len(), 1);
}

#[tokio::test]
async fn calls_that_were_refused_are_answered_in_the_history() {
    let ids = CallIds::default();
    let call = |name: &str, args: ToolArgs| {
        Ok(LlmDelta::Block(Block::Call(ToolCall {
            id: ids.issue("call_0"),
            name: name.to_owned(),
            args,
            echo: None,
        })))
    };
    let malformed = ToolArgs::Malformed {
        raw: "{".to_owned(),
        error: "it ends too soon".to_owned(),
    };
    let reply = vec![
        call("fly", ToolArgs::Json(json!({}))),
        call("bash", malformed),
        Ok(LlmDelta::Stop(LlmStop::ToolUse)),
    ];
    let ran = run([reply, says("Done.")]).await;
    assert_eq!(ran.end.unwrap().content, "Done.");
    let of = |kind: &str| -> Vec<&Value> {
        let events = ran.events.iter().filter(|event| event["type"] == kind);
        events.map(|event| &event["toolCallId"]).collect()
    };
    assert_eq!(of("tool_use"), of("tool_result"));
    assert_ne!(
        of("tool_use")[0],
        of("tool_use")[1],
        "ids are ours, and unique"
    );
    for words in ["There is no tool", "it ends too soon"] {
        assert!(ran.requests[1].contains(words), "{}", ran.requests[1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_without_figures_is_not_counted_as_free() {
    let billed = || {
        let mut reply = says("Done.");
        reply.insert(0, Ok(used(10)));
        reply
    };
    let fault = |kind| LlmError::new(kind, "it failed");
    let after = |kind| Scripted {
        faults: Mutex::new([fault(kind)].into()),
        ..Scripted::default()
    };
    let silent = Scripted {
        silent: true,
        ..Scripted::default()
    };
    let broken = vec![Err(fault(LlmErrorKind::Overloaded))];
    for (provider, replies, complete) in [
        (Scripted::default(), vec![billed()], true),
        (Scripted::default(), vec![says("Done.")], false),
        (Scripted::default(), vec![broken, billed()], false),
        (after(LlmErrorKind::Timeout), vec![billed()], false),
        (after(LlmErrorKind::RateLimited), vec![billed()], true),
        (silent, vec![], false),
    ] {
        let ran = run_with(provider, spec(), replies).await;
        let totals = ran.tally.totals(Duration::ZERO);
        assert_eq!(totals.usage_complete, complete, "{:?}", ran.end);
    }
}

/// A turn whose refused call takes some 9,000 tokens.
fn long_turn(n: usize) -> Deltas {
    let args = json!({ "n": n, "z": format!("turn-{n} {}", "z".repeat(30_000)) });
    vec![
        fly(ToolArgs::Json(args)),
        Ok(LlmDelta::Stop(LlmStop::ToolUse)),
    ]
}

#[expect(clippy::unnecessary_wraps, reason = "a piece of a script of results")]
fn fly(args: ToolArgs) -> Result<LlmDelta, LlmError> {
    Ok(LlmDelta::Block(Block::Call(ToolCall {
        id: CallIds::default().issue(""),
        name: "fly".to_owned(),
        args,
        echo: None,
    })))
}

#[tokio::test]
async fn a_conversation_too_long_to_be_summarised_goes_by_halves() {
    let provider = Scripted {
        most_chars: Some(160_000),
        ..Scripted::default()
    };
    // Five of them fit; the sixth request does not, nor does that for a summary.
    let mut replies: Vec<Deltas> = (1..=6).map(long_turn).collect();
    replies.extend([says("GOAL: fly."), says("Done.")]);
    let ran = run_with(provider, spec(), replies).await;
    assert_eq!(
        ran.end.as_ref().unwrap().content,
        "Done.",
        "{:?}",
        ran.warnings()
    );
    let asked: Vec<&String> = ran
        .requests
        .iter()
        .filter(|request| request.contains("Call no tool."))
        .collect();
    assert_eq!(asked.len(), 2, "{:?}", ran.warnings());
    assert!(asked[0].contains("turn-1 ") && !asked[1].contains("turn-1 "));
    assert!(asked[1].contains("turn-5 "));
    assert!(ran.requests.last().unwrap().contains("GOAL: fly."));
}

#[tokio::test(start_paused = true)]
async fn a_summary_that_breaks_off_is_asked_for_again_and_one_that_begins_anew_is_the_new_one() {
    let cut = vec![
        Ok(LlmDelta::Text("void".to_owned())),
        Err(LlmError::new(LlmErrorKind::Cut, "it broke off")),
    ];
    let mut anew = says("GOAL: fly.");
    anew.splice(
        0..0,
        [
            Ok(LlmDelta::Text("void".to_owned())),
            Ok(LlmDelta::Block(Block::text("void"))),
            Ok(LlmDelta::Restarted),
        ],
    );
    for summary in [vec![cut, says("GOAL: fly.")], vec![anew]] {
        let mut replies: Vec<Deltas> = (1..=8).map(long_turn).collect();
        replies[7].insert(0, Ok(used(165_000)));
        replies.extend(summary);
        replies.push(says("Done."));
        let ran = run(replies).await;
        assert_eq!(ran.end.as_ref().unwrap().content, "Done.");
        let last = ran.requests.last().unwrap();
        assert!(last.contains("GOAL: fly.") && !last.contains("void"));
    }
}

#[tokio::test]
async fn a_request_too_large_without_any_image_makes_room() {
    let too_large = LlmError::new(LlmErrorKind::ContentRefused, "request too large");
    let mut replies: Vec<Deltas> = (1..=3).map(long_turn).collect();
    replies.extend([vec![Err(too_large)], says("GOAL: fly."), says("Done.")]);
    let ran = run(replies).await;
    assert_eq!(ran.end.as_ref().unwrap().content, "Done.");
    assert!(ran.warnings().contains(&"CONTEXT_COMPACTED"));
}

#[tokio::test]
async fn the_window_bounds_the_rest_of_an_answer() {
    let cut = |input: u64, text: &str| {
        let mut reply = stops(text, LlmStop::MaxTokens);
        reply.insert(0, Ok(used(input)));
        reply
    };
    let ran = run([cut(190_000, "One, "), cut(198_500, "two, ")]).await;
    let answer = ran.end.as_ref().unwrap();
    assert_eq!(
        (answer.content.as_str(), answer.truncated),
        ("One, two, ", true)
    );
    assert_eq!(ran.warnings(), ["ANSWER_TRUNCATED"]);
    let most = ran.requests[1].rsplit_once("most=Some(").unwrap().1;
    let most: u32 = most.trim_end_matches(')').parse().unwrap();
    assert!((9_000..=10_000).contains(&most), "{most}");
}

#[tokio::test]
async fn a_call_that_is_cut_on_the_last_turn_is_text_that_was_cut() {
    let cut = |text: &str| {
        let mut reply = stops(text, LlmStop::MaxTokens);
        reply.insert(2, fly(ToolArgs::Json(json!({}))));
        reply
    };
    let spec = RunSpec {
        max_turns: 1,
        ..spec()
    };
    let replies = [cut("One, "), cut("two, "), cut("three")];
    let ran = run_with(Scripted::default(), spec, replies).await;
    let answer = ran.end.as_ref().unwrap();
    assert_eq!(
        (answer.content.as_str(), answer.truncated),
        ("One, two, three", true)
    );
}

#[tokio::test]
async fn arguments_that_are_an_object_in_a_string_are_sent_back_as_the_object() {
    let inside = json!(r#"{"to": 7}"#);
    let reply = vec![
        fly(ToolArgs::Json(inside)),
        Ok(LlmDelta::Stop(LlmStop::ToolUse)),
    ];
    let ran = run([reply, says("Done.")]).await;
    assert!(ran.requests[1].contains(r#"args: Json(Object {"to": Number(7)})"#));
}

#[test]
fn time_that_is_nearly_over_is_called_time() {
    let mut limits = Limits::new(&spec(), Deadline::after(Duration::from_secs(30)));
    let warning = limits.warning(1, NanoUsd(0)).unwrap();
    let event = serde_json::to_value(RunEvent::Warning(warning)).unwrap();
    assert_eq!(event["limit"], "time");
}
