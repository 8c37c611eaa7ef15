//! HTTP/1.1 by hand, because a real server can't stop within a chunk or reset a connection.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::script::{End, Reply, Step};
use super::{Outcome, Received, Shared};

/// Serves one connection until the client leaves or a reply ends it.
pub(super) async fn serve(mut socket: TcpStream, shared: Arc<Shared>, connection: usize) {
    // A client that leaves in the middle is an outcome of its own, not a fault of the stand-in.
    drop(socket.set_nodelay(true));
    while let Ok(Some(mut request)) = read_request(&mut socket, connection).await {
        if let Some(instant) = &shared.instant {
            shared.count();
            if socket.write_all(instant).await.is_err() {
                return;
            }
            continue;
        }
        request.body = serde_json::from_slice(&request.raw).unwrap_or(Value::Null);
        let model = request.body["model"].clone();
        let (number, reply) = shared.take(request);
        let outcome = answer(&mut socket, reply, number, &model).await;
        let end = outcome.unwrap_or(Outcome::ClientGone);
        shared.ended(number, end);
        if end != Outcome::Finished {
            return;
        }
    }
}

async fn read_request(socket: &mut TcpStream, connection: usize) -> io::Result<Option<Received>> {
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
    model: &Value,
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
    for step in reply.steps {
        match step {
            Step::Start {
                model: other,
                usage,
            } => {
                let model = other.map_or_else(|| model.clone(), Value::from);
                let start = json!({"type": "message_start", "message": {
                    "id": format!("msg_fake_{number}"), "type": "message", "role": "assistant",
                    "model": model, "content": [], "stop_reason": null, "stop_sequence": null,
                    "usage": usage,
                }});
                chunk(socket, &frame(&start)).await?;
            }
            Step::Event(mut data) => {
                if data["content_block"]["type"] == "tool_use"
                    && data["content_block"]["id"].is_null()
                {
                    let id = format!("toolu_fake_{number}_{}", data["index"]);
                    data["content_block"]["id"] = json!(id);
                }
                chunk(socket, &frame(&data)).await?;
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

pub(super) fn frame(data: &Value) -> Vec<u8> {
    let name = data["type"].as_str().unwrap_or("message");
    format!("event: {name}\ndata: {data}\n\n").into_bytes()
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
pub(super) fn instant(deltas: usize) -> Vec<u8> {
    let mut body = Vec::new();
    let mut push = |data: Value| body.extend(frame(&data));
    push(
        json!({"type": "message_start", "message": {"id": "msg_instant", "model": "instant",
        "usage": {"input_tokens": 10, "output_tokens": 1}}}),
    );
    push(json!({"type": "content_block_start", "index": 0,
        "content_block": {"type": "text", "text": ""}}));
    for delta in 0..deltas {
        push(json!({"type": "content_block_delta", "index": 0,
            "delta": {"type": "text_delta", "text": format!("word{delta} ")}}));
    }
    push(json!({"type": "content_block_stop", "index": 0}));
    push(
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": deltas}}),
    );
    push(json!({"type": "message_stop"}));
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}
