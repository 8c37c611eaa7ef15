//! What a process leaves that is killed while it writes.
//!
//! The writing process is this test binary itself, run for one test with a variable set; without the
//! variable that test has nothing to do.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;

use sandcaster::error::ErrorCode;
use sandcaster::events::{RanBy, RunEvent, StoredEvent, ToolUseEvent};
use sandcaster::ids::{RunId, Seq};
use sandcaster::runs::recover;
use sandcaster::store::{
    Append, CommitListener, NewRun, Role, RunState, RunStore, SqliteStore, StoreError, StoreOptions,
};

use super::{at, delta, end_event, finish, log, new_run, open};

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
            write_and_end(&*store, store.owner()).await;
        }
    });
}

/// A few runs side by side, from their start to their end.
async fn write_and_end(store: &dyn RunStore, owner: &str) {
    let mut runs = Vec::new();
    for _ in 0..LIVE {
        let run = NewRun {
            owner: owner.to_owned(),
            ..new_run(at(0))
        };
        runs.push((run.id.clone(), Arc::new(Tell(run.id.clone()))));
        store.create(run).await.unwrap();
    }
    for seq in 2..40 {
        for (run, tell) in &runs {
            store
                .append(Append {
                    run: run.clone(),
                    events: vec![delta(seq, "some text of the model")],
                    listener: Arc::clone(tell) as _,
                })
                .await
                .unwrap();
        }
    }
    for (run, tell) in &runs {
        let event = end_event(40, END);
        store.finish(finish(run, Arc::clone(&event))).await.unwrap();
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
        assert!(store.unclean());
        let before = store.unfinished().await.unwrap();
        assert!(before.len() <= LIVE);
        for (run, told) in &told {
            let stored = log(&*store, run).await;
            assert!(stored.len() > told.len());
            if told.last().is_some_and(|json| json.contains(END)) {
                let record = store.get(run).await.unwrap().unwrap();
                assert_eq!((record.state, stored.len()), (RunState::Failed, 40));
            }
            for (event, json) in stored.iter().skip(1).zip(told) {
                assert_eq!(&event.json, json);
            }
            let seqs: Vec<u64> = stored.iter().map(|e| e.seq.0).collect();
            assert_eq!(seqs, (1..=stored.len() as u64).collect::<Vec<_>>());
        }
        assert_eq!(store.check().await.unwrap(), None);

        let alive = |owner: &str| store.owner_alive(owner);
        let ended = recover(&*store, &alive, at(100)).await.unwrap();
        assert_eq!(ended.len(), before.len());
        for (record, before) in ended.iter().zip(&before) {
            assert_eq!(record.state, RunState::Interrupted);
            assert_eq!(record.error_code.as_deref(), Some("SERVER_CRASHED"));
            assert_eq!(record.last_seq, before.last_seq.next());
        }
        assert_eq!(store.unfinished().await.unwrap(), []);
        assert_eq!(recover(&*store, &alive, at(100)).await.unwrap(), []);
        store.forget_dead_owners();
        store.close().await;
        assert!(!open(&dir, Role::Serve).unwrap().unclean());
    }
}

#[tokio::test]
async fn recovery_leaves_living_owners_alone_and_tells_what_the_log_knows() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, Role::Serve).unwrap();
    let other = open(&dir, Role::OneShot).unwrap();
    let mut ids = Vec::new();
    for owner in [store.owner(), other.owner(), "dead"] {
        let run = NewRun {
            owner: owner.to_owned(),
            ..new_run(at(0))
        };
        ids.push(run.id.clone());
        store.create(run).await.unwrap();
    }
    let dead = &ids[2];
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
    super::append(&*store, dead, vec![delta(2, "hi"), tool(3, 1), tool(4, 4)])
        .await
        .unwrap();

    let ended = recover(&*store, &|owner| store.owner_alive(owner), at(100))
        .await
        .unwrap();
    assert_eq!(ended.iter().map(|r| &r.id).collect::<Vec<_>>(), [dead]);
    assert_eq!(ended[0].completed_at, Some(at(100)));
    assert_eq!((ended[0].num_turns, ended[0].cost_nanos), (Some(4), None));
    let last = log(&*store, dead).await.pop().unwrap();
    let event: serde_json::Value = serde_json::from_str(&last.json).unwrap();
    assert_eq!(event["code"], ErrorCode::ServerCrashed.as_str());
    assert_eq!(event["usageComplete"], false);
    assert_eq!(event["numTurns"], 4);
    assert_eq!(event["toolCalls"], serde_json::json!({"bash": 2}));
    assert_eq!(event.get("costUsd"), None);
    assert_eq!(event["seq"], 5);
    for alive in &ids[..2] {
        assert_eq!(
            store.get(alive).await.unwrap().unwrap().state,
            RunState::Running
        );
    }
}
