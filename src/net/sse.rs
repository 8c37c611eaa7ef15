//! Server-sent events from a provider: bytes in any pieces in, whole events out, within limits.
//!
//! The grammar is `sse-stream`'s. In front of it stand limits of ours, so that no answer can grow a buffer
//! without bound, and the decoding of UTF-8 that the standard asks for: what is no text becomes U+FFFD, so that
//! one damaged character doesn't cost a whole answer. Silence is measured between bytes, not events: comments
//! and pings are life here. Whoever wants content bounds the wait for it around [`events`], which gives
//! nothing for a comment and nothing for a block without data.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use memchr::memchr2;
use sse_stream::SseByteStream;
use tokio::time::Instant;

use crate::clock::Deadline;

/// One event: its name, if it had one, and its data lines joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// The `event` field.
    pub event: Option<String>,
    /// The `data` fields, joined by line feeds.
    pub data: String,
}

/// How much of a stream is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseLimits {
    /// Bytes of one line, and of all lines of one event.
    pub event_bytes: u64,
    /// Bytes of the whole response.
    pub response_bytes: u64,
}

impl Default for SseLimits {
    fn default() -> Self {
        Self {
            event_bytes: 8 << 20,
            response_bytes: 64 << 20,
        }
    }
}

/// How reading a stream failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// Nothing came for this long.
    #[error("nothing arrived for {} s", .0.as_secs())]
    Silent(Duration),
    /// The deadline passed while the stream was open.
    #[error("the deadline passed")]
    DeadlinePassed,
    /// The connection broke.
    #[error("the connection broke off: {0}")]
    Broken(String),
    /// A line or an event is over the limit.
    #[error("a line or event is over {0} bytes")]
    EventTooLong(u64),
    /// The response is over the limit.
    #[error("the response is over {0} bytes")]
    ResponseTooLong(u64),
}

/// The bytes of `response` as they arrive: at most `silence` apart, none after `deadline`.
pub fn timed_body(
    response: reqwest::Response,
    silence: Duration,
    deadline: Deadline,
) -> impl Stream<Item = Result<Bytes, SseError>> + Send {
    stream::try_unfold(response, move |mut response| async move {
        let silent_at = Instant::now() + silence;
        let until = silent_at.min(deadline.instant());
        match tokio::time::timeout_at(until, response.chunk()).await {
            Ok(Ok(Some(bytes))) => Ok(Some((bytes, response))),
            Ok(Ok(None)) => Ok(None),
            Ok(Err(error)) => Err(SseError::Broken(innermost(&error.without_url()))),
            Err(_) if until < silent_at => Err(SseError::DeadlinePassed),
            Err(_) => Err(SseError::Silent(silence)),
        }
    })
}

/// The innermost cause of `error` in words: the outer layers only say that a body was being read.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Decodes `bytes` into events. Ends after the first error. A block without data, and an event that the
/// stream's end cut off, are dropped, as the SSE standard has it.
pub fn events<S>(bytes: S, limits: SseLimits) -> impl Stream<Item = Result<SseEvent, SseError>>
where
    S: Stream<Item = Result<Bytes, SseError>>,
{
    let mut guard = Guard::new(limits);
    let mut text = Utf8::default();
    let guarded = bytes.map(move |chunk| {
        let chunk = text.decode(chunk?);
        guard.admit(&chunk)?;
        Ok::<_, SseError>(chunk)
    });
    SseByteStream::new(guarded).filter_map(|block| std::future::ready(event(block).transpose()))
}

/// The event of a block, if it is one.
fn event(block: Result<sse_stream::Sse, sse_stream::Error>) -> Result<Option<SseEvent>, SseError> {
    match block {
        Ok(block) => Ok(block.data.map(|data| SseEvent {
            event: block.event,
            data,
        })),
        Err(sse_stream::Error::Body(inner)) => Err(match inner.downcast::<SseError>() {
            Ok(ours) => *ours,
            Err(other) => SseError::Broken(other.to_string()),
        }),
        Err(other) => Err(SseError::Broken(other.to_string())),
    }
}

/// Makes text of bytes that come in pieces, with U+FFFD for what is none.
#[derive(Debug, Default)]
struct Utf8 {
    /// The beginning of a character whose rest is still to come: at most three bytes.
    begun: BytesMut,
}

impl Utf8 {
    fn decode(&mut self, chunk: Bytes) -> Bytes {
        if self.begun.is_empty() && std::str::from_utf8(&chunk).is_ok() {
            return chunk;
        }
        let mut bytes = std::mem::take(&mut self.begun);
        bytes.extend_from_slice(&chunk);
        let whole = bytes.len() - begun(&bytes);
        self.begun = bytes.split_off(whole);
        match String::from_utf8_lossy(&bytes) {
            std::borrow::Cow::Borrowed(_) => bytes.freeze(),
            std::borrow::Cow::Owned(text) => text.into(),
        }
    }
}

/// How many bytes at the end of `bytes` begin a character that more bytes could complete.
fn begun(bytes: &[u8]) -> usize {
    let tail = bytes.get(bytes.len().saturating_sub(3)..).unwrap_or(bytes);
    let cut = |at: &usize| {
        let rest = tail.get(*at..).unwrap_or_default();
        std::str::from_utf8(rest)
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (0..tail.len()).find(cut).map_or(0, |at| tail.len() - at)
}

/// Counts what the decoder would have to keep.
#[derive(Debug)]
struct Guard {
    limits: SseLimits,
    response: u64,
    event: u64,
    line: u64,
    after_cr: bool,
}

impl Guard {
    const fn new(limits: SseLimits) -> Self {
        Self {
            limits,
            response: 0,
            event: 0,
            line: 0,
            after_cr: false,
        }
    }

    fn admit(&mut self, chunk: &[u8]) -> Result<(), SseError> {
        self.response += chunk.len() as u64;
        if self.response > self.limits.response_bytes {
            return Err(SseError::ResponseTooLong(self.limits.response_bytes));
        }
        let mut rest = chunk;
        while let Some(at) = memchr2(b'\n', b'\r', rest) {
            let (line, tail) = rest.split_at(at);
            let (end, tail) = tail.split_at(1);
            // The second half of a CR LF is no line of its own.
            let half = self.after_cr && at == 0 && end == b"\n";
            self.grow(line)?;
            if !half {
                if self.line == 0 {
                    self.event = 0;
                }
                self.line = 0;
            }
            self.after_cr = end == b"\r";
            rest = tail;
        }
        if !rest.is_empty() {
            self.after_cr = false;
        }
        self.grow(rest)
    }

    fn grow(&mut self, piece: &[u8]) -> Result<(), SseError> {
        self.line += piece.len() as u64;
        self.event += piece.len() as u64;
        if self.event > self.limits.event_bytes {
            return Err(SseError::EventTooLong(self.limits.event_bytes));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "sse_tests.rs"]
mod tests;
