//! A request's body: pure, and byte-stable, since the provider's cache compares bytes.
//!
//! Everything that the API would refuse for good is kept out here, because a conversation is sent again
//! with every request: empty text, thinking without its signature, ids that repeat or have other
//! characters, arguments that are no object.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::DEF;
use crate::chat::{Block, Message, Part, ToolResult, ToolSpec};
use crate::llm::prices::{self, ModelEntry};
use crate::llm::types::{AnswerSize, LlmRequest, ToolChoice};
use crate::spec::ThinkingLevel;

/// The most tokens of an answer that are asked for unless the request says otherwise.
const USUAL_MAX_TOKENS: u32 = 32_000;
/// The same for a model that is not in the table.
const UNKNOWN_MAX_TOKENS: u32 = 8_192;
/// Marks on messages: two of the four that a request may have are on the tools and the system prompt.
const MESSAGE_MARKS: usize = 2;

/// The body of `POST /v1/messages`.
pub fn request_body(request: &LlmRequest<'_>) -> Value {
    let entry = prices::entry(DEF.name, request.model);
    let (thinking, effort, budget) = thinking(request.model, entry, request.thinking);
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    put("model", json!(request.model));
    put("max_tokens", json!(max_tokens(request, entry, budget)));
    put("stream", json!(true));
    let system = system(request.system);
    if !system.is_empty() {
        put("system", Value::Array(system));
    }
    if !request.tools.is_empty() {
        put("tools", Value::Array(tools(request.tools)));
        if request.tool_choice == ToolChoice::None {
            put("tool_choice", json!({"type": "none"}));
        }
    }
    if let Some(thinking) = thinking {
        put("thinking", thinking);
    }
    if let Some(effort) = effort {
        put("output_config", json!({"effort": effort}));
    }
    put("messages", Value::Array(messages(request.messages)));
    Value::Object(body)
}

fn max_tokens(request: &LlmRequest<'_>, entry: Option<&ModelEntry>, budget: u32) -> u32 {
    let limit = entry.and_then(|entry| entry.max_output_tokens);
    let usual = limit.map_or(UNKNOWN_MAX_TOKENS, |limit| limit.min(USUAL_MAX_TOKENS));
    let asked = match request.answer {
        AnswerSize::Usual => usual,
        AnswerSize::Full => limit.unwrap_or(usual),
        AnswerSize::AtMost(tokens) => tokens,
    };
    // The budget counts towards the answer's limit, and must stay below it.
    let asked = asked.max(1).saturating_add(budget);
    let most = limit
        .unwrap_or(u32::MAX)
        .min(request.affordable.unwrap_or(u32::MAX));
    asked.min(most)
}

/// How a model is told to think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ThinkingStyle {
    /// By a number of tokens; off unless asked.
    Budget,
    /// By effort; off unless asked.
    OptIn,
    /// By effort; on unless told not to.
    OptOut,
    /// By effort; never quite off, but it can be kept to the time between calls.
    BetweenTools,
    /// By effort; never off.
    Always,
}

/// Ids of models from before adaptive thinking that the table no longer (or not yet) has.
const BUDGET_ONLY: &[&str] = &[
    "claude-2",
    "claude-3",
    "claude-sonnet-4-0",
    "claude-sonnet-4-2",
    "claude-opus-4-0",
    "claude-opus-4-1",
    "claude-opus-4-2",
];

fn style(model: &str, entry: Option<&ModelEntry>) -> ThinkingStyle {
    let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| model.starts_with(prefix));
    if is(&["claude-fable-", "claude-mythos-"]) {
        ThinkingStyle::Always
    } else if is(&["claude-sonnet-5-5"]) {
        ThinkingStyle::BetweenTools
    } else if entry.is_some_and(|entry| entry.thinking_always_on) {
        ThinkingStyle::Always
    } else if is(&["claude-opus-5", "claude-sonnet-5", "claude-haiku-5"]) {
        ThinkingStyle::OptOut
    } else if entry.map_or(!is(BUDGET_ONLY), |entry| entry.adaptive_thinking) {
        ThinkingStyle::OptIn
    } else {
        ThinkingStyle::Budget
    }
}

/// The `thinking` field, the effort, and the budget that the answer's limit has to hold besides.
fn thinking(
    model: &str,
    entry: Option<&ModelEntry>,
    level: ThinkingLevel,
) -> (Option<Value>, Option<&'static str>, u32) {
    let style = style(model, entry);
    let (budget, effort) = match level {
        ThinkingLevel::Unset => return (None, None, 0),
        ThinkingLevel::None => {
            return match style {
                ThinkingStyle::Budget | ThinkingStyle::OptIn => (None, None, 0),
                ThinkingStyle::OptOut => (Some(json!({"type": "disabled"})), None, 0),
                ThinkingStyle::BetweenTools => (Some(json!({"type": "between_tools"})), None, 0),
                // The nearest to "none" that it takes.
                ThinkingStyle::Always => (None, Some("low"), 0),
            };
        }
        ThinkingLevel::Low => (2048, "low"),
        ThinkingLevel::Medium => (10_000, "medium"),
        ThinkingLevel::High => (16_384, "high"),
    };
    match style {
        ThinkingStyle::Budget => {
            let thinking = json!({"type": "enabled", "budget_tokens": budget});
            (Some(thinking), None, budget)
        }
        ThinkingStyle::OptIn
        | ThinkingStyle::OptOut
        | ThinkingStyle::BetweenTools
        | ThinkingStyle::Always => {
            // Newer models leave the text out unless it is asked for.
            let thinking = json!({"type": "adaptive", "display": "summarized"});
            (Some(thinking), Some(effort), 0)
        }
    }
}

fn system(blocks: &[String]) -> Vec<Value> {
    let mut blocks: Vec<Value> = blocks.iter().filter_map(|text| text_block(text)).collect();
    if let Some(last) = blocks.last_mut() {
        mark(last);
    }
    blocks
}

fn tools(specs: &[&ToolSpec]) -> Vec<Value> {
    let mut tools: Vec<Value> = specs
        .iter()
        .map(|spec| {
            json!({
                "name": spec.name,
                "description": spec.description,
                "input_schema": spec.input_schema,
            })
        })
        .collect();
    if let Some(last) = tools.last_mut() {
        mark(last);
    }
    tools
}

/// A message on the way to the wire.
struct Wire {
    role: &'static str,
    content: Vec<Value>,
}

fn messages(history: &[Message]) -> Vec<Value> {
    let mut out: Vec<Wire> = Vec::new();
    for message in history {
        let (role, content) = match message {
            Message::User(parts) => ("user", parts.iter().filter_map(part_block).collect()),
            Message::Assistant(reply) => {
                let own = reply.provider == DEF.name;
                let blocks = reply.blocks.iter().filter_map(|block| echo(block, own));
                ("assistant", blocks.collect())
            }
            Message::ToolResults { results, notice } => {
                let mut content: Vec<Value> = results.iter().map(tool_result).collect();
                content.extend(notice.as_deref().and_then(text_block));
                ("user", content)
            }
        };
        match out.last_mut() {
            // The service joins neighbours of one role anyway.
            Some(last) if last.role == role => last.content.extend(content),
            _ if content.is_empty() => {}
            _ => out.push(Wire { role, content }),
        }
    }
    mark_messages(&mut out);
    out.into_iter()
        .map(|wire| json!({"role": wire.role, "content": wire.content}))
        .collect()
}

/// One block of a reply, as it is sent back. `None` for what the API would refuse.
fn echo(block: &Block, own: bool) -> Option<Value> {
    match block {
        Block::Text { text, .. } => text_block(text),
        Block::Call(call) => Some(json!({
            "type": "tool_use", "id": call.id.wire(), "name": call.wire_name(), "input": call.wire_args(),
        })),
        Block::Opaque(echo) if own => serde_json::from_str(echo.json()).ok(),
        Block::Opaque(_) => None,
    }
}

fn part_block(part: &Part) -> Option<Value> {
    match part {
        Part::Text(text) => text_block(text),
        Part::Image(image) => Some(json!({
            "type": "image",
            "source": {
                "type": "base64", "media_type": image.media_type.as_str(), "data": &*image.base64,
            },
        })),
        Part::Document(document) => Some(json!({
            "type": "document",
            "title": document.name,
            "source": {
                "type": "base64", "media_type": "application/pdf", "data": &*document.base64,
            },
        })),
    }
}

fn tool_result(result: &ToolResult) -> Value {
    let content: Vec<Value> = result.content.iter().filter_map(part_block).collect();
    let mut block = json!({"type": "tool_result", "tool_use_id": result.id.wire()});
    if let Value::Object(fields) = &mut block {
        if !content.is_empty() {
            fields.insert("content".to_owned(), Value::Array(content));
        }
        if result.is_error {
            fields.insert("is_error".to_owned(), Value::Bool(true));
        }
    }
    block
}

/// A text block, or nothing for blank text, which is refused. U+0000 is refused by gateways.
fn text_block(text: &str) -> Option<Value> {
    if text.trim().is_empty() {
        return None;
    }
    let text: Cow<'_, str> = if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    };
    Some(json!({"type": "text", "text": text}))
}

/// Marks the newest user message and the place that the request before marked: a mark looks back only 20
/// blocks for an entry, which a turn with many calls exceeds, so the old entry gets a mark of its own.
fn mark_messages(messages: &mut [Wire]) {
    let users: Vec<usize> = messages
        .iter()
        .enumerate()
        .filter(|(_, message)| message.role == "user" && !message.content.is_empty())
        .map(|(at, _)| at)
        .collect();
    for at in users.into_iter().rev().take(MESSAGE_MARKS) {
        if let Some(block) = messages.get_mut(at).and_then(|m| m.content.last_mut()) {
            mark(block);
        }
    }
}

fn mark(block: &mut Value) {
    if let Value::Object(fields) = block {
        fields.insert("cache_control".to_owned(), json!({"type": "ephemeral"}));
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
