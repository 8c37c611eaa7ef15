//! Sandboxes that nobody needs any more are found by their labels and destroyed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sandcaster::clock::Clock;
use sandcaster::runs::{Keep, Runs, RunsConfig, Tasks};
use sandcaster::sandbox::{
    FoundSandbox, Labels, Sandbox, SandboxBackend, SandboxError, SandboxSpec,
};
use sandcaster::secrets::Redactor;
use tokio::time::Instant;

use super::{application, calls, left, others};
use crate::support::app::ask;
use crate::support::fake_e2b::{FakeE2b, Route};
use crate::support::fake_llm::{FakeLlm, Reply};
use crate::support::memory_store::MemoryStore;

#[tokio::test]
async fn a_start_finds_what_ended_runs_left_on_all_pages_and_nothing_else() {
    let e2b = FakeE2b::start().await;
    let mut kept = others(&e2b);
    let llm = FakeLlm::start([calls("true"), Reply::says("Hi.")]).await;
    let app = application(&e2b, &llm).start().await;
    let run = app.query(ask("hi")).await;
    let ended = run.run_id.clone();
    run.rest().await;
    let store = app.app.runs.store().id().to_owned();
    let dir = app.stop().await;

    for _ in 0..230 {
        e2b.add_sandbox(&[
            ("sandcaster-instance", &store),
            ("sandcaster-run", &ended),
            ("sandcaster-attempt", "1"),
        ]);
    }
    // Of a run that the store does not know, and new: perhaps of one that only begins.
    kept.push(e2b.add_sandbox(&[
        ("sandcaster-instance", &store),
        ("sandcaster-run", "run_0123456789abcdef0123456789abcdef"),
    ]));
    let app = application(&e2b, &llm).dir(dir).start().await;
    left(&e2b, &kept).await;
    assert_eq!(e2b.calls(Route::Delete), 231);
    app.stop().await;
}

/// A backend that only takes note of when it is asked for a list.
#[derive(Default)]
struct Listed(Mutex<Vec<Instant>>);

fn unused() -> SandboxError {
    SandboxError::Backend("not used here".to_owned())
}

#[async_trait]
impl SandboxBackend for Listed {
    async fn create(&self, _: &SandboxSpec, _: &Labels) -> Result<Arc<dyn Sandbox>, SandboxError> {
        Err(unused())
    }

    async fn list(&self, _: &str) -> Result<Vec<FoundSandbox>, SandboxError> {
        let mut times = self.0.lock();
        times.push(Instant::now());
        // A failure is no reason to stop looking.
        if times.len().is_multiple_of(2) {
            Err(unused())
        } else {
            Ok(Vec::new())
        }
    }

    async fn kill(&self, _: &str) -> Result<(), SandboxError> {
        Err(unused())
    }

    async fn alive(&self, _: &str) -> Result<bool, SandboxError> {
        Err(unused())
    }

    async fn probe(&self) -> Result<(), SandboxError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_reaper_looks_at_once_and_then_every_minute() {
    let listed = Arc::new(Listed::default());
    let backend: Arc<dyn SandboxBackend> = listed.clone();
    let runs = Runs::new(RunsConfig {
        store: MemoryStore::new(),
        keep: Keep { age: None, runs: 1 },
        providers: BTreeMap::new(),
        backends: BTreeMap::from([("e2b", (backend, None))]),
        max_concurrent_runs: 1,
        redactor: Redactor::new([]),
        clock: Clock::system(),
        tasks: Tasks::new(),
    });
    let begun = Instant::now();
    runs.start_housekeeping(sandcaster::store::Role::Serve);
    tokio::time::sleep(Duration::from_mins(10)).await;
    runs.shutdown(Duration::from_secs(1)).await;
    let times = listed.0.lock().clone();
    assert!(times[0] - begun < Duration::from_secs(1));
    for pair in times.windows(2) {
        let pause = (pair[1] - pair[0]).as_secs();
        assert!((48..=72).contains(&pause), "{pause} s");
    }
    assert!((9..=13).contains(&times.len()), "{}", times.len());
}

/// A backend that hangs: in each `list`, or in the kill of one sandbox of four.
struct Hanging {
    lists: bool,
    killed: Mutex<Vec<String>>,
}

#[async_trait]
impl SandboxBackend for Hanging {
    async fn create(&self, _: &SandboxSpec, _: &Labels) -> Result<Arc<dyn Sandbox>, SandboxError> {
        Err(unused())
    }

    async fn list(&self, _: &str) -> Result<Vec<FoundSandbox>, SandboxError> {
        if self.lists {
            std::future::pending::<()>().await;
        }
        let found = ["hangs", "a", "b", "c"].map(|id| FoundSandbox {
            id: id.to_owned(),
            run: None,
            started_at: None,
            expires: None,
        });
        Ok(found.into())
    }

    async fn kill(&self, id: &str) -> Result<(), SandboxError> {
        if id == "hangs" {
            std::future::pending::<()>().await;
        }
        self.killed.lock().push(id.to_owned());
        Ok(())
    }

    async fn alive(&self, _: &str) -> Result<bool, SandboxError> {
        Err(unused())
    }

    async fn probe(&self) -> Result<(), SandboxError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_hangs_at_a_backend_holds_up_nothing_else() {
    let hanging = |lists| {
        Arc::new(Hanging {
            lists,
            killed: Mutex::default(),
        })
    };
    let (lists, kills) = (hanging(true), hanging(false));
    let entry =
        |backend: &Arc<Hanging>| -> (Arc<dyn SandboxBackend>, _) { (backend.clone(), None) };
    let runs = Runs::new(RunsConfig {
        store: MemoryStore::new(),
        keep: Keep { age: None, runs: 1 },
        providers: BTreeMap::new(),
        backends: BTreeMap::from([("a", entry(&lists)), ("b", entry(&kills))]),
        max_concurrent_runs: 1,
        redactor: Redactor::new([]),
        clock: Clock::system(),
        tasks: Tasks::new(),
    });
    runs.start_housekeeping(sandcaster::store::Role::Serve);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut killed = kills.killed.lock().clone();
    killed.sort_unstable();
    assert_eq!(killed, ["a", "b", "c"]);
    runs.shutdown(Duration::from_secs(1)).await;
}
