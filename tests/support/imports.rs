//! Which source file uses which: paths and `use` trees, read from the token stream, so that comments, strings and
//! macros mislead nobody. What a `mod.rs` only hands on counts for the file that it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A module by its path: `["llm", "anthropic", "decoder"]`; the crate's root is empty.
pub type Module = Vec<String>;

/// The files of a crate and what they name.
#[derive(Debug, Default)]
pub struct Sources(BTreeMap<Module, File>);

#[derive(Debug, Default)]
struct File {
    /// Every path in it.
    paths: Vec<Module>,
    /// Names that its `use` lines bring in, and what they stand for.
    names: BTreeMap<String, Module>,
}

/// A file and one that it uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    pub by: Module,
    pub of: Module,
}

impl Sources {
    /// Reads files by their paths below `src`.
    pub fn read<'f>(files: impl IntoIterator<Item = (&'f str, String)>) -> Self {
        let mut sources = Self::default();
        for (path, text) in files {
            let mut module: Module = path
                .trim_end_matches(".rs")
                .split('/')
                .map(str::to_owned)
                .collect();
            if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
                module.pop();
            }
            let tokens = TokenStream::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
            let mut file = File::default();
            file.walk(&tokens.into_iter().collect::<Vec<_>>());
            sources.0.insert(module, file);
        }
        sources
    }

    /// Every use of a file by another.
    pub fn uses(&self) -> BTreeSet<Use> {
        let mut found = BTreeSet::new();
        for (by, file) in &self.0 {
            let of = file.paths.iter().filter_map(|path| self.find(by, path, 0));
            found.extend(
                of.filter(|of| of != by)
                    .map(|of| Use { by: by.clone(), of }),
            );
        }
        found
    }

    /// The file that holds what `path` means in `from`; none if that is outside of the crate.
    fn find(&self, from: &[String], path: &[String], depth: u32) -> Option<Module> {
        assert!(depth < 16, "{from:?} names itself: {path:?}");
        let mut at = from.to_vec();
        let mut rest = path.iter().peekable();
        match path.first().map(String::as_str)? {
            "crate" => at.clear(),
            "self" => {}
            "super" => {
                while rest.next_if(|step| *step == "super").is_some() {
                    at.pop();
                }
            }
            first => {
                let mut child = from.to_vec();
                child.push(first.to_owned());
                self.0.get(&child)?;
            }
        }
        rest.next_if(|step| *step == "crate" || *step == "self");
        for step in rest {
            let mut inner = at.clone();
            inner.push(step.clone());
            if self.0.contains_key(&inner) {
                at = inner;
            } else if let Some(meant) = self.0.get(&at)?.names.get(step) {
                // Handed on from elsewhere, or from outside of the crate.
                at = self.find(&at, meant, depth + 1)?;
            } else {
                break;
            }
        }
        Some(at)
    }

    /// The circles between the parts of each folder: its `mod.rs`, its files, and each folder in it as one.
    pub fn circles(&self) -> Vec<String> {
        let uses = self.uses();
        let mut found = Vec::new();
        for folder in self.0.keys() {
            let part = |module: &Module| {
                let below = module.strip_prefix(folder.as_slice())?;
                Some(below.first().map_or("mod", String::as_str).to_owned())
            };
            let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for Use { by, of } in &uses {
                if let (Some(by), Some(of)) = (part(by), part(of))
                    && by != of
                {
                    arrows.entry(by).or_default().insert(of);
                }
            }
            let reached: BTreeMap<&str, BTreeSet<&str>> = arrows
                .keys()
                .map(|start| (start.as_str(), reach(&arrows, start)))
                .collect();
            let mut told = BTreeSet::new();
            for (start, there) in &reached {
                if !there.contains(start) || told.contains(start) {
                    continue;
                }
                let back = |node: &&str| reached.get(node).is_some_and(|set| set.contains(start));
                let circle: BTreeSet<&str> = there.iter().copied().filter(back).collect();
                let within: Vec<String> = uses
                    .iter()
                    .filter(|Use { by, of }| {
                        let ends = part(by).zip(part(of));
                        ends.is_some_and(|(by, of)| {
                            by != of && circle.contains(&*by) && circle.contains(&*of)
                        })
                    })
                    .map(|Use { by, of }| format!("    {} uses {}", by.join("::"), of.join("::")))
                    .collect();
                let names: Vec<&str> = circle.iter().copied().collect();
                let place = format!("src/{}", folder.join("/"));
                found.push(format!(
                    "{place}: {}\n{}",
                    names.join(", "),
                    within.join("\n")
                ));
                told.extend(circle);
            }
        }
        found
    }
}

fn reach<'a>(arrows: &'a BTreeMap<String, BTreeSet<String>>, start: &str) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut left: Vec<&str> = arrows[start].iter().map(String::as_str).collect();
    while let Some(node) = left.pop() {
        if seen.insert(node)
            && let Some(next) = arrows.get(node)
        {
            left.extend(next.iter().map(String::as_str));
        }
    }
    seen
}

impl File {
    /// Takes the paths of `tokens`, without what only tests are built with.
    fn walk(&mut self, tokens: &[TokenTree]) {
        let mut at = 0;
        while at < tokens.len() {
            if let Some(after) = test_item(&tokens[at..]) {
                at += after;
                continue;
            }
            match &tokens[at] {
                TokenTree::Ident(word) if word == "use" => {
                    at += 1 + self.tree(&tokens[at + 1..], &[], true);
                }
                TokenTree::Ident(_) => at += self.tree(&tokens[at..], &[], false).max(1),
                TokenTree::Group(group) => {
                    self.walk(&group.stream().into_iter().collect::<Vec<_>>());
                    at += 1;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => at += 1,
            }
        }
    }

    /// Takes the path or tree that `tokens` begin with, and gives its length.
    fn tree(&mut self, tokens: &[TokenTree], before: &[String], import: bool) -> usize {
        let mut path = before.to_vec();
        let mut at = if colons(tokens) { 2 } else { 0 };
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(word)) => {
                    path.push(word.to_string());
                    at += 1;
                    if !colons(&tokens[at..]) {
                        break;
                    }
                    at += 2;
                }
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    for one in inner.split(|token| punct(token, ',')) {
                        if !one.is_empty() {
                            self.tree(one, &path, import);
                        }
                    }
                    return at + 1;
                }
                // A glob, or the end of a path with generics.
                _ => break,
            }
        }
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let mut name = path.last().cloned();
        if import
            && let Some(TokenTree::Ident(word)) = tokens.get(at)
            && word == "as"
        {
            name = tokens.get(at + 1).map(ToString::to_string);
            at += 2;
        }
        if let (true, Some(name)) = (import, name) {
            self.names.insert(name, path.clone());
        }
        // A word alone is a path only in a `use`.
        if import || path.len() > 1 {
            self.paths.push(path);
        }
        at
    }
}

fn punct(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn colons(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [one, two, ..] if punct(one, ':') && punct(two, ':'))
}

/// The length of the item at the start of `tokens`, if only tests are built with it.
fn test_item(tokens: &[TokenTree]) -> Option<usize> {
    let [hash, TokenTree::Group(attribute), ..] = tokens else {
        return None;
    };
    let attribute: Vec<TokenTree> = attribute.stream().into_iter().collect();
    let [TokenTree::Ident(cfg), TokenTree::Group(wanted)] = attribute.as_slice() else {
        return None;
    };
    let wanted: Vec<TokenTree> = wanted.stream().into_iter().collect();
    if !punct(hash, '#') || cfg != "cfg" || !only_tests(&wanted) {
        return None;
    }
    // Further attributes belong to it.
    let mut start = 2;
    while tokens.get(start).is_some_and(|token| punct(token, '#')) {
        start += 2;
    }
    let words = tokens.iter().skip(start).filter_map(|token| match token {
        TokenTree::Ident(word) => Some(word.to_string()),
        _ => None,
    });
    let first = words.into_iter().find(|word| word != "pub");
    let is_item = first.is_some_and(|first| ITEMS.contains(&first.as_str()));
    // A field or an arm ends with a comma as well.
    let end = |token: &TokenTree| {
        punct(token, ';')
            || !is_item && punct(token, ',')
            || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
    };
    let rest = tokens.get(start..).unwrap_or_default();
    Some(
        rest.iter()
            .position(end)
            .map_or(tokens.len(), |at| start + at + 1),
    )
}

/// Words that items and statements begin with.
const ITEMS: &[&str] = &[
    "async",
    "const",
    "enum",
    "extern",
    "fn",
    "impl",
    "let",
    "macro_rules",
    "mod",
    "static",
    "struct",
    "trait",
    "type",
    "unsafe",
    "use",
];

/// Whether what a `cfg` asks for is so in tests alone.
fn only_tests(wanted: &[TokenTree]) -> bool {
    match wanted {
        [TokenTree::Ident(word)] => word == "test",
        [TokenTree::Ident(word), TokenTree::Group(group)] => {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            let mut parts = inner
                .split(|token| punct(token, ','))
                .filter(|part| !part.is_empty());
            match word.to_string().as_str() {
                "all" => parts.any(only_tests),
                "any" => parts.all(only_tests),
                _ => false,
            }
        }
        _ => false,
    }
}
