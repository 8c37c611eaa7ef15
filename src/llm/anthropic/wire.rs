//! The shapes of the Messages API, borrowed from what they are made of or read from.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Number, Value};

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
        text: Cow<'a, str>,
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

/// An event of a stream, flat: what belongs to no known event is left as it is, so that it can't fail one.
#[derive(Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type")]
    pub(super) kind: Option<EventKind>,
    pub(super) index: Option<Index>,
    #[serde(borrow)]
    pub(super) delta: Option<Delta<'a>>,
    #[serde(borrow)]
    pub(super) content_block: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) message: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) usage: Option<&'a RawValue>,
}

/// A piece of a block, or the end of the message. Some gateways send all fields, most of them empty.
#[derive(Deserialize)]
pub(super) struct Delta<'a> {
    #[serde(rename = "type")]
    pub(super) kind: Option<DeltaKind>,
    #[serde(borrow)]
    pub(super) text: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) thinking: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) signature: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) partial_json: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) content: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) citation: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) stop_reason: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) stop_details: Option<&'a RawValue>,
}

impl Delta<'_> {
    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        let texts = [
            &self.text,
            &self.thinking,
            &self.signature,
            &self.partial_json,
            &self.content,
        ];
        self.citation.is_none() && texts.into_iter().flatten().all(Piece::is_empty)
    }
}

/// Why the model refused.
#[derive(Default, Deserialize)]
pub(super) struct Details<'a> {
    #[serde(borrow)]
    pub(super) category: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) explanation: Option<Piece<'a>>,
}

/// A message: its beginning in a stream, or all of it.
#[derive(Deserialize)]
pub(super) struct Whole<'a> {
    #[serde(borrow)]
    pub(super) id: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) model: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) content: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    pub(super) stop_reason: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) stop_details: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) usage: Option<&'a RawValue>,
}

/// A block's beginning, or all of it.
#[derive(Default, Deserialize)]
pub(super) struct Start<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) id: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) name: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) text: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) thinking: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) signature: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) citations: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    pub(super) input: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) to: Option<Served<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Served<'a> {
    #[serde(borrow)]
    pub(super) model: Option<Piece<'a>>,
}

/// A source that a text names.
#[derive(Deserialize)]
pub(super) struct Cited<'a> {
    #[serde(borrow)]
    pub(super) url: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) title: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) document_title: Option<Piece<'a>>,
    #[serde(rename = "cited_text", borrow)]
    pub(super) quote: Option<Piece<'a>>,
}

/// What one of the provider's tools is asked.
#[derive(Default, Deserialize)]
pub(super) struct Asked<'a> {
    #[serde(borrow)]
    pub(super) query: Option<Piece<'a>>,
    #[serde(borrow)]
    pub(super) url: Option<Piece<'a>>,
}

/// Usage figures. Those that are given replace what was said before, each by itself.
#[derive(Deserialize)]
pub(super) struct Figures<'a> {
    #[serde(default)]
    pub(super) input_tokens: Figure,
    #[serde(default)]
    pub(super) output_tokens: Figure,
    #[serde(default)]
    pub(super) cache_read_input_tokens: Figure,
    #[serde(default)]
    pub(super) cache_creation_input_tokens: Figure,
    #[serde(default)]
    pub(super) cache_creation: Lenient<CacheCreation>,
    #[serde(default)]
    pub(super) output_tokens_details: Lenient<OutputDetails>,
    #[serde(default)]
    pub(super) server_tool_use: Lenient<ServerToolUse>,
    /// The inner passes of a request, of which each is billed.
    #[serde(borrow, default)]
    pub(super) iterations: Lenient<Vec<&'a RawValue>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct CacheCreation {
    pub(super) ephemeral_5m_input_tokens: Figure,
    pub(super) ephemeral_1h_input_tokens: Figure,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct OutputDetails {
    pub(super) thinking_tokens: Figure,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServerToolUse {
    pub(super) web_search_requests: Figure,
}

/// More tokens than any request can have: figures beyond it are nonsense that no sum should overflow on.
pub(super) const MOST_TOKENS: u64 = 1_000_000_000_000;

/// A block's number, as an integer or written like `1.0`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Index(pub(super) i64);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = Number::deserialize(deserializer)?;
        let index = number.as_i64().or_else(|| {
            let float = number.as_f64().filter(|float| float.fract() == 0.0)?;
            format!("{float:.0}").parse().ok()
        });
        index
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("{number} is no index of a block")))
    }
}

/// A count; whatever is no count is none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figure(pub(super) Option<u64>);

/// A part of which nothing is taken when it is not what it should be: it must not cost the other parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lenient<T>(pub(super) Option<T>);

impl<T> Default for Lenient<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&'de RawValue>::deserialize(deserializer)?;
        Ok(Self(serde_json::from_str(raw.get()).ok()))
    }
}

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        let count = raw.get().parse::<u64>().ok();
        Ok(Self(count.map(|count| count.min(MOST_TOKENS))))
    }
}
