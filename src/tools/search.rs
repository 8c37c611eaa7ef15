//! `glob` and `grep`: the same results in every image.
//!
//! The host matches names and translates patterns; the sandbox only lists files and runs a plain `grep`,
//! with options that GNU and `BusyBox` share.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use globset::{GlobBuilder, GlobMatcher};
use serde_json::{Map, Value, json};

use crate::llm::ToolSpec;

use super::listing::{Listing, Root, SKIPPED, is_hidden};
use super::place::{Place, absolute};
use super::regex::translate;
use super::schema::{bool_arg, int_arg, str_arg};
use super::script::{Failure, Script};
use super::text::{first_chars, grouped, one_line};
use super::types::{Tool, ToolAnswer, ToolContext, ToolOutcome};

const LIMIT: Duration = Duration::from_secs(20);
const SHOWN_PATHS: usize = 200;
const SHOWN_LINES: usize = 200;
const SHOWN_CHARS: usize = 20_000;
const SHOWN_IN_LINE: usize = 300;
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

/// `glob`.
#[derive(Debug)]
pub(super) struct Glob;

/// `grep`.
#[derive(Debug)]
pub(super) struct Grep;

pub(super) fn glob_spec() -> ToolSpec {
    ToolSpec {
        name: "glob",
        description: "Finds files by name. Patterns: * and ? within a name, ** over directories, [ab], {a,b}; a \
            pattern without / matches names at any depth, as *.py. Returns paths relative to the working \
            directory or to path, files only, shallow ones first, at most 200 and the total. Dot files only if \
            the pattern has a part that begins with a dot. Skips .git, node_modules, __pycache__, venv, .venv \
            and caches unless they are named. To search contents use grep."
            .to_owned(),
        input_schema: json!({
            "type": "object",
            "properties": {
                "pattern": {"type": "string"},
                "path": {"type": "string", "description": "Directory to search in; default: the working directory"}
            },
            "required": ["pattern"],
            "additionalProperties": false
        }),
    }
}

pub(super) fn grep_spec() -> ToolSpec {
    ToolSpec {
        name: "grep",
        description: "Searches file contents, line by line, for a regular expression (\\d \\w \\s \\b, groups, \
            {n,m}; no look-around, no back-references, nothing over several lines). Mode content (default) gives \
            path:line:text, up to 200 lines or 20,000 characters, and beyond that counts per file; files gives \
            the files with their number of matching lines; count the totals alone. glob limits the file names, \
            as *.rs. Case-sensitive unless ignore_case. Skips binary lines, .git, node_modules and other \
            directories that glob skips, unless path names them. A plain text needs no escaping if it has no \
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
}

#[async_trait]
impl Tool for Glob {
    async fn call(&self, args: &Map<String, Value>, context: &ToolContext) -> ToolOutcome {
        glob(str_arg(args, "pattern"), str_arg(args, "path"), context)
            .await
            .unwrap_or_else(Into::into)
    }
}

#[async_trait]
impl Tool for Grep {
    async fn call(&self, args: &Map<String, Value>, context: &ToolContext) -> ToolOutcome {
        grep(args, context).await.unwrap_or_else(Into::into)
    }
}

/// A name pattern, split into the directories that are spelt out and what is to be matched below them.
struct NamePattern {
    /// Directories before the first wildcard, with a `/` at the end; may be empty or absolute.
    base: String,
    matcher: GlobMatcher,
    /// A part begins with a dot, so names that do may match.
    hidden: bool,
}

impl NamePattern {
    fn parse(pattern: &str) -> Result<Self, Failure> {
        let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
        if pattern.is_empty() || pattern.contains('\0') {
            return Err(Failure::Complaint(
                "pattern is empty; give one as *.py or src/**/*.rs".to_owned(),
            ));
        }
        let wild = pattern
            .find(['*', '?', '[', '{', '\\'])
            .unwrap_or(pattern.len());
        let split = pattern
            .get(..wild)
            .and_then(|literal| literal.rfind('/'))
            .map_or(0, |at| at + 1);
        let (base, rest) = pattern.split_at(split);
        if rest.is_empty() {
            return Err(Failure::Complaint(format!(
                "pattern {} ends in /: only files are found. Use {}**",
                one_line(pattern),
                one_line(pattern)
            )));
        }
        let anywhere = if base.is_empty() && !rest.contains('/') {
            format!("**/{rest}")
        } else {
            rest.to_owned()
        };
        let matcher = GlobBuilder::new(&anywhere)
            .literal_separator(true)
            .backslash_escape(true)
            .empty_alternates(true)
            .build()
            .map_err(|error| {
                Failure::Complaint(format!(
                    "pattern {} can't be read: {}. To match a special character itself write \\ before it",
                    one_line(pattern),
                    error.kind()
                ))
            })?
            .compile_matcher();
        let hidden = rest
            .split(['/', '{', ','])
            .any(|part| part.starts_with('.') || part.starts_with("[.]"));
        Ok(Self {
            base: base.to_owned(),
            matcher,
            hidden,
        })
    }

    fn matches(&self, name: &[u8]) -> bool {
        (self.hidden || !is_hidden(name)) && self.matcher.is_match(OsStr::from_bytes(name))
    }
}

/// The skipped directories that `path` or `pattern` names, and that are therefore not skipped.
fn named_in(path: &str, pattern: &str) -> Vec<&'static str> {
    SKIPPED
        .iter()
        .copied()
        .filter(|skipped| {
            path.split('/')
                .chain(pattern.split(['/', '{', ',', '}']))
                .any(|part| part == *skipped)
        })
        .collect()
}

async fn glob(pattern: &str, path: &str, context: &ToolContext) -> Result<ToolOutcome, Failure> {
    let facts = context.session.probe(context.sandbox.as_ref()).await;
    let wanted = NamePattern::parse(pattern)?;
    let cwd = context.session.cwd();
    let root = absolute(if path.is_empty() { "." } else { path }, &cwd, &facts.home)?;
    let base = if wanted.base.is_empty() {
        root.clone()
    } else {
        absolute(&wanted.base, &root, &facts.home)?
    };
    let named = named_in(path, pattern);
    let listing = Listing::take(&base, &named, context).await?;
    if listing.root != Root::Directory {
        let complaint = not_listed(
            &listing,
            if path.is_empty() { &wanted.base } else { path },
            context,
        );
        if wanted.base.is_empty() || listing.root == Root::Closed {
            return Err(complaint.await);
        }
        return Ok(answer(
            context,
            &format!("(no matches): {} is no directory", one_line(&wanted.base)),
        ));
    }
    let found: Vec<&Vec<u8>> = listing
        .files
        .iter()
        .filter(|name| wanted.matches(name))
        .collect();
    let prefix = shown_prefix(path, &wanted.base);
    let mut text = String::new();
    for name in found.iter().take(SHOWN_PATHS) {
        let name = String::from_utf8_lossy(name);
        writeln!(text, "{}", one_line(&format!("{prefix}{name}"))).ok();
    }
    if found.is_empty() {
        write!(
            text,
            "(no matches among {} files){}",
            grouped(count(listing.files.len())),
            skipped_note(&named)
        )
        .ok();
    } else if found.len() > SHOWN_PATHS {
        write!(
            text,
            "[{SHOWN_PATHS} of {} files, shallow ones first; narrow the pattern or path]",
            grouped(count(found.len()))
        )
        .ok();
    }
    if listing.cut {
        text.push_str("\n[too many files to look at all of them: give a narrower path]");
    }
    Ok(answer(context, text.trim_end()))
}

fn answer(context: &ToolContext, text: &str) -> ToolOutcome {
    ToolOutcome::Answer(ToolAnswer::text(context.redactor.clean(text).into_owned()))
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn skipped_note(named: &[&str]) -> String {
    let skipped: Vec<&str> = SKIPPED
        .iter()
        .copied()
        .filter(|skipped| !named.contains(skipped))
        .collect();
    format!(" [not looked at unless named: {}]", skipped.join(" "))
}

/// What stands before the names found, so that they can be used as they are.
fn shown_prefix(path: &str, base: &str) -> String {
    let path = path.trim_end_matches('/');
    if base.starts_with('/') || base.starts_with('~') || path.is_empty() || path == "." {
        return base.to_owned();
    }
    format!("{path}/{base}")
}

/// Why nothing could be listed.
async fn not_listed(listing: &Listing, given: &str, context: &ToolContext) -> Failure {
    let name = one_line(given);
    match listing.root {
        Root::Closed => Failure::Complaint(format!("{name}: permission denied")),
        Root::File => Failure::Complaint(format!("{name} is a file, not a directory")),
        Root::Directory | Root::Missing => match Place::look(given, false, context).await {
            Ok(place) => place.not_a_file(given, context).unwrap_or_else(|| {
                Failure::Complaint(format!("{name} has just appeared; try again"))
            }),
            Err(outcome) => outcome,
        },
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
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

async fn grep(args: &Map<String, Value>, context: &ToolContext) -> Result<ToolOutcome, Failure> {
    let pattern = translate(str_arg(args, "pattern")).map_err(Failure::Complaint)?;
    let path = str_arg(args, "path");
    let filter = match str_arg(args, "glob") {
        "" => None,
        glob => Some(NamePattern::parse(&anywhere(glob))?),
    };
    let mode = match str_arg(args, "mode") {
        "files" => Mode::Files,
        "count" => Mode::Count,
        _ => Mode::Content,
    };
    let around = int_arg(args, "context").unwrap_or(0).clamp(0, MOST_CONTEXT);
    let facts = context.session.probe(context.sandbox.as_ref()).await;
    let root = absolute(
        if path.is_empty() { "." } else { path },
        &context.session.cwd(),
        &facts.home,
    )?;
    let named = named_in(path, str_arg(args, "glob"));
    let mut listing = Listing::take(&root, &named, context).await?;
    let (base, prefix) = match listing.root {
        Root::Directory => {
            let named_dots = filter.as_ref().is_some_and(|filter| filter.hidden);
            listing.files.retain(|name| {
                filter.as_ref().map_or_else(
                    || !is_hidden(name),
                    |filter| {
                        filter.matcher.is_match(OsStr::from_bytes(name))
                            && (named_dots || !is_hidden(name))
                    },
                )
            });
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
    let mut options = vec![if pattern.fixed { "-F" } else { "-E" }.to_owned()];
    if pattern.ignore_case || bool_arg(args, "ignore_case") {
        options.push("-i".to_owned());
    }
    // In the C locale a file in another encoding is still text, but letters beyond ASCII are bytes.
    let locale = if pattern.text.is_ascii() {
        "C"
    } else {
        "C.UTF-8"
    };
    let search = Search {
        context,
        base,
        prefix,
        files: listing.files,
        options: [options, vec!["-e".to_owned(), pattern.text]].concat(),
        env: BTreeMap::from([("LC_ALL".to_owned(), locale.to_owned())]),
    };
    let mut text = match mode {
        Mode::Content => search.content(around).await?,
        Mode::Files => search.counts(SHOWN_PATHS, None).await?,
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
        let whole = output.len() < KEEP;
        let mut shown = String::new();
        let (mut lines, mut chars, mut binary, mut over) = (0, 0, 0_u64, !whole);
        let mut rest = output
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .peekable();
        while let Some(line) = rest.next() {
            // BusyBox shows a NUL as a line end: what follows a line and names no file is still that line.
            let mut junk = is_junk(line);
            while rest
                .next_if(|next| !next.starts_with(b"./") && *next != b"--")
                .is_some()
            {
                junk = true;
            }
            if junk {
                binary += 1;
                continue;
            }
            let line = line.strip_prefix(b"./").unwrap_or(line);
            let text = String::from_utf8_lossy(line);
            let tabs: Vec<String> = text.split('\t').map(one_line).collect();
            let text = tabs.join("\t");
            let text = if text == "--" {
                text
            } else {
                format!("{}{text}", self.prefix)
            };
            let cut = first_chars(&text, SHOWN_IN_LINE);
            let more = if cut.len() < text.len() { " […]" } else { "" };
            let length = cut.chars().count() + 1;
            if lines == SHOWN_LINES || chars + length > SHOWN_CHARS {
                over = true;
                break;
            }
            lines += 1;
            chars += length;
            writeln!(shown, "{cut}{more}").ok();
        }
        let mut shown = shown.trim_end().to_owned();
        if over {
            let counts = self.counts(SHOWN_COUNTS, Some(lines)).await?;
            write!(shown, "\n{counts}").ok();
        }
        if binary > 0 {
            write!(
                shown,
                "\n[{} matching lines that are not text were left out]",
                grouped(binary)
            )
            .ok();
        }
        Ok(shown.trim_start().to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(pattern: &str, name: &str) -> bool {
        let Ok(wanted) = NamePattern::parse(pattern) else {
            panic!("{pattern}")
        };
        name.strip_prefix(wanted.base.as_str())
            .is_some_and(|rest| wanted.matches(rest.as_bytes()))
    }

    #[test]
    fn patterns_match_as_their_description_says() {
        for (pattern, name, yes) in [
            ("*.py", "a.py", true),
            ("*.py", "d/e/a.py", true),
            ("src/*.rs", "src/a.rs", true),
            ("src/*.rs", "src/b/a.rs", false),
            ("src/**/*.rs", "src/a.rs", true),
            ("src/**/*.rs", "src/b/c/a.rs", true),
            ("**/test_*", "x/test_a", true),
            ("*.{ts,tsx}", "a/b.tsx", true),
            ("[ab].txt", "b.txt", true),
            ("*", ".hidden", false),
            (".*", ".hidden", true),
            ("**/.env*", "a/.env.local", true),
            ("./a.txt", "a.txt", true),
            ("a?c", "a/c", false),
            ("\\[x\\].md", "[x].md", true),
        ] {
            assert_eq!(matched(pattern, name), yes, "{pattern} against {name}");
        }
        for bad in ["", "src/", "[a", "{a"] {
            assert!(NamePattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn named_directories_are_not_skipped() {
        assert_eq!(named_in("node_modules/x", "*"), ["node_modules"]);
        assert_eq!(named_in("", "**/{.git,venv}/**"), [".git", "venv"]);
        assert_eq!(named_in("src", "*.py"), Vec::<&str>::new());
    }
}
