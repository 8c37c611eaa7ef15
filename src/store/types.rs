//! The store's trait and its records.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

use crate::error::ErrorCode;
use crate::events::StoredEvent;
use crate::ids::{RunId, Seq};

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "design: states of a run")]
pub enum RunState {
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
    TimedOut,
    Interrupted,
}

impl RunState {
    /// The name in the store and in `statusDetail`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Interrupted => "interrupted",
        }
    }

    /// The state with this name.
    pub fn parse(name: &str) -> Option<Self> {
        [
            Self::Queued,
            Self::Running,
            Self::Completed,
            Self::Failed,
            Self::Cancelled,
            Self::TimedOut,
            Self::Interrupted,
        ]
        .into_iter()
        .find(|state| state.as_str() == name)
    }

    /// The documented word of `GET /runs`: `running`, `completed` or `error`.
    pub const fn status(self) -> &'static str {
        match self {
            Self::Queued | Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed | Self::Cancelled | Self::TimedOut | Self::Interrupted => "error",
        }
    }

    /// Whether the run has ended.
    pub const fn terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The state that a run ends in with `code`.
    pub const fn of_error(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Cancelled | ErrorCode::ClientGone => Self::Cancelled,
            ErrorCode::DeadlineExceeded | ErrorCode::QueueTimeout => Self::TimedOut,
            ErrorCode::ServerShutdown | ErrorCode::ServerCrashed | ErrorCode::LeaseLost => {
                Self::Interrupted
            }
            _ => Self::Failed,
        }
    }
}

/// A run to create, in state `running`, with its first event.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Its id.
    pub id: RunId,
    /// The process that owns it.
    pub owner: String,
    /// The prompt, whole.
    pub prompt: String,
    /// The resolved model id.
    pub model: String,
    /// The LLM provider's name.
    pub provider: String,
    /// The sandbox backend's name.
    pub sandbox_provider: String,
    /// Goes on without readers.
    pub background: bool,
    /// When it was accepted, which is when it starts to run.
    pub started_at: Timestamp,
    /// Event 1.
    pub first_event: StoredEvent,
}

/// Events to append to a run.
pub struct Append {
    /// The run.
    pub run: RunId,
    /// In order, continuing the run's sequence.
    pub events: Vec<Arc<StoredEvent>>,
    /// Called on the store's own thread, right after the commit or its failure; must not block.
    pub listener: Arc<dyn CommitListener>,
}

/// Told of commits, in order, before anyone else can read them from the store.
pub trait CommitListener: Send + Sync {
    /// These events are committed.
    fn committed(&self, events: &[Arc<StoredEvent>]);
    /// They are not, and never will be.
    fn failed(&self, events: &[Arc<StoredEvent>], error: &StoreError);
}

/// A run's end: its terminal event and what its row says from then on, in one transaction.
#[derive(Clone, Debug)]
pub struct Finish {
    /// The run.
    pub run: RunId,
    /// `result` or `error`; the last event.
    pub event: Arc<StoredEvent>,
    /// A terminal state.
    pub state: RunState,
    /// When.
    pub completed_at: Timestamp,
    /// The error's code, if it ended in one.
    pub error_code: Option<ErrorCode>,
    /// The error's message, if it ended in one.
    pub error: Option<String>,
    /// Cost in nano-dollars; `None` when unknown.
    pub cost_nanos: Option<u64>,
    /// All input tokens.
    pub input_tokens: u64,
    /// All output tokens.
    pub output_tokens: u64,
    /// Turns taken.
    pub num_turns: u32,
    /// From the start of running.
    pub duration_secs: f64,
}

/// A run as `GET /runs` and `GET /runs/{id}` show it.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "named as in NewRun and Finish")]
pub struct RunRecord {
    pub id: RunId,
    pub owner: String,
    pub prompt: String,
    pub model: String,
    pub provider: String,
    pub sandbox_provider: String,
    pub background: bool,
    pub state: RunState,
    pub started_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    /// The last committed event.
    pub last_seq: Seq,
    pub error_code: Option<String>,
    pub error: Option<String>,
    pub cost_nanos: Option<u64>,
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub num_turns: Option<u32>,
    pub duration_secs: Option<f64>,
    /// Files returned by the run.
    pub files_count: u64,
}

/// A file that a run returned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in the file event")]
pub struct FileRecord {
    pub path: String,
    pub mime_type: String,
    pub size: u64,
    pub sha256: String,
}

/// A file with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// What it is.
    pub record: FileRecord,
    /// The bytes, exactly.
    pub bytes: Bytes,
}

/// A sandbox that was asked for: written before the create call, so that no crash can forget it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in sandbox::Labels")]
pub struct SandboxRecord {
    pub run: RunId,
    pub backend: String,
    pub attempt: u32,
    /// The backend's id, once the create call has answered.
    pub sandbox_id: Option<String>,
    /// Unix seconds.
    pub expires: i64,
    /// It is known to be gone.
    pub destroyed: bool,
}

/// A delivery of `POST /webhooks/e2b`.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookDelivery {
    /// The body's `id`: deliveries with the same one are the same event.
    pub event_id: String,
    /// The body's `type`.
    pub event_type: String,
    /// The sandbox it is about, if it names one.
    pub sandbox_id: Option<String>,
    /// The run that the sandbox belongs to, if it is ours.
    pub run: Option<RunId>,
    /// The signature was checked and right.
    pub signed: bool,
    /// When it arrived.
    pub received_at: Timestamp,
    /// The body.
    pub body: Value,
}

/// Why the store could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No such run.
    #[error("there is no run {0}")]
    NotFound(RunId),
    /// The run has ended, or the sequence would have a gap: a fault of ours. Trying again is no use.
    #[error("the run's log refused the write: {0}")]
    Refused(String),
    /// Another process has the data directory.
    #[error("{0}")]
    InUse(String),
    /// The data directory or the database can't be used: what and why.
    #[error("{0}")]
    Unusable(String),
    /// A read or write failed (disk full, I/O error). It may succeed later.
    #[error("the run store failed: {0}")]
    Failed(String),
    /// The store has been closed.
    #[error("the run store is closed")]
    Closed,
}

/// The store. One contract suite holds for every implementation.
///
/// Futures may be dropped: a write that was queued still happens.
#[async_trait]
pub trait RunStore: Send + Sync {
    /// The store's own id, made once: labels of sandboxes carry it.
    fn id(&self) -> &str;

    /// Creates a run with its first event. Committed when it returns; synced soon after.
    async fn create(&self, run: NewRun) -> Result<(), StoreError>;

    /// Queues events; waits only for a place in the bounded queue. The listener hears of the commit.
    async fn append(&self, append: Append) -> Result<(), StoreError>;

    /// Waits until everything queued before is committed and survives a power cut.
    async fn sync(&self) -> Result<(), StoreError>;

    /// Ends a run: the terminal event and the row, in one transaction, synced when it returns. Refused when
    /// the run has ended already, unless in exactly this event: a retry after a lost answer succeeds.
    async fn finish(&self, finish: Finish) -> Result<(), StoreError>;

    /// Events after `after`, in order: at most `limit`, and fewer where they are large, but at least one.
    /// Empty at the head, whose end a terminal event marks.
    async fn read(
        &self,
        run: &RunId,
        after: Seq,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError>;

    /// One run.
    async fn get(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError>;

    /// The newest runs by start, at most `limit`.
    async fn list(&self, limit: u32) -> Result<Vec<RunRecord>, StoreError>;

    /// The runs that have not ended. Their `duration_secs` is from the start to the last event.
    async fn unfinished(&self) -> Result<Vec<RunRecord>, StoreError>;

    /// Keeps a file of a run, replacing one with the same path.
    async fn put_file(&self, run: &RunId, file: StoredFile) -> Result<(), StoreError>;

    /// A file of a run.
    async fn get_file(&self, run: &RunId, path: &str) -> Result<Option<StoredFile>, StoreError>;

    /// The files of a run, by path.
    async fn list_files(&self, run: &RunId) -> Result<Vec<FileRecord>, StoreError>;

    /// Records a sandbox that is about to be asked for, or what has become of it (same run and attempt).
    /// Committed when it returns.
    async fn put_sandbox(&self, sandbox: SandboxRecord) -> Result<(), StoreError>;

    /// The sandboxes of a run.
    async fn sandboxes(&self, run: &RunId) -> Result<Vec<SandboxRecord>, StoreError>;

    /// The run that a sandbox belongs to.
    async fn sandbox_owner(&self, sandbox_id: &str) -> Result<Option<RunId>, StoreError>;

    /// Keeps a delivery. `false` if its event id is known already.
    async fn put_webhook(&self, delivery: WebhookDelivery) -> Result<bool, StoreError>;

    /// The deliveries about a run, oldest first.
    async fn webhooks(&self, run: &RunId) -> Result<Vec<WebhookDelivery>, StoreError>;

    /// Whether the last write succeeded. No I/O.
    fn healthy(&self) -> bool;

    /// Writes what is queued, closes the database and lets go of the data directory.
    async fn close(&self);
}
