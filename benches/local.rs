//! The `local` sandbox by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sandcaster::clock::Deadline;
use sandcaster::ids::RunId;
use sandcaster::sandbox::{
    BackendConfig, Build, ExecSpec, Labels, LocalLimits, Sandbox, SandboxError, SandboxSpec,
    backend,
};
use sandcaster::spec::Network;
use tokio::time::Instant;

use super::figures::Times;
use super::server::PATIENCE;

/// How long each step took.
#[derive(Debug, Default)]
pub struct LocalFigures {
    pub create: Times,
    /// `/bin/true`.
    pub exec: Times,
    /// A shell with an `echo`.
    pub shell: Times,
    pub destroy: Times,
}

/// `sandboxes` one after the other, `commands` in each.
///
/// # Errors
/// Where the host can't make sandboxes.
pub async fn local_figures(
    sandboxes: usize,
    commands: usize,
) -> Result<LocalFigures, SandboxError> {
    let Build::With(build) = backend("local").expect("a backend").build else {
        unreachable!("`local` is built");
    };
    let backend = build(&BackendConfig {
        http: sandcaster::net::build().expect("a client"),
        keys: Vec::new(),
        base_urls: BTreeMap::new(),
        launcher: env!("CARGO_BIN_EXE_sandcaster").into(),
        local: LocalLimits::default(),
    });
    backend.probe().await?;
    let mut figures = LocalFigures::default();
    for attempt in 0..sandboxes {
        let spec = SandboxSpec {
            template: None,
            network: Network::None,
            lifetime: Duration::from_mins(2),
            deadline: Deadline::after(PATIENCE),
        };
        let labels = Labels {
            run: RunId::new(),
            instance: "bench".to_owned(),
            attempt: attempt as u32,
            expires: 4_102_444_800,
        };
        let begun = Instant::now();
        let sandbox = backend.create(&spec, &labels).await?;
        figures.create.push(begun.elapsed());
        for _ in 0..commands {
            figures.exec.push(exec(&sandbox, &["/bin/true"]).await?);
            figures
                .shell
                .push(exec(&sandbox, &["/bin/sh", "-c", "echo hi"]).await?);
        }
        let begun = Instant::now();
        sandbox.kill().await?;
        figures.destroy.push(begun.elapsed());
    }
    Ok(figures)
}

async fn exec(sandbox: &Arc<dyn Sandbox>, argv: &[&str]) -> Result<Duration, SandboxError> {
    let begun = Instant::now();
    let command = ExecSpec {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        ..ExecSpec::default()
    };
    let done = sandbox.exec(command).await?.collect(4096).await?;
    assert_eq!(done.exit_code, 0);
    Ok(begun.elapsed())
}
