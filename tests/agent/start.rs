//! How a run begins: the reference's example, and what waits for what.

use serde_json::json;

use super::{bash, check_log, end};
use crate::support::app::{TestApp, kinds, of_kind, slow_launcher, text, warnings};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};

#[tokio::test]
async fn the_references_example_request_gives_the_references_example_stream() {
    // A sandbox that comes after the answer is told to nobody.
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new()
        .text("Let me research these tools...")
        .wait(&gate)
        .text(" starting with Notion.")
        .usage(1204, 876)])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let body = json!({
        "prompt": "Compare Notion, Coda, and Slite for async product teams",
        "model": "sonnet",
        "maxTurns": 30
    });
    let mut stream = app.query(body).await;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        if event["message"] == "Sandbox created" {
            gate.open();
        }
        events.push(event);
    }
    check_log(&events);

    let created = events
        .iter()
        .find(|event| event["message"] == "Sandbox created")
        .unwrap();
    assert_eq!(created["type"], "system");
    assert_eq!(created["content"], "Sandbox created");
    assert!(
        created["sandboxId"].as_str().unwrap().starts_with("local-"),
        "{created}"
    );
    let said: Vec<_> = of_kind(&events, "assistant")
        .iter()
        .map(|event| event["content"].clone())
        .collect();
    assert_eq!(
        said,
        ["Let me research these tools...", " starting with Notion."]
    );
    let result = end(&events);
    assert_eq!(result["type"], "result");
    assert_eq!(
        result["content"],
        "Let me research these tools... starting with Notion."
    );
    // 1,204 tokens at 3 and 876 at 15 dollars per million.
    assert_eq!(result["costUsd"], 0.016_752);
    assert_eq!(result["inputTokens"], 1204);
    assert_eq!(result["outputTokens"], 876);
    assert_eq!(result["numTurns"], 1);
    assert_eq!(result["model"], "claude-sonnet-4-6");
    assert_eq!(result["stopReason"], "end");
    assert!(result["durationSecs"].as_f64().unwrap() > 0.0);

    let request = llm.request(0).await;
    assert_eq!(request.body["model"], "claude-sonnet-4-6");
    assert!(
        request
            .last_text()
            .ends_with("Compare Notion, Coda, and Slite for async product teams")
    );
    let run = app
        .json(&format!("/runs/{}", events[0]["runId"].as_str().unwrap()))
        .await;
    assert_eq!(
        (&run["status"], &run["statusDetail"], &run["costUsd"]),
        (&json!("completed"), &json!("completed"), &json!(0.016_752))
    );
    app.stop().await;
}

#[tokio::test]
async fn cache_reads_and_writes_are_billed_at_their_own_prices() {
    let llm = FakeLlm::start([Reply::says("Done.").usage_figures(json!({
        "input_tokens": 100, "output_tokens": 10,
        "cache_read_input_tokens": 10_000, "cache_creation_input_tokens": 1000
    }))])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let events = app.run(json!({"prompt": "hi", "model": "sonnet"})).await;
    let result = end(&events);
    assert_eq!(result["inputTokens"], 11_100);
    assert_eq!(result["cacheReadTokens"], 10_000);
    assert_eq!(result["cacheWriteTokens"], 1000);
    // 100 × 3 + 10 × 15 + 10,000 × 0.3 + 1,000 × 3.75 dollars per million.
    assert_eq!(result["costUsd"], 0.0072);
    app.stop().await;
}

#[tokio::test]
async fn text_is_seen_before_the_sandbox_is_ready_and_while_the_llm_goes_on() {
    let gate = Gate::new();
    let llm = FakeLlm::start([
        Reply::new()
            .text("Looking")
            .wait(&gate)
            .text(" around.")
            .call("bash", &bash("echo here")),
        Reply::says("Done."),
    ])
    .await;
    let elsewhere = tempfile::tempdir().unwrap();
    let closed = elsewhere.path().join("closed");
    let launcher = slow_launcher(elsewhere.path());
    let app = TestApp::builder()
        .llm(&llm)
        .tune(move |config| config.launcher = launcher)
        .start()
        .await;
    std::fs::write(&closed, "").unwrap();

    let mut stream = app.query(json!({"prompt": "hi", "model": "sonnet"})).await;
    let first = stream.next().await.unwrap();
    assert_eq!(first["subtype"], "init");
    let second = stream.next().await.unwrap();
    assert_eq!(
        (&second["type"], &second["content"]),
        (&json!("assistant"), &json!("Looking"))
    );
    gate.reached().await;
    gate.open();
    // The call is asked for while there is no sandbox yet, and waits for it.
    let asked = stream.until("tool_use").await;
    assert_eq!(asked["input"], bash("echo here"));
    std::fs::remove_file(&closed).unwrap();
    let rest = stream.rest().await;
    assert_eq!(
        kinds(&rest),
        ["system", "tool_result", "assistant", "result"]
    );
    assert_eq!(rest[0]["message"], "Sandbox created");
    assert_eq!(rest[1]["exitCode"], 0);
    app.stop().await;
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_made_ends_the_run_and_closes_the_llms_stream() {
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("Looking").wait(&gate)]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let launcher = slow_launcher(elsewhere.path());
    let app = TestApp::builder()
        .llm(&llm)
        .tune(move |config| config.launcher = launcher)
        .start()
        .await;
    std::fs::write(elsewhere.path().join("closed"), "").unwrap();
    let mut stream = app.query(json!({"prompt": "hi", "model": "sonnet"})).await;
    stream.until("assistant").await;
    std::fs::write(elsewhere.path().join("broken"), "").unwrap();
    std::fs::remove_file(elsewhere.path().join("closed")).unwrap();
    let error = stream.until("error").await;
    assert_eq!(error["code"], "SANDBOX_ERROR");
    assert!(
        error["message"].as_str().unwrap().contains("launcher"),
        "{error}"
    );
    llm.connection_closed(0).await;
    app.stop().await;
}

#[tokio::test]
async fn a_run_without_tools_gets_no_sandbox() {
    let llm = FakeLlm::start([Reply::says("Hello.")]).await;
    let app = TestApp::with_llm(&llm).await;
    let events = app
        .run(json!({"prompt": "hi", "model": "sonnet", "allowedTools": []}))
        .await;
    check_log(&events);
    assert_eq!(kinds(&events), ["system", "assistant", "result"]);
    assert_eq!(events[0]["subtype"], "init");
    let run = app
        .json(&format!("/runs/{}", events[0]["runId"].as_str().unwrap()))
        .await;
    assert_eq!(run["sandboxes"], json!([]));
    assert_eq!(llm.request(0).await.tool_names(), [""; 0]);
    app.stop().await;
}

#[tokio::test]
async fn an_unknown_price_gives_no_cost_and_one_warning() {
    let llm = FakeLlm::start([
        Reply::new().call("bash", &bash("true")),
        Reply::says("Done."),
    ])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let events = app
        .run(json!({"prompt": "hi", "model": "claude-unheard-of-9"}))
        .await;
    assert_eq!(warnings(&events), ["PRICE_UNKNOWN"]);
    let result = end(&events);
    assert_eq!(result.get("costUsd"), None);
    assert_eq!(
        (&result["inputTokens"], &result["outputTokens"]),
        (&json!(20), &json!(10))
    );
    let run = app
        .json(&format!("/runs/{}", events[0]["runId"].as_str().unwrap()))
        .await;
    assert_eq!(run.get("costUsd"), None, "{run}");
    assert_eq!(text(&events), "Done.");
    app.stop().await;
}
