//! The words of a conversation with an LLM: messages, tools as the model sees them, calls and their results.
//!
//! Neutral: no provider's wire form, no sandbox. `llm` turns them into requests, `tools` answers calls, `agent`
//! keeps the history. What a provider needs back as it said it (signed thinking, its server's tools) is an
//! [`Echo`], which no other provider is ever sent: those rebuild a reply from what is neutral in it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// A tool as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    /// Its name: letters, digits, `_`, `-`; at most 64.
    pub name: &'static str,
    /// What it does, when to use it, what comes back, its limits.
    pub description: String,
    /// JSON Schema of its arguments: an object schema of the common subset.
    pub input_schema: Value,
}

/// One message of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The user's words, or ours in the user's place.
    User(Vec<Part>),
    /// What the model said.
    Assistant(Reply),
    /// The results of all calls of the reply before, in the order asked, and a notice of ours that
    /// tool output can't forge (placed after the results, by the provider's own means).
    ToolResults {
        /// One per call.
        results: Vec<ToolResult>,
        /// Said by sandcaster, not by a tool.
        notice: Option<String>,
    },
}

impl Message {
    /// The user's words alone.
    pub fn user(text: impl Into<String>) -> Self {
        Self::User(vec![Part::Text(text.into())])
    }
}

/// A part of what a user or a tool says.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Text.
    Text(String),
    /// A picture, for models that can see; others get a note.
    Image(Image),
    /// A PDF, for models that read them; others get a note.
    Document(Document),
}

/// Bytes as standard base64: large, and therefore shared by all that hold it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Base64(Arc<String>);

impl Base64 {
    /// Of `bytes`, in their place, if nobody else holds them: megabytes are not held twice.
    pub fn of(bytes: impl Into<Bytes>) -> Self {
        let mut text = Vec::from(bytes.into());
        let raw = text.len();
        let gap = raw.div_ceil(3) * 4 - raw;
        text.reserve_exact(gap);
        text.resize(raw + gap, 0);
        text.copy_within(..raw, gap);
        // What is written never reaches what is still to be read: the gap closes with the last bytes.
        let (mut read, mut written) = (gap, 0);
        let mut group = [0; GROUP];
        while let Some(rest) = text.get(read..).filter(|rest| !rest.is_empty()) {
            let some = group.len().min(rest.len());
            let (Some(group), Some(rest)) = (group.get_mut(..some), rest.get(..some)) else {
                break;
            };
            group.copy_from_slice(rest);
            read += some;
            let room = text.get_mut(written..).unwrap_or_default();
            written += STANDARD.encode_slice(&*group, room).unwrap_or_default();
        }
        String::from_utf8(text).unwrap_or_default().into()
    }
}

/// Bytes that are encoded at once: a multiple of three.
const GROUP: usize = 3 << 10;

impl From<String> for Base64 {
    fn from(text: String) -> Self {
        Self(Arc::new(text))
    }
}

impl From<&str> for Base64 {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl Deref for Base64 {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<[u8]> for Base64 {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its format.
    pub media_type: ImageType,
    /// The bytes.
    pub base64: Base64,
}

/// The formats that every provider takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageType {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// GIF.
    Gif,
    /// WebP.
    Webp,
}

impl ImageType {
    /// Its media type, `image/png` and so on.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Gif => "image/gif",
            Self::Webp => "image/webp",
        }
    }
}

impl fmt::Display for ImageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A PDF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its file name.
    pub name: String,
    /// The bytes.
    pub base64: Base64,
}

/// What the model said in one response, block by block in the order received.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Whose echoes the blocks hold.
    pub provider: &'static str,
    /// Its completed blocks.
    pub blocks: Vec<Block>,
}

/// A completed block of a reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Text of the answer.
    Text {
        /// The text.
        text: String,
        /// The block as its provider wants it back, where the text alone is not enough (a signature on it).
        echo: Option<Echo>,
    },
    /// A call.
    Call(ToolCall),
    /// What only its own provider understands: signed thinking, its server's tools, a list on the message.
    Opaque(Echo),
}

impl Block {
    /// Text that needs no echo.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text {
            text: text.into(),
            echo: None,
        }
    }
}

/// A provider's own JSON, sent back byte for byte.
#[derive(Clone, Debug)]
pub struct Echo(Box<RawValue>);

impl Echo {
    /// As it arrived.
    pub const fn new(json: Box<RawValue>) -> Self {
        Self(json)
    }

    /// From a value of ours, for pieces that were put together from a stream.
    ///
    /// # Errors
    /// None for values that came from JSON.
    pub fn of(value: &impl serde::Serialize) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Self)
    }

    /// The JSON, for a body.
    pub const fn raw(&self) -> &RawValue {
        &self.0
    }

    /// Its text.
    pub fn json(&self) -> &str {
        self.0.get()
    }
}

impl PartialEq for Echo {
    fn eq(&self, other: &Self) -> bool {
        self.json() == other.json()
    }
}

/// A call that the model asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Ours.
    pub id: CallId,
    /// The name that the model wrote; not yet mapped to a tool.
    pub name: String,
    /// The arguments.
    pub args: ToolArgs,
    /// The call as its provider wants it back, where name and arguments are not enough.
    pub echo: Option<Echo>,
}

/// A call's arguments as they arrived.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolArgs {
    /// Any JSON value; the empty text counts as `{}`.
    Json(Value),
    /// Not JSON: the text and the parser's words. Echoed to the provider as `{}`.
    Malformed {
        /// What arrived.
        raw: String,
        /// Why it is no JSON.
        error: String,
    },
}

impl ToolArgs {
    /// How many bytes of text they hold: about what it costs to go through them.
    pub fn text_bytes(&self) -> usize {
        fn of(value: &Value) -> usize {
            match value {
                Value::String(text) => text.len(),
                Value::Array(items) => items.iter().map(of).sum(),
                Value::Object(fields) => fields
                    .iter()
                    .map(|(name, value)| name.len() + of(value))
                    .sum(),
                Value::Null | Value::Bool(_) | Value::Number(_) => 1,
            }
        }
        match self {
            Self::Json(value) => of(value),
            Self::Malformed { raw, .. } => raw.len(),
        }
    }
}

static NO_ARGS: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

impl ToolCall {
    /// The name in a form that every provider takes back: the model may have made it up.
    pub fn wire_name(&self) -> Cow<'_, str> {
        if is_wire_name(&self.name) {
            return Cow::Borrowed(&self.name);
        }
        let name: String = self
            .name
            .chars()
            .take(LONGEST_NAME)
            .map(|c| if is_permitted(c) { c } else { '_' })
            .collect();
        Cow::Owned(if name.is_empty() {
            "unnamed".to_owned()
        } else {
            name
        })
    }

    /// The arguments in a form that every provider takes back: an object.
    pub fn wire_args(&self) -> &Value {
        match &self.args {
            ToolArgs::Json(value) if value.is_object() => value,
            ToolArgs::Json(_) | ToolArgs::Malformed { .. } => &NO_ARGS,
        }
    }
}

/// A call's id: ours, unique in the run, and the one that its provider knows it by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallId {
    ours: Arc<str>,
    wire: Arc<str>,
}

impl CallId {
    /// Ours, as clients see it.
    pub fn as_str(&self) -> &str {
        &self.ours
    }

    /// What the conversation with the provider calls it: letters, digits, `_` and `-`, at most 64, unique in
    /// the run. The provider's own id where it is so, else ours.
    pub fn wire(&self) -> &str {
        &self.wire
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.ours)
    }
}

/// Makes the ids of a run's calls, when they are received. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct CallIds(Arc<Mutex<Issued>>);

#[derive(Debug, Default)]
struct Issued {
    count: u64,
    wire: HashSet<Arc<str>>,
}

impl CallIds {
    /// The id of a call that its provider calls `provider_id`, which may be empty, and may have been given
    /// before: gateways number the calls of each response anew.
    pub fn issue(&self, provider_id: &str) -> CallId {
        let mut issued = self.0.lock();
        let fits = is_wire_name(provider_id) && !issued.wire.contains(provider_id);
        let mut ours;
        loop {
            issued.count += 1;
            ours = Arc::<str>::from(format!("call_{}", issued.count));
            if !issued.wire.contains(&ours) {
                break;
            }
        }
        let wire = if fits {
            Arc::from(provider_id)
        } else {
            Arc::clone(&ours)
        };
        issued.wire.insert(Arc::clone(&wire));
        CallId { ours, wire }
    }
}

/// The shortest limit of all providers for names and ids.
const LONGEST_NAME: usize = 64;

const fn is_permitted(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

fn is_wire_name(text: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(is_permitted)
}

/// The result of one call.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolResult {
    /// The call's id.
    pub id: CallId,
    /// The tool's name, for providers that want it.
    pub name: String,
    /// What the tool says; may be empty.
    pub content: Vec<Part>,
    /// The call failed or was refused.
    pub is_error: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ours_and_unique_whatever_the_provider_says() {
        let ids = CallIds::default();
        let said = [
            "toolu_1",
            "toolu_1",
            "",
            "call_5",
            "functions.bash:0",
            "x",
            "x",
        ];
        let issued: Vec<CallId> = said.iter().map(|id| ids.issue(id)).collect();
        let unique = |of: fn(&CallId) -> &str| {
            issued.iter().map(of).collect::<HashSet<_>>().len() == said.len()
        };
        assert!(unique(CallId::as_str) && unique(CallId::wire), "{issued:?}");
        assert_eq!(issued[0].wire(), "toolu_1");
        assert_eq!(issued[0].as_str(), "call_1");
        assert_eq!(issued[3].wire(), "call_5");
        assert!(issued.iter().all(|id| is_wire_name(id.wire())));
    }

    #[test]
    fn bytes_are_encoded_in_their_place_as_elsewhere() {
        let bytes: Vec<u8> = (0..=255).cycle().take(5 * GROUP + 7).collect();
        for length in (0..9)
            .chain(GROUP - 3..GROUP + 4)
            .chain(5 * GROUP..5 * GROUP + 7)
        {
            let part = &bytes[..length];
            assert_eq!(
                *Base64::of(part.to_vec()),
                *STANDARD.encode(part),
                "{length}"
            );
        }
        let shared = Bytes::from(bytes.clone());
        let own = shared.clone();
        assert_eq!(*Base64::of(own), *STANDARD.encode(&bytes));
        assert_eq!(shared, bytes, "another's are left as they are");
    }

    #[test]
    fn a_made_up_name_and_bad_arguments_are_sent_back_in_a_form_that_is_taken() {
        let mut call = ToolCall {
            id: CallIds::default().issue(""),
            name: "functions.bäsh ".to_owned(),
            args: ToolArgs::Json(Value::from(1)),
            echo: None,
        };
        assert_eq!(call.wire_name(), "functions_b_sh_");
        assert_eq!(call.wire_args().to_string(), "{}");
        call.name = String::new();
        assert_eq!(call.wire_name(), "unnamed");
        call.name = "é".repeat(100);
        assert_eq!(call.wire_name().len(), 64);
    }
}
