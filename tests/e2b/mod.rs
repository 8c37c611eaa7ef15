//! Whole runs in sandboxes of E2B's stand-in, through the real API.

mod bad_input;
mod keys;
mod life;
mod process;
mod reaper;
mod start;
mod webhook;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::app::{PATIENCE, TestApp, TestAppBuilder, of_kind};
use crate::support::fake_e2b::FakeE2b;
use crate::support::fake_llm::{FakeLlm, Gate, Reply};

/// An application whose sandboxes are `e2b`'s and whose Anthropic is `llm`.
fn application(e2b: &FakeE2b, llm: &FakeLlm) -> TestAppBuilder {
    let builder = TestApp::builder().llm(llm);
    e2b.env()
        .into_iter()
        .fold(builder, |builder, (name, value)| builder.env(name, &value))
}

/// Asks for one command.
fn calls(command: &str) -> Reply {
    Reply::new().call("bash", &json!({ "command": command }))
}

/// A turn with a command, and one that waits in the middle of its text until the gate is opened.
async fn talkative(command: &str) -> (FakeLlm, Gate) {
    let gate = Gate::new();
    let held = Reply::new().text("So ").wait(&gate).text("it is.");
    (FakeLlm::start([calls(command), held]).await, gate)
}

fn ids(e2b: &FakeE2b) -> Vec<String> {
    let mut ids: Vec<String> = e2b.sandboxes().into_iter().map(|view| view.id).collect();
    ids.sort();
    ids
}

/// Waits until just these sandboxes are left, and no process.
async fn left(e2b: &FakeE2b, others: &[String]) {
    let mut others = others.to_vec();
    others.sort();
    let until = Instant::now() + PATIENCE;
    while ids(e2b) != others || e2b.processes_left() > 0 {
        assert!(Instant::now() < until, "{:?} and not {others:?}", ids(e2b));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sandboxes of the account that are none of ours.
fn others(e2b: &FakeE2b) -> Vec<String> {
    let run = "run_0123456789abcdef0123456789abcdef";
    vec![
        e2b.add_sandbox(&[]),
        e2b.add_sandbox(&[("sandcaster-run", run)]),
        e2b.add_sandbox(&[
            ("sandcaster-instance", "another-store"),
            ("sandcaster-run", run),
        ]),
    ]
}

/// The id in `Sandbox created`.
fn sandbox_id(events: &[Value]) -> String {
    let created = of_kind(events, "system")
        .into_iter()
        .find(|event| event["message"] == "Sandbox created")
        .expect("a sandbox was created");
    created["sandboxId"].as_str().unwrap().to_owned()
}

/// The run's record once it says that its last sandbox is gone.
async fn end_of(app: &TestApp, run: &str) -> Value {
    let recorded = async {
        loop {
            let record = app.ended(run).await;
            if record["sandboxes"].as_array().unwrap().last().unwrap()["destroyed"] == true {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, recorded).await.unwrap()
}
