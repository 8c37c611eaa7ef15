//! Commands: starting one, feeding it, ending it. [`super::follow`] reads what it says.
//!
//! `Connect-Timeout-Ms` is never sent with a command: envd would kill its leader alone, also long after
//! we have stopped reading, and a server started on purpose with it. Who runs a command keeps its time.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::command::{Command, protocol};
use super::connect::Event;
use super::envd::{self, Envd};
use super::errors::{Code, Edge, Fault, RpcError, presentable};
use super::facts::WORKING_DIR;
use super::follow::follow;
use super::input::feed;
use super::stream::{Broken, EventStream};
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
