//! A provider's side of its protocol, as the stand-in speaks it and as the recordings are read.
//!
//! A provider needs one implementation and one line in [`super::DIALECTS`]; `tests/llm` then runs for it.

use std::fmt::Debug;

use sandcaster::chat::Message;
use serde_json::Value;

use super::{Received, SentResult};
use crate::support::recordings::Response;

/// What the stand-in needs to know of a provider.
pub trait Dialect: Debug + Send + Sync {
    /// Its row in the table of providers.
    fn provider(&self) -> &'static str;

    /// Begins the answer to request `number`.
    fn speaker(&self, request: &Received, number: usize) -> Box<dyn Speaker>;
    /// The same answer as one JSON document.
    fn whole(&self, pieces: &[Piece], request: &Received, number: usize) -> Value;
    /// An error's body. `kind` is Anthropic's word for it.
    fn error(&self, kind: &str, message: &str) -> Value;

    /// What the real service would refuse in a request: its path, headers and body.
    fn faults(&self, request: &Received) -> Vec<String>;
    /// What it would refuse in a body.
    fn body_faults(&self, body: &Value) -> Vec<String>;
    /// What must not change within a conversation, lest what the provider has cached be void.
    fn prefix(&self, raw: &[u8]) -> Option<Prefix>;

    /// The texts of each message, the user's and the model's.
    fn texts(&self, body: &Value) -> Vec<Vec<String>>;
    /// The results in the last message.
    fn tool_results(&self, body: &Value) -> Vec<SentResult>;
    /// The system prompt.
    fn system_text(&self, body: &Value) -> String;
    /// The tools' names.
    fn tool_names(&self, body: &Value) -> Vec<String>;
    /// Whether calls are forbidden.
    fn tools_are_off(&self, body: &Value) -> bool;

    /// What a recorded answer says, read by a second and simpler reader than ours, so that expectations come
    /// from the recordings and are never written down by hand. `None` when an error ended it.
    fn recorded(&self, response: &Response) -> Option<Said>;
    /// What one of the blocks that go back as they came is: its kind, and for thinking its text.
    fn carried(&self, echo: &Value) -> (String, Option<String>);
    /// The conversation of a recorded request in our words.
    fn conversation(&self, body: &Value) -> Vec<Message>;
    /// A request's messages without what makes no difference.
    fn meaning(&self, body: &Value) -> Vec<Value>;
}

/// The bytes of a request before its messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefix {
    /// They never change: the system prompt, the tools, how to answer.
    pub fixed: String,
    /// How to think: that may be left out from some request on, and is never changed otherwise.
    pub thinking: String,
}

/// Speaks one answer.
pub trait Speaker: Send {
    /// The bytes of the next piece.
    fn say(&mut self, piece: &Piece) -> Vec<u8>;
}

/// A piece of an answer.
#[derive(Clone, Debug)]
pub enum Piece {
    /// The beginning, with the model that answers if that is another one than asked.
    Start {
        served_by: Option<String>,
        /// With figures, where the provider gives some so early.
        usage: bool,
    },
    /// A piece of text. Pieces that follow each other belong to one block.
    Text(String),
    /// A whole block of thinking.
    Thinking { text: String, signature: String },
    /// The beginning of a call: an id of its own, or one unique in the conversation.
    Call { id: Option<String>, name: String },
    /// A piece of the call's arguments.
    Args(String),
    /// The call is complete.
    Called,
    /// A block in the provider's own words.
    Block(Value),
    /// An event in the provider's own words.
    Event(Value),
    /// A sign of life.
    Ping,
    /// An error within the stream.
    Error { kind: String, message: String },
    /// Why it ends, and its figures.
    Reason { stop: Stop, usage: Figures },
    /// The mark of the end.
    End,
}

/// Why an answer ends, in Anthropic's words.
#[derive(Clone, Debug)]
pub enum Stop {
    /// With calls or without.
    ByItself,
    Reason(String),
    Refusal {
        category: String,
        explanation: String,
    },
}

/// The usage of an answer.
#[derive(Clone, Debug)]
pub enum Figures {
    Counts {
        input: u64,
        output: u64,
    },
    /// As the provider writes them.
    Own(Value),
    Unknown,
}

/// An answer, in a form that both readers can give.
#[derive(Debug, Default, PartialEq)]
pub struct Said {
    pub text: String,
    pub thinking: Vec<String>,
    /// Id, name, and the arguments, or the text that is no JSON.
    pub calls: Vec<(String, String, Result<Value, String>)>,
    /// Kinds of the blocks that are only carried along.
    pub carried: Vec<String>,
    /// Input, read from the cache, written to it for 5 minutes and for an hour, output.
    pub usage: [u64; 5],
    pub model: String,
    pub stop: String,
}
