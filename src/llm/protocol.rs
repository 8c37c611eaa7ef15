//! What a provider that speaks HTTP supplies: its requests, its decoder, its faults. Everything else (the
//! connection, the clock, the ends of streams) is shared.

use std::collections::VecDeque;

use reqwest::header::HeaderMap;

use super::def::ProviderConfig;
use super::estimate::{Size, of_part};
use super::json::Json;
use super::types::{LlmDelta, LlmError, LlmRequest};
use crate::chat::{Base64, CallIds, Message, Part, ToolResult};
use crate::error::WarningCode;
use crate::net::sse::SseEvent;

/// Deltas that wait to be passed on.
pub type Deltas = VecDeque<LlmDelta>;

/// A provider's protocol.
pub trait Protocol: Send + Sync + 'static {
    /// The provider's name, for messages.
    const NAME: &'static str;
    /// The header with its name for a request.
    const REQUEST_ID: &'static str;
    /// The most bytes that a request may have.
    const MOST_BYTES: usize;
    /// Reads its answers.
    type Decoder: Decoder;

    /// By its configuration.
    fn new(config: &ProviderConfig) -> Self;

    /// The request on the wire. Pure: the same bytes for the same request, since caches compare them.
    ///
    /// # Errors
    /// What would be refused for certain.
    fn request(&self, request: &LlmRequest<'_>) -> Result<Wire, LlmError>;

    /// A decoder for one answer, which takes the ids of its calls from `ids`.
    fn decoder(ids: &CallIds) -> Self::Decoder;

    /// What a refusal means: by status, headers and body. An error object in place of an answer has status
    /// 200. Neither secrets nor length are its matter.
    fn fault(status: u16, headers: &HeaderMap, body: &str) -> LlmError;
}

/// A request on the wire.
#[derive(Clone, Debug)]
pub struct Wire {
    /// Where.
    pub url: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The JSON.
    pub body: Json,
    /// What could not be followed to the letter.
    pub warnings: Vec<(WarningCode, String)>,
}

/// Reads one answer. Pure: no I/O, no clock. What it tells for people may be long: it is cut where secrets are known.
pub trait Decoder: Send + 'static {
    /// Takes one event; pushes nothing after [`LlmDelta::Stop`].
    ///
    /// # Errors
    /// What the event says, or that it is not the protocol's.
    fn on_event(&mut self, event: &SseEvent, out: &mut Deltas) -> Result<Heard, LlmError>;

    /// The stream is over, by its end or by a mark that says so. What was complete becomes a stop.
    ///
    /// # Errors
    /// `LLM_STREAM_CUT` when the answer was not complete.
    fn on_end(&mut self, out: &mut Deltas) -> Result<(), LlmError>;

    /// Takes a whole answer in one JSON document, as gateways send it. Gives the size of its content.
    ///
    /// # Errors
    /// That it is no answer.
    fn whole(&mut self, body: &str, out: &mut Deltas) -> Result<Size, LlmError>;

    /// About how many bytes are looked at to take `event`: its own, and those of a block that ends with it.
    fn work(&self, event: &SseEvent) -> usize;

    /// About how many bytes [`Decoder::on_end`] looks at.
    fn work_of_end(&self) -> usize;

    /// Whether the answer is there but for the mark of its end: [`Decoder::on_end`] would make a stop.
    fn is_complete(&self) -> bool;
}

/// What an event was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A sign of life: also what repeats itself, and pieces with nothing in them.
    Ping,
    /// A piece of the answer, and how much the model wrote for it.
    Content(Size),
}

/// All that users and tools say in `messages`.
fn parts(messages: &[Message]) -> impl Iterator<Item = &Part> {
    messages.iter().flat_map(|message| {
        let (said, results): (&[Part], &[ToolResult]) = match message {
            Message::User(parts) => (parts, &[]),
            Message::Assistant(_) => (&[], &[]),
            Message::ToolResults { results, .. } => (&[], results),
        };
        let results = results.iter().flat_map(|result| &result.content);
        said.iter().chain(results)
    })
}

/// The pictures and documents in `messages`, as they go onto the wire.
pub(super) fn media(messages: &[Message]) -> impl Iterator<Item = &Base64> {
    parts(messages).filter_map(|part| match part {
        Part::Text(_) => None,
        Part::Image(image) => Some(&image.base64),
        Part::Document(document) => Some(&document.base64),
    })
}

/// How many bytes those are,
pub(super) fn media_bytes(messages: &[Message]) -> usize {
    media(messages).map(|text| text.len()).sum()
}

/// and about how many tokens.
pub(super) fn media_tokens(messages: &[Message]) -> u64 {
    let media = parts(messages).filter(|part| !matches!(part, Part::Text(_)));
    media.map(of_part).sum()
}
