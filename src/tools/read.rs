//! `file_read`: numbered lines of a text, an image, or a directory's entries.

use std::sync::LazyLock;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::{Base64, Image, ImageType, ToolSpec};
use crate::show::{one_line, size};

use super::image;
use super::page::shown;
use super::piece::{Content, Piece, Window, count, slice};
use super::place::{Kind, Place};
use super::schema::typed;
use super::types::{Failure, Tool, ToolAnswer, ToolContext, fingerprint, off_the_runtime};

/// A larger file is not edited.
pub(super) const FETCHED: u64 = 8 * 1024 * 1024;
/// A larger file is not fetched whole: its lines are cut out in the sandbox.
const WHOLE: u64 = 256 * 1024;
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

async fn read(given: &str, window: Window, context: &ToolContext) -> Result<ToolAnswer, Failure> {
    let place = Place::look(given, false, context).await?;
    if place.kind == Kind::Directory {
        return Ok(ToolAnswer::text(place.listing(given, context).await?));
    }
    if let Some(complaint) = place.not_a_file(given, context) {
        return Err(complaint);
    }
    let name = format!("{}{}", one_line(given), place.arrow());
    let (file, piece) = if place.size <= WHOLE {
        // Files of the kernel's say that they are empty, so the limit is not the size.
        let file = super::fetch(&place, FETCHED, context).await?;
        let bytes = file.clone();
        let piece = off_the_runtime(move || Piece::whole(&bytes, window)).await?;
        (Some(file), piece)
    } else {
        (None, slice(&name, &place, window, context).await?)
    };
    let bytes = file.as_ref().map_or(0, |file| count(file.len()));
    let bytes = bytes.max(place.size);
    let told = |what: &str, advice: &str| {
        let size = size(bytes);
        ToolAnswer::text(format!("{name}: {what}, {size}. {advice}"))
    };
    match piece.content {
        Content::Image(kind) if bytes > image::MOST_BYTES => {
            let (size, what) = (size(bytes), kind);
            Err(Failure::Complaint(format!(
                "{name} is {size} of {what}; at most 3.7 MB can be shown. {SHRINK}"
            )))
        }
        Content::Image(kind) => {
            let _one_at_a_time = context.session.pictures.lock().await;
            let file = match file {
                Some(file) => file,
                None => super::fetch(&place, image::MOST_BYTES, context).await?,
            };
            picture(&name, kind, file).await
        }
        Content::Binary(None) => Ok(told(
            "a binary file",
            &format!("Look at it with bash: {}", advice("")),
        )),
        Content::Binary(Some(what)) => Ok(told(
            &format!("a binary file ({what} by its first bytes)"),
            &format!("Look at it with bash: {}", advice(what)),
        )),
        Content::Utf16(_) if file.is_none() => Ok(told("UTF-16 text", CONVERT)),
        Content::Utf32 => Ok(told("UTF-32 text", CONVERT)),
        Content::Utf16(_) | Content::Text => {
            let redactor = context.redactor.clone();
            let page = move || shown(&name, &place, &piece, window, &redactor);
            off_the_runtime(page).await?
        }
    }
}

fn advice(mime: &str) -> &'static str {
    match mime {
        "application/pdf" => "pdftotext, or python3",
        "application/vnd.sqlite3" => "sqlite3, or python3",
        "application/gzip"
        | "application/x-bzip2"
        | "application/x-xz"
        | "application/zstd"
        | "application/x-tar" => "tar -tf, or the program for it",
        mime if mime.contains("zip")
            || mime.contains("opendocument")
            || mime.contains("openxml") =>
        {
            "unzip -l, or python3"
        }
        _ => "file, strings, od -c, or python3",
    }
}

const CONVERT: &str = "Make a copy in UTF-8 with bash (iconv, python3) and read that";

const SHRINK: &str = "Shrink a copy with bash, as in: python3 -c \
    \"from PIL import Image; i=Image.open('in'); i.thumbnail((1600,1600)); i.save('out.png')\"";

async fn picture(name: &str, kind: ImageType, file: Bytes) -> Result<ToolAnswer, Failure> {
    let size = size(count(file.len()));
    // Megabytes: not on a thread of the runtime, and not held twice.
    let work = move || {
        image::check(kind, &file).map(|sides| (sides, fingerprint(&file), Base64::of(file)))
    };
    let checked = off_the_runtime(work).await?;
    let complain = |why: &str| Err(Failure::Complaint(format!("{name} {why}")));
    let ((width, height), outcome, base64) = match checked {
        Ok(whole) => whole,
        Err(damage) => {
            return complain(&format!(
                "begins like {kind} but {damage}: it is damaged and can't be shown"
            ));
        }
    };
    if width.max(height) > image::MOST_PIXELS || width.min(height) == 0 {
        return complain(&format!(
            "is {width}×{height}; from 1 to {} px a side can be shown. {SHRINK}",
            image::MOST_PIXELS
        ));
    }
    Ok(ToolAnswer {
        images: vec![Image {
            media_type: kind,
            base64,
        }],
        outcome: Some(outcome),
        ..ToolAnswer::text(format!("{name}, {width}×{height}, {size}"))
    })
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
