//! A command: started without ever waiting for it, its three pipes moved as credit allows, its exit told
//! once what it wrote is through.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{
    ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, pipe2, setsid,
};

use crate::clock::Deadline;

use super::super::protocol::{CHUNK, Exec, Fault, Kind, OUTPUT_CREDIT, put};
use super::super::sys;
use super::processes;

/// How long after its exit a command's pipes may still bring something: what a child that shares them
/// is just writing.
const LINGER: Duration = Duration::from_millis(100);

/// Which of a command's pipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pipe {
    /// Tells whether the program could be started.
    Start,
    Stdin,
    Stdout,
    Stderr,
}

pub(super) struct Command {
    pid: Pid,
    start: Option<File>,
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    credit: u32,
    exit: Option<Exit>,
}

/// The writing end of a command's input, with what the host paid for.
struct Input {
    pipe: File,
    queue: VecDeque<Bytes>,
    ended: bool,
}

/// The reading end of an output.
struct Output {
    pipe: File,
    /// What was in the pipe when the command exited and must still be told.
    owed: usize,
}

struct Exit {
    code: i32,
    linger: Deadline,
}

impl Command {
    /// Starts a command. That its program runs is told later, through [`Pipe::Start`].
    pub(super) fn start(exec: &Exec) -> Result<Self, Fault> {
        let argv = strings(&exec.argv)?;
        let env = strings(&exec.env)?;
        let cwd = string(&exec.cwd)?;
        let programs = candidates(exec)?;
        let (start, start_in) = pipe2(OFlag::O_CLOEXEC)?;
        let (stdout, stdout_in) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, stderr_in) = pipe2(OFlag::O_CLOEXEC)?;
        let stdin = if exec.stdin {
            Some(pipe2(OFlag::O_CLOEXEC)?)
        } else {
            None
        };
        let pid = match sys::fork()? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let error = become_command(
                    stdin.as_ref().map(|(read, _)| read),
                    &stdout_in,
                    &stderr_in,
                    &cwd,
                )
                .and_then(|()| run_first(&programs, &argv, &env));
                let (stage, errno) = match error {
                    Err(failed) => failed,
                    Ok(()) => (STAGE_PROGRAM, Errno::ENOENT),
                };
                let mut told = [stage, 0, 0, 0, 0];
                if let Some(number) = told.get_mut(1..) {
                    number.copy_from_slice(&(errno as i32).to_be_bytes());
                }
                File::from(start_in).write_all(&told).ok();
                sys::exit_now(127);
            }
        };
        for pipe in [&start, &stdout, &stderr] {
            no_waiting(pipe)?;
        }
        let stdin = match stdin {
            Some((_, write)) => {
                no_waiting(&write)?;
                Some(Input {
                    pipe: File::from(write),
                    queue: VecDeque::new(),
                    ended: false,
                })
            }
            None => None,
        };
        let output = |pipe| {
            Some(Output {
                pipe: File::from(pipe),
                owed: 0,
            })
        };
        Ok(Self {
            pid,
            start: Some(File::from(start)),
            stdin,
            stdout: output(stdout),
            stderr: output(stderr),
            credit: OUTPUT_CREDIT,
            exit: None,
        })
    }

    pub(super) const fn pid(&self) -> Pid {
        self.pid
    }

    /// The pipes that could move now. `room`: whether output can be taken up at all.
    pub(super) fn interests(&self, room: bool) -> Vec<(Pipe, RawFd, libc::c_short)> {
        let mut fds = Vec::with_capacity(3);
        if let Some(start) = &self.start {
            fds.push((Pipe::Start, start.as_raw_fd(), libc::POLLIN));
            return fds;
        }
        if let Some(stdin) = &self.stdin
            && !stdin.queue.is_empty()
        {
            fds.push((Pipe::Stdin, stdin.pipe.as_raw_fd(), libc::POLLOUT));
        }
        if room && self.credit > 0 {
            if let Some(stdout) = &self.stdout {
                fds.push((Pipe::Stdout, stdout.pipe.as_raw_fd(), libc::POLLIN));
            }
            if let Some(stderr) = &self.stderr {
                fds.push((Pipe::Stderr, stderr.pipe.as_raw_fd(), libc::POLLIN));
            }
        }
        fds
    }

    /// Moves a pipe that is ready. A fault means that the command never ran.
    pub(super) fn pump(
        &mut self,
        pipe: Pipe,
        id: u32,
        out: &mut BytesMut,
        buffer: &mut [u8],
    ) -> Option<Fault> {
        match pipe {
            Pipe::Start => return self.pump_start(id, out),
            Pipe::Stdin => self.pump_stdin(id, out),
            Pipe::Stdout if self.credit > 0 => {
                let sent = forward(&mut self.stdout, Kind::Stdout, id, out, buffer);
                self.credit -= u32::from(sent);
            }
            Pipe::Stderr if self.credit > 0 => {
                let sent = forward(&mut self.stderr, Kind::Stderr, id, out, buffer);
                self.credit -= u32::from(sent);
            }
            Pipe::Stdout | Pipe::Stderr => {}
        }
        None
    }

    fn pump_start(&mut self, id: u32, out: &mut BytesMut) -> Option<Fault> {
        let start = self.start.as_mut()?;
        let mut told = [0; 5];
        match start.read(&mut told) {
            Ok(0) => {
                self.start = None;
                put(out, Kind::Started, id, &[]);
                None
            }
            Ok(_) => {
                let [stage, number @ ..] = told;
                let errno = i32::from_be_bytes(number);
                Some(match (stage, errno) {
                    (STAGE_CWD, errno) => Fault::Cwd(errno),
                    (_, libc::ENOENT | libc::ENOTDIR) => Fault::NoProgram,
                    (_, errno) => Fault::Errno(errno),
                })
            }
            Err(error) if waits(&error) => None,
            Err(error) => Some(Fault::Errno(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }

    fn pump_stdin(&mut self, id: u32, out: &mut BytesMut) {
        let Some(stdin) = &mut self.stdin else {
            return;
        };
        let mut done: u32 = 0;
        let mut closed = false;
        while let Some(bytes) = stdin.queue.front_mut() {
            match stdin.pipe.write(bytes) {
                Ok(count) => {
                    bytes.advance(count);
                    if bytes.is_empty() {
                        stdin.queue.pop_front();
                        done += 1;
                    }
                }
                Err(error) if waits(&error) => break,
                // Nobody reads any more: the rest is not wanted.
                Err(_) => {
                    closed = true;
                    break;
                }
            }
        }
        if done > 0 {
            put(out, Kind::InputCredit, id, &done.to_be_bytes());
        }
        if closed || (stdin.ended && stdin.queue.is_empty()) {
            self.stdin = None;
        }
    }

    /// Takes input. The host sends no more than it has credit for.
    pub(super) fn queue_input(&mut self, bytes: Bytes) {
        if let Some(stdin) = &mut self.stdin
            && !bytes.is_empty()
        {
            stdin.queue.push_back(bytes);
        }
    }

    pub(super) fn end_input(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.ended = true;
        }
    }

    pub(super) fn add_credit(&mut self, frames: u32) {
        self.credit = self.credit.saturating_add(frames).min(OUTPUT_CREDIT);
    }

    /// Tells the reader something on the command's standard error, if there is credit for it.
    pub(super) fn note(&mut self, id: u32, text: &[u8], out: &mut BytesMut) {
        if self.credit > 0 && self.start.is_none() {
            self.credit -= 1;
            put(out, Kind::Stderr, id, text);
        }
    }

    /// Kills the command's group and session, and every descendant that can still be told.
    pub(super) fn kill(&self) {
        processes::kill_tree(self.pid, self.exit.is_none());
    }

    /// Notes the exit. What is in the pipes now was written before it and will be told in full.
    pub(super) fn exited(&mut self, code: i32) {
        for output in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            output.owed = sys::bytes_waiting(&output.pipe);
        }
        self.stdin = None;
        self.exit = Some(Exit {
            code,
            linger: Deadline::after(LINGER),
        });
    }

    /// When the exit can be told at the latest; `None` while it runs, or while its output waits for the
    /// reader.
    pub(super) fn settles_at(&self) -> Option<Deadline> {
        let exit = self.exit.as_ref()?;
        (self.owed() == 0).then_some(exit.linger)
    }

    fn owed(&self) -> usize {
        [&self.stdout, &self.stderr]
            .into_iter()
            .flatten()
            .map(|output| output.owed)
            .sum()
    }

    /// Whether it has exited and its output is through.
    pub(super) fn is_settled(&self) -> bool {
        let Some(exit) = &self.exit else {
            return false;
        };
        if self.start.is_some() {
            return false;
        }
        (self.stdout.is_none() && self.stderr.is_none())
            || (self.owed() == 0 && exit.linger.passed())
    }

    /// The exit code, and the pipes that something else still holds.
    pub(super) fn finish(self) -> (i32, impl Iterator<Item = OwnedFd>) {
        let code = self.exit.map_or(-1, |exit| exit.code);
        let pipes = [self.stdout, self.stderr].into_iter().flatten();
        (code, pipes.map(|output| OwnedFd::from(output.pipe)))
    }
}

/// Moves at most one frame of output; whether one was sent.
fn forward(
    output: &mut Option<Output>,
    kind: Kind,
    id: u32,
    out: &mut BytesMut,
    buffer: &mut [u8],
) -> bool {
    let Some(open) = output else {
        return false;
    };
    let most = buffer.len().min(CHUNK);
    let Some(buffer) = buffer.get_mut(..most) else {
        return false;
    };
    match open.pipe.read(buffer) {
        Ok(0) => {
            *output = None;
            false
        }
        Ok(count) => {
            open.owed = open.owed.saturating_sub(count);
            put(out, kind, id, buffer.get(..count).unwrap_or_default());
            true
        }
        Err(error) if waits(&error) => {
            open.owed = 0;
            false
        }
        Err(_) => {
            *output = None;
            false
        }
    }
}

/// Empties a pipe a little; `false` once it is closed.
pub(super) fn discard(pipe: &OwnedFd, buffer: &mut [u8]) -> bool {
    match nix::unistd::read(pipe, buffer) {
        Ok(0) => false,
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => true,
        Err(_) => false,
    }
}

fn waits(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn no_waiting(fd: &OwnedFd) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno as i32)
    }
}

fn string(text: &str) -> Result<CString, Fault> {
    CString::new(text).map_err(|_| Fault::Errno(libc::EINVAL))
}

fn strings(texts: &[String]) -> Result<Vec<CString>, Fault> {
    texts.iter().map(|text| string(text)).collect()
}

/// The files that a program's name may mean, by the `PATH` that the command gets.
fn candidates(exec: &Exec) -> Result<Vec<CString>, Fault> {
    let name = exec.argv.first().ok_or(Fault::Errno(libc::EINVAL))?;
    if name.is_empty() {
        return Err(Fault::NoProgram);
    }
    if name.contains('/') {
        return Ok(vec![string(name)?]);
    }
    let path = exec
        .env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    path.split(':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| string(&format!("{directory}/{name}")))
        .collect()
}

const STAGE_SETUP: u8 = 1;
const STAGE_CWD: u8 = 2;
const STAGE_PROGRAM: u8 = 3;

type Failure = (u8, Errno);

/// In the child: its own session and group, its pipes, its directory, default signals.
fn become_command(
    stdin: Option<&OwnedFd>,
    stdout: &OwnedFd,
    stderr: &OwnedFd,
    cwd: &CString,
) -> Result<(), Failure> {
    let setup = |errno| (STAGE_SETUP, errno);
    setsid().map_err(setup)?;
    if let Some(stdin) = stdin {
        dup2_stdin(stdin).map_err(setup)?;
    }
    dup2_stdout(stdout).map_err(setup)?;
    dup2_stderr(stderr).map_err(setup)?;
    sys::reset_signals(&[]);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(setup)?;
    chdir(cwd.as_c_str()).map_err(|errno| (STAGE_CWD, errno))
}

/// In the child: becomes the first of `programs` that can be run. Returns only if none can.
fn run_first(programs: &[CString], argv: &[CString], env: &[CString]) -> Result<(), Failure> {
    let mut reason = Errno::ENOENT;
    for program in programs {
        match execve(program, argv, env) {
            Err(Errno::ENOEXEC) => {
                // A script without `#!` is the shell's, as `execvp` has it.
                let mut shell = vec![c"/bin/sh".to_owned(), program.clone()];
                shell.extend(argv.iter().skip(1).cloned());
                let Err(errno) = execve(c"/bin/sh", &shell, env);
                reason = errno;
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => reason = errno,
        }
    }
    Err((STAGE_PROGRAM, reason))
}
