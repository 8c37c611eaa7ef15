//! LLM providers: what each must do, on the wire and with recorded traffic. Every test that is not about one
//! provider's own ways runs for every row of the table.

mod anthropic_wire;
mod conformance;
mod conversation;
mod faults;
mod recordings;
mod rows;
mod thinking;

use std::sync::LazyLock;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use sandcaster::chat::{self, Block, CallIds, Message, ToolSpec};
use sandcaster::clock::Deadline;
use sandcaster::llm::{LlmDelta, LlmError, LlmProvider, LlmRequest, StreamLimits};
use sandcaster::spec::ThinkingLevel;

use tokio::sync::Notify;

use crate::support::fake_llm::Reply;
use crate::support::skip;
use rows::{Row, rows};

/// The deltas of an answer, and the error that ended it.
type Asking = (Vec<LlmDelta>, Option<LlmError>);

/// Limits below the request's deadline.
fn short() -> StreamLimits {
    StreamLimits {
        first_byte: Duration::from_secs(1),
        silence: Duration::from_secs(1),
        ..StreamLimits::default()
    }
}

/// A request that owns what [`LlmRequest`] borrows.
struct Asked {
    model: String,
    tools: Vec<&'static ToolSpec>,
    messages: Vec<Message>,
    thinking: ThinkingLevel,
    deadline: Deadline,
    ids: CallIds,
}

impl Asked {
    fn request(&self) -> LlmRequest<'_> {
        static SYSTEM: LazyLock<[String; 1]> = LazyLock::new(|| ["Be brief.".to_owned()]);
        LlmRequest {
            system: &*SYSTEM,
            tools: &self.tools,
            thinking: self.thinking,
            ..LlmRequest::plain(&self.model, &self.messages, &self.ids, self.deadline)
        }
    }
}

impl Row {
    fn request(&self, messages: Vec<Message>) -> Asked {
        static BASH: LazyLock<ToolSpec> = LazyLock::new(|| ToolSpec {
            name: "bash",
            description: "Runs a command.".to_owned(),
            input_schema: serde_json::json!({"type": "object"}),
        });
        Asked {
            model: self.def.default_model.to_owned(),
            tools: vec![&BASH],
            messages,
            thinking: ThinkingLevel::Unset,
            deadline: Deadline::after(Duration::from_secs(30)),
            ids: CallIds::default(),
        }
    }

    fn prompt(&self) -> Asked {
        self.request(vec![Message::user("go")])
    }

    fn said(&self, blocks: Vec<Block>) -> Message {
        Message::Assistant(chat::Reply {
            provider: self.def.name,
            blocks,
        })
    }

    /// What comes of one reply. If it falls silent, the limit passes at once.
    async fn ask_once(&self, reply: Reply, limits: StreamLimits) -> Asking {
        if reply.stalls() {
            let within = self.ask_silent(reply, limits, limits.silence).await;
            return within.expect("an end at the limit");
        }
        self.ask_to_the_end(reply, limits).await
    }

    /// What comes of one reply, in the time that it takes.
    async fn ask_to_the_end(&self, reply: Reply, limits: StreamLimits) -> Asking {
        let llm = self.llm([reply]).await;
        let provider = self.provider_with(&llm.base_url(), limits);
        ask(&*provider, &self.prompt()).await
    }

    /// What has come of a reply `time` after it fell silent; that passes at once.
    async fn ask_silent(
        &self,
        reply: Reply,
        limits: StreamLimits,
        time: Duration,
    ) -> Option<Asking> {
        let headless = reply.is_headless();
        let llm = self.llm([reply]).await;
        let provider = self.provider_with(&llm.base_url(), limits);
        let (request, said) = (self.prompt(), Notify::new());
        let silent = async {
            llm.request(0).await;
            if !headless {
                said.notified().await;
            }
        };
        let within = after(silent, time, ask_telling(&*provider, &request, &said)).await;
        llm.connection_closed(0).await;
        within
    }
}

/// What has come of `asked` once `time` has passed at once after `silent`.
async fn after<T>(
    silent: impl Future<Output = ()>,
    time: Duration,
    asked: impl Future<Output = T>,
) -> Option<T> {
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        _ = &mut asked => panic!("an end before the silence"),
        () = silent => {}
    }
    skip(time).await;
    asked.now_or_never()
}

/// The deltas of an answer and the error that ended it, if one did.
async fn ask(provider: &dyn LlmProvider, request: &Asked) -> Asking {
    ask_telling(provider, request, &Notify::new()).await
}

/// The same; tells when text has come.
async fn ask_telling(provider: &dyn LlmProvider, request: &Asked, said: &Notify) -> Asking {
    let mut stream = match provider.open(&request.request()).await {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut deltas = Vec::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(delta) => {
                if matches!(delta, LlmDelta::Text(_)) {
                    said.notify_one();
                }
                deltas.push(delta);
            }
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

fn blocks_of(deltas: &[LlmDelta]) -> Vec<Block> {
    deltas
        .iter()
        .filter_map(|delta| match delta {
            LlmDelta::Block(block) => Some(block.clone()),
            _ => None,
        })
        .collect()
}
