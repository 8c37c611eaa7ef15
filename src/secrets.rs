//! Secrets that can't be printed, and the redactor that keeps them out of everything written.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::encoding::percent_encoded;

/// What a secret is replaced by.
pub const REDACTED: &str = "[redacted]";

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
/// The second line of defence (`reliability-security`, SE-4): the first is that no key is ever where
/// a sandbox could print it.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    needles: Arc<[Needle]>,
}

#[derive(PartialEq, Eq)]
struct Needle(String);

impl fmt::Debug for Needle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Shorter secrets would redact ordinary words.
const SHORTEST: usize = 6;

impl Redactor {
    /// A redactor of `secrets`: each one raw, percent-encoded, JSON-escaped, and in base64 at its three
    /// alignments. Secrets of fewer than 6 bytes are left out.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut needles: Vec<String> = Vec::new();
        for secret in secrets {
            let raw = secret.expose();
            if raw.len() < SHORTEST {
                continue;
            }
            needles.push(raw.to_owned());
            needles.push(percent_encoded(raw, b""));
            if let Ok(json) = serde_json::to_string(raw) {
                needles.push(json.trim_matches('"').to_owned());
            }
            for shift in 0..3 {
                needles.extend(base64_core(raw.as_bytes(), shift));
            }
        }
        needles.retain(|needle| needle.len() >= SHORTEST);
        // The longest first, so that no part of an encoding is left behind.
        needles.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        Self {
            needles: needles.into_iter().map(Needle).collect(),
        }
    }

    /// `text` without any secret. Borrows when there was nothing to replace.
    pub fn clean<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut out = Cow::Borrowed(text);
        for Needle(needle) in self.needles.iter() {
            if out.contains(needle.as_str()) {
                out = Cow::Owned(out.replace(needle.as_str(), REDACTED));
            }
        }
        out
    }

    /// `json`, a document, without any secret in its strings and names. Stays JSON: no number is touched.
    pub fn clean_json(&self, json: String) -> String {
        if matches!(self.clean(&json), Cow::Borrowed(_)) {
            return json;
        }
        let cleaned = serde_json::from_str(&json)
            .map(|document| self.cleaned_value(document))
            .and_then(|document| serde_json::to_string(&document));
        cleaned.unwrap_or_else(|_| self.clean(&json).into_owned())
    }

    fn cleaned_value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => match self.clean(&text) {
                Cow::Owned(cleaned) => Value::String(cleaned),
                Cow::Borrowed(_) => Value::String(text),
            },
            Value::Array(items) => items
                .into_iter()
                .map(|item| self.cleaned_value(item))
                .collect(),
            Value::Object(fields) => fields
                .into_iter()
                .map(|(name, value)| (self.clean(&name).into_owned(), self.cleaned_value(value)))
                .collect(),
            other @ (Value::Null | Value::Bool(_) | Value::Number(_)) => other,
        }
    }

    /// A cleaner for text that arrives in pieces.
    pub fn stream(&self) -> RedactingStream {
        RedactingStream {
            redactor: self.clone(),
            held: String::new(),
        }
    }

    /// How many trailing bytes of `text` might be the beginning of a secret.
    fn suspicious_tail(&self, text: &str) -> usize {
        let mut longest = 0;
        for Needle(needle) in self.needles.iter() {
            let needle = needle.as_bytes();
            let most = needle.len().saturating_sub(1).min(text.len());
            // Equal bytes at a text's end that begin like a text are whole characters.
            let tail = text.as_bytes().split_at(text.len() - most).1;
            let begins = (0..most).find(|&at| {
                let rest = tail.split_at(at).1;
                rest.first() == needle.first() && needle.starts_with(rest)
            });
            longest = longest.max(begins.map_or(0, |at| most - at));
        }
        longest
    }
}

/// Cleans text that arrives in pieces, holding back only a tail that may be the start of a secret.
#[derive(Debug)]
pub struct RedactingStream {
    redactor: Redactor,
    held: String,
}

impl RedactingStream {
    /// Takes the next piece and gives what can be shown now.
    pub fn push(&mut self, piece: &str) -> String {
        if self.redactor.needles.is_empty() {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        let cleaned = match self.redactor.clean(&self.held) {
            Cow::Owned(cleaned) => Some(cleaned),
            Cow::Borrowed(_) => None,
        };
        let mut shown = cleaned.unwrap_or_else(|| std::mem::take(&mut self.held));
        let keep = self.redactor.suspicious_tail(&shown);
        self.held = shown.split_off(shown.len() - keep);
        shown
    }

    /// The end: gives what was held back.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        self.redactor.clean(&held).into_owned()
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
    use super::*;

    fn redactor() -> Redactor {
        Redactor::new([&Secret::new("sk-ant-secret/0123+456789")])
    }

    #[test]
    fn debug_never_shows_the_value() {
        assert_eq!(format!("{:?}", Secret::new("hunter2hunter2")), "***");
        assert!(!format!("{:?}", redactor()).contains("secret"));
    }

    #[test]
    fn encodings_are_found_at_every_alignment() {
        let secret = "sk-ant-secret/0123+456789";
        let cleaned = redactor();
        for before in ["", "a", "ab", "abc"] {
            let encoded = STANDARD_NO_PAD.encode(format!("{before}{secret}tail"));
            let out = cleaned.clean(&encoded).into_owned();
            assert!(out.contains(REDACTED), "{before:?}: {out}");
        }
        assert_eq!(cleaned.clean(&format!("x{secret}y")), "x[redacted]y");
        assert_eq!(cleaned.clean(&percent_encoded(secret, b"")), REDACTED);
        assert!(matches!(cleaned.clean("nothing here"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_document_stays_one_and_loses_secrets_in_strings_and_names_only() {
        let cleaned = Redactor::new([&Secret::new("1234567"), &Secret::new("se\"cret!")]);
        let json = r#"{"n":12345678,"se\"cret!":["x1234567"],"s":"se\"cret!"}"#;
        assert_eq!(
            cleaned.clean_json(json.to_owned()),
            r#"{"n":12345678,"[redacted]":["x[redacted]"],"s":"[redacted]"}"#
        );
        let plain = r#"{"n": 1.50}"#;
        assert_eq!(cleaned.clean_json(plain.to_owned()), plain);
    }

    proptest::proptest! {
        #[test]
        fn chunking_never_lets_a_secret_through(
            before in "[a-zé]{0,12}", after in "[a-zé]{0,12}", cuts in proptest::collection::vec(0_usize..60, 0..6)
        ) {
            let text = format!("{before}sk-ant-secret/0123+456789{after}");
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
            proptest::prop_assert_eq!(out, format!("{before}[redacted]{after}"));
        }
    }
}
