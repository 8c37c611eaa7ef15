//! What an image is, read from its header alone: nothing hostile is decoded here.

use crate::chat::ImageType;

/// Raw bytes that make 5 MB of base64, which providers take.
pub(super) const MOST_BYTES: u64 = 3_700_000;
/// Pixels a side that providers take.
pub(super) const MOST_PIXELS: u32 = 8_000;

/// A kind that models can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Png,
    Jpeg,
    Gif,
    Webp,
}

impl Kind {
    pub(super) const fn media_type(self) -> ImageType {
        match self {
            Self::Png => ImageType::Png,
            Self::Jpeg => ImageType::Jpeg,
            Self::Gif => ImageType::Gif,
            Self::Webp => ImageType::Webp,
        }
    }
}

/// The kind by its magic number, whatever the file's name says.
pub(super) fn kind(bytes: &[u8]) -> Option<Kind> {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Kind::Png),
        [0xff, 0xd8, 0xff, ..] => Some(Kind::Jpeg),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Kind::Gif),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some(Kind::Webp),
        _ => None,
    }
}

/// Width and height; `None` when the header is cut or odd.
pub(super) fn dimensions(kind: Kind, bytes: &[u8]) -> Option<(u32, u32)> {
    match kind {
        Kind::Png => (bytes.get(12..16)? == b"IHDR")
            .then_some(())
            .and_then(|()| Some((be32(bytes, 16)?, be32(bytes, 20)?))),
        Kind::Gif => Some((le16(bytes, 6)?, le16(bytes, 8)?)),
        Kind::Webp => webp(bytes),
        Kind::Jpeg => jpeg(bytes),
    }
}

fn webp(bytes: &[u8]) -> Option<(u32, u32)> {
    match bytes.get(12..16)? {
        b"VP8 " => Some((le16(bytes, 26)? & 0x3fff, le16(bytes, 28)? & 0x3fff)),
        b"VP8L" => {
            let bits = u32::from_le_bytes(bytes.get(21..25)?.try_into().ok()?);
            Some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
        }
        b"VP8X" => Some((le24(bytes, 24)? + 1, le24(bytes, 27)? + 1)),
        _ => None,
    }
}

/// Walks the segments to the frame header.
fn jpeg(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut at = 2;
    loop {
        let marker = match bytes.get(at..at + 2)? {
            [0xff, 0xff] => {
                at += 1;
                continue;
            }
            [0xff, marker] => *marker,
            _ => return None,
        };
        match marker {
            0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Some((be16(bytes, at + 7)?, be16(bytes, at + 5)?));
            }
            0x01 | 0xd0..=0xd8 => at += 2,
            0xd9 | 0xda => return None,
            _ => at += 2 + usize::try_from(be16(bytes, at + 2)?).ok()?.max(2),
        }
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be16(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16::from_be_bytes(
        bytes.get(at..at + 2)?.try_into().ok()?,
    )))
}

fn le16(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16::from_le_bytes(
        bytes.get(at..at + 2)?.try_into().ok()?,
    )))
}

fn le24(bytes: &[u8], at: usize) -> Option<u32> {
    let [a, b, c] = bytes.get(at..at + 3)?.try_into().ok()?;
    Some(u32::from_le_bytes([a, b, c, 0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png() -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        bytes.extend([0, 0, 4, 176, 0, 0, 3, 32, 8, 6, 0, 0, 0]);
        bytes
    }

    #[test]
    fn dimensions_are_read_from_each_header() {
        let jpeg = b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x11\x08\x03\x20\x04\xb0\x03";
        let mut webp = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
        webp.extend([0xaf, 4, 0, 0x1f, 3, 0]);
        for (bytes, what) in [
            (png(), Kind::Png),
            (jpeg.to_vec(), Kind::Jpeg),
            (b"GIF89a\xb0\x04\x20\x03".to_vec(), Kind::Gif),
            (webp, Kind::Webp),
        ] {
            assert_eq!(kind(&bytes), Some(what));
            assert_eq!(dimensions(what, &bytes), Some((1200, 800)), "{what:?}");
        }
        assert_eq!(kind(b"text"), None);
    }

    proptest::proptest! {
        #[test]
        fn hostile_headers_never_panic(tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            for (magic, kind) in [(&b"\xff\xd8\xff"[..], Kind::Jpeg), (b"RIFF0000WEBP", Kind::Webp), (b"GIF89a", Kind::Gif)] {
                let mut bytes = magic.to_vec();
                bytes.extend(&tail);
                let _ = dimensions(kind, &bytes);
            }
        }
    }
}
