//! What every store must do. Each function here runs against each implementation.

use std::sync::Arc;

use bytes::Bytes;
use sandcaster::events::StoredEvent;
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::{
    Append, Deletion, FileRecord, Flush, LeftSandbox, Retention, RunEnd, RunHead, RunLease,
    RunRecord, RunState, RunStore, SandboxRecord, StoreError, StoredFile, TOLD_WEBHOOKS,
    WebhookDelivery,
};

use super::{Heard, PATIENCE, append, at, created, delta, end, end_event, finish, log, new_run};

macro_rules! contract {
    ($($name:ident)*) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let (_dir, store) = super::super::sqlite();
                    let store: std::sync::Arc<dyn sandcaster::store::RunStore> = store;
                    tokio::time::timeout(super::PATIENCE, super::$name(std::sync::Arc::clone(&store)))
                        .await
                        .expect("the store hung");
                    tokio::time::timeout(super::PATIENCE, store.close()).await.expect("close hung");
                }
            )*
        }

        mod memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let store = crate::support::memory_store::MemoryStore::new();
                    tokio::time::timeout(super::PATIENCE, super::$name(store))
                        .await
                        .expect("the store hung");
                }
            )*
        }
    };
}

contract! {
    a_created_run_reads_back_as_it_was_given
    a_run_is_created_once_and_from_event_one
    only_who_holds_the_lease_can_write
    a_live_process_keeps_its_runs
    events_come_back_after_a_cursor_in_order_and_byte_for_byte
    a_page_is_bounded_in_bytes_but_never_empty_before_the_head
    an_append_that_would_leave_a_gap_or_repeat_is_refused_and_harms_no_other
    an_append_happens_wholly_or_not_at_all
    a_run_ends_once_and_nothing_follows
    the_same_end_once_more_is_a_retry_and_succeeds
    an_end_at_the_wrong_place_leaves_the_run_open
    a_terminal_event_can_not_be_appended
    commits_are_heard_in_order_and_before_sync_returns
    an_unknown_run_is_not_found
    the_list_is_newest_first_and_limited
    a_list_has_the_beginnings_of_prompts_alone
    the_head_moves_and_ends_with_the_log
    a_watcher_hears_of_what_comes
    files_are_kept_replaced_and_counted
    a_file_is_read_in_pieces_from_anywhere
    sandboxes_are_recorded_before_and_after_they_exist
    sandboxes_that_ended_runs_left_are_told_until_they_are_gone
    webhooks_are_kept_once
    a_run_that_has_ended_can_be_deleted_and_no_other
    old_runs_and_those_that_are_too_many_go_but_never_a_live_one
    many_writers_at_once_leave_every_log_dense
    a_closed_store_says_so
}

async fn a_created_run_reads_back_as_it_was_given(store: Arc<dyn RunStore>) {
    let run = new_run(at(0));
    let lease = run.clone().create(&*store).await.unwrap();
    assert_eq!(lease.run, run.facts.id);
    let expected = RunRecord {
        facts: run.facts.clone(),
        last_seq: Seq(1),
        files_count: 0,
        end: None,
    };
    assert_eq!(expected.state(), RunState::Running);
    assert_eq!(store.get(&lease.run).await.unwrap(), Some(expected));
    assert_eq!(log(&*store, &lease.run).await, [run.first]);
    assert!(!store.id().is_empty());
    assert!(store.healthy());
}

async fn a_run_is_created_once_and_from_event_one(store: Arc<dyn RunStore>) {
    let run = new_run(at(0));
    let lease = run.clone().create(&*store).await.unwrap();
    assert!(matches!(
        run.create(&*store).await,
        Err(StoreError::Refused(_))
    ));
    let mut late = new_run(at(0));
    late.first.seq = Seq(2);
    let late_lease = RunLease {
        run: late.facts.id.clone(),
        ..lease
    };
    assert!(matches!(
        late.create(&*store).await,
        Err(StoreError::Refused(_))
    ));
    assert_eq!(store.get(&late_lease.run).await.unwrap(), None);
    // A refused create leaves no trace that a later write could take for the run.
    assert!(matches!(
        append(&*store, &late_lease, vec![delta(2, "x")]).await,
        Err(StoreError::NotFound(_))
    ));
    assert!(store.healthy());
}

async fn only_who_holds_the_lease_can_write(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let others = [
        RunLease {
            epoch: run.epoch + 1,
            ..run.clone()
        },
        RunLease {
            owner: "another".into(),
            ..run.clone()
        },
    ];
    for written_before in [false, true] {
        for other in &others {
            let refused = |result: Result<(), StoreError>| {
                assert!(matches!(result, Err(StoreError::Refused(_))), "{result:?}");
            };
            let next = if written_before { 3 } else { 2 };
            refused(append(&*store, other, vec![delta(next, "x")]).await);
            refused(finish(&*store, other, end_event(next, "e")).await);
            refused(store.put_file(other, file("a", b"a")).await);
            refused(store.put_sandbox(other, sandbox(1, None)).await);
        }
        if !written_before {
            append(&*store, &run, vec![delta(2, "x")]).await.unwrap();
        }
    }
    finish(&*store, &run, end_event(3, "e")).await.unwrap();
    assert_eq!(store.get(&run.run).await.unwrap().unwrap().files_count, 0);
    assert!(store.healthy());
}

async fn a_live_process_keeps_its_runs(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    assert_eq!(store.expired_runs().await.unwrap(), []);
    append(&*store, &run, vec![delta(2, "x")]).await.unwrap();
}

async fn events_come_back_after_a_cursor_in_order_and_byte_for_byte(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let texts = [
        "a",
        "",
        "\u{0}\n\"\\",
        "日本 \u{1f600}",
        &"long ".repeat(5000),
    ];
    let mut sent: Vec<Arc<StoredEvent>> = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let event = delta(i as u64 + 2, text);
        append(&*store, &run, vec![Arc::clone(&event)])
            .await
            .unwrap();
        sent.push(event);
    }
    let all = log(&*store, &run.run).await;
    assert_eq!(all.len(), texts.len() + 1);
    for (read, sent) in all.iter().skip(1).zip(&sent) {
        assert_eq!(read, &**sent);
    }
    let two = store.read(&run.run, Seq(2), 2).await.unwrap();
    assert_eq!(two.iter().map(|e| e.seq.0).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(store.read(&run.run, Seq(6), 10).await.unwrap(), []);
    assert_eq!(store.read(&run.run, Seq::MAX, 10).await.unwrap(), []);
    assert_eq!(store.get(&run.run).await.unwrap().unwrap().last_seq, Seq(6));
}

async fn a_page_is_bounded_in_bytes_but_never_empty_before_the_head(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let big = "x".repeat(200_000);
    append(&*store, &run, (2..6).map(|seq| delta(seq, &big)).collect())
        .await
        .unwrap();
    let page = store.read(&run.run, Seq(1), 100).await.unwrap();
    assert!(!page.is_empty() && page.len() < 4, "{}", page.len());
    assert_eq!(log(&*store, &run.run).await.len(), 5);
}

async fn an_append_that_would_leave_a_gap_or_repeat_is_refused_and_harms_no_other(
    store: Arc<dyn RunStore>,
) {
    let (bad, good) = (created(&*store).await, created(&*store).await);
    let heard = Arc::new(Heard::default());
    let lost = Arc::new(Heard::default());
    for seq in 2..50 {
        for (run, seq, listener) in [
            (&bad, seq + 1, &lost),
            (&good, seq, &heard),
            (&bad, 1, &lost),
        ] {
            store
                .append(Append {
                    lease: run.clone(),
                    events: vec![delta(seq, "x")],
                    listener: Arc::clone(listener) as _,
                })
                .await
                .unwrap();
        }
    }
    store.flush(Flush::Synced).await.unwrap();
    assert_eq!(*heard.committed.lock(), (2..50).collect::<Vec<_>>());
    assert_eq!(lost.failed.lock().len(), 96);
    for (_, error) in lost.failed.lock().iter() {
        assert!(matches!(error, StoreError::Refused(_)), "{error}");
    }
    assert_eq!(log(&*store, &bad.run).await.len(), 1);
    assert_eq!(log(&*store, &good.run).await.len(), 49);
    assert!(
        store.healthy(),
        "a fault of the caller is none of the store"
    );
}

async fn an_append_happens_wholly_or_not_at_all(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let refused = append(
        &*store,
        &run,
        vec![delta(2, "a"), delta(3, "b"), delta(5, "d")],
    )
    .await;
    assert!(matches!(refused, Err(StoreError::Refused(_))));
    assert_eq!(log(&*store, &run.run).await.len(), 1);
    append(&*store, &run, vec![delta(2, "a"), delta(3, "b")])
        .await
        .unwrap();
    assert_eq!(log(&*store, &run.run).await.len(), 3);
}

async fn a_run_ends_once_and_nothing_follows(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    append(&*store, &run, vec![delta(2, "a")]).await.unwrap();
    finish(&*store, &run, end_event(3, "end")).await.unwrap();
    let record = store.get(&run.run).await.unwrap().unwrap();
    assert_eq!((&record.end, record.last_seq), (&Some(end()), Seq(3)));
    assert_eq!(record.state(), RunState::Failed);
    for again in [end_event(3, "other"), end_event(4, "end")] {
        assert!(matches!(
            finish(&*store, &run, again).await,
            Err(StoreError::Refused(_))
        ));
    }
    assert!(matches!(
        append(&*store, &run, vec![delta(4, "late")]).await,
        Err(StoreError::Refused(_))
    ));
    assert_eq!(log(&*store, &run.run).await.len(), 3);
    assert_eq!(store.get(&run.run).await.unwrap().unwrap(), record);
}

async fn the_same_end_once_more_is_a_retry_and_succeeds(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let event = end_event(2, "end");
    finish(&*store, &run, Arc::clone(&event)).await.unwrap();
    let record = store.get(&run.run).await.unwrap();
    finish(&*store, &run, event).await.unwrap();
    assert_eq!(store.get(&run.run).await.unwrap(), record);
    assert_eq!(log(&*store, &run.run).await.len(), 2);
}

async fn an_end_at_the_wrong_place_leaves_the_run_open(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    for wrong in [end_event(1, "e"), end_event(3, "e"), delta(2, "no end")] {
        assert!(matches!(
            finish(&*store, &run, wrong).await,
            Err(StoreError::Refused(_))
        ));
    }
    let mut open_state = end();
    open_state.state = RunState::Running;
    assert!(matches!(
        store.finish(&run, end_event(2, "e"), open_state).await,
        Err(StoreError::Refused(_))
    ));
    let record = store.get(&run.run).await.unwrap().unwrap();
    assert_eq!(
        (record.state(), record.last_seq),
        (RunState::Running, Seq(1))
    );
    append(&*store, &run, vec![delta(2, "on")]).await.unwrap();
}

async fn a_terminal_event_can_not_be_appended(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    for events in [
        vec![end_event(2, "e")],
        vec![delta(2, "a"), end_event(3, "e")],
    ] {
        assert!(matches!(
            append(&*store, &run, events).await,
            Err(StoreError::Refused(_))
        ));
    }
    assert_eq!(log(&*store, &run.run).await.len(), 1);
}

async fn commits_are_heard_in_order_and_before_sync_returns(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let heard = Arc::new(Heard::default());
    for seq in 2..300 {
        store
            .append(Append {
                lease: run.clone(),
                events: vec![delta(seq, "x")],
                listener: Arc::clone(&heard) as _,
            })
            .await
            .unwrap();
        if seq % 50 == 0 {
            store.flush(Flush::Synced).await.unwrap();
            assert_eq!(heard.committed.lock().last(), Some(&seq));
        }
    }
    store.flush(Flush::Synced).await.unwrap();
    assert_eq!(*heard.committed.lock(), (2..300).collect::<Vec<_>>());
    assert_eq!(log(&*store, &run.run).await.len(), 299);
}

async fn an_unknown_run_is_not_found(store: Arc<dyn RunStore>) {
    let lease = RunLease {
        run: RunId::new(),
        ..created(&*store).await
    };
    let run = &lease.run;
    assert_eq!(store.get(run).await.unwrap(), None);
    assert_eq!(store.delete(run).await.unwrap(), Deletion::Unknown);
    let not_found = |error: StoreError| match error {
        StoreError::NotFound(id) => assert_eq!(id, *run),
        other => panic!("{other}"),
    };
    not_found(store.read(run, Seq::ZERO, 1).await.unwrap_err());
    not_found(store.head(run).await.unwrap_err());
    not_found(store.watch(run, Seq::ZERO).await.unwrap_err());
    not_found(
        append(&*store, &lease, vec![delta(2, "x")])
            .await
            .unwrap_err(),
    );
    not_found(
        finish(&*store, &lease, end_event(2, "e"))
            .await
            .unwrap_err(),
    );
    not_found(store.put_file(&lease, file("a", b"a")).await.unwrap_err());
    not_found(store.file(run, "a").await.unwrap_err());
    not_found(
        store
            .read_file(run, &file("a", b"a").record, 0)
            .await
            .unwrap_err(),
    );
    not_found(store.list_files(run).await.unwrap_err());
    not_found(
        store
            .put_sandbox(&lease, sandbox(1, None))
            .await
            .unwrap_err(),
    );
    not_found(store.sandboxes(run).await.unwrap_err());
    not_found(store.webhooks(run).await.unwrap_err());
    assert!(store.healthy());
}

async fn the_list_is_newest_first_and_limited(store: Arc<dyn RunStore>) {
    for start in [3, 1, 2] {
        new_run(at(start)).create(&*store).await.unwrap();
    }
    let order = |records: Vec<RunRecord>| -> Vec<i64> {
        let zero = at(0).as_second();
        records
            .iter()
            .map(|record| record.facts.started_at.as_second() - zero)
            .collect()
    };
    assert_eq!(order(store.list(10).await.unwrap()), [3, 2, 1]);
    assert_eq!(order(store.list(2).await.unwrap()), [3, 2]);
    assert_eq!(order(store.list(0).await.unwrap()), [0; 0]);
}

async fn a_list_has_the_beginnings_of_prompts_alone(store: Arc<dyn RunStore>) {
    let mut run = new_run(at(0));
    run.facts.prompt = "\u{1f44b}".repeat(150);
    let lease = run.clone().create(&*store).await.unwrap();
    let listed = store.list(1).await.unwrap().remove(0);
    assert_eq!(listed.facts.prompt, "\u{1f44b}".repeat(100));
    let whole = store.get(&lease.run).await.unwrap().unwrap();
    assert_eq!(whole.facts, run.facts);
}

async fn the_head_moves_and_ends_with_the_log(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let head = async || store.head(&run.run).await.unwrap();
    let at = |seq, ended| RunHead {
        last_seq: Seq(seq),
        ended,
    };
    assert_eq!(head().await, at(1, false));
    append(&*store, &run, vec![delta(2, "a"), delta(3, "b")])
        .await
        .unwrap();
    assert_eq!(head().await, at(3, false));
    finish(&*store, &run, end_event(4, "e")).await.unwrap();
    assert_eq!(head().await, at(4, true));
}

async fn a_watcher_hears_of_what_comes(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    store.watch(&run.run, Seq::ZERO).await.unwrap();
    let (watched, ()) = tokio::join!(store.watch(&run.run, Seq(1)), async {
        append(&*store, &run, vec![delta(2, "x")]).await.unwrap();
    });
    watched.unwrap();
    assert_eq!(store.head(&run.run).await.unwrap().last_seq, Seq(2));
}

fn file(path: &str, bytes: &[u8]) -> StoredFile {
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

async fn files_are_kept_replaced_and_counted(store: Arc<dyn RunStore>) {
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

async fn a_file_is_read_in_pieces_from_anywhere(store: Arc<dyn RunStore>) {
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

fn sandbox(attempt: u32, id: Option<&str>) -> SandboxRecord {
    SandboxRecord {
        backend: "local".to_owned(),
        attempt,
        sandbox_id: id.map(str::to_owned),
        expires: 1_800_000_420,
        destroyed: false,
    }
}

async fn sandboxes_are_recorded_before_and_after_they_exist(store: Arc<dyn RunStore>) {
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

async fn sandboxes_that_ended_runs_left_are_told_until_they_are_gone(store: Arc<dyn RunStore>) {
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

async fn webhooks_are_kept_once(store: Arc<dyn RunStore>) {
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
    assert!(store.put_webhook(delivery("b", Some(&run))).await.unwrap());
    assert!(store.put_webhook(delivery("a", Some(&run))).await.unwrap());
    assert!(!store.put_webhook(delivery("b", None)).await.unwrap());
    assert!(store.put_webhook(delivery("c", None)).await.unwrap());
    assert_eq!(
        store.webhooks(&run.run).await.unwrap(),
        [delivery("b", Some(&run)), delivery("a", Some(&run))]
    );
    for n in 0..TOLD_WEBHOOKS {
        let delivery = delivery(&n.to_string(), Some(&run));
        assert!(store.put_webhook(delivery).await.unwrap());
    }
    let told = store.webhooks(&run.run).await.unwrap();
    let told: Vec<_> = told.iter().map(|told| told.event_id.clone()).collect();
    let newest: Vec<_> = (0..TOLD_WEBHOOKS).map(|n| n.to_string()).collect();
    assert_eq!(told, newest);
}

async fn a_run_that_has_ended_can_be_deleted_and_no_other(store: Arc<dyn RunStore>) {
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
    let never = Retention {
        ended_before: None,
        most_runs: 1000,
        webhooks_before: at(-1000),
        forget_before: jiff::Timestamp::UNIX_EPOCH,
    };
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

async fn old_runs_and_those_that_are_too_many_go_but_never_a_live_one(store: Arc<dyn RunStore>) {
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
        let rules = Retention {
            ended_before,
            most_runs,
            webhooks_before: at(-1000),
            forget_before: jiff::Timestamp::UNIX_EPOCH,
        };
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

async fn many_writers_at_once_leave_every_log_dense(store: Arc<dyn RunStore>) {
    let writers: Vec<_> = (0..40)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::task::spawn_blocking(move || {
                tokio::runtime::Handle::current().block_on(async {
                    let run = created(&*store).await;
                    let heard = Arc::new(Heard::default());
                    for seq in 2..=60 {
                        store
                            .append(Append {
                                lease: run.clone(),
                                events: vec![delta(seq, "some text")],
                                listener: Arc::clone(&heard) as _,
                            })
                            .await
                            .unwrap();
                    }
                    finish(&*store, &run, end_event(61, "end")).await.unwrap();
                    assert_eq!(heard.committed.lock().len(), 59);
                    run.run
                })
            })
        })
        .collect();
    for writer in writers {
        let run = writer.await.unwrap();
        let seqs: Vec<u64> = log(&*store, &run).await.iter().map(|e| e.seq.0).collect();
        assert_eq!(seqs, (1..=61).collect::<Vec<_>>());
    }
    let all = store.list(100).await.unwrap();
    assert!(all.iter().all(|run| run.end.is_some()));
}

async fn a_closed_store_says_so(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let heard = Arc::new(Heard::default());
    for seq in 2..200 {
        store
            .append(Append {
                lease: run.clone(),
                events: vec![delta(seq, "x")],
                listener: Arc::clone(&heard) as _,
            })
            .await
            .unwrap();
    }
    tokio::time::timeout(PATIENCE, store.close()).await.unwrap();
    assert_eq!(
        heard.committed.lock().len(),
        198,
        "close writes what is queued"
    );
    assert!(matches!(store.get(&run.run).await, Err(StoreError::Closed)));
    assert!(matches!(
        new_run(at(0)).create(&*store).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(
        append(&*store, &run, vec![delta(200, "x")]).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(
        store.flush(Flush::Synced).await,
        Err(StoreError::Closed)
    ));
}
