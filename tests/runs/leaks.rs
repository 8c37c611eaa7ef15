//! Hundreds of runs leave nothing behind: no task, no descriptor, no thread, no memory that grows with them.

use std::process::Stdio;

use sandcaster::runs::TaskKind;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::support::app::{PATIENCE, TestApp, binary};
use crate::support::fake_llm::{FakeLlm, KEY};
use crate::support::http;

const RUNS: usize = 300;
const DELTAS: usize = 20;

/// What RSS may grow by over a run. Its events are 4 KiB, of which the store caches some; its tasks and
/// buffers are ten times that.
const GROWTH_KIB_PER_RUN: u64 = 24;

fn talk() -> serde_json::Value {
    json!({ "prompt": "Say something", "model": "sonnet", "allowedTools": [] })
}

/// Starts a run and reads it to its end.
async fn one_run(address: &str) {
    let sent = http().post(format!("{address}/query")).json(&talk()).send();
    let stream = async { sent.await.unwrap().text().await.unwrap() };
    let stream = timeout(PATIENCE, stream).await.expect("it hung");
    assert!(stream.contains("\nevent: result\n"), "{stream}");
    assert_eq!(stream.matches("\nevent: assistant\n").count(), DELTAS);
}

/// Waits until `settled`; gives the last state where it never is.
async fn settles<T>(look: impl Fn() -> T, settled: impl Fn(&T) -> bool) -> T {
    let wait = async {
        loop {
            let state = look();
            if settled(&state) {
                return state;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| look())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_runs_leave_no_task_and_no_live_run() {
    let llm = FakeLlm::instant(DELTAS).await;
    let app = TestApp::with_llm(&llm).await;
    let tasks = || {
        let kinds = TaskKind::ALL.iter();
        kinds
            .map(|kind| app.app.tasks.running(*kind))
            .collect::<Vec<_>>()
    };
    let before = tasks();
    for _ in 0..RUNS {
        one_run(&app.url("")).await;
    }
    assert_eq!(llm.instant_requests(), RUNS);
    assert_eq!(settles(tasks, |now| *now == before).await, before);
    assert_eq!(app.app.runs.live(), 0);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_runs_leave_no_descriptor_and_no_thread_and_memory_stays_flat() {
    let llm = FakeLlm::instant(DELTAS).await;
    let (server, address, _dir) = serve(&llm.base_url()).await;
    let pid = server.id().unwrap();
    // What is made once and kept: connections of the pool, threads, caches, the allocator's arenas.
    for _ in 0..RUNS / 3 {
        one_run(&address).await;
    }
    let before = Footprint::of(pid);
    for _ in 0..RUNS {
        one_run(&address).await;
    }
    let after = settles(
        || Footprint::of(pid),
        |now| now.descriptors <= before.descriptors && now.threads <= before.threads,
    )
    .await;
    assert!(
        after.descriptors <= before.descriptors && after.threads <= before.threads,
        "from {before:?} to {after:?}"
    );
    let grown = after.rss_kib.saturating_sub(before.rss_kib);
    assert!(
        grown < GROWTH_KIB_PER_RUN * RUNS as u64,
        "memory grew by {grown} KiB over {RUNS} runs, from {before:?} to {after:?}"
    );
}

/// The server as a process of its own, killed when it is dropped.
async fn serve(llm: &str) -> (Child, String, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Command::new(binary())
        .args(["serve", "--port", "0"])
        .current_dir(dir.path())
        .env_clear()
        .env("ANTHROPIC_API_KEY", KEY)
        .env("ANTHROPIC_BASE_URL", llm)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await;
    let line = line.expect("it hung").unwrap().unwrap();
    let address = line.split(' ').find(|word| word.starts_with("http://"));
    (server, address.unwrap().to_owned(), dir)
}

#[derive(Debug)]
struct Footprint {
    rss_kib: u64,
    threads: u64,
    descriptors: usize,
}

impl Footprint {
    fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.unwrap().split_whitespace().next().unwrap();
            value.parse().unwrap()
        };
        Self {
            rss_kib: field("VmRSS:"),
            threads: field("Threads:"),
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd"))
                .unwrap()
                .count(),
        }
    }
}
