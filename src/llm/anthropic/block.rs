//! One block of an answer, from its start to what is kept of it.

use std::mem::take;

use serde_json::value::RawValue;

use super::wire::{CitingText, Delta, DeltaKind, Fields, SignedThinking};
use crate::chat::{Block, CallIds, Echo, ToolArgs, ToolCall};
use crate::llm::args::ArgsReader;
use crate::llm::estimate::Size;
use crate::llm::protocol::{Deltas, Heard};
use crate::llm::text::{Joiner, Piece, mended};
use crate::llm::types::{Citation, LlmDelta};

/// The longest id, name or reason that is kept of what a model or a gateway says.
pub(super) const NAME_CHARS: usize = 200;

#[derive(Debug)]
enum Kind {
    Text,
    Thinking,
    Call {
        id: String,
        name: String,
    },
    Compaction,
    /// The provider's own, or of a newer protocol.
    Other {
        /// It has an `input`, which comes in pieces of JSON.
        has_input: bool,
        /// All that came of it is kept, so that it can be sent back.
        whole: bool,
    },
}

/// What takes a piece of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// The open block.
    Here,
    /// A block of its own.
    Apart,
    /// Nothing: it can be done without.
    Nowhere,
    /// Nothing, though it can't be done without.
    Missing,
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
    /// Its start, which is all of it where an answer doesn't stream. Its type alone decides what it is.
    pub(super) fn start(raw: &RawValue, out: &mut Deltas) -> Self {
        let raw = RawValue::from_string(mended(raw.get()).into_owned()).unwrap_or_default();
        let start = Fields::of(&raw);
        let piece = |name: &str| start.get::<Piece<'_>>(name);
        let named = |field: &str| piece(field).as_ref().map(name).unwrap_or_default();
        let kind = piece("type");
        let kind = kind.as_ref().map(Piece::text).unwrap_or_default();
        // Input is there where an answer doesn't stream; hidden thinking has no other piece.
        let mut written = piece("name").map_or_else(Size::default, |name| Size::of(&name.text()));
        let input = start.raw("input");
        match (&*kind, input) {
            ("redacted_thinking", _) => written += Size::of(raw.get()),
            ("tool_use" | "server_tool_use", Some(input)) if input.get() != "{}" => {
                written += Size::of(input.get());
            }
            _ => {}
        }
        if kind == "fallback" {
            served(start.inner("to").get("model").as_ref(), out);
        }
        let of_kind = match &*kind {
            "text" => Kind::Text,
            "thinking" => Kind::Thinking,
            "tool_use" => Kind::Call {
                id: named("id"),
                name: named("name"),
            },
            "compaction" => Kind::Compaction,
            // Without a type it would be refused in the next request.
            other => Kind::Other {
                has_input: input.is_some(),
                whole: !other.is_empty(),
            },
        };
        let text = match of_kind {
            Kind::Text => piece("text"),
            Kind::Thinking => piece("thinking"),
            Kind::Call { .. } | Kind::Compaction | Kind::Other { .. } => None,
        };
        let citations: Vec<&RawValue> = start.get("citations").unwrap_or_default();
        let mut block = Self {
            is_tool_result: kind.ends_with("_tool_result"),
            kind: of_kind,
            start: raw.clone(),
            text: String::new(),
            signature: piece("signature")
                .map_or_else(String::new, |piece| piece.text().into_owned()),
            json: String::new(),
            citations: Vec::new(),
            joiner: Joiner::default(),
            size: written,
        };
        if matches!(block.kind, Kind::Text) {
            for citation in citations {
                block.cite(citation, out);
            }
        }
        block.add(text.as_ref(), out);
        block
    }

    /// How much the model wrote since this was asked last.
    pub(super) fn arrived(&mut self) -> Size {
        take(&mut self.size)
    }

    /// What takes a piece of `kind`. What the block should have had, but can't take, voids its echo.
    pub(super) fn fit(&mut self, kind: DeltaKind) -> Fit {
        match (&mut self.kind, kind) {
            (Kind::Text, DeltaKind::Text | DeltaKind::Citation)
            | (Kind::Thinking, DeltaKind::Thinking | DeltaKind::Signature)
            | (
                Kind::Call { .. }
                | Kind::Other {
                    has_input: true, ..
                },
                DeltaKind::Json,
            )
            | (Kind::Compaction, DeltaKind::Compaction) => Fit::Here,
            (kind, delta) => {
                let is_known = !matches!(kind, Kind::Other { .. });
                if let Kind::Other { whole, .. } = kind {
                    *whole = false;
                }
                match delta {
                    DeltaKind::Text | DeltaKind::Thinking => Fit::Apart,
                    DeltaKind::Json if is_known => Fit::Missing,
                    DeltaKind::Json
                    | DeltaKind::Signature
                    | DeltaKind::Compaction
                    | DeltaKind::Citation
                    | DeltaKind::Other => Fit::Nowhere,
                }
            }
        }
    }

    /// What the piece `delta` is if it is one that the block takes.
    pub(super) fn takes(&self, delta: &Delta<'_>) -> Option<DeltaKind> {
        let kinds: &[DeltaKind] = match &self.kind {
            Kind::Text => &[DeltaKind::Text, DeltaKind::Citation],
            Kind::Thinking => &[DeltaKind::Thinking, DeltaKind::Signature],
            Kind::Call { .. } => &[DeltaKind::Json],
            Kind::Compaction => &[DeltaKind::Compaction],
            Kind::Other { has_input, .. } => {
                if *has_input {
                    &[DeltaKind::Json]
                } else {
                    &[]
                }
            }
        };
        kinds.iter().copied().find(|kind| delta.has(*kind))
    }

    /// Takes a piece that fits, which is of `kind`.
    pub(super) fn delta(&mut self, kind: DeltaKind, delta: &Delta<'_>, out: &mut Deltas) -> Heard {
        let mut other = false;
        match kind {
            DeltaKind::Text => self.add(delta.text.as_ref(), out),
            DeltaKind::Thinking => self.add(delta.thinking.as_ref(), out),
            DeltaKind::Compaction => self.add(delta.content.as_ref(), out),
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
            DeltaKind::Other => {}
        }
        let size = self.arrived();
        if other || !size.is_empty() {
            Heard::Content(size)
        } else {
            Heard::Ping
        }
    }

    /// Adds a piece of text, and shows it.
    fn add(&mut self, piece: Option<&Piece<'_>>, out: &mut Deltas) {
        let Some(piece) = piece else { return };
        let text = self.joiner.join(piece);
        self.size += Size::of(&text);
        self.text.push_str(&text);
        self.show(text.into_owned(), out);
    }

    fn show(&self, text: String, out: &mut Deltas) {
        if text.is_empty() {
            return;
        }
        match self.kind {
            Kind::Text => out.push_back(LlmDelta::Text(text)),
            Kind::Thinking => out.push_back(LlmDelta::Thinking(text)),
            Kind::Call { .. } | Kind::Compaction | Kind::Other { .. } => {}
        }
    }

    /// A half of a character that stayed alone.
    fn end_text(&mut self, out: &mut Deltas) {
        let Some(half) = self.joiner.end() else {
            return;
        };
        self.show(half.into(), out);
        if matches!(self.kind, Kind::Call { .. } | Kind::Other { .. }) {
            self.json.push(half);
        } else {
            self.text.push(half);
        }
    }

    fn cite(&mut self, citation: &RawValue, out: &mut Deltas) {
        let Ok(citation) = RawValue::from_string(mended(citation.get()).into_owned()) else {
            return;
        };
        let cited = Fields::of(&citation);
        let text = |field: &str| {
            let piece: Option<Piece<'_>> = cited.get(field);
            piece.map(|piece| piece.text().into_owned())
        };
        out.push_back(LlmDelta::Citation(Citation {
            url: text("url"),
            title: text("title").or_else(|| text("document_title")),
            quote: text("cited_text"),
        }));
        self.citations.push(citation);
    }

    /// What is kept of it.
    pub(super) fn complete(
        mut self,
        ids: &CallIds,
        args: &mut ArgsReader,
        out: &mut Deltas,
    ) -> Option<Block> {
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
                let args = args.read(input(self.json, &self.start));
                Some(Block::Call(call(ids, &id, name, args)))
            }
            Kind::Compaction => {
                let content = serde_json::value::to_raw_value(&self.text).ok();
                let content = content.filter(|_| !self.text.is_empty());
                with(self.start, "content", content.as_deref())
            }
            Kind::Other { whole, .. } => {
                let streamed = mended(&self.json).into_owned();
                let streamed = RawValue::from_string(streamed).ok();
                out.extend(searched(&self.start, streamed.as_deref()));
                with(self.start, "input", streamed.as_deref()).filter(|_| whole)
            }
        }
    }

    /// Whether it is as it would be with its end, should the model have ended by itself: a call's JSON tells.
    pub(super) fn is_whole(&self) -> bool {
        let input = match &self.kind {
            // Empty input is what a call begins with.
            Kind::Call { .. } => Fields::of(&self.start)
                .raw("input")
                .filter(|input| input.get() != "{}"),
            Kind::Other {
                has_input: true, ..
            } => Some(&*self.start),
            Kind::Text | Kind::Thinking | Kind::Compaction | Kind::Other { .. } => return true,
        };
        if self.json.trim().is_empty() {
            return input.is_some();
        }
        let json = mended(&self.json);
        serde_json::from_str::<serde::de::IgnoredAny>(&json).is_ok()
    }

    /// What is left of a block whose end never came. If the answer is good otherwise, the end alone may be missing:
    /// what is whole without it is. Else it would be refused in the next request; text was shown and counts.
    pub(super) fn cut_off(
        mut self,
        answer_is_good: bool,
        ids: &CallIds,
        args: &mut ArgsReader,
        out: &mut Deltas,
    ) -> Option<Block> {
        if answer_is_good && self.is_whole() {
            return self.complete(ids, args, out);
        }
        self.end_text(out);
        match self.kind {
            Kind::Text => Some(Block::text(self.text)),
            Kind::Call { id, name } => {
                let args = args.cut(self.json);
                Some(Block::Call(call(ids, &id, name, args)))
            }
            Kind::Thinking | Kind::Compaction | Kind::Other { .. } => None,
        }
    }
}

impl Fit {
    /// Of a piece of `kind` for which no block is open.
    pub(super) const fn of(kind: DeltaKind) -> Self {
        match kind {
            DeltaKind::Text | DeltaKind::Thinking => Self::Apart,
            DeltaKind::Other => Self::Nowhere,
            DeltaKind::Signature
            | DeltaKind::Json
            | DeltaKind::Compaction
            | DeltaKind::Citation => Self::Missing,
        }
    }
}

/// What a call was given: its pieces or, if those are empty, what its start had already.
fn input(pieces: String, start: &RawValue) -> String {
    if !pieces.trim().is_empty() {
        return pieces;
    }
    let input = Fields::of(start).raw("input");
    input.map_or_else(String::new, |input| input.get().to_owned())
}

pub(super) fn name(piece: &Piece<'_>) -> String {
    piece.bounded(NAME_CHARS)
}

/// Tells who answers.
pub(super) fn served(model: Option<&Piece<'_>>, out: &mut Deltas) {
    let model = model.filter(|model| !model.is_empty());
    out.extend(model.map(|model| LlmDelta::ServedModel(model.text().into_owned())));
}

fn call(ids: &CallIds, id: &str, name: String, args: ToolArgs) -> ToolCall {
    ToolCall {
        id: ids.issue(id),
        name,
        args,
        echo: None,
    }
}

fn opaque(echo: Result<Echo, serde_json::Error>) -> Option<Block> {
    echo.ok().map(Block::Opaque)
}

/// The provider's own block, with what its deltas brought.
fn with(start: Box<RawValue>, field: &str, value: Option<&RawValue>) -> Option<Block> {
    match value {
        Some(value) => opaque(Fields::of(&start).with(field, value)),
        None => opaque(Ok(Echo::new(start))),
    }
}

/// What the client is told of a tool that the provider runs itself.
fn searched(start: &RawValue, streamed: Option<&RawValue>) -> Option<LlmDelta> {
    let start = Fields::of(start);
    let piece = |name: &str| start.get::<Piece<'_>>(name);
    let tool = match &*piece("name")?.text() {
        "web_search" => "web_search",
        "web_fetch" => "web_fetch",
        _ => return None,
    };
    if !piece("type")?.is("server_tool_use") {
        return None;
    }
    let asked = Fields::of(streamed.or_else(|| start.raw("input"))?);
    let query: Piece<'_> = asked.get("query").or_else(|| asked.get("url"))?;
    let query = query.text().into_owned();
    Some(LlmDelta::ServerToolUse { tool, query })
}
