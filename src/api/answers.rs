//! JSON answers that may be large, within a budget of memory: a client that does not read one holds it until its
//! connection is cut.

use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{internal, json_bytes};
use crate::error::{ErrorCode, Problem};

/// The unit in which memory for answers is counted.
const UNIT: usize = 4 << 10;

/// The memory for answers that wait to be read.
#[derive(Debug)]
pub(super) struct Answers(Arc<Semaphore>);

/// An answer and its place in the budget.
struct Held {
    bytes: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Answers {
    /// `at_once` bytes of answers together.
    pub(super) fn new(at_once: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_once.div_ceil(UNIT))))
    }

    /// Answers 200 with `body`, which counts until the client has taken it.
    ///
    /// # Errors
    /// `SERVER_BUSY` when clients have left too much unread.
    pub(super) fn json(&self, body: &impl Serialize) -> Result<Response, Problem> {
        let bytes = serde_json::to_vec(body).map_err(|error| {
            tracing::error!(%error, "a response could not be written as JSON");
            internal()
        })?;
        let units = u32::try_from(bytes.len().div_ceil(UNIT)).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.0).try_acquire_many_owned(units);
        let place = place.map_err(|_full| {
            Problem::new(
                ErrorCode::ServerBusy,
                "the server holds as many answers that are not read as it may; retrying is safe",
            )
        })?;
        let held = Bytes::from_owner(Held {
            bytes,
            _place: place,
        });
        Ok(json_bytes(StatusCode::OK, Body::from(held)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_until_it_is_gone() {
        let answers = Answers::new(2 * UNIT);
        let large = "x".repeat(UNIT);
        let held = answers.json(&large).unwrap();
        let refused = answers.json(&"").unwrap_err();
        assert_eq!(refused.code, ErrorCode::ServerBusy);
        drop(held);
        assert!(answers.json(&large).is_ok());
    }
}
