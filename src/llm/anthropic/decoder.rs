//! Events of one answer in, deltas out. Pure: no I/O, no clock.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::errors::classify;
use crate::chat::{Block, CallIds, Echo, ToolArgs, ToolCall};
use crate::llm::driver::Decoder;
use crate::llm::types::{LlmDelta, LlmError, LlmErrorKind, LlmStop, Usage};
use crate::net::sse::SseEvent;

/// Decodes one answer.
#[derive(Debug, Default)]
pub struct AnthropicDecoder {
    ids: CallIds,
    /// The message's id once its start was seen; empty where a gateway gives none.
    message: Option<String>,
    /// Blocks that have started and not stopped, by the index in the events: never by position.
    open: Vec<(u64, OpenBlock)>,
    blocks_seen: bool,
    calls: usize,
    usage: Usage,
    stop: Option<LlmStop>,
    finished: bool,
}

/// A `content_block_delta` with text, borrowed where its text has no escapes.
#[derive(Deserialize)]
struct TextDelta<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    index: u64,
    #[serde(borrow)]
    delta: TextPiece<'a>,
}

#[derive(Deserialize)]
struct TextPiece<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    text: Cow<'a, str>,
}

#[derive(Debug)]
struct OpenBlock {
    start: Value,
    /// Text, thinking or a compaction's content, as added up.
    text: String,
    signature: String,
    /// The pieces of a call's JSON; `None` until the first.
    json: Option<String>,
}

impl AnthropicDecoder {
    /// One that takes the ids of calls from `ids`.
    pub fn new(ids: CallIds) -> Self {
        Self {
            ids,
            ..Self::default()
        }
    }

    /// Takes one event. Events, deltas and fields that are not known are passed over; events after the
    /// end of the message as well.
    ///
    /// # Errors
    /// What an `error` event says, and `BadResponse` for data that is not JSON.
    pub fn on_event(&mut self, event: &SseEvent) -> Result<Vec<LlmDelta>, LlmError> {
        if self.finished || event.data.trim().is_empty() {
            return Ok(Vec::new());
        }
        if let Some(deltas) = self.text_delta(&event.data) {
            return Ok(deltas);
        }
        let data: Value = serde_json::from_str(&event.data).map_err(|error| {
            LlmError::new(
                LlmErrorKind::BadResponse,
                format!("anthropic sent an event that is not JSON ({error})"),
            )
        })?;
        let kind = text_of(&data, "type").or(event.event.as_deref());
        match kind {
            Some("message_start") => Ok(self.message_start(&data)),
            Some("content_block_start") => Ok(self.block_start(&data)),
            Some("content_block_delta") => Ok(self.block_delta(&data)),
            Some("content_block_stop") => Ok(self.block_stop(&data)),
            Some("message_delta") => Ok(self.message_delta(&data)),
            Some("message_stop") => Ok(self.message_stop()),
            Some("error") => {
                let (kind, words) = classify(200, &event.data);
                Err(LlmError::new(
                    kind,
                    format!("anthropic reported an error in its answer: {words}"),
                ))
            }
            _ => Ok(Vec::new()),
        }
    }

    fn message_start(&mut self, data: &Value) -> Vec<LlmDelta> {
        let empty = Value::Null;
        let message = data.get("message").unwrap_or(&empty);
        let id = text_of(message, "id").unwrap_or_default();
        let mut out = Vec::new();
        if let Some(before) = &self.message {
            let nothing_yet = !self.blocks_seen;
            if before == id && (nothing_yet || !id.is_empty()) {
                return out;
            }
            *self = Self::new(self.ids.clone());
            out.push(LlmDelta::Restarted);
        }
        self.message = Some(id.to_owned());
        if let Some(model) = text_of(message, "model").filter(|model| !model.is_empty()) {
            out.push(LlmDelta::ServedModel(model.to_owned()));
        }
        out.extend(self.read_usage(message));
        out
    }

    fn block_start(&mut self, data: &Value) -> Vec<LlmDelta> {
        self.blocks_seen = true;
        let start = data.get("content_block").cloned().unwrap_or_default();
        let mut out = Vec::new();
        let (text, shown): (&str, fn(String) -> LlmDelta) = match kind_of(&start) {
            "text" => (text_of(&start, "text").unwrap_or_default(), LlmDelta::Text),
            "thinking" => (
                text_of(&start, "thinking").unwrap_or_default(),
                LlmDelta::Thinking,
            ),
            "fallback" => {
                let served = start.get("to").and_then(|to| text_of(to, "model"));
                out.extend(served.map(|model| LlmDelta::ServedModel(model.to_owned())));
                ("", LlmDelta::Text)
            }
            _ => ("", LlmDelta::Text),
        };
        if !text.is_empty() {
            out.push(shown(text.to_owned()));
        }
        let block = OpenBlock {
            text: text.to_owned(),
            signature: text_of(&start, "signature").unwrap_or_default().to_owned(),
            json: None,
            start,
        };
        let index = index_of(data);
        self.open.retain(|(open, _)| *open != index);
        self.open.push((index, block));
        out
    }

    fn block(&mut self, index: u64) -> Option<&mut OpenBlock> {
        let block = self.open.iter_mut().find(|(open, _)| *open == index);
        block.map(|(_, block)| block)
    }

    /// The piece of text that nearly every event is, read without a tree; `None` for everything else.
    fn text_delta(&mut self, data: &str) -> Option<Vec<LlmDelta>> {
        let event: TextDelta<'_> = serde_json::from_str(data).ok()?;
        if event.kind != "content_block_delta" || event.delta.kind != "text_delta" {
            return None;
        }
        let Some(block) = self.block(event.index) else {
            return Some(Vec::new());
        };
        let text = event.delta.text;
        block.text.push_str(&text);
        Some(if text.is_empty() {
            Vec::new()
        } else {
            vec![LlmDelta::Text(text.into_owned())]
        })
    }

    fn block_delta(&mut self, data: &Value) -> Vec<LlmDelta> {
        let Some(block) = self.block(index_of(data)) else {
            return Vec::new();
        };
        let empty = Value::Null;
        let delta = data.get("delta").unwrap_or(&empty);
        let piece = |name| text_of(delta, name).unwrap_or_default();
        match kind_of(delta) {
            "text_delta" => {
                let text = piece("text");
                block.text.push_str(text);
                shown(text, LlmDelta::Text)
            }
            "thinking_delta" => {
                let text = piece("thinking");
                block.text.push_str(text);
                shown(text, LlmDelta::Thinking)
            }
            "signature_delta" => {
                piece("signature").clone_into(&mut block.signature);
                Vec::new()
            }
            "input_json_delta" => {
                let json = block.json.get_or_insert_default();
                json.push_str(piece("partial_json"));
                Vec::new()
            }
            "compaction_delta" => {
                block.text.push_str(piece("content"));
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn block_stop(&mut self, data: &Value) -> Vec<LlmDelta> {
        let index = index_of(data);
        let Some(at) = self.open.iter().position(|(open, _)| *open == index) else {
            return Vec::new();
        };
        let Some(block) = self.open.remove(at).1.complete(&self.ids) else {
            return Vec::new();
        };
        if matches!(block, Block::Call(_)) {
            self.calls += 1;
        }
        vec![LlmDelta::Block(block)]
    }

    fn message_delta(&mut self, data: &Value) -> Vec<LlmDelta> {
        let empty = Value::Null;
        let delta = data.get("delta").unwrap_or(&empty);
        if let Some(reason) = text_of(delta, "stop_reason") {
            self.stop = Some(stop(reason, delta));
        }
        self.read_usage(data).into_iter().collect()
    }

    fn message_stop(&mut self) -> Vec<LlmDelta> {
        self.finished = true;
        let mut out = Vec::new();
        // Blocks that never stopped: their text was shown and counts, a call was cut off.
        let mut open = std::mem::take(&mut self.open);
        open.sort_by_key(|(index, _)| *index);
        for (_, block) in open {
            if let Some(block) = block.cut_off(&self.ids) {
                self.calls += usize::from(matches!(block, Block::Call(_)));
                out.push(LlmDelta::Block(block));
            }
        }
        let stop = match (self.stop.take(), self.calls) {
            // Some gateways say "end" although there are calls, or the other way round.
            (Some(LlmStop::End) | None, 1..) => LlmStop::ToolUse,
            (Some(LlmStop::ToolUse), 0) => LlmStop::End,
            (Some(stop), _) => stop,
            (None, 0) => LlmStop::Unknown("no stop reason was given".to_owned()),
        };
        out.push(LlmDelta::Stop(stop));
        out
    }

    /// Figures replace what was said before, each by itself; a list of inner passes is their sum.
    fn read_usage(&mut self, holder: &Value) -> Option<LlmDelta> {
        let usage = holder.get("usage").filter(|usage| usage.is_object())?;
        let passes = usage
            .get("iterations")
            .and_then(Value::as_array)
            .filter(|passes| !passes.is_empty());
        if let Some(passes) = passes {
            let mut sum = Usage::default();
            for pass in passes {
                let mut one = Usage::default();
                replace(&mut one, pass);
                sum.input = sum.input.saturating_add(one.input);
                sum.cache_read = sum.cache_read.saturating_add(one.cache_read);
                sum.cache_write_5m = sum.cache_write_5m.saturating_add(one.cache_write_5m);
                sum.cache_write_1h = sum.cache_write_1h.saturating_add(one.cache_write_1h);
                sum.output = sum.output.saturating_add(one.output);
            }
            self.usage = sum;
        } else {
            replace(&mut self.usage, usage);
        }
        Some(LlmDelta::Usage(self.usage))
    }
}

impl OpenBlock {
    fn complete(self, ids: &CallIds) -> Option<Block> {
        match kind_of(&self.start) {
            "text" => Some(Block::text(self.text)),
            // Without a signature it would be refused in the next request.
            "thinking" if self.signature.is_empty() => None,
            "thinking" => Echo::of(&json!({
                "type": "thinking", "thinking": self.text, "signature": self.signature,
            }))
            .ok()
            .map(Block::Opaque),
            "tool_use" => {
                let args = match self.json {
                    // No piece at all: a whole block, as JSON answers have it.
                    None => {
                        ToolArgs::Json(self.start.get("input").cloned().unwrap_or_else(empty_args))
                    }
                    Some(json) => args(json),
                };
                Some(Block::Call(call(&self.start, args, ids)))
            }
            _ => Echo::of(&self.opaque()).ok().map(Block::Opaque),
        }
    }

    /// What is left of a block whose end never came.
    fn cut_off(self, ids: &CallIds) -> Option<Block> {
        match kind_of(&self.start) {
            "text" => Some(Block::text(self.text)),
            "tool_use" => {
                let args = ToolArgs::Malformed {
                    raw: self.json.unwrap_or_default(),
                    error: "the call was cut off".to_owned(),
                };
                Some(Block::Call(call(&self.start, args, ids)))
            }
            // Without its end (and its signature) it would be refused in the next request.
            _ => None,
        }
    }

    /// The provider's own block with what its deltas brought.
    fn opaque(self) -> Value {
        let mut block = self.start;
        if let Value::Object(fields) = &mut block {
            if let Some(json) = self.json {
                let input = serde_json::from_str(&json).unwrap_or_else(|_| empty_args());
                fields.insert("input".to_owned(), input);
            }
            if !self.text.is_empty() && fields.get("type").is_some_and(|kind| kind == "compaction")
            {
                fields.insert("content".to_owned(), Value::String(self.text));
            }
        }
        block
    }
}

fn call(start: &Value, args: ToolArgs, ids: &CallIds) -> ToolCall {
    ToolCall {
        id: ids.issue(text_of(start, "id").unwrap_or_default()),
        name: text_of(start, "name").unwrap_or_default().to_owned(),
        args,
        echo: None,
    }
}

fn args(json: String) -> ToolArgs {
    if json.trim().is_empty() {
        return ToolArgs::Json(empty_args());
    }
    match serde_json::from_str(&json) {
        Ok(value) => ToolArgs::Json(value),
        Err(error) => ToolArgs::Malformed {
            error: error.to_string(),
            raw: json,
        },
    }
}

fn empty_args() -> Value {
    Value::Object(Map::new())
}

fn shown(text: &str, delta: fn(String) -> LlmDelta) -> Vec<LlmDelta> {
    if text.is_empty() {
        return Vec::new();
    }
    vec![delta(text.to_owned())]
}

fn stop(reason: &str, delta: &Value) -> LlmStop {
    match reason {
        "end_turn" | "stop_sequence" => LlmStop::End,
        "tool_use" => LlmStop::ToolUse,
        "max_tokens" => LlmStop::MaxTokens,
        "pause_turn" => LlmStop::Pause,
        "model_context_window_exceeded" => LlmStop::ContextFull,
        "refusal" => {
            let detail = |name| {
                let details = delta.get("stop_details")?;
                text_of(details, name).map(str::to_owned)
            };
            LlmStop::Refusal {
                category: detail("category"),
                explanation: detail("explanation"),
            }
        }
        other => LlmStop::Unknown(other.chars().take(100).collect()),
    }
}

/// More tokens than any request can have: figures beyond it are nonsense that no sum should overflow on.
const MOST_TOKENS: u64 = 1_000_000_000_000;

/// Takes over the figures that `figures` names.
fn replace(usage: &mut Usage, figures: &Value) {
    let number = |holder: &Value, name| {
        let number = holder.get(name).and_then(Value::as_u64)?;
        Some(number.min(MOST_TOKENS))
    };
    if let Some(input) = number(figures, "input_tokens") {
        usage.input = input;
    }
    if let Some(output) = number(figures, "output_tokens") {
        usage.output = output;
    }
    if let Some(read) = number(figures, "cache_read_input_tokens") {
        usage.cache_read = read;
    }
    let split = figures
        .get("cache_creation")
        .filter(|split| split.is_object());
    let hour = split.and_then(|split| number(split, "ephemeral_1h_input_tokens"));
    let five = split.and_then(|split| number(split, "ephemeral_5m_input_tokens"));
    if let Some(hour) = hour {
        usage.cache_write_1h = hour;
    }
    if let Some(five) = five {
        usage.cache_write_5m = five;
    }
    // A total without its split: an hour's part that is known already stays one.
    if let (Some(total), None, None) = (number(figures, "cache_creation_input_tokens"), hour, five)
    {
        usage.cache_write_1h = usage.cache_write_1h.min(total);
        usage.cache_write_5m = total - usage.cache_write_1h;
    }
}

fn text_of<'a>(holder: &'a Value, name: &str) -> Option<&'a str> {
    holder.get(name).and_then(Value::as_str)
}

fn kind_of(holder: &Value) -> &str {
    text_of(holder, "type").unwrap_or_default()
}

fn index_of(data: &Value) -> u64 {
    data.get("index").and_then(Value::as_u64).unwrap_or(0)
}

/// The events that a whole message in one JSON document stands for; none if it is no message.
pub fn events_of(mut message: Value) -> Vec<SseEvent> {
    let Some(Value::Array(blocks)) = message.get_mut("content").map(Value::take) else {
        return Vec::new();
    };
    let mut events = Vec::with_capacity(blocks.len() * 2 + 3);
    let mut push = |data: Value| {
        events.push(SseEvent {
            event: None,
            data: data.to_string(),
        });
    };
    let field = |name: &str| message.get(name).cloned().unwrap_or_default();
    push(json!({"type": "message_start", "message": {
        "id": field("id"), "model": field("model"), "usage": field("usage"),
    }}));
    for (index, block) in blocks.into_iter().enumerate() {
        push(json!({"type": "content_block_start", "index": index, "content_block": block}));
        push(json!({"type": "content_block_stop", "index": index}));
    }
    push(json!({
        "type": "message_delta",
        "delta": {
            "stop_reason": field("stop_reason"), "stop_details": field("stop_details"),
        },
        "usage": field("usage"),
    }));
    push(json!({"type": "message_stop"}));
    events
}

impl Decoder for AnthropicDecoder {
    fn on_event(&mut self, event: &SseEvent) -> Result<Vec<LlmDelta>, LlmError> {
        Self::on_event(self, event)
    }

    fn events_of(body: Value) -> Vec<SseEvent> {
        events_of(body)
    }
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
