//! An event with its place in the log, serialised once.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::RunEvent;
use crate::encoding::without_nul;
use crate::ids::Seq;

/// The wire's `type`: a closed list, so that no text of a model or sandbox can name an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the variants are RunEvent's")]
pub enum EventType {
    System,
    Assistant,
    Thinking,
    User,
    ToolUse,
    ToolResult,
    File,
    Warning,
    Result,
    Error,
}

impl EventType {
    /// Every type.
    pub const ALL: &'static [Self] = &[
        Self::System,
        Self::Assistant,
        Self::Thinking,
        Self::User,
        Self::ToolUse,
        Self::ToolResult,
        Self::File,
        Self::Warning,
        Self::Result,
        Self::Error,
    ];

    /// The wire name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Assistant => "assistant",
            Self::Thinking => "thinking",
            Self::User => "user",
            Self::ToolUse => "tool_use",
            Self::ToolResult => "tool_result",
            Self::File => "file",
            Self::Warning => "warning",
            Self::Result => "result",
            Self::Error => "error",
        }
    }

    /// The type with this wire name.
    pub fn parse(wire: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == wire)
    }

    /// Whether it closes the log.
    pub const fn terminal(self) -> bool {
        matches!(self, Self::Result | Self::Error)
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl RunEvent {
    /// Its type.
    pub const fn kind(&self) -> EventType {
        match self {
            Self::System(_) => EventType::System,
            Self::Assistant(_) => EventType::Assistant,
            Self::Thinking(_) => EventType::Thinking,
            Self::User(_) => EventType::User,
            Self::ToolUse(_) => EventType::ToolUse,
            Self::ToolResult(_) => EventType::ToolResult,
            Self::File(_) => EventType::File,
            Self::Warning(_) => EventType::Warning,
            Self::Result(_) => EventType::Result,
            Self::Error(_) => EventType::Error,
        }
    }
}

/// What `,"seq":` and a number take at most.
const SEQ_ROOM: usize = 32;

/// An event in a run's log. `json` is one line and holds `type` first and `seq` last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its place.
    pub seq: Seq,
    /// Its type.
    pub kind: EventType,
    /// What clients get as `data`, byte for byte.
    pub json: String,
}

impl StoredEvent {
    /// Serialises `event` at `seq`. U+0000 becomes U+FFFD (rule EV-3): some stores refuse it.
    ///
    /// # Errors
    /// Only when the event can't be written as JSON, which is a fault of ours.
    pub fn new(seq: Seq, event: &RunEvent) -> Result<Self, serde_json::Error> {
        let mut json = serde_json::to_string(event)?;
        if json.contains("\\u0000") {
            json = without_nul(&json).into_owned();
        }
        json.reserve(SEQ_ROOM);
        json.truncate(json.len().saturating_sub(1));
        // Writing to a string can't fail.
        let _infallible = write!(json, ",\"seq\":{seq}}}");
        Ok(Self {
            seq,
            kind: event.kind(),
            json,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Delta, SystemEvent};
    use super::*;

    #[test]
    fn type_comes_first_and_seq_last() {
        let event = RunEvent::Assistant(Delta::new("hi", 2));
        let stored = StoredEvent::new(Seq(7), &event).unwrap();
        assert_eq!(
            stored.json,
            r#"{"type":"assistant","subtype":"delta","content":"hi","turn":2,"seq":7}"#
        );
    }

    #[test]
    fn nul_is_replaced_and_a_literal_escape_is_kept() {
        let event = RunEvent::Assistant(Delta::new("a\0b\\u0000", 1));
        let stored = StoredEvent::new(Seq(1), &event).unwrap();
        assert!(stored.json.contains(r"a\ufffdb\\u0000"), "{}", stored.json);
        let back: serde_json::Value = serde_json::from_str(&stored.json).unwrap();
        assert_eq!(back["content"], "a\u{fffd}b\\u0000");
    }

    #[test]
    fn system_text_stands_in_both_fields() {
        let stored = StoredEvent::new(
            Seq(1),
            &RunEvent::System(SystemEvent::new("init", "Agent started")),
        )
        .unwrap();
        assert!(stored.json.starts_with(r#"{"type":"system","subtype":"init","message":"Agent started","content":"Agent started""#));
    }
}
