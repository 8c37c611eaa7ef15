//! Where an agent's events go.

use async_trait::async_trait;

use super::RunEvent;
use crate::ids::Seq;

/// The log can't be written any more: the run must end.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the run's log can't be written: {0}")]
pub struct LogFailed(pub String);

/// How sure a commit must be before `flush` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Survives the death of the process.
    Committed,
    /// Survives a power cut.
    Synced,
}

/// The writing end of a run's log. There is one writer per run.
#[async_trait]
pub trait EventSink: Send + Sync {
    /// Queues an event at the next sequence number. The queue is bounded: a slow store slows the run.
    ///
    /// # Errors
    /// Once the log has failed.
    async fn emit(&self, event: RunEvent) -> Result<Seq, LogFailed>;

    /// Waits until everything emitted so far is committed, and gives the last sequence number.
    /// Called before a tool acts on the world.
    ///
    /// # Errors
    /// Once the log has failed.
    async fn flush(&self, durability: Durability) -> Result<Seq, LogFailed>;
}
