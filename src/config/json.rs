//! JSON as it was written: repeated names kept, memory bounded, and the place of a value found again for a message.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Number;
use serde_json::value::RawValue;

use crate::encoding::without_bom;
use crate::show::quoted;

/// Values kept of one document. Further elements are read and counted, not kept, so that a body of
/// `[1,1,1,…` costs no multiple of its size.
const MOST_VALUES: usize = 20_000;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    Array(Items<Self>),
    Object(Items<(String, Self)>),
}

/// The elements of an array or object, in order; `total` also counts those that were not kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Items<T> {
    pub(crate) kept: Vec<T>,
    pub(crate) total: usize,
}

impl<T> Items<T> {
    pub(crate) const fn of(kept: Vec<T>) -> Self {
        let total = kept.len();
        Self { kept, total }
    }
}

impl Node {
    /// The kind of value, with its article, and its size where that helps.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(_) => "a boolean".to_owned(),
            Self::Number(number) if is_whole(number) => "an integer".to_owned(),
            Self::Number(_) => "a number with a fraction".to_owned(),
            Self::Text(text) => format!("a string of length {}", text.chars().count()),
            Self::Array(items) => format!("an array of {}", items.total),
            Self::Object(items) => format!("an object of {} fields", items.total),
        }
    }
}

/// Whether a number has no fraction: `30`, and also `30.0` and `3e1`.
pub(crate) fn is_whole(number: &Number) -> bool {
    !number.is_f64() || number.as_f64().is_some_and(|value| value.fract() == 0.0)
}

/// Reads one document with nothing after it, and skips a byte order mark before it. Nesting beyond 128 is
/// refused.
///
/// # Errors
/// With line and column (in bytes); the message never holds any of the text.
pub(crate) fn parse(bytes: &[u8]) -> Result<Node, serde_json::Error> {
    let left = Cell::new(MOST_VALUES);
    let mut reader = serde_json::Deserializer::from_slice(without_bom(bytes));
    let node = Seed { left: &left }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(node)
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    left: &'a Cell<usize>,
}

impl Seed<'_> {
    /// Whether one more value may be kept.
    fn take(self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Number::from_f64(value).map_or(Node::Null, Node::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Items::of(Vec::new());
        loop {
            if self.take() {
                match seq.next_element_seed(self)? {
                    Some(node) => items.kept.push(node),
                    None => break,
                }
            } else if seq.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
            items.total += 1;
        }
        Ok(Node::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut items = Items::of(Vec::new());
        loop {
            if self.take() {
                let Some(name) = map.next_key::<String>()? else {
                    break;
                };
                items.kept.push((name, map.next_value_seed(self)?));
            } else if map.next_entry::<IgnoredAny, IgnoredAny>()?.is_none() {
                break;
            }
            items.total += 1;
        }
        Ok(Node::Object(items))
    }
}

/// A step from a value to one inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Name(String),
    Index(usize),
}

/// A place in a document; displays as `files[2].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Path(pub(crate) Vec<Step>);

impl Path {
    /// The place of a top-level field.
    pub(crate) fn field(name: &str) -> Self {
        Self::default().name(name)
    }

    /// The field `name` of this object.
    pub(crate) fn name(&self, name: &str) -> Self {
        self.step(Step::Name(name.to_owned()))
    }

    /// The element `index` of this array.
    pub(crate) fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    fn step(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Name(name) if is_word(name) => {
                    write!(f, "{}{name}", if place == 0 { "" } else { "." })?;
                }
                Step::Name(name) => write!(f, "[{}]", quoted(name))?,
            }
        }
        Ok(())
    }
}

fn is_word(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'$'))
}

/// Every name that an object of the document has twice, with the place of the repetition.
pub(crate) fn repeated_names(root: &Node) -> Vec<Path> {
    let mut found = Vec::new();
    walk(root, &Path::default(), &mut found);
    found
}

fn walk(node: &Node, at: &Path, found: &mut Vec<Path>) {
    match node {
        Node::Object(items) => {
            let mut seen = std::collections::HashSet::new();
            for (name, value) in &items.kept {
                let here = at.name(name);
                walk(value, &here, found);
                if !seen.insert(name.as_str()) {
                    found.push(here);
                }
            }
        }
        Node::Array(items) => {
            for (index, value) in items.kept.iter().enumerate() {
                walk(value, &at.index(index), found);
            }
        }
        Node::Null | Node::Bool(_) | Node::Number(_) | Node::Text(_) => {}
    }
}

/// Line and column (both from 1, the column in bytes) of the value at `path` in `text`, or of its name
/// where `at_name`. The last of repeated names is meant.
pub(crate) fn locate(text: &str, path: &Path, at_name: bool) -> Option<(usize, usize)> {
    let mut here: &RawValue = serde_json::from_str(text).ok()?;
    let mut start = here.get();
    for step in &path.0 {
        match step {
            Step::Index(index) => {
                let items: Vec<&RawValue> = serde_json::from_str(here.get()).ok()?;
                here = items.get(*index).copied()?;
                start = here.get();
            }
            Step::Name(name) => {
                let Entries(entries) = serde_json::from_str(here.get()).ok()?;
                let (key, value) = entries.into_iter().rev().find(|(key, _)| {
                    serde_json::from_str::<String>(key.get()).is_ok_and(|key| key == *name)
                })?;
                here = value;
                start = if at_name { key.get() } else { value.get() };
            }
        }
    }
    // Both are slices of the same text, so the distance of their addresses is the offset.
    let offset = (start.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    position(text, offset)
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

    #[test]
    fn positions_are_those_of_the_value_or_its_name() {
        let text = "{\n  \"ü\": 1, \"a\": {\"b\": [true, 7]}\n}";
        let path = Path::field("a").name("b").index(1);
        let at = text.find('7').unwrap() - text.find('\n').unwrap();
        assert_eq!(locate(text, &path, false), Some((2, at)));
        assert_eq!(path.to_string(), "a.b[1]");
        let name = text.find("\"a\"").unwrap() - text.find('\n').unwrap();
        assert_eq!(locate(text, &Path::field("a"), true), Some((2, name)));
        assert_eq!(locate(text, &Path::field("missing"), false), None);
    }

    #[test]
    fn repeated_names_are_kept_and_found_at_any_depth() {
        let node = parse(br#"{"a":1,"b":[{"c":1,"c":2}],"a":3}"#).unwrap();
        let found: Vec<String> = repeated_names(&node).iter().map(Path::to_string).collect();
        assert_eq!(found, ["b[0].c", "a"]);
    }

    #[test]
    fn long_arrays_are_counted_but_not_kept() {
        let text = format!("[{}1]", "1,".repeat(99_999));
        let Node::Array(items) = parse(text.as_bytes()).unwrap() else {
            panic!("not an array")
        };
        assert_eq!(items.total, 100_000);
        assert_eq!(items.kept.len(), MOST_VALUES);
    }

    #[test]
    fn integers_are_told_from_fractions() {
        assert_eq!(parse(b"3").unwrap().describe(), "an integer");
        for whole in ["3.0", "-0", "3e1", "1e300", "18446744073709551616"] {
            assert_eq!(parse(whole.as_bytes()).unwrap().describe(), "an integer");
        }
        for broken in ["3.5", "1e-300"] {
            let node = parse(broken.as_bytes()).unwrap();
            assert_eq!(node.describe(), "a number with a fraction");
        }
        // An exponent of any length costs no more than reading it.
        let digits = "9".repeat(1 << 20);
        assert!(parse(format!("1e{digits}").as_bytes()).is_err());
        assert_eq!(
            parse(format!("1e-{digits}").as_bytes()).unwrap().describe(),
            "an integer"
        );
        assert!(parse(b"1e400").is_err());
        assert!(parse(b"1 2").is_err());
        assert!(parse("[".repeat(200).as_bytes()).is_err());
    }
}
