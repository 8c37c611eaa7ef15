//! `bash`: scenarios 2 to 13 of the tools' sheet.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sandcaster::clock::Deadline;
use sandcaster::sandbox::{ExecSpec, ExecStream, FileErrorKind, Sandbox, SandboxError};
use sandcaster::secrets::{Redactor, Secret};
use sandcaster::tools::Failure;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::unix::pipe::{OpenOptions, Receiver};

use super::{Rig, in_every_shell};
use crate::support::host_sandbox::{HostSandbox, Shell};
use crate::support::processes::until;

#[expect(clippy::disallowed_methods, reason = "tests measure real time")]
fn now() -> Instant {
    Instant::now()
}

/// Whether a process runs: a zombie doesn't.
fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Lines that commands write to a FIFO of the working directory: what a test waits for.
struct Events(Lines<BufReader<Receiver>>);

impl Events {
    async fn new(rig: &Rig, name: &str) -> Self {
        assert_eq!(rig.bash(&format!("mkfifo {name}")).await.exit_code, Some(0));
        // Opened for writing too, so that it doesn't end between two writers.
        let pipe = OpenOptions::new()
            .read_write(true)
            .open_receiver(rig.sandbox.home().join(name))
            .unwrap();
        Self(BufReader::new(pipe).lines())
    }

    async fn next(&mut self) -> String {
        self.0.next_line().await.unwrap().unwrap()
    }
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
        assert!(answer.text.contains("SIGKILL"), "{}", answer.text);
        assert!(answer.text.contains("is not known; the next one starts in"), "{}", answer.text);
        assert!(!answer.text.contains("Killed"), "{}", answer.text);
        assert_eq!(rig.bash("pwd").await.text, format!("{dir}\n"));
        let answer = rig.bash("cd ../b; exec true").await;
        assert!(answer.text.contains("is not known; the next one starts in"), "{}", answer.text);
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
        assert_eq!(rig.bash("cat").await.text, "(no output)");
        assert_eq!(rig.bash("read x").await.exit_code, Some(1));
    }

    async fn scripts_of_every_form_work(rig) {
        let answer = rig.bash("cat <<'EOF'\na $x `b`\nEOF\nf() { echo in f; }\nf\necho \"it's\"").await;
        assert_eq!(answer.text, "a $x `b`\nin f\nit's\n");
        let answer = rig.bash("if true; then").await;
        assert_ne!(answer.exit_code, Some(0));
        assert!(!answer.text.is_empty());
        let answer = rig.bash("nosuchprogram --x").await;
        assert_eq!(answer.exit_code, Some(127));
        assert!(answer.text.contains("not found\n[exit 127 · "), "{}", answer.text);
        assert!(answer.text.contains("python3"), "{}", answer.text);
    }

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

    async fn a_program_in_the_background_does_not_hold_the_call(rig) {
        let mut events = Events::new(&rig, "events").await;
        let command = "(i=0; while :; do echo tick $i; echo $i > events; i=$((i+1)); sleep 0.1; done) & echo server up";
        let answer = rig.bash(command).await;
        assert!(answer.text.contains("server up\n"), "{}", answer.text);
        assert_eq!(answer.exit_code, Some(0));
        // It goes on, though nobody reads what it prints.
        for n in 0..10 {
            assert_eq!(events.next().await, n.to_string());
        }
        rig.sandbox.kill().await.unwrap();
        // A killed process is there for a moment longer.
        until(|| rig.sandbox.processes().is_empty(), "the sandbox to be empty").await;
    }

    async fn a_background_call_gives_pid_and_output_file(rig) {
        let mut events = Events::new(&rig, "events").await;
        let command = "echo first; read go < go; echo second; echo said > events; sleep 606 & wait";
        assert_eq!(rig.bash("mkfifo go").await.exit_code, Some(0));
        let answer = rig.answer("bash", json!({"command": command, "background": true})).await;
        assert!(answer.text.starts_with("first\n[running in the background: pid "), "{}", answer.text);
        assert_eq!((answer.exit_code, answer.is_error), (None, false));
        let path = answer.output_path.unwrap();
        rig.bash("echo go > go").await;
        assert_eq!(events.next().await, "said");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first\nsecond\n");
        let pid: i32 = answer.text.split_once("pid ").unwrap().1.split_once(',').unwrap().0.parse().unwrap();
        assert!(rig.sandbox.processes().contains(&pid));
        // What the text says ends all of it, the shell's children too.
        let stop = answer.text.split_once("Stop it with ").unwrap().1.trim_end_matches(".]");
        let gone = rig.bash(&format!("{stop}; while kill -0 {pid} 2>/dev/null; do sleep 0.02; done")).await;
        assert_eq!(gone.text, "(no output)");
        assert_eq!(rig.sandbox.processes(), [0; 0]);

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
        assert_eq!(rig.sandbox.processes(), [0; 0]);
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
        let sleeping = rig.sandbox.processes().into_iter().filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"))
        });
        assert_eq!(sleeping.count(), 32);
    }

    async fn the_wrapper_does_not_show_through(rig) {
        // The command's own line numbers, where the shell tells any.
        let answer = rig.bash("echo one\necho two\nnosuchprogram").await;
        let line = if rig.shell == Shell::Dash { " 3: " } else { "line 3: " };
        assert!(answer.text.contains(line), "{}", answer.text);
        // No arguments, options or variables of ours.
        let answer = rig.bash("echo \"$#|$*|$-\"; env | grep -c -e sandcaster -e sc_; echo ${OLDPWD-none}").await;
        let options = if rig.shell == Shell::Bash { "0||hBc" } else { "0||" };
        assert!(answer.text.starts_with(options) && answer.text.contains("\n0\nnone\n"), "{}", answer.text);
        // Nothing of ours is traced, and what the command sets doesn't disturb the end.
        for (command, code) in [
            ("set -x; cd /usr", 0),
            ("set -v; cd /usr", 0),
            ("set -eu; cd /usr", 0),
            ("set -C; cd /usr", 0),
            ("cd /usr; exit 3", 3),
            ("cd /usr; false", 1),
            ("set -e; cd /usr; false; cd /", 1),
            ("set -u; cd /usr; echo $nope; cd /", 127),
            ("exec 1>&- 2>&-; cd /usr", 0),
            ("pwd() { echo mine; }; cd() { command cd \"$@\"; }; cd /usr", 0),
            ("cd /usr # no line end", 0),
            ("cat <<END; cd /usr\nhere\nEND", 0),
            ("trap 'echo bye' EXIT; cd /usr", 0),
        ] {
            rig.bash(&format!("cd {}", rig.home())).await;
            let answer = rig.bash(command).await;
            let code = if command.starts_with("set -u;") && rig.shell != Shell::Bash { 2 } else { code };
            assert_eq!(answer.exit_code, Some(code), "{command}: {}", answer.text);
            assert_eq!(answer.cwd.as_deref(), Some("/usr"), "{command}: {}", answer.text);
            for ours in ["sandcaster", "sc_", "pwd -P"] {
                assert!(!answer.text.contains(ours), "{command}: {}", answer.text);
            }
        }
    }

    async fn scripts_that_do_not_end_are_told_in_their_own_words(rig) {
        for (command, code) in [("echo a\nif true; then", 2), ("echo a; echo \"b", 2), ("fi", 2), ("echo a; exit 9; (", 9)] {
            let answer = rig.bash(command).await;
            if command.ends_with('(') && rig.shell == Shell::Bash {
                // bash reads the whole line first.
                assert_eq!(answer.exit_code, Some(2));
            } else if !command.ends_with('(') {
                assert_eq!(answer.exit_code, Some(code), "{command}: {}", answer.text);
            }
            assert!(!answer.text.contains("sandcaster"), "{command}: {}", answer.text);
        }
        let answer = rig.bash("cat <<END\nno end").await;
        assert!(answer.text.contains("no end") && answer.exit_code == Some(0), "{}", answer.text);
    }

    async fn a_lost_directory_is_told(rig) {
        rig.bash("mkdir d").await;
        for command in [
            "trap 'echo bye' EXIT; cd d; exit 3",
            "cd d; exec true",
        ] {
            let answer = rig.bash(command).await;
            let told = format!("not known; the next one starts in {}", rig.home());
            assert!(answer.text.contains(&told), "{command}: {}", answer.text);
            assert_eq!(rig.bash("pwd").await.text, format!("{}\n", rig.home()));
        }
        // A directory that is there, but can't be entered, has not gone.
        rig.bash("cd d").await;
        let closed = rig.bash("chmod 0 ../d; id -u").await;
        if closed.text != "0\n" {
            let answer = rig.bash("pwd").await;
            assert!(answer.text.contains("d can't be entered; ran in"), "{}", answer.text);
        }
    }

    async fn reasons_are_given_only_where_they_are_so(rig) {
        rig.put("bad.sh", "#!/no/such/interpreter\n");
        rig.bash("chmod 755 bad.sh; mkdir dir").await;
        for (command, code) in [
            ("set -u; echo $nope", None),
            ("exit 127", Some(127)),
            ("exit 126", Some(126)),
            ("exit 137", Some(137)),
            ("./bad.sh", None),
            ("./dir", Some(126)),
        ] {
            let answer = rig.bash(command).await;
            let (_, ours) = answer.text.rsplit_once('[').unwrap();
            for reason in ["command not found", "found", "perhaps", "killed"] {
                assert!(!ours.contains(reason), "{command}: {}", answer.text);
            }
            if let Some(code) = code {
                assert_eq!(answer.exit_code, Some(code), "{command}");
            }
        }
        let answer = rig.bash("set -u; echo $nope").await;
        assert!(!answer.text.contains("Installed"), "{}", answer.text);
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
        if alive(pid) {
            assert!(answer.text.contains(&format!("{pid} (")), "{}", answer.text);
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        }
    }

    async fn a_key_across_the_cut_is_not_shown_by_half(rig) {
        let mut rig = rig;
        rig.context.redactor = Redactor::new([&Secret::new("sk-ant-0123456789")]);
        // The head ends at 8,000 characters, the tail begins 16,000 before the end, the background's at 4,096.
        for before in [7_990, 7_995, 7_999] {
            let answer = rig.bash(&format!("head -c {before} /dev/zero | tr '\\0' x; printf sk-ant-0123456789; head -c 40000 /dev/zero | tr '\\0' y")).await;
            assert!(answer.truncated);
            assert!(!answer.text.contains("sk-ant") && !answer.text.contains("x0123"), "{before}");
        }
        for after in [15_985, 15_990, 15_999] {
            let answer = rig.bash(&format!("head -c 40000 /dev/zero | tr '\\0' x; printf sk-ant-0123456789; head -c {after} /dev/zero | tr '\\0' y")).await;
            assert!(answer.truncated);
            assert!(!answer.text.contains("123456789"), "{after}");
        }
        for before in [4_085, 4_090, 8_180] {
            let command = format!("head -c {before} /dev/zero | tr '\\0' x; echo sk-ant-0123456789; sleep 612");
            let answer = rig.answer("bash", json!({"command": command, "background": true})).await;
            assert!(answer.text.contains("xxx"), "{before}: {}", answer.text);
            assert!(!answer.text.contains("sk-a"), "{before}: {}", answer.text);
        }
    }

    async fn all_output_files_together_are_bounded(rig) {
        let mut paths = Vec::new();
        for _ in 0..2 {
            let command = "head -c 40000000 /dev/zero";
            let answer = rig.answer("bash", json!({"command": command, "background": true})).await;
            assert!(answer.text.contains("ended already: exit 0"), "{}", answer.text);
            paths.push(answer.output_path.unwrap());
        }
        let size = |path: &String| std::fs::metadata(path).unwrap().len();
        let answer = rig.bash("echo a").await;
        let told = format!("[these older output files were emptied, for all together had more than 64 MiB: {}]", paths[0]);
        assert!(answer.text.contains(&told), "{}", answer.text);
        assert_eq!((size(&paths[0]), size(&paths[1])), (0, 40_000_000));
        assert_eq!(rig.bash("echo a").await.text, "a\n");
        // Outputs that nobody was told of leave nothing.
        let dir = std::path::Path::new(&paths[0]).parent().unwrap().to_owned();
        let ours = paths[0].rsplit_once('/').unwrap().1.split_once('-').unwrap().0.to_owned();
        let count = || std::fs::read_dir(&dir).unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&ours)).count();
        // A slow machine may take a while to see that nobody holds the file any more.
        let before = count();
        for n in 0..50 {
            rig.bash(&format!("echo {n}; exit {n}")).await;
        }
        let more = count() - before;
        assert!(more <= 10, "{more} files of 50 commands");
    }

    async fn no_part_of_a_key_is_shown_of_an_output_that_goes_on(rig) {
        let mut rig = rig;
        let key = "sandcaster-key-0123456789-".repeat(4);
        rig.context.redactor = sandcaster::secrets::Redactor::new([&sandcaster::secrets::Secret::new(&key)]);
        rig.put("keys", key.repeat(100));
        for before in ["", "xxxxxxxxx", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"] {
            let command = format!("printf '%s' {before}; cat keys");
            let text = rig.text("bash", json!({"command": command, "background": true})).await;
            assert!(text.contains("[redacted]") && !text.contains("sandcaster-k"), "{text}");
        }
    }

    async fn an_output_that_could_not_be_kept_is_told(rig) {
        let many = "i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done";
        let first = rig.bash(many).await.output_path.unwrap();
        let next = first.replace("-1.txt", "-2.txt");
        let answer = rig.bash(&format!("{many}; rm {next}")).await;
        assert!(answer.text.contains("could not be kept in a file"), "{}", answer.text);
        assert_eq!(answer.output_path, None);
    }

    async fn equal_outcomes_have_equal_fingerprints(rig) {
        let many = "i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done";
        for command in ["echo a; sleep 0.3; exit 3", "false", many, "nosuchprogram"] {
            let first = rig.bash(command).await;
            let second = rig.bash(command).await;
            assert_eq!(first.fingerprint(), second.fingerprint(), "{command}");
        }
        let background = json!({"command": "echo up; sleep 613", "background": true});
        let first = rig.answer("bash", background.clone()).await;
        let second = rig.answer("bash", background).await;
        assert_ne!(first.text, second.text);
        assert_eq!(first.fingerprint(), second.fingerprint());
        let a = rig.bash("echo a; exit 1").await.fingerprint();
        assert_ne!(a, rig.bash("echo a; exit 2").await.fingerprint());
        assert_ne!(a, rig.bash("echo b; exit 1").await.fingerprint());
        rig.bash("mkdir -p one/two").await;
        let (one, two) = (rig.bash("cd one").await, rig.bash("cd two").await);
        assert_ne!(one.fingerprint(), two.fingerprint());
    }

    async fn the_true_cause_is_told_when_nothing_could_be_started(rig) {
        rig.put("a", "x");
        for (tool, args) in [
            ("grep", json!({"pattern": "x".repeat(140_000)})),
            ("file_read", json!({"path": format!("/{}", "x/".repeat(70_000))})),
        ] {
            let why = rig.complaint(tool, args).await;
            assert!(!why.contains("no usable shell") && !why.contains("only file_write"), "{why}");
            assert!(why.contains("131071") || !why.contains("could not be started"), "{why}");
        }
    }

    async fn that_no_process_could_be_started_is_one_failure_of_every_tool(rig) {
        let mut rig = rig;
        rig.put("a", "x\n");
        let sandbox = Limited::of(&mut rig).await;
        sandbox.processes.store(1, Ordering::Relaxed);
        for (tool, args) in [
            ("bash", json!({"command": "echo ok > made"})),
            ("bash", json!({"command": "echo ok > made", "background": true})),
            ("grep", json!({"pattern": "x"})),
            ("glob", json!({"pattern": "*"})),
            ("file_read", json!({"path": "."})),
        ] {
            let why = rig.complaint(tool, args).await;
            assert!(why.starts_with("no process could be started (the sandbox's "), "{tool}: {why}");
            assert!(why.contains("limit") && why.contains("; end some"), "{tool}: {why}");
        }
        assert!(!rig.sandbox.home().join("made").exists());
    }

    async fn an_end_without_a_record_is_no_success(rig) {
        // The parent of the shell that runs the command, by whom the record is printed.
        let answer = rig.bash("kill -9 $PPID; sleep 0.2").await;
        assert!(answer.is_error && answer.exit_code != Some(0), "{answer:?}");
    }

    async fn a_background_program_is_told_though_nothing_more_can_be_started(rig) {
        let mut rig = rig;
        if !Limited::is_exact() {
            return;
        }
        let sandbox = Limited::of(&mut rig).await;
        // The shell and its program, and no third.
        sandbox.processes.store(2, Ordering::Relaxed);
        let answer = rig.answer("bash", json!({"command": "while :; do :; done", "background": true})).await;
        assert!(answer.text.contains("running in the background: pid "), "{}", answer.text);
    }

    async fn a_read_only_file_is_told_as_such(rig) {
        let mut rig = rig;
        rig.put("a", "x\n");
        std::fs::set_permissions(rig.sandbox.home().join("a"), Permissions::from_mode(0o444)).unwrap();
        Limited::of(&mut rig).await;
        let change = json!({"path": "a", "old_string": "x", "new_string": "y"});
        let why = rig.complaint("file_edit", change.clone()).await;
        assert!(why.starts_with("a is read-only (mode 444)"), "{why}");
        std::fs::set_permissions(rig.sandbox.home().join("a"), Permissions::from_mode(0o666)).unwrap();
        // The file itself is not the reason.
        let why = rig.complaint("file_edit", change).await;
        assert!(why.starts_with("a: permission denied"), "{why}");
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
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(facts.shell, "bash");
    let own = facts.path.as_deref().unwrap();
    assert!(facts.uid.is_some() && own.contains("/usr/bin"), "{own}");
}

/// The host's sandbox, whose commands run as a user of their own who may have only so many processes.
struct Limited {
    host: Arc<HostSandbox>,
    uid: u32,
    processes: AtomicU32,
}

impl Limited {
    /// In place of the sandbox of `rig`, with a session that has been used.
    async fn of(rig: &mut Rig) -> Arc<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let home = rig.sandbox.home();
        for dir in [home, home.parent().unwrap()] {
            std::fs::set_permissions(dir, Permissions::from_mode(0o777)).unwrap();
        }
        let limited = Arc::new(Self {
            host: rig.sandbox.clone(),
            // The limit counts whatever runs as this user, in other tests of this process too.
            uid: 1_000_000 + std::process::id() * 64 + COUNT.fetch_add(1, Ordering::Relaxed) % 64,
            processes: AtomicU32::new(1_000),
        });
        rig.context.sandbox = limited.clone();
        assert_eq!(rig.bash("true").await.exit_code, Some(0));
        limited
    }

    /// Whether it holds exactly: another user's processes can't be counted without root's rights.
    fn is_exact() -> bool {
        std::fs::metadata("/proc/self").unwrap().uid() == 0
    }
}

#[async_trait::async_trait]
impl Sandbox for Limited {
    fn id(&self) -> &str {
        self.host.id()
    }
    fn working_dir(&self) -> &str {
        self.host.working_dir()
    }
    async fn exec(&self, mut spec: ExecSpec) -> Result<ExecStream, SandboxError> {
        let limit = self.processes.load(Ordering::Relaxed);
        let mut argv = Vec::new();
        if Self::is_exact() {
            argv.extend([
                "/usr/bin/setpriv".to_owned(),
                format!("--reuid={}", self.uid),
            ]);
            argv.push("--clear-groups".to_owned());
        }
        argv.extend(["/usr/bin/prlimit".to_owned(), format!("--nproc={limit}")]);
        argv.append(&mut spec.argv);
        spec.argv = argv;
        self.host.exec(spec).await
    }
    async fn read(&self, path: &str, most: u64) -> Result<bytes::Bytes, SandboxError> {
        self.host.read(path, most).await
    }
    async fn write(&self, path: &str, _: bytes::Bytes) -> Result<(), SandboxError> {
        // As of a file that this user may not write to.
        Err(SandboxError::File {
            path: path.to_owned(),
            kind: FileErrorKind::PermissionDenied,
        })
    }
    async fn extend(&self, _: Duration) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn kill(&self) -> Result<(), SandboxError> {
        self.host.kill().await
    }
    async fn gone(&self) -> SandboxError {
        self.host.gone().await
    }
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
