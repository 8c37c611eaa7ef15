//! The shapes of the Messages API, borrowed from what they are made of or read from.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Number, Value};

use crate::chat::Echo;
use crate::llm::text::Piece;

/// The provider.
pub(super) const NAME: &str = "anthropic";

/// `{"type": "ephemeral"}`: the prefix up to here is worth caching.
#[derive(Clone, Copy, Serialize)]
#[serde(tag = "type", rename = "ephemeral")]
pub(super) struct Mark {}

/// The body of a request. The order of its fields is the order on the wire, which caches compare.
#[derive(Serialize)]
pub(super) struct Body<'a> {
    pub(super) model: &'a str,
    pub(super) max_tokens: u32,
    pub(super) stream: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) system: Vec<Content<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tool_choice: Option<ToolChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) thinking: Option<Thinking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output_config: Option<OutputConfig<'a>>,
    pub(super) messages: Vec<Message<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Tool<'a> {
    Ours {
        name: &'a str,
        description: &'a str,
        input_schema: &'a Value,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<Mark>,
    },
    WebSearch {
        r#type: &'static str,
        name: &'static str,
        max_uses: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<Mark>,
    },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToolChoice {
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Thinking {
    Enabled { budget_tokens: u32 },
    Adaptive { display: &'static str },
    Disabled,
    BetweenTools,
}

#[derive(Serialize)]
pub(super) struct OutputConfig<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) effort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) format: Option<Format<'a>>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Format<'a> {
    JsonSchema { schema: &'a Value },
}

#[derive(Serialize)]
pub(super) struct Message<'a> {
    pub(super) role: &'static str,
    pub(super) content: Vec<Content<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Content<'a> {
    /// A block that is made here.
    Own(Own<'a>),
    /// A block that goes back as it came.
    Echo(&'a RawValue),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Own<'a> {
    Text {
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<Mark>,
    },
    Image {
        source: Source<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<Mark>,
    },
    Document {
        title: &'a str,
        source: Source<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<Mark>,
    },
    ToolUse {
        id: &'a str,
        name: Cow<'a, str>,
        input: &'a Value,
    },
    ToolResult {
        tool_use_id: &'a str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        content: Vec<Content<'a>>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_control: Option<Mark>,
    },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Source<'a> {
    Base64 { media_type: &'a str, data: &'a str },
}

/// A thinking block, put together for its echo.
#[derive(Serialize)]
#[serde(tag = "type", rename = "thinking")]
pub(super) struct SignedThinking<'a> {
    pub(super) thinking: &'a str,
    pub(super) signature: &'a str,
}

/// A text block with its sources, put together for its echo.
#[derive(Serialize)]
#[serde(tag = "type", rename = "text")]
pub(super) struct CitingText<'a> {
    pub(super) text: &'a str,
    pub(super) citations: &'a [Box<RawValue>],
}

/// A closed list of names, and one for all others: what is no text, half a character too, is another as well.
macro_rules! names {
    ($(#[$doc:meta])* $kind:ident { $($variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(super) enum $kind {
            $($variant,)+
            /// Of a newer protocol, or none.
            #[default]
            Other,
        }

        impl $kind {
            pub(super) const fn of(name: &[u8]) -> Self {
                match name {
                    $($name => Self::$variant,)+
                    _ => Self::Other,
                }
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_bytes(Name(Self::of))
            }
        }
    };
}

/// Finds the name that the function knows.
struct Name<T>(fn(&[u8]) -> T);

impl<T> Visitor<'_> for Name<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<T, E> {
        Ok((self.0)(name))
    }
}

names! {
    /// What an event is.
    EventKind {
        MessageStart = b"message_start",
        BlockStart = b"content_block_start",
        BlockDelta = b"content_block_delta",
        BlockStop = b"content_block_stop",
        MessageDelta = b"message_delta",
        MessageStop = b"message_stop",
        Error = b"error",
    }
}

names! {
    /// What a piece of a block is.
    DeltaKind {
        Text = b"text_delta",
        Thinking = b"thinking_delta",
        Signature = b"signature_delta",
        Json = b"input_json_delta",
        Compaction = b"compaction_delta",
        Citation = b"citations_delta",
    }
}

impl DeltaKind {
    /// The field that a piece of this kind is in.
    pub(super) const fn field(self) -> Option<&'static str> {
        match self {
            Self::Text => Some("text"),
            Self::Thinking => Some("thinking"),
            Self::Signature => Some("signature"),
            Self::Json => Some("partial_json"),
            Self::Compaction => Some("content"),
            Self::Citation => Some("citation"),
            Self::Other => None,
        }
    }
}

/// The fields of an object, each put where it belongs as it comes: an event is read once per piece of an answer. Of a
/// field that comes twice the last counts; what is unknown is passed over.
trait Object<'de>: Default {
    /// The names of its fields.
    type Field: Deserialize<'de>;

    /// Takes the value of the field `name` from `map`.
    fn field<A: MapAccess<'de>>(&mut self, name: Self::Field, map: &mut A) -> Result<(), A::Error>;
}

/// Where the object that comes, or `null`, is put: what is derived would take its fields from a list as well.
struct Slot<'s, T>(&'s mut Option<T>);

impl<'de, T: Object<'de>> DeserializeSeed<'de> for Slot<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, of: D) -> Result<(), D::Error> {
        of.deserialize_any(self)
    }
}

impl<'de, T: Object<'de>> Visitor<'de> for Slot<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        *self.0 = None;
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let object = self.0.insert(T::default());
        while let Some(name) = map.next_key()? {
            object.field(name, &mut map)?;
        }
        Ok(())
    }
}

names! {
    /// A field of an event,
    EventField {
        Type = b"type",
        Index = b"index",
        Delta = b"delta",
        ContentBlock = b"content_block",
        Message = b"message",
        Usage = b"usage",
        Error = b"error",
    }
}

names! {
    /// and of the piece in it.
    DeltaField {
        Type = b"type",
        Text = b"text",
        Thinking = b"thinking",
        Signature = b"signature",
        PartialJson = b"partial_json",
        Content = b"content",
        Citation = b"citation",
        StopReason = b"stop_reason",
        StopDetails = b"stop_details",
    }
}

/// An event of a stream, flat: what belongs to no known event is left as it is, so that it can't fail one.
#[derive(Default)]
pub(super) struct Event<'a> {
    pub(super) kind: Option<EventKind>,
    pub(super) index: Option<Index>,
    pub(super) delta: Option<Delta<'a>>,
    pub(super) content_block: Option<&'a RawValue>,
    pub(super) message: Option<&'a RawValue>,
    pub(super) usage: Option<&'a RawValue>,
    pub(super) error: Option<&'a RawValue>,
}

impl<'a> Event<'a> {
    /// The event in `json`, which is an object.
    pub(super) fn read(json: &'a str) -> serde_json::Result<Self> {
        let mut json = serde_json::Deserializer::from_str(json);
        let mut event = None;
        Slot(&mut event).deserialize(&mut json)?;
        json.end()?;
        event.ok_or_else(|| serde_json::Error::custom("it is null"))
    }
}

impl<'de> Object<'de> for Event<'de> {
    type Field = EventField;

    fn field<A: MapAccess<'de>>(&mut self, name: Self::Field, map: &mut A) -> Result<(), A::Error> {
        match name {
            EventField::Type => self.kind = map.next_value()?,
            EventField::Index => self.index = map.next_value()?,
            EventField::Delta => map.next_value_seed(Slot(&mut self.delta))?,
            EventField::ContentBlock => self.content_block = map.next_value()?,
            EventField::Message => self.message = map.next_value()?,
            EventField::Usage => self.usage = map.next_value()?,
            EventField::Error => self.error = map.next_value()?,
            EventField::Other => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

/// A piece of a block, or the end of the message. Some gateways send all fields, most of them empty.
#[derive(Default)]
pub(super) struct Delta<'a> {
    pub(super) kind: Option<DeltaKind>,
    pub(super) text: Option<Piece<'a>>,
    pub(super) thinking: Option<Piece<'a>>,
    pub(super) signature: Option<Piece<'a>>,
    pub(super) partial_json: Option<Piece<'a>>,
    pub(super) content: Option<Piece<'a>>,
    pub(super) citation: Option<&'a RawValue>,
    pub(super) stop_reason: Option<Piece<'a>>,
    pub(super) stop_details: Option<&'a RawValue>,
}

impl<'de> Object<'de> for Delta<'de> {
    type Field = DeltaField;

    fn field<A: MapAccess<'de>>(&mut self, name: Self::Field, map: &mut A) -> Result<(), A::Error> {
        match name {
            DeltaField::Type => self.kind = map.next_value()?,
            DeltaField::Text => self.text = map.next_value()?,
            DeltaField::Thinking => self.thinking = map.next_value()?,
            DeltaField::Signature => self.signature = map.next_value()?,
            DeltaField::PartialJson => self.partial_json = map.next_value()?,
            DeltaField::Content => self.content = map.next_value()?,
            DeltaField::Citation => self.citation = map.next_value()?,
            DeltaField::StopReason => self.stop_reason = map.next_value()?,
            DeltaField::StopDetails => self.stop_details = map.next_value()?,
            DeltaField::Other => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl Delta<'_> {
    /// Whether it has what a piece of `kind` brings.
    pub(super) fn has(&self, kind: DeltaKind) -> bool {
        let text = match kind {
            DeltaKind::Text => &self.text,
            DeltaKind::Thinking => &self.thinking,
            DeltaKind::Signature => &self.signature,
            DeltaKind::Json => &self.partial_json,
            DeltaKind::Compaction => &self.content,
            DeltaKind::Citation => return self.citation.is_some(),
            DeltaKind::Other => return false,
        };
        text.as_ref().is_some_and(|text| !text.is_empty())
    }

    /// The first kind of piece that it has.
    pub(super) fn found(&self) -> Option<DeltaKind> {
        let kinds = [
            DeltaKind::Text,
            DeltaKind::Thinking,
            DeltaKind::Json,
            DeltaKind::Signature,
            DeltaKind::Compaction,
            DeltaKind::Citation,
        ];
        kinds.into_iter().find(|kind| self.has(*kind))
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.found().is_none()
    }
}

/// The fields of an object that are read one by one: one that is not what it should be is not there, and costs no
/// other. Of a field that comes twice the last counts.
#[derive(Default)]
pub(super) struct Fields<'a>(Vec<(Piece<'a>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Those of `raw`; none if it is no object.
    pub(super) fn of(raw: &'a RawValue) -> Self {
        serde_json::from_str(raw.get()).unwrap_or_default()
    }

    /// The field `name` as it came, if it is there and not `null`.
    pub(super) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        let mut fields = self.0.iter().rev();
        let (_, raw) = fields.find(|(field, _)| field.is(name))?;
        (raw.get() != "null").then_some(*raw)
    }

    /// The field `name`, if it is a `T`.
    pub(super) fn get<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.raw(name)?.get()).ok()
    }

    /// The fields of the object in the field `name`.
    pub(super) fn inner(&self, name: &str) -> Self {
        self.raw(name).map(Self::of).unwrap_or_default()
    }

    /// The count in the field `name`.
    pub(super) fn count(&self, name: &str) -> Option<u64> {
        let count: u64 = integer(&self.get(name)?)?;
        Some(count.min(MOST_TOKENS))
    }

    /// The object with `value` as its field `name`.
    pub(super) fn with(&self, name: &str, value: &RawValue) -> Result<Echo, serde_json::Error> {
        struct With<'w>(&'w Fields<'w>, &'w str, &'w RawValue);
        impl Serialize for With<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let Self(Fields(fields), name, value) = self;
                let others = fields.iter().filter(|(field, _)| !field.is(name));
                let others = others.map(|(field, raw)| (field.text(), *raw));
                serializer.collect_map(others.chain([(Cow::Borrowed(*name), *value)]))
            }
        }
        Echo::of(&With(self, name, value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// More tokens than any request can have: figures beyond it are nonsense that no sum should overflow on.
pub(super) const MOST_TOKENS: u64 = 1_000_000_000_000;

/// A block's number, as an integer or written like `1.0`, or either of them in quotes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index(pub(super) i64);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Figure;
        impl Visitor<'_> for Figure {
            type Value = Index;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the number of a block")
            }

            fn visit_i64<E>(self, index: i64) -> Result<Index, E> {
                Ok(Index(index))
            }

            fn visit_u64<E: Error>(self, index: u64) -> Result<Index, E> {
                let fault = |_| E::invalid_value(Unexpected::Unsigned(index), &self);
                i64::try_from(index).map(Index).map_err(fault)
            }

            fn visit_f64<E: Error>(self, index: f64) -> Result<Index, E> {
                let fault = || E::invalid_value(Unexpected::Float(index), &self);
                whole(index).map(Index).ok_or_else(fault)
            }

            fn visit_str<E: Error>(self, index: &str) -> Result<Index, E> {
                let number: Option<Number> = serde_json::from_str(index).ok();
                let fault = || E::invalid_value(Unexpected::Str(index), &self);
                number
                    .as_ref()
                    .and_then(integer)
                    .map(Index)
                    .ok_or_else(fault)
            }
        }
        deserializer.deserialize_any(Figure)
    }
}

/// An integer that may be written like `1.0`.
fn integer<T: FromStr>(number: &Number) -> Option<T> {
    let written = number.to_string().parse().ok();
    written.or_else(|| whole(number.as_f64()?))
}

fn whole<T: FromStr>(float: f64) -> Option<T> {
    let whole = (float.fract() == 0.0).then(|| format!("{float:.0}"));
    whole?.parse().ok()
}
