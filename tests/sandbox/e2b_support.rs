//! What the tests of the E2B backend share.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sandcaster::clock::Deadline;
use sandcaster::ids::RunId;
use sandcaster::net;
use sandcaster::sandbox::e2b::{self, Timing};
use sandcaster::sandbox::{
    BackendConfig, ExecCollected, ExecSpec, Labels, LocalLimits, Sandbox, SandboxBackend,
    SandboxError, SandboxSpec,
};
use sandcaster::secrets::Secret;
use sandcaster::spec::Network;

use crate::support::fake_e2b::{FakeE2b, KEY};

pub const INSTANCE: &str = "store-0123";

/// Limits short enough for tests of faults, long enough for a busy machine where nothing goes wrong.
pub fn quick() -> Timing {
    Timing {
        create: Duration::from_secs(20),
        create_try: Duration::from_secs(5),
        call: Duration::from_secs(5),
        file: Duration::from_secs(10),
        start: Duration::from_secs(10),
        idle: Duration::from_secs(10),
        health: Duration::from_secs(2),
        watch: Duration::from_secs(10),
        unreachable: Duration::from_secs(1),
        pause: Duration::from_millis(10),
    }
}

/// Patience of tests in which something stays silent.
pub fn impatient() -> Timing {
    Timing {
        start: Duration::from_millis(500),
        idle: Duration::from_millis(300),
        health: Duration::from_millis(500),
        file: Duration::from_millis(500),
        unreachable: Duration::from_millis(300),
        ..quick()
    }
}

pub fn backend(e2b: &FakeE2b) -> Arc<dyn SandboxBackend> {
    backend_with(e2b, Some(KEY), quick())
}

pub fn backend_with(e2b: &FakeE2b, key: Option<&str>, timing: Timing) -> Arc<dyn SandboxBackend> {
    backend_at(&e2b.url(), key, timing)
}

pub fn backend_at(url: &str, key: Option<&str>, timing: Timing) -> Arc<dyn SandboxBackend> {
    let config = BackendConfig {
        http: net::build().unwrap(),
        keys: key
            .map(|key| ("E2B_API_KEY", Secret::new(key)))
            .into_iter()
            .collect(),
        base_urls: BTreeMap::from([
            (e2b::API_URL_VAR, url.to_owned()),
            (e2b::SANDBOX_URL_VAR, url.to_owned()),
        ]),
        launcher: PathBuf::new(),
        local: LocalLimits::default(),
    };
    e2b::build_with(&config, timing)
}

pub fn labels() -> Labels {
    Labels {
        run: RunId::new(),
        instance: INSTANCE.to_owned(),
        attempt: 1,
        expires: 1_800_000_000,
    }
}

pub fn spec() -> SandboxSpec {
    SandboxSpec {
        template: None,
        network: Network::Full,
        lifetime: Duration::from_mins(7),
        deadline: Deadline::after(Duration::from_secs(30)),
    }
}

pub async fn sandbox(e2b: &FakeE2b) -> Arc<dyn Sandbox> {
    sandbox_with(e2b, quick()).await
}

pub async fn sandbox_with(e2b: &FakeE2b, timing: Timing) -> Arc<dyn Sandbox> {
    let backend = backend_with(e2b, Some(KEY), timing);
    backend.create(&spec(), &labels()).await.unwrap()
}

pub fn command(argv: &[&str]) -> ExecSpec {
    ExecSpec {
        argv: argv.iter().map(|&arg| arg.to_owned()).collect(),
        ..ExecSpec::default()
    }
}

/// Runs a command to its end.
pub async fn collect(sandbox: &dyn Sandbox, spec: ExecSpec) -> Result<ExecCollected, SandboxError> {
    bounded(async { sandbox.exec(spec).await?.collect(64 << 20).await }).await
}

/// Runs a shell script to its end.
pub async fn sh(sandbox: &dyn Sandbox, script: &str) -> ExecCollected {
    collect(sandbox, command(&["sh", "-c", script]))
        .await
        .unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Nothing in these tests takes longer, whatever goes wrong.
pub async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .expect("it hung")
}

/// This process's resident memory.
pub fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
