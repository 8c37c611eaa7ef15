//! The loop: ask, stream, run the tools, ask again, until there is an answer or a reason to stop.

use std::borrow::Cow;

use super::calls::{CallLimits, run_calls};
use super::conversation::{Asked, Conversation, Mark, Purpose};
use super::limits::{LastTurn, Limits};
use super::loops::{LoopGuard, Stuck};
use super::prompt;
use super::shown;
use super::types::{Answer, Halt, RunContext, Told};
use crate::apart::aside;
use crate::error::{ErrorCode, Problem, WarningCode};
use crate::events::{RunEvent, StopReason, WarningEvent};
use crate::llm::{LlmError, LlmStop};
use crate::spec::NanoUsd;

/// How often a paused response is sent back (rule of the provider's server tools).
const PAUSES: u32 = 5;
/// The same, in a row, of a response that holds nothing.
const EMPTY_PAUSES: u32 = 1;
/// How often an answer cut at the output limit is gone on with, and a cut call asked for again.
const CONTINUATIONS: u32 = 2;
/// How often the same request is sent again for a call that its provider could not read.
const MALFORMED: u32 = 2;
/// How often in a run the model is asked again for an answer that it left out.
const EMPTY_ANSWERS: u32 = 5;
/// How much is shown of a model's or a provider's own words.
const SHOWN_WORDS: usize = 300;

/// Runs the agent of `context` to its answer.
///
/// When the token fires it ends every open call, with an event that says so, asks nothing more, and gives [`Halt::Stopped`].
///
/// # Errors
/// Why there is no answer.
pub async fn run_agent(context: &RunContext) -> Result<Answer, Halt> {
    let agent = Agent {
        context,
        conversation: Conversation::new(context),
        limits: Limits::new(&context.spec, context.deadline),
        guard: LoopGuard::default(),
        told: Told::default(),
        empty: 0,
        price_warned: false,
        dearer_warned: false,
        out_of_funds: false,
        unpaid: None,
    };
    agent.run().await
}

struct Agent<'a> {
    context: &'a RunContext,
    conversation: Conversation<'a>,
    limits: Limits,
    guard: LoopGuard,
    told: Told,
    /// How often the model ended without an answer.
    empty: u32,
    price_warned: bool,
    dearer_warned: bool,
    /// A request within a turn could not be paid for: the next turn is the last.
    out_of_funds: bool,
    /// The failure after which a request could not be paid for again.
    unpaid: Option<LlmError>,
}

/// What a turn came to.
enum TurnEnd {
    /// Text, or nothing.
    Answer { text: String, cut: Option<Cut> },
    /// Calls, which stand at the end of the conversation, and so many that were too many for it.
    Calls { too_many: usize },
}

/// Why an answer is not whole.
#[derive(Debug)]
enum Cut {
    Output,
    Window,
    Pauses,
    Budget,
    /// The request for its rest failed.
    Failed(LlmError),
}

impl Cut {
    fn told(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Output => "the answer was cut at the model's output limit",
            Self::Window => "the answer was cut, since the model's context window is full",
            Self::Pauses => "the answer may be incomplete: its provider paused it again and again",
            Self::Budget => "the answer was cut, since the budget does not pay for its rest",
            Self::Failed(error) => {
                return Cow::Owned(format!(
                    "the answer was cut, since its rest failed: {error}"
                ));
            }
        })
    }
}

impl Agent<'_> {
    async fn run(mut self) -> Result<Answer, Halt> {
        self.warn_of_missing_tools().await?;
        let mut was_empty = false;
        let mut turn = 0;
        loop {
            turn += 1;
            match self.last_turn(turn) {
                Some(last) => self.conversation.clear_ahead(last).await?,
                None => self.conversation.make_room(turn).await?,
            }
            let last = self.announce_limits(turn).await?;
            let end = self.turn(turn, last.is_some()).await?;
            self.warn_of_prices().await?;
            match end {
                TurnEnd::Answer { text, cut } if !text.trim().is_empty() => {
                    if let Some(cut) = &cut {
                        self.context
                            .warn(WarningCode::AnswerTruncated, cut.told())
                            .await?;
                    }
                    let reason = match cut {
                        Some(Cut::Budget) => StopReason::MaxBudget,
                        Some(Cut::Output | Cut::Window | Cut::Pauses | Cut::Failed(_)) | None => {
                            last.map_or(StopReason::End, LastTurn::stop_reason)
                        }
                    };
                    let redactor = &self.context.redactor;
                    let (content, whole) = aside(text.len(), || {
                        shown::answer(redactor.clean(&text).into_owned())
                    });
                    if !whole {
                        let message = "the answer is too long for the result, where its middle is left out: all of it stands in the assistant events";
                        self.context
                            .warn(WarningCode::AnswerTruncated, message)
                            .await?;
                    }
                    return Ok(Answer {
                        content,
                        stop_reason: reason,
                        truncated: cut.is_some() || !whole,
                    });
                }
                TurnEnd::Answer {
                    cut: Some(Cut::Budget),
                    ..
                } if last.is_none() && self.conversation.can_pay_for(Purpose::LastTurn) => {
                    self.out_of_funds = true;
                }
                TurnEnd::Answer { cut, .. } => {
                    let unpaid = matches!(cut, Some(Cut::Budget));
                    let reason = unpaid.then_some(LastTurn::Budget);
                    if let Some(reason) = reason.or(last) {
                        return Err(self.no_answer(reason).into());
                    }
                    if was_empty {
                        return Err(Problem::new(
                            ErrorCode::LlmBadResponse,
                            "the model ended twice without an answer",
                        )
                        .hint("send the request again, or use another model")
                        .into());
                    }
                    self.empty += 1;
                    if self.empty > EMPTY_ANSWERS {
                        return Err(Problem::new(
                            ErrorCode::LlmBadResponse,
                            format!("the model ended {} times without an answer", self.empty),
                        )
                        .hint("send the request again, or use another model")
                        .into());
                    }
                    was_empty = true;
                    let message = "the model ended without an answer and is asked once more";
                    self.context.warn(WarningCode::EmptyAnswer, message).await?;
                    self.conversation.say(prompt::ANSWER_PLEASE).await?;
                }
                TurnEnd::Calls { too_many } => {
                    was_empty = false;
                    self.calls(turn, too_many).await?;
                }
            }
        }
    }

    /// Runs the calls of the turn and tells the model what came of them.
    async fn calls(&mut self, turn: u32, too_many: usize) -> Result<(), Halt> {
        let limits = CallLimits {
            wrap_up: self.limits.wrap_up(),
            chars: self.conversation.room_for_results(),
            too_many,
        };
        let calls = self.conversation.open_calls();
        let called = run_calls(
            self.context,
            &mut self.guard,
            &mut self.told,
            &calls,
            turn,
            limits,
        )
        .await?;
        if self.context.token.is_cancelled() {
            return Err(Halt::Stopped);
        }
        let mut notices: Vec<String> = called.notices;
        notices.extend(self.facts());
        notices.extend(self.limits.notice(turn, self.context.tally.spent()));
        let notice = (!notices.is_empty()).then(|| prompt::notice(&notices.join("\n")));
        self.conversation.results(called.results, notice);
        Ok(())
    }

    /// Warns of limits, and says so to the model when this turn is the last.
    async fn announce_limits(&mut self, turn: u32) -> Result<Option<LastTurn>, Halt> {
        let spent = self.context.tally.spent();
        if let Some(warning) = self.limits.warning(turn - 1, spent) {
            self.context.emit(RunEvent::Warning(warning)).await?;
        }
        // Any other turn is one that the budget pays for.
        let Some(reason) = self.last_turn(turn) else {
            return Ok(None);
        };
        if !self.conversation.can_pay_for(Purpose::LastTurn) {
            return Err(self.no_answer(LastTurn::Budget).into());
        }
        // A run of one turn has no tools from the start, which is no news to its client and its model.
        if turn > 1 || reason != LastTurn::Turns {
            let (code, message) = self.limits.last_turn_warning(reason);
            self.context.warn(code, message).await?;
            self.conversation.tell(prompt::last_turn(reason.told()));
        }
        Ok(Some(reason))
    }

    /// Why `turn` has to be the last one, if it has to.
    fn last_turn(&self, turn: u32) -> Option<LastTurn> {
        let broke = || self.out_of_funds || !self.conversation.can_pay_for(Purpose::Turn);
        self.guard
            .stuck()
            .map(LastTurn::Stuck)
            .or_else(|| self.limits.last_turn(turn))
            .or_else(|| broke().then_some(LastTurn::Budget))
    }

    /// One turn: a response that ended well, whatever it took to get one.
    ///
    /// The text of several responses is one answer only where each goes on where the one before stopped.
    async fn turn(&mut self, turn: u32, last: bool) -> Result<TurnEnd, Halt> {
        let first = if last {
            Purpose::LastTurn
        } else {
            Purpose::Turn
        };
        let mut purpose = first;
        let mut text = String::new();
        // Where the answer began, and whether clients saw something since.
        let (mut begin, mut shown) = (self.conversation.mark(), false);
        let (mut pauses, mut empty_pauses) = (0, 0);
        let (mut continuations, mut cut_calls, mut malformed) = (0, 0, 0);
        let mut cut_thinking = false;
        loop {
            let before = self.conversation.mark();
            let asked = match self.conversation.ask(purpose, turn).await {
                // What was shown and paid for is worth more than nothing.
                Err(Halt::Llm(error)) if !text.trim().is_empty() => {
                    let cut = Some(Cut::Failed(error));
                    return Ok(TurnEnd::Answer { text, cut });
                }
                asked => asked?,
            };
            let response = match asked {
                Asked::Response(response) => response,
                Asked::NoFunds(failure) => {
                    self.unpaid = failure;
                    if text.trim().is_empty() {
                        self.conversation.back_to(begin);
                    }
                    let cut = Some(Cut::Budget);
                    return Ok(TurnEnd::Answer { text, cut });
                }
                Asked::Full | Asked::NoRoom(_) if !text.trim().is_empty() => {
                    let cut = Some(Cut::Window);
                    return Ok(TurnEnd::Answer { text, cut });
                }
                no_room @ (Asked::Full | Asked::NoRoom(_)) => {
                    let end = if let Asked::NoRoom(failed) = no_room {
                        shown |= failed.shown;
                        Halt::Llm(failed.error)
                    } else {
                        full().into()
                    };
                    begin = self.restart(begin, shown, turn, end).await?;
                    shown = false;
                    text.clear();
                    purpose = first;
                    continue;
                }
            };
            shown |= response.shown;
            let has_calls = response.has_calls();
            // On the last turn no call would be run: there it is text that was cut.
            let call_cut = has_calls && !last;
            let nothing_said = response.says_nothing();
            match response.stop.clone() {
                LlmStop::Refusal {
                    category,
                    explanation,
                } => {
                    let words = [category, explanation]
                        .map(|words| words.map(|words| self.context.shown(&words, SHOWN_WORDS)));
                    return Err(refused(words).into());
                }
                LlmStop::Pause if !has_calls => {
                    text.extend(response.texts());
                    pauses += 1;
                    let nothing = response.blocks.is_empty();
                    empty_pauses = if nothing { empty_pauses + 1 } else { 0 };
                    if pauses > PAUSES || empty_pauses > EMPTY_PAUSES {
                        if text.trim().is_empty() {
                            return Err(paused(pauses).into());
                        }
                        let cut = Some(Cut::Pauses);
                        return Ok(TurnEnd::Answer { text, cut });
                    }
                    self.conversation.reply(response.blocks);
                    purpose = Purpose::GoOn { last };
                }
                LlmStop::MaxTokens if response.budget_cut && (call_cut || nothing_said) => {
                    if call_cut {
                        text.clear();
                    }
                    if text.trim().is_empty() {
                        self.conversation.back_to(begin);
                    }
                    let cut = Some(Cut::Budget);
                    return Ok(TurnEnd::Answer { text, cut });
                }
                LlmStop::MaxTokens if call_cut => {
                    // The last call's arguments may be incomplete: none of the response's calls is run, and
                    // what it announced is no answer.
                    cut_calls += 1;
                    if cut_calls > CONTINUATIONS {
                        return Err(call_cut_again().into());
                    }
                    self.conversation.allow_long_answers();
                    self.conversation.reply(response.without_calls());
                    self.conversation.say(prompt::CALL_CUT).await?;
                    text.clear();
                    (begin, shown) = (self.conversation.mark(), false);
                    purpose = first;
                }
                // On the last turn, where it would not be run either: another try would bring another.
                LlmStop::MaxTokens if nothing_said && has_calls => {
                    let cut = Some(Cut::Output);
                    return Ok(TurnEnd::Answer { text, cut });
                }
                LlmStop::MaxTokens if nothing_said && !cut_thinking => {
                    cut_thinking = true;
                    self.conversation.back_to(before);
                    self.conversation.allow_long_answers();
                    // Of a text that is gone on with nothing is void.
                    if response.shown && text.is_empty() && self.conversation.can_pay_for(purpose) {
                        let message =
                            "the model thought up to its output limit and is asked once more";
                        self.context
                            .warn(WarningCode::TurnRestarted, message)
                            .await?;
                    }
                }
                LlmStop::MaxTokens if nothing_said && text.is_empty() => {
                    return Err(Problem::new(
                        ErrorCode::ContextTooLong,
                        "the model's output limit was used up before it wrote an answer",
                    )
                    .hint("lower thinkingLevel, or use a model with a larger output limit")
                    .into());
                }
                LlmStop::MaxTokens => {
                    text.extend(response.texts());
                    continuations += 1;
                    if continuations > CONTINUATIONS || nothing_said {
                        let cut = if response.budget_cut {
                            Cut::Budget
                        } else {
                            Cut::Output
                        };
                        return Ok(TurnEnd::Answer {
                            text,
                            cut: Some(cut),
                        });
                    }
                    self.conversation.allow_long_answers();
                    self.conversation.reply(response.without_calls());
                    self.conversation.say(prompt::GO_ON).await?;
                    purpose = Purpose::GoOn { last };
                }
                LlmStop::ContextFull if !text.trim().is_empty() && !call_cut => {
                    text.extend(response.texts());
                    let cut = Some(Cut::Window);
                    return Ok(TurnEnd::Answer { text, cut });
                }
                LlmStop::ContextFull => {
                    begin = self.restart(begin, shown, turn, full().into()).await?;
                    shown = false;
                    text.clear();
                    purpose = first;
                }
                LlmStop::MalformedCall { attempt } => {
                    malformed += 1;
                    if malformed > MALFORMED {
                        let attempt = self.context.shown(&attempt, SHOWN_WORDS);
                        return Err(unreadable(&attempt).into());
                    }
                    self.conversation.back_to(before);
                    let message = "the model's call could not be read and is asked for again";
                    self.context
                        .warn(WarningCode::TurnRestarted, message)
                        .await?;
                }
                stop @ (LlmStop::End | LlmStop::ToolUse | LlmStop::Pause | LlmStop::Unknown(_)) => {
                    if let LlmStop::Unknown(reason) = &stop {
                        let reason = self.context.shown(reason, SHOWN_WORDS);
                        let message =
                            format!("the model stopped with the unknown reason {reason:?}");
                        let code = WarningCode::StopReasonUnknown;
                        if self.told.is_new(code, &reason) {
                            self.context.warn(code, message).await?;
                        }
                    }
                    // A call although tools are off is not run: the text, if any, is the answer.
                    if !has_calls || last {
                        text.extend(response.texts());
                        self.conversation.reply(response.without_calls());
                        return Ok(TurnEnd::Answer { text, cut: None });
                    }
                    let too_many = response.too_many;
                    self.conversation.reply(response.blocks);
                    return Ok(TurnEnd::Calls { too_many });
                }
            }
        }
    }

    /// Goes back to where an answer began that does not fit, and makes room for it: where it begins now, or
    /// `full` if nothing can be left out.
    async fn restart(
        &mut self,
        begin: Mark,
        shown: bool,
        turn: u32,
        full: Halt,
    ) -> Result<Mark, Halt> {
        self.conversation.back_to(begin);
        if !self.conversation.make_room_now(turn).await? {
            return Err(full);
        }
        if shown {
            let message =
                "the answer no longer fitted the model's context window and is asked for anew";
            self.context
                .warn(WarningCode::TurnRestarted, message)
                .await?;
        }
        Ok(self.conversation.mark())
    }

    /// What the sandbox turned out to have, once, with the first results.
    fn facts(&self) -> Option<String> {
        self.context.workspace.ready()?.session.take_notice()
    }

    /// The end of a run whose last turn gave no answer either.
    fn no_answer(&self, reason: LastTurn) -> Problem {
        let spec = &self.context.spec;
        match reason {
            LastTurn::Turns => Problem::new(
                ErrorCode::MaxTurns,
                format!("all {} turns were used without an answer", spec.max_turns),
            )
            .hint("send a larger maxTurns, or a smaller task"),
            LastTurn::Time => Problem::new(
                ErrorCode::DeadlineExceeded,
                format!(
                    "the timeout of {} s was nearly over and the model gave no answer",
                    spec.timeout.as_secs()
                ),
            )
            .hint("send a larger timeout (up to 3600), or a smaller task"),
            LastTurn::Budget => Problem::new(ErrorCode::BudgetExceeded, {
                let budget = spec.max_budget.unwrap_or(NanoUsd(0));
                let what = if self.context.tally.spent().0 >= budget.0 {
                    "was used without an answer"
                } else if self.conversation.can_pay_for(Purpose::LastTurn) {
                    "was nearly used without an answer"
                } else {
                    "does not pay for an answer to all that would have to be sent"
                };
                let failed = self.unpaid.as_ref().map_or_else(String::new, |error| {
                    format!("; the last request failed ({error})")
                });
                format!(
                    "the budget of {} USD {what}{failed}",
                    budget.to_usd()
                )
            })
            .hint("send a larger maxBudgetUsd, or a smaller task"),
            LastTurn::Stuck(stuck) => Problem::new(
                ErrorCode::LlmBadResponse,
                match stuck {
                    Stuck::Repeating => "the model went in circles and gave no answer",
                    Stuck::Refused => {
                        "the model's calls were refused or impossible again and again, and it gave no answer"
                    }
                },
            )
            .hint("rephrase the task, or use another model"),
        }
    }

    async fn warn_of_missing_tools(&self) -> Result<(), Halt> {
        for name in &self.context.spec.unavailable_tools {
            let warning = WarningEvent::new(
                WarningCode::ToolUnavailable,
                format!("the tool {name} of sandcaster.json is not available in this run"),
            )
            .fact("toolName", name.clone());
            self.context.emit(RunEvent::Warning(warning)).await?;
        }
        Ok(())
    }

    /// What the client should know of the cost, each once.
    async fn warn_of_prices(&mut self) -> Result<(), Halt> {
        let (tally, asked) = (&self.context.tally, &self.context.spec.model.id);
        if !self.price_warned && tally.price_unknown() {
            self.price_warned = true;
            let message = format!("no price is known for {asked}, so no costUsd is given");
            let code = WarningCode::PriceUnknown;
            self.context.warn(code, message).await?;
        }
        if !self.dearer_warned
            && let Some(served) = tally.dearer_model()
        {
            self.dearer_warned = true;
            let served = self.context.shown(&served, SHOWN_WORDS);
            let message = format!(
                "{served} answers in the place of {asked} and is dearer: costUsd and the budget go by its price"
            );
            let code = WarningCode::PriceDearer;
            self.context.warn(code, message).await?;
        }
        Ok(())
    }
}

fn full() -> Problem {
    Problem::new(
        ErrorCode::ContextTooLong,
        "the model's context window was full before its answer was complete",
    )
    .hint("send a smaller task or smaller files, or use a model with a larger window")
}

fn paused(times: u32) -> Problem {
    Problem::new(
        ErrorCode::LlmBadResponse,
        format!("the model's provider paused the answer {times} times without any of it"),
    )
    .hint("send the request again, or use another model")
}

fn call_cut_again() -> Problem {
    Problem::new(
        ErrorCode::LlmBadResponse,
        "the model's tool call was cut off at the output limit three times",
    )
    .hint("ask for smaller steps, or use a model with a larger output limit")
}

fn unreadable(attempt: &str) -> Problem {
    let mut message = "the model's tool call could not be read by its provider".to_owned();
    if !attempt.is_empty() {
        message.extend([": ", attempt]);
    }
    Problem::new(ErrorCode::LlmBadResponse, message)
        .hint("send the request again, or use another model")
}

fn refused([category, explanation]: [Option<String>; 2]) -> Problem {
    let mut message = String::from("the model refused to answer");
    if let Some(category) = category {
        message.extend([" (", &category, ")"]);
    }
    if let Some(explanation) = explanation {
        message.extend([": ", &explanation]);
    }
    Problem::new(ErrorCode::LlmRefused, message)
        .hint("rephrase the task; sending it again as it is will not help")
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod room_tests;
#[cfg(test)]
#[path = "scripted_tests.rs"]
mod scripted;
#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
