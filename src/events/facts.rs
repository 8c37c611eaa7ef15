//! What events say beside their documented fields.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// A name on the wire: borrowed, it is a closed word of ours and never altered; owned, it is somebody's text in
/// the place of one, and cleaned like any text.
pub type Name = Cow<'static, str>;

/// A further fact of an event. An owned text is somebody's words, unless it is said to be an id.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Fact {
    /// A closed word of ours, or a number.
    Word(Name),
    /// An id, or another word of a form that no text has, made while running: never altered.
    Id(String),
    /// Anything else; the names in it are ours.
    Data(Value),
}

impl Fact {
    /// An id, a model's name, a time: what programs compare.
    pub fn id(id: impl Into<String>) -> Self {
        Self::Id(id.into())
    }
}

impl From<&'static str> for Fact {
    fn from(word: &'static str) -> Self {
        Self::Word(Cow::Borrowed(word))
    }
}

impl From<String> for Fact {
    fn from(text: String) -> Self {
        Self::Word(Cow::Owned(text))
    }
}

impl From<Name> for Fact {
    fn from(name: Name) -> Self {
        Self::Word(name)
    }
}

macro_rules! data {
    ($($kind:ty)*) => {$(
        impl From<$kind> for Fact {
            fn from(value: $kind) -> Self {
                Self::Data(value.into())
            }
        }
    )*};
}
data!(u32 u64 f64 bool Value Vec<Value>);

/// Facts in their order, written as the fields of the event that they belong to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts(Vec<(&'static str, Fact)>);

impl Facts {
    /// One more.
    pub fn add(&mut self, name: &'static str, fact: impl Into<Fact>) {
        self.0.push((name, fact.into()));
    }

    pub(super) fn values(&mut self) -> impl Iterator<Item = &mut Fact> {
        self.0.iter_mut().map(|(_, fact)| fact)
    }
}

impl Serialize for Facts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, fact)| (name, fact)))
    }
}
