//! Whatever way a run ends, its sandbox is gone, and no other is touched.

use serde_json::json;

use super::{application, calls, end_of, left, others, talkative};
use crate::support::app::{ask, of_kind};
use crate::support::fake_e2b::{Death, Ending, FakeE2b, Route, Seen, StreamFault};
use crate::support::fake_llm::{FakeLlm, Reply};

#[tokio::test]
async fn nothing_is_left_after_an_answer_or_an_error() {
    let e2b = FakeE2b::start().await;
    let others = others(&e2b);
    let llm = FakeLlm::start([calls("echo hi"), Reply::says("Hi.")]).await;
    let app = application(&e2b, &llm).start().await;
    let run = app.query(ask("hi")).await;
    let id = run.run_id.clone();
    assert_eq!(run.rest().await.last().unwrap()["type"], "result");
    left(&e2b, &others).await;
    end_of(&app, &id).await;

    llm.then(calls("sleep 600 & echo started"));
    llm.then(Reply::error(400, "invalid_request_error", "no such thing"));
    let run = app.query(ask("hi")).await;
    let id = run.run_id.clone();
    let end = run.rest().await.pop().unwrap();
    assert_eq!(end["code"], "LLM_BAD_REQUEST", "{end}");
    left(&e2b, &others).await;
    end_of(&app, &id).await;
    assert_eq!(e2b.created(), 2 + others.len() as u64);
}

#[tokio::test]
async fn nothing_is_left_after_a_cancel() {
    let e2b = FakeE2b::start().await;
    let others = others(&e2b);
    let (llm, held) = talkative("sleep 600 & echo started").await;
    let app = application(&e2b, &llm).start().await;
    let mut run = app.query(ask("hi")).await;
    run.until("tool_result").await;
    held.reached().await;
    assert_eq!(e2b.sandboxes().len(), others.len() + 1);
    let answer = app
        .post(&format!("/runs/{}/cancel", run.run_id), &json!({}))
        .await;
    assert!(answer.status().is_success());
    let id = run.run_id.clone();
    assert_eq!(run.rest().await.last().unwrap()["code"], "CANCELLED");
    llm.connection_closed(1).await;
    left(&e2b, &others).await;
    end_of(&app, &id).await;
}

#[tokio::test]
async fn nothing_is_left_after_a_client_has_gone() {
    let e2b = FakeE2b::start().await;
    let others = others(&e2b);
    let (llm, held) = talkative("echo hi").await;
    let app = application(&e2b, &llm)
        .file(json!({"disconnectGraceSecs": 0}))
        .start()
        .await;
    let mut run = app.query(ask("hi")).await;
    run.until("tool_result").await;
    held.reached().await;
    let id = run.run_id.clone();
    drop(run);
    llm.connection_closed(1).await;
    left(&e2b, &others).await;
    assert_eq!(end_of(&app, &id).await["errorCode"], "CLIENT_GONE");
}

#[tokio::test]
async fn nothing_is_left_after_a_command_was_cancelled_in_the_middle() {
    let e2b = FakeE2b::start().await;
    let others = others(&e2b);
    let llm = FakeLlm::start([calls("echo begun; sleep 600")]).await;
    let app = application(&e2b, &llm).start().await;
    let mut run = app.query(ask("hi")).await;
    run.until("tool_use").await;
    while e2b.processes_left() == 0 {
        tokio::task::yield_now().await;
    }
    app.post(&format!("/runs/{}/cancel", run.run_id), &json!({}))
        .await;
    assert_eq!(run.rest().await.last().unwrap()["code"], "CANCELLED");
    left(&e2b, &others).await;
}

#[tokio::test]
async fn nothing_is_left_after_the_server_was_stopped() {
    let e2b = FakeE2b::start().await;
    let others = others(&e2b);
    let (llm, held) = talkative("echo hi").await;
    let app = application(&e2b, &llm).start().await;
    let mut run = app.query(ask("hi")).await;
    run.until("tool_result").await;
    held.reached().await;
    let reading = async { run.rest().await };
    let (events, _dir) = tokio::join!(reading, app.stop());
    assert_eq!(events.last().unwrap()["code"], "SERVER_SHUTDOWN");
    left(&e2b, &others).await;
}

#[tokio::test]
async fn a_sandbox_that_dies_under_a_command_ends_the_run_truthfully() {
    let e2b = FakeE2b::start().await;
    let llm = FakeLlm::start([calls("echo begun; sleep 600")]).await;
    let app = application(&e2b, &llm).start().await;
    let mut run = app.query(ask("hi")).await;
    run.until("tool_use").await;
    while e2b.processes_left() == 0 {
        tokio::task::yield_now().await;
    }
    let sandbox = e2b.sandboxes().pop().unwrap().id;
    assert!(e2b.die(&sandbox, Death::Reset, "timeout").await);
    let events = run.rest().await;
    let end = events.last().unwrap();
    assert_eq!(end["code"], "SANDBOX_LOST", "{end}");
    assert!(end["hint"].is_string());
    left(&e2b, &[]).await;
}

#[tokio::test]
async fn a_kill_that_fails_twice_is_repeated_until_the_sandbox_is_gone() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Delete).first(2).respond(500);
    let llm = FakeLlm::start([calls("echo hi"), Reply::says("Hi.")]).await;
    let app = application(&e2b, &llm).start().await;
    let events = app.run(ask("hi")).await;
    assert_eq!(events.last().unwrap()["type"], "result");
    left(&e2b, &[]).await;
    assert!(e2b.calls(Route::Delete) >= 3);
}

#[tokio::test]
async fn a_sandbox_that_is_slow_to_go_holds_up_neither_the_end_nor_the_next_run() {
    let e2b = FakeE2b::start().await;
    let kill = e2b.on(Route::Delete).first(1).gate();
    let llm = FakeLlm::start([calls("echo hi"), Reply::says("Hi."), Reply::says("Four.")]).await;
    let app = application(&e2b, &llm)
        .tune(|config| config.server.max_concurrent_runs = 1)
        .start()
        .await;
    let run = app.query(ask("hi")).await;
    let id = run.run_id.clone();
    assert_eq!(run.rest().await.last().unwrap()["content"], "Hi.");
    kill.reached().await;
    let record = app.ended(&id).await;
    assert_eq!(record["sandboxes"][0]["destroyed"], false, "{record}");
    // It has no place any more: the next run is not refused.
    let next = app
        .run(json!({"prompt": "2 + 2?", "allowedTools": []}))
        .await;
    assert_eq!(next.last().unwrap()["content"], "Four.");
    kill.open();
    end_of(&app, &id).await;
    left(&e2b, &[]).await;
    app.stop().await;
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_makes_no_second_sandbox() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create).nth(1).drop_after_send();
    let llm = FakeLlm::start([calls("echo hi"), Reply::says("Hi.")]).await;
    let app = application(&e2b, &llm).start().await;
    let events = app.run(ask("hi")).await;
    assert_eq!(events.last().unwrap()["content"], "Hi.");
    assert_eq!(e2b.created(), 1);
    left(&e2b, &[]).await;
}

#[tokio::test]
async fn output_that_a_broken_stream_lost_is_read_from_the_sandbox() {
    for command in [
        // Half of the output's frame is sent; the command's end is told by the stream that joins it.
        "echo on; sleep 0.3; echo ly-this-one; exit 3",
        // The command ends behind the broken stream.
        "printf on; printf 'ly-this-one\\n'; exit 3",
    ] {
        let e2b = FakeE2b::start().await;
        let cut = StreamFault::CutInFrame {
            after: 1,
            ending: Ending::Reset,
        };
        e2b.on(Route::Start)
            .matching(|seen| seen.json().to_string().contains("ly-this-one"))
            .stream(cut);
        let llm = FakeLlm::start([calls(command), Reply::says("Hi.")]).await;
        let app = application(&e2b, &llm).start().await;
        let events = app.run(ask("hi")).await;
        let result = of_kind(&events, "tool_result")[0];
        let told = result["content"].as_str().unwrap();
        assert!(
            told.starts_with("on") && told.contains("ly-this-one\n"),
            "{result}"
        );
        assert!(!told.contains("missing"), "{result}");
        assert_eq!(result["exitCode"], 3, "{result}");
        assert_eq!(events.last().unwrap()["content"], "Hi.");
        let starts = e2b.requests_of(Route::Start);
        let same = |seen: &&Seen| seen.json().to_string().contains("ly-this-one");
        assert_eq!(starts.iter().filter(same).count(), 1, "a command ran twice");
        left(&e2b, &[]).await;
    }
}

#[tokio::test]
async fn output_that_is_lost_for_good_is_told_to_the_model() {
    let e2b = FakeE2b::start().await;
    let cut = StreamFault::CutInFrame {
        after: 1,
        ending: Ending::Reset,
    };
    e2b.on(Route::Start)
        .matching(|seen| seen.json().to_string().contains("ly-this-one"))
        .stream(cut);
    // The command removes what the sandbox keeps of it.
    let command = "rm -rf /tmp/.sandcaster/out; echo on; sleep 0.3; echo ly-this-one; exit 3";
    let llm = FakeLlm::start([calls(command), Reply::says("Hi.")]).await;
    let app = application(&e2b, &llm).start().await;
    let events = app.run(ask("hi")).await;
    let result = of_kind(&events, "tool_result")[0];
    let told = result["content"].as_str().unwrap();
    assert!(told.contains("some output is missing"), "{result}");
    assert_ne!(result["exitCode"], 0, "{result}");
    assert_eq!(events.last().unwrap()["content"], "Hi.");
}
