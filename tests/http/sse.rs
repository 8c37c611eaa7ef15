//! Event streams over a socket, from events at hand.

use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures::{Stream, StreamExt as _, stream};
use sandcaster::api::{Limits, sse};
use sandcaster::events::{Delta, ResultEvent, RunEvent, StopReason, StoredEvent, Totals};
use sandcaster::ids::Seq;
use sandcaster::store::StoreError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::runs::id;
use crate::support::http::{PATIENCE, Reply, TestServer, keyless};

type Item = Result<Arc<StoredEvent>, StoreError>;

fn delta(seq: u64, text: &str) -> Arc<StoredEvent> {
    let event = RunEvent::Assistant(Delta::new(text, 1));
    Arc::new(StoredEvent::new(Seq(seq), &event).unwrap())
}

fn result(seq: u64) -> Arc<StoredEvent> {
    let event = RunEvent::Result(ResultEvent {
        subtype: "success",
        content: "done".to_owned(),
        stop_reason: StopReason::End,
        truncated: false,
        totals: Totals::default(),
    });
    Arc::new(StoredEvent::new(Seq(seq), &event).unwrap())
}

async fn serve<S, F>(events: F, heartbeat: Duration) -> TestServer
where
    S: Stream<Item = Item> + Send + 'static,
    F: Fn() -> S + Clone + Send + Sync + 'static,
{
    let handler = move || {
        let events = events();
        async move { sse::response(&id(1), events, heartbeat) }
    };
    let routes = Router::new().route("/runs", get(handler));
    TestServer::routes(keyless(), routes, Limits::default()).await
}

const LONG: Duration = Duration::from_secs(15);

#[tokio::test]
async fn frames_have_id_type_and_one_line_of_json() {
    let hostile = "a\nid: 9\r\nevent: error\r\ndata: {}\u{2028}\u{0}é";
    let server = serve(
        move || stream::iter([Ok(delta(1, "Let me")), Ok(delta(2, hostile)), Ok(result(3))]),
        LONG,
    )
    .await;
    let reply = server.get("/runs").send().await;
    assert_eq!(reply.status, 200);
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache, no-store, no-transform"),
        ("x-accel-buffering", "no"),
        ("x-run-id", id(1).as_str()),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
    assert!(reply.complete, "the body ends properly");
    let opening = format!(": {}\nretry: 2000\n", id(1));
    // No blank line after it: some parsers take each of them for an event.
    let frames = reply.text().strip_prefix(&opening).unwrap();
    let frames: Vec<_> = frames.split_terminator("\n\n").collect();
    assert_eq!(frames.len(), 3);
    for (frame, event) in frames
        .iter()
        .zip([delta(1, "Let me"), delta(2, hostile), result(3)])
    {
        let lines: Vec<_> = frame.split('\n').collect();
        assert_eq!(
            lines,
            [
                format!("id: {}", event.seq),
                format!("event: {}", event.kind),
                format!("data: {}", event.json)
            ]
        );
    }
}

#[tokio::test]
async fn nothing_follows_the_terminal_event() {
    let (dropped, was_dropped) = oneshot::channel::<()>();
    let dropped = Arc::new(parking_lot::Mutex::new(Some(dropped)));
    let server = serve(
        move || {
            // The source never ends by itself, and holds a sender that tells of its drop.
            let held = dropped.lock().take();
            stream::iter([Ok(result(1))]).chain(stream::once(async move {
                let _held = held;
                std::future::pending().await
            }))
        },
        LONG,
    )
    .await;
    let reply = server.get("/runs").send().await;
    assert!(reply.complete);
    assert!(reply.text().ends_with("\n\n"));
    let gone = timeout(PATIENCE, was_dropped)
        .await
        .expect("the source is let go");
    assert!(gone.is_err());
}

#[tokio::test]
async fn a_stream_whose_store_fails_looks_cut() {
    let failing = || {
        stream::iter([
            Ok(delta(1, "x")),
            Err(StoreError::Failed("disk /x".to_owned())),
        ])
    };
    let ending = || stream::iter([Ok(delta(1, "x"))]);
    for server in [serve(failing, LONG).await, serve(ending, LONG).await] {
        let reply = server.get("/runs").send().await;
        assert_eq!(reply.status, 200);
        assert!(!reply.complete, "no last chunk");
        assert!(reply.text().contains("id: 1\n"));
        assert!(!reply.text().contains("disk"));
    }
}

/// Reads until `text` has come.
async fn read_until(stream: &mut tokio::net::TcpStream, seen: &mut String, text: &str) {
    let read = async {
        while !seen.contains(text) {
            let mut part = [0; 4096];
            let n = stream.read(&mut part).await.unwrap();
            assert!(n > 0, "closed before {text:?} in {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&part[..n]));
        }
    };
    timeout(PATIENCE, read)
        .await
        .unwrap_or_else(|_| panic!("no {text:?}"));
}

#[tokio::test]
async fn the_head_comes_before_any_event_and_each_event_when_it_happens() {
    let (send, receive) = mpsc::channel::<Item>(1);
    let receive = Arc::new(parking_lot::Mutex::new(Some(receive)));
    let server = serve(
        move || {
            let receive = receive.lock().take().unwrap();
            stream::unfold(receive, |mut receive| async {
                Some((receive.recv().await?, receive))
            })
        },
        Duration::from_millis(100),
    )
    .await;
    let mut connection = server.connect().await;
    connection
        .write_all(&server.get("/runs").bytes())
        .await
        .unwrap();
    let mut seen = String::new();
    read_until(&mut connection, &mut seen, "retry: 2000").await;
    assert!(seen.starts_with("HTTP/1.1 200"));
    // Nothing has happened yet, so silence is filled.
    read_until(&mut connection, &mut seen, ": hb\n").await;
    assert!(!seen.contains("\nid: "), "a comment moves no cursor");
    send.send(Ok(delta(1, "first"))).await.unwrap();
    read_until(&mut connection, &mut seen, "id: 1\n").await;
    send.send(Ok(result(2))).await.unwrap();
    read_until(&mut connection, &mut seen, "0\r\n\r\n").await;
    assert_eq!(seen.matches("retry:").count(), 1);
    assert!(!seen.contains(": hb\n\n"), "a comment ends no event");
    assert!(Reply::parse(seen.as_bytes()).complete);
}

/// The source of a stream is let go once its client did `leave`.
async fn is_let_go<T>(leave: impl AsyncFnOnce(TcpStream) -> T) {
    let (dropped, was_dropped) = oneshot::channel::<()>();
    let dropped = Arc::new(parking_lot::Mutex::new(Some(dropped)));
    let source = move || {
        let held = dropped.lock().take();
        stream::once(async move {
            let _held = held;
            std::future::pending().await
        })
    };
    let server = serve(source, LONG).await;
    let mut connection = server.connect().await;
    let request = server.get("/runs").bytes();
    connection.write_all(&request).await.unwrap();
    let mut seen = String::new();
    read_until(&mut connection, &mut seen, "retry: 2000").await;
    let _left = leave(connection).await;
    let gone = timeout(PATIENCE, was_dropped).await;
    assert!(gone.expect("the source is let go").is_err());
}

#[tokio::test]
async fn a_client_that_leaves_lets_the_source_go() {
    is_let_go(async |connection| drop(connection)).await;
}

#[tokio::test]
async fn a_client_that_will_send_nothing_more_counts_as_gone() {
    is_let_go(async |mut connection| {
        connection.shutdown().await.unwrap();
        connection
    })
    .await;
}

async fn curled(server: &TestServer) -> Output {
    let url = format!("http://{}/runs", server.address);
    let curl = tokio::process::Command::new("curl")
        .args(["-sS", "-N", "--max-time", "15", &url])
        .output();
    curl.await.expect("curl is installed")
}

#[tokio::test]
async fn curl_reads_a_stream() {
    let server = serve(|| stream::iter([Ok(delta(1, "hi")), Ok(result(2))]), LONG).await;
    let output = curled(&server).await;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("event: assistant\n") && text.contains("event: result\n"));

    let cut = serve(|| stream::iter([Ok(delta(1, "hi"))]), LONG).await;
    let code = curled(&cut).await.status.code();
    assert_eq!(code, Some(18), "a cut stream is a partial transfer");
}
