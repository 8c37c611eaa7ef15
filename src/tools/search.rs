//! `glob`, and what it shares with `grep`: the sandbox lists files, the host matches their names.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::ToolSpec;
use crate::sandbox::files::SKIPPED;
use crate::show::{alike, grouped, one_line};

use super::listing::{Listing, Root, UNREAD, count, fitting, number};
use super::names::{Anchor, NamePattern, named_in};
use super::place::{Kind, Place, absolute};
use super::schema::typed;
use super::types::{Failure, Tool, ToolAnswer, ToolContext, off_the_runtime};

const SHOWN_PATHS: usize = 200;
/// Characters of them.
const SHOWN_CHARS: usize = 20_000;
/// Bytes of directories' names that are looked at when no file matches.
const LOOKED_AT: usize = 8 * 1024 * 1024;

/// `glob`.
#[derive(Debug)]
pub(super) struct Glob;

pub(super) static SPEC: LazyLock<ToolSpec> = LazyLock::new(|| {
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
});

#[derive(Debug, Deserialize)]
struct GlobArgs {
    pattern: String,
    #[serde(default)]
    path: String,
}

#[async_trait]
impl Tool for Glob {
    async fn call(
        &self,
        args: Map<String, Value>,
        context: &ToolContext,
    ) -> Result<ToolAnswer, Failure> {
        let args: GlobArgs = typed(args)?;
        glob(&args.pattern, &args.path, context).await
    }
}

async fn glob(pattern: &str, path: &str, context: &ToolContext) -> Result<ToolAnswer, Failure> {
    let facts = context.session.probe(context.sandbox.as_ref()).await;
    let text = pattern.to_owned();
    let parsing = move || NamePattern::parse(&text, Anchor::Root);
    let wanted = off_the_runtime(parsing).await??;
    let cwd = context.session.cwd();
    let root = root_of(path, &cwd, &facts.home)?;
    let named = named_in(path, pattern);
    // Where the pattern may be meant to begin, and what stands before the names found there.
    let mut places = vec![(
        below(&wanted.base, &root, &facts.home)?,
        shown_prefix(path, &wanted.base),
    )];
    if let Some(relative) = wanted.base.strip_prefix('/') {
        places.push((
            below(relative, &root, &facts.home)?,
            shown_prefix(path, relative),
        ));
    } else if !wanted.base.is_empty() {
        let from_here = below(&wanted.base, &cwd, &facts.home)?;
        if Path::new(&from_here).starts_with(&root) {
            places.push((from_here, wanted.base.clone()));
        }
    }
    let wanted = Arc::new(wanted);
    let mut missing = None;
    let mut nothing = None;
    for (place, prefix) in places {
        let listing = Listing::take(&place, &named, context).await?;
        if listing.root != Root::Directory {
            missing.get_or_insert(listing);
            continue;
        }
        let prefix = if listing.path == place {
            prefix
        } else {
            format!("{}/", listing.path)
        };
        match found(Arc::clone(&wanted), listing, prefix, &named, context).await? {
            Found::Files(text) => return Ok(ToolAnswer::text(text)),
            Found::Nothing(text) => drop(nothing.get_or_insert(text)),
        }
    }
    if let Some(complaint) = wanted.complaint() {
        return Err(complaint);
    }
    match (nothing, missing) {
        (Some(text), _) => Ok(ToolAnswer::text(text)),
        (None, Some(listing)) if wanted.base.is_empty() || listing.root == Root::Closed => {
            let given = if path.is_empty() { &wanted.base } else { path };
            Err(not_listed(&listing, given, context).await)
        }
        (None, _) => Ok(ToolAnswer::text(format!(
            "(no matches): {} is no directory",
            one_line(&wanted.base)
        ))),
    }
}

/// The absolute form of the path that a search starts from.
pub(super) fn root_of(path: &str, cwd: &str, home: &str) -> Result<String, Failure> {
    match path.trim_end_matches('/') {
        "" | "." if !path.starts_with('/') => Ok(cwd.to_owned()),
        _ => absolute(path, cwd, home),
    }
}

fn below(path: &str, root: &str, home: &str) -> Result<String, Failure> {
    if path.is_empty() {
        return Ok(root.to_owned());
    }
    absolute(path, root, home)
}

/// Names that match, without and with a part that begins with a dot, and a directory that does.
struct Matches {
    files: usize,
    shown: Vec<Vec<u8>>,
    hidden: Vec<Vec<u8>>,
    directory: Option<Vec<u8>>,
    /// Where nothing matches the one name that is asked for: those that are like it.
    near: Vec<Vec<u8>>,
}

impl Matches {
    fn new(wanted: &NamePattern, files: Vec<Vec<u8>>, root: &str) -> Self {
        let matches = |name: &[u8]| {
            let base = wanted.base.trim_start_matches('/').as_bytes();
            let full = [base, name].concat();
            wanted.matches(&[&full], &[root.as_bytes(), b"/", name].concat())
        };
        let all = files.len();
        let (matching, others): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|name| matches(name));
        let directory = if matching.is_empty() {
            directory_among(&others, matches).map(<[u8]>::to_vec)
        } else {
            None
        };
        let near = match wanted.literal() {
            Some(name) if matching.is_empty() && directory.is_none() => near(name, &others),
            _ => Vec::new(),
        };
        let (shown, hidden) = matching.into_iter().partition(|name| wanted.shows(name));
        Self {
            files: all,
            shown,
            hidden,
            directory,
            near,
        }
    }
}

/// The first file of each name that is like `name`, a few of them.
fn near(name: &str, files: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut first: HashMap<&str, &[u8]> = HashMap::new();
    let mut names = Vec::new();
    for file in files {
        let last = file.rsplit(|b| *b == b'/').next().unwrap_or_default();
        if let Ok(last) = std::str::from_utf8(last) {
            first.entry(last).or_insert_with(|| {
                names.push(last);
                file
            });
        }
    }
    let near = alike(name, names).into_iter();
    near.filter_map(|name| first.get(name).map(|file| file.to_vec()))
        .collect()
}

/// The first directory, by its bytes, that `files` are in and that `matches`. Only as many are looked at as
/// [`LOOKED_AT`] allows: one file may be in thousands.
pub(super) fn directory_among(
    files: &[Vec<u8>],
    mut matches: impl FnMut(&[u8]) -> bool,
) -> Option<&[u8]> {
    let mut seen = HashSet::new();
    let mut room = LOOKED_AT;
    let mut found: Option<&[u8]> = None;
    for name in files {
        let mut rest = name.as_slice();
        while let Some(slash) = rest.iter().rposition(|b| *b == b'/') {
            rest = rest.get(..slash).unwrap_or_default();
            // If this one was seen, then all above it were.
            if !seen.insert(rest) {
                break;
            }
            let Some(less) = room.checked_sub(rest.len() + size_of::<&[u8]>()) else {
                return found;
            };
            room = less;
            if found.is_none_or(|found| rest < found) && matches(rest) {
                found = Some(rest);
            }
        }
    }
    found
}

/// What a look at one place gave, for the model.
enum Found {
    Files(String),
    Nothing(String),
}

async fn found(
    wanted: Arc<NamePattern>,
    mut listing: Listing,
    prefix: String,
    named: &[&str],
    context: &ToolContext,
) -> Result<Found, Failure> {
    let files = std::mem::take(&mut listing.files);
    let root = listing.path.clone();
    let pattern = Arc::clone(&wanted);
    let matches = off_the_runtime(move || Matches::new(&pattern, files, &root)).await?;
    let only_hidden = matches.shown.is_empty();
    let names = if only_hidden {
        &matches.hidden
    } else {
        &matches.shown
    };
    let line = |name: &[u8]| one_line(&format!("{prefix}{}", String::from_utf8_lossy(name)));
    let lines = names.iter().take(SHOWN_PATHS).map(|name| line(name));
    let lines = fitting(lines, SHOWN_CHARS);
    let mut text = lines.join("\n");
    if names.is_empty() {
        if let Some(failure) = listing.nothing_known() {
            return Err(failure);
        }
        let mut directory = matches.directory;
        if let (None, Some(name)) = (&directory, wanted.literal()) {
            let path = format!("{}/{name}", listing.path);
            let place = Place::look(&path, false, context).await?;
            directory = (place.kind == Kind::Directory).then(|| name.as_bytes().to_vec());
        }
        text = if let Some(name) = directory {
            let name = line(&name);
            format!("(no matches): {name} is a directory, and only files are found. Use {name}/**")
        } else {
            let near: Vec<String> = matches.near.iter().map(|name| line(name)).collect();
            let near = if near.is_empty() {
                String::new()
            } else {
                format!(" Similar names: {}.", near.join(", "))
            };
            format!(
                "(no matches among {}){near}{}",
                number(matches.files, "file"),
                skipped_note(named)
            )
        };
    } else if names.len() > lines.len() {
        write!(
            text,
            "\n[{} of {} files, shallow ones first; narrow the pattern or path]",
            grouped(count(lines.len())),
            grouped(count(names.len()))
        )
        .ok();
    }
    if only_hidden && !names.is_empty() {
        text.push_str("\n[only names with a part that begins with a dot match]");
    }
    if listing.cut {
        text.push_str("\n[too many files to look at all of them: give a narrower path]");
    }
    text.push_str(&listing.trouble.note(UNREAD));
    Ok(if names.is_empty() {
        Found::Nothing(text)
    } else {
        Found::Files(text)
    })
}

pub(super) fn skipped_note(named: &[&str]) -> String {
    let skipped: Vec<&str> = SKIPPED
        .iter()
        .copied()
        .filter(|skipped| !named.contains(skipped))
        .collect();
    format!(" [not looked at unless named: {}]", skipped.join(" "))
}

/// What stands before the names found, so that they can be used as they are.
pub(super) fn shown_prefix(path: &str, base: &str) -> String {
    let path = path.trim_end_matches('/');
    if base.starts_with('/') || base.starts_with('~') || path.is_empty() || path == "." {
        return base.to_owned();
    }
    format!("{path}/{base}")
}

/// Why nothing could be listed.
pub(super) async fn not_listed(listing: &Listing, given: &str, context: &ToolContext) -> Failure {
    let name = one_line(given);
    match listing.root {
        Root::Closed => Failure::Complaint(format!("{name}: permission denied")),
        Root::File => Failure::Complaint(format!("{name} is a file, not a directory")),
        Root::Directory | Root::Missing => match Place::look(given, false, context).await {
            Ok(place) if place.kind != Kind::Missing && place.path != listing.path => {
                Failure::Complaint(format!(
                    "{name}: its accents are typed in another way there (NFC, NFD): give {}",
                    one_line(&place.path)
                ))
            }
            Ok(place) => place.not_a_file(given, context).unwrap_or_else(|| {
                Failure::Complaint(format!("{name} has just appeared; try again"))
            }),
            Err(outcome) => outcome,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_found_by_their_names() {
        let files = ["b/c/x", "b/c/y", "a/c/x", "z"].map(|name| name.as_bytes().to_vec());
        let ends = |end: &'static [u8]| move |name: &[u8]| name.ends_with(end);
        assert_eq!(directory_among(&files, ends(b"c")), Some(&b"a/c"[..]));
        assert_eq!(directory_among(&files, ends(b"b")), Some(&b"b"[..]));
        assert_eq!(directory_among(&files, ends(b"z")), None);
    }

    #[test]
    fn deep_files_do_not_make_a_search_for_directories_long() {
        let files: Vec<Vec<u8>> = (0..2_000)
            .map(|n| format!("{n:04}/{}x", "a/".repeat(2_000)).into_bytes())
            .collect();
        let mut looked_at = 0;
        let found = directory_among(&files, |name| {
            looked_at += name.len();
            false
        });
        assert_eq!(found, None);
        assert!(looked_at > 0 && looked_at <= LOOKED_AT, "{looked_at}");
    }
}
