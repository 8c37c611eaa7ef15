//! An LLM that follows a script, and runs with it: what the tests of runs are made of.

use async_trait::async_trait;
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use super::super::tally::Tally;
use super::super::workspace::{Workspace, WorkspaceSource};
use super::*;
use crate::chat::{Block, CallIds, Message, ToolArgs, ToolCall};
use crate::clock::Deadline;
use crate::events::{EventSink, LogFailed};
use crate::ids::{RunId, Seq};
use crate::llm::{
    LlmDelta, LlmError, LlmErrorKind, LlmProvider, LlmRequest, LlmStream, ModelFacts, Usage,
};
use crate::secrets::{Redactor, Secret};
use crate::spec::RunSpec;

pub(super) fn spec() -> RunSpec {
    RunSpec::plain()
}

pub(super) type Deltas = Vec<Result<LlmDelta, LlmError>>;

/// An LLM that answers by a script and remembers what it was sent.
#[derive(Default)]
pub(super) struct Scripted {
    pub(super) replies: Mutex<VecDeque<Deltas>>,
    pub(super) requests: Mutex<Vec<String>>,
    /// What opening comes to, before the answers.
    pub(super) faults: Mutex<VecDeque<LlmError>>,
    /// Requests longer than this are too long.
    pub(super) most_chars: Option<usize>,
    /// What requests for a summary are answered with, instead of the next reply.
    pub(super) summary: Option<fn() -> Deltas>,
    /// No request is ever answered.
    pub(super) silent: bool,
    /// No summary is ever complete.
    pub(super) no_summary: bool,
    /// What is known of the model.
    pub(super) facts: ModelFacts,
    /// What must not be shown.
    pub(super) key: &'static str,
    /// How many answers were read to their end.
    pub(super) ended: Arc<AtomicUsize>,
}

#[async_trait]
impl LlmProvider for Scripted {
    async fn open(&self, request: &LlmRequest<'_>) -> Result<LlmStream, LlmError> {
        let sent = format!(
            "{:?} {:?} {:?} thinking={:?} most={:?}",
            request.messages,
            request.tool_choice,
            request.cache_key,
            request.thinking,
            request.affordable
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

    fn model(&self, _model: &str) -> ModelFacts {
        self.facts
    }
}

#[derive(Default)]
pub(super) struct Events(Mutex<Vec<Value>>);

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
pub(super) struct Nowhere;

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
pub(super) struct Ran {
    pub(super) end: Result<Answer, Halt>,
    pub(super) events: Vec<Value>,
    pub(super) requests: Vec<String>,
    pub(super) tally: Arc<Tally>,
    pub(super) ended: usize,
}

impl Ran {
    pub(super) fn code(&self) -> Option<ErrorCode> {
        match &self.end {
            Err(Halt::Problem(problem)) => Some(problem.code),
            Err(Halt::Llm(error)) => Some(error.code()),
            _ => None,
        }
    }

    /// The answer, and whether it was cut.
    pub(super) fn answer(&self) -> (&str, bool) {
        let answer = self.end.as_ref().unwrap();
        (&answer.content, answer.truncated)
    }

    /// The requests for a summary.
    pub(super) fn summaries(&self) -> Vec<&String> {
        let asks = |request: &&String| request.contains("Call no tool.");
        self.requests.iter().filter(asks).collect()
    }

    /// The events whose `field` is `value`.
    pub(super) fn events_of<'a>(
        &'a self,
        field: &'a str,
        value: &'a str,
    ) -> impl Iterator<Item = &'a Value> {
        let events = self.events.iter();
        events.filter(move |event| event[field] == value)
    }

    /// The most output tokens that a request was allowed.
    pub(super) fn most(&self, request: usize) -> u32 {
        let most = self.requests[request].rsplit_once("most=Some(").unwrap().1;
        most.trim_end_matches(')').parse().unwrap()
    }

    /// What the first warning of `code` says.
    pub(super) fn told(&self, code: &str) -> &str {
        let found = self.events.iter().find(|event| event["code"] == code);
        found.and_then(|event| event["message"].as_str()).unwrap()
    }

    /// What the end of a run without an answer says.
    pub(super) fn failure(&self) -> String {
        match &self.end {
            Err(Halt::Problem(problem)) => problem.message.clone(),
            Err(Halt::Llm(error)) => error.message.clone(),
            end => panic!("{end:?}"),
        }
    }

    pub(super) fn warnings(&self) -> Vec<&str> {
        let codes = self
            .events
            .iter()
            .filter_map(|event| event["code"].as_str());
        codes.collect()
    }
}

pub(super) async fn run(replies: impl IntoIterator<Item = Deltas>) -> Ran {
    run_with(Scripted::default(), spec(), replies).await
}

pub(super) fn context(provider: &Arc<Scripted>, spec: RunSpec, sink: Arc<Events>) -> RunContext {
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

pub(super) async fn run_with(
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

pub(super) fn says(text: &str) -> Deltas {
    stops(text, LlmStop::End)
}

pub(super) fn stops(text: &str, stop: LlmStop) -> Deltas {
    vec![
        Ok(LlmDelta::Text(text.to_owned())),
        Ok(LlmDelta::Block(Block::text(text))),
        Ok(LlmDelta::Stop(stop)),
    ]
}

pub(super) fn unreadable_call() -> Deltas {
    let attempt = "call:bash{command:".to_owned();
    stops("Looking. ", LlmStop::MalformedCall { attempt })
}

/// All thought, and cut.
pub(super) fn thought(usage: Usage) -> Deltas {
    vec![
        Ok(LlmDelta::Usage(usage)),
        Ok(LlmDelta::Thinking("Hm".to_owned())),
        Ok(LlmDelta::Stop(LlmStop::MaxTokens)),
    ]
}

pub(super) fn used(input: u64) -> LlmDelta {
    LlmDelta::Usage(Usage {
        input,
        ..Usage::default()
    })
}

/// A turn whose refused call takes some 9,000 tokens.
pub(super) fn long_turn(n: usize) -> Deltas {
    let args = json!({ "n": n, "z": format!("turn-{n} {}", "z".repeat(30_000)) });
    vec![
        fly(ToolArgs::Json(args)),
        Ok(LlmDelta::Stop(LlmStop::ToolUse)),
    ]
}

/// Turns of 27,000 tokens in all, after which `input` tokens were used.
pub(super) fn filled(input: u64) -> Vec<Deltas> {
    let mut replies: Vec<Deltas> = (1..=3).map(long_turn).collect();
    replies[2].insert(0, Ok(used(input)));
    replies
}

/// An answer of `text` that ends by `stop`, after `before`.
pub(super) fn ends(before: Option<LlmDelta>, text: &str, stop: LlmStop) -> Deltas {
    let mut reply = stops(text, stop);
    reply.splice(..0, before.map(Ok));
    reply
}

#[expect(clippy::unnecessary_wraps, reason = "a piece of a script of results")]
pub(super) fn fly(args: ToolArgs) -> Result<LlmDelta, LlmError> {
    Ok(LlmDelta::Block(Block::Call(ToolCall {
        id: CallIds::default().issue(""),
        name: "fly".to_owned(),
        args,
        echo: None,
    })))
}
