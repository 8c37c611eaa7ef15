//! What backends say of a sandbox by themselves.

use jiff::Timestamp;

use crate::ids::RunId;

/// A delivery about a sandbox. However well signed, it is never more than a hint: deliveries come late, twice and in
/// any order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxReport {
    /// Deliveries with the same one are the same event.
    pub event_id: String,
    /// In the backend's words.
    pub event_type: String,
    /// When it was sent, by the backend's clock.
    pub sent_at: Timestamp,
    /// The backend's id of the sandbox, if it is about one.
    pub sandbox_id: Option<String>,
    /// The run of the sandbox, if it carries a run's label.
    pub run: Option<RunId>,
    /// The store of the sandbox's run, if it carries that label.
    pub instance: Option<String>,
    /// What happened.
    pub news: SandboxNews,
}

/// What happened to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxNews {
    /// It was made: known already to who made it.
    Created,
    /// It is gone.
    Killed {
        /// Why, in the backend's words; short.
        reason: Option<String>,
    },
    /// Anything else.
    Other {
        /// In the backend's words (`sandbox.lifecycle.paused`).
        event: String,
    },
}
