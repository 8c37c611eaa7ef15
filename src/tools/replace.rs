//! Exact replacement of text in bytes: the pure part of `file_edit`.
//!
//! Nothing is matched fuzzily, since a wrong match is a silent fault. Line ends alone may differ, as no model
//! sees them: the replacement takes those of the text that it replaces. A text that isn't in the file gets
//! one of two [`Help`]s, each of which knows the only place where its guess can be right.

use std::borrow::Cow;
use std::iter::Peekable;
use std::ops::Range;

use memchr::memmem::{FindIter, Finder, find_iter};
use memchr::{memchr, memchr_iter, memchr2_iter, memrchr};

use crate::encoding::without_bom;

/// An edit, as asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) old: &'a str,
    pub(super) new: &'a str,
    /// Every place where `old` stands, not the only one.
    pub(super) all: bool,
    /// Bytes that the file may have afterwards.
    pub(super) most: usize,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Replaced {
    /// The file as it is to be.
    pub(super) bytes: Vec<u8>,
    /// How many places were replaced.
    pub(super) count: usize,
    /// What was done beside what was asked.
    pub(super) notes: Vec<&'static str>,
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// In words, without the file's name.
    Because(String),
    /// The text is not in the file.
    NotFound,
}

/// Replaces the asked text: at the one place where it stands, or at all.
///
/// # Errors
/// There is nothing to replace, or it's not certain what.
pub(super) fn replace(file: &[u8], asked: Asked<'_>) -> Result<Replaced, Refusal> {
    let because = |why: &str| Err(Refusal::Because(why.to_owned()));
    if asked.old.is_empty() {
        return because("old_string is empty; use file_write to create or replace a file");
    }
    if asked.old == asked.new {
        return because("old_string and new_string are the same; nothing to do");
    }
    let found = Survey::of(file, asked.old);
    if found.count > 0 {
        if !asked.all && (found.count > 1 || found.overlap) {
            return Err(Refusal::Because(found.ambiguous()));
        }
        let note = found
            .overlap
            .then_some("places that overlap one before them were left");
        return apply(file, Places::new(file, asked.old), asked, note);
    }
    for help in [Help::LineEnd, Help::LineNumbers] {
        if let Some((place, old, new)) = help.read(file, asked) {
            let read = Asked {
                old: &old,
                new: &new,
                ..asked
            };
            return apply(file, std::iter::once(place), read, Some(help.note()));
        }
    }
    Err(Refusal::NotFound)
}

/// The line, from 1, in which `text` stands, if it stands in the file once.
pub(super) fn only_line(file: &[u8], text: &str) -> Option<usize> {
    let found = (!text.is_empty()).then(|| Survey::of(file, text))?;
    found.lines.first().copied().filter(|_| found.count == 1)
}

/// What a model may have added to the text that it saw. Asked only when the text isn't in the file as given.
#[derive(Clone, Copy, Debug)]
enum Help {
    /// A line end after the last line, which has none: right only at the end of the file.
    LineEnd,
    /// The numbers that `file_read` shows: right only in the lines that have them.
    LineNumbers,
}

impl Help {
    const fn note(self) -> &'static str {
        match self {
            Self::LineEnd => "old_string had one line end too many",
            Self::LineNumbers => "the line numbers in old_string were left out",
        }
    }

    /// The place that was meant, and the texts without what was added; `None` if the guess is wrong.
    fn read<'a>(
        self,
        file: &[u8],
        asked: Asked<'a>,
    ) -> Option<(Range<usize>, Cow<'a, str>, Cow<'a, str>)> {
        match self {
            Self::LineEnd => {
                let old = without_line_end(asked.old).filter(|old| !old.is_empty())?;
                // A file that ends in a line end has the one that was asked for, or lacks the text before it.
                if matches!(file.last(), Some(b'\n' | b'\r')) {
                    return None;
                }
                let mut seen = Seen::new(file, old);
                let at = seen.text.len().checked_sub(old.len())?;
                let fits = seen.text.ends_with(old.as_bytes());
                let place = fits.then(|| seen.in_file(at)..file.len())?;
                let new = without_line_end(asked.new).unwrap_or(asked.new);
                Some((place, old.into(), new.into()))
            }
            Self::LineNumbers => {
                let (first, old) = without_numbers(asked.old)?;
                let new = match without_numbers(asked.new) {
                    Some((number, new)) if number == first => new.into(),
                    None if !asked.new.lines().any(is_numbered) => asked.new.into(),
                    _ => return None,
                };
                // Lines with a number of their own: which of the two new_string means can't be told.
                if old.lines().any(is_numbered) {
                    return None;
                }
                let mut places = Places::new(file, &old);
                let place = places.next()?;
                let (before, _) = file.split_at_checked(place.start)?;
                // A line was shown whole: what is only its beginning is not the one that was meant.
                let after = file.get(place.end..)?;
                let whole =
                    after.is_empty() || old.ends_with('\n') || matches!(after, [b'\n' | b'\r', ..]);
                // Who is shown the lines doesn't see the mark.
                let before = without_bom(before);
                let right = whole
                    && line_ends(before) + 1 == first
                    && (before.is_empty() || before.ends_with(b"\n"))
                    && !places.overlap
                    && places.next().is_none();
                right.then_some((place, old.into(), new))
            }
        }
    }
}

fn without_line_end(text: &str) -> Option<&str> {
    let shorter = text.strip_suffix('\n')?;
    Some(shorter.strip_suffix('\r').unwrap_or(shorter))
}

/// `12<TAB>text`, with blanks before the number where it stands in a column. No file has more lines than 32 bits
/// count.
fn numbered(line: &str) -> Option<(usize, &str)> {
    let (number, rest) = line.split_once('\t')?;
    let number = number.trim_start_matches(' ');
    let digits = number.bytes().all(|b| b.is_ascii_digit());
    let number: u32 = number.parse().ok().filter(|_| digits)?;
    Some((usize::try_from(number).ok()?, rest))
}

fn is_numbered(line: &str) -> bool {
    numbered(line).is_some()
}

/// The first number and the text without numbers, if every line has one and they count up.
fn without_numbers(text: &str) -> Option<(usize, String)> {
    let mut lines = text.split_inclusive('\n');
    let (first, rest) = numbered(lines.next()?)?;
    let mut bare = rest.to_owned();
    let mut last = first;
    for line in lines {
        let (number, rest) = numbered(line)?;
        bare.push_str(rest);
        (last.checked_add(1) == Some(number)).then_some(())?;
        last = number;
    }
    (!bare.is_empty()).then_some((first, bare))
}

/// A file as a text is looked for in it: with all line ends alike, if the text has some and doesn't say which.
struct Seen<'f> {
    text: Cow<'f, [u8]>,
    /// Where a byte was dropped, in the file.
    crlf: Peekable<FindIter<'f, 'static>>,
    dropped: usize,
}

impl<'f> Seen<'f> {
    fn new(file: &'f [u8], text: &str) -> Self {
        let open = text.contains('\n') && !text.contains('\r') && memchr(b'\r', file).is_some();
        let mut seen = Cow::Borrowed(file);
        if open {
            let mut bytes = file.iter().peekable();
            let mut alike = Vec::with_capacity(file.len());
            while let Some(byte) = bytes.next() {
                let cr = *byte == b'\r';
                if !(cr && bytes.peek() == Some(&&b'\n')) {
                    alike.push(if cr { b'\n' } else { *byte });
                }
            }
            seen = alike.into();
        }
        Self {
            text: seen,
            crlf: find_iter(if open { file } else { b"" }, "\r\n").peekable(),
            dropped: 0,
        }
    }

    /// Where in the file that is which is at `at` here. Asked in order.
    fn in_file(&mut self, at: usize) -> usize {
        while self.crlf.next_if(|cr| *cr < at + self.dropped).is_some() {
            self.dropped += 1;
        }
        at + self.dropped
    }
}

/// Where a text stands in a file, in order and without overlaps.
struct Places<'f> {
    seen: Seen<'f>,
    finder: Finder<'f>,
    from: usize,
    /// The text stands at another place too, which begins within one of these.
    overlap: bool,
}

impl<'f> Places<'f> {
    fn new(file: &'f [u8], text: &'f str) -> Self {
        Self {
            seen: Seen::new(file, text),
            finder: Finder::new(text),
            from: 0,
            overlap: false,
        }
    }
}

impl Iterator for Places<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let text = self.seen.text.get(self.from..)?;
        let at = self.finder.find(text)?;
        let length = self.finder.needle().len();
        let within = text.get(at + 1..text.len().min(at + 2 * length - 1));
        self.overlap |= within.is_some_and(|text| self.finder.find(text).is_some());
        let (start, end) = (self.from + at, self.from + at + length);
        self.from = end;
        Some(self.seen.in_file(start)..self.seen.in_file(end))
    }
}

fn line_ends(bytes: &[u8]) -> usize {
    memchr_iter(b'\n', bytes).count()
}

/// How often a text stands in a file, and where first.
#[derive(Debug, Default)]
struct Survey {
    count: usize,
    overlap: bool,
    /// The first five, from 1.
    lines: Vec<usize>,
}

impl Survey {
    fn of(file: &[u8], text: &str) -> Self {
        let mut survey = Self::default();
        let (mut line, mut counted) = (1, 0);
        let mut places = Places::new(file, text);
        for place in places.by_ref() {
            if survey.count < 5 {
                line += line_ends(file.get(counted..place.start).unwrap_or_default());
                counted = place.start;
                survey.lines.push(line);
            }
            survey.count += 1;
        }
        survey.overlap = places.overlap;
        survey
    }

    fn ambiguous(&self) -> String {
        let lines: Vec<String> = self.lines.iter().map(usize::to_string).collect();
        let stands = match self.count {
            1 => "fits at places that overlap, first in line".to_owned(),
            count => format!("stands {count} times, in lines"),
        };
        format!(
            "old_string {stands} {}{}; add lines around it so that it is unique, or set replace_all",
            lines.join(", "),
            if self.count > lines.len() {
                ", …"
            } else {
                ""
            }
        )
    }
}

/// The new text, with the line ends of what it replaces.
struct Replacement<'a> {
    file: &'a [u8],
    new: &'a str,
    /// The text names its line ends.
    as_given: bool,
    /// The line end after a place, up to where it holds: places come in order, so each is looked for once.
    line: Option<(usize, &'static str)>,
}

impl<'a> Replacement<'a> {
    fn new(file: &'a [u8], asked: Asked<'a>) -> Self {
        let Asked { old, new, .. } = asked;
        let cr = |text: &str| text.matches('\r').count();
        Self {
            file,
            new,
            as_given: !new.contains('\n')
                || (cr(old) > 0 && cr(new) > 0)
                || cr(old) > old.matches("\r\n").count()
                || old.replace('\r', "") == new.replace('\r', ""),
            line: None,
        }
    }

    /// In the place of `at`: each line end as the one that stood there, further ones as the last.
    fn at(&mut self, at: &Range<usize>) -> Cow<'a, str> {
        let old = self.file.get(at.clone()).unwrap_or_default();
        let mut ends = ends_of(old).peekable();
        let mut end = match ends.peek() {
            _ if self.as_given => return self.new.into(),
            Some(end) => *end,
            None => self.line_end(at.end),
        };
        let mut out = String::with_capacity(self.new.len() + 16);
        for line in self.new.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(text) => {
                    end = ends.next().unwrap_or(end);
                    // Two line ends must not become one.
                    let follows_cr = match out.as_bytes().last() {
                        Some(last) => *last == b'\r',
                        None => at.start > 0 && self.file.get(at.start - 1) == Some(&b'\r'),
                    };
                    out.push_str(text);
                    out.push_str(match end {
                        _ if text.ends_with('\r') => "\n",
                        "\n" if text.is_empty() && follows_cr => "\r",
                        end => end,
                    });
                }
                None => out.push_str(line),
            }
        }
        if self.new.ends_with('\n') && out.ends_with('\r') && self.file.get(at.end) == Some(&b'\n')
        {
            out.push('\n');
        }
        out.into()
    }

    /// That of the line in which `at` lies; of a last line without one, that of the line before.
    fn line_end(&mut self, at: usize) -> &'static str {
        if let Some((until, end)) = self.line
            && at <= until
        {
            return end;
        }
        let after = memchr(b'\n', self.file.get(at..).unwrap_or_default()).map(|next| at + next);
        let end = match after.or_else(|| memrchr(b'\n', self.file)) {
            Some(lf) if lf > 0 && self.file.get(lf - 1) == Some(&b'\r') => "\r\n",
            None if memchr(b'\r', self.file).is_some() => "\r",
            _ => "\n",
        };
        self.line = Some((after.unwrap_or(usize::MAX), end));
        end
    }
}

fn ends_of(text: &[u8]) -> impl Iterator<Item = &'static str> {
    memchr2_iter(b'\r', b'\n', text).filter_map(|at| {
        let around = (
            at.checked_sub(1).and_then(|at| text.get(at)),
            text.get(at),
            text.get(at + 1),
        );
        match around {
            (_, Some(b'\r'), Some(b'\n')) => None,
            (Some(b'\r'), Some(b'\n'), _) => Some("\r\n"),
            (_, Some(b'\n'), _) => Some("\n"),
            _ => Some("\r"),
        }
    })
}

/// Whether the line feed at `at` is the second half of a line end.
fn within_crlf(file: &[u8], at: usize) -> bool {
    let pair = at.checked_sub(1).and_then(|cr| file.get(cr..=at));
    pair == Some(b"\r\n")
}

/// What is said of line ends that were cut in two, where nothing but line ends was asked for.
fn in_two(asked: Asked<'_>) -> Result<&'static str, Refusal> {
    if asked.old.bytes().all(|b| matches!(b, b'\r' | b'\n')) {
        return Ok("CRLF line ends were cut in two");
    }
    Err(Refusal::Because(
        "old_string begins or ends within a CRLF line end, of which new_string would leave half; give both without \
         CR (the file's line ends are kept), or the line end whole"
            .to_owned(),
    ))
}

fn apply(
    file: &[u8],
    places: impl Iterator<Item = Range<usize>>,
    asked: Asked<'_>,
    note: Option<&'static str>,
) -> Result<Replaced, Refusal> {
    let mut replacement = Replacement::new(file, asked);
    let mut done = Replaced {
        notes: note.into_iter().collect(),
        ..Replaced::default()
    };
    let mut from = 0;
    // The last place began within a CRLF line end, of which what comes next must be the other half.
    let mut open = false;
    for at in places {
        let new = replacement.at(&at);
        let kept = file.get(from..at.start).unwrap_or_default();
        let mut halved = open && kept.first().is_some_and(|next| *next != b'\n');
        open &= kept.is_empty();
        open |= within_crlf(file, at.start);
        halved |= open && new.bytes().next().is_some_and(|next| next != b'\n');
        open &= new.is_empty();
        done.bytes.extend_from_slice(kept);
        done.bytes.extend_from_slice(new.as_bytes());
        halved |= within_crlf(file, at.end) && done.bytes.last() != Some(&b'\r');
        let crlf = |text: &str| text.matches("\r\n").count();
        let mut notes = Vec::new();
        if new != asked.new && crlf(&new) > crlf(asked.new) {
            notes.push("new_string got the CRLF line ends of the text that it replaces");
        } else if new != asked.new {
            notes.push("new_string got the CR line ends of the text that it replaces");
        }
        if halved {
            notes.push(in_two(asked)?);
        }
        notes.retain(|note| !done.notes.contains(note));
        done.notes.append(&mut notes);
        if done.bytes.len().saturating_add(file.len() - at.end) > asked.most {
            return Err(Refusal::Because(
                "the file would become larger than 8 MiB; edit it with bash (sed, python3)"
                    .to_owned(),
            ));
        }
        done.count += 1;
        from = at.end;
    }
    let kept = file.get(from..).unwrap_or_default();
    if open && kept.first() != Some(&b'\n') {
        let note = in_two(asked)?;
        done.notes.retain(|told| *told != note);
        done.notes.push(note);
    }
    done.bytes.extend_from_slice(kept);
    if done.bytes == file {
        return Err(Refusal::Because(
            "the file has new_string there already, but for line ends and line numbers; nothing to do".to_owned(),
        ));
    }
    Ok(done)
}

#[cfg(test)]
#[path = "replace_tests.rs"]
mod tests;
