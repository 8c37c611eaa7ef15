//! Request over file over environment over defaults: what a run gets.

use std::time::Duration;

use sandcaster::config::{Config, QueryRequest, Usable};
use sandcaster::error::{ErrorCode, Problem};
use sandcaster::sandbox::SandboxError;
use sandcaster::spec::{NanoUsd, Network, Presence, RunSpec, SandboxStart, ThinkingLevel};

use super::{load, local_works};

const KEY: (&str, &str) = ("ANTHROPIC_API_KEY", "sk-ant-test-0123456789");

fn resolve(config: &Config, fields: &str) -> Result<RunSpec, Problem> {
    let comma = if fields.is_empty() { "" } else { ", " };
    let body = format!(r#"{{"prompt": "hi"{comma}{fields}}}"#);
    config.resolve(
        QueryRequest::parse(body.as_bytes()).unwrap(),
        &local_works(),
    )
}

#[test]
fn a_bare_request_gets_the_defaults() {
    let spec = resolve(&load("", &[KEY]).unwrap(), "").unwrap();
    assert_eq!(
        (spec.model.provider, spec.model.id.as_str()),
        ("anthropic", "claude-sonnet-4-6")
    );
    assert_eq!(spec.max_turns, 100);
    assert_eq!(spec.timeout, Duration::from_mins(5));
    assert_eq!(spec.thinking, ThinkingLevel::Unset);
    assert_eq!(spec.sandbox.backend, "local");
    assert_eq!(spec.sandbox.network, Network::None);
    assert_eq!(spec.sandbox.start, SandboxStart::Eager);
    assert_eq!(
        spec.presence,
        Presence::Attached {
            grace: Duration::from_secs(10)
        }
    );
    assert_eq!(spec.max_budget, None);
    for tool in [
        "bash",
        "file_read",
        "file_write",
        "file_edit",
        "glob",
        "grep",
    ] {
        assert!(spec.tools.contains(&tool), "{tool}");
    }
}

#[test]
fn the_request_wins_over_the_file() {
    let file = r#"{"model": "opus", "maxTurns": 7, "timeout": 60, "thinkingLevel": "high",
        "systemPrompt": {"append": "Be brief."}, "disconnectGraceSecs": 0, "sandboxStart": "lazy"}"#;
    let config = load(file, &[KEY]).unwrap();
    let spec = resolve(&config, "").unwrap();
    assert_eq!(spec.model.id, "claude-opus-4-6");
    assert_eq!((spec.max_turns, spec.timeout.as_secs()), (7, 60));
    assert_eq!(spec.thinking, ThinkingLevel::High);
    assert_eq!(spec.system_prompt.append.as_deref(), Some("Be brief."));
    assert_eq!(spec.system_prompt.role, None);
    assert_eq!(spec.sandbox.start, SandboxStart::Lazy);
    assert_eq!(
        spec.presence,
        Presence::Attached {
            grace: Duration::ZERO
        }
    );

    let fields = r#""model": "haiku", "maxTurns": 9, "timeout": 90, "thinkingLevel": "none", "background": true"#;
    let spec = resolve(&config, fields).unwrap();
    assert_eq!(spec.model.id, "claude-haiku-4-5");
    assert_eq!((spec.max_turns, spec.timeout.as_secs()), (9, 90));
    assert_eq!(spec.thinking, ThinkingLevel::None);
    assert_eq!(spec.presence, Presence::Background);
}

#[test]
fn a_request_only_tightens_tools_and_budget() {
    let file = r#"{"allowedTools": ["Grep", "bash", "WebSearch"], "maxBudgetUsd": 1}"#;
    let config = load(file, &[KEY]).unwrap();
    let tools = |fields| resolve(&config, fields).unwrap().tools;
    assert_eq!(tools(""), ["bash", "grep"]);
    assert_eq!(tools(r#""allowedTools": ["glob", "bash"]"#), ["bash"]);
    assert_eq!(tools(r#""allowedTools": []"#), [""; 0]);
    let budget = |fields| resolve(&config, fields).unwrap().max_budget;
    assert_eq!(budget(""), Some(NanoUsd(1_000_000_000)));
    assert_eq!(budget(r#""maxBudgetUsd": 5"#), Some(NanoUsd(1_000_000_000)));
    assert_eq!(budget(r#""maxBudgetUsd": 0.5"#), Some(NanoUsd(500_000_000)));
}

#[test]
fn what_the_project_says_of_the_model_yields_to_the_request() {
    let config = load(r#"{"model": "sonnet"}"#, &[KEY]).unwrap();
    assert_eq!(
        resolve(&config, r#""provider": "demo""#)
            .unwrap()
            .model
            .provider,
        "demo"
    );
    let config = load(r#"{"provider": "demo"}"#, &[KEY]).unwrap();
    assert_eq!(resolve(&config, "").unwrap().model.provider, "demo");
    assert_eq!(
        resolve(&config, r#""model": "sonnet""#)
            .unwrap()
            .model
            .provider,
        "anthropic"
    );
    let aliases = r#"{"modelAliases": {"fast": "claude-haiku-4-5"}, "model": "fast"}"#;
    let config = load(aliases, &[KEY]).unwrap();
    assert_eq!(resolve(&config, "").unwrap().model.id, "claude-haiku-4-5");
}

#[test]
fn a_missing_key_is_named() {
    let config = load("", &[]).unwrap();
    let problem = resolve(&config, "").unwrap_err();
    assert_eq!(problem.code, ErrorCode::NoModelConfigured);
    let hint = problem.hint.unwrap();
    assert!(
        hint.contains("ANTHROPIC_API_KEY") && hint.contains("demo"),
        "{hint}"
    );
    for fields in [r#""model": "sonnet""#, r#""provider": "anthropic""#] {
        let problem = resolve(&config, fields).unwrap_err();
        assert_eq!(problem.code, ErrorCode::LlmKeyMissing, "{fields}");
        assert!(problem.hint.unwrap().contains("ANTHROPIC_API_KEY"));
    }
    assert_eq!(
        resolve(&config, r#""model": "demo""#)
            .unwrap()
            .model
            .provider,
        "demo"
    );
}

#[test]
fn a_budget_without_a_known_price_is_refused() {
    let config = load("", &[KEY]).unwrap();
    let fields =
        r#""provider": "anthropic", "model": "anthropic/some-unpriced-model", "maxBudgetUsd": 1"#;
    let problem = resolve(&config, fields).unwrap_err();
    assert_eq!(problem.code, ErrorCode::ValidationFailed);
    assert_eq!(problem.details[0].path, "maxBudgetUsd");
    assert!(resolve(&config, r#""model": "demo", "maxBudgetUsd": 1"#).is_ok());
}

#[test]
fn without_a_usable_backend_the_cause_is_given() {
    let config = load("", &[KEY]).unwrap();
    let request = || QueryRequest::parse(br#"{"prompt": "hi"}"#).unwrap();
    let cannot = Usable {
        backends: [(
            "local",
            Err(SandboxError::HostCannot {
                message: "user namespaces are switched off".to_owned(),
                hint: "set kernel.unprivileged_userns_clone=1".to_owned(),
            }),
        )]
        .into(),
    };
    let problem = config.resolve(request(), &cannot).unwrap_err();
    assert_eq!(problem.code, ErrorCode::NoSandboxConfigured);
    assert!(
        problem.message.contains("user namespaces are switched off"),
        "{}",
        problem.message
    );
    assert!(problem.hint.unwrap().contains("unprivileged_userns_clone"));

    let talk = QueryRequest::parse(br#"{"prompt": "hi", "allowedTools": []}"#).unwrap();
    assert!(
        config.resolve(talk, &cannot).is_ok(),
        "a run without tools needs no sandbox"
    );

    let named = QueryRequest::parse(br#"{"prompt": "hi", "sandboxProvider": "local"}"#).unwrap();
    let problem = config.resolve(named, &cannot).unwrap_err();
    assert_eq!(problem.code, ErrorCode::NoSandboxConfigured);
    assert_eq!(problem.details[0].path, "sandboxProvider");
}

#[test]
fn what_a_backend_does_not_have_is_refused_by_name() {
    for (file, code, says) in [
        (
            r#"{"network": "full"}"#,
            ErrorCode::NotImplemented,
            "network",
        ),
        (
            r#"{"template": "base"}"#,
            ErrorCode::InvalidTemplateForProvider,
            "local",
        ),
        (
            r#"{"sandboxProvider": "vercel"}"#,
            ErrorCode::NotImplemented,
            "vercel",
        ),
    ] {
        let problem = resolve(&load(file, &[KEY]).unwrap(), "").unwrap_err();
        assert_eq!(problem.code, code, "{file}");
        assert!(problem.message.contains(says), "{}", problem.message);
        assert!(
            problem.details.is_empty(),
            "the request is not at fault: {problem:?}"
        );
    }
    let config = load(r#"{"sandboxProvider": "vercel"}"#, &[KEY]).unwrap();
    assert_eq!(
        resolve(&config, r#""sandboxProvider": "local""#)
            .unwrap()
            .sandbox
            .backend,
        "local"
    );
}

#[test]
fn tools_of_the_file_that_are_not_built_are_told_to_the_run() {
    let config = load(
        r#"{"allowedTools": ["bash", "WebSearch", "read_skill"]}"#,
        &[KEY],
    )
    .unwrap();
    let spec = resolve(&config, "").unwrap();
    assert!(!spec.unavailable_tools.is_empty());
    for tool in &spec.unavailable_tools {
        assert!(!spec.tools.contains(&tool.as_str()));
    }
}
