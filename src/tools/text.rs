//! What a model may see of a command's bytes: decoded, cleaned, redacted, counted and bounded.

use crate::secrets::{RedactingStream, Redactor};
use crate::show::{first_chars, grouped};

/// Bytes of the beginning that are kept, and at least of the end. At most three times as many are held
/// (`reliability-security`, AD-6: 256 KiB).
const KEEP: usize = 64 * 1024;
/// A line is given on when it gets this long, whatever follows.
const LINE_HELD: usize = 16 * 1024;
/// An operating system command (window titles, links) longer than this is not one.
const OSC_MOST: usize = 4096;

/// Takes bytes as they come and keeps the beginning and the end of the text that they are.
///
/// UTF-8 is decoded lossily; ANSI escapes are removed; of a line that is rewritten with carriage returns
/// only the last state stays; NUL and other control characters become U+FFFD. The number of line ends
/// doesn't change, so line numbers hold in the raw bytes too.
#[derive(Debug)]
pub(crate) struct TextKeeper {
    undecoded: Vec<u8>,
    escape: Escape,
    /// Lines that are done, given on in larger pieces.
    done: String,
    /// The line that may still be rewritten.
    line: String,
    returned: bool,
    redacting: RedactingStream,
    kept: Kept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    /// After ESC.
    Start,
    /// After ESC and an intermediate byte: one more follows.
    Charset,
    /// Parameters of a control sequence.
    Csi,
    /// The text of an operating system command or device string, and whether ESC came just before.
    Text {
        len: usize,
        esc: bool,
    },
}

impl TextKeeper {
    pub(crate) fn new(redactor: &Redactor) -> Self {
        Self {
            undecoded: Vec::new(),
            escape: Escape::None,
            done: String::new(),
            line: String::new(),
            returned: false,
            redacting: redactor.stream(),
            kept: Kept::default(),
        }
    }

    /// Takes the next bytes, however they are cut.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let mut pending = std::mem::take(&mut self.undecoded);
        pending.extend_from_slice(bytes);
        let mut rest = pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.text(text);
                    return;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    if let Ok(text) = std::str::from_utf8(valid) {
                        self.text(text);
                    }
                    let Some(bad) = error.error_len() else {
                        self.undecoded = after.to_vec();
                        return;
                    };
                    self.text("\u{fffd}");
                    rest = after.get(bad..).unwrap_or_default();
                }
            }
        }
    }

    /// The end of the bytes: what is kept of them.
    pub(crate) fn end(&mut self) -> Kept {
        if !std::mem::take(&mut self.undecoded).is_empty() {
            self.text("\u{fffd}");
        }
        self.end_line();
        self.give_on();
        let last = self.redacting.finish();
        self.kept.push(&last);
        std::mem::take(&mut self.kept)
    }

    fn text(&mut self, text: &str) {
        let mut rest = text;
        while !rest.is_empty() {
            if self.escape == Escape::None && !self.returned {
                let plain = rest.bytes().position(special).unwrap_or(rest.len());
                let (before, after) = rest.split_at(plain);
                self.plain(before);
                rest = after;
            }
            let mut chars = rest.chars();
            if let Some(c) = chars.next() {
                self.char(c);
                rest = chars.as_str();
            }
        }
    }

    /// Text without anything special but line ends.
    fn plain(&mut self, text: &str) {
        match text.rfind('\n') {
            None => self.line.push_str(text),
            Some(end) => {
                let (lines, rest) = text.split_at(end + 1);
                self.done.push_str(&self.line);
                self.line.clear();
                self.done.push_str(lines);
                self.line.push_str(rest);
            }
        }
        if self.line.len() > LINE_HELD {
            self.end_line();
        }
        if self.done.len() > LINE_HELD {
            self.give_on();
        }
    }

    fn char(&mut self, c: char) {
        self.escape = match (self.escape, c) {
            (Escape::None, _) => {
                self.shown(c);
                return;
            }
            // A line end is never part of an escape: show it, or the line numbers are lost.
            (_, '\n') => {
                self.escape = Escape::None;
                self.shown('\n');
                return;
            }
            (Escape::Start, ']' | 'P' | 'X' | '^' | '_') => Escape::Text { len: 0, esc: false },
            (Escape::Start, ' '..='/') => Escape::Charset,
            (Escape::Start, '[') | (Escape::Csi, ' '..='?') => Escape::Csi,
            (Escape::Text { len, esc }, _) if !(c == '\u{7}' || esc && c == '\\') => {
                if len >= OSC_MOST {
                    // No title is so long: what was dropped is told.
                    self.escape = Escape::None;
                    self.shown(char::REPLACEMENT_CHARACTER);
                    self.shown(c);
                    return;
                }
                Escape::Text {
                    len: len + 1,
                    esc: c == '\u{1b}',
                }
            }
            (Escape::Start | Escape::Charset | Escape::Csi | Escape::Text { .. }, _) => {
                Escape::None
            }
        };
    }

    fn shown(&mut self, c: char) {
        if self.returned && c != '\n' && c != '\r' {
            self.line.clear();
            self.returned = false;
        }
        match c {
            '\n' => {
                self.returned = false;
                self.line.push('\n');
                self.end_line();
            }
            '\r' => self.returned = true,
            '\u{1b}' => self.escape = Escape::Start,
            '\u{9b}' => self.escape = Escape::Csi,
            '\u{7}' | '\u{8}' | '\u{e}' | '\u{f}' | '\u{7f}' => {}
            '\t' => self.line.push(c),
            c if c.is_control() => self.line.push('\u{fffd}'),
            c => self.line.push(c),
        }
    }

    fn end_line(&mut self) {
        self.done.push_str(&self.line);
        self.line.clear();
        if self.done.len() > LINE_HELD {
            self.give_on();
        }
    }

    fn give_on(&mut self) {
        let shown = self.redacting.push(&self.done);
        self.done.clear();
        self.kept.push(&shown);
    }
}

/// A byte that begins what is not simply shown: a control character, also one of two bytes.
const fn special(b: u8) -> bool {
    (b < b' ' && b != b'\t' && b != b'\n') || b == 0x7f || b == 0xc2
}

/// The beginning and the end of a text, and how long it is in all.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    head: String,
    tail: String,
    dropped: bool,
    chars: u64,
    lines: u64,
}

impl Kept {
    fn push(&mut self, text: &str) {
        self.chars += count_chars(text);
        self.lines += count_lines(text);
        let room = KEEP.saturating_sub(self.head.len());
        let (head, rest) = if self.tail.is_empty() && room > 0 {
            text.split_at(floor_boundary(text, room))
        } else {
            ("", text)
        };
        self.head.push_str(head);
        self.tail.push_str(rest);
        if self.tail.len() > 2 * KEEP {
            let cut = ceil_boundary(&self.tail, self.tail.len() - KEEP);
            self.tail.drain(..cut);
            self.dropped = true;
        }
    }

    /// The whole if it has at most `full` characters; else the first `head` and the last `tail`, cut at
    /// line ends where there are some.
    pub(crate) fn excerpt(self, limits: &Limits) -> Excerpt {
        let Self {
            mut head,
            mut tail,
            dropped,
            chars,
            lines,
        } = self;
        if !dropped {
            head.push_str(&tail);
            tail.clear();
        }
        if chars <= limits.full {
            return Excerpt {
                head,
                tail,
                total_chars: chars,
                left_out_chars: 0,
                left_out_lines: 0,
            };
        }
        let shown_tail = last_chars(if dropped { &tail } else { &head }, limits.tail).to_owned();
        let shown_head = first_chars(&head, limits.head).to_owned();
        Excerpt {
            total_chars: chars,
            left_out_chars: chars - count_chars(&shown_head) - count_chars(&shown_tail),
            left_out_lines: lines - count_lines(&shown_head) - count_lines(&shown_tail),
            head: shown_head,
            tail: shown_tail,
        }
    }
}

/// How much of a text is shown, in characters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A text up to this is shown whole.
    pub(crate) full: u64,
    /// Of a longer one, at most this much of the beginning.
    pub(crate) head: usize,
    /// And of the end. Together less than `full`.
    pub(crate) tail: usize,
}

/// What is shown of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Excerpt {
    /// All of it, or its beginning.
    pub(crate) head: String,
    /// Its end, if something was left out.
    pub(crate) tail: String,
    /// Of the whole.
    pub(crate) total_chars: u64,
    /// Between the two.
    pub(crate) left_out_chars: u64,
    /// Line ends between the two.
    pub(crate) left_out_lines: u64,
}

impl Excerpt {
    /// Whether something was left out.
    pub(crate) const fn is_cut(&self) -> bool {
        self.left_out_chars > 0
    }

    /// The text with a notice where the cut is. `whole` says where the rest can be seen.
    pub(crate) fn with_notice(&self, whole: &str) -> String {
        if !self.is_cut() {
            return self.head.clone();
        }
        let line_end = if self.head.ends_with('\n') || self.head.is_empty() {
            ""
        } else {
            "\n"
        };
        format!(
            "{}{line_end}[… {} characters ({} lines) left out. {whole}]\n{}",
            self.head,
            grouped(self.left_out_chars),
            grouped(self.left_out_lines),
            self.tail
        )
    }

    /// Lines that are shown before the cut.
    pub(crate) fn head_lines(&self) -> u64 {
        count_lines(&self.head)
    }
}

/// `text` if it has at most `most` characters; else its beginning and its end, with a notice between them.
pub fn shorten(text: &str, most: usize) -> std::borrow::Cow<'_, str> {
    let total = count_chars(text);
    if total <= most as u64 {
        return std::borrow::Cow::Borrowed(text);
    }
    let head = first_chars(text, most / 3).to_owned();
    let tail = last_chars(text, most - most / 3).to_owned();
    let excerpt = Excerpt {
        total_chars: total,
        left_out_chars: total.saturating_sub(count_chars(&head) + count_chars(&tail)),
        left_out_lines: count_lines(text).saturating_sub(count_lines(&head) + count_lines(&tail)),
        head,
        tail,
    };
    excerpt
        .with_notice("The results of this turn together are too long; ask for less at a time.")
        .into()
}

/// The last `most` characters, forward to a line's beginning if one lies in the first half of them.
pub(crate) fn last_chars(text: &str, most: usize) -> &str {
    if most == 0 {
        return "";
    }
    let start = text
        .char_indices()
        .rev()
        .nth(most - 1)
        .map_or(0, |(at, _)| at);
    let shown = text.get(start..).unwrap_or(text);
    if start == 0
        || text
            .get(..start)
            .is_some_and(|before| before.ends_with('\n'))
    {
        return shown;
    }
    match shown.find('\n') {
        Some(at) if at <= shown.len() / 2 => shown.get(at + 1..).unwrap_or(shown),
        _ => shown,
    }
}

fn count_chars(text: &str) -> u64 {
    u64::try_from(text.chars().count()).unwrap_or(u64::MAX)
}

fn count_lines(text: &str) -> u64 {
    u64::try_from(text.bytes().filter(|b| *b == b'\n').count()).unwrap_or(u64::MAX)
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

fn ceil_boundary(text: &str, at: usize) -> usize {
    (at..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len())
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
