//! The E2B backend against faults of a sandbox: broken streams, sudden death, a deaf edge.

use std::time::Duration;

use bytes::Bytes;
use sandcaster::error::ErrorCode;
use sandcaster::sandbox::{ExecOutput, SandboxError};
use serde_json::json;
use tokio::time::Instant;

use super::e2b_support::*;
use crate::support::fake_e2b::{
    Death, Ending, FakeE2b, Fault, Reply, Route, StreamFault, end_frame, frame, message_frame,
};

/// A command that says something, waits for the file `go`, says more, and exits with 5.
const WAITING: &str = "echo one; while [ ! -e go ]; do sleep 0.02; done; echo two; exit 5";

/// Reads to the end: standard output, whether a gap was told, and how it ended.
async fn drain(
    stream: &mut sandcaster::sandbox::ExecStream,
) -> (String, bool, Result<i32, SandboxError>) {
    let (mut out, mut gap) = (Vec::new(), false);
    let end = bounded(async {
        loop {
            match stream.next().await {
                Ok(ExecOutput::Stdout(bytes)) => out.extend_from_slice(&bytes),
                Ok(ExecOutput::Gap) => gap = true,
                Ok(ExecOutput::Stderr(bytes)) => panic!("{bytes:?}"),
                Ok(ExecOutput::Exit(code)) => return Ok(code),
                Err(error) => return Err(error),
            }
        }
    })
    .await;
    (text(&out), gap, end)
}

#[tokio::test]
async fn a_broken_stream_of_a_living_command_is_joined_again() {
    let unavailable = json!({"error": {"code": "unavailable", "message": "the connection to sandbox x ended before the stream completed"}});
    let canceled = json!({"error": {"code": "canceled", "message": "context canceled"}});
    for fault in [
        StreamFault::CutInFrame {
            after: 1,
            ending: Ending::Clean,
        },
        StreamFault::CutInFrame {
            after: 1,
            ending: Ending::Reset,
        },
        StreamFault::EndAfter {
            after: 1,
            ending: Ending::Clean,
        },
        StreamFault::EndAfter {
            after: 1,
            ending: Ending::Reset,
        },
        StreamFault::EndFrame {
            after: 1,
            message: json!({}),
        },
        StreamFault::EndFrame {
            after: 1,
            message: unavailable,
        },
        StreamFault::EndFrame {
            after: 1,
            message: canceled,
        },
        StreamFault::Stall { after: 1 },
    ] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox_with(&e2b, impatient()).await;
        e2b.on(Route::Start).stream(fault.clone());
        let joined = e2b.on(Route::Connect).nth(1).gate();
        joined.open();
        let mut stream = sandbox.exec(command(&["sh", "-c", WAITING])).await.unwrap();
        joined.reached().await;
        // Joined, or about to be: what it says from now on is heard, unless it is said in between.
        let go = async {
            while e2b.calls(Route::EnvdHealth) == 0 {
                tokio::task::yield_now().await;
            }
            sandbox.write("go", Bytes::new()).await.unwrap();
        };
        let ((_, gap, end), ()) = tokio::join!(drain(&mut stream), go);
        assert_eq!(end, Ok(5), "{fault:?}");
        assert!(gap, "{fault:?}: nobody was told that output is missing");
        assert_eq!(e2b.calls(Route::Start), 1, "{fault:?}: a command ran twice");
    }
}

#[tokio::test]
async fn a_command_that_ended_behind_a_broken_stream_still_has_its_exit_code() {
    for fault in [
        StreamFault::NoExit,
        StreamFault::EndAfter {
            after: 2,
            ending: Ending::Clean,
        },
    ] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox(&e2b).await;
        e2b.on(Route::Start).stream(fault.clone());
        let mut stream = sandbox
            .exec(command(&["sh", "-c", "echo one; exit 5"]))
            .await
            .unwrap();
        let (out, _, end) = drain(&mut stream).await;
        assert_eq!((out.as_str(), end), ("one\n", Ok(5)), "{fault:?}");
        assert_eq!(e2b.calls(Route::Start), 1);
    }
}

#[tokio::test]
async fn oddities_that_lose_nothing_are_forgiven() {
    let unknown = message_frame(&json!({"event": {"telemetry": {"cpu": 1}}, "extra": [1]}));
    let keepalive = message_frame(&json!({"event": {"keepalive": {}}}));
    for fault in [
        StreamFault::NoEndFrame,
        StreamFault::DoubleEnd,
        StreamFault::ErrorAfterExit {
            code: "internal",
            message: "late",
        },
        StreamFault::NoStart,
        StreamFault::Insert {
            after: 0,
            bytes: unknown.clone(),
        },
        StreamFault::Insert {
            after: 1,
            bytes: unknown,
        },
        StreamFault::Insert {
            after: 0,
            bytes: keepalive,
        },
        StreamFault::Trickle {
            bytes: 7,
            every: Duration::from_millis(1),
        },
        StreamFault::Trickle {
            bytes: 1,
            every: Duration::ZERO,
        },
    ] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox(&e2b).await;
        e2b.on(Route::Start).stream(fault.clone());
        let mut stream = sandbox
            .exec(command(&["sh", "-c", "echo one; exit 5"]))
            .await
            .unwrap();
        let (out, gap, end) = drain(&mut stream).await;
        assert_eq!(
            (out.as_str(), gap, end),
            ("one\n", false, Ok(5)),
            "{fault:?}"
        );
        assert_eq!(e2b.calls(Route::Connect), 0, "{fault:?}");
        sandbox.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_stream_that_breaks_the_protocol_ends_the_command() {
    let too_long = Bytes::from_static(&[0, 0x7f, 0xff, 0xff, 0xff]);
    for (bytes, part) in [
        (frame(1, b"{}"), "compressed"),
        (too_long, "limit 1048576"),
        (frame(0, b"no json"), "unreadable JSON"),
        (
            frame(0, br#"{"event":{"data":{"stdout":"***"}}}"#),
            "base64",
        ),
        (frame(2, b"no json"), "unreadable JSON"),
    ] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox(&e2b).await;
        e2b.on(Route::Start)
            .stream(StreamFault::Insert { after: 1, bytes });
        let mut stream = sandbox.exec(command(&["sleep", "1000"])).await.unwrap();
        let (_, _, end) = drain(&mut stream).await;
        let error = end.unwrap_err();
        assert_eq!(error.code(), ErrorCode::SandboxError);
        assert!(error.to_string().contains(part), "{error}");
        none_running(&e2b).await;
    }
}

async fn none_running(e2b: &FakeE2b) {
    bounded(async {
        while e2b.processes_left() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn signs_of_life_alone_keep_a_stream_open() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox_with(&e2b, impatient()).await;
    e2b.on(Route::Start).stream(StreamFault::KeepalivesOnly {
        after: 1,
        every: Duration::from_millis(50),
    });
    let mut stream = sandbox.exec(command(&["sleep", "1000"])).await.unwrap();
    let quiet = tokio::time::timeout(Duration::from_secs(1), stream.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(e2b.calls(Route::EnvdHealth), 0);
    sandbox.kill().await.unwrap();
    let (_, _, end) = drain(&mut stream).await;
    assert!(matches!(end, Err(SandboxError::Gone(_))), "{end:?}");
}

#[tokio::test]
async fn a_stream_that_breaks_again_and_again_is_given_up() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let cut = StreamFault::EndAfter {
        after: 1,
        ending: Ending::Clean,
    };
    e2b.on(Route::Start).stream(cut.clone());
    e2b.on(Route::Connect).always().stream(cut);
    let mut stream = sandbox.exec(command(&["sleep", "1000"])).await.unwrap();
    let (_, _, end) = drain(&mut stream).await;
    let error = end.unwrap_err();
    assert!(error.to_string().contains("broke 4 times"), "{error}");
    assert_eq!(e2b.calls(Route::Connect), 3);
    none_running(&e2b).await;
}

#[tokio::test]
async fn a_sandbox_that_dies_under_a_command_is_lost_at_once() {
    for death in [Death::Reset, Death::EndFrame] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox(&e2b).await;
        let mut stream = sandbox
            .exec(command(&["sh", "-c", "echo up; sleep 1000"]))
            .await
            .unwrap();
        assert_eq!(stream.next().await, Ok(ExecOutput::Stdout("up\n".into())));
        let began = Instant::now();
        e2b.die(sandbox.id(), death, "timeout").await;
        let (_, _, end) = drain(&mut stream).await;
        let error = end.unwrap_err();
        assert_eq!(error.code(), ErrorCode::SandboxLost, "{death:?}: {error}");
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{death:?}: {:?}",
            began.elapsed()
        );
        assert!(error.is_fatal());
        e2b.wait_until_empty(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn a_paused_sandbox_counts_as_lost() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    assert!(e2b.pause(sandbox.id()));
    let error = bounded(sandbox.exec(command(&["true"]))).await.unwrap_err();
    assert!(matches!(error, SandboxError::Gone(_)), "{error:?}");
    sandbox.kill().await.unwrap();
}

#[tokio::test]
async fn a_sandbox_that_can_not_be_reached_any_more_is_lost_in_bounded_time() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox_with(&e2b, impatient()).await;
    let mut stream = sandbox
        .exec(command(&["sh", "-c", "echo up; sleep 1000"]))
        .await
        .unwrap();
    assert_eq!(stream.next().await, Ok(ExecOutput::Stdout("up\n".into())));
    // Nothing answers: the stream's silence is noticed first, then that nobody answers questions.
    e2b.on(Route::EnvdHealth).always().hang();
    let (_, _, end) = drain(&mut stream).await;
    let error = end.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SandboxLost);
    assert!(error.to_string().contains("can't be reached"), "{error}");
}

#[tokio::test]
async fn a_start_that_reached_nobody_is_sent_again() {
    let transitioning = "The sandbox is still transitioning. Try again in a moment.";
    for reply in [
        Reply::port_closed("i"),
        Reply::json(409, &json!({"message": transitioning, "code": 409})),
        Reply::json(
            429,
            &json!({"message": "The sandbox has too many concurrent incoming connections (limit: 1)", "code": 429}),
        ),
        Reply::from(429).header("Retry-After", "0"),
    ] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox(&e2b).await;
        e2b.on(Route::Start).first(2).respond(reply.clone());
        let run = sh(&*sandbox, "echo once >>log; cat log").await;
        assert_eq!(text(&run.stdout), "once\n", "{reply:?}");
        assert_eq!(e2b.calls(Route::Start), 3, "{reply:?}");
    }
}

#[tokio::test]
async fn a_start_that_keeps_reaching_nobody_ends_with_the_reason() {
    for (reply, code, fatal) in [
        (Reply::port_closed("i"), ErrorCode::SandboxLost, true),
        (
            Reply::json(409, &json!({"message": "still transitioning", "code": 409})),
            ErrorCode::SandboxError,
            false,
        ),
        (Reply::from(429), ErrorCode::RateLimit, false),
    ] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox_with(&e2b, impatient()).await;
        e2b.on(Route::Start).always().respond(reply);
        let error = bounded(sandbox.exec(command(&["true"]))).await.unwrap_err();
        assert_eq!((error.code(), error.is_fatal()), (code, fatal), "{error}");
    }
}

#[tokio::test]
async fn a_start_that_was_refused_is_not_repeated() {
    let unreadable = Reply::json(200, &json!({"event": {}}));
    for (reply, code, fatal) in [
        (Reply::sandbox_gone("i"), ErrorCode::SandboxLost, true),
        (
            Reply::json(401, &json!({"code": 401, "message": "unauthorized access"})),
            ErrorCode::ProviderAuthMissing,
            true,
        ),
        (
            Reply::json(
                400,
                &json!({"code": "invalid_argument", "message": "bad cwd"}),
            ),
            ErrorCode::SandboxError,
            false,
        ),
        (Reply::new(404), ErrorCode::SandboxError, false),
        (Reply::new(415), ErrorCode::SandboxError, false),
        (Reply::new(501), ErrorCode::SandboxError, false),
        (unreadable, ErrorCode::SandboxError, false),
    ] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox(&e2b).await;
        e2b.on(Route::Start).respond(reply.clone());
        let error = bounded(sandbox.exec(command(&["true"]))).await.unwrap_err();
        assert_eq!(
            (error.code(), error.is_fatal()),
            (code, fatal),
            "{reply:?}: {error}"
        );
        let commands = e2b.requests_of(Route::Start);
        let repeated = commands
            .iter()
            .filter(|seen| seen.json()["process"]["cmd"] == "true")
            .count();
        assert_eq!(repeated, 1, "{reply:?}");
    }
}

#[tokio::test]
async fn errors_in_an_end_frame_are_read_though_the_status_is_200() {
    for (code, expected, fatal) in [
        ("invalid_argument", ErrorCode::SandboxError, false),
        ("not_found", ErrorCode::SandboxError, false),
        ("permission_denied", ErrorCode::SandboxError, false),
        ("unauthenticated", ErrorCode::ProviderAuthMissing, true),
        ("unimplemented", ErrorCode::SandboxError, false),
        ("internal", ErrorCode::SandboxError, false),
        ("deadline_exceeded", ErrorCode::SandboxError, false),
        ("unavailable", ErrorCode::SandboxError, false),
    ] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox(&e2b).await;
        let end = end_frame(&json!({"error": {"code": code, "message": "the reason"}}));
        e2b.on(Route::Start).respond(Reply::frames([end]));
        let error = bounded(sandbox.exec(command(&["true"]))).await.unwrap_err();
        assert_eq!(
            (error.code(), error.is_fatal()),
            (expected, fatal),
            "{code}: {error}"
        );
        assert!(error.to_string().contains("the reason"), "{code}: {error}");
        assert_eq!(e2b.calls(Route::Start), 1, "{code}");
    }
}

/// Makes one call go wrong.
type Spoil = fn(&FakeE2b) -> Fault;

#[tokio::test]
async fn a_start_whose_answer_was_lost_is_found_and_not_run_again() {
    let spoils: [(&str, Spoil); 3] = [
        ("dropped", |e2b| e2b.on(Route::Start).drop_after_send()),
        ("502", |e2b| {
            let html = Reply::html(502, "<html>bad gateway</html>");
            e2b.on(Route::Start).respond_after_acting(html)
        }),
        ("cut", |e2b| {
            let fault = StreamFault::EndAfter {
                after: 0,
                ending: Ending::Reset,
            };
            e2b.on(Route::Start).stream(fault)
        }),
    ];
    for (way, spoil) in spoils {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox(&e2b).await;
        spoil(&e2b);
        let script = "echo ran >>log; while [ ! -e go ]; do sleep 0.02; done; cat log; exit 5";
        let mut stream = bounded(sandbox.exec(command(&["sh", "-c", script])))
            .await
            .unwrap();
        sandbox.write("go", Bytes::new()).await.unwrap();
        let (out, gap, end) = drain(&mut stream).await;
        assert_eq!((out.as_str(), gap, end), ("ran\n", true, Ok(5)), "{way}");
        assert_eq!(e2b.calls(Route::Start), 1, "{way}");
    }
}

#[tokio::test]
async fn a_start_that_may_never_have_arrived_is_told_so_and_not_run_again() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    e2b.on(Route::Start).drop_before_acting();
    let error = bounded(sandbox.exec(command(&["true"]))).await.unwrap_err();
    assert!(
        error.to_string().contains("not known whether it ran"),
        "{error}"
    );
    assert!(!error.is_fatal());
    assert_eq!(e2b.calls(Route::Start), 1);
}

#[tokio::test]
async fn a_start_without_any_event_ends_and_its_command_is_stopped() {
    for fault in [
        StreamFault::Stall { after: 0 },
        StreamFault::KeepalivesOnly {
            after: 0,
            every: Duration::from_millis(20),
        },
    ] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox_with(&e2b, impatient()).await;
        e2b.on(Route::Start).stream(fault.clone());
        let error = bounded(sandbox.exec(command(&["sleep", "1000"])))
            .await
            .unwrap_err();
        assert_eq!(
            error.code(),
            ErrorCode::SandboxTimeout,
            "{fault:?}: {error}"
        );
        none_running(&e2b).await;
    }
}

#[tokio::test]
async fn input_that_may_have_arrived_is_not_sent_twice() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    e2b.on(Route::SendInput).drop_after_send();
    let mut spec = command(&["cat"]);
    spec.stdin = "once".into();
    let mut stream = sandbox.exec(spec).await.unwrap();
    let (_, _, end) = drain(&mut stream).await;
    let error = end.unwrap_err();
    assert!(
        error.to_string().contains("giving a command its input"),
        "{error}"
    );
    assert_eq!(e2b.calls(Route::SendInput), 1);
    none_running(&e2b).await;
}

#[tokio::test]
async fn input_that_reached_nobody_is_sent_again() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    e2b.on(Route::SendInput).respond(Reply::port_closed("i"));
    e2b.on(Route::CloseStdin).drop_before_acting();
    let mut spec = command(&["cat"]);
    spec.stdin = "once".into();
    let run = collect(&*sandbox, spec).await.unwrap();
    assert_eq!((text(&run.stdout).as_str(), run.exit_code), ("once", 0));
}

#[tokio::test]
async fn errors_of_a_sandbox_hold_no_token() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    sandbox.write("a", "x".into()).await.unwrap();
    let token = e2b.requests_of(Route::Upload)[0]
        .header("x-access-token")
        .to_owned();
    assert!(!token.is_empty());
    let echo = json!({"code": 401, "message": format!("bad token {token}")});
    e2b.on(Route::Upload).respond(Reply::json(401, &echo));
    let error = sandbox.write("a", "x".into()).await.unwrap_err();
    assert!(error.to_string().contains("bad token"), "{error}");
    assert!(!format!("{error:?} {error}").contains(&token), "{error}");
    e2b.on(Route::Start).respond(Reply::json(400, &echo));
    let error = sandbox.exec(command(&["true"])).await.unwrap_err();
    assert!(!format!("{error:?} {error}").contains(&token), "{error}");
}

#[tokio::test]
async fn endless_and_binary_output_is_passed_on_until_it_is_stopped() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let mut stream = sandbox
        .exec(command(&["cat", "/dev/urandom"]))
        .await
        .unwrap();
    let mut read = 0;
    while read < 10_000_000 {
        match bounded(stream.next()).await.unwrap() {
            ExecOutput::Stdout(bytes) => read += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    stream.control.kill().await;
    let (_, _, end) = drain(&mut stream).await;
    assert_eq!(end, Ok(137));
    none_running(&e2b).await;
}

#[tokio::test]
async fn a_full_disk_and_a_fork_bomb_stay_inside() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    let full = sh(&*sandbox, "echo x >/dev/full").await;
    assert_ne!(full.exit_code, 0);
    // A small one: the test's own machine runs it.
    let script = "for i in 1 2 3 4 5 6 7 8; do (sleep 1000 & sleep 1000) & done; echo up; wait";
    let mut stream = sandbox.exec(command(&["sh", "-c", script])).await.unwrap();
    assert_eq!(stream.next().await, Ok(ExecOutput::Stdout("up\n".into())));
    stream.control.kill().await;
    let (_, _, end) = drain(&mut stream).await;
    assert_eq!(end, Ok(137));
    none_running(&e2b).await;
}
