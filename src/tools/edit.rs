//! `file_edit`: replaces an exact piece of a file.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::LazyLock;

use async_trait::async_trait;
use bytes::Bytes;
use memchr::memchr_iter;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use similar::{ChangeTag, TextDiff};

use crate::chat::ToolSpec;
use crate::secrets::Redactor;
use crate::show::{first_chars, one_line};

use super::nearest::{line_start, not_found, shown_line};
use super::place::{Kind, Place};
use super::read::{FETCHED, is_binary};
use super::replace::{Asked, Refusal, Replaced, replace};
use super::schema::typed;
use super::types::{Failure, Tool, ToolAnswer, ToolContext};

const AROUND: usize = 3;
const MOST_SHOWN_LINES: usize = 40;
const MOST_DIFF: usize = 8_000;
/// Lines of one stretch that are compared: more than are shown.
const MOST_COMPARED: usize = 1_000;

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
    let name = one_line(&args.path);
    let complain = |why: &str| Failure::Complaint(format!("{name}: {why}"));
    let place = Place::look(&args.path, false, context).await?;
    if place.kind == Kind::Missing && args.old_string.is_empty() {
        return Err(complain(
            "no such file, and old_string is empty; use file_write to create it",
        ));
    }
    if let Some(complaint) = place.not_a_file(&args.path, context) {
        return Err(complaint);
    }
    if place.size > FETCHED {
        return Err(complain(
            "larger than 8 MiB; edit it with bash (sed, python3)",
        ));
    }
    let file = super::fetch(&place, FETCHED, context).await?;
    let arrow = place.arrow();
    let path = args.path.clone();
    let redactor = context.redactor.clone();
    // Up to 8 MiB are searched and compared: too long for a thread of the runtime.
    let done = tokio::task::spawn_blocking(move || {
        change(&file, &args, &redactor).map(|(replaced, shown)| {
            let title = title(&replaced);
            (replaced.bytes, title, shown)
        })
    });
    let (bytes, title, shown) = match done.await {
        Ok(done) => done.map_err(|why| complain(&why))?,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => return Err(Failure::Cancelled),
        },
    };
    super::store(&place.path, &path, Bytes::from(bytes), context).await?;
    Ok(ToolAnswer {
        diff: Some(shown.diff),
        ..ToolAnswer::text(format!("edited {name}{arrow}: {title}{}", shown.lines))
    })
}

/// The file as it is to be and what is shown of that, or a complaint.
fn change(file: &[u8], args: &EditArgs, redactor: &Redactor) -> Result<(Replaced, Shown), String> {
    if file.starts_with(b"\xff\xfe") || file.starts_with(b"\xfe\xff") {
        return Err(
            "begins with the byte order mark of UTF-16; convert it with bash (iconv, python3) to edit it"
                .to_owned(),
        );
    }
    if is_binary(file) {
        return Err("a binary file; change it with bash (python3)".to_owned());
    }
    let asked = Asked {
        old: &args.old_string,
        new: &args.new_string,
        all: args.replace_all,
        most: usize::try_from(FETCHED).unwrap_or(usize::MAX),
    };
    let replaced = replace(file, asked).map_err(|refusal| match refusal {
        Refusal::Because(why) => why,
        Refusal::NotFound => not_found(file, asked.old, asked.new, redactor),
    })?;
    let shown = Shown::of(file, &replaced, redactor);
    Ok((replaced, shown))
}

fn title(replaced: &Replaced) -> String {
    let mut title = match replaced.count {
        1 => "1 replacement".to_owned(),
        count => format!("{count} replacements"),
    };
    if !replaced.notes.is_empty() {
        write!(title, " ({})", replaced.notes.join("; ")).ok();
    }
    title
}

/// What an edit changed.
#[derive(Debug, Default)]
struct Shown {
    /// For the model: the new lines with their neighbours, numbered, each after a line end.
    lines: String,
    /// For people: a unified diff.
    diff: String,
}

impl Shown {
    fn of(old: &[u8], replaced: &Replaced, redactor: &Redactor) -> Self {
        let new = replaced.bytes.as_slice();
        let mut shown = Self::default();
        let (mut left, mut unseen, mut undiffed) = (MOST_SHOWN_LINES, false, false);
        let (mut old_lines, mut new_lines) = (Lines::new(old), Lines::new(new));
        let mut changes = replaced.changes.iter().peekable();
        while let Some((old_at, new_at)) = changes.next() {
            let (mut old_at, mut new_at) = (old_at.clone(), new_at.clone());
            // Those that share context are one stretch.
            while let Some((old_next, new_next)) = changes.next_if(|(next, _)| {
                line_start(old, next.start, AROUND).0 <= line_end(old, old_at.end)
            }) {
                (old_at.end, new_at.end) = (old_next.end, new_next.end);
            }
            let (old_at, new_at) = differing((old, old_at), (new, new_at));
            let (old_first, old_text) = old_lines.take(old_at);
            let (new_first, new_text) = new_lines.take(new_at);
            let split = |text| str::split_inclusive(text, '\n').take(MOST_COMPARED);
            let old_text: Vec<&str> = split(&old_text).collect();
            let new_text: Vec<&str> = split(&new_text).collect();
            undiffed |= old_text.len().max(new_text.len()) == MOST_COMPARED;
            let diff = TextDiff::from_slices(&old_text, &new_text);
            for group in diff.grouped_ops(AROUND) {
                if let (Some(first), Some(last)) = (group.first(), group.last()) {
                    let range = |first: usize, at: Range<usize>| {
                        // An empty range is named by the line before it.
                        let from = first + at.start + usize::from(!at.is_empty());
                        format!("{from},{}", at.len())
                    };
                    let old = first.old_range().start..last.old_range().end;
                    let new = first.new_range().start..last.new_range().end;
                    let (old, new) = (range(old_first, old), range(new_first, new));
                    write!(shown.diff, "\n@@ -{old} +{new} @@").ok();
                }
                if !shown.lines.is_empty() && left > 0 {
                    shown.lines.push_str("\n…");
                }
                for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
                    let line = shown_line(change.value(), redactor);
                    write!(shown.diff, "\n{}{line}", change.tag()).ok();
                    match change.new_index() {
                        Some(at) if left > 0 => {
                            left -= 1;
                            write!(shown.lines, "\n{}\t{line}", new_first + at + 1).ok();
                        }
                        _ => unseen |= left == 0 && change.tag() != ChangeTag::Equal,
                    }
                }
            }
            if left == 0 && shown.diff.len() > MOST_DIFF {
                break;
            }
        }
        undiffed |= changes.peek().is_some();
        if unseen || undiffed {
            shown
                .lines
                .push_str("\n[more lines changed; see them with file_read]");
        }
        let cut = first_chars(shown.diff.trim_start_matches('\n'), MOST_DIFF);
        shown.diff = if undiffed || cut.len() + 1 < shown.diff.len() {
            format!("{}\n[diff cut]", cut.trim_end_matches('\n'))
        } else {
            cut.to_owned()
        };
        shown
    }
}

/// Line numbers of places that come in order.
struct Lines<'f> {
    bytes: &'f [u8],
    counted: usize,
    line: usize,
}

impl<'f> Lines<'f> {
    const fn new(bytes: &'f [u8]) -> Self {
        Self {
            bytes,
            counted: 0,
            line: 0,
        }
    }

    /// How many lines stand before the place, and its text.
    fn take(&mut self, at: Range<usize>) -> (usize, Cow<'f, str>) {
        let between = self.bytes.get(self.counted..at.start).unwrap_or_default();
        self.line += memchr_iter(b'\n', between).count();
        self.counted = at.start;
        (
            self.line,
            String::from_utf8_lossy(self.bytes.get(at).unwrap_or_default()),
        )
    }
}

/// The end of the line that stands [`AROUND`] lines after the one in which `at` lies.
fn line_end(bytes: &[u8], at: usize) -> usize {
    let ends = memchr_iter(b'\n', bytes.get(at..).unwrap_or_default());
    ends.skip(AROUND)
        .next()
        .map_or(bytes.len(), |end| at + end + 1)
}

/// Two stretches in whole lines, with their neighbours, without what is equal at both ends of them.
fn differing(
    (old, old_at): (&[u8], Range<usize>),
    (new, new_at): (&[u8], Range<usize>),
) -> (Range<usize>, Range<usize>) {
    let (old_text, new_text) = (
        old.get(old_at.clone()).unwrap_or_default(),
        new.get(new_at.clone()).unwrap_or_default(),
    );
    let same = |(a, b): &(&u8, &u8)| a == b;
    let start = old_text.iter().zip(new_text).take_while(same).count();
    let rest = old_text.len().min(new_text.len()) - start;
    let end = old_text
        .iter()
        .rev()
        .zip(new_text.iter().rev())
        .take(rest)
        .take_while(same)
        .count();
    let around = |bytes: &[u8], at: Range<usize>| {
        line_start(bytes, at.start + start, AROUND).0..line_end(bytes, at.end - end)
    };
    (around(old, old_at), around(new, new_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(old: &str, from: &str, to: &str) -> Shown {
        let asked = Asked {
            old: from,
            new: to,
            all: true,
            most: 1 << 20,
        };
        let replaced = replace(old.as_bytes(), asked).unwrap();
        Shown::of(old.as_bytes(), &replaced, &Redactor::default())
    }

    #[test]
    fn a_diff_shows_what_changed_with_its_neighbours() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\nend\n";
        let more = shown(old, "5\n", "five\nfive and a half\n");
        assert_eq!(
            more.diff,
            "@@ -2,7 +2,8 @@\n 2\n 3\n 4\n-5\n+five\n+five and a half\n 6\n 7\n 8"
        );
        assert_eq!(
            more.lines,
            "\n2\t2\n3\t3\n4\t4\n5\tfive\n6\tfive and a half\n7\t6\n8\t7\n9\t8"
        );
        let less = shown(old, "5\n", "");
        assert_eq!(less.diff, "@@ -2,7 +2,6 @@\n 2\n 3\n 4\n-5\n 6\n 7\n 8");
        assert_eq!(less.lines, "\n2\t2\n3\t3\n4\t4\n5\t6\n6\t7\n7\t8");
        let nothing = shown("a\nb\n", "a\nb\n", "");
        assert_eq!(nothing.diff, "@@ -1,2 +0,0 @@\n-a\n-b");
        // Of a long text with one other line only that one.
        let one = shown(old, &old[..20], &old[..20].replace('4', "four"));
        assert_eq!(
            one.diff,
            "@@ -1,7 +1,7 @@\n 1\n 2\n 3\n-4\n+four\n 5\n 6\n 7"
        );
    }

    #[test]
    fn far_replacements_are_separate_hunks_and_near_ones_join() {
        let file = |at: &[usize]| {
            let line = |n: usize| {
                if at.contains(&n) {
                    "hit\n".to_owned()
                } else {
                    format!("{n}\n")
                }
            };
            (1..=40).map(line).collect::<String>()
        };
        let near = shown(&file(&[3, 10]), "hit", "HIT");
        assert_eq!(near.diff.matches("@@ -").count(), 1);
        let far = shown(&file(&[3, 30]), "hit", "HIT");
        assert_eq!(far.diff.matches("@@ -").count(), 2);
        assert!(
            far.diff.contains("\n 6\n@@ -27,7 +27,7 @@\n 27\n"),
            "{}",
            far.diff
        );
        assert!(far.lines.contains("\n6\t6\n…\n27\t27\n"), "{}", far.lines);
    }

    #[test]
    fn what_is_left_out_is_told_and_only_then() {
        let many = |n: usize| "x\n".repeat(n);
        let whole = shown(&many(40), "x", "y");
        assert!(!whole.lines.contains('['), "{}", whole.lines);
        let cut = shown(&many(41), "x", "y");
        assert!(
            cut.lines
                .ends_with("\n40\ty\n[more lines changed; see them with file_read]")
        );
        assert!(!cut.diff.contains("cut"), "{}", cut.diff);
        // Context that has no room is no change.
        let context = shown(&(many(39) + "1\n2\n3\n"), "x", "y");
        assert!(!context.lines.contains('['), "{}", context.lines);
        let long = shown(&many(100_000), "x", "y");
        assert!(long.diff.ends_with("[diff cut]") && long.diff.len() < 8_100);
        // One change far behind what is compared of a long text.
        let text = (0..9_000).map(|n| format!("{n}\n")).collect::<String>();
        let late = shown(&text, &text, &text.replace("8000\n", "late\n"));
        assert!(
            late.diff.contains("-8000\n+late") && !late.diff.contains("cut"),
            "{}",
            late.diff
        );
    }

    #[test]
    fn lines_are_cleaned_before_they_are_cut() {
        let key = crate::secrets::Secret::new("sandcaster-key-0123456789");
        let redactor = Redactor::new([&key]);
        for start in 270..=300 {
            let line = format!(
                "{}{} \u{1b}[31m{}",
                "x".repeat(start),
                key.expose(),
                "y".repeat(99)
            );
            let shown = shown_line(&line, &redactor);
            assert!(
                !shown.contains("sandcaster-k") && !shown.contains('\u{1b}'),
                "{shown}"
            );
            assert!(shown.ends_with(" […]"), "{shown}");
        }
        assert_eq!(
            shown_line("\u{feff}a\u{feff}\tb\r\n", &redactor),
            "a\\u{feff}\tb"
        );
    }
}
