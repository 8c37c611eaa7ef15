//! The environment and `.env`: the only reader of either.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::dotenv::{self, Unreadable};
use super::{fields, keys};
use crate::encoding::without_bom;
use crate::show::nearest;

/// Variables by name.
pub type EnvMap = BTreeMap<String, String>;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The process's environment.
    Environment,
    /// `.env` in the working directory.
    DotEnv,
}

impl Source {
    /// For a person.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::DotEnv => ".env",
        }
    }
}

/// The process's environment. What is not UTF-8 is kept with replacement characters: a key that was left
/// out could open the server, one that is damaged is refused.
pub fn process() -> EnvMap {
    std::env::vars_os()
        .map(|(name, value)| {
            let text = |os: OsString| os.to_string_lossy().into_owned();
            (text(name), text(value))
        })
        .collect()
}

/// The process's arguments, its own name first.
pub(crate) fn process_arguments() -> Vec<OsString> {
    std::env::args_os().collect()
}

/// Where relative paths start.
///
/// # Errors
/// When the directory was removed or can't be read.
pub(crate) fn working_directory() -> std::io::Result<PathBuf> {
    std::env::current_dir()
}

/// What `.env` says.
#[derive(Debug, Default)]
pub(super) struct DotEnv {
    pub(super) values: EnvMap,
    pub(super) warnings: Vec<String>,
}

/// Reads `.env` in `cwd`. A line that can't be read is skipped with a warning, unless it is about one of
/// our variables: then it is an error, since a lost key could open the server.
pub(super) fn read_dotenv(cwd: &Path, errors: &mut Vec<String>) -> DotEnv {
    let mut read = DotEnv::default();
    let bytes = match std::fs::read(cwd.join(".env")) {
        Ok(bytes) => bytes,
        // Some programs keep a directory of this name.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
            return read;
        }
        Err(error) => {
            errors.push(format!(".env can't be read: {error}"));
            return read;
        }
    };
    let Ok(text) = std::str::from_utf8(without_bom(&bytes)) else {
        errors.push(".env is not UTF-8 text".to_owned());
        return read;
    };
    let names = known_names();
    dotenv::read(text, |line, entry| match entry {
        Ok((name, value)) => {
            // The first of repeated names counts, as for other readers of such files.
            read.values.entry(name.to_owned()).or_insert(value);
        }
        // The line itself may hold a key, so only its number is told.
        Err(Unreadable { text, why }) => {
            match names.iter().find(|name| text.contains(name.as_str())) {
                Some(name) => {
                    errors.push(format!(".env, line {line}: {name} can't be read: {why}"))
                }
                None => read.warnings.push(format!(
                    ".env, line {line} can't be read and is ignored: {why}"
                )),
            }
        }
    });
    read
}

/// Names that mean something to sandcaster.
fn known_names() -> Vec<String> {
    fields::variables()
        .chain(keys::variables().map(str::to_owned))
        .chain(OTHERS.iter().map(|name| (*name).to_owned()))
        .collect()
}

/// How our own variables begin.
const PREFIX: &str = "SANDCASTER_";

/// Read elsewhere, or by other programs of the project.
static OTHERS: &[&str] = &[
    "SANDCASTER_API_URL",
    "SANDCASTER_TELEMETRY",
    "SANDCASTER_RECORDINGS",
    "SANDCASTER_SHARED",
    "SANDCASTER_LONG",
];

/// The environment over `.env`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layers<'e> {
    pub(super) process: &'e EnvMap,
    pub(super) dotenv: &'e EnvMap,
}

impl<'e> Layers<'e> {
    /// The value of a variable; an empty one is not set.
    pub(super) fn get(&self, name: &str) -> Option<(&'e str, Source)> {
        self.get_even_empty(name).and_then(|(value, source)| {
            if !value.trim().is_empty() {
                return Some((value, source));
            }
            let below = self
                .dotenv
                .get(name)
                .filter(|value| !value.trim().is_empty())?;
            Some((below.as_str(), Source::DotEnv))
        })
    }

    /// As [`Self::get`], but an empty variable is set.
    pub(super) fn get_even_empty(&self, name: &str) -> Option<(&'e str, Source)> {
        let process = self
            .process
            .get(name)
            .map(|value| (value, Source::Environment));
        process
            .or_else(|| self.dotenv.get(name).map(|value| (value, Source::DotEnv)))
            .map(|(value, source)| (value.as_str(), source))
    }

    /// One warning for each of our variables that both layers set differently.
    pub(super) fn differences(&self) -> Vec<String> {
        known_names()
            .into_iter()
            .filter(|name| {
                let set = |layer: &'e EnvMap| layer.get(name).filter(|value| !value.is_empty());
                matches!((set(self.process), set(self.dotenv)), (Some(a), Some(b)) if a != b)
            })
            .map(|name| {
                format!("{name} is set in the environment and differently in .env: the environment's value is used")
            })
            .collect()
    }

    /// One warning for each `SANDCASTER_…` variable that is not ours but nearly so.
    pub(super) fn misspelt(&self) -> Vec<String> {
        let known = known_names();
        let mut warnings = Vec::new();
        for name in self.process.keys().chain(self.dotenv.keys()) {
            if name == "SANDSTORM_API_KEY" && self.get("SANDCASTER_API_KEY").is_none() {
                warnings.push(
                    "SANDSTORM_API_KEY is not read: the API key is SANDCASTER_API_KEY".to_owned(),
                );
            }
            let Some(typed) = name.strip_prefix(PREFIX) else {
                continue;
            };
            if known.contains(name) {
                continue;
            }
            let rests = known.iter().filter_map(|name| name.strip_prefix(PREFIX));
            if let Some(right) = nearest(typed, rests) {
                warnings.push(format!("{name} is not read; did you mean {PREFIX}{right}?"));
            }
        }
        warnings
    }
}
