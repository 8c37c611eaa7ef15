//! What a command says, as its daemon sends it: one stream, until it ends or breaks.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, Response};
use serde_json::Value;

use super::connect::{Event, Frame, FrameDecoder, encode, event, trailer};
use super::envd::Envd;
use super::errors::{Fault, RpcError, succeed, transport, unreadable};
use crate::clock::Deadline;
use crate::sandbox::types::SandboxError;
use crate::secrets::Redactor;

const STREAM_TYPE: &str = "application/connect+json";
/// envd sends a sign of life after so many seconds of silence: at least two within [`super::timing::Timing::idle`].
const KEEPALIVE_SECS: &str = "20";
/// How long the rest of a finished stream is waited for, so that its connection can be used again.
const TAIL: Duration = Duration::from_secs(1);

/// Why a stream gives no more events.
#[derive(Debug)]
pub(super) enum Broken {
    /// It could not be opened, or its connection broke.
    Fault(Fault),
    /// envd or the edge ended it with an error.
    Error(RpcError),
    /// It ended without saying how the command ended; how.
    Cut(String),
    /// Nothing came for too long.
    Silent,
    /// It breaks the protocol.
    Protocol(String),
}

impl Broken {
    pub(super) fn cause(&self) -> String {
        match self {
            Self::Fault(fault) => fault.cause(),
            Self::Error(error) => format!("{:?}", error.code),
            Self::Cut(cause) | Self::Protocol(cause) => cause.clone(),
            Self::Silent => "nothing was heard for too long".to_owned(),
        }
    }
}

/// The events of a `Start` or `Connect`.
pub(super) struct EventStream {
    response: Response,
    decoder: FrameDecoder,
    /// Events to give before any other.
    unread: VecDeque<Event>,
    /// Output before this stream was lost.
    pub(super) gap: bool,
    /// For the texts of errors.
    redactor: Redactor,
}

impl EventStream {
    /// Sends the request and waits for the head of its answer.
    pub(super) async fn open(
        envd: &Envd,
        method: &str,
        message: &Value,
        until: Deadline,
    ) -> Result<Self, Fault> {
        let request = envd
            .request(Method::POST, &format!("/{method}"))
            .header("Connect-Protocol-Version", "1")
            .header("Connect-Accept-Encoding", "identity")
            .header("Keepalive-Ping-Interval", KEEPALIVE_SECS)
            .header(CONTENT_TYPE, STREAM_TYPE)
            .header(ACCEPT, STREAM_TYPE)
            .body(encode(message.to_string().as_bytes()));
        let response = succeed(request, until, &envd.redactor).await?;
        let is_stream = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.starts_with(STREAM_TYPE));
        if !is_stream {
            return Err(Fault::Protocol("an answer that is no stream".to_owned()));
        }
        Ok(Self {
            response,
            decoder: FrameDecoder::default(),
            unread: VecDeque::new(),
            gap: false,
            redactor: envd.redactor.clone(),
        })
    }

    /// Gives `event` back, to come first again.
    pub(super) fn unread(&mut self, event: Event) {
        self.unread.push_front(event);
    }

    /// Notes that output before this stream was lost.
    pub(super) fn mark_gap(&mut self) {
        self.gap = true;
    }

    /// The next event. A whole frame must come within `silence`: a trickle of bytes is no sign of life.
    ///
    /// Dropping the future may lose bytes: the stream is of no use then.
    pub(super) async fn next(&mut self, silence: Duration) -> Result<Event, Broken> {
        if let Some(event) = self.unread.pop_front() {
            return Ok(event);
        }
        tokio::time::timeout(silence, self.read())
            .await
            .unwrap_or(Err(Broken::Silent))
    }

    async fn read(&mut self) -> Result<Event, Broken> {
        loop {
            match self.decoder.next() {
                Ok(None) => {}
                Ok(Some(Frame::Message(json))) => {
                    return event(&json).map_err(|cause| self.unreadable(&cause, &json));
                }
                Ok(Some(Frame::End(json))) => {
                    return match trailer(&json) {
                        Ok(Some(error)) => Err(Broken::Error(error)),
                        Ok(None) => Err(Broken::Cut("it ended without an exit code".to_owned())),
                        Err(cause) => Err(self.unreadable(&cause, &json)),
                    };
                }
                Err(error) => return Err(Broken::Protocol(error.to_string())),
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.decoder.push(&chunk),
                Ok(None) if self.decoder.is_inside_frame() => {
                    return Err(Broken::Cut("it was cut inside a frame".to_owned()));
                }
                Ok(None) => return Err(Broken::Cut("it ended without an end".to_owned())),
                Err(error) => return Err(Broken::Fault(transport(&error))),
            }
        }
    }

    fn unreadable(&self, cause: &str, json: &Bytes) -> Broken {
        Broken::Protocol(unreadable(cause, json, &self.redactor))
    }

    /// Reads what follows the command's end, so that the connection goes back to the pool.
    pub(super) async fn finish(mut self, envd: &Envd) {
        let rest = async {
            loop {
                match self.read().await {
                    Ok(_) => {}
                    Err(Broken::Error(error)) => {
                        // The exit code is known; nothing is lost.
                        tracing::debug!(
                            sandbox.id = %envd.id(), code = ?error.code,
                            "a command's stream ended with an error after its exit"
                        );
                        break;
                    }
                    Err(_) => break,
                }
            }
            while let Ok(Some(_)) = self.response.chunk().await {}
        };
        drop(tokio::time::timeout(TAIL, rest).await);
    }
}

/// The error of a stream that breaks the protocol.
pub(super) fn protocol(cause: &str) -> SandboxError {
    SandboxError::Backend(format!(
        "the sandbox's stream could not be understood: {cause}"
    ))
}
