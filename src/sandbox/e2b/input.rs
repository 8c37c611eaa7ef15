//! A command's standard input.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::command::Command;
use super::errors::{Code, Fault};
use crate::clock::Deadline;
use crate::sandbox::SandboxError;

/// Input is sent in pieces of this size.
const PIECE: usize = 64 * 1024;
/// Tries of a call that reached nobody, the first included.
const TRIES: u32 = 4;

/// Gives the command its input, then the end of it. A command that doesn't want its input is no fault.
///
/// Each call waits as long as the command leaves its pipe full; the command's own end ends this.
pub(super) async fn feed(command: &Command, input: Bytes) -> Result<(), SandboxError> {
    let envd = &command.envd;
    let mut rest = input;
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(PIECE));
        let message = json!({
            "process": command.selector(), "input": {"stdin": STANDARD.encode(&piece)},
        });
        let forever = Deadline::after(Duration::from_hours(24));
        let mut tries = 0;
        loop {
            let sent = envd
                .unary::<Value>("process.Process/SendInput", &message, forever)
                .await;
            let Err(fault) = sent else {
                break;
            };
            tries += 1;
            match &fault {
                // Closed, or ended.
                Fault::Refused(answer)
                    if answer.edge().is_none()
                        && !matches!(answer.rpc(), Code::Unauthenticated | Code::Unavailable) =>
                {
                    return Ok(());
                }
                // Bytes that may have arrived must not arrive twice.
                Fault::Lost(_) | Fault::Late | Fault::Protocol(_) => {
                    return Err(envd.explain(fault, "giving a command its input").await);
                }
                passing if passing.may_pass() && tries < TRIES => {
                    tokio::time::sleep(envd.timing.pause(tries, passing.retry_after())).await;
                }
                _ => return Err(envd.explain(fault, "giving a command its input").await),
            }
        }
    }
    let message = json!({ "process": command.selector() });
    let mut tries = 0;
    loop {
        let until = Deadline::after(envd.timing.health);
        let closed = envd
            .unary::<Value>("process.Process/CloseStdin", &message, until)
            .await;
        let Err(fault) = closed else {
            return Ok(());
        };
        tries += 1;
        match &fault {
            Fault::Refused(answer) if answer.edge().is_none() && !answer.retryable() => {
                return Ok(());
            }
            // Closing twice does no harm.
            passing if passing.may_pass() && tries < TRIES => {
                tokio::time::sleep(envd.timing.pause(tries, passing.retry_after())).await;
            }
            _ => return Err(envd.explain(fault, "ending a command's input").await),
        }
    }
}
