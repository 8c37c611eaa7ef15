use serde_json::{Value, json};

use super::*;
use crate::tools::ToolAnswer;

fn key(command: &str) -> u64 {
    call_key("bash", &ToolArgs::Json(json!({ "command": command })))
}

fn outcome(command: &str, result: u64, complaint: bool) -> Outcome<'static> {
    Outcome {
        tool: "bash",
        call: key(command),
        result,
        took: Duration::ZERO,
        complaint,
    }
}

/// One response with one call; whether the model is told something.
fn call(guard: &mut LoopGuard, command: &str, result: u64) -> bool {
    !guard.record(&[outcome(command, result, false)]).is_empty()
}

/// What `bash` answers: the exit code and the kept bytes are facts, the rest is words around them.
fn ran(exit_code: i32, output: &str, seconds: f64, pid: u32) -> u64 {
    let answer = ToolAnswer {
        text: format!("{output}\n[exit {exit_code} after {seconds} s; /tmp/output-{pid}]"),
        exit_code: Some(exit_code),
        is_error: exit_code != 0,
        outcome: Some(key(&format!("{exit_code} {output}"))),
        ..ToolAnswer::default()
    };
    answer.fingerprint()
}

#[test]
fn the_third_equal_call_is_told_the_fifth_refused_the_eighth_ends_it() {
    let mut guard = LoopGuard::default();
    assert!(!call(&mut guard, "ls", 1));
    assert!(!call(&mut guard, "ls", 1));
    assert!(call(&mut guard, "ls", 1));
    assert_eq!(guard.refuses(key("ls")), None);
    assert!(!call(&mut guard, "ls", 1));
    for nth in 5..=8 {
        let before = guard.refuses(key("ls"));
        let right = Refused {
            result: 1,
            among_others: false,
        };
        assert_eq!(before, Some(right), "{nth}");
        assert_eq!(guard.refuses(key("pwd")), None, "another call is no repeat");
        guard.record(&[outcome("ls", 1, true)]);
        let stuck = (nth == 8).then_some(Stuck::Repeating);
        assert_eq!(guard.stuck(), stuck, "{nth}");
    }
}

#[test]
fn a_poll_whose_result_changes_is_no_loop() {
    let mut guard = LoopGuard::default();
    for n in 0..20 {
        assert!(!call(&mut guard, "date", n));
        assert_eq!(guard.refuses(key("date")), None);
    }
}

#[test]
fn cycles_of_two_and_three_count_and_are_told_once() {
    for cycle in [&["a", "b"][..], &["a", "b", "c"][..]] {
        let mut guard = LoopGuard::default();
        let mut nudges = 0;
        for _ in 0..4 {
            for command in cycle {
                nudges += usize::from(call(&mut guard, command, 1));
            }
        }
        assert_eq!(nudges, 1, "{cycle:?}");
        let refused = guard.refuses(key("a")).unwrap();
        assert!(refused.among_others && guard.refuses(key("b")).is_none());
    }
}

#[test]
fn key_order_does_not_hide_a_repeat_and_other_arguments_are_another_call() {
    let key = |json: &str| {
        let value: Value = serde_json::from_str(json).unwrap();
        call_key("bash", &ToolArgs::Json(value))
    };
    assert_eq!(
        key(r#"{"a":1,"b":{"c":[2],"d":3}}"#),
        key(r#"{"b":{"d":3,"c":[2]},"a":1}"#)
    );
    assert_ne!(key(r#"{"a":1,"b":2}"#), key(r#"{"a":2,"b":1}"#));
    assert_ne!(key(r#"{"a":[1,2]}"#), key(r#"{"a":[2,1]}"#));
}

#[test]
fn a_command_that_repeats_is_seen_however_long_it_takes_and_wherever_its_output_lies() {
    for (code, output) in [(0, "1\n2\n3"), (1, "error: no such file")] {
        let mut guard = LoopGuard::default();
        for nth in 1..=8_u32 {
            let result = ran(code, output, f64::from(nth) * 0.3, 4000 + nth);
            call(&mut guard, "make", result);
        }
        assert_eq!(guard.stuck(), Some(Stuck::Repeating), "{code}");
    }
}

#[test]
fn twenty_failing_test_runs_with_ever_fewer_failures_are_progress() {
    let mut guard = LoopGuard::default();
    for left in (1..=20).rev() {
        let result = ran(1, &format!("{left} failed"), 12.4, 77);
        assert!(!call(&mut guard, "cargo test", result));
    }
    assert!(guard.stuck().is_none());
}

#[test]
fn ten_complaints_are_told_and_twenty_end_it_but_never_before_the_model_was_told() {
    let mut guard = LoopGuard::default();
    for nth in 1..=20_u32 {
        let told = guard.record(&[outcome(&nth.to_string(), 0, true)]);
        assert_eq!(told.len(), usize::from(nth == 10), "{nth}");
        let stuck = (nth == 20).then_some(Stuck::Refused);
        assert_eq!(guard.stuck(), stuck, "{nth}");
    }

    let many: Vec<Outcome<'_>> = (0..64)
        .map(|nth| outcome(&nth.to_string(), 0, true))
        .collect();
    let mut guard = LoopGuard::default();
    assert_eq!(guard.record(&many).len(), 1);
    assert!(guard.stuck().is_none());
    let more = outcome("again", 0, true);
    guard.record(&[more]);
    assert_eq!(guard.stuck(), Some(Stuck::Refused));

    let mut guard = LoopGuard::default();
    guard.record(&[outcome("ls", 1, false)]);
    assert_eq!(guard.record(&many).len(), 1);
    guard.record(&[outcome("ls", 1, false)]);
    assert_eq!(guard.stuck(), None, "nothing was refused in the last one");
    guard.record(&[more]);
    assert_eq!(guard.stuck(), Some(Stuck::Refused));

    let mut guard = LoopGuard::default();
    for nth in 0..60 {
        guard.record(&[outcome(&nth.to_string(), 0, nth % 9 != 8)]);
    }
    assert!(guard.stuck().is_none(), "an answer in between is progress");
}

#[test]
fn a_call_beside_refused_ones_is_progress_only_while_something_new_comes_of_it() {
    for (calls, results, stuck_at) in [
        (1, 1, Some(21)),
        (2, 1, Some(22)),
        (1, 99, None),
        (99, 1, None),
    ] {
        let mut guard = LoopGuard::default();
        let mut told = Vec::new();
        let stuck = (1..=100_u64).find(|nth| {
            let good = outcome(&(nth % calls).to_string(), nth % results, false);
            let refused = outcome(&format!("unknown {nth}"), 0, true);
            if !guard.record(&[refused, good]).is_empty() {
                told.push(*nth);
            }
            guard.stuck().is_some()
        });
        assert_eq!(stuck, stuck_at, "{calls} {results}");
        assert_eq!(told[0], 10, "whoever makes progress is told as well");
    }
}

#[test]
fn a_response_counts_once_per_distinct_call() {
    let mut guard = LoopGuard::default();
    let eight = [outcome("ls", 1, false); 8];
    assert!(guard.record(&eight).is_empty() && guard.stuck().is_none());
    assert!(guard.record(&eight).is_empty() && guard.stuck().is_none());
    assert_eq!(guard.record(&eight).len(), 1);

    let mut guard = LoopGuard::default();
    for nth in 0..20 {
        let progress = outcome("step", nth, false);
        assert!(
            guard
                .record(&[outcome("ls", 1, false), progress])
                .is_empty()
        );
        assert_eq!(guard.refuses(key("ls")), None);
    }
    assert!(
        guard.stuck().is_none(),
        "a repeated call beside progress is no loop"
    );
}

#[test]
fn a_notice_says_what_was_called_and_in_what_order() {
    let of = |tool: &'static str, call: u64| Outcome {
        tool,
        call,
        ..outcome("", 1, false)
    };
    for (cycle, told) in [
        (
            vec![vec![of("bash", 1)]],
            "The same call of bash was made 3 times in a row",
        ),
        (
            vec![vec![of("bash", 1), of("grep", 2)]],
            "The same 2 calls (bash, grep) were made 3 times in a row",
        ),
        (
            vec![vec![of("bash", 1)], vec![of("grep", 2)]],
            "The same 2 calls (bash, grep), one after another, were made 3 times in a row",
        ),
    ] {
        let mut guard = LoopGuard::default();
        let rounds = (0..3).flat_map(|_| &cycle);
        let notices: Vec<String> = rounds.flat_map(|round| guard.record(round)).collect();
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(notices[0].starts_with(told), "{notices:?}");
    }
}

#[test]
fn waiting_for_a_job_is_told_and_not_refused_within_a_minute() {
    for (pause, refused, stopped) in [
        (500, 120, 124),
        (2400, 25, 29),
        (30_000, 14, 18),
        (499, 4, 8),
    ] {
        let mut guard = LoopGuard::default();
        let mut first_refused = None;
        for nth in 1..=128 {
            let refuses = guard.refuses(key("sleep; cat f")).is_some();
            if refuses {
                first_refused.get_or_insert(nth - 1);
            }
            let took = Duration::from_millis(if refuses { 0 } else { pause });
            let told = guard.record(&[Outcome {
                took,
                ..outcome("sleep; cat f", 1, refuses)
            }]);
            assert_eq!(told.len(), usize::from(nth == 3), "{pause} {nth}");
            let waits = told
                .iter()
                .any(|told| told.contains("wait longer in one call"));
            assert_eq!(waits, nth == 3 && pause >= 500, "{told:?}");
            if guard.stuck().is_some() {
                assert_eq!((first_refused, nth), (Some(refused), stopped), "{pause}");
                break;
            }
        }
        assert!(guard.stuck().is_some(), "{pause}");
    }
}
