//! What is `SQLite`'s own: the data directory, the schema's guards, failures, durability.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use sandcaster::ids::Seq;
use sandcaster::spec::StoreDurability;
use sandcaster::store::{
    Append, Check, Flush, Role, RunEnd, RunStore, SqliteStore, StoreError, StoreOptions,
};

use tempfile::TempDir;

use super::retention::first_version;
use super::{
    Heard, PATIENCE, append, at, created, delta, end_event, finish, log, new_run, open, queue,
    sqlite,
};

#[tokio::test]
async fn a_second_server_is_refused_by_name_and_a_one_shot_command_is_not() {
    let (dir, store) = sqlite();
    let Err(StoreError::InUse(message)) = open(&dir, Role::Serve) else {
        panic!("a second server got the directory");
    };
    assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
    assert!(message.contains("--data-dir"), "{message}");

    let other = open(&dir, Role::OneShot).unwrap();
    assert_eq!(other.id(), store.id());
    let (ours, theirs) = (created(&*store).await, created(&*other).await);
    assert_eq!(log(&*store, &theirs.run).await.len(), 1);
    assert_eq!(log(&*other, &ours.run).await.len(), 1);

    assert_ne!(ours.owner, theirs.owner);
    assert_eq!(store.expired_runs().await.unwrap(), []);
    assert_eq!(other.expired_runs().await.unwrap(), []);
    other.close().await;
    let expired = store.expired_runs().await.unwrap();
    assert_eq!(expired.len(), 1);
    assert_eq!(expired[0].lease.run, theirs.run);

    store.close().await;
    open(&dir, Role::Serve).unwrap().close().await;
}

#[tokio::test]
async fn owners_that_are_no_instance_are_dead_and_lead_to_no_file() {
    let (dir, store) = sqlite();
    let run = created(&*store).await;
    for owner in ["", "../serve", "a/b", "."] {
        raw(&dir)
            .execute("UPDATE runs SET owner = ?1", [owner])
            .unwrap();
        let expired = store.expired_runs().await.unwrap();
        assert_eq!(expired.len(), 1, "{owner:?}");
        assert_eq!(expired[0].lease.run, run.run);
    }
}

fn locks(dir: &TempDir) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(dir.path().join("data/instances")).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

#[tokio::test]
async fn dead_owners_lock_files_go_with_the_look_that_they_asked_for() {
    let (dir, store) = sqlite();
    store.close().await;
    std::fs::write(dir.path().join("data/instances/feed.lock"), "").unwrap();
    // A command does not look, and leaves the mark to the server.
    let other = open(&dir, Role::OneShot).unwrap();
    assert_eq!(other.check().await.unwrap(), Check::NotNeeded);
    let store = open(&dir, Role::Serve).unwrap();
    assert_eq!(locks(&dir).len(), 3);
    assert_eq!(store.check().await.unwrap(), Check::Whole);
    assert_eq!(locks(&dir).len(), 2);
    let run = created(&*other).await;
    assert_eq!(store.expired_runs().await.unwrap(), []);
    finish(&*other, &run, end_event(2, "e")).await.unwrap();
    other.close().await;
    assert_eq!(locks(&dir).len(), 1);
}

#[tokio::test]
async fn a_removed_lock_file_kills_no_run_and_is_made_anew() {
    let (dir, store) = sqlite();
    let run = created(&*store).await;
    let [lock] = &locks(&dir)[..] else {
        panic!("one lock");
    };
    std::fs::remove_dir_all(dir.path().join("data/instances")).unwrap();
    std::fs::remove_file(dir.path().join("data/serve.lock")).unwrap();
    let command = open(&dir, Role::OneShot).unwrap();
    assert_eq!(command.expired_runs().await.unwrap(), []);
    tokio::time::timeout(PATIENCE, async {
        while !lock.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(command.expired_runs().await.unwrap(), []);
    append(&*store, &run, vec![delta(2, "on")]).await.unwrap();
    assert!(matches!(open(&dir, Role::Serve), Err(StoreError::InUse(_))));
}

#[tokio::test]
async fn a_copy_of_the_directory_is_another_store() {
    let (dir, store) = sqlite();
    let run = created(&*store).await;
    finish(&*store, &run, end_event(2, "e")).await.unwrap();
    let id = store.id().to_owned();
    store.close().await;
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("data")).unwrap();
    std::fs::copy(
        dir.path().join("data/sandcaster.db"),
        copy.path().join("data/sandcaster.db"),
    )
    .unwrap();
    let copied = open(&copy, Role::Serve).unwrap();
    let new = copied.id().to_owned();
    assert_ne!(new, id);
    assert_eq!(log(&*copied, &run.run).await.len(), 2);
    copied.close().await;
    let id_of = async |dir: &TempDir| {
        let store = open(dir, Role::Serve).unwrap();
        store.close().await;
        store.id().to_owned()
    };
    assert_eq!(id_of(&copy).await, new);
    assert_eq!(id_of(&dir).await, id);
    // Another number of the disk, as after a start of the machine, or another file in the same place is no copy.
    let bind = |dir: &TempDir, file: &str| {
        let set = "UPDATE meta SET value = ?1 WHERE name = 'file'";
        assert_eq!(raw(dir).execute(set, [file]).unwrap(), 1);
    };
    let file: String = raw(&dir)
        .query_row("SELECT value FROM meta WHERE name = 'file'", [], |row| {
            row.get(0)
        })
        .unwrap();
    bind(&dir, &format!("0:{file}"));
    raw(&dir)
        .execute("DELETE FROM meta WHERE name = 'path'", [])
        .unwrap();
    assert_eq!(id_of(&dir).await, id);
    bind(&dir, "1");
    assert_eq!(id_of(&dir).await, id);
    // In the same place of another machine it is one.
    let set = "UPDATE meta SET value = 'another' WHERE name = 'machine'";
    assert_eq!(raw(&dir).execute(set, []).unwrap(), 1);
    assert_eq!(id_of(&dir).await, id, "the same file");
    raw(&dir).execute(set, []).unwrap();
    bind(&dir, "1");
    let cloned = id_of(&dir).await;
    assert_ne!(cloned, id);
    assert_eq!(id_of(&dir).await, cloned);
    let id = cloned;
    // Moved as a whole it stays the same.
    let moved = tempfile::tempdir().unwrap();
    std::fs::rename(dir.path().join("data"), moved.path().join("data")).unwrap();
    assert_eq!(id_of(&moved).await, id);
    // A copy may get the same number on another disk.
    let elsewhere = "UPDATE meta SET value = 'elsewhere' WHERE name IN ('path', 'machine')";
    assert_eq!(raw(&moved).execute(elsewhere, []).unwrap(), 2);
    assert_ne!(id_of(&moved).await, id);
}

#[cfg(unix)]
#[tokio::test]
async fn only_its_user_can_read_the_data_directory() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, store) = sqlite();
    created(&*store).await;
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let data = dir.path().join("data");
    assert_eq!(mode(&data), 0o700);
    let mut seen = 0;
    for entry in std::fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{}", path.display());
        seen += 1;
    }
    assert!(
        seen >= 5,
        "the database, its log, and the locks were checked"
    );
}

#[tokio::test]
async fn a_store_keeps_its_id_and_its_runs_over_a_restart() {
    let (dir, store) = sqlite();
    let run = created(&*store).await;
    append(&*store, &run, vec![delta(2, "kept")]).await.unwrap();
    let id = store.id().to_owned();
    store.close().await;
    let store = open(&dir, Role::Serve).unwrap();
    assert_eq!(store.id(), id);
    let next = created(&*store).await;
    assert_ne!(next.owner, run.owner, "a process is not its predecessor");
    assert_eq!(log(&*store, &run.run).await.len(), 2);
    // It left a run without an end.
    assert_eq!(store.check().await.unwrap(), Check::Whole);
}

#[tokio::test]
async fn a_database_that_an_older_process_uses_is_not_migrated() {
    let dir = first_version();
    let lock = |name: &str| {
        let file = std::fs::File::create(dir.path().join("data").join(name)).unwrap();
        file.lock().unwrap();
        file
    };
    let version = || -> i64 {
        raw(&dir)
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap()
    };
    let older = lock("instances/old.lock");
    for role in [Role::OneShot, Role::Serve] {
        let Err(StoreError::InUse(told)) = open(&dir, role) else {
            panic!("it was opened");
        };
        assert!(told.contains("restart it first"), "{told}");
        assert_eq!(version(), 1);
    }
    drop(older);
    // A server that waits for its turn is of this version.
    let waiting = lock("serve.lock");
    let store = open(&dir, Role::OneShot).unwrap();
    store.close().await;
    assert!(version() > 1);
    drop(waiting);
}

#[tokio::test]
async fn a_run_does_not_end_before_it_started_when_the_clock_is_set_back() {
    let (_dir, store) = sqlite();
    let run = created(&*store).await;
    let end = RunEnd {
        completed_at: jiff::Timestamp::UNIX_EPOCH,
        ..super::end()
    };
    store.finish(&run, end_event(2, "end"), end).await.unwrap();
    let record = store.get(&run.run).await.unwrap().unwrap();
    assert_eq!(record.end.unwrap().completed_at, record.facts.started_at);
}

#[tokio::test]
async fn a_database_of_another_program_is_refused_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let db = rusqlite::Connection::open(dir.path().join("sandcaster.db")).unwrap();
    db.execute_batch("CREATE TABLE theirs (x); PRAGMA user_version = 3")
        .unwrap();
    drop(db);
    let refused = SqliteStore::open(StoreOptions::new(dir.path(), Role::Serve)).err();
    assert!(
        matches!(&refused, Some(StoreError::Unusable(why)) if why.contains("not one of sandcaster's")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_with_both_versions() {
    let (dir, store) = sqlite();
    store.close().await;
    raw(&dir).pragma_update(None, "user_version", 99).unwrap();
    let Err(StoreError::Unusable(message)) = open(&dir, Role::Serve) else {
        panic!("a newer database was opened");
    };
    assert!(
        message.contains("99") && message.contains(env!("CARGO_PKG_VERSION")),
        "{message}"
    );
}

#[test]
fn a_file_that_is_no_database_and_a_path_that_is_no_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/sandcaster.db"), "x".repeat(5000)).unwrap();
    assert!(matches!(
        open(&dir, Role::Serve),
        Err(StoreError::Unusable(_))
    ));
    let file = StoreOptions::new(dir.path().join("data/sandcaster.db"), Role::Serve);
    let Err(StoreError::Unusable(message)) = SqliteStore::open(file) else {
        panic!("a file was taken for a directory");
    };
    assert!(message.contains("sandcaster.db"), "{message}");
}

fn raw(dir: &TempDir) -> Connection {
    Connection::open(dir.path().join("data/sandcaster.db")).unwrap()
}

#[tokio::test]
async fn the_database_itself_guards_a_log_against_any_statement() {
    let (dir, store) = sqlite();
    let (open, ended) = (created(&*store).await, created(&*store).await);
    finish(&*store, &ended, end_event(2, "e")).await.unwrap();
    let db = raw(&dir);
    for (what, sql) in [
        (
            "a gap",
            "INSERT INTO events (run, seq, kind, at, json) VALUES (1, 3, 'assistant', 0, '{}')",
        ),
        (
            "a repeat",
            "INSERT INTO events (run, seq, kind, at, json) VALUES (1, 1, 'assistant', 0, '{}')",
        ),
        (
            "seq 0",
            "INSERT INTO events (run, seq, kind, at, json) VALUES (1, 0, 'assistant', 0, '{}')",
        ),
        (
            "after the end",
            "INSERT INTO events (run, seq, kind, at, json) VALUES (2, 3, 'assistant', 0, '{}')",
        ),
        (
            "a second end",
            "INSERT INTO events (run, seq, kind, at, json) VALUES (2, 3, 'result', 0, '{}')",
        ),
        (
            "no run",
            "INSERT INTO events (run, seq, kind, at, json) VALUES (77, 1, 'assistant', 0, '{}')",
        ),
        (
            "a changed event",
            "UPDATE events SET json = '{}' WHERE run = 1",
        ),
        (
            "a revived run",
            "UPDATE runs SET state = 'running', completed_at = NULL WHERE no = 2",
        ),
        (
            "an end without a time",
            "UPDATE runs SET state = 'failed' WHERE no = 1",
        ),
        (
            "an unknown state",
            "UPDATE runs SET state = 'odd' WHERE no = 1",
        ),
        (
            "text for a number",
            "UPDATE runs SET started_at = 'now' WHERE no = 1",
        ),
    ] {
        let refused = db.execute(sql, []).unwrap_err();
        assert_eq!(
            refused.sqlite_error_code(),
            Some(rusqlite::ErrorCode::ConstraintViolation),
            "{what}: {refused}"
        );
    }
    assert_eq!(log(&*store, &open.run).await.len(), 1);
    assert_eq!(log(&*store, &ended.run).await.len(), 2);
}

#[tokio::test]
async fn a_full_disk_fails_loudly_keeps_what_was_committed_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::new(dir.path(), Role::Serve);
    options.max_pages = Some(60);
    let store = SqliteStore::open(options.clone()).unwrap();
    let (run, small) = (created(&*store).await, created(&*store).await);
    let text = "x".repeat(10_000);
    let mut stored = 1;
    let error = loop {
        match append(&*store, &run, vec![delta(stored + 1, &text)]).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 1000, "the limit does not hold");
    };
    assert!(
        matches!(&error, StoreError::Failed(why) if why.contains("full")),
        "{error}"
    );
    assert!(!store.healthy());
    // What does not grow the database still goes in, and says that the store works.
    append(&*store, &small, vec![delta(2, "s")]).await.unwrap();
    assert!(store.healthy());
    assert_eq!(log(&*store, &run.run).await.len() as u64, stored);
    assert!(matches!(
        append(&*store, &run, vec![delta(stored + 1, &text)]).await,
        Err(StoreError::Failed(_))
    ));
    assert!(!store.healthy());
    // With nothing to write, the writer finds out by itself.
    tokio::time::timeout(PATIENCE, async {
        while !store.healthy() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    store.close().await;

    options.max_pages = None;
    let store = SqliteStore::open(options).unwrap();
    append(&*store, &run, vec![delta(stored + 1, &text)])
        .await
        .unwrap();
    assert_eq!(log(&*store, &run.run).await.len() as u64, stored + 1);
    // It left a run without an end.
    assert_eq!(store.check().await.unwrap(), Check::Whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_transaction_that_runs_full_each_write_gets_its_own_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::new(dir.path(), Role::Serve);
    options.max_pages = Some(80);
    let store = SqliteStore::open(options).unwrap();
    let mut runs = Vec::new();
    for _ in 0..8 {
        runs.push((created(&*store).await, Arc::new(Heard::default())));
    }
    let text = "x".repeat(3000);
    for seq in 2..40 {
        for (run, heard) in &runs {
            queue(&*store, run, delta(seq, &text), heard).await;
        }
    }
    drop(store.flush(Flush::Synced).await);
    let mut failures = 0;
    for (run, heard) in &runs {
        let committed = heard.committed.lock().clone();
        failures += heard.failed.lock().len();
        assert_eq!(committed.len() + heard.failed.lock().len(), 38);
        let read: Vec<u64> = log(&*store, &run.run)
            .await
            .iter()
            .skip(1)
            .map(|e| e.seq.0)
            .collect();
        assert_eq!(read, committed, "what was told is what is there");
        assert_eq!(read, (2..2 + read.len() as u64).collect::<Vec<_>>());
    }
    assert!(failures > 0, "the limit was never reached");
}

#[tokio::test]
async fn full_durability_stores_and_reads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::new(dir.path(), Role::Serve);
    options.durability = StoreDurability::Full;
    let store = SqliteStore::open(options).unwrap();
    let run = created(&*store).await;
    append(&*store, &run, vec![delta(2, "a")]).await.unwrap();
    store.flush(Flush::Synced).await.unwrap();
    finish(&*store, &run, end_event(3, "e")).await.unwrap();
    assert_eq!(log(&*store, &run.run).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_write_ahead_log_stays_bounded_under_unbroken_load() {
    let (dir, store) = sqlite();
    let run = created(&*store).await;
    let text = "x".repeat(60_000);
    let wal = dir.path().join("data/sandcaster.db-wal");
    let mut largest = 0;
    for batch in 0..64 {
        for i in 0..16 {
            store
                .append(Append {
                    lease: run.clone(),
                    events: vec![delta(batch * 16 + i + 2, &text)],
                    listener: Arc::new(Heard::default()),
                })
                .await
                .unwrap();
        }
        largest = largest.max(std::fs::metadata(&wal).unwrap().len());
    }
    store.flush(Flush::Synced).await.unwrap();
    largest = largest.max(std::fs::metadata(&wal).unwrap().len());
    assert!(
        largest < 48 * 1024 * 1024,
        "61 MB were written, and the log grew to {largest}"
    );
    assert_eq!(
        store.get(&run.run).await.unwrap().unwrap().last_seq,
        Seq(1025)
    );
}

#[tokio::test]
async fn the_clock_of_the_store_dates_events_so_that_an_unfinished_run_has_a_duration() {
    let dir = tempfile::tempdir().unwrap();
    let clock = sandcaster::clock::Clock::held(at(0));
    let mut options = StoreOptions::new(dir.path(), Role::Serve);
    options.clock = clock.clone();
    let store = SqliteStore::open(options).unwrap();
    let run = new_run(at(0)).create(&*store).await.unwrap();
    clock.advance(Duration::from_millis(2500));
    append(&*store, &run, vec![delta(2, "x")]).await.unwrap();
    clock.advance(Duration::from_hours(1));
    store.close().await;
    let store = SqliteStore::open(StoreOptions::new(dir.path(), Role::Serve)).unwrap();
    let open = store.expired_runs().await.unwrap().remove(0);
    let age = open.last_event_at.duration_since(open.started_at);
    assert_eq!(age, jiff::SignedDuration::from_millis(2500));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_may_write_at_once() {
    let (dir, store) = sqlite();
    let other = open(&dir, Role::OneShot).unwrap();
    let write = async |store: Arc<SqliteStore>| {
        let run = created(&*store).await;
        let heard = Arc::new(Heard::default());
        for seq in 2..400 {
            queue(&*store, &run, delta(seq, "x"), &heard).await;
            if seq % 20 == 0 {
                store.flush(Flush::Synced).await.unwrap();
            }
        }
        finish(&*store, &run, end_event(400, "e")).await.unwrap();
        run
    };
    let (a, b) = tokio::time::timeout(PATIENCE, async {
        tokio::join!(write(Arc::clone(&store)), write(Arc::clone(&other)))
    })
    .await
    .unwrap();
    assert_eq!(log(&*store, &b.run).await.len(), 400);
    assert_eq!(log(&*other, &a.run).await.len(), 400);
}
