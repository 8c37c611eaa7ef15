//! The sandbox's start, beside the LLM's first answer.

use serde_json::json;

use super::{application, calls, end_of, ids, left, sandbox_id};
use crate::support::app::{EventStream, ask, kinds, of_kind, text};
use crate::support::fake_e2b::{FakeE2b, Route};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};
use crate::support::http;

#[tokio::test]
async fn the_first_words_come_while_the_sandbox_is_still_being_made() {
    let e2b = FakeE2b::start().await;
    let creation = e2b.on(Route::Create).gate();
    let wants = Reply::new()
        .text("Let me look.")
        .call("bash", &json!({"command": "echo from inside"}));
    let llm = FakeLlm::start([wants, Reply::says("It says hello.")]).await;
    let app = application(&e2b, &llm).start().await;
    let mut run = app.query(ask("look")).await;

    let mut said = String::new();
    while said != "Let me look." {
        said += run.until("assistant").await["content"].as_str().unwrap();
    }
    run.until("tool_use").await;
    creation.reached().await;
    assert_eq!(e2b.created(), 0);
    // The intent is in the store before there is anything to forget.
    let record = app.json(&format!("/runs/{}", run.run_id)).await;
    assert_eq!(
        record["sandboxes"],
        json!([{"backend": "e2b", "attempt": 1, "destroyed": false}])
    );

    creation.open();
    let id = run.run_id.clone();
    let rest = run.rest().await;
    let sandbox = sandbox_id(&rest);
    let result = of_kind(&rest, "tool_result")[0];
    assert!(
        result["content"].as_str().unwrap().contains("from inside"),
        "{result}"
    );
    assert_eq!(rest.last().unwrap()["content"], "It says hello.");
    let record = end_of(&app, &id).await;
    assert_eq!(
        record["sandboxes"],
        json!([{"backend": "e2b", "attempt": 1, "destroyed": true, "id": sandbox}])
    );
    left(&e2b, &[]).await;
}

#[tokio::test]
async fn a_run_that_ends_before_its_sandbox_is_there_leaves_nothing_behind() {
    let e2b = FakeE2b::start().await;
    let creation = e2b.on(Route::Create).gate();
    let killed = e2b.on(Route::Delete);
    let llm = FakeLlm::start([Reply::says("Four.")]).await;
    let app = application(&e2b, &llm).start().await;
    let events = app.run(ask("2 + 2?")).await;
    creation.reached().await;
    assert_eq!(events.last().unwrap()["content"], "Four.");
    assert_eq!(e2b.created(), 0);
    creation.open();
    killed.reached().await;
    left(&e2b, &[]).await;
    assert_eq!(e2b.created(), 1);
    app.stop().await;
}

#[tokio::test]
async fn a_lazy_sandbox_is_made_at_the_first_tool_call_and_not_before() {
    let e2b = FakeE2b::start().await;
    let gate = Gate::new();
    let later = Reply::new()
        .text("Hm.")
        .wait(&gate)
        .call("bash", &json!({"command": "pwd"}));
    let llm = FakeLlm::start([Reply::says("Four."), later, Reply::says("Home.")]).await;
    let app = application(&e2b, &llm)
        .file(json!({"sandboxStart": "lazy"}))
        .start()
        .await;
    app.run(ask("2 + 2?")).await;
    assert_eq!(e2b.calls(Route::Create), 0);

    let mut run = app.query(ask("where?")).await;
    run.until("assistant").await;
    gate.reached().await;
    assert_eq!(e2b.calls(Route::Create), 0);
    gate.open();
    let events = run.rest().await;
    let result = of_kind(&events, "tool_result")[0];
    assert!(
        result["content"].as_str().unwrap().contains("/home/user"),
        "{result}"
    );
    assert_eq!(e2b.calls(Route::Create), 1);
    left(&e2b, &[]).await;
}

#[tokio::test]
async fn the_references_example_request_gives_its_example_stream() {
    let e2b = FakeE2b::start().await;
    let gate = Gate::new();
    let answer = Reply::new()
        .wait(&gate)
        .text("Let me research these tools...")
        .text(" starting with Notion.")
        .usage(1204, 876);
    let llm = FakeLlm::start([answer]).await;
    let app = application(&e2b, &llm)
        .env("SANDCASTER_API_KEY", "my-secret-token")
        .start()
        .await;
    let request = http()
        .post(app.url("/query"))
        .header("Content-Type", "application/json")
        .header("Authorization", "Bearer my-secret-token")
        .body(
            r#"{
    "prompt": "Compare Notion, Coda, and Slite for async product teams",
    "model": "sonnet",
    "maxTurns": 30
  }"#,
        );
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut run = EventStream::new(response);
    let mut events = Vec::new();
    while events
        .last()
        .is_none_or(|event: &serde_json::Value| event["message"] != "Sandbox created")
    {
        events.push(run.next().await.unwrap());
    }
    assert_eq!(ids(&e2b), [sandbox_id(&events)]);
    gate.open();
    events.extend(run.rest().await);

    assert_eq!(kinds(&events), ["system", "assistant", "result"]);
    let whole = "Let me research these tools... starting with Notion.";
    assert_eq!(text(&events), whole);
    let pieces = of_kind(&events, "assistant");
    assert_eq!(pieces[0]["content"], "Let me research these tools...");
    assert_eq!(pieces[1]["content"], " starting with Notion.");
    let result = events.last().unwrap();
    assert_eq!(result["content"], whole);
    assert_eq!(result["inputTokens"], 1204);
    assert_eq!(result["outputTokens"], 876);
    assert!(result["costUsd"].as_f64().unwrap() > 0.0);
    let view = &e2b.requests_of(Route::Create)[0].json();
    assert_eq!(view["templateID"], "base");
    left(&e2b, &[]).await;
}

#[tokio::test]
async fn a_sandbox_is_asked_to_outlive_its_run_by_two_minutes_and_carries_its_labels() {
    let e2b = FakeE2b::start().await;
    let llm = FakeLlm::start([calls("true"), Reply::says("Done.")]).await;
    let app = application(&e2b, &llm).start().await;
    let run = app
        .query(json!({"prompt": "x", "model": "sonnet", "timeout": 600}))
        .await;
    let id = run.run_id.clone();
    run.rest().await;
    let asked = e2b.requests_of(Route::Create)[0].json();
    let timeout = asked["timeout"].as_u64().unwrap();
    assert!((700..=720).contains(&timeout), "{timeout}");
    let labels = &asked["metadata"];
    assert_eq!(labels["sandcaster-run"], id);
    assert_eq!(
        labels["sandcaster-instance"].as_str(),
        Some(app.app.runs.store().id())
    );
    assert_eq!(labels["sandcaster-attempt"], "1");
    assert!(labels["sandcaster-expires"].is_string());
    assert_eq!(e2b.calls(Route::Timeout), 0, "nothing is to be extended");
}
