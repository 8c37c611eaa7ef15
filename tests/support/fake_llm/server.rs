//! HTTP/1.1 by hand, because a real server can't stop within a chunk or reset a connection.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::dialect::{Dialect, Figures, Piece, Stop};
use super::script::{End, Reply, Step};
use super::{Outcome, Received, Shared};

/// Serves one connection until the client leaves or a reply ends it.
pub(super) async fn serve(mut socket: TcpStream, shared: Arc<Shared>, connection: usize) {
    // A client that leaves in the middle is an outcome of its own, not a fault of the stand-in.
    drop(socket.set_nodelay(true));
    while let Ok(Some(mut request)) = read_request(&mut socket, &shared, connection).await {
        if let Some(instant) = &shared.instant {
            shared.count();
            if socket.write_all(instant).await.is_err() {
                return;
            }
            continue;
        }
        request.body = serde_json::from_slice(&request.raw).unwrap_or(Value::Null);
        let (number, reply) = shared.take(request.clone());
        let outcome = answer(&mut socket, reply, number, &request).await;
        let end = outcome.unwrap_or(Outcome::ClientGone);
        shared.ended(number, end);
        if end != Outcome::Finished {
            return;
        }
    }
}

async fn read_request(
    socket: &mut TcpStream,
    shared: &Shared,
    connection: usize,
) -> io::Result<Option<Received>> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if socket.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let path = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap_or_default()
        .to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    let mut raw = bytes.split_off(head_end + 4);
    while raw.len() < length {
        if socket.read_buf(&mut raw).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(Received {
        dialect: shared.dialect,
        path,
        headers,
        // Read by whoever looks at it: instant answers don't.
        body: Value::Null,
        raw,
        connection,
    }))
}

async fn answer(
    socket: &mut TcpStream,
    reply: Reply,
    number: usize,
    request: &Received,
) -> io::Result<Outcome> {
    if !reply.headless {
        let mut head = format!(
            "HTTP/1.1 {} Fake\r\ntransfer-encoding: chunked\r\n",
            reply.status
        );
        for (name, value) in &reply.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head.push_str("\r\n");
        socket.write_all(head.as_bytes()).await?;
    }
    let dialect = request.dialect;
    if reply.whole {
        assert!(
            matches!(reply.end, End::Finish),
            "one document ends as a whole"
        );
        let pieces: Vec<Piece> = reply
            .steps
            .iter()
            .map(|step| match step {
                Step::Say(piece) => piece.clone(),
                Step::Error { .. } | Step::Bytes(_) | Step::Wait(_) => {
                    panic!("one document holds nothing but an answer")
                }
            })
            .collect();
        let body = dialect.whole(&pieces, request, number).to_string();
        chunk(socket, body.as_bytes()).await?;
        socket.write_all(b"0\r\n\r\n").await?;
        return Ok(Outcome::Finished);
    }
    let mut speaker = dialect.speaker(request, number);
    for step in reply.steps {
        match step {
            Step::Say(piece) => {
                let bytes = speaker.say(&piece);
                if !bytes.is_empty() {
                    chunk(socket, &bytes).await?;
                }
            }
            Step::Error { kind, message } => {
                let body = dialect.error(&kind, &message).to_string();
                chunk(socket, body.as_bytes()).await?;
            }
            Step::Bytes(bytes) if bytes.is_empty() => {}
            Step::Bytes(bytes) => chunk(socket, &bytes).await?,
            Step::Wait(gate) => {
                tokio::select! {
                    // Nothing is lost: a passed gate and a gone client are both sticky.
                    biased;
                    () = gate.pass() => {}
                    () = gone(socket) => return Ok(Outcome::ClientGone),
                }
            }
        }
    }
    match reply.end {
        End::Finish => {
            socket.write_all(b"0\r\n\r\n").await?;
            Ok(Outcome::Finished)
        }
        End::Cut => {
            socket.shutdown().await?;
            Ok(Outcome::Cut)
        }
        End::Reset => {
            socket.set_zero_linger()?;
            Ok(Outcome::Cut)
        }
        End::Stall => {
            gone(socket).await;
            Ok(Outcome::ClientGone)
        }
    }
}

async fn chunk(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let mut out = format!("{:x}\r\n", bytes.len()).into_bytes();
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
    socket.write_all(&out).await
}

/// Returns once the client has closed its connection.
async fn gone(socket: &TcpStream) {
    let mut byte = [0];
    if let Ok(1..) = socket.peek(&mut byte).await {
        // A client that sends its next request before the answer's end doesn't leave.
        std::future::pending::<()>().await;
    }
}

/// A whole answer of `deltas` pieces of text, ready to write.
pub(super) fn instant(dialect: &'static dyn Dialect, deltas: usize) -> Vec<u8> {
    let mut pieces = vec![Piece::Start {
        served_by: Some("instant".to_owned()),
        usage: true,
    }];
    pieces.extend((0..deltas).map(|delta| Piece::Text(format!("word{delta} "))));
    let usage = Figures::Counts {
        input: 10,
        output: deltas as u64,
    };
    let stop = Stop::ByItself;
    pieces.extend([Piece::Reason { stop, usage }, Piece::End]);
    let nobody = Received {
        dialect,
        path: String::new(),
        headers: BTreeMap::new(),
        body: Value::Null,
        raw: Vec::new(),
        connection: 0,
    };
    let mut speaker = dialect.speaker(&nobody, 0);
    let body: Vec<u8> = pieces.iter().flat_map(|piece| speaker.say(piece)).collect();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}
