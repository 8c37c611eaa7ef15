//! The real program as a process of its own, serving from a directory.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::app::{EventStream, PATIENCE, binary};
use super::fake_llm::{FakeLlm, KEY};

/// `sandcaster serve`. Killed when it is dropped.
pub struct Served {
    pub url: String,
    pub start_line: String,
    process: Child,
    log: PathBuf,
    /// Sent with each request that it is asked here.
    key: Option<String>,
    /// Held, so that the program's stdout stays open.
    _stdout: Lines<BufReader<ChildStdout>>,
    _own_dir: Option<TempDir>,
}

impl Served {
    /// In a directory of its own, without any key.
    pub async fn keyless() -> Self {
        Self::with(&[]).await
    }

    /// With `llm` as Anthropic, and further variables.
    pub async fn with_llm(llm: &FakeLlm, env: &[(&str, &str)]) -> Self {
        let base_url = llm.base_url();
        let llm = [
            ("ANTHROPIC_API_KEY", KEY),
            ("ANTHROPIC_BASE_URL", base_url.as_str()),
        ];
        Self::with(&[&llm, env].concat()).await
    }

    /// In a directory of its own, with this environment alone.
    pub async fn with(env: &[(&str, &str)]) -> Self {
        Self::alone(Command::new(binary()), env).await
    }

    /// With these limits of open files: what holds, and how far it may be raised.
    pub async fn with_open_files(soft: u32, hard: u32) -> Self {
        let mut limited = Command::new("/usr/bin/prlimit");
        limited.arg(format!("--nofile={soft}:{hard}")).arg(binary());
        Self::alone(limited, &[]).await
    }

    /// In `dir`, with this environment alone. Its log goes to the file `server.log` there, after what earlier ones
    /// wrote.
    pub async fn start(dir: &Path, env: &[(&str, &str)]) -> Self {
        Self::started(Command::new(binary()), dir, env).await
    }

    async fn alone(program: Command, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Self::started(program, dir.path(), env).await;
        Self {
            _own_dir: Some(dir),
            ..server
        }
    }

    /// Started, and listening: the address is read from its start line.
    async fn started(mut program: Command, dir: &Path, env: &[(&str, &str)]) -> Self {
        let log = dir.join("server.log");
        let mut appending = std::fs::File::options();
        let stderr = appending.create(true).append(true).open(&log).unwrap();
        let mut process = program
            .args(["serve", "--port", "0"])
            .current_dir(dir)
            .env_clear()
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let start_line = timeout(PATIENCE, stdout.next_line())
            .await
            .unwrap_or_else(|_| panic!("no start line: {}", said()))
            .unwrap()
            .unwrap_or_else(|| panic!("the program ended: {}", said()));
        let url = start_line
            .strip_prefix("sandcaster listening on ")
            .and_then(|rest| rest.split(' ').next())
            .unwrap_or_else(|| panic!("unexpected start line: {start_line}"))
            .to_owned();
        let key = env.iter().find(|(name, _)| *name == "SANDCASTER_API_KEY");
        Self {
            url,
            start_line,
            process,
            log,
            key: key.map(|(_, key)| (*key).to_owned()),
            _stdout: stdout,
            _own_dir: None,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Its host and port.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// The directory that it serves from.
    pub fn dir(&self) -> &Path {
        self.log.parent().unwrap()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Its memory.
    pub fn rss_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// The most that was resident since [`Self::forget_peak`].
    pub fn peak_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    /// Counts the peak from now on.
    pub fn forget_peak(&self) {
        let refs = format!("/proc/{}/clear_refs", self.process.id().unwrap());
        std::fs::write(refs, "5").unwrap();
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = format!("/proc/{}/status", self.process.id().unwrap());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap().split_whitespace().next().unwrap();
        value.parse().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id().expect("the program runs"));
        kill(Pid::from_raw(pid.unwrap()), signal).unwrap();
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.process.wait()).await;
        ended.expect("an end in time").unwrap()
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> reqwest::Response {
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        timeout(PATIENCE, request.send()).await.unwrap().unwrap()
    }

    /// Starts a run and gives its stream.
    pub async fn query(&self, body: &Value) -> EventStream {
        let response = self.post("/query", body).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        EventStream::new(response)
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = super::http().post(self.url(path));
        self.send(request.json(body)).await
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.send(super::http().get(self.url(path))).await
    }

    pub async fn get_range(&self, path: &str, range: &str) -> reqwest::Response {
        let request = super::http().get(self.url(path));
        self.send(request.header("Range", range)).await
    }

    /// A JSON answer. No reader is attached by it.
    pub async fn json(&self, path: &str) -> Value {
        let request = super::http().get(self.url(path));
        let response = self.send(request.header("accept", "application/json"));
        response.await.json().await.unwrap()
    }

    /// The whole stream of a run.
    pub async fn events(&self, run: &str) -> EventStream {
        EventStream::new(self.get(&format!("/runs/{run}/events")).await)
    }

    /// Waits until the run is in `state` (`statusDetail`), without reading its stream: that would keep it
    /// alive.
    pub async fn run_is(&self, run: &str, state: &str) -> Value {
        let path = format!("/runs/{run}");
        let mut looks = tokio::time::interval(Duration::from_millis(25));
        let looking = async {
            loop {
                looks.tick().await;
                let run = self.json(&path).await;
                if run["statusDetail"] == state {
                    return run;
                }
            }
        };
        timeout(PATIENCE, looking)
            .await
            .unwrap_or_else(|_| panic!("{run} is not {state}: {}", self.log()))
    }
}
