//! The real clients that drive the program.
//!
//! Clients that a package registry has are installed once, below the build's own temporary directory.
//! Where the tools for that are missing a test is ignored (`build.rs`).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::app::binary;

/// Longer than anything takes; a test that waits for it has failed.
pub const PATIENCE: Duration = Duration::from_secs(45);
/// For installing a client: a registry may be slow.
pub(super) const INSTALL_PATIENCE: Duration = Duration::from_secs(150);

const HTTPX: &str = "httpx==0.28.1";
const HTTPX_SSE: &str = "httpx-sse==0.4.1";
const EVENTSOURCE_PARSER: &str = "eventsource-parser@3.0.6";

/// The program itself in `dir`, with this environment alone.
pub fn program(dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Command {
    let mut program = Command::new(binary());
    program
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    program
}

/// Runs a client to its end. Its arguments are in the message if it takes too long.
pub async fn run(command: &mut Command) -> Output {
    bounded(command, PATIENCE).await
}

pub async fn bounded(command: &mut Command, patience: Duration) -> Output {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    timeout(patience, output)
        .await
        .unwrap_or_else(|_| panic!("{command:?} did not end"))
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a client that must succeed, and gives its stdout.
pub async fn stdout_of(command: &mut Command) -> String {
    let output = run(command).await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let stdout = text(output.stdout);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{}",
        output.status,
        text(output.stderr)
    );
    stdout
}

/// The lines of JSON that a client printed.
pub fn json_lines(stdout: &str) -> Vec<Value> {
    let lines = stdout.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// A client that runs while the test looks at what it prints. Killed when it is dropped.
pub struct Watched {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Closing it tells a client that waits for that to go on.
    stdin: Option<ChildStdin>,
}

impl Watched {
    pub fn spawn(command: &mut Command) -> Self {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            lines: BufReader::new(process.stdout.take().unwrap()).lines(),
            stdin: process.stdin.take(),
            process,
        }
    }

    /// The next line, or `None` at the end.
    pub async fn line(&mut self) -> Option<String> {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        line.expect("a line in time").unwrap()
    }

    /// The next line as JSON.
    pub async fn json(&mut self) -> Value {
        let line = self.line().await.expect("another line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Lets it go on to its end, which must be a good one.
    pub async fn finish(mut self) {
        drop(self.stdin.take());
        while self.line().await.is_some() {}
        let status = timeout(PATIENCE, self.process.wait()).await;
        assert!(status.expect("an end in time").unwrap().success());
    }

    /// Ends it at once, as by a closed terminal.
    pub async fn kill(mut self) {
        timeout(PATIENCE, self.process.kill())
            .await
            .expect("an end in time")
            .unwrap();
    }
}

/// Where `program` lies, if it is on the `PATH`.
#[expect(clippy::disallowed_methods, reason = "tests have no settings")]
pub fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The browser. Tests of it are ignored where `build.rs` found none.
pub fn chromium() -> &'static str {
    ["chromium", "chromium-headless-shell"]
        .into_iter()
        .find(|program| found(program).is_some())
        .expect("chromium on the PATH")
}

/// Python with `httpx` and `httpx-sse`.
pub async fn python() -> PathBuf {
    let dir = installed("python", &[HTTPX, HTTPX_SSE], async |dir| {
        let mut venv = Command::new("python3");
        let venv = bounded(venv.args(["-m", "venv"]).arg(dir), INSTALL_PATIENCE).await;
        succeeded(&venv, "python3 -m venv (Debian: package python3-venv)");
        let mut pip = Command::new(dir.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet"]).args([
            "--disable-pip-version-check",
            HTTPX,
            HTTPX_SSE,
        ]);
        succeeded(&bounded(&mut pip, INSTALL_PATIENCE).await, "pip install");
    })
    .await;
    dir.join("bin/python")
}

/// A directory with our Node client and npm's `eventsource-parser`.
pub async fn node_client() -> TempDir {
    let installed = installed("node", &[EVENTSOURCE_PARSER], async |dir| {
        std::fs::create_dir_all(dir).unwrap();
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-save", "--no-package-lock", "--no-audit"])
            .args(["--no-fund", "--ignore-scripts", "--prefix"])
            .arg(dir)
            .arg(EVENTSOURCE_PARSER)
            .current_dir(dir);
        succeeded(&bounded(&mut npm, INSTALL_PATIENCE).await, "npm install");
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(
        installed.join("node_modules"),
        dir.path().join("node_modules"),
    )
    .unwrap();
    for entry in std::fs::read_dir(scripts()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() == Some(OsStr::new("mjs")) {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

/// Where our own client programs lie.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/clients")
}

pub(super) fn succeeded(output: &Output, what: &str) {
    assert!(
        output.status.success(),
        "{what} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The directory of these packages, installed by the first test that needs them; the others wait. What
/// was installed in part is thrown away.
pub(super) async fn installed(
    kind: &str,
    packages: &[&str],
    install: impl AsyncFnOnce(&Path),
) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    std::fs::create_dir_all(&root).unwrap();
    let name = format!("{kind}-{}", packages.join("-").replace(['=', '@'], "_"));
    let dir = root.join(&name);
    let complete = root.join(format!("{name}.complete"));
    let lock = std::fs::File::create(root.join(format!("{kind}.lock"))).unwrap();
    // Other processes may install the same; the lock ends with whoever holds it.
    let locking = tokio::task::spawn_blocking(move || {
        lock.lock().unwrap();
        lock
    });
    let held = timeout(INSTALL_PATIENCE * 2, locking).await;
    let _held = held.expect("the lock in time").unwrap();
    if !complete.exists() {
        if dir.exists() {
            std::fs::remove_dir_all(&dir).unwrap();
        }
        install(&dir).await;
        std::fs::write(&complete, "").unwrap();
    }
    dir
}
