//! How a store is opened.

use std::path::PathBuf;
use std::time::Duration;

use crate::clock::Clock;
use crate::spec::StoreDurability;

/// What a process is to the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The server: there is one per directory.
    Serve,
    /// A command that does one run; any number of them, beside a server or not.
    OneShot,
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Where; created if it is not there.
    pub data_dir: PathBuf,
    /// As what.
    pub role: Role,
    /// What a commit survives.
    pub durability: StoreDurability,
    /// Where times of events come from.
    pub clock: Clock,
    /// The largest size of the database in pages of 4 KiB; `None` leaves it to the disk.
    pub max_pages: Option<u32>,
    /// How long another process's transaction is waited for at a time.
    pub busy_timeout: Duration,
    /// How long the database's files may be away from their names and come back.
    pub away: Duration,
}

impl StoreOptions {
    /// A store in `data_dir` with the defaults.
    pub fn new(data_dir: impl Into<PathBuf>, role: Role) -> Self {
        Self {
            data_dir: data_dir.into(),
            role,
            durability: StoreDurability::default(),
            clock: Clock::system(),
            max_pages: None,
            busy_timeout: Duration::from_secs(5),
            away: Duration::from_secs(3),
        }
    }
}
