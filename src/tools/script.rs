//! Our scripts, run for a tool call: within its time, until the run is to stop.

use std::time::Duration;

use crate::sandbox::{ExecCollected, SandboxError, unforked};

pub(super) use crate::sandbox::Script;

use super::room::Room;
use super::types::{Failure, ToolContext};

impl Script<'_> {
    /// Runs it for a tool call: at most `limit`, and within the call's own deadline. Once more, from its beginning, if
    /// no process could be started and there is room then.
    pub(super) async fn run_for(
        self,
        context: &ToolContext,
        limit: Duration,
    ) -> Result<ExecCollected, Failure> {
        let mut room = Room::enter(context).await?;
        loop {
            let limit = context.deadline.within(limit);
            // The token first, so that no work goes on after it; the output collected so far is lost with it.
            let ended = tokio::select! {
                biased;
                () = context.cancel.cancelled() => return Err(Failure::Cancelled),
                ended = self.clone().run(context.sandbox.as_ref(), limit) => ended,
            };
            let short = match ended {
                // Whatever its exit code: what it could not start may be the beginning of a pipe.
                Ok(ended) => match unforked(&ended.stderr) {
                    None => return Ok(ended),
                    Some(short) => short,
                },
                Err(SandboxError::Starved(short)) => short,
                Err(SandboxError::Timeout(why)) if limit.passed() => {
                    return Err(Failure::Complaint(format!(
                        "{why}; try a narrower path, or bash"
                    )));
                }
                Err(error) => return Err(error.into()),
            };
            room = room.make(short).await?;
        }
    }
}
