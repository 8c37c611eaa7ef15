//! The E2B backend against faults of file transfers.

use sandcaster::error::ErrorCode;
use sandcaster::sandbox::{FileErrorKind, SandboxError};
use serde_json::json;

use super::e2b_support::*;
use crate::support::fake_e2b::{FakeE2b, Reply, Route, frame};

#[tokio::test]
async fn transfers_of_files_are_repeated_after_passing_faults() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    sandbox.write("a", "content".into()).await.unwrap();
    for reply in [
        Reply::port_closed("i"),
        Reply::from(503),
        Reply::html(502, "<html>"),
        Reply::from(429),
    ] {
        e2b.on(Route::Download).first(2).respond(reply.clone());
        assert_eq!(
            sandbox.read("a", 100).await.unwrap(),
            "content",
            "{reply:?}"
        );
        e2b.on(Route::Upload).first(2).respond(reply.clone());
        sandbox.write("b", "again".into()).await.unwrap();
    }
    e2b.on(Route::Download)
        .respond(Reply::new(200).body("content").cut_after(3));
    assert_eq!(sandbox.read("a", 100).await.unwrap(), "content");
    e2b.on(Route::Upload).drop_after_send();
    sandbox.write("b", "at last".into()).await.unwrap();
    assert_eq!(sandbox.read("b", 100).await.unwrap(), "at last");
}

#[tokio::test]
async fn faults_of_files_are_the_tools_matter_unless_the_sandbox_is_lost() {
    let kind = |error: &SandboxError| match error {
        SandboxError::File { kind, .. } => Some(kind.clone()),
        _ => None,
    };
    let envd = |status: u16, message: &str| {
        Reply::json(status, &json!({"code": status, "message": message}))
    };
    let other = |text: &str| FileErrorKind::Other(text.to_owned());
    for (reply, expected, code) in [
        (
            envd(400, "odd path"),
            Some(other("odd path")),
            ErrorCode::SandboxError,
        ),
        (
            envd(404, "path '/x' does not exist"),
            Some(FileErrorKind::NotFound),
            ErrorCode::SandboxError,
        ),
        (
            envd(500, "open /x: permission denied"),
            Some(FileErrorKind::PermissionDenied),
            ErrorCode::SandboxError,
        ),
        (
            envd(507, "not enough disk space available"),
            Some(FileErrorKind::NoSpace),
            ErrorCode::SandboxError,
        ),
        (
            envd(401, "unauthorized access"),
            None,
            ErrorCode::ProviderAuthMissing,
        ),
        (Reply::sandbox_gone("i"), None, ErrorCode::SandboxLost),
    ] {
        let e2b = FakeE2b::start().await;
        let sandbox = sandbox(&e2b).await;
        e2b.on(Route::Upload).respond(reply);
        let error = sandbox.write("x", "y".into()).await.unwrap_err();
        assert_eq!((kind(&error), error.code()), (expected, code), "{error}");
        assert_eq!(error.is_fatal(), code != ErrorCode::SandboxError, "{error}");
        assert_eq!(e2b.calls(Route::Upload), 1);
    }
}

#[tokio::test]
async fn a_transfer_that_hangs_ends() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox_with(&e2b, impatient()).await;
    e2b.on(Route::Download).always().hang();
    e2b.on(Route::Upload).always().hang();
    let error = bounded(sandbox.read("a", 100)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SandboxTimeout, "{error}");
    let error = bounded(sandbox.write("a", "x".into())).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SandboxTimeout, "{error}");
}

#[tokio::test]
async fn a_file_longer_than_it_says_is_cut_off() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    sandbox.write("a", vec![b'x'; 1000].into()).await.unwrap();
    // Without a length, as a compressing edge answers.
    let endless = Reply::frames([frame(0, &vec![b'x'; 500_000])]);
    e2b.on(Route::Download).respond(endless);
    let error = sandbox.read("a", 1000).await.unwrap_err();
    assert!(matches!(error, SandboxError::TooLarge { .. }), "{error:?}");
}
