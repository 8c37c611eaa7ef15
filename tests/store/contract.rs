//! What every store must do. Each function here runs against each implementation.

use std::sync::Arc;

use sandcaster::events::StoredEvent;
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::{
    Deletion, Flush, RunHead, RunLease, RunRecord, RunState, RunStore, StoreError,
};

use super::kept::{
    a_file_is_read_in_pieces_from_anywhere, a_run_that_has_ended_can_be_deleted_and_no_other, file,
    files_are_kept_replaced_and_counted,
    old_runs_and_those_that_are_too_many_go_but_never_a_live_one, sandbox,
    sandboxes_are_recorded_before_and_after_they_exist,
    sandboxes_that_ended_runs_left_are_told_until_they_are_gone, webhooks_are_kept_once,
};
use super::{
    Heard, PATIENCE, append, at, created, delta, end, end_event, finish, log, new_run, queue,
};

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

fn refused<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    match result {
        Err(StoreError::Refused(_)) => {}
        other => panic!("{other:?}"),
    }
}

fn closed<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    match result {
        Err(StoreError::Closed) => {}
        other => panic!("{other:?}"),
    }
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
    let beginning = store.beginning(&lease.run).await.unwrap();
    assert_eq!(store.list(1).await.unwrap(), beginning.as_slice());
    assert_eq!(store.beginning(&RunId::new()).await.unwrap(), None);
    assert_eq!(log(&*store, &lease.run).await, [run.first]);
    assert!(!store.id().is_empty());
    assert!(store.healthy());
}

async fn a_run_is_created_once_and_from_event_one(store: Arc<dyn RunStore>) {
    let run = new_run(at(0));
    let lease = run.clone().create(&*store).await.unwrap();
    refused(run.create(&*store).await);
    let mut late = new_run(at(0));
    late.first.seq = Seq(2);
    let late_lease = RunLease {
        run: late.facts.id.clone(),
        ..lease
    };
    refused(late.create(&*store).await);
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
            queue(&*store, run, delta(seq, "x"), listener).await;
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
    let gap = append(
        &*store,
        &run,
        vec![delta(2, "a"), delta(3, "b"), delta(5, "d")],
    )
    .await;
    refused(gap);
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
        refused(finish(&*store, &run, again).await);
    }
    refused(append(&*store, &run, vec![delta(4, "late")]).await);
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
        refused(finish(&*store, &run, wrong).await);
    }
    let mut open_state = end();
    open_state.state = RunState::Running;
    refused(store.finish(&run, end_event(2, "e"), open_state).await);
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
        refused(append(&*store, &run, events).await);
    }
    assert_eq!(log(&*store, &run.run).await.len(), 1);
}

async fn commits_are_heard_in_order_and_before_sync_returns(store: Arc<dyn RunStore>) {
    let run = created(&*store).await;
    let heard = Arc::new(Heard::default());
    for seq in 2..300 {
        queue(&*store, &run, delta(seq, "x"), &heard).await;
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
    let file = file("a", b"a");
    for result in [
        store.read(run, Seq::ZERO, 1).await.map(drop),
        store.head(run).await.map(drop),
        store.watch(run, Seq::ZERO).await,
        append(&*store, &lease, vec![delta(2, "x")]).await,
        finish(&*store, &lease, end_event(2, "e")).await,
        store.put_file(&lease, file.clone()).await,
        store.file(run, "a").await.map(drop),
        store.read_file(run, &file.record, 0).await.map(drop),
        store.list_files(run).await.map(drop),
        store.put_sandbox(&lease, sandbox(1, None)).await,
        store.sandboxes(run).await.map(drop),
        store.webhooks(run).await.map(drop),
    ] {
        assert!(
            matches!(&result, Err(StoreError::NotFound(id)) if id == run),
            "{result:?}"
        );
    }
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

async fn many_writers_at_once_leave_every_log_dense(store: Arc<dyn RunStore>) {
    let writers: Vec<_> = (0..40)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::task::spawn_blocking(move || {
                tokio::runtime::Handle::current().block_on(async {
                    let run = created(&*store).await;
                    let heard = Arc::new(Heard::default());
                    for seq in 2..=60 {
                        queue(&*store, &run, delta(seq, "some text"), &heard).await;
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
        queue(&*store, &run, delta(seq, "x"), &heard).await;
    }
    tokio::time::timeout(PATIENCE, store.close()).await.unwrap();
    assert_eq!(
        heard.committed.lock().len(),
        198,
        "close writes what is queued"
    );
    closed(store.get(&run.run).await);
    closed(new_run(at(0)).create(&*store).await);
    closed(append(&*store, &run, vec![delta(200, "x")]).await);
    closed(store.flush(Flush::Synced).await);
}
