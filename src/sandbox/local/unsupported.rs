//! `local` where there is no Linux: says so.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;

use crate::sandbox::def::BackendConfig;
use crate::sandbox::types::{
    FoundSandbox, Labels, Sandbox, SandboxBackend, SandboxError, SandboxSpec,
};

struct Unsupported;

pub(super) fn make(_: &BackendConfig) -> Arc<dyn SandboxBackend> {
    Arc::new(Unsupported)
}

/// No process is a sandbox's launcher here.
pub const fn launcher_main() -> Option<ExitCode> {
    None
}

fn error() -> SandboxError {
    SandboxError::HostCannot {
        message: format!(
            "local sandboxes need Linux, and this is {}",
            std::env::consts::OS
        ),
        hint: "use another sandbox backend, or run the server in a Linux virtual machine or WSL2"
            .to_owned(),
    }
}

#[async_trait]
impl SandboxBackend for Unsupported {
    async fn create(&self, _: &SandboxSpec, _: &Labels) -> Result<Arc<dyn Sandbox>, SandboxError> {
        Err(error())
    }

    async fn list(&self, _: &str) -> Result<Vec<FoundSandbox>, SandboxError> {
        Ok(Vec::new())
    }

    async fn kill(&self, _: &str) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn alive(&self, _: &str) -> Result<bool, SandboxError> {
        Ok(false)
    }

    async fn probe(&self) -> Result<(), SandboxError> {
        Err(error())
    }
}
