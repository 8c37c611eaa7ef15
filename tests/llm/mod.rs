//! LLM providers: recorded traffic, faults on the wire, and the decoder's promises.

mod anthropic_wire;
mod conversation;
mod faults;
mod recorded_answers;
mod recorded_requests;
mod recordings;

use std::sync::LazyLock;
use std::time::Duration;

use futures::StreamExt as _;
use sandcaster::chat::{Block, CallIds, Message, Reply, ToolSpec};
use sandcaster::clock::Deadline;
use sandcaster::llm::anthropic::{self, Anthropic};
use sandcaster::llm::{
    AnswerSize, LlmDelta, LlmError, LlmProvider as _, LlmRequest, StreamLimits, ToolChoice,
};
use sandcaster::secrets::Secret;
use sandcaster::spec::ThinkingLevel;

use crate::support::fake_llm::KEY;
use crate::support::http;

/// Limits short enough to run into, long enough for a busy machine.
fn short() -> StreamLimits {
    StreamLimits {
        first_byte: Duration::from_millis(400),
        silence: Duration::from_millis(400),
        ..StreamLimits::default()
    }
}

fn provider_with(base_url: &str, limits: StreamLimits) -> Anthropic {
    let key = |name: &str| (name == "ANTHROPIC_API_KEY").then(|| Secret::new(KEY));
    let config = anthropic::DEF.config(http(), key, Some(base_url));
    Anthropic::new(config, limits)
}

fn provider(base_url: &str) -> Anthropic {
    provider_with(base_url, StreamLimits::default())
}

/// A request that owns what [`LlmRequest`] borrows.
struct Asked {
    model: String,
    tools: Vec<&'static ToolSpec>,
    messages: Vec<Message>,
    deadline: Deadline,
    ids: CallIds,
}

impl Asked {
    fn request(&self) -> LlmRequest<'_> {
        static SYSTEM: LazyLock<[String; 1]> = LazyLock::new(|| ["Be brief.".to_owned()]);
        LlmRequest {
            model: &self.model,
            system: &*SYSTEM,
            tools: &self.tools,
            server_tools: &[],
            tool_choice: ToolChoice::Auto,
            messages: &self.messages,
            output_schema: None,
            answer: AnswerSize::Usual,
            affordable: None,
            thinking: ThinkingLevel::Unset,
            cache_key: "run",
            call_ids: &self.ids,
            deadline: self.deadline,
        }
    }
}

fn request(messages: Vec<Message>) -> Asked {
    static BASH: LazyLock<ToolSpec> = LazyLock::new(|| ToolSpec {
        name: "bash",
        description: "Runs a command.".to_owned(),
        input_schema: serde_json::json!({"type": "object"}),
    });
    Asked {
        model: "claude-sonnet-4-6".to_owned(),
        tools: vec![&BASH],
        messages,
        deadline: Deadline::after(Duration::from_secs(30)),
        ids: CallIds::default(),
    }
}

fn prompt() -> Asked {
    request(vec![Message::user("go")])
}

fn said(blocks: Vec<Block>) -> Message {
    Message::Assistant(Reply {
        provider: anthropic::DEF.name,
        blocks,
    })
}

/// The deltas of an answer and the error that ended it, if one did.
async fn ask(provider: &Anthropic, request: &Asked) -> (Vec<LlmDelta>, Option<LlmError>) {
    let mut stream = match provider.open(&request.request()).await {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut deltas = Vec::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(delta) => deltas.push(delta),
            Err(error) => {
                assert!(stream.next().await.is_none(), "a delta after an error");
                return (deltas, Some(error));
            }
        }
    }
    (deltas, None)
}

fn text_of(deltas: &[LlmDelta]) -> String {
    deltas
        .iter()
        .filter_map(|delta| match delta {
            LlmDelta::Text(piece) => Some(piece.as_str()),
            _ => None,
        })
        .collect()
}
