//! Attempts to get out of a `local` sandbox, by the rows of the threat table. Each is a list of breaches
//! that must be empty; and in debug builds each is shown to find one once its wall is left out.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use sandcaster::sandbox::{LocalLimits, Sandbox, SandboxBackend};

use super::{create, local, local_with, run, sh, shell, soon};

type Backend = Arc<dyn SandboxBackend>;
/// What an attempt got that it must not get.
type Breaches = Vec<String>;

/// The probe, compiled once for this process by the C compiler that Rust links with.
fn probe() -> Bytes {
    static PROBE: OnceLock<Bytes> = OnceLock::new();
    PROBE
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let binary = dir.path().join("probe");
            let mut compiler = Command::new("cc")
                .args(["-x", "c", "-", "-o"])
                .arg(&binary)
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut source = compiler.stdin.take().unwrap();
            source.write_all(include_bytes!("probe.c")).unwrap();
            drop(source);
            let done = compiler.wait_with_output().unwrap();
            assert!(
                done.status.success(),
                "{}",
                String::from_utf8_lossy(&done.stderr)
            );
            std::fs::read(binary).unwrap().into()
        })
        .clone()
}

pub async fn with_probe(backend: &Backend) -> Arc<dyn Sandbox> {
    let sandbox = create(backend).await;
    soon(sandbox.write("probe", probe())).await.unwrap();
    assert_eq!(shell(&sandbox, "chmod 755 probe").await.0, 0);
    sandbox
}

/// Runs attempts of the probe, each with what it may give, up to the first other answer: that may have
/// stopped the agent.
async fn attempts(sandbox: &Arc<dyn Sandbox>, expected: &[(&str, &[&str])]) -> Breaches {
    for (attempt, allowed) in expected {
        let (code, text) = shell(sandbox, &format!("exec ./probe {attempt}")).await;
        let got = match code {
            159 => "SIGSYS",
            _ => text.trim(),
        };
        if !allowed.contains(&got) {
            return vec![format!("{attempt}: {got} ({code}), not {allowed:?}")];
        }
    }
    Breaches::new()
}

// --- the rows ---

async fn hidden_files(backend: Backend) -> Breaches {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("sandcaster.json");
    std::fs::write(&config, "{}").unwrap();
    let sandbox = create(&backend).await;
    let mut breaches = Vec::new();
    for path in [
        "/etc/shadow",
        "/root",
        "/home/user/..//root",
        env!("CARGO_MANIFEST_DIR"),
        config.to_str().unwrap(),
        "/var/log",
        "/sys",
        "/boot",
        "/dev/kvm",
        "/dev/fuse",
        "/dev/net/tun",
        "/run/docker.sock",
        "/var/run/docker.sock",
    ] {
        let mut look = sh("ls -d \"$0\" 2>&1");
        look.argv.push(path.to_owned());
        "/".clone_into(&mut look.cwd);
        let found = run(&sandbox, look).await;
        if !String::from_utf8_lossy(&found.stdout).contains("No such file") {
            breaches.push(path.to_owned());
        }
    }
    breaches
}

async fn hidden_environment(backend: Backend) -> Breaches {
    // What every command has of its own, and what shells set by themselves.
    let own = [
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_",
    ];
    let secret = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .find(|name| !own.contains(&name.as_str()))
        .expect("this process has a variable of its own");
    let sandbox = with_probe(&backend).await;
    let mut breaches = attempts(
        &sandbox,
        &[
            ("environ", &["EACCES"]),
            ("mem", &["EACCES"]),
            ("fds", &["EACCES"]),
            ("root", &["EACCES"]),
        ],
    )
    .await;
    let search = format!("grep -lw {secret} /proc/[0-9]*/environ /proc/self/environ 2>/dev/null");
    let (_, found) = shell(&sandbox, &search).await;
    breaches.extend(found.lines().map(str::to_owned));
    breaches
}

async fn only_its_own_processes(backend: Backend) -> Breaches {
    let sandbox = create(&backend).await;
    let (_, seen) = shell(&sandbox, "cd /proc; echo [0-9]*; cat 1/comm").await;
    let mut lines = seen.lines();
    let pids = lines.next().unwrap_or_default().split(' ').count();
    let first = lines.next().unwrap_or_default();
    if pids <= 3 && first.starts_with("sandcaster") {
        return Vec::new();
    }
    vec![seen]
}

async fn no_descriptor_of_the_server(backend: Backend) -> Breaches {
    let leaky = std::fs::File::open("/dev/null").unwrap();
    fcntl(leaky.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let sandbox = create(&backend).await;
    drop(leaky);
    let (_, fds) = shell(&sandbox, "exec ls /proc/self/fd").await;
    if fds.split_whitespace().eq(["0", "1", "2", "3"]) {
        return Vec::new();
    }
    vec![fds]
}

async fn nothing_of_the_system_can_be_written(backend: Backend) -> Breaches {
    let sandbox = create(&backend).await;
    let mut breaches = Vec::new();
    for path in [
        "/usr/x",
        "/usr/bin/x",
        "/etc/x",
        "/etc/passwd",
        "/x",
        "/dev/x",
        "/run/x",
        "/var/x",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
    ] {
        let (_, text) = shell(&sandbox, &format!("echo 1 > {path}")).await;
        let refused = ["Read-only file system", "Permission denied"]
            .iter()
            .any(|reason| text.contains(reason));
        // What is covered by the null device takes everything and does nothing.
        let covered = path == "/proc/sysrq-trigger"
            && shell(
                &sandbox,
                "test ! -e /proc/sysrq-trigger -o -c /proc/sysrq-trigger",
            )
            .await
            .0 == 0;
        if !refused && !covered {
            breaches.push(format!("{path}: {text}"));
        }
    }
    breaches
}

async fn no_namespaces(backend: Backend) -> Breaches {
    let sandbox = with_probe(&backend).await;
    let mut breaches = attempts(
        &sandbox,
        &[
            ("unshare", &["EPERM"]),
            ("clone", &["EPERM"]),
            ("clone3", &["ENOSYS"]),
            ("setns", &["EPERM"]),
            ("memfd", &["ENOSYS"]),
            ("future", &["ENOSYS"]),
        ],
    )
    .await;
    for line in ["unshare -U true", "unshare -r true"] {
        if shell(&sandbox, line).await.0 == 0 {
            breaches.push(line.to_owned());
        }
    }
    breaches
}

async fn no_mounts(backend: Backend) -> Breaches {
    let sandbox = with_probe(&backend).await;
    let calls = [
        "mount",
        "umount2",
        "pivot_root",
        "chroot",
        "open_tree",
        "move_mount",
        "fsopen",
        "fsconfig",
        "fsmount",
        "fspick",
        "mount_setattr",
    ];
    attempts(&sandbox, &calls.map(|call| (call, ["EPERM"].as_slice()))).await
}

#[cfg(target_arch = "x86_64")]
async fn no_other_architecture(backend: Backend) -> Breaches {
    let sandbox = with_probe(&backend).await;
    attempts(&sandbox, &[("int80", &["SIGSYS"]), ("x32", &["SIGSYS"])]).await
}

async fn the_agent_can_not_be_traced(backend: Backend) -> Breaches {
    let sandbox = with_probe(&backend).await;
    attempts(
        &sandbox,
        &[
            ("mem", &["EACCES"]),
            ("vm_readv", &["EPERM"]),
            ("getfd", &["EPERM"]),
            ("ptrace", &["EPERM"]),
        ],
    )
    .await
}

async fn the_agent_can_not_be_killed(backend: Backend) -> Breaches {
    let sandbox = create(&backend).await;
    let mut breaches = Vec::new();
    for line in ["kill -9 1", "kill -STOP 1", "kill -9 -1", "kill -SEGV 1"] {
        let done = run(&sandbox, sh(line)).await;
        let (code, text) = shell(&sandbox, "echo alive").await;
        if (code, text.as_str()) != (0, "alive\n") {
            breaches.push(format!("{line}: {} then {code} {text}", done.exit_code));
        }
    }
    breaches
}

async fn no_terminal_injection(backend: Backend) -> Breaches {
    let sandbox = with_probe(&backend).await;
    attempts(
        &sandbox,
        &[
            ("tiocsti", &["EPERM"]),
            ("tiocsti_wide", &["EPERM"]),
            ("tioclinux", &["EPERM"]),
        ],
    )
    .await
}

async fn no_dangerous_parts_of_the_kernel(backend: Backend) -> Breaches {
    let sandbox = with_probe(&backend).await;
    let calls = [
        "keyctl",
        "add_key",
        "request_key",
        "bpf",
        "perf_event_open",
        "userfaultfd",
        "io_uring",
    ];
    attempts(&sandbox, &calls.map(|call| (call, ["EPERM"].as_slice()))).await
}

async fn no_unusual_sockets(backend: Backend) -> Breaches {
    let sandbox = with_probe(&backend).await;
    let mut expected = ["packet", "raw", "raw6", "vsock", "alg", "netfilter"]
        .map(|call| (call, ["EPERM"].as_slice()))
        .to_vec();
    // Programs list their interfaces by this one.
    expected.push(("route", &["ok"]));
    attempts(&sandbox, &expected).await
}

async fn no_network(backend: Backend) -> Breaches {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let sandbox = with_probe(&backend).await;
    let own = format!("tcp 127.0.0.1 {port}");
    let mut breaches = attempts(
        &sandbox,
        &[
            (own.as_str(), &["ECONNREFUSED"]),
            ("tcp 169.254.169.254 80", &["ENETUNREACH"]),
            ("tcp 192.0.2.1 80", &["ENETUNREACH"]),
            ("udp 192.0.2.1 53", &["ENETUNREACH"]),
        ],
    )
    .await;
    if listener.accept().is_ok() {
        breaches.push("the host's listener was reached".to_owned());
    }
    let (_, interfaces) = shell(&sandbox, "tail -n +3 /proc/net/dev").await;
    if interfaces.lines().count() != 1 || !interfaces.trim_start().starts_with("lo:") {
        breaches.push(interfaces);
    }
    breaches
}

async fn no_abstract_socket_of_the_host(backend: Backend) -> Breaches {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};
    let name = format!("sandcaster-{}", sandcaster::ids::nonce());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let sandbox = with_probe(&backend).await;
    attempts(
        &sandbox,
        &[(format!("abstract {name}").as_str(), &["ECONNREFUSED"])],
    )
    .await
}

async fn no_name_is_resolved_and_soon(backend: Backend) -> Breaches {
    let sandbox = create(&backend).await;
    let began = tokio::time::Instant::now();
    let (code, text) = shell(&sandbox, "getent hosts example.com").await;
    let took = began.elapsed();
    if code == 2 && text.is_empty() && took.as_millis() < 1000 {
        return Vec::new();
    }
    vec![format!("{code} {text} after {took:?}")]
}

async fn no_device_and_no_other_user(backend: Backend) -> Breaches {
    let sandbox = with_probe(&backend).await;
    let mut breaches = attempts(
        &sandbox,
        &[
            ("mknod_block", &["EPERM"]),
            ("mknod_char", &["EPERM"]),
            ("sethostname", &["EPERM"]),
        ],
    )
    .await;
    let (_, who) = shell(
        &sandbox,
        "id -u; id -g; grep -h -e ^Cap -e ^NoNewPrivs -e ^Seccomp: /proc/self/status",
    )
    .await;
    let expected = "1000\n1000\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
    if who != expected {
        breaches.push(who);
    }
    for line in ["su -c id </dev/null", "sudo -n id", "newuidmap $$ 0 0 1"] {
        if shell(&sandbox, line).await.0 == 0 {
            breaches.push(line.to_owned());
        }
    }
    breaches
}

pub fn small() -> LocalLimits {
    LocalLimits {
        memory_mb: 128,
        disk_mb: 16,
        max_processes: 40,
        ..LocalLimits::default()
    }
}

async fn no_more_processes_than_allowed(backend: Backend) -> Breaches {
    let sandbox = create(&backend).await;
    let (_, text) = shell(
        &sandbox,
        "for i in 1 2 3 4 5; do for j in 1 2 3 4 5 6 7 8 9 10; do sleep 100 & done; done; echo all",
    )
    .await;
    if text.contains("all") {
        vec![text]
    } else {
        Vec::new()
    }
}

async fn no_more_memory_than_allowed(backend: Backend) -> Breaches {
    let sandbox = with_probe(&backend).await;
    let done = run(&sandbox, sh("exec ./probe use 600 2")).await;
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    if done.exit_code == 137 && text.contains("memory limit of 128 MiB") {
        return Vec::new();
    }
    vec![format!("{} {text}", done.exit_code)]
}

// --- the rows as tests ---

macro_rules! holds {
    ($($name:ident: $row:ident($backend:expr)),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                assert_eq!($row($backend).await, Breaches::new());
            }
        )+
    };
}

holds! {
    files_of_the_host_are_not_there: hidden_files(local()),
    the_environment_of_the_server_is_not_there: hidden_environment(local()),
    processes_of_the_host_are_not_there: only_its_own_processes(local()),
    descriptors_of_the_server_are_not_there: no_descriptor_of_the_server(local()),
    the_system_is_read_only: nothing_of_the_system_can_be_written(local()),
    namespaces_can_not_be_made: no_namespaces(local()),
    mounts_can_not_be_changed: no_mounts(local()),
    the_agent_is_not_traced: the_agent_can_not_be_traced(local()),
    the_agent_survives_signals_from_inside: the_agent_can_not_be_killed(local()),
    terminals_take_no_injected_input: no_terminal_injection(local()),
    dangerous_calls_are_refused: no_dangerous_parts_of_the_kernel(local()),
    unusual_sockets_are_refused: no_unusual_sockets(local()),
    the_network_is_out_of_reach: no_network(local()),
    abstract_sockets_of_the_host_are_out_of_reach: no_abstract_socket_of_the_host(local()),
    names_fail_to_resolve_at_once: no_name_is_resolved_and_soon(local()),
    devices_and_other_users_are_out_of_reach: no_device_and_no_other_user(local()),
    processes_are_limited: no_more_processes_than_allowed(local_with(small())),
    memory_is_limited: no_more_memory_than_allowed(local_with(small())),
}

#[cfg(target_arch = "x86_64")]
holds! {
    calls_of_another_architecture_end_the_process: no_other_architecture(local()),
}

/// Each row finds a breach once its walls are gone, and none while one of two walls still stands.
#[cfg(debug_assertions)]
mod without_its_wall {
    use sandcaster::sandbox::local::{Wall, make_without};

    use super::*;

    fn without(walls: &[Wall]) -> Backend {
        make_without(&crate::sandbox::config(LocalLimits::default()), walls)
    }

    fn small_without(walls: &[Wall]) -> Backend {
        make_without(&crate::sandbox::config(small()), walls)
    }

    macro_rules! breaks {
        ($($name:ident: $row:ident($backend:expr)),+ $(,)?) => {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    assert_ne!($row($backend).await, Breaches::new());
                }
            )+
        };
    }

    breaks! {
        files_are_seen: hidden_files(without(&[Wall::OwnRoot])),
        the_agents_secrets_are_seen: hidden_environment(without(&[Wall::HiddenAgent])),
        descriptors_are_seen: no_descriptor_of_the_server(without(&[Wall::ClosedDescriptors])),
        the_root_is_written:
            nothing_of_the_system_can_be_written(without(&[Wall::ReadOnlyMounts, Wall::Landlock])),
        namespaces_are_made: no_namespaces(without(&[Wall::Seccomp])),
        mounts_are_changed: no_mounts(without(&[Wall::Seccomp, Wall::Capabilities])),
        the_agent_is_traced: the_agent_can_not_be_traced(without(&[Wall::Seccomp, Wall::HiddenAgent])),
        terminals_are_reached: no_terminal_injection(without(&[Wall::Seccomp])),
        dangerous_calls_are_made: no_dangerous_parts_of_the_kernel(without(&[Wall::Seccomp])),
        unusual_sockets_are_made: no_unusual_sockets(without(&[Wall::Seccomp])),
        the_network_is_reached: no_network(without(&[Wall::NetworkNamespace])),
        abstract_sockets_are_reached:
            no_abstract_socket_of_the_host(without(&[Wall::NetworkNamespace, Wall::Landlock])),
        capabilities_are_held: no_device_and_no_other_user(without(&[Wall::Capabilities])),
        processes_are_many: no_more_processes_than_allowed(small_without(&[Wall::ProcessLimit])),
        memory_is_used: no_more_memory_than_allowed(small_without(&[Wall::MemoryWatchdog])),
    }

    #[cfg(target_arch = "x86_64")]
    breaks! {
        other_architectures_are_used: no_other_architecture(without(&[Wall::Seccomp])),
    }

    holds! {
        mounts_alone_keep_the_system_read_only:
            nothing_of_the_system_can_be_written(without(&[Wall::Landlock])),
        landlock_alone_keeps_the_system_read_only:
            nothing_of_the_system_can_be_written(without(&[Wall::ReadOnlyMounts])),
        the_filter_alone_keeps_mounts: no_mounts(without(&[Wall::Capabilities])),
    }
}
