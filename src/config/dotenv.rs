//! `.env`: lines of `NAME=value`, each value taken as it is written. Nothing is filled in for a `$`: a key that
//! has one would silently become another key.

/// Why a line means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable<'t> {
    /// What is wrong with it. The line itself may hold a key.
    pub(super) why: &'static str,
    /// The variable of ours that it may have meant to set.
    pub(super) about: Option<&'t str>,
}

/// Gives each line that says something, by its number: its name and value, or why it can't be read.
///
/// A value may stand in quotes: in `'…'` every character is itself, in `"…"` a `\` stands before `\`, `"`, `$`
/// and the letters of `\n`, `\r` and `\t`. Both may go over several lines. Without quotes a value has no blank, and
/// a `#` after a blank begins a comment. `export` before the name is skipped. A quote that goes on over a line that
/// sets a variable of `ours` was forgotten, not meant; such a line is read by itself. What would set one of `ours` for
/// another reader, and is a part of a comment or of another value here, can't be read either.
pub(super) fn read<'t>(
    text: &'t str,
    ours: impl Fn(&str) -> bool,
    mut take: impl FnMut(usize, Result<(&'t str, String), Unreadable<'t>>),
) {
    let mut rest = text;
    let mut number = 1;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let mut next = after;
        let said = line.trim();
        if said.starts_with('#') {
            if let Some(about) = after_break(line, &ours) {
                let about = Some(about);
                take(number, Err(Unreadable { why: BREAK, about }));
            }
        } else if !said.is_empty() {
            let entry = entry(line, rest, &ours).map(|(name, value, after)| {
                next = after;
                (name, value)
            });
            take(number, entry);
        }
        let used = rest.len() - next.len();
        number += rest
            .bytes()
            .take(used)
            .filter(|byte| *byte == b'\n')
            .count();
        rest = next;
    }
}

/// The name and the value that `line` begins, and what follows them in `rest`, whose first line it is.
fn entry<'t>(
    line: &'t str,
    rest: &'t str,
    ours: impl Fn(&str) -> bool,
) -> Result<(&'t str, String, &'t str), Unreadable<'t>> {
    let unreadable = |why| Unreadable {
        why,
        about: meant(line, &ours),
    };
    let (named, at) = name(line).map_err(unreadable)?;
    let whole = rest.get(at..).unwrap_or_default();
    let (value, after) = value(whole).map_err(unreadable)?;
    match hidden(before(whole, after), &ours) {
        Some((why, name)) => Err(Unreadable {
            why,
            about: Some(name),
        }),
        None => Ok((named, value, after)),
    }
}

/// The variable of ours that an unreadable line may have meant to set: a word before its `=`, or any if it has none;
/// else any that has a `=` of its own.
fn meant(line: &str, ours: impl Fn(&str) -> bool) -> Option<&str> {
    let (left, _) = line.split_once('=').unwrap_or((line, ""));
    let mut words = left.split(|c| !in_name(c));
    words
        .find(|word| ours(word))
        .or_else(|| set_in(line, &ours))
}

/// The variable of ours that `written`, a value and its comment, sets for another reader, and why that counts there.
fn hidden(written: &str, ours: impl Fn(&str) -> bool) -> Option<(&'static str, &str)> {
    let setting = |text| name(text).ok().and_then(|_| set_in(text, &ours));
    let swallowed = written.split('\n').skip(1).find_map(setting);
    let chained = || {
        let value = written.split_whitespace().next()?;
        let mut chain = value.split([';', '&', '|']).filter_map(setting);
        // Many addresses have a PORT= in them.
        chain.find(|name| name.contains('_') && !value.starts_with(['"', '\'']))
    };
    swallowed
        .map(|name| (SWALLOWS, name))
        .or_else(|| after_break(written, &ours).map(|name| (BREAK, name)))
        .or_else(|| chained().map(|name| (CHAINED, name)))
}

/// The variable of ours that `text` sets after what is the end of a line elsewhere.
fn after_break(text: &str, ours: impl Fn(&str) -> bool) -> Option<&str> {
    let broken = text.lines().flat_map(|line| line.split(BREAKS).skip(1));
    broken
        .filter(|line| !line.trim_start().starts_with('#'))
        .find_map(|line| set_in(line, &ours))
}

/// The first variable of ours in `text` that stands before a `=`.
fn set_in(text: &str, ours: impl Fn(&str) -> bool) -> Option<&str> {
    let (left, _) = text.rsplit_once('=')?;
    left.split('=')
        .filter_map(|part| part.trim_end().rsplit(|c| !in_name(c)).next())
        .find(|word| ours(word))
}

fn in_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// What ends a line for some editors and programs, alone, and not here.
const BREAKS: [char; 7] = [
    '\0', '\r', '\u{b}', '\u{c}', '\u{85}', '\u{2028}', '\u{2029}',
];

/// The name that a line gives a value to, and where the value begins.
fn name(line: &str) -> Result<(&str, usize), &'static str> {
    let (name, value) = line.split_once('=').ok_or("it has no =")?;
    let name = name.trim();
    let name = name
        .strip_prefix("export")
        .filter(|rest| rest.starts_with(char::is_whitespace))
        .map_or(name, str::trim);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if name.is_empty() || !name.bytes().all(plain) {
        return Err("what stands before the = is no name of a variable");
    }
    Ok((name, line.len() - value.len()))
}

/// The value that `text` begins with, and what follows its line.
fn value(text: &str) -> Result<(String, &str), &'static str> {
    let start = text.trim_start_matches([' ', '\t']);
    let (value, after) = match start.chars().next() {
        Some('\'') => {
            let inner = start.get(1..).unwrap_or_default();
            let (value, after) = inner.split_once('\'').ok_or(OPEN)?;
            (value.to_owned(), after)
        }
        Some('#') if start.len() < text.len() => (String::new(), text),
        Some('"') => escaped(start.get(1..).unwrap_or_default())?,
        _ => {
            let (line, _) = start.split_once('\n').unwrap_or((start, ""));
            let end = line.find(char::is_whitespace).unwrap_or(line.len());
            let (value, after) = start.split_at(end);
            (value.to_owned(), after)
        }
    };
    let rest = after;
    let (tail, after) = rest.split_once('\n').unwrap_or((rest, ""));
    let comment = tail.trim_start();
    // Only a quote goes on over a line's end.
    let late = before(start, rest).contains('\n');
    if comment.is_empty() || (comment.starts_with('#') && comment.len() < tail.len()) {
        return Ok((value, after));
    }
    Err(if late { LATE } else { FOLLOWED })
}

/// What of `text` stands before `end`, its end. Told by their lengths: comparing would read the whole file for each line.
fn before<'t>(text: &'t str, end: &str) -> &'t str {
    let length = text.len().saturating_sub(end.len());
    text.get(..length).unwrap_or(text)
}

const FOLLOWED: &str = "something follows the value; put a value that has blanks into quotes";
const OPEN: &str = "its quote is never closed";
const LATE: &str =
    "its quote is closed only in a later line, where something follows it; close it in this line";
const SWALLOWS: &str =
    "a quote that is opened in this line is closed only after the line that sets it";
const BREAK: &str = "before it stands a character that ends a line elsewhere (a carriage return, say) and not here; end each line with a line feed";
const CHAINED: &str = "it stands in the value of another variable; give it a line of its own, or put that value into quotes";
const ESCAPE: &str = "it has a \\ before a character that needs none; use '…' for text as it is";
const LATE_ESCAPE: &str = "its quote is not closed in this line, and a later line has a \\ before a character that needs none";

/// What stands before the closing `"`, and what follows it.
fn escaped(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, 'r')) => '\r',
                Some((_, 't')) => '\t',
                Some((_, c @ ('\\' | '"' | '$' | '\''))) => c,
                None => return Err(OPEN),
                Some(_) if text.get(..at).is_some_and(|before| before.contains('\n')) => {
                    return Err(LATE_ESCAPE);
                }
                Some(_) => return Err(ESCAPE),
            }),
            c => value.push(c),
        }
    }
    Err(OPEN)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Entry = Result<(String, String), &'static str>;

    fn values(text: &str) -> Vec<(usize, Entry)> {
        let mut found = Vec::new();
        let ours = |name: &str| name == "OURS";
        read(text, ours, |line, entry| {
            let entry = entry.map(|(name, value)| (name.to_owned(), value));
            found.push((line, entry.map_err(|unreadable| unreadable.why)));
        });
        found
    }

    #[test]
    fn a_value_is_what_is_written() {
        for (line, value) in [
            ("A=abcdefgh$ijklmnop1234", "abcdefgh$ijklmnop1234"),
            ("A=${HOME}x", "${HOME}x"),
            ("A=\"a $HOME \\$b\"", "a $HOME $b"),
            ("A='a \\n \"$b'", "a \\n \"$b"),
            ("A=a\\nb", "a\\nb"),
            ("A=a#b", "a#b"),
            ("A=a # said", "a"),
            ("A=\"a\" # said", "a"),
            ("A=a=b==", "a=b=="),
            ("A=it's", "it's"),
            (" export  A = a \r", "a"),
            ("export=1", "1"),
            ("A=", ""),
            ("A= # said", ""),
            ("A=#f00", "#f00"),
            ("A=\"x\\ny\"", "x\ny"),
            ("A='x\ny'", "x\ny"),
        ] {
            let [(1, Ok((_, got)))] = &values(line)[..] else {
                panic!("{line}: {:?}", values(line))
            };
            assert_eq!(got, value, "{line}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_and_the_next_is_read() {
        for (line, why) in [
            ("A=two words", "blanks"),
            ("A", "no ="),
            ("A B=1", "no name"),
            ("=1", "no name"),
            ("A=\"a\"b", "follows"),
            ("A=\"a\"# b", "follows"),
            ("A=\"a\\q\"", "needs none"),
        ] {
            let text = format!("# x\n\n{line}\nB=2");
            let found = values(&text);
            assert!(
                matches!(&found[0], (3, Err(got)) if got.contains(why)),
                "{line}: {found:?}"
            );
            assert_eq!(
                found[1],
                (4, Ok(("B".to_owned(), "2".to_owned()))),
                "{line}"
            );
        }
        let found = values("A=\"x\ny\"\nB='\nC=1");
        assert_eq!(found[1].0, 3);
        assert!(found[1].1.is_err());
        assert_eq!(found[2], (4, Ok(("C".to_owned(), "1".to_owned()))));
    }

    #[test]
    fn a_forgotten_quote_is_told_as_that_and_takes_no_line_of_ours() {
        for (text, why) in [
            ("A=\"x\nOURS=1\nB=y\"", SWALLOWS),
            ("A='x\n export OURS = 1'", SWALLOWS),
            ("A=\"x\nOURS=\"1\"", LATE),
            ("A='x\nOURS='1'", LATE),
            ("A=\"x\nOURS=1", OPEN),
            ("A=\"x\nOURS=1\\", OPEN),
            ("A=\"x\nOURS=1\nB=c:\\q", LATE_ESCAPE),
        ] {
            let mut found = Vec::new();
            read(
                text,
                |name| name == "OURS",
                |line, entry| found.push((line, entry)),
            );
            let Err(first) = &found[0].1 else {
                panic!("{text}: {found:?}")
            };
            assert_eq!(first.why, why, "{text}");
            let about = (why == SWALLOWS).then_some("OURS");
            assert_eq!(first.about, about, "{text}");
            assert_eq!(found[1].0, 2, "{text}: {found:?}");
        }
        for text in ["A=\"x\\nOURS=1\"", "A=\"x\nTHEIRS=1\"", "A='x\nOURS'"] {
            assert!(matches!(values(text)[..], [(1, Ok(_))]), "{text}");
        }
    }

    #[test]
    fn a_setting_of_ours_is_found_wherever_another_reader_would_find_it() {
        for (text, why) in [
            ("A=1 OURS=k", FOLLOWED),
            ("export A=1 && export OURS=k", FOLLOWED),
            ("A=\"a\" OURS = k", FOLLOWED),
            ("A=\"a\";OURS=k", FOLLOWED),
            ("A=1\rOURS=k\r", FOLLOWED),
            ("A=1\u{85}OURS=k", FOLLOWED),
            ("A=\"a # OURS=k\nB=\"1\"", LATE),
            ("# a\rOURS=k\r", BREAK),
            ("# a\u{2028}export B=1 OURS=k", BREAK),
            ("A=1\0OURS=k", BREAK),
            ("A=1 # a\rOURS=k", BREAK),
            ("A='a\rOURS=k'", BREAK),
            ("A=\"a\n export B=1 OURS=k\"", SWALLOWS),
        ] {
            let mut found = Vec::new();
            let ours = |name: &str| name == "OURS";
            read(text, ours, |_, entry| found.push(entry));
            let about = Some("OURS");
            assert_eq!(found[0], Err(Unreadable { why, about }), "{text:?}");
        }
        for text in [
            "# OURS=k",
            "# a\r# OURS=k\r",
            "A=1 # OURS=k",
            "A='B=1;OURS=k'",
            "A=NOT_OURS=k",
            "A=\"a\r\nsay OURS=k here\"",
        ] {
            let found = values(text);
            assert!(found.iter().all(|(_, entry)| entry.is_ok()), "{text:?}");
        }
        // A name that is part of many addresses is none of ours there.
        let ours = |name: &str| matches!(name, "PORT" | "A_KEY");
        for (text, about) in [
            ("A=1;A_KEY=k", Some("A_KEY")),
            ("A=1&&A_KEY=k", Some("A_KEY")),
            ("A=A_KEY=k", Some("A_KEY")),
            ("A=x:y;PORT=1", None),
        ] {
            read(text, ours, |_, entry| {
                assert_eq!(entry.err().and_then(|error| error.about), about, "{text}");
            });
        }
    }

    #[test]
    fn the_time_for_a_line_does_not_grow_with_the_file() {
        const LINES: usize = (1 << 20) / 4;
        let text = "A=1\n".repeat(LINES);
        let (begun, mut read_well) = (tokio::time::Instant::now(), 0);
        read(
            &text,
            |_| false,
            |_, entry| read_well += usize::from(entry.is_ok()),
        );
        let took = begun.elapsed();
        assert_eq!(read_well, LINES);
        assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    }

    proptest! {
        #[test]
        fn any_value_comes_back_from_single_quotes_and_any_text_is_read(
            value in "[^']{0,20}", text in "([A=\"'$#\\\\ \n]|\\PC){0,40}"
        ) {
            let found = values(&format!("A='{value}'"));
            prop_assert_eq!(&found, &vec![(1, Ok(("A".to_owned(), value)))]);
            let lines = text.lines().count();
            for (line, _) in values(&text) {
                prop_assert!((1..=lines).contains(&line));
            }
        }
    }
}
