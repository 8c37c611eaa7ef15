//! Commands: starting one, feeding it, ending it. [`super::follow`] reads what it says.
//!
//! `Connect-Timeout-Ms` is never sent with a command: envd would kill its leader alone, also long after
//! we have stopped reading, and a server started on purpose with it. Who runs a command keeps its time.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::WORKING_DIR;
use super::connect::Event;
use super::envd::{self, Envd};
use super::errors::{Code, Edge, Fault, RpcError, presentable};
use super::follow::{Broken, EventStream, follow};
use super::input::feed;
use crate::clock::Deadline;
use crate::ids;
use crate::sandbox::{ExecControl, ExecSpec, ExecStream, SandboxError};

/// Pieces of output on their way to the reader (32 KiB each, as envd cuts them).
const CHANNEL: usize = 16;
/// Input can be ended since this version of envd.
const CLOSE_STDIN: (u32, u32, u32) = (0, 5, 2);
/// A command without input is a matter of envd since this version; before, it always had a pipe.
const NO_STDIN: (u32, u32, u32) = (0, 3, 0);
/// In the environment of every command and what it starts, so that all of it can be found and killed:
/// envd signals the leader only.
const MARKER: &str = "SANDCASTER_EXEC";
const DOING: &str = "starting a command";

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
    tag: String,
    pid: OnceLock<u32>,
    ended: AtomicBool,
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

    fn started(&self, event: &Event) {
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

/// Starts a command and gives its stream.
///
/// # Errors
/// `NotStarted`, `Gone`, or a backend fault. It is sent again only if it surely reached nobody.
pub(super) async fn exec(envd: &Arc<Envd>, spec: ExecSpec) -> Result<ExecStream, SandboxError> {
    let Some((program, arguments)) = spec.argv.split_first() else {
        return Err(SandboxError::NotStarted("no program was named".to_owned()));
    };
    let has_input = !spec.stdin.is_empty();
    if has_input && envd.version < CLOSE_STDIN {
        return Err(SandboxError::TemplateIncompatible(
            "the template's envd can't end a command's input: build the template again".to_owned(),
        ));
    }
    let command = Arc::new(Command {
        envd: Arc::clone(envd),
        tag: ids::nonce(),
        pid: OnceLock::new(),
        ended: AtomicBool::new(false),
    });
    let mut environment = spec.env.clone();
    environment.insert(MARKER.to_owned(), command.tag.clone());
    let cwd = if spec.cwd.is_empty() {
        WORKING_DIR
    } else {
        spec.cwd.as_str()
    };
    let (program, arguments) = if !has_input && envd.version < NO_STDIN {
        let mut wrapped = vec!["-c", r#"exec "$@" </dev/null"#, "sh", program];
        wrapped.extend(arguments.iter().map(String::as_str));
        ("/bin/sh", wrapped)
    } else {
        let arguments = arguments.iter().map(String::as_str).collect();
        (program.as_str(), arguments)
    };
    let message = json!({
        "process": {"cmd": program, "args": arguments, "envs": environment, "cwd": cwd},
        "tag": command.tag,
        "stdin": has_input,
    });
    let stream = start(&command, &message).await?;
    let (sender, output) = mpsc::channel(CHANNEL);
    let pumped = Arc::clone(&command);
    pump(pumped, stream, spec.stdin, sender);
    Ok(ExecStream {
        output,
        control: command,
    })
}

/// Reads and feeds the command in a task of its own, which ends with the command, with its reader or with
/// the sandbox.
#[expect(
    clippy::disallowed_methods,
    reason = "the reader may be dropped at any time; the task sees that by its closed channel and ends"
)]
fn pump(
    command: Arc<Command>,
    stream: EventStream,
    input: Bytes,
    output: mpsc::Sender<Result<crate::sandbox::ExecOutput, SandboxError>>,
) {
    tokio::spawn(async move {
        let following = follow(&command, stream, &output);
        tokio::pin!(following);
        if !input.is_empty() {
            // The end of the command comes first: what it didn't read doesn't matter then.
            let fed = tokio::select! {
                biased;
                () = &mut following => return,
                fed = feed(&command, input) => fed,
            };
            if let Err(error) = fed {
                command.kill().await;
                // A reader that has gone needs no error.
                drop(output.send(Err(error)).await);
                return;
            }
        }
        following.await;
    });
}

/// Sends `Start` and waits for its first event.
async fn start(command: &Command, message: &Value) -> Result<EventStream, SandboxError> {
    let envd = &command.envd;
    let until = Deadline::after(envd.timing.start);
    let patience = until.within(envd.timing.unreachable);
    let mut tries = 0;
    loop {
        let begun = async {
            let mut stream = EventStream::open(envd, "process.Process/Start", message, until)
                .await
                .map_err(Broken::Fault)?;
            // Keepalives are no beginning.
            let mut first = stream.next(until.remaining()).await?;
            while first == Event::Other && !until.passed() {
                first = stream.next(until.remaining()).await?;
            }
            Ok::<_, Broken>((stream, first))
        };
        let broken = match begun.await {
            Ok((_, Event::Other)) => Broken::Silent,
            Ok((mut stream, first)) => {
                command.started(&first);
                stream.unread(first);
                return Ok(stream);
            }
            Err(broken) => broken,
        };
        if reached_nobody(&broken) {
            tries += 1;
            let asked = match &broken {
                Broken::Fault(fault) => fault.retry_after(),
                _ => None,
            };
            let pause = envd.timing.pause(tries, asked);
            if pause < patience.remaining() {
                tokio::time::sleep(pause).await;
                continue;
            }
        }
        return not_begun(command, broken).await;
    }
}

/// Whether the command surely was not started.
fn reached_nobody(broken: &Broken) -> bool {
    match broken {
        Broken::Fault(Fault::Unsent(_)) => true,
        Broken::Fault(Fault::Refused(answer)) => {
            matches!(
                answer.edge(),
                Some(Edge::PortClosed | Edge::Transitioning | Edge::Crowded)
            )
        }
        Broken::Error(error) => error.code == Code::ResourceExhausted,
        _ => false,
    }
}

/// What to tell of a command whose stream never began; or the stream after all, when only the answer was
/// lost.
async fn not_begun(command: &Command, broken: Broken) -> Result<EventStream, SandboxError> {
    let envd = &command.envd;
    match broken {
        Broken::Error(error) => {
            if let Some(told) = refused(envd, &error) {
                return Err(told);
            }
            unclear(command, &presentable(&error.message, &envd.redactor)).await
        }
        Broken::Fault(Fault::Refused(answer)) if answer.edge().is_none() => {
            let error = RpcError {
                code: answer.rpc(),
                message: answer.message.clone(),
            };
            match refused(envd, &error) {
                Some(told) => Err(told),
                None => unclear(command, &Fault::Refused(answer).cause()).await,
            }
        }
        Broken::Fault(Fault::Lost(cause)) | Broken::Cut(cause) => unclear(command, &cause).await,
        Broken::Fault(Fault::Late) | Broken::Silent => {
            command.kill().await;
            envd.ensure_alive().await?;
            Err(SandboxError::Timeout(format!(
                "the sandbox did not start the command within {} s",
                envd.timing.start.as_secs()
            )))
        }
        Broken::Protocol(cause) | Broken::Fault(Fault::Protocol(cause)) => {
            command.kill().await;
            Err(protocol(&cause))
        }
        Broken::Fault(fault) => Err(envd.explain(fault, DOING).await),
    }
}

/// The error of a command that envd refused; `None` if it isn't known whether it runs.
fn refused(envd: &Envd, error: &RpcError) -> Option<SandboxError> {
    let message = presentable(&error.message, &envd.redactor);
    match error.code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange => Some(SandboxError::NotStarted(message)),
        Code::Unauthenticated => Some(envd::refused(&message, DOING)),
        Code::ResourceExhausted => Some(SandboxError::RateLimited {
            message: format!("the sandbox is too busy to start a command ({message})"),
            retry_after: None,
            at_capacity: false,
        }),
        Code::AlreadyExists | Code::Aborted | Code::Unimplemented => Some(SandboxError::Backend(
            format!("the sandbox refused to start the command ({message})"),
        )),
        Code::Canceled
        | Code::DeadlineExceeded
        | Code::Unavailable
        | Code::Unknown
        | Code::Internal
        | Code::DataLoss => None,
    }
}

/// The answer was lost: the command may run. It is looked for by its tag, never started again.
async fn unclear(command: &Command, cause: &str) -> Result<EventStream, SandboxError> {
    command.envd.ensure_alive().await?;
    match command.rejoin().await {
        Ok(mut stream) => {
            stream.mark_gap();
            Ok(stream)
        }
        Err(broken) => {
            if let Broken::Fault(fault) = broken
                && let Fault::Refused(answer) = &fault
                && answer.edge() == Some(Edge::Gone)
            {
                return Err(command.envd.vanished());
            }
            Err(SandboxError::Backend(format!(
                "the connection to the sandbox failed while {DOING}, and it is not known whether it ran \
                 ({cause})"
            )))
        }
    }
}

pub(super) fn protocol(cause: &str) -> SandboxError {
    SandboxError::Backend(format!(
        "the sandbox's stream could not be understood: {cause}"
    ))
}
