//! `grep`: the same lines in every image.
//!
//! The host translates the pattern and chooses the files; the sandbox only runs a plain `grep`, with options
//! that GNU and `BusyBox` share.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::ToolSpec;
use crate::secrets::Redactor;
use crate::show::{first_chars, grouped, one_line, short};

use super::listing::{Listing, Root, Trouble, complaints, count, no_program, off_the_runtime};
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
/// Characters of ASCII that a file in UTF-16 without such a mark begins with.
const UNMARKED: usize = 3;
/// KiB of memory that each program of a search may use.
const MEMORY: &str = "524288";
const MEMORY_MIB: u32 = 512;
/// What is said of lines that match a pattern of which too much would have to be spelt out.
const WIDE: &str = "\n[letters beyond ASCII are not told apart in this pattern's repeated classes, which would be too large: look \
    at lines with such letters again]";

/// Searches files for the pattern in the first line of standard input. Their names follow, each ending with
/// NUL, or are in the file `$1`, which is removed. `$2` is the directory, `$3` how many bytes of output are
/// wanted, `$4` how many of a line; the others are grep's options. For `$4` of `counts` files without a match are
/// left out; for `marks 99` all lines but those that are a file's first and begin as UTF-16 does, and so some that
/// only seem to. NUL is 1 there for a while, since no pattern can have it.
///
/// No search takes the memory that other programs of the sandbox need.
///
/// grep tries the pattern on a line first, so that its complaint is not lost among those about files.
const SEARCH: &str = r#"
IFS= read -r pattern
if [ -n "$1" ]; then
exec <"$1" || exit 6
rm -f "$1"
fi
cd "$2" || exit 5
keep=$3
line=$4
ulimit -v "$5" 2>/dev/null
shift 5
for n in grep xargs cut head tr; do
command -v "$n" >/dev/null || { echo "$n" >&2; exit 7; }
done
set -- "$@" -e "$pattern"
said=$(echo | grep "$@" 2>&1 >/dev/null)
status=$?
[ $status -le 1 ] || { printf '%s\n' "${said:-grep ended with exit code $status}" >&2; exit 8; }
set -- "$@" /dev/null
case $line in
counts) xargs -0 -s 400000 grep "$@" | grep -av ':0$' ;;
marks*)
xargs -0 -s 400000 grep "$@" |
tr '\000\001' '\001\000' |
cut -b "1-${line#marks }" |
grep -aE -e "$(printf ':1:(\377\376|\376\377|([ -~]\001){3}|(\001[ -~]){3})')" |
tr '\000\001' '\001\000'
;;
*) xargs -0 -s 400000 grep "$@" | cut -b "1-$line" ;;
esac | head -c "$keep"
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
    files: Arc<Files>,
    pattern: Pattern,
}

/// The files that are searched.
struct Files {
    /// Their names, relative to the search's base, as the script wants them.
    list: Bytes,
    known: HashSet<Vec<u8>>,
    /// The length of the longest name.
    longest: usize,
}

impl Files {
    fn new(files: Vec<Vec<u8>>) -> Self {
        let names = files
            .iter()
            .flat_map(|name| [b"./", name.as_slice(), b"\0"]);
        Self {
            list: names.collect::<Vec<&[u8]>>().concat().into(),
            longest: files.iter().map(Vec::len).max().unwrap_or(0),
            known: files.into_iter().collect(),
        }
    }

    /// A bound on a line of grep's output.
    fn line_bound(&self) -> usize {
        LINE + self.longest
    }
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
    let (pattern, plain, filter, glob) = off_the_runtime(true, parsing).await??;
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
            let filtering = move || chosen(files, filter.as_ref(), &base, &start);
            let (files, odd_names) = off_the_runtime(true, filtering).await??;
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
            let shown = given.strip_suffix(asked).unwrap_or("").to_owned();
            let files = Files::new(vec![name.as_bytes().to_vec()]);
            (format!("{dir}/"), shown, files, 0)
        }
        Root::Closed | Root::Missing => return Err(not_listed(&listing, &path, context).await),
    };
    if files.known.is_empty() && all > 0 && odd_names == 0 {
        return Ok(answer(
            context,
            &format!(
                "(no matches: of {} none has a name like {}){}{}",
                number(all, "file"),
                short(&context.redactor.clean(&glob), 200),
                skipped_note(&named),
                listing.trouble.note(UNREAD)
            ),
        ));
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
    } = match mode {
        _ if search.files.known.is_empty() => Answer::default(),
        Mode::Content => search.content(around.clamp(0, MOST_CONTEXT)).await?,
        Mode::Files => search.summary(SHOWN_FILES).await?,
        Mode::Count => search.summary(0).await?,
    };
    if text.is_empty() {
        let searched = search.files.known.len().saturating_sub(unsearched);
        if is_file && searched == 0 {
            return Err(Failure::Complaint(format!(
                "{} can't be searched:{notes}",
                one_line(&path)
            )));
        }
        let skipped = if path.is_empty() || search.files.known.is_empty() {
            skipped_note(&named)
        } else {
            String::new()
        };
        text = format!("(no matches in {}){skipped}", number(searched, "file"));
        text.push_str(&search.plainly(plain, &given).await?);
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
    if listing.cut {
        text.push_str("\n[too many files to search all of them: give a narrower path]");
    }
    text.push_str(&listing.trouble.note(UNREAD));
    Ok(answer(context, &text))
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
}

/// How many there are of what has a regular plural.
fn number(n: usize, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(count(n)))
}

/// The files that the search is for, and how many were left out because of their names.
fn chosen(
    mut files: Vec<Vec<u8>>,
    filter: Option<&NamePattern>,
    base: &str,
    prefix: &str,
) -> Result<(Files, usize), Failure> {
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
    Ok((Files::new(files), odd))
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
    Counts,
    /// The beginnings of first lines that may be in UTF-16, whatever the pattern.
    Marks,
}

impl Search<'_> {
    /// Runs the sandbox's grep over the files.
    async fn run(&self, form: Form<'_>) -> Result<Printed, Failure> {
        let Pattern { text, fixed, .. } = &self.pattern;
        let kind = if *fixed { "F" } else { "E" };
        let bound = self.files.line_bound().to_string();
        let (options, more, keep, line) = match form {
            Form::Lines("0") => (format!("-aHn{kind}"), vec![], KEEP_LINES, bound),
            Form::Lines(around) => (format!("-aHn{kind}"), vec!["-C", around], KEEP_LINES, bound),
            Form::Counts => (
                format!("-aHc{kind}"),
                vec![],
                KEEP_COUNTS,
                "counts".to_owned(),
            ),
            Form::Marks => (
                "-aHnE".to_owned(),
                vec!["-m", "1"],
                KEEP_COUNTS,
                format!("marks {bound}"),
            ),
        };
        // Any line will do: so no more than the first of a file is read.
        let pattern = if let Form::Marks = form {
            b"^"
        } else {
            text.as_slice()
        };
        let mut stdin = [pattern, b"\n"].concat();
        let names = &self.files.list;
        let mut list = String::new();
        if stdin.len() + names.len() > STDIN {
            let session = &self.context.session;
            let facts = session.probe(self.context.sandbox.as_ref()).await;
            list = format!("{}/search-{}", facts.state_dir, session.output_name());
            super::store(&list, &list, names.clone(), self.context).await?;
        } else {
            stdin.extend_from_slice(names);
        }
        let wanted = keep.to_string();
        let mut args = vec![list.as_str(), &self.base, &wanted, &line, MEMORY, &options];
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
        let redactor = &self.context.redactor;
        let said = || short(complaints(&found.stderr, redactor).trim(), 300);
        let starved = complaints(&found.stderr, redactor)
            .lines()
            .any(|line| is_starved(line.trim()));
        Err(match found.exit_code {
            0 | 8 if starved => Failure::Complaint(format!(
                "grep needs more memory than a search may use ({MEMORY_MIB} MiB), so not all was searched; make the pattern \
                 simpler (smaller counts), or give a narrower path"
            )),
            0 => {
                return Ok(Printed {
                    trouble: Trouble::read(&found.stderr, redactor),
                    output: found.stdout,
                });
            }
            7 => no_program(&found.stderr, redactor),
            8 => Failure::Complaint(format!(
                "the sandbox's grep can't use this pattern, so nothing was searched: {}",
                said()
            )),
            code => Failure::Complaint(format!(
                "the search failed with exit code {code}: {}",
                said()
            )),
        })
    }

    /// Lines with their places; with counts, if they are too many.
    async fn content(&self, around: i64) -> Result<Answer, Failure> {
        let printed = self.run(Form::Lines(&around.to_string())).await?;
        let utf16 = self.utf16().await?;
        let many = printed.output.len() >= KEEP_LINES;
        let (files, redactor) = (Arc::clone(&self.files), self.context.redactor.clone());
        let (prefix, marked) = (self.prefix.clone(), utf16.clone());
        let reading = move || {
            let shown = Shown {
                prefix: &prefix,
                redactor: &redactor,
            };
            Lines::new(&printed.output, &files, marked, &shown)
        };
        let lines = off_the_runtime(true, reading).await?;
        let mut text = lines.text;
        let mut notes = String::new();
        let mut unsearched = lines.counts.utf16.len() + printed.trouble.count();
        if many {
            let counts = self.counts(utf16).await?;
            text.push_str(&counts.after(lines.shown, &self.prefix));
            notes = counts.notes(&self.prefix);
            unsearched = counts.unsearched();
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
            notes.push_str(&printed.trouble.note(UNSEARCHED));
        }
        Ok(Answer {
            text: text.trim_start().to_owned(),
            notes,
            unsearched,
        })
    }

    /// Files with the number of their matching lines, at most `most` of them.
    async fn summary(&self, most: usize) -> Result<Answer, Failure> {
        let counts = self.counts(self.utf16().await?).await?;
        let text = if counts.files.is_empty() {
            String::new()
        } else {
            counts.shown(most, &self.prefix)
        };
        Ok(Answer {
            text,
            notes: counts.notes(&self.prefix),
            unsearched: counts.unsearched(),
        })
    }

    /// Where nothing matches: what `plain`, the pattern's own text, would have found.
    async fn plainly(&self, plain: Option<Pattern>, given: &str) -> Result<String, Failure> {
        let Some(pattern) = plain.filter(|_| !self.files.known.is_empty()) else {
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
        let escaped = short(&one_line(&regex_syntax::escape(given)), 500);
        Ok(format!(
            "\n[as plain text the pattern stands in {}; to find these, escape it: {}]",
            counts.total("line"),
            self.context.redactor.clean(&escaped)
        ))
    }

    /// The number of matching lines by file.
    async fn counts(&self, utf16: BTreeSet<Vec<u8>>) -> Result<Counts, Failure> {
        let Printed { output, trouble } = self.run(Form::Counts).await?;
        off_the_runtime(true, move || Counts {
            trouble,
            ..Counts::parse(&output, utf16)
        })
        .await
    }

    /// The files in UTF-16, which no pattern can look into.
    async fn utf16(&self) -> Result<BTreeSet<Vec<u8>>, Failure> {
        let Printed { output, .. } = self.run(Form::Marks).await?;
        let files = Arc::clone(&self.files);
        off_the_runtime(true, move || marked(&output, &files)).await
    }
}

/// The files whose first line, if `output` has it, begins with a mark of UTF-16.
fn marked(output: &[u8], files: &Files) -> BTreeSet<Vec<u8>> {
    let lines = output.split(|b| *b == b'\n');
    lines
        .filter_map(|line| Line::parse(line, &files.known))
        .filter(|line| line.number == b"1" && begins_as_utf16(line.text))
        .map(|line| line.name.to_vec())
        .collect()
}

fn begins_as_utf16(text: &[u8]) -> bool {
    let printable = |b: u8| matches!(b, b' '..=b'~');
    let unmarked = |is: fn((u8, u8)) -> Option<u8>| {
        let pairs = text.chunks_exact(2).take(UNMARKED);
        let pairs =
            pairs.map_while(|pair| is((*pair.first()?, *pair.get(1)?)).filter(|b| printable(*b)));
        pairs.count() == UNMARKED
    };
    UTF16.iter().any(|mark| text.starts_with(mark))
        || unmarked(|(b, nul)| (nul == 0).then_some(b))
        || unmarked(|(nul, b)| (nul == 0).then_some(b))
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
    fn parse(output: &[u8], utf16: BTreeSet<Vec<u8>>) -> Self {
        let files = output.split(|b| *b == b'\n').filter_map(|line| {
            let colon = line.iter().rposition(|b| *b == b':')?;
            let (name, n) = line.split_at_checked(colon)?;
            let n = std::str::from_utf8(n.get(1..)?).ok()?.parse().ok()?;
            Some((name.strip_prefix(b"./")?.to_vec(), n))
        });
        Self {
            files: files
                .filter(|(name, n)| *n > 0 && !utf16.contains(name))
                .collect(),
            utf16,
            trouble: Trouble::default(),
        }
    }

    fn add(&mut self, name: &[u8]) {
        match self.files.last_mut() {
            Some((last, n)) if last == name => *n = n.saturating_add(1),
            _ => self.files.push((name.to_vec(), 1)),
        }
    }

    /// The sum, of `what` has a regular plural.
    fn total(&self, what: &str) -> String {
        let counts = self.files.iter().map(|(_, n)| *n);
        let sum = counts.fold(0, u64::saturating_add);
        number(usize::try_from(sum).unwrap_or(usize::MAX), what)
    }

    fn unsearched(&self) -> usize {
        self.utf16.len() + self.trouble.count()
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
                "[{} in {}{}]",
                self.total("matching line"),
                number(self.files.len(), "file"),
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
            "\n[the first {}. All {} by file; narrow path or glob to see them:]\n{}",
            number(lines, "line"),
            self.total("matching line"),
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
    fn new(output: &[u8], files: &Files, utf16: BTreeSet<Vec<u8>>, show: &Shown<'_>) -> Self {
        let mut lines = Self::default();
        lines.counts.utf16 = utf16;
        let bound = files.line_bound();
        let mut chars = 0;
        let mut gap = false;
        let mut rest = output
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .peekable();
        while let Some(line) = rest.next() {
            // BusyBox shows a NUL as a line end: what names no file belongs to the line before it.
            let mut junk = line.contains(&0);
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
            let Some(parsed) = Line::parse(line, &files.known) else {
                continue;
            };
            let Line { name, matches, .. } = parsed;
            if lines.counts.utf16.contains(name) {
                continue;
            }
            if matches {
                lines.counts.add(name);
            }
            if junk || is_junk(parsed.text) {
                lines.junk = lines.junk.saturating_add(u64::from(matches));
                continue;
            }
            if lines.over {
                continue;
            }
            let shown = show.line(&parsed, line.len() >= bound);
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

/// How lines are shown.
struct Shown<'a> {
    prefix: &'a str,
    redactor: &'a Redactor,
}

impl Shown<'_> {
    /// A line of grep's output; `cut` if not all of it was fetched. Secrets go before anything is cut, or half of
    /// one may stay. However long the name is, the text has room of its own.
    fn line(&self, line: &Line<'_>, cut: bool) -> String {
        let name = one_line(&String::from_utf8_lossy(line.name));
        let name = format!("{}{name}", self.prefix);
        let mark = if line.matches { ':' } else { '-' };
        let number = String::from_utf8_lossy(line.number);
        let text = String::from_utf8_lossy(line.text);
        let text: Vec<String> = text.split('\t').map(one_line).collect();
        let text = text.join("\t");
        let text = if cut {
            // Its end may be the beginning of a secret: that much is held back.
            self.redactor.stream().push(&text)
        } else {
            self.redactor.clean(&text).into_owned()
        };
        let start = first_chars(&text, SHOWN_IN_LINE);
        let more = if cut || start.len() < text.len() {
            " […]"
        } else {
            ""
        };
        let name = self.redactor.clean(&name);
        format!("{name}{mark}{number}{mark}{start}{more}")
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
    /// Names may have colons and dashes in them: the right one is one of those that are `known`.
    fn parse(line: &'a [u8], known: &HashSet<Vec<u8>>) -> Option<Self> {
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
            (!number.is_empty() && known.contains(name)).then_some(Self {
                name,
                matches: *mark == b':',
                number,
                text,
            })
        })
    }
}

/// Whether programs make such a complaint for want of memory. What has a path in it is about a file.
fn is_starved(line: &str) -> bool {
    let words = line.to_ascii_lowercase();
    !line.contains("./")
        && (words.ends_with("memory exhausted") || words.ends_with("out of memory"))
        || words.starts_with("xargs: ")
            && words.contains("terminated by signal")
            && !words.ends_with("signal 13")
        || words.starts_with("grep ended with exit code 1")
}

/// A text with more undecodable bytes than others, or with some and control characters: of a few bytes nothing
/// can be said.
fn is_junk(text: &[u8]) -> bool {
    const FEW: usize = 4;
    let bad = text
        .utf8_chunks()
        .map(|chunk| chunk.invalid().len())
        .sum::<usize>();
    // What terminals and editors put into text is no sign of anything else.
    let controls = text
        .iter()
        .filter(|b| b.is_ascii_control() && !b"\t\r\x08\x0c\x1b".contains(b))
        .count();
    text.contains(&0)
        || bad + controls > FEW && (bad + controls) * 2 > text.len()
        || bad > 0 && controls > 0 && bad + controls > FEW && (bad + controls) * 5 > text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_any_size_are_summed() {
        let output = format!("./a:{0}\n./b:{0}\n./c:0\n./d:1\n", u64::MAX);
        let counts = Counts::parse(output.as_bytes(), BTreeSet::from([b"d".to_vec()]));
        assert_eq!(counts.files.len(), 2);
        assert_eq!(counts.total("line"), format!("{} lines", grouped(u64::MAX)));
    }

    #[test]
    fn a_long_name_leaves_room_for_the_text() {
        let shown = Shown {
            prefix: "",
            redactor: &Redactor::default(),
        };
        let name = "n".repeat(4_000);
        let line = Line {
            name: name.as_bytes(),
            matches: true,
            number: b"7",
            text: b"needle",
        };
        assert_eq!(shown.line(&line, false), format!("{name}:7:needle"));
    }

    #[test]
    fn lines_of_compressed_data_are_no_text() {
        for junk in [
            &b"\x1f\x8b\x08\x00ab"[..],
            b"k\xb1\x9dR\x02Q\xe4m{\x05\xf3x\xc3\xa9\x91zq\x11",
            b"\xcc\xe8\xf0 \xcc\xe8\xf0 \xcc\xe8\xf0",
        ] {
            assert!(is_junk(junk), "{}", junk.escape_ascii());
        }
        for text in [
            &b"caf\xe9 au lait"[..],
            b"x\xfe\xff\xff",
            b"\x1b[1mbold\x1b[0m\t\r",
            "Москва\u{1}".as_bytes(),
        ] {
            assert!(!is_junk(text), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn want_of_memory_is_told_from_trouble_with_files() {
        for line in [
            "grep: memory exhausted",
            "grep: out of memory",
            "xargs: grep: terminated by signal 9",
        ] {
            assert!(is_starved(line), "{line}");
        }
        for line in [
            "grep: ./out of memory: Permission denied",
            "xargs: grep: terminated by signal 13",
            "grep: ./x: memory exhausted",
        ] {
            assert!(!is_starved(line), "{line}");
        }
    }

    #[test]
    fn only_a_first_line_marks_a_file_as_utf16() {
        let files = Files::new(
            ["a", "b", "c:1"]
                .map(|name| name.as_bytes().to_vec())
                .to_vec(),
        );
        let output = b"./a:1:\xff\xfex\n./b:2:\xff\xfe\n./b:1:x:1:\xff\xfe\n./c:1:1:\xfe\xff\n./d:1:\xff\xfe\n";
        let found: Vec<_> = marked(output, &files).into_iter().collect();
        assert_eq!(found, [&b"a"[..], b"c:1"]);
    }
}
