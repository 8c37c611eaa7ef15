//! The death of the server, sudden or asked for: nothing that a client saw is lost, and nothing is left.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::app::{demo, event_of};
use crate::support::processes::{on_host, own_sleep, running, until_gone, until_sleeping};
use crate::support::served::Served;

/// How often the server is killed.
fn rounds() -> u32 {
    if long() { 200 } else { 10 }
}

#[expect(clippy::disallowed_methods, reason = "tests have no settings")]
fn long() -> bool {
    std::env::var("SANDCASTER_LONG").is_ok_and(|value| !value.is_empty())
}

/// What a client has seen of a run.
struct Seen {
    run: String,
    frames: Vec<String>,
}

#[tokio::test]
async fn after_kill_9_every_event_that_a_client_saw_is_there_and_every_run_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let commands: Vec<String> = (0..6).map(|n| format!("echo {n}; sleep 0.02")).collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let mut seen: Vec<Seen> = Vec::new();
    let mut interrupted = 0;
    for _ in 0..rounds() {
        let mut server = Served::start(dir.path(), &[]).await;
        check(&server, &seen, &mut interrupted).await;
        seen.clear();

        let mut readers = JoinSet::new();
        for _ in 0..3 {
            let mut stream = server.query(&demo(&commands)).await;
            readers.spawn(async move {
                let run = stream.run_id.clone();
                let mut frames = Vec::new();
                while let Ok(Some(frame)) = stream.next_frame().await {
                    frames.push(frame);
                }
                Seen { run, frames }
            });
        }
        // From before the first event to after the last.
        let moment = Duration::from_millis(400).mul_f64(random());
        tokio::time::sleep(moment).await;
        server.signal(Signal::SIGKILL);
        server.ended().await;
        while let Some(read) = readers.join_next().await {
            seen.push(read.unwrap());
        }
        for one in &seen {
            until_gone(&one.run).await;
        }
        drop(server);
    }
    let server = Served::start(dir.path(), &[]).await;
    check(&server, &seen, &mut interrupted).await;
    assert!(
        interrupted > 0,
        "no run was interrupted: the moments are too late"
    );
    drop(server);
    let store = rusqlite::Connection::open(dir.path().join(".sandcaster/sandcaster.db")).unwrap();
    let whole: String = store
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(whole, "ok");
}

fn random() -> f64 {
    let bits = u64::from_str_radix(&sandcaster::ids::nonce()[..8], 16).unwrap();
    f64::from(u32::try_from(bits).unwrap()) / f64::from(u32::MAX)
}

/// The runs of the last life, in this one.
async fn check(server: &Served, seen: &[Seen], interrupted: &mut u32) {
    for one in seen {
        let log = server.events(&one.run).await.frames().await;
        assert!(
            log.starts_with(&one.frames),
            "{:#?}\nis not\n{log:#?}",
            one.frames
        );
        let end = event_of(log.last().unwrap());
        let record = server.json(&format!("/runs/{}", one.run)).await;
        if end["type"] == "result" {
            assert_eq!(record["statusDetail"], "completed");
            continue;
        }
        *interrupted += 1;
        assert_eq!(end["code"], "SERVER_CRASHED");
        assert_eq!(
            (&end["retryable"], &end["usageComplete"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(
            (
                &record["status"],
                &record["statusDetail"],
                &record["errorCode"]
            ),
            (
                &json!("error"),
                &json!("interrupted"),
                &json!("SERVER_CRASHED")
            )
        );
    }
    let runs = server.json("/runs?limit=200").await;
    for run in runs.as_array().unwrap() {
        assert_ne!(run["status"], "running", "{run}");
    }
}

#[tokio::test]
async fn kill_9_takes_the_sandbox_along() {
    let dir = tempfile::tempdir().unwrap();
    let sleep = own_sleep();
    let mut server = Served::start(dir.path(), &[]).await;
    let stream = server
        .query(&demo(&[&format!("setsid sleep {sleep} & sleep {sleep}")]))
        .await;
    until_sleeping(&sleep).await;
    server.signal(Signal::SIGKILL);
    server.ended().await;
    until_gone(&sleep).await;
    until_gone(&stream.run_id).await;
}

#[tokio::test]
async fn sigterm_ends_runs_and_streams_and_exits_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let sleep = own_sleep();
    let mut server = Served::start(dir.path(), &[]).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(server.query(&demo(&[&format!("sleep {sleep}")])).await);
    }
    let second_reader = server.events(&streams[0].run_id).await;
    until_sleeping(&sleep).await;
    let begun = tokio::time::Instant::now();
    server.signal(Signal::SIGTERM);
    let mut runs = Vec::new();
    for stream in streams {
        runs.push(stream.run_id.clone());
        let events = stream.rest().await;
        let error = events.last().unwrap();
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!("SERVER_SHUTDOWN"))
        );
    }
    assert_eq!(
        second_reader.rest().await.last().unwrap()["code"],
        "SERVER_SHUTDOWN"
    );
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    for word in runs.iter().chain([&sleep]) {
        assert_eq!(running(word), [0; 0]);
    }
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let sleep = own_sleep();
    let mut server = Served::start(dir.path(), &[]).await;
    let mut stream = server.query(&demo(&[&format!("sleep {sleep}")])).await;
    until_sleeping(&sleep).await;
    // Launchers that don't react to SIGTERM hold the first stop up for some seconds.
    let launchers = on_host(&stream.run_id);
    for pid in &launchers {
        let pid = nix::unistd::Pid::from_raw(*pid);
        nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    }
    server.signal(Signal::SIGTERM);
    let error = stream.until("error").await;
    assert_eq!(error["code"], "SERVER_SHUTDOWN");
    let begun = tokio::time::Instant::now();
    server.signal(Signal::SIGINT);
    assert_eq!(server.ended().await.code(), Some(130));
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    until_gone(&sleep).await;
    // The sandbox is dead; its launchers end as soon as they may.
    for pid in launchers {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, Signal::SIGCONT).ok();
    }
    until_gone(&stream.run_id).await;
}

#[tokio::test]
async fn a_server_without_runs_stops_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Served::start(dir.path(), &[]).await;
    let begun = tokio::time::Instant::now();
    server.signal(Signal::SIGINT);
    assert_eq!(server.ended().await.code(), Some(0));
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_sandbox_that_does_not_react_does_not_keep_the_server_from_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let sleep = own_sleep();
    let mut server = Served::start(dir.path(), &[]).await;
    let mut stream = server.query(&demo(&[&format!("sleep {sleep}")])).await;
    until_sleeping(&sleep).await;
    for pid in running(&stream.run_id) {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, Signal::SIGSTOP).unwrap();
    }
    let begun = tokio::time::Instant::now();
    server.signal(Signal::SIGTERM);
    let events = stream.collect().await;
    assert_eq!(events.last().unwrap()["code"], "SERVER_SHUTDOWN");
    assert!(
        events.iter().any(|event| event["type"] == "tool_result"),
        "{events:#?}"
    );
    let code = server.ended().await.code();
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(code, Some(0), "{}", server.log());
    until_gone(&sleep).await;
    until_gone(&stream.run_id).await;
}

#[tokio::test]
async fn a_server_leaves_the_sandboxes_of_another_store_alone() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sleep = own_sleep();
    let first = Served::start(one.path(), &[]).await;
    let mut stream = first.query(&demo(&[&format!("sleep {sleep}")])).await;
    until_sleeping(&sleep).await;
    // It sweeps at its start, which is over when a whole run is.
    let second = Served::start(other.path(), &[]).await;
    let events = second.query(&demo(&["true"])).await.rest().await;
    assert_eq!(events.last().unwrap()["type"], "result");
    assert!(!running(&sleep).is_empty());
    let run = first.json(&format!("/runs/{}", stream.run_id)).await;
    assert_eq!(run["status"], "running");
    first.signal(Signal::SIGTERM);
    assert_eq!(stream.until("error").await["code"], "SERVER_SHUTDOWN");
}
