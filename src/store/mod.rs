//! Where runs and their logs are kept: the trait, and `SQLite`.
//!
//! The store knows no agent and no HTTP. It enforces what must hold whatever happens above it: sequence
//! numbers without gaps, one terminal event per run and last, no append to a run that has ended, and no
//! write but by who holds the run's lease.

mod open;
mod sqlite;
mod types;

pub use open::open;
pub use sqlite::{Role, SqliteStore, StoreOptions};
pub use types::{
    Append, Believed, Check, CommitListener, Deletion, FileRecord, Flush, LISTED_PROMPT,
    LeftSandbox, OpenRun, Retention, RunEnd, RunFacts, RunHead, RunLease, RunRecord, RunState,
    RunStore, RunUsage, SandboxRecord, StoreError, StoredFile, TOLD_WEBHOOKS, TurnRecord,
    WebhookDelivery,
};
