//! The tree against its own rules: who may use whom, files that nobody names, codes without a page.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sandcaster::error::{ErrorCode, WarningCode};

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

/// The top-level module that a source file belongs to.
fn module_of(file: &Path) -> String {
    let relative = file.strip_prefix(root().join("src")).unwrap();
    let first = relative.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Modules that must not be named from within another one.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "show",
        &[
            "events",
            "chat",
            "spec",
            "ids",
            "clock",
            "secrets",
            "error",
            "encoding",
            "telemetry",
            "net",
            "llm",
            "sandbox",
            "tools",
            "agent",
            "runs",
            "store",
            "config",
            "api",
            "cli",
            "app",
        ],
    ),
    (
        "events",
        &[
            "net", "llm", "sandbox", "tools", "agent", "runs", "store", "config", "api", "cli",
            "app",
        ],
    ),
    (
        "net",
        &[
            "sandbox", "tools", "agent", "runs", "store", "config", "api", "cli", "app",
        ],
    ),
    (
        "llm",
        &[
            "sandbox", "tools", "agent", "runs", "store", "config", "api", "cli", "app",
        ],
    ),
    (
        "sandbox",
        &[
            "llm", "tools", "agent", "runs", "store", "config", "api", "cli", "app",
        ],
    ),
    (
        "tools",
        &["agent", "runs", "store", "config", "api", "cli", "app"],
    ),
    (
        "store",
        &[
            "net", "llm", "sandbox", "tools", "agent", "runs", "config", "api", "cli", "app",
        ],
    ),
    ("runs", &["config", "api", "cli", "app"]),
    ("config", &["agent", "runs", "api", "cli", "app"]),
    ("api", &["cli", "llm", "tools"]),
    ("cli", &[]),
];

/// The agent stands on many, but must not see these.
const AGENT_FORBIDDEN: &[&str] = &["runs", "store", "config", "api", "cli", "app"];

/// Top-level modules that the code of `text` names: in `use crate::{…}`, or anywhere as `crate::name`.
fn modules_used(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let after = &code[at + "crate::".len()..];
        if let Some(list) = after.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        used.insert(std::mem::take(&mut name));
                    }
                    c if depth == 0 => name.push(c),
                    _ => {}
                }
            }
            used.insert(name);
        } else {
            used.insert(
                after
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    used.into_iter()
        .map(|name| {
            name.trim()
                .split("::")
                .next()
                .unwrap_or_default()
                .to_owned()
        })
        .collect()
}

#[test]
fn modules_use_only_what_the_architecture_allows() {
    let mut wrong = Vec::new();
    for file in files_below("src") {
        let module = module_of(&file);
        let forbidden = if module == "agent" {
            AGENT_FORBIDDEN
        } else {
            FORBIDDEN
                .iter()
                .find(|(name, _)| *name == module)
                .map_or(&[][..], |(_, list)| list)
        };
        let used = modules_used(&fs::read_to_string(&file).unwrap());
        for name in forbidden.iter().filter(|name| used.contains(**name)) {
            wrong.push(format!(
                "{} uses crate::{name}",
                file.strip_prefix(root()).unwrap().display()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that ARCHITECTURE.md forbids:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_arrow_check_sees_every_form_of_use() {
    let text = "use crate::runs::Runs;\nuse crate::{api, store::{A, B}};\nfn f() { crate::cli::run() }\n// crate::app\n";
    let used = modules_used(text);
    for name in ["runs", "api", "store", "cli"] {
        assert!(used.contains(name), "{name}");
    }
    assert!(!used.contains("app") && !used.contains("A"));
}

#[test]
fn every_test_file_is_named_by_a_mod_line() {
    let files = files_below("tests");
    let all: String = files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    for file in &files {
        let name = match file.file_stem().unwrap().to_str().unwrap() {
            "mod" => file
                .parent()
                .unwrap()
                .file_name()
                .unwrap()
                .to_str()
                .unwrap(),
            "main" => continue,
            name => name,
        };
        let named =
            all.contains(&format!("mod {name};")) || all.contains(&format!("/{name}.rs\"]"));
        assert!(
            named,
            "{} is in no mod line, so it never runs",
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
        if name == "lib.rs" || name == "telemetry" {
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
