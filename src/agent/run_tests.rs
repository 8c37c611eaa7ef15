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
use crate::chat::{Block, CallIds, Echo, Message, ToolArgs, ToolCall};
use crate::clock::Deadline;
use crate::events::{EventSink, LogFailed};
use crate::ids::{RunId, Seq};
use crate::llm::{
    Citation, LlmDelta, LlmError, LlmErrorKind, LlmProvider, LlmRequest, LlmStream, ModelFacts,
    Usage,
};
use crate::secrets::Redactor;
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
        replies.push(says("Done."));
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
    let most = |at: usize| -> u32 {
        let most = ran.requests[at].rsplit_once("most=Some(").unwrap().1;
        most.trim_end_matches(')').parse().unwrap()
    };
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

#[test]
fn time_that_is_nearly_over_is_called_time() {
    let mut limits = Limits::new(&spec(), Deadline::after(Duration::from_secs(30)));
    let warning = limits.warning(1, NanoUsd(0)).unwrap();
    let event = serde_json::to_value(RunEvent::Warning(warning)).unwrap();
    assert_eq!(event["limit"], "time");
}
