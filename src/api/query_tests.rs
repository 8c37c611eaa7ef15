//! The waiting JSON form, from events at hand.

use axum::body::to_bytes;
use futures::stream;

use super::*;
use crate::events::{
    ErrorEvent, FileEncoding, FileEvent, ResultEvent, RunEvent, StopReason, Totals,
};
use crate::ids::Seq;

fn run() -> RunId {
    RunId::parse("run_0123456789abcdef0123456789abcdef").unwrap()
}

fn stored(events: &[RunEvent]) -> Vec<Result<Arc<StoredEvent>, StoreError>> {
    (1..)
        .zip(events)
        .map(|(seq, event)| Ok(Arc::new(StoredEvent::new(Seq(seq), event).unwrap())))
        .collect()
}

fn result() -> RunEvent {
    RunEvent::Result(ResultEvent {
        subtype: "success",
        content: "42".to_owned(),
        stop_reason: StopReason::End,
        truncated: false,
        totals: Totals::default(),
    })
}

fn file() -> RunEvent {
    RunEvent::File(FileEvent {
        path: "a.txt".to_owned(),
        mime_type: "text/plain".to_owned(),
        size: 2,
        sha256: "00".to_owned(),
        encoding: FileEncoding::Utf8,
        content: Some("hi".to_owned()),
        url: "/runs/x/files/a.txt".to_owned(),
    })
}

fn error(code: ErrorCode) -> RunEvent {
    let problem = Problem::new(code, "it broke").retry_after(std::time::Duration::from_secs(7));
    RunEvent::Error(ErrorEvent::new(&problem, Totals::default()))
}

async fn waited(events: Vec<Result<Arc<StoredEvent>, StoreError>>) -> (Response, Value) {
    let response = answer(&run(), stream::iter(events)).await;
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    let value = serde_json::from_slice(&bytes).unwrap();
    (Response::from_parts(parts, Body::empty()), value)
}

#[tokio::test]
async fn a_result_comes_with_its_run_and_files() {
    let (response, body) = waited(stored(&[file(), result()])).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-run-id"], run().as_str());
    assert_eq!(body["type"], "result");
    assert_eq!(body["content"], "42");
    assert_eq!(body["runId"], run().as_str());
    assert_eq!(
        body["files"],
        json!([{"path":"a.txt","mimeType":"text/plain","size":2,"sha256":"00","encoding":"utf-8",
                "content":"hi","url":"/runs/x/files/a.txt"}])
    );
}

#[tokio::test]
async fn an_error_has_the_status_of_its_code() {
    for (code, status) in [
        (ErrorCode::DeadlineExceeded, 504),
        (ErrorCode::Cancelled, 409),
        (ErrorCode::MaxTurns, 422),
        (ErrorCode::LlmAuth, 502),
        (ErrorCode::ServerShutdown, 503),
        (ErrorCode::Internal, 500),
        (ErrorCode::ProviderAuthMissing, 502),
    ] {
        let (response, body) = waited(stored(&[error(code)])).await;
        assert_eq!(response.status().as_u16(), status, "{code}");
        assert_eq!(body["code"], code.as_str());
        assert_eq!(body["error"], "it broke");
        assert_eq!(body["files"], json!([]));
        assert_eq!(response.headers()["retry-after"], "7");
    }
}

#[tokio::test]
async fn a_log_that_breaks_off_is_no_success() {
    let mut events = stored(&[file()]);
    let (response, _) = waited(events.clone()).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    events.push(Err(StoreError::Failed("disk".to_owned())));
    let (response, body) = waited(events).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["runId"], run().as_str());
    // It may have acted: nothing here makes a client send it again.
    assert_eq!(response.headers().get("retry-after"), None);
    assert_eq!(body.get("retryAfterSecs"), None);
    let told = body.to_string();
    assert!(
        !told.contains("disk") && !told.contains("retrying"),
        "{told}"
    );
    assert!(told.contains(&format!("GET /runs/{}", run())), "{told}");
}

#[tokio::test]
async fn a_background_run_is_accepted_with_its_urls() {
    let response = accepted(&run());
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert_eq!(response.headers()["location"], format!("/runs/{}", run()));
    let bytes = to_bytes(response.into_body(), 1 << 16).await.unwrap();
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(body["id"], run().as_str());
    assert_eq!(body["status"], "running");
    assert_eq!(body["eventsUrl"], format!("/runs/{}/events", run()));
}
