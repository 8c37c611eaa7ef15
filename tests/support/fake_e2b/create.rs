//! `POST /v2/sandboxes`: what may be asked for, and asking twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::request::Parts;
use serde_json::{Value, json};

use super::Inner;
use super::control::seconds;
use super::edge::Answer;
use super::sandboxes::{Death, SandboxBox, Wish};

/// What an `Idempotency-Key` stands for.
pub(super) struct Promise {
    body: Value,
    /// The answer, once there is one.
    kept: Option<Value>,
}

/// Creates a sandbox, or answers again for the one that the key stands for.
pub(super) async fn create(inner: &Arc<Inner>, parts: &Parts, v2: bool, body: &Value) -> Answer {
    let key = match parts.headers.get("idempotency-key").filter(|_| v2) {
        None => None,
        Some(raw) => {
            let text = raw.to_str().unwrap_or_default();
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if !(1..=255).contains(&text.len()) || !text.bytes().all(fits) {
                return Answer::refusal(400, "invalid Idempotency-Key");
            }
            Some(text.to_owned())
        }
    };
    let wish = match wish(inner, body, v2) {
        Ok(wish) => wish,
        Err(answer) => return answer,
    };
    if let Some(key) = &key {
        let mut promises = inner.promises.lock();
        match promises.get(key) {
            Some(promise) if promise.body != *body => {
                let mut answer = coded(422, "idempotency_request_mismatch");
                answer.refused =
                    Some("422: the same Idempotency-Key for another request".to_owned());
                return answer;
            }
            Some(Promise {
                kept: Some(made), ..
            }) => return Answer::json(201, made),
            Some(_) => return coded(409, "idempotency_in_progress"),
            None => {
                let promise = Promise {
                    body: body.clone(),
                    kept: None,
                };
                promises.insert(key.clone(), promise);
            }
        }
    }
    let most = *inner.most_running.lock();
    let made = if inner.sandboxes.running() >= most {
        let message = format!(
            "you have reached the maximum number of concurrent E2B sandboxes ({most}). If you need more, ask for it"
        );
        Err(Answer::error(429, &message))
    } else {
        let latency = *inner.create_latency.lock();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        make(inner, wish)
    };
    match made {
        Ok(sandbox) => {
            let json = sandbox.created_json();
            if let Some(key) = &key
                && let Some(promise) = inner.promises.lock().get_mut(key)
            {
                promise.kept = Some(json.clone());
            }
            Answer::json(201, &json)
        }
        Err(answer) => {
            if let Some(key) = &key {
                inner.promises.lock().remove(key);
            }
            answer
        }
    }
}

fn coded(status: u16, error_code: &str) -> Answer {
    let body = json!({"code": status, "message": "idempotency conflict", "error_code": error_code});
    Answer::json(status, &body)
}

/// Makes it, and watches its time.
fn make(inner: &Arc<Inner>, wish: Wish) -> Result<Arc<SandboxBox>, Answer> {
    let made = inner.sandboxes.create(wish);
    let sandbox =
        made.map_err(|error| Answer::error(500, &format!("could not create: {error}")))?;
    inner.event(&sandbox, "created", json!({}));
    let (inner, watched) = (inner.clone(), sandbox.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = watched.dead.cancelled() => return,
                () = inner.closing.cancelled() => return,
                () = watched.over() => {}
            }
            if !watched.wish.auto_pause {
                inner.kill(&watched.id, Death::Reset, "timeout").await;
                return;
            }
            if watched.pause() {
                inner.event(&watched, "paused", watched.execution());
            }
            // Asleep until a resume has given it a new end.
            watched.resumed().await;
        }
    });
    Ok(sandbox)
}

fn wish(inner: &Inner, body: &Value, v2: bool) -> Result<Wish, Answer> {
    let bad = |why: &str| Answer::refusal(400, &format!("request body has an error: {why}"));
    let Some(template) = body["templateID"].as_str().filter(|name| !name.is_empty()) else {
        return Err(bad("property \"templateID\" is missing"));
    };
    let flag = |key: &str| match &body[key] {
        Value::Null => Ok(None),
        Value::Bool(flag) => Ok(Some(*flag)),
        _ => Err(bad(&format!("{key} must be a boolean"))),
    };
    let map = |key: &str| match &body[key] {
        Value::Null => Ok(BTreeMap::new()),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| match value {
                Value::String(text) => Ok((name.clone(), text.clone())),
                _ => Err(bad(&format!("{key}.{name} must be a string"))),
            })
            .collect(),
        _ => Err(bad(&format!("{key} must be an object"))),
    };
    let timeout = seconds(body, "timeout", Some(if v2 { 300 } else { 15 }))?;
    if timeout.is_zero() {
        return Err(bad("timeout must be greater than 0"));
    }
    if timeout > inner.longest() {
        return Err(inner.too_long());
    }
    let auto_pause = flag("autoPause")?.unwrap_or_default();
    if flag("autoPauseMemory")?.is_some() && !auto_pause {
        return Err(bad("autoPauseMemory needs autoPause"));
    }
    let network = network(&body["network"]).map_err(|why| bad(&why))?;
    let wish = Wish {
        template: template.to_owned(),
        timeout,
        metadata: map("metadata")?,
        envs: map("envVars")?,
        secure: v2 || flag("secure")?.unwrap_or_default(),
        auto_pause,
        internet: flag("allow_internet_access")?,
        network,
    };
    if !inner.knows(template) {
        return Err(Answer {
            refused: Some(format!("404: template '{template}' not found")),
            ..Answer::error(404, &format!("template '{template}' not found"))
        });
    }
    Ok(wish)
}

/// Checks the egress rules; domains may be allowed only where everything else is denied.
fn network(value: &Value) -> Result<Option<Value>, String> {
    let list = |key: &str| match &value[key] {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items
            .iter()
            .map(|item| {
                item.as_str()
                    .ok_or_else(|| format!("network.{key} must hold strings"))
            })
            .collect(),
        _ => Err(format!("network.{key} must be a list")),
    };
    match value {
        Value::Null => Ok(None),
        Value::Object(_) => {
            let (allowed, denied) = (list("allowOut")?, list("denyOut")?);
            let named =
                |item: &&str| item.bytes().any(|b| b.is_ascii_alphabetic()) && !item.contains(':');
            if allowed.iter().any(named) && !denied.contains(&"0.0.0.0/0") {
                return Err("domains in allowOut need 0.0.0.0/0 in denyOut".to_owned());
            }
            Ok(Some(value.clone()))
        }
        _ => Err("network must be an object".to_owned()),
    }
}
