//! The files below a directory of the sandbox, as bytes: a name is whatever the sandbox says.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::paths::LONGEST_PATH;
use crate::sandbox::ExecCollected;
use crate::sandbox::files::{SKIPPED, depth};
use crate::secrets::Redactor;
use crate::show::{grouped, one_line, prose, short};

use super::names::forms;
use super::script::Script;
use super::types::{Failure, ToolContext, off_the_runtime};

const LIMIT: Duration = Duration::from_secs(20);
/// Of the names.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// Of the names as well: what is kept beside each counts.
const MOST_NAMES: usize = 200_000;
/// What comes after the last name.
const LAST: &[u8] = b"/";

/// Files below `$1`, and links to files, without the directories named `$2`, `$3`, …; if `$1` is a file,
/// itself. Fields end with NUL; the first says what `$1` is, and the last, which is no name, that no program ended before
/// its end. Links to directories are not followed.
const LIST: &str = r#"
p=$1
shift
if [ -f "$p" ]; then printf 'f\000'; exit 0; fi
[ -d "$p" ] || { printf 'n\000'; exit 0; }
cd "$p" 2>/dev/null || { printf 'x\000'; exit 0; }
for n in find head xargs; do
command -v "$n" >/dev/null || { echo "$n" >&2; exit 7; }
done
printf 'd\000'
n=$#
for s in "$@"; do set -- "$@" -o -name "$s"; done
while [ "$n" -gt 0 ]; do shift; n=$((n-1)); done
shift
{
find . -type d ! -name . \( "$@" \) -prune -o -type f -print0
[ $? -le 1 ] || exit
{
find . -type d ! -name . \( "$@" \) -prune -o -type l -print0 2>/dev/null
[ $? -gt 1 ] || printf '/\000'
} | xargs -0 sh -c 'for f; do if [ "$f" = / ] || [ -f "$f" ]; then printf "%s\000" "$f"; fi; done' sh
} | head -c 8388608
"#;

/// What stands at the place that was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    Directory,
    File,
    /// A directory that can't be entered.
    Closed,
    Missing,
}

/// What is said before the words of a `find` that could not go everywhere.
pub(super) const UNREAD: &str = "not looked into";

/// Files below a directory.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) root: Root,
    /// What was listed: the path asked for, perhaps with its accents typed in another way.
    pub(super) path: String,
    /// Relative, without `./`, sorted by depth and then by bytes.
    pub(super) files: Vec<Vec<u8>>,
    /// Not all files: the names were too many.
    pub(super) cut: bool,
    /// Not all files: what lists them was killed, or failed.
    pub(super) broken: bool,
    /// Directories that can't be entered.
    pub(super) trouble: Trouble,
}

impl Listing {
    /// Lists `path`, absolute, without the directories of [`SKIPPED`] but those in `named`.
    pub(super) async fn take(
        path: &str,
        named: &[&str],
        context: &ToolContext,
    ) -> Result<Self, Failure> {
        let mut first = None;
        for form in forms(path) {
            let listing = Self::look(&form, named, context).await?;
            if listing.root != Root::Missing {
                return Ok(listing);
            }
            first.get_or_insert(listing);
        }
        first.ok_or_else(|| Failure::Complaint("path is empty".to_owned()))
    }

    async fn look(path: &str, named: &[&str], context: &ToolContext) -> Result<Self, Failure> {
        let mut args = vec![path];
        // Never none at all, for the script's sake.
        args.push(".");
        args.extend(SKIPPED.iter().filter(|skipped| !named.contains(skipped)));
        let found = Script {
            text: LIST,
            args,
            env: BTreeMap::from([("LC_ALL".to_owned(), "C".to_owned())]),
            keep: MOST_BYTES + 16,
            ..Script::default()
        }
        .run_for(context, LIMIT)
        .await?;
        if found.exit_code == 7 {
            return Err(no_program(&found.stderr, &context.redactor));
        }
        if found.stdout.is_empty() {
            return Err(unlooked(path, &found, context));
        }
        let path = path.to_owned();
        let redactor = context.redactor.clone();
        let parsing = move || Self::parse(path, &found.stdout, &found.stderr, &redactor);
        off_the_runtime(parsing).await
    }

    fn parse(path: String, output: &[u8], errors: &[u8], redactor: &Redactor) -> Self {
        let mut names = output.split_inclusive(|b| *b == 0);
        let root = match names.next() {
            Some(b"d\0") => Root::Directory,
            Some(b"f\0") => Root::File,
            Some(b"x\0") => Root::Closed,
            _ => Root::Missing,
        };
        let mut cut = false;
        let mut files = Vec::new();
        let mut too_long = 0;
        let mut whole = root != Root::Directory;
        for name in names {
            if files.len() >= MOST_NAMES {
                cut = true;
                break;
            }
            match name.strip_suffix(b"\0") {
                Some(LAST) => whole = true,
                // Of no file.
                Some(b"" | b"./") => {}
                // No program could open it, and what is done with a name may take the square of its length.
                Some(name) if name.len() > LONGEST_PATH => too_long += 1,
                Some(name) => files.push(name.strip_prefix(b"./").unwrap_or(name).to_vec()),
                None => cut = true,
            }
        }
        cut |= output.len() >= MOST_BYTES;
        files.sort_unstable();
        files.sort_by_cached_key(|name| depth(name));
        let mut trouble = Trouble::read(errors, redactor);
        let broken = !whole && !cut;
        if broken {
            trouble.add(
                1,
                "the sandbox's find ended before its end: files may be missing",
            );
        }
        if too_long > 0 {
            let longest = grouped(count(LONGEST_PATH));
            trouble.add(too_long, &format!("paths longer than {longest} bytes"));
        }
        Self {
            root,
            path,
            files,
            cut,
            broken,
            trouble,
        }
    }

    /// That there are none cannot be said of files whose listing broke off.
    pub(super) fn nothing_known(&self) -> Option<Failure> {
        let note = || self.trouble.note(UNREAD);
        self.broken.then(|| {
            Failure::Complaint(format!(
                "the list of files broke off before its end, and nothing was found in what came of it; try again{}",
                note()
            ))
        })
    }
}

/// Takes any output of the script, for [`crate::fuzz`].
pub(crate) fn fuzz_listing(output: &[u8]) {
    let listing = Listing::parse(String::new(), output, output, &Redactor::default());
    let longest = listing.files.iter().map(Vec::len).max();
    assert!(longest <= Some(LONGEST_PATH), "a name that no system takes");
    drop(listing.trouble.note("x"));
}

/// What a program of the sandbox could not do, in its own words.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    lines: u64,
    first: Vec<String>,
    /// There were more words than are read.
    cut: bool,
    /// A program had too little memory, and so left out nobody knows what.
    pub(super) starved: bool,
}

/// Memory that each program of a search may use.
pub(super) const MEMORY_MIB: u32 = 512;

const SHOWN_TROUBLES: usize = 3;
/// Bytes of complaints that are read.
const READ_TROUBLES: usize = 64 * 1024;

impl Trouble {
    /// Reads standard error; what a reader that has enough provokes is no trouble.
    pub(super) fn read(errors: &[u8], redactor: &Redactor) -> Self {
        let mut trouble = Self {
            cut: errors.len() > READ_TROUBLES,
            ..Self::default()
        };
        for line in complaints(errors, redactor).lines() {
            let line = line.trim();
            if is_starved(line) {
                trouble.starved = true;
            } else if !line.is_empty() && !is_expected(line) {
                trouble.add(1, line);
            }
        }
        trouble
    }

    pub(super) fn add(&mut self, times: u64, words: &str) {
        self.lines = self.lines.saturating_add(times);
        if self.first.len() < SHOWN_TROUBLES {
            self.first.push(short(words, 200));
        }
    }

    /// How many complaints there are.
    pub(super) fn count(&self) -> usize {
        usize::try_from(self.lines).unwrap_or(usize::MAX)
    }

    /// Lines for the model, each after a line end; nothing if all went well.
    pub(super) fn note(&self, what: &str) -> String {
        let starved = if self.starved {
            format!(
                "\n[not all was searched: a program needed more memory than a search may use ({MEMORY_MIB} MiB), as \
                 for a file with a line of hundreds of MB; leave such a file out by glob or path]"
            )
        } else {
            String::new()
        };
        if self.lines == 0 {
            return starved;
        }
        let more = if self.lines > count(self.first.len()) {
            "; …"
        } else {
            ""
        };
        format!(
            "{starved}\n[{what}: {}{}: {}{more}]",
            if self.cut { "at least " } else { "" },
            grouped(self.lines),
            self.first.join("; ")
        )
    }
}

/// The beginning of standard error without secrets: these go before anything is cut, or half of one may stay.
pub(super) fn complaints(errors: &[u8], redactor: &Redactor) -> String {
    match errors.get(..READ_TROUBLES) {
        Some(first) => redactor.clean_cut(&String::from_utf8_lossy(first)),
        None => redactor
            .clean(&String::from_utf8_lossy(errors))
            .into_owned(),
    }
}

/// Of a program whose reader has gone, or of `xargs` about its own bounds. Where the words stand matters: a file's
/// name may have any.
fn is_expected(line: &str) -> bool {
    line.ends_with(": Broken pipe")
        || line.starts_with("xargs: ")
            && (line.ends_with("signal 13") || line.contains(" -s option "))
}

/// Whether programs make such a complaint for want of memory. What has a path in it is about a file.
pub(super) fn is_starved(line: &str) -> bool {
    let words = line.to_ascii_lowercase();
    !line.contains("./")
        && (words.ends_with("memory exhausted") || words.ends_with("out of memory"))
        || words.starts_with("xargs: ")
            && words.contains("terminated by signal")
            && !words.ends_with("signal 13")
            && !words.ends_with("signal 9")
        || words.starts_with("grep ended with exit code 1") && !words.ends_with("137")
}

/// A script that prints something whatever it finds has printed nothing: it ended before that.
pub(super) fn unlooked(path: &str, found: &ExecCollected, context: &ToolContext) -> Failure {
    let said = prose(&complaints(&found.stderr, &context.redactor), 200);
    let said = match said.trim() {
        "" => String::new(),
        said => format!(": {said}"),
    };
    Failure::Complaint(format!(
        "{} could not be looked at; the script for it ended with exit {}{said}",
        one_line(path),
        found.exit_code
    ))
}

/// A program that the script asked for is not there.
pub(super) fn no_program(name: &[u8], redactor: &Redactor) -> Failure {
    let name = short(complaints(name, redactor).trim(), 100);
    Failure::Complaint(format!(
        "this sandbox has no `{name}`, without which files can't be searched; use bash"
    ))
}

/// How many there are of what has a regular plural.
pub(super) fn number(n: usize, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(count(n)))
}

/// The first of `texts` that have at most `most` characters together; the first one whatever it has.
pub(super) fn fitting(texts: impl Iterator<Item = String>, most: usize) -> Vec<String> {
    let mut chars = 0;
    let fits = |text: &String| {
        let first = chars == 0;
        chars += text.chars().count() + 1;
        first || chars <= most
    };
    texts.take_while(fits).collect()
}

pub(super) fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(output: &[u8]) -> Listing {
        Listing::parse("/w".to_owned(), output, b"", &Redactor::default())
    }

    #[test]
    fn listings_are_sorted_and_a_cut_name_is_dropped() {
        let listing = parsed(b"d\0./b/c\0./z\0./a\nb\0./b/a\0\0./\0./cut of");
        assert_eq!(listing.root, Root::Directory);
        assert_eq!(listing.files, [&b"a\nb"[..], b"z", b"b/a", b"b/c"]);
        assert!(listing.cut);
        assert!(!parsed(b"d\0/\0").cut);
        assert_eq!(parsed(b"").root, Root::Missing);
    }

    #[test]
    fn of_very_many_names_so_many_are_kept_and_that_is_told() {
        let listing = parsed(&[b"d\0", &b"a\0".repeat(MOST_NAMES + 1)[..]].concat());
        assert_eq!((listing.files.len(), listing.cut), (MOST_NAMES, true));
        assert_eq!(
            parsed(&[b"d\0", &b"\0".repeat(1000)[..]].concat())
                .files
                .len(),
            0
        );
    }

    #[test]
    fn a_find_that_did_not_come_to_its_end_is_told() {
        let note = |output| parsed(output).trouble.note("x");
        assert_eq!(note(b"d\0./a\0/\0"), "");
        assert!(note(b"d\0./a\0").contains("files may be missing"));
        assert_eq!(note(b"f\0"), "");
    }

    #[test]
    fn what_could_not_be_done_is_counted_and_said_shortly() {
        let words = "find: './a': Permission denied\n".repeat(5);
        let read = |errors: &str| Trouble::read(errors.as_bytes(), &Redactor::default());
        let note = read(&format!("{words}find: write error: Broken pipe\n"))
            .note("directories that can't be entered");
        assert!(
            note.starts_with("\n[directories that can't be entered: 5: find: './a'"),
            "{note}"
        );
        assert!(note.ends_with("; …]"), "{note}");
        for expected in [
            "",
            "grep: write error: Broken pipe",
            "xargs: grep: terminated by signal 13",
            "xargs: value 400000 for -s option should be <= 131072",
        ] {
            assert_eq!(read(expected).note("x"), "", "{expected}");
        }
        for name in ["Broken pipe.md", "signal 13", "-s option "] {
            let words = format!("grep: ./{name}: Permission denied");
            assert_eq!(read(&words).note("x"), format!("\n[x: 1: {words}]"));
        }
    }

    #[test]
    fn of_very_many_complaints_the_beginning_is_read() {
        let words = "find: './a': Permission denied\n".repeat(500_000);
        let note = Trouble::read(words.as_bytes(), &Redactor::default()).note("x");
        assert!(note.starts_with("\n[x: at least 2,1"), "{note}");
    }

    #[test]
    fn half_of_a_secret_is_never_in_a_complaint() {
        let redactor = Redactor::searching("0123456789abcdef");
        for at in [150, 190, READ_TROUBLES - 8] {
            let words = format!("find: {}0123456789abcdef end", "x".repeat(at - 6));
            let note = Trouble::read(words.as_bytes(), &redactor).note("x");
            let kept = complaints(words.as_bytes(), &redactor);
            assert!(!note.contains("012") && !kept.contains("012"), "{at}");
        }
    }

    #[test]
    fn a_name_that_no_system_takes_is_told_and_left_out() {
        let deep = "a/".repeat(100_000);
        let listing = parsed(format!("d\0./b\0./{deep}\0/\0").as_bytes());
        assert_eq!(listing.files, [b"b"]);
        assert_eq!(
            listing.trouble.note("x"),
            "\n[x: 1: paths longer than 4,095 bytes]"
        );
    }

    #[test]
    fn want_of_memory_is_told_from_trouble_with_files() {
        for line in [
            "grep: memory exhausted",
            "grep: out of memory",
            "xargs: grep: terminated by signal 11",
        ] {
            assert!(is_starved(line), "{line}");
        }
        for line in [
            "grep: ./out of memory: Permission denied",
            "xargs: grep: terminated by signal 13",
            // Whoever killed it.
            "xargs: grep: terminated by signal 9",
            "grep ended with exit code 137",
            "grep: ./x: memory exhausted",
        ] {
            assert!(!is_starved(line), "{line}");
        }
    }
}
