//! Every recorded conversation with Anthropic, replayed: what comes out is what the recording says.
//!
//! The expectations are read from the recordings by a second, simpler reader in this file, never written
//! down by hand.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use sandcaster::clock::Deadline;
use sandcaster::llm::anthropic::{AnthropicDecoder, DEF, events_of, request_body};
use sandcaster::llm::{
    AssistantBlock, LlmDelta, LlmErrorKind, LlmRequest, LlmStop, Message, ToolArgs, ToolCall,
    ToolChoice, ToolContent, ToolResult, ToolSpec, Usage,
};
use sandcaster::net::sse::{self, SseError, SseLimits};
use sandcaster::spec::ThinkingLevel;
use serde_json::{Value, json};

use super::{ask, provider, text_of};
use crate::support::fake_llm::{FakeLlm, Reply};
use crate::support::recordings::{self, Exchange, Recording, Response};

/// The conversations of this provider's folders; the token counter's is another API.
fn conversations() -> Vec<Recording> {
    let mut found: Vec<Recording> = DEF
        .recordings
        .iter()
        .flat_map(|folder| recordings::all(folder))
        .collect();
    found.retain(|recording| !recording.name.starts_with("count-tokens"));
    assert!(found.len() >= 45, "{} recordings", found.len());
    found
}

// --- what a recording says, read simply ---

/// An answer, in a form that both readers can give.
#[derive(Debug, Default, PartialEq)]
struct Said {
    text: String,
    thinking: Vec<(String, String)>,
    /// Id, name, and the arguments, or the text that is no JSON.
    calls: Vec<(String, String, Result<Value, String>)>,
    /// Types of the blocks that are only carried along.
    carried: Vec<String>,
    usage: [u64; 5],
    stop: String,
}

fn is_stream(response: &Response) -> bool {
    response.body_text.starts_with("event:")
}

fn stream_data(response: &Response) -> Vec<Value> {
    let lines = response.body_text.lines();
    lines
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

/// The whole message that a stream stands for, or `None` when an error ended it.
fn whole_message(response: &Response) -> Option<Value> {
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

fn recorded(message: &Value) -> Said {
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

// --- what our decoder says, in the same form ---

fn decoded(deltas: &[LlmDelta]) -> Said {
    let mut said = Said {
        text: text_of(deltas),
        ..Said::default()
    };
    let mut text_in_blocks = String::new();
    for delta in deltas {
        match delta {
            LlmDelta::Usage(usage) => {
                let Usage {
                    input,
                    cache_read,
                    cache_write_5m,
                    cache_write_1h,
                    output,
                } = *usage;
                said.usage = [input, cache_read, cache_write_5m, cache_write_1h, output];
            }
            LlmDelta::Stop(stop) => {
                said.stop = match stop {
                    LlmStop::End => "end_turn",
                    LlmStop::ToolUse => "tool_use",
                    LlmStop::MaxTokens => "max_tokens",
                    LlmStop::Pause => "pause_turn",
                    LlmStop::Refusal { .. } => "refusal",
                    LlmStop::ContextFull => "model_context_window_exceeded",
                    LlmStop::Unknown(reason) => reason,
                }
                .to_owned();
            }
            LlmDelta::Block(block) => match block {
                AssistantBlock::Text(text) => text_in_blocks.push_str(text),
                AssistantBlock::Thinking { text, signature } => {
                    said.thinking.push((text.clone(), signature.clone()));
                }
                AssistantBlock::ToolCall(call) => {
                    let args = match &call.args {
                        ToolArgs::Json(value) => Ok(value.clone()),
                        ToolArgs::Malformed { raw, .. } => Err(raw.clone()),
                    };
                    said.calls.push((call.id.clone(), call.name.clone(), args));
                }
                AssistantBlock::Opaque(block) => {
                    said.carried
                        .push(block["type"].as_str().unwrap().to_owned());
                }
            },
            LlmDelta::ServedModel(_)
            | LlmDelta::Text(_)
            | LlmDelta::Thinking(_)
            | LlmDelta::Restarted => {}
        }
    }
    assert_eq!(text_in_blocks, said.text, "deltas and blocks say the same");
    said
}

// --- requests ---

/// A recorded request's conversation in our words. What we never send (documents, images of the user's) is
/// left out.
fn conversation(messages: &[Value]) -> Vec<Message> {
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

fn blocks_of(message: &Value) -> Vec<Value> {
    match &message["content"] {
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        Value::Array(blocks) => blocks.clone(),
        _ => Vec::new(),
    }
}

fn assistant_block(block: &Value) -> AssistantBlock {
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

fn tool_result(block: &Value) -> ToolResult {
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

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn request(body: Option<&Value>, messages: Vec<Message>) -> LlmRequest {
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

fn request_of(exchange: &Exchange) -> LlmRequest {
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
fn reply(response: &Response, size: usize) -> Reply {
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
        .fold(reply, |reply, piece| reply.bytes(piece))
}

// --- tests ---

#[tokio::test]
#[cfg_attr(
    not(shared_evidence),
    ignore = "needs the recordings: set SANDCASTER_SHARED"
)]
async fn every_answer_says_what_its_recording_says() {
    let mut answers = 0;
    for recording in conversations() {
        for (at, exchange) in recording.exchanges.iter().enumerate() {
            if exchange.response.status != 200 {
                continue;
            }
            let Some(message) = whole_message(&exchange.response) else {
                continue;
            };
            let size = if is_stream(&exchange.response) {
                100
            } else {
                50_000
            };
            let llm = FakeLlm::start([reply(&exchange.response, size)]).await;
            let (deltas, error) = ask(&provider(&llm.base_url()), &request_of(exchange)).await;
            let place = format!("{} {at}", recording.name);
            assert!(
                error.is_none(),
                "{place}: {error:?} {:?}",
                llm.take_faults()
            );
            let mut expected = recorded(&message);
            if expected.stop == "stop_sequence" {
                "end_turn".clone_into(&mut expected.stop);
            }
            assert_eq!(decoded(&deltas), expected, "{place}");
            let model = message["model"].as_str().unwrap().to_owned();
            assert!(deltas.contains(&LlmDelta::ServedModel(model)), "{place}");
            answers += 1;
        }
    }
    assert!(answers >= 50, "{answers}");
}

#[tokio::test]
#[cfg_attr(
    not(shared_evidence),
    ignore = "needs the recordings: set SANDCASTER_SHARED"
)]
async fn recorded_failures_give_the_right_kind() {
    use LlmErrorKind as K;
    let expected: BTreeMap<&str, (LlmErrorKind, bool, Option<u64>)> = [
        ("error-400-effort", (K::BadRequest, false, None)),
        ("error-401-bad-key", (K::Auth, false, None)),
        ("error-404-model", (K::ModelNotFound, false, None)),
        (
            "made-error-400-orphan-tool-use",
            (K::BadRequest, false, None),
        ),
        ("made-error-413-too-large", (K::BadRequest, false, None)),
        ("made-error-429-rate-limit", (K::RateLimited, true, Some(7))),
        ("made-error-529-overloaded", (K::Overloaded, true, None)),
        (
            "made-overloaded-mid-tool-stream",
            (K::Overloaded, true, None),
        ),
    ]
    .into();
    let mut seen = 0;
    for recording in conversations() {
        let exchange = &recording.exchanges[0];
        let failed = exchange.response.status != 200 || whole_message(&exchange.response).is_none();
        if !failed {
            continue;
        }
        let llm = FakeLlm::start([reply(&exchange.response, 100)]).await;
        let (deltas, error) = ask(&provider(&llm.base_url()), &request_of(exchange)).await;
        let error = error.unwrap();
        let got = (
            error.kind,
            error.retryable(),
            error.retry_after.map(|after| after.as_secs()),
        );
        assert_eq!(
            Some(&got),
            expected.get(recording.name.as_str()),
            "{}: {error}",
            recording.name
        );
        let calls = decoded_calls(&deltas);
        assert_eq!(calls, 0, "{}: no half call", recording.name);
        seen += 1;
    }
    assert_eq!(seen, expected.len());
}

fn decoded_calls(deltas: &[LlmDelta]) -> usize {
    deltas
        .iter()
        .filter(|delta| matches!(delta, LlmDelta::Block(AssistantBlock::ToolCall(_))))
        .count()
}

#[tokio::test]
#[cfg_attr(
    not(shared_evidence),
    ignore = "needs the recordings: set SANDCASTER_SHARED"
)]
async fn refusals_and_fallbacks_are_told() {
    let all = conversations();
    let deltas = |name: &str| {
        let recording = all.iter().find(|recording| recording.name == name).unwrap();
        decode_pieces(&[recording.exchanges[0].response.body_text.as_bytes()])
    };
    let refusal = deltas("refusal-stream");
    assert!(matches!(
        refusal.last(),
        Some(LlmDelta::Stop(LlmStop::Refusal { category: Some(category), explanation: Some(_) }))
            if category == "cyber"
    ));
    let served: Vec<LlmDelta> = deltas("fallback-block-stream")
        .into_iter()
        .filter(|delta| matches!(delta, LlmDelta::ServedModel(_)))
        .collect();
    let model = |name: &str| LlmDelta::ServedModel(name.to_owned());
    assert_eq!(served, [model("claude-fable-5"), model("claude-opus-4-8")]);
}

/// Decodes a stream that arrives in these pieces.
fn decode_pieces(pieces: &[&[u8]]) -> Vec<LlmDelta> {
    use futures::FutureExt as _;

    let chunks: Vec<Result<Bytes, SseError>> = pieces
        .iter()
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let events: Vec<_> = sse::events(stream::iter(chunks), SseLimits::default())
        .collect()
        .now_or_never()
        .unwrap();
    let mut decoder = AnthropicDecoder::default();
    let mut deltas = Vec::new();
    for event in events {
        match decoder.on_event(&event.unwrap()) {
            Ok(more) => deltas.extend(more),
            Err(_) => break,
        }
    }
    deltas
}

#[test]
#[cfg_attr(
    not(shared_evidence),
    ignore = "needs the recordings: set SANDCASTER_SHARED"
)]
fn where_the_bytes_are_cut_changes_nothing() {
    for recording in conversations() {
        for exchange in recording
            .exchanges
            .iter()
            .filter(|e| is_stream(&e.response))
        {
            let bytes = exchange.response.body_text.as_bytes();
            let whole = decode_pieces(&[bytes]);
            for size in [1, 2, 3, 5, 17, 64, 1000] {
                let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
                assert_eq!(
                    decode_pieces(&pieces),
                    whole,
                    "{} by {size}",
                    recording.name
                );
            }
            let step = (bytes.len() / 60).max(1);
            for at in (0..bytes.len()).step_by(step) {
                let (head, tail) = bytes.split_at(at);
                assert_eq!(
                    decode_pieces(&[head, tail]),
                    whole,
                    "{} at {at}",
                    recording.name
                );
                // A stream that ends here gives the beginning of the same, and never its end.
                let part = decode_pieces(&[head]);
                assert_eq!(part, whole[..part.len()], "{} to {at}", recording.name);
                let ended = part.iter().any(|delta| matches!(delta, LlmDelta::Stop(_)));
                assert!(!ended, "{} to {at}", recording.name);
            }
        }
    }
}

#[test]
#[cfg_attr(
    not(shared_evidence),
    ignore = "needs the recordings: set SANDCASTER_SHARED"
)]
fn the_next_request_means_what_the_recorded_one_means() {
    let mut pairs = 0;
    for recording in conversations() {
        for (at, pair) in recording.exchanges.windows(2).enumerate() {
            let messages = |exchange: &Exchange| {
                let body = exchange.request.body.clone().unwrap();
                body["messages"].as_array().unwrap().clone()
            };
            let (before, after) = (messages(&pair[0]), messages(&pair[1]));
            let known = before.len();
            // Some conversations are independent requests.
            if after.len() <= known || meaning(&after[..known]) != meaning(&before) {
                continue;
            }
            let answer = answer_blocks(&pair[0].response);
            let mut ours = conversation(&before);
            ours.push(Message::Assistant(answer));
            ours.extend(conversation(&after[known + 1..]));
            let body = request_body(&request(pair[1].request.body.as_ref(), ours));
            let sent = body["messages"].as_array().unwrap();
            assert_eq!(meaning(sent), meaning(&after), "{} {at}", recording.name);
            pairs += 1;
        }
    }
    assert!(pairs >= 12, "{pairs}");
}

/// The blocks of a recorded answer, as our decoder gives them.
fn answer_blocks(response: &Response) -> Vec<AssistantBlock> {
    let deltas = if is_stream(response) {
        decode_pieces(&[response.body_text.as_bytes()])
    } else {
        let mut decoder = AnthropicDecoder::default();
        let message = serde_json::from_str(&response.body_text).unwrap();
        let events = events_of(message);
        events
            .iter()
            .flat_map(|event| decoder.on_event(event).unwrap())
            .collect()
    };
    deltas
        .into_iter()
        .filter_map(|delta| match delta {
            LlmDelta::Block(block) => Some(block),
            _ => None,
        })
        .collect()
}

/// Messages without what makes no difference: marks, callers, citations, a string for a text block.
fn meaning(messages: &[Value]) -> Vec<Value> {
    messages
        .iter()
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
