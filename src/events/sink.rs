//! Where an agent's events go.

use async_trait::async_trait;

use super::RunEvent;
use crate::ids::Seq;

/// The log can't be written any more: the run must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFailed {
    /// The store failed, or the run was ended; why. An event may be lost, so nothing may follow.
    #[error("the run's log can't be written: {0}")]
    Store(String),
    /// The log is as large as a log may get (rule AD-4). Its terminal event still fits.
    #[error("the run's log reached its size limit")]
    TooLarge,
}

/// The writing end of a run's log. There is one writer per run.
#[async_trait]
pub trait EventSink: Send + Sync {
    /// Queues an event at the next sequence number. The queue is bounded: a slow store slows the run.
    ///
    /// # Errors
    /// Once the log has failed.
    async fn emit(&self, event: RunEvent) -> Result<Seq, LogFailed>;

    /// Waits until everything emitted so far survives a power cut, and gives the last sequence number.
    /// Called before a tool acts on the world.
    ///
    /// # Errors
    /// Once the log has failed.
    async fn sync(&self) -> Result<Seq, LogFailed>;
}
