//! One response of the LLM: opened, and streamed into events.

use futures::StreamExt as _;
use tokio::time::Instant;

use super::calls::TOLD_CALLS;
use super::shown::provider_tool;
use super::types::{Halt, RunContext, Told};
use crate::apart::aside;
use crate::chat::{Block, CallIds, ToolCall};
use crate::encoding::json_pieces;
use crate::events::{Delta, RunEvent};
use crate::llm::{LlmDelta, LlmError, LlmErrorKind, LlmRequest, LlmStop, LlmStream, Usage};
use crate::secrets::{RedactingStream, Redactor};

/// A delta whose JSON is longer than this becomes several events (rule EV-1).
const LONGEST_DELTA: usize = 64 * 1024;
/// Of the calls that a provider runs itself for one response, so many become events; the others are counted.
const SHOWN_PROVIDER_CALLS: usize = 64;

/// A response that ended well.
#[derive(Debug)]
pub(super) struct Response {
    /// Its blocks, in the order received, for the next request; of its calls the first [`TOLD_CALLS`],
    pub(super) blocks: Vec<Block>,
    /// and so many more came.
    pub(super) too_many: usize,
    /// Why it ended.
    pub(super) stop: LlmStop,
    /// What it used.
    pub(super) usage: Usage,
    /// When it was asked for.
    pub(super) asked_at: Instant,
    /// Clients saw something of it.
    pub(super) shown: bool,
    /// It stopped at what the rest of the budget buys.
    pub(super) budget_cut: bool,
}

impl Response {
    /// Its text, block by block.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.blocks.iter().filter_map(|block| match block {
            Block::Text { text, .. } => Some(text.as_str()),
            Block::Call(_) | Block::Opaque(_) => None,
        })
    }

    /// Whether there is none, or blanks alone.
    pub(super) fn says_nothing(&self) -> bool {
        self.texts().all(|text| text.trim().is_empty())
    }

    /// Whether it asks for a call.
    pub(super) fn has_calls(&self) -> bool {
        calls(&self.blocks).next().is_some()
    }

    /// Without its calls, and without what stood behind its last text: what was cut off can't be sent back.
    pub(super) fn without_calls(self) -> Vec<Block> {
        let mut blocks = self.blocks;
        blocks.retain(|block| !matches!(block, Block::Call(_)));
        let text = blocks.iter().rposition(
            |block| matches!(block, Block::Text { text, .. } if !text.trim().is_empty()),
        );
        blocks.truncate(text.map_or(0, |at| at + 1));
        blocks
    }
}

/// The calls among `blocks`.
pub(super) fn calls(blocks: &[Block]) -> impl Iterator<Item = &ToolCall> {
    blocks.iter().filter_map(|block| match block {
        Block::Call(call) => Some(call),
        Block::Text { .. } | Block::Opaque(_) => None,
    })
}

/// How one attempt failed.
pub(super) struct Failed {
    pub(super) error: LlmError,
    /// Clients saw something of it: it may be sent again only if they are told that this is void.
    pub(super) shown: bool,
}

/// Who reads a response while it streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// The run's clients: its text becomes events.
    Clients,
    /// The agent alone.
    Agent,
}

/// What clients of a run join to texts: a secret is found in them also where it goes on in a later response.
#[derive(Debug)]
pub(super) struct Streams {
    text: RedactingStream,
    thinking: RedactingStream,
}

impl Streams {
    pub(super) fn new(redactor: &Redactor) -> Self {
        Self {
            text: redactor.live_stream(),
            thinking: redactor.live_stream(),
        }
    }
}

/// Where a response is shown.
pub(super) struct Stage<'a> {
    /// The turn that it belongs to.
    pub(super) turn: u32,
    pub(super) audience: Audience,
    pub(super) streams: &'a mut Streams,
    pub(super) warned: &'a mut Told,
    pub(super) call_ids: &'a CallIds,
    /// What was sent for it, as it is likely to be billed,
    pub(super) sent: Usage,
    /// and when.
    pub(super) asked_at: Instant,
}

/// Sends a request, once. The outer error ends the run; the inner one may be retried.
pub(super) async fn open(
    context: &RunContext,
    request: &LlmRequest<'_>,
    sent: Usage,
) -> Result<Result<LlmStream, Failed>, Halt> {
    if context.token.is_cancelled() {
        return Err(Halt::Stopped);
    }
    // From here on it may be billed, whatever comes of it: also if we are the ones that give it up.
    context.tally.in_flight(sent);
    tokio::select! {
        // Dropping the request is its cancellation; nothing of it was shown yet.
        biased;
        () = context.token.cancelled() => Err(Halt::Stopped),
        opened = context.provider.open(request) => {
            Ok(opened.map_err(|error| {
                if error.kind.may_be_billed() {
                    context.tally.in_flight(Usage::default());
                } else {
                    context.tally.refused();
                }
                Failed { error, shown: false }
            }))
        }
    }
}

/// Reads a response to its end. The outer error ends the run; the inner one may be retried.
pub(super) async fn read(
    context: &RunContext,
    mut deltas: LlmStream,
    stage: Stage<'_>,
) -> Result<Result<Response, Failed>, Halt> {
    let (mut blocks, mut calls) = (Vec::new(), 0_usize);
    let (mut usage, mut figures) = (Usage::default(), false);
    let (mut shown, mut provider_calls) = (false, 0_usize);
    let seen = stage.audience == Audience::Clients;
    let sources = context.tally.sources();
    let mut writer = DeltaWriter {
        context,
        turn: stage.turn,
        audience: stage.audience,
        streams: stage.streams,
        thinking: false,
    };
    let error = loop {
        let delta = tokio::select! {
            // Dropping the stream closes the connection, which stops the provider.
            biased;
            () = context.token.cancelled() => {
                writer.finish().await?;
                return Err(Halt::Stopped);
            }
            delta = deltas.next() => delta,
        };
        if let Some(Ok(delta)) = &delta
            && seen
            && is_of_the_answer(delta)
        {
            context.tally.turn_answered(stage.turn);
        }
        match delta {
            Some(Ok(LlmDelta::ServedModel(model))) => context.tally.served_by(&model),
            Some(Ok(LlmDelta::Usage(so_far))) => {
                (usage, figures) = (so_far, true);
                context.tally.in_flight(usage);
            }
            Some(Ok(LlmDelta::Text(piece))) => {
                shown |= seen && !piece.is_empty();
                writer.piece(&piece, false).await?;
            }
            Some(Ok(LlmDelta::Thinking(piece))) => {
                shown |= seen && !piece.is_empty();
                writer.piece(&piece, true).await?;
            }
            Some(Ok(LlmDelta::Block(block))) => {
                // Clients see nothing of it: calls are told once the response has ended.
                writer.finish().await?;
                if matches!(block, Block::Call(_)) {
                    calls += 1;
                }
                // What is not kept needs no result.
                if calls <= TOLD_CALLS || !matches!(block, Block::Call(_)) {
                    blocks.push(block);
                }
            }
            Some(Ok(LlmDelta::Citation(citation))) => {
                if seen {
                    context.tally.cited(citation);
                }
            }
            Some(Ok(LlmDelta::ServerToolUse { tool, query })) => {
                if seen {
                    shown = true;
                    writer.finish().await?;
                    context.tally.tool_called(tool);
                    provider_calls += 1;
                    if provider_calls <= SHOWN_PROVIDER_CALLS {
                        let id = stage.call_ids.issue("");
                        for event in provider_tool(tool, &query, &id, stage.turn) {
                            context.emit(event).await?;
                        }
                    }
                }
            }
            Some(Ok(LlmDelta::Warning { code, message })) => {
                let message = context.redactor.clean(&message).into_owned();
                if stage.warned.is_new(code, &message) {
                    context.warn(code, message).await?;
                }
            }
            Some(Ok(LlmDelta::Restarted)) if shown => {
                // What was shown can't be unseen, and a second attempt must not be mixed into it.
                break LlmError::new(
                    LlmErrorKind::Cut,
                    "the provider began its answer anew after part of it was shown",
                );
            }
            Some(Ok(LlmDelta::Restarted)) => {
                // Void, but paid for.
                context.tally.settle(false);
                (usage, figures) = (Usage::default(), false);
                context.tally.in_flight(stage.sent);
                context.tally.forget_sources(sources);
                blocks.clear();
                calls = 0;
            }
            Some(Ok(LlmDelta::Stop(stop))) => {
                writer.finish().await?;
                context.tally.settle(figures);
                // To its end, which the driver bounds, or its connection is not used again.
                drop(deltas.next().await);
                return Ok(Ok(Response {
                    blocks,
                    too_many: calls.saturating_sub(TOLD_CALLS),
                    stop,
                    usage,
                    asked_at: stage.asked_at,
                    shown,
                    budget_cut: false,
                }));
            }
            Some(Err(error)) => {
                // Its provider's driver tells first what it may have cost.
                if !figures {
                    context.tally.in_flight(usage);
                }
                break error;
            }
            None => {
                break LlmError::new(
                    LlmErrorKind::Cut,
                    "the provider's answer broke off before its end",
                );
            }
        }
    };
    writer.finish().await?;
    context.tally.forget_sources(sources);
    Ok(Err(Failed { error, shown }))
}

/// Whether `delta` is a part of the model's answer, and no remark about it.
const fn is_of_the_answer(delta: &LlmDelta) -> bool {
    match delta {
        LlmDelta::Text(_)
        | LlmDelta::Thinking(_)
        | LlmDelta::Block(_)
        | LlmDelta::ServerToolUse { .. }
        | LlmDelta::Stop(_) => true,
        LlmDelta::ServedModel(_)
        | LlmDelta::Citation(_)
        | LlmDelta::Warning { .. }
        | LlmDelta::Usage(_)
        | LlmDelta::Restarted => false,
    }
}

/// Turns pieces of text into events, without secrets.
struct DeltaWriter<'a> {
    context: &'a RunContext,
    turn: u32,
    audience: Audience,
    streams: &'a mut Streams,
    thinking: bool,
}

impl DeltaWriter<'_> {
    const fn stream(&mut self) -> &mut RedactingStream {
        if self.thinking {
            &mut self.streams.thinking
        } else {
            &mut self.streams.text
        }
    }

    async fn piece(&mut self, piece: &str, thinking: bool) -> Result<(), Halt> {
        if self.audience == Audience::Agent {
            return Ok(());
        }
        if self.thinking != thinking {
            self.finish().await?;
            self.thinking = thinking;
        }
        let stream = self.stream();
        let shown = aside(piece.len(), || stream.push(piece));
        self.emit(shown).await
    }

    /// Gives out what the redactor held back.
    async fn finish(&mut self) -> Result<(), Halt> {
        if self.audience == Audience::Agent {
            return Ok(());
        }
        let held = self.stream().finish();
        self.emit(held).await
    }

    async fn emit(&self, text: String) -> Result<(), Halt> {
        // Six bytes are the most that one byte of text becomes: the usual piece is not looked at again.
        if !text.is_empty() && text.len() <= LONGEST_DELTA / 6 {
            return self.context.emit(self.event(text)).await;
        }
        for piece in json_pieces(&text, LONGEST_DELTA) {
            self.context.emit(self.event(piece.to_owned())).await?;
        }
        Ok(())
    }

    fn event(&self, text: String) -> RunEvent {
        let delta = Delta::new(text, self.turn);
        if self.thinking {
            RunEvent::Thinking(delta)
        } else {
            RunEvent::Assistant(delta)
        }
    }
}
