//! Recorded traffic with Anthropic, read simply.

use std::collections::BTreeMap;

use sandcaster::chat::{
    Block, CallId, CallIds, Echo, Image, ImageType, Message, Part, Reply, ToolArgs, ToolCall,
    ToolResult,
};
use serde_json::{Value, json};

use super::blocks_of;
use crate::support::fake_llm::Said;
use crate::support::recordings::Response;

/// The whole message that a stream stands for, or `None` when an error ended it.
pub(super) fn message(events: &[Value]) -> Option<Value> {
    let mut message = json!({});
    let mut blocks: BTreeMap<u64, Value> = BTreeMap::new();
    let mut json_pieces: BTreeMap<u64, String> = BTreeMap::new();
    for data in events {
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
                for (name, value) in data["usage"].as_object().into_iter().flatten() {
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

pub(super) fn recorded(response: &Response) -> Option<Said> {
    let message = if response.is_stream() {
        message(&response.stream_data())?
    } else {
        serde_json::from_str(&response.body_text).unwrap()
    };
    let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut said = Said {
        stop: string(&message["stop_reason"]),
        model: string(&message["model"]),
        usage: recorded_usage(&message["usage"]),
        ..Said::default()
    };
    if said.stop == "stop_sequence" {
        "end_turn".clone_into(&mut said.stop);
    }
    for block in message["content"].as_array().unwrap() {
        match block["type"].as_str().unwrap() {
            "text" => said.text.push_str(block["text"].as_str().unwrap()),
            "thinking" => said
                .thinking
                .push(string(&block["thinking"]) + &string(&block["signature"])),
            "tool_use" => {
                let args = match &block["input"] {
                    Value::String(broken) => Err(broken.clone()),
                    input => Ok(input.clone()),
                };
                said.calls
                    .push((string(&block["id"]), string(&block["name"]), args));
            }
            other => {
                said.carried.push(other.to_owned());
                // Another model went on from here.
                if other == "fallback" {
                    said.model = string(&block["to"]["model"]);
                }
            }
        }
    }
    Some(said)
}

/// Input, cache read, writes for 5 minutes and an hour, output.
fn recorded_usage(usage: &Value) -> [u64; 5] {
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

/// A recorded request's conversation in our words. What we never send (documents, images of the user's) is
/// left out.
pub(super) fn conversation(body: &Value) -> Vec<Message> {
    let mut out = Vec::new();
    for message in body["messages"].as_array().into_iter().flatten() {
        let blocks = blocks_of(message);
        if message["role"] == "assistant" {
            out.push(Message::Assistant(Reply {
                provider: "anthropic",
                blocks: blocks.iter().map(assistant_block).collect(),
            }));
            continue;
        }
        let results: Vec<ToolResult> = blocks
            .iter()
            .filter(|block| block["type"] == "tool_result")
            .map(tool_result)
            .collect();
        if !results.is_empty() {
            out.push(Message::ToolResults {
                results,
                notice: None,
            });
        }
        for block in blocks.iter().filter(|block| block["type"] == "text") {
            out.push(Message::user(block["text"].as_str().unwrap()));
        }
    }
    out
}

fn assistant_block(block: &Value) -> Block {
    let string = |name: &str| block[name].as_str().unwrap().to_owned();
    match block["type"].as_str().unwrap() {
        "text" => Block::text(string("text")),
        "tool_use" => Block::Call(ToolCall {
            id: known_id(block["id"].as_str().unwrap()),
            name: string("name"),
            args: ToolArgs::Json(block["input"].clone()),
            echo: None,
        }),
        _ => Block::Opaque(Echo::of(block).unwrap()),
    }
}

/// An id as it was received: each of a recording is given once.
fn known_id(wire: &str) -> CallId {
    CallIds::default().issue(wire)
}

fn tool_result(block: &Value) -> ToolResult {
    let content = blocks_of(block)
        .iter()
        .map(|part| match part["type"].as_str().unwrap() {
            "image" => Part::Image(Image {
                media_type: image_type(part["source"]["media_type"].as_str().unwrap()),
                base64: part["source"]["data"].as_str().unwrap().into(),
            }),
            _ => Part::Text(part["text"].as_str().unwrap().to_owned()),
        })
        .collect();
    ToolResult {
        id: known_id(block["tool_use_id"].as_str().unwrap()),
        name: String::new(),
        content,
        is_error: block["is_error"] == true,
    }
}

fn image_type(name: &str) -> ImageType {
    use ImageType::{Gif, Jpeg, Png, Webp};
    let known = [Png, Jpeg, Gif, Webp].into_iter();
    known.clone().find(|known| known.as_str() == name).unwrap()
}

/// Messages without what makes no difference: marks, callers, citations, a string for a text block.
pub(super) fn meaning(body: &Value) -> Vec<Value> {
    let messages = body["messages"].as_array().into_iter().flatten();
    messages
        .map(|message| {
            let content: Vec<Value> = blocks_of(message)
                .iter()
                // One recorded client fills in a blank before calls; blanks are not ours to send.
                .filter(|block| block["type"] != "text" || block["text"] != " ")
                .map(block_meaning)
                .collect();
            json!({"role": message["role"], "content": content})
        })
        .collect()
}

fn block_meaning(block: &Value) -> Value {
    let mut block = block.clone();
    if let Some(fields) = block.as_object_mut() {
        for name in ["cache_control", "caller", "citations"] {
            fields.remove(name);
        }
        if fields.get("is_error") == Some(&json!(false)) {
            fields.remove("is_error");
        }
    }
    if block["type"] == "tool_result" {
        let content: Vec<Value> = blocks_of(&block).iter().map(block_meaning).collect();
        block["content"] = content.into();
    }
    block
}
