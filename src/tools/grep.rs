//! `grep`: the same lines in every image.
//!
//! The host translates the pattern and chooses the files; the sandbox only runs a plain `grep`, with options
//! that GNU and `BusyBox` share.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::ToolSpec;
use crate::sandbox::files::depth;
use crate::show::{first_chars, grouped, one_line, short};

use super::listing::{Listing, Root, Trouble, count, no_program, off_the_runtime};
use super::names::{Anchor, NamePattern, named_in};
use super::regex::{Pattern, translate};
use super::schema::typed;
use super::script::Script;
use super::search::{UNREAD, answer, not_listed, root_of, shown_prefix, skipped_note};
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
/// Bytes of lines that are fetched.
const KEEP_LINES: usize = 1024 * 1024;
/// Bytes of counts: more than a listing has names for.
const KEEP_COUNTS: usize = 16 * 1024 * 1024;
/// Bytes of a line that are fetched, beside its file's name.
const LINE: usize = 4 * SHOWN_IN_LINE + 100;
/// Files in UTF-16 that are named.
const SHOWN_UTF16: usize = 20;
/// What is said before grep's words about files.
const UNSEARCHED: &str = "not searched";
/// Beginnings of files in UTF-16, whose lines no pattern can match.
const UTF16: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

/// Searches files for the pattern in the first line of standard input. Their names follow, each ending with
/// NUL, or are in the file `$1`, which is removed. `$2` is the directory, `$3` how many bytes of output are
/// wanted, `$4` how many of a line or `counts`; the others are grep's options.
///
/// grep tries the pattern on a line first, so that its complaint is not lost among those about files. With `-F` it
/// is told here of the beginnings of UTF-16; with `-E` they are in the pattern.
const SEARCH: &str = r#"
IFS= read -r pattern
if [ -n "$1" ]; then
exec <"$1" || exit 6
rm -f "$1"
fi
cd "$2" || exit 5
keep=$3
line=$4
shift 4
for n in grep xargs cut head; do
command -v "$n" >/dev/null || { echo "$n" >&2; exit 7; }
done
case $1 in
*F) set -- "$@" -e "$(printf '\377\376')" -e "$(printf '\376\377')" ;;
esac
set -- "$@" -e "$pattern"
said=$(echo | grep "$@" 2>&1 >/dev/null)
[ $? -le 1 ] || { printf '%s\n' "$said" >&2; exit 8; }
set -- "$@" /dev/null
if [ "$line" = counts ]; then
xargs -0 -s 400000 grep "$@" | grep -av ':0$' | head -c "$keep"
else
xargs -0 -s 400000 grep "$@" | cut -b "1-$line" | head -c "$keep"
fi
"#;

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
    pattern: Pattern,
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
    let parsing = move || {
        let filter = match glob.as_str() {
            "" => None,
            glob => Some(NamePattern::parse(glob, Anchor::Anywhere)?),
        };
        let pattern = translate(&pattern, ignore_case).map_err(Failure::Complaint)?;
        Ok::<_, Failure>((pattern, filter, glob))
    };
    let (pattern, filter, glob) = off_the_runtime(true, parsing).await??;
    let facts = context.session.probe(context.sandbox.as_ref()).await;
    let root = root_of(&path, &context.session.cwd(), &facts.home)?;
    let mut listing = Listing::take(&root, &named, context).await?;
    let all = count(listing.files.len());
    let mut odd_names = 0;
    let (base, prefix) = match listing.root {
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
            let filtering = move || chosen(files, filter.as_ref(), &base, &start);
            (listing.files, odd_names) = off_the_runtime(true, filtering).await??;
            (listing.path.clone(), prefix)
        }
        Root::File => {
            let (dir, name) = listing.path.rsplit_once('/').unwrap_or(("", &listing.path));
            let asked = root
                .rsplit_once('/')
                .map_or(root.as_str(), |(_, name)| name);
            let shown = path.strip_suffix(asked).unwrap_or("").to_owned();
            listing.files = vec![name.as_bytes().to_vec()];
            (format!("{dir}/"), shown)
        }
        Root::Closed | Root::Missing => return Err(not_listed(&listing, &path, context).await),
    };
    if listing.files.is_empty() && all > 0 && odd_names == 0 {
        return Ok(answer(
            context,
            &format!(
                "(no matches: of {} files none has a name like {}){}{}",
                grouped(all),
                short(&glob, 200),
                skipped_note(&named),
                listing.trouble.note(UNREAD)
            ),
        ));
    }
    let search = Search {
        context,
        base,
        prefix,
        files: listing.files,
        pattern,
    };
    let mut text = match mode {
        _ if search.files.is_empty() => String::new(),
        Mode::Content => search.content(around.clamp(0, MOST_CONTEXT)).await?,
        Mode::Files => search.summary(SHOWN_FILES).await?,
        Mode::Count => search.summary(0).await?,
    };
    if text.is_empty() || text.starts_with('\n') {
        let skipped = if path.is_empty() || search.files.is_empty() {
            skipped_note(&named)
        } else {
            String::new()
        };
        let none = format!(
            "(no matches in {} files){skipped}",
            grouped(count(search.files.len()))
        );
        text.insert_str(0, &none);
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
    text.push_str(&listing.trouble.note(UNREAD));
    Ok(answer(context, &text))
}

/// The files that the search is for, and how many were left out because of their names.
fn chosen(
    mut files: Vec<Vec<u8>>,
    filter: Option<&NamePattern>,
    base: &str,
    prefix: &str,
) -> Result<(Vec<Vec<u8>>, usize), Failure> {
    if let Some(filter) = filter {
        files.retain(|name| {
            let shown = [prefix.as_bytes(), name].concat();
            filter.matches(&[name, &shown], &[base.as_bytes(), b"/", name].concat())
        });
        if let Some(complaint) = filter.complaint().filter(|_| files.is_empty()) {
            return Err(complaint);
        }
    }
    // grep says `name:line`, which no parser gets right for such names.
    let all = files.len();
    files.retain(|name| !name.contains(&b'\n'));
    let odd = all - files.len();
    Ok((files, odd))
}

/// What a search printed, and what it could not do.
struct Printed {
    output: Vec<u8>,
    trouble: Trouble,
}

/// What is asked of grep.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// Lines with so many around them.
    Lines(&'a str),
    /// The first line of each file that has one.
    First,
    Counts,
}

impl Search<'_> {
    /// Runs the sandbox's grep over `files`.
    async fn run(
        &self,
        pattern: &Pattern,
        form: Form<'_>,
        files: &[&[u8]],
    ) -> Result<Printed, Failure> {
        let kind = if pattern.fixed { "F" } else { "E" };
        let (options, more, keep) = match form {
            Form::Lines("0") => (format!("-aHn{kind}"), vec![], KEEP_LINES),
            Form::Lines(around) => (format!("-aHn{kind}"), vec!["-C", around], KEEP_LINES),
            Form::First => (format!("-aHn{kind}"), vec!["-m", "1"], KEEP_COUNTS),
            Form::Counts => (format!("-aHc{kind}"), vec![], KEEP_COUNTS),
        };
        let line = match form {
            Form::Lines(_) | Form::First => line_bound(files).to_string(),
            Form::Counts => "counts".to_owned(),
        };
        let names = files.iter().flat_map(|name| [b"./", *name, b"\0"]);
        let names = names.collect::<Vec<&[u8]>>().concat();
        let mut stdin = [pattern.text.as_slice(), b"\n"].concat();
        let mut list = String::new();
        if stdin.len() + names.len() > STDIN {
            let session = &self.context.session;
            let facts = session.probe(self.context.sandbox.as_ref()).await;
            list = format!("{}/search-{}", facts.state_dir, session.output_name());
            super::store(&list, &list, names.into(), self.context).await?;
        } else {
            stdin.extend(names);
        }
        let wanted = keep.to_string();
        let mut args = vec![list.as_str(), &self.base, &wanted, &line, &options];
        args.extend(more);
        let found = Script {
            text: SEARCH,
            args,
            stdin: stdin.into(),
            env: BTreeMap::from([("LC_ALL".to_owned(), "C".to_owned())]),
            keep,
            ..Script::default()
        }
        .run_for(self.context, LIMIT)
        .await?;
        let said = short(String::from_utf8_lossy(&found.stderr).trim(), 300);
        Err(match found.exit_code {
            0 => {
                return Ok(Printed {
                    trouble: Trouble::read(&found.stderr),
                    output: found.stdout,
                });
            }
            7 => no_program(&found.stderr),
            8 => Failure::Complaint(format!(
                "the sandbox's grep can't use this pattern, so nothing was searched: {said}"
            )),
            code => Failure::Complaint(format!("the search failed with exit code {code}: {said}")),
        })
    }

    fn names(&self) -> Vec<&[u8]> {
        self.files.iter().map(Vec::as_slice).collect()
    }

    /// Lines with their places; with counts, if they are too many.
    async fn content(&self, around: i64) -> Result<String, Failure> {
        let names = self.names();
        let printed = self
            .run(
                &or_utf16(&self.pattern),
                Form::Lines(&around.to_string()),
                &names,
            )
            .await?;
        let lines = Lines::new(&printed.output, &names, self);
        let mut text = lines.text;
        let mut notes = String::new();
        if printed.output.len() >= KEEP_LINES {
            let counts = self.counts().await?;
            text.push_str(&counts.after(lines.shown, &self.prefix));
            notes = counts.notes(&self.prefix);
        } else {
            if lines.over {
                text.push_str(&lines.counts.after(lines.shown, &self.prefix));
            }
            if lines.junk > 0 {
                write!(
                    notes,
                    "\n[matching lines that are not text, and so not shown: {}]",
                    grouped(lines.junk)
                )
                .ok();
            }
            notes.push_str(&lines.counts.notes(&self.prefix));
            notes.push_str(&printed.trouble.note(UNSEARCHED));
        }
        Ok(text.trim_start().to_owned() + &notes)
    }

    /// Files with the number of their matching lines, at most `most` of them.
    async fn summary(&self, most: usize) -> Result<String, Failure> {
        let counts = self.counts().await?;
        Ok(if counts.files.is_empty() {
            String::new()
        } else {
            counts.shown(most, &self.prefix)
        } + &counts.notes(&self.prefix))
    }

    /// The number of matching lines by file.
    async fn counts(&self) -> Result<Counts, Failure> {
        let printed = self
            .run(&or_utf16(&self.pattern), Form::Counts, &self.names())
            .await?;
        let parsing = move || Counts::parse(&printed.output);
        let mut counts = off_the_runtime(true, parsing).await?;
        counts.trouble = printed.trouble;
        if !counts.files.is_empty() {
            // A file in UTF-16 was counted because of its beginning.
            let matching: Vec<&[u8]> = counts
                .files
                .iter()
                .map(|(name, _)| name.as_slice())
                .collect();
            let printed = self.run(&utf16(), Form::First, &matching).await?;
            let lines = Lines::new(&printed.output, &matching, self);
            counts.utf16 = lines.counts.utf16;
            counts
                .files
                .retain(|(name, _)| !counts.utf16.contains(name));
        }
        Ok(counts)
    }
}

/// A bound on a line of grep's output that names one of `files`.
fn line_bound(files: &[&[u8]]) -> usize {
    LINE + files.iter().map(|name| name.len()).max().unwrap_or(0)
}

/// The beginning of a file in UTF-16.
fn utf16() -> Pattern {
    Pattern {
        text: b"^(\xff\xfe|\xfe\xff)".to_vec(),
        fixed: false,
    }
}

/// What `pattern` finds, and the files in UTF-16, which it can't look into. For plain text the script does it.
fn or_utf16(pattern: &Pattern) -> Pattern {
    if pattern.fixed {
        return pattern.clone();
    }
    Pattern {
        text: [b"(", pattern.text.as_slice(), b")|", &utf16().text].concat(),
        fixed: false,
    }
}

/// Matching lines by file.
#[derive(Debug, Default)]
struct Counts {
    /// In the order of the search.
    files: Vec<(Vec<u8>, u64)>,
    utf16: BTreeSet<Vec<u8>>,
    trouble: Trouble,
}

impl Counts {
    fn parse(output: &[u8]) -> Self {
        let files = output.split(|b| *b == b'\n').filter_map(|line| {
            let colon = line.iter().rposition(|b| *b == b':')?;
            let (name, n) = line.split_at_checked(colon)?;
            let n = std::str::from_utf8(n.get(1..)?).ok()?.parse().ok()?;
            Some((name.strip_prefix(b"./")?.to_vec(), n))
        });
        Self {
            files: files.filter(|(_, n)| *n > 0).collect(),
            ..Self::default()
        }
    }

    fn add(&mut self, name: &[u8]) {
        match self.files.last_mut() {
            Some((last, n)) if last == name => *n += 1,
            _ => self.files.push((name.to_vec(), 1)),
        }
    }

    fn total(&self) -> String {
        grouped(self.files.iter().map(|(_, n)| n).sum())
    }

    /// At most `most` of the files, and the totals if these are not all.
    fn shown(&self, most: usize, prefix: &str) -> String {
        let mut text = String::new();
        for (name, n) in self.files.iter().take(most) {
            let name = one_line(&String::from_utf8_lossy(name));
            writeln!(text, "{prefix}{name}:{n}").ok();
        }
        if self.files.len() > most {
            write!(
                text,
                "[{} matching lines in {} files{}]",
                self.total(),
                grouped(count(self.files.len())),
                if most == 0 {
                    String::new()
                } else {
                    format!("; the first {most} are shown")
                }
            )
            .ok();
        }
        text.trim_end().to_owned()
    }

    /// The same behind lines of which not all are shown.
    fn after(&self, lines: usize, prefix: &str) -> String {
        format!(
            "\n[the first {lines} lines. All {} matching lines by file; narrow path or glob to see them:]\n{}",
            self.total(),
            self.shown(SHOWN_COUNTS, prefix)
        )
    }

    /// What was not searched.
    fn notes(&self, prefix: &str) -> String {
        let mut notes = String::new();
        if !self.utf16.is_empty() {
            let names = self.utf16.iter().take(SHOWN_UTF16);
            let names: Vec<String> = names
                .map(|name| format!("{prefix}{}", one_line(&String::from_utf8_lossy(name))))
                .collect();
            let more = if self.utf16.len() > names.len() {
                ", …"
            } else {
                ""
            };
            write!(
                notes,
                "\n[not searched, for they are in UTF-16 (see iconv): {}: {}{more}]",
                grouped(count(self.utf16.len())),
                names.join(", ")
            )
            .ok();
        }
        notes + &self.trouble.note(UNSEARCHED)
    }
}

/// Lines of grep's output, as they are shown.
#[derive(Debug, Default)]
struct Lines {
    text: String,
    shown: usize,
    /// There are more than are shown.
    over: bool,
    /// Matching lines that are no text.
    junk: u64,
    /// Of all of them.
    counts: Counts,
}

impl Lines {
    fn new(output: &[u8], files: &[&[u8]], search: &Search<'_>) -> Self {
        let mut lines = Self::default();
        let bound = line_bound(files);
        let mut chars = 0;
        let mut gap = false;
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
            if line == b"--" {
                gap = true;
                continue;
            }
            let Some(Line {
                name,
                matches,
                number,
                text,
            }) = Line::parse(line, files)
            else {
                continue;
            };
            if number == b"1" && UTF16.iter().any(|mark| text.starts_with(mark)) {
                lines.counts.utf16.insert(name.to_vec());
            }
            if lines.counts.utf16.contains(name) {
                continue;
            }
            if matches {
                lines.counts.add(name);
            }
            if junk {
                lines.junk += u64::from(matches);
                continue;
            }
            if lines.over {
                continue;
            }
            let shown = search.line(line, bound);
            let length = shown.chars().count() + 1;
            if lines.shown == SHOWN_LINES || chars + length > SHOWN_CHARS {
                lines.over = true;
                continue;
            }
            if std::mem::take(&mut gap) && lines.shown > 0 {
                lines.text.push_str("--\n");
            }
            lines.shown += 1;
            chars += length;
            writeln!(lines.text, "{shown}").ok();
        }
        lines.text.truncate(lines.text.trim_end().len());
        lines
    }
}

impl Search<'_> {
    /// A line of grep's output as it is shown. Secrets go before anything is cut, or half of one may stay.
    fn line(&self, line: &[u8], bound: usize) -> String {
        let text = String::from_utf8_lossy(line.strip_prefix(b"./").unwrap_or(line));
        let text: Vec<String> = text.split('\t').map(one_line).collect();
        let text = format!("{}{}", self.prefix, text.join("\t"));
        let redactor = &self.context.redactor;
        let (text, cut) = if line.len() < bound {
            (redactor.clean(&text).into_owned(), false)
        } else {
            // Its end may be the beginning of a secret: that much is held back.
            (redactor.stream().push(&text), true)
        };
        let shown = first_chars(&text, SHOWN_IN_LINE);
        if cut || shown.len() < text.len() {
            format!("{shown} […]")
        } else {
            text
        }
    }
}

/// `./name:number:text`, or with `-` for a line near a match.
struct Line<'a> {
    name: &'a [u8],
    matches: bool,
    number: &'a [u8],
    text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Names may have colons and dashes in them: the right one is one of `files`, which are sorted as
    /// [`Listing`] has them.
    fn parse(line: &'a [u8], files: &[&[u8]]) -> Option<Self> {
        let known = |name: &[u8]| {
            let place = |file: &&[u8]| (depth(file), *file).cmp(&(depth(name), name));
            files.binary_search_by(place).is_ok()
        };
        let line = line.strip_prefix(b"./")?;
        let marks = line
            .iter()
            .enumerate()
            .filter(|(_, b)| matches!(b, b':' | b'-'));
        marks.into_iter().find_map(|(at, mark)| {
            let (name, rest) = line.split_at_checked(at)?;
            let rest = rest.get(1..)?;
            let end = rest.iter().position(|b| !b.is_ascii_digit())?;
            let (number, text) = rest.split_at_checked(end)?;
            let text = text.strip_prefix(std::slice::from_ref(mark))?;
            (!number.is_empty() && known(name)).then_some(Self {
                name,
                matches: *mark == b':',
                number,
                text,
            })
        })
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
