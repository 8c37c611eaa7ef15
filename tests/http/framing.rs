//! Requests that two servers could read differently, and heads that are too large or too slow.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use sandcaster::api::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use crate::support::http::{PATIENCE, Reply, TestServer, first_reply, keyless};

#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let server = TestServer::start(keyless()).await;
    let host = server.address;
    let rows: Vec<(&str, String, &[u16])> = vec![
        ("no Host", "GET /runs HTTP/1.1\r\n\r\n".into(), &[400]),
        (
            "no Host in 1.0",
            "GET /runs HTTP/1.0\r\n\r\n".into(),
            &[400],
        ),
        (
            "two Hosts",
            format!("GET /runs HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n"),
            &[400],
        ),
        (
            "slash in Host",
            "GET /runs HTTP/1.1\r\nHost: localhost/x\r\n\r\n".into(),
            &[400],
        ),
        (
            "query in Host",
            "GET /runs HTTP/1.1\r\nHost: localhost?x\r\n\r\n".into(),
            &[400],
        ),
        (
            "user in Host",
            "GET /runs HTTP/1.1\r\nHost: a@localhost\r\n\r\n".into(),
            &[400],
        ),
        (
            "empty Host",
            "GET /runs HTTP/1.1\r\nHost:\r\n\r\n".into(),
            &[400],
        ),
        (
            "bad port",
            "GET /runs HTTP/1.1\r\nHost: localhost:99999\r\n\r\n".into(),
            &[400],
        ),
        (
            "other target",
            format!("GET http://evil.example/runs HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            &[400],
        ),
        (
            "same target",
            format!("GET http://{host}/runs HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
            &[200],
        ),
        (
            "gzip, chunked",
            format!(
                "POST /query HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
            ),
            &[400],
        ),
        (
            "chunked twice",
            format!(
                "POST /query HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            &[400],
        ),
        (
            "gzip",
            format!("POST /query HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: gzip\r\n\r\n"),
            &[400],
        ),
        (
            "two lengths",
            format!(
                "POST /query HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"
            ),
            &[400],
        ),
        (
            "signed length",
            format!("POST /query HTTP/1.1\r\nHost: {host}\r\nContent-Length: +2\r\n\r\n{{}}"),
            &[400],
        ),
        (
            "folded header",
            format!("GET /runs HTTP/1.1\r\nHost: {host}\r\nX: a\r\n b\r\n\r\n"),
            &[400],
        ),
        (
            "blank before colon",
            format!("GET /runs HTTP/1.1\r\nHost : {host}\r\n\r\n"),
            &[400],
        ),
        (
            "bad chunk",
            format!(
                "POST /query HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"
            ),
            &[400],
        ),
        (
            "no path",
            format!("OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            &[404, 405],
        ),
        (
            "a proxy's method",
            format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            &[404, 405],
        ),
        (
            "another's proxy",
            format!("CONNECT evil.example:443 HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            &[400],
        ),
        (
            "bare LF",
            format!("GET /runs HTTP/1.1\nHost: {host}\nConnection: close\n\n"),
            &[200, 400],
        ),
        (
            "length and chunks",
            format!(
                "POST /query HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            &[400, 415],
        ),
        (
            "HTTP/2",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            &[400, 505],
        ),
        ("garbage", "\u{0}\u{1}\u{2}\r\n\r\n".into(), &[400]),
    ];
    for (name, request, expected) in rows {
        // Requests that leave the connection open are closed by their sender here.
        let mut stream = server.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = async {
            while !Reply::whole(&answer) {
                let mut part = [0; 4096];
                match stream.read(&mut part).await.unwrap() {
                    0 => break,
                    n => answer.extend_from_slice(&part[..n]),
                }
            }
        };
        timeout(PATIENCE, read)
            .await
            .unwrap_or_else(|_| panic!("{name}: no answer"));
        if answer.is_empty() {
            // Closed without a word, which is as good as a refusal for what is no HTTP/1.
            assert!(name == "HTTP/2" || name == "garbage", "{name}: closed");
            continue;
        }
        let reply = Reply::parse(&answer);
        assert!(expected.contains(&reply.status), "{name}: {}", reply.status);
        if reply.status != 200 {
            is_ours(&reply);
        }
    }
}

#[tokio::test]
async fn load_balancers_need_name_no_host() {
    let server = TestServer::start(keyless()).await;
    for (request, expected) in [
        ("GET /health HTTP/1.0\r\n\r\n", 200),
        ("HEAD /health HTTP/1.0\r\n\r\n", 200),
        ("GET /health/live HTTP/1.0\r\n\r\n", 200),
        ("GET /health HTTP/1.0\r\nHost:\r\n\r\n", 200),
        (
            "GET /health HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
            200,
        ),
        ("GET /health HTTP/1.0\r\nHost: lb.example\r\n\r\n", 200),
        // What HTTP/1.1 requires, and what no server could read in one way only.
        ("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        ("GET /health HTTP/1.0\r\nHost:\r\nHost:\r\n\r\n", 400),
        ("GET /health HTTP/1.0\r\nHost: a/b\r\n\r\n", 400),
        (
            "GET http://evil.example/health HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n",
            400,
        ),
        // Elsewhere the host protects.
        ("GET /runs HTTP/1.0\r\n\r\n", 400),
        ("GET /runs HTTP/1.0\r\nHost:\r\n\r\n", 400),
        ("GET /none HTTP/1.0\r\n\r\n", 400),
        (
            "POST /webhooks/e2b HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
            400,
        ),
    ] {
        let mut stream = server.connect().await;
        let reply = first_reply(&mut stream, request.as_bytes()).await;
        assert_eq!(reply.status, expected, "{request}");
    }
}

/// Each refusal has what every response has, whoever found what is wrong with a request.
fn is_ours(reply: &Reply) {
    reply.code();
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert!(reply.header("x-request-id").is_some());
}

#[tokio::test]
async fn a_refusal_comes_after_the_answers_before_it() {
    let server = TestServer::start(keyless()).await;
    let mut stream = server.connect().await;
    let good = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(first_reply(&mut stream, good.as_bytes()).await.status, 200);
    let reply = first_reply(&mut stream, b"no HTTP at all\r\n\r\n").await;
    assert_eq!(reply.status, 400);
    is_ours(&reply);
}

#[tokio::test]
async fn large_heads_are_refused() {
    let server = TestServer::start(keyless()).await;
    let mut many = server.get("/runs");
    for n in 0..70 {
        many = many.header(&format!("X-{n}"), "v");
    }
    let long = server.get("/runs").header("X", &"v".repeat(17 << 10));
    let far = server.get(&format!("/{}", "a".repeat(17 << 10)));
    for (name, request, expected) in [
        ("more than 64 headers", many, [431, 431]),
        ("more than 16 KiB", long, [431, 431]),
        ("a long target", far, [414, 431]),
    ] {
        let reply = request.send().await;
        assert!(expected.contains(&reply.status), "{name}: {}", reply.status);
        is_ours(&reply);
    }
    let enough = server.get("/runs").header("X", &"v".repeat(12 << 10));
    assert_eq!(enough.send().await.status, 200);
}

fn quick() -> Limits {
    Limits {
        head_timeout: Duration::from_secs(1),
        idle_timeout: Duration::from_secs(15),
        linger: Duration::from_millis(100),
        ..Limits::default()
    }
}

async fn closed_after(stream: &mut tokio::net::TcpStream) -> Duration {
    let start = Instant::now();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("the connection stays open")
        .unwrap();
    start.elapsed()
}

#[tokio::test]
async fn a_head_that_trickles_in_is_cut_off() {
    let server = TestServer::routes(keyless(), Router::new(), quick()).await;
    let mut silent = server.connect().await;
    assert!(closed_after(&mut silent).await < Duration::from_secs(8));

    // A byte now and then does not buy more time.
    let stream = server.connect().await;
    let (mut read, mut write) = stream.into_split();
    let start = Instant::now();
    let mut rest = Vec::new();
    let trickle = async {
        for byte in b"GET /runs HTTP/1.1\r\nX: "
            .iter()
            .chain([b'v'; 1000].iter())
        {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        read = timeout(PATIENCE, read.read_to_end(&mut rest)) => { read.unwrap().ok(); }
        () = trickle => {}
    }
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn an_idle_connection_may_wait_longer_than_a_head_may_take() {
    let routes = Router::new().route("/health", get(|| async { "fine" }));
    let server = TestServer::routes(keyless(), routes, quick()).await;
    let mut stream = server.connect().await;
    let request = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
    assert_eq!(
        first_reply(&mut stream, request.as_bytes()).await.status,
        200
    );
    // Longer than a head's time, shorter than an idle connection's.
    tokio::time::sleep(Duration::from_millis(1800)).await;
    assert_eq!(
        first_reply(&mut stream, request.as_bytes()).await.status,
        200
    );
    // The second head starts its own clock.
    stream.write_all(b"GET /health HTT").await.unwrap();
    assert!(closed_after(&mut stream).await < Duration::from_secs(8));
}
