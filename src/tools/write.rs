//! `file_write`: a file, whole.

use std::sync::LazyLock;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::ToolSpec;
use crate::show::{grouped, one_line, size};

use super::listing::count;
use super::piece::Content;
use super::place::{Kind, Place, Text};
use super::schema::typed;
use super::types::{Failure, Tool, ToolAnswer, ToolContext};

/// Longer texts are cut by output limits on their way here more often than not.
const MOST_CHARS: usize = 200_000;

/// The tool.
#[derive(Debug)]
pub(super) struct FileWrite;

pub(super) static SPEC: LazyLock<ToolSpec> = LazyLock::new(|| {
    ToolSpec {
        name: "file_write",
        description: "Writes a file whole: creates it and its parent directories, or replaces what is there, \
            keeping its mode. The content is written as given, in UTF-8; no newline is added. The answer says \
            whether the file was created or replaced and how many lines it has. Up to 200,000 characters; \
            write a script for larger or computed data. To change a part of an existing file use file_edit, \
            which is shorter and safer. Files for the user belong into the working directory. Relative paths \
            start in bash's working directory."
            .to_owned(),
        input_schema: json!({
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "content": {"type": "string"}
            },
            "required": ["path", "content"],
            "additionalProperties": false
        }),
}
});

#[derive(Debug, Deserialize)]
struct WriteArgs {
    path: String,
    content: String,
}

#[async_trait]
impl Tool for FileWrite {
    async fn call(
        &self,
        args: Map<String, Value>,
        context: &ToolContext,
    ) -> Result<ToolAnswer, Failure> {
        let args: WriteArgs = typed(args)?;
        write(&args.path, &args.content, context).await
    }
}

async fn write(given: &str, content: &str, context: &ToolContext) -> Result<ToolAnswer, Failure> {
    if given.ends_with('/') {
        return Err(Failure::Complaint(format!(
            "{}: a name with a slash at its end is a directory's; give the path of a file",
            one_line(given)
        )));
    }
    let chars = content.chars().count();
    if chars > MOST_CHARS {
        return Err(Failure::Complaint(format!(
            "the content has {} characters, at most {} can be written at once; write a script that makes \
             the file, or write it in parts",
            grouped(count(chars)),
            grouped(count(MOST_CHARS))
        )));
    }
    let place = match Place::look(given, true, context).await {
        Ok(place) => place,
        Err(Failure::Complaint(why))
            if context.session.probe(context.sandbox.as_ref()).await.known =>
        {
            return Err(Failure::Complaint(why));
        }
        // Without a shell the file can't be looked at, but it can be written.
        Err(Failure::Complaint(_)) => return blind(given, content, context).await,
        Err(outcome) => return Err(outcome),
    };
    let name = one_line(given);
    match place.kind {
        Kind::Directory => {
            return Err(Failure::Complaint(format!(
                "{name} is a directory; give the path of a file in it"
            )));
        }
        Kind::Other => {
            return Err(Failure::Complaint(format!(
                "{name}{} is no regular file (a pipe, socket or device): use bash",
                place.arrow()
            )));
        }
        // A dangling link has no other way to be written than through it, which creates its target.
        Kind::Dangling | Kind::File | Kind::Missing => {}
    }
    super::store(
        &place.path,
        given,
        Bytes::copy_from_slice(content.as_bytes()),
        context,
    )
    .await?;
    let arrow = place.arrow();
    let text = if place.kind == Kind::File {
        let (was, now) = match &place.text {
            Some(text) => (counted(text.lines), grouped(line_count(content))),
            None => (size(place.size), size(count(content.len()))),
        };
        let lost = place
            .text
            .map_or_else(String::new, |text| lost(&text, content));
        format!("replaced {name}{arrow} (was {was}, now {now}){lost}")
    } else {
        format!("created {name}{arrow} ({})", measured(content))
    };
    Ok(ToolAnswer::text(text))
}

async fn blind(given: &str, content: &str, context: &ToolContext) -> Result<ToolAnswer, Failure> {
    let cwd = context.session.cwd();
    let path = super::place::absolute(given, &cwd, &cwd)?;
    super::store(
        &path,
        given,
        Bytes::copy_from_slice(content.as_bytes()),
        context,
    )
    .await?;
    Ok(ToolAnswer::text(format!(
        "wrote {} ({})",
        one_line(given),
        measured(content)
    )))
}

/// What the old file had and the new one hasn't, and no model sees.
fn lost(was: &Text, content: &str) -> String {
    let mut lost = Vec::new();
    if was.begins.starts_with(b"\xef\xbb\xbf") && !content.starts_with('\u{feff}') {
        lost.push("the byte order mark (BOM)".to_owned());
    }
    let marked = matches!(was.begins.as_slice(), [0xff, 0xfe, ..] | [0xfe, 0xff, ..]);
    match Content::of(&was.begins) {
        Content::Utf32 => lost.push("UTF-32 with its byte order mark (BOM)".to_owned()),
        Content::Utf16(_) if marked => {
            lost.push("UTF-16 with its byte order mark (BOM)".to_owned());
        }
        Content::Utf16(_) => lost.push("UTF-16".to_owned()),
        Content::Image(_) | Content::Text | Content::Binary(_) => {}
    }
    let now = content.matches("\r\n").count();
    if was.crlf > 0 && now < content.matches('\n').count() {
        let some = match (was.crlf < was.lines, now > 0) {
            (true, _) => format!(
                " ({} of {} had them)",
                grouped(was.crlf),
                counted(was.lines)
            ),
            (false, true) => " (only some lines have them now)".to_owned(),
            (false, false) => String::new(),
        };
        lost.push(format!("CRLF line ends{some}"));
    }
    if lost.is_empty() {
        return String::new();
    }
    format!("; not kept: {}", lost.join(", "))
}

fn measured(content: &str) -> String {
    let bytes = size(count(content.len()));
    format!("{}, {bytes}", counted(line_count(content)))
}

fn counted(lines: u64) -> String {
    format!(
        "{} line{}",
        grouped(lines),
        if lines == 1 { "" } else { "s" }
    )
}

fn line_count(content: &str) -> u64 {
    count(content.lines().count())
}
