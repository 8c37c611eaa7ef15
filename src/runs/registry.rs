//! The runs of this process.

use std::sync::Arc;

use crate::error::{ErrorCode, Problem};
use crate::events::StoredEvent;
use crate::ids::{RunId, Seq};
use crate::spec::RunSpec;
use crate::store::{RunRecord, RunStore, StoreError};

/// The runs of this process. Cheap to clone.
#[derive(Clone)]
pub struct Runs {
    store: Arc<dyn RunStore>,
}

/// Whether work can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Ok,
    /// The server is stopping.
    Draining,
    /// The store can't be written.
    Unavailable,
}

/// A run that was started.
pub struct RunHandle {
    /// Its id.
    pub id: RunId,
    /// A reader of its log from the first event, which counts as attached until it is dropped.
    pub reader: RunReader,
}

/// Reads a run's log: replay, then live. Dropping it may start the run's grace period.
pub struct RunReader {
    _private: (),
}

/// What `POST /runs/{id}/cancel` found.
#[derive(Clone, Debug)]
pub struct CancelOutcome {
    /// The run had ended before; its record says how.
    pub already_ended: bool,
    /// The run, as it is now.
    pub record: RunRecord,
}

impl Runs {
    /// The runs kept in `store`.
    pub fn new(store: Arc<dyn RunStore>) -> Self {
        Self { store }
    }

    /// Admits and starts a run.
    ///
    /// # Errors
    /// `QUEUE_FULL`, `DRAINING`, `STORE_UNAVAILABLE`.
    pub async fn start(&self, _spec: RunSpec) -> Result<RunHandle, Problem> {
        Err(Problem::new(
            ErrorCode::NotImplemented,
            "runs can't be started yet",
        ))
    }

    /// A reader of the events after `after`, of a live run or one that has ended.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`, `CURSOR_AHEAD`, `STORE_UNAVAILABLE`.
    pub async fn reader(&self, run: &RunId, _after: Seq) -> Result<RunReader, Problem> {
        Err(Problem::new(
            ErrorCode::RunNotFound,
            format!("there is no run {run}"),
        ))
    }

    /// Asks a run to stop. Idempotent.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`, `STORE_UNAVAILABLE`.
    pub async fn cancel(&self, run: &RunId) -> Result<CancelOutcome, Problem> {
        Err(Problem::new(
            ErrorCode::RunNotFound,
            format!("there is no run {run}"),
        ))
    }

    /// Whether work can be taken. No I/O.
    pub fn health(&self) -> Health {
        if self.store.healthy() {
            Health::Ok
        } else {
            Health::Unavailable
        }
    }

    /// The store, for reading.
    pub fn store(&self) -> &Arc<dyn RunStore> {
        &self.store
    }
}

impl RunReader {
    /// The next event; `None` after the terminal one. Cancel-safe.
    ///
    /// # Errors
    /// When the store fails: the stream must then look cut, not ended.
    pub async fn next(&mut self) -> Result<Option<Arc<StoredEvent>>, StoreError> {
        Err(StoreError::Closed)
    }
}
