//! `POST /query`: starts a run (API reference, POST /query) and streams it, waits for it
//! (`Accept: application/json`), or leaves it alone (`background: true`).

use std::pin::pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures::{Stream, StreamExt as _};
use serde_json::{Map, Value, json};

use super::ApiState;
use super::error::{internal, json, status_of_end};
use super::extract::{QUERY_LIMIT, Received, require_json, wants_json};
use super::params::Params;
use super::{sse, view};
use crate::config::QueryRequest;
use crate::error::{ErrorCode, Problem};
use crate::events::{EventType, StoredEvent};
use crate::ids::RunId;
use crate::runs::end_unknown;
use crate::spec::RunSpec;
use crate::store::StoreError;

/// Bodies from this size on are parsed on a thread of their own: base64 and JSON of many megabytes
/// would hold up every other task of this one.
const LARGE_BODY: usize = 128 << 10;

/// `POST /query`.
pub(super) async fn query(
    State(state): State<ApiState>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    // Before the body is read (AD-1).
    state.app.runs.admits()?;
    Params::none(&uri)?;
    if headers.contains_key("idempotency-key") {
        return Err(Problem::field(
            ErrorCode::NotImplemented,
            "Idempotency-Key",
            "the header Idempotency-Key is not supported yet",
        )
        .hint("send the request without it"));
    }
    require_json(&headers)?;
    let body = state.intake.read(&headers, body, QUERY_LIMIT).await?;
    let (spec, background) = resolve(&state, body).await?;
    let handle = state.app.runs.start(spec).await?;
    if background {
        // Nobody waits for the run, so its reader is let go here.
        return Ok(accepted(&handle.id));
    }
    let events = sse::tail(handle.reader);
    if wants_json(&headers) {
        return Ok(answer(&handle.id, events).await);
    }
    let heartbeat = state.app.config.server.heartbeat;
    Ok(sse::response(&handle.id, events, heartbeat))
}

async fn resolve(state: &ApiState, body: Received) -> Result<(RunSpec, bool), Problem> {
    let app = state.app.clone();
    let small = body.bytes.len() < LARGE_BODY;
    let work = move || {
        let request = QueryRequest::parse(&body.bytes)?;
        drop(body);
        let background = request.background;
        let spec = app.config.resolve(request, &app.usable)?;
        Ok((spec, background))
    };
    if small {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            tracing::error!(%error, "reading a request failed");
            Err(internal())
        })
}

fn accepted(run: &RunId) -> Response {
    let url = view::events_url(run);
    let body = json!({
        "id": run,
        "runId": run,
        "status": "running",
        "url": format!("/runs/{run}"),
        "eventsUrl": url,
    });
    let mut response = json(StatusCode::ACCEPTED, &body);
    if let Ok(location) = HeaderValue::from_str(&format!("/runs/{run}")) {
        response.headers_mut().insert(LOCATION, location);
    }
    view::about(&mut response, run);
    response
}

/// Waits for the run's end and answers with its terminal event, `runId` and `files`, under the status
/// of its code.
async fn answer(
    run: &RunId,
    events: impl Stream<Item = Result<Arc<StoredEvent>, StoreError>>,
) -> Response {
    let mut events = pin!(events);
    let mut files = Vec::new();
    let mut response = loop {
        match events.next().await {
            Some(Ok(event)) if event.kind == EventType::File => files.extend(file(&event)),
            Some(Ok(event)) if event.kind.terminal() => break ended(run, &event, files),
            Some(Ok(_)) => {}
            Some(Err(error)) => break end_unknown(run, &error).into_response(),
            None => {
                tracing::error!(run.id = %run, "a run's log ended without a terminal event");
                break internal().about(run).into_response();
            }
        }
    };
    view::about(&mut response, run);
    response
}

fn object(event: &StoredEvent) -> Option<Map<String, Value>> {
    serde_json::from_str(&event.json)
        .inspect_err(|error| tracing::error!(%error, "a stored event is no JSON object"))
        .ok()
}

/// A `file` event without what only a stream needs.
fn file(event: &StoredEvent) -> Option<Value> {
    let mut fields = object(event)?;
    fields.shift_remove("type");
    fields.shift_remove("seq");
    Some(fields.into())
}

fn ended(run: &RunId, event: &StoredEvent, files: Vec<Value>) -> Response {
    let Some(mut body) = object(event) else {
        return internal().about(run).into_response();
    };
    body.insert("runId".to_owned(), run.as_str().into());
    body.insert("files".to_owned(), files.into());
    let status = match event.kind {
        EventType::Error => {
            // Clients of the JSON form read `error`, as in every other error body.
            if let Some(message) = body.get("message").cloned() {
                body.insert("error".to_owned(), message);
            }
            body.get("code")
                .and_then(Value::as_str)
                .and_then(ErrorCode::parse)
                .map_or(StatusCode::INTERNAL_SERVER_ERROR, status_of_end)
        }
        EventType::System
        | EventType::Assistant
        | EventType::Thinking
        | EventType::User
        | EventType::ToolUse
        | EventType::ToolResult
        | EventType::File
        | EventType::Warning
        | EventType::Result => StatusCode::OK,
    };
    let retry_after = body.get("retryAfterSecs").and_then(Value::as_u64);
    let mut response = json(status, &body);
    if let Some(secs) = retry_after {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(secs));
    }
    response
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
