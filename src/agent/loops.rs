//! Notices a model that goes in circles, by what it calls and what came of it: facts, not words. What a
//! command printed counts, and its exit code; how long it took doesn't.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::chat::ToolArgs;

/// At most this many recent responses are compared.
const WINDOW: usize = 32;
/// Cycles of up to this many responses are recognised.
const LONGEST_CYCLE: usize = 3;
/// So many repeats: the model is told.
const NUDGE_AT: usize = 3;
/// From so many repeats on, the call isn't run.
const REFUSE_AT: usize = 5;
/// So many repeats: the run's last turn.
const STOP_AT: usize = 8;
/// So many complaints in a row: the model is told.
const COMPLAINTS_NUDGE: u32 = 10;
/// So many complaints in a row: the run's last turn, if the model was told before.
const COMPLAINTS_STOP: u32 = 20;

/// The recent calls of a run.
#[derive(Debug, Default)]
pub(super) struct LoopGuard {
    /// The calls of each response, newest last.
    seen: VecDeque<Round>,
    complaints: u32,
    /// The model was told of its complaints.
    told: bool,
    stuck: bool,
    /// The tool whose arguments were last refused, and how often in a row.
    misunderstood: Option<(&'static str, u32)>,
}

/// The distinct calls of one response with what came of them, in the order asked.
type Round = Vec<Step>;

/// A call and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    call: u64,
    result: u64,
}

/// A call that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome<'a> {
    /// The tool.
    pub(super) tool: &'a str,
    /// See [`call_key`].
    pub(super) call: u64,
    /// The answer's fingerprint.
    pub(super) result: u64,
    /// It was refused, or the tool could do nothing with it.
    pub(super) complaint: bool,
}

/// The same for the same call, whatever the order of its arguments.
pub(super) fn call_key(tool: &str, args: &ToolArgs) -> u64 {
    let mut hasher = DefaultHasher::new();
    tool.hash(&mut hasher);
    match args {
        // Equal whatever the order of keys.
        ToolArgs::Json(value) => value.hash(&mut hasher),
        ToolArgs::Malformed { raw, .. } => raw.hash(&mut hasher),
    }
    hasher.finish()
}

impl LoopGuard {
    /// Whether `call` belongs to the fifth or a later round of a cycle without effect, and must not be run:
    /// then what came of it before.
    pub(super) fn refuses(&self, call: u64) -> Option<u64> {
        (1..=LONGEST_CYCLE).find_map(|length| {
            let expected = self.seen.iter().rev().nth(length - 1)?;
            let step = expected.iter().find(|step| step.call == call)?;
            (self.rounds(length) + 1 >= REFUSE_AT).then_some(step.result)
        })
    }

    /// Takes note of the answered calls of one response; what the model should be told.
    pub(super) fn record(&mut self, outcomes: &[Outcome<'_>]) -> Vec<String> {
        let mut round = Round::new();
        let told_before = self.told;
        for outcome in outcomes {
            let step = Step {
                call: outcome.call,
                result: outcome.result,
            };
            if round.contains(&step) {
                continue;
            }
            round.push(step);
            if outcome.complaint {
                self.complaints += 1;
            } else {
                self.complaints = 0;
                self.told = false;
            }
        }
        let Some(first) = outcomes.first() else {
            return Vec::new();
        };
        let what = match round.len() {
            1 => format!("{} was called", first.tool),
            _ => "The same calls were made".to_owned(),
        };
        if self.seen.len() == WINDOW {
            self.seen.pop_front();
        }
        self.seen.push_back(round);
        let (repeats, whole) = self.repeats();
        let mut notices = Vec::new();
        if repeats == NUDGE_AT && whole {
            notices.push(format!(
                "{what} {repeats} times in a row with the same effect; doing it again will not help. Try another way, or answer with what you have."
            ));
        }
        if self.complaints >= COMPLAINTS_NUDGE && !self.told {
            self.told = true;
            notices.push(format!(
                "The last {} calls were all refused or impossible. Read what the tools say, change the approach, or answer with what you have.",
                self.complaints
            ));
        }
        self.stuck |=
            repeats >= STOP_AT || (told_before && self.told && self.complaints >= COMPLAINTS_STOP);
        notices
    }

    /// Takes note of arguments that fit no schema; whether it is the third time or more for this tool in a
    /// row, so that the model should be shown an example.
    pub(super) fn misunderstood(&mut self, tool: &'static str) -> bool {
        let before = self
            .misunderstood
            .filter(|(last, _)| *last == tool)
            .map_or(0, |(_, times)| times);
        self.misunderstood = Some((tool, before + 1));
        before + 1 >= 3
    }

    /// Takes note of arguments that fit.
    pub(super) const fn understood(&mut self) {
        self.misunderstood = None;
    }

    /// The run should get its last turn.
    pub(super) const fn stuck(&self) -> bool {
        self.stuck
    }

    /// The most rounds that a cycle of one, two or three responses has gone through at the end, and whether
    /// the last response completed one.
    fn repeats(&self) -> (usize, bool) {
        let cycles = (1..=LONGEST_CYCLE).rev().map(|length| {
            let equal = self.equal(length);
            (1 + equal / length, equal.is_multiple_of(length))
        });
        cycles.max_by_key(|(rounds, _)| *rounds).unwrap_or_default()
    }

    /// How often the newest `length` responses stand at the end, one after another.
    fn rounds(&self, length: usize) -> usize {
        1 + self.equal(length) / length
    }

    /// How many of the newest responses equal the one `length` before them.
    fn equal(&self, length: usize) -> usize {
        let newest = self.seen.iter().rev();
        newest
            .clone()
            .zip(newest.skip(length))
            .take_while(|(newer, older)| newer == older)
            .count()
    }
}

#[cfg(test)]
#[path = "loops_tests.rs"]
mod tests;
