//! Checks of single values, shared by requests, `sandcaster.json` and the environment.
//!
//! A message names the limit and the value's kind or length. Only where a name was wanted and this is none of
//! the known ones, it is shown, shortened and escaped; any other value may be a secret in the wrong place.

use std::ops::RangeInclusive;

use super::json::{self, Node, Path};
use crate::error::ErrorCode;
use crate::llm::{self, PROVIDERS, ProviderDef};
use crate::sandbox::{self, BACKENDS, BackendDef};
use crate::show::{did_you_mean, quoted};
use crate::spec::{NanoUsd, ThinkingLevel};
use crate::tools::{self, TOOLS, ToolDef};

/// Limits of a run (`reliability-security`, §14).
pub(crate) const TURNS: RangeInclusive<u64> = 1..=1000;
pub(crate) const TIMEOUT_SECS: RangeInclusive<u64> = 5..=3600;
pub(crate) const MOST_TOOLS: usize = 64;
const MODEL_CHARS: usize = 200;
const MOST_USD: f64 = 1_000_000.0;
const LEAST_USD: f64 = 0.000_001;

/// Why a value was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Wrong {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            code: ErrorCode::ValidationFailed,
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

/// A value that was refused, and where inside the field.
pub(super) struct Bad(pub(super) Path, pub(super) Wrong);

impl From<Wrong> for Bad {
    fn from(wrong: Wrong) -> Self {
        Self(Path::default(), wrong)
    }
}

pub(crate) fn integer(node: &Node, range: &RangeInclusive<u64>) -> Result<u64, Wrong> {
    let must = || {
        format!(
            "must be an integer from {} to {}",
            range.start(),
            range.end()
        )
    };
    match node {
        Node::Number(number) if json::is_whole(number) => number
            .as_u64()
            .or_else(|| number.as_f64().and_then(exact))
            .filter(|value| range.contains(value))
            .ok_or_else(|| Wrong::new(must())),
        other => Err(Wrong::new(format!("{}, not {}", must(), other.describe()))),
    }
}

/// A whole number that a float holds exactly.
fn exact(value: f64) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole, and within what a float counts exactly"
    )]
    (0.0..=9_007_199_254_740_992.0)
        .contains(&value)
        .then_some(value as u64)
}

/// Text of `chars` Unicode scalar values.
pub(crate) fn text<'n>(node: &'n Node, chars: &RangeInclusive<usize>) -> Result<&'n str, Wrong> {
    let Node::Text(text) = node else {
        return Err(Wrong::new(format!(
            "must be a string, not {}",
            node.describe()
        )));
    };
    let count = text.chars().count();
    if count < *chars.start() {
        return Err(Wrong::new("must not be empty"));
    }
    if count > *chars.end() {
        return Err(Wrong::new(format!(
            "has {count} characters (limit {})",
            chars.end()
        )));
    }
    Ok(text)
}

pub(crate) fn boolean(node: &Node) -> Result<bool, Wrong> {
    match node {
        Node::Bool(value) => Ok(*value),
        other => Err(Wrong::new(format!(
            "must be true or false, not {}",
            other.describe()
        ))),
    }
}

/// A positive amount of US dollars.
pub(crate) fn usd(node: &Node) -> Result<NanoUsd, Wrong> {
    match node {
        Node::Number(number) => number
            .as_f64()
            .filter(|usd| (LEAST_USD..=MOST_USD).contains(usd))
            .map(NanoUsd::from_usd)
            .ok_or_else(|| Wrong::new("must be a positive number of US dollars up to 1000000")),
        other => Err(Wrong::new(format!(
            "must be a positive number of US dollars, not {}",
            other.describe()
        ))),
    }
}

pub(crate) fn model(node: &Node) -> Result<&str, Wrong> {
    let model = text(node, &(1..=MODEL_CHARS))?;
    let strange = model
        .chars()
        .position(|c| !(c.is_ascii_alphanumeric() || "._:/@-".contains(c)));
    match strange {
        None => Ok(model),
        Some(at) => Err(Wrong::new(format!(
            "may only have letters, digits and . _ : / @ - (character {} is another)",
            at + 1
        ))),
    }
}

/// One of a fixed list of words.
pub(crate) fn word<T: Copy>(node: &Node, words: &[(&str, T)]) -> Result<T, Wrong> {
    let names = || words.iter().map(|(name, _)| *name);
    let list = || names().collect::<Vec<_>>().join(", ");
    let Node::Text(text) = node else {
        return Err(Wrong::new(format!(
            "must be one of {}, not {}",
            list(),
            node.describe()
        )));
    };
    words
        .iter()
        .find(|(name, _)| name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            Wrong::new(format!("must be one of {}", list())).hint(did_you_mean(text, names()))
        })
}

pub(crate) fn thinking(node: &Node) -> Result<ThinkingLevel, Wrong> {
    word(
        node,
        &[
            ("none", ThinkingLevel::None),
            ("low", ThinkingLevel::Low),
            ("medium", ThinkingLevel::Medium),
            ("high", ThinkingLevel::High),
        ],
    )
}

/// An LLM provider, built or not.
pub(crate) fn provider(node: &Node) -> Result<&'static ProviderDef, Wrong> {
    let name = text(node, &(1..=MODEL_CHARS))?;
    llm::provider(name).ok_or_else(|| {
        let built = PROVIDERS
            .iter()
            .filter(|def| matches!(def.build, llm::Build::With(_)))
            .map(|def| def.name);
        let mut wrong =
            unknown("LLM provider", name, built.clone()).hint(did_you_mean(name, built));
        wrong.code = ErrorCode::ProviderUnknown;
        // Two that the older sandcaster had, for hosts of Anthropic's models.
        if matches!(name, "vertex" | "bedrock") {
            wrong.message = format!("`{name}` is not supported");
            wrong.hint =
                Some("use `anthropic`, or a gateway through ANTHROPIC_BASE_URL".to_owned());
        }
        wrong
    })
}

/// A sandbox backend, built or not.
pub(crate) fn backend(node: &Node) -> Result<&'static BackendDef, Wrong> {
    let name = text(node, &(1..=MODEL_CHARS))?;
    sandbox::backend(name).ok_or_else(|| {
        let mut wrong = unknown("sandbox backend", name, built_backends())
            .hint(did_you_mean(name, built_backends()));
        wrong.code = ErrorCode::ProviderUnknown;
        wrong
    })
}

/// The backends that a message may send somebody to.
pub(super) fn built_backends() -> impl Iterator<Item = &'static str> {
    BACKENDS
        .iter()
        .filter(|def| matches!(def.build, sandbox::Build::With(_)))
        .map(|def| def.name)
}

/// A tool, built or not, by any of its names.
pub(crate) fn tool(node: &Node) -> Result<&'static ToolDef, Wrong> {
    let name = text(node, &(1..=MODEL_CHARS))?;
    tools::tool(name).ok_or_else(|| {
        let built = TOOLS.iter().filter(|def| def.built.is_some());
        let names = built
            .clone()
            .flat_map(|def| std::iter::once(def.name).chain(def.aliases.iter().copied()));
        unknown("tool", name, built.map(|def| def.name)).hint(did_you_mean(name, names))
    })
}

/// `typed` is a name in no row of a table whose built rows are `built`.
fn unknown(what: &str, typed: &str, built: impl Iterator<Item = &'static str>) -> Wrong {
    Wrong::new(format!(
        "is {}, which is no known {what}; known are {}",
        quoted(typed),
        built.collect::<Vec<_>>().join(", ")
    ))
}
