//! A reader of event streams that costs next to nothing, so that the figures are the server's.

use std::io;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::server::PATIENCE;

/// A stream under way.
pub struct Stream {
    socket: TcpStream,
    epoch: Instant,
    buffer: Vec<u8>,
    /// What was read of it so far.
    pub read: Read,
}

/// What was read, in nanoseconds since the epoch.
#[derive(Clone, Debug, Default)]
pub struct Read {
    pub run: String,
    /// The request was about to be written.
    pub sent: u64,
    /// The first byte of the answer.
    pub head: u64,
    /// When each event type came first, in order.
    pub firsts: Vec<(String, u64)>,
    pub events: usize,
    /// From the writing of each stamped delta to its reading.
    pub latencies: Vec<u64>,
    /// The stream ended with a terminal event; its type.
    pub end: Option<String>,
}

impl Read {
    /// When the first event of a type came.
    pub fn first(&self, kind: &str) -> u64 {
        let first = self.firsts.iter().find(|(name, _)| name == kind);
        first.unwrap_or_else(|| panic!("no {kind} event")).1
    }
}

/// Starts a run.
pub async fn query(address: SocketAddr, epoch: Instant, body: &Value) -> Stream {
    let body = body.to_string();
    let head = format!(
        "POST /query HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Accept: text/event-stream\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    open(address, epoch, head + &body).await
}

/// Reads a run from its first event.
pub async fn events(address: SocketAddr, epoch: Instant, run: &str) -> Stream {
    let head = format!(
        "GET /runs/{run}/events HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\
         Connection: close\r\n\r\n"
    );
    open(address, epoch, head).await
}

async fn open(address: SocketAddr, epoch: Instant, request: String) -> Stream {
    let mut socket = timeout(PATIENCE, TcpStream::connect(address))
        .await
        .expect("a connection in time")
        .expect("a connection");
    socket.set_nodelay(true).expect("a socket option");
    let sent = epoch.elapsed().as_nanos() as u64;
    socket
        .write_all(request.as_bytes())
        .await
        .expect("the request is taken");
    Stream {
        socket,
        epoch,
        buffer: Vec::with_capacity(4096),
        read: Read {
            sent,
            ..Read::default()
        },
    }
}

impl Stream {
    /// Reads until `done` says so, or to the end of the stream.
    pub async fn until(&mut self, done: impl Fn(&Read) -> bool) {
        while self.read.end.is_none() && !done(&self.read) {
            let more = timeout(PATIENCE, self.more()).await.expect("bytes in time");
            if more.expect("an unbroken stream") == 0 {
                return;
            }
        }
    }

    /// Reads to the terminal event.
    pub async fn rest(mut self) -> Read {
        self.until(|_| false).await;
        assert!(
            self.read.end.is_some(),
            "the stream of {} was cut",
            self.read.run
        );
        self.read
    }

    async fn more(&mut self) -> io::Result<usize> {
        let count = self.socket.read_buf(&mut self.buffer).await?;
        let now = self.epoch.elapsed().as_nanos() as u64;
        if self.read.head == 0 {
            self.read.head = now;
            assert!(
                self.buffer.starts_with(b"HTTP/1.1 200"),
                "{}",
                String::from_utf8_lossy(&self.buffer)
            );
        }
        let mut start = 0;
        while let Some(length) = self.buffer[start..].iter().position(|byte| *byte == b'\n') {
            self.read.line(&self.buffer[start..start + length], now);
            start += length + 1;
        }
        self.buffer.drain(..start);
        Ok(count)
    }
}

impl Read {
    fn line(&mut self, line: &[u8], now: u64) {
        if let Some(kind) = line.strip_prefix(b"event: ") {
            self.events += 1;
            let kind = std::str::from_utf8(kind).expect("text").trim();
            if !self.firsts.iter().any(|(name, _)| name == kind) {
                self.firsts.push((kind.to_owned(), now));
            }
            if matches!(kind, "result" | "error") {
                self.end = Some(kind.to_owned());
            }
        } else if line.starts_with(b"data: ") {
            if let Some(at) = line.iter().position(|byte| *byte == b'@') {
                let digits: String = line[at + 1..]
                    .iter()
                    .take_while(|byte| byte.is_ascii_digit())
                    .map(|byte| char::from(*byte))
                    .collect();
                let written: u64 = digits.parse().expect("a stamp");
                self.latencies.push(now.saturating_sub(written));
            }
        } else if let Some(run) = line.strip_prefix(b"x-run-id: ") {
            String::from_utf8_lossy(run)
                .trim()
                .clone_into(&mut self.run);
        }
    }
}
