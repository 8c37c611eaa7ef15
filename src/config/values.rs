//! How single settings are read from their values.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Config;
use super::check::{self, Bad, Inside, Wrong};
use super::json::Node;
use crate::show::{did_you_mean, quoted};
use crate::spec::Network;

/// Longest part of a system prompt, in characters.
pub(super) const PROMPT_CHARS: usize = 1_000_000;
/// Entries of a list.
const LIST: usize = 64;

pub(super) fn whole<T: TryFrom<u64>>(
    node: &Node<'_>,
    range: &RangeInclusive<u64>,
) -> Result<T, Wrong> {
    T::try_from(check::integer(node, range)?)
        .map_err(|_| Wrong::new("is too large for this machine"))
}

pub(super) fn seconds(node: &Node<'_>, range: &RangeInclusive<u64>) -> Result<Duration, Wrong> {
    check::integer(node, range).map(Duration::from_secs)
}

pub(super) fn list<T>(
    node: &Node<'_>,
    read: impl Fn(&str) -> Result<T, Wrong>,
) -> Result<Vec<T>, Bad> {
    let Node::Array(items) = node else {
        return Err(Wrong::not(node, "an array of strings").into());
    };
    if items.len() > LIST {
        let message = format!("has {} entries (limit {LIST})", items.len());
        return Err(Wrong::new(message).into());
    }
    let mut out = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let value = check::name(item, 4096).and_then(&read);
        out.push(value.map_err(|wrong| Bad(Inside::Index(index), wrong))?);
    }
    Ok(out)
}

pub(super) fn port(config: &mut Config, node: &Node<'_>) -> Result<Option<String>, Bad> {
    config.server.port = whole(node, &(0..=65_535))?;
    Ok(None)
}

/// An address or host name to bind, without the brackets of an IPv6 address.
pub(super) fn host(text: &str) -> Result<String, Wrong> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    let address = bare.parse::<std::net::IpAddr>().is_ok();
    let name = bare
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if !bare.is_empty() && (address || name) {
        return Ok(bare.to_owned());
    }
    Err(not(
        text,
        "an IP address or host name without a port, like 127.0.0.1 or 0.0.0.0",
    ))
}

/// An origin exactly as browsers send it; never `*`.
pub(super) fn origin(text: &str) -> Result<String, Wrong> {
    let exact = reqwest::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text
    });
    if exact {
        return Ok(text.to_owned());
    }
    Err(not(
        text,
        "an exact origin like https://app.example.com (scheme, host and port, without a path or a slash at \
         its end, and never *)",
    ))
}

/// "must be …, not …", of a text.
pub(super) fn not(text: &str, wanted: &str) -> Wrong {
    Wrong::not(&Node::Text(text.into()), wanted)
}

pub(super) fn system_prompt(config: &mut Config, node: &Node<'_>) -> Result<Option<String>, Bad> {
    let Node::Object(fields) = node else {
        let text = check::text(node, &(0..=PROMPT_CHARS))?;
        config.project.system_prompt.role = (!text.trim().is_empty()).then(|| text.to_owned());
        return Ok(None);
    };
    let mut warning = None;
    for (name, value) in fields {
        let at = |wrong| Bad(Inside::Name(name.to_string()), wrong);
        if matches!(value, Node::Null) && ["append", "preset"].contains(&name.as_ref()) {
            continue;
        }
        let text = check::text(value, &(0..=PROMPT_CHARS)).map_err(at);
        match name.as_ref() {
            "append" => append_prompt(config, text?),
            "preset" => {
                text?;
                warning = Some(
                    "has a `preset`, which has no effect here: only `append` is used".to_owned(),
                );
            }
            other => {
                let hint = did_you_mean(other, ["append", "preset"]);
                return Err(at(Wrong::new("is unknown").hint(hint)));
            }
        }
    }
    Ok(warning)
}

pub(super) fn append_prompt(config: &mut Config, text: &str) {
    if text.trim().is_empty() {
        return;
    }
    let append = &mut config.project.system_prompt.append;
    *append = Some(match append.take() {
        Some(before) => format!("{before}\n\n{text}"),
        None => text.to_owned(),
    });
}

pub(super) fn allowed_tools(config: &mut Config, node: &Node<'_>) -> Result<Option<String>, Bad> {
    let defs = list(node, |name| check::tool(&Node::Text(name.into())))?;
    let mut allowed = Vec::new();
    let mut unavailable = Vec::new();
    for def in defs {
        if def.built.is_none() {
            unavailable.push(def.name.to_owned());
        } else if !allowed.contains(&def.name) {
            allowed.push(def.name);
        }
    }
    let warning = (!unavailable.is_empty()).then(|| {
        format!(
            "names tools that are not implemented yet: {}",
            unavailable.join(", ")
        )
    });
    config.project.allowed_tools = Some(allowed);
    config.project.unavailable_tools = unavailable;
    Ok(warning)
}

pub(super) fn network(config: &mut Config, node: &Node<'_>) -> Result<Option<String>, Bad> {
    let listed = |fields: &[_]| matches!(fields, [(name, Node::Array(_))] if name == "allow");
    let allow = match node {
        Node::Text(word) => word == "allow",
        Node::Object(fields) => listed(fields),
        _ => false,
    };
    if allow {
        // An allow list that isn't enforced must not become an open door.
        config.project.network = Some(Network::None);
        let closed =
            "asks for an allow list, which is not implemented yet: sandboxes get no network";
        return Ok(Some(closed.to_owned()));
    }
    let words = [("full", Network::Full), ("none", Network::None)];
    config.project.network = Some(check::word(node, &words)?);
    Ok(None)
}

pub(super) fn model_aliases(config: &mut Config, node: &Node<'_>) -> Result<Option<String>, Bad> {
    let Node::Object(fields) = node else {
        return Err(Wrong::not(node, "an object from alias to model").into());
    };
    for (alias, model) in fields {
        let at = |wrong| Bad(Inside::Name(alias.to_string()), wrong);
        check::model(&Node::Text(alias.as_ref().into())).map_err(|wrong| {
            let message = format!("has an alias ({}) that {}", quoted(alias), wrong.message);
            at(Wrong::new(message))
        })?;
        let model = check::model(model).map_err(at)?;
        let aliases = &mut config.project.model_aliases;
        aliases.insert(alias.to_string(), model.to_owned());
    }
    Ok(None)
}
