//! `file_read`: numbered lines of a text, an image, or a directory's entries.

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::{Image, ToolSpec};
use crate::show::{grouped, one_line, size};

use super::image;
use super::place::{Kind, Place};
use super::schema::typed;
use super::script::Script;
use super::types::{Failure, Tool, ToolAnswer, ToolContext};

/// A larger file is not fetched whole.
pub(super) const FETCHED: u64 = 8 * 1024 * 1024;
const MOST_LINES: u64 = 2_000;
const MOST_CHARS: usize = 50_000;
const MOST_IN_LINE: usize = 2_000;

/// Lines `$2` to `$3` of `$1`; `$2` negative: that many of the end.
const SLICE: &str = r#"
if [ "$2" -lt 0 ]; then tail -n "${2#-}" "$1"; exit; fi
if [ "$2" -eq 1 ]; then head -c 1048576 "$1" | sed -n "1,${3}p;${3}q"; exit; fi
sed -n "${2},${3}p;${3}q" "$1" | head -c 1048576
"#;
const BEGINNING: &str = r#"head -c 8192 "$1""#;

/// The tool.
#[derive(Debug)]
pub(super) struct FileRead;

pub(super) static SPEC: LazyLock<ToolSpec> = LazyLock::new(|| {
    ToolSpec {
        name: "file_read",
        description: "Reads a file. Text comes as numbered lines, `12<TAB>text`; number and tab are not part \
            of the file, so leave them out of file_edit. Up to 2,000 lines or 50,000 characters at once, a \
            line up to 2,000 characters; the answer names the next offset. A negative offset counts from the \
            end (-50: the last 50 lines). A directory gives its entries. PNG, JPEG, GIF and WebP come as \
            images, up to 3.7 MB and 8000 px a side. Other binary files are named, not shown. Relative paths \
            start in bash's working directory. To find something in large files, use grep first."
            .to_owned(),
        input_schema: json!({
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "offset": {"type": "integer", "description": "First line, from 1"},
                "limit": {"type": "integer", "description": "Lines, at most 2000"}
            },
            "required": ["path"],
            "additionalProperties": false
        }),
}
});

#[derive(Debug, Deserialize)]
struct ReadArgs {
    path: String,
    #[serde(default)]
    offset: Option<i64>,
    #[serde(default)]
    limit: Option<i64>,
}

#[async_trait]
impl Tool for FileRead {
    async fn call(
        &self,
        args: Map<String, Value>,
        context: &ToolContext,
    ) -> Result<ToolAnswer, Failure> {
        let args: ReadArgs = typed(args)?;
        let window = Window::new(args.offset, args.limit);
        read(&args.path, window, context).await
    }
}

/// The lines asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// From this line, from 1, this many.
    From(u64, u64),
    /// The last lines.
    Last(u64),
}

impl Window {
    fn new(offset: Option<i64>, limit: Option<i64>) -> Self {
        let limit = limit.map_or(MOST_LINES, |limit| {
            limit.unsigned_abs().clamp(1, MOST_LINES)
        });
        match offset.unwrap_or(1) {
            offset if offset < 0 => Self::Last(offset.unsigned_abs()),
            offset => Self::From(offset.unsigned_abs().max(1), limit),
        }
    }
}

async fn read(given: &str, window: Window, context: &ToolContext) -> Result<ToolAnswer, Failure> {
    let place = Place::look(given, false, context).await?;
    if place.kind == Kind::Directory {
        return Ok(answer(context, &place.listing()));
    }
    if let Some(complaint) = place.not_a_file(given, context) {
        return Err(complaint);
    }
    if place.size > FETCHED {
        return large(given, &place, window, context).await;
    }
    let bytes = super::fetch(&place, FETCHED, context).await?;
    let name = format!("{}{}", one_line(given), place.arrow());
    if let Some(kind) = image::kind(&bytes) {
        return picture(&name, kind, &bytes);
    }
    if bytes.is_empty() {
        return Ok(answer(context, "(empty file)"));
    }
    let text = match decode(&bytes) {
        Ok(text) => text,
        Err(kind) => {
            return Ok(answer(
                context,
                &format!(
                    "{name}: {kind}, {}. Look at it with bash: {}",
                    size(place.size),
                    advice(kind)
                ),
            ));
        }
    };
    let mut shown = lines(&text.text, window, given)?;
    if let Some(target) = &place.target {
        write!(shown, "\n[a link to {}]", one_line(target)).ok();
    }
    for note in text.notes {
        write!(shown, "\n[{note}]").ok();
    }
    Ok(answer(context, &shown))
}

fn answer(context: &ToolContext, text: &str) -> ToolAnswer {
    ToolAnswer::text(context.redactor.clean(text).into_owned())
}

/// A file that isn't fetched: its lines are cut out inside, for at most 20 s.
async fn large(
    given: &str,
    place: &Place,
    window: Window,
    context: &ToolContext,
) -> Result<ToolAnswer, Failure> {
    let name = format!("{}{}", one_line(given), place.arrow());
    let limit = Duration::from_secs(20);
    let beginning = Script {
        text: BEGINNING,
        args: vec![&place.path],
        keep: 8192,
        ..Script::default()
    }
    .run_for(context, limit)
    .await?;
    if let Some(kind) = image::kind(&beginning.stdout) {
        return picture_too_large(&name, kind, place.size);
    }
    if let Err(kind) = decode(&beginning.stdout) {
        return Ok(answer(
            context,
            &format!(
                "{name}: {kind}, {}. Look at it with bash: {}",
                size(place.size),
                advice(kind)
            ),
        ));
    }
    let (from, to, first) = match window {
        Window::From(from, count) => (from.to_string(), from + count - 1, from),
        Window::Last(count) => (format!("-{}", count.min(MOST_LINES)), 0, 1),
    };
    let to = to.to_string();
    let slice = Script {
        text: SLICE,
        args: vec![&place.path, &from, &to],
        keep: 1024 * 1024,
        ..Script::default()
    }
    .run_for(context, limit)
    .await?;
    let text = String::from_utf8_lossy(&slice.stdout);
    let mut page = Page::default();
    page.fill(text.lines(), first, given);
    if page.count == 0 {
        return Err(Failure::Complaint(format!(
            "{name} has no line {first}, or the 20 s for it were too short"
        )));
    }
    let shown = match window {
        Window::Last(count) => format!(
            "{}\n[of the last {count} lines; they are numbered from the first one shown]",
            page.text
        ),
        Window::From(..) => format!(
            "{}\n[lines {first}–{} of a file of {}; go on with offset={}]",
            page.text,
            first + page.count - 1,
            size(place.size),
            first + page.count
        ),
    };
    Ok(answer(context, &shown))
}

/// The lines of `window`, numbered, and where to go on.
fn lines(text: &str, window: Window, given: &str) -> Result<String, Failure> {
    let all: Vec<&str> = text.lines().collect();
    let total = u64::try_from(all.len()).unwrap_or(u64::MAX);
    let (from, count) = match window {
        Window::From(from, count) => (from, count),
        Window::Last(count) => (total.saturating_sub(count) + 1, count.min(MOST_LINES)),
    };
    if from > total {
        return Err(Failure::Complaint(format!(
            "offset {from} is past the end: {} has {} lines",
            one_line(given),
            grouped(total)
        )));
    }
    let skip = usize::try_from(from - 1).unwrap_or(usize::MAX);
    let take = usize::try_from(count).unwrap_or(usize::MAX);
    let mut page = Page::default();
    page.fill(all.iter().skip(skip).take(take).copied(), from, given);
    let last = from + page.count - 1;
    Ok(if last < total {
        format!(
            "{}\n[lines {}–{} of {}; go on with offset={}]",
            page.text,
            grouped(from),
            grouped(last),
            grouped(total),
            last + 1
        )
    } else {
        page.text
    })
}

/// Numbered lines, up to the limit of characters, at least one.
#[derive(Debug, Default)]
struct Page {
    text: String,
    chars: usize,
    count: u64,
}

impl Page {
    fn fill<'t>(&mut self, lines: impl Iterator<Item = &'t str>, from: u64, given: &str) {
        for (line, number) in lines.zip(from..) {
            let mut shown = format!("{number}\t");
            match line.char_indices().nth(MOST_IN_LINE) {
                None => shown.push_str(line),
                Some((at, _)) => {
                    let (start, rest) = line.split_at(at);
                    write!(
                        shown,
                        "{start}[… {} more characters in this line; see them with bash: sed -n {number}p {} | cut -b {}-{}]",
                        grouped(u64::try_from(rest.chars().count()).unwrap_or(u64::MAX)),
                        one_line(given),
                        at + 1,
                        at + MOST_IN_LINE
                    ).ok();
                }
            }
            let chars = shown.chars().count() + 1;
            if self.count > 0 {
                if self.chars + chars > MOST_CHARS {
                    return;
                }
                self.text.push('\n');
            }
            self.text.push_str(&shown);
            self.chars += chars;
            self.count += 1;
        }
    }
}

/// A text as it is shown.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decoded {
    text: String,
    notes: Vec<&'static str>,
}

/// Text from bytes, or what kind of binary they are.
fn decode(bytes: &[u8]) -> Result<Decoded, &'static str> {
    let mut decoded = Decoded::default();
    let utf16 = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = rest.chunks_exact(2).map(|pair| {
            unit([
                pair.first().copied().unwrap_or(0),
                pair.get(1).copied().unwrap_or(0),
            ])
        });
        char::decode_utf16(units)
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect::<String>()
    };
    let raw = match bytes {
        [0xff, 0xfe, rest @ ..] => {
            decoded
                .notes
                .push("UTF-16 (little-endian) in the file; file_edit can't change it");
            utf16(rest, u16::from_le_bytes)
        }
        [0xfe, 0xff, rest @ ..] => {
            decoded
                .notes
                .push("UTF-16 (big-endian) in the file; file_edit can't change it");
            utf16(rest, u16::from_be_bytes)
        }
        _ => {
            if is_binary(bytes) {
                return Err(binary_kind(bytes));
            }
            let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            if std::str::from_utf8(text).is_err() {
                decoded
                    .notes
                    .push("some bytes are not UTF-8; shown as U+FFFD");
            }
            String::from_utf8_lossy(text).into_owned()
        }
    };
    if raw.contains("\r\n") {
        decoded.notes.push("lines end in CRLF in the file");
    }
    let unix = raw.replace("\r\n", "\n");
    let control = |c: char| c.is_control() && c != '\n' && c != '\t';
    decoded.text = if unix.contains(control) {
        decoded.notes.push("control characters are shown as U+FFFD");
        unix.replace(control, "\u{fffd}")
    } else {
        unix
    };
    Ok(decoded)
}

/// NUL in the first 8 KiB.
pub(super) fn is_binary(bytes: &[u8]) -> bool {
    bytes.iter().take(8192).any(|b| *b == 0)
}

fn binary_kind(bytes: &[u8]) -> &'static str {
    for (magic, kind) in [
        (&b"%PDF-"[..], "a PDF"),
        (
            b"PK\x03\x04",
            "a ZIP archive (or an office document, jar, wheel)",
        ),
        (b"\x1f\x8b", "gzip data"),
        (b"BZh", "bzip2 data"),
        (b"\xfd7zXZ", "xz data"),
        (b"\x28\xb5\x2f\xfd", "zstd data"),
        (b"\x7fELF", "an ELF program or library"),
        (b"SQLite format 3", "an SQLite database"),
        (b"PAR1", "a Parquet file"),
    ] {
        if bytes.starts_with(magic) {
            return kind;
        }
    }
    "a binary file"
}

fn advice(kind: &str) -> &'static str {
    match kind {
        "a PDF" => "pdftotext, or python3",
        "an SQLite database" => "sqlite3, or python3",
        kind if kind.starts_with("a ZIP") => "unzip -l, or python3",
        kind if kind.ends_with("data") => "tar -tf, or the program for it",
        _ => "file, strings, od -c, or python3",
    }
}

fn picture(name: &str, kind: image::Kind, bytes: &[u8]) -> Result<ToolAnswer, Failure> {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if length > image::MOST_BYTES {
        return picture_too_large(name, kind, length);
    }
    let Some((width, height)) = image::dimensions(kind, bytes) else {
        return Err(Failure::Complaint(format!(
            "{name} begins like {} but its header can't be read; it may be damaged",
            kind.media_type()
        )));
    };
    if width.max(height) > image::MOST_PIXELS || width.min(height) == 0 {
        return Err(Failure::Complaint(format!(
            "{name} is {width}×{height}; at most {} px a side can be shown. Shrink a copy with bash, as in: \
             python3 -c \"from PIL import Image; i=Image.open('in'); i.thumbnail((1600,1600)); i.save('out.png')\"",
            image::MOST_PIXELS
        )));
    }
    Ok(ToolAnswer {
        images: vec![Image {
            media_type: kind.media_type(),
            base64: STANDARD.encode(bytes).into(),
        }],
        ..ToolAnswer::text(format!("{name}, {width}×{height}, {}", size(length)))
    })
}

fn picture_too_large(name: &str, kind: image::Kind, length: u64) -> Result<ToolAnswer, Failure> {
    Err(Failure::Complaint(format!(
        "{name} is {} of {}; at most 3.7 MB can be shown. Shrink a copy with bash, as in: \
         python3 -c \"from PIL import Image; i=Image.open('in'); i.thumbnail((1600,1600)); i.save('out.jpg')\"",
        size(length),
        kind.media_type()
    )))
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
