//! Stops at any moment: whatever is under way, the run ends once, every call has a result, nothing is left.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::app::{PATIENCE, TestApp, ask, demo, of_kind, slow_launcher};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};
use crate::support::processes::{running, until_gone};

fn check(events: &[Value]) {
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["seq"], at + 1, "{event}");
        let terminal = matches!(event["type"].as_str(), Some("result" | "error"));
        assert_eq!(terminal, at + 1 == events.len(), "{event}");
    }
    let mut calls: Vec<&Value> = Vec::new();
    for event in of_kind(events, "tool_use") {
        calls.push(&event["toolCallId"]);
    }
    let results = of_kind(events, "tool_result");
    let answered: Vec<&Value> = results.iter().map(|event| &event["toolCallId"]).collect();
    assert_eq!(calls, answered);
}

#[tokio::test]
async fn a_cancel_at_any_moment_ends_the_run_once_and_leaves_nothing() {
    let app = TestApp::keyless().await;
    let commands = ["echo 1 > a", "cat a; sleep 0.01", "sleep 0.02", "echo 2"];
    let (mut cancelled, mut completed) = (0, 0);
    for step in 0..20 {
        let stream = app.query(demo(&commands)).await;
        let run = stream.run_id.clone();
        tokio::time::sleep(Duration::from_millis(step * 16)).await;
        let answer = app.cancel(&run).await.status();
        assert!(matches!(answer.as_u16(), 200 | 202));
        let events = stream.rest().await;
        check(&events);
        let end = events.last().unwrap();
        if end["type"] == "result" {
            completed += 1;
        } else {
            assert_eq!(end["code"], "CANCELLED", "{end}");
            cancelled += 1;
        }
        until_gone(&run).await;
    }
    assert!(cancelled > 0, "{completed} completed");
    assert_eq!(app.app.runs.health(), sandcaster::runs::Health::Ok);
    app.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_sandbox_is_there_leaves_none_behind() {
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("Let me").wait(&gate)]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let closed = elsewhere.path().join("closed");
    let launcher = slow_launcher(elsewhere.path());
    let app = TestApp::builder()
        .llm(&llm)
        .file(json!({"disconnectGraceSecs": 0}))
        .tune(move |config| config.launcher = launcher)
        .start()
        .await;
    std::fs::write(&closed, "").unwrap();
    let mut stream = app.query(ask("hi")).await;
    let run = stream.run_id.clone();
    stream.until("assistant").await;
    drop(stream);
    llm.connection_closed(0).await;
    // The end does not wait for a sandbox that doesn't come.
    let wait = async {
        while app.json(&format!("/runs/{run}")).await["status"] == "running" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
    let record = app.json(&format!("/runs/{run}")).await;
    assert_eq!(record["errorCode"], "CLIENT_GONE");
    assert!(!running(&run).is_empty(), "the launcher still waits");
    // What comes too late is destroyed.
    std::fs::remove_file(&closed).unwrap();
    until_gone(&run).await;
    check(&app.events(&run, 0).await.rest().await);
    app.stop().await;
}

#[tokio::test]
async fn the_servers_stop_at_any_moment_ends_every_run() {
    for step in 0..6 {
        let app = TestApp::keyless().await;
        let mut streams = Vec::new();
        for _ in 0..4 {
            streams.push(
                app.query(demo(&["echo 1 > a", "sleep 0.05", "cat a"]))
                    .await,
            );
        }
        tokio::time::sleep(Duration::from_millis(step * 40)).await;
        let ids: Vec<String> = streams.iter().map(|stream| stream.run_id.clone()).collect();
        let stopping = app.stop();
        let reading = async {
            for stream in streams {
                let events = stream.rest().await;
                check(&events);
                let end = events.last().unwrap();
                assert!(
                    end["type"] == "result" || end["code"] == "SERVER_SHUTDOWN",
                    "{end}"
                );
            }
        };
        tokio::join!(stopping, reading);
        for id in ids {
            assert_eq!(running(&id), [0; 0]);
        }
    }
}
