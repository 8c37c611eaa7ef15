use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::sandbox::{ExecSpec, ExecStream};

/// Takes note of when its life is extended, and fails while told to.
struct Mortal {
    born: Instant,
    extended: Mutex<Vec<(Duration, Duration)>>,
    failures: Mutex<Vec<SandboxError>>,
}

impl Mortal {
    fn born(failures: Vec<SandboxError>) -> Self {
        Self {
            born: Instant::now(),
            extended: Mutex::default(),
            failures: Mutex::new(failures),
        }
    }

    /// Lives through a run of `timeout`; gives the age and the wish of each extension.
    async fn live(&self, timeout: Duration) -> Vec<(Duration, Duration)> {
        let deadline = Deadline::after(timeout);
        let end = Instant::now() + lifetime(deadline);
        let extending = extend(self, end, deadline);
        assert!(tokio::time::timeout(timeout, extending).await.is_err());
        self.extended.lock().clone()
    }
}

fn unused() -> SandboxError {
    SandboxError::Backend("not used here".to_owned())
}

#[async_trait]
impl Sandbox for Mortal {
    fn id(&self) -> &'static str {
        "mortal"
    }

    fn working_dir(&self) -> &'static str {
        "/"
    }

    async fn exec(&self, _: ExecSpec) -> Result<ExecStream, SandboxError> {
        Err(unused())
    }

    async fn read(&self, _: &str, _: u64) -> Result<Bytes, SandboxError> {
        Err(unused())
    }

    async fn write(&self, _: &str, _: Bytes) -> Result<(), SandboxError> {
        Err(unused())
    }

    async fn extend(&self, lifetime: Duration) -> Result<(), SandboxError> {
        self.extended.lock().push((self.born.elapsed(), lifetime));
        self.failures.lock().pop().map_or(Ok(()), Err)
    }

    async fn kill(&self) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn gone(&self) -> SandboxError {
        std::future::pending().await
    }
}

const MINUTE: Duration = Duration::from_mins(1);

#[tokio::test(start_paused = true)]
async fn a_life_that_covers_the_run_is_never_extended() {
    for minutes in [1, 5, 57, 58] {
        let sandbox = Mortal::born(Vec::new());
        assert_eq!(sandbox.live(minutes * MINUTE).await, [], "{minutes}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_capped_life_is_extended_to_the_deadline_when_half_of_it_is_over() {
    let sandbox = Mortal::born(Vec::new());
    let extended = sandbox.live(60 * MINUTE).await;
    assert_eq!(extended, [(30 * MINUTE, 32 * MINUTE)]);
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_fails_is_tried_again_in_time() {
    let busy = || SandboxError::Backend("busy".to_owned());
    let sandbox = Mortal::born(vec![busy(), busy()]);
    let extended = sandbox.live(60 * MINUTE).await;
    let ages: Vec<u64> = extended.iter().map(|(age, _)| age.as_secs() / 60).collect();
    assert_eq!(ages, [30, 45, 52]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_sandbox_is_not_asked_again() {
    let sandbox = Mortal::born(vec![SandboxError::Gone("killed".to_owned())]);
    assert_eq!(sandbox.live(60 * MINUTE).await.len(), 1);
}
