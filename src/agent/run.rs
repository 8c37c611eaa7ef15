//! The loop: ask, stream, run the tools, ask again, until there is an answer or a reason to stop.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::calls::run_calls;
use super::context::{self, Window};
use super::limits::{self, Limits};
use super::loops::LoopGuard;
use super::prompt;
use super::room::Compactions;
use super::tally::Tally;
use super::turn::Response;
use super::workspace::WorkspaceSource;
use crate::chat::{Block, CallIds, Message, Reply};
use crate::clock::Deadline;
use crate::error::{ErrorCode, Problem, WarningCode};
use crate::events::{EventSink, LogFailed, RunEvent, StopReason, UserEvent, WarningEvent};
use crate::llm::{LlmError, LlmProvider, LlmStop};
use crate::net::retry::RetryBudget;
use crate::secrets::Redactor;
use crate::spec::{NanoUsd, RunSpec};

/// How often a paused response is sent back (rule of the provider's server tools).
const PAUSES: u32 = 5;
/// How often an answer cut at the output limit is gone on with.
const CONTINUATIONS: u32 = 2;

/// What an agent is given.
pub struct RunContext {
    /// What to do.
    pub spec: Arc<RunSpec>,
    /// The LLM.
    pub provider: Arc<dyn LlmProvider>,
    /// Where events go.
    pub sink: Arc<dyn EventSink>,
    /// Where tools act.
    pub workspace: Arc<dyn WorkspaceSource>,
    /// Fires when the run is to stop.
    pub token: CancellationToken,
    /// When the run's time is over.
    pub deadline: Deadline,
    /// What it uses.
    pub tally: Arc<Tally>,
    /// Cleans what is shown.
    pub redactor: Redactor,
    /// The backend's working directory.
    pub working_dir: &'static str,
    /// Today, as `2026-11-25`.
    pub today: String,
}

/// The answer of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text of the last turn.
    pub content: String,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// It was cut at the model's output limit.
    pub truncated: bool,
}

/// Why an agent ended without an answer.
#[derive(Debug)]
pub enum Halt {
    /// A fault with a name.
    Problem(Problem),
    /// The LLM failed.
    Llm(LlmError),
    /// The token fired.
    Stopped,
    /// The log can't be written.
    Log(LogFailed),
}

impl From<LogFailed> for Halt {
    fn from(failed: LogFailed) -> Self {
        Self::Log(failed)
    }
}

impl RunContext {
    pub(super) async fn emit(&self, event: RunEvent) -> Result<(), Halt> {
        self.sink.emit(event).await?;
        Ok(())
    }

    pub(super) async fn sync(&self) -> Result<(), Halt> {
        self.sink.sync().await?;
        Ok(())
    }

    pub(super) fn tool_list(&self) -> String {
        if self.spec.tools.is_empty() {
            "none".to_owned()
        } else {
            self.spec.tools.join(", ")
        }
    }
}

/// Runs the agent of `context` to its answer.
///
/// When the token fires it answers every open call, asks nothing more, and gives [`Halt::Stopped`].
///
/// # Errors
/// Why there is no answer.
pub async fn run_agent(context: &RunContext) -> Result<Answer, Halt> {
    Agent::new(context).run().await
}

pub(super) struct Agent<'a> {
    pub(super) context: &'a RunContext,
    pub(super) history: Vec<Message>,
    pub(super) call_ids: CallIds,
    limits: Limits,
    guard: LoopGuard,
    pub(super) retries: RetryBudget,
    pub(super) window: Window,
    /// Ask for the model's full output limit instead of the usual one.
    pub(super) full_output: bool,
    price_warned: bool,
    pub(super) compactions: Compactions,
}

/// What a turn came to.
enum TurnEnd {
    Answer { text: String, truncated: bool },
    Calls(Response),
}

impl<'a> Agent<'a> {
    fn new(context: &'a RunContext) -> Self {
        let spec = &context.spec;
        Self {
            context,
            history: vec![Message::user(prompt::first_message(
                spec,
                context.working_dir,
                &context.today,
            ))],
            call_ids: CallIds::default(),
            limits: Limits::new(spec, context.deadline),
            guard: LoopGuard::default(),
            retries: RetryBudget::new(spec.timeout),
            window: Window::new(context.provider.model(&spec.model.id)),
            compactions: Compactions::default(),
            full_output: false,
            price_warned: false,
        }
    }

    async fn run(mut self) -> Result<Answer, Halt> {
        self.warn_of_missing_tools().await?;
        let mut empty_answers = 0;
        let mut turn = 0;
        loop {
            turn += 1;
            let last = self.announce_limits(turn).await?;
            let end = self.turn(turn, last.is_some()).await?;
            self.context.tally.turn_taken();
            self.warn_of_unknown_price().await?;
            match end {
                TurnEnd::Answer { text, truncated } if !text.trim().is_empty() => {
                    if truncated {
                        self.warn(
                            WarningCode::AnswerTruncated,
                            "the answer was cut at the model's output limit",
                        )
                        .await?;
                    }
                    return Ok(Answer {
                        content: self.context.redactor.clean(&text).into_owned(),
                        stop_reason: last.unwrap_or(StopReason::End),
                        truncated,
                    });
                }
                TurnEnd::Answer { .. } => {
                    if let Some(reason) = last {
                        return Err(Halt::Problem(no_answer(reason, &self.context.spec)));
                    }
                    empty_answers += 1;
                    if empty_answers > 1 {
                        return Err(Halt::Problem(
                            Problem::new(
                                ErrorCode::LlmBadResponse,
                                "the model ended twice without an answer",
                            )
                            .hint("send the request again, or use another model"),
                        ));
                    }
                    self.warn(
                        WarningCode::EmptyAnswer,
                        "the model ended without an answer and is asked once more",
                    )
                    .await?;
                    self.say(prompt::ANSWER_PLEASE).await?;
                }
                TurnEnd::Calls(response) => {
                    let calls: Vec<_> = response.calls().cloned().collect();
                    let wrap_up = self.limits.wrap_up();
                    let called =
                        run_calls(self.context, &mut self.guard, &calls, turn, wrap_up).await?;
                    if self.context.token.is_cancelled() {
                        return Err(Halt::Stopped);
                    }
                    let mut notices: Vec<String> = called.notices;
                    notices.extend(self.facts());
                    notices.extend(self.limits.notice(turn, self.context.tally.spent()));
                    let notice = (!notices.is_empty()).then(|| prompt::notice(&notices.join("\n")));
                    self.history.push(Message::ToolResults {
                        results: called.results,
                        notice,
                    });
                    context::limit_images(&mut self.history);
                }
            }
        }
    }

    /// Warns of limits, and says so to the model when this turn is the last.
    async fn announce_limits(&mut self, turn: u32) -> Result<Option<StopReason>, Halt> {
        let spec = &self.context.spec;
        let spent = self.context.tally.spent();
        let next = self.window.last_usage().and_then(|usage| {
            limits::next_request_cost(spec.model.provider, &spec.model.id, &usage)
        });
        let last = if self.guard.stuck() {
            Some(StopReason::Loop)
        } else {
            self.limits.last_turn(turn, spent, next)
        };
        if let Some(warning) = self.limits.warning(turn - 1, spent) {
            self.context.emit(RunEvent::Warning(warning)).await?;
        }
        let Some(reason) = last else {
            return Ok(None);
        };
        // A run of one turn has no tools from the start, which is no news to its client.
        if turn > 1
            && let Some(warning) = limits::last_turn_warning(reason, &self.limits)
        {
            self.context.emit(RunEvent::Warning(warning)).await?;
        }
        let told = prompt::last_turn(limits::last_turn_reason(reason));
        match self.history.last_mut() {
            Some(Message::ToolResults { notice, .. }) => {
                *notice = Some(
                    notice
                        .take()
                        .map_or_else(|| told.clone(), |before| format!("{before}\n{told}")),
                );
            }
            _ if turn > 1 => self.history.push(Message::user(told)),
            _ => {}
        }
        Ok(Some(reason))
    }

    /// One turn: a response that ended well, whatever it took to get one.
    async fn turn(&mut self, turn: u32, last: bool) -> Result<TurnEnd, Halt> {
        let mut text = String::new();
        let (mut pauses, mut continuations, mut cuts) = (0, 0, 0);
        loop {
            let response = self.ask(turn, last).await?;
            text.push_str(&response.text);
            self.window.saw(&response.usage);
            let calls = response.calls().count();
            match response.stop.clone().unwrap_or(LlmStop::End) {
                LlmStop::Refusal {
                    category,
                    explanation,
                } => {
                    return Err(Halt::Problem(refused(
                        category.as_deref(),
                        explanation.as_deref(),
                    )));
                }
                LlmStop::Pause if pauses < PAUSES => {
                    pauses += 1;
                    self.reply(response.blocks);
                }
                LlmStop::MaxTokens if calls > 0 && cuts < CONTINUATIONS => {
                    // The last call's arguments may be incomplete: none of the response's calls is run.
                    cuts += 1;
                    self.full_output = true;
                    self.keep_text(response);
                    self.say(prompt::CALL_CUT).await?;
                }
                LlmStop::MaxTokens if calls > 0 => {
                    return Err(Halt::Problem(
                        Problem::new(
                            ErrorCode::LlmBadResponse,
                            "the model's tool call was cut off at the output limit three times",
                        )
                        .hint("ask for smaller steps, or use a model with a larger output limit"),
                    ));
                }
                LlmStop::MaxTokens if response.text.is_empty() && cuts == 0 => {
                    cuts += 1;
                    self.full_output = true;
                }
                LlmStop::MaxTokens
                    if !response.text.is_empty() && continuations < CONTINUATIONS =>
                {
                    continuations += 1;
                    self.full_output = true;
                    self.keep_text(response);
                    self.say(prompt::GO_ON).await?;
                }
                LlmStop::MaxTokens | LlmStop::ContextFull => {
                    if text.is_empty() {
                        return Err(Halt::Problem(Problem::new(
                            ErrorCode::ContextTooLong,
                            "the model's output limit or context window was used up before it wrote an answer",
                        )));
                    }
                    return Ok(TurnEnd::Answer {
                        text,
                        truncated: true,
                    });
                }
                LlmStop::MalformedCall { .. } => {
                    return Err(Halt::Problem(Problem::new(
                        ErrorCode::LlmBadResponse,
                        "the model's tool call could not be read by its provider",
                    )));
                }
                stop @ (LlmStop::End | LlmStop::ToolUse | LlmStop::Pause | LlmStop::Unknown(_)) => {
                    if let LlmStop::Unknown(reason) = &stop {
                        let shown: String = reason.chars().take(100).collect();
                        self.warn(
                            WarningCode::StopReasonUnknown,
                            &format!("the model stopped with the unknown reason {shown:?}"),
                        )
                        .await?;
                    }
                    // A call although tools are off is not run: the text, if any, is the answer.
                    if calls == 0 || last {
                        self.keep_text(response);
                        return Ok(TurnEnd::Answer {
                            text,
                            truncated: false,
                        });
                    }
                    self.reply(response.blocks.clone());
                    return Ok(TurnEnd::Calls(response));
                }
            }
        }
    }

    fn reply(&mut self, blocks: Vec<Block>) {
        let provider = self.context.spec.model.provider;
        self.history
            .push(Message::Assistant(Reply { provider, blocks }));
    }

    /// Appends a response without its calls and thinking: what was cut can't be echoed whole.
    fn keep_text(&mut self, response: Response) {
        let blocks: Vec<_> = response
            .blocks
            .into_iter()
            .filter(|block| matches!(block, Block::Text { text, .. } if !text.trim().is_empty()))
            .collect();
        if !blocks.is_empty() {
            self.reply(blocks);
        }
    }

    /// Says something to the model in the user's place; clients see it as a `user` event.
    async fn say(&mut self, text: &str) -> Result<(), Halt> {
        self.history.push(Message::user(text));
        self.context
            .emit(RunEvent::User(UserEvent {
                content: text.to_owned(),
            }))
            .await
    }

    /// What the sandbox turned out to have, once, with the first results.
    fn facts(&self) -> Option<String> {
        self.context.workspace.ready()?.session.take_notice()
    }

    async fn warn(&self, code: WarningCode, message: &str) -> Result<(), Halt> {
        self.context
            .emit(RunEvent::Warning(WarningEvent::new(code, message)))
            .await
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

    async fn warn_of_unknown_price(&mut self) -> Result<(), Halt> {
        if self.price_warned || !self.context.tally.price_unknown() {
            return Ok(());
        }
        self.price_warned = true;
        let model = &self.context.spec.model.id;
        self.warn(
            WarningCode::PriceUnknown,
            &format!("no price is known for {model}, so no costUsd is given"),
        )
        .await
    }
}

/// The end of a run whose last turn gave no answer either.
fn no_answer(reason: StopReason, spec: &RunSpec) -> Problem {
    match reason {
        StopReason::MaxTurns => Problem::new(
            ErrorCode::MaxTurns,
            format!("all {} turns were used without an answer", spec.max_turns),
        )
        .hint("send a larger maxTurns, or a smaller task"),
        StopReason::MaxTime => Problem::new(
            ErrorCode::DeadlineExceeded,
            format!(
                "the timeout of {} s was nearly over and the model gave no answer",
                spec.timeout.as_secs()
            ),
        )
        .hint("send a larger timeout (up to 3600), or a smaller task"),
        StopReason::MaxBudget => Problem::new(
            ErrorCode::BudgetExceeded,
            format!(
                "the budget of {} USD was used without an answer",
                spec.max_budget.unwrap_or(NanoUsd(0)).to_usd()
            ),
        )
        .hint("send a larger maxBudgetUsd, or a smaller task"),
        StopReason::Loop | StopReason::End => Problem::new(
            ErrorCode::LlmBadResponse,
            "the model went in circles and gave no answer",
        )
        .hint("rephrase the task, or use another model"),
    }
}

fn refused(category: Option<&str>, explanation: Option<&str>) -> Problem {
    let mut message = String::from("the model refused to answer");
    if let Some(category) = category {
        message.extend([" (", category, ")"]);
    }
    if let Some(explanation) = explanation {
        message.push_str(": ");
        message.extend(explanation.chars().take(300));
    }
    Problem::new(ErrorCode::LlmRefused, message)
        .hint("rephrase the task; sending it again as it is will not help")
}
