//! Whole runs through the real API, with a scripted LLM and real sandboxes.

mod answers;
mod budget;
mod calls;
mod compaction;
mod faults;
mod files;
mod limits;
mod start;

use serde_json::{Value, json};

use crate::support::app::TestApp;
use crate::support::fake_llm::FakeLlm;

/// The arguments of a `bash` call.
fn bash(command: &str) -> Value {
    json!({ "command": command })
}

/// The last event.
fn end(events: &[Value]) -> &Value {
    events.last().unwrap()
}

/// Each run has one terminal event, its last, and no gap.
fn check_log(events: &[Value]) {
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["seq"], at + 1, "{event}");
        let terminal = matches!(event["type"].as_str(), Some("result" | "error"));
        assert_eq!(terminal, at + 1 == events.len(), "{event}");
    }
}

/// A whole run of `body`.
async fn run(llm: &FakeLlm, body: Value) -> Vec<Value> {
    let app = TestApp::with_llm(llm).await;
    let events = app.run(body).await;
    check_log(&events);
    app.stop().await;
    events
}
