//! `GET /health` and `GET /health/live` (API reference, GET /health; SD-2). Neither does any I/O.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use super::ApiState;
use super::error::json;
use crate::runs::Health;

#[derive(Serialize)]
struct Body {
    status: &'static str,
    version: &'static str,
}

fn answer(code: StatusCode, status: &'static str) -> Response {
    let body = Body {
        status,
        version: env!("CARGO_PKG_VERSION"),
    };
    json(code, &body)
}

/// 200 while work can be taken, else 503 with the reason in `status`.
pub(super) async fn health(State(state): State<ApiState>) -> Response {
    match state.app.runs.health() {
        Health::Ok => answer(StatusCode::OK, "ok"),
        Health::Draining => answer(StatusCode::SERVICE_UNAVAILABLE, "draining"),
        Health::Unavailable => answer(StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    }
}

/// 200 while the process answers at all: a restart cures no store.
pub(super) async fn live() -> Response {
    answer(StatusCode::OK, "ok")
}
