//! The agent's loop: what the host asks and what the sandbox's processes do, one after the other.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::clock::Deadline;

use super::super::protocol::{
    At as _, Decoder, Exec, Failed, Fault, Frame, Hello, Kind, MAX_OPEN, Read, Step, VERSION,
    Violation, Write, frame, json, put,
};
use super::super::settings::Settings;
use super::super::sys;
use super::commands::{self, Command, Pipe};
use super::files::{Reading, Writing};
use super::memory::{Verdict, Watchdog};
use super::processes;

/// While more than this waits to be sent, no more output or file content is taken up.
const OUT_LIMIT: usize = 256 * 1024;
/// How much is read from a source before the others get their turn.
const TURN: usize = 64 * 1024;

/// Runs the agent. Returns when the sandbox is over; the kernel then ends what is left in it.
pub(crate) fn run(control: OwnedFd, settings: &Settings, landlock: &str) -> ExitCode {
    let mut agent = match Agent::new(control, settings) {
        Ok(agent) => agent,
        Err((control, failed)) => {
            if let Some(mut control) = control {
                control
                    .write_all(&frame(Kind::Failed, 0, &json(&failed)))
                    .ok();
            }
            return ExitCode::FAILURE;
        }
    };
    agent.send(
        Kind::Hello,
        0,
        &json(&Hello {
            version: VERSION,
            landlock: landlock.to_owned(),
        }),
    );
    match agent.serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

struct Agent {
    control: UnixStream,
    decoder: Decoder,
    out: BytesMut,
    children: SignalFd,
    commands: BTreeMap<u32, Command>,
    /// Pipes that outlived their command: emptied, so that what still writes to them isn't held up.
    drains: Vec<OwnedFd>,
    reads: BTreeMap<u32, Reading>,
    writes: BTreeMap<u32, Writing>,
    /// Ends of all processes that are told once the ended ones are gone, each with how many there were.
    endings: BTreeMap<u32, u32>,
    watchdog: Watchdog,
    /// Where bytes pass through.
    buffer: Vec<u8>,
}

/// Why the loop ended.
enum Over {
    Io,
    Broken,
    OutOfMemory,
}

impl From<Errno> for Over {
    fn from(_: Errno) -> Self {
        Self::Io
    }
}

impl From<Violation> for Over {
    fn from(_: Violation) -> Self {
        Self::Broken
    }
}

impl Agent {
    fn new(control: OwnedFd, settings: &Settings) -> Result<Self, (Option<UnixStream>, Failed)> {
        let control = UnixStream::from(control);
        let made = || {
            control.set_nonblocking(true).at(Step::Agent, "socket")?;
            // The sandbox's own null device in place of the host's.
            let null = std::fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .at(Step::Agent, "/dev/null")?;
            dup2_stdin(&null).at(Step::Agent, "stdin")?;
            dup2_stdout(&null).at(Step::Agent, "stdout")?;
            dup2_stderr(&null).at(Step::Agent, "stderr")?;
            let mut mask = SigSet::empty();
            mask.add(Signal::SIGCHLD);
            SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                .at(Step::Agent, "signalfd")
        };
        match made() {
            Ok(children) => Ok(Self {
                control,
                decoder: Decoder::default(),
                out: BytesMut::new(),
                children,
                commands: BTreeMap::new(),
                drains: Vec::new(),
                reads: BTreeMap::new(),
                writes: BTreeMap::new(),
                endings: BTreeMap::new(),
                watchdog: Watchdog::new(settings),
                buffer: vec![0; TURN],
            }),
            Err(failed) => Err((Some(control), failed)),
        }
    }

    fn send(&mut self, kind: Kind, id: u32, payload: &[u8]) {
        put(&mut self.out, kind, id, payload);
    }

    fn fault(&mut self, id: u32, fault: &Fault) {
        self.send(Kind::Fault, id, &json(fault));
    }

    fn has_room(&self) -> bool {
        self.out.len() < OUT_LIMIT
    }

    fn serve(&mut self) -> Result<(), Over> {
        loop {
            self.flush()?;
            let (mut fds, sources) = self.interests();
            sys::poll(&mut fds, self.timeout_ms())?;
            let ready = |index: usize| fds.get(index).map_or(0, |fd| fd.revents);
            if ready(1) != 0 {
                self.reap()?;
            }
            for (source, fd) in sources.iter().zip(fds.iter().skip(2)) {
                if fd.revents != 0 {
                    self.pump(*source);
                }
            }
            if ready(0) & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 && !self.receive()? {
                return Ok(());
            }
            self.read_files();
            self.settle_exits();
            self.settle_endings();
            self.watch_memory()?;
        }
    }

    /// What to wait for: the socket, the children, and every pipe that could move now. A pipe that can't
    /// move is left out, for its hang-up would be reported all the time.
    fn interests(&self) -> (Vec<libc::pollfd>, Vec<Source>) {
        let interest = |fd: RawFd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let socket_events = if self.out.is_empty() {
            libc::POLLIN
        } else {
            libc::POLLIN | libc::POLLOUT
        };
        let mut fds = vec![
            interest(self.control.as_raw_fd(), socket_events),
            interest(
                std::os::fd::AsFd::as_fd(&self.children).as_raw_fd(),
                libc::POLLIN,
            ),
        ];
        let mut sources = Vec::new();
        let room = self.has_room();
        for (id, command) in &self.commands {
            for (pipe, fd, events) in command.interests(room) {
                fds.push(interest(fd, events));
                sources.push(Source::Command(*id, pipe));
            }
        }
        for drain in &self.drains {
            fds.push(interest(drain.as_raw_fd(), libc::POLLIN));
            sources.push(Source::Drain(drain.as_raw_fd()));
        }
        (fds, sources)
    }

    fn timeout_ms(&self) -> i32 {
        if !self.reads.is_empty() && self.has_room() {
            return 0;
        }
        let exits = self.commands.values().filter_map(Command::settles_at);
        let next = exits.chain(self.watchdog.next()).min();
        next.map_or(-1, |at: Deadline| {
            let left = at.remaining() + Duration::from_micros(999);
            i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
        })
    }

    fn flush(&mut self) -> Result<(), Over> {
        while !self.out.is_empty() {
            match self.control.write(&self.out) {
                Ok(0) => return Err(Over::Io),
                Ok(count) => self.out.advance(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Over::Io),
            }
        }
        Ok(())
    }

    /// Takes what the host sent; `false` once it has closed.
    fn receive(&mut self) -> Result<bool, Over> {
        match self.control.read(&mut self.buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                let received = self.buffer.get(..count).unwrap_or_default();
                self.decoder.buffer().extend_from_slice(received);
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(true);
            }
            Err(_) => return Err(Over::Io),
        }
        while let Some(frame) = self.decoder.next()? {
            self.handle(&frame)?;
        }
        Ok(true)
    }

    fn handle(&mut self, frame: &Frame) -> Result<(), Over> {
        let id = frame.id;
        match frame.kind {
            Kind::Exec => {
                self.check_room()?;
                let exec: Exec = frame.json()?;
                match Command::start(&exec) {
                    Ok(command) => {
                        self.commands.insert(id, command);
                        self.watchdog.wake();
                    }
                    Err(fault) => self.fault(id, &fault),
                }
            }
            Kind::Read => {
                self.check_room()?;
                let read: Read = frame.json()?;
                match Reading::open(&read) {
                    Ok(reading) => {
                        self.reads.insert(id, reading);
                    }
                    Err(fault) => self.fault(id, &fault),
                }
            }
            Kind::Write => {
                self.check_room()?;
                let write: Write = frame.json()?;
                self.writes.insert(id, Writing::open(&write));
            }
            Kind::Data => {
                let writing = self.writes.get_mut(&id).ok_or(Violation::UnknownId(id))?;
                writing.append(&frame.payload);
            }
            Kind::DataEnd => {
                let writing = self.writes.remove(&id).ok_or(Violation::UnknownId(id))?;
                match writing.finish() {
                    Ok(()) => self.send(Kind::Done, id, &[]),
                    Err(fault) => self.fault(id, &fault),
                }
            }
            // These may cross the command's exit, so an id that is no longer open is no fault.
            Kind::Stdin => {
                self.with_command(id, |command| command.queue_input(frame.payload.clone()));
            }
            Kind::StdinEnd => self.with_command(id, Command::end_input),
            Kind::Kill => self.with_command(id, |command| command.kill()),
            Kind::EndAll => {
                self.check_room()?;
                self.endings.insert(id, processes::end_all());
            }
            Kind::OutputCredit => {
                let frames = frame.number()?;
                self.with_command(id, |command| command.add_credit(frames));
            }
            kind @ (Kind::Hello
            | Kind::Failed
            | Kind::Started
            | Kind::Stdout
            | Kind::Stderr
            | Kind::Exit
            | Kind::InputCredit
            | Kind::Done
            | Kind::Fault
            | Kind::OutOfMemory
            | Kind::Ended) => return Err(Violation::OutOfPlace(kind).into()),
        }
        Ok(())
    }

    fn with_command(&mut self, id: u32, act: impl FnOnce(&mut Command)) {
        if let Some(command) = self.commands.get_mut(&id) {
            act(command);
            self.pump(Source::Command(id, Pipe::Stdin));
        }
    }

    fn check_room(&self) -> Result<(), Violation> {
        let files = self.reads.len() + self.writes.len();
        let open = self.commands.len() + files + self.endings.len();
        if open < MAX_OPEN {
            Ok(())
        } else {
            Err(Violation::NoCredit)
        }
    }

    fn pump(&mut self, source: Source) {
        match source {
            Source::Command(id, pipe) => {
                if let Some(command) = self.commands.get_mut(&id)
                    && let Some(fault) = command.pump(pipe, id, &mut self.out, &mut self.buffer)
                {
                    self.commands.remove(&id);
                    self.fault(id, &fault);
                }
            }
            Source::Drain(fd) => {
                let buffer = &mut self.buffer;
                self.drains
                    .retain(|drain| drain.as_raw_fd() != fd || commands::discard(drain, buffer));
            }
        }
    }

    fn read_files(&mut self) {
        let ids: Vec<u32> = self.reads.keys().copied().collect();
        for id in ids {
            if !self.has_room() {
                return;
            }
            let Some(reading) = self.reads.get_mut(&id) else {
                continue;
            };
            match reading.next() {
                Ok(bytes) if bytes.is_empty() => {
                    self.reads.remove(&id);
                    self.send(Kind::DataEnd, id, &[]);
                }
                Ok(bytes) => put(&mut self.out, Kind::Data, id, &bytes),
                Err(fault) => {
                    self.reads.remove(&id);
                    self.fault(id, &fault);
                }
            }
        }
    }

    /// Reaps everything that has died: our commands, and whatever they left behind.
    fn reap(&mut self) -> Result<(), Over> {
        while let Ok(Some(_)) = self.children.read_signal() {}
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for command in self.commands.values_mut() {
                if command.pid() == pid {
                    command.exited(code);
                }
            }
        }
    }

    /// Reports the exits whose output is through, and keeps emptying the pipes that stay open.
    fn settle_exits(&mut self) {
        let settled: Vec<u32> = self
            .commands
            .iter()
            .filter(|(_, command)| command.is_settled())
            .map(|(id, _)| *id)
            .collect();
        for id in settled {
            let Some(command) = self.commands.remove(&id) else {
                continue;
            };
            let (code, pipes) = command.finish();
            self.send(Kind::Exit, id, &code.to_be_bytes());
            self.drains.extend(pipes);
        }
    }

    /// Tells that all processes are gone, if that was asked for and is so.
    fn settle_endings(&mut self) {
        if !self.endings.is_empty() && is_alone() {
            for (id, count) in std::mem::take(&mut self.endings) {
                self.send(Kind::Ended, id, &count.to_be_bytes());
            }
        }
    }

    fn watch_memory(&mut self) -> Result<(), Over> {
        if self.watchdog.next().is_none() {
            return Ok(());
        }
        match self.watchdog.check() {
            Verdict::Fine => {}
            Verdict::Killed { pid, session, name } => {
                let limit = self.watchdog.limit_mb();
                let text = format!(
                    "sandcaster: killed process {pid} ({name}): the sandbox's memory limit of {limit} MiB was reached\n"
                );
                let owners: Vec<u32> = self
                    .commands
                    .iter()
                    .filter(|(_, command)| command.pid().as_raw() == session)
                    .map(|(id, _)| *id)
                    .collect();
                for id in owners {
                    if let Some(command) = self.commands.get_mut(&id) {
                        command.note(id, text.as_bytes(), &mut self.out);
                    }
                }
            }
            Verdict::Hopeless { used_mb } => {
                let limit = self.watchdog.limit_mb();
                let text = format!("{used_mb} MiB used of {limit} MiB");
                self.send(Kind::OutOfMemory, 0, text.as_bytes());
                let until = Deadline::after(Duration::from_millis(500));
                while !self.out.is_empty() && !until.passed() {
                    self.flush()?;
                    let mut fds = [libc::pollfd {
                        fd: self.control.as_raw_fd(),
                        events: libc::POLLOUT,
                        revents: 0,
                    }];
                    sys::poll(&mut fds, 50)?;
                }
                return Err(Over::OutOfMemory);
            }
        }
        // There is nobody to use memory until the next command.
        if is_alone() {
            self.watchdog.rest();
        }
        Ok(())
    }
}

/// Whether there is no other process: all that have lost their parent are the agent's children.
fn is_alone() -> bool {
    let any = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    matches!(waitid(Id::All, any), Err(Errno::ECHILD))
}

/// Where a ready descriptor belongs.
#[derive(Clone, Copy)]
enum Source {
    Command(u32, Pipe),
    Drain(RawFd),
}
