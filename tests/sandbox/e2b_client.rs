//! What the E2B backend does while nothing goes wrong, against the stand-in.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use sandcaster::clock::Deadline;
use sandcaster::error::ErrorCode;
use sandcaster::ids::RunId;
use sandcaster::sandbox::e2b::Timing;
use sandcaster::sandbox::{ExecOutput, FileErrorKind, SandboxError};
use sandcaster::spec::Network;
use serde_json::json;

use super::e2b_support::*;
use crate::support::fake_e2b::{Death, FakeE2b, KEY, Reply, Route, StreamFault};

#[tokio::test]
async fn a_sandbox_is_asked_for_with_labels_a_lifetime_and_nothing_else() {
    let e2b = FakeE2b::start().await;
    let labels = labels();
    let sandbox = backend(&e2b).create(&spec(), &labels).await.unwrap();
    let requests = e2b.requests_of(Route::Create);
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].path, "/v2/sandboxes");
    assert_eq!(
        requests[0].json(),
        json!({
            "templateID": "base",
            "timeout": 420,
            "metadata": {
                "sandcaster-run": labels.run.as_str(),
                "sandcaster-instance": INSTANCE,
                "sandcaster-attempt": "1",
                "sandcaster-expires": "1800000000",
            },
        })
    );
    assert!(!requests[0].header("idempotency-key").is_empty());
    assert_eq!(sandbox.id(), e2b.sandboxes()[0].id);
    assert_eq!(sandbox.working_dir(), "/home/user");
}

#[tokio::test]
async fn template_and_network_are_passed_on() {
    let e2b = FakeE2b::start().await;
    e2b.add_template("sandcaster-v1");
    let spec = sandcaster::sandbox::SandboxSpec {
        template: Some("sandcaster-v1".to_owned()),
        network: Network::None,
        ..spec()
    };
    backend(&e2b).create(&spec, &labels()).await.unwrap();
    let made = &e2b.sandboxes()[0];
    assert_eq!(made.template, "sandcaster-v1");
    assert_eq!(made.internet, Some(false));
}

#[tokio::test]
async fn each_create_has_a_key_of_its_own() {
    let e2b = FakeE2b::start().await;
    let backend = backend(&e2b);
    for _ in 0..2 {
        backend.create(&spec(), &labels()).await.unwrap();
    }
    let keys: BTreeSet<String> = e2b
        .requests_of(Route::Create)
        .iter()
        .map(|seen| seen.header("idempotency-key").to_owned())
        .collect();
    assert_eq!(keys.len(), 2);
    assert_eq!(e2b.created(), 2);
}

#[tokio::test]
async fn output_streams_and_exit_codes_come_back_apart() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    for (script, stdout, stderr, code) in [
        ("echo hi", "hi\n", "", 0),
        ("echo err >&2; exit 3", "", "err\n", 3),
        ("printf 'a\\000b'; echo c >&2", "a\0b", "c\n", 0),
        ("kill -9 $$", "", "", 137),
        ("kill -TERM $$", "", "", 143),
        ("no_such_program_here 2>/dev/null", "", "", 127),
        ("pwd", "/home/user\n", "", 0),
        ("cat", "", "", 0),
    ] {
        let run = sh(&*sandbox, script).await;
        assert_eq!(text(&run.stdout), stdout, "{script}");
        assert_eq!(text(&run.stderr), stderr, "{script}");
        assert_eq!(run.exit_code, code, "{script}");
    }
}

#[tokio::test]
async fn arguments_reach_the_program_as_they_are() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let odd = ["a b", "$HOME", "'\"", "*", "", "é\n"];
    let mut argv = vec!["printf", "%s|"];
    argv.extend(odd);
    let run = collect(&*sandbox, command(&argv)).await.unwrap();
    assert_eq!(text(&run.stdout), odd.map(|arg| format!("{arg}|")).concat());
    let sent = e2b.requests_of(Route::Start)[0].json();
    assert_eq!(sent["process"]["cmd"], "printf");
    assert_eq!(sent["stdin"], json!(false));
}

#[tokio::test]
async fn environment_and_directory_are_the_commands_own() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let mut spec = command(&["sh", "-c", "echo $GREETING; pwd"]);
    spec.env
        .insert("GREETING".to_owned(), "good day".to_owned());
    spec.cwd = "/tmp".to_owned();
    let run = collect(&*sandbox, spec).await.unwrap();
    assert_eq!(text(&run.stdout), "good day\n/tmp\n");
    let next = sh(&*sandbox, "echo ${GREETING-unset}").await;
    assert_eq!(text(&next.stdout), "unset\n");
}

#[tokio::test]
async fn what_can_not_be_started_says_why() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let mut nowhere = command(&["true"]);
    nowhere.cwd = "/no/such/dir".to_owned();
    for spec in [nowhere, command(&[])] {
        let error = sandbox.exec(spec).await.unwrap_err();
        assert!(matches!(error, SandboxError::NotStarted(_)), "{error:?}");
        assert!(!error.is_fatal());
    }
    assert_eq!(e2b.calls(Route::Start), 1);
}

#[tokio::test]
async fn input_is_given_whole_and_then_ended() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let input: Vec<u8> = (0..1_000_000_u32)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let mut spec = command(&["cat"]);
    spec.stdin = input.clone().into();
    let run = collect(&*sandbox, spec).await.unwrap();
    assert_eq!(run.exit_code, 0);
    assert!(run.stdout == input, "{} bytes came back", run.stdout.len());
}

#[tokio::test]
async fn a_command_that_wants_no_input_is_no_fault() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    for script in ["exec <&-; sleep 0.2; echo done", "echo done"] {
        let mut spec = command(&["sh", "-c", script]);
        spec.stdin = vec![b'x'; 300_000].into();
        let run = collect(&*sandbox, spec).await.unwrap();
        assert_eq!(
            (text(&run.stdout).as_str(), run.exit_code),
            ("done\n", 0),
            "{script}"
        );
    }
}

#[tokio::test]
async fn characters_cut_between_chunks_arrive_whole_and_broken_ones_as_they_are() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let script = "i=0; while [ $i -lt 40000 ]; do printf 'aé€'; i=$((i+1)); done; printf '\\342'";
    let run = sh(&*sandbox, script).await;
    let mut expected = "aé€".repeat(40_000).into_bytes();
    expected.push(0xe2);
    assert!(run.stdout == expected, "{} bytes", run.stdout.len());
}

#[tokio::test]
async fn a_hundred_megabytes_pass_in_bounded_memory() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let before = resident_kib();
    let mut most = 0;
    let mut total = 0;
    let limit = tokio::time::Instant::now() + Duration::from_mins(2);
    let mut stream = sandbox
        .exec(command(&["head", "-c", "100000000", "/dev/zero"]))
        .await
        .unwrap();
    let code = loop {
        let next = tokio::time::timeout_at(limit, stream.next()).await;
        match next.expect("it hung").unwrap() {
            ExecOutput::Stdout(bytes) => {
                total += bytes.len();
                most = most.max(resident_kib());
            }
            other @ (ExecOutput::Stderr(_) | ExecOutput::Gap) => panic!("{other:?}"),
            ExecOutput::Exit(code) => break code,
        }
    };
    assert_eq!((total, code), (100_000_000, 0));
    let grown = most.saturating_sub(before) / 1024;
    assert!(grown < 64, "grew by {grown} MiB");
}

#[tokio::test]
async fn a_command_that_nobody_reads_is_slowed() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let script =
        "n=0; while :; do head -c 65536 /dev/zero; n=$((n+1)); echo $n >n.new; mv n.new n; done";
    let mut stream = sandbox.exec(command(&["sh", "-c", script])).await.unwrap();
    let written = || async {
        let counted = sandbox.read("n", 100).await.unwrap_or_default();
        text(&counted).trim().parse::<u64>().unwrap_or(0)
    };
    // It has stopped once its counter stays the same for a while.
    let mut last = 0;
    let mut same = 0;
    bounded(async {
        while same < 15 || last == 0 {
            let now = written().await;
            same = if now == last { same + 1 } else { 0 };
            last = now;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let mib = last * 65_536 / 1_048_576;
    assert!(
        mib < 32,
        "{mib} MiB are somewhere between the command and nobody"
    );
    // And goes on when it is read.
    let mut read = 0;
    while read < 65_536 * (usize::try_from(last).unwrap() + 10) {
        match stream.next().await.unwrap() {
            ExecOutput::Stdout(bytes) => read += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    stream.control.kill().await;
}

#[tokio::test]
async fn killing_a_command_ends_its_children_too() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let script = "setsid sleep 1000 & sleep 1000 & echo up; wait";
    let mut stream = sandbox.exec(command(&["sh", "-c", script])).await.unwrap();
    assert_eq!(stream.next().await, Ok(ExecOutput::Stdout("up\n".into())));
    stream.control.kill().await;
    assert_eq!(bounded(stream.next()).await, Ok(ExecOutput::Exit(137)));
    bounded(async {
        while e2b.processes_left() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn killing_a_command_that_has_ended_sends_nothing() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let mut stream = sandbox.exec(command(&["true"])).await.unwrap();
    assert_eq!(stream.next().await, Ok(ExecOutput::Exit(0)));
    stream.control.kill().await;
    assert_eq!(e2b.calls(Route::SendSignal), 0);
    assert_eq!(e2b.calls(Route::Start), 1);
}

#[tokio::test]
async fn a_dropped_stream_lets_the_command_go_on() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let script = "echo up; while [ ! -e go ]; do sleep 0.02; done; echo noise; echo done >result";
    let mut stream = sandbox.exec(command(&["sh", "-c", script])).await.unwrap();
    assert_eq!(stream.next().await, Ok(ExecOutput::Stdout("up\n".into())));
    drop(stream);
    sandbox.write("go", Bytes::new()).await.unwrap();
    let result = bounded(async {
        loop {
            match sandbox.read("result", 100).await {
                Ok(bytes) if !bytes.is_empty() => return bytes,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    assert_eq!(text(&result), "done\n");
}

#[tokio::test]
async fn files_go_both_ways_byte_for_byte() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let all_bytes: Bytes = (0..=255_u8)
        .cycle()
        .take(300_000)
        .collect::<Vec<u8>>()
        .into();
    for path in [
        "a.bin",
        "deep/er/ü &?#%+.bin",
        "/home/user/abs.bin",
        "/tmp/t.bin",
    ] {
        sandbox.write(path, all_bytes.clone()).await.unwrap();
        assert!(
            sandbox.read(path, 1 << 20).await.unwrap() == all_bytes,
            "{path}"
        );
    }
    sandbox.write("a.bin", Bytes::new()).await.unwrap();
    assert_eq!(sandbox.read("a.bin", 10).await.unwrap(), Bytes::new());
    let seen = sh(&*sandbox, "ls deep/er && stat -c %s /home/user/abs.bin").await;
    assert_eq!(text(&seen.stdout), "ü &?#%+.bin\n300000\n");
}

#[tokio::test]
async fn a_write_keeps_the_mode_and_follows_links() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    sh(&*sandbox, "echo old >real; chmod 700 real; ln -s real link").await;
    sandbox.write("link", "new".into()).await.unwrap();
    let seen = sh(
        &*sandbox,
        "cat real; stat -c ' %a' real; test -L link && echo still",
    )
    .await;
    assert_eq!(text(&seen.stdout), "new 700\nstill\n");
}

#[tokio::test]
async fn reads_are_refused_with_the_reason() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    sh(
        &*sandbox,
        "mkdir dir; mkfifo fifo; head -c 5000 /dev/zero >big; echo x >file",
    )
    .await;
    for (path, kind) in [
        ("none", FileErrorKind::NotFound),
        ("dir", FileErrorKind::IsDirectory),
        ("fifo", FileErrorKind::NotRegular),
        ("/dev/zero", FileErrorKind::NotRegular),
        ("/no/such\nname", FileErrorKind::NotFound),
    ] {
        let error = bounded(sandbox.read(path, 100)).await.unwrap_err();
        let path = path.to_owned();
        assert_eq!(error, SandboxError::File { path, kind });
    }
    let error = sandbox.read("big", 4999).await.unwrap_err();
    assert!(
        matches!(
            error,
            SandboxError::TooLarge {
                max_bytes: 4999,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(sandbox.read("big", 5000).await.unwrap().len(), 5000);
    let error = sandbox.write("dir", "x".into()).await.unwrap_err();
    assert!(matches!(error, SandboxError::File { .. }), "{error:?}");
    let error = sandbox.write("file/below", "x".into()).await.unwrap_err();
    assert!(matches!(error, SandboxError::File { .. }), "{error:?}");
    assert!(!error.is_fatal());
}

#[tokio::test]
async fn a_life_is_extended_and_cut_to_the_plan() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let end = |e2b: &FakeE2b| e2b.sandboxes()[0].end_at;
    let before = end(&e2b);
    sandbox.extend(Duration::from_mins(30)).await.unwrap();
    assert!(end(&e2b) > before);
    let told = Reply::json(
        400,
        &json!({"code": 400, "message": "Timeout cannot be greater than 1 hours"}),
    );
    e2b.on(Route::Timeout).respond(told);
    sandbox.extend(Duration::from_hours(2)).await.unwrap();
    let asked: Vec<_> = e2b
        .requests_of(Route::Timeout)
        .iter()
        .map(|seen| seen.json()["timeout"].clone())
        .collect();
    assert_eq!(asked, [json!(1800), json!(7200), json!(3600)]);
    let before = end(&e2b);
    e2b.set_max_hours(1);
    let error = sandbox.extend(Duration::from_hours(2)).await.unwrap_err();
    assert!(error.to_string().contains("no longer"), "{error}");
    e2b.expect_refusal("Max instance length");
    assert!(!error.is_fatal());
    assert_eq!(end(&e2b), before);
}

#[tokio::test]
async fn a_lifetime_beyond_the_plan_is_asked_for_again_at_its_limit() {
    let e2b = FakeE2b::start().await;
    e2b.set_max_hours(1);
    let spec = sandcaster::sandbox::SandboxSpec {
        lifetime: Duration::from_hours(2),
        ..spec()
    };
    backend(&e2b).create(&spec, &labels()).await.unwrap();
    let asked = e2b.requests_of(Route::Create);
    let timeouts: Vec<_> = asked
        .iter()
        .map(|seen| seen.json()["timeout"].clone())
        .collect();
    assert_eq!(timeouts, [json!(7200), json!(3600)]);
    let keys: Vec<_> = asked
        .iter()
        .map(|seen| seen.header("idempotency-key"))
        .collect();
    assert_ne!(keys[0], keys[1]);
    assert_eq!(e2b.created(), 1);
}

#[tokio::test]
async fn killing_is_final_and_can_be_repeated() {
    let e2b = FakeE2b::start().await;
    let backend = backend(&e2b);
    let sandbox = backend.create(&spec(), &labels()).await.unwrap();
    let mut stream = sandbox.exec(command(&["sleep", "1000"])).await.unwrap();
    sandbox.kill().await.unwrap();
    sandbox.kill().await.unwrap();
    backend.kill(sandbox.id()).await.unwrap();
    e2b.wait_until_empty(Duration::from_secs(5)).await;
    let gone = |error: SandboxError| assert!(matches!(error, SandboxError::Gone(_)), "{error:?}");
    gone(bounded(stream.next()).await.unwrap_err());
    let asked = e2b.requests().len();
    gone(sandbox.exec(command(&["true"])).await.unwrap_err());
    gone(sandbox.read("a", 1).await.unwrap_err());
    gone(sandbox.write("a", Bytes::new()).await.unwrap_err());
    gone(sandbox.extend(Duration::from_mins(1)).await.unwrap_err());
    gone(bounded(sandbox.gone()).await);
    assert_eq!(
        e2b.requests().len(),
        asked,
        "what is known to be gone isn't asked"
    );
}

#[tokio::test]
async fn only_ids_are_ever_killed() {
    let e2b = FakeE2b::start().await;
    let backend = backend(&e2b);
    for odd in ["", "../templates/x", "a/b", "a?b"] {
        assert!(backend.kill(odd).await.is_err(), "{odd}");
    }
    assert_eq!(e2b.requests().len(), 0);
    backend.kill("iaaaaaaaaaaaaaaaaaaaa").await.unwrap();
}

#[tokio::test]
async fn all_pages_are_listed_and_only_what_is_ours() {
    let e2b = FakeE2b::start().await;
    let run = RunId::new();
    let mut ours = BTreeSet::new();
    for n in 0..201 {
        let run = if n == 0 { run.as_str() } else { "odd" };
        ours.insert(e2b.add_sandbox(&[("sandcaster-instance", INSTANCE), ("sandcaster-run", run)]));
    }
    e2b.add_sandbox(&[
        ("sandcaster-instance", "another"),
        ("sandcaster-run", run.as_str()),
    ]);
    e2b.add_sandbox(&[]);
    let found = backend(&e2b).list(INSTANCE).await.unwrap();
    let ids: BTreeSet<String> = found.iter().map(|found| found.id.clone()).collect();
    assert_eq!(ids, ours);
    assert_eq!(found.len(), ours.len());
    assert_eq!(
        found
            .iter()
            .filter_map(|found| found.run.as_ref())
            .collect::<Vec<_>>(),
        [&run]
    );
    assert_eq!(e2b.calls(Route::List), 3);
    assert_eq!(e2b.sandboxes().len(), 203);
}

#[tokio::test]
async fn the_probe_asks_nobody() {
    let e2b = FakeE2b::start().await;
    assert_eq!(backend(&e2b).probe().await, Ok(()));
    let timing = Timing::default();
    for (key, part) in [
        (None, "not set"),
        (Some(""), "not set"),
        (Some("sk_e2b_0123456789"), "access token"),
        (Some("e2b_\u{7f}x"), "odd characters"),
    ] {
        let backend = backend_with(&e2b, key, timing);
        let error = backend.probe().await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ProviderAuthMissing);
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().unwrap().contains("E2B_API_KEY"));
        assert_eq!(backend.create(&spec(), &labels()).await.err(), Some(error));
    }
    assert_eq!(e2b.requests().len(), 0);
}

#[tokio::test]
async fn sandboxes_side_by_side_leave_nothing_behind() {
    let e2b = FakeE2b::start().await;
    let backend = backend(&e2b);
    let runs = (0..50).map(|n| {
        let backend = backend.clone();
        async move {
            let sandbox = backend.create(&spec(), &labels()).await.unwrap();
            let run = collect(&*sandbox, command(&["echo", &n.to_string()]))
                .await
                .unwrap();
            assert_eq!(text(&run.stdout), format!("{n}\n"));
            sandbox.kill().await.unwrap();
        }
    });
    futures::future::join_all(runs).await;
    e2b.wait_until_empty(Duration::from_secs(5)).await;
    assert_eq!(e2b.created(), 50);
}

#[tokio::test]
async fn the_key_is_nowhere_but_at_the_control_plane() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let mut spec = command(&["sh", "-c", "env; cat; ls -laR /home/user /tmp"]);
    spec.stdin = "input".into();
    let running = sandbox.exec(spec).await.unwrap();
    let seen = running.collect(1 << 20).await.unwrap();
    sandbox.write("f", "x".into()).await.unwrap();
    sandbox.extend(Duration::from_mins(10)).await.unwrap();
    let encoded = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD_NO_PAD.encode(KEY)
    };
    let clean = |text: &str| !text.contains(KEY) && !text.contains(&encoded);
    assert!(clean(&text(&seen.stdout)) && clean(&text(&seen.stderr)));
    assert_eq!(e2b.sandboxes()[0].envs.len(), 0);
    for request in e2b.requests() {
        assert!(clean(&text(&request.body)), "{:?}", request.route);
        assert!(clean(&request.query), "{:?}", request.route);
        for (name, value) in &request.headers {
            let key_header = name == "x-api-key" && request.route.is_control();
            assert!(
                key_header || clean(&text(value.as_bytes())),
                "{:?}: {name}",
                request.route
            );
        }
        assert_eq!(
            request.header("x-api-key").is_empty(),
            !request.route.is_control()
        );
    }
    let files = std::process::Command::new("grep")
        .args(["-r", "-l", KEY])
        .arg(&e2b.sandboxes()[0].dir)
        .output()
        .unwrap();
    assert_eq!(text(&files.stdout), "");
}

/// A sandbox that says to be of this version of envd.
async fn of_version(
    e2b: &FakeE2b,
    version: &str,
) -> std::sync::Arc<dyn sandcaster::sandbox::Sandbox> {
    let id = e2b.add_sandbox(&[]);
    let detail = sandcaster::net::build()
        .unwrap()
        .get(format!("{}/sandboxes/{id}", e2b.url()))
        .header("X-API-Key", KEY)
        .send()
        .await
        .unwrap();
    let mut detail: serde_json::Value = detail.json().await.unwrap();
    detail["envdVersion"] = json!(version);
    e2b.on(Route::Create).respond(Reply::json(201, &detail));
    backend(e2b).create(&spec(), &labels()).await.unwrap()
}

#[tokio::test]
async fn old_templates_are_spoken_to_as_they_need_it() {
    let e2b = FakeE2b::start().await;
    let old = of_version(&e2b, "0.2.0").await;
    old.write("a b.txt", "content".into()).await.unwrap();
    let upload = &e2b.requests_of(Route::Upload)[0];
    assert!(
        upload
            .header("content-type")
            .starts_with("multipart/form-data; boundary=")
    );
    assert!(upload.query.contains("username=user"), "{}", upload.query);
    assert_eq!(old.read("a b.txt", 100).await.unwrap(), "content");
    let run = collect(
        &*old,
        command(&["sh", "-c", "cat; echo \"$1\"", "sh", "a  b"]),
    )
    .await
    .unwrap();
    assert_eq!(text(&run.stdout), "a  b\n");
    let start = &e2b.requests_of(Route::Start)[0];
    assert_eq!(start.header("authorization"), "Basic dXNlcjo=");
    assert_eq!(start.json()["process"]["cmd"], "/bin/sh");
    let mut spec = command(&["cat"]);
    spec.stdin = "x".into();
    let error = old.exec(spec).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TemplateIncompatible);

    let new = of_version(&e2b, "0.6.13").await;
    new.write("x", "y".into()).await.unwrap();
    let upload = &e2b.requests_of(Route::Upload)[1];
    assert_eq!(upload.header("content-type"), "application/octet-stream");
    assert_eq!(
        (upload.query.as_str(), upload.header("authorization")),
        ("path=%2Fhome%2Fuser%2Fx", "")
    );
}

#[tokio::test]
async fn a_sandbox_that_dies_quietly_is_noticed_while_it_is_watched() {
    let e2b = FakeE2b::start().await;
    let timing = Timing {
        watch: Duration::from_millis(50),
        ..quick()
    };
    let backend = backend_with(&e2b, Some(KEY), timing);
    let sandbox = backend.create(&spec(), &labels()).await.unwrap();
    let watched = tokio::time::timeout(Duration::from_millis(300), sandbox.gone()).await;
    assert!(watched.is_err(), "{watched:?}");
    e2b.die(sandbox.id(), Death::Reset, "timeout").await;
    let error = bounded(sandbox.gone()).await;
    assert_eq!(error.code(), ErrorCode::SandboxLost);
    assert!(error.is_fatal());
}

#[tokio::test]
async fn what_one_call_finds_out_ends_all_others() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    // A stream that goes on as if nothing had happened.
    e2b.on(Route::Start).stream(StreamFault::KeepalivesOnly {
        after: 1,
        every: Duration::from_millis(20),
    });
    let mut stream = sandbox.exec(command(&["sleep", "1000"])).await.unwrap();
    e2b.die(sandbox.id(), Death::Reset, "admin").await;
    let error = bounded(sandbox.read("x", 1)).await.unwrap_err();
    assert!(matches!(error, SandboxError::Gone(_)), "{error:?}");
    let error = bounded(stream.next()).await.unwrap_err();
    assert!(matches!(error, SandboxError::Gone(_)), "{error:?}");
    bounded(sandbox.gone()).await;
}

#[tokio::test]
async fn creation_ends_by_its_deadline() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create).always().hang();
    let spec = sandcaster::sandbox::SandboxSpec {
        deadline: Deadline::after(Duration::from_millis(300)),
        ..spec()
    };
    let error = bounded(backend(&e2b).create(&spec, &labels()))
        .await
        .err()
        .unwrap();
    assert_eq!(error.code(), ErrorCode::SandboxTimeout);
}
