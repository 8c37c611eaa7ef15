//! The real application on a free port of loopback: real store, real sandboxes, a scripted LLM.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandcaster::api::{self, ApiState, Shutdown};
use sandcaster::app::{App, Role};
use sandcaster::config::{Config, EnvMap, Overrides};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::fake_llm::{FakeLlm, KEY};

/// Longer than anything takes; a test that waits for it has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_sandcaster"))
}

/// A running application. Stopped when it is dropped; [`TestApp::stop`] does it in order.
pub struct TestApp {
    pub app: App,
    pub address: SocketAddr,
    pub dir: TempDir,
    shutdown: Shutdown,
    serving: JoinSet<()>,
}

/// How to make one.
pub struct TestAppBuilder {
    env: BTreeMap<String, String>,
    file: Option<Value>,
    dir: Option<TempDir>,
}

impl TestApp {
    /// An application whose Anthropic is `llm`.
    pub async fn with_llm(llm: &FakeLlm) -> Self {
        Self::builder().llm(llm).start().await
    }

    /// An application without any key.
    pub async fn keyless() -> Self {
        Self::builder().start().await
    }

    pub fn builder() -> TestAppBuilder {
        TestAppBuilder {
            env: BTreeMap::new(),
            file: None,
            dir: None,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The directory that `sandcaster.json` and the store lie in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a run and gives its stream.
    pub async fn query(&self, body: Value) -> EventStream {
        let response = self.post("/query", &body).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        EventStream::new(response)
    }

    /// Starts a run, reads it to its end and gives all its events.
    pub async fn run(&self, body: Value) -> Vec<Value> {
        self.query(body).await.rest().await
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let sent = super::http().post(self.url(path)).json(body).send();
        tokio::time::timeout(PATIENCE, sent).await.unwrap().unwrap()
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        let sent = super::http().get(self.url(path)).send();
        tokio::time::timeout(PATIENCE, sent).await.unwrap().unwrap()
    }

    pub async fn json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }

    /// The stream of a run from `after`.
    pub async fn events(&self, run: &str, after: u64) -> EventStream {
        let response = self.get(&format!("/runs/{run}/events?after={after}")).await;
        assert_eq!(response.status(), 200);
        EventStream::new(response)
    }

    /// Waits until the run has ended, and gives it.
    pub async fn ended(&self, run: &str) -> Value {
        let last = self.events(run, 0).await.rest().await;
        assert!(matches!(
            last.last().unwrap()["type"].as_str(),
            Some("result" | "error")
        ));
        self.json(&format!("/runs/{run}")).await
    }

    /// Stops in order, as SIGTERM does.
    pub async fn stop(mut self) -> TempDir {
        self.shutdown.begin.cancel();
        self.app.shutdown().await;
        while self.serving.join_next().await.is_some() {}
        self.dir
    }
}

impl TestAppBuilder {
    #[must_use]
    pub fn llm(self, llm: &FakeLlm) -> Self {
        let base_url = llm.base_url();
        self.env("ANTHROPIC_API_KEY", KEY)
            .env("ANTHROPIC_BASE_URL", &base_url)
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// `sandcaster.json`.
    #[must_use]
    pub fn file(mut self, file: Value) -> Self {
        self.file = Some(file);
        self
    }

    /// Over the directory of an application that was stopped.
    #[must_use]
    pub fn dir(mut self, dir: TempDir) -> Self {
        self.dir = Some(dir);
        self
    }

    pub async fn start(self) -> TestApp {
        let dir = self.dir.unwrap_or_else(|| tempfile::tempdir().unwrap());
        if let Some(file) = &self.file {
            std::fs::write(dir.path().join("sandcaster.json"), file.to_string()).unwrap();
        }
        let env: EnvMap = self.env.into_iter().collect();
        let mut config = Config::load(&Overrides::default(), &env, dir.path()).unwrap();
        config.launcher = binary();
        let app = App::build(config, Role::Serve).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::within(Duration::from_secs(10));
        let state = ApiState::new(app.clone(), app.clock.clone());
        let mut serving = JoinSet::new();
        serving.spawn(api::serve(listener, state, shutdown.clone()));
        TestApp {
            app,
            address,
            dir,
            shutdown,
            serving,
        }
    }
}

/// A run's events as a client reads them.
pub struct EventStream {
    response: reqwest::Response,
    buffer: String,
    pub run_id: String,
}

impl EventStream {
    pub fn new(response: reqwest::Response) -> Self {
        let run_id = response.headers()["x-run-id"].to_str().unwrap().to_owned();
        Self {
            response,
            buffer: String::new(),
            run_id,
        }
    }

    /// The next event, checked for its frame; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.buffer.find("\n\n") {
                let frame: String = self.buffer.drain(..at + 2).collect();
                if let Some(event) = event_of(&frame) {
                    return Some(event);
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk())
                .await
                .expect("an event in time");
            match chunk.expect("an unbroken stream") {
                Some(bytes) => self.buffer.push_str(std::str::from_utf8(&bytes).unwrap()),
                None => return None,
            }
        }
    }

    /// Reads on until an event of `kind`, and gives it.
    pub async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self
                .next()
                .await
                .unwrap_or_else(|| panic!("the stream ended without {kind}"));
            if event["type"] == kind {
                return event;
            }
        }
    }

    /// All events to the end.
    pub async fn rest(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

fn event_of(frame: &str) -> Option<Value> {
    let field = |name: &str| {
        frame
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let event: Value = serde_json::from_str(field("data:")?).unwrap();
    assert_eq!(field("event:"), event["type"].as_str());
    assert_eq!(field("id:"), Some(event["seq"].to_string().as_str()));
    Some(event)
}

/// The types of events, consecutive ones of a kind once.
pub fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    kinds.dedup();
    kinds
}

/// The text of all `assistant` events.
pub fn text(events: &[Value]) -> String {
    let texts = events.iter().filter(|event| event["type"] == "assistant");
    texts
        .map(|event| event["content"].as_str().unwrap())
        .collect()
}

/// The codes of all `warning` events.
pub fn warnings(events: &[Value]) -> Vec<&str> {
    let warnings = events.iter().filter(|event| event["type"] == "warning");
    warnings
        .map(|event| event["code"].as_str().unwrap())
        .collect()
}

/// The events of a kind.
pub fn of_kind<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    events
        .iter()
        .filter(|event| event["type"] == kind)
        .collect()
}

/// A request for the scripted LLM.
pub fn ask(prompt: &str) -> Value {
    json!({ "prompt": prompt, "model": "sonnet" })
}

/// A request for `demo`, with these commands.
pub fn demo(commands: &[&str]) -> Value {
    let lines: Vec<String> = commands
        .iter()
        .map(|command| format!("$ {command}"))
        .collect();
    json!({ "prompt": lines.join("\n"), "model": "demo" })
}
