//! What every store must do. Each function here runs against each implementation.

use std::sync::Arc;

use bytes::Bytes;
use sandcaster::events::StoredEvent;
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::{
    Append, FileRecord, RunRecord, RunState, RunStore, SandboxRecord, StoreError, StoredFile,
    WebhookDelivery,
};
use serde_json::json;

use super::{Heard, PATIENCE, append, at, created, delta, end_event, finish, log, new_run};

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
    };
}

contract! {
    a_created_run_reads_back_as_it_was_given
    a_run_is_created_once_and_from_event_one
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
    unfinished_runs_are_those_without_an_end
    files_are_kept_replaced_and_counted
    sandboxes_are_recorded_before_and_after_they_exist
    webhooks_are_kept_once
    many_writers_at_once_leave_every_log_dense
    a_closed_store_says_so
}

async fn a_created_run_reads_back_as_it_was_given(store: Arc<dyn RunStore>) {
    let run = new_run(at(0));
    store.create(run.clone()).await.unwrap();
    let expected = RunRecord {
        id: run.id.clone(),
        owner: run.owner,
        prompt: run.prompt,
        model: run.model,
        provider: run.provider,
        sandbox_provider: run.sandbox_provider,
        background: true,
        state: RunState::Running,
        started_at: at(0),
        completed_at: None,
        last_seq: Seq(1),
        error_code: None,
        error: None,
        cost_nanos: None,
        input_tokens: None,
        output_tokens: None,
        num_turns: None,
        duration_secs: None,
        files_count: 0,
    };
    assert_eq!(store.get(&run.id).await.unwrap(), Some(expected));
    assert_eq!(log(&*store, &run.id).await, [run.first_event]);
    assert!(!store.id().is_empty());
    assert!(store.healthy());
}

async fn a_run_is_created_once_and_from_event_one(store: Arc<dyn RunStore>) {
    let run = new_run(at(0));
    store.create(run.clone()).await.unwrap();
    assert!(matches!(
        store.create(run.clone()).await,
        Err(StoreError::Refused(_))
    ));
    let mut late = new_run(at(0));
    late.first_event.seq = Seq(2);
    assert!(matches!(
        store.create(late.clone()).await,
        Err(StoreError::Refused(_))
    ));
    assert_eq!(store.get(&late.id).await.unwrap(), None);
    // A refused create leaves no trace that a later write could take for the run.
    assert!(matches!(
        append(&*store, &late.id, vec![delta(2, "x")]).await,
        Err(StoreError::NotFound(_))
    ));
    assert!(store.healthy());
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
    let all = log(&*store, &run).await;
    assert_eq!(all.len(), texts.len() + 1);
    for (read, sent) in all.iter().skip(1).zip(&sent) {
        assert_eq!(read, &**sent);
    }
    let two = store.read(&run, Seq(2), 2).await.unwrap();
    assert_eq!(two.iter().map(|e| e.seq.0).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(store.read(&run, Seq(6), 10).await.unwrap(), []);
    assert_eq!(store.read(&run, Seq::MAX, 10).await.unwrap(), []);
    assert_eq!(store.get(&run).await.unwrap().unwrap().last_seq, Seq(6));
}

async fn a_page_is_bounded_in_bytes_but_never_empty_before_the_head(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let big = "x".repeat(200_000);
    append(&*store, &run, (2..6).map(|seq| delta(seq, &big)).collect())
        .await
        .unwrap();
    let page = store.read(&run, Seq(1), 100).await.unwrap();
    assert!(!page.is_empty() && page.len() < 4, "{}", page.len());
    assert_eq!(log(&*store, &run).await.len(), 5);
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
                    run: run.clone(),
                    events: vec![delta(seq, "x")],
                    listener: Arc::clone(listener) as _,
                })
                .await
                .unwrap();
        }
    }
    store.sync().await.unwrap();
    assert_eq!(*heard.committed.lock(), (2..50).collect::<Vec<_>>());
    assert_eq!(lost.failed.lock().len(), 96);
    for (_, error) in lost.failed.lock().iter() {
        assert!(matches!(error, StoreError::Refused(_)), "{error}");
    }
    assert_eq!(log(&*store, &bad).await.len(), 1);
    assert_eq!(log(&*store, &good).await.len(), 49);
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
    assert_eq!(log(&*store, &run).await.len(), 1);
    append(&*store, &run, vec![delta(2, "a"), delta(3, "b")])
        .await
        .unwrap();
    assert_eq!(log(&*store, &run).await.len(), 3);
}

async fn a_run_ends_once_and_nothing_follows(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    append(&*store, &run, vec![delta(2, "a")]).await.unwrap();
    store
        .finish(finish(&run, end_event(3, "end")))
        .await
        .unwrap();
    let record = store.get(&run).await.unwrap().unwrap();
    assert_eq!(
        (
            record.state,
            record.completed_at,
            record.last_seq,
            record.error_code.as_deref(),
            record.error.as_deref(),
            record.cost_nanos,
            record.input_tokens,
            record.output_tokens,
            record.num_turns,
            record.duration_secs,
        ),
        (
            RunState::Failed,
            Some(at(9)),
            Seq(3),
            Some("MAX_TURNS"),
            Some("all turns were used"),
            Some(1_234_567_890_123),
            Some(10),
            Some(20),
            Some(3),
            Some(8.5),
        )
    );
    for again in [end_event(3, "other"), end_event(4, "end")] {
        assert!(matches!(
            store.finish(finish(&run, again)).await,
            Err(StoreError::Refused(_))
        ));
    }
    assert!(matches!(
        append(&*store, &run, vec![delta(4, "late")]).await,
        Err(StoreError::Refused(_))
    ));
    assert_eq!(log(&*store, &run).await.len(), 3);
    assert_eq!(store.get(&run).await.unwrap().unwrap(), record);
}

async fn the_same_end_once_more_is_a_retry_and_succeeds(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let end = finish(&run, end_event(2, "end"));
    store.finish(end.clone()).await.unwrap();
    let record = store.get(&run).await.unwrap();
    store.finish(end).await.unwrap();
    assert_eq!(store.get(&run).await.unwrap(), record);
    assert_eq!(log(&*store, &run).await.len(), 2);
}

async fn an_end_at_the_wrong_place_leaves_the_run_open(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    for wrong in [end_event(1, "e"), end_event(3, "e"), delta(2, "no end")] {
        assert!(matches!(
            store.finish(finish(&run, wrong)).await,
            Err(StoreError::Refused(_))
        ));
    }
    let mut open_state = finish(&run, end_event(2, "e"));
    open_state.state = RunState::Running;
    assert!(matches!(
        store.finish(open_state).await,
        Err(StoreError::Refused(_))
    ));
    let record = store.get(&run).await.unwrap().unwrap();
    assert_eq!((record.state, record.last_seq), (RunState::Running, Seq(1)));
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
    assert_eq!(log(&*store, &run).await.len(), 1);
}

async fn commits_are_heard_in_order_and_before_sync_returns(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let heard = Arc::new(Heard::default());
    for seq in 2..300 {
        store
            .append(Append {
                run: run.clone(),
                events: vec![delta(seq, "x")],
                listener: Arc::clone(&heard) as _,
            })
            .await
            .unwrap();
        if seq % 50 == 0 {
            store.sync().await.unwrap();
            assert_eq!(heard.committed.lock().last(), Some(&seq));
        }
    }
    store.sync().await.unwrap();
    assert_eq!(*heard.committed.lock(), (2..300).collect::<Vec<_>>());
    assert_eq!(log(&*store, &run).await.len(), 299);
}

async fn an_unknown_run_is_not_found(store: Arc<dyn RunStore>) {
    let run = RunId::new();
    assert_eq!(store.get(&run).await.unwrap(), None);
    let not_found = |error: StoreError| match error {
        StoreError::NotFound(id) => assert_eq!(id, run),
        other => panic!("{other}"),
    };
    not_found(store.read(&run, Seq::ZERO, 1).await.unwrap_err());
    not_found(
        append(&*store, &run, vec![delta(2, "x")])
            .await
            .unwrap_err(),
    );
    not_found(
        store
            .finish(finish(&run, end_event(2, "e")))
            .await
            .unwrap_err(),
    );
    not_found(store.put_file(&run, file("a", b"a")).await.unwrap_err());
    not_found(store.get_file(&run, "a").await.unwrap_err());
    not_found(store.list_files(&run).await.unwrap_err());
    not_found(store.put_sandbox(sandbox(&run, 1, None)).await.unwrap_err());
    not_found(store.sandboxes(&run).await.unwrap_err());
    not_found(store.webhooks(&run).await.unwrap_err());
    assert!(store.healthy());
}

async fn the_list_is_newest_first_and_limited(store: Arc<dyn RunStore>) {
    let mut ids = Vec::new();
    for start in [3, 1, 2] {
        let run = new_run(at(start));
        ids.push(run.id.clone());
        store.create(run).await.unwrap();
    }
    let order = |records: Vec<RunRecord>| -> Vec<i64> {
        let zero = at(0).as_second();
        records
            .iter()
            .map(|record| record.started_at.as_second() - zero)
            .collect()
    };
    assert_eq!(order(store.list(10).await.unwrap()), [3, 2, 1]);
    assert_eq!(order(store.list(2).await.unwrap()), [3, 2]);
    assert_eq!(order(store.list(0).await.unwrap()), [0; 0]);
}

async fn unfinished_runs_are_those_without_an_end(store: Arc<dyn RunStore>) {
    let (open, ended) = (created(&*store).await, created(&*store).await);
    store
        .finish(finish(&ended, end_event(2, "e")))
        .await
        .unwrap();
    let unfinished = store.unfinished().await.unwrap();
    assert_eq!(unfinished.len(), 1);
    assert_eq!(unfinished[0].id, open);
    assert!(unfinished[0].duration_secs.unwrap() >= 0.0);
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
    let paths: Vec<_> = store.list_files(&run).await.unwrap();
    assert_eq!(
        paths.iter().map(|f| (&*f.path, f.size)).collect::<Vec<_>>(),
        [("a", 4), ("b/c", 3_000_000), ("empty", 0)]
    );
    assert_eq!(
        store.get_file(&run, "a").await.unwrap(),
        Some(file("a", b"new!"))
    );
    assert_eq!(
        store.get_file(&run, "b/c").await.unwrap().unwrap().bytes,
        big
    );
    assert_eq!(store.get_file(&run, "none").await.unwrap(), None);
    assert_eq!(store.get_file(&other, "a").await.unwrap(), None);
    assert_eq!(store.get(&run).await.unwrap().unwrap().files_count, 3);
    assert_eq!(store.get(&other).await.unwrap().unwrap().files_count, 0);
}

fn sandbox(run: &RunId, attempt: u32, id: Option<&str>) -> SandboxRecord {
    SandboxRecord {
        run: run.clone(),
        backend: "local".to_owned(),
        attempt,
        sandbox_id: id.map(str::to_owned),
        expires: 1_800_000_420,
        destroyed: false,
    }
}

async fn sandboxes_are_recorded_before_and_after_they_exist(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    store.put_sandbox(sandbox(&run, 1, None)).await.unwrap();
    assert_eq!(store.sandbox_owner("sbx").await.unwrap(), None);
    let mut gone = sandbox(&run, 1, Some("old"));
    gone.destroyed = true;
    store.put_sandbox(gone.clone()).await.unwrap();
    store
        .put_sandbox(sandbox(&run, 2, Some("sbx")))
        .await
        .unwrap();
    assert_eq!(
        store.sandboxes(&run).await.unwrap(),
        [gone, sandbox(&run, 2, Some("sbx"))]
    );
    assert_eq!(store.sandbox_owner("sbx").await.unwrap(), Some(run.clone()));
    assert_eq!(store.sandbox_owner("old").await.unwrap(), Some(run.clone()));
    // What becomes of a sandbox is recorded after the run's end too.
    store.finish(finish(&run, end_event(2, "e"))).await.unwrap();
    let mut killed = sandbox(&run, 2, Some("sbx"));
    killed.destroyed = true;
    store.put_sandbox(killed.clone()).await.unwrap();
    assert_eq!(store.sandboxes(&run).await.unwrap()[1], killed);
}

async fn webhooks_are_kept_once(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let delivery = |event_id: &str, run: Option<&RunId>| WebhookDelivery {
        event_id: event_id.to_owned(),
        event_type: "sandbox.lifecycle.killed".to_owned(),
        sandbox_id: Some("sbx".to_owned()),
        run: run.cloned(),
        signed: true,
        received_at: at(5),
        body: json!({"id": event_id, "n": [1, null, "ü"]}),
    };
    assert!(store.put_webhook(delivery("b", Some(&run))).await.unwrap());
    assert!(store.put_webhook(delivery("a", Some(&run))).await.unwrap());
    assert!(!store.put_webhook(delivery("b", None)).await.unwrap());
    assert!(store.put_webhook(delivery("c", None)).await.unwrap());
    assert_eq!(
        store.webhooks(&run).await.unwrap(),
        [delivery("b", Some(&run)), delivery("a", Some(&run))]
    );
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
                                run: run.clone(),
                                events: vec![delta(seq, "some text")],
                                listener: Arc::clone(&heard) as _,
                            })
                            .await
                            .unwrap();
                    }
                    store
                        .finish(finish(&run, end_event(61, "end")))
                        .await
                        .unwrap();
                    assert_eq!(heard.committed.lock().len(), 59);
                    run
                })
            })
        })
        .collect();
    for writer in writers {
        let run = writer.await.unwrap();
        let seqs: Vec<u64> = log(&*store, &run).await.iter().map(|e| e.seq.0).collect();
        assert_eq!(seqs, (1..=61).collect::<Vec<_>>());
    }
    assert_eq!(store.unfinished().await.unwrap(), []);
}

async fn a_closed_store_says_so(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let heard = Arc::new(Heard::default());
    for seq in 2..200 {
        store
            .append(Append {
                run: run.clone(),
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
    assert!(matches!(store.get(&run).await, Err(StoreError::Closed)));
    assert!(matches!(
        store.create(new_run(at(0))).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(
        append(&*store, &run, vec![delta(200, "x")]).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(store.sync().await, Err(StoreError::Closed)));
}
