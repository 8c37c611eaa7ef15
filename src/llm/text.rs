//! Text in JSON that may hold half a character: `\ud83d` without its other half.
//!
//! Gateways that cut by UTF-16 units send the halves of one character in two pieces, and models write
//! halves now and then. One such must not fail an answer: halves that meet are put together, a lone one
//! becomes U+FFFD.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// The replacement character, as text and as JSON.
const REPLACEMENT: char = '\u{fffd}';
const ESCAPED_REPLACEMENT: &str = "\\ufffd";

/// How many values `json` has at most, told without reading them: by what separates and opens them, outside strings.
/// Each costs some 50 bytes and more once it is read, whatever it takes on the wire (`[],`).
pub(super) fn values(json: &str) -> usize {
    let (mut values, mut in_string, mut escaped) = (1_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => values += 1,
            _ => {}
        }
    }
    values
}

/// A JSON string: UTF-8, but for halves of characters (each as the three bytes that UTF-8 would make of it).
/// Borrowed where it has no escapes.
#[derive(Clone, Debug)]
pub(super) struct Piece<'a>(Cow<'a, [u8]>);

impl Piece<'_> {
    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is `text`.
    pub(super) fn is(&self, text: &str) -> bool {
        *self.0 == *text.as_bytes()
    }

    /// Its text, lone halves replaced.
    pub(super) fn text(&self) -> Cow<'_, str> {
        let mut joiner = Joiner::default();
        let text = joiner.join(self);
        if joiner.end().is_some() {
            Cow::Owned(format!("{text}{REPLACEMENT}"))
        } else {
            text
        }
    }

    /// Its first `chars` characters, lone halves replaced.
    pub(super) fn bounded(&self, chars: usize) -> String {
        // No character has more than four bytes.
        let head = self.0.get(..chars * 4).unwrap_or(&self.0);
        Piece(Cow::Borrowed(head))
            .text()
            .chars()
            .take(chars)
            .collect()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Piece<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Piece<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(Piece(Cow::Borrowed(bytes)))
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(Piece(Cow::Owned(bytes.to_vec())))
            }
        }
        // As bytes, since only those may hold halves.
        deserializer.deserialize_bytes(Bytes)
    }
}

/// Puts together the pieces of one text.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Joiner {
    /// A first half whose second may come with the next piece.
    first: Option<u32>,
}

impl Joiner {
    /// The text of the next piece.
    pub(super) fn join<'p>(&mut self, piece: &'p Piece<'_>) -> Cow<'p, str> {
        if self.first.is_none()
            && let Ok(text) = std::str::from_utf8(&piece.0)
        {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(piece.0.len() + 3);
        let mut rest: &[u8] = &piece.0;
        loop {
            let (text, after) = match std::str::from_utf8(rest) {
                Ok(text) => (text, &[][..]),
                Err(error) => {
                    let (text, after) = rest.split_at(error.valid_up_to());
                    (std::str::from_utf8(text).unwrap_or_default(), after)
                }
            };
            if !text.is_empty() {
                out.extend(self.end());
                out.push_str(text);
            }
            match after {
                [] => break,
                [0xed, second @ 0xa0..=0xbf, third, after @ ..] => {
                    let half = 0xd000 | u32::from(second & 0x3f) << 6 | u32::from(third & 0x3f);
                    self.half(half, &mut out);
                    rest = after;
                }
                [_, after @ ..] => {
                    out.extend(self.end());
                    out.push(REPLACEMENT);
                    rest = after;
                }
            }
        }
        Cow::Owned(out)
    }

    fn half(&mut self, half: u32, out: &mut String) {
        if half < 0xdc00 {
            out.extend(self.first.replace(half).map(|_| REPLACEMENT));
            return;
        }
        let whole = self.first.take().and_then(|first| {
            char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (half - 0xdc00))
        });
        out.push(whole.unwrap_or(REPLACEMENT));
    }

    /// What stands for a first half whose second never came.
    pub(super) fn end(&mut self) -> Option<char> {
        self.first.take().map(|_| REPLACEMENT)
    }
}

/// `json` with every escape of a lone half replaced: what is JSON otherwise is JSON afterwards.
pub(super) fn mended(json: &str) -> Cow<'_, str> {
    replaced(json, |unit, after| match unit {
        0xd800..0xdc00 if after.is_some_and(|second| (0xdc00..0xe000).contains(&second)) => {
            Unit::FirstOfTwo
        }
        0xd800..0xe000 => Unit::Replaced,
        _ => Unit::Kept,
    })
}

/// `json` with every escape of U+0000 replaced.
pub(super) fn without_nul(json: &str) -> Cow<'_, str> {
    replaced(json, |unit, _| match unit {
        0 => Unit::Replaced,
        _ => Unit::Kept,
    })
}

/// What becomes of an escape of a UTF-16 unit.
enum Unit {
    Kept,
    /// It is kept, and so is the one after it.
    FirstOfTwo,
    Replaced,
}

/// `json` with those escapes replaced of which `what` says so, by the unit and the one that follows at once.
fn replaced(json: &str, what: impl Fn(u16, Option<u16>) -> Unit) -> Cow<'_, str> {
    let mut out = String::new();
    let mut kept = 0;
    let mut at = 0;
    let unit = |at: usize| -> Option<u16> {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    while let Some(found) = json.get(at..).and_then(|rest| rest.find('\\')) {
        let escape = at + found;
        at = escape + 2;
        match unit(escape).map(|first| what(first, unit(escape + 6))) {
            None | Some(Unit::Kept) => {}
            Some(Unit::FirstOfTwo) => at = escape + 12,
            Some(Unit::Replaced) => {
                out.push_str(json.get(kept..escape).unwrap_or_default());
                out.push_str(ESCAPED_REPLACEMENT);
                at = escape + 6;
                kept = at;
            }
        }
    }
    if kept == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(json.get(kept..).unwrap_or_default());
    Cow::Owned(out)
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
