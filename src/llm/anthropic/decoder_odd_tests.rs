//! What is odd, broken or without end in an answer.

use serde_json::{Value, json};

use super::tests::{
    all, answer, args_of, block_delta, block_end, block_start, call_start, echo_of, end, fails,
    feed, feed_raw, hear, piece, sse, start, stop_of, text, texts, whole,
};
use super::*;
use crate::chat::{Echo, ToolArgs};
use crate::llm::anthropic::block::NAME_CHARS;
use crate::llm::anthropic::wire::MOST_TOKENS;
use crate::llm::types::{LlmErrorKind, Usage};

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
fn what_is_not_known_is_carried_or_passed_over() {
    let events = [
        vec![
            json!({"type": "novel_event"}),
            json!([1]),
            start("a"),
            block_start(4, json!({"type": "novel", "x": {"b": 1, "a": 2}})),
            block_delta(9, json!({"type": "novel_delta"})),
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
            let begin = block_start(0, json!({"type": kind, field: "", "signature": "s"}));
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
fn names_of_a_million_characters_and_ids_of_five_thousand_calls_are_bounded() {
    let mut decoder = AnthropicDecoder::default();
    let long = "n".repeat(1_000_000);
    let mut calls = Vec::new();
    for index in 0..5000 {
        let begin = block_start(
            index,
            json!({"type": "tool_use", "id": "call_1", "name": if index == 0 { &long } else { "x" }}),
        );
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
fn a_delta_with_all_fields_is_what_its_type_says() {
    let filled = |kind: &str, field: &str| {
        let mut delta = json!({"type": kind, "text": "", "thinking": null, "signature": "",
            "partial_json": "", "content": "", "citation": null});
        delta[field] = json!("x");
        block_delta(0, delta)
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
    let said = |index: Value, kind: &str, field: &str, what: &str| {
        block_delta(index, json!({"type": kind, field: what}))
    };
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
    assert_eq!(whole(&blocks).unwrap_err().kind, LlmErrorKind::BadResponse);
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
    let begin = block_start(
        0,
        json!({"type": "text", "text": "a", "citations": {}, "id": 4}),
    );
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
    let said = block_delta(
        0,
        json!({"type": "text_delta", "text": "x", "thinking": {}, "partial_json": 1}),
    );
    assert_eq!(feed(&mut decoder, &said), [LlmDelta::Text("x".to_owned())]);
    let body = json!({"id": 7, "model": {}, "stop_details": 1, "stop_reason": "refusal",
        "content": [{"type": "text", "text": "a"}]});
    assert_eq!(texts(&whole(&body.to_string()).unwrap()), "a");
}

#[test]
fn what_is_shown_is_kept_whatever_block_it_came_for() {
    let delta = |kind: &str, field: &str| block_delta(0, json!({"type": kind, field: "x"}));
    let begin = |block: Value| block_start(0, block);
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
fn a_piece_without_a_type_is_what_its_block_takes() {
    let begin = |block: Value| block_start(0, block);
    let delta = |delta: Value| block_delta(0, delta);
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

#[test]
fn what_has_to_be_sent_back_of_an_answer_is_bounded() {
    let quarter = "x".repeat(MOST_ECHOED_MIB << 18);
    let blocks = [
        json!({"type": "redacted_thinking", "data": quarter}),
        json!({"type": "text", "text": "a", "citations": [{"cited_text": quarter}]}),
        json!({"type": "novel", "y": quarter}),
    ];
    let mut decoder = AnthropicDecoder::default();
    for (index, block) in (0..).zip(&blocks) {
        feed(&mut decoder, &block_start(index, block.clone()));
        feed(&mut decoder, &block_end(index));
    }
    feed(&mut decoder, &block_start(3_u64, blocks[0].clone()));
    let error = fails(&mut decoder, block_end(3).to_string());
    assert!(
        error.kind == LlmErrorKind::BadResponse && error.message.contains("8 MiB"),
        "{error}"
    );
    let content = [blocks.as_slice(), &blocks[..1]].concat();
    assert!(whole(&json!({ "content": content }).to_string()).is_err());
}
