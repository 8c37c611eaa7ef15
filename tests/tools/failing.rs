//! Sandboxes that fail: without processes, without rights, or gone.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use sandcaster::clock::Deadline;
use sandcaster::sandbox::{
    ExecSpec, ExecStream, FileErrorKind, LocalLimits, Sandbox, SandboxError,
};
use sandcaster::tools::{Failure, ShellSession};
use serde_json::json;

use super::{Rig, in_every_shell};
use crate::sandbox::sh;
use crate::support::host_sandbox::{HostSandbox, Shell};
use crate::support::processes::{TAKE_ALL, until};

in_every_shell! {
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
            // Nothing can be started to end any of them, and this sandbox can't do it by itself.
            assert!(why.contains("limit") && why.contains("can't be ended from here"), "{tool}: {why}");
            assert!(!why.contains("end some"), "{tool}: {why}");
        }
        assert!(!rig.sandbox.home().join("made").exists());
    }

    async fn an_end_without_a_record_is_no_success(rig) {
        // The parent of the shell that runs the command, by whom the record is printed.
        let answer = rig.bash("kill -9 $PPID; sleep 0.2").await;
        assert!(answer.is_error && answer.exit_code != Some(0), "{answer:?}");
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

    async fn facts_that_could_not_be_had_are_looked_for_again(rig) {
        let mut rig = rig;
        let sandbox = Limited::of(&mut rig).await;
        rig.context.session = Arc::new(ShellSession::new(sandbox.working_dir()));
        sandbox.processes.store(1, Ordering::Relaxed);
        rig.complaint("file_read", json!({"path": "."})).await;
        assert_eq!(rig.context.session.take_notice(), None);
        sandbox.processes.store(1_000, Ordering::Relaxed);
        rig.text("file_read", json!({"path": "."})).await;
        let notice = rig.context.session.take_notice().unwrap();
        assert!(notice.contains("uid ") && notice.contains("nstalled: "), "{notice}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(program = "python3"), ignore = "needs python3")]
async fn programs_that_hold_all_processes_are_ended_for_any_tool_and_that_is_told() {
    let rig = Rig::local(LocalLimits {
        max_processes: 40,
        ..LocalLimits::default()
    })
    .await;
    assert_eq!(rig.bash("echo x > a").await.exit_code, Some(0));
    for (tool, args, says) in [
        ("bash", json!({"command": "echo on | cat"}), "on\n"),
        ("grep", json!({"pattern": "x"}), "a:1:x"),
        ("glob", json!({"pattern": "*"}), "a"),
        ("file_read", json!({"path": "a"}), "1\tx"),
        (
            "file_write",
            json!({"path": "b", "content": "y"}),
            "created b (1 line, 1 byte)",
        ),
    ] {
        rig.bash(TAKE_ALL).await;
        let sandbox = &rig.context.sandbox;
        let begins = async || sandbox.exec(sh("exit 0")).await.is_ok();
        while begins().await {
            tokio::task::yield_now().await;
        }
        let text = rig.text(tool, args).await;
        assert!(text.starts_with(says), "{tool}: {text}");
        let told = "[what earlier commands had left running was ended (";
        assert!(text.contains(told), "{tool}: {text}");
        let why = "): with it no process could be started (the sandbox's ";
        assert!(text.contains(why), "{tool}: {text}");
        let again = rig.text("file_read", json!({"path": "a"})).await;
        assert!(!again.contains("ended"), "{tool}: {again}");
        rig.bash("rm -f b").await;
    }
}

#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn a_sandbox_that_is_too_small_is_told_as_such() {
    let mut rig = Rig::new(Shell::Bash);
    let sandbox = Limited::of(&mut rig).await;
    sandbox.processes.store(1, Ordering::Relaxed);
    sandbox.ends_all.store(true, Ordering::Relaxed);
    let why = rig.complaint("bash", json!({"command": "echo on"})).await;
    assert!(
        why.ends_with("though nothing else runs in the sandbox"),
        "{why}"
    );
}

#[tokio::test]
#[cfg_attr(
    not(all(root_user, program = "dash", program = "setpriv", program = "prlimit")),
    ignore = "needs root, dash, setpriv and prlimit"
)]
async fn a_search_of_many_files_is_tried_again_when_its_grep_could_not_be_started() {
    let mut rig = Rig::new(Shell::Dash);
    for nth in 0..900 {
        rig.put(&format!("{}{nth}.txt", "long".repeat(20)), "needle\n");
    }
    let sandbox = Limited::of(&mut rig).await;
    sandbox.ends_all.store(true, Ordering::Relaxed);
    let count = json!({"pattern": "needle", "mode": "count"});
    // The shell, its part with the pipe, xargs and those that read from it: no grep.
    sandbox.processes.store(6, Ordering::Relaxed);
    let why = rig.complaint("grep", count.clone()).await;
    assert!(
        why.ends_with("though nothing else runs in the sandbox"),
        "{why}"
    );
    sandbox.processes.store(1_000, Ordering::Relaxed);
    let text = rig.text("grep", count).await;
    assert_eq!(text, "[900 matching lines in 900 files]");
}

#[tokio::test]
#[cfg_attr(not(program = "dash"), ignore = "needs dash")]
async fn time_that_ends_while_programs_are_ended_is_told_as_such() {
    let mut rig = Rig::new(Shell::Dash);
    let sandbox = Limited::of(&mut rig).await;
    sandbox.processes.store(1, Ordering::Relaxed);
    sandbox.ends_slowly.store(true, Ordering::Relaxed);
    rig.context.deadline = Deadline::after(Duration::from_secs(2));
    let why = rig.complaint("file_read", json!({"path": "."})).await;
    assert!(why.starts_with("no process could be started"), "{why}");
    assert!(
        why.contains("while what earlier commands had left running was being ended"),
        "{why}"
    );
    assert!(!why.contains("another call"), "{why}");
}

/// How many processes another user has can't be counted without root's rights.
#[tokio::test]
#[cfg_attr(
    not(all(
        root_user,
        program = "bash",
        program = "dash",
        program = "busybox",
        program = "setpriv",
        program = "prlimit"
    )),
    ignore = "needs root, bash, dash, busybox, setpriv and prlimit"
)]
async fn a_background_program_is_told_though_nothing_more_can_be_started() {
    for shell in [Shell::Bash, Shell::Dash, Shell::Busybox] {
        let mut rig = Rig::new(shell);
        let sandbox = Limited::of(&mut rig).await;
        // The shell, its program and who reads the output, and no fourth.
        sandbox.processes.store(3, Ordering::Relaxed);
        let endless = json!({"command": "while :; do :; done", "background": true});
        let text = rig.text("bash", endless).await;
        assert!(
            text.contains("running in the background: pid "),
            "{shell:?}: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(all(root_user, program = "bash", program = "setpriv", program = "prlimit")),
    ignore = "needs root, bash, setpriv and prlimit"
)]
async fn a_command_that_has_all_the_processes_is_stopped_all_the_same() {
    let mut rig = Rig::new(Shell::Bash);
    let sandbox = Limited::of(&mut rig).await;
    // Two shells, the program, who reads its output, and eight more: no sweep can be started.
    sandbox.processes.store(12, Ordering::Relaxed);
    let many = "for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; wait";
    let given = json!({"command": many, "timeout_seconds": 1});
    let text = rig.text("bash", given).await;
    assert!(
        text.contains("timed out after 1 s and was stopped"),
        "{text}"
    );
    until(
        || rig.sandbox.processes().is_empty(),
        "the sandbox to be empty",
    )
    .await;
}

/// The host's sandbox, whose commands run as a user of their own who may have only so many processes.
pub(super) struct Limited {
    host: Arc<HostSandbox>,
    uid: u32,
    processes: AtomicU32,
    /// It can end what runs in it: nothing.
    ends_all: AtomicBool,
    /// It never comes to an end of that.
    ends_slowly: AtomicBool,
}

impl Limited {
    /// In place of the sandbox of `rig`, with a session that has been used.
    pub(super) async fn of(rig: &mut Rig) -> Arc<Self> {
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
            ends_all: AtomicBool::new(false),
            ends_slowly: AtomicBool::new(false),
        });
        rig.context.sandbox = limited.clone();
        assert_eq!(rig.bash("true").await.exit_code, Some(0));
        // What was started counts until somebody took note of its end: what is dead has no environment any more.
        until(|| limited.counted() == 0, "the sandbox to be empty").await;
        limited
    }

    /// How many processes count, dead ones too.
    fn counted(&self) -> usize {
        if !Self::is_exact() {
            return self.host.processes().len();
        }
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter(|entry| {
            entry
                .metadata()
                .is_ok_and(|process| process.uid() == self.uid)
        })
        .count()
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
    async fn write(&self, path: &str, bytes: bytes::Bytes) -> Result<(), SandboxError> {
        if path.contains("/search-") {
            return self.host.write(path, bytes).await;
        }
        // As of a file that this user may not write to.
        Err(SandboxError::File {
            path: path.to_owned(),
            kind: FileErrorKind::PermissionDenied,
        })
    }
    async fn extend(&self, _: Duration) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn end_all(&self) -> Result<Option<u32>, SandboxError> {
        if self.ends_slowly.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(self.ends_all.load(Ordering::Relaxed).then_some(0))
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
