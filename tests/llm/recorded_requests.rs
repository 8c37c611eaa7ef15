//! Recorded requests in our words, and recorded responses as replies of the stand-in.

use sandcaster::chat::{
    Block, CallId, CallIds, Echo, Image, ImageType, Message, Part, ToolArgs, ToolCall, ToolResult,
    ToolSpec,
};
use serde_json::{Value, json};

use super::{Asked, said};
use crate::support::fake_llm::Reply;
use crate::support::recordings::{Exchange, Response};

/// A recorded request's conversation in our words. What we never send (documents, images of the user's) is
/// left out.
pub fn conversation(messages: &[Value]) -> Vec<Message> {
    let mut out = Vec::new();
    for message in messages {
        let blocks = blocks_of(message);
        if message["role"] == "assistant" {
            out.push(said(blocks.iter().map(assistant_block).collect()));
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

pub fn blocks_of(message: &Value) -> Vec<Value> {
    match &message["content"] {
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        Value::Array(blocks) => blocks.clone(),
        _ => Vec::new(),
    }
}

pub fn assistant_block(block: &Value) -> Block {
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
pub fn known_id(wire: &str) -> CallId {
    CallIds::default().issue(wire)
}

pub fn tool_result(block: &Value) -> ToolResult {
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

pub fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn image_type(name: &str) -> ImageType {
    use ImageType::{Gif, Jpeg, Png, Webp};
    let known = [Png, Jpeg, Gif, Webp].into_iter();
    known.clone().find(|known| known.as_str() == name).unwrap()
}

pub fn request(body: Option<&Value>, messages: Vec<Message>) -> Asked {
    let nothing = Value::Null;
    let body = body.unwrap_or(&nothing);
    let tools = body["tools"].as_array().into_iter().flatten();
    let mut asked = super::request(messages);
    if let Some(model) = body["model"].as_str() {
        model.clone_into(&mut asked.model);
    }
    asked.tools = tools
        // Server tools have no schema; they are not ours to define.
        .filter(|tool| tool["input_schema"].is_object())
        .map(|tool| -> &'static ToolSpec {
            Box::leak(Box::new(ToolSpec {
                name: leak(tool["name"].as_str().unwrap()),
                description: String::new(),
                input_schema: tool["input_schema"].clone(),
            }))
        })
        .collect();
    asked
}

pub fn request_of(exchange: &Exchange) -> Asked {
    let body = exchange.request.body.as_ref();
    let recorded = body.and_then(|body| body["messages"].as_array());
    let mut messages = conversation(recorded.map_or(&[], Vec::as_slice));
    // A prefill is refused by newer models, so we never send one.
    if let Some(Message::Assistant(reply)) = messages.last()
        && reply
            .blocks
            .iter()
            .all(|block| matches!(block, Block::Text { .. }))
    {
        messages.pop();
    }
    if messages.is_empty() {
        messages.push(Message::user("go"));
    }
    request(body, messages)
}

/// The reply that sends a recorded response in pieces of `size` bytes.
pub fn reply(response: &Response, size: usize) -> Reply {
    let kind = response.headers.get("content-type").unwrap();
    let reply = Reply::body(response.status, kind, b"");
    let reply = response
        .headers
        .iter()
        .fold(reply, |reply, (name, value)| reply.header(name, value));
    response
        .body_text
        .as_bytes()
        .chunks(size)
        .fold(reply, Reply::bytes)
}
