//! One response of the LLM: sent, retried while nothing was shown, streamed into events.

use std::time::Duration;

use futures::StreamExt as _;

use super::prompt;
use super::run::{Halt, RunContext};
use crate::chat::{Block, CallIds, Message, ToolCall, ToolSpec};
use crate::error::WarningCode;
use crate::events::{Delta, RunEvent, WarningEvent};
use crate::llm::{
    AnswerSize, LlmDelta, LlmError, LlmErrorKind, LlmRequest, LlmStop, ToolChoice, Usage,
};
use crate::net::retry::{MAX_RETRIES_PER_CALL, RetryBudget};
use crate::secrets::RedactingStream;
use crate::spec::RunSpec;
use crate::tools;

/// How long the end of a body is waited for after the end of its message.
const BODY_END: Duration = Duration::from_millis(20);
/// A delta longer than this becomes several events (rule EV-1).
const LONGEST_DELTA: usize = 64 * 1024;

/// A response that ended well.
#[derive(Debug, Default)]
pub(super) struct Response {
    /// Its blocks, in the order received, for the next request.
    pub(super) blocks: Vec<Block>,
    /// Its text.
    pub(super) text: String,
    /// Why it ended.
    pub(super) stop: Option<LlmStop>,
    /// What it used.
    pub(super) usage: Usage,
}

impl Response {
    /// The calls that it asks for.
    pub(super) fn calls(&self) -> impl Iterator<Item = &ToolCall> {
        self.blocks.iter().filter_map(|block| match block {
            Block::Call(call) => Some(call),
            Block::Text { .. } | Block::Opaque(_) => None,
        })
    }
}

/// What is asked.
pub(super) struct Ask<'a> {
    pub(super) history: &'a [Message],
    pub(super) call_ids: &'a CallIds,
    pub(super) answer: AnswerSize,
    pub(super) tool_choice: ToolChoice,
}

impl Ask<'_> {
    fn request<'r>(
        &'r self,
        context: &'r RunContext,
        system: &'r [String],
        tools: &'r [&'static ToolSpec],
    ) -> LlmRequest<'r> {
        let spec = &context.spec;
        LlmRequest {
            model: &spec.model.id,
            system,
            tools,
            server_tools: &[],
            tool_choice: self.tool_choice,
            messages: self.history,
            output_schema: None,
            answer: self.answer,
            affordable: None,
            thinking: spec.thinking,
            cache_key: "",
            call_ids: self.call_ids,
            deadline: context.deadline,
        }
    }
}

/// The run's tools, as the model sees them.
fn specs(spec: &RunSpec) -> Vec<&'static ToolSpec> {
    let built = spec
        .tools
        .iter()
        .filter_map(|name| tools::tool(name).and_then(|def| def.built.as_ref()));
    built.map(|built| &**built.spec).collect()
}

/// How one attempt failed.
struct Failed {
    error: LlmError,
    /// Something of it was shown or kept: it can't be sent again.
    shown: bool,
}

/// Who reads a response while it streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// The run's clients: its text becomes events.
    Clients,
    /// The agent alone.
    Agent,
}

/// Sends a request and streams its response, again while nothing of it was shown and a retry may help.
pub(super) async fn respond(
    context: &RunContext,
    budget: &mut RetryBudget,
    ask: &Ask<'_>,
    turn: u32,
    audience: Audience,
) -> Result<Response, Halt> {
    let mut attempt = 0;
    loop {
        let failed = match stream(context, ask, turn, audience).await? {
            Ok(response) => return Ok(response),
            Err(failed) => failed,
        };
        context.tally.settle(false);
        let error = failed.error;
        if failed.shown || !error.retryable() {
            return Err(Halt::Llm(error));
        }
        let remaining = context.deadline.remaining();
        let Ok(delay) = budget.take(attempt, error.backoff(), error.retry_after, remaining) else {
            return Err(Halt::Llm(error));
        };
        attempt += 1;
        context
            .emit(RunEvent::Warning(
                WarningEvent::new(
                    WarningCode::LlmRetry,
                    format!(
                        "{error}; trying again in {:.1} s ({attempt} of {MAX_RETRIES_PER_CALL})",
                        delay.as_secs_f64()
                    ),
                )
                .fact("cause", error.code().as_str())
                .fact("attempt", attempt)
                .fact("delaySecs", (delay.as_secs_f64() * 1000.0).round() / 1000.0),
            ))
            .await?;
        tokio::select! {
            biased;
            () = context.token.cancelled() => return Err(Halt::Stopped),
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// One attempt. The outer error ends the run; the inner one may be retried.
async fn stream(
    context: &RunContext,
    ask: &Ask<'_>,
    turn: u32,
    audience: Audience,
) -> Result<Result<Response, Failed>, Halt> {
    let opened = {
        // Made anew for each request, always the same, so that nothing of it has to be kept while its answer
        // streams: the system prompt is large.
        let system = prompt::system(&context.spec);
        let tools = specs(&context.spec);
        let request = ask.request(context, &system, &tools);
        tokio::select! {
            // Dropping the request is its cancellation; nothing of it was shown yet.
            biased;
            () = context.token.cancelled() => return Err(Halt::Stopped),
            opened = context.provider.open(&request) => opened,
        }
    };
    let mut deltas = match opened {
        Ok(deltas) => deltas,
        Err(error) => {
            return Ok(Err(Failed {
                error,
                shown: false,
            }));
        }
    };
    let mut response = Response::default();
    let mut shown = false;
    let mut writer = DeltaWriter::new(context, turn, audience);
    loop {
        let delta = tokio::select! {
            // Dropping the stream closes the connection, which stops the provider.
            biased;
            () = context.token.cancelled() => {
                writer.finish().await?;
                return Err(Halt::Stopped);
            }
            delta = deltas.next() => delta,
        };
        match delta {
            Some(Ok(LlmDelta::ServedModel(model))) => context.tally.served_by(&model),
            Some(Ok(LlmDelta::Usage(usage))) => {
                response.usage = usage;
                context.tally.in_flight(usage);
            }
            Some(Ok(LlmDelta::Text(text))) => {
                shown |= !text.is_empty();
                response.text.push_str(&text);
                writer.text(&text).await?;
            }
            Some(Ok(LlmDelta::Thinking(text))) => {
                shown |= !text.is_empty();
                writer.thinking(&text).await?;
            }
            Some(Ok(LlmDelta::Block(block))) => {
                shown = true;
                writer.finish().await?;
                response.blocks.push(block);
            }
            Some(Ok(LlmDelta::Citation(_) | LlmDelta::ServerToolUse { .. })) => {}
            Some(Ok(LlmDelta::Warning { code, message })) => {
                context
                    .emit(RunEvent::Warning(WarningEvent::new(code, message)))
                    .await?;
            }
            Some(Ok(LlmDelta::Restarted)) => {
                if shown {
                    // What was shown can't be unseen, and a second attempt must not be mixed into it.
                    let error = LlmError::new(
                        LlmErrorKind::Cut,
                        "the provider began its answer anew after part of it was shown",
                    );
                    return Ok(Err(Failed { error, shown }));
                }
                response = Response::default();
            }
            Some(Ok(LlmDelta::Stop(stop))) => {
                writer.finish().await?;
                // Read to the body's end, which is at hand, or the connection is not used again.
                let _ended = tokio::time::timeout(BODY_END, deltas.next()).await;
                context.tally.in_flight(response.usage);
                context.tally.settle(true);
                response.stop = Some(stop);
                return Ok(Ok(response));
            }
            Some(Err(error)) => {
                writer.finish().await?;
                return Ok(Err(Failed { error, shown }));
            }
            None => {
                writer.finish().await?;
                let error = LlmError::new(
                    LlmErrorKind::Cut,
                    "the provider's answer broke off before its end",
                );
                return Ok(Err(Failed { error, shown }));
            }
        }
    }
}

/// Turns pieces of text into events, without secrets.
struct DeltaWriter<'a> {
    context: &'a RunContext,
    turn: u32,
    redact: RedactingStream,
    thinking: bool,
    audience: Audience,
}

impl<'a> DeltaWriter<'a> {
    fn new(context: &'a RunContext, turn: u32, audience: Audience) -> Self {
        Self {
            context,
            turn,
            redact: context.redactor.stream(),
            thinking: false,
            audience,
        }
    }

    async fn text(&mut self, piece: &str) -> Result<(), Halt> {
        self.switch(false).await?;
        let shown = self.redact.push(piece);
        self.emit(shown).await
    }

    async fn thinking(&mut self, piece: &str) -> Result<(), Halt> {
        self.switch(true).await?;
        let shown = self.redact.push(piece);
        self.emit(shown).await
    }

    /// Gives out what the redactor held back.
    async fn finish(&mut self) -> Result<(), Halt> {
        let held = self.redact.finish();
        self.emit(held).await
    }

    async fn switch(&mut self, thinking: bool) -> Result<(), Halt> {
        if self.thinking != thinking {
            self.finish().await?;
            self.thinking = thinking;
        }
        Ok(())
    }

    async fn emit(&self, text: String) -> Result<(), Halt> {
        if text.is_empty() || self.audience == Audience::Agent {
            return Ok(());
        }
        if text.len() <= LONGEST_DELTA {
            return self.context.emit(self.event(text)).await;
        }
        for piece in pieces(&text, LONGEST_DELTA) {
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

/// `text` in pieces of at most `most` bytes, cut between characters; nothing for the empty text.
fn pieces(text: &str, most: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let at = (0..=most.min(rest.len()))
            .rev()
            .find(|at| rest.is_char_boundary(*at))?;
        let (piece, after) = rest.split_at(at);
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(pieces("", 4).count(), 0);
        assert_eq!(pieces("aéé", 4).collect::<Vec<_>>(), ["aé", "é"]);
        assert_eq!(pieces("abcdefgh", 4).collect::<String>(), "abcdefgh");
    }
}
