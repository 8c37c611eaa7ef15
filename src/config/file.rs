//! `sandcaster.json`: read once, wrong values refused with their place, unknown names warned about.

use std::path::Path as FsPath;

use super::Config;
use super::check::{Bad, Wrong};
use super::fields::{self, FIELDS, MAX_SANDBOXES};
use super::json::{self, Node, Path};
use super::settings::FILE_NAME;
use crate::encoding::without_bom;
use crate::show::nearest;

/// A settings file is no data file.
const MOST_BYTES: usize = 1024 * 1024;

/// Objects that hold settings.
static SECTIONS: &[&str] = &["server", MAX_SANDBOXES, "local"];

/// Documented, or known from older versions, and not built yet.
static PLANNED: &[&str] = &[
    "outputFormat",
    "composite",
    "agents",
    "skillsDir",
    "templateSkills",
    "branching",
    "chat",
    "mcpServers",
    "server.maxQueuedRuns",
    "server.drainSecs",
    "server.drainLeadSecs",
    "server.trustedProxies",
];

/// Names that people write, and what to do instead.
static MISTAKEN: &[(&str, &str)] = &[
    (
        "starter",
        "there is no such field: a starter's own fields (systemPrompt, allowedTools, …) stand in this file",
    ),
    ("sandbox", "did you mean `sandboxProvider`?"),
    ("llm", "did you mean `provider`?"),
    ("tools", "did you mean `allowedTools`?"),
    (
        "prompt",
        "the prompt is sent with each request; did you mean `systemPrompt`?",
    ),
    ("apiKey", "keys are read from the environment or .env only"),
    ("apiKeys", "keys are read from the environment or .env only"),
    (
        "baseUrl",
        "base URLs are read from the environment or .env only, like ANTHROPIC_BASE_URL",
    ),
];

/// What is being read.
struct File<'f> {
    name: String,
    text: &'f str,
}

impl File<'_> {
    /// `sandcaster.json:3:17`.
    fn place(&self, path: &Path, at_name: bool) -> String {
        match json::locate(self.text, path, at_name) {
            Some((line, column)) => format!("{}:{line}:{column}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Takes the file's settings. No file at the default place is no fault.
pub(super) fn apply(
    config: &mut Config,
    flag: Option<&FsPath>,
    cwd: &FsPath,
    errors: &mut Vec<String>,
) {
    let path = cwd.join(flag.unwrap_or(FsPath::new(FILE_NAME)));
    let name = flag.map_or_else(|| FILE_NAME.to_owned(), |flag| flag.display().to_string());
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && flag.is_none() => return,
        Err(error) => {
            errors.push(format!("{name} can't be read: {error}"));
            return;
        }
    };
    if let Err(error) = read(config, &name, &bytes, errors) {
        errors.push(error);
    } else {
        config.file = Some(path);
    }
}

/// Reads the file's bytes; an `Err` means that nothing of it could be used.
fn read(
    config: &mut Config,
    name: &str,
    bytes: &[u8],
    errors: &mut Vec<String>,
) -> Result<(), String> {
    if bytes.len() > MOST_BYTES {
        return Err(format!(
            "{name} has {} bytes (limit {MOST_BYTES})",
            bytes.len()
        ));
    }
    let bytes = without_bom(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let valid = std::str::from_utf8(valid).unwrap_or_default();
        let (line, column) = json::position(valid, valid.len()).unwrap_or((1, 1));
        format!("{name}:{line}:{column}: not UTF-8 text")
    })?;
    let root = json::parse(bytes).map_err(|error| {
        // The library's own text ends in "at line 3 column 4", which stands in front here.
        let full = error.to_string();
        let what = full
            .rsplit_once(" at line ")
            .map_or(full.as_str(), |(what, _)| what);
        let comment = if what.starts_with("expected value") || what.starts_with("key must be") {
            " (comments and trailing commas are not JSON)"
        } else {
            ""
        };
        let column = error.column().max(1);
        format!(
            "{name}:{}:{column}: invalid JSON: {what}{comment}",
            error.line().max(1)
        )
    })?;
    let file = File {
        name: name.to_owned(),
        text,
    };
    let Node::Object(entries) = &root else {
        let place = file.place(&Path::default(), false);
        return Err(format!(
            "{place}: must be an object, not {}",
            root.describe()
        ));
    };
    for path in json::repeated_names(&root) {
        errors.push(format!(
            "{}: `{path}` is given twice",
            file.place(&path, true)
        ));
    }
    object(config, &file, &entries.kept, &Path::default(), errors);
    Ok(())
}

fn object(
    config: &mut Config,
    file: &File<'_>,
    entries: &[(String, Node)],
    prefix: &Path,
    errors: &mut Vec<String>,
) {
    for (name, node) in entries {
        let path = prefix.name(name);
        let dotted = path.to_string();
        let absent = matches!(node, Node::Null);
        let result = if let Some(field) = FIELDS.iter().find(|field| field.path == dotted) {
            if absent {
                continue;
            }
            (field.set)(config, node)
        } else if SECTIONS.contains(&dotted.as_str()) {
            match node {
                Node::Null => continue,
                Node::Object(entries) => {
                    object(config, file, &entries.kept, &path, errors);
                    continue;
                }
                other => {
                    Err(Wrong::new(format!("must be an object, not {}", other.describe())).into())
                }
            }
        } else if prefix.to_string() == MAX_SANDBOXES {
            fields::set_max_sandboxes(config, name, node).map(|()| None)
        } else if PLANNED.contains(&dotted.as_str()) {
            if absent {
                continue;
            }
            Ok(Some("is not implemented yet and has no effect".to_owned()))
        } else {
            let hint = unknown(name, prefix);
            let place = file.place(&path, true);
            config.warnings.push(format!(
                "{place}: unknown field `{dotted}` is ignored{hint}"
            ));
            continue;
        };
        match result {
            Ok(None) => {}
            Ok(Some(warning)) => {
                let place = file.place(&path, true);
                config
                    .warnings
                    .push(format!("{place}: `{dotted}` {warning}"));
            }
            Err(Bad(inside, wrong)) => {
                let whole = Path(path.0.iter().chain(&inside.0).cloned().collect());
                let hint = wrong
                    .hint
                    .map(|hint| format!("; {hint}"))
                    .unwrap_or_default();
                let place = file.place(&whole, false);
                errors.push(format!("{place}: `{whole}` {}{hint}", wrong.message));
            }
        }
    }
}

/// What to say of an unknown name: the nearest one here, else the same name in another section.
fn unknown(name: &str, prefix: &Path) -> String {
    if prefix.0.is_empty()
        && let Some((_, advice)) = MISTAKEN.iter().find(|(mistaken, _)| *mistaken == name)
    {
        return format!("; {advice}");
    }
    let paths = || {
        let fields = FIELDS.iter().map(|field| field.path);
        fields
            .chain(SECTIONS.iter().copied())
            .chain(PLANNED.iter().copied())
    };
    let start = if prefix.0.is_empty() {
        String::new()
    } else {
        format!("{prefix}.")
    };
    let here = paths()
        .filter_map(|path| path.strip_prefix(start.as_str()))
        .filter(|rest| !rest.contains('.'));
    let elsewhere = || {
        let last = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
        let right = nearest(name, paths().map(last))?;
        paths().find(|path| last(path) == right)
    };
    nearest(name, here)
        .map(|right| format!("{start}{right}"))
        .or_else(|| elsewhere().map(str::to_owned))
        .map(|right| format!("; did you mean `{right}`?"))
        .unwrap_or_default()
}
