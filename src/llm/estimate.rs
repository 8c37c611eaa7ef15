//! About how many tokens something has, where its provider does not tell.

use std::io;
use std::ops::AddAssign;

use serde_json::Value;

use crate::apart::aside;
use crate::chat::{Block, Message, Part, ToolCall};

/// Tokens of a picture.
pub const IMAGE_TOKENS: u64 = 1600;
/// Tenths of a token of an ASCII character, and of another.
const ASCII_TENTHS: u64 = 3;
const OTHER_TENTHS: u64 = 8;

/// The size of text that comes in pieces: rounded only at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    tenths: u64,
}

impl Size {
    /// Of `text`.
    pub fn of(text: &str) -> Self {
        // Of a character's bytes one tells what it is; those that go on tell nothing.
        let tenths = |byte: u8| match byte {
            0..=0x7f => ASCII_TENTHS,
            0x80..=0xbf => 0,
            0xc0..=0xff => OTHER_TENTHS,
        };
        Self {
            tenths: text.bytes().map(tenths).sum(),
        }
    }

    /// Of `value` as JSON, which is not written out for it.
    pub fn of_json(value: &Value) -> Self {
        let mut counted = Counted(0);
        // Counting can't fail, nor can a value be no JSON.
        serde_json::to_writer(&mut counted, value).ok();
        Self::of_bytes(counted.0)
    }

    /// Of so many bytes of text that is not looked at.
    pub const fn of_bytes(bytes: usize) -> Self {
        Self {
            tenths: (bytes as u64).saturating_mul(ASCII_TENTHS),
        }
    }

    /// Whether it is none.
    pub const fn is_empty(self) -> bool {
        self.tenths == 0
    }

    /// In tokens.
    pub const fn tokens(self) -> u64 {
        self.tenths.div_ceil(10)
    }
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.tenths = self.tenths.saturating_add(other.tenths);
    }
}

/// Counts what is written.
struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tokens of `text`.
pub fn of_text(text: &str) -> u64 {
    Size::of(text).tokens()
}

/// The fewest tokens that so many bytes of text are taken for, whatever their provider says that they have: a
/// conversation that grows has to be seen to grow.
pub const fn least_of(bytes: usize) -> u64 {
    bytes as u64 / 8
}

/// Tokens of a message, as it is sent, but at least those of all that is kept of it. A large one is counted where that
/// holds nobody up.
pub fn of_message(message: &Message) -> u64 {
    let bytes = bytes_of(message);
    let sent = aside(bytes, || match message {
        Message::User(parts) => parts.iter().map(of_part).sum(),
        Message::Assistant(reply) => reply.blocks.iter().map(of_block).sum(),
        Message::ToolResults { results, notice } => {
            let parts = results.iter().flat_map(|result| &result.content);
            parts.map(of_part).sum::<u64>() + notice.as_deref().map_or(0, of_text)
        }
    });
    sent.max(least_of(bytes))
}

/// About how many bytes of a request `message` makes that are looked at one by one: images and documents are not.
pub fn bytes_of(message: &Message) -> usize {
    let of_part = |part: &Part| match part {
        Part::Text(text) => text.len(),
        Part::Image(_) | Part::Document(_) => 0,
    };
    let of_block = |block: &Block| match block {
        Block::Text { text, echo } => {
            text.len() + echo.as_ref().map_or(0, |echo| echo.json().len())
        }
        Block::Opaque(echo) => echo.json().len(),
        Block::Call(call) => call.args.text_bytes(),
    };
    match message {
        Message::User(parts) => parts.iter().map(of_part).sum(),
        Message::Assistant(reply) => reply.blocks.iter().map(of_block).sum(),
        Message::ToolResults { results, notice } => {
            let parts = results.iter().flat_map(|result| &result.content);
            parts.map(of_part).sum::<usize>() + notice.as_ref().map_or(0, String::len)
        }
    }
}

/// Tokens of a part.
pub fn of_part(part: &Part) -> u64 {
    match part {
        Part::Text(text) => of_text(text),
        Part::Image(_) => IMAGE_TOKENS,
        Part::Document(document) => document.base64.len() as u64 / 4,
    }
}

fn of_block(block: &Block) -> u64 {
    match block {
        Block::Opaque(echo)
        | Block::Text {
            echo: Some(echo), ..
        }
        | Block::Call(ToolCall {
            echo: Some(echo), ..
        }) => of_text(echo.json()),
        Block::Text { text, echo: None } => of_text(text),
        // Arguments that are no object are sent back as an empty one.
        Block::Call(call) => {
            let mut size = Size::of(&call.wire_name());
            size += Size::of_json(call.wire_args());
            size.tokens()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::chat::{CallIds, Echo, ToolArgs};

    #[test]
    fn a_call_has_the_size_of_what_is_sent_back() {
        let call = |args: ToolArgs, echo: Option<Echo>| {
            of_block(&Block::Call(ToolCall {
                id: CallIds::default().issue(""),
                name: "bash".to_owned(),
                args,
                echo,
            }))
        };
        let raw = "x".repeat(10_000);
        let malformed = ToolArgs::Malformed {
            raw: raw.clone(),
            error: String::new(),
        };
        let empty = call(ToolArgs::Json(json!({})), None);
        assert_eq!(empty, 2);
        assert_eq!(call(malformed, None), empty);
        assert_eq!(call(ToolArgs::Json(json!([raw])), None), empty);
        assert_eq!(call(ToolArgs::Json(json!({ "a": raw })), None), 3004);
        let echo = Echo::of(&raw).ok();
        assert_eq!(call(ToolArgs::Json(json!({})), echo), 3001);
    }

    #[test]
    fn pieces_have_the_size_of_the_whole() {
        let mut pieces = Size::default();
        for piece in ["a", "b", "é", "漢"] {
            pieces += Size::of(piece);
        }
        assert_eq!(pieces, Size::of("abé漢"));
        assert_eq!(pieces.tokens(), 3);
        assert!(Size::default().is_empty() && !Size::of("a").is_empty());
    }
}
