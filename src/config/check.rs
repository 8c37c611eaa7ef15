//! Checks of single values, shared by requests, `sandcaster.json` and the environment.
//!
//! A message names the limit, and shows the value, shortened and escaped. Of prompts and files it shows nothing.

use std::fmt;
use std::ops::RangeInclusive;

use super::json::{self, At, Node};
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
const NAME_CHARS: usize = 200;
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

    /// "must be …, not …".
    pub(crate) fn not(node: &Node<'_>, wanted: impl fmt::Display) -> Self {
        Self::new(format!("must be {wanted}, not {}", node.shown()))
    }

    pub(crate) fn hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// A value that was refused, and where inside the field.
pub(super) struct Bad(pub(super) Inside, pub(super) Wrong);

/// A place inside a field's value.
pub(super) enum Inside {
    All,
    Name(String),
    Index(usize),
}

impl Inside {
    pub(super) fn of<'p>(&'p self, field: &'p At<'p>) -> At<'p> {
        match self {
            Self::All => *field,
            Self::Name(name) => At::Name(field, name),
            Self::Index(index) => At::Index(field, *index),
        }
    }
}

impl From<Wrong> for Bad {
    fn from(wrong: Wrong) -> Self {
        Self(Inside::All, wrong)
    }
}

pub(crate) fn integer(node: &Node<'_>, range: &RangeInclusive<u64>) -> Result<u64, Wrong> {
    let value = match node {
        Node::Number(number) if json::is_whole(number) => {
            number.as_u64().or_else(|| number.as_f64().and_then(exact))
        }
        _ => None,
    };
    value.filter(|value| range.contains(value)).ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        Wrong::not(node, format_args!("an integer from {least} to {most}"))
    })
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

/// Text of `chars` Unicode scalar values, of which a message shows nothing.
pub(crate) fn text<'n>(
    node: &'n Node<'_>,
    chars: &RangeInclusive<usize>,
) -> Result<&'n str, Wrong> {
    let Node::Text(text) = node else {
        return Err(Wrong::not(node, "a string"));
    };
    let count = text.chars().count();
    if count < *chars.start() {
        return Err(Wrong::new("must not be empty"));
    }
    if count > *chars.end() {
        let limit = chars.end();
        return Err(Wrong::new(format!(
            "has {count} characters (limit {limit})"
        )));
    }
    Ok(text)
}

/// A name or another short text of 1 to `most` characters.
pub(crate) fn name<'n>(node: &'n Node<'_>, most: usize) -> Result<&'n str, Wrong> {
    text(node, &(1..=most)).map_err(|mut wrong| {
        if let Node::Text(text) = node
            && !text.is_empty()
        {
            wrong.message = format!("{}: {}", wrong.message, quoted(text));
        }
        wrong
    })
}

pub(crate) fn boolean(node: &Node<'_>) -> Result<bool, Wrong> {
    match node {
        Node::Bool(value) => Ok(*value),
        other => Err(Wrong::not(other, "true or false")),
    }
}

/// A positive amount of US dollars.
pub(crate) fn usd(node: &Node<'_>) -> Result<NanoUsd, Wrong> {
    let usd = match node {
        Node::Number(number) => number.as_f64(),
        _ => None,
    };
    usd.filter(|usd| (LEAST_USD..=MOST_USD).contains(usd))
        .map(NanoUsd::from_usd)
        .ok_or_else(|| Wrong::not(node, "a positive number of US dollars up to 1000000"))
}

pub(crate) fn model<'n>(node: &'n Node<'_>) -> Result<&'n str, Wrong> {
    let model = name(node, NAME_CHARS)?;
    let strange = model
        .chars()
        .position(|c| !(c.is_ascii_alphanumeric() || "._:/@-".contains(c)));
    match strange {
        None => Ok(model),
        Some(at) => Err(Wrong::new(format!(
            "may only have letters, digits and . _ : / @ - (character {} of {} is another)",
            at + 1,
            quoted(model)
        ))),
    }
}

/// One of a fixed list of words.
pub(crate) fn word<T: Copy>(node: &Node<'_>, words: &[(&str, T)]) -> Result<T, Wrong> {
    let names = || words.iter().map(|(name, _)| *name);
    let text = match node {
        Node::Text(text) => text.as_ref(),
        _ => "",
    };
    let known = words.iter().find(|(name, _)| *name == text);
    known.map(|(_, value)| *value).ok_or_else(|| {
        let list = names().collect::<Vec<_>>().join(", ");
        Wrong::not(node, format_args!("one of {list}")).hint(did_you_mean(text, names()))
    })
}

pub(crate) fn thinking(node: &Node<'_>) -> Result<ThinkingLevel, Wrong> {
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
pub(crate) fn provider(node: &Node<'_>) -> Result<&'static ProviderDef, Wrong> {
    let name = name(node, NAME_CHARS)?;
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
pub(crate) fn backend(node: &Node<'_>) -> Result<&'static BackendDef, Wrong> {
    let name = name(node, NAME_CHARS)?;
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
pub(crate) fn tool(node: &Node<'_>) -> Result<&'static ToolDef, Wrong> {
    let name = name(node, NAME_CHARS)?;
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
