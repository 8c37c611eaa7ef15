//! The words of a conversation with an LLM: messages, tools as the model sees them, calls and their results.
//!
//! Neutral: no provider's wire form, no sandbox. `llm` turns them into requests, `tools` answers calls, `agent`
//! keeps the history.

use serde_json::Value;

/// A tool as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    /// Its name: letters, digits, `_`, `-`; at most 64.
    pub name: &'static str,
    /// What it does, when to use it, what comes back, its limits.
    pub description: String,
    /// JSON Schema of its arguments: an object schema of the common subset.
    pub input_schema: Value,
}

/// One message of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The user's words, or ours in the user's place.
    User(String),
    /// A response, block by block as it was received.
    Assistant(Vec<AssistantBlock>),
    /// The results of all calls of the response before, in the order asked, and a notice of ours that
    /// tool output can't forge (placed after the results, by the provider's own means).
    ToolResults {
        /// One per call.
        results: Vec<ToolResult>,
        /// Said by sandcaster, not by a tool.
        notice: Option<String>,
    },
}

/// A completed block of a response.
#[derive(Clone, Debug, PartialEq)]
pub enum AssistantBlock {
    /// Text of the answer.
    Text(String),
    /// Thinking, with what the provider needs to get back.
    Thinking {
        /// The text shown; may be empty.
        text: String,
        /// The provider's signature.
        signature: String,
    },
    /// A call.
    ToolCall(ToolCall),
    /// Anything else that has to be echoed as it came (redacted thinking, server tools): the provider's
    /// own JSON.
    Opaque(Value),
}

/// A call that the model asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// The provider's call id.
    pub id: String,
    /// The name that the model wrote; not yet mapped to a tool.
    pub name: String,
    /// The arguments.
    pub args: ToolArgs,
}

/// A call's arguments as they arrived.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolArgs {
    /// Any JSON value; the empty text counts as `{}`.
    Json(Value),
    /// Not JSON: the text and the parser's words. Echoed to the provider as `{}`.
    Malformed {
        /// What arrived.
        raw: String,
        /// Why it is no JSON.
        error: String,
    },
}

/// The result of one call.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolResult {
    /// The call's id.
    pub id: String,
    /// The tool's name, for providers that want it.
    pub name: String,
    /// What the tool says; may be empty.
    pub content: Vec<ToolContent>,
    /// The call failed or was refused.
    pub is_error: bool,
}

/// A part of a tool's result.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolContent {
    /// Text.
    Text(String),
    /// An image, for models that can see; others get a note.
    Image {
        /// `image/png`, `image/jpeg`, `image/gif` or `image/webp`.
        media_type: &'static str,
        /// Standard base64 of the bytes.
        base64: String,
    },
}
