//! Answers to what never became a request: no router has seen it, so they are written whole.

use serde_json::json;

use super::limits::Limits;
use crate::error::ErrorCode;
use crate::ids::nonce;

/// An answer after which the connection ends.
pub(super) struct Refusal {
    status: &'static str,
    /// Header lines of its own.
    more: &'static str,
    body: String,
}

impl Refusal {
    /// To a connection over the limit.
    pub(super) fn too_many() -> Self {
        let why = "too many connections";
        let code = ErrorCode::ServerBusy;
        let body = json!({ "error": why, "message": why, "code": code, "retryAfterSecs": 5 });
        Self {
            status: "503 Service Unavailable",
            more: "Retry-After: 5\r\n",
            body: body.to_string(),
        }
    }

    /// What is to be said in place of `head`, the head of a response, if it is hyper's own to what it can't read: it
    /// knows neither our headers nor how we tell errors.
    pub(super) fn in_place_of(head: &[u8], limits: &Limits) -> Option<Self> {
        let code = head.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        let (status, why) = match code {
            b"400" => (
                "400 Bad Request",
                "the request is no valid HTTP/1.1".to_owned(),
            ),
            b"414" => (
                "414 URI Too Long",
                "the request's target is too long".to_owned(),
            ),
            b"431" => (
                "431 Request Header Fields Too Large",
                format!(
                    "the request's head is too large (limit: {} headers, {} bytes)",
                    limits.max_headers, limits.max_head_bytes
                ),
            ),
            _ => return None,
        };
        // All that has passed our router has an id.
        let end = memchr::memmem::find(head, b"\r\n\r\n")?;
        let ours = memchr::memmem::find(head.get(..end)?, b"\r\nx-request-id:").is_some();
        let body = json!({ "error": why, "message": why, "code": ErrorCode::ValidationFailed });
        (!ours).then(|| Self {
            status,
            more: "",
            body: body.to_string(),
        })
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        let Self { status, more, body } = self;
        let whole = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{more}\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
             Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\nReferrer-Policy: no-referrer\r\n\
             X-Request-Id: {}\r\nConnection: close\r\n\r\n{body}",
            body.len(),
            nonce()
        );
        whole.into_bytes()
    }
}
