//! Launchers as processes: started from one thread, watched, ended, and found again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::settings::{LabelsInArgv, labels_in};
use super::sys;

/// Starts launchers, all from one thread that lives as long as this.
///
/// A launcher asks to be told when its parent dies, and the kernel takes the *thread* that started it for
/// the parent. The runtime's threads come and go; this one doesn't.
#[derive(Debug)]
pub(super) struct Spawner {
    jobs: SyncSender<Job>,
}

enum Job {
    Start(Start),
    /// Wait for one whose watcher is gone.
    Reap(Child),
}

struct Start {
    program: PathBuf,
    arguments: Vec<String>,
    socket: UnixStream,
    done: oneshot::Sender<io::Result<Child>>,
}

impl Spawner {
    /// # Errors
    /// When no thread can be started.
    pub(super) fn new() -> io::Result<Self> {
        // Senders wait when it is full; each job takes a millisecond.
        let (jobs, queue) = sync_channel(256);
        std::thread::Builder::new()
            .name("sandbox-spawner".to_owned())
            .spawn(move || serve(&queue))?;
        Ok(Self { jobs })
    }

    /// Starts a launcher with `socket` as its standard input and nothing else of ours.
    pub(super) async fn start(
        &self,
        program: PathBuf,
        arguments: Vec<String>,
        socket: UnixStream,
    ) -> io::Result<Launcher> {
        let (done, started) = oneshot::channel();
        let job = Job::Start(Start {
            program,
            arguments,
            socket,
            done,
        });
        let gone = || io::Error::other("the thread that starts sandboxes is gone");
        self.jobs.try_send(job).map_err(|_| {
            io::Error::other("too many sandboxes are being started at the same moment")
        })?;
        let child = started.await.map_err(|_| gone())??;
        Launcher::new(child, self.jobs.clone())
    }
}

fn serve(queue: &Receiver<Job>) {
    let mut orphans: Vec<Child> = Vec::new();
    loop {
        let job = if orphans.is_empty() {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(Duration::from_millis(20))
        };
        match job {
            Ok(Job::Start(start)) => {
                let started = Command::new(&start.program)
                    .args(&start.arguments)
                    .env_clear()
                    .current_dir("/")
                    .stdin(Stdio::from(OwnedFd::from(start.socket)))
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn();
                // Nobody waits any more: the socket is closed, so it ends by itself.
                if let Err(Ok(child)) = start.done.send(started) {
                    orphans.push(child);
                }
            }
            Ok(Job::Reap(child)) => orphans.push(child),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                // Each has been told to end, or its socket is closed. What still lives when this thread
                // ends is told once more, by the kernel.
                for mut child in orphans {
                    child.wait().ok();
                }
                return;
            }
        }
        orphans.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

/// A running launcher. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Launcher {
    child: Option<Child>,
    pidfd: AsyncFd<OwnedFd>,
    orphanage: SyncSender<Job>,
}

impl Launcher {
    fn new(child: Child, orphanage: SyncSender<Job>) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        // Still our child and not waited for, so the number can't mean another process.
        let pidfd = sys::pidfd_open(Pid::from_raw(pid))
            .map_err(io::Error::from)
            .and_then(sys::watched);
        match pidfd {
            Ok(pidfd) => Ok(Self {
                child: Some(child),
                pidfd,
                orphanage,
            }),
            Err(error) => {
                orphanage.try_send(Job::Reap(child)).ok();
                Err(error)
            }
        }
    }

    /// Ends the sandbox, and returns once all of it is gone: the launcher kills PID 1, and can't be done
    /// with waiting for it before everything in its namespace is dead.
    ///
    /// # Errors
    /// When it is still there after several seconds.
    pub(super) async fn end(&mut self) -> io::Result<Option<i32>> {
        for (signal, patience) in [
            (Signal::SIGTERM, Duration::from_secs(3)),
            (Signal::SIGKILL, Duration::from_secs(3)),
        ] {
            // Fails only if it has ended, which the wait sees.
            sys::pidfd_signal(self.pidfd.get_ref(), signal).ok();
            match tokio::time::timeout(patience, self.ended()).await {
                Ok(status) => return status,
                Err(_) => {
                    tracing::warn!(?signal, "a sandbox's launcher did not end in time");
                }
            }
        }
        Err(io::Error::other(
            "the sandbox's launcher could not be ended",
        ))
    }

    /// Waits until it has ended by itself, and gives its exit code.
    pub(super) async fn ended(&mut self) -> io::Result<Option<i32>> {
        let mut ready = self.pidfd.readable().await?;
        ready.retain_ready();
        drop(ready);
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status.and_then(|status| status.code()))
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            sys::pidfd_signal(self.pidfd.get_ref(), Signal::SIGTERM).ok();
            // If the queue is full or closed, the launcher still ends; only its entry in the process
            // table stays until we end as well.
            self.orphanage.try_send(Job::Reap(child)).ok();
        }
    }
}

/// A launcher of some server, found in `/proc`.
pub(super) struct Found {
    pub(super) labels: LabelsInArgv,
    pid: Pid,
}

/// All launchers that run `program`.
///
/// A process inside a sandbox can dress up as a launcher, if the program is installed where it sees it;
/// but it is in a process namespace below ours, which `NSpid` tells.
pub(super) fn find(program: &Path) -> io::Result<Vec<Found>> {
    let ours = fs::metadata(program)?;
    let entries = fs::read_dir("/proc")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| is_launcher(pid, &ours))
        .collect())
}

fn is_launcher(pid: i32, ours: &fs::Metadata) -> Option<Found> {
    let labels = labels_in(&fs::read(format!("/proc/{pid}/cmdline")).ok()?)?;
    let exe = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    if (exe.dev(), exe.ino()) != (ours.dev(), ours.ino()) {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let spaces = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?
        .split_whitespace()
        .count();
    (spaces == 1).then(|| Found {
        labels,
        pid: Pid::from_raw(pid),
    })
}

impl Found {
    /// Ends it, and waits until all of its sandbox is gone. Blocks for at most some seconds.
    ///
    /// # Errors
    /// When it may not be ended, or isn't in time.
    pub(super) fn end(&self, program: &Path) -> io::Result<()> {
        let Ok(pidfd) = sys::pidfd_open(self.pid) else {
            return Ok(());
        };
        // The number may have become another process's before the handle was made; now it can't.
        let ours = fs::metadata(program)?;
        match is_launcher(self.pid.as_raw(), &ours) {
            Some(found) if found.labels == self.labels => {}
            _ => return Ok(()),
        }
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            match sys::pidfd_signal(&pidfd, signal) {
                Ok(()) => {}
                Err(nix::errno::Errno::ESRCH) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
            let mut fds = [libc::pollfd {
                fd: std::os::fd::AsRawFd::as_raw_fd(&pidfd),
                events: libc::POLLIN,
                revents: 0,
            }];
            sys::poll(&mut fds, 3000)?;
            if fds.iter().any(|fd| fd.revents != 0) {
                return Ok(());
            }
        }
        Err(io::Error::other(
            "the sandbox's launcher could not be ended",
        ))
    }
}
