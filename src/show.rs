//! Texts made fit to be shown: foreign ones on one line and bounded, numbers, near misses of a name.

/// Names longer than this are no slip of the pen.
const LONGEST: usize = 64;
/// Pairs of characters that [`alike`] compares at most: a few milliseconds.
const COMPARED: usize = 500_000;
/// Of a foreign text that is quoted in a message.
pub(crate) const QUOTED: usize = 100;

/// Characters that take no place of their own: nobody sees whether they are there.
pub(crate) const fn is_invisible(c: char) -> bool {
    is_joiner(c)
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
        )
        || matches!(c, '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// What Persian, Hindi and others are spelt with, and pictures are put together with.
const fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}')
}

/// Control characters, and those that make a text read as another: all that [`is_invisible`] but what languages are
/// written with.
pub(crate) fn deceives(c: char) -> bool {
    c.is_control() || is_invisible(c) && !is_joiner(c)
}

/// All of a name or a short text on one line: what [`deceives`] or ends a line is escaped.
pub(crate) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if deceives(c) || matches!(c, '\u{2028}' | '\u{2029}') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// The first `most` characters on [`one_line`], with `…` if there are more.
pub(crate) fn short(text: &str, most: usize) -> String {
    let start = start(text, most);
    let mut out = one_line(start);
    if start.len() < text.len() {
        out.push('…');
    }
    out
}

/// A foreign word or name between quotation marks, escaped, at most 100 characters of it.
pub(crate) fn quoted(text: &str) -> String {
    let start = start(text, QUOTED);
    let mut out = format!("{start:?}");
    if start.len() < text.len() {
        out.insert(out.len() - 1, '…');
    }
    out
}

/// A foreign sentence: each run of blanks, line ends and control characters is one blank, what [`deceives`]
/// is gone, and after `most` characters comes `…`.
pub(crate) fn prose(text: &str, most: usize) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let mut out = String::new();
    let mut room = most;
    for word in words.filter(|word| !word.is_empty()) {
        let blank = usize::from(!out.is_empty());
        let start = start(word, room.saturating_sub(blank));
        if start.is_empty() {
            out.push('…');
            break;
        }
        out.extend((blank == 1).then_some(' '));
        out.extend(start.chars().filter(|c| !deceives(*c)));
        if start.len() < word.len() {
            out.push('…');
            break;
        }
        room -= blank + start.chars().count();
    }
    out
}

/// The first `most` characters.
pub(crate) fn start(text: &str, most: usize) -> &str {
    let end = text.char_indices().nth(most);
    end.and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}

/// The first `most` characters, back to a line end if one lies in the second half of them.
pub(crate) fn first_chars(text: &str, most: usize) -> &str {
    let shown = start(text, most);
    if shown.len() == text.len() {
        return shown;
    }
    match shown.rfind('\n') {
        Some(at) if at >= shown.len() / 2 => shown.get(..=at).unwrap_or(shown),
        _ => shown,
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A size for a person: `812 bytes`, `3.4 kB`, `2.1 GB`.
pub(crate) fn size(bytes: u64) -> String {
    if bytes == 1 {
        return "1 byte".to_owned();
    }
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let (unit, name) = match bytes {
        0..1_000_000 => (1_000, "kB"),
        1_000_000..1_000_000_000 => (1_000_000, "MB"),
        _ => (1_000_000_000, "GB"),
    };
    let (whole, rest) = (bytes / unit, bytes % unit);
    format!("{}.{} {name}", grouped(whole), rest * 10 / unit)
}

/// The name among `known` that `typed` was most likely meant to be: the same letters in another style
/// (`max_turns` for `maxTurns`), else the closest within a third of its length, else the shortest that
/// begins with it.
pub(crate) fn nearest<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if typed.is_empty() || typed.chars().nth(LONGEST).is_some() {
        return None;
    }
    let letters = plain(typed);
    let rank = |name: &'a str| {
        let other = plain(name);
        let distance = strsim::osa_distance(&letters, &other);
        if distance <= slips(&letters) && distance < name.len() {
            Some((distance, name))
        } else {
            let begins = letters.len() >= 3 && other.starts_with(&letters);
            begins.then_some((usize::MAX - LONGEST + other.len().min(LONGEST), name))
        }
    };
    let ranked = known.into_iter().filter_map(rank);
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, name)| name)
}

/// ``did you mean `…`?``, if one is near.
pub(crate) fn did_you_mean<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(typed, known).map(|name| format!("did you mean `{name}`?"))
}

/// The up to five of `known` that are most like `typed`, the likest first: for names of files, which go
/// wrong in more ways than names of settings. Only as many are looked at as a few milliseconds allow.
pub(crate) fn alike<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let letters = plain(start(typed, 255));
    let mut left = COMPARED;
    let mut near: Vec<(bool, f64, &str)> = Vec::new();
    for name in known {
        let Some(after) = left.checked_sub((letters.len() + 1) * (name.len() + 1)) else {
            break;
        };
        left = after;
        let other = plain(name);
        let slip = strsim::osa_distance(&letters, &other) <= slips(&letters);
        let likeness = strsim::jaro_winkler(&letters, &other);
        if slip || likeness > 0.6 {
            near.push((slip, likeness, name));
        }
    }
    near.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
    near.into_iter().take(5).map(|(.., name)| name).collect()
}

/// How many letters of a name may be wrong.
fn slips(letters: &str) -> usize {
    (letters.len() / 3).clamp(1, 4)
}

/// Lower case, without the marks that styles differ in.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '_' | '-' | ' ' | '.'))
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_shown_on_one_line_and_bounded() {
        assert_eq!(
            one_line("a\n\u{1b}[m\u{202e}\u{feff}é"),
            "a\\n\\u{1b}[m\\u{202e}\\u{feff}é"
        );
        assert_eq!(short("abc", 3), "abc");
        assert_eq!(short("a\ncd", 2), "a\\n…");
        assert_eq!(quoted("a\"\n\u{202e}"), "\"a\\\"\\n\\u{202e}\"");
        assert_eq!(
            quoted(&"x".repeat(101)),
            format!("\"{}…\"", "x".repeat(100))
        );
        assert_eq!(prose(" a\n\n b\u{1b}[31m\u{202e} ", 9), "a b [31m");
        assert_eq!(prose("one two", 6), "one tw…");
        assert_eq!(prose("one two", 4), "one…");
        assert_eq!(prose("one two", 7), "one two");
    }

    #[test]
    fn a_beginning_ends_at_a_line_end_if_one_is_near() {
        assert_eq!(first_chars("ab\ncd", 4), "ab\n");
        assert_eq!(first_chars("a\nbcdef", 5), "a\nbcd");
        assert_eq!(first_chars("é€", 2), "é€");
    }

    #[test]
    fn sizes_and_numbers_read_well() {
        for (n, text) in [(0, "0"), (1_234_567, "1,234,567"), (123_456, "123,456")] {
            assert_eq!(grouped(n), text);
        }
        for (bytes, text) in [
            (1, "1 byte"),
            (999, "999 bytes"),
            (3_456, "3.4 kB"),
            (999_999, "999.9 kB"),
            (3_700_000, "3.7 MB"),
            (2_100_000_000, "2.1 GB"),
            (u64::MAX, "18,446,744,073.7 GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn what_nobody_sees_is_shown_but_what_words_are_spelt_with() {
        for c in [
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{202e}',
            '\u{2060}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            let text = format!("a{c}b");
            assert!(is_invisible(c) && deceives(c), "{text:?}");
            assert_eq!(one_line(&text), format!("a{}b", c.escape_default()));
            assert_eq!(prose(&text, 10), "ab");
        }
        let family = "\u{1f468}\u{200d}\u{1f469} \u{645}\u{6cc}\u{200c}\u{62e}";
        assert_eq!(
            (one_line(family).as_str(), prose(family, 10).as_str()),
            (family, family)
        );
        assert!(is_invisible('\u{200d}') && !is_invisible(' '));
    }

    #[test]
    fn slips_and_other_styles_find_the_right_name() {
        let known = ["prompt", "maxTurns", "timeout", "files", "file_read"];
        for (typed, right) in [
            ("max_turns", Some("maxTurns")),
            ("MAXTURNS", Some("maxTurns")),
            ("maxTurn", Some("maxTurns")),
            ("promt", Some("prompt")),
            ("tiemout", Some("timeout")),
            ("fileRead", Some("file_read")),
            ("max", Some("maxTurns")),
            ("temperature", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, known), right, "{typed}");
        }
        assert_eq!(nearest(&"p".repeat(1_000_000), known), None);
    }

    #[test]
    fn names_of_files_are_found_in_bounded_time() {
        let known = ["a.txt", "README.txt", "main.rs", "readme"];
        assert_eq!(alike("readme.md", known), ["readme", "README.txt"]);
        assert_eq!(alike("dri", ["drum", "dir"]), ["dir", "drum"]);
        assert!(alike("zzz", known).is_empty());
        let long = "x".repeat(255);
        let names = std::iter::repeat_n(long.as_str(), 1_000_000);
        assert_eq!(alike(&"y".repeat(1_000_000), names), [""; 0]);
    }
}
