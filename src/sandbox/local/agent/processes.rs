//! The sandbox's processes, from `/proc`: who belongs to a command, and who uses the memory.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

/// The pid that commands and everything else of the sandbox must never be mistaken for.
const OWN_PID: Pid = Pid::from_raw(1);

/// What `/proc/<pid>/stat` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    pub(super) name: String,
    zombie: bool,
}

/// All living processes but the agent.
pub(super) fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != OWN_PID.as_raw())
        .filter_map(|pid| {
            // The name may be any bytes.
            let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
            parse(&String::from_utf8_lossy(&stat))
        })
        .filter(|process| !process.zombie)
        .collect()
}

/// Reads a line of `stat`. The name is in parentheses and may contain anything, parentheses too.
fn parse(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let mut number = || fields.next()?.parse().ok();
    Some(Process {
        pid: pid.parse().ok()?,
        parent: number()?,
        group: number()?,
        session: number()?,
        name: name.to_owned(),
        zombie: matches!(state, "Z" | "X"),
    })
}

/// Kills everything that belongs to the command `leader`: its group, its session, and whatever descends
/// from those. First all are stopped, until none is new, so that none can slip away by forking.
///
/// `alive`: the leader has not been reaped. When it has, its number may mean another process, while a
/// group or session of that number can still only be its own.
pub(super) fn kill_tree(leader: Pid, alive: bool) {
    const MOST_ROUNDS: usize = 16;
    let mut found: BTreeSet<i32> = BTreeSet::new();
    for _ in 0..MOST_ROUNDS {
        let before = found.len();
        for pid in belonging(&all(), leader.as_raw(), alive, &found) {
            if found.insert(pid) {
                kill(Pid::from_raw(pid), Signal::SIGSTOP).ok();
            }
        }
        if found.len() == before {
            break;
        }
    }
    for pid in found {
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
}

/// Kills everything of the sandbox but the agent, at one stroke: nothing can slip away by forking. How many there
/// were just before.
pub(super) fn end_all() -> u32 {
    let count = all().len();
    // Of another process this would be the whole machine.
    if getpid() == OWN_PID {
        kill(Pid::from_raw(-1), Signal::SIGKILL).ok();
    }
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The processes of the tree of `leader`, given those already `known` to be in it.
fn belonging(all: &[Process], leader: i32, alive: bool, known: &BTreeSet<i32>) -> BTreeSet<i32> {
    let mut tree: BTreeSet<i32> = all
        .iter()
        .filter(|process| {
            process.group == leader
                || process.session == leader
                || (alive && process.pid == leader)
                || known.contains(&process.pid)
        })
        .map(|process| process.pid)
        .collect();
    loop {
        let children: Vec<i32> = all
            .iter()
            .filter(|process| tree.contains(&process.parent) && !tree.contains(&process.pid))
            .map(|process| process.pid)
            .collect();
        if children.is_empty() {
            return tree;
        }
        tree.extend(children);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks_does_not_confuse_the_fields() {
        let process = parse("42 (a) S 1 (b) S 7 8 9 0 -1").unwrap();
        assert_eq!(
            (process.pid, process.parent, process.group, process.session),
            (42, 7, 8, 9)
        );
        assert_eq!(process.name, "a) S 1 (b");
        assert_eq!(parse("no stat"), None);
    }

    #[test]
    fn a_tree_has_the_group_the_session_and_their_descendants() {
        let process = |pid, parent, group, session| Process {
            pid,
            parent,
            group,
            session,
            name: String::new(),
            zombie: false,
        };
        let all = [
            process(10, 1, 10, 10),
            process(11, 10, 11, 10),
            process(12, 11, 12, 12),
            process(13, 12, 13, 13),
            process(20, 1, 20, 20),
            process(14, 1, 14, 10),
        ];
        let tree = belonging(&all, 10, true, &BTreeSet::new());
        assert_eq!(tree, BTreeSet::from([10, 11, 12, 13, 14]));
        let reused = [process(10, 1, 30, 30)];
        assert!(belonging(&reused, 10, false, &BTreeSet::new()).is_empty());
    }
}
