//! Secrets that can't be printed, and the redactor that keeps them out of everything shown.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::automaton::{Automaton as _, StateID};
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::encoding::{hex, percent_encoded};

/// What a secret is replaced by.
pub const REDACTED: &str = "[redacted]";

/// Secrets of fewer bytes are not searched for: a short word would damage ordinary text, and what stands in
/// such a place (`ollama`, `sk-1234`) is no secret.
pub const SHORTEST_SEARCHED: usize = 16;

/// So many line ends within a secret are passed over, each time: encoders wrap what they write at any column.
const MOST_BREAKS: usize = 4;

/// Of a word that may go on to be a secret so many bytes are shown at once.
const MOST_SHOWN: usize = 8;

/// What percent-encoders leave as it is, besides RFC 3986's unreserved characters: nothing, Python's `quote`,
/// JavaScript's `encodeURIComponent` and `encodeURI`.
const KEPT: [&[u8]; 4] = [b"", b"/", b"!*'()", b"!*'();:@&=+$,/?#"];

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

/// Needles, which have no line ends: those of a text are passed over.
struct Needles {
    /// Tells the leftmost needle, and the longest of those, by its number. None if there are gigabytes of
    /// them: then all is hidden.
    finder: Option<(NFA, StateID)>,
    longest: usize,
    /// So much of a last word is shown at once: at most half of any needle.
    shown: usize,
    /// What a needle may have besides line ends: all visible ASCII, whatever these needles have, so that it tells
    /// nothing of them, and what keys don't have but these needles do.
    in_words: [bool; 256],
    /// What no needle begins with is passed over quickly.
    begins: [bool; 256],
}

/// Needles that were replaced: where the first begins, and the last ends.
struct Replaced {
    first: usize,
    done: usize,
}

/// The last word of a text.
struct Undecided {
    start: usize,
    /// The end of what may be shown of it.
    shown: usize,
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
    /// A redactor of `secrets`: each one raw, percent-encoded, JSON-escaped, in hexadecimal, and in base64 at its
    /// three alignments, on one line or wrapped. Those under [`SHORTEST_SEARCHED`] are left out.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let secrets = secrets.into_iter().map(Secret::expose);
        let searched = secrets.filter(|raw| raw.len() >= SHORTEST_SEARCHED);
        Self::of(searched.flat_map(spellings).collect())
    }

    /// One that searches for `needle`, however short.
    #[cfg(test)]
    pub(crate) fn searching(needle: &str) -> Self {
        Self::of(vec![needle.to_owned()])
    }

    fn of(mut sorted: Vec<String>) -> Self {
        for needle in &mut sorted {
            needle.retain(|c| !matches!(c, '\n' | '\r'));
        }
        sorted.retain(|needle| !needle.is_empty());
        sorted.sort_unstable();
        sorted.dedup();
        let Some(longest) = sorted.iter().map(String::len).max() else {
            return Self(None);
        };
        let finder = NFA::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .prefilter(false)
            .build(&sorted)
            .ok()
            .and_then(|nfa| {
                let start = nfa.start_state(Anchored::No).ok()?;
                Some((nfa, start))
            });
        let begins = sorted.iter().filter_map(|needle| needle.bytes().next());
        let in_words = (b'!'..=b'~').chain([b'\n', b'\r']);
        let in_words = in_words.chain(sorted.iter().flat_map(|needle| needle.bytes()));
        Self(Some(Arc::new(Needles {
            finder,
            longest,
            shown: sorted
                .iter()
                .map(String::len)
                .min()
                .map_or(0, |shortest| shortest / 2)
                .min(MOST_SHOWN),
            begins: set(begins),
            in_words: set(in_words),
        })))
    }

    /// `text` without any secret. Borrows when there was nothing to replace.
    pub fn clean<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let Some(needles) = &self.0 else {
            return Cow::Borrowed(text);
        };
        let mut out = String::new();
        let Some(replaced) = needles.replace(text, text.len(), &mut out) else {
            return Cow::Borrowed(text);
        };
        out.push_str(text.get(replaced.done..).unwrap_or_default());
        Cow::Owned(out)
    }

    /// Whether a secret stands in `text`.
    pub fn finds(&self, text: &str) -> bool {
        let found = |needles: &Arc<Needles>| needles.find(text.as_bytes(), 0).is_some();
        self.0.as_ref().is_some_and(found)
    }

    /// The beginning of a longer text, without any secret and without its last word, which may be half of one.
    pub fn clean_cut(&self, beginning: &str) -> String {
        let Some(needles) = &self.0 else {
            return beginning.to_owned();
        };
        let end = needles.undecided(beginning).start;
        let mut out = String::new();
        let done = needles
            .replace(beginning, end, &mut out)
            .map_or(0, |replaced| replaced.done);
        out.push_str(beginning.get(done..end).unwrap_or_default());
        out
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
                if names == Names::Theirs && fields.keys().any(|name| self.finds(name)) {
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

    /// A cleaner for text that arrives in pieces, and is read when it is whole.
    pub fn stream(&self) -> RedactingStream {
        RedactingStream {
            redactor: self.clone(),
            held: String::new(),
            given: 0,
            live: false,
        }
    }

    /// A cleaner for text that is read piece by piece: no piece waits for the next because of the usual words at its
    /// end. So the first [`MOST_SHOWN`] bytes of a secret at the end of a piece are shown.
    pub fn live_stream(&self) -> RedactingStream {
        RedactingStream {
            live: true,
            ..self.stream()
        }
    }
}

fn set(bytes: impl Iterator<Item = u8>) -> [bool; 256] {
    let mut set = [false; 256];
    for byte in bytes {
        if let Some(is_in) = set.get_mut(usize::from(byte)) {
            *is_in = true;
        }
    }
    set
}

const fn is_break(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

impl Needles {
    /// Writes `text` up to the end of the last needle that begins before `limit`, with each replaced.
    fn replace(&self, text: &str, limit: usize, out: &mut String) -> Option<Replaced> {
        let mut replaced: Option<Replaced> = None;
        loop {
            let done = replaced.as_ref().map_or(0, |replaced| replaced.done);
            let found = self.find(text.as_bytes(), done);
            let Some(found) = found.filter(|found| found.start < limit) else {
                return replaced;
            };
            out.push_str(text.get(done..found.start).unwrap_or_default());
            out.push_str(REDACTED);
            let first = replaced.map_or(found.start, |replaced| replaced.first);
            replaced = Some(Replaced {
                first,
                done: found.end,
            });
        }
    }

    /// The first needle from `from` on.
    fn find(&self, text: &[u8], from: usize) -> Option<Range<usize>> {
        let Some((nfa, start)) = &self.finder else {
            return (from < text.len()).then_some(from..text.len());
        };
        let (mut state, mut breaks, mut found) = (*start, 0, None);
        let mut at = from;
        while let Some(&byte) = text.get(at) {
            if state == *start && !self.begins(byte) {
                at += 1;
                continue;
            }
            at += 1;
            breaks = if is_break(byte) { breaks + 1 } else { 0 };
            if (1..=MOST_BREAKS).contains(&breaks) {
                continue;
            }
            state = nfa.next_state(Anchored::No, state, byte);
            if nfa.is_dead(state) {
                break;
            }
            if nfa.is_match(state) {
                found = Some((nfa.pattern_len(nfa.match_pattern(state, 0)), at));
            }
        }
        let (len, end) = found?;
        let before = text.get(..end).unwrap_or_default();
        Some(back(before, len)..end)
    }

    fn begins(&self, byte: u8) -> bool {
        self.begins.get(usize::from(byte)) == Some(&true)
    }

    /// The end of `text` that may go on to be a needle: its last word, or as much of it as a needle can begin in. No
    /// needle before goes on past the end. Not where a needle *would* begin: whoever chooses the text could read
    /// the needles from what is held back, a character at a time.
    fn undecided(&self, text: &str) -> Undecided {
        let bytes = text.as_bytes();
        let from = back(bytes, self.longest - 1);
        let ended = bytes.get(from..).unwrap_or_default();
        let ended = ended.iter().rposition(|byte| !self.in_words(*byte));
        let start = floor(text, ended.map_or(from, |at| from + at + 1));
        let is_word = ended.is_some() || from == 0;
        let shown = if is_word { self.shown } else { 0 };
        Undecided {
            start,
            shown: floor(text, start + shown),
        }
    }

    fn in_words(&self, byte: u8) -> bool {
        self.in_words.get(usize::from(byte)) == Some(&true)
    }
}

/// The boundary of characters at `at`, or the last before.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Where the last `len` bytes of `text` begin, line ends within them not counted; nothing goes on over more of those
/// than [`MOST_BREAKS`] in a row.
fn back(text: &[u8], len: usize) -> usize {
    let (mut left, mut breaks, mut start) = (len, 0, text.len());
    for (at, byte) in text.iter().enumerate().rev() {
        breaks = if is_break(*byte) { breaks + 1 } else { 0 };
        if left == 0 || breaks > MOST_BREAKS {
            break;
        }
        if breaks == 0 {
            left -= 1;
            start = at;
        }
    }
    start
}

/// Cleans text that arrives in pieces, holding back the last word, which may be the start of a secret.
#[derive(Debug)]
pub struct RedactingStream {
    redactor: Redactor,
    held: String,
    /// So many bytes of it were given out already, at a pause: whoever joins all that is given must not find a
    /// secret that goes on after it.
    given: usize,
    live: bool,
}

impl RedactingStream {
    /// Takes the next piece and gives what can be shown now.
    pub fn push(&mut self, piece: &str) -> String {
        let Some(needles) = self.redactor.0.clone() else {
            return piece.to_owned();
        };
        self.held.push_str(piece);
        let Undecided { start, shown } = needles.undecided(&self.held);
        let end = if self.live { shown } else { start };
        self.give(&needles, start, end, start)
    }

    /// A pause, or the end: gives what was held back.
    pub fn finish(&mut self) -> String {
        let Some(needles) = self.redactor.0.clone() else {
            return String::new();
        };
        let end = self.held.len();
        self.give(&needles, end, end, needles.undecided(&self.held).start)
    }

    /// Gives out what is held before `end`, without what was given before and without the needles that begin before
    /// `decided`, and keeps what begins at `undecided`.
    fn give(&mut self, needles: &Needles, decided: usize, end: usize, undecided: usize) -> String {
        let mut shown = String::new();
        let replaced = needles.replace(&self.held, decided, &mut shown);
        let done = replaced.as_ref().map_or(0, |replaced| replaced.done);
        let (end, kept) = (done.max(end), done.max(undecided));
        let first = replaced.map_or(end, |replaced| replaced.first);
        let given = self.given.min(first);
        if given == 0 && done == 0 && kept == self.held.len() {
            return std::mem::take(&mut self.held);
        }
        shown.push_str(self.held.get(done..end).unwrap_or_default());
        self.given = self.given.max(end).saturating_sub(kept);
        self.held.drain(..kept);
        shown.drain(..given);
        shown
    }
}

/// How programs write `raw`.
fn spellings(raw: &str) -> Vec<String> {
    let hex = hex(raw.as_bytes());
    let mut out = vec![raw.to_owned(), hex.to_ascii_lowercase(), hex];
    for kept in KEPT {
        let encoded = percent_encoded(raw, kept);
        out.push(with_small_escapes(&encoded));
        out.push(encoded);
    }
    if let Ok(json) = serde_json::to_string(raw) {
        // Only the quotes around it: its own may stand at its ends.
        let inner = json.get(1..json.len().saturating_sub(1));
        let inner = inner.unwrap_or_default();
        out.extend([inner.to_owned(), inner.replace('/', "\\/")]);
    }
    out.extend((0..3).flat_map(|shift| base64_core(raw.as_bytes(), shift)));
    out
}

/// `encoded` with the digits after each `%` in small letters.
fn with_small_escapes(encoded: &str) -> String {
    let mut digits = 0_u8;
    let small = |c: char| {
        let digit = digits > 0;
        digits = if c == '%' {
            2
        } else {
            digits.saturating_sub(1)
        };
        if digit { c.to_ascii_lowercase() } else { c }
    };
    encoded.chars().map(small).collect()
}

/// The base64 characters that depend on `raw` alone when `shift` bytes stand before it.
fn base64_core(raw: &[u8], shift: usize) -> [String; 2] {
    let mut padded = vec![0_u8; shift];
    padded.extend_from_slice(raw);
    let whole = padded.get(..padded.len() / 3 * 3).unwrap_or_default();
    let skip = if shift == 0 { 0 } else { shift + 1 };
    [STANDARD_NO_PAD, URL_SAFE_NO_PAD].map(|alphabet| {
        alphabet
            .encode(whole)
            .get(skip..)
            .unwrap_or_default()
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const KEY: &str = "sk-ant-secret/0123+456789";

    /// What of `bytes` is no line end.
    fn unbroken(bytes: &[u8]) -> impl Iterator<Item = u8> {
        bytes.iter().copied().filter(|byte| !is_break(*byte))
    }

    fn redactor() -> Redactor {
        Redactor::new([&Secret::new(KEY)])
    }

    #[test]
    fn debug_never_shows_the_value() {
        assert_eq!(format!("{:?}", Secret::new("hunter2hunter2")), "***");
        assert!(!format!("{:?}", redactor()).contains("secret"));
        assert!(!format!("{:?}", redactor().stream()).contains("secret"));
    }

    /// `text` in lines of so many columns.
    fn wrapped(text: &str, columns: usize, line_end: &str) -> String {
        let lines: Vec<&str> = text
            .as_bytes()
            .chunks(columns)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        lines.join(line_end)
    }

    #[test]
    fn base64_is_found_at_every_alignment_however_it_is_wrapped() {
        let cleaned = redactor();
        let inner = |text: &[u8]| {
            let text = String::from_utf8_lossy(text).into_owned();
            text.contains(&KEY[2..KEY.len() - 2])
        };
        for before in 0..120 {
            let plain = format!("{}{KEY}tail", "b".repeat(before));
            for encoder in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                let encoded = encoder.encode(&plain);
                for (columns, line_end) in [
                    (10_000, ""),
                    (64, "\n"),
                    (76, "\n"),
                    (76, "\r\n"),
                    (5, "\n"),
                ] {
                    let text = wrapped(&encoded, columns, line_end);
                    let out = cleaned.clean(&text).into_owned();
                    assert_eq!(
                        out.matches(REDACTED).count(),
                        1,
                        "{before} {columns}: {out}"
                    );
                    for rest in out.split(REDACTED) {
                        let rest: String = unbroken(rest.as_bytes()).map(char::from).collect();
                        for cut in 0..4.min(rest.len()) {
                            let whole = &rest[cut..cut + (rest.len() - cut) / 4 * 4];
                            assert!(!encoder.decode(whole).is_ok_and(|text| inner(&text)));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_key_is_found_as_programs_write_it() {
        let cleaned = redactor();
        for spelling in [
            "sk-ant-secret/0123+456789",
            "sk-ant-secret%2F0123%2B456789",
            "sk-ant-secret%2f0123%2b456789",
            "sk-ant-secret/0123%2B456789",
            "sk-ant-secret/0123%2b456789",
            "sk-ant-secret\\/0123+456789",
            "736b2d616e742d7365637265742f303132332b343536373839",
            "736B2D616E742D7365637265742F303132332B343536373839",
            "sk-ant-\nsecret/01\r\n23+456789",
        ] {
            assert_eq!(cleaned.clean(&format!("x{spelling}y")), "x[redacted]y");
        }
        assert!(matches!(cleaned.clean("nothing here"), Cow::Borrowed(_)));
    }

    #[test]
    fn what_was_cut_shows_no_half_of_a_key() {
        for cut in 0..KEY.len() {
            let text = format!("bad key {}", &KEY[..cut]);
            assert_eq!(redactor().clean_cut(&text), "bad key ", "{cut}");
        }
    }

    /// Whoever chooses the text must not learn the next character of a key from where it is cut.
    #[test]
    fn what_is_held_back_tells_nothing_of_a_key() {
        let key = Redactor::new([&Secret::new(KEY)]);
        let spellings = spellings(KEY);
        for spelling in &spellings {
            for cut in 1..spelling.len() {
                let right = format!("a guess: {}", &spelling[..cut]);
                let wrong = format!("{}~", &right[..right.len() - 1]);
                let shown = |guess: &str| {
                    let mut stream = key.live_stream();
                    let pieces = [stream.push(guess), stream.push("! "), stream.finish()];
                    (key.clean_cut(guess).len(), pieces.map(|piece| piece.len()))
                };
                assert_eq!(shown(&right), shown(&wrong), "{right}");
            }
        }
    }

    #[test]
    fn of_a_long_word_that_may_go_on_the_beginning_is_given_out() {
        let mut stream = redactor().live_stream();
        let given = [
            "Hello",
            " world, incompre",
            "hensible",
            "\n",
            "你好，",
            "世界",
            "\tx",
            "",
        ];
        let given = given.map(|piece| stream.push(piece));
        let expected = [
            "Hello",
            " world, incompre",
            "",
            "",
            "hensible\n你好，",
            "世界",
            "\tx",
            "",
        ];
        assert_eq!(given, expected);
        assert_eq!(stream.finish(), "");
    }

    /// At each pause all is given out, and yet nothing that is joined afterwards has the key.
    #[test]
    fn a_key_across_pauses_is_never_given_out_whole() {
        for cut in 1..KEY.len() {
            let (head, tail) = KEY.split_at(cut);
            let mut stream = redactor().stream();
            let shown = [
                stream.push("a "),
                stream.push(head),
                stream.finish(),
                stream.push(""),
                stream.finish(),
                stream.push(tail),
                stream.push(" b"),
                stream.finish(),
            ];
            assert_eq!(shown.concat(), format!("a {head}[redacted] b"));
            let mut stream = redactor().stream();
            let shown = [
                stream.push(head),
                stream.finish(),
                stream.push("!"),
                stream.finish(),
            ];
            assert_eq!(shown.concat(), format!("{head}!"));
        }
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

    /// The same as [`Redactor::clean`], slowly.
    fn by_hand(needles: &[String], text: &str) -> String {
        let end = |needle: &String, start: usize| {
            let (mut at, mut breaks) = (start, 0);
            for byte in needle.bytes() {
                while at > start
                    && breaks < MOST_BREAKS
                    && text.as_bytes().get(at).is_some_and(|b| is_break(*b))
                {
                    (at, breaks) = (at + 1, breaks + 1);
                }
                if text.as_bytes().get(at) != Some(&byte) {
                    return None;
                }
                (at, breaks) = (at + 1, 0);
            }
            Some(at)
        };
        let (mut out, mut at) = (String::new(), 0);
        while let Some(next) = text[at..].chars().next() {
            let longest = needles
                .iter()
                .filter_map(|needle| Some((needle.len(), end(needle, at)?)))
                .max();
            if let Some((_, end)) = longest {
                out.push_str(REDACTED);
                at = end;
            } else {
                out.push(next);
                at += next.len_utf8();
            }
        }
        out
    }

    proptest! {
        #[test]
        fn pieces_are_cleaned_as_the_whole_is_and_no_needle_stays(
            needles in prop::collection::vec("[xyé]{1,5}", 0..6),
            pieces in prop::collection::vec(("[xyzé]{0,7}(\n|\r\n|\n{6})?[xyé]?", any::<bool>()), 0..10),
        ) {
            let cleaned = Redactor::of(needles.clone());
            let whole: String = pieces.iter().map(|(piece, _)| piece.as_str()).collect();
            let expected = cleaned.clean(&whole).into_owned();
            prop_assert_eq!(&expected, &by_hand(&needles, &whole));
            let longest = needles.iter().map(String::len).max().unwrap_or(1);
            for (live, with_pauses) in [(false, false), (false, true), (true, false), (true, true)] {
                let mut stream = if live { cleaned.live_stream() } else { cleaned.stream() };
                let mut out = String::new();
                for (piece, pause) in &pieces {
                    out.push_str(&stream.push(piece));
                    if with_pauses && *pause {
                        out.push_str(&stream.finish());
                    }
                    prop_assert!(stream.held.len() < longest * (MOST_BREAKS + 1));
                }
                out.push_str(&stream.finish());
                if !live && !with_pauses {
                    prop_assert_eq!(&out, &expected);
                }
                for part in out.split(REDACTED) {
                    prop_assert!(!needles.iter().any(|needle| part.contains(needle)), "{}", out);
                }
            }
        }

        #[test]
        fn ordinary_text_is_left_alone(
            before in "[-a-zA-Z0-9+/=%_ \n]{0,80}", after in "[-a-zA-Z0-9+/=%_ \n]{0,80}",
            spelling in any::<prop::sample::Index>(), cut in any::<bool>()
        ) {
            let all = spellings(KEY);
            let spelling = spelling.get(&all);
            // All but one character of a key is none.
            let part = if cut { &spelling[1..] } else { &spelling[..spelling.len() - 1] };
            let text = format!("{before}!{part}!{after}");
            prop_assert!(matches!(redactor().clean(&text), Cow::Borrowed(_)), "{}", text);
        }

        #[test]
        fn chunking_never_lets_a_secret_through(
            before in "[a-zé]{0,12}", after in "[a-zé]{0,12}", cuts in prop::collection::vec(0_usize..60, 0..6),
            live in any::<bool>(),
        ) {
            let text = format!("{before}{KEY}{after}");
            let mut stream = if live { redactor().live_stream() } else { redactor().stream() };
            let most_shown = if live { MOST_SHOWN } else { 0 };
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
            let (shown, rest) = out.split_once(REDACTED).unwrap();
            prop_assert_eq!(rest, &after);
            let of_the_key = shown.strip_prefix(&before).unwrap();
            prop_assert!(KEY.starts_with(of_the_key) && of_the_key.len() <= most_shown, "{}", out);
        }
    }
}
