//! A `Sandbox` that isolates nothing: commands run as processes of this host in a temporary directory.
//!
//! It has the manners that the trait asks for (streaming, backpressure, an exit that doesn't wait for the
//! end of the pipes, a kill of the process group), and a choice of shell, so that what is built above the
//! trait is tried with bash, dash and `BusyBox`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use sandcaster::sandbox::{
    ExecControl, ExecOutput, ExecSpec, ExecStream, FileErrorKind, Sandbox, SandboxError,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// Which shell and which utilities the sandbox has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// bash, and GNU utilities.
    Bash,
    /// No bash: `sh` is dash. GNU utilities.
    Dash,
    /// `BusyBox` for everything.
    Busybox,
}

/// The sandbox. Dropping it ends every process that it started.
pub struct HostSandbox {
    id: String,
    /// Removed when this is dropped.
    root: tempfile::TempDir,
    working_dir: String,
    env: BTreeMap<String, String>,
}

/// What a small image without bash has.
const UTILITIES: &[&str] = &[
    "[", "cat", "chmod", "cut", "dd", "df", "echo", "env", "expr", "find", "grep", "head", "id",
    "kill", "ln", "ls", "mkdir", "mkfifo", "mv", "od", "printf", "python3", "readlink", "rm",
    "rmdir", "sed", "seq", "setsid", "sleep", "sort", "stat", "tail", "tee", "test", "touch", "tr",
    "true", "false", "truncate", "uname", "wc", "xargs", "yes",
];

fn find_program(name: &str) -> Option<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the host's own programs are what is looked for"
    )]
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.exists())
}

/// Another process writes it: what is open for writing in this one is so in each child that another thread starts just
/// then, and as long as it is no system runs the program ("Text file busy").
pub fn write_program(path: &Path, text: &str) {
    let written = std::process::Command::new("sh")
        .args(["-c", r#"printf %s "$2" >"$1" && chmod 755 "$1""#, "sh"])
        .args([path.as_os_str(), text.as_ref()])
        .status();
    assert!(written.unwrap().success());
}

/// A login shell would take its PATH from this host's profile: here it keeps ours.
fn write_sh(path: &Path, shell: &str) {
    write_program(
        path,
        &format!(
            "#!{shell}\nif [ \"$1\" = -lc ]; then shift; set -- -c \"$@\"; fi\nexec {shell} \"$@\"\n"
        ),
    );
}

impl HostSandbox {
    /// A sandbox with `shell`, which must be on this host.
    pub fn new(shell: Shell) -> Arc<Self> {
        let root = tempfile::tempdir().unwrap();
        let bin = root.path().join("bin");
        let home = root.path().join("home");
        let tmp = root.path().join("tmp");
        for dir in [&bin, &home, &tmp] {
            std::fs::create_dir(dir).unwrap();
        }
        let mut path = bin.to_str().unwrap().to_owned();
        match shell {
            Shell::Bash => {
                let bash = find_program("bash").expect("bash on the PATH");
                std::os::unix::fs::symlink(bash, bin.join("bash")).unwrap();
                path = format!("{path}:/usr/local/bin:/usr/bin:/bin");
            }
            Shell::Dash => {
                let dash = find_program("dash").expect("dash on the PATH");
                for name in UTILITIES {
                    if let Some(program) = find_program(name) {
                        std::os::unix::fs::symlink(program, bin.join(name)).unwrap();
                    }
                }
                write_sh(&bin.join("sh"), dash.to_str().unwrap());
            }
            Shell::Busybox => {
                let busybox = find_program("busybox").expect("busybox on the PATH");
                let list = std::process::Command::new(&busybox)
                    .arg("--list")
                    .output()
                    .unwrap();
                for applet in String::from_utf8(list.stdout).unwrap().lines() {
                    if !matches!(applet, "sh" | "bash" | "ash") {
                        std::os::unix::fs::symlink(&busybox, bin.join(applet)).unwrap();
                    }
                }
                write_sh(&bin.join("sh"), &format!("{} sh", busybox.display()));
            }
        }
        let id = format!("host-{}", sandcaster::ids::nonce());
        let working_dir = home.canonicalize().unwrap().to_str().unwrap().to_owned();
        let env = [
            ("PATH", path.as_str()),
            ("HOME", &working_dir),
            ("HOST_SANDBOX", &id),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        Arc::new(Self {
            id,
            root,
            working_dir,
            env,
        })
    }

    /// The working directory on this host.
    pub fn home(&self) -> &Path {
        Path::new(&self.working_dir)
    }

    /// Where its programs lie that come before the host's own.
    pub fn bin(&self) -> PathBuf {
        self.root.path().join("bin")
    }

    /// Processes that run in this sandbox.
    pub fn processes(&self) -> Vec<i32> {
        let wanted = format!("HOST_SANDBOX={}", self.id);
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes()) {
                pids.push(pid);
            }
        }
        pids
    }

    fn resolve(&self, path: &str) -> PathBuf {
        Path::new(&self.working_dir).join(path)
    }

    fn end_all(&self) {
        for _ in 0..5 {
            let pids = self.processes();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
    }
}

impl Drop for HostSandbox {
    fn drop(&mut self) {
        self.end_all();
    }
}

struct Group(Option<i32>);

#[async_trait]
impl ExecControl for Group {
    async fn kill(&self) {
        if let Some(pid) = self.0 {
            killpg(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

type Sender = mpsc::Sender<Result<ExecOutput, SandboxError>>;

async fn pump<R: AsyncRead + Unpin>(
    mut pipe: R,
    sender: Sender,
    wrap: fn(Bytes) -> ExecOutput,
    exited: Arc<tokio::sync::Notify>,
) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                let piece = Bytes::copy_from_slice(&buffer[..n]);
                // A reader that is gone: drain into nothing.
                sender.send(Ok(wrap(piece))).await.ok();
            }
        }
    }
    exited.notify_one();
}

#[expect(
    clippy::disallowed_methods,
    reason = "a helper of the tests; its tasks end with the processes, which end with the sandbox"
)]
fn supervise(mut child: Child, stdin: Bytes, sender: Sender) {
    let (out_done, err_done) = (
        Arc::new(tokio::sync::Notify::new()),
        Arc::new(tokio::sync::Notify::new()),
    );
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    if let Some(mut pipe) = child.stdin.take() {
        tokio::spawn(async move {
            pipe.write_all(&stdin).await.ok();
        });
    }
    tokio::spawn(pump(
        stdout,
        sender.clone(),
        ExecOutput::Stdout,
        out_done.clone(),
    ));
    tokio::spawn(pump(
        stderr,
        sender.clone(),
        ExecOutput::Stderr,
        err_done.clone(),
    ));
    tokio::spawn(async move {
        use std::os::unix::process::ExitStatusExt as _;
        let status = child.wait().await.unwrap();
        let both = async {
            out_done.notified().await;
            err_done.notified().await;
        };
        tokio::time::timeout(Duration::from_millis(100), both)
            .await
            .ok();
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        sender.send(Ok(ExecOutput::Exit(code))).await.ok();
    });
}

#[async_trait]
impl Sandbox for HostSandbox {
    fn id(&self) -> &str {
        &self.id
    }

    fn working_dir(&self) -> &str {
        &self.working_dir
    }

    async fn exec(&self, spec: ExecSpec) -> Result<ExecStream, SandboxError> {
        let (program, args) = spec.argv.split_first().unwrap();
        let cwd = if spec.cwd.is_empty() {
            &self.working_dir
        } else {
            &spec.cwd
        };
        let child = Command::new(program)
            .args(args)
            .env_clear()
            .envs(&self.env)
            .envs(&spec.env)
            .current_dir(cwd)
            .stdin(if spec.stdin.is_empty() {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| SandboxError::NotStarted(format!("{program}: {error}")))?;
        let control = Arc::new(Group(child.id().and_then(|pid| i32::try_from(pid).ok())));
        let (sender, output) = mpsc::channel(4);
        supervise(child, spec.stdin, sender);
        Ok(ExecStream { output, control })
    }

    async fn read(&self, path: &str, max_bytes: u64) -> Result<Bytes, SandboxError> {
        let full = self.resolve(path);
        let metadata = std::fs::metadata(&full).map_err(|error| file_error(path, &error))?;
        let wrong = |kind| {
            Err(SandboxError::File {
                path: path.to_owned(),
                kind,
            })
        };
        if metadata.is_dir() {
            return wrong(FileErrorKind::IsDirectory);
        }
        if !metadata.is_file() {
            return wrong(FileErrorKind::NotRegular);
        }
        if metadata.len() > max_bytes {
            return Err(SandboxError::TooLarge {
                path: path.to_owned(),
                max_bytes,
            });
        }
        std::fs::read(&full)
            .map(Bytes::from)
            .map_err(|error| file_error(path, &error))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        let full = self.resolve(path);
        if let Some(parent) = full.parent() {
            std::fs::create_dir_all(parent).map_err(|error| file_error(path, &error))?;
        }
        std::fs::write(&full, &bytes).map_err(|error| file_error(path, &error))
    }

    async fn extend(&self, _lifetime: Duration) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn kill(&self) -> Result<(), SandboxError> {
        self.end_all();
        Ok(())
    }

    async fn gone(&self) -> SandboxError {
        std::future::pending().await
    }
}

fn file_error(path: &str, error: &std::io::Error) -> SandboxError {
    use std::io::ErrorKind;
    SandboxError::File {
        path: path.to_owned(),
        kind: match error.kind() {
            ErrorKind::NotFound => FileErrorKind::NotFound,
            ErrorKind::PermissionDenied => FileErrorKind::PermissionDenied,
            ErrorKind::IsADirectory => FileErrorKind::IsDirectory,
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => FileErrorKind::NotDirectory,
            ErrorKind::StorageFull => FileErrorKind::NoSpace,
            ErrorKind::ReadOnlyFilesystem => FileErrorKind::ReadOnly,
            _ => FileErrorKind::Other(error.to_string()),
        },
    }
}
