//! Our scripts, run for a tool call: within its time, until the run is to stop.

use std::time::Duration;

use crate::sandbox::{ExecCollected, SandboxError, unforked};

pub(super) use crate::sandbox::Script;

use super::types::{Failure, ToolContext};

impl Script<'_> {
    /// Runs it for a tool call: at most `limit`, and within the call's own deadline.
    pub(super) async fn run_for(
        self,
        context: &ToolContext,
        limit: Duration,
    ) -> Result<ExecCollected, Failure> {
        let limit = context.deadline.within(limit);
        // The token first, so that no work goes on after it; the output collected so far is lost with it.
        let ended = tokio::select! {
            biased;
            () = context.cancel.cancelled() => Err(Failure::Cancelled),
            ended = self.run(context.sandbox.as_ref(), limit) => ended.map_err(|error| match error {
                SandboxError::Timeout(why) if limit.passed() => {
                    Failure::Complaint(format!("{why}; try a narrower path, or bash"))
                }
                error => error.into(),
            }),
        }?;
        // Whatever its exit code: what it could not start may be the beginning of a pipe.
        match unforked(&ended.stderr) {
            Some(why) => Err(Failure::Complaint(why.to_owned())),
            None => Ok(ended),
        }
    }
}
