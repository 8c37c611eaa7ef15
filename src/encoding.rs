//! Text for places that take less than any text.

use std::borrow::Cow;

use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

/// What is percent-encoded: all but RFC 3986's unreserved characters.
pub const RESERVED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The same in a path, whose slashes stay.
pub const RESERVED_IN_PATH: AsciiSet = RESERVED.remove(b'/');

/// `bytes` without the byte order mark that some editors and shells put before UTF-8 text.
pub fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The bytes that `c` takes in a JSON string as we write it.
const fn json_size(c: char) -> usize {
    match c {
        '"' | '\\' | '\u{8}' | '\t' | '\n' | '\u{c}' | '\r' => 2,
        '\0'..='\u{1f}' => 6,
        _ => c.len_utf8(),
    }
}

/// `text` split before the character that would take its JSON over `most` bytes, quotes not counted: 64 KiB of
/// control characters are 384 KiB of JSON. The first part is empty only if not even one character fits.
pub fn split_at_json_size(text: &str, most: usize) -> (&str, &str) {
    let mut size = 0;
    let at = text.char_indices().find_map(|(at, c)| {
        size += json_size(c);
        (size > most).then_some(at)
    });
    text.split_at(at.unwrap_or(text.len()))
}

/// `text` in pieces whose JSON has at most `most` bytes each, cut between characters; nothing for the empty
/// text. A character that doesn't fit is a piece of its own.
pub fn json_pieces(text: &str, most: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let (piece, after) = split_at_json_size(rest, most.max(json_size(first)));
        rest = after;
        Some(piece)
    })
}

/// `text` with its accents composed (NFC).
pub fn composed(text: &str) -> Cow<'_, str> {
    const NFC: ComposingNormalizerBorrowed<'static> = ComposingNormalizerBorrowed::new_nfc();
    NFC.normalize(text)
}

/// `text` with its accents as signs of their own (NFD).
pub fn decomposed(text: &str) -> Cow<'_, str> {
    const NFD: DecomposingNormalizerBorrowed<'static> = DecomposingNormalizerBorrowed::new_nfd();
    NFD.normalize(text)
}

/// `json` with every escape of U+0000 replaced.
pub(crate) fn without_nul(json: &str) -> Cow<'_, str> {
    escapes_replaced(json, |unit, _| match unit {
        0 => Unit::Replaced,
        _ => Unit::Kept,
    })
}

/// What becomes of an escape of a UTF-16 unit.
pub(crate) enum Unit {
    Kept,
    /// It is kept, and so is the one after it.
    FirstOfTwo,
    Replaced,
}

/// `json` with those escapes replaced of which `what` says so, by the unit and the one that follows at once.
pub(crate) fn escapes_replaced(
    json: &str,
    what: impl Fn(u16, Option<u16>) -> Unit,
) -> Cow<'_, str> {
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
                out.push_str("\\ufffd");
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_mark_before_text_is_skipped() {
        assert_eq!(without_bom(b"\xef\xbb\xbf{}"), b"{}");
        assert_eq!(without_bom(b"{}\xef\xbb\xbf"), b"{}\xef\xbb\xbf");
        assert_eq!(
            without_bom("\u{feff}\u{feff}".as_bytes()),
            "\u{feff}".as_bytes()
        );
    }

    #[test]
    fn control_characters_count_as_the_json_that_they_become() {
        let text = "\u{1}".repeat(64 * 1024);
        let (first, rest) = split_at_json_size(&text, 64 * 1024);
        assert_eq!(first.len(), 64 * 1024 / 6);
        assert_eq!(first.len() + rest.len(), text.len());
        assert_eq!(split_at_json_size("äb", 1), ("", "äb"));
        assert_eq!(json_pieces("äb", 1).collect::<Vec<_>>(), ["ä", "b"]);
    }

    proptest! {
        #[test]
        fn pieces_add_up_and_fit_as_the_json_that_is_written(
            text in "([a-zé\u{1f600}\u{2028}]|[\0-\u{1f}]|[\"\\\\/\u{7f}]){0,60}", most in 0_usize..40
        ) {
            let pieces: Vec<&str> = json_pieces(&text, most).collect();
            prop_assert_eq!(pieces.concat(), text.clone());
            for piece in &pieces {
                let json = serde_json::to_string(piece).unwrap().len() - 2;
                prop_assert!(json <= most || piece.chars().count() == 1, "{:?} {}", piece, json);
                prop_assert!(!piece.is_empty());
            }
            let (first, rest) = split_at_json_size(&text, most);
            if let Some(next) = rest.chars().next() {
                let more = serde_json::to_string(&format!("{first}{next}")).unwrap().len() - 2;
                prop_assert!(more > most);
            }
        }
    }
}
