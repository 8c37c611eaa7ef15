//! `POST /webhooks/e2b`: E2B's lifecycle events (API reference).

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::json;
use tokio::time::Instant;

use super::ApiState;
use super::error::json;
use super::extract::WEBHOOK_LIMIT;
use super::listen::Caller;
use crate::error::{ErrorCode, Problem};
use crate::runs::{store_problem, take_report};
use crate::sandbox::e2b::delivery;

/// `POST /webhooks/e2b`. Answers 200 to everything that is genuine, also to what has no effect: a
/// repeat, a stale delivery, an unknown type or sandbox.
pub(super) async fn e2b(
    State(state): State<ApiState>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let app = &state.app;
    let secret = app.config.server.webhook_secret.as_ref();
    // Counted apart: who guesses signatures is slowed down, and nobody else.
    let gates = &state.webhook_gates;
    let pass = |genuine: Result<(), Problem>| match genuine {
        Ok(()) => gates.genuine.pass(Instant::now()),
        Err(refused) => {
            gates.refused.pass(Instant::now())?;
            Err(refused)
        }
    };
    if secret.is_none() {
        pass(state.auth.check(&headers, caller.0))?;
    }
    let intake = &state.webhook_intake;
    let body = intake.read(&headers, body, WEBHOOK_LIMIT).await?;
    if let Some(secret) = secret {
        let fits = |signature| delivery::signature_fits(secret, signature, &body.bytes);
        let genuine = one(&headers).is_some_and(fits);
        pass(genuine.then_some(()).ok_or_else(unsigned))?;
    }
    let report = delivery::read(&body.bytes)
        .ok_or_else(|| Problem::new(ErrorCode::InvalidJson, "the delivery is malformed"))?;
    drop(body);
    take_report(&app.runs, &app.clock, report, secret.is_some())
        .await
        .map_err(|error| store_problem(&error))?;
    Ok(json(StatusCode::OK, &json!({ "status": "ok" })))
}

/// The one signature.
fn one(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(delivery::SIGNATURE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    value.to_str().ok()
}

fn unsigned() -> Problem {
    Problem::new(
        ErrorCode::Unauthorized,
        "the delivery is not signed with this server's secret",
    )
    .hint("SANDCASTER_WEBHOOK_SECRET must be the signatureSecret of the webhook at E2B")
}
