//! Runs without the HTTP server: over any store, with a sandbox backend that the test holds in its hands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sandcaster::clock::Clock;
use sandcaster::llm::{self, LlmProvider, anthropic};
use sandcaster::paths::SandboxPath;
use sandcaster::runs::{Keep, LogLimits, Runs, RunsConfig, Tasks};
use sandcaster::sandbox::{
    ExecSpec, ExecStream, FoundSandbox, Labels, Sandbox, SandboxBackend, SandboxError, SandboxSpec,
};
use sandcaster::secrets::{Redactor, Secret};
use sandcaster::spec::{
    InputFile, ModelChoice, Network, Presence, RunSpec, SandboxChoice, SandboxStart, SystemPrompt,
    ThinkingLevel,
};
use sandcaster::store::RunStore;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::app::PATIENCE;
use crate::support::fake_llm::{FakeLlm, KEY, Reply};
use crate::support::host_sandbox::{HostSandbox, Shell};
use crate::support::memory_store::MemoryStore;

/// What is done to a sandbox's operations.
#[derive(Default)]
pub struct Script {
    /// `create` fails with these first.
    pub failures: Mutex<Vec<SandboxError>>,
    /// A read of a path that ends so waits for the token.
    pub reads: Vec<(&'static str, CancellationToken)>,
    /// A read of `out.txt` panics.
    pub rotten: bool,
    /// `create` panics.
    pub panics: bool,
    /// `create` never returns.
    pub stuck: bool,
    /// What `list` finds.
    pub found: Vec<FoundSandbox>,
    /// What was killed by its id.
    pub killed: Mutex<Vec<String>>,
    /// `kill` never returns.
    pub immortal: bool,
    pub creates: AtomicUsize,
    pub kills: AtomicUsize,
}

/// A backend whose sandboxes are [`HostSandbox`]es under a [`Script`].
pub struct Scripted(pub Arc<Script>);

struct ScriptedSandbox {
    inner: Arc<HostSandbox>,
    script: Arc<Script>,
}

#[async_trait]
impl SandboxBackend for Scripted {
    async fn create(&self, _: &SandboxSpec, _: &Labels) -> Result<Arc<dyn Sandbox>, SandboxError> {
        self.0.creates.fetch_add(1, Ordering::SeqCst);
        assert!(!self.0.panics, "the backend has a fault");
        if self.0.stuck {
            std::future::pending::<()>().await;
        }
        let mut failures = self.0.failures.lock();
        if !failures.is_empty() {
            return Err(failures.remove(0));
        }
        Ok(Arc::new(ScriptedSandbox {
            inner: HostSandbox::new(Shell::Bash),
            script: Arc::clone(&self.0),
        }))
    }

    async fn list(&self, _: &str) -> Result<Vec<FoundSandbox>, SandboxError> {
        Ok(self.0.found.clone())
    }

    async fn kill(&self, id: &str) -> Result<(), SandboxError> {
        self.0.killed.lock().push(id.to_owned());
        Ok(())
    }

    async fn alive(&self, _: &str) -> Result<bool, SandboxError> {
        Ok(true)
    }

    async fn probe(&self) -> Result<(), SandboxError> {
        Ok(())
    }
}

#[async_trait]
impl Sandbox for ScriptedSandbox {
    fn id(&self) -> &str {
        self.inner.id()
    }

    fn working_dir(&self) -> &str {
        self.inner.working_dir()
    }

    async fn exec(&self, spec: ExecSpec) -> Result<ExecStream, SandboxError> {
        self.inner.exec(spec).await
    }

    async fn read(&self, path: &str, max_bytes: u64) -> Result<Bytes, SandboxError> {
        let rotten = self.script.rotten && path.ends_with("out.txt");
        assert!(!rotten, "the sandbox has a fault");
        for (_, gate) in self
            .script
            .reads
            .iter()
            .filter(|(end, _)| path.ends_with(end))
        {
            gate.cancelled().await;
        }
        self.inner.read(path, max_bytes).await
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        self.inner.write(path, bytes).await
    }

    async fn extend(&self, lifetime: Duration) -> Result<(), SandboxError> {
        self.inner.extend(lifetime).await
    }

    async fn kill(&self) -> Result<(), SandboxError> {
        self.script.kills.fetch_add(1, Ordering::SeqCst);
        if self.script.immortal {
            std::future::pending::<()>().await;
        }
        self.inner.kill().await
    }

    async fn gone(&self) -> SandboxError {
        self.inner.gone().await
    }
}

/// Runs over `store`, whose LLM is `llm` and whose sandboxes follow `script`.
pub fn runs(
    llm: &FakeLlm,
    store: Arc<dyn RunStore>,
    script: &Arc<Script>,
    limits: LogLimits,
) -> Runs {
    runs_with(anthropic(llm), store, script, limits)
}

fn anthropic(llm: &FakeLlm) -> Arc<dyn LlmProvider> {
    let key = |name: &str| (name == "ANTHROPIC_API_KEY").then(|| Secret::new(KEY));
    let llm::Build::With(build) = anthropic::DEF.build else {
        panic!("it is built");
    };
    build(anthropic::DEF.config(crate::support::http(), key, Some(&llm.base_url())))
}

/// As [`runs`], with any LLM.
pub fn runs_with(
    provider: Arc<dyn LlmProvider>,
    store: Arc<dyn RunStore>,
    script: &Arc<Script>,
    limits: LogLimits,
) -> Runs {
    let backend: Arc<dyn SandboxBackend> = Arc::new(Scripted(Arc::clone(script)));
    let config = RunsConfig {
        store,
        keep: Keep {
            age: None,
            runs: u64::MAX,
        },
        providers: BTreeMap::from([("anthropic", provider)]),
        backends: BTreeMap::from([("local", (backend, None))]),
        max_concurrent_runs: 1000,
        redactor: Redactor::new([&Secret::new(KEY)]),
        clock: Clock::system(),
        tasks: Tasks::new(),
    };
    Runs::with_log_limits(config, limits)
}

/// A run with all tools and these files.
pub fn spec(files: &[(&str, &str)]) -> RunSpec {
    RunSpec {
        prompt: "hi".to_owned(),
        model: ModelChoice {
            provider: "anthropic",
            id: "claude-sonnet-4-6".to_owned(),
        },
        thinking: ThinkingLevel::Unset,
        tools: vec![
            "bash",
            "file_read",
            "file_write",
            "file_edit",
            "glob",
            "grep",
        ],
        unavailable_tools: Vec::new(),
        max_turns: 100,
        timeout: Duration::from_mins(1),
        max_budget: None,
        files: files
            .iter()
            .map(|(path, text)| InputFile {
                path: SandboxPath::parse(path).unwrap(),
                bytes: Bytes::copy_from_slice(text.as_bytes()),
            })
            .collect(),
        sandbox: SandboxChoice {
            backend: "local",
            template: None,
            network: Network::None,
            start: SandboxStart::Eager,
        },
        system_prompt: SystemPrompt::default(),
        presence: Presence::Attached {
            grace: Duration::from_secs(10),
        },
    }
}

/// An LLM that runs one command and is done.
pub async fn llm_of(command: &str) -> FakeLlm {
    let call = Reply::new().call("bash", &json!({ "command": command }));
    FakeLlm::start([call, Reply::says("Done.")]).await
}

/// Runs `spec` to its end, over a store in memory, and gives its events.
pub async fn run_once(llm: &FakeLlm, script: &Arc<Script>, spec: RunSpec) -> Vec<Value> {
    let runs = runs(llm, MemoryStore::new(), script, LogLimits::default());
    run(&runs, spec).await
}

/// Runs `spec` to its end and gives its events.
pub async fn run(runs: &Runs, spec: RunSpec) -> Vec<Value> {
    run_seeing(runs, spec, |_| {}).await
}

/// As [`run`], with a look at each event as it comes.
pub async fn run_seeing(runs: &Runs, spec: RunSpec, seen: impl Fn(&Value)) -> Vec<Value> {
    let mut handle = runs.start(spec).await.unwrap();
    let mut events = Vec::new();
    let read = async {
        while let Some(event) = handle.reader.next().await.unwrap() {
            let event = serde_json::from_str(&event.json).unwrap();
            seen(&event);
            events.push(event);
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    events
}
