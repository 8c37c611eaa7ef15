//! What Anthropic would refuse, and what we promise besides: checked in every request.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::blocks_of;
use crate::support::fake_llm::dialect::Prefix;
use crate::support::fake_llm::{KEY, Received};

/// The largest body that is taken.
const MOST_BYTES: usize = 32 << 20;

#[derive(Deserialize)]
struct RawParts<'a> {
    #[serde(borrow)]
    system: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    output_config: Option<&'a RawValue>,
    #[serde(borrow)]
    thinking: Option<&'a RawValue>,
}

pub(super) fn prefix(raw: &[u8]) -> Option<Prefix> {
    let parts: RawParts<'_> = serde_json::from_slice(raw).ok()?;
    let raw = |part: Option<&RawValue>| part.map_or("", RawValue::get).to_owned();
    Some(Prefix {
        fixed: raw(parts.system) + &raw(parts.tools) + &raw(parts.output_config),
        thinking: raw(parts.thinking),
    })
}

/// Everything that is wrong with `request`.
pub(super) fn faults(request: &Received) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |ok: bool, fault: String| {
        if !ok {
            faults.push(fault);
        }
    };
    let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
    let keyed = header("x-api-key") == KEY || header("authorization") == format!("Bearer {KEY}");
    check(keyed, "the key is missing or wrong".to_owned());
    check(
        header("anthropic-version") == "2023-06-01",
        format!("anthropic-version is {:?}", header("anthropic-version")),
    );
    check(
        header("content-type") == "application/json",
        format!("content-type is {:?}", header("content-type")),
    );
    check(
        request.path.ends_with("/v1/messages"),
        format!("the path is {}", request.path),
    );
    check(
        request.raw.len() <= MOST_BYTES,
        format!("the body has {} bytes", request.raw.len()),
    );
    let body = &request.body;
    let model = body["model"].as_str().unwrap_or_default();
    check(!model.is_empty(), "no model".to_owned());
    check(
        body["max_tokens"].as_u64().is_some_and(|most| most > 0),
        format!("max_tokens is {}", body["max_tokens"]),
    );
    check(body["stream"] == true, "stream is not true".to_owned());
    faults.extend(body_faults(body));
    faults
}

/// What is wrong with a body's marks, tools and messages.
pub(super) fn body_faults(body: &Value) -> Vec<String> {
    let marks = count_marks(body);
    let mut faults = Vec::new();
    if marks > 4 {
        faults.push(format!("{marks} cache marks"));
    }
    if holds_nul(body) {
        faults.push("U+0000 in a text".to_owned());
    }
    for block in body["system"].as_array().into_iter().flatten() {
        if is_blank(block) {
            faults.push("an empty system block".to_owned());
        }
    }
    let (budget, most) = (&body["thinking"]["budget_tokens"], &body["max_tokens"]);
    if let (Some(budget), Some(most)) = (budget.as_u64(), most.as_u64())
        && !(1024..most).contains(&budget)
    {
        faults.push(format!("a budget of {budget} for thinking, of {most}"));
    }
    faults.extend(tool_faults(body));
    faults.extend(message_faults(body));
    faults
}

fn is_blank(text: &Value) -> bool {
    text["text"]
        .as_str()
        .is_some_and(|text| text.trim().is_empty())
}

fn is_thinking(block: &Value) -> bool {
    matches!(
        block["type"].as_str(),
        Some("thinking" | "redacted_thinking")
    )
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| name.contains('\0') || holds_nul(value)),
        Value::Array(items) => items.iter().any(holds_nul),
        _ => false,
    }
}

fn count_marks(value: &Value) -> usize {
    match value {
        Value::Object(fields) => {
            usize::from(fields.contains_key("cache_control"))
                + fields.values().map(count_marks).sum::<usize>()
        }
        Value::Array(items) => items.iter().map(count_marks).sum(),
        _ => 0,
    }
}

fn tool_faults(body: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut names = BTreeSet::new();
    for tool in body["tools"].as_array().into_iter().flatten() {
        let name = tool["name"].as_str().unwrap_or_default();
        if name.is_empty() || name.len() > 64 || !name.bytes().all(is_name_byte) {
            faults.push(format!("the tool name {name:?}"));
        }
        if !names.insert(name) {
            faults.push(format!("the tool {name} is listed twice"));
        }
        if tool.get("type").is_none() && tool["input_schema"]["type"] != "object" {
            faults.push(format!("the schema of {name} is no object schema"));
        }
    }
    if body.get("tool_choice").is_some() && names.is_empty() {
        faults.push("tool_choice without tools".to_owned());
    }
    faults
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn message_faults(body: &Value) -> Vec<String> {
    let Some(messages) = body["messages"].as_array().filter(|list| !list.is_empty()) else {
        return vec!["no messages".to_owned()];
    };
    let mut faults = Vec::new();
    if messages[0]["role"] != "user" {
        faults.push("the first message is not the user's".to_owned());
    }
    let mut all_ids = BTreeSet::new();
    // Calls of the message before that have no result yet.
    let mut unanswered: Vec<String> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if !matches!(role, "user" | "assistant") {
            faults.push(format!("message {at} has the role {role:?}"));
        }
        let blocks = blocks_of(message);
        if blocks.is_empty() {
            faults.push(format!("message {at} is empty"));
        }
        if role == "assistant" && blocks.last().is_some_and(is_thinking) {
            faults.push(format!("message {at} ends with thinking"));
        }
        let mut text_seen = false;
        let mut calls = Vec::new();
        for block in &blocks {
            if is_thinking(block) && block.get("cache_control").is_some() {
                faults.push(format!("message {at} has a cache mark on thinking"));
            }
            match block["type"].as_str().unwrap_or_default() {
                "text" => {
                    text_seen = true;
                    let text = block["text"].as_str().unwrap_or_default();
                    if text.trim().is_empty() {
                        faults.push(format!("message {at} has an empty text block"));
                    }
                }
                "thinking" if block["signature"].as_str().unwrap_or_default().is_empty() => {
                    faults.push(format!("message {at} has thinking without a signature"));
                }
                "tool_use" => {
                    let id = block["id"].as_str().unwrap_or_default().to_owned();
                    if id.is_empty() || !id.bytes().all(is_name_byte) {
                        faults.push(format!("message {at} has the call id {id:?}"));
                    }
                    if !block["input"].is_object() {
                        faults.push(format!("the input of {id} is no object"));
                    }
                    if role != "assistant" {
                        faults.push(format!("message {at} has a call, but is the user's"));
                    }
                    if !all_ids.insert(id.clone()) {
                        faults.push(format!("the call id {id} is not unique"));
                    }
                    calls.push(id);
                }
                "tool_result" => {
                    let id = block["tool_use_id"].as_str().unwrap_or_default();
                    if text_seen {
                        faults.push(format!("message {at} has text before the result of {id}"));
                    }
                    match unanswered.iter().position(|open| open == id) {
                        Some(place) if role == "user" => {
                            unanswered.remove(place);
                        }
                        _ => faults.push(format!("message {at} has a result for no call: {id}")),
                    }
                    for part in block["content"].as_array().into_iter().flatten() {
                        if is_blank(part) {
                            faults.push(format!("the result of {id} has an empty text block"));
                        }
                    }
                }
                "" => faults.push(format!("message {at} has a block without a type")),
                _ => {}
            }
        }
        for id in unanswered.drain(..) {
            faults.push(format!("the call {id} has no result"));
        }
        unanswered = calls;
    }
    for id in unanswered {
        faults.push(format!("the call {id} has no result"));
    }
    if !all_ids.is_empty() && body["tools"].as_array().is_none_or(Vec::is_empty) {
        faults.push("calls in the history, but no tools".to_owned());
    }
    let last = &messages[messages.len() - 1];
    let ours = ["text", "thinking", "redacted_thinking", "tool_use"];
    let paused = blocks_of(last)
        .iter()
        .any(|block| !ours.contains(&block["type"].as_str().unwrap_or_default()));
    if last["role"] == "assistant" && !paused {
        faults.push("the last message is the assistant's".to_owned());
    }
    faults
}
