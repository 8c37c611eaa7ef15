//! The tools, run for real: every test that needs a shell is run with bash, dash and `BusyBox`.

mod collect;
mod edit;
mod failing;
mod files;
mod full;
mod output;
mod quoting;
mod search;
mod shell;
mod stopping;
mod threads;

use std::sync::Arc;
use std::time::Duration;

use sandcaster::chat::ToolArgs;
use sandcaster::clock::Deadline;
use sandcaster::sandbox::{LocalLimits, Sandbox};
use sandcaster::secrets::Redactor;
use sandcaster::tools::{Failure, Prepared, ShellSession, ToolAnswer, ToolContext, prepare, tool};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::unix::pipe::{OpenOptions, Receiver};
use tokio_util::sync::CancellationToken;

use crate::sandbox::{create, local_with};
use crate::support::host_sandbox::{HostSandbox, Shell};

/// Makes one test per shell of each function, which is given a [`Rig`]. Where there is no such shell, the tests
/// are ignored.
macro_rules! in_every_shell {
    ($(async fn $name:ident($rig:ident) $body:block)*) => {
        $(async fn $name($rig: $crate::tools::Rig) $body)*
        in_every_shell!(@shell bash Bash "bash" "needs bash" $($name)*);
        in_every_shell!(@shell dash Dash "dash" "needs dash" $($name)*);
        in_every_shell!(@shell busybox Busybox "busybox" "needs busybox" $($name)*);
    };
    (@shell $module:ident $shell:ident $program:tt $reason:tt $($name:ident)*) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[cfg_attr(not(program = $program), ignore = $reason)]
            async fn $name() {
                let rig = $crate::tools::Rig::new($crate::support::host_sandbox::Shell::$shell);
                tokio::time::timeout(std::time::Duration::from_mins(1), super::$name(rig)).await.unwrap();
            })*
        }
    };
}
pub(crate) use in_every_shell;

/// A sandbox and the session of a run in it.
pub struct Rig {
    pub sandbox: Arc<HostSandbox>,
    pub context: ToolContext,
    pub shell: Shell,
}

impl Rig {
    /// The shell must be there.
    pub fn new(shell: Shell) -> Self {
        let sandbox = HostSandbox::new(shell);
        let context = ToolContext {
            session: Arc::new(ShellSession::new(sandbox.working_dir())),
            sandbox: sandbox.clone(),
            deadline: Deadline::after(Duration::from_secs(50)),
            cancel: CancellationToken::new(),
            redactor: Redactor::default(),
        };
        Self {
            sandbox,
            context,
            shell,
        }
    }

    /// In a `local` sandbox with these limits.
    pub async fn local(limits: LocalLimits) -> Self {
        let mut rig = Self::new(Shell::Bash);
        let sandbox = create(&local_with(limits)).await;
        rig.context.session = Arc::new(ShellSession::new(sandbox.working_dir()));
        rig.context.sandbox = sandbox;
        rig
    }

    /// What the agent's loop does with a call.
    pub async fn call(&self, name: &str, args: Value) -> Result<ToolAnswer, Failure> {
        let built = tool(name).unwrap().built.unwrap();
        let Prepared { args, .. } =
            prepare(built.spec, &ToolArgs::Json(args), &self.context.redactor).unwrap();
        built.call(args, &self.context).await
    }

    pub async fn answer(&self, name: &str, args: Value) -> ToolAnswer {
        match self.call(name, args.clone()).await {
            Ok(answer) => answer,
            other => panic!("{name} {args}: {other:?}"),
        }
    }

    pub async fn text(&self, name: &str, args: Value) -> String {
        self.answer(name, args).await.text
    }

    pub async fn complaint(&self, name: &str, args: Value) -> String {
        match self.call(name, args.clone()).await {
            Err(Failure::Complaint(why)) => why,
            other => panic!("{name} {args}: {other:?}"),
        }
    }

    pub async fn bash(&self, command: &str) -> ToolAnswer {
        self.answer("bash", serde_json::json!({ "command": command }))
            .await
    }

    pub fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let full = self.sandbox.home().join(path);
        std::fs::create_dir_all(full.parent().unwrap()).unwrap();
        std::fs::write(full, bytes).unwrap();
    }

    pub fn get(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.sandbox.home().join(path)).unwrap()
    }

    pub fn home(&self) -> String {
        self.sandbox.working_dir().to_owned()
    }
}

/// Lines that commands write to a FIFO of the working directory: what a test waits for.
pub struct Events(Lines<BufReader<Receiver>>);

impl Events {
    pub async fn new(rig: &Rig, name: &str) -> Self {
        assert_eq!(rig.bash(&format!("mkfifo {name}")).await.exit_code, Some(0));
        // Opened for writing too, so that it doesn't end between two writers.
        let pipe = OpenOptions::new()
            .read_write(true)
            .open_receiver(rig.sandbox.home().join(name))
            .unwrap();
        Self(BufReader::new(pipe).lines())
    }

    pub async fn next(&mut self) -> String {
        self.0.next_line().await.unwrap().unwrap()
    }
}
