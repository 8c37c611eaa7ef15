//! Where settings come from, which one wins, and what is refused with its place.

use std::time::Duration;

use sandcaster::config::{Config, Overrides, setting_names};
use sandcaster::spec::Network;
use sandcaster::spec::StoreDurability;

use super::{load, load_in};

fn refused(file: &str) -> String {
    match load(file, &[]) {
        Err(error) => error,
        Ok(_) => panic!("accepted {file}"),
    }
}

fn warnings(file: &str) -> Vec<String> {
    load(file, &[])
        .unwrap_or_else(|error| panic!("{file}: {error}"))
        .warnings
}

#[test]
fn flags_win_over_environment_over_dotenv_over_file_over_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let port = |overrides: &Overrides, env: &[(&str, &str)]| {
        load_in(dir.path(), overrides, env).unwrap().server.port
    };
    let none = Overrides::default();
    assert_eq!(port(&none, &[]), 3000);
    std::fs::write(
        dir.path().join("sandcaster.json"),
        r#"{"server": {"port": 1001}}"#,
    )
    .unwrap();
    assert_eq!(port(&none, &[]), 1001);
    std::fs::write(dir.path().join(".env"), "SANDCASTER_PORT=1002\n").unwrap();
    assert_eq!(port(&none, &[]), 1002);
    assert_eq!(port(&none, &[("SANDCASTER_PORT", "1003")]), 1003);
    assert_eq!(
        port(&none, &[("SANDCASTER_PORT", "")]),
        1002,
        "an empty variable is not set"
    );
    let flag = Overrides {
        port: Some(1004),
        ..Overrides::default()
    };
    assert_eq!(
        port(&flag, &[("SANDCASTER_PORT", "1003"), ("PORT", "1005")]),
        1004
    );
}

#[test]
fn platform_port_counts_below_our_own() {
    assert_eq!(load("", &[("PORT", "8080")]).unwrap().server.port, 8080);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".env"), "SANDCASTER_PORT=4568\n").unwrap();
    for (variables, port) in [
        (&[("PORT", "4567")][..], 4567),
        (&[("PORT", "")], 4568),
        (&[("PORT", "4567"), ("SANDCASTER_PORT", "4569")], 4569),
    ] {
        let config = load_in(dir.path(), &Overrides::default(), variables).unwrap();
        assert_eq!(config.server.port, port, "{variables:?}");
    }
    // What nobody uses is not looked at.
    std::fs::write(dir.path().join(".env"), "SANDCASTER_TIMEOUT=x\n").unwrap();
    let used = [("SANDCASTER_TIMEOUT", "60")];
    assert!(load_in(dir.path(), &Overrides::default(), &used).is_ok());
    let both = [("PORT", "8080"), ("SANDCASTER_PORT", "9090")];
    assert_eq!(
        load(r#"{"server": {"port": 1}}"#, &both)
            .unwrap()
            .server
            .port,
        9090
    );
}

#[test]
fn a_kubernetes_service_link_is_no_port() {
    let link = ("SANDCASTER_PORT", "tcp://10.0.0.7:3000");
    let config = load("", &[link]).unwrap();
    assert_eq!(config.server.port, 3000);
    assert!(
        config.warnings[0].contains("Kubernetes"),
        "{:?}",
        config.warnings
    );
}

#[test]
fn every_setting_of_the_file_is_taken() {
    let config = load(
        r#"{"$schema": "x", "systemPrompt": "You are a clerk.", "systemPromptAppend": "Bye.", "model": "opus",
            "maxTurns": 5, "timeout": 30, "allowedTools": ["bash"], "provider": "anthropic",
            "sandboxProvider": "local", "thinkingLevel": "low", "template": "t", "network": "none",
            "maxBudgetUsd": 2.5, "sandboxStart": "lazy", "disconnectGraceSecs": 30,
            "storeDurability": "full", "modelAliases": {"fast": "claude-haiku-4-5"},
            "server": {"host": "::1", "port": 0, "dataDir": "runs", "allowedHosts": ["Box.lan"],
              "allowedOrigins": ["https://app.example.com"], "maxConcurrentRuns": 7,
              "maxSandboxes": {"local": 2, "e2b": 9}, "heartbeatSecs": 5,
              "retentionDays": 7, "maxStoredRuns": 500},
            "local": {"memoryMb": 2048, "diskMb": 100, "maxProcesses": 64, "hostUid": 1000,
              "readOnlyPaths": ["/opt/tools"]}}"#,
        &[],
    )
    .unwrap();
    assert_eq!(config.warnings, [""; 0]);
    let Config {
        server,
        project,
        local,
        ..
    } = &config;
    assert_eq!(
        project.system_prompt.role.as_deref(),
        Some("You are a clerk.")
    );
    assert_eq!(project.system_prompt.append.as_deref(), Some("Bye."));
    assert_eq!(project.network, Some(Network::None));
    assert_eq!(config.store_durability, StoreDurability::Full);
    assert_eq!(project.model_aliases["fast"], "claude-haiku-4-5");
    assert_eq!((server.host.as_str(), server.port), ("::1", 0));
    assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("runs"));
    assert_eq!(server.allowed_hosts, ["box.lan"]);
    assert_eq!(server.allowed_origins, ["https://app.example.com"]);
    assert_eq!(server.max_concurrent_runs, 7);
    assert_eq!(
        (server.max_sandboxes["local"], server.max_sandboxes["e2b"]),
        (2, 9)
    );
    assert_eq!(server.heartbeat, Duration::from_secs(5));
    assert_eq!(server.retention, Some(Duration::from_hours(7 * 24)));
    assert_eq!(server.max_stored_runs, 500);
    assert_eq!(
        (
            local.memory_mb,
            local.disk_mb,
            local.max_processes,
            local.host_uid
        ),
        (2048, 100, 64, 1000)
    );
    assert_eq!(
        local.read_only_paths,
        [std::path::PathBuf::from("/opt/tools")]
    );
}

#[test]
fn runs_are_kept_for_ever_where_that_is_asked_for() {
    let default = load("", &[]).unwrap().server;
    assert_eq!(default.retention, Some(Duration::from_hours(30 * 24)));
    assert_eq!(default.max_stored_runs, 100_000);
    let below = load("", &[("SANDCASTER_RETENTION_DAYS", "-1")]).unwrap_err();
    assert!(below.ends_with("not -1"), "{below}");
    let kept = load("", &[("SANDCASTER_RETENTION_DAYS", "0")]).unwrap();
    assert_eq!(kept.server.retention, None);
}

/// For each setting, by its place in the file, a value that is not its default.
const OTHER_VALUES: &[(&str, &str)] = &[
    ("model", r#""opus""#),
    ("maxTurns", "7"),
    ("timeout", "60"),
    ("allowedTools", r#"["Bash", "read_file"]"#),
    ("provider", r#""anthropic""#),
    ("sandboxProvider", r#""local""#),
    ("thinkingLevel", r#""low""#),
    ("template", r#""base""#),
    ("network", r#""none""#),
    ("maxBudgetUsd", "0.5"),
    ("sandboxStart", r#""lazy""#),
    ("disconnectGraceSecs", "61"),
    ("storeDurability", r#""full""#),
    ("server.host", r#""::1""#),
    ("server.port", "4567"),
    ("server.dataDir", r#""runs""#),
    ("server.allowedHosts", r#"["a.example", "b.example"]"#),
    (
        "server.allowedOrigins",
        r#"["https://a.example", "http://localhost:5173"]"#,
    ),
    ("server.maxConcurrentRuns", "8"),
    ("server.heartbeatSecs", "2"),
    ("server.retentionDays", "9"),
    ("server.maxStoredRuns", "10"),
    ("server.maxSandboxes.e2b", "3"),
    ("local.memoryMb", "4096"),
    ("local.diskMb", "300"),
    ("local.maxProcesses", "64"),
    ("local.hostUid", "1001"),
    ("local.readOnlyPaths", r#"["/opt/a", "/opt/b"]"#),
];

/// The variable that a place in the file should have by the rule for names.
fn by_rule(path: &str) -> String {
    let name = path.strip_prefix("server.").unwrap_or(path);
    let mut variable = String::from("SANDCASTER_");
    for letter in name.chars() {
        match letter {
            '.' => variable.push('_'),
            letter if letter.is_uppercase() => variable.extend(['_', letter]),
            letter => variable.push(letter.to_ascii_uppercase()),
        }
    }
    variable
}

#[test]
fn every_setting_has_its_variable_which_means_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let read = |file: Option<&str>, variables: &[(&str, &str)]| {
        let path = dir.path().join("sandcaster.json");
        match file {
            Some(text) => std::fs::write(path, text).unwrap(),
            None => drop(std::fs::remove_file(path)),
        }
        let mut config = load_in(dir.path(), &Overrides::default(), variables).unwrap();
        config.file = None;
        format!("{config:?}")
    };
    let default = read(None, &[]);
    for (path, variable) in setting_names() {
        if path.is_empty() {
            let value = if variable.ends_with("FORMAT") {
                "json"
            } else {
                "debug"
            };
            assert_ne!(read(None, &[(variable, value)]), default, "{variable}");
            continue;
        }
        if variable.is_empty() {
            continue;
        }
        let path = path.replace("maxSandboxes", "maxSandboxes.e2b");
        let variable = variable.replace("<BACKEND>", "E2B");
        let right = match path.as_str() {
            "server.allowedOrigins" => "SANDCASTER_CORS_ORIGINS".to_owned(),
            "server.port" if variable == "PORT" => "PORT".to_owned(),
            path => by_rule(path),
        };
        assert_eq!(variable, right, "{path}");
        let other = OTHER_VALUES.iter().find(|(known, _)| *known == path);
        let (_, json) = other.unwrap_or_else(|| panic!("{path} has no row here"));
        let mut file = (*json).to_owned();
        for name in path.rsplit('.') {
            file = format!(r#"{{"{name}": {file}}}"#);
        }
        let text: String = json.chars().filter(|c| !"[]\"".contains(*c)).collect();
        let from_file = read(Some(&file), &[]);
        assert_ne!(from_file, default, "{path}");
        assert_eq!(read(None, &[(&variable, &text)]), from_file, "{variable}");
    }
}

#[test]
fn of_a_file_full_of_faults_twenty_are_told_and_the_rest_counted() {
    let many = |count: usize, field: &str| {
        let fields: Vec<String> = (0..count)
            .map(|at| field.replace('#', &at.to_string()))
            .collect();
        format!("{{{}}}", fields.join(","))
    };
    let told = warnings(&many(9_000, r#""zzzzzz#": 1"#));
    assert_eq!(told.len(), 20);
    assert!(told[19].contains("8980 more"), "{}", told[19]);
    let error = refused(&format!(r#"{{"server": {}}}"#, many(30, r#""port": -#"#)));
    assert_eq!(error.lines().count(), 20, "{error}");
    let error = refused(&many(10_001, r#""zzzzzz#": 1"#));
    assert!(error.contains("more than 10000 values"), "{error}");
}

#[test]
fn wrong_values_stop_the_start_with_file_position_and_field() {
    for (file, says) in [
        (
            "{\n  \"maxTurns\": 0\n}",
            "sandcaster.json:2:15: `maxTurns` must be an integer from 1 to 1000",
        ),
        (
            "{\"é\": 1, \"timeout\": \"x\"}",
            "sandcaster.json:1:22: `timeout`",
        ),
        (
            "{\"server\": {\n\"port\": 70000}}",
            "sandcaster.json:2:9: `server.port`",
        ),
        (
            r#"{"server": 1}"#,
            "sandcaster.json:1:12: `server` must be an object",
        ),
        (
            r#"{"allowedTools": ["bash", "raed"]}"#,
            "sandcaster.json:1:27: `allowedTools[1]`",
        ),
        (
            r#"{"allowedTools": ["bash", "Raed"]}"#,
            "did you mean `Read`?",
        ),
        (r#"{"provider": "anthropics"}"#, "did you mean `anthropic`?"),
        (r#"{"sandboxProvider": "lokal"}"#, "did you mean `local`?"),
        (
            r#"{"sandboxStart": "early"}"#,
            "one of eager, lazy, not \"early\"",
        ),
        (
            r#"{"network": "some"}"#,
            "must be one of full, none, not \"some\"",
        ),
        (
            r#"{"systemPrompt": {"apend": "x"}}"#,
            "`systemPrompt.apend` is unknown; did you mean `append`?",
        ),
        (r#"{"systemPrompt": 1}"#, "must be a string, not 1"),
        (r#"{"modelAliases": {"a b": "x"}}"#, "modelAliases"),
        (r#"{"modelAliases": {"a": 1}}"#, "`modelAliases.a`"),
        (
            r#"{"server": {"maxSandboxes": {"loacl": 1}}}"#,
            "did you mean `local`?",
        ),
        (
            r#"{"server": {"maxSandboxes": {"local": 0}}}"#,
            "`server.maxSandboxes.local`",
        ),
        (r#"{"server": {"allowedOrigins": ["*"]}}"#, "exact origin"),
        (
            r#"{"server": {"allowedOrigins": ["https://a.example/"]}}"#,
            "exact origin",
        ),
        (
            r#"{"server": {"allowedHosts": ["http://a.example"]}}"#,
            "host name",
        ),
        (
            r#"{"server": {"host": "0.0.0.0:80"}}"#,
            "like 127.0.0.1 or 0.0.0.0, not \"0.0.0.0:80\"",
        ),
        (
            r#"{"server": {"retentionDays": -1}}"#,
            "`server.retentionDays` must be an integer from 0 to 36500",
        ),
        (r#"{"server": {"retentionDays": 0.5}}"#, "from 0 to 36500"),
        (
            r#"{"server": {"maxStoredRuns": 0}}"#,
            "`server.maxStoredRuns` must be an integer from 1",
        ),
        (r#"{"local": {"hostUid": 0}}"#, "`local.hostUid`"),
        (
            r#"{"local": {"readOnlyPaths": ["opt"]}}"#,
            "absolute path without .., not \"opt\"",
        ),
        (
            r#"{"model": "a", "model": "b"}"#,
            "sandcaster.json:1:16: `model` is given twice",
        ),
        ("[]", "sandcaster.json:1:1: must be an object"),
        (" ", "sandcaster.json:1:1: invalid JSON"),
        (
            "{\n  // note\n}",
            "sandcaster.json:2:3: invalid JSON: key must be a string (comments",
        ),
        ("{\"a\": 1,\n}", "sandcaster.json:2:1: invalid JSON"),
    ] {
        let error = refused(file);
        assert!(error.contains(says), "{file}: {error}");
    }
    // For the helper an empty text is no file.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("sandcaster.json"), "").unwrap();
    let error = load_in(dir.path(), &Overrides::default(), &[]).unwrap_err();
    assert!(
        error.contains("sandcaster.json:1:1: invalid JSON"),
        "{error}"
    );
    let both = refused(r#"{"maxTurns": 0, "timeout": 0}"#);
    assert_eq!(both.lines().count(), 2, "{both}");
}

#[test]
fn unknown_fields_are_warned_about_with_the_nearest_name() {
    for (file, says) in [
        (
            "{\n  \"maxTurn\": 3\n}",
            "sandcaster.json:2:3: unknown field `maxTurn` is ignored; did you mean `maxTurns`?",
        ),
        (r#"{"max_turns": 3}"#, "did you mean `maxTurns`?"),
        (r#"{"starter": "x"}"#, "a starter's own fields"),
        (r#"{"sandbox": "e2b"}"#, "did you mean `sandboxProvider`?"),
        (r#"{"port": 3}"#, "did you mean `server.port`?"),
        (r#"{"server": {"prot": 3}}"#, "did you mean `server.port`?"),
        (r#"{"baseUrl": "http://x"}"#, "ANTHROPIC_BASE_URL"),
        (r#"{"apiKeys": {}}"#, "environment"),
        (r#"{"zzzzzzzz": 1}"#, "unknown field `zzzzzzzz` is ignored"),
        (
            r#"{"outputFormat": {}}"#,
            "`outputFormat` is not implemented yet",
        ),
        (
            r#"{"skillsDir": "./skills"}"#,
            "`skillsDir` is not implemented yet",
        ),
        (r#"{"chat": {}}"#, "`chat` is not implemented yet"),
        (r#"{"network": "allow"}"#, "sandboxes get no network"),
        (
            r#"{"network": {"allow": ["x"]}}"#,
            "sandboxes get no network",
        ),
        (
            r#"{"sandboxProvider": "vercel"}"#,
            "`vercel`, which is not implemented yet",
        ),
        (
            r#"{"allowedTools": ["spawn_sandbox"]}"#,
            "not implemented yet: spawn_sandbox",
        ),
        (r#"{"systemPrompt": {"preset": "x"}}"#, "`preset`"),
        (r#"{"local": {"memoryMb": 512}}"#, "run out of memory"),
    ] {
        let warnings = warnings(file);
        assert_eq!(warnings.len(), 1, "{file}: {warnings:?}");
        assert!(warnings[0].contains(says), "{file}: {warnings:?}");
    }
}

#[test]
fn the_file_of_a_flag_must_exist_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let flag = |name: &str| Overrides {
        config: Some(name.into()),
        ..Overrides::default()
    };
    let error = load_in(dir.path(), &flag("other.json"), &[]).unwrap_err();
    assert!(error.contains("other.json can't be read"), "{error}");
    std::fs::write(dir.path().join("other.json"), r#"{"maxTurns": 4}"#).unwrap();
    assert_eq!(
        load_in(dir.path(), &flag("other.json"), &[])
            .unwrap()
            .project
            .max_turns,
        4
    );
    std::fs::create_dir(dir.path().join("sandcaster.json")).unwrap();
    let error = load_in(dir.path(), &Overrides::default(), &[]).unwrap_err();
    assert!(error.contains("sandcaster.json can't be read"), "{error}");
    std::fs::write(dir.path().join("latin.json"), b"{\n\"model\": \"\xe9\"}").unwrap();
    let error = load_in(dir.path(), &flag("latin.json"), &[]).unwrap_err();
    assert!(error.contains("latin.json:2:11: not UTF-8"), "{error}");
}

#[test]
fn null_for_a_setting_is_an_absent_one_and_a_mark_before_the_file_is_skipped() {
    let nulls: Vec<String> = setting_names()
        .map(|(path, _)| path)
        .filter(|path| !path.is_empty() && !path.contains('.'))
        .chain(["composite", "outputFormat", "server", "local"])
        .map(|name| format!(r#""{name}": null"#))
        .collect();
    for text in [
        format!("\u{feff}{{{}}}", nulls.join(", ")),
        r#"{"server": {"port": null, "maxSandboxes": {"e2b": null}, "drainSecs": null}, "local": {"diskMb": null}}"#
            .to_owned(),
        r#"{"systemPrompt": {"append": null, "preset": null}, "maxTurns": 100.0}"#.to_owned(),
    ] {
        let config = load(&text, &[]).unwrap();
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let expected = load("{}", &[]).unwrap();
        let shown = |config: &Config| format!("{:?}{:?}", config.server, config.project);
        assert_eq!(shown(&config), shown(&expected), "{text}");
    }
    for (text, says) in [
        (r#"{"modelAliases": {"a": null}}"#, "string, not null"),
        (
            r#"{"server": {"maxSandboxes": {"x": null}}}"#,
            "no sandbox backend",
        ),
        ("\u{feff}{\n\"maxTurns\": 0}", "sandcaster.json:2:13"),
    ] {
        let error = load(text, &[]).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn misspelt_variables_are_told() {
    let config = load(
        "",
        &[
            ("SANDCASTER_APIKEY", "x"),
            ("SANDCASTER_MAX_TURN", "3"),
            ("SANDCASTER_SHARED", "/x"),
            ("SANDCASTER_NOTES", "1"),
        ],
    )
    .unwrap();
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("SANDCASTER_API_KEY"));
    assert!(config.warnings[1].contains("SANDCASTER_MAX_TURNS"));
}

#[test]
fn base_urls_come_from_the_environment_and_are_checked() {
    let config = load("", &[("ANTHROPIC_BASE_URL", "http://127.0.0.1:9/")]).unwrap();
    assert_eq!(config.base_urls["ANTHROPIC_BASE_URL"], "http://127.0.0.1:9");
    let error = load("", &[("ANTHROPIC_BASE_URL", "http://user:hunter2@gateway")]).unwrap_err();
    assert!(
        error.contains("ANTHROPIC_BASE_URL") && !error.contains("hunter2"),
        "{error}"
    );
    let plain = ("ANTHROPIC_BASE_URL", "http://gateway.internal/v1");
    assert!(load("", &[plain]).is_err());
    assert!(load("", &[plain, ("SANDCASTER_ALLOW_INSECURE_BASE_URL", "1")]).is_ok());
}

#[test]
fn the_example_file_is_right() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/sandcaster.json.example");
    let config = load(&std::fs::read_to_string(path).unwrap(), &[]).unwrap();
    assert_eq!(config.warnings, [""; 0]);
    assert_eq!(config.project.model.as_deref(), Some("sonnet"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(128))]

    #[test]
    fn any_file_is_taken_or_refused_with_a_place(
        file in "\\PC{0,40}|\\{\"(server|local|model|timeout|network|systemPrompt|x)\": ?[\\[\\]{}0-9a-z\",: -]{0,30}\\}?",
        dotenv in "([A-Z_]{0,8}=?[ \"'$a-z#]{0,8}\n?){0,3}",
    ) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("sandcaster.json"), &file).unwrap();
        std::fs::write(dir.path().join(".env"), &dotenv).unwrap();
        if let Err(error) = load_in(dir.path(), &Overrides::default(), &[]) {
            proptest::prop_assert!(error.starts_with("sandcaster.json:") || error.starts_with(".env"), "{}", error);
        }
    }
}
