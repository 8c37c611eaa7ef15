use proptest::prelude::*;

use super::*;

const ALL: &dyn Fn(&ProviderDef) -> bool = &|_| true;
const NONE: &dyn Fn(&ProviderDef) -> bool = &|_| false;

fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

fn ask(model: Option<&str>, provider: Option<&str>) -> Result<(&'static str, String), Problem> {
    resolve(model, provider, &none(), ALL).map(|choice| (choice.provider, choice.id))
}

fn refused(model: Option<&str>, provider: Option<&str>) -> (ErrorCode, String, String) {
    let problem = ask(model, provider).unwrap_err();
    let field = problem
        .details
        .first()
        .map(|detail| detail.path.clone())
        .unwrap_or_default();
    let text = format!("{} / {}", problem.message, problem.hint.unwrap_or_default());
    (problem.code, field, text)
}

#[test]
fn what_names_an_anthropic_model() {
    let sonnet = "claude-sonnet-4-6";
    for (model, provider, id) in [
        (Some("sonnet"), None, sonnet),
        (Some("opus"), None, "claude-opus-4-6"),
        (Some("haiku"), None, "claude-haiku-4-5"),
        (
            Some("claude-haiku-4-5-20251001"),
            None,
            "claude-haiku-4-5-20251001",
        ),
        (Some("claude-new-9"), None, "claude-new-9"),
        (Some("anthropic/claude-x"), None, "claude-x"),
        (Some("anthropic/sonnet"), None, sonnet),
        (None, Some("anthropic"), sonnet),
        (Some("sonnet"), Some("anthropic"), sonnet),
        (
            Some("my-gateway-model"),
            Some("anthropic"),
            "my-gateway-model",
        ),
        (None, None, sonnet),
    ] {
        assert_eq!(
            ask(model, provider).unwrap(),
            ("anthropic", id.to_owned()),
            "{model:?} {provider:?}"
        );
    }
}

#[test]
fn demo_is_chosen_by_name_only() {
    for (model, provider) in [
        (Some("demo"), None),
        (None, Some("demo")),
        (Some("demo"), Some("demo")),
        (Some("demo/demo"), None),
    ] {
        let choice = resolve(model, provider, &none(), NONE).unwrap();
        assert_eq!((choice.provider, choice.id.as_str()), ("demo", "demo"));
    }
    let problem = resolve(None, None, &none(), NONE).unwrap_err();
    assert_eq!(problem.code, ErrorCode::NoModelConfigured);
    let hint = problem.hint.unwrap();
    assert!(hint.contains("ANTHROPIC_API_KEY") && hint.contains("\"model\": \"demo\""));
    assert_eq!(
        refused(Some("llama"), Some("demo")).0,
        ErrorCode::ValidationFailed
    );
}

#[test]
fn a_key_of_a_provider_that_is_not_built_suggests_nothing() {
    let only_openai = |def: &ProviderDef| def.name == "openai";
    let problem = resolve(None, None, &none(), &only_openai).unwrap_err();
    assert_eq!(problem.code, ErrorCode::NoModelConfigured);
    assert!(
        problem
            .hint
            .unwrap()
            .contains("openai, which is not built yet")
    );
}

#[test]
fn providers_that_are_not_built_are_named() {
    for (model, provider, field, name) in [
        (Some("gpt5"), None, "model", "openai"),
        (Some("gpt-5.4"), None, "model", "openai"),
        (Some("o3-mini"), None, "model", "openai"),
        (Some("gemini"), None, "model", "google"),
        (Some("gemini-4-argon"), None, "model", "google"),
        (Some("meta/llama-9"), None, "model", "openrouter"),
        (
            Some("openrouter/anthropic/claude-sonnet-4.6"),
            None,
            "model",
            "openrouter",
        ),
        (
            Some("anthropic/claude-sonnet-4.6"),
            Some("openrouter"),
            "provider",
            "openrouter",
        ),
        (None, Some("google"), "provider", "google"),
    ] {
        let (code, at, text) = refused(model, provider);
        assert_eq!(
            (code, at.as_str()),
            (ErrorCode::NotImplemented, field),
            "{model:?}"
        );
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_model_that_contradicts_the_provider_is_refused() {
    for (model, provider) in [
        ("gpt-5.4", "anthropic"),
        ("sonnet", "openai"),
        ("openai/gpt-5.4", "anthropic"),
        ("sonnet", "demo"),
        ("demo", "anthropic"),
        ("sonnet", "openrouter"),
    ] {
        let (code, field, text) = refused(Some(model), Some(provider));
        assert_eq!(
            (code, field.as_str()),
            (ErrorCode::ValidationFailed, "model"),
            "{model}"
        );
        assert!(text.contains(model) && text.contains(provider), "{text}");
    }
}

#[test]
fn unknown_names_get_the_nearest_known_one() {
    for (model, nearest) in [
        ("sonet", "did you mean `sonnet`?"),
        ("Opus", "did you mean `opus`?"),
        ("haiku-4", "did you mean `haiku`?"),
        ("zzzz", "use sonnet"),
        ("", "use sonnet"),
        ("/", "use sonnet"),
        ("claude-", "did you mean `claude-"),
        ("a b/c", "use sonnet"),
    ] {
        let (code, field, text) = refused(Some(model), None);
        assert_eq!(
            (code, field.as_str()),
            (ErrorCode::UnknownModel, "model"),
            "{model}"
        );
        assert!(text.contains(nearest), "{text}");
    }
    let (code, field, text) = refused(None, Some("antropic"));
    assert_eq!(
        (code, field.as_str()),
        (ErrorCode::ProviderUnknown, "provider")
    );
    assert!(text.contains("did you mean `anthropic`?"), "{text}");
}

#[test]
fn what_is_not_built_is_never_suggested() {
    for (model, provider) in [
        (Some("gpt"), None),
        (Some("gemin"), None),
        (Some("zzzz"), None),
        (None, Some("opena")),
        (None, Some("gogle")),
    ] {
        let text = refused(model, provider).2;
        for name in ["gpt5", "gemini", "openai", "google", "openrouter"] {
            assert!(!text.contains(name), "{text}");
        }
    }
}

#[test]
fn a_named_provider_without_its_key_is_refused_with_the_variable() {
    for (model, provider, field) in [
        (Some("sonnet"), None, "model"),
        (None, Some("anthropic"), "provider"),
    ] {
        let problem = resolve(model, provider, &none(), NONE).unwrap_err();
        assert_eq!(problem.code, ErrorCode::LlmKeyMissing);
        assert_eq!(problem.details[0].path, field);
        assert!(problem.hint.unwrap().contains("ANTHROPIC_API_KEY"));
    }
}

#[test]
fn every_default_and_alias_of_the_table_is_unique_known_and_priced() {
    let mut seen = std::collections::BTreeSet::new();
    for def in PROVIDERS {
        assert!(seen.insert(def.name), "{}", def.name);
        let ids = def.aliases.iter().map(|(_, id)| *id);
        for id in ids.chain([def.default_model]) {
            let priced = prices::cost(def.name, id, &crate::llm::Usage::default());
            assert!(priced.is_some(), "{} {id}", def.name);
        }
        for (name, _) in def.aliases {
            let own = def.name == *name;
            assert!(own || seen.insert(name), "{name}");
        }
        let first = def.key_vars.is_empty() || def.base_url_var.ends_with("_BASE_URL");
        assert!(first, "{}", def.name);
    }
    let names: Vec<&str> = PROVIDERS.iter().map(|def| def.name).collect();
    assert_eq!(
        names,
        ["anthropic", "openai", "google", "openrouter", "demo"]
    );
}

#[test]
fn a_projects_aliases_come_first() {
    let overrides: BTreeMap<String, String> = [
        ("sonnet", "claude-sonnet-5"),
        ("fast", "haiku"),
        ("self", "self"),
    ]
    .into_iter()
    .map(|(name, model)| (name.to_owned(), model.to_owned()))
    .collect();
    let id = |model| resolve(Some(model), None, &overrides, ALL).map(|choice| choice.id);
    assert_eq!(id("sonnet").unwrap(), "claude-sonnet-5");
    assert_eq!(id("fast").unwrap(), "claude-haiku-4-5");
    assert_eq!(id("opus").unwrap(), "claude-opus-4-6");
    let problem = id("self").unwrap_err();
    assert_eq!(problem.code, ErrorCode::UnknownModel);
    assert!(problem.hint.unwrap().contains("fast"));
}

proptest! {
    #[test]
    fn any_text_is_answered_and_what_is_resolved_resolves_to_itself(
        model in ".{0,40}", provider in prop::option::of("[a-z]{0,12}")
    ) {
        if let Ok((name, id)) = ask(Some(&model), provider.as_deref()) {
            prop_assert_eq!(ask(Some(&id), Some(name)).unwrap(), (name, id));
        }
    }
}
