//! What came in: every request, and those that E2B would have refused.

use axum::http::HeaderMap;
use axum::http::request::Parts;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use super::routes::{Route, Target};

/// A request as it was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The call.
    pub route: Route,
    /// `GET`, `POST`, ….
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// The raw query, empty if none.
    pub query: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body, but for uploads and `StreamInput`, whose bodies are read as they come.
    pub body: Bytes,
    /// The sandbox: from the path, else from `E2b-Sandbox-Id`, else empty.
    pub sandbox: String,
}

impl Seen {
    pub(super) fn new(parts: &Parts, target: &Target, body: Bytes) -> Self {
        let header = parts.headers.get("e2b-sandbox-id");
        let named = header.and_then(|id| id.to_str().ok()).unwrap_or_default();
        let sandbox = if target.id.is_empty() {
            named
        } else {
            &target.id
        };
        Self {
            route: target.route,
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers.clone(),
            body,
            sandbox: sandbox.to_owned(),
        }
    }

    /// A header's text, empty if absent.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON, without the envelope if there is one; null if it is neither.
    pub fn json(&self) -> Value {
        let plain = serde_json::from_slice(&self.body);
        plain
            .or_else(|_| serde_json::from_slice(self.body.get(5..).unwrap_or_default()))
            .unwrap_or(Value::Null)
    }
}

/// A request that E2B would have refused, with the reason.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The call.
    pub route: Route,
    /// Method and path.
    pub request: String,
    /// What was wrong with it.
    pub reason: String,
}

#[derive(Default)]
pub(super) struct Journal {
    seen: Mutex<Vec<Seen>>,
    refusals: Mutex<Vec<Refusal>>,
}

/// Later requests are answered but not kept: a runaway client must not eat the test's memory.
const KEPT: usize = 100_000;

impl Journal {
    pub(super) fn note(&self, seen: &Seen) {
        let mut all = self.seen.lock();
        if all.len() < KEPT {
            all.push(seen.clone());
        }
    }

    pub(super) fn refuse(&self, seen: &Seen, reason: String) {
        let mut all = self.refusals.lock();
        if all.len() < KEPT {
            all.push(Refusal {
                route: seen.route,
                request: format!("{} {}", seen.method, seen.path),
                reason,
            });
        }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub(super) fn count(&self, route: Route) -> usize {
        self.seen.lock().iter().filter(|s| s.route == route).count()
    }

    pub(super) fn refusals(&self) -> Vec<Refusal> {
        self.refusals.lock().clone()
    }

    /// Takes out the refusals whose reason contains `part`.
    pub(super) fn forgive(&self, part: &str) -> usize {
        let mut all = self.refusals.lock();
        let before = all.len();
        all.retain(|refusal| !refusal.reason.contains(part));
        before - all.len()
    }
}
