//! The real binary, serving from a directory.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::app::{EventStream, PATIENCE, binary};

/// A server process; killed when it is dropped.
pub struct Served {
    child: Child,
    url: String,
    log: PathBuf,
    key: Option<String>,
    _stdout: BufReader<ChildStdout>,
}

impl Served {
    /// Starts it in `dir`, with this environment alone, and waits until it listens. Its log goes to the
    /// file `server.log` there, after what earlier ones wrote.
    pub async fn start(dir: &Path, env: &[(&str, &str)]) -> Self {
        let log = dir.join("server.log");
        let stderr = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut child = Command::new(binary())
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
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let read = stdout.read_line(&mut line);
        tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        let url = line
            .split_whitespace()
            .find(|word| word.starts_with("http://"))
            .unwrap_or_else(|| {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("it does not listen: {line}{log}")
            })
            .to_owned();
        let key = env.iter().find(|(name, _)| *name == "SANDCASTER_API_KEY");
        Self {
            child,
            url,
            log,
            key: key.map(|(_, key)| (*key).to_owned()),
            _stdout: stdout,
        }
    }

    fn with_key(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Response {
        let sent = self.with_key(request).send();
        tokio::time::timeout(PATIENCE, sent).await.unwrap().unwrap()
    }

    /// Starts a run and gives its stream.
    pub async fn query(&self, body: &Value) -> EventStream {
        let request = super::http().post(format!("{}/query", self.url)).json(body);
        let response = self.send(request).await;
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        EventStream::new(response)
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        let request = super::http().get(format!("{}{path}", self.url));
        self.send(request).await
    }

    pub async fn get_range(&self, path: &str, range: &str) -> reqwest::Response {
        let request = super::http().get(format!("{}{path}", self.url));
        self.send(request.header("Range", range)).await
    }

    /// Its host and port.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
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
        let refs = format!("/proc/{}/clear_refs", self.child.id().unwrap());
        std::fs::write(refs, "5").unwrap();
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = format!("/proc/{}/status", self.child.id().unwrap());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap().split_whitespace().next().unwrap();
        value.parse().unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let request = super::http().post(format!("{}{path}", self.url));
        self.send(request.json(body)).await
    }

    pub async fn json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }

    /// The whole stream of a run.
    pub async fn events(&self, run: &str) -> EventStream {
        EventStream::new(self.get(&format!("/runs/{run}/events")).await)
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .unwrap()
            .unwrap()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}
