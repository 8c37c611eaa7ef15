use proptest::prelude::*;

use super::*;

fn feed(decoder: &mut AnthropicDecoder, data: &Value) -> Vec<LlmDelta> {
    let event = SseEvent {
        event: None,
        data: data.to_string(),
    };
    decoder.on_event(&event).unwrap()
}

fn all(events: &[Value]) -> Vec<LlmDelta> {
    let mut decoder = AnthropicDecoder::default();
    events
        .iter()
        .flat_map(|event| feed(&mut decoder, event))
        .collect()
}

fn start(id: &str) -> Value {
    json!({"type": "message_start", "message": {"id": id, "model": "m", "usage": {"input_tokens": 5, "output_tokens": 1}}})
}

fn text(index: u64, text: &str) -> [Value; 3] {
    [
        json!({"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}),
        json!({"type": "content_block_stop", "index": index}),
    ]
}

fn call_start(index: u64) -> Value {
    json!({"type": "content_block_start", "index": index,
        "content_block": {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}})
}

fn piece(index: u64, json: &str) -> Value {
    json!({"type": "content_block_delta", "index": index,
        "delta": {"type": "input_json_delta", "partial_json": json}})
}

fn block_end(index: u64) -> Value {
    json!({"type": "content_block_stop", "index": index})
}

fn end(reason: &str) -> [Value; 2] {
    [
        json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 9}}),
        json!({"type": "message_stop"}),
    ]
}

fn args_of(deltas: &[LlmDelta]) -> Option<&ToolArgs> {
    deltas.iter().find_map(|delta| match delta {
        LlmDelta::Block(Block::Call(call)) => Some(&call.args),
        _ => None,
    })
}

fn stop_of(deltas: &[LlmDelta]) -> Option<&LlmStop> {
    match deltas.last() {
        Some(LlmDelta::Stop(stop)) => Some(stop),
        _ => None,
    }
}

#[test]
fn a_restart_by_a_gateway_voids_what_came_and_a_duplicate_start_does_not() {
    let again = all(&[
        vec![start("a")],
        text(0, "lost").to_vec(),
        vec![start("b")],
        text(0, "kept").to_vec(),
        end("end_turn").to_vec(),
    ]
    .concat());
    let at = again
        .iter()
        .position(|delta| *delta == LlmDelta::Restarted)
        .unwrap();
    assert_eq!(
        again[at + 1..],
        [
            LlmDelta::ServedModel("m".to_owned()),
            LlmDelta::Usage(Usage {
                input: 5,
                output: 1,
                ..Usage::default()
            }),
            LlmDelta::Text("kept".to_owned()),
            LlmDelta::Block(Block::text("kept")),
            LlmDelta::Usage(Usage {
                input: 5,
                output: 9,
                ..Usage::default()
            }),
            LlmDelta::Stop(LlmStop::End),
        ]
    );
    let duplicate = all(&[vec![start("a"), start("a")], text(0, "x").to_vec()].concat());
    assert!(!duplicate.contains(&LlmDelta::Restarted));
}

#[test]
fn usage_is_replaced_and_never_added() {
    let mut decoder = AnthropicDecoder::default();
    let begin = json!({"type": "message_start", "message": {"id": "a", "usage": {
        "input_tokens": 43, "output_tokens": 1, "cache_read_input_tokens": 7,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}}}});
    feed(&mut decoder, &begin);
    let deltas = feed(
        &mut decoder,
        &json!({"type": "message_delta", "delta": {}, "usage": {
            "input_tokens": 61, "output_tokens": 2, "cache_creation_input_tokens": 35,
            "cache_read_input_tokens": null}}),
    );
    let expected = Usage {
        input: 61,
        cache_read: 7,
        cache_write_5m: 15,
        cache_write_1h: 20,
        output: 2,
        ..Usage::default()
    };
    assert_eq!(deltas, [LlmDelta::Usage(expected)]);
}

#[test]
fn absurd_figures_overflow_nothing() {
    let pass =
        json!({"input_tokens": u64::MAX, "output_tokens": 1.5, "cache_read_input_tokens": -1});
    let mut decoder = AnthropicDecoder::default();
    let deltas = feed(
        &mut decoder,
        &json!({"type": "message_delta", "usage": {"iterations": [pass, pass, 7]}}),
    );
    let expected = Usage {
        input: 2 * MOST_TOKENS,
        ..Usage::default()
    };
    assert_eq!(deltas, [LlmDelta::Usage(expected)]);
    assert_eq!(expected.total_input(), 2 * MOST_TOKENS);
}

#[test]
fn an_argumentless_call_is_an_empty_object() {
    let with_empty_piece = [
        vec![start("a"), call_start(0), piece(0, ""), block_end(0)],
        end("tool_use").to_vec(),
    ]
    .concat();
    let without_piece = [
        vec![start("a"), call_start(0), block_end(0)],
        end("tool_use").to_vec(),
    ]
    .concat();
    for events in [with_empty_piece, without_piece] {
        let deltas = all(&events);
        assert_eq!(args_of(&deltas), Some(&ToolArgs::Json(json!({}))));
        assert_eq!(stop_of(&deltas), Some(&LlmStop::ToolUse));
    }
}

#[test]
fn a_call_cut_at_the_output_limit_is_malformed_and_never_guessed() {
    let events = [
        vec![
            start("a"),
            call_start(0),
            piece(0, "{\"command\": \"rm"),
            block_end(0),
        ],
        end("max_tokens").to_vec(),
    ]
    .concat();
    let deltas = all(&events);
    assert!(matches!(
        args_of(&deltas),
        Some(ToolArgs::Malformed { raw, .. }) if raw == "{\"command\": \"rm"
    ));
    assert_eq!(stop_of(&deltas), Some(&LlmStop::MaxTokens));
}

#[test]
fn a_block_that_never_stopped_is_a_cut_call_or_plain_text() {
    let thinking = json!({"type": "content_block_start", "index": 1,
        "content_block": {"type": "thinking", "thinking": "hm", "signature": ""}});
    let events = [
        vec![start("a"), call_start(0), thinking, piece(0, "")],
        text(2, "shown")[..2].to_vec(),
        end("tool_use").to_vec(),
    ]
    .concat();
    let deltas = all(&events);
    assert!(matches!(args_of(&deltas), Some(ToolArgs::Malformed { .. })));
    let blocks = deltas
        .iter()
        .filter(|delta| matches!(delta, LlmDelta::Block(_)))
        .count();
    assert_eq!(blocks, 2);
}

#[test]
fn the_stop_reason_agrees_with_the_calls() {
    let call = vec![call_start(0), piece(0, "{}"), block_end(0)];
    for (blocks, reason, expected) in [
        (call.clone(), "end_turn", LlmStop::ToolUse),
        (call.clone(), "tool_use", LlmStop::ToolUse),
        (call, "max_tokens", LlmStop::MaxTokens),
        (vec![], "tool_use", LlmStop::End),
        (vec![], "stop_sequence", LlmStop::End),
        (vec![], "pause_turn", LlmStop::Pause),
        (
            vec![],
            "model_context_window_exceeded",
            LlmStop::ContextFull,
        ),
        (vec![], "novel", LlmStop::Unknown("novel".to_owned())),
        (
            vec![],
            "refusal",
            LlmStop::Refusal {
                category: None,
                explanation: None,
            },
        ),
    ] {
        let events = [vec![start("a")], blocks, end(reason).to_vec()].concat();
        assert_eq!(stop_of(&all(&events)), Some(&expected), "{reason}");
    }
}

#[test]
fn what_is_not_known_is_carried_or_passed_over() {
    let events = [
        vec![
            json!({"type": "novel_event"}),
            json!([1]),
            start("a"),
            json!({"type": "content_block_start", "index": 4,
                "content_block": {"type": "novel", "x": {"b": 1, "a": 2}}}),
            json!({"type": "content_block_delta", "index": 4, "delta": {"type": "novel_delta"}}),
            json!({"type": "content_block_delta", "index": 9, "delta": {"type": "text_delta", "text": "?"}}),
            block_end(4),
            block_end(9),
        ],
        end("end_turn").to_vec(),
    ]
    .concat();
    let deltas = all(&events);
    let opaque = Echo::of(&json!({"type": "novel", "x": {"b": 1, "a": 2}})).unwrap();
    assert!(deltas.contains(&LlmDelta::Block(Block::Opaque(opaque))));
    assert_eq!(stop_of(&deltas), Some(&LlmStop::End));
}

#[test]
fn an_error_event_is_classified_by_its_type() {
    let mut decoder = AnthropicDecoder::default();
    let event = SseEvent {
        event: Some("error".to_owned()),
        data: json!({"error": {"type": "overloaded_error", "message": "Overloaded"}}).to_string(),
    };
    let error = decoder.on_event(&event).unwrap_err();
    assert_eq!(error.kind, LlmErrorKind::Overloaded);
    assert!(error.retryable());
    let garbage = SseEvent {
        event: None,
        data: "{not json".to_owned(),
    };
    let error = decoder.on_event(&garbage).unwrap_err();
    assert_eq!(error.kind, LlmErrorKind::BadResponse);
}

proptest! {
    #[test]
    fn any_sequence_of_events_is_survived_and_nothing_follows_the_stop(
        picks in prop::collection::vec((0_usize..9, 0_u64..3), 0..40)
    ) {
        let mut decoder = AnthropicDecoder::default();
        let mut stopped = false;
        for (pick, index) in picks {
            let [text_start, text_piece, _] = text(index, "x");
            let [message_delta, message_stop] = end("tool_use");
            let event = match pick {
                0 => start(&index.to_string()),
                1 => text_start,
                2 => text_piece,
                3 => block_end(index),
                4 => call_start(index),
                5 => piece(index, "{\"a\":"),
                6 => message_delta,
                7 => message_stop,
                _ => json!({"type": "ping"}),
            };
            for delta in feed(&mut decoder, &event) {
                prop_assert!(!stopped, "{delta:?}");
                stopped = matches!(delta, LlmDelta::Stop(_));
            }
        }
    }
}

#[test]
fn a_piece_of_text_is_the_same_in_any_spelling() {
    let spellings = [
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a\n\"é"}}"#,
        r#" {"delta" : {"text":"a\u000a\u0022\u00e9","type":"text_delta"}, "index":0, "type":"content_block_delta"} "#,
        r#"{"type":"content_block_\u0064elta","index":0,"delta":{"type":"text_delta","text":"a\n\"é"}}"#,
        r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"a\n\"é"}}"#,
        r#"{"type":"content_block_delta","index":0,"index":0,"delta":{"type":"text_delta","text":"a\n\"é","x":[1]},"p":"x"}"#,
    ];
    for data in spellings {
        let mut decoder = AnthropicDecoder::default();
        feed(&mut decoder, &start("m"));
        feed(&mut decoder, &text(0, "")[0]);
        let event = SseEvent {
            event: None,
            data: data.to_owned(),
        };
        let shown = decoder.on_event(&event).unwrap();
        assert_eq!(shown, [LlmDelta::Text("a\n\"é".to_owned())], "{data}");
        let block = feed(&mut decoder, &block_end(0));
        let whole = Block::text("a\n\"é");
        assert_eq!(block, [LlmDelta::Block(whole)], "{data}");
    }
}
