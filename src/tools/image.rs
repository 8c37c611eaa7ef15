//! What an image is, and that it is whole: walked to its end, never decoded.
//!
//! A provider refuses a whole request for one image that it can't read, so a damaged one must not get into
//! the conversation.

use crate::chat::ImageType;

/// Raw bytes that make 5 MB of base64, which providers take.
pub(super) const MOST_BYTES: u64 = 3_700_000;
/// Pixels a side that providers take.
pub(super) const MOST_PIXELS: u32 = 8_000;

/// The kind by its magic number, whatever the file's name says. Some of these are letters, with which a text may
/// begin as well.
pub(super) fn kind(bytes: &[u8]) -> Option<ImageType> {
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    let is_text = || {
        bytes
            .iter()
            .all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace())
    };
    if begins(b"\x89PNG\r\n\x1a\n") {
        Some(ImageType::Png)
    } else if begins(b"\xff\xd8\xff") {
        Some(ImageType::Jpeg)
    } else if (begins(b"GIF87a") || begins(b"GIF89a")) && !is_text() {
        Some(ImageType::Gif)
    } else if begins(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") && !is_text() {
        Some(ImageType::Webp)
    } else {
        None
    }
}

/// Why an image can't be used; fits after "it".
pub(super) type Damage = &'static str;

const CUT: Damage = "ends in the middle";
const NO_DATA: Damage = "has no image data";
const BROKEN: Damage = "has a broken part";

/// Width and height of an image that is whole.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(kind: ImageType, bytes: &[u8]) -> Result<(u32, u32), Damage> {
    match kind {
        ImageType::Png => png(bytes),
        ImageType::Jpeg => jpeg(bytes),
        ImageType::Gif => gif(bytes),
        ImageType::Webp => webp(bytes),
    }
}

/// Chunks with their checksums, to IEND.
fn png(bytes: &[u8]) -> Result<(u32, u32), Damage> {
    let mut at = 8;
    let mut size = None;
    let mut data = false;
    loop {
        let length = index(be32(bytes, at)?);
        let body = part(bytes, at + 4, length.saturating_add(4))?;
        let (name, content) = body.split_at(4);
        if be32(bytes, at + 8 + length)? != crc32fast::hash(body) {
            return Err(BROKEN);
        }
        match (name, size) {
            (b"IHDR", None) if length == 13 => size = Some((be32(content, 0)?, be32(content, 4)?)),
            (_, None) => return Err(BROKEN),
            (b"IDAT", _) => data |= length > 0,
            (b"IEND", Some(size)) if data => return Ok(size),
            (b"IEND", _) => return Err(NO_DATA),
            _ => {}
        }
        at += 12 + length;
    }
}

/// Segments and scans, to the end of the image.
fn jpeg(bytes: &[u8]) -> Result<(u32, u32), Damage> {
    let mut at = 2;
    let mut size = None;
    let mut data = false;
    loop {
        let [0xff, marker] = array(bytes, at)? else {
            return Err(BROKEN);
        };
        at += 1;
        match marker {
            // A fill byte: the marker is still to come.
            0xff => continue,
            0x01 | 0xd0..=0xd8 => {
                at += 1;
                continue;
            }
            0xd9 => return size.filter(|_| data).ok_or(NO_DATA),
            _ => at += 1,
        }
        let length = u16::from_be_bytes(array(bytes, at)?);
        let segment = part(bytes, at, usize::from(length.max(2)))?;
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            let side = |at| array(segment, at).map(u16::from_be_bytes).map(u32::from);
            size = Some((side(5)?, side(3)?));
        }
        at += segment.len();
        if marker == 0xda {
            data = true;
            // In a scan 0xff stands for itself before 0, and restart markers belong to it.
            loop {
                at += memchr::memchr(0xff, bytes.get(at..).ok_or(CUT)?).ok_or(CUT)?;
                match array(bytes, at)? {
                    [_, 0 | 0xd0..=0xd7] => at += 2,
                    _ => break,
                }
            }
        }
    }
}

/// Blocks, to the trailer.
fn gif(bytes: &[u8]) -> Result<(u32, u32), Damage> {
    let size = (le16(bytes, 6)?, le16(bytes, 8)?);
    let mut at = 13 + colours(bytes, 10)?;
    let mut data = false;
    loop {
        at = match byte(bytes, at)? {
            0x3b => return if data { Ok(size) } else { Err(NO_DATA) },
            0x21 => at + 2,
            0x2c => {
                data = true;
                // The descriptor, its colours, and the size of the first codes.
                at + 11 + colours(bytes, at + 9)?
            }
            _ => return Err(BROKEN),
        };
        loop {
            let length = usize::from(byte(bytes, at)?);
            at += 1 + length;
            if length == 0 {
                break;
            }
        }
    }
}

/// The size of the table of colours that the flags at `at` announce.
fn colours(bytes: &[u8], at: usize) -> Result<usize, Damage> {
    let flags = byte(bytes, at)?;
    Ok(if flags & 0x80 == 0 {
        0
    } else {
        3 << ((flags & 7) + 1)
    })
}

/// Chunks, to the end that the header names.
fn webp(bytes: &[u8]) -> Result<(u32, u32), Damage> {
    let end = index(le32(bytes, 4)?).saturating_add(8);
    let bytes = bytes.get(..end).ok_or(CUT)?;
    let size = match part(bytes, 12, 4)? {
        b"VP8 " => (le16(bytes, 26)? & 0x3fff, le16(bytes, 28)? & 0x3fff),
        b"VP8L" => {
            let bits = le32(bytes, 21)?;
            ((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1)
        }
        b"VP8X" => {
            let side = |at| le32(bytes, at).map(|side| (side & 0xff_ffff) + 1);
            (side(24)?, side(27)?)
        }
        _ => return Err(BROKEN),
    };
    let mut at = 12;
    let mut data = false;
    while at + 1 < end {
        let length = index(le32(bytes, at + 4)?);
        part(bytes, at + 8, length)?;
        data |= matches!(part(bytes, at, 4)?, b"VP8 " | b"VP8L" | b"ANMF") && length > 0;
        at += 8 + length + length % 2;
    }
    if data { Ok(size) } else { Err(NO_DATA) }
}

fn part(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], Damage> {
    let rest = bytes.get(at..).ok_or(CUT)?;
    rest.get(..length).ok_or(CUT)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Damage> {
    part(bytes, at, N)?.try_into().map_err(|_| CUT)
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, Damage> {
    bytes.get(at).copied().ok_or(CUT)
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, Damage> {
    array(bytes, at).map(u32::from_be_bytes)
}

fn le16(bytes: &[u8], at: usize) -> Result<u32, Damage> {
    array(bytes, at).map(u16::from_le_bytes).map(u32::from)
}

fn le32(bytes: &[u8], at: usize) -> Result<u32, Damage> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn index(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
        for (name, content) in chunks {
            bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
            let body = [*name, *content].concat();
            bytes.extend(&body);
            bytes.extend(crc32fast::hash(&body).to_be_bytes());
        }
        bytes
    }

    const IHDR: (&[u8; 4], &[u8]) = (b"IHDR", &[0, 0, 4, 176, 0, 0, 3, 32, 8, 6, 0, 0, 0]);

    /// One of each kind, 1200×800.
    fn images() -> Vec<(ImageType, Vec<u8>)> {
        let jpeg = b"\xff\xd8\xff\xe0\0\x04\xff\xd9\xff\xff\xc2\0\x07\x08\x03\x20\x04\xb0\
            \xff\xda\0\x04abdata\xff\0\xff\xd1data\xff\xda\0\x03amore\xff\xd9";
        let gif = b"GIF89a\xb0\x04\x20\x03\x80\0\0abcdef\x21\xf9\x04\0\0\0\0\0\
            ,\0\0\0\0\x01\0\x01\0\x80abcdef\x02\x02L\x01\0;";
        let lossy = b"RIFF\x18\0\0\0WEBPVP8 \x0b\0\0\0\0\0\0\x9d\x01\x2a\xb0\x04\x20\x03!\0";
        let bits = (0x4af_u32 | 0x31f << 14).to_le_bytes();
        let lossless = [b"RIFF\x12\0\0\0WEBPVP8L\x05\0\0\0\x2f", &bits[..], b"\0"].concat();
        let mut extended = b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
        extended.extend(b"\xaf\x04\0\x1f\x03\0ANMF\x02\0\0\0!!");
        vec![
            (
                ImageType::Png,
                png(&[IHDR, (b"IDAT", b"data"), (b"IEND", b"")]),
            ),
            (ImageType::Jpeg, jpeg.to_vec()),
            (ImageType::Gif, gif.to_vec()),
            (ImageType::Webp, lossy.to_vec()),
            (ImageType::Webp, lossless),
            (ImageType::Webp, extended),
        ]
    }

    #[test]
    fn whole_images_have_their_dimensions_also_with_a_tail() {
        for (what, mut bytes) in images() {
            assert_eq!(kind(&bytes), Some(what));
            assert_eq!(check(what, &bytes), Ok((1200, 800)), "{bytes:?}");
            bytes.extend(b"tail");
            assert_eq!(check(what, &bytes), Ok((1200, 800)), "{bytes:?}");
        }
        assert_eq!(kind(b"GIFs are images"), None);
    }

    #[test]
    fn an_image_that_is_cut_anywhere_is_damaged() {
        for (what, bytes) in images() {
            for end in 12..bytes.len() {
                let damage = check(what, &bytes[..end]).unwrap_err();
                assert_eq!(damage, CUT, "{what:?} at {end}");
            }
        }
    }

    #[test]
    fn corrupt_images_and_images_without_data_are_damaged() {
        for (bytes, why) in [
            (png(&[IHDR, (b"IEND", b"")]), NO_DATA),
            (png(&[IHDR, (b"IDAT", b""), (b"IEND", b"")]), NO_DATA),
            (png(&[(b"IDAT", b"x"), (b"IEND", b"")]), BROKEN),
            (b"\xff\xd8\xff\xd9".to_vec(), NO_DATA),
            (b"\xff\xd8\xff\xe0\0\x02x".to_vec(), CUT),
            (b"\xff\xd8\xff\xe0\0\x02xy".to_vec(), BROKEN),
            (b"GIF89a\x01\0\x01\0\0\0\0;".to_vec(), NO_DATA),
            (b"GIF89a\x01\0\x01\0\0\0\0?".to_vec(), BROKEN),
            (b"RIFF\x0c\0\0\0WEBPICCP\0\0\0\0".to_vec(), BROKEN),
        ] {
            assert_eq!(check(kind(&bytes).unwrap(), &bytes), Err(why), "{bytes:?}");
        }
        let (_, mut flipped) = images().swap_remove(0);
        flipped[41] ^= 1;
        assert_eq!(check(ImageType::Png, &flipped), Err(BROKEN));
    }

    proptest::proptest! {
        #[test]
        fn hostile_bytes_never_panic(tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            for (what, bytes) in images() {
                for at in [0, 8, 12, bytes.len() / 2] {
                    check(what, &[&bytes[..at], &tail].concat()).ok();
                }
            }
        }
    }
}
