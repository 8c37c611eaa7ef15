use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::chat::{Echo, ToolArgs};
use crate::llm::anthropic::block::NAME_CHARS;
use crate::llm::anthropic::wire::MOST_TOKENS;
use crate::llm::types::{Citation, LlmErrorKind, Usage};

fn hear(decoder: &mut AnthropicDecoder, event: &SseEvent) -> Result<Vec<LlmDelta>, LlmError> {
    let mut out = Deltas::new();
    decoder.on_event(event, &mut out)?;
    Ok(out.into())
}

fn sse(data: impl Into<String>) -> SseEvent {
    SseEvent {
        event: None,
        data: data.into(),
    }
}

/// How `decoder` fails on an event.
fn fails(decoder: &mut AnthropicDecoder, data: impl Into<String>) -> LlmError {
    hear(decoder, &sse(data)).unwrap_err()
}

fn feed_raw(decoder: &mut AnthropicDecoder, data: &str) -> Vec<LlmDelta> {
    hear(decoder, &sse(data)).unwrap()
}

fn feed(decoder: &mut AnthropicDecoder, data: &Value) -> Vec<LlmDelta> {
    feed_raw(decoder, &data.to_string())
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

/// The deltas of an answer of these blocks.
fn answer(blocks: &[Value], reason: &str) -> Vec<LlmDelta> {
    all(&[&[start("a")], blocks, &end(reason)].concat())
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
        last_pass: Some(MOST_TOKENS),
        // No pass tells its output.
        estimated: true,
        ..Usage::default()
    };
    assert_eq!(deltas, [LlmDelta::Usage(expected)]);
    assert_eq!(expected.total_input(), 2 * MOST_TOKENS);
}

#[test]
fn an_argumentless_call_is_an_empty_object() {
    for piece in [vec![], vec![piece(0, "")]] {
        let call = [vec![call_start(0)], piece, vec![block_end(0)]].concat();
        let deltas = answer(&call, "tool_use");
        assert_eq!(args_of(&deltas), Some(&ToolArgs::Json(json!({}))));
        assert_eq!(stop_of(&deltas), Some(&LlmStop::ToolUse));
    }
}

#[test]
fn a_call_cut_at_the_output_limit_is_malformed_and_never_guessed() {
    let call = [call_start(0), piece(0, "{\"command\": \"rm"), block_end(0)];
    let deltas = answer(&call, "max_tokens");
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
    let [text_start, text_piece, _] = text(2, "shown");
    let open = [
        call_start(0),
        thinking,
        piece(0, ""),
        text_start,
        text_piece,
    ];
    let deltas = answer(&open, "tool_use");
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
        let deltas = answer(&blocks, reason);
        assert_eq!(stop_of(&deltas), Some(&expected), "{reason}");
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
            json!({"type": "content_block_delta", "index": 9, "delta": {"type": "novel_delta"}}),
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
    let error = hear(&mut decoder, &event).unwrap_err();
    assert_eq!(error.kind, LlmErrorKind::Overloaded);
    assert!(error.retryable());
    let error = fails(&mut decoder, "{not json");
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
            let event = sse(event.to_string());
            let Ok(deltas) = hear(&mut decoder, &event) else {
                // A piece of a call that is not open ends the answer.
                prop_assert_eq!(pick, 5);
                break;
            };
            for delta in deltas {
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
        let shown = feed_raw(&mut decoder, data);
        assert_eq!(shown, [LlmDelta::Text("a\n\"é".to_owned())], "{data}");
        let block = feed(&mut decoder, &block_end(0));
        let whole = Block::text("a\n\"é");
        assert_eq!(block, [LlmDelta::Block(whole)], "{data}");
    }
}

fn texts(deltas: &[LlmDelta]) -> String {
    deltas
        .iter()
        .filter_map(|delta| match delta {
            LlmDelta::Text(text) => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

fn echo_of(deltas: &[LlmDelta]) -> Option<&str> {
    deltas.iter().find_map(|delta| match delta {
        LlmDelta::Block(
            Block::Opaque(echo)
            | Block::Text {
                echo: Some(echo), ..
            },
        ) => Some(echo.json()),
        _ => None,
    })
}

#[test]
fn halves_of_a_character_are_joined_and_lone_ones_replaced() {
    for (pieces, whole) in [
        (vec![r"a\ud83d", r"\ude00b"], "a😀b"),
        (vec![r"a\ud83d", "", r"\ude00"], "a😀"),
        (vec![r"\ud83d"], "\u{fffd}"),
        (vec![r"\ud83d", "x"], "\u{fffd}x"),
        (vec![r"\ude00\ud83dé"], "\u{fffd}\u{fffd}é"),
        (vec![r"\ud83d\ud83d", r"\ude00"], "\u{fffd}😀"),
        (vec![r"\ud83d\ude00"], "😀"),
    ] {
        for (kind, field, delta) in [
            ("text", "text", "text_delta"),
            ("thinking", "thinking", "thinking_delta"),
        ] {
            let mut decoder = AnthropicDecoder::default();
            feed(&mut decoder, &start("m"));
            let begin = json!({"type": "content_block_start", "index": 0,
                "content_block": {"type": kind, field: "", "signature": "s"}});
            feed(&mut decoder, &begin);
            let mut shown = Vec::new();
            for piece in &pieces {
                let data = format!(
                    r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"{delta}","{field}":"{piece}"}}}}"#
                );
                shown.extend(feed_raw(&mut decoder, &data));
            }
            shown.extend(feed(&mut decoder, &block_end(0)));
            let said: String = shown
                .iter()
                .filter_map(|delta| match delta {
                    LlmDelta::Text(text) | LlmDelta::Thinking(text) => Some(text.as_str()),
                    _ => None,
                })
                .collect();
            assert_eq!(said, whole, "{pieces:?}");
            match shown.last().unwrap() {
                LlmDelta::Block(Block::Text { text, .. }) => assert_eq!(text, whole),
                LlmDelta::Block(Block::Opaque(echo)) => {
                    let echo: Value = serde_json::from_str(echo.json()).unwrap();
                    assert_eq!(echo["thinking"], whole);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn half_a_character_fails_nothing_wherever_it_stands() {
    let lone = r"\ud83d";
    let mut decoder = AnthropicDecoder::default();
    let mut deltas = Vec::new();
    for data in [
        format!(r#"{{"type":"message_start","message":{{"id":"{lone}","model":"m{lone}"}}}}"#),
        format!(r#"{{"type":"novel","{lone}":"{lone}"}}"#),
        format!(r#"{{"type":"content_block_start","index":0,"content_block":{{"type":"tool_use","id":"t{lone}","name":"b{lone}","input":{{}}}}}}"#),
        format!(r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"input_json_delta","partial_json":"{{\"a\": \"\{lone}x\", "}}}}"#),
        format!(r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"input_json_delta","partial_json":"\"b\": \"{lone}"}}}}"#),
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"\ude00\"}"}}"#.to_owned(),
        block_end(0).to_string(),
        format!(r#"{{"type":"content_block_start","index":1,"content_block":{{"type":"novel","x":"{lone}"}}}}"#),
        block_end(1).to_string(),
        format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"n{lone}"}}}}"#),
    ] {
        deltas.extend(feed_raw(&mut decoder, &data));
    }
    assert_eq!(
        args_of(&deltas),
        Some(&ToolArgs::Json(json!({"a": "\u{fffd}x", "b": "😀"})))
    );
    assert_eq!(echo_of(&deltas), Some(r#"{"type":"novel","x":"\ufffd"}"#));
    assert!(deltas.contains(&LlmDelta::ServedModel("m\u{fffd}".to_owned())));
    let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"\ud83d"}}"#;
    let error = fails(&mut AnthropicDecoder::default(), error);
    assert_eq!(error.kind, LlmErrorKind::Overloaded);
}

#[test]
fn a_whole_input_in_the_start_survives_empty_pieces() {
    for (input, pieces, expected) in [
        (json!({"a": 1}), vec![], json!({"a": 1})),
        (json!({"a": 1}), vec![""], json!({"a": 1})),
        (json!({"a": 1}), vec!["", " "], json!({"a": 1})),
        (json!({"a": 1}), vec!["{\"b\"", ": 2}"], json!({"b": 2})),
        (json!({}), vec![""], json!({})),
        (Value::Null, vec![""], json!({})),
    ] {
        let mut begin = call_start(0);
        begin["content_block"]["input"] = input.clone();
        let mut events = vec![start("a"), begin];
        events.extend(pieces.iter().map(|json| piece(0, json)));
        events.push(block_end(0));
        assert_eq!(
            args_of(&all(&events)),
            Some(&ToolArgs::Json(expected)),
            "{input} {pieces:?}"
        );
    }
}

#[test]
fn a_stop_reason_with_all_blocks_closed_is_an_end() {
    let [reason, _] = end("end_turn");
    let [begin, said, stop] = text(0, "x");
    let whole = vec![start("a"), begin, said, stop, reason.clone()];
    let cut = vec![start("a"), call_start(0), piece(0, "{"), reason];
    for (events, ends) in [
        (whole.clone(), true),
        (cut, false),
        (whole[..4].to_vec(), false),
    ] {
        let mut decoder = AnthropicDecoder::default();
        for event in &events {
            feed(&mut decoder, event);
        }
        assert_eq!(decoder.is_complete(), ends);
        let mut out = Deltas::new();
        match decoder.on_end(&mut out) {
            Ok(()) => assert_eq!(out, [LlmDelta::Stop(LlmStop::End)]),
            Err(error) => assert_eq!(error.kind, LlmErrorKind::Cut),
        }
        assert_eq!(!out.is_empty(), ends);
        assert_eq!(feed(&mut decoder, &end("end_turn")[1]).is_empty(), ends);
    }
}

#[test]
fn what_the_providers_tools_did_is_told_and_goes_back() {
    let search = json!({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}});
    let cited = json!({"type": "web_search_result_location", "url": "u", "title": "t",
        "cited_text": "q", "encrypted_index": "e"});
    let events = [
        json!({"type": "message_start", "message": {"id": "m", "usage":
            {"input_tokens": 1000, "output_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": search}),
        piece(0, "{\"query\": \"x\"}"),
        block_end(0),
        json!({"type": "content_block_start", "index": 1, "content_block":
            {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}}),
        block_end(1),
        text(2, "")[0].clone(),
        json!({"type": "content_block_delta", "index": 2,
            "delta": {"type": "citations_delta", "citation": cited}}),
        text(2, "a")[1].clone(),
        block_end(2),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {
            "input_tokens": 2500, "output_tokens": 40,
            "output_tokens_details": {"thinking_tokens": 7},
            "server_tool_use": {"web_search_requests": 1}}}),
    ];
    let deltas = all(&events);
    assert!(deltas.contains(&LlmDelta::ServerToolUse {
        tool: "web_search",
        query: "x".to_owned()
    }));
    assert!(deltas.contains(&LlmDelta::Citation(Citation {
        url: Some("u".to_owned()),
        title: Some("t".to_owned()),
        quote: Some("q".to_owned()),
    })));
    let echoes: Vec<Value> = deltas
        .iter()
        .filter_map(|delta| echo_of(std::slice::from_ref(delta)))
        .map(|json| serde_json::from_str(json).unwrap())
        .collect();
    assert_eq!(echoes[0]["input"], json!({"query": "x"}));
    assert_eq!(echoes[1]["type"], "web_search_tool_result");
    assert_eq!(
        echoes[2],
        json!({"type": "text", "text": "a", "citations": [cited]})
    );
    let usage = Usage {
        input: 2500,
        output: 40,
        reasoning: 7,
        searches: 1,
        // The second pass had the first one's input and more: 2500 - 1000, and what was said.
        last_pass: Some(1540),
        ..Usage::default()
    };
    assert_eq!(deltas.last(), Some(&LlmDelta::Usage(usage)));
}

#[test]
fn inner_passes_are_billed_together_and_the_last_one_is_the_context() {
    let mut decoder = AnthropicDecoder::default();
    let pass = |input: u64, output: u64| json!({"input_tokens": input, "output_tokens": output});
    let usage = json!({"type": "message_delta", "delta": {}, "usage": {
        "input_tokens": 20, "output_tokens": 2, "iterations": [pass(100, 10), pass(20, 2)],
        "server_tool_use": {"web_search_requests": 3}}});
    let expected = Usage {
        input: 120,
        output: 12,
        searches: 3,
        last_pass: Some(22),
        ..Usage::default()
    };
    assert_eq!(feed(&mut decoder, &usage), [LlmDelta::Usage(expected)]);
}

#[test]
fn signed_thinking_without_text_goes_back() {
    let events = [
        json!({"type": "content_block_start", "index": 0, "content_block":
            {"type": "thinking", "thinking": "", "signature": ""}}),
        json!({"type": "content_block_delta", "index": 0,
            "delta": {"type": "signature_delta", "signature": "s"}}),
        block_end(0),
    ];
    assert_eq!(
        echo_of(&all(&events)),
        Some(r#"{"type":"thinking","thinking":"","signature":"s"}"#)
    );
}

#[test]
fn names_of_a_million_characters_and_ids_of_five_thousand_calls_are_bounded() {
    let mut decoder = AnthropicDecoder::default();
    let long = "n".repeat(1_000_000);
    let mut calls = Vec::new();
    for index in 0..5000 {
        let begin = json!({"type": "content_block_start", "index": index, "content_block":
            {"type": "tool_use", "id": "call_1", "name": if index == 0 { &long } else { "x" }}});
        feed(&mut decoder, &begin);
        calls.extend(feed(&mut decoder, &block_end(index)));
    }
    let mut ids = std::collections::BTreeSet::new();
    for delta in &calls {
        let LlmDelta::Block(Block::Call(call)) = delta else {
            panic!("{delta:?}")
        };
        assert!(call.name.len() <= NAME_CHARS);
        assert!(ids.insert(call.id.wire().to_owned()));
    }
    assert_eq!(ids.len(), 5000);
}

#[test]
fn an_event_of_another_shape_than_known_fails_only_if_it_matters() {
    let odd = [
        r#"{"type":"novel","delta":"x","index":"y"}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"novel_delta","text":[1]}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"novel","text":5}}"#,
        r#"{"type":"message_delta","delta":{},"usage":"none"}"#,
        r#"{"index":0}"#,
        "null",
    ];
    let mut decoder = AnthropicDecoder::default();
    for data in odd {
        let event = SseEvent {
            event: Some("ping".to_owned()),
            data: data.to_owned(),
        };
        assert_eq!(hear(&mut decoder, &event).unwrap(), [], "{data}");
    }
    assert_eq!(feed(&mut decoder, &block_end(0)).len(), 1);
    let error = fails(
        &mut decoder,
        r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":5}}"#,
    );
    assert_eq!(error.kind, LlmErrorKind::BadResponse);
    assert!(error.message.contains("content_block_delta"), "{error}");
}

#[test]
fn without_types_the_names_of_events_tell() {
    let mut decoder = AnthropicDecoder::default();
    let mut deltas = Vec::new();
    for event in [
        vec![start("a")],
        text(0, "x").to_vec(),
        end("end_turn").to_vec(),
    ]
    .concat()
    {
        let mut event = event;
        let name = event.as_object_mut().unwrap().remove("type").unwrap();
        let event = SseEvent {
            event: Some(name.as_str().unwrap().to_owned()),
            data: event.to_string(),
        };
        deltas.extend(hear(&mut decoder, &event).unwrap());
    }
    assert_eq!(texts(&deltas), "x");
    assert_eq!(stop_of(&deltas), Some(&LlmStop::End));
}

#[test]
fn a_whole_message_says_what_its_stream_would() {
    let body = json!({"id": "m", "model": "x", "content": [
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "t", "name": "bash", "input": {"command": "ls"}},
    ], "stop_reason": "tool_use", "usage": {"input_tokens": 3, "output_tokens": 4}});
    let mut out = Deltas::new();
    AnthropicDecoder::default()
        .whole(&body.to_string(), &mut out)
        .unwrap();
    let deltas: Vec<LlmDelta> = out.into();
    assert_eq!(texts(&deltas), "a");
    assert_eq!(
        args_of(&deltas),
        Some(&ToolArgs::Json(json!({"command": "ls"})))
    );
    assert_eq!(stop_of(&deltas), Some(&LlmStop::ToolUse));
    for none in ["[]", "{}", "1", "{not json"] {
        let mut out = Deltas::new();
        let error = AnthropicDecoder::default()
            .whole(none, &mut out)
            .unwrap_err();
        assert_eq!(error.kind, LlmErrorKind::BadResponse);
    }
}

#[test]
fn a_delta_with_all_fields_is_what_its_type_says() {
    let filled = |kind: &str, field: &str| {
        let mut delta = json!({"type": kind, "text": "", "thinking": null, "signature": "",
            "partial_json": "", "content": "", "citation": null});
        delta[field] = json!("x");
        json!({"type": "content_block_delta", "index": 0, "delta": delta})
    };
    let mut decoder = AnthropicDecoder::default();
    feed(&mut decoder, &text(0, "")[0]);
    let shown = feed(&mut decoder, &filled("text_delta", "text"));
    assert_eq!(shown, [LlmDelta::Text("x".to_owned())]);
    assert_eq!(feed(&mut decoder, &filled("text_delta", "thinking")), []);
    let block = feed(&mut decoder, &block_end(0));
    assert_eq!(block, [LlmDelta::Block(Block::text("x"))]);
}

#[test]
fn blocks_without_end_are_bounded_and_found_at_once() {
    let mut decoder = AnthropicDecoder::default();
    let mut failed = None;
    let mut out = Deltas::new();
    for index in 0..200_000 {
        let [start, ..] = text(index, "");
        let event = sse(start.to_string());
        if let Err(error) = decoder.on_event(&event, &mut out) {
            failed = Some((index, error.kind));
            break;
        }
    }
    assert_eq!(failed, Some((10_000, LlmErrorKind::BadResponse)));
    assert!(out.is_empty());
}

#[test]
fn a_block_whose_index_comes_again_is_complete() {
    let [first, said, _] = text(0, "one");
    let deltas = all(&[start("a"), first, said, call_start(0), piece(0, "{}")]);
    assert!(deltas.contains(&LlmDelta::Block(Block::text("one"))));
    let [text_start, text_piece, _] = text(0, "two");
    let again = [
        call_start(0),
        piece(0, "{}"),
        text_start,
        text_piece,
        block_end(0),
    ];
    let rest = answer(&again, "end_turn");
    assert_eq!(args_of(&rest), Some(&ToolArgs::Json(json!({}))));
    assert_eq!(stop_of(&rest), Some(&LlmStop::ToolUse));
}

#[test]
fn an_index_that_is_none_is_the_first_and_hides_no_error() {
    let mut events = text(0, "x");
    for event in &mut events {
        event["index"] = Value::Null;
    }
    assert!(all(&events).contains(&LlmDelta::Block(Block::text("x"))));
    for index in [Value::Null, json!("x"), json!(-1)] {
        let error = json!({"type": "error", "index": index,
            "error": {"type": "overloaded_error", "message": "busy"}});
        let error = fails(&mut AnthropicDecoder::default(), error.to_string());
        assert_eq!(error.kind, LlmErrorKind::Overloaded, "{index}");
    }
}

#[test]
fn a_piece_of_a_block_that_is_not_open_is_never_lost_in_silence() {
    let said = |index: Value, kind: &str, field: &str, what: &str| json!({"type": "content_block_delta", "index": index, "delta": {"type": kind, field: what}});
    for index in [json!(7), json!(-1), json!(0.0), json!(1e3), Value::Null] {
        // Never begun, and over already.
        for before in [vec![], text(0, "").to_vec()] {
            let mut decoder = AnthropicDecoder::default();
            for event in [vec![start("a")], before].concat() {
                feed(&mut decoder, &event);
            }
            for kind in ["text", "thinking"] {
                let piece = said(index.clone(), &format!("{kind}_delta"), kind, "x");
                let expected = match kind {
                    "text" => LlmDelta::Text("x".to_owned()),
                    _ => LlmDelta::Thinking("x".to_owned()),
                };
                assert_eq!(feed(&mut decoder, &piece), [expected], "{index}");
                let mut end = block_end(0);
                end["index"] = index.clone();
                let kept = feed(&mut decoder, &end);
                assert_eq!(kept.len(), usize::from(kind == "text"), "{index} {kept:?}");
            }
            for (kind, field, named) in [
                ("input_json_delta", "partial_json", "Json"),
                ("signature_delta", "signature", "Signature"),
                ("compaction_delta", "content", "Compaction"),
            ] {
                assert_eq!(
                    feed(&mut decoder, &said(index.clone(), kind, field, "")),
                    []
                );
                let error = fails(
                    &mut decoder,
                    said(index.clone(), kind, field, "x").to_string(),
                );
                assert_eq!(error.kind, LlmErrorKind::BadResponse);
                assert!(error.message.contains(named), "{error}");
            }
        }
    }
    for index in [json!(0.5), json!("x"), json!(1e300), json!([])] {
        let error = fails(
            &mut AnthropicDecoder::default(),
            said(index, "text_delta", "text", "x").to_string(),
        );
        assert_eq!(error.kind, LlmErrorKind::BadResponse);
    }
}

#[test]
fn the_work_of_an_event_counts_the_block_that_ends_with_it() {
    let mut decoder = AnthropicDecoder::default();
    let event = |data: Value| sse(data.to_string());
    feed(&mut decoder, &call_start(0));
    for _ in 0..100 {
        feed(&mut decoder, &piece(0, &"1".repeat(10_000)));
    }
    assert!(decoder.work(&event(piece(0, "1"))) < 200);
    assert!(decoder.work(&event(block_end(0))) > 1_000_000);
    feed(&mut decoder, &block_end(0));
    feed(&mut decoder, &call_start(1));
    assert!(decoder.work(&event(block_end(1))) < 500);
}

#[test]
fn figures_that_are_none_tell_nothing_and_cost_no_others() {
    let told = |usage: Value| {
        let event = json!({"type": "message_delta", "delta": {}, "usage": usage});
        feed(&mut AnthropicDecoder::default(), &event)
    };
    for none in [
        json!({}),
        json!({"input_tokens": null}),
        json!({"input_tokens": "many", "cache_creation": {}}),
        json!(7),
        Value::Null,
    ] {
        assert_eq!(told(none.clone()), [], "{none}");
    }
    for field in [
        "server_tool_use",
        "cache_creation",
        "output_tokens_details",
        "iterations",
    ] {
        let mut usage = json!({"input_tokens": 3, "output_tokens": 4});
        usage[field] = json!(0);
        let expected = Usage {
            input: 3,
            output: 4,
            ..Usage::default()
        };
        let deltas = told(usage);
        let [LlmDelta::Usage(usage)] = deltas.as_slice() else {
            panic!("{field} {deltas:?}")
        };
        assert_eq!((usage.input, usage.output, usage.estimated), (3, 4, false));
        assert_eq!(*usage, expected, "{field}");
    }
}

#[test]
fn what_would_take_many_times_its_size_is_not_read() {
    let list = format!("[{}]", vec!["[]"; 200_000].join(","));
    let blocks = format!(r#"{{"content":[{}]}}"#, vec!["{}"; 200_000].join(","));
    let mut out = Deltas::new();
    let whole = AnthropicDecoder::default().whole(&blocks, &mut out);
    assert_eq!(whole.unwrap_err().kind, LlmErrorKind::BadResponse);
    let error = fails(
        &mut AnthropicDecoder::default(),
        format!(
            r#"{{"type":"content_block_start","index":0,"content_block":{{"type":"text","text":"","citations":{list}}}}}"#
        ),
    );
    assert_eq!(error.kind, LlmErrorKind::BadResponse);
}

#[test]
fn many_calls_together_have_no_more_values_than_one() {
    let list = format!(r#"{{"a":[{}]}}"#, vec!["[]"; 20_000].join(","));
    for json in [list.clone(), json!(list).to_string()] {
        let mut events = vec![start("a")];
        for index in 0..10 {
            events.extend([call_start(index), piece(index, &json), block_end(index)]);
        }
        let deltas = all(&events);
        let read = deltas.iter().filter(|delta| match delta {
            LlmDelta::Block(Block::Call(call)) => match &call.args {
                ToolArgs::Json(args) => args.is_object(),
                ToolArgs::Malformed { raw, .. } => !raw.is_empty(),
            },
            _ => false,
        });
        assert_eq!(read.count(), 2);
    }
}

#[test]
fn the_type_alone_tells_what_a_block_is() {
    for (block, args) in [
        (
            r#"{"type":"tool_use","id":7,"name":"bash","input":{"a":1}}"#,
            json!({"a": 1}),
        ),
        (
            r#"{"type":"tool_use","id":"t","id":"u","name":"bash","input":{}}"#,
            json!({}),
        ),
        (
            r#"{"type":"tool_use","text":5,"citations":{},"name":"bash","to":[]}"#,
            json!({}),
        ),
        (r#"{"type":"tool_use","name":null,"input":null}"#, json!({})),
    ] {
        let begin =
            format!(r#"{{"type":"content_block_start","index":0,"content_block":{block}}}"#);
        let mut decoder = AnthropicDecoder::default();
        feed_raw(&mut decoder, &begin);
        let deltas = feed(&mut decoder, &block_end(0));
        assert_eq!(args_of(&deltas), Some(&ToolArgs::Json(args)), "{block}");
    }
    let mut decoder = AnthropicDecoder::default();
    let begin = json!({"type": "content_block_start", "index": 0,
        "content_block": {"type": "text", "text": "a", "citations": {}, "id": 4}});
    feed(&mut decoder, &begin);
    let text = feed(&mut decoder, &block_end(0));
    assert_eq!(text, [LlmDelta::Block(Block::text("a"))]);
}

#[test]
fn an_odd_field_costs_a_message_and_a_piece_only_itself() {
    let mut decoder = AnthropicDecoder::default();
    let begin = r#"{"type":"message_start","message":{"id":"a","id":"b","model":5,"content":7,
        "stop_reason":[],"usage":{"input_tokens":3,"output_tokens":4.0,"output_tokens":5}}}"#;
    let usage = Usage {
        input: 3,
        output: 5,
        ..Usage::default()
    };
    assert_eq!(feed_raw(&mut decoder, begin), [LlmDelta::Usage(usage)]);
    feed(&mut decoder, &text(0, "")[0]);
    let said = json!({"type": "content_block_delta", "index": 0,
        "delta": {"type": "text_delta", "text": "x", "thinking": {}, "partial_json": 1}});
    assert_eq!(feed(&mut decoder, &said), [LlmDelta::Text("x".to_owned())]);
    let body = json!({"id": 7, "model": {}, "stop_details": 1, "stop_reason": "refusal",
        "content": [{"type": "text", "text": "a"}]});
    let mut out = Deltas::new();
    AnthropicDecoder::default()
        .whole(&body.to_string(), &mut out)
        .unwrap();
    assert_eq!(texts(&Vec::from(out)), "a");
}

#[test]
fn what_is_shown_is_kept_whatever_block_it_came_for() {
    let delta = |kind: &str, field: &str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: "x"}});
    let begin =
        |block: Value| json!({"type": "content_block_start", "index": 0, "content_block": block});
    let call = json!({"type": "tool_use", "id": "t", "name": "bash", "input": {}});
    for block in [
        call,
        json!({"type": "novel"}),
        json!({"type": "redacted_thinking", "data": "d"}),
        json!({"type": "thinking", "thinking": ""}),
        json!({}),
    ] {
        let is_call = block["type"] == "tool_use";
        let deltas = all(&[
            begin(block.clone()),
            delta("text_delta", "text"),
            block_end(0),
        ]);
        assert_eq!(texts(&deltas), "x", "{block}");
        assert_eq!(
            deltas.last(),
            Some(&LlmDelta::Block(Block::text("x"))),
            "{block}"
        );
        assert_eq!(args_of(&deltas).is_some(), is_call, "{block}");
        assert_eq!(echo_of(&deltas), None, "half of {block} is none");
    }
    for (kind, field) in [
        ("novel_delta", "text"),
        ("signature_delta", "signature"),
        ("input_json_delta", "partial_json"),
    ] {
        let deltas = all(&[
            begin(json!({"type": "novel"})),
            delta(kind, field),
            block_end(0),
        ]);
        assert_eq!(deltas, [], "{kind}: half a block is none");
    }
    let mut decoder = AnthropicDecoder::default();
    feed(&mut decoder, &text(0, "")[0]);
    let error = fails(&mut decoder, piece(0, "{}").to_string());
    assert_eq!(error.kind, LlmErrorKind::BadResponse, "a call's piece");
    assert_eq!(
        feed(&mut decoder, &delta("signature_delta", "signature")),
        []
    );
}

#[test]
fn a_block_goes_back_however_deep_it_is() {
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let begin = format!(
        r#"{{"type":"content_block_start","index":0,"content_block":{{"type":"server_tool_use","x":{deep},"input":{{}}}}}}"#
    );
    let mut decoder = AnthropicDecoder::default();
    feed_raw(&mut decoder, &begin);
    feed(&mut decoder, &piece(0, r#"{"query":"#));
    feed(&mut decoder, &piece(0, r#""x"}"#));
    let kept = feed(&mut decoder, &block_end(0));
    let expected = format!(r#"{{"type":"server_tool_use","x":{deep},"input":{{"query":"x"}}}}"#);
    assert_eq!(echo_of(&kept).map(str::len), Some(expected.len()));
    assert!(echo_of(&kept).unwrap().contains(&deep));
}

#[test]
fn a_call_whose_end_alone_is_missing_is_whole_where_the_answer_is_good() {
    for (json, reason, whole) in [
        ("{}", "tool_use", true),
        ("{}", "end_turn", true),
        ("{}", "max_tokens", false),
        ("{}", "model_context_window_exceeded", false),
        ("{", "tool_use", false),
        ("", "tool_use", false),
    ] {
        let deltas = answer(&[call_start(0), piece(0, json)], reason);
        let is_json = matches!(args_of(&deltas), Some(ToolArgs::Json(_)));
        assert_eq!(is_json, whole, "{json} {reason}");
    }
}

#[test]
fn whole_figures_may_be_written_as_fractions() {
    for (figure, expected) in [
        ("12.0", 12),
        ("1.2e1", 12),
        ("12", 12),
        ("12.5", 0),
        ("-1", 0),
    ] {
        let event = format!(
            r#"{{"type":"message_delta","usage":{{"input_tokens":1,"output_tokens":{figure}}}}}"#
        );
        let told = feed_raw(&mut AnthropicDecoder::default(), &event);
        let [LlmDelta::Usage(usage)] = told.as_slice() else {
            panic!("{told:?}")
        };
        assert_eq!(usage.output, expected, "{figure}");
    }
}

#[test]
fn an_error_without_a_type_is_one() {
    let named = |name: Option<&str>, data: &str| SseEvent {
        event: name.map(str::to_owned),
        data: data.to_owned(),
    };
    let auth = r#"{"error":{"type":"authentication_error","message":"no"}}"#;
    let novel = r#"{"type":"novel","error":{"type":"authentication_error"}}"#;
    let odd = r#"{"index":"x","error":{"type":"authentication_error"}}"#;
    for event in [
        named(None, auth),
        named(Some("message"), auth),
        named(None, novel),
        named(None, odd),
    ] {
        let error = hear(&mut AnthropicDecoder::default(), &event).unwrap_err();
        assert_eq!(error.kind, LlmErrorKind::Auth, "{event:?}");
    }
    let none = r#"{"error":null}"#;
    assert_eq!(feed_raw(&mut AnthropicDecoder::default(), none), []);
}

#[test]
fn an_answer_whose_last_ends_are_missing_is_whole_where_the_model_ended() {
    let [text_start, text_piece, _] = text(0, "said");
    let thinking = json!({"type": "content_block_start", "index": 0,
        "content_block": {"type": "thinking", "thinking": "hm", "signature": "s"}});
    let whole_start = json!({"type": "content_block_start", "index": 0,
        "content_block": {"type": "tool_use", "id": "t", "name": "bash", "input": {"a": 1}}});
    let search = json!({"type": "content_block_start", "index": 0,
        "content_block": {"type": "server_tool_use", "id": "t", "name": "web_search", "input": {}}});
    let said = vec![text_start, text_piece];
    let call = |pieces: &str| vec![call_start(0), piece(0, pieces)];
    for (blocks, reason, is_whole) in [
        (said.clone(), "end_turn", true),
        (said.clone(), "max_tokens", false),
        (said, "model_context_window_exceeded", false),
        (vec![thinking], "end_turn", true),
        (call("{}"), "tool_use", true),
        (call("{"), "tool_use", false),
        (call("{}"), "max_tokens", false),
        (vec![call_start(0)], "tool_use", false),
        (vec![whole_start], "tool_use", true),
        (
            vec![search.clone(), piece(0, r#"{"query":"q"}"#)],
            "end_turn",
            true,
        ),
        (vec![search, piece(0, r#"{"query":"#)], "end_turn", false),
    ] {
        let [reason_event, _] = end(reason);
        let mut decoder = AnthropicDecoder::default();
        for event in [vec![start("a")], blocks.clone(), vec![reason_event]].concat() {
            feed(&mut decoder, &event);
        }
        assert_eq!(decoder.is_complete(), is_whole, "{blocks:?} {reason}");
        assert!(decoder.work_of_end() > 0);
        let mut out = Deltas::new();
        let ended = decoder.on_end(&mut out);
        assert_eq!(ended.is_ok(), is_whole, "{blocks:?} {reason}");
        let kept = |delta: &LlmDelta| matches!(delta, LlmDelta::Block(_));
        assert_eq!(out.iter().any(kept), is_whole, "{blocks:?} {reason}");
        if let Some(args) = args_of(&Vec::from(out)) {
            assert!(matches!(args, ToolArgs::Json(_)), "{args:?}");
        }
    }
}

#[test]
fn a_piece_after_the_reason_makes_the_end_uncertain_again() {
    let [text_start, text_piece, _] = text(0, "said");
    let [reason, _] = end("end_turn");
    let mut decoder = AnthropicDecoder::default();
    for event in [start("a"), text_start, text_piece, reason, call_start(1)] {
        feed(&mut decoder, &event);
    }
    assert!(!decoder.is_complete());
    feed(&mut decoder, &piece(1, "{"));
    assert!(decoder.on_end(&mut Deltas::new()).is_err());
}

#[test]
fn a_piece_without_a_type_is_what_its_block_takes() {
    let begin =
        |block: Value| json!({"type": "content_block_start", "index": 0, "content_block": block});
    let delta = |delta: Value| json!({"type": "content_block_delta", "index": 0, "delta": delta});
    let said = all(&[
        text(0, "")[0].clone(),
        delta(json!({"text": "x"})),
        block_end(0),
    ]);
    assert_eq!(
        said,
        [
            LlmDelta::Text("x".to_owned()),
            LlmDelta::Block(Block::text("x"))
        ]
    );
    let call = all(&[
        call_start(0),
        delta(json!({"text": "", "partial_json": "{\"a\":"})),
        delta(json!({"partial_json": "1}"})),
        block_end(0),
    ]);
    assert_eq!(args_of(&call), Some(&ToolArgs::Json(json!({"a": 1}))));
    let thought = all(&[
        begin(json!({"type": "thinking", "thinking": ""})),
        delta(json!({"thinking": "hm"})),
        delta(json!({"signature": "s"})),
        block_end(0),
    ]);
    assert!(thought.contains(&LlmDelta::Thinking("hm".to_owned())));
    assert!(echo_of(&thought).is_some_and(|echo| echo.contains("\"s\"")));
    // What the block doesn't take, and what no block is open for.
    for before in [vec![call_start(0)], vec![]] {
        let deltas = all(&[before, vec![delta(json!({"text": "x"}))]].concat());
        assert_eq!(texts(&deltas), "x");
    }
    let mut decoder = AnthropicDecoder::default();
    let lost = delta(json!({"partial_json": "{}"}));
    assert_eq!(
        fails(&mut decoder, lost.to_string()).kind,
        LlmErrorKind::BadResponse
    );
    assert_eq!(feed(&mut decoder, &delta(json!({"text": ""}))), []);
}

#[test]
fn the_number_of_a_block_may_stand_in_quotes() {
    let mut events = [text(0, "a"), text(1, "b")].concat();
    for event in &mut events {
        event["index"] = json!(event["index"].to_string());
    }
    let deltas = all(&events);
    for said in ["a", "b"] {
        assert!(
            deltas.contains(&LlmDelta::Block(Block::text(said))),
            "{deltas:?}"
        );
    }
}

#[test]
fn a_list_is_no_object() {
    let mut decoder = AnthropicDecoder::default();
    feed(&mut decoder, &text(0, "")[0]);
    let usage = r#"{"type":"message_delta","delta":{},"usage":[7,8]}"#;
    assert_eq!(feed_raw(&mut decoder, usage), []);
    let event = r#"["content_block_delta",0,{"type":"text_delta","text":"x"},null,null,null,null]"#;
    assert_eq!(feed_raw(&mut decoder, event), []);
    let delta = r#"{"type":"content_block_delta","index":0,"delta":["text_delta","x",null,null,null,null,null,null,null]}"#;
    let error = fails(&mut decoder, delta);
    assert_eq!(error.kind, LlmErrorKind::BadResponse);
}
