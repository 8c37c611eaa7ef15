//! Sandboxes, real ones: what every backend must do, and what holds `local` together.

mod conformance;
#[cfg(target_os = "linux")]
mod e2b_breaks;
#[cfg(target_os = "linux")]
mod e2b_client;
#[cfg(target_os = "linux")]
mod e2b_faults;
#[cfg(target_os = "linux")]
mod e2b_files;
#[cfg(target_os = "linux")]
mod e2b_standin;
#[cfg(target_os = "linux")]
mod e2b_standin_faults;
#[cfg(target_os = "linux")]
mod e2b_standin_life;
#[cfg(target_os = "linux")]
mod e2b_support;
#[cfg(target_os = "linux")]
mod local_escape;
#[cfg(target_os = "linux")]
mod local_life;
#[cfg(target_os = "linux")]
mod local_limits;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandcaster::clock::Deadline;
use sandcaster::ids::RunId;
use sandcaster::sandbox::{
    BackendConfig, Build, ExecCollected, ExecSpec, Labels, LocalLimits, Sandbox, SandboxBackend,
    SandboxSpec, backend,
};
use sandcaster::spec::Network;

/// More than any single step of these tests needs, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `future`, but not for ever.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it took too long")
}

/// The launcher's name where test program and launcher were copied to together.
pub const LAUNCHER_BESIDE: &str = "sandcaster-launcher";

/// The program that launches sandboxes.
pub fn launcher() -> PathBuf {
    let beside = std::env::current_exe()
        .unwrap()
        .with_file_name(LAUNCHER_BESIDE);
    if beside.exists() {
        beside
    } else {
        PathBuf::from(env!("CARGO_BIN_EXE_sandcaster"))
    }
}

pub fn config(local: LocalLimits) -> BackendConfig {
    BackendConfig {
        http: sandcaster::net::build().unwrap(),
        keys: Vec::new(),
        base_urls: std::collections::BTreeMap::new(),
        launcher: launcher(),
        local,
    }
}

pub fn local() -> Arc<dyn SandboxBackend> {
    local_with(LocalLimits::default())
}

pub fn local_with(limits: LocalLimits) -> Arc<dyn SandboxBackend> {
    match backend("local").unwrap().build {
        Build::With(make) => make(&config(limits)),
        Build::NotYet => panic!("`local` is built"),
    }
}

pub fn spec() -> SandboxSpec {
    SandboxSpec {
        template: None,
        network: Network::None,
        lifetime: Duration::from_mins(2),
        deadline: Deadline::after(PATIENCE),
    }
}

pub fn labels() -> Labels {
    Labels {
        run: RunId::new(),
        instance: format!("test-{}", sandcaster::ids::nonce()),
        attempt: 1,
        expires: 4_102_444_800,
    }
}

pub async fn create(backend: &Arc<dyn SandboxBackend>) -> Arc<dyn Sandbox> {
    soon(backend.create(&spec(), &labels())).await.unwrap()
}

/// A shell line as a command.
pub fn sh(line: &str) -> ExecSpec {
    ExecSpec {
        argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()],
        ..ExecSpec::default()
    }
}

/// Runs a command to its end.
pub async fn run(sandbox: &Arc<dyn Sandbox>, spec: ExecSpec) -> ExecCollected {
    let stream = soon(sandbox.exec(spec)).await.unwrap();
    soon(stream.collect(1 << 20)).await.unwrap()
}

/// Runs a shell line and gives its exit code and both outputs, as text.
pub async fn shell(sandbox: &Arc<dyn Sandbox>, line: &str) -> (i32, String) {
    let done = run(sandbox, sh(line)).await;
    let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&done.stderr));
    (done.exit_code, text)
}
