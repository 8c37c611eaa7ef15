//! Faults that providers share: what the headers of a refusal say, how streams break, and what of a message
//! may be shown.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER};

use super::types::{LlmError, LlmErrorKind};
use crate::apart::aside;
use crate::clock::Clock;
use crate::net::sse::SseError;
use crate::secrets::Redactor;
use crate::show::prose;

/// The longest wish for a pause that is told apart from "much too long".
const LONGEST_PAUSE: Duration = Duration::from_hours(7 * 24);
/// How much of a provider's message is shown.
const SHOWN_CHARS: usize = 500;
/// The longest id of a request that is shown.
const LONGEST_ID: usize = 100;

/// A failure of `kind`, in the provider's words, with what `headers` say: when to come back, whether to
/// come back at all (`x-should-retry`), and the request's id, which is in the header `request_id`.
pub(super) fn refused(
    kind: LlmErrorKind,
    words: String,
    headers: &HeaderMap,
    request_id: &str,
) -> LlmError {
    let mut error = LlmError::new(kind, words);
    error.retry_after = retry_after(headers, Clock::system().now());
    error.should_retry = match headers.get("x-should-retry").map(HeaderValue::as_bytes) {
        Some(b"true") => Some(true),
        Some(b"false") => Some(false),
        Some(_) | None => None,
    };
    error.request_id = id_of(headers, request_id);
    error
}

/// The provider's name for a request, from the header `name` of its answer.
pub(super) fn id_of(headers: &HeaderMap, name: &str) -> Option<String> {
    let id = headers.get(name)?.to_str().ok()?;
    (id.len() <= LONGEST_ID).then(|| id.to_owned())
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

/// The answer of `provider` ended too early.
pub(super) fn cut(provider: &str) -> LlmError {
    LlmError::new(
        LlmErrorKind::Cut,
        format!("{provider} ended the stream before the answer was complete"),
    )
}

/// The answer of `provider` is not what its protocol says.
pub(super) fn bad(provider: &str, what: &str) -> LlmError {
    LlmError::new(LlmErrorKind::BadResponse, format!("{provider}: {what}"))
}

/// The run's own deadline: sending again can't help.
pub(super) fn out_of_time(provider: &'static str) -> LlmError {
    let mut error = LlmError::new(
        LlmErrorKind::Timeout,
        format!("{provider} was still answering when the time was over"),
    );
    error.should_retry = Some(false);
    error
}

/// Nothing of the answer came, though the connection lives.
pub(super) fn empty(provider: &'static str, limit: Duration) -> LlmError {
    LlmError::new(
        LlmErrorKind::Timeout,
        format!(
            "{provider} sent signs of life, but nothing of its answer for {} s",
            limit.as_secs()
        ),
    )
}

pub(super) fn broken(provider: &'static str, error: &SseError) -> LlmError {
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

/// `error` as it may be shown, with the request's id.
pub(super) fn cleaned(mut error: LlmError, redactor: &Redactor) -> LlmError {
    error.message = shown(redactor, &error.message);
    if let Some(id) = &mut error.request_id {
        *id = shown(redactor, id);
        error.message.push_str(" (request ");
        error.message.push_str(id);
        error.message.push(')');
    }
    error
}

/// `message` without secrets and what deceives readers, at a length that fits an event.
fn shown(redactor: &Redactor, message: &str) -> String {
    aside(message.len(), || {
        prose(&redactor.clean(message), SHOWN_CHARS)
    })
}

#[cfg(test)]
#[path = "fault_tests.rs"]
mod tests;
