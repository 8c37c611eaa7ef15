//! The process's environment, of which this is the only reader, and its place over `.env`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

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
}
