//! How `local` sandboxes come and go: with their server, with their handle, by id, in numbers, and as an
//! ordinary user.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandcaster::sandbox::{ExecOutput, LocalLimits, SandboxBackend, SandboxError};
use sandcaster::spec::Network;

use super::{config, create, labels, local, local_with, sh, shell, soon, spec};

/// The host's processes whose command line contains `word`.
fn processes_with(word: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(word) {
            found.push(pid);
        }
    }
    found
}

/// Waits until no process has `word` in its command line.
async fn all_gone(word: &str, within: Duration) {
    let until = tokio::time::Instant::now() + within;
    loop {
        let left = processes_with(word);
        if left.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "still there: {left:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A number of seconds to sleep that no other test sleeps, by which a process of a sandbox is known.
fn mark() -> String {
    let digits: String = sandcaster::ids::nonce()
        .bytes()
        .take(9)
        .map(|byte| char::from(b'0' + byte % 10))
        .collect();
    format!("1{digits}.5")
}

/// A line on standard error, past the test harness's capture.
fn say(line: &str) {
    let mut out = std::io::stderr();
    writeln!(out, "{line}").unwrap();
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

// --- the server's death ---

/// Not a test by itself: the next one runs it in a process of its own, as a server to kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by `a_killed_server_takes_its_sandboxes_along` in a process of its own"]
async fn holds_a_sandbox_until_it_is_killed() {
    let mark = std::env::args().next_back().unwrap_or_default();
    let sandbox = create(&local()).await;
    let mut stream = soon(sandbox.exec(sh(&format!(
        "setsid sleep {mark} & (sleep {mark} &) ; echo up; sleep {mark}"
    ))))
    .await
    .unwrap();
    assert!(matches!(
        soon(stream.next()).await.unwrap(),
        ExecOutput::Stdout(_)
    ));
    say(&format!("holding {}", sandbox.id()));
    tokio::time::sleep(super::PATIENCE).await;
}

/// Starts this test program for one ignored test. The last argument is a filter that matches nothing,
/// and so carries a value.
fn server(value: &str) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--nocapture"])
        .args(["holds_a_sandbox_until_it_is_killed", value])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    for line in lines.map_while(Result::ok) {
        if let Some(id) = line.strip_prefix("holding ") {
            return (child, id.to_owned());
        }
        said.push(line);
    }
    child.wait().unwrap();
    panic!("the server held nothing: {said:?}");
}

#[tokio::test]
async fn a_killed_server_takes_its_sandboxes_along() {
    let mark = mark();
    let mut twice = Vec::new();
    for _ in 0..2 {
        let (mut child, id) = server(&mark);
        assert!(processes_with(&id).len() >= 2, "launcher and agent");
        let until = tokio::time::Instant::now() + super::PATIENCE;
        while processes_with(&format!("sleep\0{mark}")).len() < 3 {
            assert!(tokio::time::Instant::now() < until, "three of them sleep");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        all_gone(&id, Duration::from_secs(1)).await;
        all_gone(&format!("sleep\0{mark}"), Duration::from_secs(1)).await;
        twice.push(id);
    }
    assert_ne!(twice[0], twice[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_launcher_or_agent_takes_the_sandbox_along_and_says_so() {
    for nth in 0..2 {
        let mark = mark();
        let sandbox = create(&local()).await;
        let mut running = soon(sandbox.exec(sh(&format!("echo up; sleep {mark}"))))
            .await
            .unwrap();
        soon(running.next()).await.unwrap();
        let pids = processes_with(sandbox.id());
        assert_eq!(pids.len(), 2);
        signal(pids[nth], nix::sys::signal::Signal::SIGKILL);
        assert!(matches!(soon(sandbox.gone()).await, SandboxError::Gone(_)));
        assert!(matches!(
            soon(running.next()).await,
            Err(SandboxError::Gone(_))
        ));
        all_gone(sandbox.id(), Duration::from_secs(1)).await;
        all_gone(&mark, Duration::from_secs(1)).await;
        soon(sandbox.kill()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_does_not_answer_is_ended_all_the_same() {
    let sandbox = create(&local()).await;
    let launcher = processes_with(sandbox.id())[0];
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"));
    let agent: i32 = children.unwrap().trim().parse().unwrap();
    signal(agent, nix::sys::signal::Signal::SIGSTOP);
    soon(sandbox.kill()).await.unwrap();
    assert!(processes_with(sandbox.id()).is_empty());
}

// --- the handle's end ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_sandbox_is_destroyed() {
    let sandbox = create(&local()).await;
    let stream = soon(sandbox.exec(sh("sleep 1000"))).await.unwrap();
    let id = sandbox.id().to_owned();
    drop(sandbox);
    all_gone(&id, super::PATIENCE).await;
    drop(stream);
}

#[test]
fn a_runtime_that_ends_takes_its_sandboxes_along() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sandbox = runtime.block_on(async { create(&local()).await });
    drop(runtime);
    let waiting = tokio::runtime::Runtime::new().unwrap();
    waiting.block_on(all_gone(sandbox.id(), super::PATIENCE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_ends_with_its_lifetime_unless_that_is_moved() {
    let backend = local();
    let mut short = spec();
    short.lifetime = Duration::from_millis(300);
    let (one, two) = (
        soon(backend.create(&short, &labels())).await.unwrap(),
        soon(backend.create(&short, &labels())).await.unwrap(),
    );
    soon(two.extend(Duration::from_mins(1))).await.unwrap();
    match soon(one.gone()).await {
        SandboxError::Gone(why) => assert!(why.contains("lifetime"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(shell(&two, "sleep 0.3; echo alive").await.1, "alive\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sandboxes_leave_no_process_no_zombie_and_no_descriptor() {
    let me = std::process::id();
    let children = || -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for task in fs::read_dir(format!("/proc/{me}/task")).unwrap().flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(text.split_whitespace().map(str::to_owned));
        }
        all
    };
    let sockets = || {
        fs::read_dir(format!("/proc/{me}/fd"))
            .unwrap()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .filter(|target| {
                let target = target.to_string_lossy();
                target.contains("pidfd") || target.starts_with("socket:")
            })
            .count()
    };
    let backend = local();
    soon(create(&backend).await.kill()).await.unwrap();
    let sockets_before = sockets();
    let mark = mark();
    let made = (0..30).map(|number| {
        let (backend, mark) = (Arc::clone(&backend), mark.clone());
        async move {
            let sandbox = create(&backend).await;
            let mut running = soon(sandbox.exec(sh(&format!("echo up; sleep {mark}"))))
                .await
                .unwrap();
            soon(running.next()).await.unwrap();
            let pids = processes_with(sandbox.id());
            if number % 2 == 0 {
                soon(sandbox.kill()).await.unwrap();
            } else {
                soon(backend.kill(sandbox.id())).await.unwrap();
                soon(sandbox.kill()).await.unwrap();
            }
            pids
        }
    });
    let made = futures::future::join_all(made).await;
    assert!(processes_with(&mark).is_empty());
    let ours: BTreeSet<String> = made.iter().flatten().map(i32::to_string).collect();
    assert!(ours.len() >= 60, "launchers and agents: {ours:?}");
    assert_eq!(children().intersection(&ours).next(), None, "zombies");
    // Other tests of this process may have sandboxes of their own at this moment.
    let until = tokio::time::Instant::now() + super::PATIENCE;
    while sockets() > sockets_before {
        assert!(
            tokio::time::Instant::now() < until,
            "{sockets_before} descriptors before, {} after",
            sockets()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_is_given_up_leaves_nothing() {
    let backend = local();
    for micros in [0, 200, 1000, 3000, 6000] {
        let labels = labels();
        let spec = spec();
        let creation = backend.create(&spec, &labels);
        let outcome = tokio::time::timeout(Duration::from_micros(micros), creation).await;
        drop(outcome);
        all_gone(&labels.instance, super::PATIENCE).await;
    }
}

// --- refusals ---

fn refusal(error: &SandboxError) -> (&str, &str) {
    match error {
        SandboxError::HostCannot { message, hint } => (message, hint),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_makes_a_sandbox_and_leaves_none() {
    let backend = local();
    soon(backend.probe()).await.unwrap();
    assert!(soon(backend.list("probe")).await.unwrap().len() <= 1);
}

#[tokio::test]
async fn what_local_does_not_have_is_refused_by_name() {
    let backend = local();
    let mut with_network = spec();
    with_network.network = Network::Full;
    let error = soon(backend.create(&with_network, &labels()))
        .await
        .map(drop)
        .unwrap_err();
    assert!(refusal(&error).0.contains("`full`"), "{error}");
    let mut with_template = spec();
    with_template.template = Some("python".to_owned());
    let error = soon(backend.create(&with_template, &labels()))
        .await
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(&error, SandboxError::TemplateNotFound(text) if text.contains("`python`")),
        "{error}"
    );
}

#[tokio::test]
async fn limits_that_can_not_work_are_refused_by_name() {
    let limits = LocalLimits::default;
    for (limits, named) in [
        (
            LocalLimits {
                memory_mb: 10,
                ..limits()
            },
            "local.memoryMb",
        ),
        (
            LocalLimits {
                disk_mb: 2000,
                ..limits()
            },
            "local.diskMb",
        ),
        (
            LocalLimits {
                max_processes: 1,
                ..limits()
            },
            "local.maxProcesses",
        ),
        (
            LocalLimits {
                host_uid: 0,
                ..limits()
            },
            "local.hostUid",
        ),
        (
            LocalLimits {
                read_only_paths: vec![PathBuf::from("/etc")],
                ..limits()
            },
            "/etc",
        ),
        (
            LocalLimits {
                read_only_paths: vec![PathBuf::from("/no/such/place")],
                ..limits()
            },
            "/no/such/place",
        ),
    ] {
        let error = soon(local_with(limits).probe()).await.unwrap_err();
        let (message, hint) = refusal(&error);
        assert!(message.contains(named), "{message}");
        assert!(!hint.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_paths_are_shown_and_not_written() {
    let path = ["/srv", "/opt", "/mnt", "/media"]
        .into_iter()
        .find(|path| Path::new(path).is_dir())
        .expect("a usual directory of the system");
    let look = format!("ls -d {path}; : > {path}/new");
    let (_, hidden) = shell(&create(&local()).await, &look).await;
    assert!(!hidden.starts_with(path), "{hidden}");
    let limits = LocalLimits {
        read_only_paths: vec![PathBuf::from(path)],
        ..LocalLimits::default()
    };
    let (code, shown) = shell(&create(&local_with(limits)).await, &look).await;
    assert!(shown.starts_with(path) && code != 0, "{shown}");
    let refused = ["Permission denied", "Read-only file system"];
    assert!(refused.iter().any(|why| shown.contains(why)), "{shown}");
    assert!(!Path::new(path).join("new").exists());
}

#[tokio::test]
async fn a_launcher_that_is_no_launcher_is_an_error_and_no_hang() {
    for (program, says) in [
        ("/no/such/program", "could not start"),
        ("/bin/true", "ended (exit code 0)"),
    ] {
        let mut config = config(LocalLimits::default());
        config.launcher = PathBuf::from(program);
        let sandcaster::sandbox::Build::With(make) =
            sandcaster::sandbox::backend("local").unwrap().build
        else {
            panic!("`local` is built");
        };
        let error = soon(make(&config).probe()).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_launcher_started_by_hand_refuses() {
    let done = Command::new(super::launcher())
        .args(["__sandbox", "{}"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&done.stderr).contains("no sandbox"));
}

/// Not a test by itself: run where a sandbox can't be made, and prints why.
#[tokio::test]
#[ignore = "run by `a_host_that_can_not_says_why` in a place without what it needs"]
async fn prints_why_it_can_not() {
    let error = soon(local().probe()).await.unwrap_err();
    let (message, hint) = refusal(&error);
    say(&format!("why: {message} | {hint}"));
}

#[test]
#[cfg_attr(not(root_user), ignore = "needs root")]
fn a_host_that_can_not_says_why() {
    // A user namespace with one user: the launcher can't become another, and says so.
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--nocapture", "prints_why_it_can_not"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    let why = said.lines().find(|line| line.starts_with("why: "));
    let why = why.unwrap_or_else(|| panic!("{said}"));
    assert!(
        why.contains("another user") && why.contains("local.hostUid"),
        "{why}"
    );
}

// --- as an ordinary user ---

#[test]
#[cfg_attr(
    not(root_user),
    ignore = "needs root: without it, the other tests are those of an ordinary user"
)]
fn all_of_this_holds_for_an_ordinary_user_too() {
    let user = ["--reuid=1000", "--regid=1000", "--clear-groups"];
    let reachable = |program: &Path| {
        let looked = Command::new("setpriv")
            .args(user)
            .args(["test", "-x"])
            .arg(program)
            .status();
        looked.unwrap().success()
    };
    let launcher = super::launcher();
    let mut this = std::env::current_exe().unwrap();
    let copies = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    if !reachable(&this) || !reachable(&launcher) {
        let copy = copies.path().join("tests");
        fs::copy(&this, &copy).unwrap();
        fs::copy(&launcher, copies.path().join(super::LAUNCHER_BESIDE)).unwrap();
        this = copy;
    }
    let done = Command::new("timeout")
        .args(["240", "setpriv"])
        .args(user)
        .arg(this)
        .args([
            "sandbox::local_",
            "sandbox::conformance",
            "--test-threads=4",
            // Those that only root can run.
            "--skip=a_host_that_can_not_says_why",
            "--skip=all_of_this_holds",
        ])
        .current_dir("/")
        .env("HOME", "/tmp")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(said.contains("files_of_the_host_are_not_there ... ok"));
}

// --- figures ---

/// Prints medians. Not a gate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_of_create_exec_and_destroy() {
    let backend: Arc<dyn SandboxBackend> = local();
    let (mut created, mut ran, mut destroyed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..20 {
        let began = tokio::time::Instant::now();
        let sandbox = create(&backend).await;
        created.push(began.elapsed());
        for _ in 0..5 {
            let began = tokio::time::Instant::now();
            super::run(&sandbox, sh("true")).await;
            ran.push(began.elapsed());
        }
        soon(sandbox.write("file", Bytes::from_static(b"x")))
            .await
            .unwrap();
        let began = tokio::time::Instant::now();
        soon(sandbox.kill()).await.unwrap();
        destroyed.push(began.elapsed());
    }
    for (name, times) in [
        ("create", &mut created),
        ("exec", &mut ran),
        ("destroy", &mut destroyed),
    ] {
        times.sort();
        say(&format!(
            "local {name}: median {:?}, best {:?}, worst {:?}",
            times[times.len() / 2],
            times[0],
            times[times.len() - 1]
        ));
    }
}
