//! What the headers of a refusal say, in the forms that several providers share.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER};

use super::types::{LlmError, LlmErrorKind};
use crate::clock::Clock;

/// The longest wish for a pause that is told apart from "much too long".
const LONGEST_PAUSE: Duration = Duration::from_hours(7 * 24);
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
    error.request_id = headers
        .get(request_id)
        .and_then(|id| id.to_str().ok())
        .filter(|id| id.len() <= LONGEST_ID)
        .map(str::to_owned);
    error
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

#[cfg(test)]
#[path = "fault_tests.rs"]
mod tests;
