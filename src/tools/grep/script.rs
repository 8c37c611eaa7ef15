//! The sandbox's `grep`, run over a list of files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::secrets::Redactor;
use crate::show::short;
use crate::tools::listing::{MEMORY_MIB, Trouble, complaints, no_program};
use crate::tools::regex::Pattern;
use crate::tools::script::Script;
use crate::tools::state::{Unkept, discard, keep};
use crate::tools::types::{Failure, ToolContext};

const LIMIT: Duration = Duration::from_secs(20);
/// Longer lists of files go through a file of the sandbox, if there is room for it: for some backends much input is slow.
const STDIN: usize = 64 * 1024;
/// Bytes of lines that are fetched.
pub(super) const KEEP_LINES: usize = 1024 * 1024;
/// Bytes of counts: more than a listing has names for.
const KEEP_COUNTS: usize = 16 * 1024 * 1024;
/// Bytes of a line that are fetched, beside its file's name and what may be the beginning of a secret.
const LINE: usize = 1_300;

/// Searches files for the pattern in the first line of standard input. Their names follow, each ending with
/// NUL, or are in the file `$1`, which another try may read again. `$2` is the directory, `$3` how many bytes of output are
/// wanted, `$4` how many of a line; the others are grep's options. For `$4` of `counts` files without a match are
/// left out; for `marks 99` all lines but those that are a file's first and begin as UTF-16 or UTF-32 does, and so some that
/// only seem to. NUL is 1 there for a while, since no pattern can have it.
///
/// No search takes the memory that other programs of the sandbox need.
///
/// grep tries the pattern on a line first, so that its complaint is not lost among those about files.
///
/// The last line is `/end ` and how `xargs` ended, which no line of a file begins like: all that was found came through.
const SEARCH: &str = r#"
IFS= read -r pattern
list=$1
[ -z "$list" ] || exec <"$list" || exit 6
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
search() { xargs -0 -s 400000 grep "$@"; echo "/end $?"; }
case $line in
counts) search "$@" | grep -av ':0$' ;;
marks*)
search "$@" |
tr '\000\001' '\001\000' |
cut -b "1-${line#marks }" |
grep -aE -e "$(printf ':1:(\377\376|\376\377|\001\001\376\377|([ -~]\001){3}|(\001[ -~]){3}|([ -~]\001{3}){2}|(\001{3}[ -~]){2}|([ -~]\001){1,2}(\r\001)?$|(\001[ -~]){1,2}(\001\r)?\001$)')" -e '^/end ' |
tr '\000\001' '\001\000'
;;
*) search "$@" | cut -b "1-$line" ;;
esac | head -c "$keep"
"#;

/// The files that are searched.
pub(super) struct Files {
    /// Their names, relative to the search's base, as the script wants them.
    list: Bytes,
    /// Sorted by their bytes.
    names: Vec<Vec<u8>>,
    /// The length of the longest name.
    longest: usize,
}

impl Files {
    pub(super) fn new(mut files: Vec<Vec<u8>>) -> Self {
        let mut list = Vec::with_capacity(files.iter().map(|name| name.len() + 3).sum());
        for name in &files {
            for part in [b"./", name.as_slice(), b"\0"] {
                list.extend_from_slice(part);
            }
        }
        files.sort_unstable();
        Self {
            list: list.into(),
            longest: files.iter().map(Vec::len).max().unwrap_or(0),
            names: files,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.names.len()
    }

    /// Whether `name` is one of them.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        let at = |known: &Vec<u8>| known.as_slice().cmp(name);
        self.names.binary_search_by(at).is_ok()
    }

    /// The lengths of the names that `line` begins with, shortest first. No byte of it is looked at more often than a
    /// search in a sorted list takes: what a sandbox prints may be made to have as many beginnings as it has bytes.
    pub(super) fn beginnings(&self, line: &[u8]) -> impl Iterator<Item = usize> {
        let mut names = self.names.as_slice();
        let mut line = line.iter();
        let mut length = 0;
        std::iter::from_fn(move || {
            loop {
                let first = names.first()?;
                if first.len() == length {
                    // The shorter one stands first.
                    names = names.get(1..).unwrap_or_default();
                    return Some(length);
                }
                let next = line.next()?;
                let at = |name: &Vec<u8>| name.get(length).copied();
                let from = names.partition_point(|name| at(name) < Some(*next));
                let to = names.partition_point(|name| at(name) <= Some(*next));
                names = names.get(from..to).unwrap_or_default();
                length += 1;
            }
        })
    }

    /// A bound on a line of grep's output, of whose end `redactor` leaves something out.
    pub(super) fn line_bound(&self, redactor: &Redactor) -> usize {
        LINE + self.longest + redactor.held_back()
    }
}

/// What a search printed, and what it could not do.
pub(super) struct Printed {
    pub(super) output: Vec<u8>,
    pub(super) trouble: Trouble,
}

/// Where the last line of a search stands, and whether it tells that all was searched.
fn end(output: &[u8]) -> Option<(usize, bool)> {
    let lines = output.strip_suffix(b"\n")?;
    let start = memchr::memrchr(b'\n', lines).map_or(0, |end| end + 1);
    let code = lines.get(start..)?.strip_prefix(b"/end ")?;
    // 123: one of the greps found nothing, or complained of a file.
    Some((start, matches!(code, b"0" | b"1" | b"123")))
}

/// What is asked of grep.
#[derive(Clone, Copy)]
pub(super) enum Form<'a> {
    /// Lines with so many around them.
    Lines(&'a str),
    Counts,
    /// The beginnings of first lines that may be in UTF-16 or UTF-32, whatever the pattern.
    Marks,
}

/// A search of some files, which can be run for lines or for counts.
pub(super) struct Search<'a> {
    pub(super) context: &'a ToolContext,
    /// The directory, absolute, that the names start from.
    pub(super) base: String,
    /// What is shown before a name.
    pub(super) prefix: String,
    pub(super) files: Arc<Files>,
    pub(super) pattern: Pattern,
}

impl Search<'_> {
    /// Writes the list of files to one of the sandbox; gives its path, or nothing if there is no room for it.
    async fn list(&self) -> Result<String, Failure> {
        let session = &self.context.session;
        let facts = session.probe(self.context.sandbox.as_ref()).await;
        let name = format!("search-{}", session.output_name());
        match keep(&name, &self.files.list, facts, self.context).await {
            Ok(path) => Ok(path),
            Err(Unkept::Short(_) | Unkept::Failure(Failure::Complaint(_))) => Ok(String::new()),
            Err(Unkept::Failure(failure)) => Err(failure),
        }
    }

    /// Runs the sandbox's grep over the files.
    pub(super) async fn run(&self, form: Form<'_>) -> Result<Printed, Failure> {
        let Pattern { text, fixed, .. } = &self.pattern;
        let kind = if *fixed { "F" } else { "E" };
        let bound = self.files.line_bound(&self.context.redactor).to_string();
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
            list = self.list().await?;
        }
        if list.is_empty() {
            stdin.extend_from_slice(names);
        }
        let (wanted, memory) = (keep.to_string(), (MEMORY_MIB * 1024).to_string());
        let mut args = vec![list.as_str(), &self.base, &wanted, &line, &memory, &options];
        args.extend(more);
        let ran = Script {
            text: SEARCH,
            args,
            stdin: stdin.into(),
            env: BTreeMap::from([("LC_ALL".to_owned(), "C".to_owned())]),
            keep,
            ..Script::default()
        }
        .run_for(self.context, LIMIT)
        .await;
        if !list.is_empty() {
            discard(&list, self.context).await;
        }
        let mut found = ran?;
        let redactor = &self.context.redactor;
        let said = || short(complaints(&found.stderr, redactor).trim(), 300);
        let mut trouble = Trouble::read(&found.stderr, redactor);
        Err(match found.exit_code {
            // With the pattern alone, before any file.
            8 if trouble.starved => Failure::Complaint(format!(
                "grep needs more memory for this pattern than a search may use ({MEMORY_MIB} MiB), so nothing was searched; \
                 make it simpler (smaller counts)"
            )),
            8 if said().ends_with("exit code 137") => Failure::Complaint(
                "the sandbox's grep was killed as it tried the pattern, so nothing was searched; try again".to_owned(),
            ),
            0 => {
                let cut = found.stdout.len() >= keep;
                let end = end(&found.stdout);
                if let Some((start, _)) = end {
                    found.stdout.truncate(start);
                }
                if !(end.is_some_and(|(_, whole)| whole) || cut || trouble.starved) {
                    if found.stdout.is_empty() {
                        return Err(Failure::Complaint(
                            "the search broke off before its end, for a program of it was killed or failed, and had \
                             found nothing by then; try again"
                                .to_owned(),
                        ));
                    }
                    let why = "the search broke off before its end: lines and files may be missing";
                    trouble.add(1, why);
                }
                return Ok(Printed {
                    trouble,
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
}
