//! Deliveries of E2B's lifecycle events (T17).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use sandcaster::clock::Clock;
use sandcaster::config::ServerSettings;
use sandcaster::secrets::Secret;
use sandcaster::store::{RunStore as _, SandboxRecord};
use sha2::{Digest as _, Sha256};

use super::runs::{begin, begin_leased, id};
use crate::support::http::{Request, TestServer, first_reply, keyed, keyless};

const SECRET: &str = "whsec_sandcaster_1";
const BODY: &str = r#"{"version":"v2","id":"f5911677-cb60-498f-afed-f68143b3cc59","type":"sandbox.lifecycle.killed","sandbox_id":"iea43m3325j517takcjvx","timestamp":"2026-01-02T03:04:05Z","event_data":{"kill_reason":"timeout"}}"#;
const SIGNATURE: &str = "UhgPWshbc2PiyiZmj4owsnI_sRI6NfjYW8vuoN8i-nQ";

fn sign(secret: &str, body: &[u8]) -> String {
    let digest = Sha256::new()
        .chain_update(secret)
        .chain_update(body)
        .finalize();
    URL_SAFE_NO_PAD.encode(digest)
}

fn with_secret(secret: &str, settings: ServerSettings) -> ServerSettings {
    ServerSettings {
        webhook_secret: Some(Secret::new(secret)),
        ..settings
    }
}

async fn signed_server() -> TestServer {
    let now: Timestamp = "2026-01-02T03:04:10Z".parse().unwrap();
    // A server with a key: the signature takes its place here.
    let settings = with_secret(SECRET, keyed(&["a-key"]));
    TestServer::start_at(settings, Clock::held(now)).await
}

fn deliver(server: &TestServer, body: impl AsRef<[u8]>, signature: &str) -> Request {
    let request = server
        .post("/webhooks/e2b")
        .header("e2b-signature", signature);
    request
        .header("Content-Type", "application/json")
        .body(body)
}

#[tokio::test]
async fn the_worked_example_is_accepted_in_both_alphabets() {
    for signature in [
        SIGNATURE,
        "UhgPWshbc2PiyiZmj4owsnI/sRI6NfjYW8vuoN8i+nQ=",
        "UhgPWshbc2PiyiZmj4owsnI/sRI6NfjYW8vuoN8i+nQ",
    ] {
        let server = signed_server().await;
        let reply = deliver(&server, BODY, signature).send().await;
        assert_eq!(reply.status, 200, "{signature}");
        assert_eq!(reply.text(), r#"{"status":"ok"}"#);
        let kept = server.store.deliveries();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].event_id, "f5911677-cb60-498f-afed-f68143b3cc59");
        assert_eq!(kept[0].event_type, "sandbox.lifecycle.killed");
        assert_eq!(kept[0].sandbox_id.as_deref(), Some("iea43m3325j517takcjvx"));
        assert_eq!(kept[0].received_at.to_string(), "2026-01-02T03:04:10Z");
        assert!(kept[0].signed);
        assert_eq!(kept[0].run, None);
        assert_eq!(kept[0].kill_reason.as_deref(), Some("timeout"));
    }
    // The reliability sheet's vector has no type, so it is genuine but malformed.
    let secret = "whsec_test_0123456789abcdef0123456789";
    let server = TestServer::start(with_secret(secret, keyless())).await;
    let body = r#"{"id":"evt_7"}"#;
    let right = deliver(&server, body, "LS_u1EgtY5ok8djIg7gmnXMpx-njwzVW6qCJlrnTuaI");
    assert_eq!(right.send().await.status, 400);
    let wrong = deliver(&server, body, "LS_u1EgtY5ok8djIg7gmnXMpx-njwzVW6qCJlrnTuaA");
    assert_eq!(wrong.send().await.status, 401);
}

#[tokio::test]
async fn anything_but_the_right_signature_is_refused_and_not_kept() {
    let server = signed_server().await;
    let hmac_like = "sha256=52180f5ac85b7363e2ca26668f8a30b2723fb1123a35f8d85bcbeea0df22fa74";
    let other = sign("whsec_sandcaster_test", BODY.as_bytes());
    let cut = &SIGNATURE[..40];
    let longer = format!("{SIGNATURE}AA");
    for signature in [
        "",
        "x",
        "====",
        hmac_like,
        &other,
        cut,
        &longer,
        &SIGNATURE.to_lowercase(),
    ] {
        let reply = deliver(&server, BODY, signature).send().await;
        assert_eq!(reply.status, 401, "{signature}");
        assert_eq!(reply.code(), "UNAUTHORIZED");
    }
    let none = server.post("/webhooks/e2b").json(BODY).send().await;
    assert_eq!(none.status, 401);
    let bearer = server
        .post("/webhooks/e2b")
        .bearer("a-key")
        .json(BODY)
        .send()
        .await;
    assert_eq!(bearer.status, 401, "a key is no signature");
    let twice = deliver(&server, BODY, SIGNATURE).header("e2b-signature", SIGNATURE);
    assert_eq!(twice.send().await.status, 401);
    assert!(server.store.deliveries().is_empty());
}

#[tokio::test]
async fn a_body_that_differs_in_one_bit_is_refused() {
    let server = signed_server().await;
    for at in (0..BODY.len()).step_by(9) {
        let mut body = BODY.as_bytes().to_vec();
        body[at] ^= 1;
        let status = deliver(&server, &body, SIGNATURE).send().await.status;
        // A test with more than 50 deliveries a second would meet the gate instead.
        assert!(status == 401, "{at}: {status}");
    }
    assert!(server.store.deliveries().is_empty());
}

#[tokio::test]
async fn a_signed_body_can_not_be_extended_or_be_anything_but_one_object() {
    let server = signed_server().await;
    let mut extended = BODY.as_bytes().to_vec();
    extended.extend_from_slice(b"\x80\x00\x00\x00\x00\x00\x06\xf8{\"id\":\"x\"}");
    let twice = format!("{BODY}{BODY}");
    let trailing = format!("{BODY} x");
    for body in [
        extended.as_slice(),
        twice.as_bytes(),
        trailing.as_bytes(),
        b"[]",
        b"{}",
        b"null",
        b"",
        b"\xff\xfe",
        br#"{"id":"","type":"t","timestamp":"2026-01-02T03:04:05Z"}"#,
        br#"{"id":"1","type":"t","timestamp":"yesterday"}"#,
        br#"{"id":"1","type":"t"}"#,
        br#"{"id":1,"type":"t","timestamp":"2026-01-02T03:04:05Z"}"#,
        br#"{"id":"1","id":"2","type":"t","timestamp":"2026-01-02T03:04:05Z"}"#,
        br#"{"id":"1\n","type":"t","timestamp":"2026-01-02T03:04:05Z"}"#,
    ] {
        let reply = deliver(&server, body, &sign(SECRET, body)).send().await;
        assert_eq!(reply.status, 400, "{}", String::from_utf8_lossy(body));
        assert_eq!(reply.code(), "INVALID_JSON");
    }
    assert!(server.store.deliveries().is_empty());
}

#[tokio::test]
async fn a_repeat_is_answered_and_kept_once_whatever_its_headers_say() {
    let server = signed_server().await;
    for delivery in ["d1", "d2", "d3"] {
        let request = deliver(&server, BODY, SIGNATURE).header("e2b-delivery-id", delivery);
        assert_eq!(request.send().await.status, 200);
    }
    assert_eq!(server.store.deliveries().len(), 1);
}

#[tokio::test]
async fn what_has_no_effect_is_still_answered_and_kept() {
    let server = signed_server().await;
    for (n, (kind, timestamp)) in [
        ("sandbox.lifecycle.killed", "2026-01-02T02:00:00Z"),
        ("sandbox.lifecycle.killed", "2026-01-02T04:00:00Z"),
        ("sandbox.lifecycle.invented", "2026-01-02T03:04:05Z"),
        ("sandbox.lifecycle.created", "2026-01-02T03:04:05.123456Z"),
    ]
    .into_iter()
    .enumerate()
    {
        let body = format!(r#"{{"id":"e{n}","type":"{kind}","timestamp":"{timestamp}"}}"#);
        let reply = deliver(&server, &body, &sign(SECRET, body.as_bytes()))
            .send()
            .await;
        assert_eq!(reply.status, 200, "{kind} {timestamp}");
    }
    assert_eq!(server.store.deliveries().len(), 4);
}

#[tokio::test]
async fn deliveries_are_joined_to_the_run_in_both_spellings() {
    let server = signed_server().await;
    let lease = begin_leased(&server.store, 1, "hello", 0).await;
    let run = lease.run.clone();
    let other = begin(&server.store, 2, "other", 0).await;
    let sandbox = SandboxRecord {
        backend: "e2b".to_owned(),
        attempt: 1,
        sandbox_id: Some("sb1".to_owned()),
        expires: 0,
        destroyed: false,
    };
    server.store.put_sandbox(&lease, sandbox).await.unwrap();
    let unknown = id(99);
    let rows = [
        (r#""sandbox_id":"sb1""#.to_owned(), Some(run.clone())),
        (
            r#""sandboxId":"sb1","eventData":null"#.to_owned(),
            Some(run.clone()),
        ),
        (
            format!(
                r#""sandbox_id":"x","event_data":{{"sandbox_metadata":{{"sandcaster-run":"{other}"}}}}"#
            ),
            Some(other.clone()),
        ),
        (
            format!(
                r#""sandboxId":"x","eventData":{{"sandboxMetadata":{{"sandcaster-run":"{other}","sandcaster-instance":"store-in-memory"}}}}"#
            ),
            Some(other.clone()),
        ),
        // Our own record wins over what the sandbox says of itself.
        (
            format!(
                r#""sandbox_id":"sb1","event_data":{{"sandbox_metadata":{{"sandcaster-run":"{other}"}}}}"#
            ),
            Some(run),
        ),
        // Another store's, an unknown run, nonsense, nothing.
        (
            format!(
                r#""sandbox_id":"x","event_data":{{"sandbox_metadata":{{"sandcaster-run":"{other}","sandcaster-instance":"another"}}}}"#
            ),
            None,
        ),
        (
            format!(
                r#""sandbox_id":"x","event_data":{{"sandbox_metadata":{{"sandcaster-run":"{unknown}"}}}}"#
            ),
            None,
        ),
        (
            r#""sandbox_id":"x","event_data":{"sandbox_metadata":{"sandcaster-run":7}}"#.to_owned(),
            None,
        ),
        (
            r#""sandbox_id":"x","event_data":{"sandbox_metadata":null}"#.to_owned(),
            None,
        ),
        (r#""x":1"#.to_owned(), None),
    ];
    for (n, (fields, expected)) in rows.into_iter().enumerate() {
        let body = format!(
            r#"{{"id":"e{n}","type":"sandbox.lifecycle.killed","timestamp":"2026-01-02T03:04:05Z",{fields}}}"#
        );
        let reply = deliver(&server, &body, &sign(SECRET, body.as_bytes()))
            .send()
            .await;
        assert_eq!(reply.status, 200, "{fields}");
        assert_eq!(
            server.store.deliveries().last().unwrap().run,
            expected,
            "{fields}"
        );
    }
}

#[tokio::test]
async fn without_a_secret_a_key_is_wanted_or_the_delivery_is_a_hint() {
    let server = TestServer::start(keyed(&["a-key"])).await;
    let request = || deliver(&server, BODY, SIGNATURE);
    assert_eq!(request().send().await.status, 401);
    assert_eq!(request().bearer("wrong").send().await.status, 401);
    assert_eq!(request().bearer("a-key").send().await.status, 200);
    assert!(!server.store.deliveries()[0].signed);

    let server = TestServer::start(keyless()).await;
    let reply = server.post("/webhooks/e2b").body(BODY).send().await;
    assert_eq!(reply.status, 200, "the content type is not checked here");
    assert!(!server.store.deliveries()[0].signed);
}

#[tokio::test]
async fn a_delivery_that_can_not_be_kept_is_to_be_sent_again() {
    let server = signed_server().await;
    server.store.set_broken(true);
    let reply = deliver(&server, BODY, SIGNATURE).send().await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.code(), "STORE_UNAVAILABLE");
}

#[test]
fn the_signature_is_neither_hmac_nor_standard_base64() {
    assert_eq!(sign(SECRET, BODY.as_bytes()), SIGNATURE);
    let digest = Sha256::new()
        .chain_update(SECRET)
        .chain_update(BODY)
        .finalize();
    assert!(STANDARD.encode(digest).contains('/'));
}

#[tokio::test]
async fn who_guesses_signatures_is_slowed_down_and_nobody_else() {
    let server = signed_server().await;
    let mut tried = 0;
    while deliver(&server, BODY, &sign("guessed", BODY.as_bytes()))
        .send()
        .await
        .status
        == 401
    {
        tried += 1;
        assert!(tried < 5000, "guessing is free");
    }
    // In the same second.
    assert_eq!(deliver(&server, BODY, SIGNATURE).send().await.status, 200);
}

#[tokio::test]
async fn a_delivery_whose_body_proves_nothing_is_refused_before_the_body() {
    let server = TestServer::start(keyed(&["a-key"])).await;
    let request = server
        .post("/webhooks/e2b")
        .header("Content-Length", "100000");
    let mut stream = server.connect().await;
    let reply = first_reply(&mut stream, &request.bytes()).await;
    assert_eq!(reply.status, 401);
}
