//! What goes wrong at the LLM: waited out while nothing was shown, else told truthfully.

use serde_json::json;

use super::{bash, end, run};
use crate::support::app::{TestApp, ask, kinds, of_kind, text, warnings};
use crate::support::fake_llm::{FakeLlm, Reply};

#[tokio::test]
async fn faults_before_the_first_delta_are_waited_out_and_warned_of() {
    let llm = FakeLlm::start([
        Reply::hang_up(),
        Reply::new().cut(),
        Reply::new().breaks("overloaded_error", "Overloaded"),
        Reply::says("Done."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(warnings(&events), ["LLM_RETRY"; 3]);
    let retries = of_kind(&events, "warning");
    let causes: Vec<_> = retries.iter().map(|event| event["cause"].clone()).collect();
    assert_eq!(
        causes,
        ["LLM_STREAM_CUT", "LLM_STREAM_CUT", "LLM_OVERLOADED"]
    );
    let attempts: Vec<_> = retries
        .iter()
        .map(|event| event["attempt"].clone())
        .collect();
    assert_eq!(attempts, [1, 2, 3]);
    assert_eq!(text(&events), "Done.");
    assert_eq!(end(&events)["content"], "Done.");
}

#[tokio::test]
async fn calls_of_an_answer_that_broke_off_were_seen_by_nobody_and_are_asked_for_again() {
    let two = || {
        Reply::new()
            .call("bash", &bash("echo no > no"))
            .call_so_far("bash", "{\"comm")
    };
    for broken in [
        two().cut(),
        two().reset(),
        Reply::new()
            .call("bash", &bash("echo no > no"))
            .ends_early(),
    ] {
        let llm = FakeLlm::start([broken, Reply::says("Done.")]).await;
        let events = run(&llm, ask("hi")).await;
        assert_eq!(warnings(&events), ["LLM_RETRY"]);
        assert_eq!(end(&events)["content"], "Done.");
        assert!(of_kind(&events, "tool_use").is_empty());
        assert!(of_kind(&events, "file").is_empty());
    }
}

#[tokio::test]
async fn the_providers_own_wish_for_a_pause_is_a_minimum() {
    let llm = FakeLlm::start([
        Reply::error(429, "rate_limit_error", "slow down").header("retry-after", "1"),
        Reply::says("Done."),
    ])
    .await;
    let begun = tokio::time::Instant::now();
    let events = run(&llm, ask("hi")).await;
    assert!(begun.elapsed().as_millis() >= 1000);
    let warning = of_kind(&events, "warning")[0];
    assert_eq!(warning["cause"], "LLM_RATE_LIMITED");
    let delay = warning["delaySecs"].as_f64().unwrap();
    assert!((1.0..=1.1).contains(&delay), "{delay}");
}

#[tokio::test]
async fn a_pause_longer_than_the_run_may_wait_ends_it_at_once() {
    let llm = FakeLlm::start([
        Reply::error(429, "rate_limit_error", "slow down").header("retry-after", "3600")
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    let error = end(&events);
    assert_eq!(
        (
            &error["code"],
            &error["retryable"],
            &error["retryAfterSecs"]
        ),
        (&json!("LLM_RATE_LIMITED"), &json!(true), &json!(3600))
    );
    assert!(warnings(&events).is_empty());
}

#[tokio::test]
async fn after_three_retries_the_provider_is_given_up() {
    let down = || Reply::error(529, "overloaded_error", "Overloaded").header("retry-after-ms", "1");
    let llm = FakeLlm::start([down(), down(), down(), down()]).await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(warnings(&events), ["LLM_RETRY"; 3]);
    let error = end(&events);
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("LLM_OVERLOADED"), &json!(true))
    );
}

#[tokio::test]
async fn an_answer_cut_after_its_first_delta_ends_the_run_and_runs_no_tool() {
    for reply in [
        Reply::new().text("Let me").cut(),
        Reply::new().text("Let me").reset(),
        Reply::new()
            .text("Let me")
            .call("bash", &bash("echo no > no"))
            .cut(),
        Reply::new()
            .text("Let me")
            .call_so_far("bash", "{\"comm")
            .cut(),
    ] {
        let llm = FakeLlm::start([reply]).await;
        let events = run(&llm, ask("hi")).await;
        let error = end(&events);
        assert_eq!(
            (&error["code"], &error["retryable"]),
            (&json!("LLM_STREAM_CUT"), &json!(true))
        );
        assert_eq!(error["usageComplete"], false);
        assert!(of_kind(&events, "tool_use").is_empty());
        assert!(of_kind(&events, "file").is_empty());
        assert!(warnings(&events).is_empty());
        assert_eq!(llm.requests().len(), 1);
    }
}

#[tokio::test]
async fn an_error_within_a_stream_that_was_shown_keeps_its_own_code() {
    let llm = FakeLlm::start([Reply::new().text("Let me").breaks("api_error", "Internal")]).await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(end(&events)["code"], "LLM_UNAVAILABLE");
    assert_eq!(text(&events), "Let me");
}

#[tokio::test]
async fn refusals_of_the_provider_have_their_code_and_say_what_to_do() {
    for (status, kind, message, code, hint) in [
        (
            401,
            "authentication_error",
            "invalid x-api-key",
            "LLM_AUTH",
            "key",
        ),
        (403, "permission_error", "not allowed", "LLM_AUTH", "key"),
        (
            400,
            "invalid_request_error",
            "Your credit balance is too low",
            "LLM_BILLING",
            "credit",
        ),
        (402, "billing_error", "pay", "LLM_BILLING", "credit"),
        (
            404,
            "not_found_error",
            "model: claude-x",
            "LLM_MODEL_NOT_FOUND",
            "model",
        ),
        (
            400,
            "invalid_request_error",
            "max_tokens: no",
            "LLM_BAD_REQUEST",
            "message",
        ),
    ] {
        let llm = FakeLlm::start([Reply::error(status, kind, message)]).await;
        let events = run(&llm, ask("hi")).await;
        let error = end(&events);
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(error["retryable"], false, "{error}");
        assert!(
            error["message"].as_str().unwrap().contains(message),
            "{error}"
        );
        assert!(error["hint"].as_str().unwrap().contains(hint), "{error}");
        assert_eq!(kinds(&events).last(), Some(&"error"));
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_understood_may_be_asked_for_again_by_the_client() {
    let page = Reply::body(200, "text/html", b"<html>login</html>");
    let llm = FakeLlm::start([page]).await;
    let events = run(&llm, ask("hi")).await;
    let error = end(&events);
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("LLM_BAD_RESPONSE"), &json!(true))
    );
    assert!(error["message"].as_str().unwrap().contains("base URL"));
}

#[tokio::test]
async fn a_run_that_waits_to_ask_again_can_be_cancelled() {
    let slow = Reply::error(429, "rate_limit_error", "slow down").header("retry-after", "60");
    let llm = FakeLlm::start([slow]).await;
    let app = TestApp::with_llm(&llm).await;
    let mut stream = app.query(ask("hi")).await;
    assert_eq!(stream.until("warning").await["code"], "LLM_RETRY");
    app.cancel(&stream.run_id).await;
    assert_eq!(stream.until("error").await["code"], "CANCELLED");
    app.stop().await;
}
