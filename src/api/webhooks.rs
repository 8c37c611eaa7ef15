//! `POST /webhooks/e2b`: E2B's lifecycle events (API reference; E2B webhooks, delivery and signature).
//!
//! A delivery is verified, joined to its run, stored, and, if it is fresh and new, told to the run; it is
//! never more than a hint (WH-4). The
//! signature is a plain SHA-256 over secret and body, which can be extended by who has one signed body,
//! so the body must be exactly one JSON object, and what counts as the same event is decided by the
//! body's `id`, since headers are not signed (WH-2).

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::{Instant, timeout};

use super::ApiState;
use super::error::{json, store_problem};
use super::extract::WEBHOOK_LIMIT;
use super::listen::Caller;
use crate::encoding::without_bom;
use crate::error::{ErrorCode, Problem};
use crate::ids::RunId;
use crate::runs::{SandboxNews, SandboxSignal};
use crate::secrets::Secret;
use crate::store::{StoreError, WebhookDelivery};

/// E2B tries again after 10 s, so it is better answered late than not, but not by much.
const STORE_LIMIT: Duration = Duration::from_secs(2);
/// How old a delivery may be, and how far ahead its clock.
const OLDEST: Duration = Duration::from_mins(15);
const AHEAD: Duration = Duration::from_mins(2);

/// What E2B sends. Newer deliveries are in `snake_case`, older ones in `camelCase`; only these fields
/// are relied on, whatever else there is.
#[derive(Debug, Deserialize)]
struct Payload {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    timestamp: String,
    #[serde(alias = "sandboxId")]
    sandbox_id: Option<String>,
    #[serde(alias = "eventData")]
    event_data: Option<EventData>,
}

#[derive(Debug, Deserialize)]
struct EventData {
    #[serde(alias = "sandboxMetadata")]
    sandbox_metadata: Option<Map<String, Value>>,
    #[serde(alias = "killReason")]
    kill_reason: Option<Value>,
}

/// `POST /webhooks/e2b`. Answers 200 to everything that is genuine, also to what has no effect: a
/// repeat, a stale delivery, an unknown type or sandbox.
pub(super) async fn e2b(
    State(state): State<ApiState>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    state.webhook_gate.pass(Instant::now())?;
    let body = state.intake.read(&headers, body, WEBHOOK_LIMIT).await?;
    let secret = state.app.config.server.webhook_secret.as_ref();
    let signed = match secret {
        Some(secret) if signature_fits(secret, &headers, &body.bytes) => true,
        Some(_) => return Err(unsigned()),
        None => {
            state.auth.check(&headers, caller.0)?;
            false
        }
    };
    let (payload, value) = parse(&body.bytes).ok_or_else(malformed)?;
    drop(body);
    let received_at = state.clock.now();
    let sent_at = payload
        .timestamp
        .parse::<jiff::Timestamp>()
        .map_err(|_| malformed())?;
    let age = received_at.duration_since(sent_at);
    let fresh = age <= signed_duration(OLDEST) && age >= -signed_duration(AHEAD);
    let signal = signal(&payload, signed);
    let stored = timeout(
        STORE_LIMIT,
        store(&state, payload, value, signed, received_at),
    )
    .await;
    let (new, run) = stored
        .unwrap_or_else(|_| {
            Err(StoreError::Failed(
                "a webhook was not stored in time".to_owned(),
            ))
        })
        .map_err(|error| store_problem(&error))?;
    tracing::debug!(signed, fresh, new, "took a webhook delivery");
    if let (true, true, Some(run), Some(signal)) = (fresh, new, run, signal) {
        state.app.runs.sandbox_event(&run, signal);
    }
    Ok(json(StatusCode::OK, &json!({ "status": "ok" })))
}

fn signed_duration(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

async fn store(
    state: &ApiState,
    payload: Payload,
    body: Value,
    signed: bool,
    received_at: jiff::Timestamp,
) -> Result<(bool, Option<RunId>), StoreError> {
    let run = owner(state, &payload).await?;
    let delivery = WebhookDelivery {
        event_id: payload.id,
        event_type: payload.kind,
        sandbox_id: payload.sandbox_id,
        run: run.clone(),
        signed,
        received_at,
        body,
    };
    let new = state.app.runs.store().put_webhook(delivery).await?;
    Ok((new, run))
}

/// What the delivery says of a sandbox, in our words.
fn signal(payload: &Payload, signed: bool) -> Option<SandboxSignal> {
    let data = payload.event_data.as_ref();
    let news = match payload.kind.as_str() {
        "sandbox.lifecycle.created" => SandboxNews::Created,
        "sandbox.lifecycle.killed" => SandboxNews::Killed {
            reason: data.and_then(|data| Some(data.kill_reason.as_ref()?.as_str()?.to_owned())),
        },
        other => SandboxNews::Other {
            event: other.to_owned(),
        },
    };
    Some(SandboxSignal {
        sandbox_id: payload.sandbox_id.clone()?,
        news,
        signed,
    })
}

/// The run that the sandbox belongs to: by our own records, else by the label that it carries, if this
/// store has such a run.
async fn owner(state: &ApiState, payload: &Payload) -> Result<Option<RunId>, StoreError> {
    let store = state.app.runs.store();
    if let Some(sandbox) = &payload.sandbox_id
        && let Some(run) = store.sandbox_owner(sandbox).await?
    {
        return Ok(Some(run));
    }
    let metadata = payload
        .event_data
        .as_ref()
        .and_then(|data| data.sandbox_metadata.as_ref());
    let label = |name: &str| metadata.and_then(|labels| labels.get(name)?.as_str());
    let ours = label("sandcaster-instance").is_none_or(|instance| instance == store.id());
    let Some(run) = label("sandcaster-run")
        .and_then(RunId::parse)
        .filter(|_| ours)
    else {
        return Ok(None);
    };
    Ok(store.get(&run).await?.map(|record| record.id))
}

/// Exactly one JSON object with the fields that are relied on, each of them once.
fn parse(body: &[u8]) -> Option<(Payload, Value)> {
    let text = std::str::from_utf8(without_bom(body)).ok()?;
    let payload: Payload = serde_json::from_str(text).ok()?;
    let value: Value = serde_json::from_str(text).ok()?;
    let named = |text: &str| (1..=200).contains(&text.len()) && !text.contains(char::is_control);
    let sandbox_ok = payload.sandbox_id.as_deref().is_none_or(named);
    (value.is_object() && named(&payload.id) && named(&payload.kind) && sandbox_ok)
        .then_some((payload, value))
}

fn unsigned() -> Problem {
    Problem::new(
        ErrorCode::Unauthorized,
        "the delivery is not signed with this server's secret",
    )
    .hint("SANDCASTER_WEBHOOK_SECRET must be the signatureSecret of the webhook at E2B")
}

fn malformed() -> Problem {
    Problem::new(ErrorCode::InvalidJson, "the delivery is malformed")
}

/// Whether the one `e2b-signature` is SHA-256(secret ‖ body) in base64, of either alphabet, with or
/// without padding and the scheme's name in front.
fn signature_fits(secret: &Secret, headers: &HeaderMap, body: &[u8]) -> bool {
    let mut values = headers.get_all("e2b-signature").iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let Ok(text) = value.to_str() else {
        return false;
    };
    let text = text.trim();
    let text = text.strip_prefix("sha256=").unwrap_or(text);
    let text = text
        .trim_end_matches('=')
        .replace('+', "-")
        .replace('/', "_");
    let Ok(claimed) = URL_SAFE_NO_PAD.decode(text) else {
        return false;
    };
    let digest = Sha256::new()
        .chain_update(secret.expose())
        .chain_update(body)
        .finalize();
    claimed.ct_eq(digest.as_slice()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_a_mixture_is_not() {
        let (payload, _) =
            parse(br#"{"id":"1","type":"t","timestamp":"","sandboxId":"s","eventData":null}"#)
                .unwrap();
        assert_eq!(payload.sandbox_id.as_deref(), Some("s"));
        let (payload, _) = parse(
            br#"{"id":"1","type":"t","timestamp":"","sandbox_id":"s","event_data":{"sandbox_metadata":{"a":"b"}},"x":1}"#,
        )
        .unwrap();
        assert_eq!(
            payload.event_data.unwrap().sandbox_metadata.unwrap().len(),
            1
        );
        assert!(
            parse(br#"{"id":"1","type":"t","timestamp":"","sandbox_id":"s","sandboxId":"r"}"#)
                .is_none()
        );
        assert!(parse(br#"{"id":"1","type":"t","timestamp":""} {}"#).is_none());
        assert!(parse(br#"[{"id":"1","type":"t","timestamp":""}]"#).is_none());
    }
}
