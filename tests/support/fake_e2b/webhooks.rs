//! Lifecycle events: registered webhooks, signed deliveries, and the history that can be asked for.

use std::time::Duration;

use axum::http::Method;
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use sandcaster::clock::Clock;
use sandcaster::ids::nonce;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Inner;
use super::edge::{Answer, Query};
use super::sandboxes::SandboxBox;

/// How an event's fields are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spelling {
    /// `sandbox_id`, `event_data`, version `v2`: what is sent today.
    #[default]
    Snake,
    /// `sandboxId`, `eventData`, version `v1`: what older documentation shows.
    Camel,
}

/// One attempt to deliver an event.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event's own id, the same in every attempt.
    pub event_id: String,
    /// Its type, as `sandbox.lifecycle.killed`.
    pub kind: String,
    /// The sandbox that it is about.
    pub sandbox: String,
    /// 1 to 4.
    pub attempt: u32,
    /// The answer's status; `None` if there was no answer.
    pub status: Option<u16>,
}

#[derive(Clone)]
struct Hook {
    id: String,
    name: String,
    url: String,
    enabled: bool,
    events: Vec<String>,
    secret: String,
}

impl Hook {
    fn json(&self) -> Value {
        json!({
            "id": self.id, "teamId": "team", "name": self.name, "enabled": self.enabled,
            "createdAt": "2026-01-01T00:00:00Z", "url": self.url, "events": self.events,
        })
    }
}

pub(super) struct Webhooks {
    hooks: Mutex<Vec<Hook>>,
    history: Mutex<Vec<Value>>,
    deliveries: Mutex<Vec<Delivery>>,
    pub(super) spelling: Mutex<Spelling>,
    /// Between two attempts.
    pub(super) pause: Mutex<Duration>,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            hooks: Mutex::default(),
            history: Mutex::default(),
            deliveries: Mutex::default(),
            spelling: Mutex::default(),
            pause: Mutex::new(Duration::from_secs(10)),
        }
    }
}

impl Webhooks {
    pub(super) fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().clone()
    }
}

/// `e2b-signature` of a body: SHA-256 over secret and body, URL-safe base64 without padding.
pub fn signature(secret: &str, body: &[u8]) -> String {
    let digest = Sha256::new()
        .chain_update(secret)
        .chain_update(body)
        .finalize();
    URL_SAFE_NO_PAD.encode(digest)
}

/// An event's body: `kind` is the last word of its type, `data` what belongs in its `event_data`.
pub(super) fn event(sandbox: &str, kind: &str, data: &Value, spelling: Spelling) -> Value {
    let (id, now) = (uuid(), Clock::system().now().to_string());
    let kind_of = format!("sandbox.lifecycle.{kind}");
    match spelling {
        Spelling::Snake => json!({
            "id": id, "version": "v2", "type": kind_of, "timestamp": now,
            "event_category": "lifecycle", "event_label": label(kind),
            "event_data": data, "sandbox_id": sandbox, "sandbox_execution_id": uuid(),
            "sandbox_template_id": "base", "sandbox_build_id": uuid(), "sandbox_team_id": uuid(),
            "events_ttl_days": 7,
        }),
        Spelling::Camel => json!({
            "id": id, "version": "v1", "type": kind_of, "timestamp": now,
            "eventCategory": "lifecycle", "eventLabel": label(kind),
            "eventData": data, "sandboxId": sandbox, "sandboxExecutionId": uuid(),
            "sandboxTemplateId": "base", "sandboxBuildId": uuid(), "sandboxTeamId": uuid(),
        }),
    }
}

/// The deed that an event's last word tells of.
fn label(kind: &str) -> &str {
    match kind {
        "created" => "create",
        "killed" => "kill",
        "paused" => "pause",
        "resumed" => "resume",
        "updated" => "update",
        "checkpointed" => "checkpoint",
        other => other,
    }
}

fn uuid() -> String {
    let hex = nonce();
    let cut = |from: usize, to: usize| hex[from..to].to_owned();
    [cut(0, 8), cut(8, 12), cut(12, 16), cut(16, 20), cut(20, 32)].join("-")
}

impl Inner {
    /// Something happened to a sandbox: kept, and sent to whoever asked to be told.
    pub(super) fn event(&self, sandbox: &SandboxBox, kind: &str, mut data: Value) {
        if !sandbox.wish.metadata.is_empty() {
            data["sandbox_metadata"] = json!(sandbox.wish.metadata);
        }
        let spelling = *self.webhooks.spelling.lock();
        let event = event(&sandbox.id, kind, &data, spelling);
        self.webhooks.history.lock().push(event.clone());
        let hooks = self.webhooks.hooks.lock().clone();
        let kind = format!("sandbox.lifecycle.{kind}");
        for hook in hooks {
            // Deliveries of a stand-in stay on this machine.
            let local = ["http://127.0.0.1:", "http://localhost:", "http://[::1]:"];
            let local = local.iter().any(|prefix| hook.url.starts_with(prefix));
            if local && hook.enabled && hook.events.contains(&kind) {
                self.deliver(hook, sandbox.id.clone(), kind.clone(), &event);
            }
        }
    }

    /// Up to four attempts, in the background.
    fn deliver(&self, hook: Hook, sandbox: String, kind: String, event: &Value) {
        let body = event.to_string();
        let event_id = event["id"].as_str().unwrap_or_default().to_owned();
        let (Some(inner), pause) = (self.this.upgrade(), *self.webhooks.pause.lock()) else {
            return;
        };
        let task = async move {
            for attempt in 1..=4 {
                let sent = post(&inner.http, &hook.url, &hook.id, &hook.secret, body.clone());
                let status = sent.await;
                inner.webhooks.deliveries.lock().push(Delivery {
                    event_id: event_id.clone(),
                    kind: kind.clone(),
                    sandbox: sandbox.clone(),
                    attempt,
                    status,
                });
                if status.is_some_and(|status| (200..300).contains(&status)) || attempt == 4 {
                    return;
                }
                tokio::select! {
                    () = inner.closing.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        };
        tokio::spawn(task);
    }
}

/// Sends one signed delivery; the answer's status.
pub(super) async fn post(
    http: &reqwest::Client,
    url: &str,
    hook: &str,
    secret: &str,
    body: String,
) -> Option<u16> {
    let request = http
        .post(url)
        .header("content-type", "application/json")
        .header("e2b-webhook-id", hook)
        .header("e2b-delivery-id", uuid())
        .header("e2b-signature-version", "v1")
        .header("e2b-signature", signature(secret, body.as_bytes()))
        .body(body)
        .timeout(Duration::from_secs(10));
    Some(request.send().await.ok()?.status().as_u16())
}

/// `/events/webhooks` and below.
pub(super) fn register(inner: &Inner, method: &Method, id: &str, body: &Value) -> Answer {
    let mut hooks = inner.webhooks.hooks.lock();
    match (method.as_str(), id) {
        ("GET", "") => {
            let all: Vec<Value> = hooks.iter().map(Hook::json).collect();
            Answer::json(200, &Value::Array(all))
        }
        ("POST", "") => {
            let mut hook = Hook {
                id: uuid(),
                name: String::new(),
                url: String::new(),
                enabled: true,
                events: Vec::new(),
                secret: String::new(),
            };
            if let Err(why) = amend(&mut hook, body) {
                return Answer::refusal(400, &why);
            }
            for (what, missing) in [
                ("name", hook.name.is_empty()),
                ("url", hook.url.is_empty()),
                ("events", hook.events.is_empty()),
                ("signatureSecret", hook.secret.is_empty()),
            ] {
                if missing {
                    return Answer::refusal(400, &format!("{what} is required"));
                }
            }
            hooks.push(hook.clone());
            Answer::json(201, &hook.json())
        }
        (method, id) => {
            let Some(at) = hooks.iter().position(|hook| hook.id == id) else {
                return Answer::error(404, "webhook not found");
            };
            match method {
                "GET" => Answer::json(200, &hooks[at].json()),
                "DELETE" => Answer::json(200, &hooks.remove(at).json()),
                "PATCH" => match amend(&mut hooks[at], body) {
                    Ok(()) => Answer::json(200, &hooks[at].json()),
                    Err(why) => Answer::refusal(400, &why),
                },
                _ => Answer::refusal(405, "method not allowed"),
            }
        }
    }
}

fn amend(hook: &mut Hook, body: &Value) -> Result<(), String> {
    let Some(fields) = body.as_object() else {
        return Err("the body must be an object".to_owned());
    };
    for (name, value) in fields {
        let text = || {
            let text = value.as_str().filter(|text| !text.is_empty());
            text.map(str::to_owned)
                .ok_or_else(|| format!("{name} must be a text"))
        };
        match name.as_str() {
            "name" => hook.name = text()?,
            "url" => {
                hook.url = text()?;
                if !hook.url.starts_with("https://") && !hook.url.starts_with("http://") {
                    return Err("url must be an http or https URL".to_owned());
                }
            }
            "enabled" => {
                hook.enabled = value.as_bool().ok_or("enabled must be a boolean")?;
            }
            "events" => {
                let list = value.as_array().ok_or("events must be a list")?;
                hook.events = list
                    .iter()
                    .map(|kind| Some(kind.as_str()?.to_owned()))
                    .collect::<Option<_>>()
                    .ok_or("events must hold texts")?;
            }
            "signatureSecret" => hook.secret = text()?,
            _ => {}
        }
    }
    Ok(())
}

/// `GET /events/sandboxes` and `/events/sandboxes/{id}`.
pub(super) fn history(inner: &Inner, parts: &Parts, id: &str) -> Answer {
    let query = Query::of(parts);
    let number = |name: &str, default: usize| {
        query
            .get(name)
            .map_or(Some(default), |text| text.parse().ok())
    };
    let (Some(offset), Some(limit @ 1..=100)) = (number("offset", 0), number("limit", 10)) else {
        return Answer::refusal(400, "offset must be at least 0, limit from 1 to 100");
    };
    let kinds = query.all("types");
    let history = inner.webhooks.history.lock();
    let mut found: Vec<&Value> = history
        .iter()
        .filter(|event| {
            let about = event.get("sandbox_id").or_else(|| event.get("sandboxId"));
            let kind = event["type"].as_str().unwrap_or_default();
            (id.is_empty() || about == Some(&json!(id)))
                && (kinds.is_empty() || kinds.contains(&kind))
        })
        .collect();
    if query.get("orderAsc") != Some("true") {
        found.reverse();
    }
    let page: Vec<Value> = found
        .into_iter()
        .skip(offset)
        .take(limit)
        .cloned()
        .collect();
    Answer::json(200, &Value::Array(page))
}
