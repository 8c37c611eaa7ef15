//! Turns, time and money: the client is warned, the model is told, and work that was done is not lost.

use std::time::Duration;

use serde_json::json;

use super::{bash, check_log, end, run};
use crate::support::app::{TestApp, kinds, of_kind, warnings};
use crate::support::fake_llm::{FakeLlm, Gate, Received, Reply};
use crate::support::processes::{own_sleep, until_sleeping};
use crate::support::skip;

fn call(n: u32) -> Reply {
    Reply::new().call("bash", &bash(&format!("echo {n}")))
}

#[tokio::test]
async fn the_last_turn_is_asked_without_tools_and_its_text_is_the_answer() {
    let llm = FakeLlm::start([call(1), call(2), Reply::says("Half done.")]).await;
    let events = run(
        &llm,
        json!({"prompt": "hi", "model": "sonnet", "maxTurns": 3}),
    )
    .await;
    let result = end(&events);
    assert_eq!(
        (
            &result["type"],
            &result["stopReason"],
            &result["subtype"],
            &result["content"]
        ),
        (
            &json!("result"),
            &json!("max_turns"),
            &json!("max_turns"),
            &json!("Half done.")
        )
    );
    assert_eq!(result["numTurns"], 3);
    assert_eq!(warnings(&events), ["MAX_TURNS"]);
    let kinds = kinds(&events);
    assert_eq!(kinds[kinds.len() - 3..], ["warning", "assistant", "result"]);
    let off: Vec<bool> = llm.requests().iter().map(Received::tools_are_off).collect();
    assert_eq!(off, [false, false, true]);
    assert!(llm.request(2).await.last_text().contains("last turn"));
}

#[tokio::test]
async fn calls_despite_the_last_turn_are_not_run() {
    let llm = FakeLlm::start([call(1), Reply::new().call("bash", &bash("echo forbidden"))]).await;
    let events = run(
        &llm,
        json!({"prompt": "hi", "model": "sonnet", "maxTurns": 2}),
    )
    .await;
    let error = end(&events);
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("error"), &json!("MAX_TURNS"))
    );
    assert!(error["hint"].as_str().unwrap().contains("maxTurns"));
    assert_eq!(of_kind(&events, "tool_use").len(), 1);
}

#[tokio::test]
async fn a_run_of_one_turn_has_no_tools_and_no_warning() {
    let llm = FakeLlm::start([Reply::says("Hello.")]).await;
    let events = run(
        &llm,
        json!({"prompt": "hi", "model": "sonnet", "maxTurns": 1}),
    )
    .await;
    assert!(llm.request(0).await.tools_are_off());
    assert!(warnings(&events).is_empty());
    assert_eq!(end(&events)["content"], "Hello.");
}

#[tokio::test]
async fn notices_come_at_half_and_four_fifths_and_each_turn_past_nine_tenths() {
    let mut replies: Vec<Reply> = (0..9).map(call).collect();
    replies.push(Reply::says("Done."));
    let llm = FakeLlm::start(replies).await;
    let events = run(
        &llm,
        json!({"prompt": "hi", "model": "sonnet", "maxTurns": 10}),
    )
    .await;
    assert_eq!(warnings(&events), ["SOFT_LIMIT", "MAX_TURNS"]);
    let soft = of_kind(&events, "warning")[0];
    assert_eq!(
        (&soft["limit"], &soft["used"], &soft["max"]),
        (&json!("turns"), &json!(8), &json!(10))
    );
    let told: Vec<usize> = (1..10)
        .filter(|at| llm.requests()[*at].last_text().contains("turns and"))
        .collect();
    assert_eq!(told, [5, 8, 9]);
}

#[tokio::test]
async fn a_call_is_stopped_in_time_for_a_last_turn() {
    let length = own_sleep();
    let llm = FakeLlm::start([
        Reply::new().call("bash", &bash(&format!("echo begun; sleep {length}"))),
        Reply::says("It takes too long."),
    ])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let stream = app.query(json!({"prompt": "hi", "model": "sonnet", "timeout": 40}));
    let stream = stream.await;
    until_sleeping(&length).await;
    skip(Duration::from_secs(30)).await;
    let events = stream.rest().await;
    check_log(&events);
    app.stop().await;
    let result = end(&events);
    assert_eq!(
        (&result["type"], &result["stopReason"], &result["content"]),
        (
            &json!("result"),
            &json!("max_time"),
            &json!("It takes too long.")
        )
    );
    assert!(warnings(&events).contains(&"MAX_TIME"));
    let stopped = llm.request(1).await.tool_results();
    assert!(stopped[0].text.contains("begun"), "{stopped:?}");
    assert!(llm.request(1).await.tools_are_off());
}

#[tokio::test]
async fn the_deadline_is_hard_and_the_run_timed_out() {
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("Well").wait(&gate)]).await;
    let app = TestApp::with_llm(&llm).await;
    let stream = app.query(json!({"prompt": "hi", "model": "sonnet", "timeout": 30}));
    let mut stream = stream.await;
    stream.until("assistant").await;
    skip(Duration::from_secs(30)).await;
    let error = stream.until("error").await;
    assert!(stream.next().await.is_none());
    assert_eq!(error["code"], "DEADLINE_EXCEEDED");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("30 s"), "{error}");
    assert!(error["durationSecs"].as_f64().unwrap() >= 30.0, "{error}");
    assert_eq!(error["usageComplete"], false);
    llm.connection_closed(0).await;
    let run = app.json(&format!("/runs/{}", stream.run_id)).await;
    assert_eq!(
        (&run["status"], &run["statusDetail"]),
        (&json!("error"), &json!("timed_out"))
    );
    app.stop().await;
}

#[tokio::test]
async fn old_results_are_cleared_in_one_batch_before_the_window_is_full() {
    // Some 7,000 tokens each, so that the old ones make up most of what the provider counts.
    let long = |n: u32| Reply::new().call("bash", &bash(&format!("seq {n} 1 {}", n + 12_000)));
    let mut replies: Vec<Reply> = (1..20).map(long).collect();
    replies.push(long(20).usage(165_000, 10));
    replies.extend([long(21).usage(60_000, 10), Reply::says("Done.")]);
    let llm = FakeLlm::start(replies).await;
    let events = run(&llm, json!({"prompt": "hi", "model": "sonnet"})).await;
    assert_eq!(warnings(&events), ["CONTEXT_CLEARED"]);
    let cleared = |request: &Received| -> Vec<bool> {
        let texts = request
            .messages()
            .iter()
            .filter_map(|message| message["content"][0]["content"][0]["text"].as_str());
        texts.map(|text| text.starts_with("[cleared")).collect()
    };
    assert_eq!(cleared(&llm.request(19).await), [false; 19]);
    let after: Vec<bool> = (0..20).map(|turn| turn < 14).collect();
    assert_eq!(cleared(&llm.request(20).await), after);
    assert_eq!(
        cleared(&llm.request(21).await)[..20],
        after,
        "the prefix stays"
    );
    assert_eq!(end(&events)["content"], "Done.");
}
