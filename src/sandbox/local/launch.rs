//! The launcher: the re-executed program, from its first instruction to the agent's loop.
//!
//! Stage 1 runs on the host as an unprivileged user and makes the namespaces. It forks: the child is
//! the sandbox's PID 1 (stage 2: the tree, the walls, then the agent), the parent stays outside only to
//! end it. Three wires tie the sandbox's life to the server's: the end of the control socket ends the
//! agent, the death of the server's thread ends the launcher, the launcher's death ends PID 1; and
//! PID 1's death ends everything in its namespace, which the kernel sees to.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{
    ForkResult, Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, getegid, geteuid,
    getppid, setgroups, setresgid, setresuid, setsid,
};

use super::agent;
use super::at::At as _;
use super::mounts;
use super::protocol::{Failed, Kind, Step, frame, json};
use super::settings::{self, Settings, stands};
use super::sys;
use super::walls;

/// The sandbox's uid and gid, as seen inside.
pub(super) const INNER_ID: u32 = 1000;

/// Runs the launcher with the arguments after the subcommand. Returns when the sandbox is over.
pub(super) fn run(arguments: &[String]) -> ExitCode {
    let Some(settings) = settings::settings_in(arguments) else {
        return refuse("its settings can't be read");
    };
    let on_socket = fstat(std::io::stdin())
        .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode).contains(SFlag::S_IFSOCK));
    if !on_socket {
        return refuse("this command is started by the server only");
    }
    let mut control = None;
    match prepare(&settings, &mut control) {
        Ok(Side::Outside(agent)) => {
            drop(control);
            supervise(agent)
        }
        Ok(Side::Inside) => {
            let Some(control) = control else {
                return ExitCode::FAILURE;
            };
            match build(&settings) {
                Ok(landlock) => agent::run(control, &settings, landlock),
                Err(failed) => report(&control, &failed),
            }
        }
        Err(failed) => match control {
            Some(control) => report(&control, &failed),
            None => ExitCode::FAILURE,
        },
    }
}

fn refuse(why: &str) -> ExitCode {
    writeln!(std::io::stderr(), "sandcaster: no sandbox: {why}").ok();
    ExitCode::from(2)
}

/// Tells the host, which reads this in place of the agent's greeting.
fn report(control: &OwnedFd, failed: &Failed) -> ExitCode {
    if let Ok(fd) = control.try_clone() {
        let told = UnixStream::from(fd).write_all(&frame(Kind::Failed, 0, &json(failed)));
        told.ok();
    }
    ExitCode::FAILURE
}

enum Side {
    Outside(Pid),
    Inside,
}

/// Stage 1, up to and with the fork.
fn prepare(settings: &Settings, control: &mut Option<OwnedFd>) -> Result<Side, Failed> {
    if stands!(settings, ClosedDescriptors) {
        sys::close_from(3).at(Step::Prepare, "close_range")?;
    }
    let socket = sys::duplicate_from(std::io::stdin().as_fd(), 3).at(Step::Prepare, "socket")?;
    *control = Some(socket);
    let null = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .at(Step::Prepare, "/dev/null")?;
    dup2_stdin(&null).at(Step::Prepare, "stdin")?;
    dup2_stdout(&null).at(Step::Prepare, "stdout")?;
    dup2_stderr(&null).at(Step::Prepare, "stderr")?;
    drop(null);

    sys::reset_signals(&[libc::SIGPIPE, libc::SIGXFSZ]);
    let mut awaited = SigSet::empty();
    awaited.add(Signal::SIGTERM);
    awaited.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&awaited), None).at(Step::Prepare, "signals")?;
    umask(Mode::from_bits_truncate(0o022));
    // Fails only for a process group leader, which has left its session's terminal already.
    setsid().ok();
    chdir("/").at(Step::Prepare, "chdir")?;

    if geteuid().is_root() {
        let (uid, gid) = (
            Uid::from_raw(settings.host_uid),
            Gid::from_raw(settings.host_uid),
        );
        setgroups(&[]).at(Step::BecomeUser, "setgroups")?;
        setresgid(gid, gid, gid).at(Step::BecomeUser, "setresgid")?;
        setresuid(uid, uid, uid).at(Step::BecomeUser, "setresuid")?;
        if geteuid().is_root() {
            // Only for `hostUid: 0`: the inner user must never be the host's root.
            return Err(Failed {
                step: Step::BecomeUser,
                errno: Errno::EPERM as i32,
                about: "hostUid 0".to_owned(),
            });
        }
    }
    // After the change of user, which clears both.
    prctl::set_pdeathsig(Signal::SIGTERM).at(Step::Prepare, "pdeathsig")?;
    prctl::set_dumpable(true).at(Step::Prepare, "dumpable")?;
    if u32::try_from(getppid().as_raw()) != Ok(settings.parent) {
        // The server died before the death signal was armed.
        return Err(Failed {
            step: Step::Prepare,
            errno: Errno::ESRCH as i32,
            about: "the server is gone".to_owned(),
        });
    }

    let (uid, gid) = (geteuid(), getegid());
    let mut spaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    if stands!(settings, NetworkNamespace) {
        spaces |= CloneFlags::CLONE_NEWNET;
    }
    unshare(spaces).at(Step::Unshare, "")?;
    prctl::set_dumpable(true).at(Step::IdMap, "dumpable")?;
    fs::write("/proc/self/setgroups", "deny").at(Step::IdMap, "setgroups")?;
    fs::write("/proc/self/uid_map", format!("{INNER_ID} {uid} 1")).at(Step::IdMap, "uid_map")?;
    fs::write("/proc/self/gid_map", format!("{INNER_ID} {gid} 1")).at(Step::IdMap, "gid_map")?;

    match sys::fork().at(Step::Fork, "")? {
        ForkResult::Parent { child } => Ok(Side::Outside(child)),
        ForkResult::Child => Ok(Side::Inside),
    }
}

/// Stays outside until PID 1 has ended; ends it when asked to, or when the server dies.
fn supervise(agent: Pid) -> ExitCode {
    sys::drop_capabilities().ok();
    let mut awaited = SigSet::empty();
    awaited.add(Signal::SIGTERM);
    awaited.add(Signal::SIGCHLD);
    loop {
        if matches!(awaited.wait(), Ok(Signal::SIGTERM)) {
            kill(agent, Signal::SIGKILL).ok();
        }
        // PID 1 can be waited for only once everything in its namespace is gone.
        match waitpid(agent, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => {
                return ExitCode::from(u8::try_from(code).unwrap_or(1));
            }
            Ok(WaitStatus::Signaled(..)) => return ExitCode::from(137),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}

/// Stage 2: the tree and the walls. Gives what Landlock adds.
fn build(settings: &Settings) -> Result<&'static str, Failed> {
    prctl::set_pdeathsig(Signal::SIGKILL).at(Step::Fork, "pdeathsig")?;
    // The sandbox goes before the server when the whole machine is out of memory.
    fs::write("/proc/self/oom_score_adj", "500").at(Step::Limits, "oom_score_adj")?;
    // A host that gave us less already is left as it is.
    sys::be_nice(10).ok();
    if stands!(settings, OwnRoot) {
        mounts::build(settings)?;
    }
    nix::unistd::sethostname("sandbox").at(Step::Mount, "hostname")?;
    if stands!(settings, NetworkNamespace) {
        sys::loopback_up().at(Step::Loopback, "")?;
    }
    walls::raise(settings)
}
