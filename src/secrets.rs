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
use percent_encoding::{AsciiSet, utf8_percent_encode};
use serde_json::Value;

use crate::encoding::{RESERVED, RESERVED_IN_PATH};

/// What a secret is replaced by.
pub const REDACTED: &str = "[redacted]";

/// Secrets of fewer bytes are not searched for: a short word would damage ordinary text, and what stands in
/// such a place (`ollama`, `sk-1234`) is no secret.
pub const SHORTEST_SEARCHED: usize = 16;

/// So many line ends within a secret are passed over, each time: encoders wrap what they write at any column.
const MOST_BREAKS: usize = 4;

/// Of a word that may go on to be a secret so many bytes are shown at once.
const MOST_SHOWN: usize = 8;

/// What percent-encoders encode: all that is reserved, what Python's `quote` does, what JavaScript's
/// `encodeURIComponent` and `encodeURI` do.
static ENCODED: [AsciiSet; 4] = [
    RESERVED,
    RESERVED_IN_PATH,
    without(RESERVED, b"!*'()"),
    without(RESERVED, b"!*'();:@&=+$,/?#"),
];

const fn without(mut set: AsciiSet, mut kept: &[u8]) -> AsciiSet {
    while let [byte, rest @ ..] = kept {
        set = set.remove(*byte);
        kept = rest;
    }
    set
}

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

    /// So many bytes at the end of a text of one line [`Redactor::clean_cut`] may leave out.
    pub fn held_back(&self) -> usize {
        self.0.as_ref().map_or(0, |needles| needles.longest - 1)
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
    /// end. So the first `MOST_SHOWN` bytes of a secret at the end of a piece are shown.
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
    let digits = raw.bytes().flat_map(|byte| [byte >> 4, byte & 15]);
    let hex: String = digits
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect();
    let mut out = vec![raw.to_owned(), hex.to_ascii_uppercase(), hex];
    for reserved in &ENCODED {
        let encoded = utf8_percent_encode(raw, reserved).to_string();
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
#[path = "secrets_tests.rs"]
mod tests;
