//! The store's trait and its records.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

use crate::error::ErrorCode;
use crate::events::{StoredEvent, Tokens};
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

/// What is known of a run from its creation on: the one form of a run, whoever makes or reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunFacts {
    /// Its id.
    pub id: RunId,
    /// The prompt: whole, but for a list, which has its first [`LISTED_PROMPT`] characters.
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
}

/// How much of a prompt a list shows, in characters (rule SE-6).
pub const LISTED_PROMPT: usize = 100;

/// What is known of a run from its end on.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// A terminal state.
    pub state: RunState,
    /// When.
    pub completed_at: Timestamp,
    /// The error that it ended in.
    pub error: Option<(ErrorCode, String)>,
    /// Cost in nano-dollars; `None` when unknown.
    pub cost_nanos: Option<u64>,
    /// What the model read and wrote; `None` when unknown.
    pub usage: Option<RunUsage>,
    /// Turns taken.
    pub num_turns: u32,
    /// From the start of running.
    pub duration_secs: f64,
}

/// What a run had used when one of its turns was answered: kept turn by turn, so that it is known however the run
/// ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnRecord {
    /// The turn, from 1.
    pub turn: u32,
    /// Tokens of the run, up to and with this turn.
    pub tokens: Tokens,
    /// Cost of the same in nano-dollars; `None` when unknown.
    pub cost_nanos: Option<u64>,
}

/// Tokens of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunUsage {
    /// All input tokens.
    pub input_tokens: u64,
    /// All output tokens.
    pub output_tokens: u64,
    /// False when a stream was cut before its usage arrived: then the figures are a lower bound.
    pub complete: bool,
}

/// A run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecord {
    /// What it is.
    pub facts: RunFacts,
    /// The last committed event.
    pub last_seq: Seq,
    /// Files returned by the run.
    pub files_count: u64,
    /// How it ended, if it has.
    pub end: Option<RunEnd>,
}

impl RunRecord {
    /// Its state.
    pub fn state(&self) -> RunState {
        self.end.as_ref().map_or(RunState::Running, |end| end.state)
    }
}

/// How far a run's log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunHead {
    /// The last committed event.
    pub last_seq: Seq,
    /// That event is the terminal one.
    pub ended: bool,
}

/// The right to write a run. Whoever creates a run has it; whoever ends the run of a dead process takes it
/// over under the next epoch, so that a write of the earlier holder changes nothing any more (rule ST-1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLease {
    /// The run.
    pub run: RunId,
    /// The process that holds it.
    pub owner: Arc<str>,
    /// From 1; one more each time that it changes hands.
    pub epoch: u64,
}

/// A run without an end whose process is gone; the lease is the caller's now.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenRun {
    /// To write its end with.
    pub lease: RunLease,
    /// The resolved model id.
    pub model: String,
    /// The last committed event.
    pub last_seq: Seq,
    /// When it started.
    pub started_at: Timestamp,
    /// When its last event was written.
    pub last_event_at: Timestamp,
    /// The last of its turns of which it is known what was used by then.
    pub last_turn: Option<TurnRecord>,
    /// How many turns its last events tell of.
    pub turns: u32,
    /// How often each tool was called.
    pub calls: BTreeMap<String, u64>,
}

/// Events to append to a run.
pub struct Append {
    /// The right to.
    pub lease: RunLease,
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

/// What a flush waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// The death of the process changes nothing of it.
    Committed,
    /// A power cut neither.
    Synced,
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

/// A file with its bytes, as it is put into the store.
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
    pub backend: String,
    pub attempt: u32,
    /// The backend's id, once the create call has answered.
    pub sandbox_id: Option<String>,
    /// Unix seconds.
    pub expires: i64,
    /// It is known to be gone.
    pub destroyed: bool,
}

/// A sandbox of a run that has ended, of which it is not known that it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftSandbox {
    /// The run.
    pub run: RunId,
    /// Which of its attempts.
    pub attempt: u32,
    /// The backend's id, if the create call had answered.
    pub sandbox_id: Option<String>,
    /// When it ends by itself, in Unix seconds.
    pub expires: i64,
    /// When the run ended.
    pub ended_at: Timestamp,
}

/// What is kept, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Runs that ended before are deleted; `None` for none.
    pub ended_before: Option<Timestamp>,
    /// Runs that have ended are deleted, oldest first, while more than these are stored.
    pub most_runs: u64,
    /// Webhook deliveries that arrived before are deleted.
    pub webhooks_before: Timestamp,
    /// Of a run that was deleted before, it is no longer known that there ever was one.
    pub forget_before: Timestamp,
}

/// By what time old runs are deleted, as of the last look: kept, so that no restart believes a clock that jumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Believed {
    /// The time that was believed.
    pub at: Timestamp,
    /// What the clock said then.
    pub said: Timestamp,
    /// The clock is far ahead of what is believed, and has been while the server worked for so long.
    pub ahead_for: Option<Duration>,
}

/// What became of a wish to delete a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is gone.
    Done,
    /// It has not ended, so it stays.
    Live,
    /// There is none.
    Unknown,
}

/// What a look for damage found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// There was no reason to look.
    NotNeeded,
    /// Nothing.
    Whole,
    /// This.
    Damaged(String),
}

/// The most deliveries that are told of a run: the newest.
pub const TOLD_WEBHOOKS: usize = 100;

/// What is known of a delivery of `POST /webhooks/e2b`.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Why the sandbox was killed, if it says so; short.
    pub kill_reason: Option<String>,
}

/// Why the store could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No such run.
    #[error("there is no run {0}")]
    NotFound(RunId),
    /// The run was deleted, by request or by age.
    #[error("the run {0} is no longer kept")]
    Expired(RunId),
    /// The run has ended, its lease is somebody else's, or the sequence would have a gap. Trying again is no
    /// use.
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
    /// The store's own id, made once: labels of sandboxes carry it. A copy of the store has another one.
    fn id(&self) -> &str;

    /// Creates a run with its first event, and leases it to this process. Committed when it returns; synced
    /// soon after.
    async fn create(&self, facts: RunFacts, first: StoredEvent) -> Result<RunLease, StoreError>;

    /// Queues events; waits only for a place in the bounded queue. The listener hears of the commit.
    async fn append(&self, append: Append) -> Result<(), StoreError>;

    /// Waits until everything queued before has its outcome, or what was committed also survives a power cut.
    /// What could not be written is told to its own listener, and fails nobody else's flush.
    async fn flush(&self, until: Flush) -> Result<(), StoreError>;

    /// Ends a run: the terminal event and the row, in one transaction, synced when it returns. Refused when
    /// the run has ended already, unless in exactly this event: a retry after a lost answer succeeds.
    async fn finish(
        &self,
        lease: &RunLease,
        event: Arc<StoredEvent>,
        end: RunEnd,
    ) -> Result<(), StoreError>;

    /// Events after `after`, in order: at most `limit`, and fewer where they are large, but at least one.
    /// Empty at the head, whose end a terminal event marks.
    async fn read(
        &self,
        run: &RunId,
        after: Seq,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError>;

    /// Waits until the run has an event after `after`, whichever process writes it. May return early.
    async fn watch(&self, run: &RunId, after: Seq) -> Result<(), StoreError>;

    /// How far a run's log has come.
    async fn head(&self, run: &RunId) -> Result<RunHead, StoreError>;

    /// One run.
    async fn get(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError>;

    /// One run, with the beginning of its prompt, as in a list.
    async fn beginning(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError>;

    /// The newest runs by start, at most `limit`, with the beginnings of their prompts.
    async fn list(&self, limit: u32) -> Result<Vec<RunRecord>, StoreError>;

    /// Takes over every run without an end whose process is gone, and those that this process took over
    /// before without ending them. What can't be told counts as alive.
    async fn expired_runs(&self) -> Result<Vec<OpenRun>, StoreError>;

    /// Keeps what is known of a turn of a run that goes on. Committed when it returns.
    async fn put_turn(&self, lease: &RunLease, turn: TurnRecord) -> Result<(), StoreError>;

    /// Keeps a file of a run, replacing one with the same path.
    async fn put_file(&self, lease: &RunLease, file: StoredFile) -> Result<(), StoreError>;

    /// A file of a run.
    async fn file(&self, run: &RunId, path: &str) -> Result<Option<FileRecord>, StoreError>;

    /// The bytes of a file from `offset` on, at most 64 KiB of them; none at its end.
    async fn read_file(
        &self,
        run: &RunId,
        file: &FileRecord,
        offset: u64,
    ) -> Result<Bytes, StoreError>;

    /// The files of a run, by path.
    async fn list_files(&self, run: &RunId) -> Result<Vec<FileRecord>, StoreError>;

    /// Records a sandbox that is about to be asked for, or what has become of it (same attempt). Committed
    /// when it returns.
    async fn put_sandbox(&self, lease: &RunLease, sandbox: SandboxRecord)
    -> Result<(), StoreError>;

    /// The sandboxes of a run.
    async fn sandboxes(&self, run: &RunId) -> Result<Vec<SandboxRecord>, StoreError>;

    /// The run that a sandbox belongs to.
    async fn sandbox_owner(&self, sandbox_id: &str) -> Result<Option<RunId>, StoreError>;

    /// The sandboxes at `backend` of runs that have ended which are not recorded as destroyed.
    async fn left_sandboxes(&self, backend: &str) -> Result<Vec<LeftSandbox>, StoreError>;

    /// Records that a sandbox is gone. Needs no lease: it is true whoever found it out.
    async fn sandbox_gone(&self, run: &RunId, attempt: u32) -> Result<(), StoreError>;

    /// Keeps a delivery. `false` if its event id is known already.
    async fn put_webhook(&self, delivery: WebhookDelivery) -> Result<bool, StoreError>;

    /// The newest [`TOLD_WEBHOOKS`] deliveries about a run, oldest first.
    async fn webhooks(&self, run: &RunId) -> Result<Vec<WebhookDelivery>, StoreError>;

    /// Deletes a run that has ended, with all that belongs to it. It can't be found any more when this
    /// returns; its room is given back by [`RunStore::maintain`]. Synced.
    async fn delete(&self, run: &RunId) -> Result<Deletion, StoreError>;

    /// Takes one small step towards `retention`, and gives room back to the file system. True while there is
    /// more to do.
    async fn maintain(&self, retention: &Retention) -> Result<bool, StoreError>;

    /// What was believed at the last look that was kept; `None` before the first.
    async fn believed(&self) -> Result<Option<Believed>, StoreError>;

    /// Keeps what is believed. Committed when it returns.
    async fn believe(&self, believed: Believed) -> Result<(), StoreError>;

    /// Looks for damage, once after an unclean end (rule DB-3). Dropping the future ends the look.
    async fn check(&self) -> Result<Check, StoreError>;

    /// Whether the last write succeeded. No I/O.
    fn healthy(&self) -> bool;

    /// Writes what is queued, closes the database and lets go of the data directory.
    async fn close(&self);
}
