//! `bash`: what is stopped, and what is left of it.

use std::time::Duration;

use sandcaster::clock::Deadline;
use serde_json::json;

use super::{Events, in_every_shell};

/// Whether a process runs: a zombie doesn't.
fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

in_every_shell! {
    async fn a_command_that_takes_too_long_is_killed_with_its_children(rig) {
        let answer = rig
            .answer("bash", json!({"command": "cd /; echo begun; sleep 601 & sleep 602", "timeout_seconds": 1}))
            .await;
        assert!(answer.text.starts_with("begun\n"), "{}", answer.text);
        assert!(answer.text.contains("timed out after 1 s"), "{}", answer.text);
        assert!(answer.is_error);
        assert_eq!(rig.sandbox.processes(), [0; 0]);
        assert_eq!(rig.bash("echo on").await.text, "on\n");
    }

    async fn a_command_that_ignores_term_and_its_session_is_killed(rig) {
        let command = "trap '' TERM; setsid sleep 603 & while :; do sleep 0.1; done";
        let answer = rig.answer("bash", json!({"command": command, "timeout_seconds": 1})).await;
        assert!(answer.text.contains("timed out"), "{}", answer.text);
        assert_eq!(rig.sandbox.processes(), [0; 0]);
    }

    async fn a_child_that_ignores_term_does_not_outlive_its_call(rig) {
        let command = "sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & sleep 609";
        let answer = rig.answer("bash", json!({"command": command, "timeout_seconds": 1})).await;
        assert!(answer.text.contains("timed out"), "{}", answer.text);
        assert_eq!(rig.sandbox.processes(), [0; 0]);
    }

    async fn the_runs_deadline_shortens_a_command(rig) {
        let mut rig = rig;
        rig.context.session.probe(rig.sandbox.as_ref()).await;
        rig.context.deadline = Deadline::after(Duration::from_secs(1));
        let answer = rig.bash("sleep 604").await;
        assert!(answer.text.contains("the run's time is nearly over"), "{}", answer.text);
    }

    async fn a_cancelled_command_answers_and_leaves_nothing(rig) {
        let cancel = rig.context.cancel.clone();
        let mut events = Events::new(&rig, "events").await;
        let (answer, ()) = tokio::join!(rig.bash("echo x; echo begun > events; sleep 605"), async {
            events.next().await;
            cancel.cancel();
        });
        assert!(answer.text.contains("[cancelled]"), "{}", answer.text);
        assert!(answer.is_error);
        assert_eq!(rig.sandbox.processes(), [0; 0]);
        let answer = rig.bash("echo never > file").await;
        assert!(answer.text.contains("[cancelled]"), "{}", answer.text);
    }

    async fn programs_left_behind_are_bounded_and_the_crowd_is_told(rig) {
        for _ in 0..32 {
            assert_eq!(rig.bash("sleep 607 & true").await.exit_code, Some(0));
        }
        let answer = rig.bash("sleep 608 & echo started").await;
        assert!(answer.text.starts_with("started\n"), "{}", answer.text);
        assert!(answer.text.contains("too many programs of earlier calls"), "{}", answer.text);
        let sleeping = rig.sandbox.processes().into_iter().filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"))
        });
        assert_eq!(sleeping.count(), 32);
    }

    async fn what_was_stopped_is_ended_whatever_its_environment(rig) {
        let mut events = Events::new(&rig, "events").await;
        // A child, an orphan in the call's group, a session of its own, all without the marker, deaf to TERM.
        let deaf = "trap \"\" TERM HUP; echo $$ > events; while :; do sleep 0.2; done";
        let path = "PATH=\"$PATH\"";
        let command = format!(
            "env -i {path} sh -c '{deaf}' & (env -i {path} sh -c '{deaf}' &); env -i {path} setsid sh -c '{deaf}' & wait"
        );
        let answer = rig.answer("bash", json!({"command": command, "timeout_seconds": 2})).await;
        assert!(answer.text.contains("timed out after 2 s and was stopped"), "{}", answer.text);
        for _ in 0..3 {
            let pid: i32 = events.next().await.parse().unwrap();
            assert!(!alive(pid), "{pid}: {}", answer.text);
        }
    }

    async fn what_could_not_be_found_is_told(rig) {
        let mut events = Events::new(&rig, "events").await;
        // Its parent is gone, and it is in nobody's group.
        let command = "(env -i PATH=\"$PATH\" setsid sh -c 'echo $$ > events; exec sleep 610' &) ; sleep 611";
        let answer = rig.answer("bash", json!({"command": command, "timeout_seconds": 1})).await;
        let pid: i32 = events.next().await.parse().unwrap();
        // Nothing that a sweep looks at tells whose it is.
        assert!(alive(pid), "{}", answer.text);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        assert!(answer.text.contains(&format!("{pid} (")), "{}", answer.text);
    }
}
