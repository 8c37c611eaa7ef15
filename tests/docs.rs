//! The README against the program: a name that only one of them knows is a fault.

use std::collections::BTreeSet;
use std::process::Command;

use sandcaster::api::ROUTES;
use sandcaster::config::{key_variables, request_fields, setting_names};
use sandcaster::events::EventType;
use sandcaster::llm::{self, PROVIDERS};
use sandcaster::sandbox::{self, BACKENDS};
use sandcaster::tools::TOOLS;

static README: &str = include_str!("../README.md");

/// The rows of the table whose head has these names, cell by cell, without code marks.
fn table(head: &[&str]) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        let inner = line
            .strip_prefix('|')
            .and_then(|line| line.strip_suffix('|'));
        let cells = inner.unwrap_or_default().split('|');
        cells.map(|cell| cell.trim().replace('`', "")).collect()
    };
    let mut lines = README.lines();
    lines
        .find(|line| cells(line) == head)
        .unwrap_or_else(|| panic!("the README has no table {head:?}"));
    let rows: Vec<_> = lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect();
    assert!(!rows.is_empty(), "{head:?}");
    rows
}

fn column(head: &[&str], at: usize) -> BTreeSet<String> {
    table(head).into_iter().map(|row| row[at].clone()).collect()
}

fn names<'n>(names: impl IntoIterator<Item = &'n str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn the_readme_names_every_setting_and_no_other() {
    let rows = table(&["in sandcaster.json", "variable", "default", "meaning"]);
    let documented: BTreeSet<(String, String)> = rows
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let known: BTreeSet<(String, String)> = setting_names()
        .map(|(path, variable)| (path.to_owned(), variable.to_owned()))
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn the_readme_names_every_key_and_no_other() {
    assert_eq!(column(&["variable", "what"], 0), names(key_variables()));
}

#[test]
fn the_readme_names_every_request_field_and_no_other() {
    let documented = column(&["field", "type", "limits and meaning"], 0);
    assert_eq!(documented, names(request_fields()));
}

#[test]
fn the_readme_names_every_endpoint_and_no_other() {
    let known: BTreeSet<String> = ROUTES
        .iter()
        .map(|route| format!("{} {}", route.method, route.path.replace("{*", "{")))
        .collect();
    assert_eq!(column(&["endpoint", "what"], 0), known);
}

#[test]
fn the_readme_names_every_event_and_no_other() {
    let documented = column(&["type", "fields", "meaning"], 0);
    assert_eq!(
        documented,
        names(EventType::ALL.iter().map(|kind| kind.as_str()))
    );
}

#[test]
fn the_readme_says_which_backends_providers_and_tools_are_built() {
    let rows = table(&["backend", "isolation", "state"]);
    assert_eq!(rows.len(), BACKENDS.len());
    for def in BACKENDS {
        let row = rows
            .iter()
            .find(|row| row[0] == def.name)
            .unwrap_or_else(|| panic!("{} is not in the README", def.name));
        assert_eq!(row[1], def.isolates);
        let planned = matches!(def.build, sandbox::Build::NotYet);
        assert_eq!(row[2] == "not built yet", planned, "{}", def.name);
    }
    let fields = table(&["field", "type", "limits and meaning"]);
    let about = |name: &str| {
        let row = fields.iter().find(|row| row[0] == name).unwrap();
        row[2].clone()
    };
    let providers = about("provider");
    let (built, planned) = providers
        .split_once("not built yet")
        .unwrap_or((&providers, ""));
    for def in PROVIDERS {
        let place = match def.build {
            llm::Build::With(_) => built,
            llm::Build::NotYet => planned,
        };
        assert!(place.contains(def.name), "{}: {providers}", def.name);
    }
    let tools = about("allowedTools");
    for def in TOOLS {
        assert_eq!(
            tools.contains(def.name),
            def.built.is_some(),
            "{}",
            def.name
        );
    }
}

#[test]
fn the_readme_names_every_flag() {
    for command in ["serve", "query", "doctor"] {
        let help = Command::new(env!("CARGO_BIN_EXE_sandcaster"))
            .args([command, "--help"])
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let (options, _) = help.split_once("Examples:").unwrap_or((&help, ""));
        let flags: Vec<&str> = options
            .split(|c: char| !(c.is_ascii_lowercase() || c == '-'))
            .filter(|word| word.starts_with("--") && word.len() > 2)
            .collect();
        assert!(flags.contains(&"--config"), "{command}: {help}");
        for flag in flags {
            assert!(README.contains(&format!("`{flag}")), "{command} {flag}");
        }
    }
}

#[test]
fn variables_in_the_text_are_ones_that_are_read() {
    let mut known = names(key_variables().chain(setting_names().map(|(_, variable)| variable)));
    known.insert("SANDCASTER_MAX_SANDBOXES_".to_owned());
    for word in README.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
    {
        if word.starts_with("SANDCASTER_") {
            assert!(known.contains(word), "nothing reads {word}");
        }
    }
}

#[test]
fn what_the_readme_points_at_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut links = 0;
    for (at, _) in README.match_indices("](") {
        let target = README[at + 2..].split(')').next().unwrap();
        assert!(root.join(target).exists(), "{target}");
        links += 1;
    }
    assert!(links > 0);
    assert!(root.join("LICENSE").exists());
}
