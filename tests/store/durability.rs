//! What survives a power cut, and what is said when it would not.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use sandcaster::ids::Seq;
use sandcaster::store::{Flush, Role, RunStore, SqliteStore, StoreError, StoreOptions};

use super::{Heard, PATIENCE, append, created, delta, end_event, finish, queue, sqlite};
use crate::support::processes::until;

#[tokio::test]
async fn only_what_promises_to_survive_a_power_cut_needs_the_sync_and_its_failure_is_not_forgotten()
{
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        away: PATIENCE * 100,
        ..StoreOptions::new(dir.path().join("data"), Role::Serve)
    };
    let store = SqliteStore::open(options).unwrap();
    let (run, other) = (created(&*store).await, created(&*store).await);
    store.flush(Flush::Synced).await.unwrap();
    // One that reads has the log open as well.
    store.head(&run.run).await.unwrap();
    let wal = dir.path().join("data/sandcaster.db-wal");
    let hidden = dir.path().join("data/hidden");
    // SQLite goes on with the file that it has open; who wants to sync it by its name can't.
    std::fs::rename(&wal, &hidden).unwrap();
    append(&*store, &run, vec![delta(2, "x")]).await.unwrap();
    store.flush(Flush::Committed).await.unwrap();
    let end = end_event(3, "end");
    let lost = finish(&*store, &run, Arc::clone(&end)).await;
    assert!(matches!(lost, Err(StoreError::Failed(_))), "{lost:?}");
    assert!(!store.healthy());
    let lost = store.flush(Flush::Synced).await;
    assert!(matches!(lost, Err(StoreError::Failed(_))), "{lost:?}");
    // What is committed can be read on, and more can be.
    assert_eq!(store.head(&run.run).await.unwrap().last_seq, Seq(3));
    append(&*store, &other, vec![delta(2, "x")]).await.unwrap();

    std::fs::rename(&hidden, &wal).unwrap();
    // All of the log goes into the database first; then the same end succeeds.
    until(|| store.healthy(), "it does not heal").await;
    assert_eq!(std::fs::metadata(&wal).unwrap().len(), 0);
    finish(&*store, &run, end).await.unwrap();
    store.flush(Flush::Synced).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_file_was_removed_takes_nothing_more_until_it_is_opened_anew() {
    for file in ["sandcaster.db-wal", "sandcaster.db-shm", "sandcaster.db"] {
        let (dir, store) = sqlite();
        let run = created(&*store).await;
        store.flush(Flush::Synced).await.unwrap();
        std::fs::remove_file(dir.path().join("data").join(file)).unwrap();
        until(|| !store.healthy(), "it is noticed").await;
        // A while later it is final; no look in between has found it well.
        let mut seq = 2;
        let given_up = async {
            loop {
                assert!(!store.healthy(), "{file}");
                let heard = std::sync::Arc::new(Heard::default());
                let append = sandcaster::store::Append {
                    lease: run.clone(),
                    events: vec![delta(seq, "x")],
                    listener: std::sync::Arc::clone(&heard) as _,
                };
                store.append(append).await.unwrap();
                drop(store.flush(Flush::Committed).await);
                if !heard.failed.lock().is_empty() {
                    return;
                }
                seq += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, given_up).await.expect(file);
        let refused = finish(&*store, &run, end_event(seq, "end")).await;
        assert!(
            matches!(refused, Err(StoreError::Unusable(_))),
            "{refused:?}"
        );
        assert!(!store.healthy());
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_another_process_keeps_busy_delays_writes_and_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::new(dir.path(), Role::Serve);
    options.busy_timeout = Duration::from_millis(20);
    let store = SqliteStore::open(options).unwrap();
    let run = created(&*store).await;
    let other = Connection::open(dir.path().join("sandcaster.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let heard = Arc::new(Heard::default());
    for seq in 2..50 {
        queue(&*store, &run, delta(seq, "x"), &heard).await;
    }
    // Several tries have failed by then.
    until(|| !store.healthy(), "it is not told").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(heard.committed.lock().is_empty() && heard.failed.lock().is_empty());
    other.execute_batch("ROLLBACK").unwrap();
    store.flush(Flush::Synced).await.unwrap();
    assert_eq!(*heard.committed.lock(), (2..50).collect::<Vec<_>>());
    assert!(store.healthy());
    // A stop does not wait for ever.
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let late = append(&*store, &run, vec![delta(50, "x")]);
    let (late, ()) = tokio::join!(late, async {
        until(|| !store.healthy(), "it is not told").await;
        tokio::time::timeout(PATIENCE, store.close()).await.unwrap();
    });
    assert!(late.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_does_not_end_the_flush_of_another_run_in_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::new(dir.path(), Role::Serve);
    options.busy_timeout = Duration::from_millis(20);
    options.max_pages = Some(100);
    let store = SqliteStore::open(options).unwrap();
    let (one, two) = (created(&*store).await, created(&*store).await);
    store.flush(Flush::Synced).await.unwrap();
    let (first, large, small) = <(Arc<Heard>, Arc<Heard>, Arc<Heard>)>::default();
    let queue = async |run, event, heard: &Arc<Heard>| {
        let queued = store.append(sandcaster::store::Append {
            lease: run,
            events: vec![event],
            listener: Arc::clone(heard) as _,
        });
        queued.await.unwrap();
    };
    let other = Connection::open(dir.path().join("sandcaster.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    queue(one.clone(), delta(2, "x"), &first).await;
    until(|| !store.healthy(), "it is not tried").await;
    // All of these are written at once, when the first is.
    let text = "x".repeat(1 << 20);
    queue(one, delta(3, &text), &large).await;
    queue(two, delta(2, "y"), &small).await;
    let (flushed, ()) = tokio::join!(store.flush(Flush::Synced), async {
        other.execute_batch("ROLLBACK").unwrap();
    });
    flushed.unwrap();
    assert_eq!(*first.committed.lock(), [2]);
    assert_eq!(*small.committed.lock(), [2]);
    let failed = large.failed.lock();
    assert!(
        matches!(failed.as_slice(), [(3, StoreError::Failed(_))]),
        "{failed:?}"
    );
}
