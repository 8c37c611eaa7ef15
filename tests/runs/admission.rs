//! What is taken, what waits, and what is refused.

use sandcaster::config::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::app::{PATIENCE, TestApp, ask, demo, warnings};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};

#[tokio::test]
async fn a_full_server_refuses_before_the_body_and_takes_the_next_after_an_end() {
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("One").wait(&gate)]).await;
    let app = TestApp::builder()
        .llm(&llm)
        .tune(|config| config.server.max_concurrent_runs = 1)
        .start()
        .await;
    let mut first = app.query(ask("hi")).await;
    gate.reached().await;

    let refused = app.post("/query", &demo(&["true"])).await;
    assert_eq!(refused.status(), 429);
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&wait));
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["code"], "QUEUE_FULL");
    assert!(
        refused["error"].as_str().unwrap().contains("1 runs"),
        "{refused}"
    );
    assert!(refused["hint"].is_string());

    // A body that is promised and never sent is not waited for.
    let mut socket = TcpStream::connect(app.address).await.unwrap();
    let head = format!(
        "POST /query HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n",
        app.address
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    tokio::time::timeout(PATIENCE, socket.read_exact(&mut status))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&status, b"HTTP/1.1 429");

    assert_eq!(
        app.json("/runs").await.as_array().unwrap().len(),
        1,
        "nothing was started"
    );
    gate.open();
    first.until("result").await;
    // Whoever has seen the end finds the place free.
    let events = app.run(demo(&["true"])).await;
    assert_eq!(events.last().unwrap()["type"], "result");
    app.stop().await;
}

async fn with_one_sandbox(llm: &FakeLlm) -> TestApp {
    let builder = TestApp::builder().llm(llm);
    let one = |config: &mut Config| {
        config.server.max_sandboxes.insert("local", 1);
    };
    builder.tune(one).start().await
}

#[tokio::test]
async fn a_run_waits_for_a_place_for_its_sandbox_and_says_so() {
    let gate = Gate::new();
    let llm = FakeLlm::start([
        Reply::new().text("One").wait(&gate),
        Reply::new().call("bash", &json!({"command": "echo second"})),
        Reply::says("Two."),
    ])
    .await;
    let app = with_one_sandbox(&llm).await;
    let mut first = app.query(ask("one")).await;
    while first.next().await.unwrap()["subtype"] != "sandbox_created" {}
    gate.reached().await;

    let mut second = app.query(ask("two")).await;
    let warning = second.until("warning").await;
    assert_eq!(
        (&warning["code"], &warning["sandboxProvider"]),
        (&json!("SANDBOX_WAIT"), &json!("local"))
    );
    second.until("tool_use").await;
    gate.open();
    first.until("result").await;
    let rest = second.rest().await;
    assert!(warnings(&rest).is_empty());
    assert_eq!(rest.last().unwrap()["content"], "Two.");
    app.stop().await;
}

#[tokio::test]
async fn a_run_that_waits_for_a_sandbox_can_be_cancelled() {
    let gate = Gate::new();
    let llm = FakeLlm::start([
        Reply::new().text("One").wait(&gate),
        Reply::new().call("bash", &json!({"command": "echo second"})),
    ])
    .await;
    let app = with_one_sandbox(&llm).await;
    let mut first = app.query(ask("one")).await;
    while first.next().await.unwrap()["subtype"] != "sandbox_created" {}
    let mut second = app.query(ask("two")).await;
    second.until("tool_use").await;
    app.cancel(&second.run_id).await;
    let rest = second.collect().await;
    assert_eq!(rest[0]["type"], "tool_result");
    assert_eq!(rest.last().unwrap()["code"], "CANCELLED");
    let record = app.json(&format!("/runs/{}", second.run_id)).await;
    assert_eq!(record["sandboxes"], json!([]));
    gate.open();
    first.until("result").await;
    app.stop().await;
}

#[tokio::test]
async fn sixty_four_clients_may_read_a_run_and_no_more() {
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("One").wait(&gate)]).await;
    let app = TestApp::with_llm(&llm).await;
    let first = app.query(ask("hi")).await;
    let mut readers = vec![];
    for _ in 1..64 {
        readers.push(app.events(&first.run_id, 0).await);
    }
    let path = format!("/runs/{}/events", first.run_id);
    let refused = app.get(&path).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["code"], "SERVER_BUSY");
    assert_eq!(refused["runId"], first.run_id);

    gate.open();
    let all = first.rest().await;
    for reader in readers {
        assert_eq!(reader.rest().await, all);
    }
    app.stop().await;
}
