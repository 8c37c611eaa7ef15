use super::*;
use crate::secrets::Secret;

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            (
                reqwest::header::HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect()
}

#[test]
fn every_form_of_retry_after_is_read() {
    let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
    for (pairs, millis) in [
        (vec![], None),
        (vec![("retry-after", "7")], Some(7000)),
        (vec![("retry-after", " 1.5 ")], Some(1500)),
        (
            vec![("retry-after-ms", "250"), ("retry-after", "7")],
            Some(250),
        ),
        (vec![("retry-after", "0")], Some(0)),
        (vec![("retry-after", "-3")], None),
        (vec![("retry-after", "soon")], None),
        (vec![("retry-after", "NaN")], None),
        (vec![("retry-after", "1e300")], Some(604_800_000)),
        (
            vec![("retry-after", "Tue, 24 Nov 2026 12:00:30 GMT")],
            Some(30_000),
        ),
        (
            vec![("retry-after", "Tue, 24 Nov 2026 11:00:00 GMT")],
            Some(0),
        ),
        (
            vec![
                ("retry-after", "Tue, 24 Nov 2026 13:00:30 GMT"),
                ("date", "Tue, 24 Nov 2026 13:00:00 GMT"),
            ],
            Some(30_000),
        ),
    ] {
        assert_eq!(
            retry_after(&headers(&pairs), now),
            millis.map(Duration::from_millis),
            "{pairs:?}"
        );
    }
}

#[test]
fn messages_lose_secrets_control_characters_and_excess() {
    let redactor = Redactor::new([&Secret::new("sk-ant-secret-key")]);
    let shown = shown(
        &redactor,
        &format!("bad key sk-ant-secret-key\n{}", "x".repeat(600)),
    );
    assert!(shown.starts_with("bad key [redacted] xxx") && shown.ends_with('…'));
    assert_eq!(shown.chars().count(), SHOWN_CHARS + 1);
}

#[test]
fn messages_lose_what_turns_their_words_around() {
    let redactor = Redactor::new([]);
    assert_eq!(shown(&redactor, "a \u{202e}b\u{2066} \r\n c"), "a b c");
}
