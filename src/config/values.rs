//! How single settings are read from their values.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Config;
use super::check::{self, Bad, Wrong};
use super::json::{Node, Path};
use crate::show::{did_you_mean, quoted};
use crate::spec::Network;

/// Longest part of a system prompt, in characters.
pub(super) const PROMPT_CHARS: usize = 1_000_000;
/// Entries of a list.
const LIST: usize = 64;

pub(super) fn whole<T: TryFrom<u64>>(node: &Node, range: &RangeInclusive<u64>) -> Result<T, Wrong> {
    T::try_from(check::integer(node, range)?)
        .map_err(|_| Wrong::new("is too large for this machine"))
}

pub(super) fn seconds(node: &Node, range: &RangeInclusive<u64>) -> Result<Duration, Wrong> {
    check::integer(node, range).map(Duration::from_secs)
}

pub(super) fn list<T>(node: &Node, read: impl Fn(&str) -> Result<T, Wrong>) -> Result<Vec<T>, Bad> {
    let Node::Array(items) = node else {
        let message = format!("must be an array of strings, not {}", node.describe());
        return Err(Wrong::new(message).into());
    };
    if items.total > LIST {
        let message = format!("has {} entries (limit {LIST})", items.total);
        return Err(Wrong::new(message).into());
    }
    let mut out = Vec::new();
    for (index, item) in items.kept.iter().enumerate() {
        let value = check::text(item, &(1..=4096)).and_then(&read);
        out.push(value.map_err(|wrong| Bad(Path::default().index(index), wrong))?);
    }
    Ok(out)
}

pub(super) fn port(config: &mut Config, node: &Node) -> Result<Option<String>, Bad> {
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
    Err(Wrong::new(
        "must be an IP address or host name without a port, like 127.0.0.1 or 0.0.0.0",
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
    Err(Wrong::new(
        "must be an exact origin like https://app.example.com: scheme, host and port, without a path \
         or a slash at its end, and never *",
    ))
}

pub(super) fn system_prompt(config: &mut Config, node: &Node) -> Result<Option<String>, Bad> {
    let Node::Object(fields) = node else {
        let text = check::text(node, &(0..=PROMPT_CHARS))?;
        config.project.system_prompt.role = (!text.trim().is_empty()).then(|| text.to_owned());
        return Ok(None);
    };
    let mut warning = None;
    for (name, value) in &fields.kept {
        let at = Path::field(name);
        if matches!(value, Node::Null) && ["append", "preset"].contains(&name.as_str()) {
            continue;
        }
        let text = check::text(value, &(0..=PROMPT_CHARS)).map_err(|wrong| Bad(at.clone(), wrong));
        match name.as_str() {
            "append" => append_prompt(config, text?),
            "preset" => {
                text?;
                warning = Some(
                    "has a `preset`, which has no effect here: only `append` is used".to_owned(),
                );
            }
            other => {
                let hint = did_you_mean(other, ["append", "preset"]);
                return Err(Bad(at, Wrong::new("is unknown").hint(hint)));
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

pub(super) fn allowed_tools(config: &mut Config, node: &Node) -> Result<Option<String>, Bad> {
    let defs = list(node, |name| check::tool(&Node::Text(name.to_owned())))?;
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

pub(super) fn network(config: &mut Config, node: &Node) -> Result<Option<String>, Bad> {
    // An allow list that isn't enforced must not become an open door.
    let closed = "asks for an allow list, which is not implemented yet: sandboxes get no network";
    if let Node::Object(fields) = node
        && let [(name, Node::Array(_))] = fields.kept.as_slice()
        && name == "allow"
    {
        config.project.network = Some(Network::None);
        return Ok(Some(closed.to_owned()));
    }
    let words = [
        ("full", Some(Network::Full)),
        ("none", Some(Network::None)),
        ("allow", None),
    ];
    let chosen = check::word(node, &words)?;
    config.project.network = Some(chosen.unwrap_or(Network::None));
    Ok(chosen.is_none().then(|| closed.to_owned()))
}

pub(super) fn model_aliases(config: &mut Config, node: &Node) -> Result<Option<String>, Bad> {
    let Node::Object(fields) = node else {
        let message = format!(
            "must be an object from alias to model, not {}",
            node.describe()
        );
        return Err(Wrong::new(message).into());
    };
    for (alias, model) in &fields.kept {
        let at = Path::field(alias);
        check::model(&Node::Text(alias.clone())).map_err(|wrong| {
            let message = format!("has an alias ({}) that {}", quoted(alias), wrong.message);
            Bad(at.clone(), Wrong::new(message))
        })?;
        let model = check::model(model).map_err(|wrong| Bad(at, wrong))?;
        config
            .project
            .model_aliases
            .insert(alias.clone(), model.to_owned());
    }
    Ok(None)
}
