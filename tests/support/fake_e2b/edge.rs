//! The edge proxy and envd's front door: which sandbox, alive or not, with which token and user.

use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Inner;
use super::connect::ConnectError;
use super::sandboxes::{SandboxBox, State};

/// envd's port.
const PORT: &str = "49983";

/// A handler's answer, and why E2B's client should not have asked, if so.
pub(super) struct Answer {
    pub response: Box<Response<Body>>,
    pub refused: Option<String>,
}

impl From<Response<Body>> for Answer {
    fn from(response: Response<Body>) -> Self {
        Self {
            response: Box::new(response),
            refused: None,
        }
    }
}

impl Answer {
    /// `{"code","message"}`, for a request that a correct client can make.
    pub(super) fn error(status: u16, message: &str) -> Self {
        json_response(status, &json!({"code": status, "message": message})).into()
    }

    /// The same, noted as a refusal.
    pub(super) fn refusal(status: u16, message: &str) -> Self {
        Self {
            refused: Some(format!("{status}: {message}")),
            ..Self::error(status, message)
        }
    }

    /// Plain text, noted as a refusal.
    pub(super) fn refusal_text(status: u16, message: &str) -> Self {
        let mut response = Response::new(Body::from(message.to_owned()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Self {
            refused: Some(format!("{status}: {message}")),
            ..response.into()
        }
    }

    /// A status without a body.
    pub(super) fn empty(status: u16) -> Self {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.into()
    }

    pub(super) fn json(status: u16, body: &Value) -> Self {
        json_response(status, body).into()
    }

    /// A unary answer of Connect.
    pub(super) fn unary(result: Result<Value, ConnectError>) -> Self {
        match result {
            Ok(value) => Self::json(200, &value),
            Err(error) => Self {
                refused: refused(&error),
                ..Self::json(error.status().as_u16(), &error.json())
            },
        }
    }

    /// The answer of a stream: errors come in its end frame, with status 200.
    pub(super) fn stream(result: Result<Response<Body>, ConnectError>) -> Self {
        match result {
            Ok(response) => response.into(),
            Err(error) => Self {
                refused: refused(&error),
                ..error.stream().into()
            },
        }
    }
}

fn refused(error: &ConnectError) -> Option<String> {
    error
        .refused
        .then(|| format!("{}: {}", error.code, error.message))
}

fn json_response(status: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
        .headers_mut()
        .insert("content-type", "application/json".parse().unwrap());
    response
}

/// Who a command runs as, or whose home a path is relative to.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub name: String,
}

impl User {
    /// The home directory, as seen inside.
    pub(super) fn home(&self) -> &'static str {
        if self.name == "root" {
            "/root"
        } else {
            "/home/user"
        }
    }
}

/// The user by name; the template's default if there is none.
pub(super) fn named_user(name: Option<&str>) -> Result<User, ConnectError> {
    match name.unwrap_or_default() {
        "" => Ok(User {
            name: "user".to_owned(),
        }),
        name @ ("user" | "root") => Ok(User {
            name: name.to_owned(),
        }),
        other => Err(ConnectError::refusal(
            "unauthenticated",
            format!("invalid username: '{other}'"),
        )),
    }
}

/// The user in `Authorization: Basic`.
pub(super) fn user(headers: &HeaderMap) -> Result<User, ConnectError> {
    let Some(header) = headers.get("authorization") else {
        return named_user(None);
    };
    let decoded = header
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("Basic "))
        .and_then(|text| STANDARD.decode(text).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let Some(pair) = decoded else {
        let why = "invalid authorization header";
        return Err(ConnectError::refusal("unauthenticated", why));
    };
    named_user(Some(pair.split(':').next().unwrap_or_default()))
}

/// The sandbox that a request is for, if the edge lets it through.
pub(super) fn locate(inner: &Inner, parts: &Parts) -> Result<Arc<SandboxBox>, Answer> {
    let header = |name: &str| Some(parts.headers.get(name)?.to_str().ok()?.to_owned());
    let (id, port) = match (header("e2b-sandbox-id"), header("e2b-sandbox-port")) {
        (Some(id), Some(port)) => (id, port),
        (None, None) => by_host(parts)
            .or_else(|| by_signature(inner, parts))
            .ok_or_else(|| nowhere(parts))?,
        _ => return Err(Answer::refusal_text(400, "missing header")),
    };
    if port.parse::<u16>().is_err() {
        return Err(Answer::refusal_text(400, "Invalid sandbox port"));
    }
    if id.is_empty()
        || !id
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    {
        return Err(Answer::refusal_text(400, "Invalid sandbox ID"));
    }
    let live = inner.sandboxes.get(&id);
    let Some(sandbox) = live.filter(|sandbox| sandbox.state() == State::Running) else {
        let message = "The sandbox was not found";
        return Err(Answer::json(
            502,
            &json!({"sandboxId": id, "message": message, "code": 502}),
        ));
    };
    if port != PORT {
        let message = "The sandbox is running but port is not open";
        let port: u16 = port.parse().unwrap_or_default();
        return Err(Answer::json(
            502,
            &json!({"sandboxId": id, "message": message, "port": port, "code": 502}),
        ));
    }
    Ok(sandbox)
}

/// The answer to a request for no sandbox and no known path of the API.
fn nowhere(parts: &Parts) -> Answer {
    let (method, path) = (&parts.method, parts.uri.path());
    let api = ["/v2/", "/sandboxes/", "/snapshots", "/templates", "/events"];
    if api.iter().any(|prefix| path.starts_with(prefix)) {
        Answer::refusal(404, &format!("no such path: {method} {path}"))
    } else {
        Answer::refusal_text(400, "invalid host")
    }
}

/// Whether the edge would take the client for a browser, and answer its errors in HTML.
pub(super) fn looks_like_a_browser(headers: &HeaderMap) -> bool {
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_ascii_lowercase()
    };
    let agent = text("user-agent");
    let browsers = [
        "mozilla", "chrome", "safari", "firefox", "edge", "opera", "msie",
    ];
    browsers.iter().any(|name| agent.contains(name)) && !text("accept").contains("json")
}

/// `<port>-<id>.<domain>`.
fn by_host(parts: &Parts) -> Option<(String, String)> {
    let host = parts.headers.get("host")?.to_str().ok()?;
    let (port, id) = host.split('.').next()?.split_once('-')?;
    port.parse::<u16>().ok()?;
    Some((id.to_owned(), port.to_owned()))
}

/// A signed URL on a shared origin names no sandbox but by whose token made the signature.
fn by_signature(inner: &Inner, parts: &Parts) -> Option<(String, String)> {
    let query = Query::of(parts);
    query.get("signature")?;
    let operation = operation(parts);
    let owner = inner
        .sandboxes
        .list()
        .into_iter()
        .find(|sandbox| query.signed_by(&sandbox.token, operation))?;
    Some((owner.id.clone(), PORT.to_owned()))
}

fn operation(parts: &Parts) -> &'static str {
    if parts.method == "GET" {
        "read"
    } else {
        "write"
    }
}

/// Whether envd lets the request in: by its token or, for files, by a signature.
pub(super) fn admit(sandbox: &SandboxBox, parts: &Parts, files: bool) -> Result<(), Answer> {
    if !sandbox.wish.secure {
        return Ok(());
    }
    let token = parts.headers.get("x-access-token");
    if let Some(token) = token {
        if token.as_bytes() == sandbox.token.as_bytes() {
            return Ok(());
        }
    } else if files {
        let query = Query::of(parts);
        if query.get("signature").is_some() {
            let expiry = query.get("signature_expiration").map(str::parse::<i64>);
            let now = sandcaster::clock::Clock::system().now().as_second();
            return match expiry {
                Some(Err(_)) => Err(Answer::refusal(400, "invalid signature expiration")),
                Some(Ok(at)) if at < now => {
                    Err(Answer::refusal(401, "signature is already expired"))
                }
                _ if query.signed_by(&sandbox.token, operation(parts)) => Ok(()),
                _ => Err(Answer::refusal(401, "invalid signature")),
            };
        }
    }
    let why =
        "unauthorized access, please provide a valid access token or method signing if supported";
    Err(Answer::refusal(401, why))
}

/// A decoded query.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(parts: &Parts) -> Self {
        Self::parse(parts.uri.query().unwrap_or_default())
    }

    pub(super) fn parse(raw: &str) -> Self {
        let pairs = raw.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Every value of a name, those joined by commas apart.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        let found = self.0.iter().filter(|(key, _)| key == name);
        found.flat_map(|(_, value)| value.split(',')).collect()
    }

    fn signed_by(&self, token: &str, operation: &str) -> bool {
        let path = self.get("path").unwrap_or_default();
        let user = self.get("username").unwrap_or_default();
        let mut text = format!("{path}:{operation}:{user}:{token}");
        if let Some(expiry) = self.get("signature_expiration") {
            text = format!("{text}:{expiry}");
        }
        let digest = Sha256::digest(text.as_bytes());
        let wanted = format!("v1_{}", STANDARD_NO_PAD.encode(digest));
        self.get("signature") == Some(wanted.as_str())
    }
}

/// Percent-decoding, with `+` as a blank.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = || u8::from_str_radix(text.get(at + 1..at + 3)?, 16).ok();
        match bytes[at] {
            b'%' => {
                if let Some(byte) = hex() {
                    out.push(byte);
                    at += 3;
                    continue;
                }
                out.push(b'%');
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}
