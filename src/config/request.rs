//! The body of `POST /query` as sent.

use crate::error::{ErrorCode, Problem};

/// Every field as sent, no defaults filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryRequest {
    /// The prompt.
    pub prompt: String,
    /// `background: true`.
    pub background: bool,
}

impl QueryRequest {
    /// Parses a body strictly.
    ///
    /// # Errors
    /// `INVALID_JSON`, `VALIDATION_FAILED`, `NOT_IMPLEMENTED`, with every fault of the body.
    pub fn parse(_body: &[u8]) -> Result<Self, Problem> {
        Err(Problem::new(
            ErrorCode::NotImplemented,
            "requests can't be parsed yet",
        ))
    }
}
