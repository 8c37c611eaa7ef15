//! The binary itself: exit codes and what it says.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::support::app::PATIENCE;
use crate::support::clients::{program, run};

/// What comes of the program in `dir`, with nothing of this process's environment.
fn sandcaster(dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let mut program = program(dir, arguments, env);
    runtime.unwrap().block_on(run(&mut program))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `doctor` says in its row of this name.
fn row<'o>(stdout: &'o str, name: &str) -> &'o str {
    let rows = stdout.lines().filter_map(|line| line.strip_prefix("  "));
    let mut found = rows.filter_map(|row| row.strip_prefix(name)?.strip_prefix(' '));
    found.next().unwrap_or_default().trim()
}

fn here() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn version_and_help_are_on_stdout_with_examples() {
    let dir = here();
    let version = sandcaster(dir.path(), &["--version"], &[]);
    assert!(version.status.success());
    assert_eq!(
        text(&version.stdout),
        format!("sandcaster {}\n", env!("CARGO_PKG_VERSION"))
    );
    for arguments in [&["--help"][..], &["serve", "--help"], &["query", "-h"]] {
        let help = sandcaster(dir.path(), arguments, &[]);
        assert!(help.status.success(), "{arguments:?}");
        assert!(text(&help.stdout).contains("Examples:"), "{arguments:?}");
        assert!(help.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_says_why() {
    let dir = here();
    for (arguments, says) in [
        (&["serve", "--port", "x"][..], "--port"),
        (&["serve", "-h", "0.0.0.0"], "--host has no short form"),
        (&["serv"], "did you mean `serve`?"),
        (&["init", "research-brief"], "`init` is not implemented yet"),
        (&["query", "hi", "-t", "1"], "from 5 to 3600"),
        (&["query", "hi", "-m", "two words"], "model"),
        (
            &["query", "hi", "--sandbox-provider", "lcal"],
            "did you mean `local`?",
        ),
        (
            &["query", "hi", "-f", "missing.csv"],
            "missing.csv can't be read",
        ),
        (
            &["serve", "--config", "missing.json"],
            "missing.json can't be read",
        ),
        (&["serve", "--host", "a b"], "--host must be"),
        (&["serve", "--require-auth"], "SANDCASTER_API_KEY"),
    ] {
        let output = sandcaster(dir.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(
            text(&output.stderr).contains(says),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_bad_settings_file_stops_every_command_with_its_position() {
    let dir = here();
    std::fs::write(
        dir.path().join("sandcaster.json"),
        "{\n  \"maxTurns\": \"many\"\n}",
    )
    .unwrap();
    for arguments in [&["serve", "--port", "0"][..], &["query", "hi"], &["doctor"]] {
        let output = sandcaster(dir.path(), arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains("sandcaster.json:2:15: `maxTurns`"),
            "{arguments:?}: {stderr}"
        );
    }
    assert!(
        !dir.path().join(".sandcaster").exists(),
        "nothing was started"
    );
}

#[test]
fn a_bad_key_is_refused_without_being_shown() {
    let dir = here();
    for key in ["", "hunter2 hunter2", "hunter2\n"] {
        let output = sandcaster(
            dir.path(),
            &["serve", "--port", "0"],
            &[("SANDCASTER_API_KEY", key)],
        );
        assert_eq!(output.status.code(), Some(2), "{key:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains("SANDCASTER_API_KEY"), "{stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
}

#[test]
fn a_port_in_use_names_the_address_and_what_to_do() {
    let dir = here();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let port = address.port().to_string();
    let output = sandcaster(dir.path(), &["serve", "--port", &port], &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains(&address.to_string()) && stderr.contains("another --port"),
        "{stderr}"
    );
    assert!(
        !dir.path().join(".sandcaster").exists(),
        "nothing was started"
    );
}

#[test]
fn an_exit_code_does_not_wait_for_who_reads_stderr() {
    let (_held, mut full) = std::io::pipe().unwrap();
    fcntl(&full, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while full.write(&[b'x'; 4096]).is_ok() {}
    while full.write(b"x").is_ok() {}
    fcntl(&full, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let dir = here();
    // The first logs a warning too, which lies before its note.
    for arguments in [&["serve", "--host", "203.0.113.1"][..], &["nonsense"]] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let ended = runtime.unwrap().block_on(async {
            let mut command = program(dir.path(), arguments, &[]);
            command.stderr(full.try_clone().unwrap());
            let mut command = command.kill_on_drop(true).spawn().unwrap();
            tokio::time::timeout(PATIENCE, command.wait()).await
        });
        let status = ended.expect("an end in time").unwrap();
        assert_eq!(status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn warnings_go_to_stderr_and_an_open_door_is_told_loudly() {
    let dir = here();
    std::fs::write(dir.path().join("sandcaster.json"), r#"{"maxTurn": 3}"#).unwrap();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = sandcaster(
        dir.path(),
        &["serve", "--host", "0.0.0.0", "--port", &port],
        &[],
    );
    let stderr = text(&output.stderr);
    assert!(stderr.contains("did you mean `maxTurns`?"), "{stderr}");
    assert!(stderr.contains("NO AUTHENTICATION on 0.0.0.0"), "{stderr}");

    let arguments = ["serve", "--port", &port, "--host", "0.0.0.0"];
    let output = sandcaster(dir.path(), &arguments, &[("SANDCASTER_LOG_FORMAT", "json")]);
    let stderr = text(&output.stderr);
    let line = stderr.lines().find(|line| line.starts_with('{')).unwrap();
    let first: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(first["level"], "WARN");
}

#[test]
fn doctor_says_what_is_set_and_never_shows_a_secret() {
    let dir = here();
    std::fs::write(dir.path().join(".env"), "E2B_API_KEY=e2b_hunter2\n").unwrap();
    let env = [
        ("ANTHROPIC_API_KEY", "sk-ant-hunter2"),
        ("SANDCASTER_API_KEY", "hunter2hunter2hunter2hunter2hunter2"),
        ("SANDCASTER_WEBHOOK_SECRET", "whsec_hunter2"),
        ("ANTHROPIC_BASE_URL", "https://hunter2.example"),
        ("PORT", "0"),
    ];
    let output = sandcaster(dir.path(), &["doctor"], &env);
    let stdout = text(&output.stdout);
    assert!(
        !stdout.contains("hunter2") && !text(&output.stderr).contains("hunter2"),
        "{stdout}"
    );
    for says in [
        "ANTHROPIC_API_KEY set (environment)",
        "E2B_API_KEY set (.env)",
        "OPENAI_API_KEY not set",
        "SANDCASTER_API_KEY set (environment)",
        "SANDCASTER_WEBHOOK_SECRET set (environment)",
        "claude-sonnet-4-6 (anthropic)",
        "can be written",
    ] {
        assert!(stdout.contains(says), "{says:?} is missing:\n{stdout}");
    }
    let local = row(&stdout, "local");
    assert!(
        local.starts_with("usable: namespaces") || local.starts_with("not usable: "),
        "{local:?}:\n{stdout}"
    );
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only .env is there");
}

#[test]
fn doctor_explains_what_is_missing() {
    let dir = here();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let output = sandcaster(
        dir.path(),
        &["doctor", "--data-dir", "file/store"],
        &[("PORT", "0")],
    );
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    assert!(stdout.contains("not a directory"), "{stdout}");
    assert!(stdout.contains("ANTHROPIC_API_KEY not set"), "{stdout}");
    assert!(
        stdout.contains("OPENAI_API_KEY not set") && stdout.contains("E2B_API_KEY not set"),
        "{stdout}"
    );
    let model = row(&stdout, "model");
    assert!(
        model.starts_with("none: no model was named") && model.contains("send \"model\": \"demo\""),
        "{stdout}"
    );
}

#[test]
fn certificates_that_cannot_be_read_are_told_with_their_cause() {
    let dir = here();
    let missing = dir.path().join("no-such.pem");
    let variable = [("SSL_CERT_FILE", missing.to_str().unwrap()), ("PORT", "0")];
    let output = sandcaster(dir.path(), &["serve"], &variable);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("No CA certificates were loaded") && stderr.contains("SSL_CERT_FILE"),
        "{stderr}"
    );
}
