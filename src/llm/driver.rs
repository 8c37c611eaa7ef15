//! The part that all providers share: sends a request, and tells by the answer's head and first byte how it
//! is to be read.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, stream};
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout, timeout_at};

use super::account::Account;
use super::def::{ProviderConfig, StreamLimits};
use super::estimate::{Size, bytes_of};
use super::fault::{bad, broken, cleaned, cut, empty, id_of, out_of_time};
use super::prices;
use super::protocol::{Decoder as _, Protocol, Wire, media_bytes, media_tokens};
use super::reading::Reader;
use super::types::{
    LlmDelta, LlmError, LlmErrorKind, LlmProvider, LlmRequest, LlmStream, ModelFacts,
};
use crate::apart::{apart, aside};
use crate::chat::Message;
use crate::clock::Deadline;
use crate::net::sse::{self, SseError, SseEvent};
use crate::net::{HttpClient, never_sent, refusal};
use crate::secrets::Redactor;

/// How much of an error's body is read.
const ERROR_BODY: usize = 64 << 10;
/// How long an error's body may take.
const ERROR_BODY_TIME: Duration = Duration::from_secs(10);

/// A provider over HTTP.
pub(super) struct Client<P> {
    http: HttpClient,
    protocol: P,
    limits: StreamLimits,
    /// What a provider or a gateway says may repeat a secret.
    redactor: Redactor,
}

/// Makes the provider; for the table.
pub(super) fn build<P: Protocol>(config: ProviderConfig) -> Arc<dyn LlmProvider> {
    Arc::new(Client {
        protocol: P::new(&config),
        limits: config.limits,
        redactor: config.redactor,
        http: config.http,
    })
}

#[async_trait]
impl<P: Protocol> LlmProvider for Client<P> {
    async fn open(&self, request: &LlmRequest<'_>) -> Result<LlmStream, LlmError> {
        let texts = request.messages.iter().map(bytes_of).sum::<usize>();
        let media = media_bytes(request.messages);
        // What would be too large is not even written.
        fits::<P>(texts, media)?;
        let mut wire = aside(texts + media, || self.protocol.request(request))?;
        fits::<P>(wire.body.len().saturating_sub(media), media)?;
        let input = estimated_input(&wire, request.messages);
        let facts = self.model(request.model);
        let reader = || {
            let decoder = P::decoder(request.call_ids);
            let account = Account::new(input, facts);
            Reader::new(
                P::NAME,
                decoder,
                self.redactor.clone(),
                self.limits,
                account,
            )
        };
        let unread = reader;
        let mut reader = reader();
        let warnings = wire.warnings.drain(..);
        let warning = |(code, message)| LlmDelta::Warning { code, message };
        reader.ready.extend(warnings.map(warning));
        match self.ask(wire, request.deadline).await {
            Ok(Answer::Events(id, events)) => {
                reader.request_id = id;
                Ok(reader.stream(events))
            }
            Ok(Answer::Document(headers, document)) => {
                reader.request_id = id_of(&headers, P::REQUEST_ID);
                apart(move || read::<P>(reader, &headers, document))
                    .await
                    .unwrap_or_else(|| Ok(unread().failed(out_of_time(P::NAME))))
            }
            Err(Failed::Sent(error)) => Ok(reader.failed(error)),
            Err(Failed::Free(error)) => Err(cleaned(error, &self.redactor)),
        }
    }

    fn model(&self, model: &str) -> ModelFacts {
        prices::facts(P::NAME, model)
    }
}

/// How a request came to no answer.
enum Failed {
    /// It never left, or was refused: nothing is billed.
    Free(LlmError),
    /// It was sent, and nobody said that it is refused: it may be billed.
    Sent(LlmError),
}

/// An answer that began.
enum Answer {
    /// Event by event, and the provider's name for the request.
    Events(
        Option<String>,
        BoxStream<'static, Result<SseEvent, SseError>>,
    ),
    /// All of it in one JSON document.
    Document(HeaderMap, Vec<u8>),
}

impl<P: Protocol> Client<P> {
    /// Sends the request and waits for the answer's beginning.
    async fn ask(&self, wire: Wire, deadline: Deadline) -> Result<Answer, Failed> {
        let limits = self.limits;
        let mut response = self.head(wire, deadline).await?;
        // The values are slices of the connection's first buffer and would keep all of it in memory.
        let headers = std::mem::take(response.headers_mut());
        let media_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_ascii_lowercase();
        let id = id_of(&headers, P::REQUEST_ID);
        let failed = |mut error: LlmError| {
            error.request_id.clone_from(&id);
            Failed::Sent(error)
        };
        let mut body = Box::pin(sse::timed_body(response, limits.silence, deadline));
        let begin = timeout(limits.content, begin(&mut body));
        let first = match begin.await {
            Ok(Some(Ok(first))) => first,
            Ok(Some(Err(error))) => return Err(failed(broken(P::NAME, &error))),
            Ok(None) => return Err(failed(cut(P::NAME))),
            Err(_) => return Err(failed(empty(P::NAME, limits.content))),
        };
        let shape = shape(&first, &media_type);
        let body = stream::iter([Ok(first)]).chain(body);
        match shape {
            Shape::Events => {
                let events = sse::events(body, limits.sse).boxed();
                Ok(Answer::Events(id, events))
            }
            Shape::Json => {
                let document = document(P::NAME, body, limits).await.map_err(failed)?;
                Ok(Answer::Document(headers, document))
            }
            Shape::Page => {
                let what = "the answer is a web page: is the base URL right?";
                Err(failed(bad(P::NAME, what)))
            }
            Shape::Other => {
                let what = format!("the answer is no stream of events, but {media_type}");
                Err(failed(bad(P::NAME, &what)))
            }
        }
    }

    /// The answer's head, if it is a success.
    async fn head(&self, wire: Wire, deadline: Deadline) -> Result<reqwest::Response, Failed> {
        let provider = P::NAME;
        let head_at = Instant::now() + self.limits.first_byte;
        let until = head_at.min(deadline.instant());
        let request = self
            .http
            .post(wire.url)
            .headers(wire.headers)
            .header(CONTENT_LENGTH, wire.body.len())
            .body(wire.body)
            .send();
        let response = match timeout_at(until, request).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(unanswered(provider, error)),
            Err(_) if until < head_at => return Err(Failed::Sent(out_of_time(provider))),
            Err(_) => {
                let message = format!(
                    "{provider} did not begin to answer within {} s",
                    self.limits.first_byte.as_secs()
                );
                return Err(Failed::Sent(LlmError::new(LlmErrorKind::Timeout, message)));
            }
        };
        if !response.status().is_success() {
            let sent = is_broken_off(response.status().as_u16());
            let error = refused::<P>(deadline, response, &self.redactor).await;
            return Err(if sent {
                Failed::Sent(error)
            } else {
                Failed::Free(error)
            });
        }
        let coding = response.headers().get(CONTENT_ENCODING);
        if coding.is_some_and(|coding| coding != "identity") {
            let what = "the answer is compressed, which was not asked for";
            return Err(Failed::Sent(bad(provider, what)));
        }
        Ok(response)
    }
}

/// What an answer's body is.
enum Shape {
    Events,
    Json,
    Page,
    Other,
}

/// Gateways mislabel: the first byte tells JSON and web pages from events, which begin with neither.
fn shape(first: &[u8], media_type: &str) -> Shape {
    let event_like = matches!(first.first(), Some(b'd' | b'e' | b'i' | b'r' | b':'));
    let labelled = |label: &str| media_type.starts_with(label);
    match first.first() {
        Some(b'{' | b'[') => Shape::Json,
        Some(b'<') => Shape::Page,
        _ if labelled("application/json") && !event_like => Shape::Json,
        _ if labelled("text/html") && !event_like => Shape::Other,
        _ => Shape::Events,
    }
}

/// The first chunk with something in it, from there on: blanks and a byte-order mark tell nothing.
async fn begin(
    body: &mut (impl Stream<Item = Result<Bytes, SseError>> + Unpin),
) -> Option<Result<Bytes, SseError>> {
    loop {
        let chunk = match body.next().await? {
            Ok(chunk) => chunk,
            Err(error) => return Some(Err(error)),
        };
        let blank = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, 0xef | 0xbb | 0xbf);
        if let Some(start) = chunk.iter().position(|byte| !blank(byte)) {
            return Some(Ok(chunk.slice(start..)));
        }
    }
}

/// Reads a whole answer in one document: long where it is.
fn read<P: Protocol>(
    mut reader: Reader<P::Decoder>,
    headers: &HeaderMap,
    document: Vec<u8>,
) -> Result<LlmStream, LlmError> {
    let document = String::from_utf8(document)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    if is_error(&document) {
        let mut error = P::fault(200, headers, &document);
        error.message = format!("{} answered with an error: {}", P::NAME, error.message);
        return Err(cleaned(error, &reader.redactor));
    }
    match reader.decoder.whole(&document, &mut reader.ready) {
        Ok(size) => {
            reader.account.arrived(size);
            Ok(reader.stream(stream::empty()))
        }
        Err(error) => Ok(reader.failed(error)),
    }
}

/// Whether a document is an error object; a list is none.
fn is_error(document: &str) -> bool {
    #[derive(Deserialize)]
    struct Failed<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
    }
    document.trim_start().starts_with('{')
        && serde_json::from_str::<Failed<'_>>(document).is_ok_and(|failed| failed.error.is_some())
}

/// Whether a request of so many bytes, and so many of pictures and documents, is not too large for its provider.
fn fits<P: Protocol>(texts: usize, media: usize) -> Result<(), LlmError> {
    let bytes = texts + media;
    if bytes <= P::MOST_BYTES {
        return Ok(());
    }
    let kind = if texts > P::MOST_BYTES {
        LlmErrorKind::ContextTooLong
    } else {
        LlmErrorKind::ContentRefused
    };
    let [size, most] = [bytes, P::MOST_BYTES].map(|bytes| bytes / 1_000_000);
    let message = format!(
        "the conversation has {size} MB, and a request to {} at most {most}",
        P::NAME
    );
    Err(LlmError::new(kind, message))
}

/// The tokens of a request, by its size; pictures and documents are no text.
fn estimated_input(wire: &Wire, messages: &[Message]) -> u64 {
    let text = wire.body.len().saturating_sub(media_bytes(messages));
    Size::of_bytes(text).tokens() + media_tokens(messages)
}

/// Receives a whole body.
async fn document(
    provider: &'static str,
    body: impl Stream<Item = Result<Bytes, SseError>>,
    limits: StreamLimits,
) -> Result<Vec<u8>, LlmError> {
    let limit = limits.sse.response_bytes;
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::new();
    let mut content_at = Instant::now();
    loop {
        let chunk = match timeout_at(content_at + limits.content, body.next()).await {
            Ok(Some(chunk)) => chunk.map_err(|error| broken(provider, &error))?,
            Ok(None) => break,
            Err(_) => return Err(empty(provider, limits.content)),
        };
        // Blanks between its parts are a sign of life, and no part of it.
        if !chunk.iter().all(u8::is_ascii_whitespace) {
            content_at = Instant::now();
        }
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            return Err(broken(provider, &SseError::ResponseTooLong(limit)));
        }
    }
    Ok(bytes)
}

/// The failure that a status other than success stands for.
async fn refused<P: Protocol>(
    deadline: Deadline,
    mut response: reqwest::Response,
    redactor: &Redactor,
) -> LlmError {
    let status = response.status();
    let headers: HeaderMap = std::mem::take(response.headers_mut());
    let body = refusal(
        response,
        ERROR_BODY,
        deadline.within(ERROR_BODY_TIME),
        redactor,
    )
    .await;
    let mut error = if status.is_redirection() {
        let words = "it redirects, and redirects are not followed: is the base URL right?";
        LlmError::new(LlmErrorKind::BadResponse, words)
    } else {
        P::fault(status.as_u16(), &headers, &body)
    };
    let mut message = format!("{} answered {}", P::NAME, status.as_u16());
    if !error.message.is_empty() {
        message.push_str(": ");
        message.push_str(&error.message);
    }
    error.message = message;
    error
}

/// Whether `status` is of a gateway that lost its provider, which may go on with what it was sent, or gave it up.
const fn is_broken_off(status: u16) -> bool {
    matches!(status, 408 | 502 | 504 | 520 | 522 | 524)
}

/// Without an answer's head: whether the request was sent makes the difference.
fn unanswered(provider: &'static str, error: reqwest::Error) -> Failed {
    let error = error.without_url();
    let cause = sse::innermost(&error);
    let failed =
        |kind, what: &str| LlmError::new(kind, format!("{provider} {what}: {}", nameless(&cause)));
    if never_sent(&error) {
        Failed::Free(failed(LlmErrorKind::Unreachable, "could not be reached"))
    } else {
        let what = "broke the connection before it answered";
        Failed::Sent(failed(LlmErrorKind::Cut, what))
    }
}

/// A cause without what it says of hosts: a certificate's fault names the one asked for and all that would do.
fn nameless(cause: &str) -> &str {
    if !cause.contains("certificate") {
        return cause;
    }
    let end = cause.find(['"', '(', ';']).unwrap_or(cause.len());
    cause.get(..end).unwrap_or(cause).trim_end()
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
