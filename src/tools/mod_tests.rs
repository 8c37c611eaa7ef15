use super::*;

#[test]
fn names_in_configs_are_matched_exactly() {
    for (name, ours) in [
        ("bash", "bash"),
        ("Bash", "bash"),
        ("read_file", "file_read"),
        ("Read", "file_read"),
        ("write_file", "file_write"),
        ("Write", "file_write"),
        ("Edit", "file_edit"),
        ("Glob", "glob"),
        ("Grep", "grep"),
    ] {
        assert_eq!(tool(name).map(|def| def.name), Some(ours), "{name}");
    }
    assert!(tool("BASH").is_none());
    assert!(tool("edit").is_none());
}

#[test]
fn names_that_models_call_are_mapped_generously() {
    let enabled = ["bash", "file_read"];
    for name in ["bash", " Bash ", "BASH", "functions.bash", "Functions.Bash"] {
        let Called::Tool(def, _) = resolve_called(name, &enabled) else {
            panic!("{name}")
        };
        assert_eq!(def.name, "bash");
    }
    assert!(matches!(
        resolve_called("read_FILE", &enabled),
        Called::Tool(_, _)
    ));
    assert!(matches!(
        resolve_called("Edit", &enabled),
        Called::NotAllowed("file_edit")
    ));
    assert!(matches!(
        resolve_called("WebSearch", &enabled),
        Called::NotAllowed("web_search")
    ));
    for name in ["", "functions.", "bash2", "fünctions.bash", "python"] {
        assert!(matches!(resolve_called(name, &enabled), Called::Unknown));
    }
}

#[test]
fn descriptions_are_short_and_schemas_of_the_common_subset() {
    let mut chars = 0;
    for built in TOOLS.iter().filter_map(|def| Some((def.name, def.built?))) {
        let spec = built.1.spec;
        assert_eq!(spec.name, built.0);
        let words = spec.description.split_whitespace().count();
        assert!(words <= 120, "{}: {words} words", spec.name);
        assert!(!spec.description.contains("  "), "{}", spec.name);
        chars += spec.description.len() + spec.input_schema.to_string().len() + spec.name.len();
        check_subset(&spec.input_schema);
    }
    assert!(chars / 4 <= 2_000, "about {} tokens", chars / 4);
    let first: Vec<&str> = TOOLS.iter().take(6).map(|def| def.name).collect();
    assert_eq!(
        first,
        [
            "bash",
            "file_read",
            "file_write",
            "file_edit",
            "glob",
            "grep"
        ]
    );
}

fn check_subset(schema: &serde_json::Value) {
    let Some(object) = schema.as_object() else {
        return;
    };
    for (key, value) in object {
        match key.as_str() {
            "properties" => value.as_object().unwrap().values().for_each(check_subset),
            "items" => check_subset(value),
            "type" | "required" | "description" | "enum" | "additionalProperties" => {}
            other => panic!("{other} is not understood by every provider"),
        }
    }
}
