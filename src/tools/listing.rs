//! The files below a directory of the sandbox, as bytes: a name is whatever the sandbox says.

use std::time::Duration;

pub(super) use crate::sandbox::files::SKIPPED;
use crate::sandbox::files::depth;

use super::script::Script;
use super::types::{Failure, ToolContext};

const LIMIT: Duration = Duration::from_secs(20);
/// Of the names; some 200,000 entries.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// Regular files below `$1`, without the directories named `$2`, `$3`, …; if `$1` is a file, itself.
/// Fields end with NUL; the first says what `$1` is.
const LIST: &str = r#"
p=$1
shift
if [ -f "$p" ]; then printf 'f\000'; exit 0; fi
[ -d "$p" ] || { printf 'n\000'; exit 0; }
cd "$p" 2>/dev/null || { printf 'x\000'; exit 0; }
printf 'd\000'
n=$#
for s in "$@"; do set -- "$@" -o -name "$s"; done
while [ "$n" -gt 0 ]; do shift; n=$((n-1)); done
if [ $# -gt 0 ]; then
shift
find . -type d ! -name . \( "$@" \) -prune -o -type f -print0 2>/dev/null | head -c 8388608
else
find . -type f -print0 2>/dev/null | head -c 8388608
fi
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
    /// Relative, without `./`, sorted by depth and then by bytes.
    pub(super) files: Vec<Vec<u8>>,
    /// Not all files: the names were too many.
    pub(super) cut: bool,
}

impl Listing {
    /// Lists `path`, absolute, without the directories of [`SKIPPED`] but those in `named`.
    pub(super) async fn take(
        path: &str,
        named: &[&str],
        context: &ToolContext,
    ) -> Result<Self, Failure> {
        let mut args = vec![path];
        args.extend(SKIPPED.iter().filter(|skipped| !named.contains(skipped)));
        let found = Script {
            text: LIST,
            args,
            keep: MOST_BYTES + 16,
            ..Script::default()
        }
        .run_for(context, LIMIT)
        .await?;
        Ok(Self::parse(&found.stdout))
    }

    fn parse(output: &[u8]) -> Self {
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
        files.sort_by_cached_key(|name| (depth(name), name.clone()));
        Self { root, files, cut }
    }
}

/// Whether a part of the path begins with a dot.
pub(super) fn is_hidden(path: &[u8]) -> bool {
    path.split(|b| *b == b'/')
        .any(|part| part.starts_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_sorted_and_a_cut_name_is_dropped() {
        let listing = Listing::parse(b"d\0./b/c\0./z\0./a\nb\0./b/a\0./cut of");
        assert_eq!(listing.root, Root::Directory);
        assert_eq!(listing.files, [&b"a\nb"[..], b"z", b"b/a", b"b/c"]);
        assert!(listing.cut);
        assert!(!Listing::parse(b"d\0").cut);
        assert_eq!(Listing::parse(b"").root, Root::Missing);
    }
}
