use super::*;
use crate::chat::CallIds;
use crate::llm::anthropic::Anthropic;
use crate::llm::protocol::Protocol as _;
use crate::llm::types::{LlmErrorKind, LlmStop};

fn event(data: &str) -> SseEvent {
    SseEvent {
        event: None,
        data: data.to_owned(),
    }
}

const START: &str = r#"{"type":"message_start","message":{"id":"m"}}"#;
const REASON: &str = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
const PING: &str = r#"{"type":"ping"}"#;

/// What comes of these events and then of a ping every `pause`, and how long it took.
async fn hear(first: &[&str], pause: Duration) -> (Vec<Result<LlmDelta, LlmError>>, Duration) {
    let decoder = Anthropic::decoder(&CallIds::default());
    let limits = StreamLimits::default();
    let reader = Reader::new("anthropic", decoder, Redactor::new(None), limits, 1);
    let first: Vec<SseEvent> = first.iter().map(|data| event(data)).collect();
    let pings = stream::unfold((), move |()| async move {
        tokio::time::sleep(pause).await;
        Some((event(PING), ()))
    });
    let began = Instant::now();
    let deltas = reader
        .stream(stream::iter(first).chain(pings).map(Ok))
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
        let [Ok(LlmDelta::Usage(_)), Ok(LlmDelta::Stop(LlmStop::End))] = deltas.as_slice() else {
            panic!("{deltas:?}")
        };
        let limit = StreamLimits::default().end;
        assert!((limit..limit * 2).contains(&took), "{took:?}");
    }
}
