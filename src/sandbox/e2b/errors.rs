//! What E2B's failures mean: one reading for the control plane, the edge and envd.
//!
//! A failed call is a [`Fault`]: not sent, sent and not answered, too late, or answered with an
//! [`Answer`] that is no success. What follows from it depends on the call and is decided there.

use std::error::Error as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;

use crate::clock::Deadline;
use crate::net::{never_sent, refusal};
use crate::sandbox::types::SandboxError;
use crate::secrets::Redactor;
use crate::show::prose;

/// The most that is read of an error's body.
const ERROR_BODY: usize = 64 * 1024;
/// The most characters that are shown of a foreign text.
const SHOWN: usize = 200;

/// How a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No connection: nothing was sent.
    Unsent(String),
    /// The connection broke: what was sent may have been done.
    Lost(String),
    /// No answer in time: what was sent may have been done.
    Late,
    /// An answer that is no success.
    Refused(Answer),
    /// A success that can't be understood.
    Protocol(String),
}

/// An answer that is no success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// The body's `code`: Connect's word, or a number that wins over the status.
    pub(super) code: Option<Code>,
    /// The body's message, else its text: short, without control characters, without secrets.
    pub(super) message: String,
    /// The control plane's `error_code`.
    pub(super) error_code: Option<String>,
    /// The header of that name.
    pub(super) retry_after: Option<Duration>,
    /// The header of that name.
    pub(super) should_retry: Option<bool>,
}

/// What the edge in front of the sandboxes says of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    /// It doesn't exist: killed, timed out or paused.
    Gone,
    /// It exists, but nothing listens on the port. The request reached nobody.
    PortClosed,
    /// It is changing its state. The request reached nobody.
    Transitioning,
    /// Too many connections to it. The request reached nobody.
    Crowded,
}

impl Answer {
    /// The edge's meaning, if this is an answer of the edge.
    pub(super) fn edge(&self) -> Option<Edge> {
        let says = |text: &str| self.message.to_ascii_lowercase().contains(text);
        match self.status {
            502 if says("was not found") => Some(Edge::Gone),
            502 if says("port is not open") => Some(Edge::PortClosed),
            409 if says("transitioning") => Some(Edge::Transitioning),
            429 => Some(Edge::Crowded),
            _ => None,
        }
    }

    /// The Connect code: the body's own, else what the status stands for at E2B.
    pub(super) fn rpc(&self) -> Code {
        self.code.unwrap_or_else(|| Code::of_status(self.status))
    }

    /// Whether the control plane wants the request again (`e2b.md` §1.7).
    pub(super) fn retryable(&self) -> bool {
        self.should_retry
            .unwrap_or(matches!(self.status, 429 | 502..=504))
    }

    /// Whether the account's number of sandboxes is used up.
    pub(super) fn at_capacity(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        self.status == 429 && message.contains("maximum number of concurrent")
    }

    /// Whether a sandbox has lived, or would live, as long as the plan lets it.
    pub(super) fn at_longest_life(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        self.status == 400 && message.contains("max instance length")
    }

    /// `N` of "Timeout cannot be greater than N hours".
    pub(super) fn longest_hours(&self) -> Option<u64> {
        let message = self.message.to_ascii_lowercase();
        let (_, rest) = message.split_once("cannot be greater than ")?;
        let mut words = rest.split_whitespace();
        let hours: u64 = words.next()?.parse().ok()?;
        let unit = words.next()?;
        (self.status == 400 && unit.starts_with("hour") && (1..=24 * 30).contains(&hours))
            .then_some(hours)
    }

    fn shown(&self) -> String {
        if self.message.is_empty() {
            format!("HTTP {}", self.status)
        } else {
            format!("HTTP {}: {}", self.status, self.message)
        }
    }

    /// The error for the caller of a control-plane call; `doing` fits after "while".
    pub(super) fn control_error(&self, doing: &str) -> SandboxError {
        let shown = self.shown();
        match self.status {
            401 | 403 => SandboxError::Auth {
                message: format!("E2B refused the key while {doing} ({shown})"),
                hint: "set E2B_API_KEY to a valid key of the team (https://e2b.dev/dashboard)"
                    .to_owned(),
            },
            429 => SandboxError::RateLimited {
                message: format!("E2B throttled us while {doing} ({shown})"),
                retry_after: self.retry_after,
                at_capacity: self.at_capacity(),
            },
            504 => SandboxError::Timeout(format!(
                "E2B timed out while {doing} ({shown}); retrying is safe"
            )),
            500.. => SandboxError::Backend(format!(
                "E2B failed while {doing} ({shown}); retrying is safe"
            )),
            _ => SandboxError::Backend(format!("E2B refused the request while {doing} ({shown})")),
        }
    }
}

impl Fault {
    /// Whether the same idempotent request may well succeed soon.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Unsent(_) | Self::Lost(_) | Self::Late => true,
            Self::Refused(answer) => match answer.edge() {
                Some(edge) => edge != Edge::Gone,
                None => answer.retryable(),
            },
            Self::Protocol(_) => false,
        }
    }

    /// How long the other side wants us to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(answer) => answer.retry_after,
            _ => None,
        }
    }

    /// The error for the caller of a control-plane call; `doing` fits after "while".
    pub(super) fn control_error(&self, doing: &str) -> SandboxError {
        match self {
            Self::Unsent(cause) => {
                SandboxError::Backend(format!("could not reach E2B while {doing}: {cause}"))
            }
            Self::Lost(cause) => SandboxError::Backend(format!(
                "the connection to E2B broke while {doing}: {cause}"
            )),
            Self::Late => {
                SandboxError::Timeout(format!("E2B did not answer in time while {doing}"))
            }
            Self::Refused(answer) => answer.control_error(doing),
            Self::Protocol(cause) => SandboxError::Backend(format!(
                "E2B's answer could not be understood while {doing}: {cause}"
            )),
        }
    }

    /// The same for a person who asks why a sandbox can't be reached.
    pub(super) fn cause(&self) -> String {
        match self {
            Self::Unsent(cause) => format!("no connection: {cause}"),
            Self::Lost(cause) => format!("the connection broke: {cause}"),
            Self::Late => "no answer in time".to_owned(),
            Self::Refused(answer) => answer.shown(),
            Self::Protocol(cause) => format!("not understood: {cause}"),
        }
    }
}

/// Connect's error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Code {
    Canceled,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
    #[serde(other)]
    Unknown,
}

impl Code {
    /// What a plain HTTP status stands for on an RPC (`e2b.md` §8; not Connect's own table).
    pub(super) const fn of_status(status: u16) -> Self {
        match status {
            400 => Self::InvalidArgument,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::NotFound,
            409 => Self::AlreadyExists,
            413 | 429 => Self::ResourceExhausted,
            499 => Self::Canceled,
            500 => Self::Internal,
            501 | 505 => Self::Unimplemented,
            502 | 503 => Self::Unavailable,
            504 => Self::DeadlineExceeded,
            _ => Self::Unknown,
        }
    }
}

/// An error in Connect's own form.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct RpcError {
    /// What kind.
    pub(super) code: Code,
    /// In envd's words; clean it before it is shown.
    #[serde(default)]
    pub(super) message: String,
}

/// Sends `request` and gives its answer's head, whatever its status.
pub(super) async fn send(request: RequestBuilder, until: Deadline) -> Result<Response, Fault> {
    match tokio::time::timeout_at(until.instant(), request.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(transport(&error)),
        Err(_) => Err(Fault::Late),
    }
}

/// Sends `request` and gives its answer's head if it is a success.
pub(super) async fn succeed(
    request: RequestBuilder,
    until: Deadline,
    redactor: &Redactor,
) -> Result<Response, Fault> {
    let response = send(request, until).await?;
    if response.status().is_success() {
        Ok(response)
    } else {
        Err(Fault::Refused(answer(response, until, redactor).await))
    }
}

/// A body, whole, of at most `most` bytes.
pub(super) async fn body(
    mut response: Response,
    most: usize,
    until: Deadline,
) -> Result<Bytes, Fault> {
    let mut held = BytesMut::new();
    loop {
        match tokio::time::timeout_at(until.instant(), response.chunk()).await {
            Ok(Ok(Some(chunk))) if held.len() + chunk.len() > most => {
                return Err(Fault::Protocol(format!("a body over {most} bytes")));
            }
            Ok(Ok(Some(chunk))) => held.extend_from_slice(&chunk),
            Ok(Ok(None)) => return Ok(held.freeze()),
            Ok(Err(error)) => return Err(transport(&error)),
            Err(_) => return Err(Fault::Late),
        }
    }
}

/// Reads an answer that is no success. Never fails: what can't be read is left out.
pub(super) async fn answer(response: Response, until: Deadline, redactor: &Redactor) -> Answer {
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let body = refusal(response, ERROR_BODY, until, redactor).await;
    parse_answer(status, &headers, body.as_bytes(), redactor)
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    code: Option<serde_json::Value>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    error_code: Option<String>,
}

/// Makes an [`Answer`] of its parts.
pub(super) fn parse_answer(
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    redactor: &Redactor,
) -> Answer {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let parsed = serde_json::from_slice::<ErrorBody>(body).ok();
    let code = parsed
        .as_ref()
        .and_then(|parsed| parsed.code.as_ref())
        .and_then(|code| match code {
            serde_json::Value::Number(number) => number
                .as_u64()
                .and_then(|number| u16::try_from(number).ok())
                .map(Code::of_status),
            word => serde_json::from_value(word.clone()).ok(),
        });
    let message = parsed
        .as_ref()
        .and_then(|parsed| parsed.message.clone())
        .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    Answer {
        status,
        code,
        message: presentable(&message, redactor),
        error_code: parsed.and_then(|parsed| parsed.error_code),
        retry_after: text(RETRY_AFTER.as_str())
            .and_then(|value| value.trim().parse().ok())
            .map(Duration::from_secs),
        should_retry: text("should-retry").and_then(|value| value.trim().parse().ok()),
    }
}

/// A foreign text made fit to be shown: secrets removed, on one line, short.
pub(super) fn presentable(text: &str, redactor: &Redactor) -> String {
    prose(&redactor.clean(text), SHOWN)
}

/// Why a foreign answer can't be read, and how it begins. Cleaned as a whole: a cut could leave half a secret.
pub(super) fn unreadable(cause: &str, answer: &[u8], redactor: &Redactor) -> String {
    let answer = String::from_utf8_lossy(answer);
    presentable(&format!("{cause}: {answer}"), redactor)
}

/// Reads a transport error; its text has neither URL nor header.
pub(super) fn transport(error: &reqwest::Error) -> Fault {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let words = if error.source().is_none() {
        "the request failed".to_owned()
    } else {
        cause.to_string()
    };
    if never_sent(error) {
        Fault::Unsent(words)
    } else {
        Fault::Lost(words)
    }
}

#[cfg(test)]
#[path = "errors_tests.rs"]
mod tests;
