//! The real `local` sandbox, whose `/tmp` is full or can't be written to, under every shell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sandcaster::clock::Deadline;
use sandcaster::sandbox::files::{Baseline, CollectLimits, Collecting};
use sandcaster::sandbox::{ExecSpec, ExecStream, LocalLimits, Sandbox, SandboxError};
use sandcaster::tools::ShellSession;
use serde_json::json;

use super::Rig;
use crate::support::host_sandbox::Shell;

/// A `local` sandbox in which `sh` is another shell.
struct Shelled {
    local: Arc<dyn Sandbox>,
    path: String,
    /// What is written there is gone at once.
    loses: &'static str,
}

impl Shelled {
    async fn rig(shell: Shell, loses: &'static str) -> Rig {
        let mut rig = Rig::local(LocalLimits {
            disk_mb: 32,
            ..LocalLimits::default()
        })
        .await;
        let made = match shell {
            Shell::Bash => "ln -s /bin/bash .bin/sh",
            Shell::Dash => "ln -s /usr/bin/* .bin; rm .bin/bash; ln -sf /bin/dash .bin/sh",
            Shell::Busybox => {
                "for a in $(busybox --list); do ln -s $(command -v busybox) .bin/$a; done; rm -f .bin/bash"
            }
        };
        rig.bash(&format!("mkdir .bin; {made}; rm -rf /tmp/.sandcaster"))
            .await;
        let path = match shell {
            Shell::Bash => "/home/user/.bin:/usr/bin:/bin",
            Shell::Dash | Shell::Busybox => "/home/user/.bin",
        };
        let local = rig.context.sandbox.clone();
        rig.context.session = Arc::new(ShellSession::new(local.working_dir()));
        rig.context.sandbox = Arc::new(Self {
            local,
            path: path.to_owned(),
            loses,
        });
        rig
    }
}

#[async_trait]
impl Sandbox for Shelled {
    fn id(&self) -> &str {
        self.local.id()
    }
    fn working_dir(&self) -> &str {
        self.local.working_dir()
    }
    async fn exec(&self, mut spec: ExecSpec) -> Result<ExecStream, SandboxError> {
        let path = BTreeMap::from([("PATH".to_owned(), self.path.clone())]);
        spec.env.extend(path);
        self.local.exec(spec).await
    }
    async fn read(&self, path: &str, most: u64) -> Result<Bytes, SandboxError> {
        self.local.read(path, most).await
    }
    async fn write(&self, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        self.local.write(path, bytes).await?;
        if !self.loses.is_empty() && path.ends_with(self.loses) {
            let argv = ["rm", "-f", path].map(str::to_owned).into();
            let removing = ExecSpec {
                argv,
                ..ExecSpec::default()
            };
            self.exec(removing).await?.collect(0).await?;
        }
        Ok(())
    }
    async fn extend(&self, lifetime: Duration) -> Result<(), SandboxError> {
        self.local.extend(lifetime).await
    }
    async fn end_all(&self) -> Result<Option<u32>, SandboxError> {
        self.local.end_all().await
    }
    async fn kill(&self) -> Result<(), SandboxError> {
        self.local.kill().await
    }
    async fn gone(&self) -> SandboxError {
        self.local.gone().await
    }
}

/// What a command prints that no tool has run.
async fn look(rig: &Rig, command: &str) -> String {
    let exec = ExecSpec {
        argv: ["sh", "-c", command].map(str::to_owned).into(),
        ..ExecSpec::default()
    };
    let stream = rig.context.sandbox.exec(exec).await.unwrap();
    let printed = stream.collect(64 * 1024).await.unwrap().stdout;
    String::from_utf8_lossy(&printed).into_owned()
}

/// What works whatever became of `/tmp` by `spoil`, before the tools were used or after.
///
/// `side` is how the path begins of what a command leaves us, if that is not the tools' choice.
async fn directories_and_searches_go_on(shell: Shell, spoil: &str, before: bool, side: &str) {
    let rig = Shelled::rig(shell, "").await;
    let many = "mkdir -p sub many; cd many; i=0; while [ $i -lt 900 ]; do i=$((i+1)); echo needle >$i-0123456789012345678901234567890123456789012345678901234567890123456789.txt; done";
    let spoilt = format!("{many}; cd ..; {spoil}");
    if before {
        // As by a command of the image, before any tool is used.
        look(&rig, &spoilt).await;
    } else {
        rig.bash(&spoilt).await;
    }
    // It has the file of the command before: the others begin with one that is not there yet.
    let sleeps = json!({"command": "sleep 600", "background": true});
    rig.text("bash", sleeps).await;
    let seen = "ls -d /home/user/.*.cwd /dev/shm/.*.cwd /tmp/.sandcaster/out/*.cwd 2>/dev/null";
    let seen = rig.bash(seen).await;
    assert!(seen.text.starts_with(side), "{}", seen.text);
    assert!(!seen.text.contains("/home/user"), "{}", seen.text);
    let answer = rig.bash("cd sub; pwd").await;
    assert_eq!(answer.cwd.as_deref(), Some("/home/user/sub"), "{answer:?}");
    let answer = rig.bash("pwd; exit 3").await;
    assert!(
        answer.text.starts_with("/home/user/sub\n[exit 3"),
        "{answer:?}"
    );
    // Too long for an argument.
    let long = format!("cd ../sub; exit 7 # {}", "x".repeat(120_000));
    let answer = rig.bash(&long).await;
    assert_eq!(answer.exit_code, Some(7), "{answer:?}");
    let answer = rig.bash("cd ..; kill -9 $$").await;
    assert!(answer.text.contains("ended in is not known"), "{answer:?}");
    // The list of files is too long for a short standard input.
    let found = json!({"pattern": "needle", "path": "/home/user/many", "mode": "count"});
    let text = rig.text("grep", found).await;
    assert_eq!(text, "[900 matching lines in 900 files]");
    let left = "ls -A /home/user; ls -A /dev/shm /dev/shm/.sandcaster /tmp/.sandcaster";
    let left = look(&rig, left).await;
    assert!(left.contains("many") && !left.contains(".cwd"), "{left}");
    assert!(!left.contains("search-"), "{left}");
}

const TMP: &str = "/tmp/";
const SHM: &str = "/dev/shm/";
const ANY: &str = "";

const FULL: &str = "head -c 100000000000 /dev/zero >/tmp/full 2>/dev/null";
const FULL_OF_FILES: &str =
    "cd /tmp; i=0; while { true >$i; } 2>/dev/null; do i=$((i+1)); done; cd";
/// To another user than root a directory of its own can be as on a read-only file system.
const READ_ONLY: &str =
    "mkdir -p /tmp/.sandcaster/out; chmod 555 /tmp/.sandcaster/out /tmp/.sandcaster";

const A_FILE: &str = "rm -rf /tmp/.sandcaster; echo >/tmp/.sandcaster";
const A_LINK: &str = "rm -rf /tmp/.sandcaster; ln -s /home/user/many /tmp/.sandcaster";

async fn a_long_command_that_is_gone_is_no_success(shell: Shell) {
    let rig = Shelled::rig(shell, ".sh").await;
    let long = format!("touch made; exit 0 # {}", "x".repeat(120_000));
    let answer = rig.bash(&long).await;
    assert_eq!(answer.exit_code, Some(126), "{answer:?}");
    assert!(
        answer.is_error && answer.text.contains("nothing of it was run"),
        "{answer:?}"
    );
    assert!(!answer.text.contains("is not known"), "{answer:?}");
    let started = rig
        .text("bash", json!({"command": long, "background": true}))
        .await;
    assert!(started.contains("nothing of it was run"), "{started}");
    assert_eq!(rig.bash("ls").await.text, "(no output)");
}

macro_rules! in_a_spoilt_tmp {
    ($($name:ident: $spoil:ident, $before:expr, $side:ident;)*) => {
        $(mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[cfg_attr(not(program = "bash"), ignore = "needs bash")]
            async fn bash() {
                directories_and_searches_go_on(Shell::Bash, $spoil, $before, $side).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[cfg_attr(not(program = "dash"), ignore = "needs dash")]
            async fn dash() {
                directories_and_searches_go_on(Shell::Dash, $spoil, $before, $side).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[cfg_attr(not(program = "busybox"), ignore = "needs busybox")]
            async fn busybox() {
                directories_and_searches_go_on(Shell::Busybox, $spoil, $before, $side).await;
            }
        })*
    };
}

mod lost_commands {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[cfg_attr(not(program = "bash"), ignore = "needs bash")]
    async fn bash() {
        a_long_command_that_is_gone_is_no_success(Shell::Bash).await;
    }
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[cfg_attr(not(program = "dash"), ignore = "needs dash")]
    async fn dash() {
        a_long_command_that_is_gone_is_no_success(Shell::Dash).await;
    }
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[cfg_attr(not(program = "busybox"), ignore = "needs busybox")]
    async fn busybox() {
        a_long_command_that_is_gone_is_no_success(Shell::Busybox).await;
    }
}

in_a_spoilt_tmp! {
    long_commands_and_searches_work_when_our_directory_is_a_file: A_FILE, false, TMP;
    long_commands_and_searches_work_when_our_directory_is_a_link: A_LINK, false, TMP;
    directories_carry_over_and_searches_work_when_tmp_is_full: FULL, true, ANY;
    directories_carry_over_and_searches_work_when_tmp_becomes_full: FULL, false, ANY;
    directories_carry_over_and_searches_work_when_tmp_is_full_of_files: FULL_OF_FILES, true, ANY;
    directories_carry_over_and_searches_work_when_tmp_is_read_only: READ_ONLY, true, ANY;
    directories_carry_over_and_searches_work_when_tmp_becomes_read_only: READ_ONLY, false, SHM;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(program = "dash"), ignore = "needs dash")]
async fn a_program_that_a_last_look_needs_and_has_not_is_named() {
    let rig = Shelled::rig(Shell::Dash, "").await;
    let sandbox = rig.context.sandbox.as_ref();
    let soon = || Deadline::after(Duration::from_secs(30));
    let before = Baseline::take(sandbox, &[], soon()).await.unwrap();
    rig.bash("rm .bin/stat").await;
    let limits = CollectLimits::default();
    let mut collecting = Collecting::begin(sandbox, &before, limits, soon()).await;
    assert!(collecting.next().await.is_none());
    let reason = &collecting.omitted()[0].reason;
    assert!(reason.ends_with("has no `stat`"), "{reason}");
}
