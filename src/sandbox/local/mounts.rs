//! The sandbox's tree: the host's programs read-only, everything else made here, in memory.
//!
//! Nothing of the host is visible but `/usr` with its links, a few files of `/etc` that programs need to
//! start, and the operator's `readOnlyPaths`.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::at::At;
use super::protocol::{Failed, Step};
use super::settings::{Settings, stands};
use super::sys;

/// Where commands start, and the only place that a run's files are looked for.
pub(super) const HOME: &str = "/home/user";

/// Where the host's tree is while ours is built, and where ours is.
const OLD: &str = "/old";
const NEW: &str = "/new";

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// What programs read in `/etc` to run at all: linker cache, certificates, time zone, alternatives.
/// Never `ssl/private`, never a file with people or machines in it.
const ETC: &[&str] = &[
    "alternatives",
    "ssl/certs",
    "ssl/openssl.cnf",
    "ca-certificates",
    "ca-certificates.conf",
    "pki/tls/certs",
    "pki/ca-trust",
    "crypto-policies",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "timezone",
    "mime.types",
    "magic",
    "protocols",
    "services",
    "shells",
    "terminfo",
];
/// Directories of language runtimes in `/etc`, by the start of their name.
const ETC_RUNTIMES: &[&str] = &["python", "perl", "java-", "nodejs", "ruby"];

/// Files of `/etc` that are ours.
const ETC_OWN: &[(&str, &str)] = &[
    (
        "passwd",
        "root:x:0:0:root:/root:/usr/sbin/nologin\n\
         user:x:1000:1000:user:/home/user:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("group", "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"),
    ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n"),
    ("hostname", "sandbox\n"),
    (
        "nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n",
    ),
    ("resolv.conf", "# This sandbox has no network.\n"),
];

/// Files of `/proc` that tell about the host or change it: covered by `/dev/null`.
const PROC_COVERED: &[&str] = &[
    "kcore",
    "keys",
    "kallsyms",
    "kmsg",
    "sysrq-trigger",
    "timer_list",
    "sched_debug",
    "latency_stats",
    "config.gz",
    "key-users",
    "kpagecount",
    "kpageflags",
    "kpagecgroup",
    "modules",
];
/// Parts of `/proc` that are only read.
const PROC_READ_ONLY: &[&str] = &["sys", "bus", "fs", "irq", "acpi", "scsi"];

const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Builds the tree and makes it the root.
pub(super) fn build(settings: &Settings) -> Result<(), Failed> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).at(Step::Mount, "/")?;
    // A first, empty tmpfs becomes the root, with the host's tree in /old: so that what the host has
    // below the place of that tmpfs is not hidden by it.
    tmpfs("/tmp", "size=64k,nr_inodes=16,mode=755")?;
    make_dir("/tmp/old")?;
    make_dir("/tmp/new")?;
    pivot_root("/tmp", "/tmp/old").at(Step::PivotRoot, "first")?;
    chdir("/").at(Step::PivotRoot, "first")?;
    tmpfs(NEW, "size=1m,nr_inodes=2048,mode=755")?;

    system(settings)?;
    etc(settings)?;
    devices(settings)?;
    proc(settings)?;
    writable(settings)?;
    for path in &settings.read_only_paths {
        read_only_path(settings, path)?;
    }

    chdir(NEW).at(Step::PivotRoot, "new")?;
    pivot_root(".", ".").at(Step::PivotRoot, "second")?;
    umount2(".", MntFlags::MNT_DETACH).at(Step::PivotRoot, "old")?;
    chdir("/").at(Step::PivotRoot, "/")?;
    if stands!(settings, ReadOnlyMounts) {
        for path in ["/", "/dev"] {
            attributes(path, false, libc::MOUNT_ATTR_RDONLY)?;
        }
    }
    Ok(())
}

fn inside(path: impl AsRef<Path>) -> PathBuf {
    join(NEW, path.as_ref())
}

fn outside(path: impl AsRef<Path>) -> PathBuf {
    join(OLD, path.as_ref())
}

fn join(base: &str, path: &Path) -> PathBuf {
    Path::new(base).join(path.strip_prefix("/").unwrap_or(path))
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn make_dir(path: impl AsRef<Path>) -> Result<(), Failed> {
    let path = path.as_ref();
    fs::create_dir_all(path).at(Step::Mount, &shown(path))
}

fn tmpfs(path: impl AsRef<Path>, options: &str) -> Result<(), Failed> {
    let path = path.as_ref();
    mount(Some("tmpfs"), path, Some("tmpfs"), SAFE, Some(options)).at(Step::Mount, &shown(path))
}

fn attributes(path: impl AsRef<Path>, recursive: bool, set: u64) -> Result<(), Failed> {
    let path = path.as_ref();
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(io::Error::from)
        .at(Step::MountAttributes, &shown(path))?;
    sys::mount_setattr(&name, recursive, set).at(Step::MountAttributes, &shown(path))
}

fn bind(from: &Path, to: &Path) -> nix::Result<()> {
    let none: Option<&str> = None;
    mount(
        Some(from),
        to,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
}

/// Shows the host's file or directory `path` at the same place, read-only. A symlink stays one. What the
/// host lacks, or doesn't let us see, is left out.
fn show(settings: &Settings, path: impl AsRef<Path>) -> Result<(), Failed> {
    let path = path.as_ref();
    let (from, to) = (outside(path), inside(path));
    let Ok(found) = fs::symlink_metadata(&from) else {
        return Ok(());
    };
    if let Some(parent) = to.parent() {
        make_dir(parent)?;
    }
    if found.is_symlink() {
        let target = fs::read_link(&from).at(Step::Mount, &shown(path))?;
        return symlink(target, &to).at(Step::Mount, &shown(path));
    }
    if found.is_dir() {
        make_dir(&to)?;
    } else {
        fs::File::create(&to)
            .map(drop)
            .at(Step::Mount, &shown(path))?;
    }
    bind(&from, &to).at(Step::Mount, &shown(path))?;
    protect(settings, &to)
}

fn protect(settings: &Settings, to: &Path) -> Result<(), Failed> {
    let mut set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if stands!(settings, ReadOnlyMounts) {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    attributes(to, true, set)
}

/// The programs: `/usr`, and what lies beside it, as links into it or as the host has it.
fn system(settings: &Settings) -> Result<(), Failed> {
    for path in ["usr", "bin", "sbin", "lib", "lib64", "lib32", "libx32"] {
        show(settings, path)?;
    }
    Ok(())
}

fn etc(settings: &Settings) -> Result<(), Failed> {
    make_dir(inside("etc"))?;
    for (name, text) in ETC_OWN {
        let path = inside("etc").join(name);
        fs::write(&path, text).at(Step::Mount, name)?;
    }
    for name in ETC {
        show(settings, Path::new("etc").join(name))?;
    }
    let Ok(entries) = fs::read_dir(outside("etc")) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if ETC_RUNTIMES.iter().any(|start| text.starts_with(start)) {
            show(settings, Path::new("etc").join(&name))?;
        }
    }
    Ok(())
}

fn devices(settings: &Settings) -> Result<(), Failed> {
    let dev = inside("dev");
    make_dir(&dev)?;
    tmpfs(&dev, "size=64k,nr_inodes=64,mode=755")?;
    for name in DEVICES {
        let to = dev.join(name);
        fs::File::create(&to).map(drop).at(Step::Mount, name)?;
        bind(&outside("dev").join(name), &to).at(Step::Mount, name)?;
        attributes(
            &to,
            false,
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        )?;
    }
    for (target, name) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        symlink(target, dev.join(name)).at(Step::Mount, name)?;
    }
    let pts = dev.join("pts");
    make_dir(&pts)?;
    mount(
        Some("devpts"),
        &pts,
        Some("devpts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("newinstance,ptmxmode=0666,mode=620"),
    )
    .at(Step::Mount, "devpts")?;
    let shm = dev.join("shm");
    make_dir(&shm)?;
    let size = settings.shm_bytes();
    tmpfs(&shm, &format!("size={size},nr_inodes=4096,mode=1777"))
}

fn proc(settings: &Settings) -> Result<(), Failed> {
    let proc = inside("proc");
    make_dir(&proc)?;
    let none: Option<&str> = None;
    mount(
        Some("proc"),
        &proc,
        Some("proc"),
        SAFE | MsFlags::MS_NOEXEC,
        none,
    )
    .at(Step::MountProc, "")?;
    let null = outside("dev/null");
    for name in PROC_COVERED {
        let path = proc.join(name);
        if path.exists() {
            bind(&null, &path).at(Step::Mount, name)?;
        }
    }
    for name in PROC_READ_ONLY {
        let path = proc.join(name);
        if !path.exists() {
            continue;
        }
        bind(&path, &path).at(Step::Mount, name)?;
        protect(settings, &path)?;
    }
    Ok(())
}

/// The places that can be written: in memory, bounded, gone with the sandbox.
fn writable(settings: &Settings) -> Result<(), Failed> {
    let tmp = inside("tmp");
    make_dir(&tmp)?;
    let size = settings.tmp_bytes();
    tmpfs(&tmp, &format!("size={size},nr_inodes=65536,mode=1777"))?;
    let home = inside(HOME);
    make_dir(&home)?;
    let size = settings.disk_bytes();
    tmpfs(&home, &format!("size={size},nr_inodes=262144,mode=755"))?;
    make_dir(inside("var"))?;
    symlink("/tmp", inside("var/tmp")).at(Step::Mount, "/var/tmp")?;
    make_dir(inside("run"))
}

/// A directory that the operator allows. Unlike the others, it must be there.
fn read_only_path(settings: &Settings, path: &Path) -> Result<(), Failed> {
    let from = outside(path);
    let to = inside(path);
    let found = fs::metadata(&from).at(Step::ReadOnlyPath, &shown(path))?;
    if found.is_dir() {
        fs::create_dir_all(&to).at(Step::ReadOnlyPath, &shown(path))?;
    } else {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).at(Step::ReadOnlyPath, &shown(path))?;
        }
        fs::File::create(&to)
            .map(drop)
            .at(Step::ReadOnlyPath, &shown(path))?;
    }
    bind(&from, &to).at(Step::ReadOnlyPath, &shown(path))?;
    protect(settings, &to)
}

/// Why `path` can't be one of `readOnlyPaths`, if it can't: it would hide what the sandbox is made of, or
/// show what it must not see.
pub(super) fn unfit_read_only_path(path: &Path) -> Option<&'static str> {
    const OURS: &[&str] = &[
        "/proc",
        "/sys",
        "/dev",
        "/tmp",
        "/home/user",
        "/run",
        "/var/run",
        "/etc",
        "/var/tmp",
    ];
    if !path.is_absolute() {
        return Some("it must be absolute");
    }
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !plain {
        return Some("it must not contain `..`");
    }
    if path.as_os_str().as_bytes().contains(&0) {
        return Some("it must not contain a NUL byte");
    }
    let clash = OURS
        .iter()
        .any(|ours| path.starts_with(ours) || Path::new(ours).starts_with(path));
    clash.then_some("it covers or lies in a directory that every sandbox has of its own")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_would_open_the_host_are_unfit() {
        for path in [
            "/",
            "/etc",
            "/etc/ssl",
            "/proc/1",
            "/home",
            "/home/user/x",
            "/dev",
            "opt",
            "/opt/../etc",
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/var",
            "/tmp/x",
        ] {
            assert!(unfit_read_only_path(Path::new(path)).is_some(), "{path}");
        }
        for path in ["/opt/node", "/srv/tools", "/home/other/.pyenv"] {
            assert_eq!(unfit_read_only_path(Path::new(path)), None, "{path}");
        }
    }
}
