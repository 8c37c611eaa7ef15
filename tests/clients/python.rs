//! Python's `httpx-sse`.

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::app::{demo, kinds};
use crate::support::clients::{PATIENCE, Watched, json_lines, python, scripts, stdout_of};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};
use crate::support::http;
use crate::support::served::Served;

async fn events(request: &Value) -> (Vec<Value>, Value) {
    let mut command = Command::new(python().await);
    command
        .arg(scripts().join("events.py"))
        .arg(request.to_string());
    let mut lines = json_lines(&stdout_of(&mut command).await);
    let end = lines.pop().expect("a last line");
    (lines, end)
}

fn data(events: &[Value]) -> Vec<Value> {
    events.iter().map(|event| event["data"].clone()).collect()
}

#[tokio::test]
#[cfg_attr(not(program = "python3"), ignore = "needs python3")]
async fn httpx_sse_reads_a_run_and_resumes_it_where_it_left() {
    let server = Served::with(&[("SANDCASTER_API_KEY", "k")]).await;
    let headers = json!({"Authorization": "Bearer k"});
    let body = demo(&["echo one", "printf 'two\\nlines\\n\\n'", "echo ünï"]);
    let (mut read, end) = events(&json!({
        "method": "POST", "url": server.url("/query"), "json": body, "headers": headers,
        "leaveAfter": 4,
    }))
    .await;
    assert_eq!(
        end,
        json!({"status": 200, "contentType": "text/event-stream"})
    );
    assert_eq!(read.len(), 4);
    assert_eq!(read[0]["retry"], 2000);
    let run = read[0]["data"]["runId"].as_str().unwrap().to_owned();
    let url = server.url(&format!("/runs/{run}/events"));
    let mut resumed = headers.clone();
    resumed["Last-Event-ID"] = read[3]["id"].clone();
    let (rest, _) = events(&json!({"method": "GET", "url": url, "headers": resumed})).await;
    read.extend(rest);
    for event in &read {
        assert_eq!(event["event"], event["data"]["type"]);
        assert_eq!(
            event["id"].as_str().unwrap(),
            event["data"]["seq"].to_string()
        );
    }
    let (whole, _) = events(&json!({"method": "GET", "url": url, "headers": headers})).await;
    assert_eq!(data(&read), data(&whole), "the pieces are the log");
    let whole = data(&whole);
    let kinds = kinds(&whole);
    assert!(kinds.contains(&"tool_use") && kinds.contains(&"tool_result"));
    assert_eq!(kinds.last(), Some(&"result"));
    let answer = whole.last().unwrap()["content"].as_str().unwrap();
    for output in ["one", "two\nlines", "ünï"] {
        assert!(answer.contains(output), "{output:?} is not in {answer}");
    }
}

#[tokio::test]
#[cfg_attr(not(program = "python3"), ignore = "needs python3")]
async fn a_heartbeat_is_no_event_to_httpx_sse() {
    let python = python().await;
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("first").wait(&gate).text(" last")]).await;
    let env = [
        ("SANDCASTER_HEARTBEAT_SECS", "1"),
        ("SANDCASTER_SANDBOX_START", "lazy"),
    ];
    let server = Served::with_llm(&llm, &env).await;
    let body = json!({"prompt": "go", "model": "sonnet"});
    let request = json!({"method": "POST", "url": server.url("/query"), "json": body});
    let mut command = Command::new(python);
    command
        .arg(scripts().join("events.py"))
        .arg(request.to_string());
    let mut watched = Watched::spawn(&mut command);
    let mut read = Vec::new();
    while !read
        .iter()
        .any(|event: &Value| event["event"] == "assistant")
    {
        read.push(watched.json().await);
    }
    let run = read[0]["data"]["runId"].as_str().unwrap();
    // Another stream of the run is silent for as long: once it had two heartbeats, so had Python.
    let mut other = http()
        .get(server.url(&format!("/runs/{run}/events?after={}", read.len())))
        .send()
        .await
        .unwrap();
    let mut heartbeats = String::new();
    while heartbeats.matches(": hb\n").count() < 2 {
        let chunk = timeout(PATIENCE, other.chunk()).await.unwrap().unwrap();
        heartbeats.push_str(std::str::from_utf8(&chunk.expect("an open stream")).unwrap());
    }
    gate.open();
    while !read.iter().any(|event| event["event"] == "result") {
        read.push(watched.json().await);
    }
    let ids: Vec<&str> = read
        .iter()
        .map(|event| event["id"].as_str().unwrap())
        .collect();
    let dense: Vec<String> = (1..=read.len()).map(|seq| seq.to_string()).collect();
    assert_eq!(ids, dense, "no event without a place in the log");
    watched.finish().await;
}

#[tokio::test]
#[cfg_attr(not(program = "python3"), ignore = "needs python3")]
async fn httpx_sse_sees_a_refusal_as_a_status() {
    let server = Served::keyless().await;
    let (events, end) = events(&json!({
        "method": "POST", "url": server.url("/query"), "json": {"prompt": ""},
    }))
    .await;
    assert_eq!(events, Vec::<Value>::new());
    assert_eq!(
        end,
        json!({"status": 400, "contentType": "application/json"})
    );
}
