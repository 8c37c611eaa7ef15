//! A call's arguments: repaired where the meaning is plain, then checked exactly.
//!
//! A refused call costs a turn, so what can only mean one thing is taken as meant. The schemas are of the
//! common subset of the providers: an object of `string`, `integer`, `boolean`, with `enum`.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::chat::{ToolArgs, ToolSpec};
use crate::secrets::Redactor;
use crate::show::{did_you_mean, first_chars, one_line, short};

use super::types::Failure;

/// So many characters of malformed arguments are looked at, to show the first of them.
const LOOKED_AT: usize = 8_192;

/// Names that models use for ours, besides ours in another style (`oldString`).
const SYNONYMS: &[(&str, &str)] = &[
    ("file_path", "path"),
    ("filepath", "path"),
    ("filename", "path"),
    ("file", "path"),
    ("directory", "path"),
    ("dir", "path"),
    ("old_str", "old_string"),
    ("old_text", "old_string"),
    ("new_str", "new_string"),
    ("new_text", "new_string"),
    ("cmd", "command"),
    ("script", "command"),
    ("run_in_background", "background"),
    ("regex", "pattern"),
    ("query", "pattern"),
    ("include", "glob"),
    ("output_mode", "mode"),
    ("-i", "ignore_case"),
    ("case_insensitive", "ignore_case"),
    ("case_sensitive", "ignore_case"),
    ("-C", "context"),
    ("-A", "context"),
    ("-B", "context"),
    ("type", "glob"),
    ("-l", "mode"),
    ("files_with_matches", "mode"),
    ("-c", "mode"),
    ("text", "content"),
    ("contents", "content"),
    ("file_text", "content"),
    ("timeout_secs", "timeout_seconds"),
    ("timeout", "timeout_seconds"),
    ("timeout_ms", "timeout_seconds"),
];

/// Those of the names that other harnesses have in milliseconds: the first always, the second from 1000 on,
/// since nobody means 30 ms.
const MILLISECONDS: [&str; 2] = ["timeoutms", "timeout"];
/// Longer names mean nothing.
const LONGEST_NAME: usize = 64;

/// Values that models use for ours, where a field has a few to choose from.
const OTHER_VALUES: &[(&str, &str)] = &[
    ("files_with_matches", "files"),
    ("files-with-matches", "files"),
];

/// Kinds of files, as ripgrep names them, whose names end otherwise.
const KINDS: &[(&str, &str)] = &[
    ("c", "*.{c,h}"),
    ("cpp", "*.{cpp,cc,cxx,hpp,hh,hxx,h}"),
    ("csharp", "*.cs"),
    ("html", "*.{html,htm}"),
    ("js", "*.{js,jsx,mjs,cjs}"),
    ("javascript", "*.{js,jsx,mjs,cjs}"),
    ("kotlin", "*.{kt,kts}"),
    ("markdown", "*.{md,markdown}"),
    ("md", "*.{md,markdown}"),
    ("perl", "*.{pl,pm}"),
    ("py", "*.{py,pyi}"),
    ("python", "*.{py,pyi}"),
    ("ruby", "*.rb"),
    ("rust", "*.rs"),
    ("sh", "*.{sh,bash}"),
    ("ts", "*.{ts,tsx,mts,cts}"),
    ("typescript", "*.{ts,tsx,mts,cts}"),
    ("yaml", "*.{yaml,yml}"),
];

/// Names of lines around a match, of which a call may have several.
const AROUND: [&str; 3] = ["-A", "-B", "-C"];
/// Unknown fields that are named in a note.
const NAMED: usize = 10;
/// Fields of a call: each unknown one is compared with all names that there are.
const MOST_FIELDS: usize = 10_000;

/// Arguments that fit the schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Only fields of the schema, with values of its types.
    pub args: Map<String, Value>,
    /// How many fields the schema doesn't know.
    ignored: usize,
    /// The first ten of these, on one line each, with what may have been meant.
    pub ignored_fields: Vec<String>,
}

impl Prepared {
    /// The last line of the result, if something was ignored.
    pub fn note(&self) -> Option<String> {
        let fields = self.ignored_fields.join(", ");
        match self.ignored {
            0 => None,
            1 => Some(format!("[ignored unknown argument: {fields}]")),
            2..=NAMED => Some(format!("[ignored unknown arguments: {fields}]")),
            many => Some(format!("[ignored {many} unknown arguments: {fields}, …]")),
        }
    }
}

/// Repairs and checks the arguments of a call of the tool that `spec` describes; `redactor` cleans what is told
/// of them.
///
/// # Errors
/// A complaint for the model: what is wrong, the schema in a line, the beginning of what arrived.
pub fn prepare(spec: &ToolSpec, args: &ToolArgs, redactor: &Redactor) -> Result<Prepared, String> {
    let complain = |what: &str, got: &str| {
        // Cleaned before it is cut.
        let begin = first_chars(got, LOOKED_AT);
        let got = if begin.len() == got.len() {
            redactor.clean(got)
        } else {
            Cow::Owned(redactor.clean_cut(begin))
        };
        format!(
            "{}: {what}. Expected {}. Got: {}",
            spec.name,
            shape(spec),
            one_line(first_chars(&got, 200))
        )
    };
    let value = match args {
        // What is too much is not kept.
        ToolArgs::Malformed { raw, error } if raw.is_empty() => {
            return Err(format!("{}: not run: {error}", spec.name));
        }
        ToolArgs::Malformed { raw, error } => {
            return Err(complain(
                &format!("the arguments are not JSON ({error})"),
                raw,
            ));
        }
        ToolArgs::Json(value) => value,
    };
    let object = as_object(value)
        .ok_or_else(|| complain("the arguments are no JSON object", &value.to_string()))?;
    if object.len() > MOST_FIELDS {
        let what = format!(
            "there are {} arguments, at most {MOST_FIELDS}",
            object.len()
        );
        return Err(complain(&what, &value.to_string()));
    }
    let empty = Map::new();
    let properties = properties(spec).unwrap_or(&empty);
    let mut prepared = Prepared {
        args: Map::new(),
        ignored: 0,
        ignored_fields: Vec::new(),
    };
    let is_required = |name: &str| required(spec).any(|required| required == name);
    // Right names first, so that a synonym never replaces what was also given by its right name.
    let (right, others): (Vec<_>, Vec<_>) = object
        .iter()
        .filter(|(_, value)| !value.is_null())
        .partition(|(name, _)| properties.contains_key(*name));
    for (name, value) in right.into_iter().chain(others) {
        let meant = meaning(name, properties);
        if let Some((meant, schema)) = meant
            && AROUND.contains(&name.as_str())
            && let Some(given) = prepared.args.get_mut(meant)
            && let Ok(other) = fitted(schema, value)
        {
            // Lines before and lines after: the larger has both.
            if other.as_i64() > given.as_i64() {
                *given = other;
            }
            continue;
        }
        let given = |meant: &str| prepared.args.contains_key(meant);
        let Some((meant, schema)) = meant.filter(|(meant, _)| !given(meant)) else {
            prepared.ignored += 1;
            if prepared.ignored <= NAMED {
                let name = redactor.clean(name);
                let named = match meant {
                    Some((meant, _)) => format!("{} ({meant} was given already)", short(&name, 60)),
                    None => unknown(&name, properties),
                };
                prepared.ignored_fields.push(named);
            }
            continue;
        };
        if !is_required(meant) && value.as_str().is_some_and(|text| text.trim().is_empty()) {
            continue;
        }
        let fitting = in_our_words(name, value).map_or_else(|| fitted(schema, value), Ok);
        if matches!(fitting, Ok(Value::Null)) {
            continue;
        }
        let value = fitting
            .map_err(|what| complain(&format!("{} {what}", one_line(name)), &value.to_string()))?;
        prepared.args.insert(meant.to_owned(), value);
    }
    let missing: Vec<&str> = required(spec)
        .filter(|name| !prepared.args.contains_key(*name))
        .collect();
    if !missing.is_empty() {
        let mut what = match missing.as_slice() {
            [one] => format!("{one} is missing"),
            many => format!("{} are missing", many.join(" and ")),
        };
        if let Some(note) = prepared.note() {
            what.push(' ');
            what.push_str(&note);
        }
        return Err(complain(&what, &value.to_string()));
    }
    Ok(prepared)
}

/// An unknown field as a note names it.
fn unknown(name: &str, properties: &Map<String, Value>) -> String {
    let shown = short(name, 60);
    match did_you_mean(&shown, properties.keys().map(String::as_str)) {
        Some(hint) => format!("{shown} ({hint})"),
        None => shown,
    }
}

/// The smallest call that fits, for a model that gets it wrong again and again.
pub fn example(spec: &ToolSpec) -> String {
    let args: Map<String, Value> = required(spec)
        .map(|name| {
            let value = match type_of(properties(spec).and_then(|all| all.get(name))) {
                "integer" => Value::from(1),
                "boolean" => Value::from(true),
                _ => Value::from("…"),
            };
            (name.to_owned(), value)
        })
        .collect();
    Value::Object(args).to_string()
}

fn properties(spec: &ToolSpec) -> Option<&Map<String, Value>> {
    spec.input_schema.get("properties")?.as_object()
}

fn required(spec: &ToolSpec) -> impl Iterator<Item = &str> {
    let names = spec.input_schema.get("required").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(Value::as_str)
}

fn type_of(schema: Option<&Value>) -> &str {
    schema
        .and_then(|schema| schema.get("type"))
        .and_then(Value::as_str)
        .unwrap_or("string")
}

/// The schema in a line: `{"path": string, "offset"?: integer}`.
fn shape(spec: &ToolSpec) -> String {
    let fields: Vec<String> = properties(spec)
        .into_iter()
        .flatten()
        .map(|(name, schema)| {
            let optional = if required(spec).any(|required| required == name) {
                ""
            } else {
                "?"
            };
            let values = options(schema).collect::<Vec<_>>().join("|");
            let of = if values.is_empty() {
                type_of(Some(schema))
            } else {
                &values
            };
            format!("\"{name}\"{optional}: {of}")
        })
        .collect();
    format!("{{{}}}", fields.join(", "))
}

fn options(schema: &Value) -> impl Iterator<Item = &str> {
    let options = schema.get("enum").and_then(Value::as_array);
    options.into_iter().flatten().filter_map(Value::as_str)
}

/// An object; one inside a string was taken out of it when the call was received.
fn as_object(value: &Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(object) => Some(object.clone()),
        Value::Null => Some(Map::new()),
        Value::String(_) | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

/// The field that `name` means, and its schema.
fn meaning<'p>(name: &str, properties: &'p Map<String, Value>) -> Option<(&'p str, &'p Value)> {
    if name.len() > LONGEST_NAME {
        return None;
    }
    let of = |ours: &str| properties.get_key_value(ours);
    let alike = |other: &str| letters(other).eq(letters(name));
    let synonym = |(theirs, ours): &(&str, &'static str)| {
        (*theirs == name || (name.len() > 3 && alike(theirs))).then_some(*ours)
    };
    of(name)
        .or_else(|| properties.iter().find(|(ours, _)| alike(ours)))
        .or_else(|| SYNONYMS.iter().filter_map(synonym).find_map(of))
        .map(|(name, schema)| (name.as_str(), schema))
}

/// A name without its style.
fn letters(name: &str) -> impl Iterator<Item = char> {
    let letters = name.chars().filter(|c| !matches!(c, '_' | '-'));
    letters.flat_map(char::to_lowercase)
}

/// The value as ours has it, where theirs means something else than the same value would for us; null if it means
/// that the field was not given.
fn in_our_words(name: &str, value: &Value) -> Option<Value> {
    // A single letter means one thing, its capital another.
    let name = if name.len() > 3 {
        &letters(name).collect::<String>()
    } else {
        name
    };
    match (name, value) {
        ("type", Value::String(kind)) if kind.chars().all(char::is_alphanumeric) => {
            let glob = KINDS.iter().find(|(theirs, _)| theirs == kind);
            Some(glob.map_or_else(
                || Value::from(format!("*.{kind}")),
                |(_, glob)| Value::from(*glob),
            ))
        }
        ("-l" | "fileswithmatches", value) => boolean(value).map(|yes| chosen(yes, "files")),
        ("-c", value) => boolean(value).map(|yes| chosen(yes, "count")),
        ("casesensitive", value) => boolean(value).map(|sensitive| Value::from(!sensitive)),
        (name, value) if MILLISECONDS.contains(&name) => {
            let number = integer(value)?;
            let is_seconds = number < 1 || (name == MILLISECONDS[1] && number < 1000);
            Some(Value::from(if is_seconds {
                number
            } else {
                (number.saturating_add(999) / 1000).min(999)
            }))
        }
        _ => None,
    }
}

fn chosen(yes: bool, mode: &str) -> Value {
    if yes { Value::from(mode) } else { Value::Null }
}

/// A boolean, also in a string.
fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// `value` as the schema wants it, or what is wrong with it.
fn fitted(schema: &Value, value: &Value) -> Result<Value, String> {
    match type_of(Some(schema)) {
        "integer" => integer(value)
            .map(Value::from)
            .ok_or_else(|| "must be an integer".to_owned()),
        "boolean" => boolean(value)
            .map(Value::from)
            .ok_or_else(|| "must be true or false".to_owned()),
        _ => {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                _ => return Err("must be a string".to_owned()),
            };
            let mut options = options(schema).peekable();
            if options.peek().is_none() {
                return Ok(Value::from(text));
            }
            let all = options.collect::<Vec<_>>();
            let text = text.trim();
            let ours = OTHER_VALUES.iter().find(|(theirs, _)| *theirs == text);
            let meant = ours.map_or(text, |(_, ours)| ours);
            all.iter()
                .find(|option| option.eq_ignore_ascii_case(meant))
                .map(|option| Value::from(*option))
                .ok_or_else(|| format!("must be one of {}", all.join(", ")))
        }
    }
}

/// An integer, also as a whole float or in a string.
fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            let float = number.as_f64()?;
            #[expect(
                clippy::cast_possible_truncation,
                reason = "whole and within 2^53, where floats are exact"
            )]
            (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
        }),
        Value::String(text) => {
            let text = text.trim();
            let whole = text
                .split_once('.')
                .filter(|(_, zeros)| zeros.bytes().all(|b| b == b'0'))
                .map_or(text, |(whole, _)| whole);
            whole.parse().ok()
        }
        _ => None,
    }
}

/// The arguments that [`prepare`] let through, as a tool's own type.
///
/// # Errors
/// A complaint, should the type ask for more than the schema does.
pub(super) fn typed<T: DeserializeOwned>(args: Map<String, Value>) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(args))
        .map_err(|error| Failure::Complaint(format!("the arguments can't be used: {error}")))
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
