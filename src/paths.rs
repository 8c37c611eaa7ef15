//! Paths below a sandbox's working directory, checked once at the border.

use std::fmt;

use crate::show::{deceives, short};

/// More bytes than any path of a system can have (`PATH_MAX`, which counts a NUL too).
pub(crate) const LONGEST_PATH: usize = 4095;

/// A relative path in its normal form: no `.`, `..`, empty or over-long parts, no control or
/// bidirectional-control characters, `/` as the only separator.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxPath(String);

/// Why a name is no [`SandboxPath`]. The text names the path (escaped) and the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPath(String);

/// Limits of a path (`reliability-security`, §14).
const MAX_PART: usize = 255;
const MAX_BYTES: usize = 1024;
const MAX_PARTS: usize = 16;

fn too_long(bytes: usize, raw: &str) -> BadPath {
    let shown = short(raw, 100);
    BadPath(format!("path has {bytes} bytes (max {MAX_BYTES}): {shown}"))
}

impl SandboxPath {
    /// Normalises `raw` as existing clients expect (backslashes count as slashes, `.` and empty parts
    /// vanish, `a/../b` becomes `b`) and refuses what could mean something else inside.
    ///
    /// # Errors
    /// Names the path and the rule that it breaks.
    pub fn parse(raw: &str) -> Result<Self, BadPath> {
        let shown = || short(raw, 100);
        // Before anything is made of it: a part costs more memory than the two bytes of the shortest.
        if raw.len() > LONGEST_PATH {
            return Err(too_long(raw.len(), raw));
        }
        let slashed = raw.replace('\\', "/");
        let drive =
            matches!(slashed.as_bytes(), [letter, b':', b'/', ..] if letter.is_ascii_alphabetic());
        if slashed.starts_with('/') || drive {
            return Err(BadPath(format!(
                "absolute paths are not allowed: {}",
                shown()
            )));
        }
        let mut parts: Vec<&str> = Vec::new();
        for part in slashed.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    if parts.pop().is_none() {
                        return Err(BadPath(format!("path traversal not allowed: {}", shown())));
                    }
                }
                part => parts.push(part),
            }
        }
        if parts.is_empty() {
            return Err(BadPath(format!(
                "path traversal not allowed: {} names no file",
                shown()
            )));
        }
        if parts.len() > MAX_PARTS {
            return Err(BadPath(format!(
                "path has {} parts (max {MAX_PARTS}): {}",
                parts.len(),
                shown()
            )));
        }
        for part in &parts {
            if part.len() > MAX_PART {
                return Err(BadPath(format!(
                    "a part of the path has {} bytes (max {MAX_PART}): {}",
                    part.len(),
                    shown()
                )));
            }
            if part.chars().any(deceives) {
                return Err(BadPath(format!(
                    "control characters are not allowed in a path: {}",
                    shown()
                )));
            }
            if part.ends_with('.') || part.ends_with(' ') {
                return Err(BadPath(format!(
                    "a part of a path can't end in a dot or blank: {}",
                    shown()
                )));
            }
        }
        let path = parts.join("/");
        if path.len() > MAX_BYTES {
            return Err(too_long(path.len(), raw));
        }
        Ok(Self(path))
    }

    /// The path, relative, with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `self` is a directory above `other`.
    pub fn is_parent_of(&self, other: &Self) -> bool {
        other
            .0
            .strip_prefix(&self.0)
            .is_some_and(|rest| rest.starts_with('/'))
    }
}

impl fmt::Display for SandboxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (raw, normal) in [
            ("a/b.txt", "a/b.txt"),
            ("./a//b", "a/b"),
            ("a/../b", "b"),
            ("a\\b", "a/b"),
            ("ü.txt", "ü.txt"),
        ] {
            assert_eq!(SandboxPath::parse(raw).unwrap().as_str(), normal, "{raw}");
        }
    }

    #[test]
    fn what_could_escape_or_deceive_is_refused() {
        for raw in [
            "/etc/passwd",
            "\\x",
            "C:/x",
            "c:\\x",
            "..",
            "../x",
            "a/../../b",
            "",
            ".",
            "a/..",
            "a\0b",
            "a\nb",
            "a\u{202e}b",
            "a.",
            "b /c",
        ] {
            assert!(SandboxPath::parse(raw).is_err(), "{raw:?}");
        }
        assert!(SandboxPath::parse(&"x".repeat(256)).is_err());
        assert!(SandboxPath::parse(&["x"; 17].join("/")).is_err());
        assert!(SandboxPath::parse(&vec!["x".repeat(250); 5].join("/")).is_err());
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics_and_is_idempotent(raw in "\\PC{0,40}|[./\\\\a ]{0,12}") {
            if let Ok(path) = SandboxPath::parse(&raw) {
                proptest::prop_assert_eq!(SandboxPath::parse(path.as_str()), Ok(path));
            }
        }
    }
}
