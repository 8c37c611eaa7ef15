//! What E2B reports by its webhook, and what follows for a live run.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::process::command;
use super::{application, left, talkative};
use crate::support::app::{EventStream, TestApp, ask, warnings};
use crate::support::fake_e2b::{Death, FakeE2b, Route, Spelling};
use crate::support::fake_llm::{FakeLlm, Gate};
use crate::support::http;

const SECRET: &str = "whsec_sandcaster_test_0123456789";

/// A run in the middle of its second answer: nothing but a webhook tells it soon of its sandbox's death.
struct Held {
    e2b: FakeE2b,
    llm: FakeLlm,
    gate: Gate,
    app: TestApp,
    run: EventStream,
    sandbox: String,
}

async fn held(secret: Option<&str>) -> Held {
    let e2b = FakeE2b::start().await;
    let (llm, gate) = talkative("echo hi").await;
    let mut builder = application(&e2b, &llm);
    if let Some(secret) = secret {
        builder = builder.env("SANDCASTER_WEBHOOK_SECRET", secret);
    }
    let app = builder.start().await;
    let mut run = app.query(ask("hi")).await;
    run.until("tool_result").await;
    gate.reached().await;
    let sandbox = e2b.sandboxes()[0].id.clone();
    Held {
        e2b,
        llm,
        gate,
        app,
        run,
        sandbox,
    }
}

impl Held {
    async fn deliver(&self, event: &Value) {
        let url = self.app.url("/webhooks/e2b");
        let body = event.to_string();
        let sent = self.e2b.send_webhook(&url, SECRET, &body).await;
        assert_eq!(sent, Some(200));
    }

    async fn hint(&self, event: &Value) {
        let sent = http()
            .post(self.app.url("/webhooks/e2b"))
            .body(event.to_string());
        assert_eq!(sent.send().await.unwrap().status(), 200);
    }

    fn event(&self, kind: &str, data: &Value) -> Value {
        self.e2b.event(&self.sandbox, kind, data)
    }

    /// Reads on to the end, which the gate held up.
    async fn go_on(self) -> (FakeE2b, TestApp, Vec<Value>) {
        self.gate.open();
        let events = self.run.rest().await;
        (self.e2b, self.app, events)
    }
}

async fn deliveries(app: &TestApp, run: &str) -> Vec<Value> {
    let record = app.json(&format!("/runs/{run}")).await;
    record["webhooks"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_death_that_e2b_reports_ends_the_run_at_once_with_its_reason() {
    for spelling in [Spelling::Snake, Spelling::Camel] {
        let mut held = held(Some(SECRET)).await;
        held.e2b.set_spelling(spelling);
        // By the command line, as an operator does it.
        let mut env = held.e2b.env();
        env.push(("SANDCASTER_WEBHOOK_SECRET", SECRET.to_owned()));
        let server = held.app.url("/");
        let said = command(held.app.dir(), &["webhook", "register", &server], &env).await;
        assert!(said.status.success(), "{said:?}");
        assert!(!format!("{said:?}").contains(SECRET));

        let died = Instant::now();
        assert!(held.e2b.die(&held.sandbox, Death::Reset, "timeout").await);
        let end = held.run.until("error").await;
        let took = died.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(end["code"], "SANDBOX_LOST");
        let message = end["message"].as_str().unwrap();
        assert!(message.contains("e2b ended it (timeout)"), "{message}");
        held.llm.connection_closed(1).await;
        assert_eq!(held.e2b.calls(Route::Get), 1, "E2B was asked, once");
        let told = deliveries(&held.app, &held.run.run_id).await;
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0]["type"], "sandbox.lifecycle.killed");
        assert_eq!(told[0]["killReason"], "timeout");
        assert_eq!(told[0]["signed"], true);
        left(&held.e2b, &[]).await;
    }
}

#[tokio::test]
async fn a_report_of_a_sandbox_that_lives_has_no_effect() {
    let held = held(Some(SECRET)).await;
    let asked = held.e2b.on(Route::Get);
    held.deliver(&held.event("killed", &json!({"kill_reason": "request"})))
        .await;
    asked.reached().await;
    let run = held.run.run_id.clone();
    let (_e2b, app, events) = held.go_on().await;
    assert_eq!(events.last().unwrap()["content"], "So it is.");
    assert_eq!(warnings(&events), [] as [&str; 0]);
    assert_eq!(deliveries(&app, &run).await.len(), 1);
}

#[tokio::test]
async fn where_e2b_can_not_be_asked_a_signed_report_ends_the_run() {
    let mut held = held(Some(SECRET)).await;
    held.e2b.on(Route::Get).always().respond(503);
    held.deliver(&held.event("killed", &json!({"kill_reason": "admin"})))
        .await;
    let end = held.run.until("error").await;
    assert_eq!(end["code"], "SANDBOX_LOST");
    let message = end["message"].as_str().unwrap();
    assert!(
        message.contains("(admin)") && message.contains("can't be asked"),
        "{message}"
    );
    // It was alive after all: it is destroyed like any other.
    left(&held.e2b, &[]).await;
}

#[tokio::test]
async fn a_hint_without_a_signature_only_makes_us_ask() {
    // Nobody answers: the run goes on.
    let held1 = held(None).await;
    let asked = held1.e2b.on(Route::Get).always().respond(401);
    held1
        .hint(&held1.event("killed", &json!({"kill_reason": "admin"})))
        .await;
    // Anybody could say this.
    held1.hint(&held1.event("paused", &json!({}))).await;
    asked.reached().await;
    let (_e2b, _app, events) = held1.go_on().await;
    assert_eq!(events.last().unwrap()["content"], "So it is.");
    assert_eq!(warnings(&events), [] as [&str; 0]);

    // E2B says that it is gone: that is what counts.
    let mut held2 = held(None).await;
    assert!(held2.e2b.die(&held2.sandbox, Death::Reset, "timeout").await);
    held2.hint(&held2.event("killed", &json!({}))).await;
    assert_eq!(held2.run.until("error").await["code"], "SANDBOX_LOST");
}

#[tokio::test]
async fn other_events_become_warnings_of_the_run_once() {
    let held = held(Some(SECRET)).await;
    let paused = held.event("paused", &json!({}));
    held.deliver(&paused).await;
    held.deliver(&paused).await;
    let mut quota = held.event("quota", &json!({}));
    quota["type"] = json!("team.quota.warning");
    held.deliver(&quota).await;
    // Its own creation is no news to the run.
    held.deliver(&held.event("created", &json!({}))).await;
    let mut old = held.event("checkpointed", &json!({}));
    old["timestamp"] = json!("2020-01-01T00:00:00Z");
    held.deliver(&old).await;
    let mut strange = held.event("paused", &json!({}));
    strange["sandbox_id"] = json!("ianothersandbox00000");
    held.deliver(&strange).await;
    let mut foreign = held.event("killed", &json!({}));
    foreign["sandbox_id"] = json!("ianothersandbox00000");
    foreign["event_data"]["sandbox_metadata"] = json!({"sandcaster-run": held.run.run_id});
    held.deliver(&foreign).await;

    let (id, sandbox) = (held.run.run_id.clone(), held.sandbox.clone());
    let mut held = held;
    let mut told = Vec::new();
    while told.len() < 2 {
        let warning = held.run.until("warning").await;
        assert_eq!(warning["code"], "SANDBOX_EVENT");
        assert_eq!(warning["sandboxId"], sandbox.as_str());
        assert!(
            warning["message"]
                .as_str()
                .unwrap()
                .starts_with("e2b reports ")
        );
        told.push(warning["event"].as_str().unwrap().to_owned());
    }
    told.sort();
    assert_eq!(told, ["sandbox.lifecycle.paused", "team.quota.warning"]);
    let (e2b, app, events) = held.go_on().await;
    assert_eq!(warnings(&events), [] as [&str; 0]);
    assert_eq!(events.last().unwrap()["content"], "So it is.");
    assert_eq!(e2b.calls(Route::Get), 0, "not about a sandbox of ours");
    let mut kinds: Vec<String> = deliveries(&app, &id)
        .await
        .iter()
        .map(|told| told["type"].as_str().unwrap().to_owned())
        .collect();
    kinds.sort();
    assert_eq!(
        kinds,
        [
            "sandbox.lifecycle.checkpointed",
            "sandbox.lifecycle.created",
            "sandbox.lifecycle.killed",
            "sandbox.lifecycle.paused",
            "team.quota.warning",
        ]
    );
    // A report after the end finds nothing to do.
    let url = app.url("/webhooks/e2b");
    let late = e2b.event(&sandbox, "killed", &json!({"kill_reason": "request"}));
    let sent = e2b.send_webhook(&url, SECRET, &late.to_string()).await;
    assert_eq!(sent, Some(200));
    assert_eq!(deliveries(&app, &id).await.len(), 6);
    assert_eq!(e2b.calls(Route::Get), 0);
}

#[tokio::test]
async fn the_command_line_registers_once_lists_and_deletes() {
    let e2b = FakeE2b::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut env = e2b.env();
    let url = "https://agents.example.com";
    let missing = command(dir.path(), &["webhook", "register", url], &env).await;
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("SANDCASTER_WEBHOOK_SECRET"));
    env.push(("SANDCASTER_WEBHOOK_SECRET", SECRET.to_owned()));

    let empty = command(dir.path(), &["webhook", "list"], &env).await;
    assert_eq!(text(&empty.stdout), "no webhooks\n");
    for (verb, body) in [("registered", "POST"), ("updated", "PATCH")] {
        let done = command(dir.path(), &["webhook", "register", url], &env).await;
        assert!(done.status.success(), "{done:?}");
        assert!(text(&done.stdout).starts_with(verb), "{done:?}");
        assert!(!format!("{done:?}").contains(SECRET));
        let sent = e2b.requests_of(Route::Webhooks).pop().unwrap();
        assert_eq!(sent.method, body);
        let sent = sent.json();
        assert_eq!(sent["url"], "https://agents.example.com/webhooks/e2b");
        assert_eq!(sent["signatureSecret"], SECRET);
        assert_eq!(sent["events"][0], "sandbox.lifecycle.killed");
    }
    let listed = text(&command(dir.path(), &["webhook", "list"], &env).await.stdout);
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(listed.contains("https://agents.example.com/webhooks/e2b: sandbox.lifecycle.killed"));
    let id = listed.split(' ').next().unwrap();
    let gone = command(dir.path(), &["webhook", "delete", id], &env).await;
    assert_eq!(text(&gone.stdout), format!("deleted {id}\n"));
    let again = command(dir.path(), &["webhook", "delete", id], &env).await;
    assert_eq!(again.status.code(), Some(1));

    e2b.on(Route::Webhooks).respond(401);
    let refused = command(dir.path(), &["webhook", "list"], &env).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("E2B_API_KEY"), "{refused:?}");
    let keyless = command(dir.path(), &["webhook", "list"], &[]).await;
    assert_eq!(keyless.status.code(), Some(2));
    assert!(text(&keyless.stderr).contains("E2B_API_KEY"));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
