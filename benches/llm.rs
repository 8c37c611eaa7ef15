//! An LLM that answers at once: Anthropic's stream on loopback, as fast or as slowly as a measurement wants.
//!
//! Each paced delta carries the moment of its writing (`@<nanoseconds>;`), so that whoever reads it at the far
//! end of the system knows how long it was under way: both ends are in this process and share its clock.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The answer to every request from now on.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// This many deltas in one write.
    AtOnce(usize),
    /// This many deltas, each in a write of its own, with this gap between them.
    Every(usize, Duration),
    /// One delta, and no end until [`InstantLlm::release`].
    Hold,
    /// To each request since it was set the calls of its turn, as names and arguments; no call is an answer.
    Calls(&'static [&'static [Call]]),
}

/// A tool's name and its arguments in JSON.
pub type Call = (&'static str, &'static str);

/// What it saw of a request, in nanoseconds of its clock.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The request had arrived whole.
    pub arrived: u64,
    /// The first delta was about to be written.
    pub answered: u64,
    /// Bytes of the request.
    pub bytes: usize,
}

struct Shared {
    epoch: Instant,
    pace: Mutex<Pace>,
    seen: Mutex<Vec<Seen>>,
    released: watch::Sender<u64>,
    turns: AtomicUsize,
}

/// The server. It ends when it is dropped.
pub struct InstantLlm {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

impl InstantLlm {
    /// Starts on a free port; its clock counts from `epoch`.
    pub async fn start(epoch: Instant) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            epoch,
            pace: Mutex::new(Pace::AtOnce(1)),
            seen: Mutex::default(),
            released: watch::Sender::new(0),
            turns: AtomicUsize::new(0),
        });
        let mut serving = JoinSet::new();
        let theirs = Arc::clone(&shared);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(socket, Arc::clone(&theirs)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            shared,
            _serving: serving,
        }
    }

    pub fn pace(&self, pace: Pace) {
        *self.shared.pace.lock() = pace;
        self.shared.turns.store(0, Ordering::Relaxed);
    }

    /// Lets the answers that are held end.
    pub fn release(&self) {
        self.shared.released.send_modify(|times| *times += 1);
    }

    /// What was seen since the last call.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen.lock())
    }
}

/// A client that leaves ends its connection; nothing here depends on it.
async fn serve(mut socket: TcpStream, shared: Arc<Shared>) {
    drop(socket.set_nodelay(true));
    let mut bytes = Vec::new();
    while matches!(read_request(&mut socket, &mut bytes).await, Ok(true)) {
        if answer(&mut socket, &shared, bytes.len()).await.is_err() {
            return;
        }
    }
}

/// Reads over one request; false when there is none.
async fn read_request(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<bool> {
    bytes.clear();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if socket.read_buf(bytes).await? == 0 {
            return Ok(false);
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length: usize = text
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next()?.parse().ok())
        .unwrap_or(0);
    while bytes.len() < head + length {
        if socket.read_buf(bytes).await? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn answer(socket: &mut TcpStream, shared: &Shared, bytes: usize) -> io::Result<()> {
    let nanos = || shared.epoch.elapsed().as_nanos() as u64;
    let arrived = nanos();
    let pace = *shared.pace.lock();
    let mut released = shared.released.subscribe();
    let mut out =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    let answered = nanos();
    shared.seen.lock().push(Seen {
        arrived,
        answered,
        bytes,
    });
    if let Pace::Calls(turns) = pace {
        let turn = shared.turns.fetch_add(1, Ordering::Relaxed);
        chunk(
            &mut out,
            &turn_of(turn, turns.get(turn).unwrap_or(&&[][..])),
        );
        out.extend_from_slice(b"0\r\n\r\n");
        return socket.write_all(&out).await;
    }
    chunk(&mut out, &[message_start(), block_start()].concat());
    let deltas = match pace {
        Pace::AtOnce(deltas) => {
            let body: Vec<u8> = (0..deltas)
                .flat_map(|_| delta(" and some more words"))
                .collect();
            chunk(&mut out, &body);
            deltas
        }
        Pace::Every(deltas, gap) => {
            let mut due = Instant::now();
            for _ in 0..deltas {
                chunk(&mut out, &delta(&format!("@{}; some words", nanos())));
                socket.write_all(&out).await?;
                out.clear();
                due += gap;
                tokio::time::sleep_until(due).await;
            }
            deltas
        }
        Pace::Hold => {
            chunk(&mut out, &delta(&format!("@{}; some words", nanos())));
            socket.write_all(&out).await?;
            out.clear();
            // The sender lives in `shared`.
            drop(released.changed().await);
            1
        }
        Pace::Calls(_) => 0,
    };
    chunk(&mut out, &end(deltas));
    out.extend_from_slice(b"0\r\n\r\n");
    socket.write_all(&out).await
}

fn chunk(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(b"\r\n");
}

fn frame(data: &Value) -> Vec<u8> {
    let name = data["type"].as_str().unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n").into_bytes()
}

fn message_start() -> Vec<u8> {
    frame(
        &json!({"type": "message_start", "message": {"id": "msg_1", "model": "claude-sonnet-4-5",
        "usage": {"input_tokens": 10, "output_tokens": 1}}}),
    )
}

fn block_start() -> Vec<u8> {
    frame(
        &json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    )
}

/// A response of these calls, or of a word if there is none.
fn turn_of(turn: usize, calls: &[Call]) -> Vec<u8> {
    let mut out = message_start();
    if calls.is_empty() {
        out.extend([block_start(), delta("Done."), end(1)].concat());
        return out;
    }
    for (index, (name, arguments)) in calls.iter().enumerate() {
        out.extend(frame(&json!({"type": "content_block_start", "index": index, "content_block":
            {"type": "tool_use", "id": format!("toolu_{turn}_{index}"), "name": name, "input": {}}})));
        out.extend(frame(
            &json!({"type": "content_block_delta", "index": index, "delta":
            {"type": "input_json_delta", "partial_json": arguments}}),
        ));
        out.extend(frame(
            &json!({"type": "content_block_stop", "index": index}),
        ));
    }
    out.extend(frame(
        &json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"},
        "usage": {"output_tokens": 1}}),
    ));
    out.extend(frame(&json!({"type": "message_stop"})));
    out
}

fn delta(text: &str) -> Vec<u8> {
    frame(
        &json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
    )
}

fn end(deltas: usize) -> Vec<u8> {
    [
        frame(&json!({"type": "content_block_stop", "index": 0})),
        frame(
            &json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": deltas}}),
        ),
        frame(&json!({"type": "message_stop"})),
    ]
    .concat()
}
