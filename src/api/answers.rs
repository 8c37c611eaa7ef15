//! JSON answers that may be large, within a budget of memory: what clients do not read must not keep others from
//! reading.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use serde::Serialize;
use tracing::Span;

use super::error::{internal, json_bytes};
use crate::error::{ErrorCode, Problem};

/// Answers of at most so many bytes need no place: a connection holds as much anyway.
const SMALL: usize = 16 << 10;
/// How much of an answer is given to its connection at a time. What is given is held there.
const PIECE: usize = 16 << 10;

/// The answers that wait to be read.
#[derive(Debug)]
pub(super) struct Answers {
    most: usize,
    shelf: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    begun: u64,
    bytes: usize,
    /// By their numbers: the oldest first.
    held: BTreeMap<u64, Held>,
}

#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    /// A body is polled outside the request's span.
    request: Span,
}

impl Shelf {
    fn take(&mut self, no: u64) -> Option<Held> {
        let held = self.held.remove(&no)?;
        self.bytes -= held.bytes.len();
        Some(held)
    }
}

impl Answers {
    /// `at_once` bytes of answers together.
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            most: at_once,
            shelf: Mutex::default(),
        }
    }

    /// Answers 200 with `body`, which counts until the client has taken it. Where there is no room the answers that
    /// are held longest are broken off: who reads in one go gets through, however many others stall.
    ///
    /// # Errors
    /// `SERVER_BUSY` for an answer that has no room even alone.
    pub(super) fn json(self: &Arc<Self>, body: &impl Serialize) -> Result<Response, Problem> {
        let bytes = serde_json::to_vec(body).map_err(|error| {
            tracing::error!(%error, "a response could not be written as JSON");
            internal()
        })?;
        if bytes.len() <= SMALL {
            return Ok(json_bytes(StatusCode::OK, Body::from(bytes)));
        }
        let length = bytes.len();
        if length > self.most {
            return Err(Problem::new(
                ErrorCode::ServerBusy,
                "the answer is larger than all that the server may hold of answers that are not read",
            ));
        }
        let mut shelf = self.shelf.lock();
        let mut broken_off = Vec::new();
        while self.most - length < shelf.bytes {
            let Some(oldest) = shelf.held.first_key_value().map(|(no, _)| *no) else {
                break;
            };
            broken_off.extend(shelf.take(oldest));
        }
        let no = shelf.begun;
        shelf.begun += 1;
        shelf.bytes += length;
        let request = Span::current();
        shelf.held.insert(no, Held { bytes, request });
        drop(shelf);
        for held in broken_off {
            tracing::info!(parent: &held.request, "cut an answer whose client does not read, for others");
        }
        let answer = Answer {
            answers: Arc::clone(self),
            no,
            at: 0,
            length,
        };
        Ok(json_bytes(StatusCode::OK, Body::new(answer)))
    }
}

/// An answer on its way, piece by piece.
struct Answer {
    answers: Arc<Answers>,
    no: u64,
    at: usize,
    length: usize,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let to = self.length.min(self.at + PIECE);
        // A copy: a part of the whole would hold it.
        let piece = {
            let shelf = self.answers.shelf.lock();
            let held = shelf.held.get(&self.no);
            let piece = held.and_then(|held| held.bytes.get(self.at..to));
            piece.map(Bytes::copy_from_slice)
        };
        self.at = to;
        let cut = || io::Error::other("the answer was given up for others");
        Poll::Ready(Some(piece.map(Frame::data).ok_or_else(cut)))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.length
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.length - self.at) as u64)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let held = self.answers.shelf.lock().take(self.no);
        drop(held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(response: Response) -> Result<usize, axum::Error> {
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await?;
        Ok(bytes.len())
    }

    #[tokio::test]
    async fn an_answer_counts_until_it_is_gone_and_the_oldest_makes_room() {
        let answers = Arc::new(Answers::new(3 * SMALL));
        let large = "x".repeat(SMALL);
        let length = SMALL + 2;
        let [first, second] = [answers.json(&large), answers.json(&large)].map(Result::unwrap);
        let third = answers.json(&large).unwrap();
        assert!(read(first).await.is_err(), "it made room");
        assert_eq!(read(second).await.unwrap(), length);
        assert_eq!(read(third).await.unwrap(), length);
        assert_eq!(answers.shelf.lock().bytes, 0);
        drop(answers.json(&large).unwrap());
        assert_eq!(answers.shelf.lock().bytes, 0);
        // One that can't fit takes nobody's place; a small one needs none.
        let held = answers.json(&"x".repeat(2 * SMALL)).unwrap();
        let refused = answers.json(&"x".repeat(3 * SMALL)).unwrap_err();
        assert_eq!(refused.code, ErrorCode::ServerBusy);
        assert_eq!(read(answers.json(&"").unwrap()).await.unwrap(), 2);
        assert_eq!(
            read(answers.json(&large.replacen('x', "", 8)).unwrap())
                .await
                .unwrap(),
            SMALL - 6
        );
        assert_eq!(read(held).await.unwrap(), 2 * SMALL + 2);
    }
}
