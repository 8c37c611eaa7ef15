//! What `grep` printed, read and made fit to be shown.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::secrets::Redactor;
use crate::show::{first_chars, grouped, one_line};
use crate::tools::listing::{Trouble, count, fitting, number};

use super::script::Files;

const SHOWN_LINES: usize = 200;
const SHOWN_CHARS: usize = 20_000;
const SHOWN_IN_LINE: usize = 300;
const SHOWN_COUNTS: usize = 100;
/// Files in UTF-16 or UTF-32 that are named.
const SHOWN_WIDE: usize = 20;
/// Characters of the names in a note.
const SHOWN_NAMES: usize = 4_000;
/// What is said before grep's words about files.
pub(super) const UNSEARCHED: &str = "not searched";

/// The files whose first line, if `output` has it, begins as UTF-16 or UTF-32 does: no pattern can look into them.
pub(super) fn marked(output: &[u8], files: &Files) -> BTreeSet<Vec<u8>> {
    let lines = output.split(|b| *b == b'\n');
    lines
        .filter_map(|line| Line::parse(line, files))
        .filter(|line| line.number == b"1" && begins_as_wide(line.text))
        .map(|line| line.name.to_vec())
        .collect()
}

/// With a mark, or with some characters of ASCII, each among NULs, or so whole where it is short.
fn begins_as_wide(text: &[u8]) -> bool {
    const MARKS: [&[u8]; 3] = [b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"];
    // Bytes of a character, which of them isn't NUL, and so many of them.
    const UNMARKED: [(usize, usize, usize); 4] = [(2, 0, 3), (2, 1, 3), (4, 0, 2), (4, 3, 2)];
    let fits = |(width, at, times): (usize, usize, usize)| {
        let is = |(nth, b): (usize, &u8)| {
            if nth == at {
                matches!(b, b' '..=b'~')
            } else {
                *b == 0
            }
        };
        let chars = text.chunks_exact(width).take(times);
        chars.filter(|c| c.iter().enumerate().all(is)).count() == times
    };
    MARKS.iter().any(|mark| text.starts_with(mark))
        || UNMARKED.into_iter().any(fits)
        || is_short_utf16(text)
}

/// One or two characters of ASCII in UTF-16, in whose big-endian form half of the line end stands before it.
fn is_short_utf16(text: &[u8]) -> bool {
    let is = |text: &[u8], nul: usize| {
        let text = match nul {
            0 => text.strip_suffix(b"\0\r").unwrap_or(text),
            _ => text.strip_suffix(b"\r\0").unwrap_or(text),
        };
        let fits = |c: &[u8]| {
            c.get(nul) == Some(&0) && c.get(1 - nul).is_some_and(|b| matches!(b, b' '..=b'~'))
        };
        matches!(text.len(), 2 | 4) && text.chunks(2).all(fits)
    };
    is(text, 1) || text.strip_suffix(b"\0").is_some_and(|text| is(text, 0))
}

/// Matching lines by file.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// In the order of the search.
    pub(super) files: Vec<(Vec<u8>, u64)>,
    pub(super) wide: BTreeSet<Vec<u8>>,
    pub(super) trouble: Trouble,
}

impl Counts {
    /// Each of `files` has one count at most, whatever the sandbox prints.
    pub(super) fn parse(output: &[u8], searched: &Files, wide: BTreeSet<Vec<u8>>) -> Self {
        let files = output.split(|b| *b == b'\n').filter_map(|line| {
            let colon = line.iter().rposition(|b| *b == b':')?;
            let (name, n) = line.split_at_checked(colon)?;
            let n = std::str::from_utf8(n.get(1..)?).ok()?.parse().ok()?;
            Some((name.strip_prefix(b"./")?, n))
        });
        Self {
            files: files
                .filter(|(name, n)| *n > 0 && searched.has(name) && !wide.contains(*name))
                .take(searched.count())
                .map(|(name, n)| (name.to_vec(), n))
                .collect(),
            wide,
            trouble: Trouble::default(),
        }
    }

    fn add(&mut self, name: &[u8]) {
        match self.files.last_mut() {
            Some((last, n)) if last == name => *n = n.saturating_add(1),
            _ => self.files.push((name.to_vec(), 1)),
        }
    }

    /// The sum, of `what` has a regular plural.
    pub(super) fn total(&self, what: &str) -> String {
        let counts = self.files.iter().map(|(_, n)| *n);
        let sum = counts.fold(0, u64::saturating_add);
        number(usize::try_from(sum).unwrap_or(usize::MAX), what)
    }

    pub(super) fn unsearched(&self) -> usize {
        self.wide.len() + self.trouble.count()
    }

    /// At most `most` of the files, and the totals if these are not all.
    pub(super) fn shown(&self, most: usize, prefix: &str) -> String {
        let line = |(name, n): &(Vec<u8>, u64)| {
            let name = one_line(&String::from_utf8_lossy(name));
            format!("{prefix}{name}:{n}")
        };
        let lines = fitting(self.files.iter().take(most).map(line), SHOWN_CHARS);
        let mut text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        let most = lines.len();
        if self.files.len() > most {
            write!(
                text,
                "[{} in {}{}]",
                self.total("matching line"),
                number(self.files.len(), "file"),
                if most == 0 {
                    String::new()
                } else {
                    format!("; the first {most} are shown")
                }
            )
            .ok();
        }
        text.trim_end().to_owned()
    }

    /// The same behind lines of which not all are shown.
    pub(super) fn after(&self, lines: usize, prefix: &str) -> String {
        format!(
            "\n[the first {}. All {} by file; narrow path or glob to see them:]\n{}",
            number(lines, "line"),
            self.total("matching line"),
            self.shown(SHOWN_COUNTS, prefix)
        )
    }

    /// What was not searched.
    pub(super) fn notes(&self, prefix: &str) -> String {
        let mut notes = String::new();
        if !self.wide.is_empty() {
            let names = self.wide.iter().take(SHOWN_WIDE);
            let names =
                names.map(|name| format!("{prefix}{}", one_line(&String::from_utf8_lossy(name))));
            let names = fitting(names, SHOWN_NAMES);
            let more = if self.wide.len() > names.len() {
                ", …"
            } else {
                ""
            };
            write!(
                notes,
                "\n[not searched, for they are in UTF-16 or UTF-32 (see iconv): {}: {}{more}]",
                grouped(count(self.wide.len())),
                names.join(", ")
            )
            .ok();
        }
        notes + &self.trouble.note(UNSEARCHED)
    }
}

/// Lines of grep's output, as they are shown.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) text: String,
    pub(super) shown: usize,
    /// There are more than are shown.
    pub(super) over: bool,
    /// Matching lines that are no text.
    pub(super) junk: u64,
    /// Of all of them.
    pub(super) counts: Counts,
}

impl Lines {
    pub(super) fn new(
        output: &[u8],
        files: &Files,
        wide: BTreeSet<Vec<u8>>,
        show: &Shown<'_>,
    ) -> Self {
        let mut lines = Self::default();
        lines.counts.wide = wide;
        let bound = files.line_bound(show.redactor);
        let mut chars = 0;
        let mut gap = false;
        let mut rest = output
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .peekable();
        while let Some(line) = rest.next() {
            // BusyBox shows a NUL as a line end: what names no file belongs to the line before it.
            let mut junk = line.contains(&0);
            while rest
                .next_if(|next| !next.starts_with(b"./") && *next != b"--")
                .is_some()
            {
                junk = true;
            }
            if line == b"--" {
                gap = true;
                continue;
            }
            let Some(parsed) = Line::parse(line, files) else {
                continue;
            };
            let Line { name, matches, .. } = parsed;
            if lines.counts.wide.contains(name) {
                continue;
            }
            if matches {
                lines.counts.add(name);
            }
            if junk || is_junk(parsed.text) {
                lines.junk = lines.junk.saturating_add(u64::from(matches));
                continue;
            }
            if lines.over {
                continue;
            }
            let shown = show.line(&parsed, line.len() >= bound);
            let length = shown.chars().count() + 1;
            if lines.shown == SHOWN_LINES || chars + length > SHOWN_CHARS {
                lines.over = true;
                continue;
            }
            if std::mem::take(&mut gap) && lines.shown > 0 {
                lines.text.push_str("--\n");
            }
            lines.shown += 1;
            chars += length;
            writeln!(lines.text, "{shown}").ok();
        }
        lines.text.truncate(lines.text.trim_end().len());
        lines
    }
}

/// How lines are shown.
pub(super) struct Shown<'a> {
    pub(super) prefix: &'a str,
    pub(super) redactor: &'a Redactor,
}

impl Shown<'_> {
    /// A line of grep's output; `cut` if not all of it was fetched. Secrets go before anything is cut, or half of
    /// one may stay. However long the name is, the text has room of its own.
    fn line(&self, line: &Line<'_>, cut: bool) -> String {
        let name = one_line(&String::from_utf8_lossy(line.name));
        let name = format!("{}{name}", self.prefix);
        let mark = if line.matches { ':' } else { '-' };
        let number = String::from_utf8_lossy(line.number);
        let text = String::from_utf8_lossy(line.text);
        let text: Vec<String> = text.split('\t').map(one_line).collect();
        let text = text.join("\t");
        let text = if cut {
            // Its end may be the beginning of a secret: that much is held back.
            self.redactor.clean_cut(&text)
        } else {
            self.redactor.clean(&text).into_owned()
        };
        let start = first_chars(&text, SHOWN_IN_LINE);
        let more = if cut || start.len() < text.len() {
            " […]"
        } else {
            ""
        };
        format!("{name}{mark}{number}{mark}{start}{more}")
    }
}

/// `./name:number:text`, or with `-` for a line near a match.
struct Line<'a> {
    name: &'a [u8],
    matches: bool,
    number: &'a [u8],
    text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Names may have colons and dashes in them: the right one is one of those of `files`.
    fn parse(line: &'a [u8], files: &Files) -> Option<Self> {
        let line = line.strip_prefix(b"./")?;
        files.beginnings(line).find_map(|length| {
            let (name, rest) = line.split_at_checked(length)?;
            let (mark, rest) = rest.split_first()?;
            let end = rest.iter().position(|b| !b.is_ascii_digit())?;
            let (number, text) = rest.split_at_checked(end)?;
            let text = text.strip_prefix(std::slice::from_ref(mark))?;
            (matches!(mark, b':' | b'-') && !number.is_empty()).then_some(Self {
                name,
                matches: *mark == b':',
                number,
                text,
            })
        })
    }
}

/// A text with more undecodable bytes than others, or with some and control characters: of a few bytes nothing
/// can be said.
fn is_junk(text: &[u8]) -> bool {
    const FEW: usize = 4;
    let bad = text
        .utf8_chunks()
        .map(|chunk| chunk.invalid().len())
        .sum::<usize>();
    // What terminals and editors put into text is no sign of anything else.
    let controls = text
        .iter()
        .filter(|b| b.is_ascii_control() && !b"\t\r\x08\x0c\x1b".contains(b))
        .count();
    text.contains(&0)
        || bad + controls > FEW && (bad + controls) * 2 > text.len()
        || bad > 0 && controls > 0 && bad + controls > FEW && (bad + controls) * 5 > text.len()
}

/// Takes any output of `grep`, for [`crate::fuzz`].
pub(crate) fn fuzz_grep(output: &[u8]) {
    let known = Files::new(vec![b"a".to_vec(), b"a:1".to_vec()]);
    for line in output.split(|b| *b == b'\n') {
        if let Some(line) = Line::parse(line, &known) {
            is_junk(line.text);
        }
    }
    let counts = Counts::parse(output, &known, BTreeSet::new());
    let files = known.count();
    assert!(counts.shown(files, "").lines().count() <= files + 1);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::secrets::Secret;

    #[expect(clippy::disallowed_methods, reason = "a test measures real time")]
    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn counts_of_any_size_are_summed() {
        let output = format!("./a:{0}\n./b:{0}\n./c:0\n./d:1\n./e:1\n", u64::MAX);
        let files = Files::new(
            ["d", "c", "b", "a"]
                .map(|name| name.as_bytes().to_vec())
                .to_vec(),
        );
        let counts = Counts::parse(output.as_bytes(), &files, BTreeSet::from([b"d".to_vec()]));
        assert_eq!(counts.files.len(), 2);
        assert_eq!(counts.total("line"), format!("{} lines", grouped(u64::MAX)));
    }

    #[test]
    fn a_file_that_was_not_searched_has_no_count_and_another_has_one() {
        let files = Files::new(vec![b"a".to_vec()]);
        let output = b"./a:1\n./x:7\n".repeat(100_000);
        let counts = Counts::parse(&output, &files, BTreeSet::new());
        assert_eq!(counts.files, [(b"a".to_vec(), 1)]);
    }

    #[test]
    fn long_names_are_shown_as_far_as_there_is_room() {
        let names = (0..200).map(|n| format!("{n:03}{}", "n".repeat(3_996)).into_bytes());
        let counts = Counts {
            files: names.clone().map(|name| (name, 1)).collect(),
            wide: names.collect(),
            trouble: Trouble::default(),
        };
        let shown = counts.shown(200, "");
        assert!(shown.chars().count() < SHOWN_CHARS + 200);
        assert!(shown.ends_with("[200 matching lines in 200 files; the first 4 are shown]"));
        let notes = counts.notes("");
        assert!(notes.chars().count() < SHOWN_NAMES + 200 && notes.ends_with(", …]"));
    }

    #[test]
    fn a_long_name_leaves_room_for_the_text() {
        let shown = Shown {
            prefix: "",
            redactor: &Redactor::default(),
        };
        let name = "n".repeat(4_000);
        let line = Line {
            name: name.as_bytes(),
            matches: true,
            number: b"7",
            text: b"needle",
        };
        assert_eq!(shown.line(&line, false), format!("{name}:7:needle"));
    }

    #[test]
    fn of_a_cut_line_without_blanks_the_beginning_is_shown_however_long_a_key_is() {
        let key = Secret::new(&"eyJhbGciOiJSUzI1NiJ9.".repeat(40));
        let shown = Shown {
            prefix: "",
            redactor: &Redactor::new([&key]),
        };
        let files = Files::new(vec![b"a.js".to_vec()]);
        let mut line = format!("./a.js:1:{}", "var(a=1);".repeat(10_000));
        line.truncate(files.line_bound(shown.redactor));
        let lines = Lines::new(line.as_bytes(), &files, BTreeSet::new(), &shown);
        let beginning: String = "var(a=1);".chars().cycle().take(SHOWN_IN_LINE).collect();
        assert_eq!(lines.text, format!("a.js:1:{beginning} […]"));
    }

    #[test]
    fn a_line_is_read_in_time_that_grows_with_its_length() {
        let line = [&b"./a"[..], &b"-1".repeat(512 * 1024)].concat();
        let names: [&[u8]; 3] = [b"a-1-1-1-2", &line[2..4_002], b"a-1-1"];
        let files = Files::new(names.map(<[u8]>::to_vec).to_vec());
        let shown = Shown {
            prefix: "",
            redactor: &Redactor::default(),
        };
        let started = now();
        let parsed = Line::parse(&line, &files).unwrap();
        assert_eq!((parsed.name, parsed.number), (&b"a-1-1"[..], &b"1"[..]));
        assert_eq!(marked(&line, &files).len(), 0);
        let lines = Lines::new(&line, &files, BTreeSet::new(), &shown);
        assert_eq!(lines.shown, 1);
        // 0.1 s when it was measured, and an hour when each mark asked for all before it.
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn the_right_name_is_the_first_that_a_number_follows() {
        let names = ["a", "a:1", "a:1:x", "b-2", "b"].map(|name| name.as_bytes().to_vec());
        let files = Files::new(names.to_vec());
        let read = |line: &'static str| {
            let line = Line::parse(line.as_bytes(), &files)?;
            Some((line.name, line.matches, line.number, line.text))
        };
        for (line, name, matches, number, text) in [
            ("./a:1:x:2:y", "a", true, "1", "x:2:y"),
            ("./a:1-7-y", "a:1", false, "7", "y"),
            ("./a:1:x:y:3:z", "a", true, "1", "x:y:3:z"),
            ("./b-2-3-", "b", false, "2", "3-"),
            ("./b-2:3:", "b-2", true, "3", ""),
        ] {
            let (name, number, text) = (name.as_bytes(), number.as_bytes(), text.as_bytes());
            assert_eq!(read(line), Some((name, matches, number, text)), "{line}");
        }
        for line in ["a:1:x", "./c:1:x", "./a:1", "./a::x", "./a", "./"] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn lines_of_compressed_data_are_no_text() {
        for junk in [
            &b"\x1f\x8b\x08\x00ab"[..],
            b"k\xb1\x9dR\x02Q\xe4m{\x05\xf3x\xc3\xa9\x91zq\x11",
            b"\xcc\xe8\xf0 \xcc\xe8\xf0 \xcc\xe8\xf0",
        ] {
            assert!(is_junk(junk), "{}", junk.escape_ascii());
        }
        for text in [
            &b"caf\xe9 au lait"[..],
            b"x\xfe\xff\xff",
            b"\x1b[1mbold\x1b[0m\t\r",
            "Москва\u{1}".as_bytes(),
        ] {
            assert!(!is_junk(text), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn only_a_first_line_marks_a_file_as_utf16() {
        let files = Files::new(
            ["a", "b", "c:1"]
                .map(|name| name.as_bytes().to_vec())
                .to_vec(),
        );
        let output = b"./a:1:\xff\xfex\n./b:2:\xff\xfe\n./b:1:x:1:\xff\xfe\n./c:1:1:\xfe\xff\n./d:1:\xff\xfe\n";
        let found: Vec<_> = marked(output, &files).into_iter().collect();
        assert_eq!(found, [&b"a"[..], b"c:1"]);
    }
}
