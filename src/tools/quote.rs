//! Shell quoting: the one function, so that nobody writes a second one.

use std::borrow::Cow;

/// `text` as one word of a POSIX shell; `None` if it has a NUL, which no shell can hold.
///
/// Plain words stay as they are; everything else goes into single quotes, where nothing is special.
pub fn quote(text: &str) -> Option<Cow<'_, str>> {
    if text.contains('\0') {
        return None;
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return Some(Cow::Borrowed(text));
    }
    Some(Cow::Owned(format!("'{}'", text.replace('\'', r"'\''"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_stay_and_the_rest_is_quoted() {
        for (text, quoted) in [
            ("a/b-c.txt", "a/b-c.txt"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$(x)`y`\\", "'$(x)`y`\\'"),
            ("~", "'~'"),
        ] {
            assert_eq!(quote(text).as_deref(), Some(quoted));
        }
        assert_eq!(quote("a\0b"), None);
    }
}
