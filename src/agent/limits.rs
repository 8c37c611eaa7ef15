//! Turns, time and money: when to warn, when to tell the model, when the last turn has come.

use std::time::Duration;

use super::loops::Stuck;
use crate::clock::Deadline;
use crate::error::WarningCode;
use crate::events::{StopReason, WarningEvent};
use crate::spec::{NanoUsd, RunSpec};

/// Below so many turns no soft limit is announced.
const SOFT_LIMIT_FROM: u32 = 5;

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

/// Why a turn has to be the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastTurn {
    Turns,
    Time,
    Budget,
    Stuck(Stuck),
}

impl LastTurn {
    /// Why a run with an answer of that turn ended.
    pub(super) const fn stop_reason(self) -> StopReason {
        match self {
            Self::Turns => StopReason::MaxTurns,
            Self::Time => StopReason::MaxTime,
            Self::Budget => StopReason::MaxBudget,
            Self::Stuck(_) => StopReason::Loop,
        }
    }

    /// What the model is told.
    pub(super) const fn told(self) -> &'static str {
        match self {
            Self::Turns => "This is your last turn.",
            Self::Time => "The run's time is nearly over.",
            Self::Budget => "The run's budget is nearly used.",
            Self::Stuck(Stuck::Repeating) => "The same calls are made again and again.",
            Self::Stuck(Stuck::Refused) => "Calls are refused or impossible again and again.",
        }
    }
}

/// What can run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Time,
    Turns,
    Budget,
}

impl Limit {
    /// As clients read it.
    const fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Turns => "turns",
            Self::Budget => "budget",
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Time => "s",
            Self::Turns => "turns",
            Self::Budget => "USD",
        }
    }
}

/// How much of the nearest limit is used; money in nano-dollars.
struct Pressure {
    limit: Limit,
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

    /// Why `turn` has to be the last one, if turns or time say so.
    pub(super) fn last_turn(&self, turn: u32) -> Option<LastTurn> {
        if turn >= self.max_turns {
            Some(LastTurn::Turns)
        } else if self.wrap_up().passed() {
            Some(LastTurn::Time)
        } else {
            None
        }
    }

    /// A warning for the client when four fifths of a limit are used, once.
    pub(super) fn warning(&mut self, turns_used: u32, spent: NanoUsd) -> Option<WarningEvent> {
        if self.warned {
            return None;
        }
        let Pressure { limit, used, max } = self.pressure(turns_used, spent)?;
        if fraction(used, max) < 0.8 {
            return None;
        }
        self.warned = true;
        let warning = match limit {
            Limit::Time | Limit::Turns => {
                let message = format!("{used} of {max} {} are used", limit.unit());
                WarningEvent::new(WarningCode::SoftLimit, message)
                    .fact("used", used)
                    .fact("max", max)
            }
            Limit::Budget => {
                let [used, max] = [used, max].map(|nanos| NanoUsd(nanos).to_usd());
                let message = format!("{used} of {max} {} are used", limit.unit());
                WarningEvent::new(WarningCode::SoftLimit, message)
                    .fact("used", used)
                    .fact("max", max)
            }
        };
        Some(warning.fact("limit", limit.name()))
    }

    /// What to tell the model before the next turn: at half, at four fifths, and from nine tenths on.
    pub(super) fn notice(&mut self, turns_used: u32, spent: NanoUsd) -> Option<String> {
        let pressure = self.pressure(turns_used, spent)?;
        let used = fraction(pressure.used, pressure.max);
        let tell = if used >= 0.9 {
            true
        } else if used >= 0.8 {
            !std::mem::replace(&mut self.told_eighty, true)
        } else if used >= 0.5 {
            !std::mem::replace(&mut self.told_half, true)
        } else {
            false
        };
        if !tell {
            return None;
        }
        self.told_half = true;
        self.told_eighty |= used >= 0.8;
        let turns = self.max_turns.saturating_sub(turns_used);
        let secs = self.wrap_up().remaining().as_secs();
        let mut text = format!("{turns} turns and {secs} s");
        if let Some(budget) = self.max_budget {
            text.push_str(&format_budget(budget, spent));
        }
        text.push_str(if used >= 0.8 {
            " are left; finish, then answer."
        } else {
            " are left."
        });
        Some(text)
    }

    /// What the client is told when the last turn is asked.
    pub(super) fn last_turn_warning(&self, reason: LastTurn) -> (WarningCode, String) {
        match reason {
            LastTurn::Turns => (
                WarningCode::MaxTurns,
                format!(
                    "turn {} is the last one: it is asked without tools",
                    self.max_turns
                ),
            ),
            LastTurn::Time => (
                WarningCode::MaxTime,
                format!(
                    "the timeout of {} s is nearly over: the last turn is asked without tools",
                    self.timeout.as_secs()
                ),
            ),
            LastTurn::Budget => (
                WarningCode::MaxBudget,
                "the budget is nearly used: the last turn is asked without tools".to_owned(),
            ),
            LastTurn::Stuck(stuck) => {
                let what = match stuck {
                    Stuck::Repeating => "the model repeats calls without effect",
                    Stuck::Refused => "the model's calls are refused or impossible again and again",
                };
                (
                    WarningCode::LoopDetected,
                    format!("{what}: the last turn is asked without tools"),
                )
            }
        }
    }

    fn pressure(&self, turns_used: u32, spent: NanoUsd) -> Option<Pressure> {
        let elapsed = self.timeout.saturating_sub(self.deadline.remaining());
        let of = |limit: Limit, used: u64, max: u64| Pressure { limit, used, max };
        let time = Some(of(Limit::Time, elapsed.as_secs(), self.timeout.as_secs()));
        let turns = (self.max_turns >= SOFT_LIMIT_FROM)
            .then(|| of(Limit::Turns, turns_used.into(), self.max_turns.into()));
        let budget = self
            .max_budget
            .map(|budget| of(Limit::Budget, spent.0, budget.0));
        [time, turns, budget]
            .into_iter()
            .flatten()
            .max_by(|a, b| fraction(a.used, a.max).total_cmp(&fraction(b.used, b.max)))
    }
}

/// How much of `max` is used.
fn fraction(used: u64, max: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a ratio for a threshold")]
    let ratio = used as f64 / max.max(1) as f64;
    ratio
}

fn format_budget(budget: NanoUsd, spent: NanoUsd) -> String {
    format!(
        " and {} USD",
        NanoUsd(budget.0.saturating_sub(spent.0)).to_usd()
    )
}
