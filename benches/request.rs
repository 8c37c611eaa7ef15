//! What one LLM request costs: `cargo bench --bench request`. Allocations, bytes and time of a request with a
//! long history, and of each delta of its answer. Prints figures, and never fails for being slow.
//!
//! All is measured through [`LlmProvider`], over loopback. The service is a thread that allocates nothing, so
//! what is counted is the client's side alone: the conversation made into a body, sent, and the answer decoded.
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
    dead_code,
    reason = "a benchmark prints figures and stops at the first fault"
)]

mod figures;

use std::alloc::System;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use sandcaster::chat::{
    Block, CallIds, Message, Part, Reply, ToolArgs, ToolCall, ToolResult, ToolSpec,
};
use sandcaster::clock::Deadline;
use sandcaster::llm::anthropic::Anthropic;
use sandcaster::llm::{
    self, Build, Decoder as _, Deltas, Heard, LlmProvider, LlmRequest, Protocol as _,
};
use sandcaster::net;
use sandcaster::net::sse::{self, SseEvent, SseLimits};
use sandcaster::secrets::Secret;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::time::Instant;

use figures::{Times, row};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const TURNS: usize = 200;
const DELTAS: usize = 20_000;
const SAMPLES: usize = 30;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        request().await;
        answer().await;
        events().await;
    });
    decoder();
}

// --- What knows the neutral types ---

fn provider(address: SocketAddr) -> Arc<dyn LlmProvider> {
    let def = llm::provider("anthropic").expect("a row");
    let Build::With(build) = def.build else {
        panic!("not built")
    };
    let key = |_: &str| Some(Secret::new("sk-ant-bench-0123456789abcdef"));
    let address = format!("http://{address}");
    build(def.config(net::build().expect("a client"), key, Some(&address)))
}

/// What a request borrows.
struct Conversation {
    system: Vec<String>,
    tools: Vec<&'static ToolSpec>,
    messages: Vec<Message>,
    call_ids: CallIds,
}

/// A conversation in which each turn reads a file of about 2,000 characters.
fn conversation(turns: usize) -> Conversation {
    let call_ids = CallIds::default();
    let mut messages = vec![Message::user("Look through the project. ".repeat(20))];
    for turn in 0..turns {
        let id = call_ids.issue(&format!("toolu_{turn:04}"));
        messages.push(Message::Assistant(Reply {
            provider: "anthropic",
            blocks: vec![
                Block::text(format!("Now file {turn}, which the last one names.")),
                Block::Call(ToolCall {
                    id: id.clone(),
                    name: "file_read".to_owned(),
                    args: ToolArgs::Json(
                        json!({"path": format!("src/part_{turn}.rs"), "limit": 40}),
                    ),
                    echo: None,
                }),
            ],
        }));
        messages.push(Message::ToolResults {
            results: vec![ToolResult {
                id,
                name: "file_read".to_owned(),
                content: vec![Part::Text(
                    "     1\tlet \"quoted\" = some(words);\n".repeat(60),
                )],
                is_error: false,
            }],
            notice: None,
        });
    }
    let tool = |name| -> &'static ToolSpec {
        Box::leak(Box::new(ToolSpec {
            name,
            description: "What it does, when to use it, what comes back. ".repeat(12),
            input_schema: json!({"type": "object", "required": ["path"], "properties": {
                "path": {"type": "string", "description": "Relative to the working directory."},
                "limit": {"type": "integer", "minimum": 1, "maximum": 2000},
            }}),
        }))
    };
    let names = [
        "bash",
        "file_read",
        "file_write",
        "file_edit",
        "glob",
        "grep",
    ];
    Conversation {
        system: vec!["You work on tasks with a shell and files. ".repeat(80)],
        tools: names.map(tool).to_vec(),
        messages,
        call_ids,
    }
}

impl Conversation {
    fn request(&self) -> LlmRequest<'_> {
        let model = "claude-sonnet-4-6";
        let deadline = Deadline::after(Duration::from_mins(10));
        LlmRequest {
            system: &self.system,
            tools: &self.tools,
            ..LlmRequest::plain(model, &self.messages, &self.call_ids, deadline)
        }
    }
}

async fn exchange(provider: &dyn LlmProvider, request: &LlmRequest<'_>) -> usize {
    let mut stream = provider.open(request).await.expect("an answer");
    let mut deltas = 0;
    while let Some(delta) = stream.next().await {
        delta.expect("a delta");
        deltas += 1;
    }
    deltas
}

// --- What is measured ---

async fn request() {
    println!("a request with a history of {TURNS} turns");
    let service = Service::start(response(1));
    let provider = provider(service.address);
    let conversation = conversation(TURNS);
    let request = conversation.request();
    exchange(&*provider, &request).await;
    let body = service.received();
    let mut times = Times::default();
    let region = Region::new(ALLOCATOR);
    for _ in 0..SAMPLES {
        let begun = Instant::now();
        exchange(&*provider, &request).await;
        times.push(begun.elapsed());
    }
    let change = region.change();
    let each = |count: usize| count as f64 / SAMPLES as f64;
    row("its body", format_args!("{:.0} KiB", body as f64 / 1024.0));
    row(
        "allocations",
        format_args!(
            "{:.0}, and {:.0} grown",
            each(change.allocations),
            each(change.reallocations)
        ),
    );
    row(
        "bytes allocated, as a multiple of the body",
        format_args!(
            "{:.0} KiB, {:.2} of it",
            each(change.bytes_allocated) / 1024.0,
            each(change.bytes_allocated) / body as f64
        ),
    );
    row("time, to the end of a one-word answer", times);
}

async fn answer() {
    println!("an answer of {DELTAS} deltas, as fast as loopback carries it");
    let bytes = response(DELTAS);
    let size = bytes.len();
    let service = Service::start(bytes);
    let provider = provider(service.address);
    let conversation = conversation(0);
    let request = conversation.request();
    exchange(&*provider, &request).await;
    let mut best = Duration::MAX;
    let region = Region::new(ALLOCATOR);
    let mut deltas = 0;
    for _ in 0..SAMPLES {
        let begun = Instant::now();
        deltas += exchange(&*provider, &request).await;
        best = best.min(begun.elapsed());
    }
    let change = region.change();
    assert!(deltas >= DELTAS * SAMPLES, "{deltas}");
    decoded(size, best);
    row(
        "allocations per delta",
        format_args!("{:.2}", change.allocations as f64 / deltas as f64),
    );
    row(
        "bytes allocated per delta",
        format_args!("{:.0}", change.bytes_allocated as f64 / deltas as f64),
    );
}

async fn events() {
    println!("the same bytes into events, without HTTP and JSON");
    let bytes = Bytes::from(body(DELTAS));
    let mut best = Duration::MAX;
    for _ in 0..SAMPLES {
        let chunks: Vec<_> = (0..bytes.len())
            .step_by(16 << 10)
            .map(|at| Ok(bytes.slice(at..bytes.len().min(at + (16 << 10)))))
            .collect();
        let begun = Instant::now();
        let events = sse::events(futures::stream::iter(chunks), SseLimits::default());
        let count = events.count().await;
        best = best.min(begun.elapsed());
        assert!(count >= DELTAS, "{count}");
    }
    decoded(bytes.len(), best);
}

/// Events into deltas alone, by what they are pieces of.
fn decoder() {
    const WORDS: &str = " and some more words";
    for (block, delta, what) in [
        (
            json!({"type": "text", "text": ""}),
            json!({"type": "text_delta", "text": WORDS}),
            "text",
        ),
        (
            json!({"type": "thinking", "thinking": "", "signature": ""}),
            json!({"type": "thinking_delta", "thinking": WORDS}),
            "thinking",
        ),
        (
            json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}),
            json!({"type": "input_json_delta", "partial_json": "\"and some\": more"}),
            "a call's JSON",
        ),
    ] {
        println!("{DELTAS} events with a piece of {what}, without HTTP");
        let event = |data: serde_json::Value| SseEvent {
            event: data["type"].as_str().map(str::to_owned),
            data: data.to_string(),
        };
        let mut events = vec![event(
            json!({"type": "content_block_start", "index": 0, "content_block": block}),
        )];
        let piece = event(json!({"type": "content_block_delta", "index": 0, "delta": delta}));
        events.extend(vec![piece; DELTAS]);
        let bytes = events.iter().map(|event| event.data.len()).sum();
        let mut best = Duration::MAX;
        let region = Region::new(ALLOCATOR);
        for _ in 0..SAMPLES {
            let mut decoder = Anthropic::decoder(&CallIds::default());
            let mut out = Deltas::new();
            let begun = Instant::now();
            for event in &events {
                let heard = decoder.on_event(event, &mut out);
                assert!(matches!(heard, Ok(Heard::Content(_))));
                out.clear();
            }
            best = best.min(begun.elapsed());
        }
        let change = region.change();
        decoded(bytes, best);
        row(
            "allocations per delta",
            format_args!(
                "{:.2}",
                change.allocations as f64 / (SAMPLES * DELTAS) as f64
            ),
        );
    }
}

fn decoded(bytes: usize, best: Duration) {
    let secs = best.as_secs_f64();
    row(
        "decoded",
        format_args!("{:.0} MB/s", bytes as f64 / secs / 1e6),
    );
    row(
        "per delta",
        format_args!("{:.0} ns", secs * 1e9 / DELTAS as f64),
    );
}

// --- The service ---

fn body(deltas: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut event = |data: serde_json::Value| {
        let name = data["type"].as_str().unwrap_or_default();
        out.extend_from_slice(format!("event: {name}\ndata: {data}\n\n").as_bytes());
    };
    event(
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant",
        "model": "claude-sonnet-4-6", "content": [], "stop_reason": null, "stop_sequence": null,
        "usage": {"input_tokens": 10, "output_tokens": 1}}}),
    );
    event(
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    );
    for _ in 0..deltas {
        event(json!({"type": "content_block_delta", "index": 0,
            "delta": {"type": "text_delta", "text": " and some more words"}}));
    }
    event(json!({"type": "content_block_stop", "index": 0}));
    event(
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
        "usage": {"output_tokens": deltas}}),
    );
    event(json!({"type": "message_stop"}));
    out
}

fn response(deltas: usize) -> Vec<u8> {
    let body = body(deltas);
    let mut out = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    out.extend_from_slice(&body);
    out
}

/// Answers every request with the same bytes, without an allocation of its own.
struct Service {
    address: SocketAddr,
    received: Arc<std::sync::atomic::AtomicUsize>,
}

impl Service {
    fn start(response: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let received = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&received);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            for socket in listener.incoming() {
                let Ok(mut socket) = socket else { return };
                drop(socket.set_nodelay(true));
                while let Some(body) = read_request(&mut socket, &mut buffer) {
                    count.store(body, std::sync::atomic::Ordering::Relaxed);
                    if socket.write_all(&response).is_err() {
                        break;
                    }
                }
            }
        });
        Self { address, received }
    }

    /// The length of the last body.
    fn received(&self) -> usize {
        self.received.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// The length of the next request's body, once it is there; none at the end.
fn read_request(socket: &mut TcpStream, buffer: &mut [u8]) -> Option<usize> {
    let mut held = 0;
    let (head, length) = loop {
        let n = socket.read(&mut buffer[held..]).ok().filter(|n| *n > 0)?;
        held += n;
        let Some(end) = buffer[..held]
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
        else {
            continue;
        };
        let head = std::str::from_utf8(&buffer[..end]).ok()?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let length = name.eq_ignore_ascii_case("content-length");
            length.then(|| value.parse::<usize>().ok())?
        });
        break (end + 4, length?);
    };
    let mut left = (head + length).saturating_sub(held);
    while left > 0 {
        let most = left.min(buffer.len());
        let n = socket.read(&mut buffer[..most]).ok().filter(|n| *n > 0)?;
        left -= n;
    }
    Some(length)
}
