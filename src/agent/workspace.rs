//! A sandbox made ready for a run: facts probed, inputs uploaded, the files there taken note of.

use std::sync::Arc;

use async_trait::async_trait;

use crate::clock::Deadline;
use crate::error::Problem;
use crate::sandbox::files::{Baseline, upload};
use crate::sandbox::{Sandbox, SandboxError, require_shell};
use crate::spec::InputFile;
use crate::tools::ShellSession;

/// A sandbox that tools can act in.
pub struct Workspace {
    /// The sandbox.
    pub sandbox: Arc<dyn Sandbox>,
    /// What the tools remember between calls.
    pub session: Arc<ShellSession>,
    /// The files as they were before the first tool call.
    pub baseline: Baseline,
}

/// Where the agent gets its workspace from. It may still be on its way.
#[async_trait]
pub trait WorkspaceSource: Send + Sync {
    /// Waits for the workspace; starts making it, if that was put off. The same one every time.
    ///
    /// # Errors
    /// Why there is none.
    async fn workspace(&self) -> Result<Arc<Workspace>, Problem>;

    /// The workspace, if it is there already.
    fn ready(&self) -> Option<Arc<Workspace>>;
}

impl Workspace {
    /// Makes `sandbox` ready.
    ///
    /// # Errors
    /// `NoShell` when it has none; or when the inputs can't be written.
    pub async fn prepare(
        sandbox: Arc<dyn Sandbox>,
        inputs: &[InputFile],
        deadline: Deadline,
    ) -> Result<Self, SandboxError> {
        let session = Arc::new(ShellSession::new(sandbox.working_dir()));
        // Side by side: with a sandbox far away each look is a round trip before the first tool call.
        let (facts, baseline) = tokio::join!(session.probe(sandbox.as_ref()), async {
            upload(sandbox.as_ref(), inputs).await?;
            Baseline::take(sandbox.as_ref(), inputs, deadline).await
        });
        if !facts.known {
            require_shell(sandbox.as_ref(), deadline).await?;
        }
        let baseline = baseline?;
        Ok(Self {
            sandbox,
            session,
            baseline,
        })
    }
}
