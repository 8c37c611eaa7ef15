//! Issue 2, "Bad input": every field, every way to get it wrong, the right code, field and limit.

use sandcaster::config::{Config, QueryRequest};
use sandcaster::error::{ErrorCode, Problem};

use super::{load, local_works};

const INVALID: ErrorCode = ErrorCode::ValidationFailed;
const UNKNOWN: ErrorCode = ErrorCode::ProviderUnknown;
const JSON: ErrorCode = ErrorCode::InvalidJson;
const LATER: ErrorCode = ErrorCode::NotImplemented;

/// What the API does with a body before anything starts.
fn refuse(config: &Config, body: &[u8]) -> Problem {
    let outcome =
        QueryRequest::parse(body).and_then(|request| config.resolve(request, &local_works()));
    match outcome {
        Err(problem) => problem,
        Ok(spec) => panic!("accepted {}: {spec:?}", String::from_utf8_lossy(body)),
    }
}

fn with_key() -> Config {
    load("", &[("ANTHROPIC_API_KEY", "sk-ant-test-0123456789")]).unwrap()
}

/// Code, first field, and a part of its message.
fn assert_refused(body: &[u8], code: ErrorCode, field: &str, says: &str) {
    let problem = refuse(&with_key(), body);
    let shown = String::from_utf8_lossy(body.get(..200.min(body.len())).unwrap_or_default());
    assert_eq!(problem.code, code, "{shown}: {problem:?}");
    let path = problem.details.first().map(|detail| detail.path.as_str());
    assert_eq!(path.unwrap_or_default(), field, "{shown}: {problem:?}");
    let detail = problem
        .details
        .first()
        .map_or(problem.message.as_str(), |d| d.message.as_str());
    let hint = problem.hint.as_deref().unwrap_or_default();
    assert!(
        detail.contains(says) || problem.message.contains(says) || hint.contains(says),
        "{shown}: {says:?} is not said by {problem:?}"
    );
}

/// Rows: the fields beside a good prompt, code, field, what the answer says.
#[rustfmt::skip]
const FIELDS: &[(&str, ErrorCode, &str, &str)] = &[
    (r#""model": 7"#, INVALID, "model", "string, not 7"),
    (r#""model": ["sonnet"]"#, INVALID, "model", "string, not an array of 1"),
    (r#""model": """#, INVALID, "model", "empty"),
    (r#""model": "two words""#, INVALID, "model", "(character 4 of \"two words\" is another)"),
    (r#""model": "sonnet\u0000""#, INVALID, "model", "character 7"),
    (r#""model": "модель""#, INVALID, "model", "letters, digits"),
    (r#""model": "zzz-unheard-of""#, ErrorCode::UnknownModel, "model", ""),

    (r#""maxTurns": "3""#, INVALID, "maxTurns", "from 1 to 1000, not \"3\""),
    (r#""maxTurns": 2.5"#, INVALID, "maxTurns", "from 1 to 1000, not 2.5"),
    (r#""maxTurns": 1e4"#, INVALID, "maxTurns", "from 1 to 1000"),
    (r#""maxTurns": 1e300"#, INVALID, "maxTurns", "from 1 to 1000"),
    (r#""maxTurns": 1e-300"#, INVALID, "maxTurns", "not 1e-300"),
    (r#""maxTurns": 0.0"#, INVALID, "maxTurns", "from 1 to 1000"),
    (r#""maxTurns": -3.0"#, INVALID, "maxTurns", "from 1 to 1000"),
    (r#""maxTurns": 0"#, INVALID, "maxTurns", "from 1 to 1000, not 0"),
    (r#""maxTurns": -1"#, INVALID, "maxTurns", "from 1 to 1000"),
    (r#""maxTurns": 1001"#, INVALID, "maxTurns", "from 1 to 1000"),
    (r#""maxTurns": 99999999999999999999"#, INVALID, "maxTurns", "from 1 to 1000"),
    (r#""maxTurns": true"#, INVALID, "maxTurns", "not true"),
    (r#""maxTurns": [1]"#, INVALID, "maxTurns", "not an array"),
    (r#""maxTurns": {}"#, INVALID, "maxTurns", "not an object"),

    (r#""timeout": "60""#, INVALID, "timeout", "from 5 to 3600"),
    (r#""timeout": 4"#, INVALID, "timeout", "from 5 to 3600"),
    (r#""timeout": 3601"#, INVALID, "timeout", "from 5 to 3600"),
    (r#""timeout": -60"#, INVALID, "timeout", "from 5 to 3600"),
    (r#""timeout": 60.5"#, INVALID, "timeout", "not 60.5"),
    (r#""timeout": 18446744073709551616"#, INVALID, "timeout", "from 5 to 3600"),
    (r#""timeout": false"#, INVALID, "timeout", "not false"),

    (r#""allowedTools": "bash""#, INVALID, "allowedTools", "array"),
    (r#""allowedTools": {"bash": true}"#, INVALID, "allowedTools", "array"),
    (r#""allowedTools": [null]"#, INVALID, "allowedTools[0]", "string, not null"),
    (r#""allowedTools": ["bash", 3]"#, INVALID, "allowedTools[1]", "string"),
    (r#""allowedTools": [""]"#, INVALID, "allowedTools[0]", "empty"),
    (r#""allowedTools": ["bsh"]"#, INVALID, "allowedTools[0]", "did you mean `bash`?"),
    (r#""allowedTools": ["fileRead"]"#, INVALID, "allowedTools[0]", "`file_read`"),
    (r#""allowedTools": ["READ"]"#, INVALID, "allowedTools[0]", "`Read`"),
    (r#""allowedTools": ["launch_rockets"]"#, INVALID, "allowedTools[0]", "is \"launch_rockets\", which is no known tool"),
    (r#""allowedTools": ["spawn_sandbox"]"#, LATER, "allowedTools[0]", "`spawn_sandbox`"),

    (r#""provider": 1"#, INVALID, "provider", "string"),
    (r#""provider": """#, INVALID, "provider", "empty"),
    (r#""provider": "antropic""#, UNKNOWN, "provider", "did you mean `anthropic`?"),
    (r#""provider": "Anthropic""#, UNKNOWN, "provider", "`anthropic`"),
    (r#""provider": "someone-else""#, UNKNOWN, "provider", "is \"someone-else\", which is no known LLM provider"),
    (r#""provider": "bedrock""#, UNKNOWN, "provider", "ANTHROPIC_BASE_URL"),
    (r#""provider": "vertex""#, UNKNOWN, "provider", "not supported"),

    (r#""sandboxProvider": []"#, INVALID, "sandboxProvider", "string"),
    (r#""sandboxProvider": "locl""#, UNKNOWN, "sandboxProvider", "did you mean `local`?"),
    (r#""sandboxProvider": "kubernetes""#, UNKNOWN, "sandboxProvider", "is \"kubernetes\", which is no known sandbox backend"),
    (r#""sandboxProvider": "vercel""#, LATER, "sandboxProvider", "`vercel`"),
    (r#""sandboxProvider": "cloudflare""#, LATER, "sandboxProvider", "`cloudflare`"),

    (r#""thinkingLevel": "hihg""#, INVALID, "thinkingLevel", "one of none, low, medium, high, not \"hihg\"; did you mean `high`?"),
    (r#""thinkingLevel": 2"#, INVALID, "thinkingLevel", "one of none"),
    (r#""maxBudgetUsd": 0"#, INVALID, "maxBudgetUsd", "positive"),
    (r#""maxBudgetUsd": -1"#, INVALID, "maxBudgetUsd", "up to 1000000, not -1"),
    (r#""maxBudgetUsd": 1e-12"#, INVALID, "maxBudgetUsd", "positive"),
    (r#""maxBudgetUsd": 1e300"#, INVALID, "maxBudgetUsd", "up to 1000000"),
    (r#""maxBudgetUsd": "1""#, INVALID, "maxBudgetUsd", "positive"),
    (r#""background": "yes""#, INVALID, "background", "true or false, not \"yes\""),
    (r#""background": 1"#, INVALID, "background", "true or false"),

    (r#""max_turns": 3"#, INVALID, "max_turns", "did you mean `maxTurns`?"),
    (r#""maxturns": 3"#, INVALID, "maxturns", "did you mean `maxTurns`?"),
    (r#""max_budget_usd": 1"#, INVALID, "max_budget_usd", "`maxBudgetUsd`"),
    (r#""allowed_tools": []"#, INVALID, "allowed_tools", "`allowedTools`"),
    (r#""sandbox_provider": "local""#, INVALID, "sandbox_provider", "`sandboxProvider`"),
    (r#""output_format": {}"#, INVALID, "output_format", "`outputFormat`"),
    (r#""anthropic_api_key": "sk-x""#, INVALID, "anthropic_api_key", "environment"),
    (r#""temperature": 1"#, INVALID, "temperature", "unknown"),
    (r#""temperature": null"#, INVALID, "temperature", "unknown"),
    (r#""systemPrompt": null"#, INVALID, "systemPrompt", "sandcaster.json"),
    (r#""model": null, "model": "sonnet""#, INVALID, "model", "twice"),
    (r#""assistantComplete": "full""#, INVALID, "assistantComplete", "unknown"),
    (r#""systemPrompt": "x""#, INVALID, "systemPrompt", "sandcaster.json"),
    (r#""network": "full""#, INVALID, "network", "sandcaster.json"),
    (r#""": 1"#, INVALID, "[\"\"]", "unknown"),
    (r#""a b\u202e": 1"#, INVALID, "[\"a b\\u{202e}\"]", "unknown"),

    (r#""model": "sonnet", "model": "opus""#, INVALID, "model", "twice"),
    (r#""composite": {"a": 1, "a": 2}"#, INVALID, "composite.a", "twice"),

    (r#""outputFormat": {"type": "object"}"#, LATER, "outputFormat", "not implemented"),
    (r#""composite": {"maxSandboxes": 2}"#, LATER, "composite", "not implemented"),
    (r#""branching": {"enabled": true}"#, LATER, "branching", "not implemented"),
    (r#""allowedSkills": []"#, LATER, "allowedSkills", "not implemented"),
    (r#""allowedAgents": []"#, LATER, "allowedAgents", "not implemented"),
    (r#""extraSkills": {}"#, LATER, "extraSkills", "not implemented"),
    (r#""extraAgents": {}"#, LATER, "extraAgents", "not implemented"),
    (r#""apiKeys": {"anthropic": "sk-x"}"#, LATER, "apiKeys", "not implemented"),
    (r#""mcpServers": {}"#, LATER, "mcpServers", "not implemented"),
    // What is wrong wins over what is only not built.
    (r#""outputFormat": {}, "maxTurns": 0"#, INVALID, "maxTurns", "from 1 to 1000"),

    (r#""files": "a.txt""#, INVALID, "files", "array of {name, content}"),
    (r#""files": [null]"#, INVALID, "files[0]", "object with name and content"),
    (r#""files": ["a.txt"]"#, INVALID, "files[0]", "object with name and content"),
    (r#""files": [{"content": "aGk="}]"#, INVALID, "files[0].name", "required"),
    (r#""files": [{"name": "a"}]"#, INVALID, "files[0].content", "required"),
    (r#""files": [{"name": "a", "content": null}]"#, INVALID, "files[0].content", "string, not null"),
    (r#""files": [{"name": "a", "content": {"0": 1}}]"#, INVALID, "files[0].content", "string"),
    (r#""files": [{"name": 1, "content": ""}]"#, INVALID, "files[0].name", "string"),
    (r#""files": [{"name": "", "content": ""}]"#, INVALID, "files[0].name", "empty"),
    (r#""files": [{"name": "a", "content": "a*b="}]"#, INVALID, "files[0].content", "character 2 of 4"),
    (r#""files": [{"name": "a", "content": "aG\r\nk é"}]"#, INVALID, "files[0].content", "character 7 of 7"),
    (r#""files": [{"name": "a", "content": "a\u00a0b="}]"#, INVALID, "files[0].content", "character 2 of 4"),
    (r#""files": [{"name": null, "content": ""}]"#, INVALID, "files[0].name", "string, not null"),
    (r#""files": [{"name": "a", "content": "a"}]"#, INVALID, "files[0].content", "not base64"),
    (r#""files": [{"name": "a", "content": "aGl="}]"#, INVALID, "files[0].content", "not base64"),
    (r#""files": [{"name": "a", "content": "a+_="}]"#, INVALID, "files[0].content", "not base64"),
    (r#""files": [{"name": "a", "content": "", "encoding": "utf8"}]"#, INVALID, "files[0].encoding", "`utf-8`"),
    (r#""files": [{"name": "a", "content": "", "mode": 1}]"#, INVALID, "files[0].mode", "unknown"),
    (r#""files": [{"path": "a", "content": ""}]"#, INVALID, "files[0].path", "`name`"),
    (r#""files": [{"name": "/etc/passwd", "content": ""}]"#, INVALID, "files[0].name", "absolute paths are not allowed: /etc/passwd"),
    (r#""files": [{"name": "C:\\x", "content": ""}]"#, INVALID, "files[0].name", "absolute paths"),
    (r#""files": [{"name": "../x", "content": ""}]"#, INVALID, "files[0].name", "path traversal not allowed: ../x"),
    (r#""files": [{"name": "a/../../x", "content": ""}]"#, INVALID, "files[0].name", "path traversal"),
    (r#""files": [{"name": "a/..", "content": ""}]"#, INVALID, "files[0].name", "path traversal"),
    (r#""files": [{"name": "a\u0000b", "content": ""}]"#, INVALID, "files[0].name", "control characters"),
    (r#""files": [{"name": "a\u202eb", "content": ""}]"#, INVALID, "files[0].name", "control characters"),
    (r#""files": [{"name": "a.", "content": ""}]"#, INVALID, "files[0].name", "dot or blank"),
    (r#""files": [{"name": "x/y", "content": ""}, {"name": "./x//y", "content": ""}]"#, INVALID, "files[1].name", "\"x/y\" and \"./x//y\" are the same file: x/y"),
    (r#""files": [{"name": "x", "content": ""}, {"name": "x/y", "content": ""}]"#, INVALID, "files[1].name", "both a file and a directory"),
    (r#""files": {"x/y": "", "x": ""}"#, INVALID, "files.x", "both a file and a directory"),
    (r#""files": {"a": "", "b/../a": ""}"#, INVALID, "files[\"b/../a\"]", "the same file"),
    (r#""files": {"a": null}"#, INVALID, "files.a", "string, not null"),
    (r#""files": {"a": {"content": ""}}"#, INVALID, "files.a", "string"),
    (r#""files": {"": "x"}"#, INVALID, "files[\"\"]", "path traversal"),
    (r#""files": {"a": "x", "a": "y"}"#, INVALID, "files.a", "twice"),
];

#[test]
fn every_bad_field_is_refused_by_name() {
    for (fields, code, field, says) in FIELDS {
        assert_refused(
            format!(r#"{{"prompt": "hi", {fields}}}"#).as_bytes(),
            *code,
            field,
            says,
        );
    }
}

#[test]
fn every_bad_prompt_is_refused() {
    for (body, says) in [
        ("{}", "required"),
        (r#"{"prompt": null}"#, "string, not null"),
        (r#"{"prompt": 1}"#, "string, not 1"),
        (r#"{"prompt": ["hi"]}"#, "string, not an array"),
        (r#"{"prompt": ""}"#, "empty"),
        (r#"{"prompt": " \n\t "}"#, "blanks"),
        (r#"{"prompt": "\u00a0\u2003"}"#, "blanks"),
        (r#"{"promt": "hi"}"#, "required"),
    ] {
        assert_refused(body.as_bytes(), INVALID, "prompt", says);
    }
}

#[test]
fn what_is_no_json_object_is_refused_with_its_position() {
    let deep = format!(
        r#"{{"prompt": "hi", "composite": {}1{}}}"#,
        "[".repeat(200),
        "]".repeat(200)
    );
    for (body, says) in [
        (&b""[..], "the body is empty"),
        (b"  \n", "the body is empty"),
        (b"null", "must be an object, not null"),
        (b"[]", "must be an object, not an array of 0"),
        (b"\"prompt\"", "must be an object, not a string of length 6"),
        (b"{\"prompt\": \"hi\",}", "line 1 column 17"),
        (b"{\n  \"prompt\": hi\n}", "line 2 column 13"),
        (b"{\"prompt\": \"hi\"", "line 1 column 15"),
        (
            b"{\"prompt\": \"hi\"} {}",
            "trailing characters at line 1 column 18",
        ),
        (b"{\"prompt\": \"h\xffi\"}", "line 1"),
        (b"{\"prompt\": \"\\ud800\"}", "line 1 column 19"),
        (b"{\"prompt\": \"a\tb\"}", "control character"),
        (b"{'prompt': 'hi'}", "line 1 column 2"),
        (
            b"{\"prompt\": \"hi\", \"maxTurns\": 1e999}",
            "number out of range at line 1",
        ),
        (
            b"{\"prompt\": \"hi\", \"maxTurns\": 01}",
            "line 1 column 31",
        ),
        (
            b"{\"prompt\": \"hi\", \"maxTurns\": NaN}",
            "line 1 column 30",
        ),
        (
            b"\xef\xbb\xbf\xef\xbb\xbf{\"prompt\": \"hi\"}",
            "line 1 column 1",
        ),
        (b"\xef\xbb\xbf", "the body is empty"),
        (b"\xff\xfe{\0}\0", "line 1 column 1"),
        (b"@body.json", "curl"),
        (deep.as_bytes(), "recursion limit"),
    ] {
        assert_refused(body, JSON, "", says);
    }
}

#[test]
fn sizes_are_refused_at_their_limits_and_not_before() {
    let config = with_key();
    let accepted = |body: &str| {
        QueryRequest::parse(body.as_bytes())
            .and_then(|request| config.resolve(request, &local_works()))
    };
    let prompt = |chars: usize| format!(r#"{{"prompt": "{}"}}"#, "é".repeat(chars));
    assert_eq!(
        accepted(&prompt(1_000_000)).unwrap().prompt.chars().count(),
        1_000_000
    );
    assert_refused(
        prompt(1_000_001).as_bytes(),
        INVALID,
        "prompt",
        "1000001 characters (limit 1000000)",
    );

    let model = |chars: usize| {
        format!(
            r#"{{"prompt": "x", "model": "claude-{}"}}"#,
            "a".repeat(chars)
        )
    };
    assert!(accepted(&model(193)).is_ok());
    assert_refused(
        model(194).as_bytes(),
        INVALID,
        "model",
        "201 characters (limit 200): \"claude-aaa",
    );

    let tools = |count: usize| {
        format!(
            r#"{{"prompt": "x", "allowedTools": [{}]}}"#,
            vec![r#""bash""#; count].join(",")
        )
    };
    assert_eq!(accepted(&tools(64)).unwrap().tools, ["bash"]);
    assert_refused(
        tools(65).as_bytes(),
        INVALID,
        "allowedTools",
        "65 tools (limit 64)",
    );

    let files = |count: usize| {
        let files: Vec<String> = (0..count).map(|i| format!(r#""f{i}": "x""#)).collect();
        format!(r#"{{"prompt": "x", "files": {{{}}}}}"#, files.join(","))
    };
    assert_eq!(accepted(&files(20)).unwrap().files.len(), 20);
    assert_refused(
        files(21).as_bytes(),
        INVALID,
        "files",
        "too many files: 21 (max 20)",
    );

    let bytes = |count: usize| {
        let (half, rest) = (count / 2, count - count / 2);
        format!(
            r#"{{"prompt": "x", "files": {{"a": "{}", "b": "{}"}}}}"#,
            "x".repeat(half),
            "x".repeat(rest)
        )
    };
    assert!(accepted(&bytes(10_000_000)).is_ok());
    assert_refused(
        bytes(10_000_001).as_bytes(),
        INVALID,
        "files",
        "10000001 bytes",
    );
}

#[test]
fn one_answer_lists_all_faults_up_to_twenty() {
    let body =
        br#"{"prompt": "", "maxTurns": 0, "timeout": "x", "modle": "opus", "provider": "nobody"}"#;
    let problem = refuse(&with_key(), body);
    let paths: Vec<&str> = problem
        .details
        .iter()
        .map(|detail| detail.path.as_str())
        .collect();
    assert_eq!(
        paths,
        ["prompt", "maxTurns", "timeout", "modle", "provider"]
    );
    assert_eq!(problem.code, INVALID);
    assert!(
        problem.message.contains("and 4 more"),
        "{}",
        problem.message
    );

    let names: Vec<String> = (0..50).map(|i| format!(r#""x{i}": 1"#)).collect();
    let problem = refuse(
        &with_key(),
        format!(r#"{{"prompt": "hi", {}}}"#, names.join(",")).as_bytes(),
    );
    assert_eq!(problem.details.len(), 20);
    assert!(problem.details[19].message.contains("30 further faults"));
}

#[test]
fn an_unknown_name_is_shown_with_what_is_built_and_nothing_else() {
    let providers = "anthropic, demo";
    let backends = "e2b, local";
    let tools = "bash, file_read, file_write, file_edit, glob, grep";
    let long = "x".repeat(150);
    let cut = format!("{}…", "x".repeat(100));
    for (name, shown) in [
        ("nobody", "nobody"),
        // Near to what is known and not built.
        ("opnai", "opnai"),
        ("dokcer", "dokcer"),
        ("vercell", "vercell"),
        ("webfetch", "webfetch"),
        ("kill_sandboxes", "kill_sandboxes"),
        ("a\\u001b\\u202eb", "a\\u{1b}\\u{202e}b"),
        (long.as_str(), cut.as_str()),
    ] {
        for (fields, what, known) in [
            (
                format!(r#""provider": "{name}""#),
                "LLM provider",
                providers,
            ),
            (
                format!(r#""sandboxProvider": "{name}""#),
                "sandbox backend",
                backends,
            ),
            (format!(r#""allowedTools": ["{name}"]"#), "tool", tools),
        ] {
            let body = format!(r#"{{"prompt": "hi", {fields}}}"#);
            let problem = refuse(&with_key(), body.as_bytes());
            let expected = format!(r#"is "{shown}", which is no known {what}; known are {known}"#);
            assert!(
                problem.details[0].message.ends_with(&expected),
                "{body}: {problem:?}"
            );
            assert_eq!(problem.hint, None, "{body}");
        }
    }
    let error = load(r#"{"server": {"maxSandboxes": {"dokcer": 1}}}"#, &[]).unwrap_err();
    assert!(!error.contains("docker"), "{error}");
}

#[test]
fn no_answer_repeats_a_prompt_or_a_file() {
    let secret = "hunter2hunter2";
    for body in [
        format!(r#"{{"prompt": "{secret}", "maxTurns": 0}}"#),
        format!(r#"{{"prompt": "{}"}}"#, secret.repeat(100_000)),
        format!(r#"{{"prompt": ["{secret}"]}}"#),
        format!(r#"{{"prompt": "hi", "files": "{secret}"}}"#),
        format!(r#"{{"prompt": "hi", "files": ["{secret}"]}}"#),
        format!(r#"{{"prompt": "hi", "files": [{{"name": "a", "content": "{secret}!"}}]}}"#),
        format!(r#"{{"prompt": "hi", "model" "{secret}"}}"#),
    ] {
        let problem = refuse(&with_key(), body.as_bytes());
        assert!(!format!("{problem:?}").contains("hunter2"), "{problem:?}");
    }
}

#[test]
fn a_body_of_countless_values_is_refused_without_keeping_them() {
    let body = format!(
        r#"{{"prompt": "hi", "composite": [{}1]}}"#,
        "[],".repeat(1_000_000)
    );
    assert_eq!(refuse(&with_key(), body.as_bytes()).code, LATER);
    let names: Vec<String> = (0..30_000).map(|i| format!(r#""n{i}": 1"#)).collect();
    let body = format!(r#"{{{}, "prompt": "hi"}}"#, names.join(","));
    assert_eq!(refuse(&with_key(), body.as_bytes()).code, INVALID);
}
