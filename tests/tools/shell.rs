//! `bash`: scenarios 2 to 13 of the tools' sheet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandcaster::clock::Deadline;
use sandcaster::sandbox::{Sandbox, SandboxError};
use sandcaster::secrets::{Redactor, Secret};
use sandcaster::tools::Failure;
use serde_json::json;

use super::in_every_shell;
use crate::support::host_sandbox::Shell;

#[expect(clippy::disallowed_methods, reason = "tests measure real time")]
fn now() -> Instant {
    Instant::now()
}

/// Waits until `what` holds, for at most ten seconds.
async fn until(what: impl Fn() -> bool) {
    for _ in 0..500 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never came");
}

in_every_shell! {
    async fn output_and_exit_code_come_back(rig) {
        let answer = rig.bash("echo out; echo err >&2").await;
        assert_eq!(answer.text, "out\nerr\n");
        assert_eq!((answer.exit_code, answer.is_error), (Some(0), false));
        let answer = rig.bash("true").await;
        assert_eq!(answer.text, "(no output)");
        let answer = rig.bash("printf 'no line end'; exit 4").await;
        assert!(answer.text.starts_with("no line end\n[exit 4 · 0."), "{}", answer.text);
        assert!(answer.is_error);
    }

    async fn the_directory_carries_over_and_variables_do_not(rig) {
        rig.bash("mkdir -p 'sub dir/x'").await;
        let answer = rig.bash("cd 'sub dir'; export X=1; Y=2").await;
        let dir = format!("{}/sub dir", rig.home());
        assert_eq!(answer.cwd.as_deref(), Some(dir.as_str()));
        assert_eq!(answer.text, format!("[now in {dir}]"));
        let answer = rig.bash("pwd; echo \"[$X$Y$1$@]\"").await;
        assert_eq!(answer.text, format!("{dir}\n[]\n"));
        assert_eq!(answer.cwd, None);
        // In a subshell it is nobody's business.
        assert_eq!(rig.bash("(cd x)").await.cwd, None);
        assert_eq!(rig.context.session.cwd(), dir);
    }

    async fn the_directory_is_kept_after_a_failure_and_when_it_is_unknown(rig) {
        rig.bash("mkdir a b").await;
        let answer = rig.bash("cd a; exit 3").await;
        assert_eq!(answer.exit_code, Some(3));
        let dir = format!("{}/a", rig.home());
        assert_eq!(rig.context.session.cwd(), dir);
        let answer = rig.bash("cd ../b; kill -9 $$").await;
        assert_eq!(answer.exit_code, Some(137), "{}", answer.text);
        assert!(answer.text.contains("killed"), "{}", answer.text);
        assert!(!answer.text.contains("Killed"), "{}", answer.text);
        assert_eq!(rig.bash("pwd").await.text, format!("{dir}\n"));
        rig.bash("cd ../b; exec true").await;
        assert_eq!(rig.context.session.cwd(), dir);
        let answer = rig.bash("set -e; cd ../b; false; echo never").await;
        assert_eq!(answer.exit_code, Some(1));
        assert_eq!(rig.context.session.cwd(), format!("{}/b", rig.home()));
    }

    async fn a_directory_that_is_gone_falls_back_to_the_start(rig) {
        rig.bash("mkdir d; cd d").await;
        rig.bash("rmdir ../d").await;
        let answer = rig.bash("pwd").await;
        assert!(answer.text.starts_with(&rig.home()), "{}", answer.text);
        assert!(answer.text.contains("no longer exists"), "{}", answer.text);
        assert_eq!(answer.cwd.as_deref(), Some(rig.home().as_str()));
        assert_eq!(rig.bash("pwd").await.text, format!("{}\n", rig.home()));
    }

    async fn nothing_waits_for_a_keyboard(rig) {
        let started = now();
        assert_eq!(rig.bash("cat").await.text, "(no output)");
        assert_eq!(rig.bash("read x").await.exit_code, Some(1));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    async fn scripts_of_every_form_work(rig) {
        let answer = rig.bash("cat <<'EOF'\na $x `b`\nEOF\nf() { echo in f; }\nf\necho \"it's\"").await;
        assert_eq!(answer.text, "a $x `b`\nin f\nit's\n");
        let answer = rig.bash("if true; then").await;
        assert_ne!(answer.exit_code, Some(0));
        assert!(!answer.text.is_empty());
        let answer = rig.bash("nosuchprogram --x").await;
        assert_eq!(answer.exit_code, Some(127));
        assert!(answer.text.contains("command not found. "), "{}", answer.text);
        assert!(answer.text.contains("python3"), "{}", answer.text);
    }

    async fn a_command_that_takes_too_long_is_killed_with_its_children(rig) {
        let started = now();
        let answer = rig
            .answer("bash", json!({"command": "cd /; echo begun; sleep 601 & sleep 602", "timeout_seconds": 1}))
            .await;
        assert!(started.elapsed() < Duration::from_secs(8));
        assert!(answer.text.starts_with("begun\n"), "{}", answer.text);
        assert!(answer.text.contains("timed out after 1 s"), "{}", answer.text);
        assert!(answer.is_error);
        until(|| rig.sandbox.processes().is_empty()).await;
        assert_eq!(rig.bash("echo on").await.text, "on\n");
    }

    async fn a_command_that_ignores_term_and_its_session_is_killed(rig) {
        let command = "trap '' TERM; setsid sleep 603 & while :; do sleep 0.1; done";
        let answer = rig.answer("bash", json!({"command": command, "timeout_seconds": 1})).await;
        assert!(answer.text.contains("timed out"), "{}", answer.text);
        until(|| rig.sandbox.processes().is_empty()).await;
    }

    async fn a_child_that_ignores_term_does_not_outlive_its_call(rig) {
        let command = "sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & sleep 609";
        let answer = rig.answer("bash", json!({"command": command, "timeout_seconds": 1})).await;
        assert!(answer.text.contains("timed out"), "{}", answer.text);
        until(|| rig.sandbox.processes().is_empty()).await;
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
        let (answer, ()) = tokio::join!(rig.bash("touch started; echo x; sleep 605"), async {
            until(|| rig.sandbox.home().join("started").exists()).await;
            cancel.cancel();
        });
        assert!(answer.text.contains("[cancelled]"), "{}", answer.text);
        assert!(answer.is_error);
        until(|| rig.sandbox.processes().is_empty()).await;
        let answer = rig.bash("echo never > file").await;
        assert!(answer.text.contains("[cancelled]"), "{}", answer.text);
    }

    async fn a_program_in_the_background_does_not_hold_the_call(rig) {
        let started = now();
        let command = "(i=0; while [ $i -lt 100 ]; do echo tick $i; echo $i > alive; i=$((i+1)); sleep 0.1; done) & echo server up";
        let answer = rig.bash(command).await;
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        assert!(answer.text.contains("server up\n"), "{}", answer.text);
        assert_eq!(answer.exit_code, Some(0));
        // It goes on, though nobody reads what it prints.
        let count = || std::fs::read_to_string(rig.sandbox.home().join("alive"))
            .ok()
            .and_then(|n| n.trim().parse::<u32>().ok())
            .unwrap_or(0);
        until(|| count() >= 10).await;
        rig.sandbox.kill().await.unwrap();
        until(|| rig.sandbox.processes().is_empty()).await;
    }

    async fn a_background_call_gives_pid_and_output_file(rig) {
        let answer = rig
            .answer("bash", json!({"command": "echo first; sleep 2; echo second; sleep 606", "background": true}))
            .await;
        assert!(answer.text.starts_with("first\n[running in the background: pid "), "{}", answer.text);
        assert_eq!((answer.exit_code, answer.is_error), (None, false));
        let path = answer.output_path.unwrap();
        until(|| std::fs::read_to_string(&path).unwrap() == "first\nsecond\n").await;
        let pid: i32 = answer.text.split_once("pid ").unwrap().1.split_once(',').unwrap().0.parse().unwrap();
        assert!(rig.sandbox.processes().contains(&pid));
        rig.bash(&format!("kill {pid}")).await;
        until(|| !rig.sandbox.processes().contains(&pid)).await;

        let answer = rig.answer("bash", json!({"command": "echo quick; exit 7", "background": "true"})).await;
        assert!(answer.text.contains("quick\n[ended already: exit 7"), "{}", answer.text);
        assert_eq!((answer.exit_code, answer.is_error), (Some(7), true));
    }

    async fn long_output_shows_both_ends_and_the_file_has_all(rig) {
        let answer = rig.bash("i=0; while [ $i -lt 20000 ]; do echo \"line $i of the output\"; i=$((i+1)); done").await;
        assert!(answer.truncated);
        let (head, rest) = answer.text.split_once("\n[… ").unwrap();
        let (notice, tail) = rest.split_once("]\n").unwrap();
        assert!(head.starts_with("line 0 of the output\n") && head.len() <= 8_000);
        assert!(tail.ends_with("line 19999 of the output\n") && tail.len() <= 16_000);
        let path = answer.output_path.unwrap();
        assert!(notice.contains(&path), "{notice}");
        let whole = std::fs::read_to_string(&path).unwrap();
        assert_eq!(whole.lines().count(), 20_000);
        assert!(whole.ends_with("line 19999 of the output\n"));
        assert_eq!(answer.total_chars, Some(whole.len() as u64));
        let offset: u64 = notice.split_once("offset=").unwrap().1.split_once(',').unwrap().0.parse().unwrap();
        let page = rig.text("file_read", json!({"path": path, "offset": offset, "limit": 1})).await;
        let next = head.lines().count();
        assert!(page.starts_with(&format!("{offset}\tline {next} of")), "{page}");
    }

    async fn a_flood_is_stopped_and_its_file_is_bounded(rig) {
        let answer = rig.bash("yes floods").await;
        assert!(answer.text.contains("stopped after 32 MiB of output"), "{}", &answer.text[answer.text.len() - 200..]);
        assert!(answer.is_error && answer.text.chars().count() < 30_000);
        let size = std::fs::metadata(answer.output_path.unwrap()).unwrap().len();
        assert!(size > 9 << 20 && size <= 20 << 20, "{size}");
        until(|| rig.sandbox.processes().is_empty()).await;
    }

    async fn an_imitated_end_record_is_output(rig) {
        let command = "printf '\\n\\0360123456789abcdef0123456789abcdef 0 0 /\\036'; printf after; exit 5";
        let answer = rig.bash(command).await;
        assert_eq!(answer.exit_code, Some(5));
        assert!(answer.text.contains("0123456789abcdef 0 0 /"), "{}", answer.text);
        assert!(answer.text.contains("after"), "{}", answer.text);
    }

    async fn what_is_shown_is_clean_text(rig) {
        let answer = rig.bash("printf '\\033[31mred\\033[0m\\n 1%%\\r99%%\\nbad \\377 nul \\000 end'").await;
        assert_eq!(answer.text, "red\n99%\nbad \u{fffd} nul \u{fffd} end");
        let answer = rig.bash("head -c 5000 /dev/urandom").await;
        serde_json::to_string(&answer.text).unwrap();
    }

    async fn secrets_are_redacted(rig) {
        let mut rig = rig;
        rig.context.redactor = Redactor::new([&Secret::new("sk-ant-0123456789")]);
        let answer = rig.bash("printf sk-ant-; sleep 0.1; echo 0123456789").await;
        assert_eq!(answer.text, "[redacted]\n");
    }

    async fn a_command_of_150_kb_runs_through_a_file(rig) {
        let command = format!("x='{}'; echo ${{#x}}; exit 6", "y".repeat(150_000));
        let answer = rig.bash(&command).await;
        assert!(answer.text.starts_with("150000\n"), "{}", answer.text);
        assert_eq!(answer.exit_code, Some(6));
    }

    async fn unusable_commands_are_complained_about(rig) {
        for (command, word) in [("  ", "empty"), ("[{\"cmd\": \"ls\"}]", "literal"), ("a\u{0}b", "NUL")] {
            let why = rig.complaint("bash", json!({ "command": command })).await;
            assert!(why.contains(word), "{why}");
        }
        let why = rig.complaint("bash", json!({"command": "ls", "timeout_seconds": 0})).await;
        assert!(why.contains("between 1 and 600"), "{why}");
    }

    async fn the_environment_is_quiet_and_the_facts_are_told_once(rig) {
        let answer = rig.bash("echo $PAGER $TERM $CI $LANG").await;
        assert_eq!(answer.text, "cat dumb 1 C.UTF-8\n");
        let notice = rig.context.session.take_notice().unwrap();
        let shell = if rig.shell == Shell::Bash { "shell bash" } else { "shell sh" };
        assert!(notice.contains(shell) && notice.contains(&rig.home()), "{notice}");
        assert!(notice.contains("uid "), "{notice}");
        assert_eq!(rig.context.session.take_notice(), None);
    }

    async fn programs_left_behind_are_bounded_and_the_crowd_is_told(rig) {
        for _ in 0..32 {
            assert_eq!(rig.bash("sleep 607 & true").await.exit_code, Some(0));
        }
        let answer = rig.bash("sleep 608 & echo started").await;
        assert!(answer.text.starts_with("started\n"), "{}", answer.text);
        assert!(answer.text.contains("too many programs of earlier calls"), "{}", answer.text);
        let answer = rig.bash("for e in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$e; echo; done 2>/dev/null | grep -c '^sleep 60[78]'").await;
        assert!(answer.text.starts_with("32"), "{}", answer.text);
    }

    async fn a_killed_shell_is_told(rig) {
        // The outer shell is the parent of the one that runs the command, or that one's.
        let answer = rig.bash("kill -9 0").await;
        assert!(answer.text.contains("ended the shell that ran it"), "{}", answer.text);
        assert_eq!(rig.bash("echo on").await.text, "on\n");
    }
}

#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn the_path_of_a_login_shell_is_used() {
    let rig = super::Rig::new(Shell::Bash);
    rig.put(
        ".bash_profile",
        "echo noise; export PATH=/opt/conda/bin:$PATH\n",
    );
    let answer = rig.bash("echo $PATH").await;
    assert!(
        answer.text.starts_with("/opt/conda/bin:"),
        "{}",
        answer.text
    );
}

#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn a_profile_that_hangs_costs_two_seconds_and_no_facts() {
    let rig = super::Rig::new(Shell::Bash);
    rig.put(".bash_profile", "sleep 100\n");
    let started = now();
    let facts = rig.context.session.probe(rig.sandbox.as_ref()).await;
    assert!(started.elapsed() < Duration::from_secs(4));
    assert_eq!(facts.shell, "bash");
    assert!(facts.uid.is_some() && facts.path.is_none());
}

/// A sandbox whose every call says that it is gone.
struct Lost;

#[async_trait::async_trait]
impl Sandbox for Lost {
    fn id(&self) -> &'static str {
        "lost"
    }
    fn working_dir(&self) -> &'static str {
        "/home"
    }
    async fn exec(
        &self,
        _: sandcaster::sandbox::ExecSpec,
    ) -> Result<sandcaster::sandbox::ExecStream, SandboxError> {
        Err(SandboxError::Gone("it died".to_owned()))
    }
    async fn read(&self, _: &str, _: u64) -> Result<bytes::Bytes, SandboxError> {
        Err(SandboxError::Gone("it died".to_owned()))
    }
    async fn write(&self, _: &str, _: bytes::Bytes) -> Result<(), SandboxError> {
        Err(SandboxError::Gone("it died".to_owned()))
    }
    async fn extend(&self, _: Duration) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn kill(&self) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn gone(&self) -> SandboxError {
        SandboxError::Gone("it died".to_owned())
    }
}

#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn the_loss_of_the_sandbox_is_fatal_for_every_tool() {
    let mut rig = super::Rig::new(Shell::Bash);
    rig.context.sandbox = Arc::new(Lost);
    for (name, args) in [
        ("bash", json!({"command": "ls"})),
        ("file_read", json!({"path": "a"})),
        ("file_write", json!({"path": "a", "content": "b"})),
        (
            "file_edit",
            json!({"path": "a", "old_string": "b", "new_string": "c"}),
        ),
        ("glob", json!({"pattern": "*"})),
        ("grep", json!({"pattern": "x"})),
    ] {
        let outcome = rig.call(name, args).await;
        assert!(
            matches!(outcome, Err(Failure::Fatal(_))),
            "{name}: {outcome:?}"
        );
    }
}
