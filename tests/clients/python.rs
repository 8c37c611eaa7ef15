//! Python's `httpx-sse`.

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::app::{demo, kinds};
use crate::support::clients::{Served, have, json_lines, python, scripts, stdout_of};

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
async fn httpx_sse_reads_a_run_and_resumes_it_where_it_left() {
    let name = "httpx_sse_reads_a_run_and_resumes_it_where_it_left";
    if !have(&["python3"], name) {
        return;
    }
    let server = Served::start(&[("SANDCASTER_API_KEY", "k")]).await;
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
async fn httpx_sse_sees_a_refusal_as_a_status() {
    if !have(&["python3"], "httpx_sse_sees_a_refusal_as_a_status") {
        return;
    }
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
