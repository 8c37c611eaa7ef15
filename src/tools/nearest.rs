//! Why a text is not in a file: the lines most like it, and what differs there.
//!
//! Every reason is tried on the lines before it is told. The work is one pass over the file, and at most
//! [`COMPARED`] closer looks.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::fmt::Write as _;

use memchr::{memmem, memrchr};

use crate::encoding::composed;
use crate::secrets::Redactor;
use crate::show::{first_chars, is_invisible, one_line};

use super::replace::only_line;

/// Lines that are compared closely: those that begin and end most like the one that is looked for.
const COMPARED: usize = 200;
/// Lines of a text among which the one to be looked for is chosen.
const ASKED: usize = 2_000;
/// Characters of a line that are compared.
const KEY: usize = 120;
/// Lines that are shown, and compared around a likely one.
const SHOWN: usize = 12;
/// How alike a line must be.
const ALIKE: f64 = 0.6;
const MOST_LINE: usize = 300;
/// Bytes of a text for which it is told what differs.
const EXPLAINED: usize = 16 * 1024;

/// Says so, with what is most like `old`.
pub(super) fn not_found(file: &[u8], old: &str, new: &str, redactor: &Redactor) -> String {
    if file.is_empty() {
        return "the file is empty; use file_write to fill it".to_owned();
    }
    let mut out = "old_string was not found".to_owned();
    if let Some(line) = only_line(file, new) {
        write!(
            out,
            "; new_string stands in line {line} already, so this edit may have been made before"
        )
        .ok();
    }
    let Some(near) = nearest(file, old) else {
        let looked = if key(old.as_bytes()).is_empty() {
            "it has nothing that can be seen, so no similar lines are looked for"
        } else {
            "no line of the file is similar"
        };
        write!(out, "; {looked}. Read the part to be changed again").ok();
        return out;
    };
    if let Some(what) = near.difference(old) {
        write!(out, "; it differs in {what} only").ok();
    }
    if near
        .shown(old)
        .any(|(line, _)| std::str::from_utf8(line).is_err())
    {
        out.push_str(
            "; some of these lines have bytes that are not UTF-8, shown as U+FFFD: change them with bash \
             (sed, python3)",
        );
    }
    out.push_str("\nThe most similar lines:");
    for (line, number) in near.shown(old) {
        let line = shown_line(&String::from_utf8_lossy(line), redactor);
        write!(out, "\n{number}\t{line}").ok();
    }
    out
}

/// A line as it is shown: without secrets, its end and a byte order mark, and not too long. Tabs stay.
pub(super) fn shown_line(line: &str, redactor: &Redactor) -> String {
    let line = line.strip_suffix('\n').unwrap_or(line);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let clean = redactor.clean(line.strip_prefix('\u{feff}').unwrap_or(line));
    let cut = first_chars(&clean, MOST_LINE);
    let parts: Vec<String> = cut.split('\t').map(one_line).collect();
    let mark = if cut.len() < clean.len() {
        " […]"
    } else {
        ""
    };
    parts.join("\t") + mark
}

/// A line that may be the one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Bytes that it has in common with the wanted one, from both ends.
    common: usize,
    /// Of equal ones the first is kept.
    number: Reverse<usize>,
    start: usize,
    key: String,
}

/// Lines of the file, from the one that answers to the first of the text.
#[derive(Debug)]
struct Near<'f> {
    lines: Vec<&'f [u8]>,
    /// Of the first, from 1.
    number: usize,
}

fn nearest<'f>(file: &'f [u8], old: &str) -> Option<Near<'f>> {
    let asked = lines_from(old.as_bytes(), 0);
    let wanted: Vec<String> = asked.take(ASKED).map(key).collect();
    let longest = wanted.iter().enumerate();
    let (offset, longest) = longest
        .max_by_key(|(at, key)| (key.len().min(60), Reverse(*at)))
        .filter(|(_, key)| !key.is_empty())?;
    let before = offset.min(SHOWN / 2);
    let around = wanted.get(offset - before..(offset + SHOWN / 2).min(wanted.len()))?;
    let (_, best) = candidates(file, longest)
        .into_iter()
        .filter_map(|Reverse(line)| {
            let alike = match line.common {
                usize::MAX => 1.0,
                _ => strsim::normalized_levenshtein(&line.key, first_chars(longest, KEY)),
            };
            let (start, back) = line_start(file, line.start, before);
            let near = lines_from(file, start).zip(around.iter().skip(before - back));
            let equal = near.filter(|(line, wanted)| key(line) == **wanted).count();
            #[expect(clippy::cast_precision_loss, reason = "at most twelve lines")]
            let score = alike + equal as f64;
            (alike >= ALIKE).then_some((score, line))
        })
        .max_by(|(a, one), (b, other)| a.total_cmp(b).then(one.number.cmp(&other.number)))?;
    let (start, lines) = line_start(file, best.start, offset);
    Some(Near {
        // One more: a text may be wrapped otherwise in the file.
        lines: lines_from(file, start)
            .take(lines_from(old.as_bytes(), 0).count().max(3) + 1)
            .collect(),
        number: best.number.0 - lines,
    })
}

impl<'f> Near<'f> {
    /// Those that are shown, numbered: of many, from shortly before the first that differs.
    fn shown(&self, old: &str) -> impl Iterator<Item = (&'f [u8], usize)> {
        let count = old.lines().count();
        let pairs = self.lines.iter().zip(old.lines()).skip(1);
        let equal = pairs
            .take_while(|(line, old)| line.trim_ascii_end() == old.trim_ascii_end().as_bytes());
        let skip = match count {
            0..=SHOWN => 0,
            _ => equal.count().saturating_sub(1),
        };
        let lines = self.lines.iter().copied().zip(self.number..);
        lines.skip(skip).take(count.clamp(3, SHOWN))
    }

    /// What differs, when only that differs.
    fn difference(&self, old: &str) -> Option<&'static str> {
        if old.len() > EXPLAINED {
            return None;
        }
        let mut room = 4 * old.len() + 4096;
        let lines = self.lines.iter().take_while(|line| {
            room = room.saturating_sub(line.len());
            room > 0
        });
        let bytes = lines.copied().collect::<Vec<_>>().concat();
        let there = String::from_utf8_lossy(&bytes);
        if there.contains(old) {
            return None;
        }
        let unix = |text: &str| text.replace("\r\n", "\n").replace('\r', "\n");
        let (there, old) = (unix(&there), unix(old));
        let (what, _) = FOLDS
            .iter()
            .find(|(_, fold)| equal_folded(&there, &old, *fold))?;
        Some(what)
    }
}

/// Whether `old` stands in `there` when both are folded. Where the fold drops what `old` begins or ends with, only
/// up to the border of a line: `30` and a line end are no beginning of `300`.
fn equal_folded(there: &str, old: &str, fold: Fold) -> bool {
    let wanted = fold(old);
    let dropped = |c: Option<char>| c.is_some_and(|c| fold(c.encode_utf8(&mut [0; 4])).is_empty());
    let at_start = dropped(old.chars().next()) && !wanted.starts_with(char::is_whitespace);
    let at_end = dropped(old.chars().next_back());
    let mut text = String::with_capacity(there.len());
    let mut borders = BTreeSet::new();
    for line in there.split_inclusive('\n') {
        borders.insert(text.len());
        text.push_str(&fold(line));
        borders.insert(text.len());
        if text.ends_with('\n') {
            borders.insert(text.len() - 1);
        }
    }
    !wanted.is_empty()
        && text.match_indices(wanted.as_ref()).any(|(at, found)| {
            (!at_start || borders.contains(&at))
                && (!at_end || borders.contains(&(at + found.len())))
        })
}

type Fold = for<'t> fn(&'t str) -> Cow<'t, str>;

/// What texts may differ in, each with what makes those equal that do in nothing else. Narrow ones first: the
/// first that fits is the true reason.
const FOLDS: &[(&str, Fold)] = &[
    ("line ends", |text| text.into()),
    ("blanks at the ends of lines", |text| {
        let lines: Vec<&str> = text
            .split('\n')
            .map(|line| line.trim_end_matches([' ', '\t']))
            .collect();
        lines.join("\n").into()
    }),
    ("the number of blanks", |text| squeezed(text, |c| c == ' ')),
    ("tabs and blanks", |text| {
        squeezed(text, |c| matches!(c, ' ' | '\t'))
    }),
    ("no-break or invisible characters", |text| {
        let visible = text.chars().filter(|c| !is_invisible(*c));
        visible
            .map(|c| if is_blank(c) { ' ' } else { c })
            .collect::<String>()
            .into()
    }),
    ("the kind of quotes or dashes", |text| {
        text.chars().map(plain).collect::<String>().into()
    }),
    ("how accented letters are composed (NFC, NFD)", composed),
    ("upper and lower case", |text| text.to_lowercase().into()),
    ("blanks and line ends", |text| {
        text.split_whitespace().collect::<String>().into()
    }),
    (
        "blanks, invisible characters, quotes, dashes, accents or case",
        |text| {
            composed(text)
                .chars()
                .filter_map(key_char)
                .flat_map(char::to_lowercase)
                .collect::<String>()
                .into()
        },
    ),
];

fn squeezed(text: &str, blank: fn(char) -> bool) -> Cow<'_, str> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !blank(c) {
            out.push(c);
        } else if !out.ends_with(' ') {
            out.push(' ');
        }
    }
    out.into()
}

/// A blank of any width, but no line end.
fn is_blank(c: char) -> bool {
    c == ' ' || (c.is_whitespace() && !c.is_control())
}

/// The quote or dash that is on a keyboard.
const fn plain(c: char) -> char {
    match c {
        '‘' | '’' | '‚' | '‛' | '′' | '`' | '"' | '“' | '”' | '„' | '″' | '«' | '»' => {
            '\''
        }
        '‐'..='―' | '−' => '-',
        c => c,
    }
}

fn key_char(c: char) -> Option<char> {
    (!c.is_whitespace() && !is_invisible(c)).then(|| plain(c))
}

/// A line without what is easily mistaken.
fn key(line: &[u8]) -> String {
    let mut key = String::with_capacity(line.len());
    add_key(line, &mut key);
    key
}

/// Most lines are ASCII, and every line of a file is asked for its key.
fn add_key(line: &[u8], key: &mut String) {
    if line.is_ascii() {
        let chars = line.iter().map(|b| char::from(b.to_ascii_lowercase()));
        key.extend(chars.filter_map(key_char));
        return;
    }
    let text = String::from_utf8_lossy(line);
    for c in text.chars().filter_map(key_char) {
        if c.is_ascii() {
            key.push(c.to_ascii_lowercase());
        } else {
            key.extend(c.to_lowercase());
        }
    }
}

/// The lines that have `wanted` in them, else those of a like length that begin and end most like it.
fn candidates(file: &[u8], wanted: &str) -> BinaryHeap<Reverse<Candidate>> {
    let mut best = BinaryHeap::with_capacity(COMPARED + 1);
    let begin = first_chars(wanted, KEY);
    let finder = memmem::Finder::new(wanted);
    let mut start = 0;
    let mut whole = String::new();
    for (line, number) in lines_from(file, 0).zip(1..) {
        whole.clear();
        add_key(line, &mut whole);
        let key = first_chars(&whole, KEY);
        let common = if finder.find(whole.as_bytes()).is_some() {
            usize::MAX
        } else if key.len() * 2 < begin.len() || begin.len() * 2 < key.len() {
            0
        } else {
            common(key.as_bytes(), begin.as_bytes())
        };
        // Of equal ones the first are kept.
        let full = best.len() == COMPARED;
        let least = best.peek().filter(|_| full);
        if common > least.map_or(0, |Reverse(line): &Reverse<Candidate>| line.common) {
            best.push(Reverse(Candidate {
                common,
                number: Reverse(number),
                start,
                key: key.to_owned(),
            }));
            if full {
                best.pop();
            }
        }
        start += line.len();
    }
    best
}

fn common(a: &[u8], b: &[u8]) -> usize {
    let same = |(a, b): &(&u8, &u8)| a == b;
    a.iter().zip(b).take_while(same).count()
        + a.iter().rev().zip(b.iter().rev()).take_while(same).count()
}

/// The lines of `bytes` from the one that begins at `start`, with their ends.
fn lines_from(bytes: &[u8], start: usize) -> impl Iterator<Item = &[u8]> {
    bytes
        .get(start..)
        .unwrap_or_default()
        .split_inclusive(|b| *b == b'\n')
}

/// Where the line begins that stands so many lines before the one in which `at` lies, and how many there were.
pub(super) fn line_start(bytes: &[u8], at: usize, before: usize) -> (usize, usize) {
    let start =
        |at: usize| memrchr(b'\n', bytes.get(..at).unwrap_or_default()).map_or(0, |end| end + 1);
    let (mut at, mut back) = (start(at), 0);
    while back < before && at > 0 {
        at = start(at - 1);
        back += 1;
    }
    (at, back)
}

#[cfg(test)]
#[path = "nearest_tests.rs"]
mod tests;
