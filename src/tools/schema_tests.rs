use serde_json::json;

use super::*;

fn spec() -> ToolSpec {
    ToolSpec {
        name: "demo",
        description: String::new(),
        input_schema: json!({
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "timeout_seconds": {"type": "integer"},
                "background": {"type": "boolean"},
                "mode": {"type": "string", "enum": ["content", "files"]}
            },
            "required": ["path"],
            "additionalProperties": false
        }),
    }
}

fn prepared(spec: &ToolSpec, args: &ToolArgs) -> Result<Prepared, String> {
    prepare(spec, args, &Redactor::default())
}

fn accepted(args: Value) -> Value {
    Value::Object(prepared(&spec(), &ToolArgs::Json(args)).unwrap().args)
}

#[test]
fn what_can_only_mean_one_thing_is_accepted() {
    for (given, taken) in [
        (json!({"path": "a"}), json!({"path": "a"})),
        (json!({"path": "a", "mode": null}), json!({"path": "a"})),
        (json!({"file_path": "a"}), json!({"path": "a"})),
        (json!({"path": "a", "file_path": "b"}), json!({"path": "a"})),
        (
            json!({"path": "a", "timeout_seconds": "120", "background": "True"}),
            json!({"path": "a", "timeout_seconds": 120, "background": true}),
        ),
        (
            json!({"path": "a", "timeout_seconds": 5.0}),
            json!({"path": "a", "timeout_seconds": 5}),
        ),
        (
            json!({"path": "a", "timeout": 30_000}),
            json!({"path": "a", "timeout_seconds": 30}),
        ),
        (
            json!({"path": "a", "timeout": 500}),
            json!({"path": "a", "timeout_seconds": 500}),
        ),
        (
            json!({"path": "a", "timeout_ms": 2_000_000}),
            json!({"path": "a", "timeout_seconds": 999}),
        ),
        (json!({"path": 7}), json!({"path": "7"})),
        (
            json!({"path": "a", "mode": "Files"}),
            json!({"path": "a", "mode": "files"}),
        ),
        (
            json!({"path": "a", "output_mode": "files_with_matches"}),
            json!({"path": "a", "mode": "files"}),
        ),
        (
            json!({"path": "a", "timeout_seconds": "", "background": " ", "mode": ""}),
            json!({"path": "a"}),
        ),
        (
            json!({"path": "a", "timeout_seconds": "30.0"}),
            json!({"path": "a", "timeout_seconds": 30}),
        ),
        (
            json!({"Path": "a", "timeoutSeconds": 30, "timeoutMs": 5}),
            json!({"path": "a", "timeout_seconds": 30}),
        ),
        (
            json!({"path": "a", "timeoutMs": 5_000}),
            json!({"path": "a", "timeout_seconds": 5}),
        ),
    ] {
        assert_eq!(accepted(given.clone()), taken, "{given}");
    }
}

#[test]
fn unknown_fields_are_ignored_and_named() {
    let args = ToolArgs::Json(json!({"path": "a", "reason": "x", "description": "y"}));
    let prepared = prepared(&spec(), &args).unwrap();
    assert_eq!(
        prepared.note().as_deref(),
        Some("[ignored unknown arguments: reason, description]")
    );
}

#[test]
fn near_names_are_hinted_at_and_many_are_counted() {
    let args = ToolArgs::Json(json!({"path": "a", "tiemout_seconds": 5, "a\nb": 1}));
    let note = prepared(&spec(), &args).unwrap().note().unwrap();
    assert!(
        note.contains("tiemout_seconds (did you mean `timeout_seconds`?)"),
        "{note}"
    );
    assert!(note.contains("a\\nb"), "{note}");
    let args = ToolArgs::Json(json!({"pathh": "a"}));
    let complaint = prepared(&spec(), &args).unwrap_err();
    assert!(complaint.contains("did you mean `path`?"), "{complaint}");
    let mut many: Map<String, Value> = (0..5_000)
        .map(|n| (format!("field{n}"), Value::from(n)))
        .collect();
    many.insert("path".to_owned(), Value::from("a"));
    let many = ToolArgs::Json(Value::Object(many));
    let note = prepared(&spec(), &many).unwrap().note().unwrap();
    assert!(note.contains("5000 unknown") && note.len() < 1000, "{note}");
    let texts = prepared(&spec(), &many).unwrap().ignored_fields;
    assert_eq!(texts.len(), NAMED);
}

#[test]
fn a_call_with_very_many_arguments_is_refused_at_once() {
    let many: Map<String, Value> = (0..100_000)
        .map(|n| (format!("pathh{n:05}"), json!(1)))
        .collect();
    let why = prepared(&spec(), &ToolArgs::Json(Value::Object(many))).unwrap_err();
    assert!(
        why.contains("there are 100000 arguments, at most 10000"),
        "{why}"
    );
}

#[test]
fn what_a_synonym_was_given_is_never_ignored() {
    for (given, words) in [
        (
            json!({"path": "a", "output_mode": "lines"}),
            "output_mode must be one of content, files",
        ),
        (
            json!({"path": "a", "timeout": "soon"}),
            "timeout must be an integer",
        ),
        (json!({"file_path": ["a"]}), "file_path must be a string"),
    ] {
        let complaint = prepared(&spec(), &ToolArgs::Json(given)).unwrap_err();
        assert!(complaint.contains(words), "{complaint}");
    }
}

#[test]
fn complaints_name_the_field_the_schema_and_what_arrived() {
    for (given, words) in [
        (json!({}), "path is missing"),
        (json!({"path": null}), "path is missing"),
        (json!({"path": ["a"]}), "path must be a string"),
        (
            json!({"path": "a", "timeout_seconds": "soon"}),
            "timeout_seconds must be an integer",
        ),
        (
            json!({"path": "a", "background": 3}),
            "background must be true or false",
        ),
        (
            json!({"path": "a", "mode": "x"}),
            "mode must be one of content, files",
        ),
        (json!(["a"]), "no JSON object"),
    ] {
        let complaint = prepared(&spec(), &ToolArgs::Json(given)).unwrap_err();
        assert!(complaint.contains(words), "{complaint}");
        assert!(
            complaint.contains("\"path\": string, \"timeout_seconds\"?: integer"),
            "{complaint}"
        );
    }
    let cut = ToolArgs::Malformed {
        raw: format!("{{\"path\": \"{}", "x".repeat(1000)),
        error: "EOF while parsing".to_owned(),
    };
    let complaint = prepared(&spec(), &cut).unwrap_err();
    assert!(
        complaint.contains("EOF while parsing") && complaint.len() < 600,
        "{complaint}"
    );
    assert_eq!(example(&spec()), "{\"path\":\"…\"}");
}

#[test]
fn a_search_is_asked_for_as_other_harnesses_have_it() {
    let spec = &*super::super::grep::SPEC;
    for (given, taken) in [
        (
            json!({"output_mode": "files_with_matches", "include": "*.rs", "-i": true}),
            json!({"mode": "files", "glob": "*.rs", "ignore_case": true}),
        ),
        (
            json!({"mode": "files_with_matches"}),
            json!({"mode": "files"}),
        ),
        (
            json!({"-A": 2, "type": "rust"}),
            json!({"context": 2, "glob": "*.rs"}),
        ),
        (json!({"type": "proto"}), json!({"glob": "*.proto"})),
        (
            json!({"files_with_matches": true}),
            json!({"mode": "files"}),
        ),
        (
            json!({"case_sensitive": false}),
            json!({"ignore_case": true}),
        ),
    ] {
        let mut args = given.clone();
        args["pattern"] = json!("x");
        let mut taken = taken.as_object().unwrap().clone();
        taken.insert("pattern".to_owned(), json!("x"));
        assert_eq!(
            prepared(spec, &ToolArgs::Json(args)).unwrap().args,
            taken,
            "{given}"
        );
    }
    let args = json!({"pattern": "x", "output_mode": "tree"});
    let why = prepared(spec, &ToolArgs::Json(args)).unwrap_err();
    assert!(why.contains("output_mode must be one of content"), "{why}");
    let args = json!({"pattern": "x", "head_limit": 5});
    let prepared = prepared(spec, &ToolArgs::Json(args)).unwrap();
    assert_eq!(prepared.ignored_fields, ["head_limit"]);
}

#[test]
fn no_part_of_a_key_is_told() {
    let key = crate::secrets::Secret::new("sandcaster-key-0123456789");
    let redactor = Redactor::new([&key]);
    let key = key.expose();
    let told = |args: &ToolArgs| prepare(&spec(), args, &redactor).unwrap_err();
    for at in (0..220).chain(LOOKED_AT - key.len()..=LOOKED_AT) {
        let before = "x".repeat(at);
        for args in [
            ToolArgs::Malformed {
                raw: format!("{before}{key}"),
                error: "bad".to_owned(),
            },
            ToolArgs::Json(json!([format!("{before}{key}")])),
            ToolArgs::Json(json!({ "path": [format!("{before}{key}")] })),
            ToolArgs::Json(json!({ format!("{before}{key}"): 1 })),
        ] {
            let why = told(&args);
            assert!(!why.contains("sandc"), "{args:?}: {why}");
        }
    }
}

#[test]
fn what_other_harnesses_switch_off_is_off() {
    let spec = &*super::super::grep::SPEC;
    for (given, taken) in [
        (
            json!({"case_sensitive": "true"}),
            json!({"ignore_case": false}),
        ),
        (
            json!({"case_sensitive": "False"}),
            json!({"ignore_case": true}),
        ),
        (
            json!({"caseSensitive": true}),
            json!({"ignore_case": false}),
        ),
        (json!({"-l": false}), json!({})),
        (json!({"-l": "false"}), json!({})),
        (json!({"-l": "true"}), json!({"mode": "files"})),
        (json!({"-c": false}), json!({})),
        (json!({"files_with_matches": false}), json!({})),
        (json!({"-c": false, "-l": true}), json!({"mode": "files"})),
    ] {
        let (mut args, mut wanted) = (given.clone(), taken);
        args["pattern"] = json!("x");
        wanted["pattern"] = json!("x");
        let prepared = prepared(spec, &ToolArgs::Json(args)).unwrap();
        assert_eq!(Value::Object(prepared.args), wanted, "{given}");
    }
    let context = ToolArgs::Json(json!({"pattern": "x", "-C": true}));
    let why = prepared(spec, &context).unwrap_err();
    assert!(why.contains("-C must be an integer"), "{why}");
}

#[test]
fn what_is_missing_is_told_in_the_right_number() {
    let spec = crate::tools::tool("file_edit").unwrap().built.unwrap().spec;
    let complaint = prepared(spec, &ToolArgs::Json(json!({}))).unwrap_err();
    let words = "path and old_string and new_string are missing";
    assert!(complaint.contains(words), "{complaint}");
}

#[test]
fn of_lines_before_and_after_the_larger_number_is_taken() {
    let mut spec = spec();
    spec.input_schema["properties"]["context"] = json!({"type": "integer"});
    for (given, taken) in [
        (json!({"path": "a", "-A": 2, "-B": 5}), 5),
        (json!({"path": "a", "-A": 7, "-B": "5"}), 7),
        (json!({"path": "a", "context": 1, "-C": 3}), 3),
    ] {
        let done = prepared(&spec, &ToolArgs::Json(given)).unwrap();
        assert_eq!((&done.args["context"], done.note()), (&json!(taken), None));
    }
    let twice = json!({"path": "a", "file_path": "b"});
    let note = prepared(&spec, &ToolArgs::Json(twice)).unwrap().note();
    assert!(note.unwrap().contains("file_path (path was given already)"));
}
