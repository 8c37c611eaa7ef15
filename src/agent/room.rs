//! Room in the context window: what is cleared, then summarised, before a request and when one was refused.

use super::context::{self, Cleared};
use super::prompt;
use super::run::{Agent, Halt};
use super::turn::{Ask, Audience, Response, respond};
use crate::chat::Message;
use crate::error::WarningCode;
use crate::events::{RunEvent, WarningEvent};
use crate::llm::{AnswerSize, LlmErrorKind, LlmStop, ToolChoice};

/// At most so many summaries in a run.
const MOST: u32 = 8;
/// At least so many turns between two of them.
const APART: u32 = 5;
/// Tokens of a summary.
const SUMMARY_TOKENS: u32 = 4096;

/// The summaries of a run so far.
#[derive(Debug, Default)]
pub(super) struct Compactions {
    count: u32,
    last_turn: u32,
}

impl Compactions {
    const fn allow(&self, turn: u32) -> bool {
        self.count < MOST && (self.count == 0 || turn >= self.last_turn + APART)
    }
}

impl Agent<'_> {
    /// Sends the conversation, after making room for it where it must.
    pub(super) async fn ask(&mut self, turn: u32, last: bool) -> Result<Response, Halt> {
        if self.window.over_trigger(&self.history) {
            self.clear(context::KEEP_RECENT).await?;
            if self.window.still_crowded(&self.history) && self.compactions.allow(turn) {
                self.compact(turn).await?;
            }
        }
        let mut made_room = false;
        loop {
            let ask = Ask {
                history: &self.history,
                call_ids: &self.call_ids,
                answer: if self.full_output {
                    AnswerSize::Full
                } else {
                    AnswerSize::Usual
                },
                tool_choice: if last {
                    ToolChoice::None
                } else {
                    ToolChoice::Auto
                },
            };
            let run = self.context;
            match respond(run, &mut self.retries, &ask, turn, Audience::Clients).await {
                Err(Halt::Llm(error))
                    if error.kind == LlmErrorKind::ContextTooLong && !made_room =>
                {
                    made_room = true;
                    if !self.clear(context::KEEP_LAST).await? {
                        return Err(Halt::Llm(error));
                    }
                }
                other => return other,
            }
        }
    }

    /// Clears old results; whether there were some.
    async fn clear(&mut self, keep: usize) -> Result<bool, Halt> {
        let Some(cleared) = context::clear(&mut self.history, keep) else {
            return Ok(false);
        };
        let Cleared {
            results,
            tokens_before,
            tokens_after,
        } = cleared;
        self.window.freed(tokens_before, tokens_after);
        let message =
            format!("{results} old tool results were cleared to fit the model's context window");
        self.tell(
            WarningCode::ContextCleared,
            message,
            tokens_before,
            tokens_after,
        )
        .await?;
        Ok(true)
    }

    /// Has the model summarise what went before, and goes on from the summary. When that fails, old results
    /// are cleared further instead.
    async fn compact(&mut self, turn: u32) -> Result<(), Halt> {
        self.compactions.count += 1;
        self.compactions.last_turn = turn;
        let run = self.context;
        self.history.push(Message::user(prompt::SUMMARISE));
        let ask = Ask {
            history: &self.history,
            call_ids: &self.call_ids,
            answer: AnswerSize::AtMost(SUMMARY_TOKENS),
            tool_choice: ToolChoice::None,
        };
        let answered = respond(run, &mut self.retries, &ask, turn, Audience::Agent).await;
        self.history.pop();
        let summary = match answered {
            Ok(response)
                if matches!(response.stop, Some(LlmStop::End))
                    && !response.text.trim().is_empty() =>
            {
                response.text
            }
            Ok(_) | Err(Halt::Llm(_)) => {
                self.clear(context::KEEP_LAST).await?;
                return Ok(());
            }
            Err(halt) => return Err(halt),
        };
        let Some(shorter) = context::compacted(&self.history, prompt::summary(&summary)) else {
            return Ok(());
        };
        let before = context::total(&self.history);
        self.history = shorter;
        let after = context::total(&self.history);
        self.window.freed(before, after);
        let message =
            "earlier turns were replaced by a summary to fit the model's context window".to_owned();
        self.tell(WarningCode::ContextCompacted, message, before, after)
            .await
    }

    async fn tell(
        &self,
        code: WarningCode,
        message: String,
        before: u64,
        after: u64,
    ) -> Result<(), Halt> {
        let warning = WarningEvent::new(code, message)
            .fact("tokensBefore", before)
            .fact("tokensAfter", after);
        self.context.emit(RunEvent::Warning(warning)).await
    }
}
