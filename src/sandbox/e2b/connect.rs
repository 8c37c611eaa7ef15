//! Connect's streaming envelopes, and the process events that travel in them: pure, no I/O.
//!
//! An envelope is one byte of flags, four bytes of length (big endian) and that many bytes of JSON. The
//! borders of envelopes have nothing to do with those of HTTP chunks, so the decoder takes bytes however
//! they come.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::{Buf as _, Bytes, BytesMut};
use serde::Deserialize;

use super::errors::RpcError;

/// The longest envelope that is accepted (envd's own stay below 44 KiB).
pub(super) const MAX_FRAME: usize = 1024 * 1024;

const HEADER: usize = 5;
const COMPRESSED: u8 = 0x01;
const END_OF_STREAM: u8 = 0x02;

/// One envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A message.
    Message(Bytes),
    /// The end of the stream, with its trailer.
    End(Bytes),
}

/// Bytes that are no stream of envelopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// Longer than [`MAX_FRAME`].
    #[error("a frame of {0} bytes (limit {MAX_FRAME})")]
    TooLong(usize),
    /// Compressed, though only `identity` was accepted.
    #[error("a compressed frame that was not asked for")]
    Compressed,
}

/// Puts envelopes together from bytes cut anywhere. Holds at most one envelope and the rest of a chunk.
#[derive(Debug, Default)]
pub(super) struct FrameDecoder {
    held: BytesMut,
}

impl FrameDecoder {
    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole envelope, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((&[flags, a, b, c, d], _)) = self.held.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if flags & COMPRESSED != 0 {
            return Err(FrameError::Compressed);
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        if self.held.len() < HEADER + length {
            return Ok(None);
        }
        self.held.advance(HEADER);
        let payload = self.held.split_to(length).freeze();
        Ok(Some(if flags & END_OF_STREAM == 0 {
            Frame::Message(payload)
        } else {
            Frame::End(payload)
        }))
    }

    /// Whether the bytes so far stop inside an envelope.
    pub(super) fn is_inside_frame(&self) -> bool {
        !self.held.is_empty()
    }
}

/// `json` as one message envelope.
pub(super) fn encode(json: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(HEADER + json.len());
    out.push(0);
    out.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(json);
    out.into()
}

/// What a process stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The command runs, with this pid.
    Started(u32),
    /// Bytes of its standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// It ended, with this exit code (`128 + signal` when a signal ended it).
    Exited(i32),
    /// A sign of life, or something that this version doesn't know.
    Other,
}

/// Reads the JSON of a message of `Start` or `Connect`.
///
/// # Errors
/// Says what can't be read; clean it before it is shown.
pub(super) fn event(json: &[u8]) -> Result<Event, String> {
    let message: Message<'_> =
        serde_json::from_slice(json).map_err(|error| format!("unreadable JSON: {error}"))?;
    let Some(event) = message.event else {
        return Ok(Event::Other);
    };
    if let Some(start) = event.start {
        return Ok(Event::Started(start.pid));
    }
    if let Some(data) = event.data {
        if let Some(text) = data.stdout.or(data.pty) {
            return bytes(&text).map(Event::Stdout);
        }
        if let Some(text) = data.stderr {
            return bytes(&text).map(Event::Stderr);
        }
    }
    Ok(event
        .end
        .map_or(Event::Other, |end| Event::Exited(end.code())))
}

/// The error in an end-of-stream envelope, if it holds one.
///
/// # Errors
/// Says what can't be read; clean it before it is shown.
pub(super) fn trailer(json: &[u8]) -> Result<Option<RpcError>, String> {
    let trailer: Trailer =
        serde_json::from_slice(json).map_err(|error| format!("unreadable JSON: {error}"))?;
    Ok(trailer.error)
}

/// What `bytes`, taken in pieces of `piece` bytes, say, for [`crate::fuzz`].
pub(crate) fn fuzz_connect(bytes: &[u8], piece: usize) -> Vec<String> {
    let mut decoder = FrameDecoder::default();
    let mut said = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            said.push(match decoder.next() {
                Ok(Some(Frame::Message(json))) => format!("{:?}", event(&json)),
                Ok(Some(Frame::End(json))) => format!("{:?}", trailer(&json)),
                Ok(None) => break,
                Err(error) => {
                    said.push(error.to_string());
                    return said;
                }
            });
        }
    }
    said
}

#[derive(Deserialize)]
struct Trailer {
    #[serde(default)]
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    event: Option<WireEvent<'a>>,
}

#[derive(Deserialize)]
struct WireEvent<'a> {
    #[serde(default)]
    start: Option<WireStart>,
    #[serde(borrow, default)]
    data: Option<WireData<'a>>,
    #[serde(borrow, default)]
    end: Option<WireEnd<'a>>,
}

#[derive(Deserialize)]
struct WireStart {
    #[serde(default)]
    pid: u32,
}

#[derive(Deserialize)]
struct WireData<'a> {
    #[serde(borrow, default)]
    stdout: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    stderr: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pty: Option<Cow<'a, str>>,
}

/// Zero values are left out on the wire, so every field has a default.
#[derive(Deserialize)]
struct WireEnd<'a> {
    #[serde(rename = "exitCode", default)]
    exit_code: i32,
    #[serde(default)]
    exited: bool,
    #[serde(borrow, default)]
    status: Cow<'a, str>,
    #[serde(borrow, default)]
    error: Cow<'a, str>,
}

impl WireEnd<'_> {
    fn code(&self) -> i32 {
        if self.exited || self.exit_code > 0 {
            return self.exit_code;
        }
        let signal = signal_number(&self.status).or_else(|| signal_number(&self.error));
        match signal {
            Some(number) => 128 + number,
            None if self.exit_code == 0 && !self.status.starts_with("signal") => 0,
            None => 128,
        }
    }
}

/// Linux signals from 1, in the words of Go's `syscall.Signal`, which envd reports.
const SIGNALS: [&str; 31] = [
    "hangup",
    "interrupt",
    "quit",
    "illegal instruction",
    "trace/breakpoint trap",
    "aborted",
    "bus error",
    "floating point exception",
    "killed",
    "user defined signal 1",
    "segmentation fault",
    "user defined signal 2",
    "broken pipe",
    "alarm clock",
    "terminated",
    "stack fault",
    "child exited",
    "continued",
    "stopped (signal)",
    "stopped",
    "stopped (tty input)",
    "stopped (tty output)",
    "urgent I/O condition",
    "CPU time limit exceeded",
    "file size limit exceeded",
    "virtual timer expired",
    "profiling timer expired",
    "window changed",
    "I/O possible",
    "power failure",
    "bad system call",
];

/// `signal: killed` and `signal: signal 34` as numbers.
fn signal_number(status: &str) -> Option<i32> {
    let name = status
        .trim()
        .trim_end_matches(" (core dumped)")
        .strip_prefix("signal: ")?;
    if let Some(number) = name.strip_prefix("signal ") {
        return number
            .parse()
            .ok()
            .filter(|number| (1..=64).contains(number));
    }
    SIGNALS
        .iter()
        .position(|known| *known == name)
        .and_then(|at| i32::try_from(at + 1).ok())
}

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Base64 of either alphabet, padded or not.
fn bytes(text: &str) -> Result<Bytes, String> {
    STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE.decode(text))
        .map(Bytes::from)
        .map_err(|error| format!("unreadable base64: {error}"))
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
