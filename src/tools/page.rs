//! A page of a text file: numbered lines, and notes on what can't be seen in them.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::secrets::Redactor;
use crate::show::{grouped, one_line, size};

use super::piece::{Content, MARK, Piece, Window, count};
use super::place::Place;
use super::types::{Failure, ToolAnswer};

const MOST_CHARS: usize = 50_000;
const MOST_IN_LINE: usize = 2_000;
/// Of a longer line no more is looked at.
const MOST_DECODED: usize = 16 * 1024;

/// The page that was asked for, and what the model can't see in it.
pub(super) fn shown(
    name: &str,
    place: &Place,
    piece: &Piece,
    window: Window,
    redactor: &Redactor,
) -> Result<ToolAnswer, Failure> {
    let most = match window {
        Window::From(_, count) | Window::Last(_, count) => count,
    };
    let mut page = Page {
        // In another encoding bytes can't be counted for a command.
        path: (piece.content == Content::Text).then_some(place.path.as_str()),
        skipped: if piece.marked { MARK.len() } else { 0 },
        ..Page::default()
    };
    page.fill(piece, most, redactor);
    if page.count == 0 {
        return past_the_end(name, piece);
    }
    let mut text = page.text;
    let last = piece.from + page.count - 1;
    let of = match piece.total {
        Some(total) if total > last => Some(grouped(total)),
        None if page.goes_on => Some(format!("a file of {}", size(place.size))),
        Some(_) | None => None,
    };
    if let Some(of) = of {
        let way = if page.cut_line && piece.total.is_none() {
            "further lines, if there are any, have"
        } else {
            "go on with"
        };
        let (first, shown) = (grouped(piece.from), grouped(last));
        write!(
            text,
            "\n[lines {first}–{shown} of {of}; {way} offset={}]",
            last + 1
        )
        .ok();
    }
    let mut note = |note: &str| write!(text, "\n[{note}]").ok();
    if let Some(target) = &place.target {
        note(&format!("a link to {}", one_line(target)));
    }
    if let Content::Utf16(order) = piece.content {
        let mark = if piece.marked {
            ""
        } else {
            " without a byte-order mark"
        };
        note(&format!(
            "UTF-16 ({order}-endian){mark} in the file; file_edit can't change it"
        ));
    } else if piece.marked {
        note(MARKED);
    }
    if page.crlf > 0 && page.crlf == page.ends {
        note("lines end in CRLF in the file");
    } else if page.crlf > 0 {
        let (crlf, count) = (grouped(page.crlf), grouped(page.ends));
        note(&format!(
            "{crlf} of these {count} lines end in CRLF in the file, the others in LF"
        ));
    }
    for (is_so, what) in [
        (
            page.invalid,
            "some bytes are not UTF-8; they are shown as U+FFFD",
        ),
        (
            page.returns,
            "a CR without LF after it ends no line; it is shown as U+FFFD",
        ),
        (
            page.controls,
            "control characters and U+FEFF are shown as U+FFFD",
        ),
    ] {
        if is_so {
            note(what);
        }
    }
    Ok(ToolAnswer::text(text))
}

const MARKED: &str = "the file begins with a byte-order mark (BOM), which is not shown";

fn past_the_end(name: &str, piece: &Piece) -> Result<ToolAnswer, Failure> {
    let from = piece.from;
    match piece.total {
        Some(0) if piece.marked => Ok(ToolAnswer::text(format!("(empty file)\n[{MARKED}]"))),
        Some(0) => Ok(ToolAnswer::text("(empty file)")),
        Some(total) => Err(Failure::Complaint(format!(
            "offset {from} is past the end: {name} has {} line{}",
            grouped(total),
            if total == 1 { "" } else { "s" }
        ))),
        None => Err(Failure::Complaint(format!(
            "offset {from} is past the end of {name}; a negative offset counts from there"
        ))),
    }
}

/// Numbered lines, up to the limit of characters, at least one.
#[derive(Default)]
struct Page<'a> {
    path: Option<&'a str>,
    /// Bytes of the file before its first line.
    skipped: usize,
    text: String,
    chars: usize,
    count: u64,
    /// There is more after what is shown.
    goes_on: bool,
    /// The end of the last line shown is not known.
    cut_line: bool,
    /// Line ends, and how many of them are CRLF.
    ends: u64,
    crlf: u64,
    invalid: bool,
    returns: bool,
    controls: bool,
}

impl Page<'_> {
    fn fill(&mut self, piece: &Piece, most: u64, redactor: &Redactor) {
        let mut rest = piece.bytes.as_slice();
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest);
            let (line, after) = rest.split_at(end.unwrap_or(rest.len()));
            // Of a line that the slice cut, only one that is alone is shown.
            let is_cut = end.is_none() && piece.cut;
            if self.count >= most || (is_cut && self.count > 0) {
                break;
            }
            let before = (self.invalid, self.returns, self.controls);
            let unix = line.strip_suffix(b"\r").filter(|_| end.is_some());
            self.cut_line = is_cut;
            let number = piece.from + self.count;
            let shown = self.line(number, unix.unwrap_or(line), redactor);
            let chars = shown.chars().count() + 1;
            if self.count > 0 && self.chars + chars > MOST_CHARS {
                (self.invalid, self.returns, self.controls) = before;
                break;
            }
            if self.count > 0 {
                self.text.push('\n');
            }
            self.text.push_str(&shown);
            self.chars += chars;
            self.count += 1;
            self.ends += u64::from(end.is_some());
            self.crlf += u64::from(unix.is_some());
            rest = after.get(1..).unwrap_or_default();
        }
        self.goes_on = piece.cut || !rest.is_empty();
    }

    /// A line as it is shown. Secrets go before it is shortened, so that no half of one stays.
    fn line(&mut self, number: u64, line: &[u8], redactor: &Redactor) -> String {
        let decoded = line.get(..MOST_DECODED).map_or(line, whole_characters);
        let text = String::from_utf8_lossy(decoded);
        self.invalid |= matches!(text, Cow::Owned(_));
        // Of a line that goes on, an end that may be the beginning of a secret is held back.
        let text = if decoded.len() < line.len() || self.cut_line {
            Cow::Owned(redactor.clean_cut(&text))
        } else {
            redactor.clean(&text)
        };
        let start = text.char_indices().nth(MOST_IN_LINE);
        let start = start.map_or(&*text, |(at, _)| text.get(..at).unwrap_or(&text));
        let mut shown = format!("{number}\t");
        for c in start.chars() {
            let hidden = c == '\u{feff}' || (c.is_control() && c != '\t');
            self.returns |= c == '\r';
            self.controls |= hidden && c != '\r';
            shown.push(if hidden {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            });
        }
        if start.len() == text.len() && decoded.len() == line.len() && !self.cut_line {
            return shown;
        }
        let at = bytes_of(decoded, MOST_IN_LINE);
        let more = grouped(count(line.len() - at));
        let least = if self.cut_line { "more than " } else { "" };
        write!(shown, "[… {least}{more} more bytes in this line").ok();
        if let Some(path) = self.path.and_then(shell_word) {
            let skipped = if number == 1 { self.skipped } else { 0 };
            let (from, to) = (at + skipped, line.len().min(at + MOST_IN_LINE) + skipped);
            write!(
                shown,
                "; see them with bash: tail -n +{number} {path} | head -c {to} | tail -c +{}",
                from + 1
            )
            .ok();
        }
        shown.push(']');
        shown
    }
}

/// The first `chars` characters of `line` in bytes, what is no UTF-8 counted as it is shown.
fn bytes_of(line: &[u8], chars: usize) -> usize {
    let mut left = chars;
    let mut at = 0;
    for chunk in line.utf8_chunks() {
        if let Some((end, _)) = chunk.valid().char_indices().nth(left) {
            return at + end;
        }
        left -= chunk.valid().chars().count();
        at += chunk.valid().len();
        if left == 0 {
            return at;
        }
        left -= usize::from(!chunk.invalid().is_empty());
        at += chunk.invalid().len();
    }
    at
}

/// `bytes`, cut somewhere, without the character that the cut went through.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => {
            bytes.get(..error.valid_up_to()).unwrap_or(bytes)
        }
        Ok(_) | Err(_) => bytes,
    }
}

/// `path` as a word for a command that a model is told to run; `None` for one that can't be shown as it is.
pub(super) fn shell_word(path: &str) -> Option<Cow<'_, str>> {
    if one_line(path) != path {
        return None;
    }
    shlex::try_quote(path).ok()
}
