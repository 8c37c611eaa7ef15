use super::*;

const MOST: usize = 1 << 20;

fn asked<'a>(old: &'a str, new: &'a str, all: bool) -> Asked<'a> {
    Asked {
        old,
        new,
        all,
        most: MOST,
    }
}

fn edited(file: &str, old: &str, new: &str) -> (String, String) {
    let replaced = replace(file.as_bytes(), asked(old, new, false)).unwrap();
    (
        String::from_utf8(replaced.bytes).unwrap(),
        replaced.notes.join("; "),
    )
}

fn all(file: &str, old: &str, new: &str) -> String {
    let replaced = replace(file.as_bytes(), asked(old, new, true)).unwrap();
    String::from_utf8(replaced.bytes).unwrap()
}

fn refused(file: &str, old: &str, new: &str) -> String {
    match replace(file.as_bytes(), asked(old, new, false)) {
        Err(Refusal::Because(why)) => why,
        Err(Refusal::NotFound) => "not found".to_owned(),
        Ok(replaced) => panic!("{old:?} in {file:?}: {replaced:?}"),
    }
}

#[test]
fn one_place_is_replaced_and_several_are_refused() {
    assert_eq!(edited("a b c", "b", "x").0, "a x c");
    let why = refused("x\nb\nb\n", "b", "c");
    assert!(why.contains("2 times, in lines 2, 3"), "{why}");
    let replaced = replace(b"b b b", asked("b", "cc", true)).unwrap();
    assert_eq!(replaced.bytes, b"cc cc cc");
    assert_eq!(replaced.count, 3);
    let why = refused(&"b\n".repeat(7), "b", "c");
    assert!(why.contains("7 times, in lines 1, 2, 3, 4, 5, …"), "{why}");
}

#[test]
fn places_that_overlap_are_not_taken_for_one() {
    let why = refused("-\nx\nx\nx\n", "x\nx", "y");
    assert!(why.contains("overlap, first in line 2"), "{why}");
    let replaced = replace(b"\n\n\n", asked("\n\n", "\n", true)).unwrap();
    assert_eq!(replaced.bytes, b"\n\n");
    assert!(
        replaced.notes[0].contains("overlap"),
        "{:?}",
        replaced.notes
    );
    // The same text twice for who sees no line ends.
    let why = refused("a\r\nb\r\na\nb\n", "a\nb", "x");
    assert!(why.contains("2 times, in lines 1, 3"), "{why}");
}

#[test]
fn line_ends_of_the_replaced_text_are_kept() {
    for (file, old, new, after) in [
        (
            "one\r\ntwo\r\nthree\r\n",
            "one\ntwo\n",
            "1\n2\n",
            "1\r\n2\r\nthree\r\n",
        ),
        // Whatever the rest of the file has.
        ("a\r\nb\r\nc\nd\r\n", "a\nb", "A\nB", "A\r\nB\r\nc\nd\r\n"),
        ("a\r\nb\r\nc\n", "a\nb\n", "x\ny\n", "x\r\ny\r\nc\n"),
        ("a\nb\r\nc", "a\n", "x\ny\n", "x\ny\nb\r\nc"),
        // One line replaced by two has the ends of the line; a last line without one, of that before.
        ("a\r\nb\r\n", "a", "x\ny", "x\r\ny\r\nb\r\n"),
        ("a\nb\r\nc\n", "b", "x\ny", "a\nx\r\ny\r\nc\n"),
        ("a\r\nb\nc\r\n", "b", "x\ny", "a\r\nx\ny\nc\r\n"),
        ("a\r\nb", "b", "x\ny", "a\r\nx\r\ny"),
        ("a\rb\rc", "b", "x\ny", "a\rx\ry\rc"),
        ("a\rb\rc", "a\nb\n", "x\n", "x\rc"),
        // Mixed: one by one.
        ("a\r\nb\nc\r\n", "a\nb\nc", "x\ny\nz", "x\r\ny\nz\r\n"),
        // A line end is never cut in two.
        ("a\r\nb\r\n", "\nb", " b", "a b\r\n"),
        ("a\r\nb\r\n", "\nb", "\nx\nb", "a\r\nx\r\nb\r\n"),
        // Who gives CR in both texts, or changes nothing else, knows what he does.
        ("a\r\nb\r\n", "a\r\nb", "a\nb", "a\nb\r\n"),
        ("a\r\nb\r\n", "a\r\n", "x\r\ny\n", "x\r\ny\nb\r\n"),
        ("a\r\nb\r\n", "a\r\nb", "x\ny", "x\r\ny\r\n"),
        ("a\nb\n", "a", "x\r\ny", "x\r\ny\nb\n"),
        ("a\r\nb\r\n", "a\nb", "x\r\ny\nz", "x\r\ny\r\nz\r\n"),
    ] {
        let (text, note) = edited(file, old, new);
        assert_eq!(text, after, "{old:?} -> {new:?} in {file:?}");
        // Told whenever what stands there isn't new_string as given.
        assert_eq!(note.contains("line ends"), !after.contains(new), "{note}");
    }
    assert_eq!(all("a\r\nb\na\r\n", "a", "x\ny"), "x\r\ny\r\nb\nx\r\ny\r\n");
    assert_eq!(all("a\nb\r\na\nb\r\n", "a\nb\n", "c\n"), "c\nc\n");
    assert_eq!(all("a\r\nb\r\n", "\r\n", "\n"), "a\nb\n");
    assert_eq!(all("a\r\nb\r\n", "\r", ""), "a\nb\n");
    assert_eq!(all("a\r\n\r\nb", "\n\n", "\n"), "a\r\nb");
}

#[test]
fn two_line_ends_that_are_asked_for_never_become_one() {
    for (file, old, new, text) in [
        ("p\rq\n", "p\nq\n", "a\n\n", "a\r\r"),
        ("p\rq\n", "p\nq", "a\n", "a\r\n\n"),
        ("x\rp\n", "p\n", "\ny\n", "x\r\ry\n"),
        ("p\rq\n", "p\nq\n", "a\nb\n", "a\rb\n"),
    ] {
        let (edited, _) = edited(file, old, new);
        assert_eq!(edited, text, "{file:?} {old:?} {new:?}");
        let lines = |text: &str| {
            text.replace("\r\n", "\n")
                .replace('\r', "\n")
                .matches('\n')
                .count()
        };
        assert_eq!(
            lines(&edited),
            lines(file) - lines(old) + lines(new),
            "{edited:?}"
        );
    }
}

#[test]
fn a_surplus_line_end_is_helped_at_the_end_of_the_file_only() {
    let (text, note) = edited("last line", "last line\n", "new line\n");
    assert_eq!(text, "new line");
    assert!(note.contains("line end too many"), "{note}");
    assert_eq!(edited("a\r\nb", "a\nb\n", "x\ny\n").0, "x\r\ny");
    assert_eq!(edited("a\r\nb", "a\r\nb\r\n", "x\r\ny\r\n").0, "x\r\ny");
    for (file, old) in [
        ("timeout = 300", "timeout = 30\n"),
        ("timeout = 300\n", "timeout = 30\n"),
        ("a\nb", "a\n\n"),
        ("ab\r\n", "a\n"),
        ("", "\n"),
        // The file has the line end that is its last one.
        ("TOKEN=abc\n", "\n\n"),
        ("k: 1\r\n", "\n\n"),
        ("a\nb\n", "b\n\n"),
    ] {
        assert_eq!(
            refused(file, old, "x\n"),
            "not found",
            "{old:?} in {file:?}"
        );
    }
    // Nothing is left to do.
    assert!(refused("a", "a\n", "a").contains("nothing to do"));
}

#[test]
fn no_half_of_a_crlf_is_left_unless_line_ends_alone_are_asked_for() {
    for (file, old, new) in [
        ("\nab\r\n", "ab\r", "x"),
        ("\nab\r\n", "ab\r", "x\ny"),
        ("\nab\r\n", "ab\r", ""),
        ("a\r\nb\r\n", "\nb\r", "x\r"),
        ("a\r\nb\rc", "\nb\rc\r\n", "x"),
        ("\u{feff}ab\r\n", "1\tab\r", "1\tx"),
    ] {
        let why = refused(file, old, new);
        assert!(why.contains("CRLF"), "{old:?} in {file:?}: {why}");
    }
    for (file, old, new, after) in [
        ("\nab\r\n", "ab\r", "x\r", "\nx\r\n"),
        ("a\r\nb\r\n", "\nb\r", "\nx\r", "a\r\nx\r\n"),
        // A line whole, though from the middle of one line end to that of the next.
        ("a\r\nb\r\n", "\nb\r", "", "a\r\n"),
    ] {
        assert_eq!(edited(file, old, new), (after.to_owned(), String::new()));
    }
    let (text, note) = edited("a\r\n", "\r", "");
    assert_eq!(text, "a\n");
    assert!(note.contains("CRLF line ends were cut in two"), "{note}");
}

#[test]
fn pasted_numbers_are_helped_where_they_are_the_lines_own() {
    let file = "fn a() {\n\tb\n}\n";
    let (text, note) = edited(file, "1\tfn a() {\n2\t\tb\n", "1\tfn a() {\n2\t\tc\n");
    assert_eq!(text, "fn a() {\n\tc\n}\n");
    assert!(note.contains("line numbers"), "{note}");
    assert_eq!(
        edited(file, "     2\t\tb\n", "\td\n\te\n").0,
        "fn a() {\n\td\n\te\n}\n"
    );
    assert_eq!(
        edited("a\r\nb\r\n", "1\ta\n2\tb", "1\tx\n2\ty").0,
        "x\r\ny\r\n"
    );
    // The mark before the first line is not shown.
    assert_eq!(
        edited(
            "\u{feff}fn a() {\n}\n",
            "1\tfn a() {\n2\t}",
            "1\tfn b() {\n2\t}"
        )
        .0,
        "\u{feff}fn b() {\n}\n"
    );
    for (file, old, new) in [
        // Records of a table.
        ("id\tname\n5\tBob\tx\n6\tCy\ty\n", "7\tBob\tx", "7\tRob\tx"),
        ("1\tapple\n2\tpear\n", "3\tapple", "3\tplum"),
        ("1\tapple\n", "1\t1\tapple", "1\tplum"),
        // Numbers of other lines, not in a row, not of the line's beginning, not those of new_string.
        (file, "2\tfn a() {", "2\tx"),
        (file, "1\tfn a() {\n3\t\tb", "x"),
        (file, "2\tb", "x"),
        (file, "2\t\tb", "3\tx"),
        (file, "2\t\tb", "2\tx\n4\ty"),
        (file, "2\t\tb", "2\tx\ny"),
        // The line after an insertion elsewhere may not be the one that was read.
        ("}\n}\n", "2\t}", "x"),
    ] {
        assert_eq!(refused(file, old, new), "not found", "{old:?} in {file:?}");
    }
    assert!(replace(b"}\n}\n", asked("2\t}", "x", true)).is_err());
}

#[test]
fn what_changes_nothing_or_too_much_is_refused() {
    assert!(refused("a", "", "x").contains("file_write"));
    assert!(refused("a", "a", "a").contains("same"));
    assert!(refused("a\r\nb", "a\nb", "a\r\nb").contains("nothing to do"));
    let big = "a".repeat(MOST / 2);
    let why = replace(big.as_bytes(), asked("a", &"b".repeat(1000), true)).unwrap_err();
    assert!(matches!(why, Refusal::Because(why) if why.contains("8 MiB")));
}

/// What an edit may do, told from what was asked and what `file_read` shows, and from nothing else. Slow.
mod oracle {
    /// Characters as a reader sees them, each with its text in the file.
    fn seen(file: &str, open: bool) -> Vec<(char, String)> {
        let mut out = Vec::new();
        let mut rest = file;
        while let Some(c) = rest.chars().next() {
            let text = match c {
                '\r' if open && rest.starts_with("\r\n") => "\r\n",
                _ => &rest[..c.len_utf8()],
            };
            let shown = if open && c == '\r' { '\n' } else { c };
            out.push((shown, text.to_owned()));
            rest = &rest[text.len()..];
        }
        out
    }

    fn joined(units: &[(char, String)]) -> String {
        units.iter().map(|(_, text)| text.as_str()).collect()
    }

    /// `new` as it must be written in the place of `units[at]`.
    fn written(
        units: &[(char, String)],
        at: std::ops::Range<usize>,
        old: &str,
        new: &str,
    ) -> String {
        let bare = |text: &str| text.replace('\r', "");
        let lone = old.replace("\r\n", "").contains('\r');
        if bare(old) == bare(new) || lone || (old.contains('\r') && new.contains('\r')) {
            return new.to_owned();
        }
        let file = joined(units);
        let (before, replaced, after) = (
            joined(&units[..at.start]),
            joined(&units[at.clone()]),
            joined(&units[at.end..]),
        );
        let ends = |text: &str| -> Vec<String> {
            let units = seen(text, true);
            units
                .into_iter()
                .filter(|(c, _)| *c == '\n')
                .map(|(_, text)| text)
                .collect()
        };
        let mut there = ends(&replaced);
        if there.is_empty() {
            let line = |text: &str| if text.ends_with('\r') { "\r\n" } else { "\n" }.to_owned();
            there.push(match (after.split_once('\n'), before.rsplit_once('\n')) {
                // The CR may stand in the text before the LF, even as the end of the replaced one.
                (Some((end, _)), _) => line(&format!("{before}{replaced}{end}")),
                (None, Some((end, _))) => line(end),
                (None, None) if file.contains('\r') => "\r".to_owned(),
                (None, None) => "\n".to_owned(),
            });
        }
        let mut out = String::new();
        let mut count = 0;
        for (c, text) in seen(new, true) {
            if c == '\n' && text != "\r" {
                let end = there.get(count).unwrap_or(there.last().unwrap());
                let behind = if out.is_empty() { &before } else { &out };
                let joins = text == "\n" && end == "\n" && behind.ends_with('\r');
                out.push_str(match text.as_str() {
                    _ if joins => "\r",
                    "\n" => end,
                    text => text,
                });
                count += 1;
            } else {
                out.push_str(&text);
            }
        }
        if new.ends_with('\n') && out.ends_with('\r') && after.starts_with('\n') {
            out.push('\n');
        }
        out
    }

    /// Whether a CR of `before` has lost its LF in what was made of the text behind it, or an LF of `after` its CR.
    fn halved(before: &str, replaced: &str, after: &str, new: &str) -> bool {
        let (was, is) = (format!("{replaced}{after}"), format!("{new}{after}"));
        let lf_gone = was.starts_with('\n') && !is.starts_with('\n');
        let (had, has) = (format!("{before}{replaced}"), format!("{before}{new}"));
        let cr_gone = had.ends_with('\r') && !has.ends_with('\r');
        before.ends_with('\r') && lf_gone || after.starts_with('\n') && cr_gone
    }

    /// `file` with `new` in the place of `units[at]`, as it must be written; `None` if that leaves half a line end,
    /// and not only line ends were asked for.
    fn with(
        units: &[(char, String)],
        at: std::ops::Range<usize>,
        old: &str,
        new: &str,
    ) -> Option<String> {
        let new = written(units, at.clone(), old, new);
        let (before, after) = (joined(&units[..at.start]), joined(&units[at.end..]));
        let only_ends = old.trim_matches(['\r', '\n']).is_empty();
        let halved = halved(&before, &joined(&units[at]), &after, &new);
        (only_ends || !halved).then(|| before + &new + &after)
    }

    /// What may come out: `None` is a complaint, and always right but where the place is certain.
    pub(super) fn allows(
        file: &str,
        old: &str,
        new: &str,
        all: bool,
        outcome: Option<&str>,
    ) -> Result<(), String> {
        let open = old.contains('\n') && !old.contains('\r');
        let units = seen(file, open);
        let length = old.chars().count();
        let stands = |at: &usize| {
            length > 0
                && units[*at..]
                    .iter()
                    .map(|(c, _)| *c)
                    .take(length)
                    .eq(old.chars())
        };
        let places: Vec<usize> = (0..units.len()).filter(stands).collect();
        let mut right: Vec<String> = Vec::new();
        if let [at] = places.as_slice() {
            right.extend(with(&units, *at..*at + length, old, new));
        } else if all {
            let mut text = String::new();
            let (mut from, mut whole) = (0, true);
            for at in &places {
                if *at >= from {
                    text.push_str(&joined(&units[from..*at]));
                    text.push_str(&written(&units, *at..*at + length, old, new));
                    from = *at + length;
                    whole &= with(&units, *at..from, old, new).is_some();
                }
            }
            text.push_str(&joined(&units[from..]));
            right.extend(whole.then_some(text));
        }
        if places.is_empty() {
            right.clear();
            // As if the last line had the end that it lacks.
            let cut = |text: &str| {
                let text = text.strip_suffix('\n')?;
                Some(text.strip_suffix('\r').unwrap_or(text).to_owned())
            };
            if let Some(old) = cut(old).filter(|old| !old.is_empty()) {
                let new = cut(new).unwrap_or(new.to_owned());
                let units = seen(file, old.contains('\n') && !old.contains('\r'));
                let length = old.chars().count();
                if let Some(at) = units.len().checked_sub(length)
                    && units[at..].iter().map(|(c, _)| *c).eq(old.chars())
                {
                    right.extend(with(&units, at..units.len(), &old, &new));
                }
            }
            right.extend(numbered(file, old, new));
        }
        match outcome {
            None if places.len() == 1 && right.iter().any(|right| right != file) => {
                Err("refused what is certain".to_owned())
            }
            None => Ok(()),
            Some(text) if right.iter().any(|right| right == text) && text != file => Ok(()),
            Some(text) => Err(format!("{text:?} is not in {right:?}")),
        }
    }

    /// As if the numbers of `file_read` stood in the file: they must be there as asked, at one place.
    fn numbered(file: &str, old: &str, new: &str) -> Option<String> {
        let number = |text: &str, first: usize| -> String {
            let lines = text.split_inclusive('\n').zip(first..);
            lines
                .map(|(line, n)| format!("{n}\t{line}"))
                .collect::<Vec<_>>()
                .concat()
        };
        let bare = |text: &str| -> Option<(usize, String)> {
            let first = text
                .trim_start_matches(' ')
                .split_once('\t')?
                .0
                .parse()
                .ok()?;
            let lines = text
                .split_inclusive('\n')
                .map(|line| line.trim_start_matches(' '));
            let stripped: Option<String> = lines
                .zip(first..)
                .map(|(line, n)| line.strip_prefix(&format!("{n}\t")))
                .collect();
            stripped.map(|bare| (first, bare))
        };
        let (first, text) = bare(old)?;
        let mark = if file.starts_with('\u{feff}') {
            "\u{feff}"
        } else {
            ""
        };
        let view = number(&file[mark.len()..], 1);
        let open = !old.contains('\r');
        let shown: String = seen(&view, open).iter().map(|(c, _)| *c).collect();
        let whole = number(&text, first);
        let at = if shown.starts_with(&whole) {
            Some(0)
        } else {
            shown.find(&format!("\n{whole}")).map(|at| at + 1)
        };
        let at_line = at.is_some_and(|at| {
            let after = &shown[at + whole.len()..];
            whole.ends_with('\n') || after.is_empty() || after.starts_with(['\n', '\r'])
        });
        let new = bare(new)
            .filter(|(n, _)| *n == first)
            .map_or(new.to_owned(), |(_, new)| new);
        let units = seen(file, open && text.contains('\n'));
        let length = text.chars().count();
        let starts = (0..units.len()).filter(|at| {
            let before = joined(&units[..*at]);
            (before == mark || before.ends_with('\n')) && before.matches('\n').count() + 1 == first
        });
        let at = starts.into_iter().next()?;
        let fits = units[at..]
            .iter()
            .map(|(c, _)| *c)
            .take(length)
            .eq(text.chars());
        (at_line && fits).then(|| with(&units, at..at + length, &text, &new))?
    }
}

/// What went wrong before the oracle was there: it must see each.
#[test]
fn the_oracle_knows_the_old_faults() {
    for (file, old, new, wrong) in [
        // A surplus line end was dropped in the middle of a line.
        (
            "timeout = 300",
            "timeout = 30\n",
            "timeout = 60\n",
            "timeout = 600",
        ),
        // A part of a line was taken for all of it.
        (
            "timeout = 300\n",
            "1\ttimeout = 30",
            "1\ttimeout = 60",
            "timeout = 600\n",
        ),
        // A number was dropped from a table.
        (
            "1\tapple\n2\tpear\n",
            "3\tapple",
            "3\tplum",
            "1\tplum\n2\tpear\n",
        ),
        ("5\tBob\tx\n", "7\tBob\tx", "7\tRob\tx", "5\tRob\tx\n"),
        // The old text was converted to CRLF, the new one was not.
        ("a\r\nb\r\nc\n", "a\nb\n", "x\ny\n", "x\ny\nc\n"),
        ("a\r\nb\r\nc\nd\r\n", "a\nb", "A\nB", "A\nB\r\nc\nd\r\n"),
        // Half of a line end was left.
        ("\nab\r\n", "ab\r", "x", "\nx\n"),
        ("a\r\nb\r\n", "\nb\r", "x", "a\rx\n"),
    ] {
        assert!(
            oracle::allows(file, old, new, false, Some(wrong)).is_err(),
            "{file:?}"
        );
    }
}

/// Texts of a few pieces, so that they meet often.
fn pieces(most: usize) -> impl proptest::strategy::Strategy<Value = String> {
    let piece = proptest::sample::select(vec![
        "a", "b", "ab", "\n", "\n", "\r\n", "\r\n", "\r", "1\t", "2\t", "3\ta", "\t", " ",
    ]);
    proptest::strategy::Strategy::prop_map(proptest::collection::vec(piece, 0..most), |pieces| {
        pieces.concat()
    })
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 4_000, ..Default::default() })]

    #[test]
    fn an_edit_is_what_was_asked_or_a_complaint(
        mark in "\u{feff}?", text in pieces(8), old in pieces(4), new in pieces(4),
        all in proptest::prelude::any::<bool>(), part in (0_usize..20, 0_usize..8), how in 0..6,
    ) {
        // Mostly a part of the file, as a model would send it, or who knows of CR.
        let raw: Vec<char> = text.chars().collect();
        let raw: String = raw.iter().skip(part.0).take(part.1).collect();
        let unix: Vec<char> = text.replace("\r\n", "\n").chars().collect();
        let file = mark + &text;
        let from = part.0.min(unix.len());
        let text: String = unix[from..(from + part.1).min(unix.len())].iter().collect();
        let number = 1 + unix[..from].iter().filter(|c| **c == '\n').count();
        let paste = |text: &str| -> String {
            text.split_inclusive('\n').zip(number..).map(|(line, n)| format!("{n}\t{line}")).collect::<Vec<_>>().concat()
        };
        let (old, new) = match how {
            0 => (old, new),
            1 => (text, new),
            2 => (text + "\n", new + "\n"),
            3 => (paste(&text), paste(&new)),
            4 => (raw, new),
            _ => (paste(&text), new),
        };
        let done = replace(file.as_bytes(), asked(&old, &new, all)).ok();
        let told = done.as_ref().is_some_and(|done| done.notes.iter().any(|note| note.contains("cut in two")));
        let outcome = done.map(|done| String::from_utf8(done.bytes).unwrap());
        let cut = old == "\r" && new.is_empty() && file.contains("\r\n") && outcome.is_some();
        proptest::prop_assert!(told || !cut);
        if !old.is_empty() && old != new {
            let verdict = oracle::allows(&file, &old, &new, all, outcome.as_deref());
            proptest::prop_assert!(verdict.is_ok(), "{:?}", verdict);
        } else {
            proptest::prop_assert_eq!(outcome, None);
        }
    }

}

proptest::proptest! {
    #[test]
    fn bytes_outside_the_match_never_change(
        before in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
        after in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
        new in "[a-zé€ ]{0,20}",
    ) {
        let old = "<the §unique§ text>";
        let mut file = before.clone();
        file.extend_from_slice(old.as_bytes());
        file.extend_from_slice(&after);
        let replaced = replace(&file, asked(old, &new, false)).unwrap();
        let mut expected = before;
        expected.extend_from_slice(new.as_bytes());
        expected.extend_from_slice(&after);
        proptest::prop_assert_eq!(replaced.bytes, expected);
    }
}

#[test]
fn a_line_end_is_cut_in_two_by_several_places_as_by_one() {
    for (file, old) in [("\r\r\n", "\r"), ("\r\n", "\r"), ("\r\n\r\n\r", "\n\r")] {
        let done = replace(file.as_bytes(), asked(old, "", true)).unwrap();
        assert_eq!(done.notes, ["CRLF line ends were cut in two"], "{file:?}");
    }
    // Of each whole line end nothing is left, or all.
    for (file, old, new) in [("\r\n\r\n", "\r\n", ""), ("x\r\nx\r\n", "x", "")] {
        let done = replace(file.as_bytes(), asked(old, new, true)).unwrap();
        assert_eq!(done.notes, [""; 0], "{file:?}");
    }
}

#[test]
fn the_last_of_numbered_lines_is_a_whole_one() {
    assert_eq!(
        refused("timeout = 300\n", "1\ttimeout = 30", "1\ttimeout = 60"),
        "not found"
    );
    assert_eq!(refused("a\nb = 1;\n", "1\ta\n2\tb", "c"), "not found");
    for end in ["", "\n", "\r\n"] {
        let file = format!("timeout = 300{end}");
        let (bytes, note) = edited(&file, "1\ttimeout = 300", "1\ttimeout = 60");
        assert_eq!(bytes, format!("timeout = 60{end}"));
        assert!(note.contains("line numbers"), "{note}");
    }
}

#[test]
fn numbers_that_no_line_has_are_text() {
    for number in [u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
        let next = number.wrapping_add(1);
        for old in [
            format!("{number}\tx"),
            format!("{number}\tx\n{next}\ty\n"),
            format!("{}\tx\n{number}\ty\n{next}\tz\n", number - 1),
        ] {
            let asked = Asked {
                old: &old,
                new: "z",
                all: false,
                most: 100,
            };
            assert_eq!(replace(b"x\ny\n", asked), Err(Refusal::NotFound), "{old:?}");
        }
    }
}
