//! Notices a model that goes in circles, by what it calls and what came of it: facts, not words. What a
//! command printed counts, and its exit code; how long it took doesn't.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::chat::ToolArgs;

/// So many calls of a cycle are named.
const NAMED_CALLS: usize = 6;
/// At most this many recent responses are compared.
const WINDOW: usize = 128;
/// Cycles of up to this many responses are recognised.
const LONGEST_CYCLE: usize = 3;
/// So many repeats: the model is told.
const NUDGE_AT: usize = 3;
/// From so many repeats on, the call isn't run.
const REFUSE_AT: usize = 5;
/// So many repeats: the run's last turn.
const STOP_AT: usize = 8;
/// A round that takes so long, on average, waits for something: a job in the background, a server.
const WAITS: Duration = Duration::from_millis(500);
/// It is refused only after so many times as many rounds,
const PATIENCE: usize = 3;
/// and so long; and the run ends only after it was refused as often as any other.
const LEAST_WAIT: Duration = Duration::from_mins(1);
/// At each so many complaints the model is told.
const COMPLAINTS_NUDGE: u32 = 10;
/// So many complaints without anything new: the run's last turn, if the model was told of them before.
const COMPLAINTS_STOP: u32 = 20;

/// The recent calls of a run.
#[derive(Debug, Default)]
pub(super) struct LoopGuard {
    /// The calls of each response, newest last.
    seen: VecDeque<Round>,
    /// Since a response whose calls were all run and brought something new.
    complaints: u32,
    /// Of these, those since anything new came of a call.
    in_vain: u32,
    /// The model was told of those.
    told: bool,
    stuck: Option<Stuck>,
    /// The tool whose arguments were last refused, and how often in a row.
    misunderstood: Option<(&'static str, u32)>,
}

/// How a model gets nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// It makes the same calls again and again, with the same effect.
    Repeating,
    /// Its calls, though they differ, are refused or impossible, and nothing new comes of the others.
    Refused,
}

/// The distinct calls of one response with what came of them, in the order asked.
#[derive(Debug, Default)]
struct Round {
    steps: Vec<Step>,
    took: Duration,
}

/// A call that is not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// What came of it before.
    pub(super) result: u64,
    /// It is one of several that come round and round.
    pub(super) among_others: bool,
}

/// A call and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    tool: String,
    call: u64,
    result: u64,
}

/// Responses that stand several times at the end of a run.
struct Cycle {
    length: usize,
    rounds: usize,
    /// The last response completed a round.
    whole: bool,
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
    /// How long its tool was at work.
    pub(super) took: Duration,
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
    /// Whether `call` belongs to the fifth or a later round of a cycle without effect, and must not be run.
    pub(super) fn refuses(&self, call: u64) -> Option<Refused> {
        (1..=LONGEST_CYCLE).find_map(|length| {
            let expected = self.seen.iter().rev().nth(length - 1)?;
            let step = expected.steps.iter().find(|step| step.call == call)?;
            let refused = Refused {
                result: step.result,
                among_others: length > 1 || expected.steps.len() > 1,
            };
            let rounds = self.rounds(length) + 1;
            let most = match self.waited(length) {
                None => REFUSE_AT,
                Some(waited) if waited >= LEAST_WAIT => REFUSE_AT * PATIENCE,
                Some(_) => usize::MAX,
            };
            (rounds >= most).then_some(refused)
        })
    }

    /// How long the rounds at the end took in all, if they wait for something. One that was refused took no time.
    fn waited(&self, length: usize) -> Option<Duration> {
        let rounds = self.seen.iter().rev().take(self.equal(length) + length);
        let took = rounds
            .map(|round| round.took)
            .filter(|took| !took.is_zero());
        let (ran, all) = took.fold((0, Duration::ZERO), |(ran, all), took| {
            (ran + 1, all + took)
        });
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        (ran > 0 && all * length >= WAITS * ran).then_some(all)
    }

    /// Whether the rounds at the end have gone on for so long that the run should end.
    fn is_endless(&self, cycle: &Cycle) -> bool {
        let refused = || {
            let newest = self.seen.iter().rev();
            let mut newest = newest.take((STOP_AT - REFUSE_AT + 1) * cycle.length);
            newest.all(|round| round.took.is_zero())
        };
        cycle.rounds >= STOP_AT && (self.waited(cycle.length).is_none() || refused())
    }

    /// Takes note of the answered calls of one response; what the model should be told.
    pub(super) fn record(&mut self, outcomes: &[Outcome<'_>]) -> Vec<String> {
        let mut round = Round::default();
        let (mut complaints, mut news) = (0, false);
        for outcome in outcomes {
            let step = Step {
                tool: outcome.tool.to_owned(),
                call: outcome.call,
                result: outcome.result,
            };
            round.took += outcome.took;
            if round.steps.contains(&step) {
                continue;
            }
            if outcome.complaint {
                complaints += 1;
            } else {
                news |= !self.seen.iter().any(|round| round.steps.contains(&step));
            }
            round.steps.push(step);
        }
        if round.steps.is_empty() {
            return Vec::new();
        }
        if self.seen.len() == WINDOW {
            self.seen.pop_front();
        }
        self.seen.push_back(round);
        let cycle = self.cycle();
        let repeats = cycle.rounds;
        let mut notices = Vec::new();
        if repeats == NUDGE_AT && cycle.whole {
            let what = self.calls_of(cycle.length);
            let advice = if self.waited(cycle.length).is_some() {
                "if you wait for something, check that it is still at work, and wait longer in one call; else try another way"
            } else {
                "doing it again will not help. Try another way"
            };
            notices.push(format!(
                "{what} {repeats} times in a row with the same effect; {advice}, or answer with what you have."
            ));
        }
        if self.is_endless(&cycle) {
            self.stuck.get_or_insert(Stuck::Repeating);
        }
        notices.extend(self.complain(complaints, news));
        notices
    }

    /// Takes note of a response's complaints, and of whether anything new came of its other calls; what the model
    /// should be told.
    fn complain(&mut self, complaints: u32, news: bool) -> Option<String> {
        if news {
            (self.in_vain, self.told) = (0, false);
        } else {
            self.in_vain += complaints;
        }
        if news && complaints == 0 {
            self.complaints = 0;
        }
        let before = self.complaints;
        self.complaints += complaints;
        if complaints > 0 && self.told && self.in_vain >= COMPLAINTS_STOP {
            self.stuck.get_or_insert(Stuck::Refused);
            return None;
        }
        if before / COMPLAINTS_NUDGE == self.complaints / COMPLAINTS_NUDGE {
            return None;
        }
        self.told = true;
        Some(format!(
            "{} calls of late were refused or impossible. Read what the tools say, change the approach, or answer with what you have.",
            self.complaints
        ))
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

    /// Why the run should get its last turn, if it should.
    pub(super) const fn stuck(&self) -> Option<Stuck> {
        self.stuck
    }

    /// The cycle that has gone through the most rounds at the end; of several the shortest.
    fn cycle(&self) -> Cycle {
        let cycle = |length: usize| Cycle {
            length,
            rounds: self.rounds(length),
            whole: self.equal(length).is_multiple_of(length),
        };
        (2..=LONGEST_CYCLE).map(cycle).fold(cycle(1), |most, next| {
            if next.rounds > most.rounds {
                next
            } else {
                most
            }
        })
    }

    /// What was called in the newest `length` responses.
    fn calls_of(&self, length: usize) -> String {
        let newest = self
            .seen
            .iter()
            .skip(self.seen.len().saturating_sub(length));
        let steps = newest.flat_map(|round| &round.steps);
        let tools: Vec<&str> = steps.map(|step| step.tool.as_str()).collect();
        if let [tool] = tools.as_slice() {
            return format!("The same call of {tool} was made");
        }
        let named: Vec<&str> = tools.iter().take(NAMED_CALLS).copied().collect();
        let more = if tools.len() > NAMED_CALLS {
            ", …"
        } else {
            ""
        };
        let order = if length > 1 {
            ", one after another,"
        } else {
            ""
        };
        format!(
            "The same {} calls ({}{more}){order} were made",
            tools.len(),
            named.join(", ")
        )
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
            .take_while(|(newer, older)| newer.steps == older.steps)
            .count()
    }
}

#[cfg(test)]
#[path = "loops_tests.rs"]
mod tests;
