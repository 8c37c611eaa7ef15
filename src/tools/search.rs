//! `glob`, and what it shares with `grep`: the sandbox lists files, the host matches their names.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::LazyLock;

use async_trait::async_trait;
use globset::{GlobBuilder, GlobMatcher};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::ToolSpec;
use crate::show::{grouped, one_line};

use super::listing::{Listing, Root, SKIPPED, is_hidden};
use super::place::{Place, absolute};
use super::schema::typed;
use super::types::{Failure, Tool, ToolAnswer, ToolContext};

const SHOWN_PATHS: usize = 200;

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

/// A name pattern, split into the directories that are spelt out and what is to be matched below them.
pub(super) struct NamePattern {
    /// Directories before the first wildcard, with a `/` at the end; may be empty or absolute.
    base: String,
    pub(super) matcher: GlobMatcher,
    /// A part begins with a dot, so names that do may match.
    hidden: bool,
}

impl NamePattern {
    pub(super) fn parse(pattern: &str) -> Result<Self, Failure> {
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
pub(super) fn named_in(path: &str, pattern: &str) -> Vec<&'static str> {
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

async fn glob(pattern: &str, path: &str, context: &ToolContext) -> Result<ToolAnswer, Failure> {
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

pub(super) fn answer(context: &ToolContext, text: &str) -> ToolAnswer {
    ToolAnswer::text(context.redactor.clean(text).into_owned())
}

pub(super) fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
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
