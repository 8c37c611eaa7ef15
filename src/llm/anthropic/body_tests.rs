use serde_json::{Value, json};

use super::*;
use crate::chat::{CallIds, Document, Echo, Image, ImageType, Reply, ToolArgs, ToolCall};
use crate::llm::asked::Asked;
use crate::llm::json::Json;

fn request(model: &str, messages: Vec<Message>) -> Asked {
    let mut asked = Asked::new(model, &["bash", "glob"], messages);
    asked.system = vec!["Role.".to_owned(), String::new(), "Rules.".to_owned()];
    asked
}

/// The body as it goes onto the wire, and the warnings.
fn sent(asked: &Asked) -> (String, Warnings) {
    let mut warnings = Vec::new();
    let request = asked.request();
    let json = Json::write(&body(&request, &mut warnings), std::iter::empty()).unwrap();
    (String::from_utf8(json.to_vec()).unwrap(), warnings)
}

fn body_of(asked: &Asked) -> Value {
    serde_json::from_str(&sent(asked).0).unwrap()
}

fn said(blocks: Vec<Block>) -> Message {
    Message::Assistant(Reply {
        provider: NAME,
        blocks,
    })
}

fn opaque(json: &Value) -> Block {
    Block::Opaque(Echo::of(json).unwrap())
}

/// What a provider said, byte for byte.
fn raw(json: &str) -> Echo {
    Echo::new(serde_json::value::RawValue::from_string(json.to_owned()).unwrap())
}

fn user(text: &str) -> Message {
    Message::user(text)
}

fn call(id: &str, args: ToolArgs) -> Block {
    Block::Call(ToolCall {
        id: CallIds::default().issue(id),
        name: "bash".to_owned(),
        args,
        echo: None,
    })
}

fn calls(ids: &[&str]) -> Message {
    let block = |id: &&str| call(id, ToolArgs::Json(json!({"command": "ls"})));
    said(ids.iter().map(block).collect())
}

fn results(ids: &[&str], notice: Option<&str>) -> Message {
    Message::ToolResults {
        results: ids
            .iter()
            .map(|id| ToolResult {
                id: CallIds::default().issue(id),
                name: "bash".to_owned(),
                content: vec![Part::Text(format!("out of {id}"))],
                is_error: false,
            })
            .collect(),
        notice: notice.map(str::to_owned),
    }
}

/// Where the cache marks are, as JSON pointers.
fn marks(body: &Value) -> Vec<String> {
    fn walk(value: &Value, path: &str, out: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if fields.contains_key("cache_control") {
                    out.push(path.to_owned());
                }
                for (name, value) in fields {
                    walk(value, &format!("{path}/{name}"), out);
                }
            }
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    walk(item, &format!("{path}/{at}"), out);
                }
            }
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk(body, "", &mut out);
    out
}

#[test]
fn a_whole_conversation_looks_like_this() {
    let thinking = json!({"type": "thinking", "thinking": "hm", "signature": "sig"});
    let redacted = json!({"type": "redacted_thinking", "data": "xyz"});
    let mut first = results(&["toolu_1", "toolu_2"], Some("Half of the turns are used."));
    if let Message::ToolResults { results, .. } = &mut first {
        results[0].content = vec![Part::Text(String::new())];
        results[1].is_error = true;
        results[1].content.push(Part::Image(Image {
            media_type: ImageType::Png,
            base64: "AAAA".into(),
        }));
    }
    let mut request = request(
        "claude-sonnet-4-6",
        vec![
            user("Hi\0"),
            said(vec![
                opaque(&thinking),
                opaque(&redacted),
                Block::text("  \n"),
                Block::text("Looking."),
                call("toolu_1", ToolArgs::Json(json!({"b": 1, "a": 2}))),
                call(
                    "toolu_2",
                    ToolArgs::Malformed {
                        raw: "{".to_owned(),
                        error: "eof".to_owned(),
                    },
                ),
            ]),
            first,
        ],
    );
    request.tool_choice = ToolChoice::None;
    let expected = json!({
        "model": "claude-sonnet-4-6",
        "max_tokens": 32000,
        "stream": true,
        "system": [
            {"type": "text", "text": "Role."},
            {"type": "text", "text": "Rules.", "cache_control": {"type": "ephemeral"}},
        ],
        "tools": [
            {"name": "bash", "description": "bashs", "input_schema": {"type": "object", "properties": {}}},
            {"name": "glob", "description": "globs", "input_schema": {"type": "object", "properties": {}},
                "cache_control": {"type": "ephemeral"}},
        ],
        "tool_choice": {"type": "none"},
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "Hi\u{fffd}", "cache_control": {"type": "ephemeral"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"b": 1, "a": 2}},
                {"type": "tool_use", "id": "toolu_2", "name": "bash", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1"},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": [
                    {"type": "text", "text": "out of toolu_2"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ], "is_error": true},
                {"type": "text", "text": "Half of the turns are used.", "cache_control": {"type": "ephemeral"}},
            ]},
        ],
    });
    assert_eq!(
        sent(&request).0,
        expected.to_string(),
        "also in the order of keys"
    );
}

#[test]
fn each_request_marks_where_the_one_before_marked_and_never_more_than_four() {
    let mut history = vec![user("go")];
    let mut before = String::new();
    for turn in 0..5 {
        let body = body_of(&request("claude-sonnet-4-6", history.clone()));
        let marks = marks(&body);
        assert!(marks.len() <= 4, "{marks:?}");
        assert!(turn == 0 || marks.contains(&before), "{marks:?} {before}");
        let at = body["messages"].as_array().unwrap().len() - 1;
        let last = body["messages"][at]["content"].as_array().unwrap().len() - 1;
        before = format!("/messages/{at}/content/{last}");
        assert!(marks.contains(&before), "{marks:?}");
        let ids: Vec<String> = (0..30).map(|call| format!("t{turn}_{call}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        history.push(calls(&ids));
        history.push(results(&ids, None));
    }
}

#[test]
fn a_longer_conversation_begins_with_the_same_bytes() {
    let strip = |body: &Value| {
        let text = body["messages"].to_string();
        text.replace(",\"cache_control\":{\"type\":\"ephemeral\"}", "")
    };
    let short = vec![user("go"), calls(&["a"]), results(&["a"], None)];
    let mut long = short.clone();
    long.extend([calls(&["b"]), results(&["b"], Some("n"))]);
    let (short, long) = (
        body_of(&request("claude-opus-5", short)),
        body_of(&request("claude-opus-5", long)),
    );
    for part in ["system", "tools"] {
        assert_eq!(short[part].to_string(), long[part].to_string());
    }
    let short = strip(&short);
    assert!(strip(&long).starts_with(short.trim_end_matches(']')));
}

#[test]
fn neighbours_of_one_role_are_joined_and_empty_messages_left_out() {
    let body = body_of(&request(
        "claude-sonnet-4-6",
        vec![
            user("go"),
            said(vec![opaque(&json!({"type": "server_tool_use"}))]),
            said(vec![Block::text("done")]),
            user("more"),
            said(vec![Block::text("")]),
            user("please"),
        ],
    ));
    let shape: Vec<(&str, usize)> = body["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| {
            let blocks = message["content"].as_array().unwrap().len();
            (message["role"].as_str().unwrap(), blocks)
        })
        .collect();
    assert_eq!(shape, [("user", 1), ("assistant", 2), ("user", 2)]);
}

#[test]
fn thinking_levels_follow_the_models_ways() {
    // A model, its level, what is sent of it (a number is a budget), the effort, and the longest answer.
    const TABLE: &str = "
        claude-haiku-4-5            unset   -               -       32000
        claude-haiku-4-5            none    -               -       32000
        claude-haiku-4-5            low     2048            -       34048
        claude-opus-4-5             medium  10000           -       42000
        claude-sonnet-4-5-20250929  high    16384           -       48384
        claude-3-haiku-20240307     low     2048            -       10240
        claude-sonnet-4-20250514    low     2048            -       10240
        claude-sonnet-4-6           none    -               -       32000
        claude-sonnet-4-6           high    adaptive        high    32000
        claude-opus-4-8             high    adaptive        high    32000
        claude-opus-5               none    disabled        -       32000
        claude-haiku-5-5            none    disabled        -       32000
        claude-sonnet-5             medium  adaptive        medium  32000
        claude-sonnet-5-5           none    between_tools   -       32000
        claude-opus-5-5             none    -               low     32000
        claude-fable-5-2            none    -               low     32000
        claude-mythos-5             low     adaptive        low     32000
        claude-newest-9             high    adaptive        high    8192";
    for row in TABLE.trim().lines() {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let [model, level, thinking, effort, max_tokens] = fields[..] else {
            panic!("{row}")
        };
        let mut request = request(model, vec![user("go")]);
        request.thinking = match level {
            "unset" => ThinkingLevel::Unset,
            "none" => ThinkingLevel::None,
            "low" => ThinkingLevel::Low,
            "medium" => ThinkingLevel::Medium,
            "high" => ThinkingLevel::High,
            other => panic!("{other}"),
        };
        let thinking = match (thinking, thinking.parse::<u32>()) {
            ("-", _) => Value::Null,
            ("adaptive", _) => json!({"type": "adaptive", "display": "summarized"}),
            (_, Ok(budget)) => json!({"type": "enabled", "budget_tokens": budget}),
            (other, _) => json!({ "type": other }),
        };
        let effort = match effort {
            "-" => Value::Null,
            effort => json!({ "effort": effort }),
        };
        let body = body_of(&request);
        assert_eq!(body["thinking"], thinking, "{row}");
        assert_eq!(body["output_config"], effort, "{row}");
        assert_eq!(body["max_tokens"].to_string(), max_tokens, "{row}");
    }
}

#[test]
fn max_tokens_keeps_to_the_models_limit() {
    for (model, asked, expected) in [
        ("claude-sonnet-4-6", AnswerSize::AtMost(128_000), 128_000),
        ("claude-sonnet-4-6", AnswerSize::Full, 128_000),
        ("claude-sonnet-4-6", AnswerSize::AtMost(500_000), 128_000),
        ("claude-haiku-4-5", AnswerSize::AtMost(500_000), 64_000),
        ("claude-sonnet-4-6", AnswerSize::AtMost(10), 10),
        ("gateway-model", AnswerSize::Usual, 8192),
        ("gateway-model", AnswerSize::AtMost(20_000), 8192),
        ("gateway-model", AnswerSize::AtMost(100), 100),
    ] {
        let mut request = request(model, vec![user("go")]);
        request.answer = asked;
        assert_eq!(body_of(&request)["max_tokens"], expected, "{model}");
    }
}

#[test]
fn a_short_answer_is_thought_about_as_a_long_one_so_that_the_cache_holds() {
    use ThinkingLevel as L;
    for model in [
        "claude-haiku-4-5",
        "claude-opus-4-5",
        "claude-3-haiku-20240307",
    ] {
        for level in [L::Low, L::Medium, L::High] {
            let thinking = |answer| {
                let mut request = request(model, vec![user("go")]);
                request.thinking = level;
                request.answer = answer;
                body_of(&request)["thinking"].clone()
            };
            let usual = thinking(AnswerSize::Usual);
            assert!(usual["budget_tokens"].is_u64(), "{model}");
            for tokens in [1, 1000, 16_000, 64_000] {
                let other = thinking(AnswerSize::AtMost(tokens));
                assert_eq!(other, usual, "{model} {level:?} {tokens}");
            }
        }
    }
}

#[test]
fn without_tools_and_system_there_is_neither_nor_a_tool_choice() {
    let mut request = request("claude-sonnet-4-6", vec![user("go")]);
    request.system.clear();
    request.tools.clear();
    request.tool_choice = ToolChoice::None;
    let body = body_of(&request);
    for absent in [
        "system",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
    ] {
        assert!(body.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn a_level_that_a_model_cant_follow_is_told() {
    use ThinkingLevel as L;
    for (model, level, told) in [
        ("claude-fable-5-2", L::None, true),
        ("claude-opus-5-5", L::None, true),
        ("claude-fable-9", L::None, true),
        ("claude-sonnet-5-5", L::None, true),
        ("claude-opus-5", L::None, false),
        ("claude-haiku-4-5", L::None, false),
        ("claude-opus-5-5", L::Low, false),
        ("claude-opus-5-5", L::Unset, false),
        ("gateway-model", L::None, false),
    ] {
        let mut request = request(model, vec![user("go")]);
        request.thinking = level;
        let warnings = sent(&request).1;
        assert_eq!(warnings.len(), usize::from(told), "{model} {level:?}");
        if let [(code, words)] = warnings.as_slice() {
            assert_eq!(*code, WarningCode::ThinkingAdjusted);
            assert!(words.contains(model), "{words}");
        }
    }
}

#[test]
fn an_answer_is_never_longer_than_what_can_be_paid_for() {
    use ThinkingLevel as L;
    for (model, level, affordable, max_tokens, budget) in [
        ("claude-sonnet-4-6", L::Unset, 5000, 5000, None),
        ("claude-sonnet-4-6", L::High, 5000, 5000, None),
        ("claude-sonnet-4-6", L::Unset, 500_000, 32_000, None),
        ("claude-haiku-4-5", L::High, 500_000, 48_384, Some(16_384)),
        ("claude-haiku-4-5", L::High, 40_000, 40_000, Some(16_384)),
        ("claude-haiku-4-5", L::High, 17_408, 17_408, Some(16_384)),
        ("claude-haiku-4-5", L::High, 17_407, 17_407, None),
        ("claude-haiku-4-5", L::Low, 5000, 5000, Some(2048)),
        ("claude-haiku-4-5", L::High, 1, 1, None),
    ] {
        let mut request = request(model, vec![user("go")]);
        request.thinking = level;
        request.affordable = Some(affordable);
        let (json, warnings) = sent(&request);
        let body: Value = serde_json::from_str(&json).unwrap();
        let place = format!("{model} {level:?} {affordable}");
        assert_eq!(body["max_tokens"], max_tokens, "{place}");
        assert_eq!(
            body["thinking"]["budget_tokens"].as_u64(),
            budget,
            "{place}"
        );
        let left_out = model == "claude-haiku-4-5" && budget.is_none();
        assert_eq!(warnings.len(), usize::from(left_out), "{place}");
    }
}

#[test]
fn the_budget_of_thinking_does_not_follow_the_money() {
    use ThinkingLevel as L;
    for model in ["claude-haiku-4-5", "claude-3-haiku-20240307"] {
        for level in [L::Low, L::Medium, L::High] {
            let facts = prices::facts(NAME, model);
            let least = facts.least_with_thinking(level).unwrap();
            let thinking = |affordable| {
                let mut request = request(model, vec![user("go")]);
                request.thinking = level;
                request.affordable = Some(affordable);
                body_of(&request)["thinking"].clone()
            };
            let richest = thinking(u32::MAX);
            assert_eq!(richest["type"], "enabled");
            for affordable in (least..40_000).step_by(997) {
                assert_eq!(thinking(affordable), richest, "{model} {affordable}");
            }
            assert_eq!(thinking(least - 1), Value::Null);
        }
    }
}

#[test]
fn documents_pictures_a_schema_and_searches_have_their_places() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let mut request = request(
        "claude-sonnet-4-6",
        vec![Message::User(vec![
            Part::Image(Image {
                media_type: ImageType::Jpeg,
                base64: "AAAA".into(),
            }),
            Part::Document(Document {
                name: "a.pdf".to_owned(),
                base64: "BBBB".into(),
            }),
        ])],
    );
    request.output_schema = Some(schema.clone());
    request.server_tools = vec![ServerTool::WebSearch { max_uses: 3 }];
    request.thinking = ThinkingLevel::Low;
    let body = body_of(&request);
    let mark = json!({"type": "ephemeral"});
    assert_eq!(
        body["output_config"],
        json!({"effort": "low", "format": {"type": "json_schema", "schema": schema}})
    );
    assert_eq!(
        body["tools"][2],
        json!({"type": "web_search_20250305", "name": "web_search", "max_uses": 3,
            "cache_control": mark})
    );
    assert!(body["tools"][1].get("cache_control").is_none());
    assert_eq!(
        body["messages"][0]["content"],
        json!([
            {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}},
            {"type": "document", "title": "a.pdf",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"},
                "cache_control": mark},
        ])
    );
    request.tools.clear();
    request.tool_choice = ToolChoice::None;
    let body = body_of(&request);
    assert_eq!(body["tools"].as_array().unwrap().len(), 1);
    assert_eq!(body["tool_choice"], json!({"type": "none"}));
}

#[test]
fn a_model_that_cant_see_is_told_what_is_left_out() {
    let mut request = request("claude-2.1", vec![results(&["a"], None)]);
    if let [Message::ToolResults { results, .. }] = request.messages.as_mut_slice() {
        results[0].content = vec![Part::Image(Image {
            media_type: ImageType::Png,
            base64: "AAAA".into(),
        })];
    }
    let body = body_of(&request);
    let text = &body["messages"][0]["content"][0]["content"][0]["text"];
    assert!(text.as_str().unwrap().contains("picture"), "{body}");
}

#[test]
fn echoes_go_back_byte_for_byte_to_their_own_provider_alone() {
    let search = r#"{"type":"server_tool_use", "id":"s1","name":"web_search","input":{"n":1.0e5}}"#;
    let cited = r#"{"type":"text","text":"a","citations":[{"url":"u"}]}"#;
    let of = |provider| {
        let text = Block::Text {
            text: "a".to_owned(),
            echo: Some(raw(cited)),
        };
        let blocks = vec![Block::Opaque(raw(search)), text];
        let reply = Message::Assistant(Reply { provider, blocks });
        sent(&request("claude-opus-5", vec![user("go"), reply])).0
    };
    assert!(of("anthropic").contains(&format!("[{search},{cited}]")));
    let other = of("openai");
    assert!(other.contains(r#"[{"type":"text","text":"a"}]"#), "{other}");
}

#[test]
fn nul_is_nowhere_in_a_request() {
    let echo = r#"{"type":"novel","a":"x\u0000\\u0000\u0000"}"#;
    let blocks = vec![
        Block::Opaque(raw(echo)),
        call("t", ToolArgs::Json(json!({"a\0": ["\0b"]}))),
    ];
    let document = Part::Document(Document {
        name: "c\0".to_owned(),
        base64: "AAAA".into(),
    });
    let messages = vec![
        Message::User(vec![document]),
        said(blocks),
        results(&["t"], Some("d\0")),
    ];
    let (json, _) = sent(&request("claude-opus-5", messages));
    assert!(json.contains(r#""x\ufffd\\u0000\ufffd""#), "{json}");
    for text in ["a\u{fffd}", "\u{fffd}b", "c\u{fffd}", "d\u{fffd}"] {
        assert!(json.contains(text), "{text} {json}");
    }
}

#[test]
fn thinking_at_the_end_of_a_reply_is_not_sent_back() {
    let thinking = || Block::Opaque(raw(r#"{"type":"thinking","thinking":"a","signature":"s"}"#));
    let redacted = Block::Opaque(raw(r#"{"type":"redacted_thinking","data":"d"}"#));
    let body = |blocks| {
        sent(&request(
            "claude-opus-5",
            vec![user("go"), said(blocks), user("on")],
        ))
        .0
    };
    let kept = body(vec![thinking(), Block::text("said"), thinking(), redacted]);
    assert_eq!(kept.matches("thinking").count(), 2, "{kept}");
    assert!(kept.contains(r#"{"type":"text","text":"said"}]"#), "{kept}");
    let nothing = body(vec![thinking()]);
    assert!(!nothing.contains("assistant"), "{nothing}");
}
