use super::*;
use crate::chat::CallIds;
use crate::llm::anthropic::Anthropic;
use crate::llm::types::LlmStop;
use crate::secrets::Secret;

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

type Event = Result<SseEvent, SseError>;

fn event(data: &str) -> Event {
    Ok(SseEvent {
        event: None,
        data: data.to_owned(),
    })
}

const START: &str = r#"{"type":"message_start","message":{"id":"m"}}"#;
const REASON: &str = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
const PING: &str = r#"{"type":"ping"}"#;

/// What comes of these events and then of a ping every `pause`, and how long it took.
async fn hear(first: &[&str], pause: Duration) -> (Vec<Result<LlmDelta, LlmError>>, Duration) {
    let reader = Reader {
        provider: "anthropic",
        decoder: Anthropic::decoder(&CallIds::default()),
        redactor: Redactor::new(None),
        limits: StreamLimits::default(),
        ready: Deltas::new(),
        estimate: Usage::default(),
    };
    let first: Vec<Event> = first.iter().map(|data| event(data)).collect();
    let pings = stream::unfold((), move |()| async move {
        tokio::time::sleep(pause).await;
        Some((event(PING), ()))
    });
    let began = Instant::now();
    let deltas = reader
        .stream(stream::iter(first).chain(pings))
        .collect()
        .await;
    (deltas, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn pings_for_ever_are_no_answer() {
    let (deltas, took) = hear(&[START], Duration::from_secs(10)).await;
    let limits = StreamLimits::default();
    let [Err(error)] = deltas.as_slice() else {
        panic!("{deltas:?}")
    };
    assert_eq!(error.kind, LlmErrorKind::Timeout);
    assert!(
        error.retryable() && error.message.contains("600 s"),
        "{error}"
    );
    assert!(
        (limits.content..limits.content * 2).contains(&took),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn pings_after_the_reason_are_waited_for_five_seconds() {
    for pause in [1, 3, 3600] {
        let (deltas, took) = hear(&[START, REASON], Duration::from_secs(pause)).await;
        let [Ok(LlmDelta::Stop(LlmStop::End))] = deltas.as_slice() else {
            panic!("{deltas:?}")
        };
        let limit = StreamLimits::default().end;
        assert!((limit..limit * 2).contains(&took), "{took:?}");
    }
}

#[test]
fn the_first_byte_tells_what_an_answer_is() {
    for (first, label, expected) in [
        ("data: x", "text/event-stream", "events"),
        ("event: x", "application/json", "events"),
        (": x", "text/html", "events"),
        ("{}", "text/event-stream", "json"),
        ("[]", "", "json"),
        ("not json", "application/json", "json"),
        ("<html>", "text/event-stream", "page"),
        ("Not found", "text/html", "other"),
        ("x", "text/plain", "events"),
    ] {
        let shape = match shape(first.as_bytes(), label) {
            Shape::Events => "events",
            Shape::Json => "json",
            Shape::Page => "page",
            Shape::Other => "other",
        };
        assert_eq!(shape, expected, "{first} {label}");
    }
}
