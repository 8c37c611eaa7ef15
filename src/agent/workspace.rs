//! A sandbox made ready for a run: facts probed, inputs uploaded, the files there taken note of.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::files::Baseline;
use crate::clock::Deadline;
use crate::error::Problem;
use crate::sandbox::{ExecSpec, Sandbox, SandboxError};
use crate::spec::InputFile;
use crate::tools::ShellSession;

/// For a look whether there is a shell at all.
const SHELL_LIMIT: Duration = Duration::from_secs(10);

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
    /// `TemplateIncompatible` when it has no shell; or when the inputs can't be written.
    pub async fn prepare(
        sandbox: Arc<dyn Sandbox>,
        inputs: &[InputFile],
        deadline: Deadline,
    ) -> Result<Self, SandboxError> {
        let session = Arc::new(ShellSession::new(sandbox.working_dir()));
        // Side by side: with a sandbox far away each look is a round trip before the first tool call.
        let (facts, baseline) = tokio::join!(session.probe(sandbox.as_ref()), async {
            super::files::upload(sandbox.as_ref(), inputs).await?;
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

/// Tells a sandbox that is slow, which may pass, from one that has no shell, where no tool can work.
async fn require_shell(sandbox: &dyn Sandbox, deadline: Deadline) -> Result<(), SandboxError> {
    let spec = ExecSpec {
        argv: ["sh", "-c", "exit 0"].map(str::to_owned).into(),
        ..ExecSpec::default()
    };
    let trying = async { sandbox.exec(spec).await?.collect(0).await };
    let until = deadline.within(SHELL_LIMIT);
    let why = match tokio::time::timeout_at(until.instant(), trying).await {
        Ok(Ok(ended)) if matches!(ended.exit_code, 126 | 127) => {
            format!("sh can't be run: exit code {}", ended.exit_code)
        }
        Ok(Err(SandboxError::NotStarted(why))) => why,
        Ok(Err(error)) if error.is_fatal() => return Err(error),
        // It answers somehow, or will: the tools say what fails.
        Ok(_) | Err(_) => return Ok(()),
    };
    Err(SandboxError::TemplateIncompatible(format!(
        "the sandbox has no POSIX shell, which every tool needs ({why}); use a template or image with \
         `sh` on its PATH"
    )))
}
