//! A piece of a file: what it holds, and the lines that were asked for, fetched or cut out in the sandbox.

use std::time::Duration;

use crate::chat::ImageType;
use crate::show::prose;

use super::image;
pub(super) use super::listing::count;
use super::place::Place;
use super::script::Script;
use super::types::{Failure, ToolContext};

/// What tells the kind of a file.
pub(super) const BEGINNING: usize = 8 * 1024;
/// Bytes of lines that are cut out.
pub(super) const SLICE_BYTES: usize = 1024 * 1024;
/// The lines of a larger file are counted only where nothing works without.
const COUNTED: u64 = 64 * 1024 * 1024;
const SLICE_LIMIT: Duration = Duration::from_secs(20);
pub(super) const MOST_LINES: u64 = 2_000;
/// The beginning of `$1`, then its lines from `$2` on, or the last ones if that is negative, up to one
/// byte more than [`SLICE_BYTES`]; then, each after a NUL, how long the beginning was, which line came first,
/// and how many lines there are, if that is asked for by `$3` or needed. No lines of a file whose beginning is
/// binary.
///
/// Nothing here holds a line in memory, however long it is.
const SLICE: &str = r#"
head -c 8192 "$1" || exit
b=$(head -c 8192 "$1" | wc -c)
from=$2; n=
if [ "$(head -c 8192 "$1" | tr -dc '\000' | wc -c)" -eq 0 ]; then
if [ "$3" = 1 ] || [ "$from" -lt 0 ]; then n=$(($(wc -l <"$1") + 1 - $(tail -c 1 "$1" | wc -l))); fi
if [ "$from" -lt 0 ]; then from=$((n + from + 1)); [ "$from" -ge 1 ] || from=1; fi
tail -n "+$from" "$1" | head -c 1048577
fi
printf '\000%d\000%d\000%s' "$b" "$from" "$n"
"#;

/// The lines asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// From this line, from 1, this many.
    From(u64, u64),
    /// From this line before the end, this many.
    Last(u64, u64),
}

impl Window {
    pub(super) fn new(offset: Option<i64>, limit: Option<i64>) -> Self {
        let limit = limit.map_or(MOST_LINES, |limit| {
            limit.unsigned_abs().clamp(1, MOST_LINES)
        });
        match offset.unwrap_or(1) {
            offset if offset < 0 => Self::Last(offset.unsigned_abs(), limit),
            offset => Self::From(offset.unsigned_abs().max(1), limit),
        }
    }
}

/// What a file holds, by its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Image(ImageType),
    Text,
    /// And its byte order.
    Utf16(&'static str),
    Utf32,
    /// And its MIME type, if that can be told.
    Binary(Option<&'static str>),
}

impl Content {
    pub(super) fn of(beginning: &[u8]) -> Self {
        if let Some(kind) = image::kind(beginning) {
            return Self::Image(kind);
        }
        match beginning {
            // As UTF-16 the first character would be NUL.
            [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Self::Utf32,
            [0xff, 0xfe, ..] => Self::Utf16("little"),
            [0xfe, 0xff, ..] => Self::Utf16("big"),
            _ if is_utf16(beginning, u16::from_le_bytes) => Self::Utf16("little"),
            _ if is_utf16(beginning, u16::from_be_bytes) => Self::Utf16("big"),
            _ if is_binary(beginning) => {
                Self::Binary(infer::get(beginning).map(|kind| kind.mime_type()))
            }
            _ => Self::Text,
        }
    }
}

/// Without a mark: text in this order, with NUL in at least half of its units.
fn is_utf16(beginning: &[u8], unit: fn([u8; 2]) -> u16) -> bool {
    let (pairs, []) = beginning.as_chunks() else {
        return false;
    };
    let units = || pairs.iter().map(|pair| unit(*pair));
    let whole = pairs.len() < BEGINNING / 2;
    let mut chars = char::decode_utf16(units()).peekable();
    let mut text = true;
    while let Some(c) = chars.next() {
        text &= match c {
            Ok(c) => !c.is_control() || "\t\n\r\u{c}\u{1b}".contains(c),
            // The last one may be cut.
            Err(_) => !whole && chars.peek().is_none(),
        };
    }
    let narrow = units().filter(|unit| *unit < 0x100).count();
    text && pairs.len() > 1 && narrow * 2 >= pairs.len()
}

/// NUL in the first 8 KiB.
pub(super) fn is_binary(bytes: &[u8]) -> bool {
    bytes.iter().take(BEGINNING).any(|b| *b == 0)
}

/// Lines of a file, and what is known of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) content: Content,
    /// The file begins with a byte-order mark.
    pub(super) marked: bool,
    /// Lines from line `from` on, in UTF-8 for the most part; without the mark.
    pub(super) bytes: Vec<u8>,
    pub(super) from: u64,
    /// Lines of the file; `None` if they were not counted.
    pub(super) total: Option<u64>,
    /// The file goes on after `bytes`.
    pub(super) cut: bool,
}

pub(super) const MARK: &[u8] = b"\xef\xbb\xbf";

impl Piece {
    /// Of a file that was fetched whole.
    pub(super) fn whole(file: &[u8], window: Window) -> Self {
        let content = Content::of(file.get(..BEGINNING).unwrap_or(file));
        let wide = file.starts_with(b"\xff\xfe") || file.starts_with(b"\xfe\xff");
        let marked = file.starts_with(MARK) || matches!(content, Content::Utf16(_)) && wide;
        let mut decoded = match content {
            Content::Utf16("little") => utf16(file, u16::from_le_bytes),
            Content::Utf16(_) => utf16(file, u16::from_be_bytes),
            Content::Image(_) | Content::Binary(_) | Content::Utf32 => Vec::new(),
            Content::Text => file.strip_prefix(MARK).unwrap_or(file).to_vec(),
        };
        let unended = decoded.last().is_some_and(|b| *b != b'\n');
        let total = count(memchr::memchr_iter(b'\n', &decoded).count() + usize::from(unended));
        let from = match window {
            Window::From(from, _) => from,
            Window::Last(count, _) => total.saturating_sub(count) + 1,
        };
        let skipped = usize::try_from(from - 1).unwrap_or(usize::MAX);
        let start = match skipped.checked_sub(1) {
            None => 0,
            Some(ends) => memchr::memchr_iter(b'\n', &decoded)
                .nth(ends)
                .map_or(decoded.len(), |at| at + 1),
        };
        Self {
            content,
            marked,
            bytes: decoded.split_off(start),
            from,
            total: Some(total),
            cut: false,
        }
    }

    /// From what [`SLICE`] printed.
    pub(super) fn parse(printed: &[u8]) -> Option<Self> {
        let mut fields = printed.rsplitn(4, |b| *b == 0);
        let mut number = || -> Option<Option<u64>> {
            let text = std::str::from_utf8(fields.next()?).ok()?;
            // Up to what an offset can be, so that a page's lines can be counted on from there.
            let number = text.trim().parse::<i64>().ok();
            Some(number.and_then(|number| u64::try_from(number).ok()))
        };
        let (total, from, beginning) = (number()?, number()??, number()??);
        let printed = fields.next()?;
        let (beginning, bytes) = printed.split_at_checked(usize::try_from(beginning).ok()?)?;
        let marked = beginning.starts_with(MARK);
        let (bytes, cut) = match bytes.get(..SLICE_BYTES) {
            Some(start) => (start, start.len() < bytes.len()),
            None => (bytes, false),
        };
        let mark = bytes.strip_prefix(MARK).filter(|_| from == 1);
        Some(Self {
            content: Content::of(beginning),
            marked,
            bytes: mark.unwrap_or(bytes).to_vec(),
            from,
            total,
            cut,
        })
    }
}

/// Lines that are cut out in the sandbox.
pub(super) async fn slice(
    name: &str,
    place: &Place,
    window: Window,
    context: &ToolContext,
) -> Result<Piece, Failure> {
    let from = match window {
        Window::From(from, _) => from.to_string(),
        Window::Last(count, _) => format!("-{count}"),
    };
    let counted = if place.size <= COUNTED { "1" } else { "0" };
    let script = Script {
        text: SLICE,
        args: vec![&place.path, &from, counted],
        keep: BEGINNING + SLICE_BYTES + 1024,
        ..Script::default()
    };
    let ended = script.run_for(context, SLICE_LIMIT).await?;
    Piece::parse(&ended.stdout).ok_or_else(|| {
        let said = String::from_utf8_lossy(&ended.stderr);
        let why = prose(&context.redactor.clean(&said), 300);
        Failure::Complaint(format!("{name} could not be read: {why}"))
    })
}

fn utf16(file: &[u8], unit: fn([u8; 2]) -> u16) -> Vec<u8> {
    let (pairs, _) = file.as_chunks();
    let units = pairs.iter().map(|pair| unit(*pair));
    let mark = u16::from_be_bytes([0xfe, 0xff]);
    let marked = units.clone().next() == Some(mark);
    char::decode_utf16(units.skip(usize::from(marked)))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect::<String>()
        .into_bytes()
}
