//! `GET /runs`, `GET` and `DELETE /runs/{id}`, its events, and `POST /runs/{id}/cancel`.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::value::RawValue;

use super::ApiState;
use super::error::{internal, json, not_a_run_id};
use super::extract::{OTHER_LIMIT, require_json, wants_json};
use super::params::{Params, PathOf};
use super::view::{RunDetail, RunView};
use super::{sse, view};
use crate::encoding::without_bom;
use crate::error::{ErrorCode, Problem};
use crate::ids::{RunId, Seq};
use crate::runs::{cursor_ahead, events_problem, store_problem};

/// The run that a path names.
///
/// # Errors
/// `RUN_NOT_FOUND` for anything that is no id of a run.
pub(super) fn run_id(text: &str) -> Result<RunId, Problem> {
    RunId::parse(text).ok_or_else(|| not_a_run_id(text))
}

/// `GET /runs?limit=`: the newest runs, newest first (API reference, GET /runs).
pub(super) async fn list(State(state): State<ApiState>, uri: Uri) -> Result<Response, Problem> {
    let limit = Params::read(&uri, &["limit"])?.limit(20, 200)?;
    let runs = state.app.runs.list(limit).await?;
    let views: Vec<RunView> = runs.into_iter().map(RunView::new).collect();
    Ok(json(StatusCode::OK, &views))
}

/// `GET /runs/{id}`: one run, with its files, sandboxes and what was reported about them.
pub(super) async fn get(
    State(state): State<ApiState>,
    PathOf(id): PathOf<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    Params::none(&uri)?;
    let run = run_id(&id)?;
    let record = state.app.runs.get(&run).await?;
    let store = state.app.runs.store();
    let (files, sandboxes, webhooks) = futures::try_join!(
        store.list_files(&run),
        store.sandboxes(&run),
        store.webhooks(&run)
    )
    .map_err(|error| store_problem(&error))?;
    let detail = RunDetail::new(record, files, sandboxes, webhooks);
    state.answers.json(&detail)
}

/// `GET /runs/{id}/events`: the log after a cursor, as a stream that goes on live, or as one page of
/// JSON (EV-6, EV-7).
pub(super) async fn events(
    State(state): State<ApiState>,
    PathOf(id): PathOf<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["after", "limit", "lastEventId"])?;
    let run = run_id(&id)?;
    let after = params.cursor(&headers)?;
    if wants_json(&headers) {
        let limit = params.limit(1000, 1000)?;
        return page(&state, &run, after, limit).await;
    }
    if params.has("limit") {
        return Err(Problem::field(
            ErrorCode::ValidationFailed,
            "limit",
            "limit is for pages of JSON; a stream sends every event",
        )
        .hint("send Accept: application/json for a page"));
    }
    let head = state.app.runs.head(&run).await?;
    if head.ended && after == head.last_seq {
        // Nothing will ever follow: this status tells an EventSource to stop.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let reader = state.app.runs.reader(&run, after).await?;
    let heartbeat = state.app.config.server.heartbeat;
    Ok(sse::response(&run, sse::tail(reader), heartbeat))
}

/// A page is closed once it has this many bytes: what a client that does not read it holds.
const PAGE_BYTES: usize = 128 << 10;
/// Events read at a time for a page.
const PAGE_STEP: u32 = 64;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    events: Vec<Box<RawValue>>,
    next_after: u64,
    terminal: bool,
}

async fn page(state: &ApiState, run: &RunId, after: Seq, limit: u32) -> Result<Response, Problem> {
    let head = state.app.runs.head(run).await?;
    if after > head.last_seq {
        return Err(cursor_ahead(run, head.last_seq));
    }
    let mut page = Page {
        events: Vec::new(),
        next_after: after.0,
        terminal: head.ended && after == head.last_seq,
    };
    let mut bytes = 0;
    let mut left = limit;
    // What is past the head may be committed, and is not told yet.
    while left > 0 && bytes < PAGE_BYTES && page.next_after < head.last_seq.0 {
        let step = left.min(PAGE_STEP);
        let read = state.app.runs.store().read(run, Seq(page.next_after), step);
        // It may have been deleted since its head was read.
        let events = read.await.map_err(|error| events_problem(run, &error))?;
        if events.is_empty() {
            break;
        }
        for event in events
            .into_iter()
            .take_while(|event| event.seq <= head.last_seq)
        {
            bytes += event.json.len();
            page.next_after = event.seq.0;
            page.terminal = event.kind.terminal();
            page.events.push(RawValue::from_string(event.json).map_err(|error| {
                tracing::error!(run.id = %run, seq = %event.seq, %error, "a stored event is no JSON");
                internal().about(run)
            })?);
            left = left.saturating_sub(1);
            if bytes >= PAGE_BYTES {
                break;
            }
        }
    }
    state.answers.json(&page)
}

/// `DELETE /runs/{id}`: 204; 409 while it runs.
pub(super) async fn delete(
    State(state): State<ApiState>,
    PathOf(id): PathOf<String>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    Params::none(&uri)?;
    state.app.runs.delete(&run_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /runs/{id}/cancel`: 202 while the run is being stopped, 200 if it had ended (CN-1).
pub(super) async fn cancel(
    State(state): State<ApiState>,
    PathOf(id): PathOf<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Params::none(&uri)?;
    let run = run_id(&id)?;
    let body = state.intake.read(&headers, body, OTHER_LIMIT).await?;
    if !body.bytes.is_empty() {
        require_json(&headers)?;
        if without_bom(&body.bytes).trim_ascii() != b"{}" {
            return Err(Problem::new(
                ErrorCode::ValidationFailed,
                "cancelling a run takes no fields: send no body, or {}",
            ));
        }
    }
    let outcome = state.app.runs.cancel(&run).await?;
    let status = if outcome.already_ended {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let mut response = json(status, &RunView::new(outcome.record));
    view::about(&mut response, &run);
    Ok(response)
}
