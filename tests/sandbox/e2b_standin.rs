//! The stand-in for E2B, judged by E2B's own clients.

use std::time::Duration;

use tokio::process::Command;

use crate::support::clients::bounded;
use crate::support::fake_e2b::FakeE2b;
use crate::support::{judges, recordings};

/// How many cases the shared check has at least.
const CASES: usize = 44;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(shared_evidence),
    ignore = "needs E2B's check: set SANDCASTER_SHARED"
)]
#[cfg_attr(not(program = "python3"), ignore = "needs python3")]
async fn the_official_python_sdk_accepts_the_stand_in() {
    let python = judges::e2b_python().await;
    let script = recordings::shared().join("tools/e2b_sdk_check.py");
    let e2b = FakeE2b::start().await;
    // The check provokes refusals of every kind, and faults by calls of its own.
    e2b.allow_refusals();
    e2b.serve_check_controls();
    let mut check = Command::new(python);
    let check = check.arg(script).arg(e2b.url());
    let output = bounded(check, Duration::from_secs(150)).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let passed = said.lines().last().and_then(|verdict| {
        let passed = verdict.strip_suffix(" passed, 0 failed, 0 skipped")?;
        passed.parse::<usize>().ok()
    });
    assert!(passed.is_some_and(|passed| passed >= CASES), "{said}");
    e2b.wait_until_empty(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(all(program = "node", program = "npm")),
    ignore = "needs node and npm"
)]
async fn the_official_javascript_sdk_accepts_the_stand_in() {
    let dir = judges::e2b_node().await;
    let e2b = FakeE2b::start().await;
    let mut check = Command::new("node");
    let check = check.arg(dir.join("e2b_check.mjs")).arg(e2b.url());
    let output = bounded(check, Duration::from_mins(1)).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.lines().last(), Some("13 passed, 0 failed"), "{said}");
    e2b.wait_until_empty(Duration::from_secs(5)).await;
}
