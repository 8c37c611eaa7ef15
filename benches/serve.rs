//! Figures of speed and memory: `cargo bench --bench serve`. Prints them beside their aims, and never fails
//! for being slow.
//!
//! The server is the real binary in a process of its own, so that its processor time and memory are its own.
//! The LLM and the clients are in this process, on loopback. On a machine with few cores they compete with
//! the server: rates and tails are then a lower bound, processor time and memory are not affected.
#![allow(
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    unreachable_pub,
    missing_docs,
    reason = "a benchmark prints figures and stops at the first fault"
)]

mod client;
mod figures;
mod image;
mod llm;
mod local;
mod log;
mod server;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use client::{Read, Stream};
use figures::{Shown, Times, millis, row, row_with_aim};
use llm::{InstantLlm, Pace};
use server::Server;

/// Makes ten images of one, and reads them.
const LOOK_AT_IMAGES: &[&[llm::Call]] = &[
    &[(
        "bash",
        r#"{"command": "for n in 1 2 3 4 5 6 7 8 9; do cp 0.png $n.png; done"}"#,
    )],
    &[
        ("file_read", r#"{"path": "0.png"}"#),
        ("file_read", r#"{"path": "1.png"}"#),
        ("file_read", r#"{"path": "2.png"}"#),
        ("file_read", r#"{"path": "3.png"}"#),
        ("file_read", r#"{"path": "4.png"}"#),
        ("file_read", r#"{"path": "5.png"}"#),
        ("file_read", r#"{"path": "6.png"}"#),
        ("file_read", r#"{"path": "7.png"}"#),
        ("file_read", r#"{"path": "8.png"}"#),
        ("file_read", r#"{"path": "9.png"}"#),
    ],
];

/// Runs at once.
const RUNS: usize = 500;
/// Deltas of each.
const DELTAS: usize = 200;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let only: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    runtime.block_on(async {
        let epoch = Instant::now();
        let bench = Bench {
            epoch,
            llm: InstantLlm::start(epoch).await,
        };
        let wanted = |name: &str| only.is_empty() || only.iter().any(|part| part == name);
        if wanted("start") {
            bench.start().await;
        }
        if wanted("first") {
            bench.first_event().await;
        }
        if wanted("delta") {
            bench.added_per_delta().await;
        }
        if wanted("load") {
            bench.flat_out().await;
        }
        if wanted("paced") {
            bench.paced().await;
        }
        if wanted("memory") {
            bench.memory().await;
        }
        if wanted("images") {
            bench.images().await;
        }
        if wanted("slope") {
            bench.slope().await;
        }
        if wanted("local") {
            bench.local().await;
        }
        if wanted("log") {
            log().await;
        }
    });
}

struct Bench {
    epoch: Instant,
    llm: InstantLlm,
}

/// A run without tools, so that it needs no sandbox.
fn talk() -> Value {
    json!({"prompt": "Say something", "model": "sonnet", "allowedTools": []})
}

impl Bench {
    async fn server(&self) -> Server {
        Server::start(self.llm.address, "{}").await.0
    }

    async fn query(&self, server: &Server, body: &Value) -> Stream {
        client::query(server.address, self.epoch, body).await
    }

    /// One run after the other, to their ends.
    async fn one_by_one(&self, server: &Server, runs: usize) -> Vec<Read> {
        let mut reads = Vec::with_capacity(runs);
        for _ in 0..runs {
            reads.push(self.query(server, &talk()).await.rest().await);
        }
        reads
    }

    /// All at once, to their ends.
    async fn at_once(&self, server: &Server, runs: usize) -> Vec<Read> {
        let mut reading = JoinSet::new();
        for _ in 0..runs {
            let (address, epoch) = (server.address, self.epoch);
            reading.spawn(async move { client::query(address, epoch, &talk()).await.rest().await });
        }
        let reads = reading.join_all().await;
        for read in &reads {
            assert_eq!(read.end.as_deref(), Some("result"), "run {}", read.run);
        }
        reads
    }

    async fn start(&self) {
        println!("start");
        let mut times = Times::default();
        let mut rss = Vec::new();
        for _ in 0..9 {
            let (server, took) = Server::start(self.llm.address, "{}").await;
            times.push(took);
            rss.push(server.rss_kib());
        }
        rss.sort_by(f64::total_cmp);
        row("process start to the first healthy answer", &times);
        row(
            "memory (RSS), idle",
            format_args!("{:.1} MiB", rss[rss.len() / 2] / 1024.0),
        );
    }

    async fn first_event(&self) {
        println!("one run, an LLM that answers at once");
        let server = self.server().await;
        self.llm.pace(Pace::AtOnce(5));
        self.one_by_one(&server, 50).await;
        self.llm.take_seen();
        let reads = self.one_by_one(&server, 400).await;
        let seen = self.llm.take_seen();
        assert_eq!(seen.len(), reads.len());
        let of = |time: &dyn Fn(&Read, &llm::Seen) -> u64| {
            Times::of_nanos(reads.iter().zip(&seen).map(|(read, seen)| time(read, seen)))
        };
        let total = of(&|read, _| read.first("assistant") - read.sent);
        row_with_aim(
            "request to the first assistant event",
            &total,
            millis(total.median()),
            2.0,
            "ms",
        );
        row(
            "  request to the answer's head and first event",
            of(&|read, _| read.first("system") - read.sent),
        );
        row(
            "  request to the LLM has its request",
            of(&|read, seen| seen.arrived - read.sent),
        );
        row(
            "  LLM's first delta to the client",
            of(&|read, seen| read.first("assistant") - seen.answered),
        );
        row(
            "request to the end of a run of 5 deltas",
            of(&|read, _| read.first("result") - read.sent),
        );
        let with_tools = json!({"prompt": "Say something", "model": "sonnet"});
        let mut first = Times::default();
        for _ in 0..100 {
            let read = self.query(&server, &with_tools).await.rest().await;
            first.push(Duration::from_nanos(read.first("assistant") - read.sent));
        }
        row("the same while a local sandbox is created beside it", first);
    }

    async fn added_per_delta(&self) {
        let server = self.server().await;
        self.llm.pace(Pace::Every(1000, Duration::from_millis(2)));
        let read = self.query(&server, &talk()).await.rest().await;
        row(
            "added per delta: LLM's write to the client's read",
            Times::of_nanos(read.latencies),
        );
    }

    async fn flat_out(&self) {
        println!("{RUNS} runs at once, {DELTAS} deltas each, as fast as it goes");
        let server = self.server().await;
        self.llm.pace(Pace::AtOnce(DELTAS));
        self.at_once(&server, 20).await;
        let mut rates = Vec::new();
        let mut costs = Vec::new();
        for _ in 0..3 {
            let (cpu, begun) = (server.cpu_millis(), Instant::now());
            let reads = self.at_once(&server, RUNS).await;
            let events: usize = reads.iter().map(|read| read.events).sum();
            rates.push(events as f64 / begun.elapsed().as_secs_f64());
            costs.push((server.cpu_millis() - cpu) * 1e3 / events as f64);
        }
        rates.sort_by(f64::total_cmp);
        costs.sort_by(f64::total_cmp);
        row(
            "events per second, request to end",
            format_args!("{:.0} (best {:.0})", rates[1], rates[2]),
        );
        row(
            "processor time of the server per 1,000 events",
            format_args!("{:.1} ms (best {:.1} ms)", costs[1], costs[0]),
        );
        row(
            "memory (RSS) afterwards",
            format_args!("{:.1} MiB", server.rss_kib() / 1024.0),
        );
    }

    async fn paced(&self) {
        let gap = Duration::from_millis(50);
        println!(
            "{RUNS} runs at once, {DELTAS} deltas each, one every {} ms",
            gap.as_millis()
        );
        let server = self.server().await;
        self.llm.pace(Pace::Every(DELTAS, gap));
        let (cpu, begun) = (server.cpu_millis(), Instant::now());
        let reads = self.at_once(&server, RUNS).await;
        let (cpu, took) = (server.cpu_millis() - cpu, begun.elapsed());
        let events: usize = reads.iter().map(|read| read.events).sum();
        row(
            "events per second",
            format_args!("{:.0}", events as f64 / took.as_secs_f64()),
        );
        row(
            "processor time of the server per 1,000 events",
            format_args!("{:.1} ms", cpu * 1e3 / events as f64),
        );
        let added = |skipped: usize| {
            Times::of_nanos(
                reads
                    .iter()
                    .flat_map(|read| read.latencies.iter().skip(skipped).copied()),
            )
        };
        row(
            "added per delta: LLM's write to the client's read",
            added(0),
        );
        let steady = added(20);
        row(
            "  without the first 20, when all runs start at once",
            &steady,
        );
        row(
            "  of those, 90 of 100 / 999 of 1,000",
            format_args!("{} / {}", Shown(steady.at(0.9)), Shown(steady.at(0.999))),
        );
    }

    async fn memory(&self) {
        println!("{RUNS} runs open, silent after one delta");
        let server = self.server().await;
        let before = self.warm(&server, &talk()).await;
        let open = self.hold(&server, &talk()).await;
        let runs = server.rss_kib();
        let mut readers = Vec::with_capacity(RUNS);
        for stream in &open {
            let mut reader = client::events(server.address, self.epoch, &stream.read.run).await;
            reader.until(|read| !read.latencies.is_empty()).await;
            readers.push(reader);
        }
        per_stream(
            "an open stream (a further reader of a live run)",
            server.rss_kib() - runs,
        );
        per_stream(
            "a live run: its stream, its task, its LLM's stream",
            runs - before,
        );
        row("threads", server.threads());
        self.llm.release();
        for stream in open.into_iter().chain(readers) {
            stream.rest().await;
        }
        row(
            "memory (RSS) afterwards",
            format_args!("{:.1} MiB", server.rss_kib() / 1024.0),
        );

        let lazy = r#"{"sandboxStart": "lazy"}"#;
        let server = Server::start(self.llm.address, lazy).await.0;
        let tools = json!({"prompt": "Say something", "model": "sonnet"});
        let before = self.warm(&server, &tools).await;
        let open = self.hold(&server, &tools).await;
        per_stream(
            "a live run with all tools offered",
            server.rss_kib() - before,
        );
        self.llm.release();
        for stream in open {
            stream.rest().await;
        }
    }

    /// Has the server make what it makes once, and gives its memory in KiB.
    async fn warm(&self, server: &Server, body: &Value) -> f64 {
        self.llm.pace(Pace::AtOnce(5));
        for _ in 0..50 {
            self.query(server, body).await.rest().await;
        }
        server.rss_kib()
    }

    /// Opens [`RUNS`] runs, each at its first delta.
    async fn hold(&self, server: &Server, body: &Value) -> Vec<Stream> {
        self.llm.pace(Pace::Hold);
        let mut open = Vec::with_capacity(RUNS);
        for _ in 0..RUNS {
            let mut stream = self.query(server, body).await;
            stream.until(|read| !read.latencies.is_empty()).await;
            open.push(stream);
        }
        open
    }

    async fn images(&self) {
        println!("one run that looks at ten images of 3.6 MB");
        let server = self.server().await;
        self.llm.pace(Pace::AtOnce(1));
        self.one_by_one(&server, 5).await;
        let before = server.peak_kib();
        self.llm.take_seen();
        self.llm.pace(Pace::Calls(LOOK_AT_IMAGES));
        let image = image::png(1200, 1000);
        let size = image.len();
        let body = json!({
            "prompt": "Compare", "model": "sonnet", "sandboxProvider": "local",
            "files": [{"name": "0.png", "content": STANDARD.encode(image)}],
        });
        let read = self.query(&server, &body).await.rest().await;
        if read.end.as_deref() != Some("result") {
            return row(
                "not measured",
                format_args!("the run ended in {:?}", read.end),
            );
        }
        let largest = self.llm.take_seen().iter().map(|seen| seen.bytes).max();
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        row("an image", format_args!("{:.2} MB", size as f64 / 1e6));
        row(
            "the largest request to the LLM",
            format_args!("{:.1} MiB", mib(largest.unwrap_or_default())),
        );
        row(
            "most memory of the server (VmHWM), before and after",
            format_args!(
                "{:.1} / {:.1} MiB",
                before / 1024.0,
                server.peak_kib() / 1024.0
            ),
        );
    }

    async fn slope(&self) {
        println!(
            "6,000 runs one after the other; the store's page cache takes 16 MiB until it is full"
        );
        let server = self.server().await;
        self.llm.pace(Pace::AtOnce(20));
        let state = |server: &Server| {
            (
                server.rss_kib() / 1024.0,
                server.descriptors(),
                server.threads(),
            )
        };
        for done in [0, 1500, 3000, 4500, 6000] {
            if done > 0 {
                self.one_by_one(&server, 1500).await;
            }
            let (rss, descriptors, threads) = state(&server);
            row(
                &format!("after {done}"),
                format_args!("{rss:.1} MiB, {descriptors} descriptors, {threads} threads"),
            );
        }
    }

    async fn local(&self) {
        println!("local sandbox");
        let times = match local::local_figures(60, 5).await {
            Ok(times) => times,
            Err(error) => return row("not measured", error),
        };
        row_with_aim(
            "create",
            &times.create,
            millis(times.create.median()),
            10.0,
            "ms",
        );
        row_with_aim(
            "exec of /bin/true",
            &times.exec,
            millis(times.exec.median()),
            4.0,
            "ms",
        );
        row_with_aim(
            "exec of a shell's echo",
            &times.shell,
            millis(times.shell.median()),
            4.0,
            "ms",
        );
        row("destroy", &times.destroy);
        let server = self.server().await;
        let demo = json!({"prompt": "$ echo hi", "model": "demo"});
        let (mut first, mut result, mut end) =
            (Times::default(), Times::default(), Times::default());
        for _ in 0..60 {
            let read = self.query(&server, &demo).await.rest().await;
            first.push(Duration::from_nanos(read.first("assistant") - read.sent));
            result.push(Duration::from_nanos(read.first("tool_result") - read.sent));
            end.push(Duration::from_nanos(read.first("result") - read.sent));
        }
        row("demo run of one command: first assistant event", first);
        row("demo run: the command's result", result);
        row("demo run: whole, sandbox destroyed", end);
    }
}

/// Prints what each of [`RUNS`] costs of `kib` together.
fn per_stream(what: &str, kib: f64) {
    let each = kib / RUNS as f64;
    row_with_aim(what, format_args!("{each:.1} KiB"), each, 30.0, "KB");
}

async fn log() {
    println!("the run log by itself");
    let figures = log::log_figures(RUNS, DELTAS).await;
    row(
        "500 runs of 200 deltas, each with a reader",
        format_args!("{:.0} events/s", figures.events_per_sec),
    );
    row(
        "one run alone: emit to reader",
        format_args!(
            "{} (p99 {})",
            Shown(figures.idle_median),
            Shown(figures.idle_p99)
        ),
    );
}
