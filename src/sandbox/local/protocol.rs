//! What host and agent say to each other over their one socket.
//!
//! A frame is `u32 length of the payload, big endian · u8 kind · u32 id, big endian · payload`. The id
//! belongs to one operation; the host chooses it. Both sides refuse a payload above [`MAX_PAYLOAD`].
//!
//! Streams of a command are paid for by credit, counted in frames of at most [`CHUNK`] bytes: the agent
//! may have [`OUTPUT_CREDIT`] frames of output under way, the host [`INPUT_CREDIT`] frames of input. What
//! can't be sent stays in the command's pipe, which slows the command and costs nobody memory.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The largest payload of a frame.
pub(super) const MAX_PAYLOAD: usize = 1 << 20;
/// The most bytes of a stream in one frame.
pub(super) const CHUNK: usize = 32 * 1024;
/// Frames of output that may be under way, for each command.
pub(super) const OUTPUT_CREDIT: u32 = 16;
/// Frames of input that may be under way, for each command.
pub(super) const INPUT_CREDIT: u32 = 8;
/// Operations that may be open at a time.
pub(super) const MAX_OPEN: usize = 64;
/// What [`Hello`] carries: both sides are one program, but a host may outlive its file on disk.
pub(super) const VERSION: u32 = 3;

const HEAD: usize = 9;

/// What a frame means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Host: run a command ([`Exec`]).
    Exec = 1,
    /// Host: bytes for a command's input.
    Stdin = 2,
    /// Host: the end of a command's input.
    StdinEnd = 3,
    /// Host: kill a command with all that belongs to it.
    Kill = 4,
    /// Host: so many (`u32`) more frames of output may be sent.
    OutputCredit = 5,
    /// Host: read a file ([`Read`]).
    Read = 6,
    /// Host: write a file ([`Write`]); [`Self::Data`] and [`Self::DataEnd`] follow.
    Write = 7,
    /// Both: bytes of a file.
    Data = 8,
    /// Both: the file's end.
    DataEnd = 9,
    /// Host: end every process but the agent.
    EndAll = 10,

    /// Agent, once: ready ([`Hello`]).
    Hello = 32,
    /// Launcher or agent, instead of [`Self::Hello`]: could not be made ([`Failed`]).
    Failed = 33,
    /// Agent: the command runs.
    Started = 34,
    /// Agent: bytes of its standard output.
    Stdout = 35,
    /// Agent: bytes of its standard error.
    Stderr = 36,
    /// Agent: it ended (`i32`, with 128 + signal for a death by signal).
    Exit = 37,
    /// Agent: so many (`u32`) more frames of input may be sent.
    InputCredit = 38,
    /// Agent: the file is written.
    Done = 39,
    /// Agent: the operation failed ([`Fault`]).
    Fault = 40,
    /// Agent, with id 0: memory is used up, everything is being ended (a text).
    OutOfMemory = 41,
    /// Agent: so many (`u32`) processes were ended, and are gone.
    Ended = 42,
}

impl Kind {
    const ALL: [Self; 21] = [
        Self::Exec,
        Self::Stdin,
        Self::StdinEnd,
        Self::Kill,
        Self::OutputCredit,
        Self::Read,
        Self::Write,
        Self::Data,
        Self::DataEnd,
        Self::EndAll,
        Self::Hello,
        Self::Failed,
        Self::Started,
        Self::Stdout,
        Self::Stderr,
        Self::Exit,
        Self::InputCredit,
        Self::Done,
        Self::Fault,
        Self::OutOfMemory,
        Self::Ended,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The payload of [`Kind::Exec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exec {
    /// Program and arguments.
    pub(super) argv: Vec<String>,
    /// The whole environment, as `NAME=value`.
    pub(super) env: Vec<String>,
    /// Absolute.
    pub(super) cwd: String,
    /// Whether input follows; otherwise there is none.
    pub(super) stdin: bool,
}

/// The payload of [`Kind::Read`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Read {
    /// Absolute.
    pub(super) path: String,
    /// A longer file is a [`Fault::TooLarge`].
    pub(super) limit: u64,
}

/// The payload of [`Kind::Write`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Write {
    /// Absolute.
    pub(super) path: String,
}

/// The payload of [`Kind::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// [`VERSION`].
    pub(super) version: u32,
    /// What Landlock adds here: `enforced`, `partial` or `absent`.
    pub(super) landlock: String,
}

/// The payload of [`Kind::Failed`]: a step of the making, and why it failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failed {
    /// Which step.
    pub(super) step: Step,
    /// The error number, 0 if there is none.
    pub(super) errno: i32,
    /// What it was about, e.g. a path; may be empty.
    pub(super) about: String,
}

/// A failed step with what it was about.
pub(super) trait At<T> {
    fn at(self, step: Step, about: &str) -> Result<T, Failed>;
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, step: Step, about: &str) -> Result<T, Failed> {
        self.map_err(|errno| Failed {
            step,
            errno: errno as i32,
            about: about.to_owned(),
        })
    }
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, step: Step, about: &str) -> Result<T, Failed> {
        self.map_err(|error| Failed {
            step,
            errno: error.raw_os_error().unwrap_or(0),
            about: about.to_owned(),
        })
    }
}

/// The steps of making a sandbox that can fail for a reason worth telling apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Step {
    /// Closing descriptors, leaving the session: never fails on a supported kernel.
    Prepare,
    /// Becoming the unprivileged user of the host.
    BecomeUser,
    /// The new namespaces.
    Unshare,
    /// The maps of user and group ids.
    IdMap,
    /// Starting the sandbox's first process.
    Fork,
    /// Mounts other than the following.
    Mount,
    /// Read-only attributes of mounts.
    MountAttributes,
    /// The new `/proc`.
    MountProc,
    /// A directory of `readOnlyPaths`.
    ReadOnlyPath,
    /// Making the new tree the root.
    PivotRoot,
    /// The loopback interface.
    Loopback,
    /// Giving up capabilities.
    Capabilities,
    /// Resource limits.
    Limits,
    /// Landlock.
    Landlock,
    /// The system call filters.
    Seccomp,
    /// The agent's own descriptors.
    Agent,
}

/// The payload of [`Kind::Fault`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Fault {
    /// A system call failed with this number.
    Errno(i32),
    /// The program was not found in `PATH`, or isn't there.
    NoProgram,
    /// The working directory can't be entered, for this reason.
    Cwd(i32),
    /// Not a regular file.
    NotRegular,
    /// Longer than the limit.
    TooLarge,
}

/// One message.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) id: u32,
    pub(super) payload: Bytes,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {} ({} bytes)",
            self.kind,
            self.id,
            self.payload.len()
        )
    }
}

impl Frame {
    /// The payload as a number.
    pub(super) fn number(&self) -> Result<u32, Violation> {
        let bytes = <[u8; 4]>::try_from(self.payload.as_ref())
            .map_err(|_| Violation::Payload(self.kind))?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// The payload as JSON.
    pub(super) fn json<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Violation> {
        serde_json::from_slice(&self.payload).map_err(|_| Violation::Payload(self.kind))
    }
}

/// Appends a frame to `out`.
///
/// `payload` must not be longer than [`MAX_PAYLOAD`]: every caller cuts or checks before.
pub(super) fn put(out: &mut BytesMut, kind: Kind, id: u32, payload: &[u8]) {
    debug_assert!(
        payload.len() <= MAX_PAYLOAD,
        "a frame is cut before it is sent"
    );
    out.reserve(HEAD + payload.len());
    out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.put_u8(kind as u8);
    out.put_u32(id);
    out.put_slice(payload);
}

/// A frame of its own.
pub(super) fn frame(kind: Kind, id: u32, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put(&mut out, kind, id, payload);
    out.freeze()
}

/// `value` as JSON. These types always have a form; an empty payload would be refused by the other side.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// How the other side broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("a frame of {0} bytes (max {MAX_PAYLOAD})")]
    Length(u32),
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    #[error("a frame {0:?} out of place")]
    OutOfPlace(Kind),
    #[error("a frame {0:?} whose content can't be read")]
    Payload(Kind),
    #[error("a frame for an operation that isn't open ({0})")]
    UnknownId(u32),
    #[error("more frames than were paid for")]
    NoCredit,
    #[error("more bytes than were asked for")]
    TooMuch,
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Where received bytes are appended.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame; `None` until more bytes come. Never holds more than one frame's worth plus
    /// what was appended since.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Violation> {
        let Some(head) = self.buffer.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let mut head = head.as_slice();
        let length = head.get_u32();
        let kind = head.get_u8();
        let id = head.get_u32();
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if size > MAX_PAYLOAD {
            return Err(Violation::Length(length));
        }
        let kind = Kind::from_byte(kind).ok_or(Violation::UnknownKind(kind))?;
        if self.buffer.len() < HEAD + size {
            self.buffer.reserve(HEAD + size - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        let payload = self.buffer.split_to(size).freeze();
        Ok(Some(Frame { kind, id, payload }))
    }
}

/// What `bytes`, taken in pieces of `piece` bytes, say, for [`crate::fuzz`].
pub(crate) fn fuzz_link(bytes: &[u8], piece: usize) -> Vec<String> {
    let mut decoder = Decoder::default();
    let mut said = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => {
                    let read = [
                        frame.number().is_ok(),
                        frame.json::<Hello>().is_ok(),
                        frame.json::<Failed>().is_ok(),
                        frame.json::<Fault>().is_ok(),
                        frame.json::<Exec>().is_ok(),
                        frame.json::<Read>().is_ok(),
                        frame.json::<Write>().is_ok(),
                    ];
                    said.push(format!("{frame:?} {read:?}"));
                }
                Ok(None) => break,
                Err(violation) => {
                    said.push(violation.to_string());
                    return said;
                }
            }
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, Violation> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for chunk in bytes.chunks(piece.max(1)) {
            decoder.buffer().extend_from_slice(chunk);
            while let Some(frame) = decoder.next()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_survive_any_cut() {
        let mut wire = BytesMut::new();
        put(&mut wire, Kind::Stdout, 7, b"hello");
        put(&mut wire, Kind::Exit, 7, &3_u32.to_be_bytes());
        put(&mut wire, Kind::DataEnd, 9, b"");
        for piece in 1..=wire.len() {
            let frames = decode_all(&wire, piece).unwrap();
            assert_eq!(frames.len(), 3);
            assert_eq!(frames[0].payload.as_ref(), b"hello");
            assert_eq!(frames[1].number(), Ok(3));
            assert_eq!((frames[2].kind, frames[2].id), (Kind::DataEnd, 9));
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_anything_is_stored() {
        let wire = [0xff, 0xff, 0xff, 0xff, Kind::Data as u8, 0, 0, 0, 1];
        assert_eq!(decode_all(&wire, 4), Err(Violation::Length(u32::MAX)));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        assert_eq!(
            decode_all(&[0, 0, 0, 0, 99, 0, 0, 0, 1], 9),
            Err(Violation::UnknownKind(99))
        );
    }

    proptest::proptest! {
        #[test]
        fn the_decoder_never_panics_and_its_result_does_not_depend_on_the_cut(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            piece in 1_usize..50,
        ) {
            proptest::prop_assert_eq!(decode_all(&bytes, piece), decode_all(&bytes, 1));
        }
    }
}
