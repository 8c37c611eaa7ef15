//! Recorded provider traffic, read from where it lies: it is third-party data and not in this repository.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

/// One conversation with a provider.
#[derive(Clone, Debug, Deserialize)]
pub struct Recording {
    pub name: String,
    pub kind: String,
    pub exchanges: Vec<Exchange>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Exchange {
    pub request: Request,
    pub response: Response,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Request {
    pub path: String,
    pub body: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Response {
    pub status: u16,
    pub headers: std::collections::BTreeMap<String, String>,
    pub body_text: String,
}

impl Response {
    pub fn is_stream(&self) -> bool {
        !self.body_text.trim_start().starts_with(['{', '[', '<'])
    }

    /// The JSON of its events.
    pub fn stream_data(&self) -> Vec<Value> {
        let lines = self.body_text.lines();
        lines
            .filter_map(|line| line.strip_prefix("data:"))
            .filter_map(|data| serde_json::from_str(data).ok())
            .collect()
    }
}

/// The folder with the shared evidence: `SANDCASTER_SHARED`, or `shared` beside the repository.
#[expect(clippy::disallowed_methods, reason = "tests have no settings")]
pub fn shared() -> PathBuf {
    std::env::var("SANDCASTER_SHARED")
        .ok()
        .filter(|path| !path.is_empty())
        .map_or_else(|| PathBuf::from("../shared"), PathBuf::from)
}

/// Every recording in `folder`, by name.
pub fn all(folder: &str) -> Vec<Recording> {
    let folder = shared().join("recordings").join(folder);
    let entries = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{} can't be read: {error}", folder.display()));
    let mut recordings: Vec<Recording> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
        .collect();
    recordings.sort_by(|a, b| a.name.cmp(&b.name));
    recordings
}
