//! Secrets that can't be printed, and the redactor that keeps them out of everything shown.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::encoding::percent_encoded;

/// What a secret is replaced by.
pub const REDACTED: &str = "[redacted]";

/// Secrets of fewer bytes are not searched for: a short word would damage ordinary text, and what stands in
/// such a place (`ollama`, `sk-1234`) is no secret.
pub const SHORTEST_SEARCHED: usize = 16;

/// A key or token. Has no `Display`; `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps `value`, trimmed of surrounding blanks and line ends.
    pub fn new(value: &str) -> Self {
        Self(Arc::from(value.trim()))
    }

    /// The value itself: only for the header or comparison that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Replaces every known secret, and its usual encodings, by [`REDACTED`]. Cheap to clone.
///
/// For what is *shown*, never for what is acted on. The second line of defence (`reliability-security`, SE-4):
/// the first is that no key is ever where a sandbox could print it.
#[derive(Clone, Default)]
pub struct Redactor(Option<Arc<Needles>>);

struct Needles {
    /// The leftmost needle, and the longest of those. None if there are gigabytes of them: then all is hidden.
    finder: Option<AhoCorasick>,
    /// In order, so that those with a common beginning are neighbours.
    sorted: Vec<String>,
    longest: usize,
}

/// Whose words the names in a JSON value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Ours: they stay.
    Ours,
    /// Somebody's, so they are text like any other.
    Theirs,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor(***)")
    }
}

impl Redactor {
    /// A redactor of `secrets`: each one raw, percent-encoded, JSON-escaped, and in base64 at its three
    /// alignments. Those under [`SHORTEST_SEARCHED`] are left out.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut needles: Vec<String> = Vec::new();
        for secret in secrets {
            let raw = secret.expose();
            if raw.len() < SHORTEST_SEARCHED {
                continue;
            }
            needles.push(raw.to_owned());
            needles.push(percent_encoded(raw, b""));
            if let Ok(json) = serde_json::to_string(raw) {
                // Only the quotes around it: its own may stand at its ends.
                let inner = json.get(1..json.len().saturating_sub(1));
                needles.push(inner.unwrap_or_default().to_owned());
            }
            for shift in 0..3 {
                needles.extend(base64_core(raw.as_bytes(), shift));
            }
        }
        Self::of(needles)
    }

    /// One that searches for `needle`, however short.
    #[cfg(test)]
    pub(crate) fn searching(needle: &str) -> Self {
        Self::of(vec![needle.to_owned()])
    }

    fn of(mut sorted: Vec<String>) -> Self {
        sorted.retain(|needle| !needle.is_empty());
        sorted.sort_unstable();
        sorted.dedup();
        let Some(longest) = sorted.iter().map(String::len).max() else {
            return Self(None);
        };
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&sorted);
        Self(Some(Arc::new(Needles {
            finder: finder.ok(),
            sorted,
            longest,
        })))
    }

    /// `text` without any secret. Borrows when there was nothing to replace.
    pub fn clean<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let Some(needles) = &self.0 else {
            return Cow::Borrowed(text);
        };
        let mut out = String::new();
        let done = needles.replace(text, text.len(), &mut out);
        if done == 0 {
            return Cow::Borrowed(text);
        }
        out.push_str(text.get(done..).unwrap_or_default());
        Cow::Owned(out)
    }

    /// Takes every secret out of `text`. Whether there was one.
    pub fn clean_text(&self, text: &mut String) -> bool {
        let cleaned = match self.clean(text) {
            Cow::Owned(cleaned) => cleaned,
            Cow::Borrowed(_) => return false,
        };
        *text = cleaned;
        true
    }

    /// Takes every secret out of the strings of `value`, and out of `names` that aren't ours. No number is
    /// touched. Whether there was one.
    pub fn clean_value(&self, value: &mut Value, names: Names) -> bool {
        match value {
            Value::String(text) => self.clean_text(text),
            Value::Array(items) => items
                .iter_mut()
                .fold(false, |any, item| self.clean_value(item, names) | any),
            Value::Object(fields) => {
                let mut any = fields
                    .values_mut()
                    .fold(false, |any, value| self.clean_value(value, names) | any);
                let secret = |name: &String| matches!(self.clean(name), Cow::Owned(_));
                if names == Names::Theirs && fields.keys().any(secret) {
                    any = true;
                    *fields = std::mem::take(fields)
                        .into_iter()
                        .map(|(name, value)| (self.clean(&name).into_owned(), value))
                        .collect();
                }
                any
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }

    /// A cleaner for text that arrives in pieces.
    pub fn stream(&self) -> RedactingStream {
        RedactingStream {
            redactor: self.clone(),
            held: String::new(),
        }
    }
}

impl Needles {
    /// Writes `text` up to the end of the last needle that begins before `limit`, with each replaced, and gives
    /// that end: 0 if there is none.
    fn replace(&self, text: &str, limit: usize, out: &mut String) -> usize {
        let Some(finder) = &self.finder else {
            out.push_str(REDACTED);
            return text.len();
        };
        let mut done = 0;
        for found in finder.find_iter(text) {
            if found.start() >= limit {
                break;
            }
            out.push_str(text.get(done..found.start()).unwrap_or_default());
            out.push_str(REDACTED);
            done = found.end();
        }
        done
    }

    /// Where the longest end of `text` begins that a longer needle begins with: what comes next decides what
    /// it is. Nothing that begins before goes on past the end.
    fn undecided(&self, text: &str) -> usize {
        let from = text.len().saturating_sub(self.longest.saturating_sub(1));
        (from..text.len())
            .find(|&at| {
                // A needle's first byte begins a character, so other places can't match.
                let tail = text.as_bytes().get(at..).unwrap_or_default();
                let next = self
                    .sorted
                    .partition_point(|needle| needle.as_bytes() <= tail);
                self.sorted
                    .get(next)
                    .is_some_and(|needle| needle.as_bytes().starts_with(tail))
            })
            .unwrap_or(text.len())
    }
}

/// Cleans text that arrives in pieces, holding back only an end that may be the start of a secret.
#[derive(Debug)]
pub struct RedactingStream {
    redactor: Redactor,
    held: String,
}

impl RedactingStream {
    /// Takes the next piece and gives what can be shown now.
    pub fn push(&mut self, piece: &str) -> String {
        let Some(needles) = &self.redactor.0 else {
            return piece.to_owned();
        };
        self.held.push_str(piece);
        let undecided = needles.undecided(&self.held);
        let mut shown = String::new();
        let done = needles.replace(&self.held, undecided, &mut shown);
        let end = done.max(undecided);
        if done == 0 && end == self.held.len() {
            return std::mem::take(&mut self.held);
        }
        shown.push_str(self.held.get(done..end).unwrap_or_default());
        self.held.drain(..end);
        shown
    }

    /// The end: gives what was held back.
    pub fn finish(&mut self) -> String {
        let mut held = std::mem::take(&mut self.held);
        self.redactor.clean_text(&mut held);
        held
    }
}

/// The base64 characters that depend on `raw` alone when `shift` bytes stand before it.
fn base64_core(raw: &[u8], shift: usize) -> Vec<String> {
    let mut padded = vec![0_u8; shift];
    padded.extend_from_slice(raw);
    let whole = padded.len() / 3 * 3;
    let skip = if shift == 0 { 0 } else { shift + 1 };
    let mut out = Vec::new();
    for text in [
        STANDARD_NO_PAD.encode(padded.get(..whole).unwrap_or_default()),
        URL_SAFE_NO_PAD.encode(padded.get(..whole).unwrap_or_default()),
    ] {
        out.extend(text.get(skip..).map(str::to_owned));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const KEY: &str = "sk-ant-secret/0123+456789";

    fn redactor() -> Redactor {
        Redactor::new([&Secret::new(KEY)])
    }

    #[test]
    fn debug_never_shows_the_value() {
        assert_eq!(format!("{:?}", Secret::new("hunter2hunter2")), "***");
        assert!(!format!("{:?}", redactor()).contains("secret"));
        assert!(!format!("{:?}", redactor().stream()).contains("secret"));
    }

    #[test]
    fn encodings_are_found_at_every_alignment() {
        let cleaned = redactor();
        for before in ["", "a", "ab", "abc"] {
            let encoded = STANDARD_NO_PAD.encode(format!("{before}{KEY}tail"));
            let out = cleaned.clean(&encoded).into_owned();
            assert!(out.contains(REDACTED), "{before:?}: {out}");
        }
        assert_eq!(cleaned.clean(&format!("x{KEY}y")), "x[redacted]y");
        assert_eq!(cleaned.clean(&percent_encoded(KEY, b"")), REDACTED);
        assert!(matches!(cleaned.clean("nothing here"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_short_word_is_no_secret_to_search_for() {
        for word in ["import", "ollama", "fifteen-letters"] {
            let cleaned = Redactor::new([&Secret::new(word)]);
            let text = format!("{word} os\n");
            assert_eq!(cleaned.clean(&text), text);
            assert_eq!(cleaned.stream().push(&text), text);
        }
        assert_eq!(
            Redactor::new([&Secret::new("sixteen-letters-")]).clean("a sixteen-letters-!"),
            "a [redacted]!"
        );
    }

    #[test]
    fn a_secret_that_begins_another_never_leaves_its_rest() {
        let (short, long) = ("sk-team-0123456789", "sk-team-0123456789-of-2026");
        let cleaned = Redactor::new([&Secret::new(short), &Secret::new(long)]);
        assert_eq!(
            cleaned.clean(&format!("{long} {short}.")),
            "[redacted] [redacted]."
        );
        for cut in 0..long.len() {
            let mut stream = cleaned.stream();
            let (head, tail) = long.split_at(cut);
            let out =
                stream.push(head) + &stream.push(tail) + &stream.push(" x") + &stream.finish();
            assert_eq!(out, "[redacted] x", "{cut}");
        }
    }

    #[test]
    fn quotes_at_a_secrets_ends_are_part_of_it() {
        let secret = "\"quoted-0123456789\"";
        let cleaned = Redactor::new([&Secret::new(secret)]);
        let text = json!({ "k": secret }).to_string();
        assert_eq!(cleaned.clean(&text), r#"{"k":"[redacted]"}"#);
    }

    #[test]
    fn a_value_loses_secrets_in_strings_and_in_names_that_are_not_ours() {
        let (digits, quoted) = ("1234567890123456", "se\"cret!-0123456789");
        let cleaned = Redactor::new([&Secret::new(digits), &Secret::new(quoted)]);
        let value =
            json!({"n": 1_234_567_890_123_456_u64, quoted: [format!("x{digits}")], "s": quoted});
        let mut theirs = value.clone();
        assert!(cleaned.clean_value(&mut theirs, Names::Theirs));
        assert_eq!(
            theirs.to_string(),
            r#"{"n":1234567890123456,"[redacted]":["x[redacted]"],"s":"[redacted]"}"#
        );
        let mut ours = value;
        assert!(cleaned.clean_value(&mut ours, Names::Ours));
        assert_eq!(ours[quoted][0], "x[redacted]");
        let mut plain = json!({"a": [1.5, null, "b"]});
        assert!(!cleaned.clean_value(&mut plain, Names::Theirs));
    }

    proptest! {
        #[test]
        fn pieces_are_cleaned_as_the_whole_is_and_no_needle_stays(
            needles in prop::collection::vec("[xyé]{1,5}", 0..6),
            pieces in prop::collection::vec("[xyzé]{0,7}", 0..10),
        ) {
            let cleaned = Redactor::of(needles.clone());
            let whole = pieces.concat();
            let expected = cleaned.clean(&whole).into_owned();
            let mut stream = cleaned.stream();
            let mut out: String = pieces.iter().map(|piece| stream.push(piece)).collect();
            let longest = needles.iter().map(String::len).max().unwrap_or(1);
            prop_assert!(stream.held.len() < longest);
            out.push_str(&stream.finish());
            prop_assert_eq!(&out, &expected);
            for part in expected.split(REDACTED) {
                prop_assert!(!needles.iter().any(|needle| part.contains(needle)), "{}", expected);
            }
        }

        #[test]
        fn chunking_never_lets_a_secret_through(
            before in "[a-zé]{0,12}", after in "[a-zé]{0,12}", cuts in prop::collection::vec(0_usize..60, 0..6)
        ) {
            let text = format!("{before}{KEY}{after}");
            let mut stream = redactor().stream();
            let mut out = String::new();
            let mut rest = text.as_str();
            for cut in cuts {
                let at = (0..=cut.min(rest.len())).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(0);
                let (head, tail) = rest.split_at(at);
                out.push_str(&stream.push(head));
                rest = tail;
            }
            out.push_str(&stream.push(rest));
            out.push_str(&stream.finish());
            prop_assert_eq!(out, format!("{before}[redacted]{after}"));
        }
    }
}
