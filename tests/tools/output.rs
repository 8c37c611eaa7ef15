//! `bash`: output, the files that it is kept in, and programs in the background.

use std::sync::Arc;
use std::time::Duration;

use sandcaster::sandbox::{ExecOutput, ExecSpec, ExecStream, Sandbox, SandboxError};
use sandcaster::secrets::{Redactor, Secret};
use serde_json::json;

use super::{Events, Rig, in_every_shell};
use crate::support::host_sandbox::{HostSandbox, Shell, write_program};
use crate::support::processes::until;

in_every_shell! {
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
        let kept = || std::fs::read_to_string(&path).unwrap() == "first\nsecond\n";
        until(kept, "the output to be in its file").await;
        let pid: i32 = answer.text.split_once("pid ").unwrap().1.split_once(',').unwrap().0.parse().unwrap();
        assert!(rig.sandbox.processes().contains(&pid));
        // What the text says ends all of it, the shell's children too.
        let stop = answer.text.split_once("Stop it with ").unwrap().1.trim_end_matches(".]");
        let gone = rig.bash(&format!("{stop}; while kill -0 {pid} 2>/dev/null; do sleep 0.02; done")).await;
        assert_eq!(gone.text, "(no output)");
        // Who reads the output ends after it.
        until(|| rig.sandbox.processes().is_empty(), "the sandbox to be empty").await;

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
        let size = |path: &String| std::fs::metadata(path).unwrap().len();
        let sum = |paths: &[String]| paths.iter().map(size).sum::<u64>();
        let mut events = Events::new(&rig, "events").await;
        let mut paths = Vec::new();
        while sum(&paths) <= 64 << 20 {
            let command = "dd if=/dev/zero bs=1048576 count=30 2>/dev/null; echo done > events";
            let answer = rig.answer("bash", json!({"command": command, "background": true})).await;
            assert_eq!(events.next().await, "done", "{}", answer.text);
            paths.push(answer.output_path.unwrap());
            assert!(size(paths.last().unwrap()) <= 20 << 20);
        }
        let answer = rig.bash("echo a").await;
        let told = format!("[these older output files were emptied, for all together had more than 64 MiB: {}]", paths[0]);
        assert!(answer.text.contains(&told), "{}", answer.text);
        assert_eq!(size(&paths[0]), 0);
        assert!(size(&paths[1]) >= 10 << 20 && sum(&paths) <= 64 << 20);
        assert_eq!(rig.bash("echo a").await.text, "a\n");
    }

    async fn outputs_that_nobody_was_told_of_leave_nothing(rig) {
        let told = rig.answer("bash", json!({"command": "echo a", "background": true})).await;
        let paths = [told.output_path.unwrap()];
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

    async fn after_a_gap_all_that_the_sandbox_kept_stays(rig) {
        let mut rig = rig;
        rig.bash("true").await;
        rig.context.sandbox = Arc::new(Gappy(rig.sandbox.clone()));
        let answer = rig.bash("i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done").await;
        assert!(answer.text.contains("the connection to the sandbox broke"), "{}", answer.text);
        assert!(!answer.text.contains("hole output:"), "{}", answer.text);
        let kept = std::fs::read_to_string(answer.output_path.unwrap()).unwrap();
        assert!(kept.contains("line 29999\n"), "{:?}", &kept[kept.len() - 100..]);
    }

    async fn an_output_that_could_not_be_kept_is_told(rig) {
        let many = "i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done";
        let first = rig.bash(many).await.output_path.unwrap();
        let next = first.replace("-1.txt", "-2.txt");
        let answer = rig.bash(&format!("{many}; rm {next}")).await;
        assert!(answer.text.contains("could not be kept in a file"), "{}", answer.text);
        assert_eq!(answer.output_path, None);
    }

    async fn a_flood_in_the_background_fills_no_disk_and_goes_on(rig) {
        let mut events = Events::new(&rig, "events").await;
        let command = "dd if=/dev/zero bs=1048576 count=60 2>/dev/null; echo done > events; sleep 614";
        let answer = rig.answer("bash", json!({"command": command, "background": true})).await;
        assert!(answer.text.contains("running in the background: pid "), "{}", answer.text);
        assert_eq!(events.next().await, "done");
        let size = std::fs::metadata(answer.output_path.unwrap()).unwrap().len();
        assert!((10 << 20..=20 << 20).contains(&size), "{size}");
        // Nobody but the program, and who reads it, is left.
        rig.sandbox.kill().await.unwrap();
        until(|| rig.sandbox.processes().is_empty(), "the sandbox to be empty").await;
    }

    async fn nothing_of_ours_is_in_an_output_file_however_late_it_is_written(rig) {
        // First the pipe, then the file, and the last line of that a while later.
        let tee = "#!/bin/sh\nfor f; do :; done\ncat >\"$f.all\"; cat \"$f.all\"\nsed '$d' \"$f.all\" >>\"$f\"; sleep 0.3; tail -n 1 \"$f.all\" >>\"$f\"\n";
        let program = rig.sandbox.home().parent().unwrap().join("bin/tee");
        std::fs::remove_file(&program).ok();
        write_program(&program, tee);
        let answer = rig.bash("i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done").await;
        let path = answer.output_path.unwrap();
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(kept.ends_with("line 8999\n"), "{:?}", &kept[kept.len() - 100..]);
    }
}

/// `BusyBox` has a `wc` of its own, which nobody can replace.
#[tokio::test]
#[cfg_attr(
    not(all(program = "bash", program = "dash")),
    ignore = "needs bash and dash"
)]
async fn what_is_printed_after_the_end_of_a_command_stays() {
    for shell in [Shell::Bash, Shell::Dash] {
        let rig = Rig::new(shell);
        let program = rig.sandbox.bin().join("wc");
        std::fs::remove_file(&program).ok();
        // Somebody prints on just before the file's size is asked for.
        let late = "[ $# -gt 1 ] || echo late >>\"$(readlink /proc/self/fd/0)\"";
        write_program(
            &program,
            &format!("#!/bin/sh\n{late}\nexec /usr/bin/wc \"$@\"\n"),
        );
        let many = "i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done";
        let answer = rig.bash(many).await;
        assert!(answer.text.contains("Whole output: "), "{}", answer.text);
        let kept = std::fs::read_to_string(answer.output_path.unwrap()).unwrap();
        let (before, after) = kept.split_once("line 8999\n").unwrap();
        assert!(before.starts_with("line 0\n"));
        assert!(
            after.ends_with("\nlate\n") && !after.contains('\u{1e}'),
            "{after:?}"
        );
    }
}

/// The host's sandbox, over a connection that loses the second piece of what a command prints, and reads no file.
struct Gappy(Arc<HostSandbox>);

#[async_trait::async_trait]
impl Sandbox for Gappy {
    fn id(&self) -> &str {
        self.0.id()
    }
    fn working_dir(&self) -> &str {
        self.0.working_dir()
    }
    async fn exec(&self, spec: ExecSpec) -> Result<ExecStream, SandboxError> {
        let mut whole = self.0.exec(spec).await?;
        let control = Arc::clone(&whole.control);
        let (sender, output) = tokio::sync::mpsc::channel(4);
        let losing = async move {
            let mut pieces = 0;
            while let Some(mut said) = whole.output.recv().await {
                if let Ok(ExecOutput::Stdout(_)) = said {
                    pieces += 1;
                    if pieces == 2 {
                        said = Ok(ExecOutput::Gap);
                    }
                }
                sender.send(said).await.ok();
            }
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "a helper of the tests; it ends with the command"
        )]
        tokio::spawn(losing);
        Ok(ExecStream { output, control })
    }
    async fn read(&self, _: &str, _: u64) -> Result<bytes::Bytes, SandboxError> {
        Err(SandboxError::Backend("no way to it".to_owned()))
    }
    async fn write(&self, path: &str, bytes: bytes::Bytes) -> Result<(), SandboxError> {
        self.0.write(path, bytes).await
    }
    async fn extend(&self, _: Duration) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn kill(&self) -> Result<(), SandboxError> {
        self.0.kill().await
    }
    async fn gone(&self) -> SandboxError {
        self.0.gone().await
    }
}
