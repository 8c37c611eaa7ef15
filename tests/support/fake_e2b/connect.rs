//! Connect RPC over HTTP with the JSON codec: envelopes, errors, and the stream that carries them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode, header};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::faults::{Ending, StreamFault, breakage};

/// The flag of the frame that ends a stream.
pub const END_STREAM: u8 = 0x02;

/// The content type of a stream.
pub(super) const STREAM_TYPE: &str = "application/connect+json";

/// A Connect error: one of the protocol's codes, and a message.
#[derive(Debug)]
pub(super) struct ConnectError {
    pub code: &'static str,
    pub message: String,
    /// Set where no correct client would have sent the request.
    pub refused: bool,
}

impl ConnectError {
    /// An error that a correct client can meet.
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            refused: false,
        }
    }

    /// An error for a request that should not have been sent.
    pub(super) fn refusal(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            refused: true,
        }
    }

    /// The HTTP status of a unary answer.
    pub(super) fn status(&self) -> StatusCode {
        let status = match self.code {
            "canceled" => 499,
            "invalid_argument" | "failed_precondition" | "out_of_range" => 400,
            "deadline_exceeded" => 504,
            "not_found" => 404,
            "already_exists" | "aborted" => 409,
            "permission_denied" => 403,
            "resource_exhausted" => 429,
            "unimplemented" => 501,
            "unavailable" => 503,
            "unauthenticated" => 401,
            _ => 500,
        };
        StatusCode::from_u16(status).unwrap()
    }

    /// `{"code","message"}`.
    pub(super) fn json(&self) -> Value {
        json!({"code": self.code, "message": self.message})
    }

    /// The whole body of a stream that failed before its first message.
    pub(super) fn stream(&self) -> Response<Body> {
        stream_response(Body::from(end_frame(&json!({"error": self.json()}))))
    }
}

/// One envelope: flags, length, bytes.
pub fn frame(flags: u8, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(payload.len() + 5);
    out.push(flags);
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    out.extend_from_slice(payload);
    out.into()
}

/// An envelope with a message.
pub fn message_frame(message: &Value) -> Bytes {
    frame(0, message.to_string().as_bytes())
}

/// The envelope that ends a stream.
pub fn end_frame(message: &Value) -> Bytes {
    frame(END_STREAM, message.to_string().as_bytes())
}

pub(super) fn stream_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, STREAM_TYPE.parse().unwrap());
    response
}

/// Takes complete envelopes off the front of `buffer`.
pub(super) fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<(u8, Vec<u8>)>, ConnectError> {
    const LONGEST: usize = 16 << 20;
    let Some((head, rest)) = buffer.split_at_checked(5) else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > LONGEST {
        return Err(ConnectError::refusal(
            "resource_exhausted",
            format!("message size {length} is larger than configured max {LONGEST}"),
        ));
    }
    let flags = head[0];
    if flags & 1 != 0 {
        return Err(ConnectError::refusal(
            "internal",
            "protocol error: sent compressed message without compression support",
        ));
    }
    if rest.len() < length {
        return Ok(None);
    }
    let payload = rest[..length].to_vec();
    buffer.drain(..5 + length);
    Ok(Some((flags, payload)))
}

/// The one message of a server stream's request.
pub(super) fn only_message(headers: &HeaderMap, body: &[u8]) -> Result<Value, ConnectError> {
    let mut buffer = body.to_vec();
    timeout_ms(headers)?;
    match take_frame(&mut buffer)? {
        Some((0, payload)) if buffer.is_empty() => parse(&payload),
        _ => Err(ConnectError::refusal(
            "invalid_argument",
            "protocol error: a request of a server stream is exactly one envelope",
        )),
    }
}

/// A message's JSON.
pub(super) fn parse(payload: &[u8]) -> Result<Value, ConnectError> {
    match serde_json::from_slice(payload) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(other) => Err(ConnectError::refusal(
            "invalid_argument",
            format!("unmarshal message: unexpected token {other}"),
        )),
        Err(error) => Err(ConnectError::refusal(
            "invalid_argument",
            format!("unmarshal message: {error}"),
        )),
    }
}

/// `Connect-Timeout-Ms`, if there is one.
pub(super) fn timeout_ms(headers: &HeaderMap) -> Result<Option<u64>, ConnectError> {
    let Some(raw) = headers.get("connect-timeout-ms") else {
        return Ok(None);
    };
    let text = raw.to_str().unwrap_or("?");
    let digits = !text.is_empty() && text.len() <= 10 && text.bytes().all(|b| b.is_ascii_digit());
    if !digits {
        return Err(ConnectError::refusal(
            "invalid_argument",
            format!("protocol error: invalid timeout \"{text}\""),
        ));
    }
    Ok(text.parse().ok())
}

/// What a frame holds, for faults that depend on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Start,
    Data,
    Keepalive,
    Exit,
    Finish,
}

/// The stream was closed, by the reader or by a fault: nothing more can be sent.
#[derive(Debug)]
pub(super) struct Closed;

/// Writes the frames of one stream, playing the fault that it was given.
pub(super) struct FrameSink {
    tx: mpsc::Sender<Bytes>,
    abort: Arc<AtomicBool>,
    fault: Option<StreamFault>,
    frames: usize,
    broken: CancellationToken,
}

/// A sink and the body that its frames become. `broken` cuts the connection.
pub(super) fn channel(fault: Option<StreamFault>, broken: CancellationToken) -> (FrameSink, Body) {
    // Few frames wait here; beyond them the reader's pace holds up the command, as at E2B.
    let (tx, rx) = mpsc::channel(4);
    let abort = Arc::new(AtomicBool::new(false));
    let flag = abort.clone();
    let stream = futures::stream::unfold((rx, false), move |(mut rx, over)| {
        let flag = flag.clone();
        async move {
            if over {
                return None;
            }
            match rx.recv().await {
                Some(bytes) => Some((Ok(bytes), (rx, false))),
                None if flag.load(Ordering::Acquire) => Some((breakage().await, (rx, true))),
                None => None,
            }
        }
    });
    let sink = FrameSink {
        tx,
        abort,
        fault,
        frames: 0,
        broken,
    };
    (sink, Body::from_stream(stream))
}

impl FrameSink {
    /// Resolves once the reader has gone.
    pub(super) async fn reader_left(&self) {
        self.tx.closed().await;
    }

    /// Breaks the connection: no end frame, no end of the HTTP body.
    pub(super) fn reset(self) {
        self.abort.store(true, Ordering::Release);
    }

    async fn raw(&self, bytes: Bytes) -> Result<(), Closed> {
        tokio::select! {
            biased;
            () = self.broken.cancelled() => {
                self.abort.store(true, Ordering::Release);
                Err(Closed)
            }
            sent = self.tx.send(bytes) => sent.map_err(|_| Closed),
        }
    }

    fn end(&self, ending: Ending) -> Result<(), Closed> {
        if ending == Ending::Reset {
            self.abort.store(true, Ordering::Release);
        }
        Err(Closed)
    }

    /// Waits for the reader to leave or the sandbox to die.
    async fn stall(&self) -> Result<(), Closed> {
        tokio::select! {
            () = self.broken.cancelled() => self.abort.store(true, Ordering::Release),
            () = self.tx.closed() => {}
        }
        Err(Closed)
    }

    /// Sends a frame, or does what the fault says in its place.
    ///
    /// # Errors
    /// [`Closed`] when nothing more may follow.
    pub(super) async fn send(&mut self, part: Part, bytes: Bytes) -> Result<(), Closed> {
        if self.frames == 0 {
            self.between_frames().await?;
        }
        self.in_frame(part, bytes).await?;
        self.frames += 1;
        self.between_frames().await
    }

    /// Faults that strike once so many frames were sent, whether or not another would follow.
    async fn between_frames(&mut self) -> Result<(), Closed> {
        match self.fault.clone() {
            Some(StreamFault::EndAfter { after, ending }) if self.frames == after => {
                self.end(ending)
            }
            Some(StreamFault::EndFrame { after, message }) if self.frames == after => {
                self.raw(end_frame(&message)).await?;
                self.end(Ending::Clean)
            }
            Some(StreamFault::Stall { after }) if self.frames == after => self.stall().await,
            Some(StreamFault::KeepalivesOnly { after, every }) if self.frames == after => loop {
                let ping = message_frame(&json!({"event": {"keepalive": {}}}));
                self.raw(ping).await?;
                tokio::time::sleep(every).await;
            },
            Some(StreamFault::Insert { after, bytes }) if self.frames == after => {
                self.raw(bytes).await
            }
            _ => Ok(()),
        }
    }

    async fn in_frame(&mut self, part: Part, bytes: Bytes) -> Result<(), Closed> {
        match self.fault.clone() {
            Some(StreamFault::CutInFrame { after, ending }) if self.frames == after => {
                self.raw(bytes.slice(..bytes.len() / 2)).await?;
                self.end(ending)
            }
            Some(StreamFault::NoEndFrame) if part == Part::Finish => self.end(Ending::Clean),
            Some(StreamFault::Trickle { bytes: size, every }) => {
                let size = size.max(1);
                for at in (0..bytes.len()).step_by(size) {
                    let piece = bytes.slice(at..bytes.len().min(at + size));
                    self.raw(piece).await?;
                    tokio::time::sleep(every).await;
                }
                Ok(())
            }
            Some(StreamFault::NoStart) if part == Part::Start => Ok(()),
            Some(StreamFault::NoExit) if part == Part::Exit => Ok(()),
            Some(StreamFault::DoubleEnd) if part == Part::Finish => {
                self.raw(bytes.clone()).await?;
                self.raw(bytes).await
            }
            Some(StreamFault::ErrorAfterExit { code, message }) if part == Part::Finish => {
                let error = json!({"error": {"code": code, "message": message}});
                self.raw(end_frame(&error)).await
            }
            _ => self.raw(bytes).await,
        }
    }

    /// Ends the stream well, or with an error.
    pub(super) async fn finish(mut self, error: Option<&ConnectError>) {
        let message = error.map_or_else(|| json!({}), |error| json!({"error": error.json()}));
        // The reader may be gone or the fault may have closed the stream: either way it has ended.
        self.send(Part::Finish, end_frame(&message)).await.ok();
    }
}
