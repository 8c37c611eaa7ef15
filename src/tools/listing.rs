//! The files below a directory of the sandbox, as bytes: a name is whatever the sandbox says.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::sandbox::files::{SKIPPED, depth};
use crate::sandbox::{ExecCollected, apart};
use crate::show::{grouped, one_line, prose, short};

use super::names::forms;
use super::script::Script;
use super::types::{Failure, ToolContext};

const LIMIT: Duration = Duration::from_secs(20);
/// Of the names; some 200,000 entries.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// Names that are sorted where we are.
const FEW_BYTES: usize = 64 * 1024;

/// Files below `$1`, and links to files, without the directories named `$2`, `$3`, …; if `$1` is a file,
/// itself. Fields end with NUL; the first says what `$1` is. Links to directories are not followed.
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
find . -type d ! -name . \( "$@" \) -prune -o -type l -print0 2>/dev/null |
xargs -0 sh -c 'for f; do [ -f "$f" ] && printf "%s\000" "$f"; done' sh
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
            return Err(no_program(&found.stderr));
        }
        if found.stdout.is_empty() {
            return Err(unlooked(path, &found, context));
        }
        let path = path.to_owned();
        let large = found.stdout.len() > FEW_BYTES;
        let work = move || Self::parse(path, &found.stdout, &found.stderr);
        off_the_runtime(large, work).await
    }

    fn parse(path: String, output: &[u8], errors: &[u8]) -> Self {
        let mut names = output.split_inclusive(|b| *b == 0);
        let root = match names.next() {
            Some(b"d\0") => Root::Directory,
            Some(b"f\0") => Root::File,
            Some(b"x\0") => Root::Closed,
            _ => Root::Missing,
        };
        let mut cut = false;
        let mut files = Vec::new();
        for name in names {
            match name.strip_suffix(b"\0") {
                Some(name) => files.push(name.strip_prefix(b"./").unwrap_or(name).to_vec()),
                None => cut = true,
            }
        }
        cut |= output.len() >= MOST_BYTES;
        files.sort_by_cached_key(|name| (depth(name), name.clone()));
        Self {
            root,
            path,
            files,
            cut,
            trouble: Trouble::read(errors),
        }
    }
}

/// What a program of the sandbox could not do, in its own words.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    lines: u64,
    first: Vec<String>,
}

const SHOWN_TROUBLES: usize = 3;

impl Trouble {
    /// Reads standard error; what a reader that has enough provokes is no trouble.
    pub(super) fn read(errors: &[u8]) -> Self {
        let mut trouble = Self::default();
        for line in String::from_utf8_lossy(errors).lines() {
            let expected = ["Broken pipe", "signal 13", "-s option"];
            if line.trim().is_empty() || expected.iter().any(|words| line.contains(words)) {
                continue;
            }
            trouble.lines += 1;
            if trouble.first.len() < SHOWN_TROUBLES {
                trouble.first.push(short(line, 200));
            }
        }
        trouble
    }

    /// A line for the model, after a line end; nothing if all went well.
    pub(super) fn note(&self, what: &str) -> String {
        if self.lines == 0 {
            return String::new();
        }
        let more = if self.lines > count(self.first.len()) {
            "; …"
        } else {
            ""
        };
        format!(
            "\n[{what}: {}: {}{more}]",
            grouped(self.lines),
            self.first.join("; ")
        )
    }
}

/// A script that prints something whatever it finds has printed nothing: it ended before that.
pub(super) fn unlooked(path: &str, found: &ExecCollected, context: &ToolContext) -> Failure {
    let said = String::from_utf8_lossy(&found.stderr);
    let said = prose(&context.redactor.clean(&said), 200);
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
pub(super) fn no_program(name: &[u8]) -> Failure {
    let name = short(String::from_utf8_lossy(name).trim(), 100);
    Failure::Complaint(format!(
        "this sandbox has no `{name}`, without which files can't be searched; use bash"
    ))
}

/// Does what may take long where it holds nobody up; what is small, at once.
pub(super) async fn off_the_runtime<T: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    if !large {
        return Ok(work());
    }
    apart(work).await.ok_or(Failure::Cancelled)
}

pub(super) fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(output: &[u8]) -> Listing {
        Listing::parse("/w".to_owned(), output, b"")
    }

    #[test]
    fn listings_are_sorted_and_a_cut_name_is_dropped() {
        let listing = parsed(b"d\0./b/c\0./z\0./a\nb\0./b/a\0./cut of");
        assert_eq!(listing.root, Root::Directory);
        assert_eq!(listing.files, [&b"a\nb"[..], b"z", b"b/a", b"b/c"]);
        assert!(listing.cut);
        assert!(!parsed(b"d\0").cut);
        assert_eq!(parsed(b"").root, Root::Missing);
    }

    #[test]
    fn what_could_not_be_done_is_counted_and_said_shortly() {
        let words = "find: './a': Permission denied\n".repeat(5);
        let note = Trouble::read(format!("{words}find: write error: Broken pipe\n").as_bytes())
            .note("directories that can't be entered");
        assert!(
            note.starts_with("\n[directories that can't be entered: 5: find: './a'"),
            "{note}"
        );
        assert!(note.ends_with("; …]"), "{note}");
        assert_eq!(Trouble::read(b"").note("x"), "");
    }
}
