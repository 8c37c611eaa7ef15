//! Room for a call's processes where programs that earlier commands left running have all that the sandbox may have.
//!
//! Nothing can be started then to end any of them, so no advice to the model would help: where the sandbox can end
//! them by itself, it does, the call is tried once more, and its answer says so.

use tokio::sync::{RwLockReadGuard, RwLockWriteGuard};

use crate::sandbox::{SandboxError, Short};

use super::types::{Failure, ToolContext};

const OCCUPIED: &str = "not run: the time was over while another call had the sandbox for itself";

/// A place for one script or command.
pub(super) struct Room<'a> {
    context: &'a ToolContext,
    tried: Tried<'a>,
}

enum Tried<'a> {
    /// Beside other calls, which may have the processes.
    Beside(RwLockReadGuard<'a, ()>),
    /// Alone: whatever runs in the sandbox was left running.
    Alone(RwLockWriteGuard<'a, ()>),
    /// Alone, after all of that was ended.
    Ended(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'a, ()>),
}

impl<'a> Room<'a> {
    /// Waits while another call has the sandbox for itself.
    ///
    /// # Errors
    /// `Cancelled`; a complaint when the call's time is over.
    pub(super) async fn enter(context: &'a ToolContext) -> Result<Self, Failure> {
        let rooms = &context.session.rooms;
        let guard = match rooms.try_read() {
            Ok(guard) => guard,
            Err(_) => waited(context, rooms.read(), OCCUPIED).await?,
        };
        let tried = Tried::Beside(guard);
        Ok(Self { context, tried })
    }

    /// After a try for which no process could be started: a place where another one may do better.
    ///
    /// # Errors
    /// There is none: a complaint that says why. `Cancelled`; `Fatal`.
    pub(super) async fn make(self, short: Short) -> Result<Self, Failure> {
        let Self { context, tried } = self;
        let starved = SandboxError::Starved(short);
        let tried = match tried {
            Tried::Beside(guard) => {
                drop(guard);
                Tried::Alone(waited(context, context.session.rooms.write(), OCCUPIED).await?)
            }
            Tried::Alone(guard) => {
                let ending = context.sandbox.end_all();
                let over = format!(
                    "{starved}. The time was over while what earlier commands had left running was being ended, so that \
                     this call was not run: some or all of it may be gone"
                );
                let ended = match waited(context, ending, &over).await? {
                    Ok(Some(ended)) => ended,
                    Ok(None) => {
                        return Err(Failure::Complaint(format!(
                            "{starved}. No other call is at work; what earlier commands left running can't be ended \
                             from here. Try again later, when some of it may have ended by itself"
                        )));
                    }
                    Err(error) if error.is_fatal() => return Err(error.into()),
                    Err(error) => return Err(Failure::Complaint(format!("{starved}; {error}"))),
                };
                if ended == 0 {
                    return Err(Failure::Complaint(format!(
                        "{starved}, though nothing else runs in the sandbox"
                    )));
                }
                context.session.note(format!(
                    "what earlier commands had left running was ended ({ended} process{}): with it {starved}",
                    if ended == 1 { "" } else { "es" }
                ));
                Tried::Ended(guard)
            }
            Tried::Ended(_) => {
                return Err(Failure::Complaint(format!(
                    "{starved}, though nothing else runs in the sandbox any more"
                )));
            }
        };
        Ok(Self { context, tried })
    }
}

/// Waits for `work` until the call's time is `over`, which is said then.
async fn waited<T>(
    context: &ToolContext,
    work: impl Future<Output = T>,
    over: &str,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = context.cancel.cancelled() => Err(Failure::Cancelled),
        done = tokio::time::timeout_at(context.deadline.instant(), work) => done.map_err(|_| {
            Failure::Complaint(over.to_owned())
        }),
    }
}
