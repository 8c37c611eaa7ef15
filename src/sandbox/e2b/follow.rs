//! Reading a command's stream to its end, through broken connections.

use tokio::sync::mpsc;

use super::command::{Command, protocol};
use super::connect::Event;
use super::envd::refused;
use super::errors::{Code, Edge, Fault, presentable};
use super::stream::{Broken, EventStream};
use crate::sandbox::{ExecControl as _, ExecOutput, SandboxError};

/// How often one command's stream is joined again after it broke.
const REJOINS: u32 = 3;

type Output = mpsc::Sender<Result<ExecOutput, SandboxError>>;

/// Passes on what the command says until it ends, its reader is gone, or nothing more can be learnt.
pub(super) async fn follow(command: &Command, mut stream: EventStream, output: &Output) {
    let envd = &command.envd;
    let mut rejoined = 0;
    loop {
        if std::mem::take(&mut stream.gap) && !give(output, ExecOutput::Gap).await {
            return;
        }
        // A reader that has gone wants no more bytes; dropping the stream closes the connection.
        // What was said before the sandbox's end still counts.
        let next = tokio::select! {
            biased;
            () = output.closed() => return,
            next = stream.next(envd.timing.idle) => next,
            gone = envd.until_lost() => {
                drop(output.send(Err(gone)).await);
                return;
            }
        };
        let broken = match next {
            Ok(Event::Stdout(bytes)) => {
                if !give(output, ExecOutput::Stdout(bytes)).await {
                    return;
                }
                continue;
            }
            Ok(Event::Stderr(bytes)) => {
                if !give(output, ExecOutput::Stderr(bytes)).await {
                    return;
                }
                continue;
            }
            Ok(Event::Exited(code)) => {
                command.ended();
                give(output, ExecOutput::Exit(code)).await;
                stream.finish(envd).await;
                return;
            }
            Ok(Event::Started(_) | Event::Other) => continue,
            Err(broken) => broken,
        };
        match mend(command, broken, rejoined).await {
            Ok(mut joined) => {
                rejoined += 1;
                joined.mark_gap();
                stream = joined;
            }
            Err(error) => {
                // A reader that has gone needs no error.
                drop(output.send(Err(error)).await);
                return;
            }
        }
    }
}

/// Whether the reader still wants more.
async fn give(output: &Output, said: ExecOutput) -> bool {
    output.send(Ok(said)).await.is_ok()
}

/// Joins the command again if it and its sandbox are there.
async fn mend(
    command: &Command,
    broken: Broken,
    rejoined: u32,
) -> Result<EventStream, SandboxError> {
    let envd = &command.envd;
    if let Broken::Protocol(cause) | Broken::Fault(Fault::Protocol(cause)) = &broken {
        command.kill().await;
        return Err(protocol(cause));
    }
    if let Broken::Error(error) = &broken {
        let message = presentable(&error.message, &envd.redactor);
        match error.code {
            Code::Unauthenticated => return Err(refused(&message, "running a command")),
            Code::DeadlineExceeded => {
                command.kill().await;
                return Err(SandboxError::Timeout(format!(
                    "the sandbox ended the command: its time was over ({message})"
                )));
            }
            _ => {}
        }
    }
    envd.ensure_alive().await?;
    let cause = broken.cause();
    if rejoined >= REJOINS {
        command.kill().await;
        return Err(SandboxError::Backend(format!(
            "the command's stream broke {} times, last: {cause}; the command was stopped",
            rejoined + 1
        )));
    }
    match command.rejoin().await {
        Ok(stream) => Ok(stream),
        Err(again) => {
            let code = match &again {
                Broken::Error(error) => Some(error.code),
                Broken::Fault(Fault::Refused(answer)) => match answer.edge() {
                    Some(Edge::Gone) => return Err(envd.vanished()),
                    _ => Some(answer.rpc()),
                },
                _ => None,
            };
            if code == Some(Code::NotFound) {
                command.ended();
                return Err(SandboxError::Backend(format!(
                    "the command ended while its stream was broken ({cause}); its exit code is lost"
                )));
            }
            command.kill().await;
            envd.ensure_alive().await?;
            Err(SandboxError::Backend(format!(
                "the command's stream broke ({cause}) and could not be joined again ({}); the command \
                 was stopped",
                again.cause()
            )))
        }
    }
}
