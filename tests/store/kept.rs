//! What every store must do with what belongs to a run: files, sandboxes, webhooks; and how runs go.

use std::sync::Arc;

use bytes::Bytes;
use sandcaster::ids::Seq;
use sandcaster::store::{
    Deletion, FileRecord, LeftSandbox, Retention, RunEnd, RunLease, RunRecord, RunStore,
    SandboxRecord, StoreError, StoredFile, TOLD_WEBHOOKS, WebhookDelivery,
};

use super::{append, at, created, delta, end, end_event, finish, new_run};

pub fn file(path: &str, bytes: &[u8]) -> StoredFile {
    StoredFile {
        record: FileRecord {
            path: path.to_owned(),
            mime_type: "text/plain".to_owned(),
            size: bytes.len() as u64,
            sha256: "00".repeat(32),
        },
        bytes: Bytes::copy_from_slice(bytes),
    }
}

pub fn sandbox(attempt: u32, id: Option<&str>) -> SandboxRecord {
    SandboxRecord {
        backend: "local".to_owned(),
        attempt,
        sandbox_id: id.map(str::to_owned),
        expires: 1_800_000_420,
        destroyed: false,
    }
}

fn keep(ended_before: Option<jiff::Timestamp>, most_runs: u64) -> Retention {
    Retention {
        ended_before,
        most_runs,
        webhooks_before: at(-1000),
        forget_before: jiff::Timestamp::UNIX_EPOCH,
    }
}

pub async fn files_are_kept_replaced_and_counted(store: Arc<dyn RunStore>) {
    let (run, other) = (created(&*store).await, created(&*store).await);
    let big = vec![0xFF_u8; 3_000_000];
    store.put_file(&run, file("b/c", &big)).await.unwrap();
    store.put_file(&run, file("a", b"old")).await.unwrap();
    store.put_file(&run, file("a", b"new!")).await.unwrap();
    store.put_file(&run, file("empty", b"")).await.unwrap();
    let paths: Vec<_> = store.list_files(&run.run).await.unwrap();
    assert_eq!(
        paths.iter().map(|f| (&*f.path, f.size)).collect::<Vec<_>>(),
        [("a", 4), ("b/c", 3_000_000), ("empty", 0)]
    );
    for (path, bytes) in [("a", b"new!" as &[u8]), ("b/c", &big), ("empty", b"")] {
        let record = store.file(&run.run, path).await.unwrap().unwrap();
        assert_eq!(record, file(path, bytes).record);
        let mut read = Vec::new();
        loop {
            let offset = read.len() as u64;
            let piece = store.read_file(&run.run, &record, offset).await.unwrap();
            if piece.is_empty() {
                break;
            }
            read.extend_from_slice(&piece);
        }
        assert!(read == bytes, "{path}");
    }
    assert_eq!(store.file(&run.run, "none").await.unwrap(), None);
    assert_eq!(store.file(&other.run, "a").await.unwrap(), None);
    let count = async |run: &RunLease| store.get(&run.run).await.unwrap().unwrap().files_count;
    assert_eq!((count(&run).await, count(&other).await), (3, 0));
}

pub async fn a_file_is_read_in_pieces_from_anywhere(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    let kept = file("f", &bytes);
    store.put_file(&run, kept.clone()).await.unwrap();
    for offset in [0, 1, 65_535, 65_536, 65_537, 131_072, 199_999] {
        let from = usize::try_from(offset).unwrap();
        let piece = store.read_file(&run.run, &kept.record, offset).await;
        let piece = piece.unwrap();
        assert!(!piece.is_empty() && piece.len() <= 65_536, "{offset}");
        assert!(piece == bytes[from..from + piece.len()], "{offset}");
    }
    for offset in [200_000, u64::MAX] {
        let piece = store.read_file(&run.run, &kept.record, offset).await;
        assert!(piece.unwrap().is_empty());
    }
    // Another file under the same name is not its continuation.
    let mut other = file("f", &bytes);
    other.record.sha256 = "11".repeat(32);
    store.put_file(&run, other).await.unwrap();
    let stale = store.read_file(&run.run, &kept.record, 65_536).await;
    assert!(matches!(stale, Err(StoreError::Failed(_))));
}

pub async fn sandboxes_are_recorded_before_and_after_they_exist(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    store.put_sandbox(&run, sandbox(1, None)).await.unwrap();
    assert_eq!(store.sandbox_owner("sbx").await.unwrap(), None);
    let mut gone = sandbox(1, Some("old"));
    gone.destroyed = true;
    store.put_sandbox(&run, gone.clone()).await.unwrap();
    store
        .put_sandbox(&run, sandbox(2, Some("sbx")))
        .await
        .unwrap();
    assert_eq!(
        store.sandboxes(&run.run).await.unwrap(),
        [gone, sandbox(2, Some("sbx"))]
    );
    for id in ["sbx", "old"] {
        let owner = store.sandbox_owner(id).await.unwrap();
        assert_eq!(owner.as_ref(), Some(&run.run));
    }
    // What becomes of a sandbox is recorded after the run's end too.
    finish(&*store, &run, end_event(2, "e")).await.unwrap();
    store.sandbox_gone(&run.run, 2).await.unwrap();
    let killed = SandboxRecord {
        destroyed: true,
        ..sandbox(2, Some("sbx"))
    };
    assert_eq!(store.sandboxes(&run.run).await.unwrap()[1], killed);
}

pub async fn sandboxes_that_ended_runs_left_are_told_until_they_are_gone(store: Arc<dyn RunStore>) {
    let (live, ended) = (created(&*store).await, created(&*store).await);
    for run in [&live, &ended] {
        store.put_sandbox(run, sandbox(1, None)).await.unwrap();
        store.put_sandbox(run, sandbox(2, Some("s"))).await.unwrap();
    }
    finish(&*store, &ended, end_event(2, "e")).await.unwrap();
    let left = |attempt, id: Option<&str>| LeftSandbox {
        run: ended.run.clone(),
        attempt,
        sandbox_id: id.map(str::to_owned),
        expires: sandbox(attempt, id).expires,
        ended_at: at(9),
    };
    assert_eq!(
        store.left_sandboxes("local").await.unwrap(),
        [left(1, None), left(2, Some("s"))]
    );
    assert_eq!(store.left_sandboxes("e2b").await.unwrap(), []);
    store.sandbox_gone(&ended.run, 2).await.unwrap();
    assert_eq!(
        store.left_sandboxes("local").await.unwrap(),
        [left(1, None)]
    );
}

pub async fn webhooks_are_kept_once(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let delivery = |event_id: &str, run: Option<&RunLease>| WebhookDelivery {
        event_id: event_id.to_owned(),
        event_type: "sandbox.lifecycle.killed".to_owned(),
        sandbox_id: Some("sbx".to_owned()),
        run: run.map(|run| run.run.clone()),
        signed: true,
        received_at: at(5),
        kill_reason: Some("ü".to_owned()),
    };
    let put = async |delivery| store.put_webhook(delivery).await.unwrap();
    for (id, run, new) in [
        ("b", Some(&run), true),
        ("a", Some(&run), true),
        ("b", None, false),
        ("c", None, true),
    ] {
        assert_eq!(put(delivery(id, run)).await, new, "{id}");
    }
    assert_eq!(
        store.webhooks(&run.run).await.unwrap(),
        [delivery("b", Some(&run)), delivery("a", Some(&run))]
    );
    for n in 0..TOLD_WEBHOOKS {
        assert!(put(delivery(&n.to_string(), Some(&run))).await);
    }
    let told = store.webhooks(&run.run).await.unwrap();
    let told: Vec<_> = told.iter().map(|told| told.event_id.clone()).collect();
    let newest: Vec<_> = (0..TOLD_WEBHOOKS).map(|n| n.to_string()).collect();
    assert_eq!(told, newest);
}

pub async fn a_run_that_has_ended_can_be_deleted_and_no_other(store: Arc<dyn RunStore>) {
    let (run, other) = (created(&*store).await, created(&*store).await);
    assert_eq!(store.delete(&run.run).await.unwrap(), Deletion::Live);
    store.put_file(&run, file("a", b"a")).await.unwrap();
    store
        .put_sandbox(&run, sandbox(1, Some("sbx")))
        .await
        .unwrap();
    finish(&*store, &run, end_event(2, "e")).await.unwrap();
    let record = store.file(&run.run, "a").await.unwrap().unwrap();
    assert_eq!(store.delete(&run.run).await.unwrap(), Deletion::Done);
    let never = keep(None, 1000);
    // The same before and after what belonged to it is gone as well.
    for _ in 0..2 {
        assert_eq!(store.get(&run.run).await.unwrap(), None);
        assert_eq!(store.list(10).await.unwrap().len(), 1);
        assert_eq!(store.delete(&run.run).await.unwrap(), Deletion::Unknown);
        assert_eq!(store.sandbox_owner("sbx").await.unwrap(), None);
        assert_eq!(store.left_sandboxes("local").await.unwrap(), []);
        for error in [
            store.read(&run.run, Seq::ZERO, 1).await.unwrap_err(),
            store.head(&run.run).await.unwrap_err(),
            store.file(&run.run, "a").await.unwrap_err(),
            store.read_file(&run.run, &record, 0).await.unwrap_err(),
        ] {
            assert!(matches!(&error, StoreError::Expired(id) if *id == run.run));
        }
        while store.maintain(&never).await.unwrap() {}
    }
    append(&*store, &other, vec![delta(2, "x")]).await.unwrap();
}

pub async fn old_runs_and_those_that_are_too_many_go_but_never_a_live_one(
    store: Arc<dyn RunStore>,
) {
    let mut runs = Vec::new();
    for n in 0..150 {
        let run = new_run(at(n)).create(&*store).await.unwrap();
        if n != 3 {
            let end = RunEnd {
                completed_at: at(n),
                ..end()
            };
            store.finish(&run, end_event(2, "e"), end).await.unwrap();
        }
        runs.push(run.run);
    }
    let kept = async |ended_before, most_runs| {
        let rules = keep(ended_before, most_runs);
        while store.maintain(&rules).await.unwrap() {}
        let listed = store.list(1000).await.unwrap();
        let at = |run: &RunRecord| runs.iter().position(|id| *id == run.facts.id).unwrap();
        listed.iter().rev().map(at).collect::<Vec<_>>()
    };
    assert_eq!(kept(None, 150).await.len(), 150);
    let old_gone: Vec<usize> = [3].into_iter().chain(100..150).collect();
    assert_eq!(kept(Some(at(100)), 150).await, old_gone);
    let few: Vec<usize> = [3].into_iter().chain(140..150).collect();
    assert_eq!(kept(None, 10).await, few);
    assert_eq!(kept(None, 0).await, [3]);
}
