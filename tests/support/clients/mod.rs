//! Published clients as judges: installed once under `target/`, pinned by the files beside this one.
//!
//! Where a client can't be had (no Python or Node, no network, no shared folder) its test says `skipped:`
//! and why; with `SANDCASTER_REQUIRE_CLIENTS=1` it fails instead.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// Longest an installation may take.
const INSTALL: Duration = Duration::from_mins(4);

/// Runs a program to its end; `Err` says what went wrong, with the end of what it wrote.
///
/// # Errors
/// When it can't be started, takes longer than `limit`, or fails.
pub async fn run(command: &mut Command, limit: Duration) -> Result<Output, String> {
    let name = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("NO_PROXY", "127.0.0.1,localhost")
        .env("no_proxy", "127.0.0.1,localhost")
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{name} can't be started: {error}"))?;
    let output = tokio::time::timeout(limit, child.wait_with_output())
        .await
        .map_err(|_| format!("{name} took longer than {limit:?}"))?
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    Err(format!(
        "{name}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&said)
    ))
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pins(file: &str) -> PathBuf {
    root().join("tests/support/clients").join(file)
}

fn home(name: &str) -> PathBuf {
    // Beside the profile's own directory, so that it outlives a rebuild.
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    built.parent().unwrap_or(built).join("clients").join(name)
}

/// The directory of shared evidence, if it is there.
#[expect(clippy::disallowed_methods, reason = "tests have no config::env")]
pub fn shared() -> Option<PathBuf> {
    let named = std::env::var_os("SANDCASTER_SHARED").map(PathBuf::from);
    let dir = named.unwrap_or_else(|| root().join("../shared"));
    dir.is_dir().then_some(dir)
}

/// Says loudly that a judge did not sit, or fails where it must.
#[expect(clippy::disallowed_methods, reason = "tests have no config::env")]
pub fn skipped(what: &str, why: &str) {
    let required = std::env::var_os("SANDCASTER_REQUIRE_CLIENTS").is_some_and(|v| v == "1");
    assert!(!required, "{what} is required: {why}");
    let line = format!("skipped: {what}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Installs once per content of the file of pins: `marker` holds what was installed.
async fn installed<F: Future<Output = Result<(), String>>>(
    dir: &Path,
    pinned: &Path,
    install: impl FnOnce() -> F,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    let wanted = std::fs::read(pinned).map_err(failed)?;
    std::fs::create_dir_all(dir).map_err(failed)?;
    let marker = dir.join("installed");
    if std::fs::read(&marker).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    install().await?;
    std::fs::write(&marker, wanted).map_err(failed)
}

/// A Python with the pinned packages.
///
/// # Errors
/// Why it can't be had.
pub async fn python() -> Result<PathBuf, String> {
    let (dir, pinned) = (home("python"), pins("requirements.txt"));
    let python = dir.join("bin/python");
    installed(&dir, &pinned, || async {
        let mut venv = Command::new("python3");
        run(venv.args(["-m", "venv", "--clear"]).arg(&dir), INSTALL).await?;
        let mut pip = Command::new(&python);
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-input",
            "--no-deps",
            "-r",
        ]);
        run(pip.arg(&pinned), INSTALL).await.map(drop)
    })
    .await?;
    Ok(python)
}

/// A directory from which Node finds the pinned packages, with the scripts of this directory in it.
///
/// # Errors
/// Why it can't be had.
pub async fn node() -> Result<PathBuf, String> {
    let (dir, pinned) = (home("node"), pins("package-lock.json"));
    installed(&dir, &pinned, || async {
        for file in ["package.json", "package-lock.json"] {
            std::fs::copy(pins(file), dir.join(file)).map_err(|error| error.to_string())?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]);
        run(npm.current_dir(&dir), INSTALL).await.map(drop)
    })
    .await?;
    for entry in std::fs::read_dir(pins(""))
        .map_err(|error| error.to_string())?
        .flatten()
    {
        let path = entry.path();
        if path.extension() == Some(OsStr::new("mjs")) {
            let to = dir.join(entry.file_name());
            std::fs::copy(path, to).map_err(|error| error.to_string())?;
        }
    }
    Ok(dir)
}
