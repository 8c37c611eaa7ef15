//! What every backend must do, whatever it is made of. Each check takes a backend, so that the next one
//! is another line at the end of this file.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sandcaster::sandbox::{ExecOutput, ExecSpec, FileErrorKind, SandboxBackend, SandboxError};

use super::{create, labels, run, sh, shell, soon, spec};

type Backend = Arc<dyn SandboxBackend>;

async fn output_comes_while_the_command_runs(backend: Backend) {
    let sandbox = create(&backend).await;
    let mut stream = soon(sandbox.exec(sh(
        "echo first; while [ ! -e go ]; do sleep 0.01; done; echo second; exit 7",
    )))
    .await
    .unwrap();
    assert_eq!(
        soon(stream.next()).await.unwrap(),
        ExecOutput::Stdout(Bytes::from_static(b"first\n"))
    );
    soon(sandbox.write("go", Bytes::new())).await.unwrap();
    assert_eq!(
        soon(stream.next()).await.unwrap(),
        ExecOutput::Stdout(Bytes::from_static(b"second\n"))
    );
    assert_eq!(soon(stream.next()).await.unwrap(), ExecOutput::Exit(7));
    assert!(soon(stream.output.recv()).await.is_none());
}

async fn both_outputs_are_told_apart(backend: Backend) {
    let sandbox = create(&backend).await;
    let done = run(&sandbox, sh("echo out; echo err >&2; exit 3")).await;
    assert_eq!(
        (
            done.stdout.as_slice(),
            done.stderr.as_slice(),
            done.exit_code
        ),
        (b"out\n".as_slice(), b"err\n".as_slice(), 3)
    );
}

async fn a_death_by_signal_is_told_as_128_and_its_number(backend: Backend) {
    let sandbox = create(&backend).await;
    for (name, number) in [("TERM", 15), ("KILL", 9), ("SEGV", 11)] {
        let done = run(&sandbox, sh(&format!("kill -{name} $$"))).await;
        assert_eq!(done.exit_code, 128 + number, "{name}");
    }
}

async fn environment_directory_and_input_are_as_given(backend: Backend) {
    let sandbox = create(&backend).await;
    let mut command = sh(r#"echo "$A|$HOME|$UNSET"; pwd; cat; echo end"#);
    command.env = BTreeMap::from([("A".to_owned(), "1 2\n3 ü'\"".to_owned())]);
    "/tmp".clone_into(&mut command.cwd);
    command.stdin = Bytes::from_static(b"given\n");
    let done = run(&sandbox, command).await;
    assert_eq!(
        String::from_utf8(done.stdout).unwrap(),
        "1 2\n3 ü'\"|/home/user|\n/tmp\ngiven\nend\n"
    );
    let (_, here) = shell(&sandbox, "pwd; cat").await;
    assert_eq!(here.trim(), sandbox.working_dir());
}

async fn arguments_are_not_split_by_a_shell(backend: Backend) {
    let sandbox = create(&backend).await;
    let command = ExecSpec {
        argv: ["printf", "[%s]", "a b", "$HOME", "*", ""]
            .map(str::to_owned)
            .to_vec(),
        ..ExecSpec::default()
    };
    assert_eq!(run(&sandbox, command).await.stdout, b"[a b][$HOME][*][]");
}

async fn large_input_and_output_pass_whole(backend: Backend) {
    let sandbox = create(&backend).await;
    let mut bytes = Vec::new();
    for number in 0_u32..700_000 {
        bytes.extend(number.to_le_bytes());
    }
    let command = ExecSpec {
        argv: vec!["cat".to_owned()],
        stdin: Bytes::from(bytes.clone()),
        ..ExecSpec::default()
    };
    let stream = soon(sandbox.exec(command)).await.unwrap();
    let done = soon(stream.collect(10_000_000)).await.unwrap();
    assert_eq!(done.exit_code, 0);
    assert!(done.stdout == bytes, "{} bytes back", done.stdout.len());
}

async fn input_that_nobody_reads_does_not_hold_up_the_exit(backend: Backend) {
    let sandbox = create(&backend).await;
    let mut command = sh("exit 4");
    command.stdin = Bytes::from(vec![0; 3_000_000]);
    assert_eq!(run(&sandbox, command).await.exit_code, 4);
}

async fn a_slow_reader_slows_the_command_and_loses_nothing(backend: Backend) {
    let sandbox = create(&backend).await;
    let command = "i=0; while [ $i -lt 400 ]; do head -c 10000 /dev/zero; i=$((i+1)); echo $i > at; done; exit 5";
    let mut stream = soon(sandbox.exec(sh(command))).await.unwrap();
    let ExecOutput::Stdout(first) = soon(stream.next()).await.unwrap() else {
        panic!("output comes first");
    };
    // Nobody reads now: the command gets as far as what is under way and in pipes, and stands.
    let far = async {
        let mut before = String::new();
        loop {
            let (_, at) = shell(&sandbox, "cat at; sleep 0.2").await;
            if at == before && !at.is_empty() {
                return at.trim().parse::<u32>().unwrap();
            }
            before = at;
        }
    };
    let far = soon(far).await;
    assert!(far < 200, "it wrote {far} of 400 pieces that nobody read");
    let mut total = first.len();
    loop {
        match soon(stream.next()).await.unwrap() {
            ExecOutput::Stdout(bytes) => total += bytes.len(),
            other @ (ExecOutput::Stderr(_) | ExecOutput::Gap) => panic!("{other:?}"),
            ExecOutput::Exit(code) => {
                assert_eq!(code, 5);
                break;
            }
        }
    }
    assert_eq!(total, 4_000_000);
}

async fn what_a_command_wrote_before_its_exit_waits_for_a_slow_reader(backend: Backend) {
    let sandbox = create(&backend).await;
    let mut stream = soon(sandbox.exec(sh(
        "head -c 50000 /dev/zero; (sleep 0.3; echo late) & exit 0",
    )))
    .await
    .unwrap();
    shell(&sandbox, "sleep 0.5").await;
    let mut total = 0;
    while let ExecOutput::Stdout(bytes) = soon(stream.next()).await.unwrap() {
        total += bytes.len();
    }
    assert!(total >= 50_000, "{total}");
}

async fn a_program_that_can_not_start_says_why(backend: Backend) {
    let sandbox = create(&backend).await;
    let exec = |argv: &str, cwd: &str| {
        let command = ExecSpec {
            argv: vec![argv.to_owned()],
            cwd: cwd.to_owned(),
            ..ExecSpec::default()
        };
        let sandbox = Arc::clone(&sandbox);
        async move { soon(sandbox.exec(command)).await.map(drop).unwrap_err() }
    };
    for (argv, cwd, says) in [
        ("no-such-program", "", "no-such-program: command not found"),
        ("/no/such/program", "", "command not found"),
        ("/etc/passwd", "", "ermission denied"),
        ("true", "/no/such/dir", "/no/such/dir"),
        ("", "", "not found"),
        ("a\0b", "", "nvalid argument"),
    ] {
        match exec(argv, cwd).await {
            SandboxError::NotStarted(text) => assert!(text.contains(says), "{text}"),
            other => panic!("{argv:?}: {other:?}"),
        }
    }
    let too_long = "x".repeat(2 << 20);
    let error = exec(&too_long, "").await;
    assert!(matches!(error, SandboxError::NotStarted(_)), "{error:?}");
    assert_eq!(shell(&sandbox, "echo fine").await, (0, "fine\n".to_owned()));
}

async fn files_go_in_and_out_unchanged(backend: Backend) {
    let sandbox = create(&backend).await;
    let bytes: Bytes = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    soon(sandbox.write("a/b/ü x.bin", bytes.clone()))
        .await
        .unwrap();
    assert_eq!(
        soon(sandbox.read("/home/user/a/b/ü x.bin", 300_000))
            .await
            .unwrap(),
        bytes
    );
    soon(sandbox.write("/tmp/empty", Bytes::new()))
        .await
        .unwrap();
    assert!(
        soon(sandbox.read("/tmp/empty", 0))
            .await
            .unwrap()
            .is_empty()
    );
    let (code, _) = shell(&sandbox, "chmod 755 a/b/*; test -O a/b/*").await;
    assert_eq!(code, 0, "the file belongs to whom commands run as");
    soon(sandbox.write("a/b/ü x.bin", Bytes::from_static(b"#!/bin/sh\necho ran")))
        .await
        .unwrap();
    let (code, text) = shell(&sandbox, "'a/b/ü x.bin'; ls -A a/b").await;
    assert_eq!((code, text.as_str()), (0, "ran\nü x.bin\n"));
}

async fn files_that_can_not_be_read_or_written_say_why(backend: Backend) {
    let sandbox = create(&backend).await;
    shell(&sandbox, "mkdir d; echo text > file; mkfifo fifo; ln -s loop loop; touch no; chmod 0 no; mkdir shut; chmod 555 shut").await;
    for (path, kind) in [
        ("none", FileErrorKind::NotFound),
        ("d", FileErrorKind::IsDirectory),
        ("file/x", FileErrorKind::NotDirectory),
        ("fifo", FileErrorKind::NotRegular),
        ("/dev/zero", FileErrorKind::NotRegular),
        ("no", FileErrorKind::PermissionDenied),
    ] {
        let error = soon(sandbox.read(path, 100)).await.unwrap_err();
        assert_eq!(
            error,
            SandboxError::File {
                path: path.to_owned(),
                kind
            }
        );
    }
    for (path, kinds) in [
        (
            "d",
            [FileErrorKind::IsDirectory, FileErrorKind::IsDirectory],
        ),
        (
            "file/x",
            [FileErrorKind::NotDirectory, FileErrorKind::NotDirectory],
        ),
        (
            "fifo",
            [FileErrorKind::NotRegular, FileErrorKind::NotRegular],
        ),
        (
            "shut/x",
            [
                FileErrorKind::PermissionDenied,
                FileErrorKind::PermissionDenied,
            ],
        ),
        (
            "/usr/x",
            [FileErrorKind::ReadOnly, FileErrorKind::PermissionDenied],
        ),
    ] {
        match soon(sandbox.write(path, Bytes::from_static(b"x"))).await {
            Err(SandboxError::File { path: named, kind }) => {
                assert_eq!(named, path);
                assert!(kinds.contains(&kind), "{path}: {kind}");
            }
            other => panic!("{path}: {other:?}"),
        }
    }
    assert_eq!(
        soon(sandbox.read("file", 4)).await.unwrap_err(),
        SandboxError::TooLarge {
            path: "file".to_owned(),
            max_bytes: 4
        }
    );
    let looped = soon(sandbox.read("loop", 4)).await.unwrap_err();
    assert!(matches!(looped, SandboxError::File { .. }), "{looped:?}");
}

async fn a_symlink_leads_to_its_file(backend: Backend) {
    let sandbox = create(&backend).await;
    shell(
        &sandbox,
        "echo one > real; ln -s real link; ln -s new dangling",
    )
    .await;
    assert_eq!(
        soon(sandbox.read("link", 100)).await.unwrap().as_ref(),
        b"one\n"
    );
    soon(sandbox.write("link", Bytes::from_static(b"two")))
        .await
        .unwrap();
    soon(sandbox.write("dangling", Bytes::from_static(b"three")))
        .await
        .unwrap();
    let (_, text) = shell(
        &sandbox,
        "cat real new; test -L link && test -L dangling && echo ' kept'",
    )
    .await;
    assert_eq!(text, "twothree kept\n");
}

async fn commands_and_files_run_side_by_side(backend: Backend) {
    let sandbox = create(&backend).await;
    let work = (0..20).map(|number| {
        let sandbox = Arc::clone(&sandbox);
        async move {
            let path = format!("side-{number}");
            soon(sandbox.write(&path, Bytes::from(vec![b'x'; 100_000 + number])))
                .await
                .unwrap();
            let (_, text) = shell(&sandbox, &format!("wc -c < {path}; sleep 0.05")).await;
            assert_eq!(text.trim(), (100_000 + number).to_string());
            assert_eq!(
                soon(sandbox.read(&path, 1 << 20)).await.unwrap().len(),
                100_000 + number
            );
        }
    });
    futures::future::join_all(work).await;
}

async fn a_killed_command_ends_with_its_children(backend: Backend) {
    let sandbox = create(&backend).await;
    let mut stream = soon(sandbox.exec(sh(
        "sleep 1000 & setsid sleep 1000 & (setsid sh -c 'sleep 1000 & wait' &) ; echo up; wait",
    )))
    .await
    .unwrap();
    assert!(matches!(
        soon(stream.next()).await.unwrap(),
        ExecOutput::Stdout(_)
    ));
    soon(stream.control.kill()).await;
    loop {
        if let ExecOutput::Exit(code) = soon(stream.next()).await.unwrap() {
            assert_eq!(code, 137);
            break;
        }
    }
    soon(stream.control.kill()).await;
    let (_, left) = shell(&sandbox, "grep -lx sleep /proc/[0-9]*/comm | wc -l").await;
    assert!(left.trim().parse::<u32>().unwrap() <= 1, "{left}");
}

async fn a_command_whose_reader_is_dropped_ends(backend: Backend) {
    let sandbox = create(&backend).await;
    let mut stream = soon(sandbox.exec(sh("echo up; exec sleep 1000")))
        .await
        .unwrap();
    soon(stream.next()).await.unwrap();
    drop(stream);
    let (code, _) = shell(
        &sandbox,
        "while grep -qx sleep /proc/[0-9]*/comm; do :; done",
    )
    .await;
    assert_eq!(code, 0);
}

async fn an_exit_is_told_though_a_child_holds_the_pipe(backend: Backend) {
    let sandbox = create(&backend).await;
    let began = tokio::time::Instant::now();
    let done = run(
        &sandbox,
        sh("(while :; do sleep 0.05; echo x; done) & echo up"),
    )
    .await;
    assert_eq!((done.exit_code, &done.stdout[..3]), (0, b"up\n".as_slice()));
    let took = began.elapsed();
    assert!(took.as_millis() < 2000, "{took:?}");
    // The pipe is emptied from then on, so the child lives, however much it writes.
    let (_, alive) = shell(
        &sandbox,
        "(while [ ! -e enough ]; do head -c 10000 /dev/zero; : > wrote; done; : > end) & sleep 0.3; rm -f wrote; while [ ! -e wrote ]; do sleep 0.01; done; : > enough; echo alive >&2",
    )
    .await;
    assert!(alive.contains("alive\n"));
    let (code, _) = shell(&sandbox, "while [ ! -e end ]; do sleep 0.01; done").await;
    assert_eq!(code, 0);
}

async fn a_killed_sandbox_is_gone_for_every_call(backend: Backend) {
    let sandbox = create(&backend).await;
    let mut running = soon(sandbox.exec(sh("sleep 1000"))).await.unwrap();
    soon(sandbox.kill()).await.unwrap();
    soon(sandbox.kill()).await.unwrap();
    assert!(matches!(
        soon(running.next()).await,
        Err(SandboxError::Gone(_))
    ));
    assert!(matches!(soon(sandbox.gone()).await, SandboxError::Gone(_)));
    assert!(matches!(
        soon(sandbox.exec(sh("true"))).await.map(drop),
        Err(SandboxError::Gone(_))
    ));
    assert!(matches!(
        soon(sandbox.read("x", 1)).await,
        Err(SandboxError::Gone(_))
    ));
    assert!(matches!(
        soon(sandbox.write("x", Bytes::new())).await,
        Err(SandboxError::Gone(_))
    ));
    assert!(matches!(
        soon(sandbox.extend(super::PATIENCE)).await,
        Err(SandboxError::Gone(_))
    ));
}

async fn sandboxes_are_found_by_their_instance_and_killed_by_their_id(backend: Backend) {
    let (mine, others) = (labels(), labels());
    let first = soon(backend.create(&spec(), &mine)).await.unwrap();
    let other = soon(backend.create(&spec(), &others)).await.unwrap();
    let found = soon(backend.list(&mine.instance)).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, first.id());
    assert_eq!(found[0].run.as_ref(), Some(&mine.run));
    soon(backend.kill(first.id())).await.unwrap();
    soon(backend.kill(first.id())).await.unwrap();
    soon(backend.kill("no-such-sandbox")).await.unwrap();
    assert!(soon(backend.list(&mine.instance)).await.unwrap().is_empty());
    assert!(matches!(soon(first.gone()).await, SandboxError::Gone(_)));
    assert_eq!(shell(&other, "echo fine").await.1, "fine\n");
    soon(other.kill()).await.unwrap();
}

async fn two_sandboxes_share_nothing(backend: Backend) {
    let (one, two) = (create(&backend).await, create(&backend).await);
    shell(&one, "echo 1 > /tmp/mark; echo 1 > mark; sleep 1000 & echo").await;
    let (code, text) = shell(
        &two,
        "cat /tmp/mark mark; grep -lx sleep /proc/[0-9]*/comm; hostname",
    )
    .await;
    assert!(!text.contains("comm\n"), "{text}");
    assert!(!text.contains("1\n") && code == 0, "{text}");
}

/// One test for each check, on each backend.
macro_rules! conformance {
    ($backend:ident: $make:expr => $($check:ident),+ $(,)?) => {
        mod $backend {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    super::$check($make).await;
                }
            )+
        }
    };
}

#[cfg(target_os = "linux")]
conformance!(local: crate::sandbox::local() =>
    output_comes_while_the_command_runs,
    both_outputs_are_told_apart,
    a_death_by_signal_is_told_as_128_and_its_number,
    environment_directory_and_input_are_as_given,
    arguments_are_not_split_by_a_shell,
    large_input_and_output_pass_whole,
    input_that_nobody_reads_does_not_hold_up_the_exit,
    a_slow_reader_slows_the_command_and_loses_nothing,
    what_a_command_wrote_before_its_exit_waits_for_a_slow_reader,
    a_program_that_can_not_start_says_why,
    files_go_in_and_out_unchanged,
    files_that_can_not_be_read_or_written_say_why,
    a_symlink_leads_to_its_file,
    commands_and_files_run_side_by_side,
    a_killed_command_ends_with_its_children,
    a_command_whose_reader_is_dropped_ends,
    an_exit_is_told_though_a_child_holds_the_pipe,
    a_killed_sandbox_is_gone_for_every_call,
    sandboxes_are_found_by_their_instance_and_killed_by_their_id,
    two_sandboxes_share_nothing,
);
