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

use super::super::asked::spec;
use super::super::tally::Tally;
use super::super::workspace::{Workspace, WorkspaceSource};
use super::*;
use crate::chat::{
    Block, CallIds, Echo, Image, ImageType, Message, Part, ToolArgs, ToolCall, ToolResult,
};
use crate::clock::Deadline;
use crate::events::{EventSink, LogFailed};
use crate::ids::{RunId, Seq};
use crate::llm::{
    Citation, LlmDelta, LlmError, LlmErrorKind, LlmProvider, LlmRequest, LlmStream, ModelFacts,
    Usage,
};
use crate::secrets::{Redactor, Secret};
use crate::spec::RunSpec;

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
    /// What requests for a summary are answered with, instead of the next reply.
    summary: Option<fn() -> Deltas>,
    /// No request is ever answered.
    silent: bool,
    /// No summary is ever complete.
    no_summary: bool,
    /// What must not be shown.
    key: &'static str,
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
        let asks_for_summary = request.messages.last() == Some(&Message::user(prompt::SUMMARISE));
        if asks_for_summary && self.no_summary {
            tokio::time::sleep_until(request.deadline.instant()).await;
            let mut late = LlmError::new(LlmErrorKind::Timeout, "it was too slow");
            late.should_retry = Some(false);
            return Err(late);
        }
        let reply = match self.summary {
            Some(summary) if asks_for_summary => summary(),
            _ => self.replies.lock().pop_front().expect("one more request"),
        };
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

    /// The most output tokens that a request was allowed.
    fn most(&self, request: usize) -> u32 {
        let most = self.requests[request].rsplit_once("most=Some(").unwrap().1;
        most.trim_end_matches(')').parse().unwrap()
    }

    /// What the first warning of `code` says.
    fn told(&self, code: &str) -> &str {
        let found = self.events.iter().find(|event| event["code"] == code);
        found.and_then(|event| event["message"].as_str()).unwrap()
    }

    /// What the end of a run without an answer says.
    fn failure(&self) -> String {
        match &self.end {
            Err(Halt::Problem(problem)) => problem.message.clone(),
            Err(Halt::Llm(error)) => error.message.clone(),
            end => panic!("{end:?}"),
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

fn context(provider: &Arc<Scripted>, spec: RunSpec, sink: Arc<Events>) -> RunContext {
    RunContext {
        id: RunId::new(),
        deadline: Deadline::after(spec.timeout),
        tally: Arc::new(Tally::new(&spec.model)),
        spec: Arc::new(spec),
        provider: provider.clone(),
        sink,
        workspace: Arc::new(Nowhere),
        token: CancellationToken::new(),
        redactor: Redactor::new([&Secret::new(provider.key)]),
        working_dir: "/home/user",
        today: "2026-11-25".to_owned(),
    }
}

async fn run_with(
    provider: Scripted,
    spec: RunSpec,
    replies: impl IntoIterator<Item = Deltas>,
) -> Ran {
    let provider = Arc::new(provider);
    provider.replies.lock().extend(replies);
    let sink = Arc::new(Events::default());
    let context = context(&provider, spec, sink.clone());
    let tally = Arc::clone(&context.tally);
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

/// All thought, and cut.
fn thought(usage: Usage) -> Deltas {
    vec![
        Ok(LlmDelta::Usage(usage)),
        Ok(LlmDelta::Thinking("Hm".to_owned())),
        Ok(LlmDelta::Stop(LlmStop::MaxTokens)),
    ]
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
    let tokens = totals.tokens.unwrap();
    assert_eq!((tokens.input_tokens, totals.usage_complete), (1010, false));

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
    let cut_off = vec![Ok(LlmDelta::Text("Well".to_owned()))];
    let ten = 10..11;
    // Of the prompt's 20,000 letters, besides the system prompt and the tools.
    let sent = 5000..50_000;
    for (provider, replies, complete, input) in [
        (Scripted::default(), vec![billed()], true, &ten),
        (Scripted::default(), vec![says("Done.")], false, &sent),
        (Scripted::default(), vec![broken, billed()], false, &ten),
        (Scripted::default(), vec![cut_off], false, &sent),
        (after(LlmErrorKind::Timeout), vec![billed()], false, &ten),
        (after(LlmErrorKind::RateLimited), vec![billed()], true, &ten),
        (silent, vec![], false, &sent),
    ] {
        let mut spec = spec();
        spec.prompt = "word ".repeat(4000);
        let ran = run_with(provider, spec, replies).await;
        let totals = ran.tally.totals(Duration::ZERO);
        assert_eq!(totals.usage_complete, complete, "{:?}", ran.end);
        assert!(
            input.contains(&totals.tokens.unwrap().input_tokens),
            "{totals:?}"
        );
        assert!(totals.cost_usd > Some(0.0), "{totals:?}");
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

/// An answer of `text` that ends by `stop`, after `before`.
fn ends(before: Option<LlmDelta>, text: &str, stop: LlmStop) -> Deltas {
    let mut reply = stops(text, stop);
    reply.splice(..0, before.map(Ok));
    reply
}

/// A summary, and what is said of it.
type Odd = (fn() -> Deltas, &'static str);

#[tokio::test]
async fn a_summary_that_came_to_nothing_is_not_paid_for_again() {
    const MUCH: u64 = 165_000;
    fn odd(text: &str, stop: LlmStop) -> Deltas {
        ends(Some(used(MUCH)), text, stop)
    }
    let odd_ones: [Odd; 9] = [
        (
            || {
                let (category, explanation) = (None, Some("no".to_owned()));
                odd(
                    "Well, ",
                    LlmStop::Refusal {
                        category,
                        explanation,
                    },
                )
            },
            "the model refused",
        ),
        (|| odd("", LlmStop::End), "the model gave no summary"),
        (
            || odd(" \n", LlmStop::Unknown("tired".to_owned())),
            "the model gave no summary",
        ),
        (
            || vec![Ok(used(MUCH)), Ok(LlmDelta::Stop(LlmStop::MaxTokens))],
            "the model gave no summary",
        ),
        (
            || {
                let mut reply = odd("I'll look first.", LlmStop::ToolUse);
                reply.insert(2, fly(ToolArgs::Json(json!({}))));
                reply
            },
            "the model gave no summary",
        ),
        (
            || {
                let attempt = String::new();
                odd("I'll look first.", LlmStop::MalformedCall { attempt })
            },
            "the model gave no summary",
        ),
        (
            || odd("GOAL: fl", LlmStop::Pause),
            "its provider paused the summary",
        ),
        (
            || odd(&"word ".repeat(8000), LlmStop::End),
            "the summary was too long",
        ),
        (
            || odd(&"word ".repeat(8000), LlmStop::MaxTokens),
            "the summary was too long",
        ),
    ];
    let cases = odd_ones.iter().map(|odd| (odd, 13, MUCH, 1));
    // A conversation that has grown is worth another try, but not a third.
    let grown = odd_ones.iter().take(1).map(|odd| (odd, 18, 400_000, 2));
    for (&(summary, told), turns, grown, most) in cases.chain(grown) {
        let turn = |n: usize| {
            let mut reply = long_turn(n);
            reply.insert(0, Ok(used(if n < 11 { MUCH } else { grown })));
            reply
        };
        let mut replies: Vec<Deltas> = (1..=turns).map(turn).collect();
        replies.push(ends(Some(used(0)), "Done.", LlmStop::End));
        let provider = Scripted {
            summary: Some(summary),
            ..Scripted::default()
        };
        let ran = run_with(provider, spec(), replies).await;
        assert_eq!(ran.end.as_ref().unwrap().content, "Done.", "{told}");
        let asked = ran
            .requests
            .iter()
            .filter(|sent| sent.contains("Call no tool."));
        assert_eq!(asked.count(), most, "{told}: {:?}", ran.warnings());
        let tokens = MUCH * (10 + most as u64) + grown * (turns as u64 - 10);
        let paid = ran.tally.totals(Duration::ZERO).cost_usd.unwrap();
        let right = f64::from(u32::try_from(tokens).unwrap()) * 3e-6;
        assert!((paid - right).abs() < 1e-6, "{told}: {paid} {right}");
        let said = ran
            .events
            .iter()
            .filter(|event| event["code"] == "CONTEXT_CLEARED");
        let words: Vec<&str> = said.filter_map(|event| event["message"].as_str()).collect();
        assert_eq!(words.len(), most, "{told}");
        assert!(
            words.iter().all(|words| words.starts_with(told)),
            "{words:?}"
        );
    }
}

#[tokio::test]
async fn what_does_not_fit_is_left_out_without_a_summary_once_two_have_failed() {
    let provider = Scripted {
        summary: Some(|| vec![Ok(used(165_000)), Ok(LlmDelta::Stop(LlmStop::ContextFull))]),
        ..Scripted::default()
    };
    let too_long = LlmError::new(LlmErrorKind::ContextTooLong, "too long");
    let mut replies: Vec<Deltas> = (1..=6).map(long_turn).collect();
    replies.extend([vec![Err(too_long)], says("Done.")]);
    let ran = run_with(provider, spec(), replies).await;
    assert_eq!(ran.end.as_ref().unwrap().content, "Done.");
    let asked = ran
        .requests
        .iter()
        .filter(|sent| sent.contains("Call no tool."));
    assert_eq!(asked.count(), 2, "{:?}", ran.warnings());
    assert!(ran.requests.last().unwrap().contains(prompt::LEFT_OUT));
}

#[tokio::test]
async fn a_turn_counts_once_something_of_its_answer_came() {
    let refusal = || LlmStop::Refusal {
        category: None,
        explanation: None,
    };
    let cut_call = || {
        let mut reply = stops("Writing.", LlmStop::MaxTokens);
        reply.push(fly(ToolArgs::Json(json!({}))));
        reply.swap(2, 3);
        reply
    };
    let fault = |kind| Err(LlmError::new(kind, "it failed"));
    let cut = vec![
        Ok(LlmDelta::Text("Half".to_owned())),
        fault(LlmErrorKind::Cut),
    ];
    for (replies, turns) in [
        (vec![stops("Well, ", refusal())], 1),
        (vec![stops("Half a sen", LlmStop::ContextFull)], 1),
        (vec![cut_call(), cut_call(), cut_call()], 1),
        (vec![cut], 1),
        (vec![long_turn(1), stops("", refusal())], 2),
        (vec![vec![fault(LlmErrorKind::Auth)]], 0),
        // What a provider's client says of a request that came to nothing.
        (
            vec![vec![
                Ok(LlmDelta::Warning {
                    code: WarningCode::StopReasonUnknown,
                    message: "thinking can't be turned off".to_owned(),
                }),
                Ok(used(10)),
                fault(LlmErrorKind::BadResponse),
            ]],
            0,
        ),
        (vec![long_turn(1), vec![fault(LlmErrorKind::Auth)]], 1),
    ] {
        let ran = run(replies).await;
        assert!(ran.end.is_err());
        let totals = ran.tally.totals(Duration::ZERO);
        assert_eq!(totals.num_turns, turns, "{:?}", ran.end);
    }
}

#[tokio::test]
async fn a_pause_that_brings_nothing_is_paid_for_twice_at_most() {
    let nothing = || vec![Ok(LlmDelta::Stop(LlmStop::Pause))];
    let searches = || {
        let echo = Echo::of(&json!({"type": "server_tool_use"})).unwrap();
        let block = LlmDelta::Block(Block::Opaque(echo));
        vec![Ok(block), Ok(LlmDelta::Stop(LlmStop::Pause))]
    };
    let half = || stops("Half, ", LlmStop::Pause);
    let bad = Err(ErrorCode::LlmBadResponse);
    for (replies, end) in [
        (vec![nothing(), nothing()], bad),
        (vec![nothing(), says("Done.")], Ok(("Done.", false))),
        (vec![half(), nothing(), nothing()], Ok(("Half, ", true))),
        (
            vec![nothing(), half(), nothing(), says("whole.")],
            Ok(("Half, whole.", false)),
        ),
        ((0..6).map(|_| searches()).collect(), bad),
    ] {
        let ran = run(replies).await;
        let got = match &ran.end {
            Ok(answer) => Ok((answer.content.as_str(), answer.truncated)),
            Err(_) => Err(ran.code().unwrap()),
        };
        assert_eq!(got, end, "{:?}", ran.requests.len());
    }
}

#[tokio::test]
async fn calls_of_tools_that_do_not_exist_are_told_of_by_name_and_within_bounds() {
    let calls = |name: fn(usize) -> String, count: usize| -> Deltas {
        let ids = CallIds::default();
        let call = |n| {
            Ok(LlmDelta::Block(Block::Call(ToolCall {
                id: ids.issue(""),
                name: name(n),
                args: ToolArgs::Json(json!({ "n": n })),
                echo: None,
            })))
        };
        let stop = Ok(LlmDelta::Stop(LlmStop::ToolUse));
        (0..count).map(call).chain([stop]).collect()
    };
    for (name, count, told) in [
        ((|_| "fly".to_owned()) as fn(usize) -> String, 1, vec![1]),
        (|_| "fly".to_owned(), 5000, vec![64]),
        (|n| format!("fly{}", n % 2), 64, vec![32, 32]),
        (
            |n| format!("fly{n}"),
            5000,
            [[1; 8].as_slice(), &[56]].concat(),
        ),
    ] {
        let ran = run([calls(name, count), says("Done.")]).await;
        let warned = ran
            .events
            .iter()
            .filter(|event| event["code"] == "TOOL_UNKNOWN");
        let counts: Vec<u64> = warned.filter_map(|event| event["count"].as_u64()).collect();
        assert_eq!(counts, told);
        let over = ran
            .events
            .iter()
            .find(|event| event["code"] == "TOOL_CALLS_LIMIT");
        assert_eq!(over.is_some(), count > 64);
    }
}

#[tokio::test]
async fn sources_stand_in_the_totals_and_tools_of_the_provider_are_shown_as_its_own() {
    let cites = |quote: &str| {
        Ok(LlmDelta::Citation(Citation {
            url: Some("https://example.com/".to_owned()),
            title: None,
            quote: Some(quote.to_owned()),
        }))
    };
    let mut reply = says("It rains.");
    let (tool, query) = ("web_search", "rain".to_owned());
    reply.splice(
        ..0,
        [
            Ok(LlmDelta::ServerToolUse { tool, query }),
            cites("wet"),
            cites("wet"),
            cites("rain"),
        ],
    );
    let ran = run([reply]).await;
    let totals = serde_json::to_value(ran.tally.totals(Duration::ZERO)).unwrap();
    let url = "https://example.com/";
    assert_eq!(
        totals["citations"],
        json!([{"url": url, "quote": "wet"}, {"url": url, "quote": "rain"}])
    );
    assert_eq!(totals["toolCalls"], json!({"web_search": 1}));
    let events: Vec<&Value> = ran
        .events
        .iter()
        .filter(|event| event["toolName"] == "web_search")
        .collect();
    assert_eq!(events.len(), 2, "a call, and its result");
    assert_eq!(
        (&events[0]["type"], &events[1]["type"]),
        (&json!("tool_use"), &json!("tool_result"))
    );
    assert_eq!(events[0]["toolCallId"], events[1]["toolCallId"]);
    assert_eq!(events[0]["input"], json!({"query": "rain"}));
    for event in events {
        assert_eq!(
            (&event["executor"], event.get("sandbox")),
            (&json!("provider"), None)
        );
    }
}

#[tokio::test]
async fn a_dearer_model_that_answers_is_told_of_once_and_paid_for() {
    let served = |mut reply: Deltas| {
        reply.splice(
            ..0,
            [
                Ok(LlmDelta::ServedModel("claude-opus-4-6".to_owned())),
                Ok(used(10_000)),
            ],
        );
        reply
    };
    let spec = RunSpec {
        max_budget: Some(NanoUsd::from_usd(1.0)),
        ..spec()
    };
    let replies = [
        served(long_turn(1)),
        served(long_turn(2)),
        served(says("Done.")),
    ];
    let ran = run_with(Scripted::default(), spec, replies).await;
    assert_eq!(
        ran.warnings()
            .iter()
            .filter(|code| **code == "PRICE_DEARER")
            .count(),
        1
    );
    // Three times 10,000 tokens at 5 dollars for a million.
    assert_eq!(ran.tally.totals(Duration::ZERO).cost_usd, Some(0.15));
    let most = |at: usize| ran.most(at);
    // At 25 dollars for a million, not 15.
    assert!(
        most(0) > 60_000 && most(1) < 38_000,
        "{} {}",
        most(0),
        most(1)
    );
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
    assert!(ran.told("ANSWER_TRUNCATED").contains("context window"));
    let most = ran.most(1);
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

#[test]
fn time_that_is_nearly_over_is_called_time() {
    let mut limits = Limits::new(&spec(), Deadline::after(Duration::from_secs(30)));
    let warning = limits.warning(1, NanoUsd(0)).unwrap();
    let event = serde_json::to_value(RunEvent::Warning(warning)).unwrap();
    assert_eq!(event["limit"], "time");
}

#[tokio::test]
async fn thinking_that_was_cut_leaves_its_room_to_the_next_try() {
    let usage = Usage {
        input: 150_000,
        output: 32_000,
        ..Usage::default()
    };
    let ran = run([thought(usage), says("Done.")]).await;
    assert_eq!(ran.end.as_ref().unwrap().content, "Done.");
    assert_eq!(ran.most(1), 50_000);
    assert_eq!(ran.warnings(), ["TURN_RESTARTED"]);
}

/// Turns of 27,000 tokens in all, after which `input` tokens were used.
fn filled(input: u64) -> Vec<Deltas> {
    let mut replies: Vec<Deltas> = (1..=3).map(long_turn).collect();
    replies[2].insert(0, Ok(used(input)));
    replies
}

#[tokio::test]
async fn an_answer_cut_by_the_window_makes_room_and_is_told_of() {
    let all_that_fits = Usage {
        input: 190_100,
        output: 9_900,
        ..Usage::default()
    };
    let mut replies = filled(190_000);
    replies.extend([thought(all_that_fits), says("GOAL: fly."), says("Done.")]);
    let ran = run(replies).await;
    assert_eq!(ran.end.as_ref().unwrap().content, "Done.");
    assert_eq!(ran.warnings()[1..], ["CONTEXT_COMPACTED", "TURN_RESTARTED"]);
}

#[tokio::test]
async fn thinking_cut_by_the_budget_is_no_fault_of_the_model() {
    // Read from the cache, the prompt costs far less than could be foreseen: so more could be paid for.
    let usage = Usage {
        cache_read: 100_000,
        output: 41_500,
        ..Usage::default()
    };
    let spec = RunSpec {
        prompt: "word ".repeat(66_000),
        max_budget: Some(NanoUsd::from_usd(1.0)),
        ..spec()
    };
    let replies = [thought(usage), says("So far.")];
    let ran = run_with(Scripted::default(), spec, replies).await;
    assert!(ran.most(0) < 42_000, "{}", ran.most(0));
    let answer = ran.end.as_ref().unwrap();
    assert_eq!(
        (answer.content.as_str(), answer.stop_reason),
        ("So far.", StopReason::MaxBudget)
    );
    assert!(ran.requests[1].contains("budget is nearly used"));
}

#[tokio::test(start_paused = true)]
async fn a_summary_leaves_time_for_a_last_turn() {
    for (secs, told, ends) in [
        (300, "a summary failed", 270),
        (24, "there is no time for a summary", 0),
    ] {
        let mut replies: Vec<Deltas> = (1..=8).map(long_turn).collect();
        replies[7].insert(0, Ok(used(165_000)));
        replies.push(says("So far."));
        let provider = Scripted {
            no_summary: true,
            ..Scripted::default()
        };
        let spec = RunSpec {
            timeout: Duration::from_secs(secs),
            ..spec()
        };
        let begun = tokio::time::Instant::now();
        let ran = run_with(provider, spec, replies).await;
        assert_eq!(ran.end.as_ref().unwrap().content, "So far.");
        assert_eq!(begun.elapsed().as_secs(), ends);
        assert!(ran.told("CONTEXT_CLEARED").starts_with(told), "{told}");
    }
}

#[tokio::test]
async fn an_image_that_is_refused_in_a_summary_is_left_out_of_it() {
    let provider = Arc::new(Scripted::default());
    let refused = LlmError::new(LlmErrorKind::ContentRefused, "could not process image");
    let replies = [vec![Err(refused)], says("GOAL: fly.")];
    provider.replies.lock().extend(replies);
    let context = context(&provider, spec(), Arc::default());
    let mut conversation = Conversation::new(&context);
    for n in 1..=3 {
        let Ok(LlmDelta::Block(block)) = long_turn(n).swap_remove(0) else {
            panic!("a turn begins with its call");
        };
        conversation.reply(vec![block]);
        let image = Part::Image(Image {
            media_type: ImageType::Png,
            base64: "AAAA".into(),
        });
        let result = ToolResult {
            id: conversation.open_calls()[0].id.clone(),
            name: "fly".to_owned(),
            content: vec![image],
            is_error: false,
        };
        conversation.results(vec![result], None);
    }
    assert!(conversation.make_room_now(4).await.unwrap());
    let requests = provider.requests.lock();
    assert_eq!(requests.len(), 2);
    assert!(requests[1].contains("turn-1 ") && !requests[1].contains("Image("));
}

#[tokio::test(start_paused = true)]
async fn what_was_shown_of_an_answer_that_is_asked_for_anew_is_told_to_be_void() {
    let fault = |kind| Err(LlmError::new(kind, "prompt is too long"));
    let too_long = vec![
        Ok(LlmDelta::Text("Let me".to_owned())),
        fault(LlmErrorKind::ContextTooLong),
    ];
    let mut replies = filled(100_000);
    replies.extend([too_long, says("GOAL: fly."), says("Done.")]);
    let ran = run(replies).await;
    assert_eq!(ran.end.as_ref().unwrap().content, "Done.");
    assert_eq!(ran.warnings()[1..], ["CONTEXT_COMPACTED", "TURN_RESTARTED"]);

    // What only its provider understands is not shown: it may be asked for again.
    let echo = Echo::of(&json!({"type": "thinking", "thinking": ""})).unwrap();
    let unseen = vec![
        Ok(LlmDelta::Block(Block::Opaque(echo))),
        fault(LlmErrorKind::Cut),
    ];
    let ran = run([unseen, says("Done.")]).await;
    assert_eq!(ran.end.as_ref().unwrap().content, "Done.");
    assert_eq!(ran.warnings(), ["LLM_RETRY"]);
}

#[tokio::test]
async fn an_answer_whose_rest_does_not_fit_is_given_as_far_as_it_came() {
    let too_long = LlmError::new(LlmErrorKind::ContextTooLong, "too long");
    for (rest, whole) in [
        (vec![Err(too_long)], "One, "),
        (stops("two", LlmStop::ContextFull), "One, two"),
    ] {
        let ran = run([stops("One, ", LlmStop::MaxTokens), rest]).await;
        let answer = ran.end.as_ref().unwrap();
        assert_eq!((answer.content.as_str(), answer.truncated), (whole, true));
        assert!(ran.told("ANSWER_TRUNCATED").contains("context window"));
    }
}

#[tokio::test]
async fn a_first_turn_that_has_to_be_the_last_is_told_to_the_model() {
    let spec = RunSpec {
        prompt: "word ".repeat(100_000),
        max_budget: Some(NanoUsd::from_usd(0.59)),
        ..spec()
    };
    let ran = run_with(Scripted::default(), spec.clone(), [says("Long.")]).await;
    assert_eq!(ran.warnings(), ["MAX_BUDGET"]);
    assert!(ran.requests[0].contains("budget is nearly used. No more tools."));

    let less = RunSpec {
        max_budget: Some(NanoUsd::from_usd(0.5)),
        ..spec
    };
    let ran = run_with(Scripted::default(), less, []).await;
    assert!(ran.requests.is_empty());
    let told = "the budget of 0.5 USD does not pay for an answer to all that would have to be sent";
    assert_eq!(ran.failure(), told);
}

#[tokio::test]
async fn calls_that_are_all_refused_are_not_called_a_repeat() {
    let call = |n: usize| {
        vec![
            fly(ToolArgs::Json(json!({ "n": n }))),
            Ok(LlmDelta::Stop(LlmStop::ToolUse)),
        ]
    };
    let mut replies: Vec<Deltas> = (1..=20).map(call).collect();
    replies.push(stops("", LlmStop::End));
    let ran = run(replies).await;
    let told = ran.told("LOOP_DETECTED");
    assert!(
        told.contains("refused") && !told.contains("repeat"),
        "{told}"
    );
    assert!(ran.requests[20].contains("The calls are all refused or impossible."));
    let failure = ran.failure();
    assert!(
        failure.contains("refused") && !failure.contains("circles"),
        "{failure}"
    );
}

#[tokio::test]
async fn tools_that_a_provider_runs_by_the_thousand_are_counted_and_not_all_shown() {
    let search = |n: usize| {
        Ok(LlmDelta::ServerToolUse {
            tool: "web_search",
            query: n.to_string(),
        })
    };
    let mut reply: Deltas = (0..1000).map(search).collect();
    reply.extend(says("Done."));
    let ran = run([reply]).await;
    let shown = ran.events.iter();
    let shown = shown.filter(|event| event["toolName"] == "web_search");
    assert_eq!(shown.count(), 2 * 64);
    let totals = ran.tally.totals(Duration::ZERO);
    assert_eq!(totals.tool_calls["web_search"], 1000);
}

#[tokio::test]
async fn sources_of_a_text_that_is_void_are_forgotten() {
    let cites = |url: &str, mut reply: Deltas| {
        let source = Citation {
            url: Some(url.to_owned()),
            title: None,
            quote: None,
        };
        reply.insert(1, Ok(LlmDelta::Citation(source)));
        reply
    };
    let mut full = filled(100_000);
    full.extend([
        cites("void", stops("Half", LlmStop::ContextFull)),
        says("GOAL: fly."),
        cites("kept", says("Done.")),
    ]);
    let unreadable = vec![
        cites("void", unreadable_call()),
        cites("kept", says("Done.")),
    ];
    for replies in [full, unreadable] {
        let ran = run(replies).await;
        let citations = ran.tally.totals(Duration::ZERO).citations;
        let urls: Vec<_> = citations
            .iter()
            .map(|source| source.url.as_deref())
            .collect();
        assert_eq!(urls, [Some("kept")]);
    }
}

#[tokio::test(start_paused = true)]
async fn why_a_request_is_not_sent_again_is_told() {
    let overloaded = || LlmError::new(LlmErrorKind::Overloaded, "overloaded");
    let provider = Scripted {
        faults: Mutex::new((0..4).map(|_| overloaded()).collect()),
        ..Scripted::default()
    };
    let ran = run_with(provider, spec(), []).await;
    let failure = ran.failure();
    assert!(
        failure.starts_with("overloaded; not sent again: "),
        "{failure}"
    );

    let spec = RunSpec {
        max_budget: Some(NanoUsd::from_usd(0.05)),
        ..spec()
    };
    let in_vain = vec![Ok(used(100_000)), Err(overloaded())];
    let ran = run_with(Scripted::default(), spec, [in_vain]).await;
    assert_eq!(ran.code(), Some(ErrorCode::BudgetExceeded));
    let failure = ran.failure();
    assert!(
        failure.contains("the last request failed (overloaded)"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_key_that_goes_on_in_the_rest_of_an_answer_or_after_thinking_is_not_shown_whole() {
    const KEY: &str = "a-key-of-16-or-more";
    let (head, tail) = KEY.split_at(9);
    let mut between = says(tail);
    between.splice(
        ..0,
        [
            Ok(LlmDelta::Text(head.to_owned())),
            Ok(LlmDelta::Thinking("Hm".to_owned())),
        ],
    );
    for replies in [
        vec![stops(head, LlmStop::MaxTokens), says(tail)],
        vec![between],
    ] {
        let provider = Scripted {
            key: KEY,
            ..Scripted::default()
        };
        let ran = run_with(provider, spec(), replies).await;
        let said = ran
            .events
            .iter()
            .filter(|event| event["type"] == "assistant");
        let said: String = said.filter_map(|event| event["content"].as_str()).collect();
        assert!(said.starts_with(head) && !said.contains(KEY), "{said}");
        assert!(!ran.end.unwrap().content.contains(KEY));
    }
}
