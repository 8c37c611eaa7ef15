//! Bodies: their type, encoding, size and time (HT-5, HT-7, HT-8).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::error::{ErrorCode, Problem};

/// The largest body of `POST /query`: 10 MB of files as base64 and an escaped prompt fit.
pub(super) const QUERY_LIMIT: usize = 32 << 20;
/// The largest body of a webhook delivery.
pub(super) const WEBHOOK_LIMIT: usize = 256 << 10;
/// The largest body of anything else.
pub(super) const OTHER_LIMIT: usize = 64 << 10;

/// The unit in which memory for bodies is counted.
const UNIT: usize = 4 << 10;

/// What a body meets that has no room beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// It is refused.
    Refuse,
    /// The oldest that is still arriving is refused instead: who sends in one go gets through, however many others
    /// stall.
    RefuseOldest,
}

/// Reads bodies within a budget of memory that all its requests share.
#[derive(Debug)]
pub(super) struct Intake {
    timeout: Duration,
    budget: Arc<Semaphore>,
    when_full: WhenFull,
    begun: AtomicU64,
    /// What has arrived of bodies that are not whole, by their numbers.
    arriving: Mutex<BTreeMap<u64, Place>>,
}

/// A part of the budget, and what tells its body that it was taken away.
#[derive(Debug)]
struct Place(OwnedSemaphorePermit, CancellationToken);

/// A whole body, and its place in the budget until it is dropped.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Bytes,
    _place: Option<Place>,
}

impl Intake {
    /// Bodies that arrive within `timeout`, `at_once` bytes of them together.
    pub(super) fn new(timeout: Duration, at_once: usize, when_full: WhenFull) -> Self {
        Self {
            timeout,
            budget: Arc::new(Semaphore::new(at_once.div_ceil(UNIT))),
            when_full,
            begun: AtomicU64::new(0),
            arriving: Mutex::default(),
        }
    }

    /// Reads a body of at most `limit` bytes, of any type.
    ///
    /// # Errors
    /// `UNSUPPORTED_MEDIA_TYPE` (encoded), `BODY_TOO_LARGE`, `REQUEST_TIMEOUT`, `SERVER_BUSY`,
    /// `INVALID_JSON` (broken off).
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
        limit: usize,
    ) -> Result<Received, Problem> {
        not_encoded(headers)?;
        let declared = headers
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse::<u64>().ok());
        if declared.is_some_and(|length| length > limit as u64) {
            return Err(too_large(limit));
        }
        let arrival = Arrival {
            intake: self,
            no: self.begun.fetch_add(1, Ordering::Relaxed),
            refused: CancellationToken::new(),
        };
        tokio::select! {
            biased;
            () = arrival.refused.cancelled() => Err(busy()),
            whole = timeout(self.timeout, arrival.collect(body, limit)) => whole.unwrap_or_else(|_| {
                Err(Problem::new(
                    ErrorCode::RequestTimeout,
                    format!(
                        "the body did not arrive within {} s",
                        self.timeout.as_secs_f64()
                    ),
                ))
            }),
        }
    }
}

/// A body that is being read. What it holds of the budget is free when this is dropped.
struct Arrival<'i> {
    intake: &'i Intake,
    no: u64,
    refused: CancellationToken,
}

impl Arrival<'_> {
    async fn collect(&self, body: Body, limit: usize) -> Result<Received, Problem> {
        let mut held = 0;
        let mut bytes = BytesMut::new();
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| {
                Problem::new(
                    ErrorCode::InvalidJson,
                    "the body broke off or is badly framed",
                )
            })?;
            let length = bytes.len() + chunk.len();
            if length > limit {
                return Err(too_large(limit));
            }
            let more = length.saturating_sub(held).div_ceil(UNIT);
            if more > 0 {
                self.take(more)?;
                held += more * UNIT;
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Received {
            bytes: bytes.freeze(),
            _place: self.intake.arriving.lock().remove(&self.no),
        })
    }

    /// Takes `more` units of the budget.
    fn take(&self, more: usize) -> Result<(), Problem> {
        let more = u32::try_from(more).map_err(|_| busy())?;
        let mut arriving = self.intake.arriving.lock();
        while !self.refused.is_cancelled() {
            let budget = Arc::clone(&self.intake.budget);
            if let Ok(permit) = budget.try_acquire_many_owned(more) {
                match arriving.entry(self.no) {
                    Entry::Occupied(mut place) => place.get_mut().0.merge(permit),
                    Entry::Vacant(place) => {
                        place.insert(Place(permit, self.refused.clone()));
                    }
                }
                return Ok(());
            }
            let oldest = arriving.first_entry().filter(|oldest| {
                self.intake.when_full == WhenFull::RefuseOldest && *oldest.key() < self.no
            });
            let Some(oldest) = oldest else {
                break;
            };
            let Place(_free, refused) = oldest.remove();
            refused.cancel();
        }
        Err(busy())
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        self.intake.arriving.lock().remove(&self.no);
    }
}

fn busy() -> Problem {
    Problem::new(
        ErrorCode::ServerBusy,
        "the server holds as many request bodies as it may; retrying is safe",
    )
}

fn too_large(limit: usize) -> Problem {
    let readable = if limit >= 1 << 20 {
        format!("{} MiB", limit >> 20)
    } else {
        format!("{} KiB", limit >> 10)
    };
    Problem::new(
        ErrorCode::BodyTooLarge,
        format!("the body is over the limit of {limit} bytes ({readable})"),
    )
}

/// Refuses compressed bodies, so that no small body can become a large one.
fn not_encoded(headers: &HeaderMap) -> Result<(), Problem> {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    if encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Ok(());
    }
    Err(Problem::field(
        ErrorCode::UnsupportedMediaType,
        "Content-Encoding",
        "bodies must be sent without a content encoding",
    ))
}

/// Requires `Content-Type: application/json`, in UTF-8 if it names a charset. Other types are what a
/// web page can send without asking.
///
/// # Errors
/// `UNSUPPORTED_MEDIA_TYPE`.
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let ok = match (types.next(), types.next()) {
        (Some(one), None) => one.to_str().is_ok_and(is_json),
        _ => false,
    };
    if ok {
        return Ok(());
    }
    Err(Problem::field(
        ErrorCode::UnsupportedMediaType,
        "Content-Type",
        "the body must be sent as application/json",
    )
    .hint("send the header Content-Type: application/json"))
}

fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    essence.eq_ignore_ascii_case("application/json")
        && parts.all(|parameter| match parameter.split_once('=') {
            Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
                let value = value.trim().trim_matches('"');
                value.eq_ignore_ascii_case("utf-8") || value.eq_ignore_ascii_case("utf8")
            }
            _ => true,
        })
}

/// Whether the client wants one JSON document instead of a stream: it accepts `application/json` and
/// neither `text/event-stream` nor everything.
pub(super) fn wants_json(headers: &HeaderMap) -> bool {
    let mut json = false;
    for range in headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
    {
        let mut parts = range.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let refused = parts.any(|parameter| {
            parameter
                .to_ascii_lowercase()
                .strip_prefix("q=")
                .is_some_and(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0))
        });
        match essence.as_str() {
            _ if refused => {}
            "application/json" => json = true,
            "text/event-stream" | "*/*" => return false,
            _ => {}
        }
    }
    json
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_an_explicit_wish_for_json_makes_the_request_wait() {
        for (accept, expected) in [
            ("application/json", true),
            ("application/json, text/plain", true),
            ("Application/JSON;q=0.9", true),
            ("application/json, */*", false),
            ("application/json, text/plain, */*", false),
            ("text/event-stream, application/json", false),
            ("application/json, text/event-stream;q=0", true),
            ("*/*", false),
            ("text/event-stream", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(wants_json(&headers), expected, "{accept}");
        }
        assert!(!wants_json(&HeaderMap::new()));
    }

    #[test]
    fn json_is_told_from_what_a_form_could_send() {
        for good in [
            "application/json",
            "application/json; charset=utf-8",
            "Application/Json;charset=\"UTF-8\"",
        ] {
            assert!(is_json(good), "{good}");
        }
        for bad in [
            "",
            "text/plain",
            "application/jsonp",
            "text/plain; application/json",
            "application/json; charset=utf-16",
            "application/json, text/plain",
            "multipart/form-data",
        ] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
