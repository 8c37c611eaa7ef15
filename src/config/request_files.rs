//! The request's `files`, in both forms that clients send: an array of `{name, content}` with base64
//! (the API reference), and an object from path to text (the older clients).

use std::borrow::Cow;
use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use super::check::{self, Wrong};
use super::faults::Faults;
use super::json::{At, Fields, Node};
use crate::paths::SandboxPath;
use crate::show::{did_you_mean, quoted, short};
use crate::spec::InputFile;

const MOST_FILES: usize = 20;
const MOST_BYTES: usize = 10_000_000;
const ANY: RangeInclusive<usize> = 0..=usize::MAX;

const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, ANY_PADDING);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, ANY_PADDING);

/// A file under its name as sent, with the place of that name.
struct Sent<'n> {
    place: String,
    raw: &'n str,
    path: SandboxPath,
    bytes: Option<Bytes>,
}

/// Reads `files`, noting every fault.
pub(super) fn take(node: &Node<'_>, at: &At<'_>, faults: &mut Faults) -> Vec<InputFile> {
    let (sent, total) = match node {
        Node::Array(items) => (from_array(items, at, faults), items.len()),
        Node::Object(fields) => (from_object(fields, at, faults), fields.len()),
        other => {
            faults.add(at, || {
                Wrong::new(format!(
                    "must be an array of {{name, content}} or an object from path to text, not {}",
                    other.kind()
                ))
            });
            return Vec::new();
        }
    };
    clashes(&sent, faults);
    if total > MOST_FILES {
        let message = format!("too many files: {total} (max {MOST_FILES})");
        faults.add(at, || Wrong::new(message));
    }
    let size: usize = sent
        .iter()
        .flat_map(|file| &file.bytes)
        .map(Bytes::len)
        .sum();
    if size > MOST_BYTES {
        let message = format!("has {size} bytes decoded in all (limit {MOST_BYTES}, 10 MB)");
        faults.add(at, || Wrong::new(message));
    }
    sent.into_iter()
        .filter_map(|file| {
            Some(InputFile {
                path: file.path,
                bytes: file.bytes?,
            })
        })
        .collect()
}

fn from_object<'n>(fields: &'n Fields<'_>, at: &At<'_>, faults: &mut Faults) -> Vec<Sent<'n>> {
    let mut sent = Vec::new();
    for (raw, value) in fields.iter().take(MOST_FILES) {
        let at = At::Name(at, raw);
        let text = faults.note(at, check::text(value, &ANY));
        if let Some(path) = faults.note(at, parse_path(raw)) {
            sent.push(Sent {
                place: at.to_string(),
                raw,
                path,
                bytes: text.map(|text| Bytes::copy_from_slice(text.as_bytes())),
            });
        }
    }
    sent
}

fn from_array<'n>(items: &'n [Node<'_>], at: &At<'_>, faults: &mut Faults) -> Vec<Sent<'n>> {
    let mut sent = Vec::new();
    for (index, item) in items.iter().take(MOST_FILES).enumerate() {
        let at = At::Index(at, index);
        let Node::Object(fields) = item else {
            faults.add(at, || {
                let kind = item.kind();
                Wrong::new(format!(
                    "must be an object with name and content, not {kind}"
                ))
            });
            continue;
        };
        let mut name = None;
        let mut content = None;
        let mut text = false;
        for (field, value) in fields {
            let at = At::Name(&at, field);
            match field.as_ref() {
                "name" => name = Some(value),
                "content" => content = Some(value),
                "encoding" if matches!(value, Node::Null) => {}
                "encoding" => {
                    let words = [("base64", false), ("utf-8", true)];
                    let word = faults.note(at, check::word(value, &words));
                    text = word.unwrap_or_default();
                }
                other => faults.add(at, || {
                    let hint = match other {
                        // The object form and other services call it so.
                        "path" | "filename" => Some("did you mean `name`?".to_owned()),
                        _ => did_you_mean(other, ["name", "content", "encoding"]),
                    };
                    Wrong::new("is unknown").hint(hint)
                }),
            }
        }
        let place = At::Name(&at, "content");
        let bytes = required(content, place, faults).and_then(|node| {
            let decoded = check::text(node, &ANY).and_then(|content| {
                if text {
                    return Ok(Bytes::copy_from_slice(content.as_bytes()));
                }
                decode(content)
            });
            faults.note(place, decoded)
        });
        let place = At::Name(&at, "name");
        let raw = required(name, place, faults)
            .and_then(|node| faults.note(place, check::text(node, &(1..=usize::MAX))));
        let Some(raw) = raw else { continue };
        if let Some(path) = faults.note(place, parse_path(raw)) {
            sent.push(Sent {
                place: place.to_string(),
                raw,
                path,
                bytes,
            });
        }
    }
    sent
}

fn required<'n, 'd>(
    node: Option<&'n Node<'d>>,
    at: At<'_>,
    faults: &mut Faults,
) -> Option<&'n Node<'d>> {
    if node.is_none() {
        faults.add(at, || Wrong::new("is required"));
    }
    node
}

fn parse_path(raw: &str) -> Result<SandboxPath, Wrong> {
    SandboxPath::parse(raw).map_err(|bad| Wrong::new(bad.to_string()))
}

/// Base64 of either alphabet, padded or not. Blanks and line ends may stand in it, as many encoders put them.
fn decode(content: &str) -> Result<Bytes, Wrong> {
    let blank = |byte: &u8| byte.is_ascii_whitespace();
    let dense: Cow<'_, [u8]> = if content.as_bytes().iter().any(blank) {
        content.bytes().filter(|byte| !blank(byte)).collect()
    } else {
        content.as_bytes().into()
    };
    let (engine, marks) = if content.contains(['-', '_']) {
        (URL_SAFE, ['-', '_'])
    } else {
        (STANDARD, ['+', '/'])
    };
    engine.decode(&dense).map(Bytes::from).map_err(|error| {
        let length = content.chars().count();
        let message = match error {
            base64::DecodeError::InvalidByte(..) => {
                // Counted afresh, in what was sent: the decoder's place is one of bytes, and without blanks.
                let known = |c: char| {
                    c.is_ascii_alphanumeric() || c.is_ascii_whitespace() || marks.contains(&c)
                };
                let strange = content.chars().position(|c| !known(c) && c != '=');
                let at = strange.or_else(|| content.chars().position(|c| !known(c)));
                format!(
                    "is not base64: character {} of {length} does not belong there",
                    at.map_or(length, |at| at + 1)
                )
            }
            base64::DecodeError::InvalidLength(_)
            | base64::DecodeError::InvalidLastSymbol { .. }
            | base64::DecodeError::InvalidPadding => {
                format!("is not base64: it ends wrongly after {length} characters")
            }
        };
        Wrong::new(message).hint(Some(
            "send base64, or set \"encoding\": \"utf-8\" for plain text".to_owned(),
        ))
    })
}

/// Two names for one file, and a file that is another's directory.
fn clashes(sent: &[Sent<'_>], faults: &mut Faults) {
    for (index, file) in sent.iter().enumerate() {
        for other in sent.iter().take(index) {
            if file.path == other.path {
                let message = format!(
                    "{} and {} are the same file: {}",
                    quoted(other.raw),
                    quoted(file.raw),
                    short(file.path.as_str(), 100)
                );
                faults.add(&file.place, || Wrong::new(message));
            } else if file.path.is_parent_of(&other.path) || other.path.is_parent_of(&file.path) {
                let message = format!(
                    "{} and {}: one would be both a file and a directory",
                    quoted(other.raw),
                    quoted(file.raw)
                );
                faults.add(&file.place, || Wrong::new(message));
            }
        }
    }
}
