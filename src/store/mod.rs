//! Where runs and their logs are kept: the trait, and `SQLite`.
//!
//! The store knows no agent and no HTTP. It enforces what must hold whatever happens above it: sequence
//! numbers without gaps, one terminal event per run and last, no append to a run that has ended.

mod sqlite;
mod types;

pub use sqlite::{Role, SqliteStore, StoreDurability, StoreOptions};
pub use types::{
    Append, CommitListener, FileRecord, Finish, NewRun, RunRecord, RunState, RunStore,
    SandboxRecord, StoreError, StoredFile, WebhookDelivery,
};
