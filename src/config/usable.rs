//! Which sandbox backends this machine and its keys allow.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::sandbox::{Backends, SandboxError};

/// Which sandbox backends can be used here, as probed at start.
#[derive(Clone, Debug, Default)]
pub struct Usable {
    /// By the backend's name: usable, or why not. Backends without their key are left out.
    pub backends: BTreeMap<&'static str, Result<(), SandboxError>>,
}

/// Longest wait for one backend's probe.
const PROBE: Duration = Duration::from_secs(5);

impl Usable {
    /// Asks these backends, side by side, for at most 5 s.
    pub async fn probe(backends: &Backends) -> Self {
        let probes = backends.iter().map(|(name, backend)| async move {
            let probed = tokio::time::timeout(PROBE, backend.probe()).await;
            let late = || SandboxError::Timeout("the backend did not answer within 5 s".to_owned());
            (*name, probed.unwrap_or_else(|_| Err(late())))
        });
        Self {
            backends: futures::future::join_all(probes)
                .await
                .into_iter()
                .collect(),
        }
    }
}
