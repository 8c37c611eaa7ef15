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

#[tokio::test]
async fn a_sandbox_that_is_asked_for_after_the_end_is_never_made() {
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
        sink: writer.clone(),
        control: RunControl::default(),
        deadline: Deadline::after(Duration::from_mins(1)),
        store: store.clone(),
        tasks: tasks.clone(),
        clock: Clock::system(),
        redactor: Redactor::default(),
    };
    let sandbox = RunSandbox::new(owner, BackendEntry::none("local"));
    sandbox.end();
    let asked = tokio::time::timeout(Duration::from_secs(30), sandbox.workspace()).await;
    assert_eq!(asked.unwrap().err().unwrap().code, ErrorCode::SandboxError);
    assert_eq!(tasks.running(TaskKind::Cleanup), 0);
    assert_eq!(store.sandboxes(&run).await.unwrap(), []);
    assert_eq!(store.head(&run).await.unwrap().last_seq, Seq(1));
    // Ended again, it has nothing to wait for.
    sandbox.end();
    tasks
        .close_and_wait(Deadline::after(Duration::from_secs(30)))
        .await;
    assert_eq!(tasks.running(TaskKind::Cleanup), 0);
}
