//! A command that runs: how envd is told of it, joined again, and ended.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::connect::Event;
use super::envd::Envd;
use super::errors::{Edge, Fault};
use super::stream::{Broken, EventStream};
use crate::clock::Deadline;
use crate::sandbox::{ExecControl, SandboxError};

/// Kills what carries the marker given as `$1`. A minimal shell and its few tools are enough; where grep
/// can split at NUL, one run of it does for all processes.
const SWEEP: &str = r#"{ m="SANDCASTER_EXEC=$1"; p=
if printf 'a\000b' | grep -qxz b; then p=$(grep -lsxzF "$m" /proc/[0-9]*/environ)
else for e in /proc/[0-9]*/environ; do tr '\0' '\n' <"$e" | grep -qxF "$m" && p="$p $e"; done; fi
for e in $p; do e=${e#/proc/}; kill -9 "${e%/environ}"; done
} 2>/dev/null; exit 0"#;
/// How long ending a command may take, each of its two steps.
const KILLING: Duration = Duration::from_secs(5);

/// A command in a sandbox.
pub(super) struct Command {
    pub(super) envd: Arc<Envd>,
    /// Ours: names the command even when the answer with its pid was lost.
    pub(super) tag: String,
    pub(super) pid: OnceLock<u32>,
    pub(super) ended: AtomicBool,
}

impl Command {
    /// How envd is told which command is meant.
    pub(super) fn selector(&self) -> Value {
        match self.pid.get() {
            Some(pid) => json!({ "pid": pid }),
            None => json!({ "tag": self.tag }),
        }
    }

    /// Notes that it has ended: a later kill must not hit whoever gets its pid next.
    pub(super) fn ended(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(super) fn started(&self, event: &Event) {
        if let Event::Started(pid) = event
            && *pid != 0
        {
            // A second `start` on a new connection names the same pid.
            self.pid.get_or_init(|| *pid);
        }
    }

    /// Joins the stream of the running command; its output so far is not repeated.
    pub(super) async fn rejoin(&self) -> Result<EventStream, Broken> {
        let until = Deadline::after(self.envd.timing.health.saturating_mul(2));
        let message = json!({ "process": self.selector() });
        let mut stream = EventStream::open(&self.envd, "process.Process/Connect", &message, until)
            .await
            .map_err(Broken::Fault)?;
        let first = stream.next(until.remaining()).await?;
        self.started(&first);
        stream.unread(first);
        Ok(stream)
    }
}

#[async_trait]
impl ExecControl for Command {
    /// Kills the leader, then everything that inherited its marker. Waits a few seconds at most.
    async fn kill(&self) {
        if self.ended.load(Ordering::Acquire) || self.envd.ensure_here().is_err() {
            return;
        }
        let message = json!({ "process": self.selector(), "signal": "SIGNAL_SIGKILL" });
        let until = Deadline::after(KILLING);
        for _ in 0..2 {
            let sent = self
                .envd
                .unary::<Value>("process.Process/SendSignal", &message, until)
                .await;
            match sent {
                Err(Fault::Refused(answer)) if answer.edge() == Some(Edge::Gone) => {
                    self.envd.vanished();
                    return;
                }
                // It answers nothing: there is no use in asking it for more.
                Err(Fault::Late) => return,
                Err(fault) if fault.may_pass() => {}
                // Done; or not found: the leader has ended, but its children may not have.
                _ => break,
            }
        }
        if let Err(error) = sweep(&self.envd, &self.tag).await {
            tracing::debug!(sandbox.id = %self.envd.id(), %error, "could not sweep up after a command");
        }
    }
}

/// Runs [`SWEEP`] to its end.
async fn sweep(envd: &Envd, tag: &str) -> Result<(), String> {
    let until = Deadline::after(KILLING);
    let message = json!({
        "process": {"cmd": "/bin/sh", "args": ["-c", SWEEP, "sh", tag], "cwd": "/"},
        "stdin": false,
    });
    let mut stream = EventStream::open(envd, "process.Process/Start", &message, until)
        .await
        .map_err(|fault| fault.cause())?;
    loop {
        match stream.next(until.remaining()).await {
            Ok(Event::Exited(_)) => return Ok(()),
            Ok(_) if until.passed() => return Err("it took too long".to_owned()),
            Ok(_) => {}
            Err(broken) => return Err(broken.cause()),
        }
    }
}

pub(super) fn protocol(cause: &str) -> SandboxError {
    SandboxError::Backend(format!(
        "the sandbox's stream could not be understood: {cause}"
    ))
}
