//! `sandcaster serve` as a process: what it says, who it refuses, how it stops.

use std::cell::Cell;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::app::{binary, demo};
use crate::support::clients::{PATIENCE, run};
use crate::support::fake_llm::FakeLlm;
use crate::support::processes::{sandbox_gone, sandbox_processes, until};
use crate::support::served::Served;
use crate::support::{app, http};

/// The stream of a new run, read until its sandbox runs a command.
async fn busy(server: &Served) -> app::EventStream {
    let body = demo(&["echo up", "sleep 600"]);
    let sent = http().post(server.url("/query")).json(&body).send();
    let mut stream = app::EventStream::new(sent.await.unwrap());
    stream.until("tool_result").await;
    assert!(!sandbox_processes(&stream.run_id).is_empty());
    stream
}

#[tokio::test]
async fn the_start_line_says_where_and_with_what() {
    let llm = FakeLlm::start([]).await;
    let server = Served::with_llm(&llm, &[]).await;
    let store = server.dir().join(".sandcaster");
    assert_eq!(
        server.start_line,
        format!(
            "sandcaster listening on {} (provider anthropic, model claude-sonnet-4-6; sandbox local; store {})",
            server.url,
            store.display()
        )
    );
    let keyless = Served::keyless().await;
    assert!(keyless.start_line.contains("set ANTHROPIC_API_KEY"));
    assert!(keyless.start_line.contains("\"demo\""));
}

#[tokio::test]
async fn a_second_server_on_the_same_store_is_refused_and_the_first_goes_on() {
    let first = Served::keyless().await;
    let mut second = Command::new(binary());
    second
        .args(["serve", "--port", "0"])
        .current_dir(first.dir())
        .env_clear();
    let output = run(&mut second).await;
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("another sandcaster server"), "{stderr}");
    assert!(stderr.contains("--data-dir"), "{stderr}");
    assert!(output.stdout.is_empty());
    assert_eq!(first.json("/health").await["status"], "ok");
}

#[tokio::test]
async fn a_signal_ends_runs_with_their_event_and_leaves_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut server = Served::keyless().await;
        let stream = busy(&server).await;
        let run = stream.run_id.clone();
        server.signal(signal);
        let events = stream.rest().await;
        let last = events.last().expect("a terminal event");
        assert_eq!(last["code"], "SERVER_SHUTDOWN", "{signal}: {last}");
        assert_eq!(server.ended().await.code(), Some(0), "{signal}");
        sandbox_gone(&run).await;
    }
}

#[tokio::test]
async fn a_signal_ends_a_start_that_hangs_and_leaves_no_trace_of_it() {
    let served = start_that_hangs(&["serve", "--port", "0"], Signal::SIGTERM).await;
    assert_eq!(served.0, Some(0));
    assert!(
        served.1.contains("stopped before it served"),
        "{}",
        served.1
    );
    let queried = start_that_hangs(&["query", "-m", "demo", "hi"], Signal::SIGINT).await;
    assert_eq!(queried.0, Some(130));
    assert!(queried.1.contains("stopped before"), "{}", queried.1);
}

/// Sends a signal to a process that is starting; gives its exit code and what it said on stderr.
async fn start_that_hangs(arguments: &[&str], signal: Signal) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let certificates = dir.path().join("certificates");
    let made = Command::new("mkfifo").arg(&certificates).status().await;
    assert!(made.unwrap().success());
    let mut server = Command::new(binary());
    server
        .args(arguments)
        .current_dir(dir.path())
        .env_clear()
        .env("SSL_CERT_FILE", &certificates)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let server = server.spawn().unwrap();
    // Held, so that the certificates never end.
    let held = Cell::new(None);
    let reads = || {
        let sender = pipe::OpenOptions::new().open_sender(&certificates).ok();
        let reads = sender.is_some();
        held.set(sender);
        reads
    };
    until(reads, "certificates are read").await;
    let id = i32::try_from(server.id().unwrap()).unwrap();
    kill(Pid::from_raw(id), signal).unwrap();
    let ended = timeout(PATIENCE, server.wait_with_output()).await;
    let output = ended.expect("an end in time").unwrap();
    let instances = dir.path().join(".sandcaster/instances");
    assert_eq!(std::fs::read_dir(instances).unwrap().count(), 0, "unclean");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty());
    (output.status.code(), stderr)
}

#[tokio::test]
async fn a_killed_server_leaves_no_sandbox_and_the_next_one_tells_the_truth() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Served::start(dir.path(), &[]).await;
    let mut stream = busy(&server).await;
    let run = stream.run_id.clone();
    let seen = stream.until("tool_use").await;
    server.signal(Signal::SIGKILL);
    assert_eq!(server.ended().await.code(), None);
    sandbox_gone(&run).await;
    let next = Served::start(dir.path(), &[]).await;
    let record = next.json(&format!("/runs/{run}")).await;
    assert_eq!(record["statusDetail"], "interrupted");
    assert_eq!(record["status"], "error");
    let sandboxes = record["sandboxes"].as_array().unwrap();
    assert_eq!(sandboxes.len(), 1, "{record:#}");
    assert_eq!(sandboxes[0]["destroyed"], true, "{record:#}");
    let log = next.json(&format!("/runs/{run}/events")).await;
    let log: Vec<Value> = log["events"].as_array().unwrap().clone();
    assert!(log.contains(&seen), "what a client saw is there");
    assert_eq!(log.last().unwrap()["code"], "SERVER_CRASHED");
}
