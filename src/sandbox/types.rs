//! What a sandbox is: the traits that every backend implements and the tools are written above.
//!
//! # Adding a backend
//! One file with a `DEF` and the two traits, and one line in [`super::BACKENDS`]. What must hold: every
//! sandbox carries its [`Labels`], so that a reaper can find it; `kill` is idempotent; a method called on
//! a sandbox that is gone gives [`SandboxError::Gone`], soon, never a hang; output is streamed with
//! backpressure and without a cap; no environment variable of ours gets inside.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::clock::Deadline;
use crate::error::ErrorCode;
use crate::ids::RunId;
use crate::spec::Network;

/// What to create.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// Template or image; `None` for the backend's default.
    pub template: Option<String>,
    /// What it may reach.
    pub network: Network,
    /// How long it should live at most.
    pub lifetime: Duration,
    /// When creation must be done.
    pub deadline: Deadline,
}

/// How a sandbox is found again: on every sandbox, by the backend's own means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// `sandcaster-run`.
    pub run: RunId,
    /// `sandcaster-instance`: the store's id.
    pub instance: String,
    /// `sandcaster-attempt`, from 1.
    pub attempt: u32,
    /// `sandcaster-expires`: Unix seconds.
    pub expires: i64,
}

/// A sandbox found by its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSandbox {
    /// The backend's id for it.
    pub id: String,
    /// The run in its labels, if it reads as one.
    pub run: Option<RunId>,
    /// When it was made, where the backend says so.
    pub started_at: Option<Timestamp>,
    /// Its `sandcaster-expires`, in Unix seconds, where the backend destroys it by itself before or soon after.
    pub expires: Option<i64>,
}

/// What makes sandboxes.
#[async_trait]
pub trait SandboxBackend: Send + Sync {
    /// Creates a sandbox, ready for commands.
    ///
    /// Dropping the future may leave a sandbox behind; the reaper finds it by its labels.
    ///
    /// # Errors
    /// Any of [`SandboxError`] but `Gone`.
    async fn create(
        &self,
        spec: &SandboxSpec,
        labels: &Labels,
    ) -> Result<Arc<dyn Sandbox>, SandboxError>;

    /// The sandboxes that carry `instance` in their labels.
    ///
    /// # Errors
    /// When the backend can't be asked.
    async fn list(&self, instance: &str) -> Result<Vec<FoundSandbox>, SandboxError>;

    /// Destroys a sandbox by its id. One that is gone already is success.
    ///
    /// # Errors
    /// When the backend can't be asked or refuses.
    async fn kill(&self, id: &str) -> Result<(), SandboxError>;

    /// Whether the sandbox `id` still exists, running or paused.
    ///
    /// # Errors
    /// When the backend can't be asked.
    async fn alive(&self, id: &str) -> Result<bool, SandboxError>;

    /// Whether sandboxes can be made here and now, by a look that costs little; what is missing, if not.
    async fn probe(&self) -> Result<(), SandboxError>;
}

/// An isolated machine that a run's tools act in.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// The backend's id for it.
    fn id(&self) -> &str;

    /// The directory that relative paths start from, absolute.
    fn working_dir(&self) -> &str;

    /// Starts a command. Its output must be read: a command that nobody reads is slowed, not buffered.
    ///
    /// # Errors
    /// `Gone`, `NotStarted` when the program can't be run, or a backend fault.
    async fn exec(&self, spec: ExecSpec) -> Result<ExecStream, SandboxError>;

    /// Reads a regular file, whole. `path` is absolute, or relative to the working directory.
    ///
    /// # Errors
    /// `File` with the reason; `TooLarge` beyond `max_bytes`; `Gone`.
    async fn read(&self, path: &str, max_bytes: u64) -> Result<Bytes, SandboxError>;

    /// Writes a file, whole, creating its parents and replacing what is there. Keeps the mode of a file
    /// that exists; follows a symlink. Owned by the user that commands run as.
    ///
    /// # Errors
    /// `File` with the reason; `Gone`.
    async fn write(&self, path: &str, bytes: Bytes) -> Result<(), SandboxError>;

    /// Moves the end of its life to `lifetime` from now, where the backend has such an end.
    ///
    /// # Errors
    /// `Gone`, or a backend fault.
    async fn extend(&self, lifetime: Duration) -> Result<(), SandboxError>;

    /// Ends every process in it; returns how many, once they are gone and count no more. `None` where the backend
    /// can't do that without starting one.
    ///
    /// # Errors
    /// `Gone`; `Timeout` if some are not gone soon.
    async fn end_all(&self) -> Result<Option<u32>, SandboxError> {
        Ok(None)
    }

    /// Destroys it with everything in it. Idempotent; done when it returns `Ok`.
    ///
    /// # Errors
    /// When the backend can't be asked or refuses.
    async fn kill(&self) -> Result<(), SandboxError>;

    /// Returns once the sandbox is known to be gone by itself; never, if that is not watched.
    async fn gone(&self) -> SandboxError;
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments: never a line for a shell to split.
    pub argv: Vec<String>,
    /// Added to the sandbox's own environment.
    pub env: BTreeMap<String, String>,
    /// Absolute; the working directory if empty.
    pub cwd: String,
    /// Given to the command, which then sees the end of input. Empty: no input at all.
    pub stdin: Bytes,
}

/// What a running command says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    /// Bytes of its standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// Some of its output was lost here, for the connection to the sandbox broke. What follows is whole.
    Gap,
    /// It ended. Nothing follows. A command killed by a signal has `128 + signal`.
    Exit(i32),
}

/// A running command. Dropping it stops reading, and lets the backend stop the command.
pub struct ExecStream {
    /// What it says; the channel's bound is the backpressure. Ends after `Exit` or an error.
    pub output: mpsc::Receiver<Result<ExecOutput, SandboxError>>,
    /// Ends it.
    pub control: Arc<dyn ExecControl>,
}

impl fmt::Debug for ExecStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecStream").finish_non_exhaustive()
    }
}

impl ExecStream {
    /// The next output; `Gone` if the stream ended without an exit.
    ///
    /// # Errors
    /// As the backend reports.
    pub async fn next(&mut self) -> Result<ExecOutput, SandboxError> {
        self.output.recv().await.unwrap_or_else(|| {
            Err(SandboxError::Gone(
                "the command's stream ended without an exit code".to_owned(),
            ))
        })
    }

    /// Reads to the exit, keeping the first `keep` bytes of standard output, and of standard error the first and the
    /// last 64 KiB.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn collect(mut self, keep: usize) -> Result<ExecCollected, SandboxError> {
        let mut collected = ExecCollected::default();
        loop {
            match self.next().await? {
                ExecOutput::Stdout(bytes) => {
                    let room = keep.saturating_sub(collected.stdout.len()).min(bytes.len());
                    collected
                        .stdout
                        .extend_from_slice(bytes.get(..room).unwrap_or_default());
                    collected.truncated |= room < bytes.len();
                }
                ExecOutput::Stderr(bytes) => {
                    collected.stderr.extend_from_slice(&bytes);
                    // Seldom, so that each byte is moved a few times at most.
                    if collected.stderr.len() > 4 * STDERR_END {
                        collected.truncated |= without_middle(&mut collected.stderr);
                    }
                }
                ExecOutput::Gap => collected.gap = true,
                ExecOutput::Exit(code) => {
                    collected.truncated |= without_middle(&mut collected.stderr);
                    collected.exit_code = code;
                    return Ok(collected);
                }
            }
        }
    }
}

/// Bytes of standard error that are kept from its beginning, and as many from its end.
const STDERR_END: usize = 64 * 1024;

/// Leaves the beginning and the end of a long standard error, with a line end between them; whether it was long.
fn without_middle(bytes: &mut Vec<u8>) -> bool {
    let long = bytes.len() > 2 * STDERR_END + 1;
    if long {
        bytes.splice(STDERR_END..bytes.len() - STDERR_END, [b'\n']);
    }
    long
}

/// A command's whole output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecCollected {
    /// Standard output, up to the limit.
    pub stdout: Vec<u8>,
    /// Standard error; the beginning and the end of a long one.
    pub stderr: Vec<u8>,
    /// Something was left out.
    pub truncated: bool,
    /// Some output was lost on the way, so that what stands on both sides of it seems to be one.
    pub gap: bool,
    /// The exit code.
    pub exit_code: i32,
}

/// Ends a running command.
#[async_trait]
pub trait ExecControl: Send + Sync {
    /// Kills the command's process group at once. Harmless once it has ended.
    async fn kill(&self);
}

/// How a sandbox failed, by what the caller can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// The sandbox no longer exists.
    #[error("the sandbox is gone: {0}")]
    Gone(String),
    /// The sandbox used more memory than it may, and was ended.
    #[error("the sandbox ran out of memory: {0}")]
    OutOfMemory(String),
    /// The host can't make sandboxes of this kind: what is missing, and what to do.
    #[error("{message}")]
    HostCannot {
        /// What is missing.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The key is missing or was refused.
    #[error("{message}")]
    Auth {
        /// What was refused.
        message: String,
        /// Which variable to set.
        hint: String,
    },
    /// The backend throttles us, or its account is at its limit.
    #[error("{message}")]
    RateLimited {
        /// The backend's words.
        message: String,
        /// When to come back, if it says.
        retry_after: Option<Duration>,
        /// The account's number of sandboxes is used up: waiting for a place helps.
        at_capacity: bool,
    },
    /// No such template.
    #[error("{0}")]
    TemplateNotFound(String),
    /// The template lacks what a sandbox needs.
    #[error("{0}")]
    TemplateIncompatible(String),
    /// There is no POSIX shell in it, without which commands can't be run.
    #[error("{0}")]
    NoShell(String),
    /// Not ready, or no answer, in time.
    #[error("{0}")]
    Timeout(String),
    /// A program that can't be started, and why.
    #[error("{0}")]
    NotStarted(String),
    /// Nothing could be started, for want of this: what runs in the sandbox has it all.
    #[error("no process could be started ({0})")]
    Starved(Short),
    /// A file operation that failed.
    #[error("{path}: {kind}")]
    File {
        /// The path as it was given.
        path: String,
        /// What is wrong with it.
        kind: FileErrorKind,
    },
    /// A file longer than may be read.
    #[error("{path}: larger than {max_bytes} bytes")]
    TooLarge {
        /// The path as it was given.
        path: String,
        /// The limit.
        max_bytes: u64,
    },
    /// Anything else.
    #[error("{0}")]
    Backend(String),
}

/// What there is too little of to start a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Short {
    #[error("the sandbox's process limit is reached")]
    Processes,
    #[error("the sandbox has no memory left for it")]
    Memory,
    #[error("the sandbox's limit of processes or of memory is reached")]
    Either,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum FileErrorKind {
    #[error("no such file or directory")]
    NotFound,
    #[error("permission denied")]
    PermissionDenied,
    #[error("is a directory")]
    IsDirectory,
    #[error("a part of the path is not a directory")]
    NotDirectory,
    #[error("not a regular file")]
    NotRegular,
    #[error("no space left")]
    NoSpace,
    #[error("read-only file system")]
    ReadOnly,
    #[error("{0}")]
    Other(String),
}

impl SandboxError {
    /// The public code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Gone(_) => ErrorCode::SandboxLost,
            Self::HostCannot { .. } => ErrorCode::NoSandboxConfigured,
            Self::Auth { .. } => ErrorCode::ProviderAuthMissing,
            Self::RateLimited { .. } => ErrorCode::RateLimit,
            Self::TemplateNotFound(_) => ErrorCode::TemplateNotFound,
            Self::TemplateIncompatible(_) | Self::NoShell(_) => ErrorCode::TemplateIncompatible,
            Self::Timeout(_) => ErrorCode::SandboxTimeout,
            Self::OutOfMemory(_)
            | Self::NotStarted(_)
            | Self::Starved(_)
            | Self::File { .. }
            | Self::TooLarge { .. }
            | Self::Backend(_) => ErrorCode::SandboxError,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::HostCannot { hint, .. } | Self::Auth { hint, .. } => Some(hint.clone()),
            Self::RateLimited { .. } => Some("wait and send the request again".to_owned()),
            Self::Gone(_) => Some("its files are lost; send the request again".to_owned()),
            _ => None,
        }
    }

    /// Whether the whole sandbox is lost, not just one operation.
    pub const fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Gone(_) | Self::OutOfMemory(_) | Self::Auth { .. }
        )
    }
}
