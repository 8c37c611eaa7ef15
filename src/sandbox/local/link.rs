//! The host's end of one agent's socket.
//!
//! What comes from the agent is hostile input: lengths and counts are bounded, a frame must fit an
//! operation that the host opened, and the first one that doesn't ends the sandbox. The reader never
//! waits for a consumer: credit guarantees that there is room for whatever may come, so a slow consumer
//! holds up its own command only.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::protocol::{
    Decoder, Fault, Frame, INPUT_CREDIT, Kind, MAX_OPEN, OUTPUT_CREDIT, Violation, frame,
};
use crate::sandbox::types::SandboxError;

/// Room for all that an agent may send of a command before the host has taken any of it: its output and
/// returned credit, each frame paid for, and the two ends.
const EVENTS: usize = (OUTPUT_CREDIT + INPUT_CREDIT) as usize + 4;

/// How much is read from the socket at a time.
const READ_ROOM: usize = 64 * 1024;

/// What an operation's owner is told.
#[derive(Debug)]
pub(super) enum Event {
    Started,
    Stdout(Bytes),
    Stderr(Bytes),
    Exit(i32),
    InputCredit(u32),
    Fault(Fault),
}

enum Operation {
    Exec(mpsc::Sender<Event>),
    Read {
        content: Vec<u8>,
        limit: usize,
        done: oneshot::Sender<Result<Bytes, Fault>>,
    },
    Write(oneshot::Sender<Result<(), Fault>>),
    EndAll(oneshot::Sender<u32>),
}

struct Open {
    operation: Operation,
    /// Given back when the operation is closed.
    _slot: OwnedSemaphorePermit,
}

/// Shared by the sandbox's handle, its operations and the task that runs it.
pub(super) struct Link {
    outgoing: mpsc::Sender<Bytes>,
    open: Mutex<HashMap<u32, Open>>,
    next_id: Mutex<u32>,
    slots: Arc<Semaphore>,
    fate: watch::Sender<Option<SandboxError>>,
}

impl Link {
    /// A link, and the queue of what is to be sent.
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        // Senders wait when it is full: the agent always reads, so that is short.
        let (outgoing, queue) = mpsc::channel(64);
        let link = Self {
            outgoing,
            open: Mutex::new(HashMap::new()),
            next_id: Mutex::new(0),
            slots: Arc::new(Semaphore::new(MAX_OPEN)),
            fate: watch::Sender::new(None),
        };
        (Arc::new(link), queue)
    }

    /// Why the sandbox is gone; `Gone` without a reason if that isn't known yet.
    pub(super) fn fate(&self) -> SandboxError {
        self.fate
            .borrow()
            .clone()
            .unwrap_or_else(|| SandboxError::Gone("its connection is closed".to_owned()))
    }

    /// Returns once the sandbox is gone.
    pub(super) async fn gone(&self) -> SandboxError {
        let mut fate = self.fate.subscribe();
        match fate.wait_for(Option::is_some).await {
            Ok(fate) => fate.clone().unwrap_or_else(|| self.fate()),
            Err(_) => self.fate(),
        }
    }

    /// Sets the sandbox's fate, unless it has one.
    pub(super) fn doom(&self, why: SandboxError) {
        self.fate.send_if_modified(|fate| {
            let first = fate.is_none();
            if first {
                *fate = Some(why);
            }
            first
        });
    }

    /// Whether the sandbox has met its fate.
    pub(super) fn is_doomed(&self) -> bool {
        self.fate.borrow().is_some()
    }

    /// Fails every open operation, and every later one. The fate must be set.
    pub(super) fn close(&self) {
        self.slots.close();
        // Dropped outside the lock: each wakes its owner.
        let open = std::mem::take(&mut *self.open.lock());
        drop(open);
    }

    /// Queues a frame. Waits while the queue is full.
    pub(super) async fn send(
        &self,
        kind: Kind,
        id: u32,
        payload: &[u8],
    ) -> Result<(), SandboxError> {
        let frame = frame(kind, id, payload);
        self.outgoing.send(frame).await.map_err(|_| self.fate())
    }

    async fn open(&self, operation: Operation) -> Result<u32, SandboxError> {
        let slot = Arc::clone(&self.slots)
            .acquire_owned()
            .await
            .map_err(|_| self.fate())?;
        let mut open = self.open.lock();
        // The loop ends: at most `MAX_OPEN` numbers are taken.
        let id = loop {
            let mut next = self.next_id.lock();
            *next = next.wrapping_add(1);
            if *next != 0 && !open.contains_key(&*next) {
                break *next;
            }
        };
        open.insert(
            id,
            Open {
                operation,
                _slot: slot,
            },
        );
        drop(open);
        // `close` may have run between the slot and the entry.
        if self.slots.is_closed() {
            self.open.lock().remove(&id);
            return Err(self.fate());
        }
        Ok(id)
    }

    /// Opens a command's operation.
    pub(super) async fn open_exec(&self) -> Result<(u32, mpsc::Receiver<Event>), SandboxError> {
        let (events, queue) = mpsc::channel(EVENTS);
        Ok((self.open(Operation::Exec(events)).await?, queue))
    }

    /// Opens a read of at most `limit` bytes.
    pub(super) async fn open_read(
        &self,
        limit: usize,
    ) -> Result<(u32, oneshot::Receiver<Result<Bytes, Fault>>), SandboxError> {
        let (done, result) = oneshot::channel();
        let read = Operation::Read {
            content: Vec::new(),
            limit,
            done,
        };
        Ok((self.open(read).await?, result))
    }

    /// Opens a write.
    pub(super) async fn open_write(
        &self,
    ) -> Result<(u32, oneshot::Receiver<Result<(), Fault>>), SandboxError> {
        let (done, result) = oneshot::channel();
        Ok((self.open(Operation::Write(done)).await?, result))
    }

    /// Opens the end of all processes.
    pub(super) async fn open_end_all(&self) -> Result<(u32, oneshot::Receiver<u32>), SandboxError> {
        let (done, result) = oneshot::channel();
        Ok((self.open(Operation::EndAll(done)).await?, result))
    }

    /// Hands a frame to its operation.
    fn dispatch(&self, frame: &Frame) -> Result<(), Violation> {
        let id = frame.id;
        let mut open = self.open.lock();
        let entry = open.get_mut(&id).ok_or(Violation::UnknownId(id))?;
        let misplaced = Violation::OutOfPlace(frame.kind);
        match (&mut entry.operation, frame.kind) {
            (Operation::Exec(events), kind) => {
                let event = event(frame, kind)?;
                let last = matches!(event, Event::Exit(_) | Event::Fault(_));
                if let Err(mpsc::error::TrySendError::Full(_)) = events.try_send(event) {
                    return Err(Violation::NoCredit);
                }
                if last {
                    open.remove(&id);
                }
            }
            (
                Operation::Read {
                    content,
                    limit,
                    done,
                },
                Kind::Data,
            ) => {
                if content.len() + frame.payload.len() > *limit {
                    return Err(Violation::TooMuch);
                }
                // Whoever asked may have gone; the agent goes on to the end.
                if !done.is_closed() {
                    content.extend_from_slice(&frame.payload);
                }
            }
            (Operation::Read { .. }, Kind::DataEnd) => {
                if let Some(Open {
                    operation: Operation::Read { content, done, .. },
                    ..
                }) = open.remove(&id)
                {
                    done.send(Ok(content.into())).ok();
                }
            }
            (Operation::Read { .. }, Kind::Fault) => {
                let fault = frame.json()?;
                if let Some(Open {
                    operation: Operation::Read { done, .. },
                    ..
                }) = open.remove(&id)
                {
                    done.send(Err(fault)).ok();
                }
            }
            (Operation::Write(_), Kind::Done | Kind::Fault) => {
                let result = match frame.kind {
                    Kind::Fault => Err(frame.json()?),
                    _ => Ok(()),
                };
                if let Some(Open {
                    operation: Operation::Write(done),
                    ..
                }) = open.remove(&id)
                {
                    done.send(result).ok();
                }
            }
            (Operation::EndAll(_), Kind::Ended) => {
                let ended = frame.number()?;
                if let Some(Open {
                    operation: Operation::EndAll(done),
                    ..
                }) = open.remove(&id)
                {
                    done.send(ended).ok();
                }
            }
            (Operation::Read { .. } | Operation::Write(_) | Operation::EndAll(_), _) => {
                return Err(misplaced);
            }
        }
        Ok(())
    }

    /// Reads frames until the agent closes, fails, breaks the rules, or reports its end.
    pub(super) async fn receive(
        &self,
        mut socket: OwnedReadHalf,
        mut decoder: Decoder,
    ) -> SandboxError {
        loop {
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => {
                        if frame.kind == Kind::OutOfMemory {
                            let text = String::from_utf8_lossy(&frame.payload);
                            let text: String = text.chars().take(200).collect();
                            return SandboxError::OutOfMemory(text);
                        }
                        if let Err(violation) = self.dispatch(&frame) {
                            return broken(violation);
                        }
                    }
                    Ok(None) => break,
                    Err(violation) => return broken(violation),
                }
            }
            let buffer = decoder.buffer();
            if buffer.capacity() - buffer.len() < READ_ROOM / 4 {
                buffer.reserve(READ_ROOM);
            }
            match socket.read_buf(buffer).await {
                Ok(0) => return SandboxError::Gone("its first process ended".to_owned()),
                Ok(_) => {}
                Err(error) => return SandboxError::Gone(format!("its connection failed: {error}")),
            }
        }
    }
}

fn broken(violation: Violation) -> SandboxError {
    SandboxError::Gone(format!(
        "it was ended because its agent broke the protocol: {violation}"
    ))
}

fn event(frame: &Frame, kind: Kind) -> Result<Event, Violation> {
    Ok(match kind {
        Kind::Started => Event::Started,
        Kind::Stdout => Event::Stdout(frame.payload.clone()),
        Kind::Stderr => Event::Stderr(frame.payload.clone()),
        Kind::Exit => Event::Exit(frame.number()?.cast_signed()),
        Kind::InputCredit => Event::InputCredit(frame.number()?.min(INPUT_CREDIT)),
        Kind::Fault => Event::Fault(frame.json()?),
        other => return Err(Violation::OutOfPlace(other)),
    })
}

/// Sends what is queued until the socket fails or the queue is closed.
pub(super) async fn transmit(mut socket: OwnedWriteHalf, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(frame) = queue.recv().await {
        if socket.write_all(&frame).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
