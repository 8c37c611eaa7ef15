//! The part that all providers share: sends a request, watches the clock, and turns the answer's bytes
//! into deltas through the provider's decoder.
//!
//! A provider supplies a [`Call`] (where, headers, body, how to read an error) and a [`Decoder`]. An
//! answer that comes as one JSON document, as gateways send it, goes through the same decoder.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use serde_json::Value;
use tokio::time::Instant;

use super::types::{LlmDelta, LlmError, LlmErrorKind, LlmStream};
use crate::clock::{Clock, Deadline};
use crate::net::HttpClient;
use crate::net::sse::{self, SseError, SseEvent, SseLimits};
use crate::secrets::Redactor;

/// How long an answer may keep silent, and how much of it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLimits {
    /// From the request to the head of the answer.
    pub first_byte: Duration,
    /// Between two pieces of the body; comments and pings count as life.
    pub silence: Duration,
    /// Sizes.
    pub sse: SseLimits,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_mins(2),
            silence: Duration::from_secs(90),
            sse: SseLimits::default(),
        }
    }
}

/// How much of an error's body is read.
const ERROR_BODY: usize = 64 << 10;
/// How long an error's body may take.
const ERROR_BODY_TIME: Duration = Duration::from_secs(10);
/// How much of a provider's message is shown.
const SHOWN_CHARS: usize = 500;
/// How long the end of the body is waited for after the answer is complete, so that the connection can
/// be used again.
const TAIL_TIME: Duration = Duration::from_millis(250);
/// The longest wish for a pause that is told apart from "much too long".
const LONGEST_PAUSE: Duration = Duration::from_hours(7 * 24);

/// One request, ready to send.
pub(super) struct Call<'a> {
    /// The provider's name, for messages.
    pub(super) provider: &'static str,
    pub(super) http: &'a HttpClient,
    pub(super) url: &'a str,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    pub(super) deadline: Deadline,
    pub(super) limits: StreamLimits,
    /// Knows the key: what a provider or a gateway says may repeat it.
    pub(super) redactor: Redactor,
    /// Reads the kind of failure, and the provider's words, from a status and a body.
    pub(super) classify: fn(u16, &str) -> (LlmErrorKind, String),
}

/// A provider's decoder: pure, one per answer.
pub(super) trait Decoder: Send + 'static {
    /// Takes one event. No delta follows an error.
    fn on_event(&mut self, event: &SseEvent) -> Result<Vec<LlmDelta>, LlmError>;
    /// The events that a whole answer in one JSON document stands for.
    fn events_of(body: Value) -> Vec<SseEvent>;
}

/// Sends the request and waits for the answer's head.
///
/// # Errors
/// Any kind of [`LlmError`]; nothing was shown to anybody yet.
pub(super) async fn open<D: Decoder>(call: Call<'_>, decoder: D) -> Result<LlmStream, LlmError> {
    let provider = call.provider;
    let head_at = Instant::now() + call.limits.first_byte;
    let until = head_at.min(call.deadline.instant());
    let request = call
        .http
        .post(call.url)
        .headers(call.headers)
        .body(call.body)
        .send();
    let mut response = match tokio::time::timeout_at(until, request).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(unreachable(provider, error, &call.redactor)),
        Err(_) if until < head_at => return Err(out_of_time(provider)),
        Err(_) => {
            return Err(LlmError::new(
                LlmErrorKind::Timeout,
                format!(
                    "{provider} did not begin to answer within {} s",
                    call.limits.first_byte.as_secs()
                ),
            ));
        }
    };
    let status = response.status();
    if !status.is_success() {
        return Err(refused(
            &call.redactor,
            call.classify,
            provider,
            call.deadline,
            response,
        )
        .await);
    }
    let coding = response.headers().get(CONTENT_ENCODING);
    if coding.is_some_and(|coding| coding != "identity") {
        return Err(bad(
            provider,
            "the answer is compressed, which was not asked for",
        ));
    }
    let media_type = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_ascii_lowercase();
    let reader = Reader {
        provider,
        decoder,
        redactor: call.redactor,
    };
    // The head's values are slices of the connection's first buffer and would keep all of it in memory.
    response.headers_mut().clear();
    let body = sse::timed_body(response, call.limits.silence, call.deadline);
    let mut body = Box::pin(body);
    let first = match body.next().await {
        Some(Ok(first)) => first,
        Some(Err(error)) => return Err(broken(provider, &error)),
        None => return Err(cut(provider)),
    };
    // Gateways mislabel: the first byte tells JSON and web pages from events, which begin with neither.
    let shape = first
        .iter()
        .copied()
        .find(|byte| !byte.is_ascii_whitespace());
    let body = stream::iter([Ok(first)]).chain(body);
    if media_type.starts_with("application/json") || matches!(shape, Some(b'{' | b'[')) {
        let limit = call.limits.sse.response_bytes;
        let document = document(provider, body, limit).await?;
        return reader.whole(document, call.classify);
    }
    if media_type.starts_with("text/html") || matches!(shape, Some(b'<')) {
        let what = "the answer is a web page: is the base URL right?";
        return Err(bad(provider, what));
    }
    Ok(reader.stream(sse::events(body, call.limits.sse)))
}

struct Reader<D> {
    provider: &'static str,
    decoder: D,
    redactor: Redactor,
}

/// A stream's state between two deltas.
struct Reading<D, S> {
    reader: Reader<D>,
    events: S,
    ready: VecDeque<LlmDelta>,
    failed: Option<LlmError>,
    ended: bool,
}

impl<D: Decoder> Reader<D> {
    fn decode(&mut self, event: &SseEvent) -> Result<Vec<LlmDelta>, LlmError> {
        self.decoder.on_event(event).map_err(|mut error| {
            error.message = shown(&self.redactor, &error.message);
            error
        })
    }

    /// The deltas of a stream of events.
    fn stream<S>(self, events: S) -> LlmStream
    where
        S: Stream<Item = Result<SseEvent, SseError>> + Send + 'static,
    {
        let reading = Reading {
            reader: self,
            events: Box::pin(events),
            ready: VecDeque::new(),
            failed: None,
            ended: false,
        };
        Box::pin(stream::unfold(reading, |mut reading| async move {
            let item = reading.next().await?;
            Some((item, reading))
        }))
    }

    /// The deltas of an answer that is one JSON document.
    fn whole(
        mut self,
        document: Value,
        classify: fn(u16, &str) -> (LlmErrorKind, String),
    ) -> Result<LlmStream, LlmError> {
        if document.get("error").is_some_and(|error| !error.is_null()) {
            let (kind, words) = classify(200, &document.to_string());
            let message = format!("{} answered with an error: {words}", self.provider);
            return Err(LlmError::new(kind, shown(&self.redactor, &message)));
        }
        let events = D::events_of(document);
        if events.is_empty() {
            return Err(bad(self.provider, "the answer is JSON, but not a message"));
        }
        let mut deltas = Vec::new();
        for event in &events {
            deltas.extend(self.decode(event)?);
        }
        Ok(Box::pin(stream::iter(deltas.into_iter().map(Ok))))
    }
}

impl<D: Decoder, S> Reading<D, S>
where
    S: Stream<Item = Result<SseEvent, SseError>> + Unpin,
{
    async fn next(&mut self) -> Option<Result<LlmDelta, LlmError>> {
        loop {
            if let Some(delta) = self.ready.pop_front() {
                if matches!(delta, LlmDelta::Stop(_)) {
                    self.ended = true;
                    self.ready.clear();
                }
                return Some(Ok(delta));
            }
            if self.ended {
                self.read_tail().await;
                return None;
            }
            if let Some(error) = self.failed.take() {
                self.ended = true;
                return Some(Err(error));
            }
            let provider = self.reader.provider;
            match self.events.next().await {
                Some(Ok(event)) => match self.reader.decode(&event) {
                    Ok(deltas) => self.ready.extend(deltas),
                    Err(error) => self.failed = Some(error),
                },
                Some(Err(error)) => self.failed = Some(broken(provider, &error)),
                None => self.failed = Some(cut(provider)),
            }
        }
    }

    /// Reads what follows the end of the answer, normally nothing.
    async fn read_tail(&mut self) {
        let tail = async { while let Some(Ok(_)) = self.events.next().await {} };
        // Not reaching the end costs a connection, nothing else.
        drop(tokio::time::timeout(TAIL_TIME, tail).await);
    }
}

/// Reads a whole body as JSON.
async fn document(
    provider: &'static str,
    body: impl Stream<Item = Result<Bytes, SseError>>,
    limit: u64,
) -> Result<Value, LlmError> {
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| broken(provider, &error))?;
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            return Err(broken(provider, &SseError::ResponseTooLong(limit)));
        }
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| bad(provider, &format!("the answer is not JSON ({error})")))
}

/// The failure that a status other than success stands for.
async fn refused(
    redactor: &Redactor,
    classify: fn(u16, &str) -> (LlmErrorKind, String),
    provider: &'static str,
    deadline: Deadline,
    response: reqwest::Response,
) -> LlmError {
    let status = response.status();
    let headers = response.headers().clone();
    let body = error_body(response, deadline.within(ERROR_BODY_TIME)).await;
    let (kind, words) = if status.is_redirection() {
        let words = "it redirects, and redirects are not followed: is the base URL right?";
        (LlmErrorKind::BadResponse, words.to_owned())
    } else {
        classify(status.as_u16(), &body)
    };
    let mut message = format!("{provider} answered {}", status.as_u16());
    if !words.is_empty() {
        message.push_str(": ");
        message.push_str(&words);
    }
    let mut message = shown(redactor, &message);
    let request_id = headers.get("request-id").and_then(|id| id.to_str().ok());
    if let Some(id) = request_id.filter(|id| id.len() <= 100) {
        message.push_str(" (request ");
        message.push_str(&redactor.clean(id));
        message.push(')');
    }
    let mut error = LlmError::new(kind, message);
    error.retry_after = retry_after(&headers, Clock::system().now());
    error.should_retry = match headers.get("x-should-retry").map(HeaderValue::as_bytes) {
        Some(b"true") => Some(true),
        Some(b"false") => Some(false),
        Some(_) | None => None,
    };
    error
}

/// The beginning of an error's body; what can't be read in time is left out.
async fn error_body(response: reqwest::Response, deadline: Deadline) -> String {
    let mut body = std::pin::pin!(sse::timed_body(response, ERROR_BODY_TIME, deadline));
    let mut bytes = Vec::new();
    while let Some(Ok(chunk)) = body.next().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() >= ERROR_BODY {
            bytes.truncate(ERROR_BODY);
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// When the provider wants to be asked again: `retry-after-ms`, or `retry-after` in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let seconds = |text: &str, unit: f64| {
        let number: f64 = text.parse().ok().filter(|number: &f64| *number >= 0.0)?;
        Some(Duration::try_from_secs_f64(number * unit).unwrap_or(LONGEST_PAUSE))
    };
    let pause = text("retry-after-ms")
        .and_then(|millis| seconds(millis, 1e-3))
        .or_else(|| {
            let wish = text(RETRY_AFTER.as_str())?;
            seconds(wish, 1.0).or_else(|| {
                // The provider's own clock, where it tells it: ours may be off.
                let now = text(DATE.as_str()).and_then(http_date).unwrap_or(now);
                let seconds = http_date(wish)?.duration_since(now).as_secs().max(0);
                Some(Duration::from_secs(seconds.unsigned_abs()))
            })
        })?;
    Some(pause.min(LONGEST_PAUSE))
}

fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()
}

fn unreachable(provider: &'static str, error: reqwest::Error, redactor: &Redactor) -> LlmError {
    let error = error.without_url();
    let what = if error.is_connect() {
        "could not be reached"
    } else {
        "broke the connection before it answered"
    };
    let message = format!("{provider} {what}: {}", sse::innermost(&error));
    LlmError::new(LlmErrorKind::Unreachable, shown(redactor, &message))
}

/// The run's own deadline: sending again can't help.
fn out_of_time(provider: &'static str) -> LlmError {
    let mut error = LlmError::new(
        LlmErrorKind::Timeout,
        format!("{provider} was still answering when the time was over"),
    );
    error.should_retry = Some(false);
    error
}

fn bad(provider: &'static str, what: &str) -> LlmError {
    LlmError::new(LlmErrorKind::BadResponse, format!("{provider}: {what}"))
}

fn cut(provider: &'static str) -> LlmError {
    LlmError::new(
        LlmErrorKind::Cut,
        format!("{provider} ended the stream before the answer was complete"),
    )
}

fn broken(provider: &'static str, error: &SseError) -> LlmError {
    match error {
        SseError::DeadlinePassed => out_of_time(provider),
        SseError::Silent(limit) => LlmError::new(
            LlmErrorKind::Timeout,
            format!("{provider} was silent for {} s", limit.as_secs()),
        ),
        SseError::Broken(_) => LlmError::new(
            LlmErrorKind::Cut,
            format!("{provider} broke off the answer"),
        ),
        SseError::EventTooLong(_) | SseError::ResponseTooLong(_) => {
            bad(provider, &error.to_string())
        }
    }
}

/// `message` without secrets and control characters, at a length that fits an event.
fn shown(redactor: &Redactor, message: &str) -> String {
    let clean = redactor.clean(message);
    let mut shown: String = clean
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SHOWN_CHARS)
        .collect();
    if clean.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
