//! Runs as JSON (API reference, GET /runs). What is unknown is absent, never null.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};

use crate::clock::rfc3339_seconds;
use crate::ids::RunId;
use crate::spec::NanoUsd;
use crate::store::{FileRecord, RunEnd, RunFacts, RunRecord, SandboxRecord, WebhookDelivery};

const X_RUN_ID: HeaderName = HeaderName::from_static("x-run-id");

/// A run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunView {
    id: String,
    prompt: String,
    model: String,
    status: &'static str,
    status_detail: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_complete: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_turns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_secs: Option<f64>,
    started_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
    files_count: u64,
    provider: String,
    sandbox_provider: String,
    background: bool,
}

impl RunView {
    pub(super) fn new(record: RunRecord) -> Self {
        let state = record.state();
        let RunRecord {
            facts,
            last_seq: _,
            files_count,
            end,
        } = record;
        let RunFacts {
            id,
            prompt,
            model,
            provider,
            sandbox_provider,
            background,
            started_at,
        } = facts;
        let mut view = Self {
            id: id.to_string(),
            prompt,
            model,
            status: state.status(),
            status_detail: state.as_str(),
            cost_usd: None,
            input_tokens: None,
            output_tokens: None,
            usage_complete: None,
            num_turns: None,
            duration_secs: None,
            started_at: rfc3339_seconds(started_at),
            completed_at: None,
            error: None,
            error_code: None,
            files_count,
            provider,
            sandbox_provider,
            background,
        };
        if let Some(end) = end {
            view.end(end);
        }
        view
    }

    fn end(&mut self, end: RunEnd) {
        let RunEnd {
            state: _,
            completed_at,
            error,
            cost_nanos,
            usage,
            num_turns,
            duration_secs,
        } = end;
        self.completed_at = Some(rfc3339_seconds(completed_at));
        if let Some((code, message)) = error {
            self.error_code = Some(code.as_str());
            self.error = Some(message);
        }
        self.cost_usd = cost_nanos.map(|nanos| NanoUsd(nanos).to_usd());
        if let Some(usage) = usage {
            self.input_tokens = Some(usage.input_tokens);
            self.output_tokens = Some(usage.output_tokens);
            // As in events: said where it is not so.
            self.usage_complete = (!usage.complete).then_some(false);
        }
        self.num_turns = Some(num_turns);
        self.duration_secs = Some(duration_secs);
    }
}

/// A run with what belongs to it: `GET /runs/{id}`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunDetail {
    #[serde(flatten)]
    run: RunView,
    last_seq: u64,
    events_url: String,
    files: Vec<Value>,
    sandboxes: Vec<Value>,
    webhooks: Vec<Value>,
}

impl RunDetail {
    pub(super) fn new(
        record: RunRecord,
        files: Vec<FileRecord>,
        sandboxes: Vec<SandboxRecord>,
        webhooks: Vec<WebhookDelivery>,
    ) -> Self {
        let id = record.facts.id.clone();
        Self {
            last_seq: record.last_seq.0,
            events_url: events_url(&id),
            files: files.into_iter().map(|file| file_view(&id, file)).collect(),
            sandboxes: sandboxes.into_iter().map(sandbox_view).collect(),
            webhooks: webhooks.into_iter().map(webhook_view).collect(),
            run: RunView::new(record),
        }
    }
}

fn file_view(run: &RunId, file: FileRecord) -> Value {
    let FileRecord {
        path,
        mime_type,
        size,
        sha256,
    } = file;
    let url = run.file_url(&path);
    json!({ "path": path, "mimeType": mime_type, "size": size, "sha256": sha256, "url": url })
}

fn sandbox_view(sandbox: SandboxRecord) -> Value {
    let SandboxRecord {
        backend,
        attempt,
        sandbox_id,
        expires: _,
        destroyed,
    } = sandbox;
    let mut view = json!({ "backend": backend, "attempt": attempt, "destroyed": destroyed });
    put(&mut view, "id", sandbox_id);
    view
}

fn webhook_view(delivery: WebhookDelivery) -> Value {
    let WebhookDelivery {
        event_id,
        event_type,
        sandbox_id,
        run: _,
        signed,
        received_at,
        kill_reason,
    } = delivery;
    let mut view = json!({
        "id": event_id,
        "type": event_type,
        "signed": signed,
        "receivedAt": rfc3339_seconds(received_at),
    });
    put(&mut view, "sandboxId", sandbox_id);
    put(&mut view, "killReason", kill_reason);
    view
}

fn put(view: &mut Value, name: &str, value: Option<String>) {
    if let (Some(map), Some(value)) = (view.as_object_mut(), value) {
        map.insert(name.to_owned(), value.into());
    }
}

/// Names the run that a response is about in its headers.
pub(super) fn about(response: &mut Response, run: &RunId) {
    if let Ok(id) = HeaderValue::from_str(run.as_str()) {
        response.headers_mut().insert(X_RUN_ID, id);
    }
}

/// The path of a run's events.
pub(super) fn events_url(run: &RunId) -> String {
    format!("/runs/{run}/events")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_urls_keep_slashes_and_encode_the_rest() {
        let run = RunId::parse("run_0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(
            run.file_url("out dir/é?#%.txt"),
            "/runs/run_0123456789abcdef0123456789abcdef/files/out%20dir/%C3%A9%3F%23%25.txt"
        );
    }
}
