//! `grep`: the same lines in every image.
//!
//! The host translates the pattern and chooses the files; the sandbox only runs a plain `grep`, with options
//! that GNU and `BusyBox` share.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::ToolSpec;
use crate::show::{first_chars, grouped, one_line};

use super::listing::{Listing, Root};
use super::place::absolute;
use super::regex::translate;
use super::schema::typed;
use super::script::Script;
use super::search::{NamePattern, answer, count, named_in, not_listed, shown_prefix, skipped_note};
use super::types::{Failure, Tool, ToolAnswer, ToolContext};

const LIMIT: Duration = Duration::from_secs(20);
const SHOWN_LINES: usize = 200;
const SHOWN_CHARS: usize = 20_000;
const SHOWN_IN_LINE: usize = 300;
const SHOWN_FILES: usize = 200;
const SHOWN_COUNTS: usize = 100;
/// Longer lists of files go through a file of the sandbox.
const STDIN: usize = 64 * 1024;
const MOST_CONTEXT: i64 = 20;

/// Searches the files named on standard input, each name ending with NUL, or in the file `$1`; `$2` is the
/// directory, the others are grep's options. A bound on a line and on all keeps what comes back small.
const SEARCH: &str = r#"
list=$1
cd "$2" || exit 3
shift 2
if [ -n "$list" ]; then exec <"$list"; fi
xargs -0 grep "$@" /dev/null 2>/dev/null | cut -b 1-1200 | head -c 1048576
"#;
const KEEP: usize = 1024 * 1024;

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

/// A search of some files, which can be run for lines or for counts.
struct Search<'a> {
    context: &'a ToolContext,
    /// The directory, absolute, that the names start from.
    base: String,
    /// What is shown before a name.
    prefix: String,
    /// File names, relative to `base`, in the order of the answer.
    files: Vec<Vec<u8>>,
    /// grep's own options, without those for the form of its output.
    options: Vec<String>,
    env: BTreeMap<String, String>,
}

async fn grep(args: GrepArgs, context: &ToolContext) -> Result<ToolAnswer, Failure> {
    let pattern = translate(&args.pattern, args.ignore_case).map_err(Failure::Complaint)?;
    let path = args.path.as_str();
    let filter = match args.glob.as_str() {
        "" => None,
        glob => Some(NamePattern::parse(&anywhere(glob))?),
    };
    let mode = args.mode;
    let around = args.context.clamp(0, MOST_CONTEXT);
    let facts = context.session.probe(context.sandbox.as_ref()).await;
    let root = absolute(
        if path.is_empty() { "." } else { path },
        &context.session.cwd(),
        &facts.home,
    )?;
    let named = named_in(path, &args.glob);
    let mut listing = Listing::take(&root, &named, context).await?;
    let (base, prefix) = match listing.root {
        Root::Directory => {
            if let Some(filter) = &filter {
                listing
                    .files
                    .retain(|name| filter.matcher.is_match(OsStr::from_bytes(name)));
            }
            (root, shown_prefix(path, ""))
        }
        Root::File => {
            let (dir, name) = root.rsplit_once('/').unwrap_or(("", &root));
            let shown = path.strip_suffix(name).unwrap_or("").to_owned();
            listing.files = vec![name.as_bytes().to_vec()];
            (format!("{dir}/"), shown)
        }
        Root::Closed | Root::Missing => return Err(not_listed(&listing, path, context).await),
    };
    let prefix = if prefix.is_empty() || prefix.ends_with('/') {
        prefix
    } else {
        format!("{prefix}/")
    };
    // grep says `name:line`, which no parser gets right for such names.
    let all = listing.files.len();
    listing.files.retain(|name| !name.contains(&b'\n'));
    let odd_names = all - listing.files.len();
    let options = vec![if pattern.fixed { "-F" } else { "-E" }.to_owned()];
    // In the C locale a file in another encoding is still text, but letters beyond ASCII are bytes.
    let locale = if pattern.fixed { "C" } else { "C.UTF-8" };
    let search = Search {
        context,
        base,
        prefix,
        files: listing.files,
        options: [
            options,
            vec![
                "-e".to_owned(),
                String::from_utf8_lossy(&pattern.text).into_owned(),
            ],
        ]
        .concat(),
        env: BTreeMap::from([("LC_ALL".to_owned(), locale.to_owned())]),
    };
    let mut text = match mode {
        Mode::Content => search.content(around).await?,
        Mode::Files => search.counts(SHOWN_FILES, None).await?,
        Mode::Count => search.counts(0, None).await?,
    };
    if text.is_empty() {
        text = format!(
            "(no matches in {} files){}",
            grouped(count(search.files.len())),
            if path.is_empty() || search.files.is_empty() {
                skipped_note(&named)
            } else {
                String::new()
            }
        );
    }
    if odd_names > 0 {
        write!(
            text,
            "\n[{odd_names} files with line ends in their names were not searched]"
        )
        .ok();
    }
    if listing.cut {
        text.push_str("\n[too many files to search all of them: give a narrower path]");
    }
    Ok(answer(context, &text))
}

/// A pattern with directories in it may match below any directory.
fn anywhere(glob: &str) -> String {
    if glob.contains('/') && !glob.starts_with("**") && !glob.starts_with('/') {
        format!("**/{}", glob.trim_start_matches("./"))
    } else {
        glob.trim_start_matches('/').to_owned()
    }
}

impl Search<'_> {
    async fn run(&self, form: &[&str]) -> Result<Vec<u8>, Failure> {
        if self.files.is_empty() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for name in &self.files {
            // A name that begins with a dash is no option.
            names.extend_from_slice(b"./");
            names.extend_from_slice(name);
            names.push(0);
        }
        let mut list = String::new();
        let mut stdin = Bytes::from(names);
        if stdin.len() > STDIN {
            let facts = self
                .context
                .session
                .probe(self.context.sandbox.as_ref())
                .await;
            list = format!(
                "{}/search-{}",
                facts.state_dir,
                self.context.session.output_name()
            );
            let bytes = std::mem::take(&mut stdin);
            super::store(&list, &list, bytes, self.context).await?;
        }
        let mut args = vec![list.as_str(), self.base.as_str()];
        args.extend(form);
        args.extend(self.options.iter().map(String::as_str));
        let found = Script {
            text: SEARCH,
            args,
            stdin,
            env: self.env.clone(),
            keep: KEEP,
            ..Script::default()
        }
        .run_for(self.context, LIMIT)
        .await?;
        Ok(found.stdout)
    }

    /// Lines with their places, or counts if they are too many.
    async fn content(&self, around: i64) -> Result<String, Failure> {
        let around = around.to_string();
        let mut form = vec!["-nHI"];
        if around != "0" {
            form.extend(["-C", &around]);
        }
        let output = self.run(&form).await?;
        let Lines {
            mut text,
            count: lines,
            over,
            junk,
        } = Lines::new(&output, &self.prefix);
        if over || output.len() >= KEEP {
            let counts = self.counts(SHOWN_COUNTS, Some(lines)).await?;
            write!(text, "\n{counts}").ok();
        }
        if junk > 0 {
            write!(
                text,
                "\n[matching lines that are not text, and so not shown: {}]",
                grouped(junk)
            )
            .ok();
        }
        Ok(text.trim_start().to_owned())
    }

    /// Files with the number of their matching lines, at most `most` of them, and the totals. `shown` lines
    /// stand before them already.
    async fn counts(&self, most: usize, shown: Option<usize>) -> Result<String, Failure> {
        let output = self.run(&["-cHI"]).await?;
        let mut files: Vec<(u64, String)> = Vec::new();
        for line in String::from_utf8_lossy(&output).lines() {
            let Some((name, n)) = line.rsplit_once(':') else {
                continue;
            };
            if let Ok(n) = n.parse::<u64>()
                && n > 0
            {
                files.push((n, one_line(name.strip_prefix("./").unwrap_or(name))));
            }
        }
        if files.is_empty() {
            return Ok(String::new());
        }
        let total: u64 = files.iter().map(|(n, _)| n).sum();
        let mut text = shown.map_or_else(String::new, |shown| {
            format!(
                "[the first {shown} lines. All {} matching lines by file; narrow path or glob to see them:]\n",
                grouped(total)
            )
        });
        for (n, name) in files.iter().take(most) {
            writeln!(text, "{}{name}:{n}", self.prefix).ok();
        }
        if most == 0 || files.len() > most {
            write!(
                text,
                "[{} matching lines in {} files{}]",
                grouped(total),
                grouped(count(files.len())),
                if most == 0 {
                    String::new()
                } else {
                    format!("; the first {most} are shown")
                }
            )
            .ok();
        }
        Ok(text.trim_end().to_owned())
    }
}

/// Lines of grep's output, as they are shown.
#[derive(Debug, Default)]
struct Lines {
    text: String,
    count: usize,
    /// There are more than are shown.
    over: bool,
    /// Lines that are no text.
    junk: u64,
}

impl Lines {
    fn new(output: &[u8], prefix: &str) -> Self {
        let mut lines = Self::default();
        let mut chars = 0;
        let mut rest = output
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .peekable();
        while let Some(line) = rest.next() {
            // BusyBox shows a NUL as a line end: what names no file belongs to the line before it.
            let mut junk = is_junk(line);
            while rest
                .next_if(|next| !next.starts_with(b"./") && *next != b"--")
                .is_some()
            {
                junk = true;
            }
            if junk {
                lines.junk += 1;
                continue;
            }
            let text = String::from_utf8_lossy(line.strip_prefix(b"./").unwrap_or(line));
            let text: Vec<String> = text.split('\t').map(one_line).collect();
            let mut text = text.join("\t");
            if line != b"--" {
                text.insert_str(0, prefix);
            }
            let cut = first_chars(&text, SHOWN_IN_LINE);
            let more = if cut.len() < text.len() { " […]" } else { "" };
            let length = cut.chars().count() + 1;
            if lines.count == SHOWN_LINES || chars + length > SHOWN_CHARS {
                lines.over = true;
                break;
            }
            lines.count += 1;
            chars += length;
            writeln!(lines.text, "{cut}{more}").ok();
        }
        lines.text.truncate(lines.text.trim_end().len());
        lines
    }
}

/// A line with NUL, or with more undecodable bytes than others.
fn is_junk(line: &[u8]) -> bool {
    if line.contains(&0) {
        return true;
    }
    let bad = line
        .utf8_chunks()
        .map(|chunk| chunk.invalid().len())
        .sum::<usize>();
    bad * 2 > line.len()
}
