//! Streams that are cut and gone on with: the pieces are the log, byte for byte.

use serde_json::{Value, json};

use crate::support::app::{EventStream, TestApp, ask, event_of};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};

async fn resumed(app: &TestApp, run: &str, after: u64) -> EventStream {
    let request = crate::support::http()
        .get(app.url(&format!("/runs/{run}/events")))
        .header("last-event-id", after.to_string());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    EventStream::new(response)
}

#[tokio::test]
async fn pieces_read_while_the_run_goes_on_are_the_log() {
    let gates: Vec<Gate> = (0..6).map(|_| Gate::new()).collect();
    let mut reply = Reply::new();
    for (n, gate) in gates.iter().enumerate() {
        reply = reply.text(&format!("{n}é ")).text("and ").wait(gate);
    }
    let llm = FakeLlm::start([
        reply.call("bash", &json!({"command": "echo x > x"})),
        Reply::says("Done."),
    ])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let mut stream = app.query(ask("hi")).await;
    let run = stream.run_id.clone();
    let mut pieces: Vec<String> = Vec::new();
    for gate in &gates {
        gate.reached().await;
        // Cut wherever the last delta before the gate is.
        loop {
            let frame = stream.next_frame().await.unwrap().unwrap();
            let event = event_of(&frame);
            pieces.push(frame);
            if event["content"] == "and " {
                break;
            }
        }
        let seen = event_of(pieces.last().unwrap())["seq"].as_u64().unwrap();
        stream = resumed(&app, &run, seen).await;
        gate.open();
    }
    pieces.extend(stream.frames().await);

    let log = app.events(&run, 0).await.frames().await;
    assert_eq!(pieces, log);
    // Each cursor gives exactly what comes after it, and the last one nothing, for good.
    for after in 0..log.len() - 1 {
        let rest = app.events(&run, after as u64).await.frames().await;
        assert_eq!(rest, log[after..]);
    }
    let path = format!("/runs/{run}/events?after={}", log.len());
    assert_eq!(app.get(&path).await.status(), 204);
    app.stop().await;
}

#[tokio::test]
async fn the_log_is_read_in_pages_as_well() {
    let app = TestApp::keyless().await;
    let events = app
        .run(crate::support::app::demo(&["echo one", "echo two"]))
        .await;
    let run = events[0]["runId"].as_str().unwrap();
    let mut paged: Vec<Value> = Vec::new();
    loop {
        let request = crate::support::http()
            .get(app.url(&format!("/runs/{run}/events?after={}&limit=3", paged.len())))
            .header("accept", "application/json");
        let page: Value = request.send().await.unwrap().json().await.unwrap();
        paged.extend(page["events"].as_array().unwrap().iter().cloned());
        assert_eq!(page["nextAfter"], paged.len());
        if page["terminal"] == true {
            break;
        }
    }
    assert_eq!(paged, events);
    app.stop().await;
}

#[tokio::test]
async fn cursors_that_cannot_be_are_refused_loudly() {
    let app = TestApp::keyless().await;
    let events = app.run(crate::support::app::demo(&["true"])).await;
    let run = events[0]["runId"].as_str().unwrap();
    for (path, status, code) in [
        (
            format!("/runs/{run}/events?after=abc"),
            400,
            "CURSOR_INVALID",
        ),
        (
            format!("/runs/{run}/events?after=-1"),
            400,
            "CURSOR_INVALID",
        ),
        (
            format!("/runs/{run}/events?after=4711"),
            409,
            "CURSOR_AHEAD",
        ),
        (
            "/runs/run_0000000000000000000000000000000f/events".to_owned(),
            404,
            "RUN_NOT_FOUND",
        ),
        ("/runs/nothing/events".to_owned(), 404, "RUN_NOT_FOUND"),
    ] {
        let refused = app.get(&path).await;
        assert_eq!(refused.status(), status, "{path}");
        assert_eq!(
            refused.json::<Value>().await.unwrap()["code"],
            code,
            "{path}"
        );
    }
    app.stop().await;
}
