//! An answer as it streams in: events to deltas, and when it is over.
//!
//! It is over when its decoder says so; or when all of it is there but for the mark of its end, and then the
//! stream ends, says `[DONE]`, breaks off, or says nothing of value for some seconds.

use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, timeout, timeout_at};

use super::account::Account;
use super::def::StreamLimits;
use super::fault::{broken, cleaned, empty};
use super::protocol::{Decoder, Deltas, Heard};
use super::types::{Citation, LlmDelta, LlmError, LlmStop, LlmStream};
use crate::apart::aside;
use crate::net::sse::{SseError, SseEvent};
use crate::secrets::Redactor;
use crate::show::start;

/// How long the end of the body, which is at hand, is waited for after the answer is complete, so that the
/// connection can be used again.
const TAIL_TIME: Duration = Duration::from_millis(20);
/// The longest name or reason that is told of an answer.
const NAME_CHARS: usize = 200;
/// The longest query, title or quotation.
const SHOWN_CHARS: usize = 2000;
/// What ends a stream, with several providers and gateways.
const DONE: &str = "[DONE]";

/// What is kept of an answer between two deltas.
pub(super) struct Reader<D> {
    provider: &'static str,
    pub(super) decoder: D,
    pub(super) redactor: Redactor,
    /// The provider's name for the request, where it told one.
    pub(super) request_id: Option<String>,
    limits: StreamLimits,
    pub(super) ready: Deltas,
    pub(super) account: Account,
}

struct Reading<D, S> {
    reader: Reader<D>,
    events: S,
    /// When the last piece of the answer came.
    content_at: Instant,
    failed: Option<LlmError>,
    /// It failed before its answer began.
    sent_in_vain: bool,
    ended: bool,
    /// Whether the stream may still have something.
    open: bool,
}

impl<D: Decoder> Reader<D> {
    /// For an answer of `provider`, counted by `account`.
    pub(super) fn new(
        provider: &'static str,
        decoder: D,
        redactor: Redactor,
        limits: StreamLimits,
        account: Account,
    ) -> Self {
        Self {
            provider,
            decoder,
            redactor,
            request_id: None,
            limits,
            ready: Deltas::new(),
            account,
        }
    }

    /// The deltas of a stream of events.
    pub(super) fn stream<S>(self, events: S) -> LlmStream
    where
        S: Stream<Item = Result<SseEvent, SseError>> + Send + 'static,
    {
        self.read(events, None)
    }

    /// Those of an answer that failed before it began, though it may be billed: what was sent is counted.
    pub(super) fn failed(self, error: LlmError) -> LlmStream {
        self.read(stream::empty(), Some(error))
    }

    fn read<S>(self, events: S, failed: Option<LlmError>) -> LlmStream
    where
        S: Stream<Item = Result<SseEvent, SseError>> + Send + 'static,
    {
        let reading = Reading {
            reader: self,
            sent_in_vain: failed.is_some(),
            events: Box::pin(events),
            content_at: Instant::now(),
            failed,
            ended: false,
            open: true,
        };
        Box::pin(stream::unfold(reading, |mut reading| async move {
            let item = reading.next().await?;
            Some((item, reading))
        }))
    }

    /// The next delta that is ready. What was not told of the usage is estimated before a stop, and before
    /// what came is void.
    fn pop(&mut self) -> Option<LlmDelta> {
        let mut delta = self.ready.pop_front()?;
        shorten(&mut delta, &self.redactor);
        let usage = match &delta {
            LlmDelta::Usage(usage) => return Some(LlmDelta::Usage(self.account.told(*usage))),
            LlmDelta::Stop(_) => self.account.complete(),
            LlmDelta::Restarted => self.account.failed(true),
            _ => None,
        };
        if let Some(usage) = usage {
            self.ready.push_front(delta);
            return Some(LlmDelta::Usage(usage));
        }
        if delta == LlmDelta::Restarted {
            self.account.restart();
        }
        Some(delta)
    }
}

impl<D: Decoder, S> Reading<D, S>
where
    S: Stream<Item = Result<SseEvent, SseError>> + Unpin,
{
    async fn next(&mut self) -> Option<Result<LlmDelta, LlmError>> {
        loop {
            if let Some(delta) = self.reader.pop() {
                if matches!(delta, LlmDelta::Stop(_)) {
                    self.ended = true;
                    self.reader.ready.clear();
                }
                return Some(Ok(delta));
            }
            if self.ended {
                self.read_tail().await;
                return None;
            }
            let account = &mut self.reader.account;
            let usage = match &self.failed {
                Some(error) => account.failed(self.sent_in_vain || error.kind.may_be_billed()),
                None => account.so_far(),
            };
            if let Some(usage) = usage {
                return Some(Ok(LlmDelta::Usage(usage)));
            }
            if let Some(mut error) = self.failed.take() {
                error.request_id = error.request_id.or(self.reader.request_id.take());
                self.ended = true;
                self.open = false;
                return Some(Err(cleaned(error, &self.reader.redactor)));
            }
            if let Err(error) = self.step().await {
                self.failed = Some(error);
            }
        }
    }

    /// Takes one event, or what there is instead of it.
    async fn step(&mut self) -> Result<(), LlmError> {
        let Reader {
            provider,
            decoder,
            limits,
            ready,
            account,
            ..
        } = &mut self.reader;
        // Events that are at hand must not keep a thread from its other tasks, nor the run from its deadline.
        tokio::task::consume_budget().await;
        let complete = decoder.is_complete();
        let patience = if complete { limits.end } else { limits.content };
        // Dropping the wait loses nothing: what arrived stays in the stream.
        let next = timeout_at(self.content_at + patience, self.events.next()).await;
        match next {
            Ok(Some(Ok(event))) if event.data.trim() == DONE => end(decoder, ready),
            Ok(Some(Ok(event))) => {
                let heard = aside(decoder.work(&event), || decoder.on_event(&event, ready))?;
                if let Heard::Content(size) = heard {
                    self.content_at = Instant::now();
                    account.arrived(size);
                }
                Ok(())
            }
            Ok(None) => {
                self.open = false;
                end(decoder, ready)
            }
            Ok(Some(Err(_))) | Err(_) if complete => {
                self.open = false;
                end(decoder, ready)
            }
            Ok(Some(Err(error))) => Err(broken(provider, &error)),
            Err(_) => Err(empty(provider, limits.content)),
        }
    }

    /// Reads what follows the end of the answer, normally nothing.
    async fn read_tail(&mut self) {
        if self.open {
            let tail = async { while let Some(Ok(_)) = self.events.next().await {} };
            // Not reaching the end costs a connection, nothing else.
            drop(timeout(TAIL_TIME, tail).await);
        }
    }
}

/// Cuts what is told of an answer for people. Secrets are out of it before: of a half nobody can tell that it is one.
fn shorten(delta: &mut LlmDelta, redactor: &Redactor) {
    let cut = |text: &mut String, most: usize| {
        if start(text, most).len() < text.len() {
            let clean = aside(text.len(), || redactor.clean(text));
            *text = start(&clean, most).to_owned();
        }
    };
    match delta {
        LlmDelta::ServedModel(name) | LlmDelta::Stop(LlmStop::Unknown(name)) => {
            cut(name, NAME_CHARS);
        }
        LlmDelta::ServerToolUse { query, .. } => cut(query, SHOWN_CHARS),
        LlmDelta::Citation(Citation { url, title, quote }) => {
            for text in [url, title, quote].into_iter().flatten() {
                cut(text, SHOWN_CHARS);
            }
        }
        LlmDelta::Stop(LlmStop::Refusal {
            category,
            explanation,
        }) => {
            for text in [category, explanation].into_iter().flatten() {
                cut(text, SHOWN_CHARS);
            }
        }
        LlmDelta::Text(_)
        | LlmDelta::Thinking(_)
        | LlmDelta::Block(_)
        | LlmDelta::Warning { .. }
        | LlmDelta::Usage(_)
        | LlmDelta::Restarted
        | LlmDelta::Stop(_) => {}
    }
}

/// Tells the decoder that nothing comes any more.
fn end(decoder: &mut impl Decoder, ready: &mut Deltas) -> Result<(), LlmError> {
    aside(decoder.work_of_end(), || decoder.on_end(ready))
}

#[cfg(test)]
#[path = "reading_tests.rs"]
mod tests;
