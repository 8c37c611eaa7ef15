use std::sync::atomic::AtomicU32;

use super::*;
use crate::events::RunEvent;
use crate::ids::Seq;
use crate::runs::{LogLimits, Logs};
use crate::spec::SandboxStart;
use crate::store::{Role, RunFacts, SqliteStore, StoreOptions};

fn spec() -> RunSpec {
    let mut spec = RunSpec::plain();
    spec.sandbox.start = SandboxStart::Lazy;
    spec
}

/// A run in a store of its own, and its sandbox.
struct Case {
    _dir: tempfile::TempDir,
    store: Arc<SqliteStore>,
    tasks: Tasks,
    run: RunId,
    sandbox: RunSandbox,
}

impl Case {
    async fn new(entry: BackendEntry, timeout: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(StoreOptions::new(dir.path(), Role::Serve)).unwrap();
        let logs = Logs::with_limits(store.clone(), LogLimits::default());
        let facts = RunFacts {
            id: RunId::new(),
            prompt: "hi".to_owned(),
            model: "demo".to_owned(),
            provider: "demo".to_owned(),
            sandbox_provider: "local".to_owned(),
            background: true,
            started_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let first = RunEvent::System(SystemEvent::new("init", "Agent started"));
        let writer = Arc::new(logs.create(facts, first).await.unwrap());
        let run = writer.run_id().clone();
        let tasks = Tasks::new();
        let owner = Owner {
            run: run.clone(),
            lease: writer.lease().clone(),
            spec: Arc::new(spec()),
            inputs: Mutex::default(),
            sink: writer,
            control: RunControl::default(),
            deadline: Deadline::after(timeout),
            store: store.clone(),
            tasks: tasks.clone(),
            clock: Clock::system(),
            redactor: Redactor::default(),
        };
        Self {
            _dir: dir,
            store,
            tasks,
            run,
            sandbox: RunSandbox::new(owner, entry),
        }
    }
}

#[tokio::test]
async fn a_sandbox_that_is_asked_for_after_the_end_is_never_made() {
    let case = Case::new(BackendEntry::none("local"), Duration::from_mins(1)).await;
    case.sandbox.end();
    let asked = tokio::time::timeout(Duration::from_secs(30), case.sandbox.workspace()).await;
    assert_eq!(asked.unwrap().err().unwrap().code, ErrorCode::SandboxError);
    assert_eq!(case.tasks.running(TaskKind::Cleanup), 0);
    assert_eq!(case.store.sandboxes(&case.run).await.unwrap(), []);
    assert_eq!(case.store.head(&case.run).await.unwrap().last_seq, Seq(1));
    // Ended again, it has nothing to wait for.
    case.sandbox.end();
    let waited = case
        .tasks
        .close_and_wait(Deadline::after(Duration::from_secs(30)))
        .await;
    assert_eq!(waited, []);
}

/// Refuses for want of room, and says to come back at once.
#[derive(Default)]
struct Full(AtomicU32);

#[async_trait]
impl SandboxBackend for Full {
    async fn create(&self, _: &SandboxSpec, _: &Labels) -> Result<Arc<dyn Sandbox>, SandboxError> {
        // Few enough to end, where nobody waits between tries.
        if self.0.fetch_add(1, Ordering::SeqCst) >= 1000 {
            return Err(SandboxError::Backend("asked too often".to_owned()));
        }
        Err(SandboxError::RateLimited {
            message: "the account runs 20 sandboxes".to_owned(),
            retry_after: Some(Duration::ZERO),
            at_capacity: true,
        })
    }

    async fn list(&self, _: &str) -> Result<Vec<FoundSandbox>, SandboxError> {
        Ok(Vec::new())
    }

    async fn kill(&self, _: &str) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn alive(&self, _: &str) -> Result<bool, SandboxError> {
        Ok(false)
    }

    async fn probe(&self) -> Result<(), SandboxError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_backend_is_asked_at_growing_intervals_with_one_record_and_one_warning() {
    let full = Arc::new(Full::default());
    let entry = BackendEntry {
        name: "local",
        backend: full.clone(),
        places: None,
    };
    let case = Case::new(entry, Duration::from_hours(1)).await;
    let refused = case.sandbox.workspace().await.err().unwrap();
    assert_eq!(refused.code, ErrorCode::RateLimit);
    // 1, 2, 4, 8 and 16 s, and then every 30 s.
    let asked = full.0.load(Ordering::SeqCst);
    assert!((100..=125).contains(&asked), "{asked}");
    assert_eq!(case.store.sandboxes(&case.run).await.unwrap().len(), 1);
    assert_eq!(case.store.head(&case.run).await.unwrap().last_seq, Seq(2));
}
