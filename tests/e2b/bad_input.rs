//! Keys, templates and limits that don't fit: refused before the stream where that can be known, else the
//! run's truthful end.

use serde_json::{Value, json};

use super::{application, calls, end_of, left};
use crate::support::app::{TestApp, ask, of_kind, warnings};
use crate::support::fake_e2b::{FakeE2b, Reply as E2bReply, Route, StreamFault};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};

/// An LLM that would talk for ever: only the sandbox's failure ends the run.
async fn endless() -> (FakeLlm, Gate) {
    let gate = Gate::new();
    (
        FakeLlm::start([Reply::new().text("Well, ").wait(&gate)]).await,
        gate,
    )
}

/// The end of a run that its sandbox's failure ends while the LLM still talks.
async fn end_with(e2b: &FakeE2b, env: &[(&str, &str)]) -> Value {
    let (llm, _gate) = endless().await;
    let builder = application(e2b, &llm);
    let builder = env
        .iter()
        .fold(builder, |builder, (name, value)| builder.env(name, value));
    let app = builder.start().await;
    let events = app.run(ask("hi")).await;
    let end = events.last().unwrap().clone();
    assert_eq!(end["type"], "error", "{end}");
    // A request may not have reached the LLM at all before the end.
    llm.take_unused();
    left(e2b, &[]).await;
    app.stop().await;
    end
}

#[tokio::test]
async fn a_missing_key_is_refused_with_the_variables_name() {
    let llm = FakeLlm::start([]).await;
    let app = TestApp::with_llm(&llm).await;
    let request = json!({"prompt": "hi", "model": "sonnet", "sandboxProvider": "e2b"});
    let refused = app.post("/query", &request).await;
    assert_eq!(refused.status(), 400);
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["code"], "PROVIDER_AUTH_MISSING");
    assert_eq!(body["field"], "sandboxProvider");
    assert!(body["hint"].as_str().unwrap().contains("E2B_API_KEY"));
}

#[tokio::test]
async fn a_wrong_key_ends_the_run_with_what_to_set() {
    let e2b = FakeE2b::start().await;
    // The reaper's question is refused as well.
    e2b.allow_refusals();
    let wrong = "e2b_1111111111111111111111111111111111111111";
    let end = end_with(&e2b, &[("E2B_API_KEY", wrong)]).await;
    assert_eq!(end["code"], "PROVIDER_AUTH_MISSING");
    assert!(end["hint"].as_str().unwrap().contains("E2B_API_KEY"));
    assert!(!end.to_string().contains(wrong));
}

#[tokio::test]
async fn a_malformed_template_is_refused_before_the_stream() {
    let e2b = FakeE2b::start().await;
    let llm = FakeLlm::start([]).await;
    for template in ["two words", "base;rm", "bäse", "a?b"] {
        let app = application(&e2b, &llm)
            .file(json!({"template": template}))
            .start()
            .await;
        let refused = app.post("/query", &ask("hi")).await;
        assert_eq!(refused.status(), 400, "{template}");
        let body: Value = refused.json().await.unwrap();
        assert_eq!(body["code"], "INVALID_TEMPLATE_FOR_PROVIDER", "{template}");
        let hint = body["hint"].as_str().unwrap();
        assert!(hint.contains("SANDCASTER_TEMPLATE"), "{hint}");
    }
    assert_eq!(e2b.calls(Route::Create), 0);
}

#[tokio::test]
async fn an_unknown_template_is_the_runs_end() {
    let e2b = FakeE2b::start().await;
    let end = end_with(&e2b, &[("SANDCASTER_TEMPLATE", "no-such-one")]).await;
    assert_eq!(end["code"], "TEMPLATE_NOT_FOUND");
    let message = end["message"].as_str().unwrap();
    assert!(
        message.contains("no-such-one") && message.contains("base"),
        "{message}"
    );
    e2b.expect_refusal("template");
    assert_eq!(e2b.created(), 0);
}

#[tokio::test]
async fn the_template_comes_from_the_environment_else_the_file_else_it_is_base() {
    let e2b = FakeE2b::start().await;
    e2b.add_template("of-the-file");
    e2b.add_template("team/of-the-environment:v2");
    for (file, variable, expected) in [
        (None, None, "base"),
        (Some("of-the-file"), None, "of-the-file"),
        (
            Some("of-the-file"),
            Some("team/of-the-environment:v2"),
            "team/of-the-environment:v2",
        ),
    ] {
        let llm = FakeLlm::start([calls("true"), Reply::says("Hi.")]).await;
        let mut builder = application(&e2b, &llm);
        if let Some(name) = file {
            builder = builder.file(json!({"template": name}));
        }
        if let Some(name) = variable {
            builder = builder.env("SANDCASTER_TEMPLATE", name);
        }
        let app = builder.start().await;
        let events = app.run(ask("hi")).await;
        assert_eq!(events.last().unwrap()["type"], "result", "{expected}");
        let asked = e2b.requests_of(Route::Create).pop().unwrap().json();
        assert_eq!(asked["templateID"], expected);
    }
}

#[tokio::test]
async fn a_template_without_a_shell_is_named_as_such() {
    let e2b = FakeE2b::start().await;
    let why = "error starting process 'sh': fork/exec /bin/sh: no such file or directory";
    e2b.on(Route::Start).always().stream(StreamFault::EndFrame {
        after: 0,
        message: json!({"error": {"code": "invalid_argument", "message": why}}),
    });
    let end = end_with(&e2b, &[]).await;
    assert_eq!(end["code"], "TEMPLATE_INCOMPATIBLE", "{end}");
    let message = end["message"].as_str().unwrap();
    assert!(
        message.contains("no POSIX shell") && message.contains("/bin/sh"),
        "{message}"
    );
}

fn at_capacity(retry_after: &str) -> E2bReply {
    let message = "you have reached the maximum number of concurrent E2B sandboxes (20)";
    E2bReply::json(429, &json!({"code": 429, "message": message}))
        .header("Retry-After", retry_after)
}

#[tokio::test]
async fn at_the_accounts_limit_the_run_waits_for_a_place_and_goes_on() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create).first(2).respond(at_capacity("1"));
    let llm = FakeLlm::start([calls("echo hi"), Reply::says("Hi.")]).await;
    let app = application(&e2b, &llm).start().await;
    let run = app.query(ask("hi")).await;
    let id = run.run_id.clone();
    let events = run.rest().await;
    assert_eq!(events.last().unwrap()["content"], "Hi.");
    assert_eq!(warnings(&events), ["SANDBOX_WAIT"], "one for a wait");
    let said = of_kind(&events, "warning")[0]["message"].as_str().unwrap();
    assert!(said.contains("maximum number of concurrent"), "{said}");
    // Nothing was made by what was refused.
    let record = end_of(&app, &id).await;
    let attempts = record["sandboxes"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{record}");
    assert_eq!(e2b.created(), 1);
    left(&e2b, &[]).await;
}

#[tokio::test]
async fn a_place_that_would_come_too_late_ends_the_run() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create).always().respond(at_capacity("900"));
    let end = end_with(&e2b, &[]).await;
    assert_eq!(end["code"], "RATE_LIMIT");
    assert_eq!(end["retryable"], true);
    assert!(end["hint"].is_string());
}

#[tokio::test]
async fn throttled_creation_is_tried_again_and_failing_creation_is_told() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create)
        .first(2)
        .respond(E2bReply::from(429).header("Retry-After", "0"));
    let llm = FakeLlm::start([calls("echo hi"), Reply::says("Hi.")]).await;
    let app = application(&e2b, &llm).start().await;
    let events = app.run(ask("hi")).await;
    assert_eq!(events.last().unwrap()["content"], "Hi.");
    assert_eq!(e2b.created(), 1);
    app.stop().await;

    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create).always().respond(500);
    let end = end_with(&e2b, &[]).await;
    assert_eq!(end["code"], "SANDBOX_ERROR");
    assert!(end["message"].as_str().unwrap().contains("E2B"), "{end}");
}

#[tokio::test]
async fn a_plan_with_shorter_lives_gets_the_longest_that_it_allows() {
    let e2b = FakeE2b::start().await;
    let message = "Timeout cannot be greater than 1 hours";
    e2b.on(Route::Create).respond(E2bReply::json(
        400,
        &json!({"code": 400, "message": message}),
    ));
    let llm = FakeLlm::start([calls("echo hi"), Reply::says("Hi.")]).await;
    let app = application(&e2b, &llm).start().await;
    let events = app.run(ask("hi")).await;
    assert_eq!(events.last().unwrap()["content"], "Hi.");
    let asked = e2b.requests_of(Route::Create);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].json()["timeout"], 3600);
}
