//! Bodies: type, encoding, size and time.

use std::time::Duration;

use sandcaster::api::ApiLimits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::http::{TestServer, first_reply, keyless};

const RUN: &str = "run_0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn a_body_over_its_limit_is_refused_with_the_limit() {
    let server = TestServer::start(keyless()).await;
    let cancel = format!("/runs/{RUN}/cancel");
    for (path, limit) in [
        ("/query", 32 << 20),
        ("/webhooks/e2b", 256 << 10),
        (cancel.as_str(), 64 << 10),
    ] {
        let body = vec![b' '; limit + 1];
        let request = server.post(path).header("Content-Type", "application/json");
        let reply = request.body(&body).send().await;
        assert_eq!(reply.status, 413, "{path}");
        assert_eq!(reply.code(), "BODY_TOO_LARGE");
        assert!(
            reply.text().contains(&limit.to_string()),
            "{}",
            reply.text()
        );
    }
}

#[tokio::test]
async fn a_chunked_body_is_counted_as_it_comes() {
    let server = TestServer::start(keyless()).await;
    let mut bytes = server
        .post("/webhooks/e2b")
        .header("Transfer-Encoding", "chunked")
        .bytes();
    for _ in 0..5 {
        bytes.extend_from_slice(b"10000\r\n");
        bytes.extend_from_slice(&vec![b' '; 0x10000]);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    let reply = crate::support::http::Reply::parse(&server.raw(&bytes).await);
    assert_eq!(reply.status, 413);
}

#[tokio::test]
async fn a_body_announced_too_large_is_refused_before_it_is_sent() {
    let server = TestServer::start(keyless()).await;
    let request = server
        .post("/query")
        .header("Content-Type", "application/json")
        .header("Expect", "100-continue")
        .header("Content-Length", "99999999999");
    let mut stream = server.connect().await;
    let reply = first_reply(&mut stream, &request.bytes()).await;
    assert_eq!(reply.status, 413);
}

#[tokio::test]
async fn encoded_bodies_are_refused() {
    let server = TestServer::start(keyless()).await;
    for (encoding, status) in [
        ("gzip", 415),
        ("br", 415),
        ("identity, gzip", 415),
        ("zstd", 415),
    ] {
        for path in ["/query", "/webhooks/e2b"] {
            let request = server.post(path).header("Content-Encoding", encoding);
            let reply = request.json("{}").send().await;
            assert_eq!(reply.status, status, "{path} {encoding}");
            assert_eq!(reply.code(), "UNSUPPORTED_MEDIA_TYPE");
            assert_eq!(reply.json()["field"], "Content-Encoding");
        }
    }
    let plain = server
        .post("/webhooks/e2b")
        .header("Content-Encoding", "identity");
    assert_eq!(
        plain.json("{}").send().await.status,
        400,
        "read, and malformed"
    );
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let (soon, usual) = (Duration::from_millis(200), ApiLimits::default());
    let query = ApiLimits {
        body_timeout: soon,
        ..usual
    };
    let delivery = ApiLimits {
        delivery_timeout: soon,
        ..usual
    };
    for (path, limits) in [("/query", query), ("/webhooks/e2b", delivery)] {
        let server = TestServer::start_with(keyless(), limits).await;
        let request = server
            .post(path)
            .header("Content-Type", "application/json")
            .header("Content-Length", "100");
        let mut stream = server.connect().await;
        stream.write_all(&request.bytes()).await.unwrap();
        let reply = first_reply(&mut stream, b"{\"prom").await;
        assert_eq!(reply.status, 408, "{path}");
        assert_eq!(reply.code(), "REQUEST_TIMEOUT");
        assert_eq!(reply.header("connection"), Some("close"));
    }
    assert!(usual.delivery_timeout <= Duration::from_secs(3));
}

#[tokio::test]
async fn senders_that_stall_do_not_keep_deliveries_out() {
    let limits = ApiLimits {
        deliveries_at_once: 64 << 10,
        ..ApiLimits::default()
    };
    let server = TestServer::start_with(keyless(), limits).await;
    let stalled = server
        .post("/webhooks/e2b")
        .header("Content-Length", "60001")
        .header("Expect", "100-continue")
        .bytes();
    let mut before: Option<TcpStream> = None;
    for _ in 0..3 {
        let mut stream = server.connect().await;
        stream.write_all(&stalled).await.unwrap();
        let mut begun = *b"HTTP/1.1 100 Continue\r\n\r\n";
        stream.read_exact(&mut begun).await.unwrap();
        stream.write_all(&vec![b' '; 60_000]).await.unwrap();
        // The one before has made room.
        if let Some(mut before) = before.replace(stream) {
            assert_eq!(first_reply(&mut before, b"").await.status, 503);
        }
    }
    let genuine = server.post("/webhooks/e2b").body(vec![b' '; 30 << 10]);
    assert_eq!(genuine.send().await.status, 400, "read, and malformed");
}

#[tokio::test]
async fn bodies_together_stay_within_the_memory_for_them() {
    let few = 64 << 10;
    let usual = ApiLimits::default();
    let (query, webhook) = ("/query", "/webhooks/e2b");
    for (path, other, bodies_at_once, deliveries_at_once) in [
        (query, webhook, few, usual.deliveries_at_once),
        (webhook, query, usual.bodies_at_once, few),
    ] {
        let limits = ApiLimits {
            bodies_at_once,
            deliveries_at_once,
            ..usual
        };
        let server = TestServer::start_with(keyless(), limits).await;
        let blanks = |path, kilobytes: usize| {
            let request = server.post(path).header("Content-Type", "application/json");
            request.body(vec![b' '; kilobytes << 10]).send()
        };
        let reply = blanks(path, 100).await;
        assert_eq!(reply.status, 503, "{path}");
        assert_eq!(reply.code(), "SERVER_BUSY");
        assert!(reply.header("retry-after").is_some());
        // What was held is free again, and the others have memory of their own.
        assert_eq!(blanks(path, 60).await.status, 400, "{path}");
        assert_eq!(blanks(other, 100).await.status, 400, "{other}");
    }
}

#[tokio::test]
async fn headers_that_are_known_but_not_built_are_refused_by_name() {
    let server = TestServer::start(keyless()).await;
    let reply = server
        .post("/query")
        .header("Idempotency-Key", "k1")
        .json(r#"{"prompt":"x"}"#)
        .send()
        .await;
    assert_eq!(reply.status, 501);
    assert_eq!(reply.code(), "NOT_IMPLEMENTED");
    assert_eq!(reply.json()["field"], "Idempotency-Key");
}

#[tokio::test]
async fn cancelling_takes_no_fields() {
    let server = TestServer::start(keyless()).await;
    let cancel = || server.post(&format!("/runs/{RUN}/cancel"));
    assert_eq!(cancel().send().await.code(), "RUN_NOT_FOUND");
    assert_eq!(cancel().json(" {} ").send().await.code(), "RUN_NOT_FOUND");
    assert_eq!(cancel().json(r#"{"force":true}"#).send().await.status, 400);
    assert_eq!(cancel().body("{}").send().await.status, 415);
}
