//! The arguments of an answer's calls.

use serde_json::{Map, Value};

use super::text::{mended, values};
use crate::chat::ToolArgs;

/// The most JSON values that the calls of one answer may have in all, and the most that one event may have.
pub(super) const MOST_VALUES: usize = 100_000;
/// The most MiB that the arguments of one answer's calls may have in all: the longest answer of any model has less.
const MOST_MIB: usize = 2;

/// Reads the arguments of one answer's calls, which have at most [`MOST_VALUES`] values and [`MOST_MIB`] MiB in all:
/// they stay in the conversation, whatever their provider says of their tokens.
#[derive(Debug)]
pub(super) struct ArgsReader {
    values_left: usize,
    bytes_left: usize,
}

impl Default for ArgsReader {
    fn default() -> Self {
        Self {
            values_left: MOST_VALUES,
            bytes_left: MOST_MIB << 20,
        }
    }
}

/// Why a text was not read.
enum Unread {
    TooMany,
    NoJson(serde_json::Error),
}

impl ArgsReader {
    /// Reads what arrived as a call's arguments. Nothing is an empty object, and an object within a string is that
    /// object from here on, also in what its provider is sent back.
    pub(super) fn read(&mut self, raw: String) -> ToolArgs {
        if !self.fits(&raw) {
            return too_long();
        }
        let outer = self.object_or(&raw);
        let read = match &outer {
            Ok(Value::String(text)) => match self.object_or(text) {
                Ok(Value::Object(fields)) => Ok(Value::Object(fields)),
                Err(Unread::TooMany) => Err(Unread::TooMany),
                Ok(_) | Err(Unread::NoJson(_)) => outer,
            },
            Ok(_) | Err(_) => outer,
        };
        match read {
            Ok(value) => ToolArgs::Json(value),
            Err(Unread::NoJson(error)) => ToolArgs::Malformed {
                error: error.to_string(),
                raw,
            },
            // What is too much to be read is too much to be kept.
            Err(Unread::TooMany) => ToolArgs::Malformed {
                error: format!("the calls of one answer may have {MOST_VALUES} values in all"),
                raw: String::new(),
            },
        }
    }

    /// Takes what arrived of arguments that are not whole.
    pub(super) fn cut(&mut self, raw: String) -> ToolArgs {
        if !self.fits(&raw) {
            return too_long();
        }
        ToolArgs::Malformed {
            raw,
            error: "the call was cut off".to_owned(),
        }
    }

    fn fits(&mut self, raw: &str) -> bool {
        let left = self.bytes_left.checked_sub(raw.len());
        self.bytes_left = left.unwrap_or_default();
        left.is_some()
    }

    fn object_or(&mut self, json: &str) -> Result<Value, Unread> {
        if json.trim().is_empty() {
            return Ok(Value::Object(Map::new()));
        }
        let Some(left) = self.values_left.checked_sub(values(json)) else {
            self.values_left = 0;
            return Err(Unread::TooMany);
        };
        self.values_left = left;
        serde_json::from_str(json)
            .or_else(|error| serde_json::from_str(&mended(json)).map_err(|_| error))
            .map_err(Unread::NoJson)
    }
}

fn too_long() -> ToolArgs {
    ToolArgs::Malformed {
        error: format!("the arguments of one answer's calls may have {MOST_MIB} MiB in all"),
        raw: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_within_a_string_is_that_object_once() {
        let once = json!({"a": "b"}).to_string();
        let twice = json!(once).to_string();
        for (raw, expected) in [
            ("", json!({})),
            ("  ", json!({})),
            (r#""""#, json!({})),
            (r#"" ""#, json!({})),
            (&twice, json!({"a": "b"})),
            (&json!(twice).to_string(), json!(twice)),
            (r#""no object""#, json!("no object")),
            (r#""[1]""#, json!("[1]")),
            (r#"{"a":"\ud83d"}"#, json!({"a": "\u{fffd}"})),
        ] {
            let args = ArgsReader::default().read(raw.to_owned());
            assert_eq!(args, ToolArgs::Json(expected), "{raw}");
        }
    }

    #[test]
    fn all_calls_of_an_answer_together_have_a_bounded_number_of_values_also_within_strings() {
        let list = json!({"a": vec![json!([]); MOST_VALUES / 4]}).to_string();
        for list in [list.clone(), json!(list).to_string()] {
            let mut reader = ArgsReader::default();
            let read: Vec<bool> = (0..4)
                .map(|_| match reader.read(list.clone()) {
                    ToolArgs::Json(value) => value.is_object(),
                    ToolArgs::Malformed { raw, error } => {
                        assert!(raw.is_empty() && error.contains("values"), "{error}");
                        false
                    }
                })
                .collect();
            assert_eq!(read, [true, false, false, false]);
        }
    }

    #[test]
    fn all_calls_of_an_answer_together_keep_a_bounded_number_of_bytes_whole_or_not() {
        let kept = |reader: &mut ArgsReader, raw: &str| match reader.read(raw.to_owned()) {
            ToolArgs::Json(_) => true,
            ToolArgs::Malformed { raw, .. } => !raw.is_empty(),
        };
        let half = json!({"x": "y".repeat(MOST_MIB << 19)}).to_string();
        let broken = half.trim_end_matches('}');
        for raw in [half.as_str(), broken] {
            let mut reader = ArgsReader::default();
            assert!(kept(&mut reader, raw), "half of it");
            assert!(!kept(&mut reader, raw), "and a little more than half");
            for args in [reader.read(raw.to_owned()), reader.cut(raw.to_owned())] {
                let ToolArgs::Malformed { raw, error } = args else {
                    panic!("{args:?}");
                };
                assert!(raw.is_empty() && error.contains("2 MiB"), "{error}");
            }
        }
    }
}
