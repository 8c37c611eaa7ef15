//! Regular expressions as models write them (Rust and PCRE style), said again for `grep -E` in the C locale.
//!
//! What a grep makes of `\w`, of a range or of a letter beyond ASCII depends on its locale, and many sandboxes
//! have none. So the pattern is parsed here, Unicode and case are settled here, and what is left is a pattern
//! of bytes, which means the same to every grep. What can't be said is refused, with the way out.
//!
//! Every part printed begins with a byte that begins a character, and ends with the last byte of one: so a
//! match can't start in the middle of a character where it matters.

use regex_syntax::ast::{self, ErrorKind};
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look, Repetition};
use regex_syntax::utf8::{Utf8Range, Utf8Sequence, Utf8Sequences};
use regex_syntax::{ParserBuilder, is_meta_character};

use crate::encoding;

use super::boundaries;
use super::names::forms;

/// A pattern for `grep`: bytes other than NUL and line ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    /// What to give after `-e`, in the C locale.
    pub(super) text: Vec<u8>,
    /// Plain text, for `-F`; an extended regular expression otherwise.
    pub(super) fixed: bool,
    /// Some of its large classes have all characters beyond ASCII in them: it finds what it should, and maybe more.
    pub(super) wide: bool,
}

/// Characters of a pattern.
pub(super) const LONGEST: usize = 4000;
/// Bytes of what is made of it: it is one argument of a command.
const LONGEST_TEXT: usize = 100 * 1024;
/// Members of a class that are also looked for in their decomposed form.
const DECOMPOSED: usize = 64;
/// Bytes and bracket expressions once repetitions are spelt out, as every grep does: some 300 ms.
const MANY_PARTS: u64 = 25_000;
/// More than these are refused, where nothing makes them fewer.
const MOST_PARTS: u64 = 50_000;
/// Of these, how many a class may have that is taken as it is when there are too many.
const MOST_IN_CLASS: u64 = 64;
/// Bytes that begin a character beyond ASCII, or are no character.
const BEGINNINGS: (u8, u8) = (0xc0, 0xff);
const WITH_BASH: &str = "use bash with grep -P, or python3";

/// Translates `pattern`. Linear in what comes out, which is bounded, and so is the work on word boundaries: some
/// 100 µs, and tens of milliseconds at the worst.
///
/// # Errors
/// Why it can't be searched for, and the nearest thing that can.
pub(super) fn translate(pattern: &str, ignore_case: bool) -> Result<Pattern, String> {
    if pattern.is_empty() {
        return Err("pattern is empty; give a text or a regular expression".to_owned());
    }
    if pattern.chars().nth(LONGEST).is_some() {
        return Err(format!(
            "pattern is longer than {LONGEST} characters; search for a part of it"
        ));
    }
    if pattern.contains(['\n', '\0']) {
        return Err(by_line());
    }
    let plain = !pattern.chars().any(is_meta_character);
    if plain && !ignore_case && forms(pattern).len() == 1 {
        return Ok(Pattern {
            text: pattern.into(),
            fixed: true,
            wide: false,
        });
    }
    let hir = ParserBuilder::new()
        .case_insensitive(ignore_case)
        .build()
        .parse(pattern)
        .map_err(|error| refused(pattern, &error))?;
    let hir = boundaries::resolved(&hir)?;
    let mut printer = Printer::new(None);
    printer.print(&hir)?;
    if printer.parts > MANY_PARTS {
        let bare = bare(bare(hir, Side::First), Side::Last);
        for widened in [None, Some(2), Some(1)] {
            printer = Printer::new(widened);
            printer.print(&bare)?;
            if printer.parts <= MANY_PARTS {
                break;
            }
        }
    }
    if printer.parts > MOST_PARTS {
        return Err(format!(
            "pattern is too large once its repetitions are spelt out; use smaller counts, or * and +, or {WITH_BASH}"
        ));
    }
    Ok(Pattern {
        text: printer.out,
        fixed: false,
        wide: printer.wide,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    First,
    Last,
}

/// `hir` without the turns of a repetition at this side that a line need not have for it to match somewhere.
fn bare(hir: Hir, side: Side) -> Hir {
    match hir.into_kind() {
        HirKind::Capture(capture) => bare(*capture.sub, side),
        HirKind::Empty | HirKind::Repetition(Repetition { min: 0, .. }) => Hir::empty(),
        HirKind::Repetition(Repetition { min: 1, sub, .. }) => bare(*sub, side),
        HirKind::Repetition(repetition) => Hir::repetition(Repetition {
            max: Some(repetition.min),
            ..repetition
        }),
        HirKind::Alternation(branches) => {
            Hir::alternation(branches.into_iter().map(|part| bare(part, side)).collect())
        }
        HirKind::Concat(mut parts) => {
            let turn = |parts: &mut Vec<Hir>| {
                if side == Side::First {
                    parts.reverse();
                }
            };
            turn(&mut parts);
            while let Some(last) = parts.pop() {
                let last = bare(last, side);
                if !matches!(last.kind(), HirKind::Empty) {
                    parts.push(last);
                    break;
                }
            }
            turn(&mut parts);
            Hir::concat(parts)
        }
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Class(class) => Hir::class(class),
        HirKind::Look(look) => Hir::look(look),
    }
}

fn by_line() -> String {
    format!("the search is by line, so no line end or NUL can be found; {WITH_BASH}")
}

fn refused(pattern: &str, error: &regex_syntax::Error) -> String {
    let (what, column) = match error {
        regex_syntax::Error::Parse(error) => match error.kind() {
            ErrorKind::UnsupportedLookAround => {
                return format!("look-ahead and look-behind are not supported; {WITH_BASH}");
            }
            ErrorKind::UnsupportedBackreference => {
                return format!("back-references are not supported; {WITH_BASH}");
            }
            kind => (kind.to_string(), column(error.span())),
        },
        regex_syntax::Error::Translate(error) => (error.kind().to_string(), column(error.span())),
        other => (other.to_string(), 1),
    };
    format!(
        "pattern is no regular expression: {what}, at character {column}. To find the text itself: {}",
        regex_syntax::escape(pattern)
    )
}

fn column(span: &ast::Span) -> usize {
    span.start.column
}

/// First bytes, and what may follow any of them.
type Group<'a> = (Vec<(u8, u8)>, Vec<&'a [Utf8Range]>);

struct Printer {
    out: Vec<u8>,
    /// How often what is printed stands in the pattern when all repetitions are spelt out.
    times: u64,
    /// Bytes and bracket expressions that there are then.
    parts: u64,
    /// Large classes that stand there so often get all characters beyond ASCII.
    widened: Option<u64>,
    /// Some did.
    wide: bool,
}

impl Printer {
    fn new(widened: Option<u64>) -> Self {
        Self {
            out: Vec::new(),
            times: 1,
            parts: 0,
            widened,
            wide: false,
        }
    }

    fn count(&mut self) {
        self.parts = self.parts.saturating_add(self.times);
    }

    fn print(&mut self, hir: &Hir) -> Result<(), String> {
        if self.out.len() > LONGEST_TEXT {
            return Err(format!(
                "pattern is too long once its character classes are spelt out; use fewer of \\w, \\b and \\p, or {WITH_BASH}"
            ));
        }
        match hir.kind() {
            HirKind::Empty => {}
            HirKind::Literal(literal) => self.literal(&String::from_utf8_lossy(&literal.0))?,
            HirKind::Class(Class::Unicode(class)) => self.class(class)?,
            HirKind::Class(Class::Bytes(class)) => {
                match class.to_unicode_class() {
                    Some(class) => self.class(&class)?,
                    // The bytes that stand beside a word and are no character: see `boundaries`.
                    None => self.bracket(class.ranges().iter().map(|r| (r.start(), r.end()))),
                }
            }
            HirKind::Look(look) => self.out.extend_from_slice(match look {
                Look::Start | Look::StartLF | Look::StartCRLF => b"^",
                // What ends a line in a file from Windows is no part of the line.
                Look::End | Look::EndLF | Look::EndCRLF => b"\r?$",
                // `boundaries` has said all others in other words.
                _ => return Err(boundaries::too_many()),
            }),
            HirKind::Repetition(repetition) => self.repetition(repetition)?,
            HirKind::Capture(capture) => self.print(&capture.sub)?,
            HirKind::Concat(parts) => {
                for part in parts {
                    self.print(part)?;
                }
            }
            HirKind::Alternation(branches) => {
                let (empty, branches): (Vec<_>, Vec<_>) = branches
                    .iter()
                    .partition(|branch| matches!(branch.kind(), HirKind::Empty));
                self.out.push(b'(');
                for (at, branch) in branches.into_iter().enumerate() {
                    if at > 0 {
                        self.out.push(b'|');
                    }
                    self.print(branch)?;
                }
                self.out.push(b')');
                if !empty.is_empty() {
                    self.out.push(b'?');
                }
            }
        }
        Ok(())
    }

    fn group(&mut self, hir: &Hir) -> Result<(), String> {
        let single = match hir.kind() {
            HirKind::Literal(literal) => literal.0.len() == 1,
            HirKind::Class(class) => class.is_utf8() && class.maximum_len() == Some(1),
            _ => false,
        };
        if single {
            return self.print(hir);
        }
        self.out.push(b'(');
        self.print(hir)?;
        self.out.push(b')');
        Ok(())
    }

    fn repetition(&mut self, repetition: &Repetition) -> Result<(), String> {
        let Repetition { min, max, sub, .. } = repetition;
        if matches!(sub.kind(), HirKind::Empty) {
            return Ok(());
        }
        if max.is_none_or(|max| max > 1) && sub.properties().look_set().contains_anchor() {
            // glibc, and so BusyBox, sees such an anchor in the first turn only, if at all.
            return Err(format!(
                "^ and $ are not supported inside a repetition; {WITH_BASH}"
            ));
        }
        if let HirKind::Class(Class::Unicode(class)) = sub.kind()
            && *min < 2
            && max.is_none()
            && has_all_beyond_ascii(class)
        {
            // All bytes of the characters beyond ASCII are in it: any run of them will do, from the
            // beginning of one.
            if *min == 1 {
                self.bracket(ascii(class).chain([BEGINNINGS]));
            }
            self.bracket(ascii(class).chain([(0x80, 0xff)]));
            self.out.push(b'*');
            return Ok(());
        }
        let outside = self.times;
        let turns = u64::from(max.unwrap_or_else(|| min.saturating_add(1)).max(1));
        // From each turn that need not be there, grep can go to all that follow: that costs, if less than a turn.
        let open = u64::from(max.map_or(0, |max| max.saturating_sub(*min)));
        let turns = turns.saturating_add(open.saturating_mul(open) / 64);
        self.times = outside.saturating_mul(turns);
        self.group(sub)?;
        self.times = outside;
        let bounds = match (min, max) {
            (0, None) => "*".to_owned(),
            (1, None) => "+".to_owned(),
            (0, Some(1)) => "?".to_owned(),
            (min, None) => format!("{{{min},}}"),
            (min, Some(max)) if min == max => format!("{{{min}}}"),
            (min, Some(max)) => format!("{{{min},{max}}}"),
        };
        self.out.extend_from_slice(bounds.as_bytes());
        Ok(())
    }

    fn literal(&mut self, text: &str) -> Result<(), String> {
        if text.contains(['\n', '\0']) {
            return Err(by_line());
        }
        let forms = forms(text);
        let several = forms.len() > 1;
        if several {
            self.out.push(b'(');
        }
        for (at, form) in forms.iter().enumerate() {
            if at > 0 {
                self.out.push(b'|');
            }
            form.bytes().for_each(|b| self.byte(b));
        }
        if several {
            self.out.push(b')');
        }
        Ok(())
    }

    fn class(&mut self, class: &ClassUnicode) -> Result<(), String> {
        if has_all_beyond_ascii(class) {
            self.beyond(class);
            return Ok(());
        }
        let ascii: Vec<_> = ascii(class).collect();
        let beyond = beyond_ascii(class);
        if ascii.is_empty() && beyond.is_empty() {
            return Err(if class.ranges().is_empty() {
                "pattern has a character class that nothing is in, so it never matches".to_owned()
            } else {
                by_line()
            });
        }
        if beyond.is_empty() {
            self.bracket(ascii.into_iter());
            return Ok(());
        }
        let (start, before) = (self.out.len(), self.parts);
        self.out.push(b'(');
        if !ascii.is_empty() {
            self.bracket(ascii.into_iter());
            self.out.push(b'|');
        }
        self.sequences(
            &beyond
                .iter()
                .map(Utf8Sequence::as_slice)
                .collect::<Vec<_>>(),
        );
        for form in decomposed(class) {
            self.out.push(b'|');
            form.bytes().for_each(|b| self.byte(b));
        }
        self.out.push(b')');
        // Such a class is too large to have decomposed forms.
        if self.widened.is_some_and(|times| self.times >= times)
            && self.parts.saturating_sub(before) / self.times > MOST_IN_CLASS
        {
            self.out.truncate(start);
            self.parts = before;
            self.wide = true;
            self.beyond(class);
        }
        Ok(())
    }

    /// The ASCII part of `class`, and every character beyond.
    fn beyond(&mut self, class: &ClassUnicode) {
        // A byte that begins a character or none, and what may follow it in one.
        self.bracket(ascii(class).chain([BEGINNINGS]));
        self.bracket([(0x80, 0xbf)].into_iter());
        self.out.push(b'*');
    }

    /// Sequences of byte ranges in order, as alternatives without the parentheses: those that begin or go on
    /// alike are put together.
    fn sequences(&mut self, sequences: &[&[Utf8Range]]) {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for sequence in sequences {
            let Some((first, rest)) = sequence.split_first() else {
                continue;
            };
            let first = (first.start, first.end);
            match groups.last_mut() {
                Some((firsts, tails)) if firsts.as_slice() == [first] => tails.push(rest),
                _ => groups.push((vec![first], vec![rest])),
            }
        }
        let mut joined: Vec<Group<'_>> = Vec::new();
        for (firsts, tails) in groups {
            match joined.last_mut() {
                Some((before, same)) if *same == tails => before.extend(firsts),
                _ => joined.push((firsts, tails)),
            }
        }
        for (at, (firsts, tails)) in joined.into_iter().enumerate() {
            if at > 0 {
                self.out.push(b'|');
            }
            self.bracket(firsts.into_iter());
            if tails.iter().all(|tail| tail.is_empty()) {
                continue;
            }
            self.out.push(b'(');
            self.sequences(&tails);
            self.out.push(b')');
        }
    }

    /// A bracket expression of POSIX, whose own rules for `]`, `[`, `^` and `-` differ from everybody's.
    fn bracket(&mut self, ranges: impl Iterator<Item = (u8, u8)>) {
        let members: Vec<u8> = ranges.flat_map(|(from, to)| from..=to).collect();
        if let [only] = members.as_slice() {
            return self.byte(*only);
        }
        self.count();
        // Every byte that a line can have.
        if members.len() == usize::from(u8::MAX) - 1 {
            return self.out.push(b'.');
        }
        let (special, plain): (Vec<u8>, Vec<u8>) =
            members.iter().partition(|b| b"]-[^".contains(b));
        let has = |b: u8| special.contains(&b).then_some(b);
        self.out.push(b'[');
        self.out.extend(has(b']'));
        for run in plain.chunk_by(|a, b| a + 1 == *b) {
            match run {
                [from, _, .., to] => self.out.extend([*from, b'-', *to]),
                few => self.out.extend(few),
            }
        }
        // A caret must not be the first; a bracket must not be followed by some kinds of punctuation.
        self.out.extend(has(b'['));
        let first_or_last = if self.out.ends_with(b"[") && has(b'[').is_none() {
            [has(b'-'), has(b'^')]
        } else {
            [has(b'^'), has(b'-')]
        };
        self.out.extend(first_or_last.into_iter().flatten());
        self.out.push(b']');
    }

    fn byte(&mut self, b: u8) {
        self.count();
        if br".[(){*+?^$|\".contains(&b) {
            self.out.push(b'\\');
        }
        self.out.push(b);
    }
}

/// The ASCII part of `class`, without what no line has.
fn ascii(class: &ClassUnicode) -> impl Iterator<Item = (u8, u8)> {
    const WITHIN_A_LINE: [(u8, u8); 2] = [(1, b'\n' - 1), (b'\n' + 1, 0x7f)];
    class.ranges().iter().flat_map(|range| {
        let start = u8::try_from(range.start()).unwrap_or(u8::MAX);
        let end = u8::try_from(range.end()).unwrap_or(u8::MAX);
        WITHIN_A_LINE
            .into_iter()
            .map(move |(from, to)| (from.max(start), to.min(end)))
            .filter(|(from, to)| from <= to)
    })
}

/// The other part of it, as sequences of bytes in order.
fn beyond_ascii(class: &ClassUnicode) -> Vec<Utf8Sequence> {
    class
        .ranges()
        .iter()
        .filter(|range| !range.end().is_ascii())
        .flat_map(|range| Utf8Sequences::new(range.start().max('\u{80}'), range.end()))
        .collect()
}

fn has_all_beyond_ascii(class: &ClassUnicode) -> bool {
    let last = class.ranges().last();
    last.is_some_and(|range| range.start() <= '\u{80}' && range.end() == char::MAX)
}

/// The members of a small class that can also be written as a letter and its accents.
fn decomposed(class: &ClassUnicode) -> Vec<String> {
    let ranges = class.ranges().iter();
    let beyond = ranges.filter(|range| !range.end().is_ascii());
    if beyond.clone().map(ClassUnicodeRange::len).sum::<usize>() > DECOMPOSED {
        return Vec::new();
    }
    beyond
        .flat_map(|range| range.start()..=range.end())
        .map(|c| encoding::decomposed(c.encode_utf8(&mut [0; 4])).into_owned())
        .filter(|form| form.chars().count() > 1)
        .collect()
}

#[cfg(test)]
#[path = "regex_tests.rs"]
mod tests;
