//! Whether the database's files are still what their names lead to.
//!
//! `SQLite` goes on with the files that it has open when somebody removes or replaces them, and what is written then
//! is lost with the process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::inode::identity;

/// The database's files by their names.
pub(super) struct Names {
    files: Vec<(PathBuf, (u64, u64))>,
    away: Option<Instant>,
    /// How long files may be away and come back.
    most: Duration,
}

/// Where the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Where they should be.
    There,
    /// One of them was removed or replaced, perhaps for a moment.
    Away,
    /// The same, for good.
    Lost,
}

impl Names {
    /// Those of `database`, which is open: its log and the log's index are there. None of them is opened: closing the
    /// database would drop `SQLite`'s locks.
    pub(super) fn of(database: &Path, most: Duration) -> Self {
        let files = ["", "-wal", "-shm"].map(|ending| {
            let mut path = database.as_os_str().to_owned();
            path.push(ending);
            let path = PathBuf::from(path);
            let found = identity(&path).ok().flatten();
            found.map(|found| (path, found))
        });
        Self {
            files: files.into_iter().flatten().collect(),
            away: None,
            most,
        }
    }

    /// Looks. A name that can't be looked at leads where it led. After [`Seen::Lost`] nothing else is seen.
    pub(super) fn look(&mut self) -> Seen {
        let leads = |(path, held): &(PathBuf, (u64, u64))| {
            identity(path).map_or(true, |found| found == Some(*held))
        };
        match self.away {
            Some(since) if since.elapsed() >= self.most => Seen::Lost,
            _ if self.files.iter().all(leads) => {
                self.away = None;
                Seen::There
            }
            Some(_) => Seen::Away,
            None => {
                self.away = Some(Instant::now());
                Seen::Away
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn files_that_come_back_soon_are_there_and_others_are_lost_for_good() {
        const AWAY: Duration = Duration::from_secs(3);
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("x.db");
        let [wal, shm, aside] = ["x.db-wal", "x.db-shm", "aside"].map(|name| dir.path().join(name));
        for file in [&database, &wal, &shm] {
            std::fs::write(file, "x").unwrap();
        }
        for file in [&database, &wal, &shm] {
            let mut names = Names::of(&database, AWAY);
            assert_eq!(names.look(), Seen::There);
            std::fs::rename(file, &aside).unwrap();
            assert_eq!(names.look(), Seen::Away);
            std::fs::write(file, "another").unwrap();
            assert_eq!(names.look(), Seen::Away);
            std::fs::rename(&aside, file).unwrap();
            assert_eq!(names.look(), Seen::There);
            std::fs::rename(file, &aside).unwrap();
            assert_eq!(names.look(), Seen::Away);
            tokio::time::advance(AWAY).await;
            std::fs::rename(&aside, file).unwrap();
            assert_eq!(names.look(), Seen::Lost);
        }
    }
}
