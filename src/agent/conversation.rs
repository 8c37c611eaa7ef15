//! The conversation with the LLM: its history, the room that it takes, and the one gate that every request
//! passes.
//!
//! [`Conversation::ask`] and the summaries of [`Conversation::make_room`] go through one function, which asks
//! the budget before each request, retries included, and bounds the answer by what is left of it. So a run
//! costs at most its budget and one request.

use std::time::Duration;

use tokio::time::Instant;

use super::context::{Change, History, Need, Window};
use super::limits::{LastTurn, reserve};
use super::prompt;
use super::turn::{Audience, Failed, Response, Stage, Streams, calls, open, read};
use super::types::{Halt, RunContext, Told};
use crate::chat::{Block, CallIds, Message, Reply, ToolCall, ToolResult, ToolSpec};
use crate::clock::Deadline;
use crate::error::WarningCode;
use crate::events::{RunEvent, UserEvent, WarningEvent};
use crate::llm::estimate::of_text;
use crate::llm::{AnswerSize, LlmError, LlmErrorKind, LlmRequest, LlmStop, ToolChoice, Usage};
use crate::net::retry::{MAX_RETRIES_PER_CALL, RetryBudget};
use crate::spec::{NanoUsd, RunSpec, ThinkingLevel};
use crate::tools;

/// Fewer output tokens than this are not worth a request; and so many are granted to a last one that the
/// budget can't quite pay for.
const LEAST_OUTPUT: u32 = 2000;
/// At most so many summaries in a run, each of which is paid for,
const MOST_SUMMARIES: u32 = 8;
/// and so many that came to nothing.
const MOST_FAILED: u32 = 2;
/// A longer summary, in tokens, is none: what is asked for has a third of it.
const LONGEST_SUMMARY: u64 = 8000;
/// At least so many turns between two of them, unless nothing fits any more.
const TURNS_APART: u32 = 5;
/// Tokens of a summary and of the thinking before it; how long the summary itself gets, its prompt says.
const SUMMARY_TOKENS: u32 = 16_000;
/// With less time than this before the last turn none is asked for.
const SUMMARY_TIME: Duration = Duration::from_secs(20);
/// A conversation that doesn't even fit for a summary is halved at most so often.
const MOST_HALVINGS: u32 = 4;
/// What results are cleared to fit.
const FOR_WINDOW: &str = "the model's context window";
const FOR_BUDGET: &str = "the rest of the budget";

/// The conversation of a run.
pub(super) struct Conversation<'a> {
    context: &'a RunContext,
    history: History,
    call_ids: CallIds,
    /// How many blocks the last response had.
    came: usize,
    retries: RetryBudget,
    answer: AnswerSize,
    /// How much the model is told to think: not at all from when the budget has no room for it.
    thinking: ThinkingLevel,
    summaries: Summaries,
    streams: Streams,
    warned: Told,
}

/// A place in the conversation, to go back to with [`Conversation::back_to`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    messages: usize,
    sources: usize,
}

/// The summaries that were asked for.
#[derive(Debug, Default)]
struct Summaries {
    asked: u32,
    failed: u32,
    /// The turn of the last one.
    turn: u32,
    /// The tokens that the conversation had after one had failed: what fails once fails again.
    failed_at: u64,
}

impl Summaries {
    /// Whether one may be asked for of a conversation of `tokens`: if the last one failed, not of the same.
    const fn may_ask(&self, tokens: u64) -> bool {
        let grown = tokens >= self.failed_at + self.failed_at / 4;
        self.asked < MOST_SUMMARIES && self.failed < MOST_FAILED && (self.failed == 0 || grown)
    }

    /// Whether the last one is so long ago that the next does not follow on its heels.
    const fn far_apart(&self, turn: u32) -> bool {
        self.asked == 0 || turn >= self.turn + TURNS_APART
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A turn.
    Turn,
    /// The last turn, without tools.
    LastTurn,
    /// An answer goes on where it stopped; without tools, if the turn is the last.
    GoOn { last: bool },
    /// A summary, for the agent alone, after which the conversation is likely to have so many tokens.
    Summary { after: u64 },
}

impl Purpose {
    /// Tools are off, which voids what the provider has cached of the messages.
    const fn without_tools(self) -> bool {
        matches!(self, Self::LastTurn | Self::GoOn { last: true })
    }
}

/// What asking came to.
pub(super) enum Asked {
    /// A response that ended well.
    Response(Response),
    /// Nothing was sent, or not again after this failure: the budget does not allow it.
    NoFunds(Option<LlmError>),
    /// The conversation is too long for the model.
    NoRoom(Failed),
    /// Nothing was sent: the window has no room for the rest of an answer.
    Full,
}

/// What the rest of the budget buys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Funds {
    /// There is no budget, or no price.
    Unbounded,
    /// So many output tokens, besides the input.
    Output(u32),
    /// Not even the input, which the whole budget would have paid for.
    Late,
    /// Nothing: the budget is used, or the input alone costs more than all of it.
    Nothing,
}

/// The budget does not allow a request.
struct NoFunds;

impl<'a> Conversation<'a> {
    pub(super) fn new(context: &'a RunContext) -> Self {
        let spec = &context.spec;
        let first = prompt::first_message(spec, context.working_dir, &context.today);
        let facts = context.provider.model(&spec.model.id);
        let window = Window::new(&facts, &prompt::system(spec), &specs(spec));
        Self {
            context,
            history: History::new(Message::user(first), window),
            call_ids: CallIds::default(),
            came: 0,
            retries: RetryBudget::new(spec.timeout),
            answer: AnswerSize::Usual,
            thinking: spec.thinking,
            summaries: Summaries::default(),
            streams: Streams::new(&context.redactor),
            warned: Told::default(),
        }
    }

    /// Where it ends now.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            messages: self.history.messages().len(),
            sources: self.context.tally.sources(),
        }
    }

    /// Takes back what was said since `mark`.
    pub(super) fn back_to(&mut self, mark: Mark) {
        self.history.truncate(mark.messages);
        self.context.tally.forget_sources(mark.sources);
    }

    /// Appends what is kept of what the model said, if anything.
    pub(super) fn reply(&mut self, blocks: Vec<Block>) {
        if blocks.is_empty() {
            return;
        }
        let whole = blocks.len() == self.came;
        let provider = self.context.spec.model.provider;
        let reply = Message::Assistant(Reply { provider, blocks });
        if whole {
            self.history.push_counted(reply);
        } else {
            self.history.push(reply);
        }
    }

    /// The calls of the reply at the end.
    pub(super) fn open_calls(&self) -> Vec<&ToolCall> {
        match self.history.messages().last() {
            Some(Message::Assistant(reply)) => calls(&reply.blocks).collect(),
            Some(Message::User(_) | Message::ToolResults { .. }) | None => Vec::new(),
        }
    }

    /// How many characters the results of those calls may have in all.
    pub(super) fn room_for_results(&self) -> usize {
        self.history.room_for_results()
    }

    /// Appends the results of those calls.
    pub(super) fn results(&mut self, results: Vec<ToolResult>, notice: Option<String>) {
        self.history.push(Message::ToolResults { results, notice });
    }

    /// Says something to the model in the user's place; clients see it as a `user` event.
    pub(super) async fn say(&mut self, text: &str) -> Result<(), Halt> {
        self.history.push(Message::user(text));
        let content = text.to_owned();
        self.context
            .emit(RunEvent::User(UserEvent { content }))
            .await
    }

    /// Says something to the model that clients are told in other words.
    pub(super) fn tell(&mut self, text: String) {
        if !self.history.add_notice(&text) {
            self.history.push(Message::user(text));
        }
    }

    /// From now on answers may be as long as the model can make them.
    pub(super) const fn allow_long_answers(&mut self) {
        self.answer = AnswerSize::Full;
    }

    /// Whether the budget allows a request for `purpose`.
    pub(super) fn can_pay_for(&self, purpose: Purpose) -> bool {
        self.affordable(purpose).is_ok()
    }

    /// Sends the conversation and streams the response to the client.
    pub(super) async fn ask(&mut self, purpose: Purpose, turn: u32) -> Result<Asked, Halt> {
        if matches!(purpose, Purpose::GoOn { .. }) && self.history.room_for_answer() < LEAST_OUTPUT
        {
            return Ok(Asked::Full);
        }
        let thinks = self.window_lets_think();
        let asked = self.send(purpose, turn, Audience::Clients).await?;
        if let Asked::Response(response) = &asked {
            self.came = response.blocks.len();
            // Without figures the texts are all that is known of its size.
            if response.usage.context() > 0 {
                self.history.saw(&response.usage, response.asked_at);
            }
            if !thinks {
                self.history.cache_is_void();
            }
        }
        Ok(asked)
    }

    /// Sends the conversation; again without its images and documents, if they are refused.
    async fn send(
        &mut self,
        purpose: Purpose,
        turn: u32,
        audience: Audience,
    ) -> Result<Asked, Halt> {
        loop {
            let failed = match self.attempts(purpose, turn, audience).await? {
                Ok(asked) => return Ok(asked),
                Err(failed) => failed,
            };
            match failed.error.kind {
                LlmErrorKind::ContextTooLong => return Ok(Asked::NoRoom(failed)),
                // The newest images go first, then all: it ends.
                LlmErrorKind::ContentRefused => {
                    let left_out = self.history.leave_out_media();
                    if left_out == 0 {
                        // Nothing is left that could be refused but the size.
                        return Ok(Asked::NoRoom(failed));
                    }
                    let message = format!(
                        "{}; asked again with {left_out} images or documents left out",
                        failed.error
                    );
                    let code = WarningCode::ContentRefused;
                    self.context.warn(code, message).await?;
                    if failed.shown {
                        let message =
                            "a part of the answer was shown and is void: it is asked for anew";
                        let code = WarningCode::TurnRestarted;
                        self.context.warn(code, message).await?;
                    }
                }
                _ => return Err(Halt::Llm(failed.error)),
            }
        }
    }

    /// The gate: every request of the run is sent here, again while nothing of its answer was shown and a
    /// retry may help, and only while the budget allows it.
    async fn attempts(
        &mut self,
        purpose: Purpose,
        turn: u32,
        audience: Audience,
    ) -> Result<Result<Asked, Failed>, Halt> {
        let context = self.context;
        let mut attempt = 0;
        loop {
            self.think_if_affordable(purpose).await?;
            let Ok(affordable) = self.affordable(purpose) else {
                return Ok(Ok(Asked::NoFunds(None)));
            };
            let sent = Usage {
                estimated: true,
                ..self.input(purpose)
            };
            // The window bounds the answer too.
            let room = self.history.room_for_answer().max(LEAST_OUTPUT);
            let asked_at = Instant::now();
            let opened = {
                // Made anew for each request, always the same, so that nothing of it has to be kept while
                // its answer streams: the system prompt is large.
                let system = prompt::system(&context.spec);
                let tools = specs(&context.spec);
                let most = self.room(affordable);
                let request = self.request(purpose, most, &system, &tools);
                open(context, &request, sent).await?
            };
            let stage = Stage {
                turn,
                audience,
                streams: &mut self.streams,
                warned: &mut self.warned,
                call_ids: &self.call_ids,
                sent,
                asked_at,
            };
            let mut failed = match opened {
                Ok(deltas) => match read(context, deltas, stage).await? {
                    Ok(mut response) => {
                        tell_bound(&mut response, affordable, room);
                        return Ok(Ok(Asked::Response(response)));
                    }
                    Err(failed) => failed,
                },
                Err(failed) => failed,
            };
            context.tally.settle(false);
            if failed.shown || !failed.error.retryable() {
                return Ok(Err(failed));
            }
            // Nothing is announced that the budget then forbids.
            if self.affordable(purpose).is_err() {
                return Ok(Ok(Asked::NoFunds(Some(failed.error))));
            }
            let error = &mut failed.error;
            let left = self.deadline(purpose).remaining();
            let taken = self
                .retries
                .take(attempt, error.backoff(), error.retry_after, left);
            let delay = match taken {
                Ok(delay) => delay,
                Err(why) => {
                    error.message = format!("{error}; not sent again: {why}");
                    return Ok(Err(failed));
                }
            };
            attempt += 1;
            let seconds = delay.as_secs_f64();
            let message = format!(
                "{error}; trying again in {seconds:.1} s ({attempt} of {MAX_RETRIES_PER_CALL})"
            );
            let warning = WarningEvent::new(WarningCode::LlmRetry, message)
                .fact("cause", error.code().as_str())
                .fact("attempt", attempt)
                .fact("delaySecs", (seconds * 1000.0).round() / 1000.0);
            context.emit(RunEvent::Warning(warning)).await?;
            tokio::select! {
                biased;
                () = context.token.cancelled() => return Err(Halt::Stopped),
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// When an answer for `purpose` must be complete: a summary leaves time for a last turn.
    fn deadline(&self, purpose: Purpose) -> Deadline {
        let deadline = self.context.deadline;
        match purpose {
            Purpose::Summary { .. } => deadline.minus(reserve(self.context.spec.timeout)),
            Purpose::Turn | Purpose::LastTurn | Purpose::GoOn { .. } => deadline,
        }
    }

    fn request<'r>(
        &'r self,
        purpose: Purpose,
        most: u32,
        system: &'r [String],
        tools: &'r [&'static ToolSpec],
    ) -> LlmRequest<'r> {
        let spec = &self.context.spec;
        LlmRequest {
            model: &spec.model.id,
            system,
            tools,
            server_tools: &[],
            tool_choice: match purpose {
                _ if purpose.without_tools() => ToolChoice::None,
                // Forbidding calls would cost a summary the provider's cache of all that it reads.
                _ => ToolChoice::Auto,
            },
            messages: self.history.messages(),
            output_schema: None,
            answer: if matches!(purpose, Purpose::Summary { .. }) {
                AnswerSize::AtMost(SUMMARY_TOKENS)
            } else {
                self.answer
            },
            affordable: Some(most),
            thinking: self.thinking,
            cache_key: self.context.id.as_str(),
            call_ids: &self.call_ids,
            deadline: self.deadline(purpose),
        }
    }

    /// How many output tokens there is room for: the window bounds the answer too.
    fn room(&self, affordable: Option<u32>) -> u32 {
        let window = self.history.room_for_answer().max(LEAST_OUTPUT);
        affordable.unwrap_or(u32::MAX).min(window)
    }

    /// The least tokens of an answer with which the model thinks as it is told. `None` where it does with any.
    fn least_with_thinking(&self) -> Option<u32> {
        let model = self.context.provider.model(&self.context.spec.model.id);
        model.least_with_thinking(self.thinking)
    }

    /// Whether the window has so much room now. Without it a request is sent that doesn't think, and of which the
    /// provider has nothing cached.
    fn window_lets_think(&self) -> bool {
        let least = self.least_with_thinking();
        least.is_none_or(|least| self.room(None) >= least)
    }

    /// Has the model think no more, if the rest of the budget has no room for it: once, for the same reason. In a
    /// window room may be made.
    async fn think_if_affordable(&mut self, purpose: Purpose) -> Result<(), Halt> {
        let affordable = self.affordable(purpose).ok().flatten();
        let Some((least, affordable)) = self.least_with_thinking().zip(affordable) else {
            return Ok(());
        };
        if affordable >= least {
            return Ok(());
        }
        self.thinking = ThinkingLevel::Unset;
        self.history.cache_is_void();
        let message = "the rest of the budget has no room for thinking: there is none from here on";
        self.context
            .warn(WarningCode::ThinkingAdjusted, message)
            .await
    }

    /// How many output tokens a request for `purpose` may have, if it may be sent at all.
    fn affordable(&self, purpose: Purpose) -> Result<Option<u32>, NoFunds> {
        match self.funds(purpose) {
            Funds::Unbounded => Ok(None),
            Funds::Output(tokens) if tokens >= self.least_output(purpose) => Ok(Some(tokens)),
            // The one request that may pass the budget: without it all that was done would be lost. It costs at
            // most as much again, and its output.
            Funds::Output(_) | Funds::Late if purpose == Purpose::LastTurn => {
                Ok(Some(LEAST_OUTPUT))
            }
            Funds::Output(_) | Funds::Late | Funds::Nothing => Err(NoFunds),
        }
    }

    /// The least output for which a request for `purpose` is worth it. A summary without thinking would be none of what
    /// the provider has cached.
    fn least_output(&self, purpose: Purpose) -> u32 {
        match purpose {
            Purpose::Summary { .. } => self
                .least_with_thinking()
                .map_or(LEAST_OUTPUT, |least| least.max(LEAST_OUTPUT)),
            Purpose::Turn | Purpose::LastTurn | Purpose::GoOn { .. } => LEAST_OUTPUT,
        }
    }

    fn funds(&self, purpose: Purpose) -> Funds {
        let spec = &self.context.spec;
        let Some(NanoUsd(budget)) = spec.max_budget else {
            return Funds::Unbounded;
        };
        let NanoUsd(spent) = self.context.tally.spent();
        let Some(rest) = budget.checked_sub(spent).filter(|rest| *rest > 0) else {
            return Funds::Nothing;
        };
        // Without a last turn after it, a summary would be paid for in vain.
        let held_back = match purpose {
            Purpose::Summary { after } => self.context.tally.price(&Usage {
                output: LEAST_OUTPUT.into(),
                ..self.history.uncached(after)
            }),
            Purpose::Turn | Purpose::LastTurn | Purpose::GoOn { .. } => None,
        };
        let rest = rest.saturating_sub(held_back.unwrap_or_default().0);
        let input = self.input(purpose);
        let tally = &self.context.tally;
        let Some(output) = tally.affordable_output(&input, NanoUsd(rest)) else {
            return Funds::Unbounded;
        };
        if output > 0 {
            Funds::Output(output)
        } else if tally.affordable_output(&input, NanoUsd(budget)) > Some(0) {
            Funds::Late
        } else {
            Funds::Nothing
        }
    }

    /// The input of a request for `purpose`, as it is likely to be billed.
    fn input(&self, purpose: Purpose) -> Usage {
        if purpose.without_tools() || !self.window_lets_think() {
            self.history.uncached(self.history.estimate())
        } else {
            self.history.next_input()
        }
    }

    /// Clears old results ahead of the last turn, without paying for it: if the window is nearly full, and if money is
    /// short, since they would be paid for once more.
    pub(super) async fn clear_ahead(&mut self, last: LastTurn) -> Result<(), Halt> {
        let paid_for = match self.funds(Purpose::LastTurn) {
            Funds::Unbounded => true,
            Funds::Output(tokens) => tokens >= LEAST_OUTPUT,
            Funds::Late | Funds::Nothing => false,
        };
        if last == LastTurn::Budget || !paid_for {
            self.clear(Need::Now, "", FOR_BUDGET).await?;
        } else if self.history.over_trigger() {
            self.clear(Need::Ahead, "", FOR_WINDOW).await?;
        }
        Ok(())
    }

    /// Makes room ahead of a turn, if the window is nearly full: old results are cleared and, if that is not
    /// enough, the model summarises what went before.
    pub(super) async fn make_room(&mut self, turn: u32) -> Result<(), Halt> {
        if !self.history.over_trigger() {
            return Ok(());
        }
        self.clear(Need::Ahead, "", FOR_WINDOW).await?;
        if !self.window_lets_think() {
            self.clear(Need::Now, "", FOR_WINDOW).await?;
        }
        let due = self.summaries.far_apart(turn) || !self.window_lets_think();
        let may = due && self.summaries.may_ask(self.history.estimate());
        if may && self.history.still_crowded() {
            self.summarise(Need::Ahead, turn).await?;
        }
        Ok(())
    }

    /// Makes room for a conversation that does not fit; whether there was something to leave out.
    pub(super) async fn make_room_now(&mut self, turn: u32) -> Result<bool, Halt> {
        Ok(self.clear(Need::Now, "", FOR_WINDOW).await? || self.summarise(Need::Now, turn).await?)
    }

    /// Clears old results; whether there were some.
    async fn clear(&mut self, need: Need, why: &str, for_what: &str) -> Result<bool, Halt> {
        let Some(change) = self.history.clear(need) else {
            return Ok(false);
        };
        let message = format!(
            "{why}{} old tool results were cleared to fit {for_what}",
            change.results
        );
        self.warn_of(WarningCode::ContextCleared, message, change)
            .await?;
        Ok(true)
    }

    /// Has the model summarise what went before, and goes on from the summary; whether anything was left out.
    /// What would go is known before anything is paid for. Without a summary old results are cleared further
    /// or, if nothing fits any more, old turns left out.
    async fn summarise(&mut self, need: Need, turn: u32) -> Result<bool, Halt> {
        let Some(mut count) = self.history.summarisable(need) else {
            return Ok(false);
        };
        let after = self.history.estimate_without(count);
        let time = self.deadline(Purpose::Summary { after }).remaining();
        let summary = if !self.summaries.may_ask(self.history.estimate()) {
            Err("no further summary is worth its price")
        } else if time < SUMMARY_TIME {
            Err("there is no time for a summary")
        } else {
            self.summaries.asked += 1;
            self.summaries.turn = turn;
            self.summary(&mut count, need, turn).await?
        };
        let failed = match summary {
            Ok(summary) => {
                let change = self.history.summarise(count, summary);
                self.warn_of_summary("a summary", change).await?;
                return Ok(true);
            }
            Err(failed) => failed,
        };
        let left_out = need == Need::Now;
        if left_out {
            let change = self.history.summarise(count, prompt::LEFT_OUT.to_owned());
            let by = format!("a note, since {failed}");
            self.warn_of_summary(&by, change).await?;
        } else if !self
            .clear(Need::Now, &format!("{failed}: "), FOR_WINDOW)
            .await?
        {
            let message = format!("{failed}, and there was nothing else to leave out");
            self.context
                .warn(WarningCode::SummaryFailed, message)
                .await?;
        }
        self.summaries.failed_at = self.history.estimate();
        Ok(left_out)
    }

    /// A summary of the `count` messages after the first, or why there is none. While they don't even fit to be
    /// summarised, their older half is left out, and `count` is what is left.
    async fn summary(
        &mut self,
        count: &mut usize,
        need: Need,
        turn: u32,
    ) -> Result<Result<String, &'static str>, Halt> {
        let mut halvings = 0;
        loop {
            let mark = self.mark();
            let after = self.history.estimate_without(*count);
            self.history.push(Message::user(prompt::SUMMARISE));
            let purpose = Purpose::Summary { after };
            let asked = self.send(purpose, turn, Audience::Agent).await;
            self.back_to(mark);
            let paid = matches!(asked, Ok(Asked::Response(_)));
            let (why, too_long) = match asked {
                Ok(Asked::Response(response)) => {
                    let full = response.stop == LlmStop::ContextFull;
                    match usable(&response, self.history.tokens_of(*count)) {
                        Ok(summary) => return Ok(Ok(summary)),
                        Err(why) => (why, full),
                    }
                }
                Ok(Asked::NoRoom(_)) => ("a summary failed", true),
                Ok(Asked::NoFunds(_)) => ("the budget does not allow a summary", false),
                Ok(Asked::Full) | Err(Halt::Llm(_)) => ("a summary failed", false),
                Err(halt) => return Err(halt),
            };
            self.summaries.failed += u32::from(paid);
            // What was refused for its size is refused again: its older half goes unread.
            let again = too_long && need == Need::Now && halvings < MOST_HALVINGS;
            let again = again && self.summaries.failed < MOST_FAILED;
            let half = self.history.older_half(*count);
            let Some(half) = half.filter(|_| again) else {
                self.summaries.failed += u32::from(!paid);
                return Ok(Err(why));
            };
            halvings += 1;
            let change = self.history.summarise(half, prompt::LEFT_OUT.to_owned());
            *count -= half - 1;
            self.warn_of_summary("a note, since they don't fit even to be summarised", change)
                .await?;
        }
    }

    async fn warn_of_summary(&self, by: &str, change: Change) -> Result<(), Halt> {
        let message =
            format!("earlier turns were replaced by {by} to fit the model's context window");
        self.warn_of(WarningCode::ContextCompacted, message, change)
            .await
    }

    async fn warn_of(
        &self,
        code: WarningCode,
        message: String,
        change: Change,
    ) -> Result<(), Halt> {
        let warning = WarningEvent::new(code, message)
            .fact("tokensBefore", change.tokens_before)
            .fact("tokensAfter", change.tokens_after);
        self.context.emit(RunEvent::Warning(warning)).await
    }
}

/// Tells what stopped `response` where that was not the model's own limit. All of the window's `room` used without
/// an answer is a full window; a text that was cut is gone on with as far as it goes.
fn tell_bound(response: &mut Response, affordable: Option<u32>, room: u32) {
    let reached = |bound: u32| response.usage.output >= u64::from(bound - bound / 50);
    if response.stop != LlmStop::MaxTokens {
        return;
    }
    match affordable {
        Some(affordable) if affordable <= room => response.budget_cut = reached(affordable),
        Some(_) | None => {
            if reached(room) && (response.says_nothing() || response.has_calls()) {
                response.stop = LlmStop::ContextFull;
            }
        }
    }
}

/// The message that takes the place of messages of `gone` tokens, or why the response is no summary of them. One
/// that was cut is worth more than none, unless all that it holds is an announcement of calls.
fn usable(response: &Response, gone: u64) -> Result<String, &'static str> {
    let text: String = response.texts().collect();
    let text = text.trim();
    let cut = match &response.stop {
        LlmStop::Refusal { .. } => return Err("the model refused to summarise"),
        LlmStop::Pause => return Err("its provider paused the summary"),
        LlmStop::MalformedCall { .. } => return Err("the model gave no summary"),
        _ if text.is_empty() || response.has_calls() => return Err("the model gave no summary"),
        LlmStop::MaxTokens | LlmStop::ContextFull => true,
        LlmStop::End | LlmStop::ToolUse | LlmStop::Unknown(_) => false,
    };
    let summary = prompt::summary(text, cut);
    if of_text(&summary) > LONGEST_SUMMARY.min(gone) {
        return Err("the summary was too long to be one");
    }
    Ok(summary)
}

/// The run's tools, as the model sees them.
fn specs(spec: &RunSpec) -> Vec<&'static ToolSpec> {
    let built = spec
        .tools
        .iter()
        .filter_map(|name| tools::tool(name).and_then(|def| def.built.as_ref()));
    built.map(|built| &**built.spec).collect()
}
