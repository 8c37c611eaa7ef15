//! `file_edit`: replaces an exact piece of a file.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use memchr::memchr_iter;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use similar::{ChangeTag, DiffTag, TextDiff};

use crate::chat::ToolSpec;
use crate::secrets::Redactor;
use crate::show::{first_chars, one_line};

use super::nearest::{line_start, not_found, shown_line};
use super::piece::{BEGINNING, Content, is_binary};
use super::place::{Kind, Place};
use super::read::FETCHED;
use super::replace::{Asked, Refusal, Replaced, replace};
use super::schema::typed;
use super::types::{Failure, Tool, ToolAnswer, ToolContext, fingerprint, off_the_runtime};

const AROUND: usize = 3;
const MOST_SHOWN_LINES: usize = 40;
const MOST_DIFF: usize = 8_000;
/// Lines that are compared, and for how long: then the rest counts as replaced whole.
const MOST_COMPARED: usize = 20_000;
const LONGEST: Duration = Duration::from_millis(100);

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
    let _alone = context.session.edits.lock().await;
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
    let path = args.path.clone();
    let redactor = context.redactor.clone();
    // Up to 8 MiB are searched and compared: too long for a thread of the runtime.
    let done = off_the_runtime(move || change(&file, &args, &redactor)).await?;
    let (replaced, shown) = done.map_err(|why| complain(&why))?;
    super::store(&place.path, &path, Bytes::from(replaced.bytes), context).await?;
    let mut text = format!(
        "edited {name}{}: {} replacement",
        place.arrow(),
        replaced.count
    );
    if replaced.count > 1 {
        text.push('s');
    }
    if !replaced.notes.is_empty() {
        write!(text, " ({})", replaced.notes.join("; ")).ok();
    }
    text.push_str(&shown.lines);
    Ok(ToolAnswer {
        diff: Some(shown.diff),
        // What is shown of it may depend on how busy the host is.
        outcome: Some(fingerprint((&place.path, replaced.count))),
        ..ToolAnswer::text(text)
    })
}

/// The file as it is to be and what is shown of that, or a complaint.
fn change(file: &[u8], args: &EditArgs, redactor: &Redactor) -> Result<(Replaced, Shown), String> {
    let wide = match Content::of(file.get(..BEGINNING).unwrap_or(file)) {
        Content::Utf16(_) => "UTF-16",
        Content::Utf32 => "UTF-32",
        Content::Image(_) | Content::Text | Content::Binary(_) => "",
    };
    if !wide.is_empty() {
        return Err(format!(
            "is in {wide}; convert it with bash (iconv, python3) to edit it"
        ));
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
    let shown = Shown::of(file, &replaced.bytes, redactor, LONGEST);
    Ok((replaced, shown))
}

/// The lines of `text` that are compared, and one more if there are more.
fn split(text: &str) -> Vec<&str> {
    let lines = text.split_inclusive('\n');
    lines.take(MOST_COMPARED + AROUND + 1).collect()
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
    /// After `limit` what is not compared yet counts as replaced.
    fn of(old: &[u8], new: &[u8], redactor: &Redactor, limit: Duration) -> Self {
        let same = |(a, b): &(&u8, &u8)| a == b;
        let start = old.iter().zip(new).take_while(same).count();
        let rest = old.len().min(new.len()) - start;
        let ends = old.iter().rev().zip(new.iter().rev()).take(rest);
        let end = ends.take_while(same).count();
        // In both files the same line: from it on they are compared.
        let (from, _) = line_start(old, start, AROUND);
        let first = memchr_iter(b'\n', old.get(..from).unwrap_or_default()).count();
        let stretch = |bytes: &'_ [u8]| {
            let differs = bytes.len() - end;
            let after = memchr_iter(b'\n', bytes.get(differs..).unwrap_or_default()).nth(AROUND);
            let to = after.map_or(bytes.len(), |end| differs + end + 1);
            String::from_utf8_lossy(bytes.get(from..to).unwrap_or_default()).into_owned()
        };
        let (old, new) = (stretch(old), stretch(new));
        let (mut old, mut new) = (split(&old), split(&new));
        // More than the lines around the last change are left out, so it is one of them.
        let cut = old.len().max(new.len()) > MOST_COMPARED + AROUND;
        if cut {
            old.truncate(MOST_COMPARED);
            new.truncate(MOST_COMPARED);
        }
        let diff = TextDiff::configure().timeout(limit).diff_slices(&old, &new);
        let mut shown = Self::default();
        let (mut left, mut unseen) = (MOST_SHOWN_LINES, cut);
        let mut groups = diff.grouped_ops(AROUND).into_iter().peekable();
        while let Some(group) = groups.next() {
            // What a change at the cut replaces is not known; that its new lines are in the file is.
            let known = !cut
                || groups.peek().is_some()
                || group.last().is_some_and(|op| op.tag() == DiffTag::Equal);
            if let (true, Some(begin), Some(end)) = (known, group.first(), group.last()) {
                // An empty range is named by the line before it.
                let range = |at: Range<usize>| (first + at.start + at.len().min(1), at.len());
                let (from, old) = range(begin.old_range().start..end.old_range().end);
                let (to, new) = range(begin.new_range().start..end.new_range().end);
                write!(shown.diff, "\n@@ -{from},{old} +{to},{new} @@").ok();
            }
            if !shown.lines.is_empty() && left > 0 {
                shown.lines.push_str("\n…");
            }
            for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
                if left == 0 && (!known || shown.diff.len() > MOST_DIFF) {
                    unseen |= change.tag() != ChangeTag::Equal;
                    continue;
                }
                let line = shown_line(change.value(), redactor);
                if known {
                    write!(shown.diff, "\n{}{line}", change.tag()).ok();
                }
                match change.new_index() {
                    Some(at) if left > 0 => {
                        left -= 1;
                        write!(shown.lines, "\n{}\t{line}", first + at + 1).ok();
                    }
                    _ => unseen |= left == 0 && change.tag() != ChangeTag::Equal,
                }
            }
        }
        if unseen {
            shown
                .lines
                .push_str("\n[more lines changed; see them with file_read]");
        }
        let whole = shown.diff.trim_start_matches('\n');
        let begin = first_chars(whole, MOST_DIFF);
        shown.diff = if cut || begin.len() < whole.len() {
            let begin = begin.trim_end_matches('\n');
            let end = if begin.is_empty() { "" } else { "\n" };
            format!("{begin}{end}[diff cut]")
        } else {
            begin.to_owned()
        };
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So that a busy machine changes nothing.
    const AMPLE: Duration = Duration::from_secs(10);

    fn shown(old: &str, from: &str, to: &str) -> Shown {
        let asked = Asked {
            old: from,
            new: to,
            all: true,
            most: 1 << 20,
        };
        let replaced = replace(old.as_bytes(), asked).unwrap();
        Shown::of(old.as_bytes(), &replaced.bytes, &Redactor::default(), AMPLE)
    }

    #[test]
    fn a_diff_that_has_no_time_says_only_what_is_so() {
        let old = (0..3_000).fold(String::new(), |text, n| text + &n.to_string() + "\n");
        let new = old
            .replace("\n7\n", "\nseven\n")
            .replace("\n2900\n", "\nlate\n");
        let (none, redactor) = (Duration::ZERO, Redactor::default());
        let shown = Shown::of(old.as_bytes(), new.as_bytes(), &redactor, none);
        assert!(
            shown.lines.starts_with("\n5\t4\n6\t5\n7\t6\n8\tseven\n"),
            "{}",
            shown.lines
        );
        let hunk = shown.diff.lines().skip(1).map(|line| line.split_at(1));
        for (sign, line) in hunk.filter(|(_, line)| *line != "diff cut]") {
            let there = |text: &str| text.lines().any(|known| known == line);
            assert!(sign == "+" || there(&old), "{sign}{line}");
            assert!(sign == "-" || there(&new), "{sign}{line}");
        }
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
        let text = (0..9_000)
            .map(|n| format!("{n}\n"))
            .collect::<Vec<_>>()
            .concat();
        let late = shown(&text, &text, &text.replace("8000\n", "late\n"));
        assert!(
            late.diff.contains("-8000\n+late") && !late.diff.contains("cut"),
            "{}",
            late.diff
        );
    }

    #[test]
    fn a_long_diff_says_nothing_that_is_not_so() {
        let lines = |range: std::ops::Range<usize>| -> String {
            range.fold(String::new(), |text, n| text + &n.to_string() + "\n")
        };
        let diff = |old: &str, new: &str| {
            Shown::of(old.as_bytes(), new.as_bytes(), &Redactor::default(), AMPLE)
        };
        for count in [MOST_COMPARED, MOST_COMPARED + AROUND] {
            let old = lines(0..count);
            let new = old.replace("\n10\n", "\nten\n") + "end\n";
            let whole = diff(&old[..old.len() - 6], &new[..new.len() - 6]);
            assert!(!whole.diff.contains("cut"), "{}", whole.diff);
        }
        // Five lines more at the beginning move those at the cut.
        let old = lines(0..30_000);
        let new = "new\n".repeat(5) + &old.replace("\n29000\n", "\nlate\n");
        let cut = diff(&old, &new);
        assert_eq!(
            cut.diff,
            format!(
                "@@ -1,3 +1,8 @@{}\n 0\n 1\n 2\n[diff cut]",
                "\n+new".repeat(5)
            )
        );
        assert!(
            cut.lines
                .ends_with("[more lines changed; see them with file_read]")
        );
        // A change before the cut is shown; what stands at it is not.
        let new = old.replace("\n10\n", "\nten\n");
        let new = new[..new.find("\n19990\n").unwrap()].to_owned() + "\nend\n";
        let cut = diff(&old, &new);
        assert!(
            cut.diff.contains("-10\n+ten") && cut.diff.ends_with("\n 13\n[diff cut]"),
            "{}",
            cut.diff
        );
        // The new lines of one that begins before the cut are in the file.
        let cut = diff("a\nb\n", &format!("a\n{}b\n", lines(0..30_000)));
        assert_eq!(cut.diff, "[diff cut]");
        assert!(
            cut.lines.starts_with("\n1\ta\n2\t0\n3\t1\n"),
            "{}",
            cut.lines
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
