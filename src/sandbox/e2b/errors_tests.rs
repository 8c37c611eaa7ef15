use super::*;
use crate::error::ErrorCode;
use crate::secrets::Secret;

fn parsed(status: u16, body: &str) -> Answer {
    let redactor = Redactor::new([&Secret::new("e2b_0123456789abcdef")]);
    parse_answer(status, &HeaderMap::new(), body.as_bytes(), &redactor)
}

#[test]
fn plain_statuses_stand_for_codes_by_e2bs_own_table() {
    for (status, code) in [
        (400, Code::InvalidArgument),
        (401, Code::Unauthenticated),
        (403, Code::PermissionDenied),
        (404, Code::NotFound),
        (409, Code::AlreadyExists),
        (413, Code::ResourceExhausted),
        (429, Code::ResourceExhausted),
        (499, Code::Canceled),
        (500, Code::Internal),
        (501, Code::Unimplemented),
        (505, Code::Unimplemented),
        (502, Code::Unavailable),
        (503, Code::Unavailable),
        (504, Code::DeadlineExceeded),
        (418, Code::Unknown),
    ] {
        assert_eq!(parsed(status, "").rpc(), code, "{status}");
    }
}

#[test]
fn a_code_in_the_body_wins_over_the_status() {
    assert_eq!(
        parsed(502, r#"{"code":429,"message":"x"}"#).rpc(),
        Code::ResourceExhausted
    );
    assert_eq!(
        parsed(404, r#"{"code":"internal","message":"x"}"#).rpc(),
        Code::Internal
    );
    assert_eq!(parsed(404, r#"{"code":"brand_new"}"#).rpc(), Code::Unknown);
    assert_eq!(
        parsed(404, r#"{"code":null,"message":"x"}"#).rpc(),
        Code::NotFound
    );
}

#[test]
fn the_edge_is_told_from_the_daemon() {
    let gone = r#"{"sandboxId":"i1","message":"The sandbox was not found","code":502}"#;
    assert_eq!(parsed(502, gone).edge(), Some(Edge::Gone));
    let closed = r#"{"sandboxId":"i1","message":"The sandbox is running but port is not open","port":49983,"code":502}"#;
    assert_eq!(parsed(502, closed).edge(), Some(Edge::PortClosed));
    let moving =
        r#"{"message":"The sandbox is still transitioning. Try again in a moment.","code":409}"#;
    assert_eq!(parsed(409, moving).edge(), Some(Edge::Transitioning));
    assert_eq!(parsed(429, "").edge(), Some(Edge::Crowded));
    assert_eq!(parsed(502, "<html>502 Bad Gateway</html>").edge(), None);
    assert_eq!(
        parsed(
            404,
            r#"{"code":404,"message":"path '/was not found' does not exist"}"#
        )
        .edge(),
        None
    );
}

#[test]
fn foreign_texts_are_short_single_lined_and_without_secrets() {
    let answer = parsed(
        401,
        r#"{"code":401,"message":"Invalid API key: e2b_0123456789abcdef\nsorry\u0007"}"#,
    );
    assert_eq!(answer.message, "Invalid API key: [redacted] sorry");
    let html = format!("<html>\r\n{}</html>", "é".repeat(500));
    let answer = parsed(502, &html);
    assert_eq!(answer.message.chars().count(), SHOWN + 1);
    assert!(answer.message.ends_with('…'));
    let invalid = parse_answer(500, &HeaderMap::new(), b"\xff\xfe", &Redactor::default());
    assert!(!invalid.message.is_empty());
}

#[test]
fn headers_say_whether_and_when_to_come_back() {
    let with = |status, should: Option<&'static str>, after: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        if let Some(should) = should {
            headers.insert("should-retry", should.parse().unwrap());
        }
        if let Some(after) = after {
            headers.insert("retry-after", after.parse().unwrap());
        }
        parse_answer(status, &headers, b"", &Redactor::default())
    };
    for status in [429, 502, 503, 504] {
        assert!(with(status, None, None).retryable(), "{status}");
        assert!(!with(status, Some("false"), None).retryable(), "{status}");
    }
    for status in [400, 401, 403, 404, 409, 422, 500] {
        assert!(!with(status, None, None).retryable(), "{status}");
        assert!(with(status, Some("true"), None).retryable(), "{status}");
    }
    assert_eq!(
        with(429, None, Some("7")).retry_after,
        Some(Duration::from_secs(7))
    );
    assert_eq!(with(429, None, Some("soon")).retry_after, None);
    assert_eq!(with(429, None, Some("-1")).retry_after, None);
}

#[test]
fn the_plans_longest_life_is_read_from_the_refusal() {
    let hours = |status, message: &str| {
        parsed(
            status,
            &serde_json::json!({"code": status, "message": message}).to_string(),
        )
        .longest_hours()
    };
    assert_eq!(
        hours(400, "Timeout cannot be greater than 1 hours"),
        Some(1)
    );
    assert_eq!(
        hours(400, "Timeout cannot be greater than 24 hours."),
        Some(24)
    );
    assert_eq!(
        hours(400, "Timeout cannot be greater than 90 minutes"),
        None
    );
    assert_eq!(hours(400, "Timeout cannot be greater than 0 hours"), None);
    assert_eq!(
        hours(400, "Timeout cannot be greater than 99999999999999 hours"),
        None
    );
    assert_eq!(hours(500, "Timeout cannot be greater than 1 hours"), None);
}

#[test]
fn control_plane_answers_have_the_documented_codes() {
    for (status, body, code) in [
        (400, "", ErrorCode::SandboxError),
        (401, "", ErrorCode::ProviderAuthMissing),
        (402, "", ErrorCode::SandboxError),
        (403, "", ErrorCode::ProviderAuthMissing),
        (409, "", ErrorCode::SandboxError),
        (422, "", ErrorCode::SandboxError),
        (429, "", ErrorCode::RateLimit),
        (500, "", ErrorCode::SandboxError),
        (502, "<html>", ErrorCode::SandboxError),
        (503, "", ErrorCode::SandboxError),
        (504, "upstream request timeout", ErrorCode::SandboxTimeout),
    ] {
        let error = parsed(status, body).control_error("creating the sandbox");
        assert_eq!(error.code(), code, "{status}: {error}");
        assert!(
            error.to_string().contains("while creating the sandbox"),
            "{error}"
        );
    }
    let full = parsed(
        429,
        r#"{"code":429,"message":"you have reached the maximum number of concurrent E2B sandboxes (20)."}"#,
    );
    let error = full.control_error("creating the sandbox");
    assert!(
        matches!(
            error,
            SandboxError::RateLimited {
                at_capacity: true,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        parsed(401, "")
            .control_error("x")
            .hint()
            .unwrap()
            .contains("E2B_API_KEY")
    );
}

#[test]
fn an_unreadable_answer_is_cleaned_before_it_is_cut() {
    let key = "e2b_0123456789abcdef";
    let redactor = Redactor::new([&Secret::new(key)]);
    // Blanks are shown as one, so that what stands behind the first 200 bytes would be shown.
    for before in 170..=220 {
        let answer = format!("{{{}{key}", " ".repeat(before));
        let shown = unreadable("no JSON", answer.as_bytes(), &redactor);
        assert!(!shown.contains("e2b_"), "{before}: {shown}");
        assert!(shown.starts_with("no JSON: { [redacted]"), "{shown}");
    }
    for before in 150..=220 {
        let answer = format!("{}{key}", "x".repeat(before));
        let shown = unreadable("no JSON", answer.as_bytes(), &redactor);
        assert!(!shown.contains("e2b"), "{before}: {shown}");
    }
}
