//! One block of an answer, from its start to what is kept of it.

use std::mem::take;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::wire::{Asked, Cited, CitingText, Delta, DeltaKind, SignedThinking, Start};
use crate::chat::{Block, CallIds, Echo, ToolArgs, ToolCall};
use crate::llm::estimate::Size;
use crate::llm::protocol::{Deltas, Heard};
use crate::llm::text::{Joiner, MOST_VALUES, Piece, has_too_many_values, mended};
use crate::llm::types::{Citation, LlmDelta};

/// The longest id, name or reason that is kept of what a model or a gateway says.
pub(super) const NAME_CHARS: usize = 200;
/// The longest query, title or quotation.
pub(super) const SHOWN_CHARS: usize = 2000;

#[derive(Debug)]
enum Kind {
    Text,
    Thinking,
    Call { id: String, name: String },
    Compaction,
    Other,
}

#[derive(Debug)]
pub(super) struct OpenBlock {
    kind: Kind,
    /// What one of the provider's own tools gave.
    pub(super) is_tool_result: bool,
    start: Box<RawValue>,
    /// Text, thinking or a compaction's content, as added up.
    text: String,
    signature: String,
    /// The pieces of a call's JSON.
    json: String,
    citations: Vec<Box<RawValue>>,
    joiner: Joiner,
    /// What the model wrote for it and [`OpenBlock::arrived`] did not yet give.
    size: Size,
}

impl OpenBlock {
    /// Its start, which is all of it where an answer doesn't stream.
    pub(super) fn start(raw: &RawValue, out: &mut Deltas) -> Self {
        let raw = mended(raw.get());
        // A block of an unknown kind may have a known field with something else in it.
        let start: Start<'_> = serde_json::from_str(&raw).unwrap_or_default();
        let kind = start.kind.as_ref().map(Piece::text).unwrap_or_default();
        // Input is there where an answer doesn't stream; hidden thinking has no other piece.
        let mut written = start
            .name
            .as_ref()
            .map_or_else(Size::default, |name| Size::of(&name.text()));
        match (&*kind, start.input) {
            ("redacted_thinking", _) => written += Size::of(&raw),
            ("tool_use" | "server_tool_use", Some(input))
                if !matches!(input.get(), "{}" | "null") =>
            {
                written += Size::of(input.get());
            }
            _ => {}
        }
        let is_tool_result = kind.ends_with("_tool_result");
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
        let mut block = Self {
            kind,
            is_tool_result,
            start: RawValue::from_string(raw.clone().into_owned()).unwrap_or_default(),
            text: String::new(),
            signature: start
                .signature
                .map_or_else(String::new, |piece| piece.text().into_owned()),
            json: String::new(),
            citations: Vec::new(),
            joiner: Joiner::default(),
            size: written,
        };
        for citation in start.citations.into_iter().flatten() {
            block.cite(citation, out);
        }
        block.add(text.as_ref(), shown, out);
        block
    }

    /// How much the model wrote since this was asked last.
    pub(super) fn arrived(&mut self) -> Size {
        take(&mut self.size)
    }

    /// Takes a piece of it.
    pub(super) fn delta(&mut self, delta: &Delta<'_>, out: &mut Deltas) -> Heard {
        let mut other = false;
        match delta.kind.unwrap_or_default() {
            DeltaKind::Text => self.add(delta.text.as_ref(), LlmDelta::Text, out),
            DeltaKind::Thinking => self.add(delta.thinking.as_ref(), LlmDelta::Thinking, out),
            DeltaKind::Citation => {
                if let Some(citation) = delta.citation {
                    self.cite(citation, out);
                    other = true;
                }
            }
            DeltaKind::Signature => {
                let signature = delta.signature.as_ref().map(Piece::text);
                self.signature = signature.unwrap_or_default().into_owned();
                other = !self.signature.is_empty();
            }
            DeltaKind::Json => {
                if let Some(piece) = &delta.partial_json {
                    let json = self.joiner.join(piece);
                    self.size += Size::of(&json);
                    self.json.push_str(&json);
                }
            }
            DeltaKind::Compaction => {
                if let Some(piece) = &delta.content {
                    let content = self.joiner.join(piece);
                    self.size += Size::of(&content);
                    self.text.push_str(&content);
                }
            }
            // Pieces of a newer protocol.
            DeltaKind::Other => other = delta.kind.is_some(),
        }
        let size = self.arrived();
        if other || !size.is_empty() {
            Heard::Content(size)
        } else {
            Heard::Ping
        }
    }

    /// Adds a piece of text, and shows it.
    fn add(&mut self, piece: Option<&Piece<'_>>, shown: fn(String) -> LlmDelta, out: &mut Deltas) {
        let Some(piece) = piece else { return };
        let text = self.joiner.join(piece);
        self.size += Size::of(&text);
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
                quote: text(cited.quote),
            }));
        }
        self.citations
            .extend(RawValue::from_string(raw.into_owned()));
    }

    /// What is kept of it.
    pub(super) fn complete(mut self, ids: &CallIds, out: &mut Deltas) -> Option<Block> {
        self.end_text(out);
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
                let args = match input(self.json, &self.start) {
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
                let streamed = (!self.json.trim().is_empty()).then_some(self.json);
                out.extend(searched(&self.start, streamed.as_deref()));
                let input = streamed.and_then(|json| serde_json::from_str(&mended(&json)).ok());
                with(self.start, "input", input)
            }
        }
    }

    /// What is left of a block whose end never came. What has no end (and no signature) would be refused in
    /// the next request; text was shown and counts.
    pub(super) fn cut_off(mut self, ids: &CallIds, out: &mut Deltas) -> Option<Block> {
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

/// What a call was given: its pieces or, if those are empty, what its start had already.
fn input(pieces: String, start: &RawValue) -> Option<String> {
    if !pieces.trim().is_empty() {
        return Some(pieces);
    }
    let start: Start<'_> = serde_json::from_str(start.get()).unwrap_or_default();
    start.input.map(|input| input.get().to_owned())
}

pub(super) fn name(piece: &Piece<'_>) -> String {
    piece.bounded(NAME_CHARS)
}

/// Tells who answers.
pub(super) fn served(model: Option<&Piece<'_>>, out: &mut Deltas) {
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
    if has_too_many_values(&json) {
        return ToolArgs::Malformed {
            error: format!("more than {MOST_VALUES} values"),
            raw: json,
        };
    }
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
fn searched(start: &RawValue, streamed: Option<&str>) -> Option<LlmDelta> {
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
    let asked = streamed.or(start.input.map(RawValue::get))?;
    let asked: Asked<'_> = serde_json::from_str(asked).unwrap_or_default();
    let query = asked.query.or(asked.url)?.bounded(SHOWN_CHARS);
    Some(LlmDelta::ServerToolUse { tool, query })
}
