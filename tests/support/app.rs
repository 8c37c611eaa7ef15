//! The real application on a free port of loopback: real store, real sandboxes, a scripted LLM.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandcaster::api::{self, ApiState, Limits, Shutdown};
use sandcaster::app::{App, Role};
use sandcaster::config::{Config, EnvMap, Overrides};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::fake_llm::{FakeLlm, KEY};
use super::host_sandbox::write_program;

/// Longer than anything takes; a test that waits for it has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_sandcaster"))
}

/// A launcher of sandboxes in `dir` that waits while the file `closed` is there, and fails if `broken` is.
pub fn slow_launcher(dir: &Path) -> PathBuf {
    let script = dir.join("launcher");
    let text = format!(
        "#!/bin/sh\nwhile [ -e {0}/closed ]; do sleep 0.01; done\n[ -e {0}/broken ] && exit 7\nexec {1} \"$@\"\n",
        dir.display(),
        binary().display()
    );
    write_program(&script, &text);
    script
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
    tune: Option<Tune>,
}

type Tune = Box<dyn FnOnce(&mut Config) + Send>;

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
            tune: None,
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

    /// Asks a run to stop.
    pub async fn cancel(&self, run: &str) -> reqwest::Response {
        self.post(&format!("/runs/{run}/cancel"), &json!({})).await
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
        let streams = async { while self.serving.join_next().await.is_some() {} };
        tokio::time::timeout(PATIENCE, streams).await.unwrap();
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

    /// Changes the settings after they were read.
    #[must_use]
    pub fn tune(mut self, tune: impl FnOnce(&mut Config) + Send + 'static) -> Self {
        self.tune = Some(Box::new(tune));
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
        if let Some(tune) = self.tune {
            tune(&mut config);
        }
        let app = App::build(config, Role::Serve).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::default();
        let state = ApiState::new(app.clone());
        let mut serving = JoinSet::new();
        serving.spawn(api::serve(
            listener,
            state,
            Limits::default(),
            shutdown.clone(),
        ));
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
    /// Bytes, since a chunk may end within a character.
    buffer: Vec<u8>,
    /// So many bytes of it were looked through for an end.
    looked: usize,
    pub run_id: String,
}

impl EventStream {
    pub fn new(response: reqwest::Response) -> Self {
        let run_id = response.headers()["x-run-id"].to_str().unwrap().to_owned();
        Self {
            response,
            buffer: Vec::new(),
            looked: 0,
            run_id,
        }
    }

    /// The next event, checked for its frame; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        let frame = self.next_frame().await.expect("an unbroken stream")?;
        Some(event_of(&frame))
    }

    /// The next event's frame, as it came; an error where the connection broke.
    pub async fn next_frame(&mut self) -> Result<Option<String>, reqwest::Error> {
        loop {
            let end = self.buffer[self.looked..]
                .windows(2)
                .position(|pair| pair == b"\n\n");
            if let Some(at) = end {
                let frame = self.buffer.drain(..self.looked + at + 2).collect();
                self.looked = 0;
                let frame = String::from_utf8(frame).unwrap();
                // Comments and `retry` belong to the stream, not to the event whose block they stand in.
                let event: String = frame
                    .split_inclusive('\n')
                    .filter(|line| !line.starts_with(':') && !line.starts_with("retry:"))
                    .collect();
                if event.starts_with("id:") {
                    return Ok(Some(event));
                }
                continue;
            }
            self.looked = self.buffer.len().saturating_sub(1);
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk())
                .await
                .expect("an event in time");
            match chunk? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }

    /// All frames to the end, or to the break of the connection.
    pub async fn frames(mut self) -> Vec<String> {
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = self.next_frame().await {
            frames.push(frame);
        }
        frames
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
        self.collect().await
    }

    /// As [`EventStream::rest`], with the stream's facts still at hand.
    pub async fn collect(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The event in a frame, checked against the frame's other fields.
pub fn event_of(frame: &str) -> Value {
    let field = |name: &str| {
        frame
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let event: Value = serde_json::from_str(field("data:").unwrap()).unwrap();
    assert_eq!(field("event:"), event["type"].as_str());
    assert_eq!(field("id:"), Some(event["seq"].to_string().as_str()));
    event
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
