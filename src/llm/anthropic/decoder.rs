//! One answer in, deltas out. Pure: no I/O, no clock.

use std::mem::take;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::DEF;
use super::errors::classify;
use super::wire::{
    Asked, Cited, CitingText, Delta, Details, Event, Figures, SignedThinking, Start, Whole,
};
use crate::chat::{Block, CallIds, Echo, ToolArgs, ToolCall};
use crate::llm::protocol::{Decoder, Deltas, Heard, bad, cut};
use crate::llm::text::{Joiner, Piece, mended};
use crate::llm::types::{Citation, LlmDelta, LlmError, LlmStop, Usage};
use crate::net::sse::SseEvent;

/// The longest id, name or reason that is kept of what a model or a gateway says.
const NAME_CHARS: usize = 200;
/// The longest query, title or quotation.
const SHOWN_CHARS: usize = 2000;

const EVENTS: &[&str] = &[
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
];
const DELTAS: &[&str] = &[
    "text_delta",
    "thinking_delta",
    "signature_delta",
    "input_json_delta",
    "compaction_delta",
    "citations_delta",
];

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
    passes: Passes,
    usage: Usage,
    stop: Option<LlmStop>,
    finished: bool,
}

/// How often the model was asked for this answer: anew after each run of the provider's own tools.
#[derive(Debug, Default)]
struct Passes {
    /// The input of the first one.
    first_input: u64,
    later: u64,
    after_result: bool,
}

impl Passes {
    fn saw(&mut self, kind: &str) {
        let result = kind.ends_with("_tool_result");
        self.later += u64::from(self.after_result && !result);
        self.after_result = result;
    }
}

#[derive(Debug)]
enum Kind {
    Text,
    Thinking,
    Call { id: String, name: String },
    Compaction,
    Other,
}

#[derive(Debug)]
struct OpenBlock {
    kind: Kind,
    start: Box<RawValue>,
    /// Text, thinking or a compaction's content, as added up.
    text: String,
    signature: String,
    /// The pieces of a call's JSON.
    json: String,
    citations: Vec<Box<RawValue>>,
    joiner: Joiner,
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
    fn take(&mut self, kind: &str, event: &Event<'_>, out: &mut Deltas) -> Result<Heard, LlmError> {
        match kind {
            "message_start" => {
                if let Some(message) = event.message {
                    self.begin(&read(message)?, out);
                }
            }
            "content_block_start" => {
                if let Some(start) = event.content_block {
                    self.block_start(event.index, start, out);
                }
            }
            "content_block_delta" => {
                if let Some(delta) = &event.delta {
                    self.block_delta(event.index, delta, out);
                }
            }
            "content_block_stop" => self.block_stop(event.index, out),
            "message_delta" => {
                if let Some(delta) = &event.delta {
                    self.stopped(delta.stop_reason.as_ref(), delta.stop_details.as_ref());
                }
                self.read_usage(event.usage, out);
            }
            "message_stop" => self.finish(out),
            _ => return Ok(Heard::Ping),
        }
        Ok(Heard::Content)
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
        let tree: Value = serde_json::from_str(&mended(&event.data))
            .map_err(|_| bad(DEF.name, &format!("an event is not JSON ({error})")))?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let kind = text(tree.get("type"))
            .or_else(|| event.event.clone())
            .unwrap_or_default();
        let of_delta = text(tree.get("delta").and_then(|delta| delta.get("type")));
        let json = tree.to_string();
        match serde_json::from_str::<Event<'_>>(&json) {
            Ok(event) => self.take(&kind, &event, out),
            Err(_) if !EVENTS.contains(&&*kind) => Ok(Heard::Ping),
            Err(_) if of_delta.is_some_and(|kind| !DELTAS.contains(&&*kind)) => Ok(Heard::Content),
            Err(error) => {
                let what = format!("a {kind} event can't be read ({error})");
                Err(bad(DEF.name, &what))
            }
        }
    }

    fn begin(&mut self, message: &Whole<'_>, out: &mut Deltas) {
        let id = message.id.as_ref().map_or_else(String::new, name);
        if let Some(before) = &self.message {
            if *before == id && (!self.blocks_seen || !id.is_empty()) {
                return;
            }
            *self = Self::new(self.ids.clone());
            out.push_back(LlmDelta::Restarted);
        }
        self.message = Some(id);
        served(message.model.as_ref(), out);
        self.read_usage(message.usage, out);
        self.passes.first_input = self.usage.total_input();
    }

    fn block_start(&mut self, index: u64, raw: &RawValue, out: &mut Deltas) {
        self.blocks_seen = true;
        let raw = mended(raw.get());
        // A block of an unknown kind may have a known field with something else in it.
        let start: Start<'_> = serde_json::from_str(&raw).unwrap_or_default();
        let kind = start.kind.as_ref().map(Piece::text).unwrap_or_default();
        self.passes.saw(&kind);
        let (kind, text, shown): (_, _, fn(String) -> LlmDelta) = match &*kind {
            "text" => (Kind::Text, start.text, LlmDelta::Text),
            "thinking" => (Kind::Thinking, start.thinking, LlmDelta::Thinking),
            "tool_use" => {
                let of = |piece: Option<&Piece<'_>>| piece.map_or_else(String::new, name);
                let call = Kind::Call {
                    id: of(start.id.as_ref()),
                    name: of(start.name.as_ref()),
                };
                (call, None, LlmDelta::Text)
            }
            "compaction" => (Kind::Compaction, None, LlmDelta::Text),
            "fallback" => {
                served(start.to.and_then(|to| to.model).as_ref(), out);
                (Kind::Other, None, LlmDelta::Text)
            }
            _ => (Kind::Other, None, LlmDelta::Text),
        };
        let mut block = OpenBlock {
            kind,
            start: RawValue::from_string(raw.clone().into_owned()).unwrap_or_default(),
            text: String::new(),
            signature: start
                .signature
                .map_or_else(String::new, |piece| piece.text().into_owned()),
            json: String::new(),
            citations: Vec::new(),
            joiner: Joiner::default(),
        };
        for citation in start.citations.into_iter().flatten() {
            block.cite(citation, out);
        }
        if let Some(text) = text {
            block.add(&text, shown, out);
        }
        self.open.retain(|(open, _)| *open != index);
        self.open.push((index, block));
    }

    fn block_delta(&mut self, index: u64, delta: &Delta<'_>, out: &mut Deltas) {
        let Some((_, block)) = self.open.iter_mut().find(|(open, _)| *open == index) else {
            return;
        };
        let kind = delta.kind.as_ref().map(Piece::text).unwrap_or_default();
        match (&*kind, delta) {
            (
                "text_delta",
                Delta {
                    text: Some(text), ..
                },
            ) => block.add(text, LlmDelta::Text, out),
            (
                "thinking_delta",
                Delta {
                    thinking: Some(text),
                    ..
                },
            ) => {
                block.add(text, LlmDelta::Thinking, out);
            }
            (
                "signature_delta",
                Delta {
                    signature: Some(signature),
                    ..
                },
            ) => {
                block.signature = signature.text().into_owned();
            }
            (
                "input_json_delta",
                Delta {
                    partial_json: Some(json),
                    ..
                },
            ) => {
                block.json.push_str(&block.joiner.join(json));
            }
            (
                "compaction_delta",
                Delta {
                    content: Some(content),
                    ..
                },
            ) => {
                block.text.push_str(&block.joiner.join(content));
            }
            (
                "citations_delta",
                Delta {
                    citation: Some(citation),
                    ..
                },
            ) => {
                block.cite(citation, out);
            }
            _ => {}
        }
    }

    fn block_stop(&mut self, index: u64, out: &mut Deltas) {
        if let Some(at) = self.open.iter().position(|(open, _)| *open == index) {
            let block = self.open.remove(at).1;
            let block = block.complete(&self.ids, out);
            self.push(block, out);
        }
    }

    fn push(&mut self, block: Option<Block>, out: &mut Deltas) {
        self.calls += usize::from(matches!(block, Some(Block::Call(_))));
        out.extend(block.map(LlmDelta::Block));
    }

    fn stopped(&mut self, reason: Option<&Piece<'_>>, details: Option<&Details<'_>>) {
        let Some(reason) = reason else { return };
        self.stop = Some(match &*reason.text() {
            "end_turn" | "stop_sequence" => LlmStop::End,
            "tool_use" => LlmStop::ToolUse,
            "max_tokens" => LlmStop::MaxTokens,
            "pause_turn" => LlmStop::Pause,
            "model_context_window_exceeded" => LlmStop::ContextFull,
            "refusal" => {
                let text = |piece: &Piece<'_>| piece.bounded(SHOWN_CHARS);
                LlmStop::Refusal {
                    category: details.and_then(|it| it.category.as_ref()).map(text),
                    explanation: details.and_then(|it| it.explanation.as_ref()).map(text),
                }
            }
            _ => LlmStop::Unknown(reason.bounded(100)),
        });
    }

    /// The end: what never stopped was cut off.
    fn finish(&mut self, out: &mut Deltas) {
        self.finished = true;
        let mut open = take(&mut self.open);
        open.sort_by_key(|(index, _)| *index);
        for (_, block) in open {
            let block = block.cut_off(&self.ids, out);
            self.push(block, out);
        }
        out.push_back(LlmDelta::Stop(match (self.stop.take(), self.calls) {
            // Some gateways say "end" although there are calls, or the other way round.
            (Some(LlmStop::End) | None, 1..) => LlmStop::ToolUse,
            (Some(LlmStop::ToolUse), 0) => LlmStop::End,
            (Some(stop), _) => stop,
            (None, 0) => LlmStop::Unknown("no stop reason was given".to_owned()),
        }));
    }

    /// Figures replace what was said before; a list of inner passes is their sum. Figures that can't be read
    /// are none.
    fn read_usage(&mut self, usage: Option<&RawValue>, out: &mut Deltas) {
        let Some(whole) = usage.and_then(figures) else {
            return;
        };
        let passes = whole.iterations.as_deref().unwrap_or_default();
        if passes.is_empty() {
            replace(&mut self.usage, &whole);
            // The first pass's input is a part of each later one's.
            let Passes {
                first_input, later, ..
            } = self.passes;
            self.usage.last_pass = (later > 0).then(|| {
                let earlier = first_input.saturating_mul(later);
                let last = self.usage.total_input().saturating_sub(earlier);
                last.max(first_input) + self.usage.output
            });
        } else {
            let mut sum = Usage::default();
            for pass in passes {
                let mut one = Usage::default();
                if let Some(figures) = figures(pass) {
                    replace(&mut one, &figures);
                    sum.last_pass = Some(one.context());
                }
                sum.input = sum.input.saturating_add(one.input);
                sum.cache_read = sum.cache_read.saturating_add(one.cache_read);
                sum.cache_write_5m = sum.cache_write_5m.saturating_add(one.cache_write_5m);
                sum.cache_write_1h = sum.cache_write_1h.saturating_add(one.cache_write_1h);
                sum.output = sum.output.saturating_add(one.output);
                sum.reasoning = sum.reasoning.saturating_add(one.reasoning);
            }
            let mut top = self.usage;
            replace(&mut top, &whole);
            sum.searches = top.searches;
            sum.reasoning = sum.reasoning.max(top.reasoning);
            self.usage = sum;
        }
        out.push_back(LlmDelta::Usage(self.usage));
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
        let parsed = match serde_json::from_str::<Event<'_>>(data) {
            Ok(parsed) => parsed,
            Err(error) => return self.odd(event, &error, out),
        };
        let kind = parsed.kind.as_ref().map(Piece::text);
        let kind = kind
            .as_deref()
            .or(event.event.as_deref())
            .unwrap_or_default();
        if kind == "error" {
            let (kind, words) = classify(200, data);
            let message = format!("{} reported an error in its answer: {words}", DEF.name);
            return Err(LlmError::new(kind, message));
        }
        self.take(kind, &parsed, out)
    }

    fn on_end(&mut self, out: &mut Deltas) -> Result<(), LlmError> {
        if self.finished {
            return Ok(());
        }
        if !self.is_complete() {
            return Err(cut(DEF.name));
        }
        self.finish(out);
        Ok(())
    }

    fn whole(&mut self, body: &str, out: &mut Deltas) -> Result<(), LlmError> {
        let body = mended(body);
        let message: Whole<'_> = serde_json::from_str(&body)
            .map_err(|error| bad(DEF.name, &format!("the answer is no message ({error})")))?;
        let Some(blocks) = &message.content else {
            return Err(bad(DEF.name, "the answer is JSON, but not a message"));
        };
        self.begin(&message, out);
        for (index, block) in (0..).zip(blocks) {
            self.block_start(index, block, out);
            self.block_stop(index, out);
        }
        self.stopped(message.stop_reason.as_ref(), message.stop_details.as_ref());
        self.read_usage(message.usage, out);
        self.finish(out);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.stop.is_some() && self.open.is_empty()
    }
}

impl OpenBlock {
    /// Adds a piece of text, and shows it.
    fn add(&mut self, piece: &Piece<'_>, shown: fn(String) -> LlmDelta, out: &mut Deltas) {
        let text = self.joiner.join(piece);
        self.text.push_str(&text);
        if !text.is_empty() {
            out.push_back(shown(text.into_owned()));
        }
    }

    /// A half of a character that stayed alone.
    fn end_text(&mut self, out: &mut Deltas) {
        let Some(half) = self.joiner.end() else {
            return;
        };
        match self.kind {
            Kind::Text => out.push_back(LlmDelta::Text(half.into())),
            Kind::Thinking => out.push_back(LlmDelta::Thinking(half.into())),
            Kind::Call { .. } | Kind::Compaction | Kind::Other => {}
        }
        if matches!(self.kind, Kind::Call { .. } | Kind::Other) {
            self.json.push(half);
        } else {
            self.text.push(half);
        }
    }

    fn cite(&mut self, citation: &RawValue, out: &mut Deltas) {
        let raw = mended(citation.get());
        if let Ok(cited) = serde_json::from_str::<Cited<'_>>(&raw) {
            let text = |piece: Option<Piece<'_>>| piece.map(|piece| piece.bounded(SHOWN_CHARS));
            out.push_back(LlmDelta::Citation(Citation {
                url: text(cited.url),
                title: text(cited.title.or(cited.document_title)),
                quote: text(cited.cited_text),
            }));
        }
        self.citations
            .extend(RawValue::from_string(raw.into_owned()));
    }

    fn complete(mut self, ids: &CallIds, out: &mut Deltas) -> Option<Block> {
        self.end_text(out);
        let input = self.input();
        match self.kind {
            Kind::Text if self.citations.is_empty() => Some(Block::text(self.text)),
            Kind::Text => {
                let echo = Echo::of(&CitingText {
                    text: &self.text,
                    citations: &self.citations,
                });
                Some(Block::Text {
                    echo: echo.ok(),
                    text: self.text,
                })
            }
            // Without a signature it would be refused in the next request.
            Kind::Thinking if self.signature.is_empty() => None,
            Kind::Thinking => opaque(Echo::of(&SignedThinking {
                thinking: &self.text,
                signature: &self.signature,
            })),
            Kind::Call { id, name } => {
                let args = match input {
                    None => ToolArgs::Json(Value::Object(Map::new())),
                    Some(json) => args(json),
                };
                Some(Block::Call(call(ids, &id, name, args)))
            }
            Kind::Compaction => {
                let content = (!self.text.is_empty()).then_some(Value::String(self.text));
                with(self.start, "content", content)
            }
            Kind::Other => {
                let input = input.and_then(|json| serde_json::from_str(&mended(&json)).ok());
                out.extend(searched(&self.start, input.as_ref()));
                with(self.start, "input", input)
            }
        }
    }

    /// What a call was given: its pieces or, if those are empty, what its start had already.
    fn input(&self) -> Option<String> {
        let Kind::Call { .. } = self.kind else {
            return (!self.json.trim().is_empty()).then(|| self.json.clone());
        };
        if !self.json.trim().is_empty() {
            return Some(self.json.clone());
        }
        let start: Start<'_> = serde_json::from_str(self.start.get()).unwrap_or_default();
        start.input.map(|input| input.get().to_owned())
    }

    /// What is left of a block whose end never came. What has no end (and no signature) would be refused in
    /// the next request; text was shown and counts.
    fn cut_off(mut self, ids: &CallIds, out: &mut Deltas) -> Option<Block> {
        self.end_text(out);
        match self.kind {
            Kind::Text => Some(Block::text(self.text)),
            Kind::Call { id, name } => {
                let args = ToolArgs::Malformed {
                    raw: self.json,
                    error: "the call was cut off".to_owned(),
                };
                Some(Block::Call(call(ids, &id, name, args)))
            }
            Kind::Thinking | Kind::Compaction | Kind::Other => None,
        }
    }
}

fn read<'a>(raw: &'a RawValue) -> Result<Whole<'a>, LlmError> {
    serde_json::from_str(raw.get())
        .map_err(|error| bad(DEF.name, &format!("the message can't be read ({error})")))
}

fn figures(raw: &RawValue) -> Option<Figures<'_>> {
    serde_json::from_str(raw.get()).ok()
}

fn name(piece: &Piece<'_>) -> String {
    piece.bounded(NAME_CHARS)
}

fn served(model: Option<&Piece<'_>>, out: &mut Deltas) {
    let model = model.map(name).filter(|model| !model.is_empty());
    out.extend(model.map(LlmDelta::ServedModel));
}

fn call(ids: &CallIds, id: &str, name: String, args: ToolArgs) -> ToolCall {
    ToolCall {
        id: ids.issue(id),
        name,
        args,
        echo: None,
    }
}

fn args(json: String) -> ToolArgs {
    let parsed = serde_json::from_str(&json).or_else(|error| {
        let mended = serde_json::from_str(&mended(&json));
        mended.map_err(|_| error)
    });
    match parsed {
        Ok(value) => ToolArgs::Json(value),
        Err(error) => ToolArgs::Malformed {
            error: error.to_string(),
            raw: json,
        },
    }
}

fn opaque(echo: Result<Echo, serde_json::Error>) -> Option<Block> {
    echo.ok().map(Block::Opaque)
}

/// The provider's own block, with what its deltas brought.
fn with(start: Box<RawValue>, field: &str, value: Option<Value>) -> Option<Block> {
    let Some(value) = value else {
        return opaque(Ok(Echo::new(start)));
    };
    let mut block: Map<String, Value> = serde_json::from_str(start.get()).ok()?;
    block.insert(field.to_owned(), value);
    opaque(Echo::of(&block))
}

/// What the client is told of a tool that the provider runs itself.
fn searched(start: &RawValue, input: Option<&Value>) -> Option<LlmDelta> {
    let start: Start<'_> = serde_json::from_str(start.get()).ok()?;
    let kind = start.kind.as_ref().map(Piece::text)?;
    let tool = match &*start.name.as_ref().map(Piece::text)? {
        "web_search" => "web_search",
        "web_fetch" => "web_fetch",
        _ => return None,
    };
    if kind != "server_tool_use" {
        return None;
    }
    let streamed = input.map(Value::to_string);
    let asked = streamed.as_deref().or(start.input.map(RawValue::get))?;
    let asked: Asked<'_> = serde_json::from_str(asked).unwrap_or_default();
    let query = asked.query.or(asked.url)?.bounded(SHOWN_CHARS);
    Some(LlmDelta::ServerToolUse { tool, query })
}

/// Takes over the figures that are given.
fn replace(usage: &mut Usage, figures: &Figures<'_>) {
    figures.input_tokens.replace(&mut usage.input);
    figures.output_tokens.replace(&mut usage.output);
    figures
        .cache_read_input_tokens
        .replace(&mut usage.cache_read);
    if let Some(details) = &figures.output_tokens_details {
        details.thinking_tokens.replace(&mut usage.reasoning);
    }
    if let Some(tools) = &figures.server_tool_use {
        tools.web_search_requests.replace(&mut usage.searches);
    }
    let split = figures.cache_creation.unwrap_or_default();
    split
        .ephemeral_1h_input_tokens
        .replace(&mut usage.cache_write_1h);
    split
        .ephemeral_5m_input_tokens
        .replace(&mut usage.cache_write_5m);
    let told = split
        .ephemeral_1h_input_tokens
        .0
        .or(split.ephemeral_5m_input_tokens.0);
    // A total without its split: an hour's part that is known already stays one.
    if let (Some(total), None) = (figures.cache_creation_input_tokens.0, told) {
        usage.cache_write_1h = usage.cache_write_1h.min(total);
        usage.cache_write_5m = total - usage.cache_write_1h;
    }
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
