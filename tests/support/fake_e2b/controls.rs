//! `/__standin`: what the shared SDK check calls to provoke faults and sudden death, where it is allowed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::http::Method;
use axum::http::request::Parts;
use serde_json::{Value, json};

use super::Inner;
use super::edge::Answer;
use super::faults::Reply;
use super::routes;
use super::sandboxes::Death;

/// The part of a path that marks such a call.
const PREFIX: &str = "/__standin/";

/// Answers such a call; `None` for any other, or where they aren't allowed.
pub(super) async fn call(inner: &Arc<Inner>, parts: &Parts, body: &[u8]) -> Option<Answer> {
    let what = parts.uri.path().strip_prefix(PREFIX)?;
    if !inner.controls.load(Ordering::Acquire) {
        return None;
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let answer = match (parts.method.as_str(), what) {
        ("GET", "state") => Answer::json(
            200,
            &json!({
                "sandboxes": inner.sandboxes.list().len(),
                "processes": inner.sandboxes.processes_left(),
            }),
        ),
        ("POST", "faults") => fault(inner, &body),
        ("DELETE", "faults") => {
            inner.faults.clear();
            Answer::empty(204)
        }
        ("POST", what) => match what.strip_prefix("kill/") {
            Some(id) => {
                let reason = body["reason"].as_str().unwrap_or("unknown");
                let killed = inner.kill(id, Death::Reset, reason).await;
                Answer::empty(if killed { 204 } else { 404 })
            }
            None => Answer::empty(404),
        },
        _ => Answer::empty(404),
    };
    Some(answer)
}

/// `{"match":"POST /v2/sandboxes","times":2,"status":503,"headers":{},"body":{}}`.
fn fault(inner: &Inner, body: &Value) -> Answer {
    let line = body["match"].as_str().unwrap_or_default();
    let made = line.split_once(' ').and_then(|(method, path)| {
        let (parts, ()) = axum::http::Request::builder()
            .method(Method::from_bytes(method.as_bytes()).ok()?)
            .uri(path)
            .body(())
            .ok()?
            .into_parts();
        let status = u16::try_from(body["status"].as_u64()?).ok()?;
        let times = usize::try_from(body["times"].as_u64().unwrap_or(1)).ok()?;
        let mut reply = Reply::json(status, &body["body"]);
        for (name, value) in body["headers"].as_object().into_iter().flatten() {
            reply = reply.header(name, value.as_str()?);
        }
        let route = routes::target(&parts).route;
        inner
            .faults
            .on(route)
            .optional()
            .first(times)
            .respond(reply);
        Some(())
    });
    Answer::empty(if made.is_some() { 204 } else { 400 })
}
