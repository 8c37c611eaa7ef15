//! What an error of `SQLite` means, and numbers as it keeps them.

use rusqlite::ErrorCode as Sqlite;

use super::super::types::StoreError;

/// Why a write failed.
pub(super) enum Fault {
    /// It asked for what can't be: the database and the other writes are well.
    Ours(StoreError),
    /// `SQLite` failed.
    Theirs(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Theirs(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Ours(error)
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Ours(error) => error,
            Fault::Theirs(error) => failure(&error),
        }
    }
}

/// What an error of `SQLite` means to a caller. Its message names tables and columns, never values.
pub(super) fn failure(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(Sqlite::ConstraintViolation) => StoreError::Refused(error.to_string()),
        Some(Sqlite::DiskFull) => StoreError::Failed("the disk is full".to_owned()),
        Some(Sqlite::DatabaseBusy) => {
            StoreError::Failed("another process kept the database busy".to_owned())
        }
        _ => StoreError::Failed(error.to_string()),
    }
}

/// A count as `SQLite` keeps it. Counts stay far below 2⁶³.
pub(super) fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
