//! Turns, time and money: when to warn, when to tell the model, when the last turn has come.

use std::time::Duration;

use crate::clock::Deadline;
use crate::error::WarningCode;
use crate::events::{StopReason, WarningEvent};
use crate::llm::{Usage, prices};
use crate::spec::{NanoUsd, RunSpec};

/// Below so many turns no soft limit is announced.
const SOFT_LIMIT_FROM: u32 = 5;
/// What an answer is assumed to need, in tokens, when the budget is checked ahead.
const ANSWER_TOKENS: u64 = 2000;

/// How long before the deadline the last turn is asked: a tenth of the timeout, from 10 to 45 s, and never
/// more than a quarter of it.
pub fn reserve(timeout: Duration) -> Duration {
    let tenth = (timeout / 10).clamp(Duration::from_secs(10), Duration::from_secs(45));
    tenth.min(timeout / 4)
}

/// A run's limits and what has been said about them.
#[derive(Debug)]
pub(super) struct Limits {
    max_turns: u32,
    timeout: Duration,
    deadline: Deadline,
    max_budget: Option<NanoUsd>,
    warned: bool,
    told_half: bool,
    told_eighty: bool,
}

/// How much of the nearest limit is used.
struct Pressure {
    fraction: f64,
    limit: &'static str,
    used: u64,
    max: u64,
}

impl Limits {
    pub(super) fn new(spec: &RunSpec, deadline: Deadline) -> Self {
        Self {
            max_turns: spec.max_turns,
            timeout: spec.timeout,
            deadline,
            max_budget: spec.max_budget,
            warned: false,
            told_half: false,
            told_eighty: false,
        }
    }

    /// When tools must be done, so that a last turn fits in.
    pub(super) fn wrap_up(&self) -> Deadline {
        self.deadline.minus(reserve(self.timeout))
    }

    /// Why `turn` has to be the last one, if it has to.
    pub(super) fn last_turn(
        &self,
        turn: u32,
        spent: NanoUsd,
        next_request: Option<NanoUsd>,
    ) -> Option<StopReason> {
        if turn >= self.max_turns {
            return Some(StopReason::MaxTurns);
        }
        if self.wrap_up().passed() {
            return Some(StopReason::MaxTime);
        }
        let over =
            |budget: NanoUsd| spent.0.saturating_add(next_request.unwrap_or_default().0) > budget.0;
        self.max_budget
            .is_some_and(over)
            .then_some(StopReason::MaxBudget)
    }

    /// A warning for the client when four fifths of a limit are used, once.
    pub(super) fn warning(&mut self, turns_used: u32, spent: NanoUsd) -> Option<WarningEvent> {
        if self.warned {
            return None;
        }
        let pressure = self.pressure(turns_used, spent);
        let turns_reached =
            self.max_turns >= SOFT_LIMIT_FROM && turns_used >= (self.max_turns * 4).div_ceil(5);
        if pressure.fraction < 0.8 && !turns_reached {
            return None;
        }
        self.warned = true;
        let Pressure {
            limit, used, max, ..
        } = pressure;
        Some(
            WarningEvent::new(
                WarningCode::SoftLimit,
                format!("{used} of {max} {limit} are used"),
            )
            .fact("limit", limit)
            .fact("used", used)
            .fact("max", max),
        )
    }

    /// What to tell the model before the next turn: at half, at four fifths, and from nine tenths on.
    pub(super) fn notice(&mut self, turns_used: u32, spent: NanoUsd) -> Option<String> {
        let pressure = self.pressure(turns_used, spent);
        let tell = if pressure.fraction >= 0.9 {
            true
        } else if pressure.fraction >= 0.8 {
            !std::mem::replace(&mut self.told_eighty, true)
        } else if pressure.fraction >= 0.5 {
            !std::mem::replace(&mut self.told_half, true)
        } else {
            false
        };
        if !tell {
            return None;
        }
        self.told_half = true;
        self.told_eighty |= pressure.fraction >= 0.8;
        let turns = self.max_turns.saturating_sub(turns_used);
        let secs = self.wrap_up().remaining().as_secs();
        let mut text = format!("{turns} turns and {secs} s");
        if let Some(budget) = self.max_budget {
            text.push_str(&format_budget(budget, spent));
        }
        text.push_str(if pressure.fraction >= 0.8 {
            " are left; finish, then answer."
        } else {
            " are left."
        });
        Some(text)
    }

    fn pressure(&self, turns_used: u32, spent: NanoUsd) -> Pressure {
        let fraction = |used: u64, max: u64| {
            #[expect(clippy::cast_precision_loss, reason = "a ratio for a threshold")]
            let ratio = used as f64 / max.max(1) as f64;
            ratio
        };
        let elapsed = self.timeout.saturating_sub(self.deadline.remaining());
        let mut candidates = vec![("s", elapsed.as_secs(), self.timeout.as_secs())];
        if self.max_turns >= SOFT_LIMIT_FROM {
            candidates.push(("turns", turns_used.into(), self.max_turns.into()));
        }
        if let Some(budget) = self.max_budget {
            candidates.push(("nano-dollars", spent.0, budget.0));
        }
        candidates
            .into_iter()
            .map(|(limit, used, max)| Pressure {
                fraction: fraction(used, max),
                limit,
                used,
                max,
            })
            .max_by(|a, b| a.fraction.total_cmp(&b.fraction))
            .unwrap_or(Pressure {
                fraction: 0.0,
                limit: "s",
                used: 0,
                max: 0,
            })
    }
}

fn format_budget(budget: NanoUsd, spent: NanoUsd) -> String {
    format!(
        " and {} USD",
        NanoUsd(budget.0.saturating_sub(spent.0)).to_usd()
    )
}

/// What the next request is likely to cost, from the last one's usage.
pub(super) fn next_request_cost(provider: &str, model: &str, last: &Usage) -> Option<NanoUsd> {
    let guess = Usage {
        input: last.output,
        cache_read: last.total_input(),
        output: ANSWER_TOKENS,
        ..Usage::default()
    };
    prices::cost(provider, model, &guess)
}

/// What the client is told when a run's last turn is asked early.
pub(super) fn last_turn_warning(reason: StopReason, limits: &Limits) -> Option<WarningEvent> {
    let (code, message) = match reason {
        StopReason::End => return None,
        StopReason::MaxTurns => (
            WarningCode::MaxTurns,
            format!(
                "turn {} is the last one: it is asked without tools",
                limits.max_turns
            ),
        ),
        StopReason::MaxTime => (
            WarningCode::MaxTime,
            format!(
                "the timeout of {} s is nearly over: the last turn is asked without tools",
                limits.timeout.as_secs()
            ),
        ),
        StopReason::MaxBudget => (
            WarningCode::MaxBudget,
            "the budget is nearly used: the last turn is asked without tools".to_owned(),
        ),
        StopReason::Loop => (
            WarningCode::LoopDetected,
            "the model repeats calls without effect: the last turn is asked without tools"
                .to_owned(),
        ),
    };
    Some(WarningEvent::new(code, message))
}

/// What the model is told on its last turn.
pub(super) const fn last_turn_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::End => "",
        StopReason::MaxTurns => "This is your last turn.",
        StopReason::MaxTime => "The run's time is nearly over.",
        StopReason::MaxBudget => "The run's budget is nearly used.",
        StopReason::Loop => "The same calls keep failing or repeating.",
    }
}
