//! What goes wrong on the wire, and what the provider makes of it.

use std::time::Duration;

use sandcaster::chat::Block;
use sandcaster::clock::Deadline;
use sandcaster::llm::{LlmDelta, LlmError, LlmErrorKind, LlmStop, ProviderConfig, StreamLimits};
use sandcaster::secrets::{Redactor, Secret};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::{Row, after, ask, ask_telling, rows, short, text_of};
use crate::support::fake_llm::{FakeLlm, Gate, KEY, Reply};

/// What is shown to clients holds neither the key nor where the provider is.
fn assert_clean(row: &Row, error: &LlmError) {
    let shown = format!("{error} {error:?}");
    for secret in [KEY, "127.0.0.1", "localhost", "http://"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(error.message.contains(row.def.name), "{shown}");
}

/// The error that `reply` ends with, and what was shown before.
async fn fault(reply: Reply) -> (Vec<LlmDelta>, LlmError) {
    fault_within(reply, StreamLimits::default()).await
}

/// The same for all providers: what differs fails.
async fn fault_within(reply: Reply, limits: StreamLimits) -> (Vec<LlmDelta>, LlmError) {
    let mut first: Option<(Vec<LlmDelta>, LlmError)> = None;
    for row in rows() {
        let (deltas, error) = row.ask_once(reply.clone(), limits).await;
        let error = error.expect("the answer should have failed");
        assert_clean(row, &error);
        assert!(
            !deltas
                .iter()
                .any(|delta| matches!(delta, LlmDelta::Stop(_)))
        );
        if let Some((others, other)) = &first {
            let facts = |error: &LlmError| (error.kind, error.retryable(), error.retry_after);
            assert_eq!(facts(&error), facts(other), "{}", row.def.name);
            assert_eq!(text_of(&deltas), text_of(others), "{}", row.def.name);
        } else {
            first = Some((deltas, error));
        }
    }
    first.unwrap()
}

#[tokio::test]
async fn statuses_give_the_right_kind_and_the_providers_own_wish() {
    use LlmErrorKind as K;
    let limit = || Reply::error(429, "rate_limit_error", "slow down");
    let secs = |secs| Some(Duration::from_secs(secs));
    for (reply, kind, retry, after) in [
        (
            Reply::error(400, "invalid_request_error", "bad"),
            K::BadRequest,
            false,
            None,
        ),
        (
            Reply::error(401, "authentication_error", "invalid x-api-key"),
            K::Auth,
            false,
            None,
        ),
        (
            Reply::error(404, "not_found_error", "model: claude-x"),
            K::ModelNotFound,
            false,
            None,
        ),
        (limit(), K::RateLimited, true, None),
        (
            limit().header("retry-after", "7"),
            K::RateLimited,
            true,
            secs(7),
        ),
        (
            limit()
                .header("retry-after", "Tue, 24 Nov 2026 12:00:30 GMT")
                .header("date", "Tue, 24 Nov 2026 12:00:00 GMT"),
            K::RateLimited,
            true,
            secs(30),
        ),
        (
            limit().header("retry-after", "99999999999999999999"),
            K::RateLimited,
            true,
            secs(604_800),
        ),
        (
            limit().header("x-should-retry", "false"),
            K::RateLimited,
            false,
            None,
        ),
        (
            Reply::error(500, "api_error", "oops"),
            K::Unavailable,
            true,
            None,
        ),
        (
            Reply::body(503, "text/html", b"<html>"),
            K::Unavailable,
            true,
            None,
        ),
        (
            Reply::error(529, "overloaded_error", "Overloaded"),
            K::Overloaded,
            true,
            None,
        ),
        (
            Reply::error(400, "invalid_request_error", "bad").header("x-should-retry", "true"),
            K::BadRequest,
            true,
            None,
        ),
        (
            Reply::body(301, "text/html", b"").header("location", "/x"),
            K::BadResponse,
            false,
            None,
        ),
    ] {
        let status = reply_status(&reply);
        let (_, error) = fault(reply).await;
        assert_eq!(
            (error.kind, error.retryable(), error.retry_after),
            (kind, retry, after),
            "{status}: {error}"
        );
        assert!(error.message.contains(&status), "{error}");
    }
}

fn reply_status(reply: &Reply) -> String {
    reply.status().to_string()
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_unreachable_and_retryable() {
    let port = {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        listener.local_addr().unwrap().port()
    };
    for row in rows() {
        let provider = row.provider(&format!("http://127.0.0.1:{port}"));
        let error = ask(&*provider, &row.prompt()).await.1.unwrap();
        assert_eq!(error.kind, LlmErrorKind::Unreachable);
        assert!(error.retryable());
        assert_clean(row, &error);
    }
}

/// What a service does with a connection before it closes it.
#[derive(Clone, Copy, Debug)]
struct Closing {
    /// So much of the request is read; all of it without a number.
    reads: Option<usize>,
    says: &'static str,
    /// By a reset instead of an end.
    resets: bool,
}

/// Serves one connection so, and tells whether it got a request's first byte.
async fn close_so(listener: TcpListener, closing: Closing) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let (mut socket, _) = listener.accept().await.unwrap();
    let mut read = Vec::new();
    // The body is the end of the request: `}` and nothing after it.
    while closing
        .reads
        .map_or(!read.ends_with(b"}]}"), |most| read.len() < most)
    {
        let most = closing.reads.map_or(1 << 16, |most| most - read.len());
        let mut bytes = vec![0; most];
        match socket.read(&mut bytes).await.unwrap() {
            0 => break,
            n => read.extend_from_slice(&bytes[..n]),
        }
    }
    socket.write_all(closing.says.as_bytes()).await.unwrap();
    if closing.resets {
        socket.set_zero_linger().unwrap();
    }
}

#[tokio::test]
async fn what_was_sent_is_counted_wherever_the_connection_breaks() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    const CHUNKED: &str =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n40\r\ndata: {\"type\":\"ping\"}";
    for reads in [Some(1), Some(200), None] {
        for says in ["", "HTTP/1.1 2", HEAD, CHUNKED] {
            for resets in [false, true] {
                let closing = Closing {
                    reads,
                    says,
                    resets,
                };
                for row in rows() {
                    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
                    let address = listener.local_addr().unwrap();
                    let provider = row.provider(&format!("http://{address}"));
                    let request = row.prompt();
                    let ((deltas, error), ()) =
                        tokio::join!(ask(&*provider, &request), close_so(listener, closing));
                    let error = error.unwrap();
                    assert_eq!(error.kind, LlmErrorKind::Cut, "{closing:?} {error}");
                    assert!(error.retryable());
                    assert_clean(row, &error);
                    let [LlmDelta::Usage(usage)] = deltas.as_slice() else {
                        panic!("{closing:?} {deltas:?}")
                    };
                    assert!(
                        usage.estimated && usage.input > 10 && usage.output == 0,
                        "{usage:?}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn what_failed_is_free_only_if_it_never_left_or_was_refused() {
    let garbage = Reply::body(200, "text/plain", b"no protocol");
    for (reply, free) in [
        (Reply::hang_up(), false),
        (Reply::silence(), false),
        (Reply::new().without_usage().cut(), false),
        (Reply::new().without_usage().text("a").stall(), false),
        (garbage.bytes(b"data: garbage\n\n".to_vec()), false),
        (Reply::body(200, "application/json", b"{not json"), false),
        (Reply::body(200, "text/html", b"<html>"), false),
        (Reply::new().header("content-encoding", "gzip"), false),
        (Reply::error(400, "invalid_request_error", "bad"), true),
        (Reply::error(429, "rate_limit_error", "slow down"), true),
        (Reply::error(500, "api_error", "oops"), true),
        (Reply::error(503, "api_error", "oops"), true),
        (Reply::error(529, "overloaded_error", "busy"), true),
        // A gateway that lost its provider.
        (Reply::error(408, "timeout_error", "late"), false),
        (Reply::body(502, "text/html", b"<html>"), false),
        (Reply::body(504, "text/html", b"<html>"), false),
        (Reply::body(520, "text/html", b"<html>"), false),
        (Reply::body(522, "text/html", b"<html>"), false),
        (Reply::body(524, "text/html", b"<html>"), false),
        (Reply::body(301, "text/plain", b""), true),
        (
            Reply::new()
                .without_usage()
                .breaks("overloaded_error", "Overloaded"),
            true,
        ),
        (
            Reply::body(
                200,
                "application/json",
                br#"{"error": {"type": "overloaded_error", "message": "busy"}}"#,
            ),
            true,
        ),
    ] {
        let (deltas, error) = fault_within(reply, short()).await;
        let counted =
            |delta: &LlmDelta| matches!(delta, LlmDelta::Usage(usage) if usage.input > 10);
        assert_eq!(!deltas.iter().any(counted), free, "{error} {deltas:?}");
    }
}

#[tokio::test]
async fn an_echoed_key_is_not_passed_on() {
    for reply in [
        Reply::error(401, "authentication_error", &format!("bad key {KEY}")),
        Reply::body(401, "text/plain", format!("bad key {KEY}").as_bytes()),
        Reply::body(
            401,
            "text/plain",
            format!("{}{KEY}", "x".repeat(460)).as_bytes(),
        ),
        Reply::error(401, "authentication_error", "bad").header("request-id", KEY),
        Reply::new().breaks("authentication_error", &format!("bad key {KEY}")),
        Reply::body(
            200,
            "application/json",
            json!({"error": {"type": "authentication_error", "message": KEY}})
                .to_string()
                .as_bytes(),
        ),
    ] {
        let (_, error) = fault(reply).await;
        assert_eq!(error.kind, LlmErrorKind::Auth);
        assert!(error.message.contains("[redacted]"), "{error}");
    }
}

#[tokio::test]
async fn no_half_of_any_secret_is_left_where_a_message_is_cut() {
    let other = "process-secret-0123456789-0123456789";
    for row in rows() {
        for before in (400..500).step_by(6) {
            let words = format!("{}{other}", "x".repeat(before));
            let llm = row
                .llm([Reply::error(400, "invalid_request_error", &words)])
                .await;
            let config = row.config(&llm.base_url());
            let secrets = [Secret::new(KEY), Secret::new(other)];
            let redactor = Redactor::new(&secrets);
            let provider = row.provider_of(ProviderConfig { redactor, ..config });
            let error = ask(&*provider, &row.prompt()).await.1.unwrap();
            assert!(!error.message.contains("proc"), "{before}: {error}");
        }
    }
}

#[tokio::test]
async fn a_refusal_without_a_type_in_a_stream_is_no_answer_and_free() {
    let event = "data: {\"error\":{\"type\":\"authentication_error\",\"message\":\"no\"}}\n\n";
    for row in rows() {
        let reply = Reply::body(200, "text/event-stream", event.as_bytes());
        let (deltas, error) = row.ask_once(reply, short()).await;
        let error = error.unwrap();
        assert_eq!(error.kind, LlmErrorKind::Auth, "{error}");
        assert!(!error.retryable());
        assert_eq!(deltas, []);
    }
}

#[tokio::test]
async fn a_figure_that_cannot_be_is_estimated() {
    for row in rows() {
        let reply = Reply::new()
            .text("said")
            .usage(10, 1_000_000_000_000_000_000);
        let (deltas, error) = row.ask_once(reply, short()).await;
        assert!(error.is_none(), "{error:?}");
        let usage = deltas.iter().rev().find_map(|delta| match delta {
            LlmDelta::Usage(usage) => Some(*usage),
            _ => None,
        });
        let usage = usage.unwrap();
        assert!(usage.estimated && usage.output < 100, "{usage:?}");
    }
}

#[tokio::test]
async fn broken_off_streams_are_cut_and_no_half_call_comes_out() {
    for (reply, shown) in [
        (Reply::new().text("a").text("b").cut(), "ab"),
        (
            Reply::new().text("a").call_so_far("bash", "{\"comm").cut(),
            "a",
        ),
        (
            Reply::new()
                .text("a")
                .call_so_far("bash", "{\"comm")
                .reset(),
            "a",
        ),
        (
            Reply::new()
                .text("a")
                .bytes(b"event: content_bl".to_vec())
                .cut(),
            "a",
        ),
        // Ends cleanly for HTTP, but the message never does.
        (
            Reply::new().text("a").call("bash", &json!({})).ends_early(),
            "a",
        ),
        (Reply::new().cut(), ""),
    ] {
        let (deltas, error) = fault(reply).await;
        assert_eq!(error.kind, LlmErrorKind::Cut, "{error}");
        assert!(error.retryable());
        assert_eq!(text_of(&deltas), shown);
    }
}

#[tokio::test]
async fn an_overload_within_a_stream_is_told_by_its_type() {
    let reply = Reply::new()
        .text("a")
        .call_so_far("bash", "{\"c")
        .breaks("overloaded_error", "Overloaded");
    let (deltas, error) = fault(reply).await;
    assert_eq!(error.kind, LlmErrorKind::Overloaded);
    assert!(error.retryable());
    assert_eq!(text_of(&deltas), "a");
    let calls = deltas
        .iter()
        .filter(|delta| matches!(delta, LlmDelta::Block(Block::Call(_))));
    assert_eq!(calls.count(), 0);
}

#[tokio::test]
async fn silence_before_and_within_an_answer_times_out() {
    for (reply, shown) in [
        (Reply::silence(), ""),
        (Reply::new().text("a").stall(), "a"),
    ] {
        let (deltas, error) = fault_within(reply, short()).await;
        assert_eq!(error.kind, LlmErrorKind::Timeout, "{error}");
        assert!(error.retryable());
        assert_eq!(text_of(&deltas), shown);
    }
}

#[tokio::test]
async fn without_its_limits_the_provider_would_wait_for_ever() {
    // The twin of the test above: if this one fails, that one can't.
    for row in rows() {
        for reply in [Reply::silence(), Reply::new().text("a").stall()] {
            let (limits, time) = (StreamLimits::default(), short().silence);
            let within = row.ask_silent(reply, limits, time).await;
            assert!(within.is_none(), "{within:?}");
        }
    }
}

/// A reply that sends a comment each time the next gate is opened.
fn trickle(comments: usize) -> (Reply, Vec<Gate>) {
    let gates: Vec<Gate> = (0..comments).map(|_| Gate::new()).collect();
    let reply = gates.iter().fold(Reply::new().text("a"), |reply, gate| {
        reply.bytes(b": still here\n\n".to_vec()).wait(gate)
    });
    (reply.text("b"), gates)
}

#[tokio::test]
async fn comments_are_life() {
    let limits = StreamLimits {
        silence: Duration::from_millis(500),
        ..StreamLimits::default()
    };
    let row = &rows()[0];
    let (reply, gates) = trickle(12);
    let llm = row.llm([reply]).await;
    let provider = row.provider_with(&llm.base_url(), limits);
    let request = row.prompt();
    let opens = async {
        let mut ticks = tokio::time::interval(limits.silence / 10);
        for gate in gates {
            ticks.tick().await;
            gate.open();
        }
    };
    let ((deltas, error), ()) = tokio::join!(ask(&*provider, &request), opens);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(text_of(&deltas), "ab");
}

#[tokio::test]
async fn the_deadline_holds_whatever_life_there_is() {
    let row = &rows()[0];
    let (reply, gates) = trickle(3);
    let llm = row.llm([reply]).await;
    let provider = row.provider(&llm.base_url());
    let mut request = row.prompt();
    request.deadline = Deadline::after(Duration::from_mins(1));
    let said = Notify::new();
    let silent = async {
        said.notified().await;
        gates[0].open();
        gates[1].open();
        gates[2].reached().await;
    };
    let asked = ask_telling(&*provider, &request, &said);
    let within = after(silent, Duration::from_mins(1), asked).await;
    let (_, error) = within.expect("an end at the deadline");
    let error = error.unwrap();
    assert_eq!(error.kind, LlmErrorKind::Timeout);
    assert!(!error.retryable(), "our own deadline is not retried");
    assert_clean(row, &error);
}

#[tokio::test]
async fn what_is_not_the_protocol_is_a_bad_response() {
    let long = [b"data: ".to_vec(), vec![b'x'; 10 << 20]].concat();
    for (reply, shown) in [
        (Reply::body(200, "text/html", b"<html>Welcome</html>"), ""),
        (Reply::body(200, "application/json", b"{not json"), ""),
        (Reply::body(200, "application/json", b"[]"), ""),
        (
            Reply::new().text("a").bytes(b"data: garbage\n\n".to_vec()),
            "a",
        ),
        (
            Reply::new().text("a").bytes(b"data: \xff\xfe\n\n".to_vec()),
            "a",
        ),
        (Reply::new().text("a").bytes(long), "a"),
        (Reply::new().header("content-encoding", "gzip"), ""),
        (Reply::body(200, "text/plain", b"  <!doctype html>"), ""),
        (Reply::body(200, "text/event-stream", b"{\"id\": 1}"), ""),
    ] {
        let (deltas, error) = fault(reply).await;
        assert_eq!(error.kind, LlmErrorKind::BadResponse, "{error}");
        assert!(!error.retryable());
        assert_eq!(text_of(&deltas), shown);
    }
}

#[tokio::test]
async fn an_error_in_place_of_an_answer_is_told_by_its_type_whatever_its_label() {
    let body = json!({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}});
    for label in ["application/json", "text/event-stream", "text/plain"] {
        let (_, error) = fault(Reply::body(200, label, body.to_string().as_bytes())).await;
        assert_eq!(error.kind, LlmErrorKind::Overloaded, "{label}");
        assert!(error.retryable());
    }
    let (_, error) = fault(Reply::body(200, "text/event-stream", b"")).await;
    assert_eq!(error.kind, LlmErrorKind::Cut);
}

#[tokio::test]
async fn a_failed_tls_handshake_is_unreachable() {
    use tokio::io::AsyncWriteExt as _;

    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let row = &rows()[0];
    let provider = row.provider(&format!("https://127.0.0.1:{port}"));
    let plain = async {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
        }
    };
    let request = row.prompt();
    let (_, error) = tokio::select! {
        asked = ask(&*provider, &request) => asked,
        () = plain => unreachable!(),
    };
    let error = error.unwrap();
    assert_eq!(error.kind, LlmErrorKind::Unreachable, "{error}");
    assert_clean(row, &error);
}

#[tokio::test]
async fn a_response_over_the_size_limit_is_refused() {
    let mut limits = StreamLimits::default();
    limits.sse.response_bytes = 2000;
    for row in rows() {
        let reply = Reply::new().text("a").text(&"x".repeat(2000));
        let (deltas, error) = row.ask_once(reply, limits).await;
        assert_eq!(error.unwrap().kind, LlmErrorKind::BadResponse);
        assert_eq!(text_of(&deltas), "a");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = FakeLlm::start([]).await;
    let to = format!("{}/v1/messages", elsewhere.base_url());
    for status in [301, 302, 303, 307, 308] {
        let reply = Reply::body(status, "text/plain", b"").header("location", &to);
        let (_, error) = fault(reply).await;
        assert_eq!(error.kind, LlmErrorKind::BadResponse);
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn unknown_events_duplicates_and_comments_change_nothing() {
    let llm = FakeLlm::start([Reply::new()
        .event(json!({"type": "ping"}))
        .event(json!({"type": "brand_new", "x": 1}))
        .event(json!({"type": "message_start", "message": {"id": "msg_fake_0"}}))
        .bytes(b": comment\n\nid: 3\nretry: 5\n\n".to_vec())
        .text("a")
        .event(json!({"type": "content_block_delta", "index": 0, "delta": {"type": "new_delta"}}))
        .whole_block(json!({"type": "new_block", "data": 1}))
        .text("b")])
    .await;
    let row = rows()
        .iter()
        .find(|row| row.def.name == "anthropic")
        .unwrap();
    let provider = row.provider(&llm.base_url());
    let (deltas, error) = ask(&*provider, &row.prompt()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(text_of(&deltas), "ab");
    assert_eq!(deltas.last(), Some(&LlmDelta::Stop(LlmStop::End)));
    assert!(!deltas.contains(&LlmDelta::Restarted));
}

#[tokio::test]
async fn a_long_error_body_is_shortened() {
    let body = format!(
        "{{\"error\": {{\"message\": \"{}\"}}}}",
        "x".repeat(200_000)
    );
    let (_, error) = fault(Reply::body(400, "application/json", body.as_bytes())).await;
    assert_eq!(error.kind, LlmErrorKind::BadRequest);
    assert!(error.message.chars().count() < 600);
}

#[tokio::test]
async fn dropping_the_stream_closes_the_connection() {
    use futures::StreamExt as _;

    for row in rows() {
        let gate = Gate::new();
        let llm = row.llm([Reply::new().text("a").wait(&gate)]).await;
        let provider = row.provider(&llm.base_url());
        let mut stream = provider.open(&row.prompt().request()).await.unwrap();
        while let Some(delta) = stream.next().await {
            if delta.unwrap() == LlmDelta::Text("a".to_owned()) {
                break;
            }
        }
        drop(stream);
        llm.connection_closed(0).await;
    }
}

#[tokio::test]
async fn a_fault_after_the_head_names_the_request() {
    for row in rows() {
        for reply in [
            Reply::new().text("a").cut(),
            Reply::new().text("a").breaks("overloaded_error", "busy"),
        ] {
            let reply = reply.header("request-id", "req_7");
            let (_, error) = row.ask_once(reply, StreamLimits::default()).await;
            let error = error.unwrap();
            assert_eq!(error.request_id.as_deref(), Some("req_7"));
            assert!(error.message.ends_with("(request req_7)"), "{error}");
        }
    }
}
