//! Patterns for file names, as models write them: the habits of several tools, with one meaning each.

use std::borrow::Cow;

use globset::{Candidate, Glob, GlobBuilder, GlobSet};

use crate::encoding;
use crate::sandbox::files::SKIPPED;
use crate::show::one_line;

use super::types::Failure;

/// Characters of a pattern.
const LONGEST: usize = 4000;
/// Parts of a pattern: each may be several automata.
const MOST_PARTS: usize = 64;

/// Where a pattern with directories in it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// At the directory that is searched.
    Root,
    /// Below any directory, unless it begins with `/`.
    Anywhere,
}

/// One or more patterns for names, some of which may exclude.
#[derive(Debug)]
pub(super) struct NamePattern {
    /// The directories that are spelt out before the first wildcard, with a `/` at the end: all matches are
    /// below them. May be empty or absolute.
    pub(super) base: String,
    /// The last part, if there is no wildcard in the one pattern that this is.
    literal: Option<String>,
    wanted: Globs,
    excluded: Globs,
    /// A part begins with a dot, so names that do may match.
    hidden: bool,
    /// Why it is no pattern: then only names that are just so match.
    broken: Option<String>,
}

impl NamePattern {
    /// Reads `*.a`, `src/**/*.a`, `*.{a,b}`, `*.a, *.b` and `!*.a`.
    pub(super) fn parse(text: &str, anchor: Anchor) -> Result<Self, Failure> {
        if text.chars().nth(LONGEST).is_some() {
            return Err(Failure::Complaint(format!(
                "the name pattern is longer than {LONGEST} characters"
            )));
        }
        let parts = split(text);
        if parts.is_empty() || text.contains('\0') {
            return Err(Failure::Complaint(
                "pattern is empty; give one as *.py or src/**/*.rs".to_owned(),
            ));
        }
        if parts.len() > MOST_PARTS {
            return Err(Failure::Complaint(format!(
                "the name pattern has more than {MOST_PARTS} parts; use {{a,b}} or fewer of them"
            )));
        }
        let (mut wanted, mut excluded) = (Builder::default(), Builder::default());
        let mut broken = None;
        for part in &parts {
            if let Some(dir) = part.text.strip_suffix('/') {
                let dir = one_line(dir);
                return Err(Failure::Complaint(format!(
                    "pattern {dir}/ ends in /: only files are found. Use {dir}/**"
                )));
            }
            let into = if part.excludes {
                &mut excluded
            } else {
                &mut wanted
            };
            broken = broken.or(into.add(part.text, anchor));
        }
        if parts.iter().all(|part| part.excludes) {
            wanted.add("**", Anchor::Root);
        }
        let only = match parts.as_slice() {
            [only] if !only.excludes => only.text,
            _ => "",
        };
        let wild = only.find(SPECIAL).unwrap_or(only.len());
        let base = only
            .get(..wild)
            .and_then(|literal| literal.rfind('/'))
            .map_or("", |slash| only.get(..=slash).unwrap_or_default());
        Ok(Self {
            base: base.to_owned(),
            literal: (!only.is_empty() && wild == only.len())
                .then(|| only.rsplit('/').next().unwrap_or(only).to_owned()),
            wanted: wanted.build(text)?,
            excluded: excluded.build(text)?,
            hidden: parts.iter().filter(|part| !part.excludes).any(|part| {
                part.text
                    .split(['/', '{', ','])
                    .filter(|name| !matches!(*name, "." | ".."))
                    .any(|name| name.starts_with('.') || name.starts_with("[.]"))
            }),
            broken,
        })
    }

    /// Whether one of `forms` of a name, relative to what may be the searched directory, or `absolute`, is
    /// meant.
    pub(super) fn matches(&self, forms: &[&[u8]], absolute: &[u8]) -> bool {
        let forms: Vec<_> = forms.iter().map(|form| composed(form)).collect();
        let absolute = composed(absolute);
        let is_in = |globs: &Globs| {
            let relative = |form: &Cow<'_, [u8]>| {
                globs
                    .relative
                    .is_match_candidate(&Candidate::from_bytes(form))
            };
            forms.iter().any(relative)
                || (!globs.absolute.is_empty()
                    && globs
                        .absolute
                        .is_match_candidate(&Candidate::from_bytes(&absolute)))
        };
        is_in(&self.wanted) && !is_in(&self.excluded)
    }

    /// Whether a name may match although a part of it begins with a dot.
    pub(super) fn shows(&self, name: &[u8]) -> bool {
        self.hidden || !is_hidden(name)
    }

    /// The name that it is, if it is just that.
    pub(super) fn literal(&self) -> Option<&str> {
        self.literal.as_deref()
    }

    /// Why nothing matches, where that is the pattern's own fault.
    pub(super) fn complaint(&self) -> Option<Failure> {
        self.broken.clone().map(Failure::Complaint)
    }
}

const SPECIAL: [char; 7] = ['*', '?', '[', ']', '{', '}', '\\'];

#[derive(Debug)]
struct Globs {
    relative: GlobSet,
    absolute: GlobSet,
}

#[derive(Default)]
struct Builder {
    relative: Vec<Glob>,
    absolute: Vec<Glob>,
}

impl Builder {
    /// Adds `pattern`, also as the very name that it may be; gives what is wrong with it.
    fn add(&mut self, pattern: &str, anchor: Anchor) -> Option<String> {
        let composed = encoding::composed(pattern).into_owned();
        let mut broken = None;
        let mut variants = vec![composed.clone()];
        if composed.contains(SPECIAL) {
            // Folders such as `[id]` are names as well as classes of letters.
            variants.push(
                composed
                    .replace('[', "\u{0}")
                    .replace(']', "[]]")
                    .replace('\u{0}', "[[]"),
            );
            variants.push(globset::escape(&composed));
        }
        for (at, variant) in variants.iter().enumerate() {
            let glob = |text: &str| {
                GlobBuilder::new(text)
                    .literal_separator(true)
                    .backslash_escape(true)
                    .empty_alternates(true)
                    .build()
            };
            let below = match (anchor, variant.strip_prefix('/')) {
                (_, Some(below)) => below.to_owned(),
                (Anchor::Root, None) if variant.contains('/') => variant.clone(),
                (Anchor::Root | Anchor::Anywhere, None) => format!("**/{variant}"),
            };
            match glob(&below) {
                Ok(below) => self.relative.push(below),
                Err(error) if at == 0 => {
                    broken = Some(format!(
                        "pattern {} can't be read: {}. To match a special character itself write \\ before it",
                        one_line(pattern),
                        error.kind()
                    ));
                }
                Err(_) => {}
            }
            if variant.starts_with('/')
                && let Ok(absolute) = glob(variant)
            {
                self.absolute.push(absolute);
            }
        }
        broken
    }

    fn build(&self, text: &str) -> Result<Globs, Failure> {
        let too_much = |_| Failure::Complaint(format!("pattern {} is too complex", one_line(text)));
        Ok(Globs {
            relative: GlobSet::new(&self.relative).map_err(too_much)?,
            absolute: GlobSet::new(&self.absolute).map_err(too_much)?,
        })
    }
}

struct Part<'a> {
    text: &'a str,
    excludes: bool,
}

/// The patterns between commas that are in no braces or brackets.
fn split(text: &str) -> Vec<Part<'_>> {
    let mut depth = 0_usize;
    let commas = |c: char| {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    text.split(commas)
        .map(str::trim)
        .map(|part| {
            let excluded = part.strip_prefix('!');
            let text = excluded.unwrap_or(part);
            Part {
                text: text.strip_prefix("./").unwrap_or(text),
                excludes: excluded.is_some(),
            }
        })
        .filter(|part| !part.text.is_empty())
        .collect()
}

/// A name with its accents composed, so that it is the same name however it was typed.
fn composed(name: &[u8]) -> Cow<'_, [u8]> {
    match std::str::from_utf8(name) {
        Ok(text) if !text.is_ascii() => match encoding::composed(text) {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        },
        _ => Cow::Borrowed(name),
    }
}

/// A text, and the same text with its accents composed and decomposed, as far as these differ.
pub(super) fn forms(text: &str) -> Vec<Cow<'_, str>> {
    let mut forms = vec![Cow::Borrowed(text)];
    if !text.is_ascii() {
        for form in [encoding::composed(text), encoding::decomposed(text)] {
            // Some signs are composed to a letter of ASCII, as that for kelvin: they are not the same text here.
            if !form.is_ascii() && !forms.contains(&form) {
                forms.push(form);
            }
        }
    }
    forms
}

/// Whether a part of the path begins with a dot.
fn is_hidden(path: &[u8]) -> bool {
    path.split(|b| *b == b'/')
        .any(|part| part.starts_with(b"."))
}

/// The skipped directories that `path` or `pattern` names, and that are therefore not skipped.
pub(super) fn named_in(path: &str, pattern: &str) -> Vec<&'static str> {
    let parts = split(pattern);
    let wanted = parts.iter().filter(|part| !part.excludes);
    let names: Vec<&str> = path
        .split('/')
        .chain(wanted.flat_map(|part| part.text.split(['/', '{', ',', '}'])))
        .collect();
    SKIPPED
        .iter()
        .copied()
        .filter(|skipped| names.contains(skipped))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(pattern: &str, anchor: Anchor, name: &str) -> bool {
        let Ok(wanted) = NamePattern::parse(pattern, anchor) else {
            panic!("{pattern}")
        };
        let absolute = format!("/w/{name}");
        wanted.shows(name.as_bytes()) && wanted.matches(&[name.as_bytes()], absolute.as_bytes())
    }

    #[test]
    fn patterns_match_as_their_description_says() {
        use Anchor::{Anywhere, Root};
        for (pattern, anchor, name, yes) in [
            ("*.py", Root, "a.py", true),
            ("*.py", Root, "d/e/a.py", true),
            ("src/*.rs", Root, "src/a.rs", true),
            ("src/*.rs", Root, "src/b/a.rs", false),
            ("src/*.rs", Root, "x/src/a.rs", false),
            ("src/*.rs", Anywhere, "x/src/a.rs", true),
            ("/src/*.rs", Anywhere, "src/a.rs", true),
            ("/src/*.rs", Anywhere, "x/src/a.rs", false),
            ("/w/src/*.rs", Anywhere, "src/a.rs", true),
            ("src/**/*.rs", Root, "src/a.rs", true),
            ("src/**/*.rs", Root, "src/b/c/a.rs", true),
            ("**/test_*", Root, "x/test_a", true),
            ("*.{ts,tsx}", Root, "a/b.tsx", true),
            ("*.ts, *.tsx", Root, "a/b.tsx", true),
            ("*.ts,*.tsx", Root, "a/b.js", false),
            ("!*.md", Root, "a/b.js", true),
            ("!*.md", Root, "a/b.md", false),
            ("*.js,!*.test.js", Root, "a/b.test.js", false),
            ("a,b.txt", Root, "b.txt", true),
            ("[ab].txt", Root, "b.txt", true),
            ("pages/[id]/view.tsx", Root, "pages/[id]/view.tsx", true),
            ("pages/[id]/*", Root, "pages/[id]/view.tsx", true),
            ("pages/[id]/*", Root, "pages/i/view.tsx", true),
            ("- [ ] todo.md", Root, "d/- [ ] todo.md", true),
            ("[a", Root, "[a", true),
            ("{x", Root, "{x", true),
            ("a{b}c*", Root, "abc1", true),
            ("*", Root, ".hidden", false),
            (".*", Root, ".hidden", true),
            ("**/.env*", Root, "a/.env.local", true),
            ("../src/*", Root, "../src/.env", false),
            ("../src/.*", Root, "../src/.env", true),
            ("./a.txt", Root, "a.txt", true),
            ("a?c", Root, "a/c", false),
            ("\\[x\\].md", Root, "[x].md", true),
            ("caf\u{e9}*", Root, "cafe\u{301}.txt", true),
            ("cafe\u{301}.txt", Root, "caf\u{e9}.txt", true),
        ] {
            assert_eq!(
                matched(pattern, anchor, name),
                yes,
                "{pattern} against {name}"
            );
        }
        for bad in ["", "src/", " , "] {
            assert!(NamePattern::parse(bad, Root).is_err(), "{bad}");
        }
        for broken in ["[a", "{a"] {
            assert!(
                NamePattern::parse(broken, Root)
                    .unwrap()
                    .complaint()
                    .is_some(),
                "{broken}"
            );
        }
        assert!(NamePattern::parse(&"x".repeat(5000), Root).is_err());
        assert!(NamePattern::parse(&"x,".repeat(64), Root).is_ok());
        assert!(NamePattern::parse(&"x,".repeat(65), Root).is_err());
    }

    #[test]
    fn the_directories_before_the_first_wildcard_are_known() {
        for (pattern, base, literal) in [
            ("a/b/*.c", "a/b/", None),
            ("a/[b]/c", "a/", None),
            ("/x/y", "/x/", Some("y")),
            ("src", "", Some("src")),
            ("a/*.b,c/*.d", "", None),
            ("!a/b", "", None),
        ] {
            let parsed = NamePattern::parse(pattern, Anchor::Root).unwrap();
            assert_eq!(
                (parsed.base.as_str(), parsed.literal()),
                (base, literal),
                "{pattern}"
            );
        }
    }

    #[test]
    fn named_directories_are_not_skipped() {
        assert_eq!(named_in("node_modules/x", "*"), ["node_modules"]);
        assert_eq!(named_in("", "**/{.git,venv}/**"), [".git", "venv"]);
        assert_eq!(named_in("", "!node_modules/**"), Vec::<&str>::new());
        assert_eq!(named_in("src", "*.py"), Vec::<&str>::new());
    }
}
