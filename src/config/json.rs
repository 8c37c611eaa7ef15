//! JSON as it was written: repeated names told, time and memory bounded, and the place of a value found again for
//! a message.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Number;
use serde_json::value::RawValue;

use crate::encoding::without_bom;
use crate::show::quoted;

/// Values and names that are kept of one document. A value is larger than the least that stands for one (`1,`), so
/// that a body without this limit would cost a multiple of its size.
const MOST_VALUES: usize = 10_000;

/// A JSON value. What has no escapes is a slice of the text that it was read from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node<'d> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'d, str>),
    Array(Vec<Self>),
    Object(Fields<'d>),
    /// A value of a field that nobody wanted.
    Unread,
}

/// Names and values in the order of the text; a repeated name is there again.
pub(crate) type Fields<'d> = Vec<(Cow<'d, str>, Node<'d>)>;

impl Node<'_> {
    /// The value for a message: shortened and escaped, of arrays and objects only the size.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => quoted(text),
            other => other.kind(),
        }
    }

    /// The kind of value, with its article, and its size where that helps: where the value itself is nobody's business.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Null | Self::Unread => "null".to_owned(),
            Self::Bool(_) => "a boolean".to_owned(),
            Self::Number(_) => "a number".to_owned(),
            Self::Text(text) => format!("a string of length {}", text.chars().count()),
            Self::Array(items) => format!("an array of {}", items.len()),
            Self::Object(fields) => format!("an object of {} fields", fields.len()),
        }
    }
}

/// Whether a number has no fraction: `30`, and also `30.0` and `3e1`.
pub(crate) fn is_whole(number: &Number) -> bool {
    !number.is_f64() || number.as_f64().is_some_and(|value| value.fract() == 0.0)
}

/// A place in a document; displays as `files[2].name`, long names shortened, of a deep place only the end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At<'p> {
    Document,
    Name(&'p At<'p>, &'p str),
    Index(&'p At<'p>, usize),
}

impl At<'_> {
    /// The steps that are shown.
    const SHOWN: usize = 8;

    fn parent(&self) -> Option<&Self> {
        match self {
            Self::Document => None,
            Self::Name(parent, _) | Self::Index(parent, _) => Some(parent),
        }
    }

    /// This place, or of a deep one what encloses it [`Self::SHOWN`] steps into the document: finding a place reads
    /// each enclosing value once more.
    fn found(self) -> Self {
        let steps = std::iter::successors(self.parent(), |at| at.parent()).count();
        let mut at = self;
        for _ in Self::SHOWN..steps {
            at = at.parent().copied().unwrap_or(at);
        }
        at
    }

    fn show(&self, f: &mut fmt::Formatter<'_>, left: usize) -> fmt::Result {
        match self {
            Self::Document => Ok(()),
            _ if left == 0 => f.write_str("…"),
            Self::Index(parent, index) => {
                parent.show(f, left - 1)?;
                write!(f, "[{index}]")
            }
            Self::Name(parent, name) => {
                parent.show(f, left - 1)?;
                if !is_word(name) {
                    return write!(f, "[{}]", quoted(name));
                }
                let top = matches!(parent, Self::Document);
                write!(f, "{}{name}", if top { "" } else { "." })
            }
        }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f, Self::SHOWN)
    }
}

fn is_word(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'$'))
}

/// Reads one document with nothing after it, and skips a byte order mark before it. Of its top-level fields those
/// that are `wanted` are kept. Every name that an object has twice is told to `repeated`.
///
/// # Errors
/// With line and column (in bytes), and none of the text. A syntax error, nesting beyond 128, or, as the one that
/// [`is_data`](serde_json::Error::is_data), more values than are kept.
pub(crate) fn parse<'d>(
    bytes: &'d [u8],
    wanted: &dyn Fn(&str) -> bool,
    repeated: &mut dyn FnMut(At<'_>),
) -> Result<Node<'d>, serde_json::Error> {
    let reading = Reading {
        wanted,
        repeated: RefCell::new(repeated),
        left: Cell::new(MOST_VALUES),
        aside: Cell::new(MOST_VALUES),
    };
    let seed = Seed {
        reading: &reading,
        at: At::Document,
        kept: true,
    };
    let mut reader = serde_json::Deserializer::from_slice(without_bom(bytes));
    let node = seed.deserialize(&mut reader)?;
    reader.end()?;
    Ok(node)
}

struct Reading<'r> {
    wanted: &'r dyn Fn(&str) -> bool,
    repeated: RefCell<&'r mut dyn FnMut(At<'_>)>,
    left: Cell<usize>,
    /// As `left`, for values that nobody wanted: they are read for repeated names alone.
    aside: Cell<usize>,
}

#[derive(Clone, Copy)]
struct Seed<'a, 'r> {
    reading: &'a Reading<'r>,
    at: At<'a>,
    kept: bool,
}

impl Seed<'_, '_> {
    /// Whether one more value may be kept.
    fn take<E: Error>(self) -> Result<bool, E> {
        let left = if self.kept {
            &self.reading.left
        } else {
            &self.reading.aside
        };
        let more = left.get().checked_sub(1);
        left.set(more.unwrap_or_default());
        if more.is_none() && self.kept {
            let message = format_args!("more than {MOST_VALUES} values");
            return Err(E::custom(message));
        }
        Ok(more.is_some())
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node<'de>, E> {
        Ok(Number::from_f64(value).map_or(Node::Null, Node::Number))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node<'de>, E> {
        let text = if self.kept { value } else { "" };
        Ok(Node::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node<'de>, A::Error> {
        let mut items = Vec::new();
        let mut index = 0;
        while let Some(node) = seq.next_element_seed(Seed {
            at: At::Index(&self.at, index),
            ..self
        })? {
            index += 1;
            if self.take()? {
                items.push(node);
            }
        }
        Ok(Node::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node<'de>, A::Error> {
        let top = matches!(self.at, At::Document);
        let mut fields: Fields<'de> = Vec::new();
        while let Some(Name(name)) = map.next_key()? {
            let wanted = !top || (self.reading.wanted)(&name);
            let below = Seed {
                at: At::Name(&self.at, &name),
                kept: self.kept && wanted,
                ..self
            };
            let node = match map.next_value_seed(below)? {
                Node::Null => Node::Null,
                node if wanted => node,
                _ => Node::Unread,
            };
            if self.take()? {
                fields.push((name, node));
            }
        }
        let mut seen = HashSet::new();
        for (name, _) in &fields {
            if !seen.insert(name.as_ref()) {
                (self.reading.repeated.borrow_mut())(At::Name(&self.at, name));
            }
        }
        Ok(Node::Object(fields))
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Name<'d>(#[serde(borrow)] Cow<'d, str>);

/// Line and column (both from 1, the column in bytes) of the value at `at` in `text`, or of its name
/// where `at_name`; of a deep place those of what encloses it. The last of repeated names is meant.
pub(crate) fn locate(text: &str, at: At<'_>, at_name: bool) -> Option<(usize, usize)> {
    let (name, value) = find(text, at.found())?;
    let start = name.filter(|_| at_name).unwrap_or(value).get();
    // Both are slices of the same text, so the distance of their addresses is the offset.
    let offset = (start.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    position(text, offset)
}

/// The value at `at`, and its name as written if it is a field.
fn find<'t>(text: &'t str, at: At<'_>) -> Option<(Option<&'t RawValue>, &'t RawValue)> {
    match at {
        At::Document => Some((None, serde_json::from_str(text).ok()?)),
        At::Index(parent, index) => {
            let (_, array) = find(text, *parent)?;
            let items: Vec<&RawValue> = serde_json::from_str(array.get()).ok()?;
            Some((None, items.get(index).copied()?))
        }
        At::Name(parent, name) => {
            let (_, object) = find(text, *parent)?;
            let Entries(entries) = serde_json::from_str(object.get()).ok()?;
            let (key, value) = entries.into_iter().rev().find(|(key, _)| {
                serde_json::from_str::<Name<'_>>(key.get()).is_ok_and(|Name(key)| key == name)
            })?;
            Some((Some(key), value))
        }
    }
}

/// Line and column of a byte offset.
pub(crate) fn position(text: &str, offset: usize) -> Option<(usize, usize)> {
    let before = text.as_bytes().get(..offset)?;
    let mut lines = before.split(|byte| *byte == b'\n').rev();
    let column = lines.next().map_or(0, <[u8]>::len) + 1;
    let line = lines.count() + 1;
    Some((line, column))
}

struct Entries<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Node<'_> {
        parse(text.as_bytes(), &|_| true, &mut |_| ()).unwrap()
    }

    #[test]
    fn positions_are_those_of_the_value_or_its_name() {
        let text = "{\n  \"ü\": 1, \"a\": {\"b\": [true, 7]}\n}";
        let a = At::Name(&At::Document, "a");
        let b = At::Name(&a, "b");
        let place = At::Index(&b, 1);
        let at = text.find('7').unwrap() - text.find('\n').unwrap();
        assert_eq!(locate(text, place, false), Some((2, at)));
        assert_eq!(place.to_string(), "a.b[1]");
        let name = text.find("\"a\"").unwrap() - text.find('\n').unwrap();
        assert_eq!(locate(text, a, true), Some((2, name)));
        assert_eq!(locate(text, At::Name(&a, "missing"), false), None);
    }

    #[test]
    fn a_place_is_shown_shortened_and_escaped() {
        let long = "x".repeat(1_000_000);
        let mut shown = At::Name(&At::Document, &long).to_string();
        assert_eq!(shown, format!("[\"{}…\"]", "x".repeat(100)));
        shown = At::Name(&At::Index(&At::Document, 3), "a\n\u{202e}").to_string();
        assert_eq!(shown, "[3][\"a\\n\\u{202e}\"]");
        let deep = |levels| {
            let inside = "{\"a\":".repeat(levels);
            let text = format!("{inside}1{}", ",\"a\":2}".repeat(levels));
            let mut places = Vec::new();
            let mut repeated = |at: At<'_>| places.push(at.to_string());
            parse(text.as_bytes(), &|_| true, &mut repeated).unwrap();
            places
        };
        assert_eq!(deep(3), ["a.a.a", "a.a", "a"]);
        assert_eq!(deep(9)[0], "….a.a.a.a.a.a.a.a");
    }

    #[test]
    fn a_deep_place_is_that_of_what_encloses_it() {
        fn columns(text: &str, at: At<'_>, left: usize, found: &mut Vec<usize>) {
            let (_, column) = locate(text, at, false).unwrap();
            found.push(column);
            if left > 0 {
                columns(text, At::Index(&at, 0), left - 1, found);
            }
        }
        let text = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        let mut found = Vec::new();
        columns(&text, At::Document, 100, &mut found);
        let expected: Vec<usize> = (0..=100).map(|depth| 1 + At::SHOWN.min(depth)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn repeated_names_are_kept_and_found_at_any_depth() {
        let text = br#"{"a":1,"b":[{"c":1,"\u0063":2}],"a":3}"#;
        for wanted in [true, false] {
            let mut found = Vec::new();
            let mut repeated = |at: At<'_>| found.push(at.to_string());
            let node = parse(text, &|_| wanted, &mut repeated).unwrap();
            assert_eq!(found, ["b[0].c", "a"]);
            let Node::Object(fields) = node else {
                panic!("not an object")
            };
            assert_eq!(fields.len(), 3);
            assert_eq!(matches!(fields[2].1, Node::Unread), !wanted);
        }
    }

    #[test]
    fn more_values_than_are_kept_are_refused_unless_nobody_wants_them() {
        let list = |count| format!("{{\"a\":[{}1]}}", "1,".repeat(count - 1));
        for (text, wanted, taken) in [
            (list(MOST_VALUES - 1), true, true),
            (list(MOST_VALUES), true, false),
            (list(100 * MOST_VALUES), false, true),
        ] {
            let read = parse(text.as_bytes(), &|_| wanted, &mut |_| ());
            assert_eq!(read.is_ok(), taken);
            if let Err(error) = read {
                assert!(error.is_data(), "{error}");
                assert!(error.to_string().starts_with("more than 10000 values at"));
            }
        }
    }

    #[test]
    fn integers_are_told_from_fractions() {
        let whole = |text: &str| matches!(read(text), Node::Number(number) if is_whole(&number));
        for text in ["3", "3.0", "-0", "3e1", "1e300", "18446744073709551616"] {
            assert!(whole(text), "{text}");
        }
        for text in ["3.5", "1e-300"] {
            assert!(!whole(text), "{text}");
        }
        // An exponent of any length costs no more than reading it.
        let digits = "9".repeat(1 << 20);
        assert!(whole(&format!("1e-{digits}")));
        for text in [
            format!("1e{digits}"),
            "1e400".to_owned(),
            "1 2".to_owned(),
            "[".repeat(200),
        ] {
            let error = parse(text.as_bytes(), &|_| true, &mut |_| ()).unwrap_err();
            assert!(!error.is_data(), "{error}");
        }
    }
}
