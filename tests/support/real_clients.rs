//! The real clients that drive the program.
//!
//! Those that a package registry has are installed once, below the build's own temporary directory. Where
//! the tools for that are missing a test says so and passes; with `SANDCASTER_REQUIRE_CLIENTS=1`, as in the
//! gate, it fails.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

use super::program::bounded;

/// For installing a client: a registry may be slow.
const INSTALL_PATIENCE: Duration = Duration::from_secs(150);

const HTTPX: &str = "httpx==0.28.1";
const HTTPX_SSE: &str = "httpx-sse==0.4.1";
const EVENTSOURCE_PARSER: &str = "eventsource-parser@3.0.6";

/// Where `program` lies, if it is on the `PATH`.
#[expect(clippy::disallowed_methods, reason = "tests have no settings")]
pub fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether the programs of a test are there; says so where they are not.
#[expect(clippy::disallowed_methods, reason = "tests have no settings")]
pub fn have(programs: &[&str], test: &str) -> bool {
    let missing: BTreeSet<&str> = programs
        .iter()
        .copied()
        .filter(|program| found(program).is_none())
        .collect();
    if missing.is_empty() {
        return true;
    }
    let required = std::env::var_os("SANDCASTER_REQUIRE_CLIENTS").is_some_and(|value| value == "1");
    assert!(!required, "{test} needs {missing:?}, not found on the PATH");
    skipped(test, &format!("{missing:?} not found on the PATH"));
    false
}

/// Says what did not run.
#[expect(
    clippy::explicit_write,
    reason = "what the macros print is kept back when a test passes"
)]
fn skipped(test: &str, why: &str) {
    writeln!(std::io::stderr(), "skipped: {test}: {why}").unwrap();
}

/// The browser, if there is one; says so where there is none. It is no part of what the gate requires: it
/// is large, and what it shows is tested with its headers too.
pub fn browser(test: &str) -> Option<String> {
    let program = ["chromium", "chromium-headless-shell"]
        .into_iter()
        .find(|program| found(program).is_some());
    if program.is_none() {
        skipped(test, "no chromium on the PATH");
    }
    program.map(str::to_owned)
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
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/real_clients")
}

fn succeeded(output: &Output, what: &str) {
    assert!(
        output.status.success(),
        "{what} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The directory of these packages, installed by the first test that needs them; the others wait. What
/// was installed in part is thrown away.
async fn installed(kind: &str, packages: &[&str], install: impl AsyncFnOnce(&Path)) -> PathBuf {
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
