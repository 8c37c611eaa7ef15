//! Text in JSON that may hold half a character: `\ud83d` without its other half.
//!
//! Gateways that cut by UTF-16 units send the halves of one character in two pieces, and models write
//! halves now and then. One such must not fail an answer: halves that meet are put together, a lone one
//! becomes U+FFFD.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::encoding::{Unit, escapes_replaced};

/// The replacement character.
const REPLACEMENT: char = '\u{fffd}';

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
    escapes_replaced(json, |unit, after| match unit {
        0xd800..0xdc00 if after.is_some_and(|second| (0xdc00..0xe000).contains(&second)) => {
            Unit::FirstOfTwo
        }
        0xd800..0xe000 => Unit::Replaced,
        _ => Unit::Kept,
    })
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
