//! The tree against its own rules: who may use whom, files that nobody names, codes without a page.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use sandcaster::error::{ErrorCode, WarningCode};

use crate::support::imports::{Sources, Use};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

fn files_below(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    rust_files(&root().join(dir), &mut found);
    found.sort();
    found
}

/// Modules that all others use and that use nothing but each other.
const WORDS: &[&str] = &[
    "apart", "chat", "clock", "encoding", "error", "ids", "paths", "secrets", "show", "signals",
    "spec",
];

/// What each other module may use beside the words.
const MAY_USE: &[(&str, &[&str])] = &[
    ("events", &[]),
    ("net", &[]),
    ("telemetry", &[]),
    ("llm", &["net"]),
    ("sandbox", &["events", "net"]),
    ("tools", &["net", "sandbox"]),
    ("store", &["events"]),
    ("agent", &["events", "llm", "net", "sandbox", "tools"]),
    (
        "runs",
        &["agent", "events", "llm", "net", "sandbox", "store", "tools"],
    ),
    ("config", &["llm", "net", "sandbox", "tools"]),
    (
        "app",
        &["config", "events", "llm", "net", "runs", "sandbox", "store"],
    ),
    (
        "api",
        &["app", "config", "events", "runs", "sandbox", "store"],
    ),
    ("lifecycle", &["api", "app", "runs"]),
    ("fuzz", &["config", "llm", "net", "sandbox", "tools"]),
    (
        "cli",
        &[
            "api",
            "app",
            "config",
            "events",
            "lifecycle",
            "llm",
            "net",
            "runs",
            "sandbox",
            "store",
            "telemetry",
            "tools",
        ],
    ),
];

/// Of `llm`, which files: the neutral types, and data about models. Only what chooses or builds a provider sees
/// the table in its `mod.rs`, and nobody a provider.
const OF_LLM: &[(&str, &[&str])] = &[
    ("agent", &["estimate", "prices", "types"]),
    ("runs", &["types"]),
    ("config", &["mod", "def", "types", "models", "prices"]),
    ("app", &["mod", "def", "types"]),
    ("cli", &["mod", "def", "types", "models", "prices"]),
    ("fuzz", &["anthropic", "protocol"]),
];

static SOURCES: LazyLock<Sources> = LazyLock::new(|| {
    let src = root().join("src");
    let files = files_below("src");
    let read = files
        .iter()
        .map(|file| file.strip_prefix(&src).unwrap().to_str().unwrap())
        // Test files are declared with a path of their own; main.rs is another crate.
        .filter(|path| !path.ends_with("_tests.rs") && *path != "main.rs")
        .map(|path| (path, fs::read_to_string(src.join(path)).unwrap()));
    Sources::read(read)
});

fn row<'r>(rows: &[(&str, &'r [&'r str])], name: &str) -> Option<&'r [&'r str]> {
    rows.iter()
        .find(|(row, _)| *row == name)
        .map(|(_, list)| *list)
}

/// The arrows of `sources` that the tables forbid.
fn forbidden(sources: &Sources) -> Vec<String> {
    let mut wrong = Vec::new();
    for Use { by, of } in sources.uses() {
        let ([user, ..], [used, below @ ..]) = (by.as_slice(), of.as_slice()) else {
            continue;
        };
        if user == used {
            continue;
        }
        let allowed = row(MAY_USE, user)
            .unwrap_or_default()
            .contains(&used.as_str())
            || WORDS.contains(&used.as_str());
        let file = below.first().map_or("mod", String::as_str);
        let of_llm = used != "llm" || row(OF_LLM, user).is_some_and(|files| files.contains(&file));
        if !allowed || !of_llm {
            wrong.push(format!("{} uses {}", by.join("::"), of.join("::")));
        }
    }
    wrong
}

#[test]
fn modules_use_only_what_the_architecture_allows() {
    let wrong = forbidden(&SOURCES);
    assert!(
        wrong.is_empty(),
        "arrows that ARCHITECTURE.md forbids:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_module_has_its_row_and_every_row_its_module() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules: BTreeSet<&str> = lib
        .lines()
        .filter(|line| !line.starts_with("//"))
        .filter_map(|line| line.split_once("mod ")?.1.strip_suffix(';'))
        .collect();
    let rows = MAY_USE.iter().map(|(name, _)| *name);
    let rows: BTreeSet<&str> = rows.chain(WORDS.iter().copied()).collect();
    assert_eq!(modules, rows);
}

#[test]
fn no_file_uses_one_that_uses_it_back() {
    let circles = SOURCES.circles();
    assert!(circles.is_empty(), "circles:\n{}", circles.join("\n"));
}

/// A crate of these files.
fn made_up(files: &[(&'static str, &str)]) -> Sources {
    Sources::read(files.iter().map(|(path, text)| (*path, (*text).to_owned())))
}

#[test]
fn the_arrow_check_sees_every_form_of_use() {
    for text in [
        "use crate::runs::log::Logs;",
        "use crate::{events::Seq, runs::{self, log::{Logs as L}}};",
        "fn f() { crate::runs::log::open() }",
        "fn f() -> Result<super::super::runs::log::Logs, ()> { loop {} }",
        "fn f() { wrap!(a, { crate::runs::log::open() }) }",
        "#[cfg(not(test))] use crate::runs::log::Logs;",
        // By a name that runs hands on, also under another one.
        "use crate::runs::Logs;",
        "use crate::runs::Renamed;",
        "use crate::app::Handed;",
        "use super::Kept;",
    ] {
        let sources = made_up(&[
            ("llm/mod.rs", "mod one;\nuse crate::runs::Logs as Kept;"),
            ("llm/one.rs", text),
            ("events.rs", ""),
            ("app.rs", "pub use crate::runs::Renamed as Handed;"),
            (
                "runs/mod.rs",
                "mod log;\npub use log::{Logs, Logs as Renamed};",
            ),
            ("runs/log.rs", ""),
        ]);
        let seen = forbidden(&sources);
        assert!(
            seen.contains(&"llm::one uses runs::log".to_owned()),
            "{text}: {seen:?}"
        );
    }
    // What is built without tests too, and what stands behind that which is not.
    for text in [
        "#[cfg(any(test, feature = \"x\"))] use crate::runs::log;",
        "#[cfg(not(test))] use crate::runs::log;",
        "struct S { #[cfg(test)] pub(crate) a: u8, b: crate::runs::log::Logs }",
        "fn f(x: u8) { match x { #[cfg(test)] 1 => g(), _ => crate::runs::log::f() } }",
        "#[cfg(test)] #[derive(Debug)] struct S; use crate::runs::log;",
    ] {
        let sources = made_up(&[
            ("llm.rs", text),
            ("runs/mod.rs", "mod log;"),
            ("runs/log.rs", ""),
        ]);
        assert_eq!(forbidden(&sources).len(), 1, "{text}");
    }
    for text in [
        "#[cfg(all(test, unix))] pub(crate) fn f<A, B>() { crate::runs::log::f() }",
        "// crate::runs::log",
        "/// [`crate::runs::log`]\nfn f() {}",
        "const A: &str = \"crate::runs::log\";",
        "#[cfg(test)] mod tests { use crate::runs::log::Logs; }",
        "#[cfg(test)] use crate::runs::log::Logs;",
        "use std::runs::log; fn runs() { log::info() }",
        "pub(crate) fn f<'a>(x: &'a str) -> char { 'c' }",
    ] {
        let sources = made_up(&[
            ("llm.rs", text),
            ("runs/mod.rs", "mod log;"),
            ("runs/log.rs", ""),
        ]);
        assert_eq!(forbidden(&sources), [""; 0], "{text}");
    }
}

#[test]
fn only_the_neutral_part_of_llm_is_for_others() {
    let with = |by: &'static str, text: &str| {
        forbidden(&made_up(&[
            (by, text),
            (
                "llm/mod.rs",
                "mod types; mod acme;\npub use types::Usage;\npub struct Def;",
            ),
            ("llm/types.rs", ""),
            ("llm/acme.rs", ""),
        ]))
    };
    assert_eq!(with("agent/run.rs", "use crate::llm::Usage;"), [""; 0]);
    assert_eq!(
        with("tools/bash.rs", "use crate::llm::Usage;"),
        ["tools::bash uses llm::types"]
    );
    assert_eq!(
        with("agent/run.rs", "use crate::llm::Def;"),
        ["agent::run uses llm"]
    );
    assert_eq!(
        with("config.rs", "use crate::llm::acme;"),
        ["config uses llm::acme"]
    );
    assert_eq!(
        with("chat.rs", "use crate::llm::Usage;"),
        ["chat uses llm::types"]
    );
}

#[test]
fn the_circle_check_finds_circles_between_files_folders_and_their_heads() {
    let circle = |files: &[(&'static str, &str)]| {
        let found = made_up(files).circles();
        let heads = found
            .iter()
            .map(|text| text.lines().next().unwrap().to_owned());
        heads.collect::<Vec<_>>()
    };
    // By names that the folder's head hands on; three files round.
    assert_eq!(
        circle(&[
            (
                "x/mod.rs",
                "mod a; mod b; mod c; mod d;\npub use a::A;\npub use c::C;"
            ),
            ("x/a.rs", "use super::b;"),
            ("x/b.rs", "fn f() { super::C::new() }"),
            ("x/c.rs", "use crate::x::A;"),
            ("x/d.rs", "use super::{A, C};"),
        ]),
        ["src/x: a, b, c"]
    );
    // A table in the head over rows of a type of its own.
    assert_eq!(
        circle(&[
            (
                "x/mod.rs",
                "mod a;\npub struct Def;\nstatic ROWS: &[Def] = &[a::DEF];"
            ),
            ("x/a.rs", "use super::Def;"),
        ]),
        ["src/x: a, mod"]
    );
    // Between a file and a folder, though no two files use each other.
    assert_eq!(
        circle(&[
            ("x/mod.rs", ""),
            ("x/y/mod.rs", ""),
            ("x/y/one.rs", "use super::super::z::Z;"),
            ("x/y/two.rs", ""),
            ("x/z.rs", "use super::y::two::Two;"),
        ]),
        ["src/x: y, z"]
    );
    // Between the crate's own parts.
    assert_eq!(
        circle(&[
            ("lib.rs", "mod x; mod z;"),
            ("x/mod.rs", "use crate::z::Z;"),
            ("z.rs", "use crate::x::X;"),
        ]),
        ["src/: x, z"]
    );
    assert_eq!(
        circle(&[
            ("lib.rs", ""),
            (
                "x/mod.rs",
                "mod a; mod b; mod types;\npub use types::Def;\nstatic ROWS: &[Def] = &[a::DEF, b::DEF];"
            ),
            (
                "x/a.rs",
                "use super::Def;\n#[cfg(test)] mod tests { use super::super::b; }"
            ),
            ("x/b.rs", "use super::{Def, a};"),
            ("x/types.rs", ""),
        ]),
        [""; 0]
    );
}

/// Whether a line of `head` declares the module `name`.
fn declares(head: &str, name: &str) -> bool {
    head.lines().any(|line| {
        let before = line.trim().strip_suffix(&format!("mod {name};"));
        before.is_some_and(|before| before.is_empty() || before.starts_with("pub"))
    })
}

#[test]
fn every_test_file_is_named_by_a_mod_line() {
    assert!(declares("pub mod one;", "one") && declares("    mod one;", "one"));
    assert!(!declares("// mod one;", "one") && !declares("mod one_more;", "one"));
    let tests = root().join("tests");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let shown = |file: &Path| file.strip_prefix(root()).unwrap().display().to_string();
    for file in files_below("tests") {
        let parent = file.parent().unwrap();
        let (of, name) = match file.file_stem().unwrap().to_str().unwrap() {
            "mod" => (parent.parent().unwrap(), parent.file_name().unwrap()),
            // The head of a test program.
            "main" if manifest.contains(&format!("path = \"{}\"", shown(&file))) => continue,
            _ => (parent, file.file_stem().unwrap()),
        };
        let head = of.join(if of == tests { "main.rs" } else { "mod.rs" });
        let text = fs::read_to_string(&head).unwrap_or_default();
        assert!(
            declares(&text, name.to_str().unwrap()),
            "{} is in no mod line of {}, so it never runs",
            file.display(),
            head.display()
        );
    }
    let sources = files_below("src");
    for file in &sources {
        let name = file.file_name().unwrap().to_str().unwrap();
        if !name.ends_with("_tests.rs") {
            continue;
        }
        let line = format!("#[path = \"{name}\"]\nmod ");
        let beside = sources.iter().filter(|other| {
            other.parent() == file.parent() && !other.to_str().unwrap().ends_with("_tests.rs")
        });
        let named = beside
            .map(|other| fs::read_to_string(other).unwrap())
            .any(|text| text.contains(&line));
        assert!(
            named,
            "{} is in no mod line beside it, so it never runs",
            file.display()
        );
    }
}

#[test]
fn every_code_has_its_page_and_every_page_its_code() {
    let page = fs::read_to_string(root().join("src/error.md")).unwrap();
    let described: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## `")?.strip_suffix('`'))
        .collect();
    let codes: BTreeSet<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(described, codes);
    let listed: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("- `")?.split('`').next())
        .collect();
    let warnings: BTreeSet<&str> = WarningCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(listed, warnings);
}

#[test]
fn codes_read_back_from_their_names() {
    for code in ErrorCode::ALL {
        assert_eq!(ErrorCode::parse(code.as_str()), Some(*code));
    }
}

#[test]
fn architecture_is_short_and_names_every_module() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(text.lines().count() <= 150);
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name == "lib.rs" || name == "telemetry" || name.ends_with("_tests.rs") {
            continue;
        }
        let name = if name.contains('.') {
            name
        } else {
            format!("{name}/")
        };
        let known = text.contains(&name) || name == "error.md";
        assert!(known, "ARCHITECTURE.md does not name src/{name}");
    }
}

#[test]
fn the_architecture_starts_at_files_that_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = text.split_once("## Where to start").unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| a "));
    let mut checked = 0;
    for row in rows {
        for word in row.split('`').skip(1).step_by(2) {
            let exists = if let Some((module, table)) = word.split_once("::") {
                let head = root().join(format!("src/{module}/mod.rs"));
                let head = fs::read_to_string(head).unwrap_or_default();
                head.contains(&format!("static {table}:"))
            } else if let Some((folder, _)) = word.split_once("<name>") {
                root().join("src").join(folder).is_dir()
            } else {
                root().join("src").join(word).is_file()
            };
            assert!(exists, "{word} of {row} is not in src/");
            checked += 1;
        }
    }
    assert!(checked >= 9, "{checked}");
}
