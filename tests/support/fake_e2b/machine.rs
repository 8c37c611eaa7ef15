//! The machine behind one sandbox: its directories, its view of the file system, its processes.
//!
//! `/home/user`, `/root` and `/tmp` of a sandbox are directories of its own. Where the host lets us make
//! a mount namespace, commands see them under those names and nothing else is writable; elsewhere the
//! names are replaced in arguments, environment and working directory.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

/// What a sandbox's own directories are called inside and in its temporary directory.
const MAPPED: [(&str, &str); 3] = [("/home/user", "home"), ("/root", "root"), ("/tmp", "tmp")];

/// The `PATH` of commands.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes a sandbox's view of the file system, and keeps it until standard input closes. The last mount
/// makes the host's root read-only in there; it may be refused.
const PREPARE: &str = r#"mount -t tmpfs none /home && mkdir /home/user &&
mount --bind "$0/home" /home/user && mount --bind "$0/root" /root && mount --bind "$0/tmp" /tmp || exit 1
mount -o remount,bind,ro / 2>/dev/null
echo ready; exec cat"#;

/// How commands get their view of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    /// A mount namespace, made as root.
    Root,
    /// A mount namespace inside a user namespace.
    User,
    /// No namespace: names are replaced.
    Replaced,
}

impl View {
    /// The best that this host allows, found out once.
    #[expect(
        clippy::disallowed_methods,
        reason = "a look at the host, not a setting"
    )]
    fn of_this_host() -> Self {
        static FOUND: OnceLock<View> = OnceLock::new();
        *FOUND.get_or_init(|| {
            if std::env::var_os("SANDCASTER_FAKE_E2B_NO_NAMESPACE").is_some() {
                return Self::Replaced;
            }
            let works = |flags: &[&str]| {
                std::process::Command::new("unshare")
                    .args(flags)
                    .args(["--propagation", "private", "--", "/bin/sh", "-c"])
                    .arg("mount -t tmpfs none /home && command -v nsenter")
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .is_ok_and(|status| status.success())
            };
            if works(&["-m"]) {
                Self::Root
            } else if works(&["-r", "-m"]) {
                Self::User
            } else {
                Self::Replaced
            }
        })
    }
}

/// Keeps a namespace alive: it ends when its standard input closes, so also with the test process.
struct Holder {
    pid: u32,
    _child: Child,
}

/// A command, as the process service was asked for it.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub cmd: String,
    pub args: Vec<String>,
    pub envs: Vec<(String, String)>,
    /// As seen inside.
    pub cwd: String,
    /// Takes its standard input as its controlling terminal.
    pub terminal: bool,
}

pub(super) struct Machine {
    sandbox: String,
    dir: TempDir,
    holder: OnceCell<Option<Holder>>,
}

impl Machine {
    pub(super) fn new(sandbox: &str) -> std::io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("fake-e2b-").tempdir()?;
        for (_, own) in MAPPED {
            std::fs::create_dir(dir.path().join(own))?;
        }
        Ok(Self {
            sandbox: sandbox.to_owned(),
            dir,
            holder: OnceCell::new(),
        })
    }

    /// The directory that holds everything of it on the host.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where a path inside (absolute, normal form) lies on the host.
    pub(super) fn host(&self, inside: &str) -> PathBuf {
        for (name, own) in MAPPED {
            if let Some(rest) = inside.strip_prefix(name)
                && (rest.is_empty() || rest.starts_with('/'))
            {
                return self.dir.path().join(own).join(rest.trim_start_matches('/'));
            }
        }
        PathBuf::from(inside)
    }

    /// Whether a path on the host is the sandbox's own, so that it may be written.
    pub(super) fn owns(&self, host: &Path) -> bool {
        host.starts_with(self.dir.path())
    }

    async fn holder(&self) -> Option<&Holder> {
        let made = self
            .holder
            .get_or_init(|| async {
                let flags: &[&str] = match View::of_this_host() {
                    View::Root => &["-m"],
                    View::User => &["-r", "-m"],
                    View::Replaced => return None,
                };
                let mut child = Command::new("unshare")
                    .args(flags)
                    .args(["--propagation", "private", "--", "/bin/sh", "-c", PREPARE])
                    .arg(self.dir.path())
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .kill_on_drop(true)
                    .spawn()
                    .ok()?;
                let mut lines = BufReader::new(child.stdout.take()?).lines();
                match lines.next_line().await {
                    Ok(Some(line)) if line == "ready" => Some(Holder {
                        pid: child.id()?,
                        _child: child,
                    }),
                    _ => None,
                }
            })
            .await;
        made.as_ref()
    }

    /// The host's command that runs `launch`; its pid becomes the command's own.
    pub(super) async fn command(&self, launch: &Launch) -> Command {
        // As envd does, a shell sets the scene and then becomes the command.
        let script = if launch.terminal {
            r#"cd "$0" && exec setsid --ctty "$@""#
        } else {
            r#"cd "$0" && exec "$@""#
        };
        let holder = self.holder().await;
        let mut command = match holder {
            Some(holder) => {
                // By its full path: a look-up in a changed PATH would cost a real fork for each command.
                let mut command = Command::new(nsenter());
                command.args(["-t", &holder.pid.to_string(), "-m"]);
                if View::of_this_host() == View::User {
                    command.args(["-U", "--preserve-credentials"]);
                }
                command.args(["--", "/bin/sh"]);
                command
            }
            None => Command::new("/bin/sh"),
        };
        let shown = |text: &str| -> OsString {
            if holder.is_some() {
                text.into()
            } else {
                self.replaced(text).into()
            }
        };
        command.args(["-c", script]).arg(shown(&launch.cwd));
        command.arg(&launch.cmd);
        command.args(launch.args.iter().map(|arg| shown(arg)));
        command.env_clear();
        for (name, value) in &launch.envs {
            // These name the command's place; the others are the caller's own words.
            let place = matches!(name.as_str(), "HOME" | "PWD" | "TMPDIR");
            let value = if place { shown(value) } else { value.into() };
            command.env(name, value);
        }
        command
    }

    /// `text` with the sandbox's own directories by their host names.
    fn replaced(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (name, own) in MAPPED.iter().filter(|(name, _)| *name != "/tmp") {
            out = out.replace(name, &self.dir.path().join(own).to_string_lossy());
        }
        out
    }

    /// Whether `cmd` names something that can be started.
    pub(super) fn can_start(&self, cmd: &str) -> bool {
        use std::os::unix::fs::PermissionsExt as _;
        let runs = |path: &Path| {
            std::fs::metadata(path)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        if cmd.contains('/') {
            return runs(&self.host(cmd));
        }
        PATH.split(':').any(|dir| runs(&Path::new(dir).join(cmd)))
    }

    /// Every process of this sandbox, found by its environment.
    pub(super) fn processes(&self) -> Vec<i32> {
        processes_of(&HashSet::from([self.sandbox.clone()]))
    }

    /// Sends `signal` to every process of this sandbox.
    pub(super) fn signal_all(&self, signal: Signal) {
        for pid in self.processes() {
            send(pid, signal);
        }
    }
}

/// Where `nsenter` is on this host.
fn nsenter() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let places = PATH.split(':').map(|dir| Path::new(dir).join("nsenter"));
        let mut there = places.filter(|path| path.is_file());
        there.next().unwrap_or_else(|| PathBuf::from("nsenter"))
    })
}

/// Signals one process; one that is gone is no error.
pub(super) fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).ok();
}

/// The live processes whose environment names one of these sandboxes.
pub(super) fn processes_of(sandboxes: &HashSet<String>) -> Vec<i32> {
    const NAME: &str = "E2B_SANDBOX_ID=";
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(environ) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        let of_ours = environ
            .split(|byte| *byte == 0)
            .filter_map(|var| std::str::from_utf8(var).ok()?.strip_prefix(NAME))
            .any(|id| sandboxes.contains(id));
        if of_ours {
            found.push(pid);
        }
    }
    found
}

/// Kills every process of these sandboxes, also those started while it looks.
pub(super) fn kill_all_of(sandboxes: &HashSet<String>) {
    const ROUNDS: usize = 20;
    let mut quiet = 0;
    for round in 0..ROUNDS {
        let found = processes_of(sandboxes);
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        if quiet == 2 {
            return;
        }
        for pid in found {
            send(pid, Signal::SIGKILL);
        }
        if round > 2 || quiet > 0 {
            // What was killed a moment ago may not have been taken apart yet, and what is being replaced by
            // its program has no environment for a moment.
            #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// An absolute path in its normal form. `path` is absolute, relative to `home`, or starts with `~/`.
pub(super) fn inside(path: &str, home: &str) -> Result<String, String> {
    let joined = match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => format!("{home}{rest}"),
        Some(_) => return Err("cannot expand user-specific home dir".to_owned()),
        None if path.starts_with('/') => path.to_owned(),
        None => format!("{home}/{path}"),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in Path::new(&joined).components() {
        match part {
            Component::ParentDir => {
                parts.pop();
            }
            Component::Normal(part) => parts.push(part.to_str().unwrap_or_default()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(format!("/{}", parts.join("/")))
}
