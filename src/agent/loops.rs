//! Notices a model that goes in circles, by what it calls and what came back.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

/// At most this many recent calls are compared.
const WINDOW: usize = 32;
/// Cycles of up to this many calls are recognised.
const LONGEST_CYCLE: usize = 3;
/// So many repeats: the model is told.
const NUDGE_AT: usize = 3;
/// From so many repeats on, the call isn't run.
const REFUSE_AT: usize = 5;
/// So many repeats: the run's last turn.
const STOP_AT: usize = 8;
/// So many complaints in a row: the model is told.
const COMPLAINTS_NUDGE: u32 = 10;
/// So many complaints in a row: the run's last turn.
const COMPLAINTS_STOP: u32 = 20;

/// The recent calls of a run.
#[derive(Debug, Default)]
pub(super) struct LoopGuard {
    /// Call and result together, newest last.
    seen: Vec<Step>,
    complaints: u32,
    stuck: bool,
    /// The tool whose arguments were last refused, and how often in a row.
    misunderstood: Option<(&'static str, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    call: u64,
    result: u64,
}

/// What the guard makes of a call or its result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing odd.
    Fine,
    /// Tell the model that repeating won't help.
    Nudge(String),
}

impl LoopGuard {
    /// Whether the next call would begin the fifth or a later round of a cycle without effect: then it is
    /// counted as if it had been run, and must not be.
    pub(super) fn refuses(&mut self, tool: &str, args: &Value) -> bool {
        let call = hash(&(tool, canonical(args)));
        let again = (1..=LONGEST_CYCLE).find_map(|length| {
            let earlier = self.seen.iter().rev().nth(length - 1).copied()?;
            (earlier.call == call && self.rounds(length) + 1 >= REFUSE_AT).then_some(earlier)
        });
        if let Some(earlier) = again {
            self.push(earlier);
            self.stuck |= self.repeats() >= STOP_AT;
        }
        again.is_some()
    }

    /// Takes note of a call that was run.
    pub(super) fn record(
        &mut self,
        tool: &str,
        args: &Value,
        result: &str,
        complaint: bool,
    ) -> Verdict {
        self.push(Step {
            call: hash(&(tool, canonical(args))),
            result: hash(&result),
        });
        self.complaints = if complaint { self.complaints + 1 } else { 0 };
        self.misunderstood = None;
        let repeats = self.repeats();
        self.stuck |= repeats >= STOP_AT || self.complaints >= COMPLAINTS_STOP;
        if repeats == NUDGE_AT {
            return Verdict::Nudge(format!(
                "{tool} was called {repeats} times in a row with the same effect; doing it again will not help. Try another way, or answer with what you have."
            ));
        }
        if self.complaints == COMPLAINTS_NUDGE {
            return Verdict::Nudge(format!(
                "The last {COMPLAINTS_NUDGE} calls all failed. Read what the tools say, change the approach, or answer with what you have."
            ));
        }
        Verdict::Fine
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

    /// The run should get its last turn.
    pub(super) const fn stuck(&self) -> bool {
        self.stuck
    }

    fn push(&mut self, step: Step) {
        if self.seen.len() == WINDOW {
            self.seen.remove(0);
        }
        self.seen.push(step);
    }

    /// The most rounds that a cycle of one, two or three calls has gone through at the end.
    fn repeats(&self) -> usize {
        (1..=LONGEST_CYCLE)
            .map(|length| self.rounds(length))
            .max()
            .unwrap_or(0)
    }

    /// How often the newest `length` calls stand at the end, one after another.
    fn rounds(&self, length: usize) -> usize {
        let newest: Vec<&Step> = self.seen.iter().rev().take(length).collect();
        if newest.len() < length {
            return 0;
        }
        self.seen
            .rchunks_exact(length)
            .take_while(|chunk| chunk.iter().rev().eq(newest.iter().copied()))
            .count()
    }
}

/// The same text for the same arguments, whatever the order of keys.
fn canonical(args: &Value) -> String {
    match args {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let parts: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("{key:?}:{}", canonical(value)))
                .collect();
            format!("{{{}}}", parts.join(","))
        }
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(canonical).collect::<Vec<_>>().join(",")
        ),
        other => other.to_string(),
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(guard: &mut LoopGuard, command: &str, result: &str) -> Verdict {
        guard.record("bash", &json!({ "command": command }), result, false)
    }

    #[test]
    fn the_third_equal_call_is_told_the_fifth_refused_the_eighth_ends_it() {
        let mut guard = LoopGuard::default();
        assert_eq!(call(&mut guard, "ls", "a"), Verdict::Fine);
        assert_eq!(call(&mut guard, "ls", "a"), Verdict::Fine);
        assert!(matches!(call(&mut guard, "ls", "a"), Verdict::Nudge(_)));
        assert!(!guard.refuses("bash", &json!({"command": "ls"})));
        assert_eq!(call(&mut guard, "ls", "a"), Verdict::Fine);
        for nth in 5..=8 {
            assert!(guard.refuses("bash", &json!({"command": "ls"})), "{nth}");
            assert_eq!(guard.stuck(), nth == 8, "{nth}");
        }
    }

    #[test]
    fn a_poll_whose_result_changes_is_no_loop() {
        let mut guard = LoopGuard::default();
        for n in 0..20 {
            assert_eq!(call(&mut guard, "date", &n.to_string()), Verdict::Fine);
            assert!(!guard.refuses("bash", &json!({"command": "date"})));
        }
    }

    #[test]
    fn cycles_of_two_and_three_count() {
        for cycle in [&["a", "b"][..], &["a", "b", "c"][..]] {
            let mut guard = LoopGuard::default();
            let mut nudges = 0;
            for _ in 0..3 {
                for command in cycle {
                    nudges += usize::from(call(&mut guard, command, "same") != Verdict::Fine);
                }
            }
            assert_eq!(nudges, 1, "{cycle:?}");
        }
    }

    #[test]
    fn key_order_does_not_hide_a_repeat() {
        assert_eq!(
            canonical(&json!({"a": 1, "b": [2]})),
            canonical(&json!({"b": [2], "a": 1}))
        );
    }
}
