//! Settings and requests, on plain data: no process environment, no network.

mod bad_input;
mod choices;
mod dotenv;
mod files;
mod keys;
mod requests;
mod settings;

use std::path::Path;

use sandcaster::config::{Config, EnvMap, Overrides, Usable};

/// Variables as a map.
pub fn env(pairs: &[(&str, &str)]) -> EnvMap {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Settings from a file's text and variables.
pub fn load(file: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    if !file.is_empty() {
        std::fs::write(dir.path().join("sandcaster.json"), file).unwrap();
    }
    load_in(dir.path(), &Overrides::default(), variables)
}

/// Settings from what lies in `dir`.
pub fn load_in(
    dir: &Path,
    overrides: &Overrides,
    variables: &[(&str, &str)],
) -> Result<Config, String> {
    Config::load(overrides, &env(variables), dir).map_err(|error| error.to_string())
}

/// Where `local` works and nothing else was probed.
pub fn local_works() -> Usable {
    Usable {
        backends: [("local", Ok(()))].into(),
    }
}
