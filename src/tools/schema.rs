//! A call's arguments: repaired where the meaning is plain, then checked exactly.
//!
//! A refused call costs a turn, so what can only mean one thing is taken as meant. The schemas are of the
//! common subset of the providers: an object of `string`, `integer`, `boolean`, with `enum`.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::chat::{ToolArgs, ToolSpec};
use crate::show::{first_chars, one_line};

use super::types::Failure;

/// Names that models use for ours.
const SYNONYMS: &[(&str, &str)] = &[
    ("file_path", "path"),
    ("filepath", "path"),
    ("filename", "path"),
    ("file", "path"),
    ("directory", "path"),
    ("dir", "path"),
    ("old_str", "old_string"),
    ("oldText", "old_string"),
    ("old_text", "old_string"),
    ("oldString", "old_string"),
    ("new_str", "new_string"),
    ("newText", "new_string"),
    ("new_text", "new_string"),
    ("newString", "new_string"),
    ("replaceAll", "replace_all"),
    ("cmd", "command"),
    ("script", "command"),
    ("run_in_background", "background"),
    ("regex", "pattern"),
    ("query", "pattern"),
    ("include", "glob"),
    ("output_mode", "mode"),
    ("-i", "ignore_case"),
    ("case_insensitive", "ignore_case"),
    ("-C", "context"),
    ("text", "content"),
    ("contents", "content"),
    ("file_text", "content"),
    ("timeout_secs", "timeout_seconds"),
];

/// In milliseconds, as other harnesses have it.
const MILLISECONDS: &[(&str, &str)] = &[
    ("timeout", "timeout_seconds"),
    ("timeout_ms", "timeout_seconds"),
];

/// Arguments that fit the schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Only fields of the schema, with values of its types.
    pub args: Map<String, Value>,
    /// Fields that the schema doesn't know.
    pub ignored_fields: Vec<String>,
}

impl Prepared {
    /// The last line of the result, if something was ignored.
    pub fn note(&self) -> Option<String> {
        (!self.ignored_fields.is_empty()).then(|| {
            format!(
                "[ignored unknown argument{}: {}]",
                if self.ignored_fields.len() == 1 {
                    ""
                } else {
                    "s"
                },
                one_line(&self.ignored_fields.join(", "))
            )
        })
    }
}

/// Repairs and checks the arguments of a call of the tool that `spec` describes.
///
/// # Errors
/// A complaint for the model: what is wrong, the schema in a line, the beginning of what arrived.
pub fn prepare(spec: &ToolSpec, args: &ToolArgs) -> Result<Prepared, String> {
    let complain = |what: &str, got: &str| {
        format!(
            "{}: {what}. Expected {}. Got: {}",
            spec.name,
            shape(spec),
            one_line(first_chars(got, 200))
        )
    };
    let value = match args {
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
    let empty = Map::new();
    let properties = properties(spec).unwrap_or(&empty);
    let mut prepared = Prepared {
        args: Map::new(),
        ignored_fields: Vec::new(),
    };
    // Right names first, so that a synonym never replaces what was also given by its right name.
    for (name, value) in &object {
        if let Some(schema) = properties.get(name)
            && !value.is_null()
        {
            let value = fitted(schema, value)
                .map_err(|what| complain(&format!("{name} {what}"), &value.to_string()))?;
            prepared.args.insert(name.clone(), value);
        }
    }
    for (name, value) in &object {
        if properties.contains_key(name) || value.is_null() {
            continue;
        }
        let meant = meaning(name, value).filter(|(meant, _)| {
            properties.contains_key(*meant) && !prepared.args.contains_key(*meant)
        });
        let fitting = meant.and_then(|(meant, value)| {
            let value = fitted(properties.get(meant)?, &value).ok()?;
            Some((meant, value))
        });
        match fitting {
            Some((meant, value)) => {
                prepared.args.insert(meant.to_owned(), value);
            }
            None => prepared.ignored_fields.push(name.clone()),
        }
    }
    let missing: Vec<&str> = required(spec)
        .filter(|name| !prepared.args.contains_key(*name))
        .collect();
    if !missing.is_empty() {
        return Err(complain(
            &format!("{} is missing", missing.join(" and ")),
            &value.to_string(),
        ));
    }
    Ok(prepared)
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

/// An object, also inside a string, once.
fn as_object(value: &Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(object) => Some(object.clone()),
        Value::Null => Some(Map::new()),
        Value::String(text) if text.trim().is_empty() => Some(Map::new()),
        Value::String(text) => match serde_json::from_str(text).ok()? {
            Value::Object(object) => Some(object),
            _ => None,
        },
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

/// Our name for a field that isn't one, and its value in our unit.
fn meaning(name: &str, value: &Value) -> Option<(&'static str, Value)> {
    let of = |table: &'static [(&str, &'static str)]| {
        table
            .iter()
            .find(|(theirs, _)| *theirs == name)
            .map(|(_, ours)| *ours)
    };
    if let Some(ours) = of(SYNONYMS) {
        return Some((ours, value.clone()));
    }
    let ours = of(MILLISECONDS)?;
    let millis = integer(value)?;
    let secs = if millis < 1 {
        millis
    } else {
        millis.saturating_add(999) / 1000
    };
    Some((ours, Value::from(secs.min(999))))
}

/// `value` as the schema wants it, or what is wrong with it.
fn fitted(schema: &Value, value: &Value) -> Result<Value, String> {
    match type_of(Some(schema)) {
        "integer" => integer(value)
            .map(Value::from)
            .ok_or_else(|| "must be an integer".to_owned()),
        "boolean" => match value {
            Value::Bool(_) => Ok(value.clone()),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(Value::from(true)),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(Value::from(false)),
            _ => Err("must be true or false".to_owned()),
        },
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
            all.iter()
                .find(|option| option.eq_ignore_ascii_case(text.trim()))
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
        Value::String(text) => text.trim().parse().ok(),
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
