//! `sandcaster.json`: read once, wrong values refused with their place, unknown names warned about.

use std::io::Read as _;
use std::path::Path;
use std::{fmt, io};

use super::Config;
use super::check::{Bad, Wrong};
use super::fields::{self, FIELDS, MAX_SANDBOXES};
use super::json::{self, At, Fields, Node};
use super::settings::FILE_NAME;
use crate::encoding::without_bom;
use crate::show::nearest;

/// A settings file is no data file.
pub(super) const MOST_BYTES: usize = 1024 * 1024;

/// Faults that are told of one file, and as many warnings.
pub(super) const MOST_TOLD: usize = 20;

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

/// What is being read, and what is to be said of it.
struct File<'f> {
    name: &'f str,
    text: &'f str,
    errors: Vec<String>,
    warnings: Vec<String>,
    untold: usize,
}

impl File<'_> {
    /// `sandcaster.json:3:17`.
    fn place(&self, at: At<'_>, at_name: bool) -> String {
        match json::locate(self.text, at, at_name) {
            Some((line, column)) => format!("{}:{line}:{column}", self.name),
            None => self.name.to_owned(),
        }
    }

    fn wrong(&mut self, at: At<'_>, at_name: bool, what: impl fmt::Display) {
        if self.errors.len() < MOST_TOLD {
            let place = self.place(at, at_name);
            self.errors.push(format!("{place}: {what}"));
        } else {
            self.untold += 1;
        }
    }

    /// Finding a place costs as much as reading the file, so that only those are looked for that are told.
    fn odd(&mut self, at: At<'_>, what: impl FnOnce() -> String) {
        if self.warnings.len() < MOST_TOLD {
            let place = self.place(at, true);
            self.warnings.push(format!("{place}: {}", what()));
        } else {
            self.untold += 1;
        }
    }
}

/// Takes the file's settings. No file at the default place is no fault.
pub(super) fn apply(
    config: &mut Config,
    flag: Option<&Path>,
    cwd: &Path,
    errors: &mut Vec<String>,
) {
    let path = cwd.join(flag.unwrap_or(Path::new(FILE_NAME)));
    let name = flag.map_or_else(|| FILE_NAME.to_owned(), |flag| flag.display().to_string());
    let bytes = match read_small(&path) {
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

/// Reads a file of settings, of which one byte more than [`MOST_BYTES`] tells that it is none.
pub(super) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    #[cfg(unix)]
    if std::os::unix::fs::FileTypeExt::is_fifo(&std::fs::metadata(path)?.file_type()) {
        return Err(io::Error::other(
            "it is a pipe, and nobody may ever write to it",
        ));
    }
    let mut bytes = Vec::new();
    let most = MOST_BYTES as u64 + 1;
    std::fs::File::open(path)?
        .take(most)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Takes any bytes as a settings file, for [`crate::fuzz`].
pub(crate) fn fuzz_file(bytes: &[u8]) {
    let mut config = Config::default();
    let mut errors = Vec::new();
    if let Err(error) = read(&mut config, FILE_NAME, bytes, &mut errors) {
        errors.push(error);
    }
    let placed = errors.iter().all(|error| error.starts_with(FILE_NAME));
    assert!(placed, "{errors:?}");
    assert!(errors.len() <= MOST_TOLD && config.warnings.len() <= MOST_TOLD);
}

/// Reads the file's bytes; an `Err` means that nothing of it could be used.
fn read(
    config: &mut Config,
    name: &str,
    bytes: &[u8],
    errors: &mut Vec<String>,
) -> Result<(), String> {
    if bytes.len() > MOST_BYTES {
        return Err(format!("{name} has more than {MOST_BYTES} bytes"));
    }
    let bytes = without_bom(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let valid = std::str::from_utf8(valid).unwrap_or_default();
        let (line, column) = json::position(valid, valid.len()).unwrap_or((1, 1));
        format!("{name}:{line}:{column}: not UTF-8 text")
    })?;
    let mut file = File {
        name,
        text,
        errors: Vec::new(),
        warnings: Vec::new(),
        untold: 0,
    };
    let root = json::parse(bytes, &is_setting, &mut |at| {
        file.wrong(at, true, format_args!("`{at}` is given twice"));
    });
    let root = root.map_err(|error| {
        // The library's own text ends in "at line 3 column 4", which stands in front here.
        let full = error.to_string();
        let what = full
            .rsplit_once(" at line ")
            .map_or(full.as_str(), |(what, _)| what);
        let what = if error.is_data() {
            what.to_owned()
        } else if what.starts_with("expected value") || what.starts_with("key must be") {
            format!("invalid JSON: {what} (comments and trailing commas are not JSON)")
        } else {
            format!("invalid JSON: {what}")
        };
        let column = error.column().max(1);
        format!("{name}:{}:{column}: {what}", error.line().max(1))
    })?;
    let Node::Object(fields) = &root else {
        let place = file.place(At::Document, false);
        return Err(format!("{place}: must be an object, not {}", root.kind()));
    };
    object(config, &mut file, fields, At::Document);
    let list = if file.errors.is_empty() {
        &mut file.warnings
    } else {
        &mut file.errors
    };
    if let (Some(last), more @ 1..) = (list.last_mut(), file.untold) {
        *last = format!("{last} (and {more} more of this file that are not told)");
    }
    errors.append(&mut file.errors);
    config.warnings.append(&mut file.warnings);
    Ok(())
}

/// Whether a top-level field is, or holds, a setting.
fn is_setting(name: &str) -> bool {
    let field = |path: &'static str| path.split('.').next().unwrap_or(path);
    FIELDS.iter().any(|row| field(row.path) == name)
}

fn object(config: &mut Config, file: &mut File<'_>, fields: &Fields<'_>, parent: At<'_>) {
    let section = parent.to_string();
    for (name, node) in fields {
        let at = At::Name(&parent, name);
        let path = at.to_string();
        let absent = matches!(node, Node::Null);
        let result = if let Some(field) = FIELDS.iter().find(|field| field.path == path) {
            if absent {
                continue;
            }
            (field.set)(config, node)
        } else if SECTIONS.contains(&path.as_str()) {
            match node {
                Node::Null => continue,
                Node::Object(fields) => {
                    object(config, file, fields, at);
                    continue;
                }
                other => Err(Wrong::not(other, "an object").into()),
            }
        } else if section == MAX_SANDBOXES {
            fields::set_max_sandboxes(config, name, node).map(|()| None)
        } else if PLANNED.contains(&path.as_str()) {
            if absent {
                continue;
            }
            Ok(Some("is not implemented yet and has no effect".to_owned()))
        } else {
            file.odd(at, || {
                let hint = unknown(name, &section);
                format!("unknown field `{path}` is ignored{hint}")
            });
            continue;
        };
        match result {
            Ok(None) => {}
            Ok(Some(warning)) => file.odd(at, || format!("`{path}` {warning}")),
            Err(Bad(inside, wrong)) => {
                let at = inside.of(&at);
                file.wrong(at, false, format_args!("`{at}` {wrong}"));
            }
        }
    }
}

/// What to say of an unknown name: the nearest one here, else the same name in another section.
fn unknown(name: &str, section: &str) -> String {
    if section.is_empty()
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
    let start = if section.is_empty() {
        String::new()
    } else {
        format!("{section}.")
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
