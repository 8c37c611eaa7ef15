//! The system calls that `nix` has no safe wrapper for.
#![expect(
    unsafe_code,
    reason = "each block is one system call whose arguments live on this stack; no pointer outlives its call"
)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};
use tokio::io::unix::AsyncFd;

/// Forks. The child is a copy of a process with one thread.
///
/// Only the launcher and the agent call this. They never start a thread, so the child may allocate and
/// take locks as if nothing had happened.
pub(super) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: the process has a single thread (see above), so no lock is held by a thread that vanished.
    unsafe { nix::unistd::fork() }
}

/// Ends the process at once, without running destructors: for a child that could not be what it should.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on.
pub(super) fn close_from(first: u32) -> nix::Result<()> {
    // SAFETY: called by the launcher before it owns any descriptor at or above `first`, so no owner is
    // left with a number that is closed.
    let done = unsafe { libc::close_range(first, u32::MAX, 0) };
    Errno::result(done).map(drop)
}

/// A duplicate of `fd` with a number of at least `min`, closed on exec.
pub(super) fn duplicate_from(fd: BorrowedFd<'_>, min: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: the descriptor is open for the call, and the result is new and owned by nobody else.
    let raw = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, min) };
    let raw = Errno::result(raw)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Sets attributes of the mount at `path`; of those below it too, if `recursive`.
pub(super) fn mount_setattr(path: &CStr, recursive: bool, set: u64) -> nix::Result<()> {
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `path` and `attr` live through the call, and the size is that of `attr`.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(done).map(drop)
}

fn prctl(operation: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> nix::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: only used with operations whose arguments are plain numbers.
    let done = unsafe { libc::prctl(operation, first, second, zero, zero) };
    Errno::result(done).map(drop)
}

/// Gives up every capability for good: bounding and ambient sets, the ways back by exec, then the rest.
pub(super) fn drop_capabilities() -> nix::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    // NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE, with the lock of each.
    const LOCKED: libc::c_ulong = 0b1110_1111;
    let ambient_clear_all = 4;
    prctl(libc::PR_CAP_AMBIENT, ambient_clear_all, 0)?;
    prctl(libc::PR_SET_SECUREBITS, LOCKED, 0)?;
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(()) => {}
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    let header: [u32; 2] = [VERSION_3, 0];
    let none: [u32; 6] = [0; 6];
    // SAFETY: version 3 reads two words of header and six of data, both on this stack.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Brings the loopback interface of this network namespace up.
pub(super) fn loopback_up() -> nix::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero `ifreq` is a valid value of that plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes_with_nul()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: the request outlives the call, which reads it as the `ifreq` that it is.
    let done = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    };
    Errno::result(done).map(drop)
}

/// Waits until one of `fds` is ready or `timeout_ms` have passed (-1: no limit). An interruption by a
/// signal counts as nothing ready.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> nix::Result<()> {
    let count = libc::nfds_t::try_from(fds.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the slice is valid for `count` elements for the whole call.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), count, timeout_ms) };
    match Errno::result(ready) {
        Ok(_) => Ok(()),
        Err(Errno::EINTR) => {
            for fd in fds {
                fd.revents = 0;
            }
            Ok(())
        }
        Err(errno) => Err(errno),
    }
}

/// How many bytes wait in a pipe.
pub(super) fn bytes_waiting(fd: impl AsFd) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which lives here.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD as _, &raw mut count) };
    if done < 0 {
        return 0;
    }
    usize::try_from(count).unwrap_or(0)
}

/// A handle of the process `pid`: readable once that has ended, and never another process's.
pub(super) fn pidfd_open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: two plain numbers in, a new descriptor out.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let raw = Errno::result(raw)?;
    let raw = RawFd::try_from(raw).map_err(|_| Errno::EBADF)?;
    // SAFETY: the descriptor is new and owned by nobody else. The kernel sets close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Lets the runtime wait for `fd`.
pub(super) fn watched(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the same descriptor, and keeps it open for as long as it is in
    // the `AsyncFd`, which nobody takes it out of.
    unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)
}

/// Sends a signal to the process behind `pidfd`.
pub(super) fn pidfd_signal(pidfd: impl AsFd, signal: nix::sys::signal::Signal) -> nix::Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null `info` is allowed and means an ordinary signal.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal as libc::c_int,
            info,
            0,
        )
    };
    Errno::result(done).map(drop)
}

/// Sets every signal that can be set to its default, and those in `ignored` to be ignored.
pub(super) fn reset_signals(ignored: &[libc::c_int]) {
    for signal in 1..=libc::SIGRTMAX() {
        let action = if ignored.contains(&signal) {
            libc::SIG_IGN
        } else {
            libc::SIG_DFL
        };
        // SAFETY: neither disposition runs code. Signals that can't be set give an error, which is fine.
        unsafe { libc::signal(signal, action) };
    }
}

/// Lowers this process's claim to the CPU to `nice` (0 to 19), for all that it starts as well.
pub(super) fn be_nice(nice: i32) -> nix::Result<()> {
    // SAFETY: three plain numbers.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    Errno::result(done).map(drop)
}
