//! Keys: what is asked of them, and that they are never shown.

use sandcaster::config::Overrides;

use super::{load, load_in};

#[test]
fn a_wrong_value_of_a_variable_is_shown_but_never_a_secret() {
    let key = "sk-ant-0123456789abcdef";
    let long = format!("sk-ant-{}", "0123456789".repeat(20));
    for (variables, says) in [
        (
            &[("SANDCASTER_TIMEOUT", "5 minutes")][..],
            "SANDCASTER_TIMEOUT must be an integer from 5 to 3600, not \"5 minutes\"",
        ),
        (
            &[("PORT", "-1")],
            "PORT must be an integer from 0 to 65535, not -1",
        ),
        (
            &[("SANDCASTER_CORS_ORIGINS", "https://a.example, *")],
            "SANDCASTER_CORS_ORIGINS[1] must be an exact origin",
        ),
        (
            &[("SANDCASTER_PORT", key), ("ANTHROPIC_API_KEY", key)],
            "not \"[redacted]\"",
        ),
        (
            &[("SANDCASTER_TIMEOUT", &long), ("E2B_API_KEY", &long)],
            "not \"[redacted]…\"",
        ),
        // Refused itself, and standing in the wrong place too.
        (
            &[
                ("SANDCASTER_TIMEOUT", "hunter2 hunter2 hunter2"),
                ("SANDCASTER_API_KEY", "hunter2 hunter2 hunter2"),
            ],
            "not \"[redacted]\"",
        ),
    ] {
        let error = load("", variables).unwrap_err();
        assert!(error.contains(says), "{error}");
        assert!(
            !error.contains("012345") && !error.contains("hunter2"),
            "{error}"
        );
    }
}

#[test]
fn api_keys_are_checked_before_anything_starts() {
    let key = "0123456789abcdef0123456789abcdef";
    let config = load("", &[("SANDCASTER_API_KEY", key)]).unwrap();
    assert_eq!(config.server.api_keys.len(), 1);
    assert_eq!(config.warnings, [""; 0]);
    let rotated = format!("{key},{key}2");
    assert_eq!(
        load("", &[("SANDCASTER_API_KEY", &rotated)])
            .unwrap()
            .server
            .api_keys
            .len(),
        2
    );

    let short = load("", &[("SANDCASTER_API_KEY", "my-secret-token")]).unwrap();
    assert!(
        short.warnings[0].contains("fewer than 32"),
        "{:?}",
        short.warnings
    );
    assert!(!short.warnings[0].contains("my-secret-token"));

    for bad in [
        "",
        "hunter2 hunter2",
        "hunter2\n",
        "hunter2,",
        "hunter2\u{1}",
    ] {
        let error = load("", &[("SANDCASTER_API_KEY", bad)]).unwrap_err();
        assert!(error.starts_with("SANDCASTER_API_KEY "), "{bad:?}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = load("", &[("ANTHROPIC_API_KEY", "sk-ant\nhunter2")]).unwrap_err();
    assert!(
        error.contains("ANTHROPIC_API_KEY") && !error.contains("hunter2"),
        "{error}"
    );
}

#[test]
fn a_required_key_and_an_open_door_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let strict = Overrides {
        require_auth: true,
        ..Overrides::default()
    };
    assert!(
        load_in(dir.path(), &strict, &[])
            .unwrap_err()
            .contains("SANDCASTER_API_KEY")
    );
    assert!(load_in(dir.path(), &strict, &[("SANDCASTER_API_KEY", "k")]).is_ok());
    for (host, open) in [
        ("0.0.0.0", true),
        ("[::]", true),
        ("box.lan", true),
        ("127.0.0.1", false),
        ("localhost", false),
        ("::1", false),
    ] {
        let overrides = Overrides {
            host: Some(host.to_owned()),
            ..Overrides::default()
        };
        let config = load_in(dir.path(), &overrides, &[]).unwrap();
        assert_eq!(config.exposure().is_some(), open, "{host}");
        let config = load_in(dir.path(), &overrides, &[("SANDCASTER_API_KEY", "k")]).unwrap();
        assert_eq!(config.exposure(), None, "{host}");
    }
}

#[test]
fn a_short_key_is_used_and_told_not_to_be_searched_for() {
    for (name, key) in [
        ("SANDCASTER_API_KEY", "import"),
        ("SANDCASTER_WEBHOOK_SECRET", "import"),
        ("ANTHROPIC_API_KEY", "ollama"),
    ] {
        let config = load("", &[(name, key)]).unwrap();
        let told = config
            .warnings
            .iter()
            .any(|warning| warning.starts_with(name) && warning.contains("not searched for"));
        assert!(told, "{:?}", config.warnings);
        assert!(!config.warnings.concat().contains(key));
        assert_eq!(config.redactor().clean("import ollama"), "import ollama");
    }
    let long = "sixteen-letters-";
    let config = load("", &[("SANDCASTER_API_KEY", long)]).unwrap();
    assert!(!config.warnings.concat().contains("not searched for"));
    assert_eq!(config.redactor().clean(long), "[redacted]");
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let config = load(
        "",
        &[
            ("ANTHROPIC_API_KEY", "hunter2-hunter2-a"),
            ("SANDCASTER_API_KEY", "hunter2-hunter2-b"),
            ("SANDCASTER_WEBHOOK_SECRET", "hunter2-hunter2-c"),
        ],
    )
    .unwrap();
    assert_eq!(config.secrets().count(), 3);
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(
        config
            .redactor()
            .clean("x hunter2-hunter2-a y hunter2-hunter2-c"),
        "x [redacted] y [redacted]"
    );
}
