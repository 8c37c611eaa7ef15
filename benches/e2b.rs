//! Figures of whole runs in sandboxes of E2B's stand-in: `cargo bench --bench e2b`. Prints them beside their
//! aims, and never fails for being slow.
//!
//! The server is the real binary in a process of its own, so that its processor time and memory are its own.
//! LLM, stand-in (which really runs the commands) and clients are in this process, on loopback; on a machine
//! with few cores they compete with the server. `SANDCASTER_FAKE_E2B_NO_NAMESPACE=1` makes the stand-in's
//! first command cheaper.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    dead_code,
    unused_imports,
    reason = "a benchmark prints figures and stops at the first fault; it uses a part of the stand-in"
)]

#[cfg(target_os = "linux")]
#[path = "../tests/support/fake_e2b/mod.rs"]
mod fake_e2b;

#[cfg(target_os = "linux")]
mod linux {
    use std::fmt::Write as _;
    use std::net::SocketAddr;
    use std::process::Stdio;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use axum::Router;
    use axum::extract::State;
    use axum::http::header::CONTENT_TYPE;
    use axum::response::IntoResponse;
    use axum::routing::post;
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    use tokio::net::TcpListener;
    use tokio::process::{Child, Command};
    use tokio::task::JoinSet;
    use tokio::time::Instant;

    use super::fake_e2b::{FakeE2b, Route, Seen};

    /// What a creation takes at E2B.
    const CREATION: Duration = Duration::from_millis(150);
    const ONE_BY_ONE: usize = 30;
    const AT_ONCE: usize = 200;

    /// An LLM that answers at once, and asks for so many commands first, one after the other.
    struct Llm {
        address: SocketAddr,
        calls: Arc<AtomicUsize>,
    }

    impl Llm {
        async fn start() -> Self {
            let calls = Arc::new(AtomicUsize::new(0));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let router = Router::new()
                .route("/v1/messages", post(answer))
                .with_state(Arc::clone(&calls));
            tokio::spawn(async move { axum::serve(listener, router).await });
            Self { address, calls }
        }
    }

    async fn answer(State(calls): State<Arc<AtomicUsize>>, body: String) -> impl IntoResponse {
        let body: Value = serde_json::from_str(&body).unwrap();
        let turn = body["messages"].as_array().unwrap().len() / 2;
        let call = turn < calls.load(Ordering::Relaxed);
        let mut events = vec![
            json!({"type": "message_start", "message": {
                "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"],
                "content": [], "stop_reason": null, "stop_sequence": null,
                "usage": {"input_tokens": 10, "output_tokens": 1}}}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Well. "}}),
            json!({"type": "content_block_stop", "index": 0}),
        ];
        if call {
            let command = json!({"command": format!("echo {turn}")}).to_string();
            events.extend([
                json!({"type": "content_block_start", "index": 1, "content_block": {
                    "type": "tool_use", "id": format!("toolu_{turn}"), "name": "bash", "input": {}}}),
                json!({"type": "content_block_delta", "index": 1, "delta": {
                    "type": "input_json_delta", "partial_json": command}}),
                json!({"type": "content_block_stop", "index": 1}),
            ]);
        }
        let reason = if call { "tool_use" } else { "end_turn" };
        events.extend([
            json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null},
                   "usage": {"output_tokens": 5}}),
            json!({"type": "message_stop"}),
        ]);
        let mut body = String::new();
        for event in events {
            let name = event["type"].as_str().unwrap();
            write!(body, "event: {name}\ndata: {event}\n\n").unwrap();
        }
        ([(CONTENT_TYPE, "text/event-stream")], body)
    }

    struct Server {
        child: Child,
        url: String,
        _dir: tempfile::TempDir,
    }

    impl Server {
        async fn start(e2b: &FakeE2b, llm: &Llm) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut child = Command::new(env!("CARGO_BIN_EXE_sandcaster"))
                .args(["serve", "--port", "0"])
                .current_dir(dir.path())
                .env_clear()
                .envs(e2b.env())
                .env("ANTHROPIC_API_KEY", "sk-ant-bench")
                .env("ANTHROPIC_BASE_URL", format!("http://{}", llm.address))
                .env("SANDCASTER_LOG", "error")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let line = lines.next_line().await.unwrap().unwrap();
            let url = line.split(' ').find(|word| word.starts_with("http://"));
            Self {
                url: url.unwrap().to_owned(),
                child,
                _dir: dir,
            }
        }

        fn proc(&self, file: &str) -> String {
            let pid = self.child.id().unwrap();
            std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
        }

        /// Processor time so far, in the kernel's ticks of 10 ms.
        fn cpu(&self) -> Duration {
            let stat = self.proc("stat");
            let (_, fields) = stat.rsplit_once(')').unwrap();
            let fields: Vec<&str> = fields.split_whitespace().collect();
            let ticks: u64 =
                fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            Duration::from_millis(ticks * 10)
        }

        fn memory_mib(&self, name: &str) -> f64 {
            let status = self.proc("status");
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib: f64 = line
                .unwrap()
                .split_whitespace()
                .next()
                .unwrap()
                .parse()
                .unwrap();
            kib / 1024.0
        }

        /// Runs once; gives the times to the first `assistant` event and to the end.
        async fn run(url: String, http: reqwest::Client) -> (Duration, Duration) {
            let begun = Instant::now();
            let request = http
                .post(format!("{url}/query"))
                .json(&json!({"prompt": "Go", "model": "sonnet", "timeout": 300}));
            let mut response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            let (mut text, mut first) = (String::new(), None);
            while let Some(chunk) = response.chunk().await.unwrap() {
                text.push_str(std::str::from_utf8(&chunk).unwrap());
                if first.is_none() && text.contains("event: assistant") {
                    first = Some(begun.elapsed());
                }
            }
            assert!(text.contains("event: result"), "{text}");
            (first.unwrap(), begun.elapsed())
        }
    }

    /// How long the stand-in itself takes for the requests of one run: sent again as they were, one after the
    /// other, to a new sandbox. What the run did side by side counts twice here, what its client did not at all.
    async fn own_time(e2b: &FakeE2b, http: &reqwest::Client, seen: &[Seen]) -> Duration {
        let (mut id, mut token) = (String::new(), String::new());
        let begun = Instant::now();
        for seen in seen {
            let path = match seen.route {
                Route::List | Route::Get | Route::EnvdHealth => continue,
                Route::Delete => format!("/sandboxes/{id}"),
                _ => seen.path.clone(),
            };
            let method = reqwest::Method::from_bytes(seen.method.as_bytes()).unwrap();
            let query = if seen.query.is_empty() {
                String::new()
            } else {
                format!("?{}", seen.query)
            };
            let mut request = http
                .request(method, format!("{}{path}{query}", e2b.url()))
                .body(seen.body.clone());
            for (name, value) in &seen.headers {
                let value = match name.as_str() {
                    "host" | "content-length" | "transfer-encoding" => continue,
                    "e2b-sandbox-id" => id.clone(),
                    "x-access-token" => token.clone(),
                    "idempotency-key" => sandcaster::ids::nonce(),
                    _ => value.to_str().unwrap().to_owned(),
                };
                request = request.header(name, value);
            }
            let answer = request.send().await.unwrap().bytes().await.unwrap();
            if seen.route == Route::Create {
                let made: Value = serde_json::from_slice(&answer).unwrap();
                made["sandboxID"].as_str().unwrap().clone_into(&mut id);
                made["envdAccessToken"]
                    .as_str()
                    .unwrap()
                    .clone_into(&mut token);
            }
        }
        begun.elapsed()
    }

    fn millis(duration: Duration) -> f64 {
        duration.as_secs_f64() * 1000.0
    }

    /// Median and the highest, in milliseconds.
    fn shown(mut times: Vec<f64>) -> String {
        times.sort_by(f64::total_cmp);
        let (middle, last) = (times[times.len() / 2], times[times.len() - 1]);
        format!("median {middle:.1} ms, at most {last:.1} ms")
    }

    pub async fn all() {
        let e2b = FakeE2b::start().await;
        e2b.set_create_latency(CREATION);
        let llm = Llm::start().await;
        let server = Server::start(&e2b, &llm).await;
        let http = sandcaster::net::build().unwrap();
        // What is made once for all: connections, certificates.
        Server::run(server.url.clone(), http.clone()).await;

        llm.calls.store(5, Ordering::Relaxed);
        let (mut firsts, mut totals, mut owns, mut ours) = (vec![], vec![], vec![], vec![]);
        for _ in 0..ONE_BY_ONE {
            let before = e2b.requests().len();
            let (first, total) = Server::run(server.url.clone(), http.clone()).await;
            let seen = e2b.requests()[before..].to_vec();
            let own = own_time(&e2b, &http, &seen).await;
            firsts.push(millis(first));
            totals.push(millis(total));
            owns.push(millis(own));
            ours.push(millis(total) - millis(own));
        }
        println!(
            "creation {} ms, 5 tool calls, {ONE_BY_ONE} runs one after the other",
            CREATION.as_millis()
        );
        println!("  to the first assistant event   {}", shown(firsts));
        println!("  total                          {}", shown(totals));
        println!("  the stand-in's own times       {}", shown(owns));
        println!("  the rest, ours (aim < 10 ms)   {}", shown(ours));

        llm.calls.store(1, Ordering::Relaxed);
        let (cpu, begun) = (server.cpu(), Instant::now());
        let mut runs = JoinSet::new();
        for _ in 0..AT_ONCE {
            runs.spawn(Server::run(server.url.clone(), http.clone()));
        }
        let firsts = runs.join_all().await;
        let took = begun.elapsed();
        let cpu = server.cpu().saturating_sub(cpu);
        println!("{AT_ONCE} runs at once, 1 tool call each");
        println!(
            "  all of them took               {:.1} s",
            took.as_secs_f64()
        );
        println!(
            "  to the first assistant event   {}",
            shown(firsts.iter().map(|(first, _)| millis(*first)).collect())
        );
        println!(
            "  processor time per run         {:.2} ms",
            millis(cpu) / AT_ONCE as f64
        );
        println!(
            "  memory                         {:.0} MiB, at most {:.0} MiB",
            server.memory_mib("VmRSS:"),
            server.memory_mib("VmHWM:")
        );
        e2b.wait_until_empty(Duration::from_secs(10)).await;
    }
}

fn main() {
    #[cfg(target_os = "linux")]
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(linux::all());
    }
}
