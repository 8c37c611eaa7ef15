//! The memory watchdog: what all processes and files in memory use together, looked at a few times a
//! second while anything runs.
//!
//! Without a cgroup this is a bound with a lag, not an exact one: a process can go past the limit for as
//! long as a look takes to come round.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;

use crate::clock::Deadline;

use super::super::mounts::HOME;
use super::super::settings::{Settings, stands};
use super::processes;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(250);
/// After a kill, until the next look: long enough for the memory to be given back.
const AFTER_KILL: Duration = Duration::from_millis(50);
/// So many processes are killed one by one before the whole sandbox is given up.
const MOST_KILLS: u32 = 4;

pub(super) struct Watchdog {
    limit: u64,
    next: Option<Deadline>,
    /// Kills in a row without a look in between that found enough memory.
    kills: u32,
}

pub(super) enum Verdict {
    Fine,
    /// This process, the largest, was killed.
    Killed {
        pid: i32,
        session: i32,
        name: String,
    },
    /// Killing one by one doesn't help: everything must end.
    Hopeless {
        used_mb: u64,
    },
}

impl Watchdog {
    pub(super) fn new(settings: &Settings) -> Self {
        let limit = if stands!(settings, MemoryWatchdog) {
            settings.memory_bytes()
        } else {
            u64::MAX
        };
        Self {
            limit,
            next: None,
            kills: 0,
        }
    }

    pub(super) const fn limit_mb(&self) -> u64 {
        self.limit >> 20
    }

    /// When the next look is due; `None` while nothing runs.
    pub(super) const fn next(&self) -> Option<Deadline> {
        self.next
    }

    /// Something runs from now on.
    pub(super) fn wake(&mut self) {
        self.next.get_or_insert_with(|| Deadline::after(EVERY));
    }

    /// Nothing runs any more.
    pub(super) fn rest(&mut self) {
        self.next = None;
        self.kills = 0;
    }

    /// Looks, if it is time.
    pub(super) fn check(&mut self) -> Verdict {
        if !self.next.is_some_and(Deadline::passed) {
            return Verdict::Fine;
        }
        self.next = Some(Deadline::after(EVERY));
        let mut users: Vec<_> = processes::all()
            .into_iter()
            .map(|process| (usage(process.pid), process))
            .collect();
        let private: u64 = users.iter().map(|(usage, _)| usage.private).sum();
        let mapped: u64 = users.iter().map(|(usage, _)| usage.shared).sum();
        // A file in memory that is mapped is in both numbers.
        let used = private + mapped.max(files() + segments());
        if used <= self.limit {
            self.kills = 0;
            return Verdict::Fine;
        }
        let used_mb = used >> 20;
        self.kills += 1;
        users.sort_by_key(|(usage, _)| usage.private + usage.shared);
        let Some((_, largest)) = users.pop() else {
            return Verdict::Hopeless { used_mb };
        };
        if self.kills > MOST_KILLS {
            return Verdict::Hopeless { used_mb };
        }
        kill(Pid::from_raw(largest.pid), Signal::SIGKILL).ok();
        self.next = Some(Deadline::after(AFTER_KILL));
        Verdict::Killed {
            pid: largest.pid,
            session: largest.session,
            name: largest.name,
        }
    }
}

/// What a process uses, in bytes, its shares of shared pages included.
#[derive(Clone, Copy, Default)]
struct Usage {
    private: u64,
    /// Pages of shared memory and of files in memory.
    shared: u64,
}

fn usage(pid: i32) -> Usage {
    match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Ok(rollup) => from_rollup(&rollup),
        // A process that made itself unreadable is counted with all that it has mapped.
        Err(_) => fs::read_to_string(format!("/proc/{pid}/statm"))
            .ok()
            .and_then(|statm| from_statm(&statm))
            .unwrap_or_default(),
    }
}

fn from_rollup(rollup: &str) -> Usage {
    let field = |name: &str| {
        rollup
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
            << 10
    };
    let shared = field("Pss_Shmem:");
    Usage {
        // Pages of the host's programs are the page cache's, and given back under pressure.
        private: field("Pss_Anon:"),
        shared,
    }
}

fn from_statm(statm: &str) -> Option<Usage> {
    const PAGE: u64 = 4096;
    let resident: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(Usage {
        private: resident * PAGE,
        shared: 0,
    })
}

/// Bytes of files in memory.
fn files() -> u64 {
    [HOME, "/tmp", "/dev/shm"]
        .into_iter()
        .filter_map(|path| statvfs(path).ok())
        .map(|stat| stat.blocks().saturating_sub(stat.blocks_free()) * stat.fragment_size())
        .sum()
}

/// Bytes of System V shared memory, attached or not.
fn segments() -> u64 {
    let Ok(table) = fs::read_to_string("/proc/sysvipc/shm") else {
        return 0;
    };
    table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(14)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_counts_anonymous_and_shared_pages() {
        let text = "00400000-7ff rollup\nRss: 900 kB\nPss: 500 kB\nPss_Anon: 300 kB\nPss_File: 150 kB\nPss_Shmem: 50 kB\n";
        let usage = from_rollup(text);
        assert_eq!((usage.private, usage.shared), (300 << 10, 50 << 10));
    }

    #[test]
    fn an_unreadable_process_counts_whole() {
        assert_eq!(
            from_statm("100 25 3 1 0 5 0").map(|u| u.private),
            Some(25 * 4096)
        );
        assert!(from_statm("").is_none());
    }
}
