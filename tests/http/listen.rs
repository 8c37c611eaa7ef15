//! Connections: how many, peers that do not read, and the end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use sandcaster::api::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::timeout;

use crate::support::http::{PATIENCE, Reply, TestServer, first_reply, keyed, keyless};

fn health() -> Router<sandcaster::api::ApiState> {
    Router::new().route("/health", get(|| async { "fine" }))
}

#[tokio::test]
async fn connections_beyond_the_cap_are_told_so_and_places_come_back() {
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let server = TestServer::routes(keyless(), health(), limits).await;
    let request = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    let mut first = server.connect().await;
    let mut second = server.connect().await;
    assert_eq!(
        first_reply(&mut first, request.as_bytes()).await.status,
        200
    );
    assert_eq!(
        first_reply(&mut second, request.as_bytes()).await.status,
        200
    );
    let refused = server.get("/health").send().await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.code(), "SERVER_BUSY");
    assert_eq!(refused.header("retry-after"), Some("5"));
    for name in [
        "x-content-type-options",
        "cache-control",
        "content-security-policy",
        "cross-origin-resource-policy",
        "referrer-policy",
    ] {
        assert!(refused.header(name).is_some(), "{name}");
    }
    drop(first);
    let again = async { while server.get("/health").send().await.status != 200 {} };
    timeout(PATIENCE, again)
        .await
        .expect("the place comes back");
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut_and_its_source_let_go() {
    let (dropped, was_dropped) = oneshot::channel::<()>();
    let held = Arc::new(parking_lot::Mutex::new(Some(dropped)));
    let routes = health().route(
        "/runs",
        get(move || {
            let held = held.lock().take();
            async move {
                let endless = stream::repeat(Bytes::from(vec![b'x'; 64 << 10])).map(move |bytes| {
                    let _held = &held;
                    Ok::<_, std::io::Error>(bytes)
                });
                Body::from_stream(endless)
            }
        }),
    );
    let limits = Limits {
        write_stall: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = TestServer::routes(keyless(), routes, limits).await;
    let mut stalled = server.connect().await;
    stalled
        .write_all(&server.get("/runs").bytes())
        .await
        .unwrap();
    let gone = timeout(PATIENCE, was_dropped).await.expect("it is cut");
    assert!(gone.is_err());
    // Others were served meanwhile and are now.
    assert_eq!(server.get("/health").send().await.status, 200);
    drop(stalled);
}

#[tokio::test]
async fn a_peer_that_reads_slowly_but_steadily_is_not_cut() {
    let routes = health().route("/runs", get(|| async { vec![b'x'; 8 << 20] }));
    let limits = Limits {
        write_stall: Duration::from_millis(1500),
        ..Limits::default()
    };
    let server = TestServer::routes(keyless(), routes, limits).await;
    let mut slow = server.connect().await;
    slow.write_all(&server.get("/runs").bytes()).await.unwrap();
    let mut total = 0;
    let mut part = vec![0; 512 << 10];
    let read = async {
        loop {
            match slow.read(&mut part).await.unwrap() {
                0 => break,
                n => total += n,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, read).await.expect("it is all read");
    assert!(total > 8 << 20, "{total}");
}

#[tokio::test]
async fn at_the_end_responses_finish_and_idle_connections_close() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let routes = health().route(
        "/runs",
        get(move || async move {
            let _permit = opened.acquire().await.unwrap();
            "late"
        }),
    );
    let mut server = TestServer::routes(keyless(), routes, Limits::default()).await;
    let mut idle = server.connect().await;
    let request = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    assert_eq!(first_reply(&mut idle, request.as_bytes()).await.status, 200);
    let mut silent = server.connect().await;
    let mut busy = server.connect().await;
    let request = format!("GET /runs HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    busy.write_all(request.as_bytes()).await.unwrap();
    // Another request on a later connection: when it is answered, the former are being served.
    assert_eq!(server.get("/health").send().await.status, 200);

    server.shutdown.begin.cancel();
    for connection in [&mut idle, &mut silent] {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, connection.read_to_end(&mut rest));
        read.await.expect("closed").unwrap();
        assert!(rest.is_empty());
    }
    gate.add_permits(1);
    let reply = first_reply(&mut busy, b"").await;
    assert_eq!((reply.status, reply.text()), (200, "late"));
    assert!(
        reply
            .header("date")
            .is_some_and(|date| date.ends_with(" GMT"))
    );
    assert_eq!(reply.header("connection"), Some("close"));
    server.ended().await;
    assert!(
        tokio::net::TcpStream::connect(server.address)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn at_the_end_a_download_that_goes_on_is_waited_for() {
    let routes = health().route("/runs", get(|| async { vec![b'x'; 64 << 20] }));
    let mut server = TestServer::routes(keyless(), routes, Limits::default()).await;
    let mut slow = server.connect().await;
    slow.write_all(&server.get("/runs").bytes()).await.unwrap();
    let mut part = vec![0; 512 << 10];
    let mut total = slow.read(&mut part).await.unwrap();
    server.shutdown.begin.cancel();
    let read = async {
        loop {
            match slow.read(&mut part).await.unwrap() {
                0 => break,
                n => total += n,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, read).await.expect("it is all read");
    assert!(total > 64 << 20, "{total}");
    server.ended().await;
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut() {
    let routes = health().route("/runs", get(std::future::pending::<()>));
    let mut server = TestServer::routes(keyless(), routes, Limits::default()).await;
    let mut waiting = server.connect().await;
    waiting
        .write_all(&server.get("/runs").bytes())
        .await
        .unwrap();
    assert_eq!(server.get("/health").send().await.status, 200);
    server.shutdown.begin.cancel();
    server.shutdown.cut.cancel();
    server.ended().await;
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, waiting.read_to_end(&mut rest)).await;
    read.expect("closed").ok();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let routes = Router::new().route("/query", post(|| async {}));
    let server = TestServer::routes(keyed(&["k"]), routes, Limits::default()).await;
    for _ in 0..5 {
        let body = vec![b'x'; 8 << 20];
        let request = server
            .post("/query")
            .header("Content-Type", "application/json");
        let reply = Reply::parse(&server.raw(&request.body(&body).bytes()).await);
        assert_eq!(reply.status, 401);
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_before_a_body_was_read_says_so() {
    let routes = health().route(
        "/query",
        post(|body: Bytes| async move { body.len().to_string() }),
    );
    let server = TestServer::routes(keyed(&["k"]), routes, Limits::default()).await;
    let head = |key: &str, path: &str, framing: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n{framing}\r\n\r\n",
            server.address
        )
    };
    let sized = "Content-Length: 2";
    for (key, path, framing, status) in [
        ("wrong", "/query", sized, 401),
        ("wrong", "/query", "Transfer-Encoding: chunked", 401),
        ("k", "/nowhere", sized, 404),
        ("k", "/health", sized, 405),
    ] {
        let mut stream = server.connect().await;
        let reply = first_reply(&mut stream, head(key, path, framing).as_bytes()).await;
        assert_eq!(
            (reply.status, reply.header("connection")),
            (status, Some("close")),
            "{path} {framing}"
        );
    }
    // What was read whole, or had nothing to read, leaves the connection as it was.
    let mut stream = server.connect().await;
    for (key, path, framing, body, status) in [
        ("k", "/query", sized, "{}", 200),
        (
            "k",
            "/query",
            "Transfer-Encoding: chunked",
            "2\r\n{}\r\n0\r\n\r\n",
            200,
        ),
        ("wrong", "/query", "Content-Length: 0", "", 401),
        ("k", "/query", sized, "{}", 200),
    ] {
        let request = format!("{}{body}", head(key, path, framing));
        let reply = first_reply(&mut stream, request.as_bytes()).await;
        assert_eq!(
            (reply.status, reply.header("connection")),
            (status, None),
            "{path} {framing}"
        );
    }
}

#[tokio::test]
async fn only_a_request_that_was_not_read_holds_up_the_end_of_its_connection() {
    let limits = Limits {
        linger: Duration::from_hours(1),
        ..Limits::default()
    };
    let mut server = TestServer::routes(keyed(&["k"]), health(), limits).await;
    let request = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    let mut idle = server.connect().await;
    assert_eq!(first_reply(&mut idle, request.as_bytes()).await.status, 200);
    let silent = server.connect().await;
    assert_eq!(server.get("/health").send().await.status, 200);
    server.shutdown.begin.cancel();
    server.ended().await;
    drop((idle, silent));
}

/// An answer that is longer than what the sockets hold, once it may begin.
async fn long(kind: &'static str, begun: Arc<Notify>, may: Arc<Semaphore>) -> impl IntoResponse {
    begun.notify_one();
    let _permit = may.acquire().await.unwrap();
    ([(CONTENT_TYPE, kind)], vec![b'x'; 32 << 20])
}

#[tokio::test]
async fn only_work_and_a_run_s_log_are_waited_for_at_the_end() {
    let (begun, at_once) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(1)));
    let (log_begun, held) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let later = (Arc::clone(&log_begun), Arc::clone(&held));
    let routes = Router::new()
        .route(
            "/health",
            get(move || long("text/plain", Arc::clone(&begun), Arc::clone(&at_once))),
        )
        .route(
            "/runs",
            get(move || {
                long(
                    "text/event-stream",
                    Arc::clone(&later.0),
                    Arc::clone(&later.1),
                )
            }),
        )
        .route(
            "/query",
            post(|body: Bytes| async move { body.len().to_string() }),
        );
    let mut server = TestServer::routes(keyless(), routes, Limits::default()).await;
    let whole = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    let half_body = format!(
        "POST /query HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{",
        server.address
    );
    let mut peers = Vec::new();
    for request in [
        "GET /health HTTP/1.1\r\nHo",
        &half_body,
        // Neither of the two answers is read.
        &whole.repeat(2),
    ] {
        let mut peer = server.connect().await;
        peer.write_all(request.as_bytes()).await.unwrap();
        peers.push(peer);
    }
    let mut reader = server.connect().await;
    let request = format!("GET /runs HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    reader.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0];
    timeout(PATIENCE, peers[2].read_exact(&mut first))
        .await
        .expect("an answer")
        .unwrap();
    timeout(PATIENCE, log_begun.notified())
        .await
        .expect("a request");

    server.shutdown.begin.cancel();
    for peer in &mut peers[..2] {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, peer.read_to_end(&mut rest)).await;
        read.expect("closed, though nobody cuts").ok();
    }
    held.add_permits(1);
    let mut got = 0;
    let mut part = vec![0; 1 << 20];
    let slowly = async {
        loop {
            match reader.read(&mut part).await.unwrap() {
                0 => break,
                n => got += n,
            }
            // In all longer than a connection has that isn't worth waiting for.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, slowly).await.expect("closed");
    assert!(got > 32 << 20, "{got}");
    server.ended().await;
    drop(peers);
}
