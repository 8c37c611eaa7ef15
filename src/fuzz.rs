//! The parsers of foreign bytes, each as a function of bytes alone: what `fuzz/` feeds, and what the tests replay
//! its corpora through.
//!
//! Hidden, and no part of the API. Most of these parsers are private to their folders, and a fuzz target is a crate
//! of its own, so that it could not call them; what it calls must be what the tests call.

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use reqwest::header::HeaderMap;

use crate::chat::CallIds;
use crate::config::{self, QueryRequest};
use crate::llm::anthropic::Anthropic;
use crate::llm::{Decoder as _, Deltas, Protocol as _};
use crate::net::sse::{self, SseError, SseEvent, SseLimits};
use crate::sandbox::{e2b, files};
use crate::tools;

/// Takes any bytes; panics where a parser breaks a rule of its own.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its file and its corpus.
pub static TARGETS: &[(&str, Target)] = &[
    ("request", request),
    ("settings", config::fuzz_file),
    ("dotenv", config::fuzz_dotenv),
    ("sse", |bytes| drop(events(bytes))),
    ("anthropic", anthropic),
    ("connect", connect),
    ("webhook", |bytes| drop(e2b::delivery::read(bytes))),
    #[cfg(target_os = "linux")]
    ("link", link),
    ("files", files::fuzz),
    ("listing", tools::fuzz_listing),
    ("grep", tools::fuzz_grep),
];

/// Gives `bytes` to the target of this name.
pub fn feed(name: &str, bytes: &[u8]) {
    for (known, target) in TARGETS {
        if *known == name {
            target(bytes);
        }
    }
}

fn request(body: &[u8]) {
    let refused = QueryRequest::parse(body).err();
    let details = refused.map(|problem| problem.details).unwrap_or_default();
    assert!(details.len() <= 20, "an answer of any length");
    // Eight names, each of 100 characters that may need ten to be shown.
    let longest = details.iter().map(|detail| detail.path.len()).max();
    assert!(longest <= Some(10_000), "a place of any length");
}

/// The events of a stream, which must not depend on where it is cut.
fn events(bytes: &[u8]) -> Vec<SseEvent> {
    let read = |piece: usize| {
        let pieces: Vec<Result<Bytes, SseError>> = bytes
            .chunks(piece)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        let events = sse::events(futures::stream::iter(pieces), SseLimits::default());
        let events: Option<Vec<_>> = events.collect().now_or_never();
        events.unwrap_or_default()
    };
    let whole = read(usize::MAX);
    assert_eq!(whole, read(1), "cut into bytes");
    assert_eq!(whole, read(7), "cut into pieces");
    whole.into_iter().flatten().collect()
}

fn anthropic(bytes: &[u8]) {
    let mut decoder = Anthropic::decoder(&CallIds::default());
    let mut out = Deltas::default();
    let events = events(bytes);
    let broken = events
        .iter()
        .any(|event| decoder.on_event(event, &mut out).is_err());
    if !broken {
        drop(decoder.on_end(&mut out));
    }
    let text = String::from_utf8_lossy(bytes);
    drop(Anthropic::decoder(&CallIds::default()).whole(&text, &mut Deltas::default()));
    for status in [400, 429, 529] {
        drop(Anthropic::fault(status, &HeaderMap::new(), &text));
    }
}

fn connect(bytes: &[u8]) {
    let whole = e2b::fuzz_connect(bytes, usize::MAX);
    assert_eq!(whole, e2b::fuzz_connect(bytes, 3), "cut into pieces");
}

#[cfg(target_os = "linux")]
fn link(bytes: &[u8]) {
    use crate::sandbox::local::fuzz_link;

    let whole = fuzz_link(bytes, usize::MAX);
    assert_eq!(whole, fuzz_link(bytes, 3), "cut into pieces");
}
