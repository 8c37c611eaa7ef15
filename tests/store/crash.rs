//! What a process leaves that is killed while it writes.
//!
//! The writing process is this test binary itself, run for one test with a variable set; without the
//! variable that test has nothing to do.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sandcaster::clock::Clock;
use sandcaster::error::ErrorCode;
use sandcaster::events::{RanBy, RunEvent, StoredEvent, Tokens, ToolUseEvent};
use sandcaster::ids::{RunId, Seq};
use sandcaster::runs::recover;
use sandcaster::store::{
    Check, CommitListener, Role, RunState, RunStore, RunUsage, SqliteStore, StoreError,
    StoreOptions, TurnRecord,
};

use super::{at, created, delta, end_event, finish, log, new_run, open, queue};

const CHILD: &str = "SANDCASTER_TEST_STORE_CHILD";

/// Runs that are open at once.
const LIVE: usize = 5;

/// In the terminal events.
const END: &str = "the end";

/// Says on standard output what was committed, as a server would tell its clients.
struct Tell(RunId);

impl CommitListener for Tell {
    fn committed(&self, events: &[Arc<StoredEvent>]) {
        let mut text = String::new();
        for event in events {
            write!(text, "\ncommitted {} {}\n", self.0, event.json).unwrap();
        }
        std::io::stdout().write_all(text.as_bytes()).unwrap();
    }

    fn failed(&self, _events: &[Arc<StoredEvent>], error: &StoreError) {
        panic!("{error}");
    }
}

#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn child_writes_until_it_is_killed() {
    #[expect(
        clippy::disallowed_methods,
        reason = "tells the child process from a test"
    )]
    let dir = std::env::var(CHILD).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(StoreOptions::new(dir, Role::Serve)).unwrap();
        // Bounded, should the parent be gone.
        for _ in 0..500 {
            write_and_end(&*store).await;
        }
    });
}

/// A few runs side by side, from their start to their end.
async fn write_and_end(store: &dyn RunStore) {
    let mut runs = Vec::new();
    for _ in 0..LIVE {
        let run = created(store).await;
        let tell = Arc::new(Tell(run.run.clone()));
        runs.push((run, tell));
    }
    for seq in 2..40 {
        for (run, tell) in &runs {
            queue(store, run, delta(seq, "some text of the model"), tell).await;
        }
    }
    for (run, tell) in &runs {
        let event = end_event(40, END);
        finish(store, run, Arc::clone(&event)).await.unwrap();
        tell.committed(&[event]);
    }
}

/// Kills a writing process after `lines` commits and gives what it had told.
fn told_by_a_killed_process(dir: &std::path::Path, lines: usize) -> HashMap<RunId, Vec<String>> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "store::crash::child_writes_until_it_is_killed",
            "--nocapture",
        ])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told: HashMap<RunId, Vec<String>> = HashMap::new();
    let mut count = 0;
    while let Some(Ok(line)) = output.next() {
        // The last line may be cut in the middle: then nobody has seen it.
        if let Some((run, json)) = line
            .strip_prefix("committed ")
            .and_then(|l| l.split_once(' '))
            && json.ends_with('}')
        {
            told.entry(RunId::parse(run).unwrap())
                .or_default()
                .push(json.to_owned());
            count += 1;
            if count == lines {
                child.kill().unwrap();
            }
        }
    }
    child.wait().unwrap();
    assert!(count >= lines, "the child ended early, after {count}");
    told
}

#[tokio::test]
async fn every_event_that_a_killed_process_had_told_is_there_and_its_runs_are_interrupted() {
    for lines in [1, 7, 100, 195, 196, 1000, 3333] {
        let dir = tempfile::tempdir().unwrap();
        let told = told_by_a_killed_process(&dir.path().join("data"), lines);
        let store = open(&dir, Role::Serve).expect("the killed process's locks are free");
        let mut before = store.list(5000).await.unwrap();
        before.retain(|run| run.end.is_none());
        assert!(before.len() <= LIVE);
        for (run, told) in &told {
            let stored = log(&*store, run).await;
            assert!(stored.len() > told.len());
            if told.last().is_some_and(|json| json.contains(END)) {
                let record = store.get(run).await.unwrap().unwrap();
                assert_eq!((record.state(), stored.len()), (RunState::Failed, 40));
            }
            for (event, json) in stored.iter().skip(1).zip(told) {
                assert_eq!(&event.json, json);
            }
            let seqs: Vec<u64> = stored.iter().map(|e| e.seq.0).collect();
            assert_eq!(seqs, (1..=stored.len() as u64).collect::<Vec<_>>());
        }
        let ended = recover(&*store).await.unwrap();
        assert_eq!(ended.len(), before.len());
        for before in &before {
            let record = store.get(&before.facts.id).await.unwrap().unwrap();
            assert_eq!(record.state(), RunState::Interrupted);
            let (code, _) = record.end.unwrap().error.unwrap();
            assert_eq!(code, ErrorCode::ServerCrashed);
            assert_eq!(record.last_seq, before.last_seq.next());
        }
        assert_eq!(recover(&*store).await.unwrap(), []);
        // The look, and with it the mark of the unclean end, is needed once.
        assert_eq!(store.check().await.unwrap(), Check::Whole);
        store.close().await;
        let again = open(&dir, Role::Serve).unwrap();
        assert_eq!(again.check().await.unwrap(), Check::NotNeeded);
    }
}

#[tokio::test]
async fn recovery_leaves_living_owners_alone_and_tells_what_the_log_knows() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::held(at(0));
    let open = |role| {
        let mut options = StoreOptions::new(dir.path().join("data"), role);
        options.clock = clock.clone();
        SqliteStore::open(options).unwrap()
    };
    let (store, other, gone) = (open(Role::Serve), open(Role::OneShot), open(Role::OneShot));
    let (ours, theirs) = (created(&*store).await, created(&*other).await);
    let lease = created(&*gone).await;
    let dead = &lease.run;
    let tool = |seq, turn| {
        let event = RunEvent::ToolUse(ToolUseEvent {
            tool_name: "bash".into(),
            content: "{}".to_owned(),
            input: serde_json::json!({}),
            input_truncated: false,
            tool_call_id: "c".to_owned(),
            ran_by: RanBy::Primary,
            turn,
        });
        Arc::new(StoredEvent::new(Seq(seq), &event).unwrap())
    };
    clock.advance(Duration::from_millis(2500));
    super::append(&*gone, &lease, vec![delta(2, "hi"), tool(3, 1), tool(4, 4)])
        .await
        .unwrap();
    assert_eq!(recover(&*store).await.unwrap(), []);
    gone.close().await;
    clock.advance(Duration::from_hours(1));

    let ended = recover(&*store).await.unwrap();
    assert_eq!(ended, std::slice::from_ref(dead));
    let end = store.get(dead).await.unwrap().unwrap().end.unwrap();
    // The times agree: it ended when it was last heard of.
    let last_heard = at(0) + jiff::SignedDuration::from_millis(2500);
    assert_eq!((end.completed_at, end.duration_secs), (last_heard, 2.5));
    assert_eq!((end.num_turns, end.cost_nanos, end.usage), (4, None, None));
    let last = log(&*store, dead).await.pop().unwrap();
    let event: serde_json::Value = serde_json::from_str(&last.json).unwrap();
    assert_eq!(event["code"], ErrorCode::ServerCrashed.as_str());
    assert_eq!(event["usageComplete"], false);
    assert_eq!(event["numTurns"], 4);
    assert_eq!(event["toolCalls"], serde_json::json!({"bash": 2}));
    for unknown in ["costUsd", "inputTokens", "outputTokens"] {
        assert_eq!(event.get(unknown), None);
    }
    assert_eq!(event["seq"], 5);
    for alive in [&ours.run, &theirs.run] {
        let record = store.get(alive).await.unwrap().unwrap();
        assert_eq!(record.state(), RunState::Running);
    }
}

#[tokio::test]
async fn recovery_tells_what_was_used_up_to_the_last_answered_turn() {
    let dir = tempfile::tempdir().unwrap();
    let gone = open(&dir, Role::OneShot).unwrap();
    let (lease, other) = (created(&*gone).await, created(&*gone).await);
    let record = |turn: u32| TurnRecord {
        turn,
        tokens: Tokens {
            input_tokens: 100 * u64::from(turn),
            output_tokens: 10 * u64::from(turn),
            cache_read_tokens: 60,
            cache_write_tokens: 0,
        },
        cost_nanos: (turn > 1).then_some(1_500_000),
    };
    gone.put_turn(&other, record(7)).await.unwrap();
    // A turn's last word counts.
    for turn in [record(1), record(3), record(2)] {
        gone.put_turn(&lease, turn).await.unwrap();
        gone.put_turn(&lease, turn).await.unwrap();
    }
    gone.close().await;
    let store = open(&dir, Role::Serve).unwrap();
    let late = store.put_turn(&lease, record(9)).await;
    assert!(late.is_ok(), "nobody has taken the run over yet");
    assert_eq!(recover(&*store).await.unwrap().len(), 2);
    let end = store.get(&lease.run).await.unwrap().unwrap().end.unwrap();
    let usage = RunUsage {
        input_tokens: 900,
        output_tokens: 90,
        complete: false,
    };
    assert_eq!(
        (end.num_turns, end.cost_nanos, end.usage),
        (9, Some(1_500_000), Some(usage))
    );
    let last = log(&*store, &lease.run).await.pop().unwrap();
    let event: serde_json::Value = serde_json::from_str(&last.json).unwrap();
    for (field, value) in [
        ("inputTokens", serde_json::json!(900)),
        ("outputTokens", serde_json::json!(90)),
        ("cacheReadTokens", serde_json::json!(60)),
        ("costUsd", serde_json::json!(0.0015)),
        ("usageComplete", serde_json::json!(false)),
    ] {
        assert_eq!(event[field], value, "{field}");
    }
    let late = store.put_turn(&lease, record(10)).await;
    assert!(matches!(late, Err(StoreError::Refused(_))), "{late:?}");
}

#[tokio::test]
async fn what_a_dead_process_writes_after_its_runs_were_taken_over_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let gone = open(&dir, Role::OneShot).unwrap();
    let lease = created(&*gone).await;
    gone.close().await;
    let store = open(&dir, Role::Serve).unwrap();
    let taken = store.expired_runs().await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].lease.epoch, taken[0].last_seq), (2, Seq(1)));
    let late = super::append(&*store, &lease, vec![delta(2, "late")]).await;
    assert!(matches!(late, Err(StoreError::Refused(_))));
    // What was taken over and could not be ended is told again.
    assert_eq!(store.expired_runs().await.unwrap(), taken);
    assert_eq!(recover(&*store).await.unwrap(), [lease.run]);
    assert_eq!(store.expired_runs().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hundred_dead_runs_among_ten_thousand_are_ended_in_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let gone = open(&dir, Role::OneShot).unwrap();
    let make = |n: i64| {
        let gone = Arc::clone(&gone);
        async move {
            let run = new_run(at(n)).create(&*gone).await.unwrap();
            if n >= 400 {
                finish(&*gone, &run, end_event(2, "e")).await.unwrap();
            }
        }
    };
    let making = futures::stream::iter((0..10_000).map(make));
    futures::StreamExt::collect::<Vec<()>>(futures::StreamExt::buffer_unordered(making, 500)).await;
    gone.close().await;
    let begun = tokio::time::Instant::now();
    let store = open(&dir, Role::Serve).unwrap();
    assert_eq!(recover(&*store).await.unwrap().len(), 400);
    let taken = begun.elapsed();
    // Measured: below 100 ms on two cores, unoptimized.
    assert!(taken < Duration::from_secs(1), "{taken:?}");
}
