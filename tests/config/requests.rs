//! What is accepted, and how it is understood.

use proptest::prelude::*;
use sandcaster::config::{QueryRequest, Usable, request_fields};
use sandcaster::spec::{NanoUsd, ThinkingLevel};

use super::{load, local_works};

fn parse(body: &str) -> QueryRequest {
    QueryRequest::parse(body.as_bytes()).unwrap_or_else(|problem| panic!("{body}: {problem:?}"))
}

#[test]
fn every_field_of_a_request_is_taken() {
    let request = parse(
        r#"{"prompt": "Compare", "model": "anthropic/claude-sonnet-4-6", "maxTurns": 30, "timeout": 3600,
            "files": [{"name": "data.csv", "content": "YSxi"}], "allowedTools": ["Read", "read_file", "bash"],
            "provider": "anthropic", "sandboxProvider": "local", "thinkingLevel": "low",
            "maxBudgetUsd": 0.25, "background": true}"#,
    );
    assert_eq!(request.prompt, "Compare");
    assert_eq!(
        request.model.as_deref(),
        Some("anthropic/claude-sonnet-4-6")
    );
    assert_eq!(request.max_turns, Some(30));
    assert_eq!(request.timeout_secs, Some(3600));
    assert_eq!(request.files[0].path.as_str(), "data.csv");
    assert_eq!(request.files[0].bytes, "a,b");
    assert_eq!(
        request.allowed_tools.as_deref(),
        Some(&["file_read", "bash"][..])
    );
    assert_eq!(request.provider, Some("anthropic"));
    assert_eq!(request.sandbox_provider, Some("local"));
    assert_eq!(request.thinking_level, Some(ThinkingLevel::Low));
    assert_eq!(request.max_budget, Some(NanoUsd(250_000_000)));
    assert!(request.background);
}

#[test]
fn tools_have_three_vocabularies() {
    let request = parse(
        r#"{"prompt": "x", "allowedTools": ["Bash", "read_file", "Write", "file_edit", "Glob", "grep"]}"#,
    );
    let tools = request.allowed_tools.unwrap();
    assert_eq!(
        tools,
        [
            "bash",
            "file_read",
            "file_write",
            "file_edit",
            "glob",
            "grep"
        ]
    );
    assert_eq!(
        parse(r#"{"prompt": "x", "allowedTools": []}"#).allowed_tools,
        Some(vec![])
    );
    assert_eq!(parse(r#"{"prompt": "x"}"#).allowed_tools, None);
}

#[test]
fn the_smallest_request_says_nothing_else() {
    let expected = QueryRequest {
        prompt: "x".to_owned(),
        ..QueryRequest::default()
    };
    assert_eq!(parse(r#" {"prompt": "x"} "#), expected);
}

#[test]
fn null_for_an_optional_field_is_an_absent_one() {
    let nulls: Vec<String> = request_fields()
        .filter(|name| *name != "prompt")
        .chain([
            "outputFormat",
            "composite",
            "branching",
            "mcpServers",
            "resume",
        ])
        .map(|name| format!(r#""{name}": null"#))
        .collect();
    let body = format!(r#"{{"prompt": "x", {}}}"#, nulls.join(", "));
    assert_eq!(parse(&body), parse(r#"{"prompt": "x"}"#));
}

#[test]
fn an_integer_may_be_written_with_an_empty_fraction() {
    for (written, meant) in [("30.0", 30), ("3e1", 30), ("0.3e2", 30), ("1000.000", 1000)] {
        let request = parse(&format!(r#"{{"prompt": "x", "maxTurns": {written}}}"#));
        assert_eq!(request.max_turns, Some(meant), "{written}");
    }
    let request = parse(r#"{"prompt": "x", "timeout": 60.0}"#);
    assert_eq!(request.timeout_secs, Some(60));
}

#[test]
fn a_byte_order_mark_before_a_body_is_skipped() {
    assert_eq!(
        parse("\u{feff}{\"prompt\": \"x\"}"),
        parse(r#"{"prompt": "x"}"#)
    );
}

#[test]
fn an_exponent_of_any_length_is_refused_in_no_time() {
    let digits = "9".repeat(4 << 20);
    for sign in ["", "-"] {
        let body = format!(r#"{{"prompt": "x", "maxTurns": 1e{sign}{digits}}}"#);
        let problem = QueryRequest::parse(body.as_bytes()).unwrap_err();
        assert!(problem.message.len() < 200, "{problem}");
    }
}

fn json_value() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map("[a-zA-Z_./]{0,8}|name|content", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn body() -> impl Strategy<Value = serde_json::Value> {
    let field = prop::sample::select(vec![
        "prompt",
        "model",
        "maxTurns",
        "timeout",
        "files",
        "allowedTools",
        "provider",
        "background",
        "sandboxProvider",
        "thinkingLevel",
        "maxBudgetUsd",
        "outputFormat",
        "max_turns",
        "other",
    ]);
    let value = prop_oneof![
        3 => json_value(),
        1 => prop::sample::select(vec!["x", "demo", "sonnet", "anthropic", "local", "low"])
            .prop_map(serde_json::Value::from),
        1 => (1_i64..100).prop_map(serde_json::Value::from),
    ];
    prop::collection::vec((field, value), 0..5).prop_map(|fields| {
        let fields = fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        let prompt = ("prompt".to_owned(), serde_json::Value::from("hi"));
        serde_json::Value::Object(std::iter::once(prompt).chain(fields).collect())
    })
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(QueryRequest::parse(&bytes).is_err());
    }

    #[test]
    fn any_object_is_accepted_or_refused_with_a_reason(body in body()) {
        let config = load("", &[("ANTHROPIC_API_KEY", "sk-ant-test-0123456789")]).unwrap();
        for usable in [local_works(), Usable::default()] {
            let request = QueryRequest::parse(body.to_string().as_bytes());
            match request.and_then(|request| config.resolve(request, &usable)) {
                Ok(spec) => {
                    prop_assert!((1..=1000).contains(&spec.max_turns));
                    prop_assert!((5..=3600).contains(&spec.timeout.as_secs()));
                    prop_assert!(!spec.prompt.trim().is_empty());
                }
                Err(problem) => {
                    prop_assert!(!problem.message.is_empty());
                    prop_assert!(problem.details.len() <= 20);
                }
            }
        }
    }

    #[test]
    fn cutting_a_good_body_anywhere_is_invalid_json(cut in 1_usize..60) {
        let body = br#"{"prompt": "hi", "files": {"a": "b"}, "allowedTools": []}"#;
        if cut < body.len() {
            let problem = QueryRequest::parse(&body[..cut]).unwrap_err();
            prop_assert_eq!(problem.code.as_str(), "INVALID_JSON");
        }
    }
}
