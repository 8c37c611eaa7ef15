//! What a `local` sandbox may use, what it may hand out, and that usual programs live with it.

use std::time::Duration;

use bytes::Bytes;
use sandcaster::clock::Deadline;
use sandcaster::sandbox::files::{Baseline, CollectLimits, Collecting};
use sandcaster::sandbox::{ExecSpec, SandboxError};

use super::local_escape::{small, with_probe};
use super::{create, local, local_with, run, sh, shell, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_is_contained_and_can_be_killed() {
    let backend = local_with(small());
    let (one, two) = (create(&backend).await, create(&backend).await);
    let bomb = soon(one.exec(sh("b() { b | b & }; b; sleep 1000")))
        .await
        .unwrap();
    for _ in 0..5 {
        assert_eq!(
            shell(&two, "echo fine | cat").await,
            (0, "fine\n".to_owned())
        );
    }
    drop(bomb);
    soon(one.kill()).await.unwrap();
    assert_eq!(shell(&two, "echo fine | cat").await.1, "fine\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_that_were_left_running_lose_no_file() {
    let sandbox = create(&local_with(small())).await;
    let deadline = Deadline::after(Duration::from_mins(1));
    let before = Baseline::take(&*sandbox, &[], deadline).await.unwrap();
    let bomb = "echo x > report.md; b() { (b &); (b &); sleep 1; b; }; b >/dev/null 2>&1 & sleep 2; echo end";
    let (_, said) = shell(&sandbox, bomb).await;
    assert!(said.ends_with("end\n"), "{said}");
    let limits = CollectLimits::default();
    let mut all = Collecting::begin(&*sandbox, &before, limits, deadline).await;
    let file = all.next().await;
    assert_eq!(
        file.map(|file| file.path).as_deref(),
        Some("report.md"),
        "{:?}",
        all.omitted()
    );
    assert!(all.ended() > 10, "{}", all.ended());
    assert_eq!(shell(&sandbox, "echo fine | cat").await.1, "fine\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_processes_are_gone_when_their_end_is_told() {
    let sandbox = create(&local_with(small())).await;
    assert_eq!(soon(sandbox.end_all()).await, Ok(Some(0)));
    let many =
        "for i in 1 2 3 4 5 6 7 8 9 10; do (trap '' TERM; sleep 600) & done; echo begun; wait";
    let mut stream = soon(sandbox.exec(sh(many))).await.unwrap();
    soon(stream.next()).await.unwrap();
    let ended = soon(sandbox.end_all()).await.unwrap().unwrap();
    assert!((11..=21).contains(&ended), "{ended}");
    let (_, left) = shell(&sandbox, "ls -d /proc/[0-9]* | wc -l").await;
    // Its first process, the shell, and two more.
    assert_eq!(left.trim(), "4", "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writable_space_is_limited_in_bytes_and_files() {
    let sandbox = create(&local_with(small())).await;
    for (place, most_mb) in [("/home/user", 16), ("/tmp", 32), ("/dev/shm", 8)] {
        let (_, text) = shell(
            &sandbox,
            &format!("dd if=/dev/zero of={place}/f bs=1M count=100 2>&1; dd if=/dev/zero of={place}/g bs=1M count=100 2>&1; du -sm {place} | cut -f1; rm {place}/?"),
        )
        .await;
        let stopped = [
            "No space left",
            "File size limit exceeded",
            "File too large",
        ];
        assert!(
            stopped.iter().any(|reason| text.contains(reason)),
            "{place}: {text}"
        );
        let used: u32 = text.lines().last().unwrap().parse().unwrap();
        assert!(used <= most_mb, "{place}: {used} MiB");
    }
    let (code, text) = shell(
        &sandbox,
        "cd /dev/shm; i=0; while [ $i -lt 5000 ]; do : > $i || exit 9; i=$((i+1)); done",
    )
    .await;
    assert!(code != 0 && text.contains("No space left"), "{code} {text}");
    let full = soon(sandbox.write("big", Bytes::from(vec![1; 20 << 20]))).await;
    assert_eq!(
        full.unwrap_err().to_string(),
        "big: no space left",
        "a write says so, too"
    );
    assert_eq!(shell(&sandbox, "ls -A").await.1, "", "and leaves nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_sparse_file_is_neither_made_nor_read_to_its_end() {
    let sandbox = create(&local_with(small())).await;
    let (code, _) = shell(&sandbox, "truncate -s 1T hole").await;
    assert_ne!(code, 0);
    let (code, _) = shell(&sandbox, "truncate -s 10M hole").await;
    assert_eq!(code, 0);
    assert!(matches!(
        soon(sandbox.read("hole", 1 << 20)).await,
        Err(SandboxError::TooLarge { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_used_up_by_many_ends_the_sandbox_with_the_reason() {
    let sandbox = with_probe(&local_with(small())).await;
    let line = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do (while :; do ./probe use 100 20; done) & done; wait";
    let stream = soon(sandbox.exec(sh(line))).await.unwrap();
    let ended = soon(stream.collect(1000)).await;
    assert!(
        matches!(ended, Err(SandboxError::OutOfMemory(_))),
        "{ended:?}"
    );
    assert!(matches!(
        soon(sandbox.gone()).await,
        SandboxError::OutOfMemory(_)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_plain_file_of_the_sandbox_is_not_handed_out() {
    let sandbox = create(&local()).await;
    shell(&sandbox, "ln -s /etc/passwd link; mkfifo fifo").await;
    let passwd = soon(sandbox.read("link", 10_000)).await.unwrap();
    assert!(passwd.starts_with(b"root:x:0:0:root:/root:/usr/sbin/nologin\nuser:"));
    for path in [
        "fifo",
        "/dev/zero",
        "/dev/tty",
        "/dev/ptmx",
        "/proc/self/mem",
        "/proc/1/environ",
        "/proc/self/fd/3",
        "/etc",
    ] {
        let got = soon(sandbox.read(path, 100)).await;
        assert!(
            matches!(got, Err(SandboxError::File { .. })),
            "{path}: {got:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usual_programs_work() {
    let sandbox = create(&local()).await;
    for (program, line, says) in [
        (
            "bash",
            "bash -ic 'sleep 0.01 & wait; echo job' 2>/dev/null",
            "job",
        ),
        (
            "/usr/bin/python3",
            "/usr/bin/python3 -c 'import multiprocessing as m; print(m.Pool(2).map(abs, [-1,-2]))'",
            "[1, 2]",
        ),
        ("perl", "perl -e 'print 6*7'", "42"),
        (
            "git",
            "git init -q r && cd r && git -c user.name=a -c user.email=b commit -q --allow-empty -m one && git log --format=%s",
            "one",
        ),
        (
            "gcc",
            "printf 'int puts(const char*);int main(){puts(\"built\");}' > a.c && gcc a.c && ./a.out",
            "built",
        ),
        (
            "script",
            "script -qc 'tty' /dev/null </dev/null",
            "/dev/pts/",
        ),
        ("ps", "ps -e | head -n 1", "PID"),
        ("df", "df /tmp | tail -n 1", "/tmp"),
        ("getent", "getent passwd user", "/home/user"),
    ] {
        let there = run(
            &sandbox,
            ExecSpec {
                argv: ["sh", "-c", "command -v \"$0\"", program]
                    .map(str::to_owned)
                    .to_vec(),
                ..ExecSpec::default()
            },
        )
        .await;
        if there.exit_code != 0 {
            continue;
        }
        let (code, text) = shell(&sandbox, line).await;
        assert!(code == 0 && text.contains(says), "{program}: {code} {text}");
    }
}
