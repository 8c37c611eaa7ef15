//! Recorded requests in our words, and recorded responses as replies of the stand-in.

use sandcaster::chat::{
    AssistantBlock, Message, ToolArgs, ToolCall, ToolContent, ToolResult, ToolSpec,
};
use sandcaster::clock::Deadline;
use sandcaster::llm::{LlmRequest, ToolChoice};
use sandcaster::spec::ThinkingLevel;
use serde_json::{Value, json};

use crate::support::fake_llm::Reply;
use crate::support::recordings::{Exchange, Response};

/// A recorded request's conversation in our words. What we never send (documents, images of the user's) is
/// left out.
pub fn conversation(messages: &[Value]) -> Vec<Message> {
    let mut out = Vec::new();
    for message in messages {
        let blocks = blocks_of(message);
        if message["role"] == "assistant" {
            out.push(Message::Assistant(
                blocks.iter().map(assistant_block).collect(),
            ));
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
            out.push(Message::User(block["text"].as_str().unwrap().to_owned()));
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

pub fn assistant_block(block: &Value) -> AssistantBlock {
    let string = |name: &str| block[name].as_str().unwrap().to_owned();
    match block["type"].as_str().unwrap() {
        "text" => AssistantBlock::Text(string("text")),
        "thinking" => AssistantBlock::Thinking {
            text: string("thinking"),
            signature: string("signature"),
        },
        "tool_use" => AssistantBlock::ToolCall(ToolCall {
            id: string("id"),
            name: string("name"),
            args: ToolArgs::Json(block["input"].clone()),
        }),
        _ => AssistantBlock::Opaque(block.clone()),
    }
}

pub fn tool_result(block: &Value) -> ToolResult {
    let content = blocks_of(block)
        .iter()
        .map(|part| match part["type"].as_str().unwrap() {
            "image" => ToolContent::Image {
                media_type: leak(part["source"]["media_type"].as_str().unwrap()),
                base64: part["source"]["data"].as_str().unwrap().to_owned(),
            },
            _ => ToolContent::Text(part["text"].as_str().unwrap().to_owned()),
        })
        .collect();
    ToolResult {
        id: block["tool_use_id"].as_str().unwrap().to_owned(),
        name: String::new(),
        content,
        is_error: block["is_error"] == true,
    }
}

pub fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

pub fn request(body: Option<&Value>, messages: Vec<Message>) -> LlmRequest {
    let nothing = Value::Null;
    let body = body.unwrap_or(&nothing);
    let tools = body["tools"].as_array().into_iter().flatten();
    LlmRequest {
        model: body["model"]
            .as_str()
            .unwrap_or("claude-sonnet-4-6")
            .to_owned(),
        system: Vec::new(),
        tools: tools
            // Server tools have no schema; they are not ours to define.
            .filter(|tool| tool["input_schema"].is_object())
            .map(|tool| ToolSpec {
                name: leak(tool["name"].as_str().unwrap()),
                description: String::new(),
                input_schema: tool["input_schema"].clone(),
            })
            .collect(),
        tool_choice: ToolChoice::Auto,
        messages,
        max_tokens: None,
        thinking: ThinkingLevel::Unset,
        deadline: Deadline::after(std::time::Duration::from_secs(30)),
    }
}

pub fn request_of(exchange: &Exchange) -> LlmRequest {
    let body = exchange.request.body.as_ref();
    let recorded = body.and_then(|body| body["messages"].as_array());
    let mut messages = conversation(recorded.map_or(&[], Vec::as_slice));
    // A prefill is refused by newer models, so we never send one.
    if let Some(Message::Assistant(blocks)) = messages.last()
        && blocks
            .iter()
            .all(|block| matches!(block, AssistantBlock::Text(_)))
    {
        messages.pop();
    }
    if messages.is_empty() {
        messages.push(Message::User("go".to_owned()));
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
