//! A disk on which nothing more can be written, and then can again.
//!
//! The limit on the size of files stands in for the disk: it fails the write into the write-ahead log, at
//! the commit, as a full disk does. It holds for a whole process, so the test runs in one of its own.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sandcaster::events::StoredEvent;
use sandcaster::store::{
    CommitListener, Flush, Role, RunStore, SqliteStore, StoreError, StoreOptions,
};

use super::{Heard, PATIENCE, append, created, delta, end_event, finish, log, queue};

const CHILD: &str = "SANDCASTER_TEST_FULL_DISK_CHILD";

#[test]
fn a_disk_that_runs_full_under_load_loses_nothing_that_was_told_and_is_used_again_once_it_has_room()
{
    let dir = tempfile::tempdir().unwrap();
    // A shell, because ignoring the signal is inherited, and setting it from Rust would be unsafe code.
    let output = Command::new("sh")
        .args([
            "-c",
            r#"trap "" XFSZ; ulimit -S -f 600; exec "$0" --ignored --exact store::full_disk::child_writes_to_a_full_disk --nocapture"#,
        ])
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, dir.path().join("data"))
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stdout.windows(8).any(|words| words == b"1 passed"),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn child_writes_to_a_full_disk() {
    #[expect(
        clippy::disallowed_methods,
        reason = "tells the child process from a test"
    )]
    let dir = std::env::var(CHILD).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, fill(&dir)).await.unwrap() });
}

/// Looks at the store's health in the moment of a failure: a smaller write may succeed right after it.
struct Watching {
    heard: Heard,
    store: Arc<SqliteStore>,
    unhealthy: AtomicBool,
}

impl CommitListener for Watching {
    fn committed(&self, events: &[Arc<StoredEvent>]) {
        self.heard.committed(events);
    }

    fn failed(&self, events: &[Arc<StoredEvent>], error: &StoreError) {
        if matches!(error, StoreError::Failed(_)) && !self.store.healthy() {
            self.unhealthy.store(true, Ordering::Relaxed);
        }
        self.heard.failed(events, error);
    }
}

async fn fill(dir: &str) {
    let store = SqliteStore::open(StoreOptions::new(dir, Role::Serve)).unwrap();
    let mut runs = Vec::new();
    for _ in 0..6 {
        let heard = Arc::new(Watching {
            heard: Heard::default(),
            store: Arc::clone(&store),
            unhealthy: AtomicBool::new(false),
        });
        runs.push((created(&*store).await, heard));
    }
    let text = "x".repeat(2000);
    for seq in 2..100 {
        for (run, heard) in &runs {
            queue(&*store, run, delta(seq, &text), heard).await;
        }
    }
    assert!(matches!(
        store.flush(Flush::Synced).await,
        Ok(()) | Err(StoreError::Failed(_))
    ));
    let failed: usize = runs
        .iter()
        .map(|(_, watching)| watching.heard.failed.lock().len())
        .sum();
    assert!(failed > 0, "the limit was never reached");
    assert!(
        runs.iter()
            .any(|(_, watching)| watching.unhealthy.load(Ordering::Relaxed))
    );
    assert!(matches!(
        finish(&*store, &runs[0].0, end_event(2, &text)).await,
        Err(StoreError::Failed(_) | StoreError::Refused(_))
    ));

    let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, most, most).unwrap();
    while !store.healthy() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (run, watching) in &runs {
        let told = watching.heard.committed.lock().clone();
        let read: Vec<u64> = log(&*store, &run.run)
            .await
            .iter()
            .skip(1)
            .map(|e| e.seq.0)
            .collect();
        assert_eq!(read, told, "what was told is what is there");
        let next = read.len() as u64 + 2;
        append(&*store, run, vec![delta(next, "on")]).await.unwrap();
        finish(&*store, run, end_event(next + 1, "e"))
            .await
            .unwrap();
    }
    store.close().await;
    let db = rusqlite::Connection::open(std::path::Path::new(dir).join("sandcaster.db")).unwrap();
    let check: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
}
