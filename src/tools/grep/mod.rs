//! `grep`: the same lines in every image.
//!
//! The host translates the pattern and chooses the files; the sandbox only runs a plain `grep`, with options
//! that GNU and `BusyBox` share.

mod output;
mod script;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::ToolSpec;
use crate::show::{first_chars, grouped, one_line, short};

use super::listing::{Listing, Root, UNREAD, number};
use super::names::{Anchor, NamePattern, named_in};
use super::regex::{Pattern, translate};
use super::schema::typed;
use super::search::{directory_among, not_listed, root_of, shown_prefix, skipped_note};
use super::types::{Failure, Tool, ToolAnswer, ToolContext, off_the_runtime};

pub(crate) use output::fuzz_grep;
use output::{Counts, Lines, Shown, UNSEARCHED, marked};
use script::{Files, Form, KEEP_LINES, Printed, Search};

const SHOWN_FILES: usize = 200;
const MOST_CONTEXT: i64 = 20;
/// What is said of lines that match a pattern of which too much would have to be spelt out.
const WIDE: &str = "\n[letters beyond ASCII are not told apart in this pattern's repeated classes, which would be too large: look \
    at lines with such letters again]";

/// `grep`.
#[derive(Debug)]
pub(super) struct Grep;

pub(super) static SPEC: LazyLock<ToolSpec> = LazyLock::new(|| {
    ToolSpec {
        name: "grep",
        description: "Searches file contents, line by line, for a regular expression (\\d \\w \\s \\b, groups, \
            {n,m}; no look-around, no back-references, nothing over several lines). Mode content (default) gives \
            path:line:text, up to 200 lines or 20,000 characters, and beyond that counts per file; files gives \
            the files with their number of matching lines; count the totals alone. glob limits the file names, \
            as *.rs. Case-sensitive unless ignore_case. Searches dot files too; skips \
            binary lines, and .git, node_modules and the other directories that glob skips, unless path names them. A plain text needs no escaping if it has no \
            special characters."
            .to_owned(),
        input_schema: json!({
            "type": "object",
            "properties": {
                "pattern": {"type": "string"},
                "path": {"type": "string", "description": "File or directory; default: the working directory"},
                "glob": {"type": "string", "description": "Only files with such names"},
                "mode": {"type": "string", "enum": ["content", "files", "count"]},
                "ignore_case": {"type": "boolean"},
                "context": {"type": "integer", "description": "Lines before and after each match, 0 to 20"}
            },
            "required": ["pattern"],
            "additionalProperties": false
        }),
}
});

#[derive(Debug, Deserialize)]
struct GrepArgs {
    pattern: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    glob: String,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    ignore_case: bool,
    #[serde(default)]
    context: i64,
}

#[async_trait]
impl Tool for Grep {
    async fn call(
        &self,
        args: Map<String, Value>,
        context: &ToolContext,
    ) -> Result<ToolAnswer, Failure> {
        grep(typed(args)?, context).await
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Content,
    Files,
    Count,
}

async fn grep(args: GrepArgs, context: &ToolContext) -> Result<ToolAnswer, Failure> {
    let GrepArgs {
        pattern,
        path,
        glob,
        mode,
        ignore_case,
        context: around,
    } = args;
    let named = named_in(&path, &glob);
    let given = pattern.clone();
    let parsing = move || {
        let filter = match glob.as_str() {
            "" => None,
            glob => Some(NamePattern::parse(glob, Anchor::Anywhere)?),
        };
        let wanted = translate(&pattern, ignore_case).map_err(Failure::Complaint)?;
        let plain = translate(&regex_syntax::escape(&pattern), ignore_case).ok();
        let plain = plain.filter(|plain| plain.text != wanted.text);
        Ok::<_, Failure>((wanted, plain, filter, glob))
    };
    let (pattern, plain, filter, glob) = off_the_runtime(parsing).await??;
    let facts = context.session.probe(context.sandbox.as_ref()).await;
    let root = root_of(&path, &context.session.cwd(), &facts.home)?;
    let mut listing = Listing::take(&root, &named, context).await?;
    let all = listing.files.len();
    let is_file = listing.root == Root::File;
    let (base, prefix, files, odd_names) = match listing.root {
        Root::Directory => {
            let prefix = if listing.path == root {
                shown_prefix(&path, "")
            } else {
                listing.path.clone()
            };
            let prefix = match prefix.as_str() {
                "" => prefix,
                _ if prefix.ends_with('/') => prefix,
                _ => format!("{prefix}/"),
            };
            let files = std::mem::take(&mut listing.files);
            let (base, start) = (listing.path.clone(), prefix.clone());
            let filtering = move || Chosen::of(files, filter.as_ref(), &base, &start);
            let chosen = off_the_runtime(filtering).await??;
            let prefix = one_line(&prefix);
            if let (Some(dir), false) = (chosen.directory, listing.broken) {
                let dir = one_line(&String::from_utf8_lossy(&dir));
                return Ok(ToolAnswer::text(format!(
                    "(no matches): glob names files, and {prefix}{dir} is a directory. Give it as path, or {}/** as \
                         glob{}",
                    short(&context.redactor.clean(&glob), 200),
                    unlooked(&listing)
                )));
            }
            let (files, odd_names) = (chosen.files, chosen.odd_names);
            (listing.path.clone(), prefix, files, odd_names)
        }
        Root::File => {
            let (dir, name) = listing.path.rsplit_once('/').unwrap_or(("", &listing.path));
            if name.contains('\n') {
                return Err(Failure::Complaint(format!(
                    "{} has a line end in its name, so grep's lines can't be told apart; rename it, or use bash",
                    one_line(&path)
                )));
            }
            let asked = root
                .rsplit_once('/')
                .map_or(root.as_str(), |(_, name)| name);
            let given = path.trim_end_matches('/');
            let shown = one_line(given.strip_suffix(asked).unwrap_or(""));
            let files = Files::new(vec![name.as_bytes().to_vec()]);
            (format!("{dir}/"), shown, files, 0)
        }
        Root::Closed | Root::Missing => return Err(not_listed(&listing, &path, context).await),
    };
    if files.count() == 0
        && let Some(failure) = listing.nothing_known()
    {
        return Err(failure);
    }
    if files.count() == 0 && all > 0 && odd_names == 0 {
        return Ok(ToolAnswer::text(format!(
            "(no matches: of {} none has a name like {}){}{}",
            number(all, "file"),
            short(&context.redactor.clean(&glob), 200),
            skipped_note(&named),
            unlooked(&listing)
        )));
    }
    let search = Search {
        context,
        base,
        prefix,
        files: Arc::new(files),
        pattern,
    };
    let Answer {
        mut text,
        notes,
        unsearched,
        starved,
    } = match mode {
        _ if search.files.count() == 0 => Answer::default(),
        Mode::Content => search.content(around.clamp(0, MOST_CONTEXT)).await?,
        Mode::Files => search.summary(SHOWN_FILES).await?,
        Mode::Count => search.summary(0).await?,
    };
    if text.is_empty() {
        if let Some(failure) = listing.nothing_known() {
            return Err(failure);
        }
        let searched = search.files.count().saturating_sub(unsearched);
        if is_file && (searched == 0 || starved) {
            return Err(Failure::Complaint(format!(
                "{} can't be searched:{notes}",
                one_line(&path)
            )));
        }
        let skipped = if path.is_empty() || search.files.count() == 0 {
            skipped_note(&named)
        } else {
            String::new()
        };
        let searched = if starved {
            "what was searched".to_owned()
        } else {
            number(searched, "file")
        };
        text = format!("(no matches in {searched}){skipped}");
        let (plainly, untried) = aside(
            search.plainly(plain, &given).await,
            "not searched for as plain text",
        )?;
        text.push_str(&plainly);
        text.push_str(&untried);
    } else if search.pattern.wide {
        text.push_str(WIDE);
    }
    text.push_str(&notes);
    if odd_names > 0 {
        write!(
            text,
            "\n[not searched, for they have line ends in their names: {}]",
            number(odd_names, "file")
        )
        .ok();
    }
    text.push_str(&unlooked(&listing));
    Ok(ToolAnswer::text(text))
}

/// What is said where files in UTF-16 could not be looked for.
const UNMARKED: &str = "files in UTF-16 or UTF-32 were not looked for";

/// A look beside the search: where it fails, what was found stays, and a note, after a line end, says what failed.
fn aside<T: Default>(looked: Result<T, Failure>, what: &str) -> Result<(T, String), Failure> {
    match looked {
        Ok(found) => Ok((found, String::new())),
        Err(Failure::Complaint(why)) => Ok((T::default(), format!("\n[{what}: {why}]"))),
        Err(failure) => Err(failure),
    }
}

/// What is said of files that the listing has not.
fn unlooked(listing: &Listing) -> String {
    let cut = if listing.cut {
        "\n[too many files to look at all of them: give a narrower path]"
    } else {
        ""
    };
    format!("{cut}{}", listing.trouble.note(UNREAD))
}

/// What a search found.
#[derive(Default)]
struct Answer {
    /// Nothing if no line matches.
    text: String,
    /// What is said behind it: each begins with a line end.
    notes: String,
    /// Files that could not be searched.
    unsearched: usize,
    /// Nor were others, for want of memory: nobody knows how many.
    starved: bool,
}

/// The files that a search is for.
struct Chosen {
    files: Files,
    /// Files that were left out because of their names.
    odd_names: usize,
    /// There is none, but this directory has such a name.
    directory: Option<Vec<u8>>,
}

impl Chosen {
    fn of(
        mut files: Vec<Vec<u8>>,
        filter: Option<&NamePattern>,
        base: &str,
        prefix: &str,
    ) -> Result<Self, Failure> {
        let mut directory = None;
        if let Some(filter) = filter {
            let matches = |name: &[u8]| {
                let shown = [prefix.as_bytes(), name].concat();
                filter.matches(&[name, &shown], &[base.as_bytes(), b"/", name].concat())
            };
            let (wanted, others): (Vec<_>, Vec<_>) =
                files.into_iter().partition(|name| matches(name));
            files = wanted;
            if files.is_empty() {
                if let Some(complaint) = filter.complaint() {
                    return Err(complaint);
                }
                directory = directory_among(&others, matches).map(<[u8]>::to_vec);
            }
        }
        // grep says `name:line`, which no parser gets right for such names.
        let all = files.len();
        files.retain(|name| !name.contains(&b'\n'));
        Ok(Self {
            odd_names: all - files.len(),
            files: Files::new(files),
            directory,
        })
    }
}

impl Search<'_> {
    /// Lines with their places; with counts, if they are too many.
    async fn content(&self, around: i64) -> Result<Answer, Failure> {
        let Printed {
            mut output,
            trouble,
        } = self.run(Form::Lines(&around.to_string())).await?;
        let (wide, unmarked) = aside(self.wide().await, UNMARKED)?;
        let many = output.len() >= KEEP_LINES;
        if many {
            // The last line may be cut, in a key too.
            let end = memchr::memrchr(b'\n', &output).map_or(0, |end| end + 1);
            output.truncate(end);
        }
        let (files, redactor) = (Arc::clone(&self.files), self.context.redactor.clone());
        let (prefix, marked) = (self.prefix.clone(), wide.clone());
        let reading = move || {
            let shown = Shown {
                prefix: &prefix,
                redactor: &redactor,
            };
            Lines::new(&output, &files, marked, &shown)
        };
        let lines = off_the_runtime(reading).await?;
        let mut text = lines.text;
        let mut notes = String::new();
        let mut unsearched = lines.counts.wide.len() + trouble.count();
        let mut starved = trouble.starved;
        if many {
            let (counts, uncounted) = aside(self.counts(wide).await.map(Some), "not counted")?;
            if let Some(counts) = counts {
                starved |= counts.trouble.starved;
                text.push_str(&counts.after(lines.shown, &self.prefix));
                notes = counts.notes(&self.prefix);
                unsearched = counts.unsearched();
            } else {
                let first = number(lines.shown, "line");
                write!(text, "\n[the first {first} of more]{uncounted}").ok();
            }
        } else {
            if lines.over {
                text.push_str(&lines.counts.after(lines.shown, &self.prefix));
            }
            if lines.junk > 0 {
                if text.is_empty() {
                    text.push_str("(no matches in lines of text)");
                }
                write!(
                    notes,
                    "\n[matching lines that are not text, and so not shown: {}]",
                    grouped(lines.junk)
                )
                .ok();
            }
            notes.push_str(&lines.counts.notes(&self.prefix));
            notes.push_str(&trouble.note(UNSEARCHED));
        }
        notes.push_str(&unmarked);
        Ok(Answer {
            text: text.trim_start().to_owned(),
            notes,
            unsearched,
            starved,
        })
    }

    /// Files with the number of their matching lines, at most `most` of them.
    async fn summary(&self, most: usize) -> Result<Answer, Failure> {
        let (wide, unmarked) = aside(self.wide().await, UNMARKED)?;
        let counts = self.counts(wide).await?;
        let text = if counts.files.is_empty() {
            String::new()
        } else {
            counts.shown(most, &self.prefix)
        };
        Ok(Answer {
            text,
            notes: counts.notes(&self.prefix) + &unmarked,
            unsearched: counts.unsearched(),
            starved: counts.trouble.starved,
        })
    }

    /// Where nothing matches: what `plain`, the pattern's own text, would have found.
    async fn plainly(&self, plain: Option<Pattern>, given: &str) -> Result<String, Failure> {
        let Some(pattern) = plain.filter(|_| self.files.count() > 0) else {
            return Ok(String::new());
        };
        let again = Search {
            pattern,
            base: self.base.clone(),
            prefix: String::new(),
            files: Arc::clone(&self.files),
            context: self.context,
        };
        let counts = again.counts(BTreeSet::new()).await?;
        if counts.files.is_empty() {
            return Ok(String::new());
        }
        let escaped = one_line(&regex_syntax::escape(given));
        Ok(format!(
            "\n[as plain text the pattern stands in {}; to find these, escape it: {}]",
            counts.total("line"),
            first_chars(&self.context.redactor.clean(&escaped), 500)
        ))
    }

    /// The number of matching lines by file.
    async fn counts(&self, wide: BTreeSet<Vec<u8>>) -> Result<Counts, Failure> {
        let Printed { output, trouble } = self.run(Form::Counts).await?;
        let files = Arc::clone(&self.files);
        off_the_runtime(move || Counts {
            trouble,
            ..Counts::parse(&output, &files, wide)
        })
        .await
    }

    /// The files in UTF-16 or UTF-32.
    async fn wide(&self) -> Result<BTreeSet<Vec<u8>>, Failure> {
        let Printed { output, .. } = self.run(Form::Marks).await?;
        let files = Arc::clone(&self.files);
        off_the_runtime(move || marked(&output, &files)).await
    }
}
