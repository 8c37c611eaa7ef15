use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::chat::ToolArgs;
use crate::llm::types::{Citation, LlmErrorKind, Usage};

pub(super) fn hear(
    decoder: &mut AnthropicDecoder,
    event: &SseEvent,
) -> Result<Vec<LlmDelta>, LlmError> {
    let mut out = Deltas::new();
    decoder.on_event(event, &mut out)?;
    Ok(out.into())
}

pub(super) fn sse(data: impl Into<String>) -> SseEvent {
    SseEvent {
        event: None,
        data: data.into(),
    }
}

/// How `decoder` fails on an event.
pub(super) fn fails(decoder: &mut AnthropicDecoder, data: impl Into<String>) -> LlmError {
    hear(decoder, &sse(data)).unwrap_err()
}

pub(super) fn feed_raw(decoder: &mut AnthropicDecoder, data: &str) -> Vec<LlmDelta> {
    hear(decoder, &sse(data)).unwrap()
}

pub(super) fn feed(decoder: &mut AnthropicDecoder, data: &Value) -> Vec<LlmDelta> {
    feed_raw(decoder, &data.to_string())
}

pub(super) fn all(events: &[Value]) -> Vec<LlmDelta> {
    let mut decoder = AnthropicDecoder::default();
    events
        .iter()
        .flat_map(|event| feed(&mut decoder, event))
        .collect()
}

/// What comes of an answer in one document.
pub(super) fn whole(body: &str) -> Result<Vec<LlmDelta>, LlmError> {
    let mut out = Deltas::new();
    AnthropicDecoder::default().whole(body, &mut out)?;
    Ok(out.into())
}

pub(super) fn start(id: &str) -> Value {
    json!({"type": "message_start", "message": {"id": id, "model": "m", "usage": {"input_tokens": 5, "output_tokens": 1}}})
}

pub(super) fn text(index: u64, text: &str) -> [Value; 3] {
    [
        block_start(index, json!({"type": "text", "text": ""})),
        block_delta(index, json!({"type": "text_delta", "text": text})),
        json!({"type": "content_block_stop", "index": index}),
    ]
}

pub(super) fn call_start(index: u64) -> Value {
    block_start(
        index,
        json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}),
    )
}

pub(super) fn piece(index: u64, json: &str) -> Value {
    block_delta(
        index,
        json!({"type": "input_json_delta", "partial_json": json}),
    )
}

pub(super) fn block_start(index: impl Into<Value>, block: Value) -> Value {
    let mut event = json!({"type": "content_block_start"});
    event["index"] = index.into();
    event["content_block"] = block;
    event
}

pub(super) fn block_delta(index: impl Into<Value>, delta: Value) -> Value {
    let mut event = json!({"type": "content_block_delta"});
    event["index"] = index.into();
    event["delta"] = delta;
    event
}

pub(super) fn block_end(index: u64) -> Value {
    json!({"type": "content_block_stop", "index": index})
}

pub(super) fn end(reason: &str) -> [Value; 2] {
    [
        json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 9}}),
        json!({"type": "message_stop"}),
    ]
}

/// The deltas of an answer of these blocks.
pub(super) fn answer(blocks: &[Value], reason: &str) -> Vec<LlmDelta> {
    all(&[&[start("a")], blocks, &end(reason)].concat())
}

pub(super) fn args_of(deltas: &[LlmDelta]) -> Option<&ToolArgs> {
    deltas.iter().find_map(|delta| match delta {
        LlmDelta::Block(Block::Call(call)) => Some(&call.args),
        _ => None,
    })
}

pub(super) fn stop_of(deltas: &[LlmDelta]) -> Option<&LlmStop> {
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
    let thinking = block_start(
        1,
        json!({"type": "thinking", "thinking": "hm", "signature": ""}),
    );
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

pub(super) fn texts(deltas: &[LlmDelta]) -> String {
    deltas
        .iter()
        .filter_map(|delta| match delta {
            LlmDelta::Text(text) => Some(text.as_str()),
            _ => None,
        })
        .collect()
}

pub(super) fn echo_of(deltas: &[LlmDelta]) -> Option<&str> {
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
        block_start(0, search),
        piece(0, "{\"query\": \"x\"}"),
        block_end(0),
        block_start(
            1,
            json!({"type": "web_search_tool_result", "tool_use_id": "s", "content": []}),
        ),
        block_end(1),
        text(2, "")[0].clone(),
        block_delta(2, json!({"type": "citations_delta", "citation": cited})),
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
        block_start(
            0,
            json!({"type": "thinking", "thinking": "", "signature": ""}),
        ),
        block_delta(0, json!({"type": "signature_delta", "signature": "s"})),
        block_end(0),
    ];
    assert_eq!(
        echo_of(&all(&events)),
        Some(r#"{"type":"thinking","thinking":"","signature":"s"}"#)
    );
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
    let deltas = whole(&body.to_string()).unwrap();
    assert_eq!(texts(&deltas), "a");
    assert_eq!(
        args_of(&deltas),
        Some(&ToolArgs::Json(json!({"command": "ls"})))
    );
    assert_eq!(stop_of(&deltas), Some(&LlmStop::ToolUse));
    for none in ["[]", "{}", "1", "{not json"] {
        assert_eq!(whole(none).unwrap_err().kind, LlmErrorKind::BadResponse);
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
fn an_answer_whose_last_ends_are_missing_is_whole_where_the_model_ended() {
    let [text_start, text_piece, _] = text(0, "said");
    let thinking = block_start(
        0,
        json!({"type": "thinking", "thinking": "hm", "signature": "s"}),
    );
    let whole_start = block_start(
        0,
        json!({"type": "tool_use", "id": "t", "name": "bash", "input": {"a": 1}}),
    );
    let search = block_start(
        0,
        json!({"type": "server_tool_use", "id": "t", "name": "web_search", "input": {}}),
    );
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
