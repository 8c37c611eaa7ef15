//! The control plane: sandboxes made, found, prolonged, frozen and killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::request::Parts;
use sandcaster::ids::nonce;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Inner;
use super::create;
use super::edge::{Answer, Query};
use super::journal::Seen;
use super::routes::{Route, Target};
use super::sandboxes::{Death, SandboxBox, State};
use super::webhooks;

/// Answers a call of the control plane.
pub(super) async fn call(
    inner: &Arc<Inner>,
    parts: &Parts,
    target: &Target,
    seen: &Seen,
) -> Answer {
    if target.route == Route::ApiHealth {
        return Answer::json(200, &json!("Health check successful"));
    }
    if let Err(answer) = authenticate(inner, parts) {
        return answer;
    }
    let has_body = parts.method == "POST" || parts.method == "PUT" || parts.method == "PATCH";
    let body = match body(parts, seen, has_body) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    match target.route {
        Route::Create => create::create(inner, parts, target.v2, &body).await,
        Route::List => list(inner, parts, target.v2),
        Route::Webhooks => webhooks::register(inner, &parts.method, &target.id, &body),
        Route::Events => webhooks::history(inner, parts, &target.id),
        Route::Snapshots => Answer::json(200, &Value::Array(inner.snapshots.lock().clone())),
        Route::DeleteTemplate => delete_template(inner, &target.id),
        _ => of_one(inner, parts, target, &body).await,
    }
}

fn authenticate(inner: &Inner, parts: &Parts) -> Result<(), Answer> {
    let Some(key) = parts.headers.get("x-api-key") else {
        return Err(Answer::refusal(401, "Missing API key"));
    };
    let text = key.to_str().unwrap_or_default();
    let well_formed = text
        .strip_prefix("e2b_")
        .is_some_and(|hex| hex.len() == 40 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    if !well_formed {
        return Err(Answer::refusal(401, "Invalid API key format"));
    }
    if text != inner.key {
        return Err(Answer::refusal(
            401,
            "Invalid API key, it is not known here",
        ));
    }
    Ok(())
}

fn body(parts: &Parts, seen: &Seen, wanted: bool) -> Result<Value, Answer> {
    if !wanted || seen.body.is_empty() {
        return Ok(json!({}));
    }
    if !seen.header("content-type").starts_with("application/json") {
        let why = "request body has an error: header Content-Type has unexpected value";
        return Err(Answer::refusal(400, why));
    }
    if let Ok(value @ Value::Object(_)) = serde_json::from_slice(&seen.body) {
        return Ok(value);
    }
    let path = parts.uri.path();
    let why = format!("request body of {path} has an error: not a JSON object");
    Err(Answer::refusal(400, &why))
}

/// A whole number of seconds at `key`; `default` if absent.
pub(super) fn seconds(body: &Value, key: &str, default: Option<u64>) -> Result<Duration, Answer> {
    let number = match (&body[key], default) {
        (Value::Null, Some(default)) => Some(default),
        (value, _) => value.as_u64(),
    };
    number.map(Duration::from_secs).ok_or_else(|| {
        Answer::refusal(
            400,
            &format!("request body has an error: {key} must be an integer of at least 0"),
        )
    })
}

async fn of_one(inner: &Arc<Inner>, parts: &Parts, target: &Target, body: &Value) -> Answer {
    let id = &target.id;
    let short = id.split('-').next().unwrap_or_default();
    if short.is_empty()
        || !short
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    {
        return Answer::refusal(400, "Invalid sandbox ID");
    }
    let Some(sandbox) = inner.sandboxes.get(id) else {
        return Answer::error(
            404,
            &format!("Sandbox \"{id}\" doesn't exist or you don't have access to it"),
        );
    };
    let done = match target.route {
        Route::Get => Ok(Answer::json(200, &sandbox.detail_json())),
        Route::Delete => {
            inner.kill(id, Death::Reset, "request").await;
            Ok(Answer::empty(204))
        }
        Route::Timeout => set_timeout(inner, &sandbox, body),
        Route::Refreshes => refresh(&sandbox, body),
        Route::Reconnect => reconnect(inner, &sandbox, target.v2, body),
        Route::Resume => resume(inner, &sandbox, body),
        Route::Pause => pause(inner, &sandbox).await,
        Route::Snapshot => snapshot(inner, &sandbox, body),
        Route::Network => {
            *sandbox.network.lock() = Some(body.clone());
            let updated = json!({"network_egress": body});
            inner.event(&sandbox, "updated", updated);
            Ok(Answer::empty(204))
        }
        Route::Metrics => Ok(metrics(&sandbox)),
        Route::Logs => Ok(Answer::json(200, &json!({"logs": []}))),
        _ => Ok(Answer::refusal(
            404,
            &format!("no such path: {} {}", parts.method, parts.uri.path()),
        )),
    };
    done.unwrap_or_else(|answer| answer)
}

fn set_timeout(inner: &Inner, sandbox: &SandboxBox, body: &Value) -> Result<Answer, Answer> {
    if sandbox.state() == State::Paused {
        return Ok(Answer::error(409, "The sandbox is paused"));
    }
    let after = seconds(body, "timeout", None)?;
    if after > inner.longest() {
        return Ok(Answer::refusal(400, "Max instance length exceeded"));
    }
    // Past the longest life it is silently cut to what is left.
    let left = inner.longest().saturating_sub(sandbox.started.elapsed());
    sandbox.set_end(after.min(left));
    let updated = json!({"set_timeout": sandbox.end_at().to_string()});
    inner.event(sandbox, "updated", updated);
    Ok(Answer::empty(204))
}

fn refresh(sandbox: &SandboxBox, body: &Value) -> Result<Answer, Answer> {
    let after = seconds(body, "duration", Some(0))?;
    if after > Duration::from_hours(1) {
        return Ok(Answer::refusal(400, "duration must be at most 3600"));
    }
    sandbox.extend(after.max(Duration::from_secs(15)));
    Ok(Answer::empty(204))
}

fn reconnect(
    inner: &Inner,
    sandbox: &SandboxBox,
    v2: bool,
    body: &Value,
) -> Result<Answer, Answer> {
    let after = seconds(body, "timeout", v2.then_some(300))?;
    if after > inner.longest() {
        return Ok(inner.too_long());
    }
    let resumed = sandbox.resume();
    if resumed {
        sandbox.set_end(after);
        inner.event(sandbox, "resumed", json!({}));
    } else {
        sandbox.extend(after);
    }
    let status = if resumed { 201 } else { 200 };
    Ok(Answer::json(status, &sandbox.created_json()))
}

fn resume(inner: &Inner, sandbox: &SandboxBox, body: &Value) -> Result<Answer, Answer> {
    let after = seconds(body, "timeout", Some(15))?;
    if !sandbox.resume() {
        return Ok(Answer::error(409, "The sandbox is running already"));
    }
    sandbox.set_end(after);
    inner.event(sandbox, "resumed", json!({}));
    Ok(Answer::json(201, &sandbox.created_json()))
}

async fn pause(inner: &Arc<Inner>, sandbox: &Arc<SandboxBox>) -> Result<Answer, Answer> {
    let freezing = sandbox.clone();
    let paused = tokio::task::spawn_blocking(move || freezing.pause()).await;
    if !paused.unwrap_or_default() {
        return Ok(Answer::error(409, "The sandbox is paused already"));
    }
    inner.event(sandbox, "paused", sandbox.execution());
    Ok(Answer::empty(204))
}

fn snapshot(inner: &Inner, sandbox: &SandboxBox, body: &Value) -> Result<Answer, Answer> {
    let name = match &body["name"] {
        Value::Null => None,
        Value::String(name) if !name.is_empty() => Some(name.clone()),
        _ => return Err(Answer::refusal(400, "name must be a string")),
    };
    let id = format!("{}:default", &nonce()[..20]);
    let made = json!({"snapshotID": id, "names": name.iter().collect::<Vec<_>>()});
    inner.snapshots.lock().push(made.clone());
    inner.templates.lock().insert(id);
    inner.event(sandbox, "checkpointed", json!({}));
    Ok(Answer::json(201, &made))
}

fn delete_template(inner: &Inner, id: &str) -> Answer {
    let id = super::edge::decode(id);
    inner
        .snapshots
        .lock()
        .retain(|made| made["snapshotID"] != json!(id));
    if inner.templates.lock().remove(&id) {
        Answer::empty(204)
    } else {
        Answer::error(404, &format!("template '{id}' not found"))
    }
}

/// The first sample takes a second.
fn metrics(sandbox: &SandboxBox) -> Answer {
    if Instant::now() < sandbox.started + Duration::from_secs(1) {
        return Answer::json(200, &json!([]));
    }
    let at = sandcaster::clock::Clock::system().now();
    Answer::json(
        200,
        &json!([{
            "timestamp": at.to_string(), "timestampUnix": at.as_second(),
            "cpuCount": 2, "cpuUsedPct": 1.5,
            "memTotal": 536_870_912_u64, "memUsed": 67_108_864_u64, "memCache": 1_048_576_u64,
            "diskTotal": 1_073_741_824_u64, "diskUsed": 134_217_728_u64,
        }]),
    )
}

fn list(inner: &Inner, parts: &Parts, v2: bool) -> Answer {
    let query = Query::of(parts);
    match listed(inner, &query, v2) {
        Ok(answer) | Err(answer) => answer,
    }
}

fn listed(inner: &Inner, query: &Query, v2: bool) -> Result<Answer, Answer> {
    let metadata: BTreeMap<String, String> = query
        .get("metadata")
        .map(|raw| Query::parse(raw).pairs().iter().cloned().collect())
        .unwrap_or_default();
    let states = query.all("state");
    for state in &states {
        if !matches!(*state, "running" | "paused") {
            return Err(Answer::refusal(400, &format!("unknown state {state}")));
        }
    }
    let limit = match query.get("limit").map(str::parse::<usize>) {
        None => 100,
        Some(Ok(limit @ 1..=100)) => limit,
        Some(_) => return Err(Answer::refusal(400, "limit must be from 1 to 100")),
    };
    let after = match query.get("nextToken").filter(|token| !token.is_empty()) {
        None => None,
        Some(token) => match token.strip_prefix("after_").map(str::parse::<u64>) {
            Some(Ok(number)) => Some(number),
            _ => return Err(Answer::refusal(400, "invalid next token")),
        },
    };
    let ascending = query.get("order") == Some("asc");
    let mut all = inner.sandboxes.list();
    if ascending {
        all.reverse();
    }
    all.retain(|sandbox| {
        let state = match sandbox.state() {
            State::Running => "running",
            State::Paused => "paused",
        };
        let wanted = if v2 {
            states.is_empty() || states.contains(&state)
        } else {
            state == "running"
        };
        wanted
            && metadata
                .iter()
                .all(|(key, value)| sandbox.wish.metadata.get(key) == Some(value))
            && query
                .get("template")
                .is_none_or(|wanted| wanted == sandbox.wish.template)
    });
    let running = all.iter().filter(|s| s.state() == State::Running).count();
    if let Some(after) = after {
        all.retain(|sandbox| {
            if ascending {
                sandbox.number > after
            } else {
                sandbox.number < after
            }
        });
    }
    let more = v2 && all.len() > limit;
    if v2 {
        all.truncate(limit);
    }
    let entries: Vec<Value> = all.iter().map(|sandbox| sandbox.listed_json()).collect();
    let mut answer = Answer::json(200, &Value::Array(entries));
    let headers = answer.response.headers_mut();
    if v2 {
        headers.insert("x-total-running", HeaderValue::from(running));
    }
    if let (true, Some(last)) = (more, all.last()) {
        let token = HeaderValue::try_from(format!("after_{}", last.number));
        headers.insert("x-next-token", token.unwrap());
    }
    Ok(answer)
}
