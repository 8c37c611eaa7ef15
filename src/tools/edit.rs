//! `file_edit`: replaces an exact piece of a file.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::LazyLock;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::ToolSpec;
use crate::show::{first_chars, one_line};

use super::place::Place;
use super::read::{FETCHED, is_binary};
use super::replace::{LineIndex, Replaced, replace};
use super::schema::typed;
use super::types::{Failure, Tool, ToolAnswer, ToolContext};

const AROUND: usize = 3;
const MOST_SHOWN_LINES: usize = 40;
const MOST_DIFF: usize = 8_000;
const MOST_LINE: usize = 300;

/// The tool.
#[derive(Debug)]
pub(super) struct FileEdit;

pub(super) static SPEC: LazyLock<ToolSpec> = LazyLock::new(|| {
    ToolSpec {
        name: "file_edit",
        description: "Replaces an exact piece of text in a file. old_string must match character for \
            character, blanks and tabs included, without file_read's line numbers, and must stand in the file \
            exactly once unless replace_all is true: add neighbouring lines to make it unique. An empty \
            new_string deletes. Everything else in the file stays as it is, also encoding and line ends. The \
            answer shows the changed lines, so no read is needed to check. If old_string isn't found, it shows \
            the most similar lines and what differs. Use file_write for new files."
            .to_owned(),
        input_schema: json!({
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "old_string": {"type": "string", "description": "The text to replace"},
                "new_string": {"type": "string", "description": "The text in its place"},
                "replace_all": {"type": "boolean", "description": "Replace every occurrence"}
            },
            "required": ["path", "old_string", "new_string"],
            "additionalProperties": false
        }),
}
});

#[derive(Debug, Deserialize)]
struct EditArgs {
    path: String,
    old_string: String,
    new_string: String,
    #[serde(default)]
    replace_all: bool,
}

#[async_trait]
impl Tool for FileEdit {
    async fn call(
        &self,
        args: Map<String, Value>,
        context: &ToolContext,
    ) -> Result<ToolAnswer, Failure> {
        edit(typed(args)?, context).await
    }
}

async fn edit(args: EditArgs, context: &ToolContext) -> Result<ToolAnswer, Failure> {
    let given = args.path.as_str();
    let name = one_line(given);
    let complain = |why: &str| {
        let why = format!("{name}: {why}");
        Failure::Complaint(context.redactor.clean(&why).into_owned())
    };
    let place = Place::look(given, false, context).await?;
    if let Some(complaint) = place.not_a_file(given, context) {
        return Err(complaint);
    }
    if place.size > FETCHED {
        return Err(complain(
            "larger than 8 MiB; edit it with bash (sed, python3)",
        ));
    }
    let file = super::fetch(&place, FETCHED, context).await?;
    if file.starts_with(b"\xff\xfe") || file.starts_with(b"\xfe\xff") {
        return Err(complain(
            "a UTF-16 file; convert it with bash (iconv, python3) to edit it",
        ));
    }
    if is_binary(&file) {
        return Err(complain("a binary file; change it with bash (python3)"));
    }
    let replaced = replace(&file, &args.old_string, &args.new_string, args.replace_all)
        .map_err(|why| complain(&why))?;
    super::store(
        &place.path,
        given,
        Bytes::from(replaced.bytes.clone()),
        context,
    )
    .await?;

    let count = replaced.places.len();
    let mut text = format!(
        "edited {name}{}: {count} replacement{}",
        place.arrow(),
        if count == 1 { "" } else { "s" }
    );
    if let Some(note) = replaced.note {
        write!(text, " ({note})").ok();
    }
    let hunks = hunks(&file, &replaced);
    text.push_str(&shown(&hunks, &replaced.bytes));
    Ok(ToolAnswer {
        diff: Some(
            context
                .redactor
                .clean(&diff(&hunks, &file, &replaced.bytes))
                .into_owned(),
        ),
        ..ToolAnswer::text(context.redactor.clean(&text).into_owned())
    })
}

/// Lines that changed, in the old file and the new one, from 0, the end not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hunk {
    old: Range<usize>,
    new: Range<usize>,
}

/// One per replacement; those that touch or share context are joined.
fn hunks(file: &[u8], replaced: &Replaced) -> Vec<Hunk> {
    let (old_lines, new_lines) = (LineIndex::new(file), LineIndex::new(&replaced.bytes));
    let mut hunks: Vec<Hunk> = Vec::new();
    let mut old_at = 0;
    let mut new_from = 0;
    for place in &replaced.places {
        old_at += place.start - new_from;
        new_from = place.end;
        let old_end = old_at + replaced.old.len();
        let hunk = Hunk {
            old: old_lines.line_of(old_at)..old_lines.line_of(old_end.max(old_at + 1) - 1) + 1,
            new: new_lines.line_of(place.start)
                ..new_lines.line_of(place.end.max(place.start + 1) - 1) + 1,
        };
        old_at = old_end;
        match hunks.last_mut() {
            Some(last) if hunk.new.start <= last.new.end + 2 * AROUND => {
                last.old.end = last.old.end.max(hunk.old.end);
                last.new.end = last.new.end.max(hunk.new.end);
            }
            _ => hunks.push(hunk),
        }
    }
    hunks
}

fn line(text: &str) -> &str {
    first_chars(text, MOST_LINE)
}

/// The new lines with their neighbours, numbered.
fn shown(hunks: &[Hunk], bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    let mut left = MOST_SHOWN_LINES;
    for (at, hunk) in hunks.iter().enumerate() {
        if at > 0 {
            out.push_str("\n…");
        }
        let from = hunk.new.start.saturating_sub(AROUND);
        let to = (hunk.new.end + AROUND).min(lines.len());
        for (number, text) in lines.iter().enumerate().take(to).skip(from) {
            if left == 0 {
                out.push_str("\n[more lines changed; see them with file_read]");
                return out;
            }
            left -= 1;
            write!(out, "\n{}\t{}", number + 1, line(text)).ok();
        }
    }
    out
}

/// A unified diff, cut at a line end when it gets long.
fn diff(hunks: &[Hunk], old: &[u8], new: &[u8]) -> String {
    let (old, new) = (String::from_utf8_lossy(old), String::from_utf8_lossy(new));
    let old: Vec<&str> = old.lines().collect();
    let new: Vec<&str> = new.lines().collect();
    let part = |lines: &[&str], range: Range<usize>, sign: char, out: &mut String| {
        for text in lines.iter().take(range.end).skip(range.start) {
            write!(out, "\n{sign}{}", line(text)).ok();
        }
    };
    let mut out = String::new();
    for hunk in hunks {
        let before = hunk.old.start.min(AROUND);
        let after = (hunk.old.end + AROUND).min(old.len()).max(hunk.old.end);
        write!(
            out,
            "{}@@ -{},{} +{},{} @@",
            if out.is_empty() { "" } else { "\n" },
            hunk.old.start + 1 - before,
            after + before - hunk.old.start,
            hunk.new.start + 1 - before,
            hunk.new.len() + before + after - hunk.old.end
        )
        .ok();
        part(&old, hunk.old.start - before..hunk.old.start, ' ', &mut out);
        part(&old, hunk.old.clone(), '-', &mut out);
        part(&new, hunk.new.clone(), '+', &mut out);
        part(&old, hunk.old.end..after, ' ', &mut out);
        if out.len() > MOST_DIFF {
            let cut = first_chars(&out, MOST_DIFF).len();
            out.truncate(cut);
            out.push_str("\n[diff cut]");
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_shows_what_changed_with_its_neighbours() {
        let old = b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\nend\n";
        let replaced = replace(old, "5\n", "five\nfive and a half\n", false).unwrap();
        let hunks = hunks(old, &replaced);
        assert_eq!(
            diff(&hunks, old, &replaced.bytes),
            "@@ -2,7 +2,8 @@\n 2\n 3\n 4\n-5\n+five\n+five and a half\n 6\n 7\n 8"
        );
        assert_eq!(
            shown(&hunks, &replaced.bytes),
            "\n2\t2\n3\t3\n4\t4\n5\tfive\n6\tfive and a half\n7\t6\n8\t7\n9\t8"
        );
    }

    #[test]
    fn far_replacements_are_separate_hunks_and_near_ones_join() {
        let old = (1..=40)
            .map(|n| format!("{n} x\n"))
            .collect::<Vec<_>>()
            .concat();
        let near = replace(b"x\nx\n", "x", "y", true).unwrap();
        assert_eq!(hunks(b"x\nx\n", &near).len(), 1);
        let far = old.replace("3 x", "hit").replace("30 x", "hit");
        let replaced = replace(far.as_bytes(), "hit", "HIT", true).unwrap();
        assert!(hunks(far.as_bytes(), &replaced).len() >= 2);
    }
}
