//! A `local` sandbox as the rest of the program sees it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nix::errno::Errno;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::launcher::{Launcher, Spawner};
use super::link::{Event, Link, transmit};
use super::mounts::HOME;
use super::protocol::{
    self, CHUNK, Decoder, Fault, INPUT_CREDIT, Kind, MAX_PAYLOAD, OUTPUT_CREDIT, json,
};
use crate::clock::Deadline;
use crate::sandbox::types::{
    ExecControl, ExecOutput, ExecSpec, ExecStream, FileErrorKind, Sandbox, SandboxError,
};

/// The environment that every command starts with.
const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", HOME),
    ("USER", "user"),
    ("LOGNAME", "user"),
    ("SHELL", "/bin/sh"),
    ("LANG", "C.UTF-8"),
    ("TMPDIR", "/tmp"),
];

/// A killed process may hang in the kernel for a while.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Output that waits for its reader, in frames, beside what is under way by credit.
const READY: usize = 4;

type Ended = Option<Result<(), String>>;

pub(super) struct LocalSandbox {
    id: String,
    link: Arc<Link>,
    stop: CancellationToken,
    lifetime: watch::Sender<Deadline>,
    ended: watch::Receiver<Ended>,
    /// The thread whose end would end the launcher.
    _spawner: Arc<Spawner>,
}

/// A sandbox whose agent has greeted.
pub(super) struct Ready {
    pub(super) id: String,
    pub(super) launcher: Launcher,
    pub(super) socket: UnixStream,
    /// Holds what came behind the greeting, if anything did.
    pub(super) decoder: Decoder,
    pub(super) lifetime: Duration,
    pub(super) spawner: Arc<Spawner>,
}

impl LocalSandbox {
    #[expect(
        clippy::disallowed_methods,
        reason = "one task per sandbox, which ends with it: when its socket closes, when it is killed or dropped, or at the end of its lifetime"
    )]
    pub(super) fn run(ready: Ready) -> Self {
        let (link, queue) = Link::new();
        let stop = CancellationToken::new();
        let (lifetime, until) = watch::channel(Deadline::after(ready.lifetime));
        let (over, ended) = watch::channel(None);
        tokio::spawn(live(Life {
            link: Arc::clone(&link),
            socket: ready.socket,
            decoder: ready.decoder,
            queue,
            launcher: ready.launcher,
            stop: stop.clone(),
            until,
            over,
        }));
        Self {
            id: ready.id,
            link,
            stop,
            lifetime,
            ended,
            _spawner: ready.spawner,
        }
    }

    fn absolute(path: &str) -> String {
        if path.starts_with('/') {
            path.to_owned()
        } else if path.is_empty() {
            HOME.to_owned()
        } else {
            format!("{HOME}/{path}")
        }
    }
}

impl Drop for LocalSandbox {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Life {
    link: Arc<Link>,
    socket: UnixStream,
    decoder: Decoder,
    queue: mpsc::Receiver<Bytes>,
    launcher: Launcher,
    stop: CancellationToken,
    until: watch::Receiver<Deadline>,
    over: watch::Sender<Ended>,
}

/// Runs a sandbox's connection to its end, then ends what is left of it.
async fn live(life: Life) {
    let Life {
        link,
        socket,
        decoder,
        queue,
        mut launcher,
        stop,
        until,
        over,
    } = life;
    let (read, write) = socket.into_split();
    // The agent's last words first: they say why it ended. Nothing that loses is needed any more.
    let fate = tokio::select! {
        biased;
        fate = link.receive(read, decoder) => fate,
        () = stop.cancelled() => SandboxError::Gone("it was destroyed".to_owned()),
        () = expiry(until) => SandboxError::Gone("its lifetime is over".to_owned()),
        () = transmit(write, queue) => SandboxError::Gone("its connection failed".to_owned()),
    };
    link.doom(fate);
    link.close();
    let ended = launcher.end().await;
    if let Err(error) = &ended {
        tracing::error!(%error, "a local sandbox could not be ended");
    }
    over.send_replace(Some(ended.map(drop).map_err(|error| error.to_string())));
}

/// Returns once the deadline has passed, which may be moved meanwhile.
async fn expiry(mut until: watch::Receiver<Deadline>) {
    loop {
        let deadline = *until.borrow_and_update();
        tokio::select! {
            biased;
            moved = until.changed() => {
                if moved.is_err() {
                    // Nobody can move it any more; the handle's drop ends the sandbox.
                    return tokio::time::sleep_until(deadline.instant()).await;
                }
            }
            () = tokio::time::sleep_until(deadline.instant()) => return,
        }
    }
}

#[async_trait]
impl Sandbox for LocalSandbox {
    fn id(&self) -> &str {
        &self.id
    }

    fn working_dir(&self) -> &str {
        HOME
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "one task per command, which ends with the command or the sandbox, and kills the command when its reader is dropped"
    )]
    async fn exec(&self, spec: ExecSpec) -> Result<ExecStream, SandboxError> {
        let mut env: Vec<String> = ENVIRONMENT
            .iter()
            .filter(|(name, _)| !spec.env.contains_key(*name))
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        env.extend(
            spec.env
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        let program = spec.argv.first().cloned().unwrap_or_default();
        let cwd = Self::absolute(&spec.cwd);
        let request = json(&protocol::Exec {
            argv: spec.argv,
            env,
            cwd: cwd.clone(),
            stdin: !spec.stdin.is_empty(),
        });
        if request.len() > MAX_PAYLOAD {
            return Err(SandboxError::NotStarted(format!(
                "the command line and its environment have {} bytes (max {MAX_PAYLOAD})",
                request.len()
            )));
        }
        let (id, events) = self.link.open_exec().await?;
        let (output, reader) = mpsc::channel(READY);
        let (started, running) = oneshot::channel();
        // The task owns the operation before the request is sent, so that dropping this future leaves
        // no command without somebody to end it.
        tokio::spawn(
            Driver {
                link: Arc::clone(&self.link),
                id,
                events,
                output,
                input: spec.stdin,
            }
            .drive(request, started),
        );
        match running.await {
            Ok(Ok(())) => Ok(ExecStream {
                output: reader,
                control: Arc::new(Control {
                    link: Arc::clone(&self.link),
                    id,
                }),
            }),
            Ok(Err(NotRunning::Fault(fault))) => Err(not_started(&program, &cwd, &fault)),
            Ok(Err(NotRunning::Gone(error))) => Err(error),
            Err(_) => Err(self.link.fate()),
        }
    }

    async fn read(&self, path: &str, max_bytes: u64) -> Result<Bytes, SandboxError> {
        let limit = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let (id, content) = self.link.open_read(limit).await?;
        let request = json(&protocol::Read {
            path: Self::absolute(path),
            limit: max_bytes,
        });
        self.link
            .send(Kind::Read, id, &check(path, request)?)
            .await?;
        match content.await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(Fault::TooLarge)) => Err(SandboxError::TooLarge {
                path: path.to_owned(),
                max_bytes,
            }),
            Ok(Err(fault)) => Err(file_error(path, &fault)),
            Err(_) => Err(self.link.fate()),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "one task per write, which ends when the bytes are sent: a write that was begun must be ended even if nobody waits for it"
    )]
    async fn write(&self, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        let request = check(
            path,
            json(&protocol::Write {
                path: Self::absolute(path),
            }),
        )?;
        let (id, done) = self.link.open_write().await?;
        let link = Arc::clone(&self.link);
        tokio::spawn(async move {
            let mut sent = link.send(Kind::Write, id, &request).await;
            for chunk in bytes.chunks(CHUNK) {
                if sent.is_ok() {
                    sent = link.send(Kind::Data, id, chunk).await;
                }
            }
            if sent.is_ok() {
                // Fails only if the sandbox is gone, which fails the operation as well.
                link.send(Kind::DataEnd, id, &[]).await.ok();
            }
        });
        match done.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(fault)) => Err(file_error(path, &fault)),
            Err(_) => Err(self.link.fate()),
        }
    }

    async fn extend(&self, lifetime: Duration) -> Result<(), SandboxError> {
        if self.link.is_doomed() {
            return Err(self.link.fate());
        }
        self.lifetime.send_replace(Deadline::after(lifetime));
        Ok(())
    }

    async fn end_all(&self) -> Result<Option<u32>, SandboxError> {
        let (id, ended) = self.link.open_end_all().await?;
        self.link.send(Kind::EndAll, id, &[]).await?;
        match tokio::time::timeout(END_LIMIT, ended).await {
            Ok(Ok(ended)) => Ok(Some(ended)),
            Ok(Err(_)) => Err(self.link.fate()),
            Err(_) => Err(SandboxError::Timeout(
                "its processes were killed, but are not all gone yet".to_owned(),
            )),
        }
    }

    async fn kill(&self) -> Result<(), SandboxError> {
        self.stop.cancel();
        let mut ended = self.ended.clone();
        let result = match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone(),
            // Its task went down with the runtime, and the launcher with it.
            Err(_) => None,
        };
        result.unwrap_or(Ok(())).map_err(SandboxError::Backend)
    }

    async fn gone(&self) -> SandboxError {
        self.link.gone().await
    }
}

/// A request for a file, unless its path alone is longer than a frame.
fn check(path: &str, request: Vec<u8>) -> Result<Vec<u8>, SandboxError> {
    if request.len() <= MAX_PAYLOAD {
        return Ok(request);
    }
    let shown: String = path.chars().take(100).collect();
    Err(file_error(
        &shown,
        &Fault::Errno(Errno::ENAMETOOLONG as i32),
    ))
}

fn not_started(program: &str, cwd: &str, fault: &Fault) -> SandboxError {
    let reason = |errno: i32| Errno::from_raw(errno).desc();
    SandboxError::NotStarted(match fault {
        Fault::NoProgram => format!("{program}: command not found"),
        Fault::Cwd(errno) => format!("working directory {cwd}: {}", reason(*errno)),
        Fault::Errno(errno) => format!("{program}: {}", reason(*errno)),
        Fault::NotRegular | Fault::TooLarge => format!("{program}: can't be run"),
    })
}

fn file_error(path: &str, fault: &Fault) -> SandboxError {
    let kind = match fault {
        Fault::NotRegular => FileErrorKind::NotRegular,
        Fault::NoProgram | Fault::TooLarge => FileErrorKind::Other("can't be read".to_owned()),
        Fault::Errno(errno) | Fault::Cwd(errno) => match Errno::from_raw(*errno) {
            Errno::ENOENT => FileErrorKind::NotFound,
            Errno::EACCES | Errno::EPERM => FileErrorKind::PermissionDenied,
            Errno::EISDIR => FileErrorKind::IsDirectory,
            Errno::ENOTDIR => FileErrorKind::NotDirectory,
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => FileErrorKind::NoSpace,
            Errno::EROFS => FileErrorKind::ReadOnly,
            other => FileErrorKind::Other(other.desc().to_lowercase()),
        },
    };
    SandboxError::File {
        path: path.to_owned(),
        kind,
    }
}

struct Control {
    link: Arc<Link>,
    id: u32,
}

#[async_trait]
impl ExecControl for Control {
    async fn kill(&self) {
        // Fails only if the sandbox is gone, and the command with it.
        self.link.send(Kind::Kill, self.id, &[]).await.ok();
    }
}

enum NotRunning {
    Fault(Fault),
    Gone(SandboxError),
}

/// Carries a command's streams between its operation and its reader.
struct Driver {
    link: Arc<Link>,
    id: u32,
    events: mpsc::Receiver<Event>,
    output: mpsc::Sender<Result<ExecOutput, SandboxError>>,
    input: Bytes,
}

impl Driver {
    async fn drive(mut self, request: Vec<u8>, started: oneshot::Sender<Result<(), NotRunning>>) {
        if let Err(error) = self.link.send(Kind::Exec, self.id, &request).await {
            started.send(Err(NotRunning::Gone(error))).ok();
            return;
        }
        drop(request);
        let first = self.events.recv().await;
        let answer = match first {
            Some(Event::Started) => Ok(()),
            Some(Event::Fault(fault)) => Err(NotRunning::Fault(fault)),
            Some(_) => {
                let error = SandboxError::Gone(
                    "it was ended because its agent broke the protocol".to_owned(),
                );
                self.link.doom(error.clone());
                Err(NotRunning::Gone(error))
            }
            None => Err(NotRunning::Gone(self.link.fate())),
        };
        let runs = answer.is_ok();
        // If nobody waits, the output is closed too, and the command killed below.
        started.send(answer).ok();
        if runs && self.carry().await.is_err() {
            let error = self.link.fate();
            self.output.send(Err(error)).await.ok();
        }
    }

    /// Until the exit; an error is the sandbox's end.
    async fn carry(&mut self) -> Result<(), SandboxError> {
        let mut killed = false;
        let mut taken = 0;
        let mut input_credit = if self.input.is_empty() {
            0
        } else {
            INPUT_CREDIT
        };
        loop {
            while input_credit > 0 && !self.input.is_empty() {
                let chunk = self.input.split_to(CHUNK.min(self.input.len()));
                self.link.send(Kind::Stdin, self.id, &chunk).await?;
                input_credit -= 1;
                if self.input.is_empty() {
                    self.link.send(Kind::StdinEnd, self.id, &[]).await?;
                }
            }
            // Events first: an exit that has come is told, whatever the reader does.
            let event = tokio::select! {
                biased;
                event = self.events.recv() => event.ok_or_else(|| self.link.fate())?,
                () = self.output.closed(), if !killed => {
                    killed = true;
                    self.link.send(Kind::Kill, self.id, &[]).await?;
                    continue;
                }
            };
            let output = match event {
                Event::Stdout(bytes) => ExecOutput::Stdout(bytes),
                Event::Stderr(bytes) => ExecOutput::Stderr(bytes),
                Event::Exit(code) => {
                    self.output.send(Ok(ExecOutput::Exit(code))).await.ok();
                    return Ok(());
                }
                Event::InputCredit(frames) => {
                    input_credit = (input_credit + frames).min(INPUT_CREDIT);
                    continue;
                }
                Event::Started | Event::Fault(_) => {
                    return Err(SandboxError::Gone(String::new()));
                }
            };
            if !killed {
                // A reader that is gone is seen above, in the next round.
                self.output.send(Ok(output)).await.ok();
            }
            taken += 1;
            if taken >= OUTPUT_CREDIT / 2 {
                let frames = u32::to_be_bytes(taken);
                self.link.send(Kind::OutputCredit, self.id, &frames).await?;
                taken = 0;
            }
        }
    }
}
