//! Room: what is deleted, and that it is given back.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::Connection;
use sandcaster::clock::Clock;
use sandcaster::store::{
    Deletion, FileRecord, Flush, Retention, Role, RunStore, SandboxRecord, SqliteStore, StoreError,
    StoreOptions, StoredFile, WebhookDelivery,
};

use super::{append, at, created, delta, end, end_event, finish, open, sqlite};

fn rules() -> Retention {
    Retention {
        ended_before: None,
        most_runs: 1000,
        webhooks_before: at(-1000),
        forget_before: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn count(db: &Connection, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    db.query_row(&sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn all_of_a_deleted_run_goes_in_small_steps_and_its_room_is_given_back() {
    let (dir, store) = sqlite();
    let run = created(&*store).await;
    let kept = created(&*store).await;
    let text = "x".repeat(5000);
    for batch in 0..4 {
        let events = (0..400).map(|n| delta(batch * 400 + n + 2, &text));
        append(&*store, &run, events.collect()).await.unwrap();
    }
    for n in 0..3 {
        let record = FileRecord {
            path: format!("file {n}"),
            mime_type: "text/plain".to_owned(),
            size: 6_000_000,
            sha256: n.to_string(),
        };
        let bytes = Bytes::from(vec![n; 6_000_000]);
        store
            .put_file(&run, StoredFile { record, bytes })
            .await
            .unwrap();
    }
    let sandbox = SandboxRecord {
        backend: "local".to_owned(),
        attempt: 1,
        sandbox_id: None,
        expires: 0,
        destroyed: true,
    };
    store.put_sandbox(&run, sandbox).await.unwrap();
    for (id, run) in [("a", Some(&run)), ("b", Some(&kept)), ("c", None)] {
        let delivery = WebhookDelivery {
            event_id: id.to_owned(),
            event_type: "odd".to_owned(),
            sandbox_id: None,
            run: run.map(|run| run.run.clone()),
            signed: true,
            received_at: at(5),
            kill_reason: None,
        };
        store.put_webhook(delivery).await.unwrap();
    }
    finish(&*store, &run, end_event(1602, "e")).await.unwrap();
    store.flush(Flush::Synced).await.unwrap();
    let db = Connection::open(dir.path().join("data/sandcaster.db")).unwrap();
    let pages = || -> i64 {
        db.query_row("PRAGMA page_count", [], |row| row.get(0))
            .unwrap()
    };
    let full = pages();
    assert!(full > 6000, "{full}");
    assert_eq!(store.delete(&run.run).await.unwrap(), Deletion::Done);
    let mut steps = 0;
    while store.maintain(&rules()).await.unwrap() {
        steps += 1;
        // What goes on is hardly held up, and not lost.
        let seq = steps + 1;
        append(&*store, &kept, vec![delta(seq, "on")])
            .await
            .unwrap();
    }
    assert!(steps > 10, "{steps}");
    let left = pages();
    assert!(left < 1500, "{left} of {full} pages");
    let tables = ["prompts", "files", "file_parts", "sandboxes", "webhooks"];
    assert_eq!(tables.map(|table| count(&db, table)), [1, 0, 0, 0, 2]);
    assert_eq!(count(&db, "events"), 1 + i64::try_from(steps).unwrap());
    let whole: String = db
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(whole, "ok");

    // It is known to be gone for a while, then not even that.
    let head = store.head(&run.run).await;
    assert!(matches!(head, Err(StoreError::Expired(_))));
    let later = Retention {
        webhooks_before: at(6),
        forget_before: jiff::Timestamp::MAX,
        ..rules()
    };
    while store.maintain(&later).await.unwrap() {}
    let head = store.head(&run.run).await;
    assert!(matches!(head, Err(StoreError::NotFound(_))));
    assert_eq!((count(&db, "runs"), count(&db, "webhooks")), (1, 0));
}

#[tokio::test]
async fn a_dead_run_is_kept_from_when_its_death_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(StoreOptions {
        clock: Clock::held(at(1000)),
        ..StoreOptions::new(dir.path(), Role::Serve)
    })
    .unwrap();
    let run = created(&*store).await;
    // As of its last event, and found long after.
    let ended = end();
    assert_eq!(ended.completed_at, at(9));
    store.finish(&run, end_event(2, "e"), ended).await.unwrap();
    let keeps = |before| Retention {
        ended_before: Some(before),
        ..rules()
    };
    while store.maintain(&keeps(at(999))).await.unwrap() {}
    assert!(store.head(&run.run).await.is_ok());
    while store.maintain(&keeps(at(1001))).await.unwrap() {}
    assert!(store.head(&run.run).await.is_err());
}

#[tokio::test]
async fn a_row_that_came_to_a_deleted_run_does_not_stop_the_purging() {
    let (dir, store) = sqlite();
    let run = created(&*store).await;
    let sandbox = || SandboxRecord {
        backend: "local".to_owned(),
        attempt: 1,
        sandbox_id: None,
        expires: 0,
        destroyed: false,
    };
    finish(&*store, &run, end_event(2, "e")).await.unwrap();
    store.put_sandbox(&run, sandbox()).await.unwrap();
    assert_eq!(store.delete(&run.run).await.unwrap(), Deletion::Done);
    let late = store.put_sandbox(&run, sandbox()).await;
    assert!(matches!(late, Err(StoreError::NotFound(_))), "{late:?}");
    while store.maintain(&rules()).await.unwrap() {}
    let db = Connection::open(dir.path().join("data/sandcaster.db")).unwrap();
    db.execute(
        "INSERT INTO sandboxes (run, attempt, backend, expires, destroyed) SELECT no, 1, 'local', 0, 0 FROM runs",
        [],
    )
    .unwrap();
    let forget = Retention {
        forget_before: jiff::Timestamp::MAX,
        ..rules()
    };
    while store.maintain(&forget).await.unwrap() {}
    assert_eq!((count(&db, "runs"), count(&db, "sandboxes")), (0, 0));
}

/// A data directory of the first version.
pub fn first_version() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let old = Connection::open(data.join("sandcaster.db")).unwrap();
    old.pragma_update(None, "journal_mode", "WAL").unwrap();
    let sql = include_str!("../fixtures/store_v1.sql");
    old.execute_batch(sql).unwrap();
    drop(old);
    std::fs::create_dir(data.join("instances")).unwrap();
    std::fs::write(data.join("instances/gone.lock"), "").unwrap();
    dir
}

#[tokio::test]
async fn a_store_of_the_first_version_opens_with_all_that_it_has() {
    let dir = first_version();
    let data = dir.path().join("data");
    let store = open(&dir, sandcaster::store::Role::Serve).unwrap();
    assert_eq!(store.id(), "feedfacefeedfacefeedfacefeedface");
    let runs = store.list(10).await.unwrap();
    let [open, crashed, ended] = &runs[..] else {
        panic!("{runs:?}");
    };
    let prompt = async |id| store.get(id).await.unwrap().unwrap().facts.prompt;
    assert_eq!(ended.facts.prompt.len(), 100);
    assert_eq!(prompt(&ended.facts.id).await.len(), 150);
    assert_eq!(prompt(&open.facts.id).await, "still there");
    let usage = ended.end.as_ref().unwrap().usage.unwrap();
    assert_eq!((usage.input_tokens, usage.complete), (10, true));
    assert_eq!(crashed.end.as_ref().unwrap().usage, None);
    assert!(open.end.is_none());
    let id = &ended.facts.id;
    let files = store.list_files(id).await.unwrap();
    assert_eq!(files.len(), 2);
    let mut read = Vec::new();
    while read.len() < 200_000 {
        let piece = store.read_file(id, &files[1], read.len() as u64).await;
        read.extend_from_slice(&piece.unwrap());
    }
    assert!(read == "0123456789".repeat(20_000).as_bytes());
    assert!(store.read_file(id, &files[0], 0).await.unwrap().is_empty());
    assert!(store.sandboxes(id).await.unwrap()[0].destroyed);
    assert_eq!(store.webhooks(id).await.unwrap().len(), 1);
    let db = Connection::open(data.join("sandcaster.db")).unwrap();
    let bodies = db.prepare("SELECT body FROM webhooks").is_ok();
    assert!(!bodies, "the bodies of deliveries are still there");
    drop(db);
    // Its dead run is ended, and new ones are written.
    let dead = sandcaster::runs::recover(&*store).await.unwrap();
    assert_eq!(dead, std::slice::from_ref(&open.facts.id));
    let run = created(&*store).await;
    finish(&*store, &run, end_event(2, "e")).await.unwrap();
    assert_eq!(store.delete(id).await.unwrap(), Deletion::Done);
    while store.maintain(&rules()).await.unwrap() {}
    store.close().await;
    let store = open_again(&dir);
    assert_eq!(store.list(10).await.unwrap().len(), 3);
}

fn open_again(dir: &tempfile::TempDir) -> Arc<sandcaster::store::SqliteStore> {
    open(dir, sandcaster::store::Role::Serve).unwrap()
}
