//! How runs end that somebody, or nobody, stops.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::app::{PATIENCE, TestApp, ask, demo, of_kind};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};
use crate::support::processes::{on_host, own_sleep, running, until_gone, until_sleeping};

/// Every call that was asked for has a result.
fn check_calls(events: &[Value]) {
    let ids = |kind: &str| -> Vec<Value> {
        let found = of_kind(events, kind);
        found
            .iter()
            .map(|event| event["toolCallId"].clone())
            .collect()
    };
    assert_eq!(ids("tool_use"), ids("tool_result"));
}

/// Waits for the end of a run without reading it, since a reader would keep it alive.
async fn left(app: &TestApp, run: &str) -> Value {
    let wait = async {
        loop {
            let record = app.json(&format!("/runs/{run}")).await;
            if record["status"] != "running" {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

#[tokio::test]
async fn a_cancel_in_mid_command_kills_it_and_answers_every_call() {
    let sleep = own_sleep();
    // What a command has just said may be lost with the program that passes it on: that has come when it is kept.
    let kept = "until grep -qs begun /tmp/.sandcaster/out/*; do sleep 0.01; done";
    let command = format!("echo begun; {kept}; sleep {sleep}");
    let llm = FakeLlm::start([Reply::new()
        .call("bash", &json!({ "command": command }))
        .call("bash", &json!({"command": "echo never > never"}))])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let stream = app.query(ask("hi")).await;
    let run = stream.run_id.clone();
    until_sleeping(&sleep).await;

    let cancelled = app.cancel(&run).await;
    assert_eq!(cancelled.status(), 202);
    let events = stream.rest().await;
    assert_eq!(
        running(&sleep),
        [0; 0],
        "the command is gone with the terminal event"
    );
    until_gone(&run).await;
    check_calls(&events);
    let results = of_kind(&events, "tool_result");
    assert!(
        results[0]["content"].as_str().unwrap().contains("begun"),
        "{}",
        results[0]
    );
    assert_eq!(results[1]["isError"], true);
    assert!(of_kind(&events, "file").is_empty());
    let error = events.last().unwrap();
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("error"), &json!("CANCELLED"))
    );
    assert_eq!(llm.requests().len(), 1, "nothing was asked after it");

    let again = app.cancel(&run).await;
    assert_eq!(again.status(), 200);
    let record: Value = again.json().await.unwrap();
    assert_eq!(
        (&record["status"], &record["statusDetail"]),
        (&json!("error"), &json!("cancelled"))
    );
    assert_eq!(
        app.cancel("run_00000000000000000000000000000000")
            .await
            .status(),
        404
    );
    let record = app.json(&format!("/runs/{run}")).await;
    assert_eq!(record["errorCode"], "CANCELLED");
    app.stop().await;
}

#[tokio::test]
async fn a_cancel_while_the_llm_answers_closes_its_connection() {
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("Let me").wait(&gate)]).await;
    let app = TestApp::with_llm(&llm).await;
    let mut stream = app.query(ask("hi")).await;
    stream.until("assistant").await;
    gate.reached().await;
    assert_eq!(app.cancel(&stream.run_id).await.status(), 202);
    let error = stream.until("error").await;
    assert_eq!(error["code"], "CANCELLED");
    assert_eq!(error["usageComplete"], false);
    assert_eq!(error["inputTokens"], 10);
    llm.connection_closed(0).await;
    assert_eq!(stream.next().await, None);
    app.stop().await;
}

#[tokio::test]
async fn a_cancel_while_nothing_of_the_answer_came_ends_the_run() {
    let llm = FakeLlm::start([Reply::silence()]).await;
    let app = TestApp::with_llm(&llm).await;
    let mut stream = app.query(ask("hi")).await;
    llm.request(0).await;
    app.cancel(&stream.run_id).await;
    assert_eq!(stream.until("error").await["code"], "CANCELLED");
    llm.connection_closed(0).await;
    app.stop().await;
}

#[tokio::test]
async fn a_run_that_nobody_reads_is_cancelled_after_the_grace() {
    let sleep = own_sleep();
    let llm = FakeLlm::start([Reply::new()
        .text("Let me")
        .call("bash", &json!({"command": format!("sleep {sleep}")}))])
    .await;
    let app = TestApp::builder()
        .llm(&llm)
        .file(json!({"disconnectGraceSecs": 1}))
        .start()
        .await;
    let stream = app.query(ask("hi")).await;
    let run = stream.run_id.clone();
    until_sleeping(&sleep).await;
    drop(stream);
    let record = left(&app, &run).await;
    assert_eq!(record["errorCode"], "CLIENT_GONE");
    assert_eq!(record["statusDetail"], "cancelled");
    assert!(record["durationSecs"].as_f64().unwrap() >= 1.0);
    assert_eq!(running(&sleep), [0; 0]);
    check_calls(&app.events(&run, 0).await.rest().await);
    app.stop().await;
}

#[tokio::test]
async fn a_client_that_comes_back_within_the_grace_keeps_the_run() {
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("One, ").wait(&gate).text("two.")]).await;
    let app = TestApp::builder()
        .llm(&llm)
        .file(json!({"disconnectGraceSecs": 2}))
        .start()
        .await;
    let mut stream = app.query(ask("hi")).await;
    let seen = stream.until("assistant").await["seq"].as_u64().unwrap();
    let run = stream.run_id.clone();
    drop(stream);
    let mut back = app.events(&run, seen).await;
    // Longer than the grace since the first client left.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    gate.open();
    assert_eq!(back.until("result").await["content"], "One, two.");
    app.stop().await;
}

#[tokio::test]
async fn a_background_run_needs_no_reader_and_an_attached_one_does() {
    let gate = Gate::new();
    let reply = || Reply::new().text("One, ").wait(&gate).text("two.");
    let llm = FakeLlm::start([reply(), reply()]).await;
    let app = TestApp::builder()
        .llm(&llm)
        .file(json!({"disconnectGraceSecs": 0}))
        .start()
        .await;
    let mut body = ask("hi");
    body["background"] = json!(true);
    let accepted = app.post("/query", &body).await;
    assert_eq!(accepted.status(), 202);
    let id = accepted.headers()["x-run-id"].to_str().unwrap().to_owned();
    assert_eq!(accepted.headers()["location"], format!("/runs/{id}"));
    let accepted: Value = accepted.json().await.unwrap();
    assert_eq!(
        (&accepted["id"], &accepted["status"]),
        (&json!(id), &json!("running"))
    );
    llm.request(0).await;

    // The twin: the same without a reader, but attached.
    let attached = app.query(ask("hi")).await;
    let other = attached.run_id.clone();
    drop(attached);
    assert_eq!(left(&app, &other).await["errorCode"], "CLIENT_GONE");

    gate.open();
    let record = app.ended(&id).await;
    assert_eq!(
        (&record["status"], &record["background"]),
        (&json!("completed"), &json!(true))
    );
    let events = app.events(&id, 0).await.rest().await;
    assert_eq!(events.last().unwrap()["content"], "One, two.");
    llm.take_unused();
    app.stop().await;
}

#[tokio::test]
async fn a_waiting_client_gets_the_end_its_files_and_the_codes_status() {
    let llm = FakeLlm::start([
        Reply::new().call("bash", &json!({"command": "echo hi > out.txt"})),
        Reply::says("Done."),
        Reply::error(401, "authentication_error", "invalid x-api-key"),
    ])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let wait = async |body: Value| {
        let request = crate::support::http().post(app.url("/query")).json(&body);
        let response = request
            .header("accept", "application/json")
            .send()
            .await
            .unwrap();
        let status = response.status().as_u16();
        assert!(response.headers().contains_key("x-run-id"));
        (status, response.json::<Value>().await.unwrap())
    };
    let (status, body) = wait(ask("hi")).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        (&body["type"], &body["content"]),
        (&json!("result"), &json!("Done."))
    );
    assert_eq!(body["files"][0]["path"], "out.txt");
    assert_eq!(body["files"][0]["content"], "hi\n");
    let run = app
        .json(&format!("/runs/{}", body["runId"].as_str().unwrap()))
        .await;
    assert_eq!(run["filesCount"], 1);

    let (status, body) = wait(ask("again")).await;
    assert_eq!(status, 502, "{body}");
    assert_eq!(
        (&body["code"], &body["error"]),
        (&json!("LLM_AUTH"), &body["message"])
    );
    app.stop().await;
}

#[tokio::test]
async fn a_waiting_client_that_leaves_is_gone_too() {
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("One").wait(&gate)]).await;
    let app = TestApp::builder()
        .llm(&llm)
        .file(json!({"disconnectGraceSecs": 0}))
        .start()
        .await;
    let request = crate::support::http()
        .post(app.url("/query"))
        .json(&ask("hi"));
    let waiting = request.header("accept", "application/json").send();
    tokio::select! {
        _ = waiting => panic!("the run can't have ended"),
        () = gate.reached() => {}
    }
    llm.connection_closed(0).await;
    let runs = app.json("/runs").await;
    let record = app.ended(runs[0]["id"].as_str().unwrap()).await;
    assert_eq!(record["errorCode"], "CLIENT_GONE");
    app.stop().await;
}

#[tokio::test]
async fn a_sandbox_that_dies_ends_the_run_within_a_second() {
    let sleep = own_sleep();
    let llm =
        FakeLlm::start([Reply::new().call("bash", &json!({"command": format!("sleep {sleep}")}))])
            .await;
    let app = TestApp::with_llm(&llm).await;
    let mut stream = app.query(ask("hi")).await;
    until_sleeping(&sleep).await;
    for pid in on_host(&stream.run_id) {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let killed = tokio::time::Instant::now();
    let events = stream.collect().await;
    assert!(
        killed.elapsed().as_millis() < 1000,
        "{:?}",
        killed.elapsed()
    );
    check_calls(&events);
    let error = events.last().unwrap();
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("SANDBOX_LOST"), &json!(true))
    );
    assert!(error["hint"].is_string());
    until_gone(&sleep).await;
    app.stop().await;
}

#[tokio::test]
async fn a_stop_of_the_server_ends_runs_truthfully_and_takes_no_more() {
    let sleep = own_sleep();
    let app = TestApp::keyless().await;
    let mut stream = app.query(demo(&[&format!("sleep {sleep}")])).await;
    until_sleeping(&sleep).await;
    app.app.runs.shutdown(Duration::from_secs(8)).await;
    let events = stream.collect().await;
    let error = events.last().unwrap();
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("SERVER_SHUTDOWN"), &json!(true))
    );
    check_calls(&events);
    assert_eq!(running(&sleep), [0; 0]);

    let refused = app.post("/query", &demo(&["true"])).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["code"], "DRAINING");
    assert_eq!(app.get("/health").await.status(), 503);
    let record = app.json(&format!("/runs/{}", stream.run_id)).await;
    assert_eq!(record["statusDetail"], "interrupted");
    app.stop().await;
}
