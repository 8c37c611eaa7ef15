//! What a recorded answer says, read by a second and simpler reader than ours, so that the expectations of
//! the tests come from the recordings and are never written down by hand.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::recordings::Response;

/// An answer, in a form that both readers can give.
#[derive(Debug, Default, PartialEq)]
pub struct Said {
    pub text: String,
    pub thinking: Vec<(String, String)>,
    /// Id, name, and the arguments, or the text that is no JSON.
    pub calls: Vec<(String, String, Result<Value, String>)>,
    /// Types of the blocks that are only carried along.
    pub carried: Vec<String>,
    pub usage: [u64; 5],
    pub stop: String,
}

pub fn is_stream(response: &Response) -> bool {
    response.body_text.starts_with("event:")
}

pub fn stream_data(response: &Response) -> Vec<Value> {
    let lines = response.body_text.lines();
    lines
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

/// The whole message that a stream stands for, or `None` when an error ended it.
pub fn whole_message(response: &Response) -> Option<Value> {
    if !is_stream(response) {
        return serde_json::from_str(&response.body_text).ok();
    }
    let mut message = json!({});
    let mut blocks: BTreeMap<u64, Value> = BTreeMap::new();
    let mut json_pieces: BTreeMap<u64, String> = BTreeMap::new();
    for data in stream_data(response) {
        let index = data["index"].as_u64().unwrap_or(0);
        match data["type"].as_str().unwrap() {
            "message_start" => message = data["message"].clone(),
            "content_block_start" => {
                blocks.insert(index, data["content_block"].clone());
            }
            "content_block_delta" => {
                let block = blocks.get_mut(&index).unwrap();
                let delta = &data["delta"];
                for (kind, field) in [
                    ("text_delta", "text"),
                    ("thinking_delta", "thinking"),
                    ("signature_delta", "signature"),
                    ("compaction_delta", "content"),
                ] {
                    if delta["type"] == kind {
                        let before = block[field].as_str().unwrap_or_default();
                        let piece = delta[field].as_str().unwrap();
                        block[field] = json!(format!("{before}{piece}"));
                    }
                }
                if delta["type"] == "input_json_delta" {
                    let pieces = json_pieces.entry(index).or_default();
                    pieces.push_str(delta["partial_json"].as_str().unwrap());
                }
            }
            "message_delta" => {
                for (name, value) in data["delta"].as_object().unwrap() {
                    message[name] = value.clone();
                }
                for (name, value) in data["usage"].as_object().unwrap() {
                    message["usage"][name] = value.clone();
                }
            }
            "error" => return None,
            _ => {}
        }
    }
    for (index, pieces) in json_pieces {
        let input = if pieces.is_empty() {
            Ok(json!({}))
        } else {
            serde_json::from_str(&pieces)
        };
        let input = input.unwrap_or(Value::String(pieces));
        blocks.get_mut(&index).unwrap()["input"] = input;
    }
    message["content"] = blocks.into_values().collect();
    Some(message)
}

pub fn recorded(message: &Value) -> Said {
    let mut said = Said {
        stop: message["stop_reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        usage: recorded_usage(&message["usage"]),
        ..Said::default()
    };
    let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for block in message["content"].as_array().unwrap() {
        match block["type"].as_str().unwrap() {
            "text" => said.text.push_str(block["text"].as_str().unwrap()),
            "thinking" => said
                .thinking
                .push((string(&block["thinking"]), string(&block["signature"]))),
            "tool_use" => {
                let args = match &block["input"] {
                    Value::String(broken) => Err(broken.clone()),
                    input => Ok(input.clone()),
                };
                said.calls
                    .push((string(&block["id"]), string(&block["name"]), args));
            }
            other => said.carried.push(other.to_owned()),
        }
    }
    said
}

/// Input, cache read, writes for 5 minutes and an hour, output.
pub fn recorded_usage(usage: &Value) -> [u64; 5] {
    if let Some(passes) = usage["iterations"]
        .as_array()
        .filter(|list| !list.is_empty())
    {
        return passes.iter().map(recorded_usage).fold([0; 5], |sum, pass| {
            std::array::from_fn(|at| sum[at] + pass[at])
        });
    }
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let hour = number(&usage["cache_creation"]["ephemeral_1h_input_tokens"]);
    [
        number(&usage["input_tokens"]),
        number(&usage["cache_read_input_tokens"]),
        number(&usage["cache_creation_input_tokens"]) - hour,
        hour,
        number(&usage["output_tokens"]),
    ]
}
