//! Which processes this host runs, by a word of their command lines.

use std::time::Duration;

use super::app::PATIENCE;

/// The processes whose command line has `word`.
pub fn running(word: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(word))
        })
        .collect()
}

/// Processes of the sandbox of `run`, by what their command lines say of it.
pub fn sandbox_processes(run: &str) -> Vec<i32> {
    running(&format!("sandcaster-run={run}"))
}

/// Waits until nothing of the sandbox of `run` is left.
pub async fn sandbox_gone(run: &str) {
    until_gone(&format!("sandcaster-run={run}")).await;
}

/// The processes outside of any sandbox whose command line has `word`.
pub fn on_host(word: &str) -> Vec<i32> {
    let outside = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let spaces = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        spaces.is_some_and(|spaces| spaces.split_whitespace().count() == 1)
    };
    running(word).into_iter().filter(outside).collect()
}

/// Waits until a `sleep` of this length runs itself, not just a shell that is going to start it.
pub async fn until_sleeping(length: &str) {
    let line = format!("sleep\0{length}\0");
    until(|| !running(&line).is_empty(), &format!("sleep {length}")).await;
}

/// Waits until no process with `word` in its command line runs.
pub async fn until_gone(word: &str) {
    until(|| running(word).is_empty(), &format!("{word} to end")).await;
}

/// Waits for what only looking tells.
pub async fn until(met: impl Fn() -> bool, what: &str) {
    let wait = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("waited too long for {what}"));
}

/// A command that leaves something behind that has taken all processes that its sandbox may have, and takes each that
/// becomes free again.
pub const TAKE_ALL: &str = r#"rm -f /tmp/full; python3 -c '
import os
while True:
    try:
        if os.fork() == 0:
            os.execlp("sleep", "sleep", "600")
    except OSError:
        open("/tmp/full", "w").close()
' >/dev/null 2>&1 &
while [ ! -e /tmp/full ]; do :; done"#;

/// A length of sleep that no other process of this host has, to be found by.
pub fn own_sleep() -> String {
    let digits: String = sandcaster::ids::nonce()
        .bytes()
        .map(|byte| char::from(b'0' + byte % 10))
        .take(12)
        .collect();
    format!("600.{digits}")
}
