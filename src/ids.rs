//! Ids, sequence numbers and randomness: the only place that makes them.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use percent_encoding::utf8_percent_encode;
use serde::{Deserialize, Serialize, Serializer};

use crate::encoding::RESERVED_IN_PATH;

/// A run's id: `run_` and 32 lower-case hex digits (a UUID version 7), so ids sort by time.
///
/// Cheap to clone, for every event that is written names its run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(Arc<str>);

impl RunId {
    /// A fresh id.
    #[expect(clippy::disallowed_methods, reason = "this is the seam for ids")]
    pub fn new() -> Self {
        Self::new_at(SystemTime::now())
    }

    #[expect(clippy::disallowed_methods, reason = "this is the seam for ids")]
    fn new_at(now: SystemTime) -> Self {
        // A version 7 id has no room for a time before 1970.
        let id = if now >= SystemTime::UNIX_EPOCH {
            uuid::Uuid::now_v7()
        } else {
            let mut random = [0; 10];
            // Without randomness the next ids are refused by the store as taken ones.
            let _filled = getrandom::fill(&mut random);
            uuid::Builder::from_unix_timestamp_millis(0, &random).into_uuid()
        };
        Self(format!("run_{}", id.simple()).into())
    }

    /// Parses the wire form; `None` for anything but `run_` and 32 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("run_")?;
        let ok = hex.len() == 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        ok.then(|| Self(text.into()))
    }

    /// The wire form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the run's file at `path` can be downloaded: a path on this server.
    pub fn file_url(&self, path: &str) -> String {
        let path = utf8_percent_encode(path, &RESERVED_IN_PATH);
        format!("/runs/{}/files/{path}", self.0)
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event's place in its run's log: from 1, without gaps. 0 means "before the first event".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first event.
    pub const ZERO: Self = Self(0);
    /// The largest cursor that a client may name (2⁵³ − 1, what JSON numbers carry exactly).
    pub const MAX: Self = Self((1 << 53) - 1);

    /// The next place.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// 128 random bits as 32 hex digits, from the operating system.
pub fn nonce() -> String {
    let mut bytes = [0_u8; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // Only a kernel without a random source gets here; a version 4 id draws from the same source
        // and would fail as well, so fall back to the time-ordered id, unique if not secret.
        return RunId::new().0.trim_start_matches("run_").to_owned();
    }
    format!("{:032x}", u128::from_be_bytes(bytes))
}

/// A random number in `0.0..1.0`, for jitter.
pub fn random_fraction() -> f64 {
    let mut bytes = [0_u8; 4];
    if getrandom::fill(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_round_trip_and_refuse_other_shapes() {
        let id = RunId::new();
        assert_eq!(RunId::parse(id.as_str()), Some(id));
        for bad in [
            "",
            "run_",
            "run_abc",
            "RUN_0123",
            "run_0123456789ABCDEF0123456789abcdef",
        ] {
            assert_eq!(RunId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn ids_are_made_whatever_the_clock_says() {
        let early = SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(1000);
        let (one, other) = (RunId::new_at(early), RunId::new_at(early));
        assert_ne!(one, other);
        assert!(one < RunId::new());
        assert_eq!(RunId::parse(one.as_str()), Some(one));
    }

    #[test]
    fn nonces_differ_and_are_hex() {
        assert_ne!(nonce(), nonce());
        assert_eq!(nonce().len(), 32);
        assert!((0.0..1.0).contains(&random_fraction()));
    }
}
