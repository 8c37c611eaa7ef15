//! Every recorded conversation, replayed: what comes out is what the recording says.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use sandcaster::chat::{Block, CallIds, Message, ToolArgs, ToolSpec};
use sandcaster::llm::{Deltas, LlmDelta, LlmErrorKind, LlmStop, Usage};
use sandcaster::net::sse::{self, SseError, SseLimits};
use serde_json::Value;

use super::{Asked, Row, ask, blocks_of, rows, text_of};
use crate::support::fake_llm::{Reply, Said};
use crate::support::recordings::{self, Exchange, Recording, Response};

/// The conversations of a provider's folders; the token counter's is another API.
fn conversations(row: &Row) -> Vec<Recording> {
    let folders = row.def.recordings.iter().copied();
    let mut found: Vec<Recording> = folders.flat_map(recordings::all).collect();
    found.retain(|recording| !recording.name.starts_with("count-tokens"));
    assert!(found.len() >= 15, "{} recordings", found.len());
    found
}

/// The request of an exchange in our words.
fn request_of(row: &Row, exchange: &Exchange) -> Asked {
    let body = exchange.request.body.clone().unwrap_or_default();
    let mut messages = row.dialect.conversation(&body);
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
    with_tools(row, &body, messages)
}

fn with_tools(row: &Row, body: &Value, messages: Vec<Message>) -> Asked {
    let mut asked = row.request(messages);
    let names = row.dialect.tool_names(body);
    asked.tools = names
        .into_iter()
        .map(|name| -> &'static ToolSpec {
            Box::leak(Box::new(ToolSpec {
                name: name.leak(),
                description: String::new(),
                input_schema: serde_json::json!({"type": "object"}),
            }))
        })
        .collect();
    asked
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
        .fold(reply, Reply::bytes)
}

/// What our decoder says, in the form of the second reader.
fn decoded(row: &Row, deltas: &[LlmDelta]) -> Said {
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
            LlmDelta::ServedModel(model) => model.clone_into(&mut said.model),
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
            LlmDelta::Block(Block::Text { text, .. }) => text_in_blocks.push_str(text),
            LlmDelta::Block(Block::Call(call)) => {
                let args = match &call.args {
                    ToolArgs::Json(value) => Ok(value.clone()),
                    ToolArgs::Malformed { raw, .. } => Err(raw.clone()),
                };
                said.calls
                    .push((call.id.wire().to_owned(), call.name.clone(), args));
            }
            LlmDelta::Block(Block::Opaque(echo)) => {
                let block = serde_json::from_str(echo.json()).unwrap();
                match row.dialect.carried(&block) {
                    (_, Some(thought)) => said.thinking.push(thought),
                    (kind, None) => said.carried.push(kind),
                }
            }
            LlmDelta::Text(_)
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
    for row in rows() {
        for recording in conversations(row) {
            for (at, exchange) in recording.exchanges.iter().enumerate() {
                if exchange.response.status != 200 {
                    continue;
                }
                let Some(expected) = row.dialect.recorded(&exchange.response) else {
                    continue;
                };
                let size = if exchange.response.is_stream() {
                    100
                } else {
                    50_000
                };
                let llm = row.llm([reply(&exchange.response, size)]).await;
                let provider = row.provider(&llm.base_url());
                let (deltas, error) = ask(&*provider, &request_of(row, exchange)).await;
                let place = format!("{} {at}", recording.name);
                assert!(
                    error.is_none(),
                    "{place}: {error:?} {:?}",
                    llm.take_faults()
                );
                assert_eq!(decoded(row, &deltas), expected, "{place}");
                answers += 1;
            }
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
        ("made-error-413-too-large", (K::ContentRefused, false, None)),
        ("made-error-429-rate-limit", (K::RateLimited, true, Some(7))),
        ("made-error-529-overloaded", (K::Overloaded, true, None)),
        (
            "made-overloaded-mid-tool-stream",
            (K::Overloaded, true, None),
        ),
    ]
    .into();
    let mut seen = 0;
    let rows = rows().iter();
    for (row, recording) in
        rows.flat_map(|row| conversations(row).into_iter().map(move |it| (row, it)))
    {
        let exchange = &recording.exchanges[0];
        let response = &exchange.response;
        let failed = response.status != 200 || row.dialect.recorded(response).is_none();
        if !failed {
            continue;
        }
        let llm = row.llm([reply(response, 100)]).await;
        let provider = row.provider(&llm.base_url());
        let (deltas, error) = ask(&*provider, &request_of(row, exchange)).await;
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
    let row = rows()
        .iter()
        .find(|row| row.def.name == "anthropic")
        .unwrap();
    let all = conversations(row);
    let deltas = |name: &str| {
        let recording = all.iter().find(|recording| recording.name == name).unwrap();
        decode_pieces(row, &[recording.exchanges[0].response.body_text.as_bytes()])
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
fn decode_pieces(row: &Row, pieces: &[&[u8]]) -> Vec<LlmDelta> {
    let chunks: Vec<Result<Bytes, SseError>> = pieces
        .iter()
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let events: Vec<_> = sse::events(stream::iter(chunks), SseLimits::default())
        .collect()
        .now_or_never()
        .unwrap();
    let mut decoder = (row.decoder)(&CallIds::default());
    let mut deltas = Deltas::new();
    for event in events {
        if decoder.on_event(&event.unwrap(), &mut deltas).is_err() {
            break;
        }
    }
    deltas.into()
}

#[test]
#[cfg_attr(
    not(shared_evidence),
    ignore = "needs the recordings: set SANDCASTER_SHARED"
)]
fn where_the_bytes_are_cut_changes_nothing() {
    for row in rows() {
        for recording in conversations(row) {
            let streams = recording
                .exchanges
                .iter()
                .map(|exchange| &exchange.response);
            for response in streams.filter(|response| response.is_stream()) {
                cut_everywhere(row, &recording.name, response.body_text.as_bytes());
            }
        }
    }
}

fn cut_everywhere(row: &Row, name: &str, bytes: &[u8]) {
    let whole = decode_pieces(row, &[bytes]);
    for size in [1, 2, 3, 5, 17, 64, 1000] {
        let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
        assert_eq!(decode_pieces(row, &pieces), whole, "{name} by {size}");
    }
    let step = (bytes.len() / 60).max(1);
    for at in (0..bytes.len()).step_by(step) {
        let (head, tail) = bytes.split_at(at);
        assert_eq!(decode_pieces(row, &[head, tail]), whole, "{name} at {at}");
        // A stream that ends here gives the beginning of the same, and never its end.
        let part = decode_pieces(row, &[head]);
        assert_eq!(part, whole[..part.len()], "{name} to {at}");
        let ended = part.iter().any(|delta| matches!(delta, LlmDelta::Stop(_)));
        assert!(!ended, "{name} to {at}");
    }
}

#[test]
#[cfg_attr(
    not(shared_evidence),
    ignore = "needs the recordings: set SANDCASTER_SHARED"
)]
fn the_next_request_means_what_the_recorded_one_means() {
    let mut pairs = 0;
    for row in rows() {
        for recording in conversations(row) {
            for (at, pair) in recording.exchanges.windows(2).enumerate() {
                let body = |exchange: &Exchange| exchange.request.body.clone().unwrap();
                let (before, after) = (body(&pair[0]), body(&pair[1]));
                let meaning = |body: &Value| row.dialect.meaning(body);
                let known = meaning(&before).len();
                // Some conversations are independent requests.
                let goes_on =
                    meaning(&after).len() > known && meaning(&after)[..known] == meaning(&before);
                if !goes_on {
                    continue;
                }
                let mut ours = row.dialect.conversation(&before);
                let answer = blocks_of(&answered(row, &pair[0].response));
                // Everything after the answer, which is one message.
                let theirs = row.dialect.conversation(&after);
                let rest = theirs.into_iter().skip(ours.len() + 1).collect::<Vec<_>>();
                ours.push(row.said(answer));
                ours.extend(rest);
                let sent = row.body(&with_tools(row, &after, ours).request());
                assert_eq!(meaning(&sent), meaning(&after), "{} {at}", recording.name);
                pairs += 1;
            }
        }
    }
    assert!(pairs >= 12, "{pairs}");
}

/// The deltas of a recorded answer.
fn answered(row: &Row, response: &Response) -> Vec<LlmDelta> {
    if response.is_stream() {
        return decode_pieces(row, &[response.body_text.as_bytes()]);
    }
    let mut deltas = Deltas::new();
    (row.decoder)(&CallIds::default())
        .whole(&response.body_text, &mut deltas)
        .unwrap();
    deltas.into()
}
