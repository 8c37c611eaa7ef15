//! One answer in, deltas out. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::mem::take;

use serde_json::Value;
use serde_json::value::RawValue;

use super::block::{Fit, OpenBlock, name, served};
use super::errors::classify;
use super::usage::Tally;
use super::wire::{Delta, DeltaKind, Event, EventKind, Fields, NAME};
use crate::chat::{Block, CallIds};
use crate::llm::args::{ArgsReader, MOST_VALUES};
use crate::llm::estimate::Size;
use crate::llm::fault::{bad, cut};
use crate::llm::protocol::{Decoder, Deltas, Heard};
use crate::llm::text::{Piece, mended, values};
use crate::llm::types::{LlmDelta, LlmError, LlmStop};
use crate::net::sse::SseEvent;

/// The most blocks that an answer may have.
const MOST_BLOCKS: usize = 10_000;
/// The most MiB that its blocks which are sent back as they came may have in all: they stay in the conversation.
const MOST_ECHOED_MIB: usize = 8;

/// Decodes one answer.
#[derive(Debug, Default)]
pub struct AnthropicDecoder {
    ids: CallIds,
    /// The message's id once its start was seen; empty where a gateway gives none.
    message: Option<String>,
    /// Blocks that have started and not stopped, by the index in the events: never by position.
    open: BTreeMap<i64, OpenBlock>,
    /// Bytes of events since no block was open.
    held: usize,
    blocks: usize,
    calls: usize,
    /// Bytes of what is sent back as it came.
    echoed: usize,
    args: ArgsReader,
    tally: Tally,
    stop: Option<LlmStop>,
    /// Nothing but the ends of the open blocks is missing.
    only_ends_missing: bool,
    finished: bool,
    /// How much the model wrote in blocks that came whole, or began.
    size: Size,
}

impl AnthropicDecoder {
    /// One that takes the ids of calls from `ids`.
    pub(super) fn new(ids: CallIds) -> Self {
        Self {
            ids,
            ..Self::default()
        }
    }

    /// Takes an event of kind `kind`; events of unknown kinds are signs of life.
    fn take(
        &mut self,
        kind: EventKind,
        event: &Event<'_>,
        out: &mut Deltas,
    ) -> Result<Heard, LlmError> {
        let index = event.index.as_ref().map_or(0, |index| index.0);
        if kind != EventKind::MessageDelta {
            self.only_ends_missing = false;
        }
        match kind {
            EventKind::MessageStart => {
                if let Some(message) = event.message
                    && !self.begin(&Fields::of(message), out)
                {
                    return Ok(Heard::Ping);
                }
            }
            EventKind::BlockStart => {
                if let Some(start) = event.content_block {
                    self.block_start(index, start, out)?;
                }
            }
            EventKind::BlockDelta => {
                let Some(delta) = &event.delta else {
                    return Ok(Heard::Ping);
                };
                return self.block_delta(index, delta, out);
            }
            EventKind::BlockStop if self.open.contains_key(&index) => {
                self.block_stop(index, out)?;
            }
            EventKind::MessageDelta => {
                let told_before = self.stop.is_some();
                if let Some(delta) = &event.delta {
                    self.stopped(delta.stop_reason.as_ref(), delta.stop_details);
                }
                self.read_usage(event.usage, out);
                if told_before || self.stop.is_none() {
                    return Ok(Heard::Ping);
                }
                self.only_ends_missing = self.could_end();
            }
            EventKind::MessageStop => self.finish(out)?,
            EventKind::BlockStop | EventKind::Error | EventKind::Other => return Ok(Heard::Ping),
        }
        Ok(Heard::Content(take(&mut self.size)))
    }

    /// An event that is not at once what it should be: no JSON, half a character in a name, a field twice, or
    /// something of a newer protocol.
    fn odd(
        &mut self,
        event: &SseEvent,
        error: &serde_json::Error,
        out: &mut Deltas,
    ) -> Result<Heard, LlmError> {
        if event.data.trim().is_empty() {
            return Ok(Heard::Ping);
        }
        let mut tree: Value = serde_json::from_str(&mended(&event.data))
            .map_err(|_| bad(NAME, &format!("an event is not JSON ({error})")))?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let name = text(tree.get("type"))
            .or_else(|| event.event.clone())
            .unwrap_or_default();
        let kind = EventKind::of(name.as_bytes());
        let has_error = tree.get("error").is_some_and(|error| !error.is_null());
        let of_delta = text(tree.get("delta").and_then(|delta| delta.get("type")));
        let of_delta = of_delta.map(|name| DeltaKind::of(name.as_bytes()));
        // What a piece doesn't need can't fail it.
        if let Some(Value::Object(delta)) = tree.get_mut("delta") {
            let needed = of_delta.and_then(DeltaKind::field);
            delta.retain(|field, value| {
                value.is_string() || needed == Some(field) || field == "stop_details"
            });
        }
        let json = tree.to_string();
        if kind == EventKind::Error || (kind == EventKind::Other && has_error) {
            return Err(failed(&json));
        }
        match Event::read(&json) {
            Ok(event) => self.take(kind, &event, out),
            Err(_) if kind == EventKind::Other => Ok(Heard::Ping),
            Err(_) if of_delta == Some(DeltaKind::Other) => Ok(Heard::Content(Size::default())),
            Err(error) => {
                let what = format!("a {name} event can't be read ({error})");
                Err(bad(NAME, &what))
            }
        }
    }

    /// Whether this is no repetition.
    fn begin(&mut self, message: &Fields<'_>, out: &mut Deltas) -> bool {
        let id = message.get("id").as_ref().map_or_else(String::new, name);
        if let Some(before) = &self.message {
            if *before == id && (self.blocks == 0 || !id.is_empty()) {
                return false;
            }
            *self = Self::new(self.ids.clone());
            out.push_back(LlmDelta::Restarted);
        }
        self.message = Some(id);
        served(message.get("model").as_ref(), out);
        self.read_usage(message.raw("usage"), out);
        true
    }

    /// A piece of the block `index`. One that it doesn't take, or that never began: what was said begins a block of
    /// its own, what can't be told from half a call is the stream's fault.
    fn block_delta(
        &mut self,
        index: i64,
        delta: &Delta<'_>,
        out: &mut Deltas,
    ) -> Result<Heard, LlmError> {
        let open = self.open.get_mut(&index);
        // Without a type, what the open block takes, or else what there is.
        let of_block = open.as_ref().and_then(|block| block.takes(delta));
        let kind = delta.kind.or(of_block).or_else(|| delta.found());
        let kind = kind.unwrap_or_default();
        if delta.is_empty() && delta.kind != Some(DeltaKind::Other) {
            return Ok(Heard::Ping);
        }
        let known = open.is_some();
        let fit = open.map_or(Fit::of(kind), |block| block.fit(kind));
        match fit {
            Fit::Here => {}
            Fit::Nowhere if known && delta.kind.is_some() => {
                return Ok(Heard::Content(Size::default()));
            }
            Fit::Nowhere => return Ok(Heard::Ping),
            Fit::Apart => {
                let block = match kind {
                    DeltaKind::Thinking => r#"{"type":"thinking"}"#,
                    _ => r#"{"type":"text"}"#,
                };
                let start = RawValue::from_string(block.to_owned()).unwrap_or_default();
                self.block_start(index, &start, out)?;
            }
            Fit::Missing => {
                let what = format!("a piece ({kind:?}) is of block {index}, which takes none");
                return Err(bad(NAME, &what));
            }
        }
        let block = self.open.get_mut(&index);
        Ok(block.map_or(Heard::Ping, |block| block.delta(kind, delta, out)))
    }

    fn block_start(
        &mut self,
        index: i64,
        raw: &RawValue,
        out: &mut Deltas,
    ) -> Result<(), LlmError> {
        if self.blocks == MOST_BLOCKS {
            let what = format!("the answer has more than {MOST_BLOCKS} blocks");
            return Err(bad(NAME, &what));
        }
        // A gateway that leaves out the ends of blocks uses one index for all.
        self.block_stop(index, out)?;
        self.blocks += 1;
        let mut block = OpenBlock::start(raw, out);
        self.size += block.arrived();
        self.tally.saw_block(block.is_tool_result);
        self.open.insert(index, block);
        Ok(())
    }

    fn block_stop(&mut self, index: i64, out: &mut Deltas) -> Result<(), LlmError> {
        let Some(block) = self.open.remove(&index) else {
            return Ok(());
        };
        let block = block.complete(&self.ids, &mut self.args, out);
        self.push(block, out)
    }

    fn push(&mut self, block: Option<Block>, out: &mut Deltas) -> Result<(), LlmError> {
        match &block {
            Some(Block::Call(_)) => self.calls += 1,
            Some(
                Block::Opaque(echo)
                | Block::Text {
                    echo: Some(echo), ..
                },
            ) => self.echoed += echo.json().len(),
            Some(Block::Text { echo: None, .. }) | None => {}
        }
        if self.echoed > MOST_ECHOED_MIB << 20 {
            let what = format!(
                "the answer has more than {MOST_ECHOED_MIB} MiB that would have to be sent back"
            );
            return Err(bad(NAME, &what));
        }
        out.extend(block.map(LlmDelta::Block));
        Ok(())
    }

    fn stopped(&mut self, reason: Option<&Piece<'_>>, details: Option<&RawValue>) {
        let Some(reason) = reason else { return };
        self.stop = Some(match &*reason.text() {
            "end_turn" | "stop_sequence" => LlmStop::End,
            "tool_use" => LlmStop::ToolUse,
            "max_tokens" => LlmStop::MaxTokens,
            "pause_turn" => LlmStop::Pause,
            "model_context_window_exceeded" => LlmStop::ContextFull,
            "refusal" => {
                let details = details.map(Fields::of).unwrap_or_default();
                let text = |field: &str| {
                    let piece: Option<Piece<'_>> = details.get(field);
                    piece.map(|piece| piece.text().into_owned())
                };
                LlmStop::Refusal {
                    category: text("category"),
                    explanation: text("explanation"),
                }
            }
            _ => LlmStop::Unknown(reason.text().into_owned()),
        });
    }

    /// Whether the model ended by itself.
    const fn ended_well(&self) -> bool {
        !matches!(
            self.stop,
            None | Some(LlmStop::MaxTokens | LlmStop::ContextFull)
        )
    }

    /// Whether all that matters is there. Looks at all that is held.
    fn could_end(&self) -> bool {
        let is_whole = || self.ended_well() && self.open.values().all(OpenBlock::is_whole);
        self.stop.is_some() && (self.open.is_empty() || is_whole())
    }

    /// The end: what never stopped was cut off, unless the answer ended well.
    fn finish(&mut self, out: &mut Deltas) -> Result<(), LlmError> {
        self.finished = true;
        let is_good = self.ended_well();
        for block in take(&mut self.open).into_values() {
            let block = block.cut_off(is_good, &self.ids, &mut self.args, out);
            self.push(block, out)?;
        }
        out.push_back(LlmDelta::Stop(match (self.stop.take(), self.calls) {
            // Some gateways say "end" although there are calls, or the other way round.
            (Some(LlmStop::End) | None, 1..) => LlmStop::ToolUse,
            (Some(LlmStop::ToolUse), 0) => LlmStop::End,
            (Some(stop), _) => stop,
            (None, 0) => LlmStop::Unknown("no stop reason was given".to_owned()),
        }));
        Ok(())
    }

    fn read_usage(&mut self, usage: Option<&RawValue>, out: &mut Deltas) {
        let usage = usage.and_then(|usage| self.tally.read(usage));
        out.extend(usage.map(LlmDelta::Usage));
    }
}

impl Decoder for AnthropicDecoder {
    /// Events, deltas and fields that are not known are passed over; events after the end of the message as
    /// well.
    fn on_event(&mut self, event: &SseEvent, out: &mut Deltas) -> Result<Heard, LlmError> {
        if self.finished {
            return Ok(Heard::Ping);
        }
        let data = &event.data;
        self.held = if self.open.is_empty() {
            0
        } else {
            self.held + data.len()
        };
        few_values(data)?;
        let parsed = match Event::read(data) {
            Ok(parsed) => parsed,
            Err(error) => return self.odd(event, &error, out),
        };
        let by_name = || {
            event
                .event
                .as_ref()
                .map(|name| EventKind::of(name.as_bytes()))
        };
        let kind = parsed.kind.or_else(by_name).unwrap_or_default();
        if kind == EventKind::Error || (kind == EventKind::Other && parsed.error.is_some()) {
            return Err(failed(data));
        }
        self.take(kind, &parsed, out)
    }

    fn on_end(&mut self, out: &mut Deltas) -> Result<(), LlmError> {
        if self.finished {
            return Ok(());
        }
        if !self.could_end() {
            return Err(cut(NAME));
        }
        self.finish(out)
    }

    fn whole(&mut self, body: &str, out: &mut Deltas) -> Result<Size, LlmError> {
        few_values(body)?;
        let body = mended(body);
        let message: Fields<'_> = serde_json::from_str(&body)
            .map_err(|error| bad(NAME, &format!("the answer is no message ({error})")))?;
        let Some(blocks) = message.get::<Vec<&RawValue>>("content") else {
            return Err(bad(NAME, "the answer is JSON, but not a message"));
        };
        self.begin(&message, out);
        for (index, block) in (0..).zip(blocks) {
            self.block_start(index, block, out)?;
            self.block_stop(index, out)?;
        }
        self.stopped(
            message.get("stop_reason").as_ref(),
            message.raw("stop_details"),
        );
        self.read_usage(message.raw("usage"), out);
        self.finish(out)?;
        Ok(take(&mut self.size))
    }

    fn work(&self, event: &SseEvent) -> usize {
        let data = &event.data;
        let ends = || {
            ["_stop", "_start", "stop_reason"]
                .iter()
                .any(|end| data.contains(end))
        };
        let held = if self.held > data.len() && ends() {
            self.held
        } else {
            0
        };
        data.len() + held
    }

    fn is_complete(&self) -> bool {
        self.stop.is_some() && (self.open.is_empty() || self.only_ends_missing)
    }

    fn work_of_end(&self) -> usize {
        if self.open.is_empty() { 0 } else { self.held }
    }
}

fn failed(event: &str) -> LlmError {
    let (kind, words) = classify(200, event);
    let message = format!("{NAME} reported an error in its answer: {words}");
    LlmError::new(kind, message)
}

/// Refuses what would take many times its size in memory.
fn few_values(json: &str) -> Result<(), LlmError> {
    // Each value takes a byte and a separator.
    if json.len() > 2 * MOST_VALUES && values(json) > MOST_VALUES {
        let what = format!("what it answers has more than {MOST_VALUES} JSON values");
        return Err(bad(NAME, &what));
    }
    Ok(())
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "decoder_odd_tests.rs"]
mod odd_tests;
