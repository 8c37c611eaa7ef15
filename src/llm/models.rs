//! Which provider and model a request means.
//!
//! In order: a project's alias, a built-in alias, the named `provider`, a `provider/model` prefix, the
//! shape of a well-known id, a slash (`openrouter`). Anything else is refused with the nearest known name,
//! never guessed.

use std::collections::BTreeMap;

use super::{Build, PROVIDERS, ProviderDef, prices, provider};
use crate::error::{ErrorCode, Problem};
use crate::show::{did_you_mean, quoted};
use crate::spec::ModelChoice;

/// Where ids with a slash go that name no provider of ours.
const SLASHED: &str = "openrouter";

/// Resolves the request's `model` and `provider`.
///
/// `overrides` are the project's `modelAliases`; `key_present` tells whether one of a provider's key
/// variables is set.
///
/// # Errors
/// `UNKNOWN_MODEL`, `PROVIDER_UNKNOWN`, `VALIDATION_FAILED` (the two contradict each other),
/// `NOT_IMPLEMENTED`, `LLM_KEY_MISSING`, and `NO_MODEL_CONFIGURED` when nothing is named and no key is set.
pub fn resolve(
    model: Option<&str>,
    provider_name: Option<&str>,
    overrides: &BTreeMap<String, String>,
    key_present: &dyn Fn(&ProviderDef) -> bool,
) -> Result<ModelChoice, Problem> {
    let wanted = provider_name.map(named_provider).transpose()?;
    let (def, id, field) = match (model, wanted) {
        (Some(model), wanted) => {
            let (def, id) = named_model(model, wanted, overrides)?;
            let field = if wanted.is_some() {
                "provider"
            } else {
                "model"
            };
            (def, id, field)
        }
        (None, Some(def)) => (def, def.default_model.to_owned(), "provider"),
        (None, None) => return suggested(key_present),
    };
    usable(def, field, key_present)?;
    Ok(ModelChoice {
        provider: def.name,
        id,
    })
}

/// The providers that can be used: only these are ever suggested.
fn built() -> impl Iterator<Item = &'static ProviderDef> {
    PROVIDERS
        .iter()
        .filter(|def| matches!(def.build, Build::With(_)))
}

/// The provider that the request names.
fn named_provider(name: &str) -> Result<&'static ProviderDef, Problem> {
    provider(name).ok_or_else(|| {
        let names: Vec<&str> = built().map(|def| def.name).collect();
        let problem = Problem::field(
            ErrorCode::ProviderUnknown,
            "provider",
            format!("there is no LLM provider {}", quoted(name)),
        );
        problem.hint(format!(
            "{}use one of {}",
            near(name, names.iter().copied()),
            names.join(", ")
        ))
    })
}

/// The provider and the full id that `model` means.
fn named_model(
    model: &str,
    wanted: Option<&'static ProviderDef>,
    overrides: &BTreeMap<String, String>,
) -> Result<(&'static ProviderDef, String), Problem> {
    // A project's alias may stand for a built-in one, but not for itself again.
    let target = overrides.get(model).map_or(model, String::as_str);
    if target.is_empty() || target.len() > 200 || target.chars().any(char::is_whitespace) {
        return Err(unknown(target, overrides));
    }
    let means = alias(target)
        .or_else(|| prefixed(target))
        .or_else(|| shaped(target));
    let Some(wanted) = wanted else {
        return means
            .or_else(|| slashed(target))
            .ok_or_else(|| unknown(target, overrides));
    };
    match means {
        Some((def, id)) if def.name == wanted.name => Ok((def, id)),
        // OpenRouter's ids are other providers' names with a slash.
        _ if wanted.name == SLASHED && target.contains('/') => Ok((wanted, target.to_owned())),
        Some((def, _)) => Err(contradiction(model, def, wanted)),
        None if wanted.key_vars.is_empty() => Err(contradiction_of_keyless(model, wanted)),
        None => Ok((wanted, target.to_owned())),
    }
}

fn alias(name: &str) -> Option<(&'static ProviderDef, String)> {
    PROVIDERS.iter().find_map(|def| {
        let (_, id) = def.aliases.iter().find(|(alias, _)| *alias == name)?;
        Some((def, (*id).to_owned()))
    })
}

fn prefixed(name: &str) -> Option<(&'static ProviderDef, String)> {
    let (before, id) = name.split_once('/')?;
    let def = provider(before).filter(|_| !id.is_empty())?;
    // `anthropic/sonnet` may use the provider's own short names.
    let id = def
        .aliases
        .iter()
        .find(|(alias, _)| *alias == id)
        .map_or(id, |(_, full)| full);
    let known = !def.key_vars.is_empty() || id == def.default_model;
    known.then(|| (def, id.to_owned()))
}

fn shaped(name: &str) -> Option<(&'static ProviderDef, String)> {
    let def = PROVIDERS.iter().find(|def| {
        def.model_prefixes
            .iter()
            .any(|prefix| name.starts_with(prefix) && !name.ends_with('-'))
    })?;
    (!name.contains('/')).then(|| (def, name.to_owned()))
}

fn slashed(name: &str) -> Option<(&'static ProviderDef, String)> {
    let (vendor, id) = name.split_once('/')?;
    let whole = !vendor.is_empty() && !id.is_empty();
    let def = provider(SLASHED).filter(|_| whole)?;
    Some((def, name.to_owned()))
}

/// What the keys present suggest when the request names nothing: only what is built, and never a
/// provider that needs no key.
fn suggested(key_present: &dyn Fn(&ProviderDef) -> bool) -> Result<ModelChoice, Problem> {
    let keyed = || PROVIDERS.iter().filter(|def| !def.key_vars.is_empty());
    let is_built = |def: &&ProviderDef| matches!(def.build, Build::With(_));
    if let Some(def) = keyed().filter(is_built).find(|def| key_present(def)) {
        return Ok(ModelChoice {
            provider: def.name,
            id: def.default_model.to_owned(),
        });
    }
    let variables: Vec<&str> = keyed()
        .filter(is_built)
        .filter_map(|def| def.key_vars.first().copied())
        .collect();
    let mut hint = format!(
        "set {} on the server, or send \"model\": \"{}\", which needs no key",
        variables.join(" or "),
        super::demo::DEF.default_model
    );
    let waiting: Vec<&str> = keyed()
        .filter(|def| !is_built(def) && key_present(def))
        .map(|def| def.name)
        .collect();
    if !waiting.is_empty() {
        hint.push_str("; a key is set for ");
        hint.push_str(&waiting.join(", "));
        hint.push_str(", which is not built yet");
    }
    Err(Problem::new(
        ErrorCode::NoModelConfigured,
        "no model was named and no LLM key is set",
    )
    .hint(hint))
}

/// Whether `def` can be used on this server.
fn usable(
    def: &ProviderDef,
    field: &str,
    key_present: &dyn Fn(&ProviderDef) -> bool,
) -> Result<(), Problem> {
    if matches!(def.build, Build::NotYet) {
        let built: Vec<&str> = built().map(|def| def.name).collect();
        return Err(Problem::field(
            ErrorCode::NotImplemented,
            field,
            format!("the LLM provider {} is known, but not built yet", def.name),
        )
        .hint(format!("use a model of {}", built.join(" or "))));
    }
    if def.key_vars.is_empty() || key_present(def) {
        return Ok(());
    }
    Err(Problem::field(
        ErrorCode::LlmKeyMissing,
        field,
        format!("no key is set for the LLM provider {}", def.name),
    )
    .hint(format!("set {} on the server", def.key_vars.join(" or "))))
}

fn contradiction(model: &str, means: &ProviderDef, wanted: &ProviderDef) -> Problem {
    Problem::field(
        ErrorCode::ValidationFailed,
        "model",
        format!(
            "the model {} is {}'s, but provider is {}",
            quoted(model),
            means.name,
            wanted.name
        ),
    )
    .hint("leave out provider, or name a model of that provider")
}

fn contradiction_of_keyless(model: &str, wanted: &ProviderDef) -> Problem {
    Problem::field(
        ErrorCode::ValidationFailed,
        "model",
        format!(
            "the provider {} has no model {}",
            wanted.name,
            quoted(model)
        ),
    )
    .hint(format!("its only model is {}", wanted.default_model))
}

fn unknown(model: &str, overrides: &BTreeMap<String, String>) -> Problem {
    let aliases: Vec<&str> = overrides
        .keys()
        .map(String::as_str)
        .chain(built().flat_map(|def| def.aliases).map(|(alias, _)| *alias))
        .collect();
    let mut names = aliases.clone();
    for def in built() {
        for known in prices::known_models(def.name) {
            names.push(known);
        }
    }
    let near = near(model, names.into_iter());
    Problem::field(
        ErrorCode::UnknownModel,
        "model",
        format!("no provider is known for the model {}", quoted(model)),
    )
    .hint(format!(
        "{near}use {}, a full id such as claude-sonnet-4-6, or provider/model",
        aliases.join(", ")
    ))
}

/// [`did_you_mean`] before another sentence.
fn near<'a>(given: &str, names: impl Iterator<Item = &'a str>) -> String {
    did_you_mean(given, names).map_or_else(String::new, |near| format!("{near} "))
}

#[cfg(test)]
#[path = "models_tests.rs"]
mod tests;
