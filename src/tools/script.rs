//! Short commands of ours in the sandbox: a fixed text for `sh`, everything variable as an argument.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::clock::Deadline;
use crate::sandbox::{ExecCollected, ExecOutput, ExecSpec, Sandbox, SandboxError};

use super::types::{Failure, ToolContext};

/// A fixed text for `sh -c`, and what differs from call to call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script<'a> {
    /// The program text: a constant, never built from outside text.
    pub(crate) text: &'static str,
    /// `$1`, `$2`, ….
    pub(crate) args: Vec<&'a str>,
    /// Where it starts; `/` if empty.
    pub(crate) cwd: &'a str,
    /// Standard input.
    pub(crate) stdin: Bytes,
    /// Added to the environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Bytes of output that are kept.
    pub(crate) keep: usize,
}

/// Why a script gave no output.
#[derive(Debug)]
pub(crate) enum ScriptError {
    /// The sandbox failed.
    Sandbox(SandboxError),
    /// It took longer than it may; it has been killed.
    TimedOut(Duration),
    /// The run is to stop; it has been killed.
    Cancelled,
}

impl From<ScriptError> for Failure {
    fn from(error: ScriptError) -> Self {
        match error {
            ScriptError::Sandbox(error) => error.into(),
            ScriptError::TimedOut(after) => Self::Complaint(format!(
                "gave up after {} s; try a narrower path, or bash",
                after.as_secs().max(1)
            )),
            ScriptError::Cancelled => Self::Cancelled,
        }
    }
}

impl Script<'_> {
    /// Runs it to its end, within `limit` and until `cancel` fires.
    pub(crate) async fn run(
        self,
        sandbox: &dyn Sandbox,
        limit: Deadline,
        cancel: &CancellationToken,
    ) -> Result<ExecCollected, ScriptError> {
        let allowed = limit.remaining();
        let spec = self.spec();
        let mut control = None;
        let work = async {
            let stream = sandbox.exec(spec).await.map_err(ScriptError::Sandbox)?;
            control = Some(Arc::clone(&stream.control));
            stream
                .collect(self.keep)
                .await
                .map_err(ScriptError::Sandbox)
        };
        // The token first, so that no work goes on after it; the output collected so far is lost with it.
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ScriptError::Cancelled),
            done = tokio::time::timeout_at(limit.instant(), work) => {
                done.unwrap_or(Err(ScriptError::TimedOut(allowed)))
            }
        };
        if let (Err(ScriptError::Cancelled | ScriptError::TimedOut(_)), Some(control)) =
            (&ended, control)
        {
            // A backend that can't even kill must not hold up the answer.
            drop(tokio::time::timeout(Duration::from_secs(1), control.kill()).await);
        }
        ended
    }

    /// Runs it and gives what it printed until `limit`, whatever became of it.
    pub(crate) async fn run_until(self, sandbox: &dyn Sandbox, limit: Deadline) -> Vec<u8> {
        let mut printed = Vec::new();
        let keep = self.keep;
        let work = async {
            let mut stream = sandbox.exec(self.spec()).await?;
            let control = Arc::clone(&stream.control);
            let reading = async {
                loop {
                    match stream.next().await? {
                        ExecOutput::Stdout(bytes) if printed.len() < keep => {
                            printed.extend_from_slice(&bytes);
                        }
                        ExecOutput::Stdout(_) | ExecOutput::Stderr(_) | ExecOutput::Gap => {}
                        ExecOutput::Exit(_) => return Ok(()),
                    }
                }
            };
            if let Ok(ended) = tokio::time::timeout_at(limit.instant(), reading).await {
                return ended;
            }
            control.kill().await;
            Ok::<(), SandboxError>(())
        };
        // A second more for the kill. What failed is told by the call that needs the sandbox next.
        drop(tokio::time::timeout_at(limit.plus(Duration::from_secs(1)).instant(), work).await);
        printed
    }

    fn spec(&self) -> ExecSpec {
        let fixed = ["sh", "-c", self.text, "sandcaster"];
        ExecSpec {
            argv: fixed
                .iter()
                .chain(&self.args)
                .map(|arg| (*arg).to_owned())
                .collect(),
            env: self.env.clone(),
            cwd: if self.cwd.is_empty() { "/" } else { self.cwd }.to_owned(),
            stdin: self.stdin.clone(),
        }
    }

    /// Runs it for a tool call: at most `limit`, and within the call's own deadline.
    pub(crate) async fn run_for(
        self,
        context: &ToolContext,
        limit: Duration,
    ) -> Result<ExecCollected, ScriptError> {
        self.run(
            context.sandbox.as_ref(),
            context.deadline.within(limit),
            &context.cancel,
        )
        .await
    }
}
