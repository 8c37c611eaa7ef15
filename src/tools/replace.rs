//! Exact replacement of text in bytes: the pure part of `file_edit`.
//!
//! Nothing is matched fuzzily, since a wrong match is a silent fault. Three fixed helps are tried in turn
//! and told: line ends of the file, pasted line numbers, one line end too many.

use std::borrow::Cow;

use crate::show::one_line;

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replaced {
    /// The file as it is to be.
    pub(super) bytes: Vec<u8>,
    /// Where the new text stands in them.
    pub(super) places: Vec<std::ops::Range<usize>>,
    /// The text that was there, as it was matched.
    pub(super) old: Vec<u8>,
    /// Which help was needed.
    pub(super) note: Option<&'static str>,
}

/// What the help is called in the answer, and the pair of texts that it makes.
type Help<'a> = (Option<&'static str>, Cow<'a, str>, Cow<'a, str>);

/// Replaces `old` by `new`: the one place where it stands, or all.
///
/// # Errors
/// A complaint without the file's name: why there is nothing to replace, or that it's not certain what.
pub(super) fn replace(file: &[u8], old: &str, new: &str, all: bool) -> Result<Replaced, String> {
    if old.is_empty() {
        return Err("old_string is empty; use file_write to create or replace a file".to_owned());
    }
    if old == new {
        return Err("old_string and new_string are the same; nothing to do".to_owned());
    }
    let crlf = uses_crlf(file);
    for (note, old, new) in helps(old, new) {
        let mut note = note;
        let (mut found, mut old, mut new) = (positions(file, old.as_bytes()), old, new);
        if found.is_empty() && crlf && has_lone_lf(&old) {
            old = Cow::Owned(to_crlf(&old));
            found = positions(file, old.as_bytes());
        }
        if found.is_empty() {
            continue;
        }
        if crlf && has_lone_lf(&new) && lines_are_all_crlf(file) {
            new = Cow::Owned(to_crlf(&new));
            note = note.or(Some("the file's CRLF line ends were kept"));
        }
        if found.len() > 1 && !all {
            return Err(ambiguous(file, &found));
        }
        if old == new {
            return Err("after the line numbers and line ends are set right, old_string and new_string are \
                        the same; nothing to do"
                .to_owned());
        }
        return Ok(apply(file, &found, old.as_bytes(), new.as_bytes(), note));
    }
    Err(not_found(file, old, new))
}

fn helps<'a>(old: &'a str, new: &'a str) -> Vec<Help<'a>> {
    let mut helps: Vec<Help<'a>> = vec![(None, Cow::Borrowed(old), Cow::Borrowed(new))];
    let unnumbered = without_numbers(old);
    if let Some(bare) = &unnumbered {
        let new = without_numbers(new).map_or(Cow::Borrowed(new), Cow::Owned);
        helps.push((
            Some("the line numbers in old_string were left out"),
            Cow::Owned(bare.clone()),
            new,
        ));
    }
    if let Some(shorter) = old.strip_suffix('\n')
        && !shorter.is_empty()
    {
        helps.push((
            Some("old_string had one line end too many"),
            Cow::Borrowed(shorter),
            Cow::Borrowed(new.strip_suffix('\n').unwrap_or(new)),
        ));
    }
    helps
}

/// `text` without `12<TAB>` at the start of its lines, if every line has one.
fn without_numbers(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (number, rest) = line.split_once('\t')?;
        let number = number.trim_start_matches(' ');
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        out.push_str(rest);
    }
    Some(out).filter(|out| !out.is_empty())
}

fn apply(
    file: &[u8],
    found: &[usize],
    old: &[u8],
    new: &[u8],
    note: Option<&'static str>,
) -> Replaced {
    let mut bytes = Vec::with_capacity(file.len() + new.len());
    let mut places = Vec::with_capacity(found.len());
    let mut from = 0;
    for &at in found {
        bytes.extend_from_slice(file.get(from..at).unwrap_or_default());
        places.push(bytes.len()..bytes.len() + new.len());
        bytes.extend_from_slice(new);
        from = at + old.len();
    }
    bytes.extend_from_slice(file.get(from..).unwrap_or_default());
    Replaced {
        bytes,
        places,
        old: old.to_vec(),
        note,
    }
}

/// Where `pattern` stands, without overlaps. `pattern` is not empty.
fn positions(text: &[u8], pattern: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let Some(first) = pattern.first() else {
        return found;
    };
    let mut from = 0;
    while let Some(rest) = text.get(from..) {
        let Some(at) = rest.iter().position(|b| b == first) else {
            break;
        };
        if rest.get(at..).is_some_and(|rest| rest.starts_with(pattern)) {
            found.push(from + at);
            from += at + pattern.len();
        } else {
            from += at + 1;
        }
    }
    found
}

fn uses_crlf(file: &[u8]) -> bool {
    file.windows(2).any(|pair| pair == b"\r\n")
}

fn lines_are_all_crlf(file: &[u8]) -> bool {
    file.iter()
        .enumerate()
        .filter(|(_, b)| **b == b'\n')
        .all(|(at, _)| at > 0 && file.get(at - 1) == Some(&b'\r'))
}

fn has_lone_lf(text: &str) -> bool {
    text.contains('\n') && !text.contains("\r\n")
}

fn to_crlf(text: &str) -> String {
    text.replace('\n', "\r\n")
}

/// Where the lines of a file end, to find the line of a byte quickly however many are asked for.
#[derive(Debug)]
pub(super) struct LineIndex(Vec<usize>);

impl LineIndex {
    pub(super) fn new(bytes: &[u8]) -> Self {
        let ends = bytes.iter().enumerate();
        Self(
            ends.filter(|(_, b)| **b == b'\n')
                .map(|(at, _)| at)
                .collect(),
        )
    }

    /// The line, from 0, in which the byte at `at` lies.
    pub(super) fn line_of(&self, at: usize) -> usize {
        self.0.partition_point(|end| *end < at)
    }
}

fn ambiguous(file: &[u8], found: &[usize]) -> String {
    let index = LineIndex::new(file);
    let lines: Vec<String> = found
        .iter()
        .take(5)
        .map(|at| (index.line_of(*at) + 1).to_string())
        .collect();
    format!(
        "old_string stands {} times, in lines {}{}; add lines around it so that it is unique, or set \
         replace_all",
        found.len(),
        lines.join(", "),
        if found.len() > 5 { ", …" } else { "" }
    )
}

/// Lines of the file that are compared with the text that was not found.
const COMPARED: usize = 20_000;
/// Lines of the file that are shown.
const SHOWN: usize = 12;

fn not_found(file: &[u8], old: &str, new: &str) -> String {
    let text = String::from_utf8_lossy(file);
    let mut out = "old_string was not found".to_owned();
    let difference = difference(&text, old);
    if let Some(difference) = difference {
        out.push_str(": ");
        out.push_str(difference);
    } else if !new.is_empty() && !positions(file, new.as_bytes()).is_empty() {
        out.push_str(": new_string is in the file already, so this edit may have been made before");
    }
    if let Some(near) = nearest(&text, old) {
        out.push_str("\nThe most similar lines:\n");
        out.push_str(&near);
    } else {
        out.push_str("; no line of the file is similar. Read the part to be changed again");
    }
    out
}

/// What differs, when only that differs.
fn difference(text: &str, old: &str) -> Option<&'static str> {
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let unspaced = |text: &str| text.split_whitespace().collect::<String>();
    let plain_quotes = |text: &str| text.replace(['‘', '’', '‛', '`', '"', '“', '”'], "'");
    let tabs = |text: &str| text.replace('\t', " ");
    if tabs(text).contains(&tabs(old)) {
        return Some("it differs in tabs against blanks");
    }
    if squeezed(text).contains(&squeezed(old)) {
        return Some("it differs in blanks, tabs or line ends only");
    }
    if plain_quotes(text).contains(&plain_quotes(old)) {
        return Some("it differs in the kind of quotes only");
    }
    if text.to_lowercase().contains(&old.to_lowercase()) {
        return Some("it differs in upper and lower case only");
    }
    (unspaced(text).contains(&unspaced(old)) && !unspaced(old).is_empty())
        .then_some("it differs in blanks, tabs or line ends only")
}

/// The part of the file that is most like `old`, numbered; `None` if nothing is like it.
fn nearest(text: &str, old: &str) -> Option<String> {
    let short = |line: &str| line.trim().chars().take(120).collect::<String>();
    let (offset, wanted) = old
        .lines()
        .enumerate()
        .max_by_key(|(_, line)| line.trim().len().min(60))
        .map(|(at, line)| (at, short(line)))?;
    if wanted.is_empty() {
        return None;
    }
    let (best, alike) = text
        .lines()
        .take(COMPARED)
        .enumerate()
        .map(|(at, line)| {
            let line = short(line);
            // Cheap first: lines of very different lengths can't be alike.
            let lengths = (line.len().min(wanted.len()), line.len().max(wanted.len()));
            let alike = if lengths.0 * 2 < lengths.1 {
                0.0
            } else {
                strsim::normalized_levenshtein(&line, &wanted)
            };
            (at, alike)
        })
        .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))?;
    if alike < 0.6 {
        return None;
    }
    let start = best.saturating_sub(offset);
    let count = old.lines().count().clamp(3, SHOWN);
    let lines: Vec<String> = text
        .lines()
        .enumerate()
        .skip(start)
        .take(count)
        .map(|(at, line)| {
            let line: String = line.chars().take(200).collect();
            // Tabs stay: whether there are some is the question.
            let line: Vec<String> = line.split('\t').map(one_line).collect();
            format!("{}\t{}", at + 1, line.join("\t"))
        })
        .collect();
    Some(lines.join("\n"))
}

#[cfg(test)]
#[path = "replace_tests.rs"]
mod tests;
