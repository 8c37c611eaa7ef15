//! A request's JSON, in which images and documents are not copied: they stay the conversation's own.

use std::io;
use std::mem;
use std::ptr;

use bytes::Bytes;
use futures::stream;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};

use crate::chat::Base64;
use crate::encoding::without_nul;

/// Room for the texts of a usual request.
const ROOM: usize = 64 << 10;
/// A shorter text is copied.
const LARGE: usize = 64 << 10;

/// JSON in pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Json(Vec<Bytes>);

impl Json {
    /// Writes `value`, of which `shared` are large texts.
    ///
    /// # Errors
    /// That it is no JSON.
    pub fn write<'s>(
        value: &impl Serialize,
        shared: impl Iterator<Item = &'s Base64>,
    ) -> Result<Self, serde_json::Error> {
        let mut writer = Writer {
            pieces: Vec::new(),
            text: Vec::with_capacity(ROOM),
            shared: shared.filter(|text| text.len() >= LARGE).collect(),
        };
        value.serialize(&mut Serializer::with_formatter(&mut writer, WithoutNul))?;
        writer.end_piece();
        Ok(Self(writer.pieces))
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// In one piece, for a reader.
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.concat()
    }
}

impl From<Json> for reqwest::Body {
    /// Without its length, if it is in several pieces.
    fn from(json: Json) -> Self {
        match <[Bytes; 1]>::try_from(json.0) {
            Ok([whole]) => Self::from(whole),
            Err(pieces) => {
                Self::wrap_stream(stream::iter(pieces.into_iter().map(Ok::<_, io::Error>)))
            }
        }
    }
}

/// Writes U+FFFD for each U+0000, which gateways refuse.
struct WithoutNul;

impl Formatter for WithoutNul {
    fn write_char_escape<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        match escape {
            CharEscape::AsciiControl(0) => writer.write_all("\u{fffd}".as_bytes()),
            other => CompactFormatter.write_char_escape(writer, other),
        }
    }

    fn write_raw_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        writer.write_all(without_nul(fragment).as_bytes())
    }
}

struct Writer<'s> {
    pieces: Vec<Bytes>,
    text: Vec<u8>,
    shared: Vec<&'s Base64>,
}

impl Writer<'_> {
    fn end_piece(&mut self) {
        if !self.text.is_empty() {
            self.pieces.push(mem::take(&mut self.text).into());
        }
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let same = |text: &&&Base64| ptr::eq(text.as_bytes(), bytes);
        // Base64 has nothing to escape, so that it is written at once.
        let shared = (bytes.len() >= LARGE).then(|| self.shared.iter().find(same));
        if let Some(&text) = shared.flatten() {
            self.end_piece();
            self.pieces.push(Bytes::from_owner(text.clone()));
        } else {
            self.text.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_large_is_not_copied_and_the_bytes_are_the_same() {
        let (small, large) = (Base64::of(vec![7; 90]), Base64::of(vec![9; 90_000]));
        let value = json!({});
        assert_eq!(Json::write(&value, [].into_iter()).unwrap().0.len(), 1);
        let texts: [&str; 5] = [&small, &large, "a\n\u{e9}", &large, &small];
        let plain = serde_json::to_vec(&texts).unwrap();
        let json = Json::write(&texts, [&small, &large].into_iter()).unwrap();
        assert_eq!((json.len(), json.to_vec()), (plain.len(), plain.clone()));
        let own = |piece: &&Bytes| ptr::eq(piece.as_ptr(), large.as_ptr());
        assert_eq!(json.0.iter().filter(own).count(), 2);
        // What is not known as shared is copied.
        let copied = Json::write(&texts, [].into_iter()).unwrap();
        assert_eq!((copied.0.len(), copied.to_vec()), (1, plain));
    }
}
