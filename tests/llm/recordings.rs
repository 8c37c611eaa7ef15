//! Every recorded conversation with Anthropic, replayed: what comes out is what the recording says.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use sandcaster::chat::{Block, ToolArgs};
use sandcaster::llm::anthropic::{AnthropicDecoder, DEF, events_of, request_body};
use sandcaster::llm::{LlmDelta, LlmErrorKind, LlmStop, Usage};
use sandcaster::net::sse::{self, SseError, SseLimits};
use serde_json::{Value, json};

use super::recorded_answers::{Said, is_stream, recorded, whole_message};
use super::recorded_requests::{blocks_of, conversation, reply, request, request_of};
use super::{ask, provider, said, text_of};
use crate::support::fake_llm::FakeLlm;
use crate::support::recordings::{self, Exchange, Recording, Response};

/// The conversations of this provider's folders; the token counter's is another API.
fn conversations() -> Vec<Recording> {
    let mut found: Vec<Recording> = DEF
        .recordings
        .iter()
        .copied()
        .flat_map(recordings::all)
        .collect();
    found.retain(|recording| !recording.name.starts_with("count-tokens"));
    assert!(found.len() >= 45, "{} recordings", found.len());
    found
}

/// What our decoder says, in the form of the second reader.
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
                    ..
                } = *usage;
                said.usage = [input, cache_read, cache_write_5m, cache_write_1h, output];
            }
            LlmDelta::Stop(stop) => {
                let reason = match stop {
                    LlmStop::End => "end_turn",
                    LlmStop::ToolUse => "tool_use",
                    LlmStop::MaxTokens => "max_tokens",
                    LlmStop::Pause => "pause_turn",
                    LlmStop::Refusal { .. } => "refusal",
                    LlmStop::ContextFull => "model_context_window_exceeded",
                    LlmStop::Unknown(reason) => reason,
                    LlmStop::MalformedCall { .. } => "malformed_call",
                };
                reason.clone_into(&mut said.stop);
            }
            LlmDelta::Block(block) => match block {
                Block::Text { text, .. } => text_in_blocks.push_str(text),
                Block::Call(call) => {
                    let args = match &call.args {
                        ToolArgs::Json(value) => Ok(value.clone()),
                        ToolArgs::Malformed { raw, .. } => Err(raw.clone()),
                    };
                    said.calls
                        .push((call.id.wire().to_owned(), call.name.clone(), args));
                }
                Block::Opaque(echo) => {
                    let block: Value = serde_json::from_str(echo.json()).unwrap();
                    let string = |name: &str| block[name].as_str().unwrap().to_owned();
                    match string("type").as_str() {
                        "thinking" => said
                            .thinking
                            .push((string("thinking"), string("signature"))),
                        kind => said.carried.push(kind.to_owned()),
                    }
                }
            },
            LlmDelta::ServedModel(_)
            | LlmDelta::Text(_)
            | LlmDelta::Thinking(_)
            | LlmDelta::Citation(_)
            | LlmDelta::ServerToolUse { .. }
            | LlmDelta::Warning { .. }
            | LlmDelta::Restarted => {}
        }
    }
    assert_eq!(text_in_blocks, said.text, "deltas and blocks say the same");
    said
}

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
        .filter(|delta| matches!(delta, LlmDelta::Block(Block::Call(_))))
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
            ours.push(said(answer));
            ours.extend(conversation(&after[known + 1..]));
            let body = request_body(&request(pair[1].request.body.as_ref(), ours).request());
            let sent = body["messages"].as_array().unwrap();
            assert_eq!(meaning(sent), meaning(&after), "{} {at}", recording.name);
            pairs += 1;
        }
    }
    assert!(pairs >= 12, "{pairs}");
}

/// The blocks of a recorded answer, as our decoder gives them.
fn answer_blocks(response: &Response) -> Vec<Block> {
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
