//! The variables that mean something here: read from `.env`, and looked for where they are misspelt.

use std::io::ErrorKind;
use std::path::Path;

use super::dotenv::{self, Unreadable};
use super::env::{EnvMap, Layers};
use super::file::{MOST_BYTES, MOST_TOLD, read_small};
use super::{fields, keys};
use crate::encoding::without_bom;
use crate::show::nearest;

/// What `.env` says.
#[derive(Debug, Default)]
pub(super) struct DotEnv {
    pub(super) values: EnvMap,
    pub(super) warnings: Vec<String>,
}

/// Reads `.env` in `cwd`. A line that can't be read is skipped with a warning, unless it is about one of
/// our variables: then it is an error, since a lost key could open the server.
pub(super) fn read_dotenv(cwd: &Path, errors: &mut Vec<String>) -> DotEnv {
    let bytes = match read_small(&cwd.join(".env")) {
        Ok(bytes) => bytes,
        // Some programs keep a directory of this name.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
            return DotEnv::default();
        }
        Err(error) => {
            errors.push(format!(".env can't be read: {error}"));
            return DotEnv::default();
        }
    };
    parse(&bytes, errors)
}

/// Takes any bytes as `.env`, for [`crate::fuzz`].
pub(crate) fn fuzz_dotenv(bytes: &[u8]) {
    let mut errors = Vec::new();
    let read = parse(bytes, &mut errors);
    let told = errors.iter().chain(&read.warnings);
    for line in told {
        assert!(line.starts_with(".env"), "{line}");
    }
    assert!(errors.len() <= MOST_TOLD && read.warnings.len() <= MOST_TOLD);
}

fn parse(bytes: &[u8], errors: &mut Vec<String>) -> DotEnv {
    let mut read = DotEnv::default();
    if bytes.len() > MOST_BYTES {
        errors.push(format!(".env has more than {MOST_BYTES} bytes"));
        return read;
    }
    let Ok(text) = std::str::from_utf8(without_bom(bytes)) else {
        errors.push(".env is not UTF-8 text".to_owned());
        return read;
    };
    let (mut wrong, mut odd) = (Told::default(), Told::default());
    let names = known_names();
    let ours = |name: &str| names.iter().any(|known| known == name);
    dotenv::read(text, ours, |line, entry| match entry {
        // Other readers of such files disagree on which of two counts.
        Ok((name, _)) if ours(name) && read.values.contains_key(name) => {
            wrong.tell(|| {
                format!(".env, line {line}: {name} is set twice; keep one of the two lines")
            });
        }
        Ok((name, value)) => {
            read.values.entry(name.to_owned()).or_insert(value);
        }
        // The line itself may hold a key, so only its number is told.
        Err(Unreadable {
            why,
            about: Some(name),
        }) => wrong.tell(|| format!(".env, line {line}: {name} can't be read: {why}")),
        Err(Unreadable { why, about: None }) => {
            odd.tell(|| format!(".env, line {line} can't be read and is ignored: {why}"));
        }
    });
    errors.append(&mut wrong.done());
    read.warnings = odd.done();
    read
}

/// The first lines of what is to be said, and how many more there were.
#[derive(Default)]
struct Told {
    lines: Vec<String>,
    untold: usize,
}

impl Told {
    fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.lines.len() < MOST_TOLD {
            self.lines.push(line());
        } else {
            self.untold += 1;
        }
    }

    fn done(mut self) -> Vec<String> {
        if let (Some(last), more @ 1..) = (self.lines.last_mut(), self.untold) {
            *last = format!("{last} (and {more} more of .env that are not told)");
        }
        self.lines
    }
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
    "SANDCASTER_SEED",
];

/// One warning for each of our variables that both layers set differently.
pub(super) fn differences(layers: &Layers<'_>) -> Vec<String> {
    known_names()
        .into_iter()
        .filter(|name| {
            let [process, dotenv] = [layers.process, layers.dotenv]
                .map(|layer| layer.get(name).filter(|value| !value.is_empty()));
            process.zip(dotenv).is_some_and(|(a, b)| a != b)
        })
        .map(|name| {
            format!("{name} is set in the environment and differently in .env: the environment's value is used")
        })
        .collect()
}

/// One warning for each variable that is not ours but nearly so.
pub(super) fn misspelt(layers: &Layers<'_>) -> Vec<String> {
    let known = known_names();
    let mut warnings = Vec::new();
    for name in layers.process.keys().chain(layers.dotenv.keys()) {
        if name == "SANDSTORM_API_KEY" {
            if layers.get("SANDCASTER_API_KEY").is_none() {
                warnings.push(
                    "SANDSTORM_API_KEY is not read: the API key is SANDCASTER_API_KEY".to_owned(),
                );
            }
        } else if let Some(right) = meant(name, &known) {
            warnings.push(format!("{name} is not read; did you mean {right}?"));
        }
    }
    warnings
}

/// The variable of ours that was most likely meant by `name`, which is none.
fn meant(name: &str, known: &[String]) -> Option<String> {
    if known.iter().any(|known| known == name) {
        return None;
    }
    let own = known.iter().filter_map(|name| name.strip_prefix(PREFIX));
    if let Some(typed) = name.strip_prefix(PREFIX) {
        return nearest(typed, own).map(|right| format!("{PREFIX}{right}"));
    }
    // Names of one word (`port`) have another meaning for others.
    let style = name.replace(['-', '.'], "_").to_ascii_uppercase();
    let in_another_style = known
        .iter()
        .find(|known| **known == style && style.contains('_'));
    // Other programs' variables are near those of services, but not near the prefix.
    let (first, rest) = style.split_once('_')?;
    in_another_style.cloned().or_else(|| {
        let prefix = PREFIX.trim_end_matches('_');
        let near = first.len() + 2 >= prefix.len() && nearest(first, [prefix]).is_some();
        let right = if near { nearest(rest, own) } else { None };
        right.map(|right| format!("{PREFIX}{right}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_in_another_style_or_with_a_slip_in_its_prefix_is_told() {
        let key = Some("SANDCASTER_API_KEY");
        for (name, right) in [
            ("sandcaster_api_key", key),
            ("SANDCASTER-API-KEY", key),
            ("SANCASTER_API_KEY", key),
            ("SANDCASTER_API_KEYS", key),
            ("SandCaster_Api_Key", key),
            (
                "SANDCATSER_WEBHOOK_SECRET",
                Some("SANDCASTER_WEBHOOK_SECRET"),
            ),
            ("anthropic_api_key", Some("ANTHROPIC_API_KEY")),
            ("E2B-API-KEY", Some("E2B_API_KEY")),
            ("SANDCASTER_API_KEY", None),
            ("SANDBOX_API_KEY", None),
            ("BROADCASTER_API_KEY", None),
            ("XAI_API_KEY", None),
            ("port", None),
            ("POST", None),
            ("SAND", None),
        ] {
            assert_eq!(meant(name, &known_names()).as_deref(), right, "{name}");
        }
    }
}
