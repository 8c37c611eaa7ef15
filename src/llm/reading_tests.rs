use super::*;
use crate::chat::CallIds;
use crate::llm::anthropic::Anthropic;
use crate::llm::protocol::Protocol as _;
use crate::llm::types::{LlmErrorKind, LlmStop, ModelFacts, Usage};

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
    hear_then(first, PING, pause).await
}

/// The same with another event than a ping.
async fn hear_then(
    first: &[&str],
    again: &'static str,
    pause: Duration,
) -> (Vec<Result<LlmDelta, LlmError>>, Duration) {
    let decoder = Anthropic::decoder(&CallIds::default());
    let limits = StreamLimits::default();
    let reader = Reader::new(
        "anthropic",
        decoder,
        Redactor::new(None),
        limits,
        Account::new(1, ModelFacts::default()),
    );
    let first: Vec<SseEvent> = first.iter().map(|data| event(data)).collect();
    let pings = stream::unfold((), move |()| async move {
        tokio::time::sleep(pause).await;
        Some((event(again), ()))
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
    let [Ok(LlmDelta::Usage(_)), Err(error)] = deltas.as_slice() else {
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

#[tokio::test(start_paused = true)]
async fn what_repeats_itself_or_is_empty_is_no_answer() {
    let limits = StreamLimits::default();
    let text =
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
    let empty =
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""}}"#;
    for again in [empty, START] {
        let (deltas, took) = hear_then(&[START, text], again, Duration::from_secs(10)).await;
        let [Ok(LlmDelta::Usage(_)), Err(error)] = deltas.as_slice() else {
            panic!("{deltas:?}")
        };
        assert_eq!(error.kind, LlmErrorKind::Timeout);
        assert!(
            (limits.content..limits.content * 2).contains(&took),
            "{took:?}"
        );
    }
    let (deltas, took) = hear_then(&[START, REASON], REASON, Duration::from_secs(1)).await;
    assert!(matches!(
        deltas.last(),
        Some(Ok(LlmDelta::Stop(LlmStop::End)))
    ));
    assert!((limits.end..limits.end * 2).contains(&took), "{took:?}");
}

/// The deltas of `events`, and then of a connection that breaks.
fn broken_off(events: &[String]) -> LlmStream {
    let decoder = Anthropic::decoder(&CallIds::default());
    let limits = StreamLimits::default();
    let reader = Reader::new(
        "anthropic",
        decoder,
        Redactor::new(None),
        limits,
        Account::new(50, ModelFacts::default()),
    );
    let mut all: Vec<_> = events.iter().map(|data| Ok(event(data))).collect();
    all.push(Err(SseError::Broken("reset".to_owned())));
    reader.stream(stream::iter(all))
}

fn begun(usage: &str) -> String {
    format!(r#"{{"type":"message_start","message":{{"id":"m","usage":{usage}}}}}"#)
}

/// A call with `pieces` pieces of ten bytes each, without its end.
fn long_call(pieces: usize) -> Vec<String> {
    let start = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"bash","input":{}}}"#;
    let piece = r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"0123456789"}}"#;
    let mut events = vec![start.to_owned()];
    events.extend(std::iter::repeat_n(piece.to_owned(), pieces));
    events
}

const TOLD_ONE: &str = r#"{"input_tokens":7,"output_tokens":1}"#;

fn usages(deltas: &[Result<LlmDelta, LlmError>]) -> Vec<Usage> {
    let usage = |delta: &Result<LlmDelta, LlmError>| match delta {
        Ok(LlmDelta::Usage(usage)) => Some(*usage),
        _ => None,
    };
    deltas.iter().filter_map(usage).collect()
}

#[tokio::test]
async fn an_attempt_that_fails_costs_at_least_what_arrived() {
    for (usage, input) in [(TOLD_ONE, 7), ("{}", 50)] {
        let events = [vec![begun(usage)], long_call(10_000)].concat();
        let deltas: Vec<_> = broken_off(&events).collect().await;
        let [.., Ok(LlmDelta::Usage(last)), Err(_)] = deltas.as_slice() else {
            panic!("{:?}", deltas.last())
        };
        assert!((30_000..30_010).contains(&last.output), "{last:?}");
        assert_eq!((last.input, last.estimated), (input, true));
        // So that an answer that is dropped has been told as well, but not with every piece.
        let usages = usages(&deltas);
        assert!((100..130).contains(&usages.len()), "{}", usages.len());
        let gaps = usages
            .windows(2)
            .map(|pair| pair[1].output - pair[0].output);
        assert!(gaps.max().unwrap() <= 270);
    }
    let nothing: Vec<_> = broken_off(&[begun(TOLD_ONE)]).collect().await;
    assert_eq!(usages(&nothing).len(), 1, "{nothing:?}");
}

#[tokio::test]
async fn an_answer_that_began_anew_is_paid_for_before_it_is_void() {
    let again = begun(TOLD_ONE).replace(r#""id":"m""#, r#""id":"n""#);
    let events = [vec![begun(TOLD_ONE)], long_call(20), vec![again]].concat();
    let deltas: Vec<_> = broken_off(&events).collect().await;
    let at = |wanted: &LlmDelta| {
        deltas
            .iter()
            .position(|delta| delta.as_ref().ok() == Some(wanted))
    };
    let void = at(&LlmDelta::Restarted).unwrap();
    let Ok(LlmDelta::Usage(paid)) = &deltas[void - 1] else {
        panic!("{deltas:?}")
    };
    assert!(
        (60..70).contains(&paid.output) && paid.estimated,
        "{paid:?}"
    );
    let Some(Ok(LlmDelta::Usage(anew))) = deltas.get(void + 1) else {
        panic!("{deltas:?}")
    };
    assert_eq!((anew.input, anew.output, anew.estimated), (7, 1, false));
}

#[tokio::test]
async fn what_was_not_told_of_the_usage_is_estimated_at_the_end() {
    for (at_start, at_end, input, output, estimated) in [
        ("{}", "{}", 50, 302, true),
        (r#"{"input_tokens":null}"#, "null", 50, 302, true),
        (
            r#"{"input_tokens":0,"output_tokens":0}"#,
            "null",
            50,
            302,
            true,
        ),
        (TOLD_ONE, "null", 7, 302, true),
        (TOLD_ONE, r#"{"output_tokens":0}"#, 7, 302, true),
        (TOLD_ONE, r#"{"input_tokens":9}"#, 9, 302, true),
        (TOLD_ONE, r#"{"output_tokens":5}"#, 7, 5, false),
        (
            TOLD_ONE,
            r#"{"output_tokens":5,"server_tool_use":0}"#,
            7,
            5,
            false,
        ),
        ("null", r#"{"output_tokens":5}"#, 50, 5, true),
    ] {
        let reason = format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":"tool_use"}},"usage":{at_end}}}"#
        );
        let stop = r#"{"type":"message_stop"}"#.to_owned();
        // The call is cut off, and counts all the same.
        let events = [vec![begun(at_start)], long_call(100), vec![reason, stop]].concat();
        let deltas: Vec<_> = broken_off(&events).collect().await;
        assert!(
            matches!(deltas.last(), Some(Ok(LlmDelta::Stop(_)))),
            "{deltas:?}"
        );
        let last = usages(&deltas).last().copied().unwrap();
        assert_eq!(
            (last.input, last.output, last.estimated),
            (input, output, estimated),
            "{at_start} {at_end}"
        );
    }
}

#[test]
fn what_is_told_for_people_is_cut_only_after_secrets_are_out_of_it() {
    let redactor = Redactor::searching("process-secret");
    let texts = |text: String| {
        let some = || Some(text.clone());
        let citation = Citation {
            url: some(),
            title: some(),
            quote: some(),
        };
        let refusal = LlmStop::Refusal {
            category: some(),
            explanation: some(),
        };
        [
            LlmDelta::ServedModel(text.clone()),
            LlmDelta::Stop(LlmStop::Unknown(text.clone())),
            LlmDelta::Stop(refusal),
            LlmDelta::Citation(citation),
            LlmDelta::ServerToolUse {
                tool: "web_search",
                query: text,
            },
        ]
    };
    for bound in [NAME_CHARS, SHOWN_CHARS] {
        for before in bound - 14..bound {
            let long = format!("{}process-secret{}", "z".repeat(before), "y".repeat(5000));
            for mut delta in texts(long) {
                shorten(&mut delta, &redactor);
                let shown = format!("{delta:?}");
                assert!(!shown.contains("zp") && shown.len() < 7000, "{shown}");
            }
        }
    }
    for mut delta in texts("short".to_owned()) {
        shorten(&mut delta, &redactor);
        assert!(format!("{delta:?}").contains("\"short\""));
    }
}
