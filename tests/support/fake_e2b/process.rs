//! One process of a sandbox: its pipes or terminal, its listeners, its end.

use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connect::{ConnectError, frame};
use super::machine::{self, Launch};
use super::sandboxes::SandboxBox;

/// Largest piece of output in one event.
const PIECE: usize = 32 * 1024;
const TERMINAL_PIECE: usize = 16 * 1024;

/// How long an ended process can still be asked for its exit.
const RETAINED: Duration = Duration::from_secs(30);

/// A terminal's size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub cols: u16,
    pub rows: u16,
}

/// A process to start.
pub(super) struct Order {
    pub launch: Launch,
    pub tag: Option<String>,
    /// `process` of the request, for `List`.
    pub config: Value,
    pub stdin: bool,
    pub terminal: Option<Size>,
    pub timeout: Option<Duration>,
}

/// What listeners are told.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// A data event, framed.
    Data(Bytes),
    /// The end event's message.
    Exit(Value),
}

enum Input {
    Closed,
    Pipe(ChildStdin),
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

pub(super) struct Process {
    pub pid: u32,
    pub tag: Option<String>,
    pub config: Value,
    input: tokio::sync::Mutex<Input>,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    listeners: Mutex<Vec<mpsc::Sender<Told>>>,
    exit: Mutex<Option<Value>>,
    signalled: AtomicBool,
    /// Cancelled when its own deadline has passed.
    pub timed_out: CancellationToken,
    /// Cancelled once it has been waited for.
    reaped: CancellationToken,
}

impl Process {
    /// Starts it, with its first listener in place before it can say anything.
    pub(super) async fn start(
        sandbox: &Arc<SandboxBox>,
        order: Order,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Told>), ConnectError> {
        let failed = |error: std::io::Error| {
            ConnectError::new(
                "invalid_argument",
                format!("error starting process: {error}"),
            )
        };
        sandbox.ran_anything.store(true, Ordering::Release);
        let mut command = sandbox.machine.command(&order.launch).await;
        let mut master = None;
        if let Some(size) = order.terminal {
            let (ours, theirs) = open_terminal(size).map_err(failed)?;
            let copy = || theirs.try_clone().map(Stdio::from);
            command.stdin(copy().map_err(failed)?);
            command.stdout(copy().map_err(failed)?);
            command.stderr(copy().map_err(failed)?);
            master = Some(Arc::new(ours));
        } else {
            let stdin = if order.stdin {
                Stdio::piped()
            } else {
                Stdio::null()
            };
            command.stdin(stdin).stdout(Stdio::piped());
            command.stderr(Stdio::piped());
        }
        let mut child = command.spawn().map_err(failed)?;
        drop(command);
        let pid = child.id().unwrap_or_default();
        let input = match (&master, child.stdin.take()) {
            (Some(master), _) => Input::Terminal(master.clone()),
            (None, Some(pipe)) => Input::Pipe(pipe),
            (None, None) => Input::Closed,
        };
        let (listener, told) = mpsc::channel(8);
        let process = Arc::new(Self {
            pid,
            tag: order.tag,
            config: order.config,
            input: tokio::sync::Mutex::new(input),
            terminal: master.clone(),
            listeners: Mutex::new(vec![listener]),
            exit: Mutex::new(None),
            signalled: AtomicBool::new(false),
            timed_out: CancellationToken::new(),
            reaped: CancellationToken::new(),
        });
        sandbox.processes.lock().insert(pid, process.clone());
        if sandbox.dead.is_cancelled() {
            // It was killed while this one was being started, so the sweep may have missed it.
            process.signal(Signal::SIGKILL);
            sandbox.machine.signal_all(Signal::SIGKILL);
        }

        let mut pumps = tokio::task::JoinSet::new();
        if let Some(master) = master {
            pumps.spawn(pump_terminal(process.clone(), master));
        }
        if let Some(stdout) = child.stdout.take() {
            pumps.spawn(pump(process.clone(), "stdout", stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            pumps.spawn(pump(process.clone(), "stderr", stderr));
        }
        if let Some(limit) = order.timeout {
            let process = process.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = process.reaped.cancelled() => {}
                    () = tokio::time::sleep(limit) => {
                        process.timed_out.cancel();
                        process.signal(Signal::SIGKILL);
                    }
                }
            });
        }
        let (owner, watched) = (sandbox.clone(), process.clone());
        tokio::spawn(async move {
            let status = child.wait().await;
            watched.reaped.cancel();
            // What still holds its output holds up the end event, unless it was killed by a signal of ours.
            let drained = async { while pumps.join_next().await.is_some() {} };
            if watched.signalled.load(Ordering::Acquire) {
                let grace = Duration::from_millis(100);
                if tokio::time::timeout(grace, drained).await.is_err() {
                    pumps.detach_all();
                }
            } else {
                tokio::select! {
                    () = drained => {}
                    () = owner.dead.cancelled() => {}
                }
            }
            watched.finish(status.ok()).await;
            tokio::select! {
                () = tokio::time::sleep(RETAINED) => {}
                () = owner.dead.cancelled() => {}
            }
            owner.processes.lock().remove(&watched.pid);
        });
        Ok((process, told))
    }

    /// A listener to what comes from now on; the exit alone, if it has ended.
    pub(super) fn listen(&self) -> mpsc::Receiver<Told> {
        let (listener, told) = mpsc::channel(8);
        let mut listeners = self.listeners.lock();
        match &*self.exit.lock() {
            Some(exit) => {
                let sent = listener.try_send(Told::Exit(exit.clone()));
                assert!(sent.is_ok(), "a fresh channel has room");
            }
            None => listeners.push(listener),
        }
        told
    }

    /// Whether it has not ended.
    pub(super) fn lives(&self) -> bool {
        !self.reaped.is_cancelled()
    }

    /// Signals it, and only it; false if it has ended.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        if !self.lives() {
            return false;
        }
        self.signalled.store(true, Ordering::Release);
        machine::send(i32::try_from(self.pid).unwrap_or(i32::MAX), signal);
        true
    }

    /// Writes to its standard input or terminal.
    pub(super) async fn write(&self, terminal: bool, bytes: &[u8]) -> Result<(), ConnectError> {
        let failed = |error: std::io::Error| {
            ConnectError::new("internal", format!("error writing to input: {error}"))
        };
        match &mut *self.input.lock().await {
            Input::Pipe(pipe) if !terminal => {
                pipe.write_all(bytes).await.map_err(failed)?;
                pipe.flush().await.map_err(failed)
            }
            Input::Terminal(master) if terminal => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let mut ready = master.writable().await.map_err(failed)?;
                    let wrote = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), rest)?));
                    if let Ok(wrote) = wrote {
                        rest = &rest[wrote.map_err(failed)?..];
                    }
                }
                Ok(())
            }
            Input::Closed => Err(ConnectError::new("internal", "stdin not enabled or closed")),
            Input::Pipe(_) => Err(ConnectError::new("internal", "tty not assigned to process")),
            Input::Terminal(_) => Err(ConnectError::new("internal", "tty assigned to process")),
        }
    }

    /// Closes its standard input.
    pub(super) async fn close_input(&self) -> Result<(), ConnectError> {
        let mut input = self.input.lock().await;
        if matches!(*input, Input::Terminal(_)) {
            let why = "tty assigned to process, cannot close stdin";
            return Err(ConnectError::new("failed_precondition", why));
        }
        *input = Input::Closed;
        Ok(())
    }

    /// Changes its terminal's size.
    pub(super) fn resize(&self, size: Size) -> Result<(), ConnectError> {
        let Some(terminal) = &self.terminal else {
            let why = "tty not assigned to process";
            return Err(ConnectError::new("internal", why));
        };
        tcsetwinsize(terminal.get_ref(), winsize(size))
            .map_err(|error| ConnectError::new("internal", error.to_string()))
    }

    async fn tell(&self, told: Told) {
        let listeners = self.listeners.lock().clone();
        let mut left = false;
        for listener in listeners {
            left |= listener.send(told.clone()).await.is_err();
        }
        if left {
            self.listeners.lock().retain(|l| !l.is_closed());
        }
    }

    async fn finish(&self, status: Option<ExitStatus>) {
        let exit = exit_json(status);
        let listeners = {
            let mut listeners = self.listeners.lock();
            *self.exit.lock() = Some(exit.clone());
            std::mem::take(&mut *listeners)
        };
        for listener in listeners {
            // A listener that has left needs no end.
            listener.send(Told::Exit(exit.clone())).await.ok();
        }
    }
}

/// `end` of an exit: zero values are left out, as protobuf's JSON does.
fn exit_json(status: Option<ExitStatus>) -> Value {
    let status = status.unwrap_or_else(|| ExitStatus::from_raw(9));
    let Some(code) = status.code() else {
        let name = match status.signal() {
            Some(1) => "hangup",
            Some(2) => "interrupt",
            Some(3) => "quit",
            Some(6) => "aborted",
            Some(9) => "killed",
            Some(11) => "segmentation fault",
            Some(13) => "broken pipe",
            Some(15) => "terminated",
            _ => "unknown",
        };
        let text = format!("signal: {name}");
        return json!({"exitCode": -1, "status": text, "error": text});
    };
    let text = format!("exit status {code}");
    if code == 0 {
        json!({"exited": true, "status": text})
    } else {
        json!({"exitCode": code, "exited": true, "status": text, "error": text})
    }
}

/// A data event, framed.
fn data(kind: &str, bytes: &[u8]) -> Told {
    let text = format!(
        r#"{{"event":{{"data":{{"{kind}":"{}"}}}}}}"#,
        STANDARD.encode(bytes)
    );
    Told::Data(frame(0, text.as_bytes()))
}

async fn pump(process: Arc<Process>, kind: &'static str, mut pipe: impl AsyncRead + Unpin) {
    let mut buffer = vec![0; PIECE];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => process.tell(data(kind, &buffer[..n])).await,
        }
    }
}

async fn pump_terminal(process: Arc<Process>, master: Arc<AsyncFd<OwnedFd>>) {
    let mut buffer = vec![0; TERMINAL_PIECE];
    loop {
        let Ok(mut ready) = master.readable().await else {
            return;
        };
        match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?)) {
            Err(_not_yet) => {}
            // The last holder of the other side has gone (EIO).
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(n)) => process.tell(data("pty", &buffer[..n])).await,
        }
    }
}

fn winsize(size: Size) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn open_terminal(size: Size) -> std::io::Result<(AsyncFd<OwnedFd>, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    tcsetwinsize(&master, winsize(size))?;
    let name = ptsname(&master, Vec::new())?;
    let slave = std::fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(name.to_str().map_err(std::io::Error::other)?)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    #[expect(
        deprecated,
        reason = "its successor is an unsafe fn; an OwnedFd keeps what that asks for"
    )]
    let master = AsyncFd::new(master)?;
    Ok((master, slave.into()))
}
