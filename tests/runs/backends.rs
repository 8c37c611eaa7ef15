//! Runs whose sandboxes, store or logs misbehave in ways that real ones can't be asked to.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sandcaster::error::ErrorCode;
use sandcaster::events::{EventType, StoredEvent};
use sandcaster::ids::{RunId, Seq};
use sandcaster::llm::{LlmError, LlmProvider, LlmRequest, LlmStream, ModelFacts};
use sandcaster::runs::{LogLimits, RunReader};
use sandcaster::sandbox::{FoundSandbox, SandboxError};
use sandcaster::store::{
    Role, RunLease, RunState, RunStore as _, SandboxRecord, SqliteStore, StoreOptions,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::harness::{Script, llm_of, run, run_once, run_seeing, runs, runs_with, spec};
use crate::support::app::{of_kind, warnings};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};
use crate::support::memory_store::MemoryStore;
use crate::support::processes::until;
use crate::support::records::{facts, first_event};

fn end(events: &[Value]) -> &Value {
    events.last().unwrap()
}

#[tokio::test]
async fn readers_of_one_turn_run_side_by_side_and_the_model_gets_them_in_the_order_asked() {
    let (second, third) = (CancellationToken::new(), CancellationToken::new());
    // The first read ends once the third's result was seen, and the third once the second's was.
    let script = Arc::new(Script {
        reads: vec![("a.txt", third.clone()), ("c.txt", second.clone())],
        ..Script::default()
    });
    let read = |path: &str| json!({ "path": path });
    let llm = FakeLlm::start([
        Reply::new()
            .call("file_read", &read("a.txt"))
            .call("file_read", &read("b.txt"))
            .call("file_read", &read("c.txt")),
        Reply::says("Done."),
    ])
    .await;
    let runs = runs(&llm, MemoryStore::new(), &script, LogLimits::default());
    let files = [("a.txt", "first"), ("b.txt", "second"), ("c.txt", "third")];
    let seen = |event: &Value| {
        let content = event["content"].as_str().unwrap_or_default();
        match event["type"].as_str() {
            Some("tool_result") if content.contains("second") => second.cancel(),
            Some("tool_result") if content.contains("third") => third.cancel(),
            _ => {}
        }
    };
    let events = run_seeing(&runs, spec(&files), seen).await;
    let results = of_kind(&events, "tool_result");
    let sent = llm.request(1).await.tool_results();
    // The model gets them as it asked, the client as they come.
    let texts: Vec<&str> = sent.iter().map(|sent| sent.text.as_str()).collect();
    for (text, (_, word)) in texts.iter().zip(files) {
        assert!(text.contains(word), "{texts:?}");
    }
    let shown: Vec<&str> = results
        .iter()
        .map(|event| event["content"].as_str().unwrap())
        .collect();
    assert_eq!(shown, [texts[1], texts[2], texts[0]]);
    assert_eq!(end(&events)["type"], "result");
}

#[tokio::test]
async fn a_backend_at_its_limit_is_waited_for_with_a_warning() {
    let script = Arc::new(Script::default());
    let full = SandboxError::RateLimited {
        message: "the account runs 20 sandboxes".to_owned(),
        retry_after: Some(Duration::from_millis(10)),
        at_capacity: true,
    };
    script.failures.lock().extend([full.clone(), full]);
    let llm = llm_of("echo hi").await;
    let events = run_once(&llm, &script, spec(&[])).await;
    assert_eq!(warnings(&events), ["SANDBOX_WAIT"]);
    assert_eq!(of_kind(&events, "tool_result")[0]["exitCode"], 0);
    assert_eq!(script.creates.load(Ordering::SeqCst), 3);
    until(|| script.kills.load(Ordering::SeqCst) == 1, "the kill").await;
}

#[tokio::test]
async fn a_backend_that_refuses_ends_the_run_with_its_code_and_advice() {
    for (error, code, hint) in [
        (
            SandboxError::Auth {
                message: "the key was refused".to_owned(),
                hint: "check E2B_API_KEY".to_owned(),
            },
            "PROVIDER_AUTH_MISSING",
            "check E2B_API_KEY",
        ),
        (
            SandboxError::TemplateNotFound("no template x".to_owned()),
            "TEMPLATE_NOT_FOUND",
            "",
        ),
        (
            SandboxError::Timeout("too slow".to_owned()),
            "SANDBOX_TIMEOUT",
            "",
        ),
        (
            SandboxError::Backend("broken".to_owned()),
            "SANDBOX_ERROR",
            "",
        ),
    ] {
        let script = Arc::new(Script::default());
        script.failures.lock().push(error);
        let gate = Gate::new();
        let llm = FakeLlm::start([Reply::new().text("Let me").wait(&gate)]).await;
        let events = run_once(&llm, &script, spec(&[])).await;
        assert_eq!(end(&events)["code"], code);
        assert_eq!(end(&events)["hint"].as_str().unwrap_or_default(), hint);
        // It may have been refused before the request was sent.
        if llm.requests().is_empty() {
            llm.take_unused();
        } else {
            llm.connection_closed(0).await;
        }
    }
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_destroyed_does_not_hold_up_the_end() {
    let script = Arc::new(Script {
        immortal: true,
        ..Script::default()
    });
    let llm = llm_of("true").await;
    let store = MemoryStore::new();
    let runs = runs(&llm, store.clone(), &script, LogLimits::default());
    let begun = tokio::time::Instant::now();
    let events = run(&runs, spec(&[])).await;
    assert_eq!(end(&events)["type"], "result");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    until(|| script.kills.load(Ordering::SeqCst) == 1, "a kill").await;
    until(|| runs.live() == 0, "the run to be over").await;
    // It is still ours to destroy: by a sweep, if this process can't.
    assert_eq!(store.left("local").len(), 1);
}

#[tokio::test]
async fn a_log_at_its_limit_ends_the_run_and_the_end_still_fits() {
    let script = Arc::new(Script::default());
    let llm = llm_of("seq 1 3000").await;
    let limits = LogLimits {
        events: 1000,
        bytes: 8000,
    };
    let runs = runs(&llm, MemoryStore::new(), &script, limits);
    let events = run(&runs, spec(&[])).await;
    let error = end(&events);
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("error"), &json!("LOG_LIMIT"))
    );
    assert_eq!(error["seq"], events.len());
    until(|| script.kills.load(Ordering::SeqCst) == 1, "the kill").await;
    llm.take_unused();
}

#[tokio::test]
async fn a_store_that_fails_in_mid_run_ends_it_once_the_store_is_back() {
    let gate = Gate::new();
    let script = Arc::new(Script::default());
    let llm = FakeLlm::start([Reply::new().text("One").wait(&gate).text("two")]).await;
    let store = MemoryStore::new();
    let runs = runs(&llm, store.clone(), &script, LogLimits::default());
    let mut handle = runs.start(spec(&[])).await.unwrap();
    let id = handle.id.clone();
    gate.reached().await;
    store.set_broken(true);
    gate.open();
    until(
        || script.kills.load(Ordering::SeqCst) == 1,
        "the sandbox to be destroyed",
    )
    .await;
    assert_eq!(
        runs.admits().unwrap_err().code.as_str(),
        "STORE_UNAVAILABLE"
    );
    store.set_broken(false);
    let mut last = None;
    while let Some(event) = handle.reader.next().await.unwrap() {
        last = Some(event);
    }
    let error: Value = serde_json::from_str(&last.unwrap().json).unwrap();
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("error"), &json!("STORE_UNAVAILABLE"))
    );
    assert_eq!(
        store.get(&id).await.unwrap().unwrap().state(),
        RunState::Failed
    );
}

/// A run that has not ended.
async fn unfinished(store: &MemoryStore) -> RunLease {
    let facts = facts(Timestamp::UNIX_EPOCH);
    store.create(facts, first_event()).await.unwrap()
}

#[tokio::test]
async fn a_sweep_ends_the_runs_of_dead_processes_and_destroys_what_no_run_needs() {
    let llm = FakeLlm::start([]).await;
    let store = MemoryStore::new();
    let (dead, alive) = (unfinished(&store).await, unfinished(&store).await);
    for (attempt, id) in [(1, Some("vanished")), (2, None), (3, Some("of a dead run"))] {
        for run in [&dead, &alive] {
            let record = SandboxRecord {
                backend: "local".to_owned(),
                attempt,
                sandbox_id: id.map(str::to_owned),
                expires: 0,
                destroyed: false,
            };
            store.put_sandbox(run, record).await.unwrap();
        }
    }
    store.orphan(&dead.run);
    let (dead, alive) = (dead.run, alive.run);
    let sandbox = |id: &str, run: Option<&RunId>| FoundSandbox {
        id: id.to_owned(),
        run: run.cloned(),
        started_at: None,
        expires: None,
    };
    let script = Arc::new(Script {
        found: vec![
            sandbox("of a live run", Some(&alive)),
            sandbox("of a dead run", Some(&dead)),
            sandbox("of an unknown run", Some(&RunId::new())),
            sandbox("of nothing", None),
        ],
        ..Script::default()
    });
    let runs = runs(&llm, store.clone(), &script, LogLimits::default());
    runs.start_housekeeping(sandcaster::store::Role::Serve);
    until(|| script.killed.lock().len() == 3, "the sweep").await;
    let mut killed = script.killed.lock().clone();
    killed.sort_unstable();
    assert_eq!(killed, ["of a dead run", "of an unknown run", "of nothing"]);
    let ended = store.get(&dead).await.unwrap().unwrap().end.unwrap();
    assert_eq!(ended.error.unwrap().0, ErrorCode::ServerCrashed);
    let alive_still = store.get(&alive).await.unwrap().unwrap();
    assert_eq!(alive_still.state(), RunState::Running);
    // What it had is recorded as gone; what a live run has is its own affair.
    until(|| store.left("local").is_empty(), "the record of the sweep").await;
    let destroyed = async |run: &RunId| {
        let sandboxes = store.sandboxes(run).await.unwrap();
        sandboxes.iter().filter(|sandbox| sandbox.destroyed).count()
    };
    assert_eq!((destroyed(&dead).await, destroyed(&alive).await), (3, 0));
    runs.shutdown(Duration::from_secs(1)).await;
}

/// An LLM whose code has a fault.
struct Faulty;

#[async_trait]
impl LlmProvider for Faulty {
    async fn open(&self, _: &LlmRequest<'_>) -> Result<LlmStream, LlmError> {
        panic!("the provider has a fault");
    }

    fn model(&self, _: &str) -> ModelFacts {
        ModelFacts::default()
    }
}

#[tokio::test]
async fn a_panic_ends_its_run_alone_and_its_sandbox_goes() {
    let script = Arc::new(Script::default());
    let store = MemoryStore::new();
    let runs = runs_with(Arc::new(Faulty), store, &script, LogLimits::default());
    for _ in 0..2 {
        let events = run(&runs, spec(&[])).await;
        let error = end(&events);
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!("INTERNAL"))
        );
        assert!(
            !error["message"].as_str().unwrap().contains("provider has"),
            "{error}"
        );
    }
    let made = script.creates.load(Ordering::SeqCst);
    until(
        || script.kills.load(Ordering::SeqCst) == made,
        "the sandboxes to go",
    )
    .await;
    until(|| runs.live() == 0, "the runs to be over").await;
}

#[tokio::test]
async fn a_panic_while_the_sandbox_is_made_ends_the_run_at_once() {
    let script = Arc::new(Script {
        panics: true,
        ..Script::default()
    });
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("Let me").wait(&gate)]).await;
    let runs = runs(&llm, MemoryStore::new(), &script, LogLimits::default());
    let begun = tokio::time::Instant::now();
    let events = run(&runs, spec(&[])).await;
    assert_eq!(end(&events)["code"], "INTERNAL");
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    runs.shutdown(Duration::from_secs(5)).await;
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    if llm.requests().is_empty() {
        llm.take_unused();
    }
}

#[tokio::test]
async fn a_sandbox_that_never_comes_still_leaves_time_for_an_answer() {
    let script = Arc::new(Script {
        stuck: true,
        ..Script::default()
    });
    let llm = FakeLlm::start([
        Reply::new().call("bash", &json!({"command": "true"})),
        Reply::says("There is no sandbox."),
    ])
    .await;
    let mut spec = spec(&[]);
    spec.timeout = Duration::from_secs(3);
    let events = run_once(&llm, &script, spec).await;
    let result = end(&events);
    assert_eq!(
        (&result["content"], &result["stopReason"]),
        (&json!("There is no sandbox."), &json!("max_time"))
    );
    let told = &llm.request(1).await.tool_results()[0];
    assert!(told.is_error && told.text.contains("not ready"), "{told:?}");
}

#[tokio::test]
async fn two_hundred_runs_give_two_readers_each_the_same_log() {
    let llm = FakeLlm::instant(100).await;
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(StoreOptions::new(dir.path(), Role::Serve)).unwrap();
    let script = Arc::new(Script::default());
    let runs = runs(&llm, store.clone(), &script, LogLimits::default());
    let mut readers = JoinSet::new();
    for _ in 0..200 {
        let mut spec = spec(&[]);
        spec.tools.clear();
        let handle = runs.start(spec).await.unwrap();
        let second = runs.reader(&handle.id, Seq::ZERO).await.unwrap();
        let (store, id) = (store.clone(), handle.id.clone());
        readers.spawn(async move {
            let (first, second) = tokio::join!(read(handle.reader), read(second));
            let log = store.read(&id, Seq::ZERO, 1000).await.unwrap();
            assert_eq!(log.len(), 102);
            assert_eq!(first, log);
            assert_eq!(second, log);
            let ends = log.iter().filter(|event| event.kind.terminal());
            assert_eq!(ends.count(), 1);
            for (at, event) in log.iter().enumerate() {
                assert_eq!(event.seq, Seq(at as u64 + 1));
            }
        });
    }
    let all = async {
        while let Some(read) = readers.join_next().await {
            read.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_mins(1), all)
        .await
        .unwrap();
    assert_eq!(script.creates.load(Ordering::SeqCst), 0);
}

async fn read(mut reader: RunReader) -> Vec<StoredEvent> {
    let mut events = Vec::new();
    while let Some(event) = reader.next().await.unwrap() {
        events.push(StoredEvent::clone(&event));
    }
    events
}

#[tokio::test]
async fn a_tool_that_ignores_a_cancel_is_left_behind_and_its_call_has_a_result() {
    let script = Arc::new(Script {
        reads: vec![("a.txt", CancellationToken::new())],
        ..Script::default()
    });
    let llm = FakeLlm::start([Reply::new()
        .call("file_read", &json!({"path": "a.txt"}))
        .call("file_read", &json!({"path": "b.txt"}))
        .call("bash", &json!({"command": "true"}))])
    .await;
    let runs = runs(&llm, MemoryStore::new(), &script, LogLimits::default());
    let files = [("a.txt", "first"), ("b.txt", "second")];
    let mut handle = runs.start(spec(&files)).await.unwrap();
    let id = handle.id.clone();
    let mut events: Vec<Value> = Vec::new();
    let mut cancelled = None;
    while let Some(event) = handle.reader.next().await.unwrap() {
        events.push(serde_json::from_str(&event.json).unwrap());
        if event.kind == EventType::ToolResult && cancelled.is_none() {
            // The second file's, while the first is still read.
            cancelled = Some(tokio::time::Instant::now());
            runs.cancel(&id).await.unwrap();
        }
    }
    assert!(cancelled.unwrap().elapsed() < Duration::from_secs(4));
    assert_eq!(end(&events)["code"], "CANCELLED");
    let results = of_kind(&events, "tool_result");
    assert_eq!(results.len(), 3, "{events:#?}");
    assert_eq!(results[1]["toolName"], "file_read");
    assert_eq!(results[1]["isError"], true);
}

#[tokio::test]
async fn an_answer_does_not_wait_for_a_sandbox_that_nobody_needed() {
    let script = Arc::new(Script {
        stuck: true,
        ..Script::default()
    });
    let llm = FakeLlm::start([Reply::says("Four.")]).await;
    let begun = tokio::time::Instant::now();
    let events = run_once(&llm, &script, spec(&[])).await;
    assert_eq!(end(&events)["content"], "Four.");
    assert!(
        begun.elapsed() < Duration::from_millis(1500),
        "{:?}",
        begun.elapsed()
    );
}
