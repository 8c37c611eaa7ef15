//! How runs end, and what is told of it when.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use sandcaster::error::{ErrorCode, Problem};
use sandcaster::events::{ErrorEvent, RunEvent, StoredEvent, Totals};
use sandcaster::ids::{RunId, Seq};
use sandcaster::runs::{Keep, LogLimits, Runs, RunsConfig, Tasks, recover, take_report};
use sandcaster::sandbox::{SandboxNews, SandboxReport};
use sandcaster::secrets::Redactor;
use sandcaster::store::{Role, RunEnd, RunState, RunStore as _, SqliteStore, StoreOptions};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::faulty_store::FaultyStore;
use super::harness::{Script, llm_of, run, runs, spec};
use crate::support::app::{PATIENCE, of_kind};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};
use crate::support::memory_store::MemoryStore;
use crate::support::processes::until;
use crate::support::records::{facts, first_event};

#[tokio::test]
async fn an_end_is_told_by_nobody_before_it_would_survive_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FaultyStore::over(dir.path()));
    let synced = CancellationToken::new();
    store.hold_ends(&synced);
    let llm = FakeLlm::start([Reply::says("Four.")]).await;
    let script = Arc::new(Script::default());
    let runs = runs(&llm, store.clone(), &script, LogLimits::default());
    let mut spec = spec(&[]);
    spec.tools.clear();
    let mut handle = runs.start(spec).await.unwrap();
    let id = handle.id.clone();
    // The end is committed, and its sync takes its time.
    let committed = async {
        while !store.head(&id).await.unwrap().ended {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, committed).await.unwrap();
    let stored = store.head(&id).await.unwrap().last_seq;
    for _ in 0..2 {
        let told = runs.get(&id).await.unwrap();
        assert_eq!(told.state(), RunState::Running);
        assert!(told.last_seq < stored);
        assert_eq!(runs.list(10).await.unwrap(), std::slice::from_ref(&told));
        let head = runs.head(&id).await.unwrap();
        assert_eq!((head.ended, head.last_seq), (false, told.last_seq));
        assert!(!runs.cancel(&id).await.unwrap().already_ended);
        assert_eq!(
            runs.delete(&id).await.unwrap_err().code,
            ErrorCode::RunActive
        );
    }
    // A cursor that the store knows already is not ahead.
    let mut late = runs.reader(&id, stored).await.unwrap();
    synced.cancel();
    let mut last = None;
    while let Some(event) = handle.reader.next().await.unwrap() {
        last = Some(event.seq);
    }
    assert_eq!(last, Some(stored));
    let ended = tokio::time::timeout(PATIENCE, late.next()).await.unwrap();
    assert_eq!(ended.unwrap(), None);
    let told = runs.get(&id).await.unwrap();
    assert_eq!((told.state(), told.last_seq), (RunState::Completed, stored));
    runs.delete(&id).await.unwrap();
    assert_eq!(
        runs.get(&id).await.unwrap_err().code,
        ErrorCode::RunNotFound
    );
}

#[tokio::test]
async fn a_fault_of_ours_in_a_runs_task_ends_the_run_with_its_sandbox_and_its_place() {
    let script = Arc::new(Script {
        rotten: true,
        ..Script::default()
    });
    let llm = llm_of("echo hi > out.txt").await;
    let runs = runs(&llm, MemoryStore::new(), &script, LogLimits::default());
    // The file is read when the agent is done, in the run's own task.
    let events = run(&runs, spec(&[])).await;
    let error = events.last().unwrap();
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("error"), &json!("INTERNAL"))
    );
    assert_eq!(error["numTurns"], 2);
    until(
        || script.kills.load(Ordering::SeqCst) == 1,
        "the sandbox to go",
    )
    .await;
    until(|| runs.live() == 0, "the run to be over").await;
}

#[tokio::test]
async fn a_fault_of_ours_while_the_end_is_written_ends_the_run_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FaultyStore::over(dir.path()));
    store.panic_at_an_end();
    let llm = FakeLlm::start([Reply::says("Four.")]).await;
    let script = Arc::new(Script::default());
    let runs = runs(&llm, store.clone(), &script, LogLimits::default());
    let mut spec = spec(&[]);
    spec.tools.clear();
    let events = run(&runs, spec).await;
    let error = events.last().unwrap();
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("error"), &json!("INTERNAL"))
    );
    assert_eq!(error["numTurns"], 1);
}

#[tokio::test]
async fn a_cancel_stops_a_run_although_the_store_fails() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FaultyStore::over(dir.path()));
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().wait(&gate).text("Four.")]).await;
    let script = Arc::new(Script::default());
    let runs = runs(&llm, store.clone(), &script, LogLimits::default());
    let mut spec = spec(&[]);
    spec.tools.clear();
    let mut handle = runs.start(spec).await.unwrap();
    tokio::time::timeout(PATIENCE, gate.reached())
        .await
        .unwrap();
    store.set_down(true);
    let told = runs.cancel(&handle.id).await.unwrap_err();
    assert_eq!(told.code, ErrorCode::StoreUnavailable);
    // Nothing more is paid for.
    llm.connection_closed(0).await;
    store.set_down(false);
    let mut last = None;
    while let Some(event) = handle.reader.next().await.unwrap() {
        last = Some(event);
    }
    let error: Value = serde_json::from_str(&last.unwrap().json).unwrap();
    assert_eq!(error["code"], "CANCELLED");
}

#[tokio::test]
async fn when_to_come_back_is_said_only_where_no_tool_has_acted() {
    let limited =
        || Reply::error(429, "rate_limit_error", "slow down").header("retry-after", "3600");
    let called = || Reply::new().call("bash", &json!({"command": "true"}));
    for (replies, after, acted) in [
        (vec![limited()], json!(3600), false),
        (vec![called(), limited()], Value::Null, true),
    ] {
        let llm = FakeLlm::start(replies).await;
        let script = Arc::new(Script::default());
        let runs = runs(&llm, MemoryStore::new(), &script, LogLimits::default());
        let events = run(&runs, spec(&[])).await;
        let error = events.last().unwrap();
        assert_eq!(error["code"], "LLM_RATE_LIMITED");
        assert_eq!(error["retryAfterSecs"], after);
        let hint = error["hint"].as_str().unwrap();
        assert_eq!(hint.contains("tools have acted"), acted, "{hint}");
    }
}

/// Bytes that tell when nobody has them any more.
struct Tracked(Vec<u8>, #[expect(dead_code, reason = "counts")] Arc<()>);

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[tokio::test]
async fn uploaded_bytes_are_let_go_once_they_are_in_the_sandbox() {
    let held = Arc::new(());
    let gate = Gate::new();
    let llm = FakeLlm::start([
        Reply::new().call("bash", &json!({"command": "cat in.txt"})),
        Reply::new().wait(&gate).text("Done."),
    ])
    .await;
    let script = Arc::new(Script::default());
    let runs = runs(&llm, MemoryStore::new(), &script, LogLimits::default());
    let mut spec = spec(&[("in.txt", "")]);
    spec.files[0].bytes = Bytes::from_owner(Tracked(b"from outside".to_vec(), Arc::clone(&held)));
    let mut handle = runs.start(spec).await.unwrap();
    // The model is told of the file, and its tool has read it.
    let told = llm.request(1).await.tool_results()[0].text.clone();
    assert!(told.contains("from outside"), "{told}");
    assert!(llm.request(0).await.body.to_string().contains("in.txt"));
    assert_eq!(Arc::strong_count(&held), 1, "the run goes on");
    gate.open();
    while handle.reader.next().await.unwrap().is_some() {}
}

#[tokio::test]
async fn a_file_that_the_full_log_has_no_room_for_is_named() {
    let llm = llm_of("head -c 60000 /dev/zero | tr '\\0' x > out.txt").await;
    let limits = LogLimits {
        events: 100,
        bytes: 20_000,
    };
    let script = Arc::new(Script::default());
    let store = MemoryStore::new();
    let runs = runs(&llm, store.clone(), &script, limits);
    let events = run(&runs, spec(&[])).await;
    assert_eq!(events.last().unwrap()["type"], "result");
    assert_eq!(of_kind(&events, "file").len(), 0);
    let warnings = of_kind(&events, "warning");
    let omitted: Vec<&Value> = warnings
        .into_iter()
        .filter(|warning| warning["code"] == "FILE_OMITTED")
        .collect();
    assert_eq!(omitted.len(), 1, "{events:#?}");
    let message = omitted[0]["message"].as_str().unwrap();
    assert!(message.contains("out.txt"), "{message}");
}

#[tokio::test]
async fn what_no_store_can_keep_is_replaced_in_a_prompt() {
    let llm = FakeLlm::start([Reply::says("Four.")]).await;
    let script = Arc::new(Script::default());
    let store = MemoryStore::new();
    let runs = runs(&llm, store.clone(), &script, LogLimits::default());
    let mut spec = spec(&[]);
    spec.tools.clear();
    spec.prompt = "a\0b".to_owned();
    run(&runs, spec).await;
    let listed = store.list(1).await.unwrap().remove(0);
    assert_eq!(listed.facts.prompt, "a\u{FFFD}b");
}

#[tokio::test(start_paused = true)]
async fn old_runs_are_deleted_at_the_start_and_by_and_by() {
    let store = MemoryStore::new();
    let at = |n: i64| jiff::Timestamp::from_second(1_800_000_000 + n).unwrap();
    let ended = async |n| {
        let lease = store.create(facts(at(n)), first_event()).await.unwrap();
        let problem = Problem::new(ErrorCode::Cancelled, "it was cancelled");
        let event = RunEvent::Error(ErrorEvent::new(&problem, Totals::default()));
        let event = StoredEvent::new(Seq(2), &event).unwrap();
        let end = RunEnd {
            state: RunState::Cancelled,
            completed_at: at(n),
            error: None,
            cost_nanos: None,
            usage: None,
            num_turns: 0,
            duration_secs: 0.0,
        };
        store.finish(&lease, event.into(), end).await.unwrap();
        lease.run
    };
    let oldest = ended(1).await;
    let kept = [ended(2).await, ended(3).await];
    let config = || RunsConfig {
        store: store.clone(),
        keep: Keep { age: None, runs: 2 },
        providers: std::collections::BTreeMap::new(),
        backends: std::collections::BTreeMap::new(),
        max_concurrent_runs: 1,
        redactor: Redactor::new([]),
        clock: sandcaster::clock::Clock::system(),
        tasks: Tasks::new(),
    };
    let left = async || {
        let left = store.list(10).await.unwrap();
        left.into_iter()
            .rev()
            .map(|run| run.facts.id)
            .collect::<Vec<_>>()
    };
    // A command's own settings say nothing of what a server keeps.
    let command = Runs::new(config());
    command.start_housekeeping(Role::OneShot);
    tokio::time::sleep(Duration::from_mins(2)).await;
    command.shutdown(Duration::from_secs(1)).await;
    assert_eq!(left().await.len(), 3);
    let runs = Runs::new(config());
    runs.start_housekeeping(Role::Serve);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(left().await, kept);
    assert!(store.head(&oldest).await.is_err());
    let next = ended(4).await;
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(left().await, [kept[1].clone(), next]);
    runs.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_report_of_a_sandbox_that_is_stored_late_is_told_to_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FaultyStore::over(dir.path()));
    let gate = Gate::new();
    let llm = FakeLlm::start([
        Reply::new().call("bash", &json!({"command": "true"})),
        Reply::new().wait(&gate).text("Done."),
    ])
    .await;
    let script = Arc::new(Script::default());
    let runs = runs(&llm, store.clone(), &script, LogLimits::default());
    let mut handle = runs.start(spec(&[])).await.unwrap();
    tokio::time::timeout(PATIENCE, gate.reached())
        .await
        .unwrap();
    let stored = CancellationToken::new();
    store.hold_ends(&stored);
    let clock = sandcaster::clock::Clock::system();
    let sandbox = store.sandboxes(&handle.id).await.unwrap().remove(0);
    let report = SandboxReport {
        event_id: "e1".to_owned(),
        event_type: "odd".to_owned(),
        sent_at: clock.now(),
        sandbox_id: sandbox.sandbox_id,
        run: None,
        instance: None,
        news: SandboxNews::Other {
            event: "odd".to_owned(),
        },
    };
    let late = take_report(&runs, &clock, report.clone(), true).await;
    assert!(late.is_err(), "its sender is to send it again");
    stored.cancel();
    let told = async {
        while let Some(event) = handle.reader.next().await.unwrap() {
            let event: Value = serde_json::from_str(&event.json).unwrap();
            if event["code"] == "SANDBOX_EVENT" {
                return event;
            }
        }
        panic!("the run has ended");
    };
    let told = tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(told["event"], "odd");
    // And no second time.
    take_report(&runs, &clock, report, true).await.unwrap();
    gate.open();
    while let Some(event) = handle.reader.next().await.unwrap() {
        assert_ne!(event.kind, sandcaster::events::EventType::Warning);
    }
    runs.shutdown(PATIENCE).await;
}

/// A run in the store of `dir` whose process is gone.
async fn dead_run(dir: &std::path::Path) -> RunId {
    let gone = SqliteStore::open(StoreOptions::new(dir, Role::OneShot)).unwrap();
    let facts = facts(jiff::Timestamp::UNIX_EPOCH);
    let run = gone.create(facts, first_event()).await.unwrap().run;
    gone.close().await;
    run
}

#[tokio::test]
async fn a_dead_run_that_can_not_be_ended_is_ended_by_a_later_look() {
    let dir = tempfile::tempdir().unwrap();
    let run = dead_run(dir.path()).await;
    let store = FaultyStore::over(dir.path());
    store.set_down(true);
    assert_eq!(recover(&store).await.unwrap(), []);
    store.set_down(false);
    assert_eq!(recover(&store).await.unwrap(), [run]);
}

#[tokio::test]
async fn a_dead_run_is_ended_without_reading_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let run = dead_run(dir.path()).await;
    let store = FaultyStore::over(dir.path());
    store.lose_logs();
    assert_eq!(recover(&store).await.unwrap(), [run]);
}
