//! A run's events as text: the answer for stdout, everything else as notes for stderr.

use serde_json::Value;

use crate::events::{EventType, StoredEvent};
use crate::show::prose;

/// Of a tool's arguments or answer, on one line.
const SHOWN_CHARS: usize = 160;

/// Something to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// To stdout, as it is.
    Out(String),
    /// A line to stderr.
    Note(String),
}

/// Turns events into pieces.
#[derive(Debug, Default)]
pub(super) struct Show {
    /// One event per line on stdout, and nothing else.
    pub(super) json: bool,
    /// stdout and stderr are seen together, so that a note must not stand in the answer's last line.
    pub(super) together: bool,
    /// The turn whose text was printed last.
    turn: u64,
    /// The last line on stdout has no end yet.
    open: bool,
}

impl Show {
    pub(super) fn new(json: bool, together: bool) -> Self {
        Self {
            json,
            together,
            ..Self::default()
        }
    }

    /// What to print of `event`.
    pub(super) fn event(&mut self, event: &StoredEvent) -> Vec<Piece> {
        if self.json {
            return vec![Piece::Out(format!("{}\n", event.json))];
        }
        let fields: Value = serde_json::from_str(&event.json).unwrap_or_default();
        let mut pieces = Vec::new();
        match event.kind {
            EventType::Assistant => {
                let turn = number(&fields, "turn");
                if turn != self.turn {
                    self.turn = turn;
                    self.end_line(&mut pieces);
                }
                let text = text(&fields, "content");
                if !text.is_empty() {
                    self.open = !text.ends_with('\n');
                    pieces.push(Piece::Out(text.to_owned()));
                }
            }
            EventType::Thinking | EventType::User => {}
            EventType::Result | EventType::Error => {
                self.end_line(&mut pieces);
                pieces.push(Piece::Note(note(event.kind, &fields)));
            }
            EventType::System
            | EventType::ToolUse
            | EventType::ToolResult
            | EventType::File
            | EventType::Warning => {
                if self.together {
                    self.end_line(&mut pieces);
                }
                pieces.push(Piece::Note(note(event.kind, &fields)));
            }
        }
        pieces
    }

    fn end_line(&mut self, pieces: &mut Vec<Piece>) {
        if std::mem::take(&mut self.open) {
            pieces.push(Piece::Out("\n".to_owned()));
        }
    }
}

fn number(fields: &Value, name: &str) -> u64 {
    fields.get(name).and_then(Value::as_u64).unwrap_or_default()
}

fn text<'v>(fields: &'v Value, name: &str) -> &'v str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// What stderr says of an event.
fn note(kind: EventType, fields: &Value) -> String {
    match kind {
        EventType::System => format!("[{}]", text(fields, "message")),
        EventType::ToolUse => {
            format!(
                "> {} {}",
                text(fields, "toolName"),
                prose(text(fields, "content"), SHOWN_CHARS)
            )
        }
        EventType::ToolResult => {
            let failed = fields
                .get("isError")
                .and_then(Value::as_bool)
                .unwrap_or_default();
            let exit = fields.get("exitCode").and_then(Value::as_i64);
            let exit = exit
                .map(|code| format!(", exit code {code}"))
                .unwrap_or_default();
            let millis = fields
                .get("durationMs")
                .and_then(Value::as_u64)
                .unwrap_or_default();
            let mark = if failed { "failed" } else { "ok" };
            let content = prose(text(fields, "content"), SHOWN_CHARS);
            format!(
                "< {} {mark} ({millis} ms{exit}) {content}",
                text(fields, "toolName")
            )
        }
        EventType::File => {
            let size = fields
                .get("size")
                .and_then(Value::as_u64)
                .unwrap_or_default();
            format!("file {} ({size} bytes)", text(fields, "path"))
        }
        EventType::Warning => format!("warning: {}", text(fields, "message")),
        EventType::Error => {
            let hint = text(fields, "hint");
            let hint = if hint.is_empty() {
                String::new()
            } else {
                format!("\nhint: {hint}")
            };
            let (message, code) = (text(fields, "message"), text(fields, "code"));
            format!("error: {message} ({code}){hint}\n{}", totals(fields))
        }
        EventType::Result => {
            let reason = text(fields, "stopReason");
            let reason = if matches!(reason, "" | "end") {
                String::new()
            } else {
                format!("ended early: {reason}\n")
            };
            format!("{reason}{}", totals(fields))
        }
        EventType::Assistant | EventType::Thinking | EventType::User => String::new(),
    }
}

/// `cost $0.0042 · 1204 tokens in, 876 out · 3 turns · 2.1 s · claude-sonnet-4-6`.
fn totals(fields: &Value) -> String {
    let number = |name: &str| fields.get(name).and_then(Value::as_u64).unwrap_or_default();
    let cost = fields
        .get("costUsd")
        .and_then(Value::as_f64)
        .map_or_else(|| "cost unknown".to_owned(), |usd| format!("cost ${usd}"));
    let secs = fields
        .get("durationSecs")
        .and_then(Value::as_f64)
        .unwrap_or_default();
    format!(
        "{cost} · {} tokens in, {} out · {} turns · {secs:.1} s · {}",
        number("inputTokens"),
        number("outputTokens"),
        number("numTurns"),
        text(fields, "model")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::WarningCode;
    use crate::events::{Delta, RunEvent, WarningEvent};
    use crate::ids::Seq;

    fn shown(show: &mut Show, event: &RunEvent) -> Vec<Piece> {
        show.event(&StoredEvent::new(Seq(1), event).unwrap())
    }

    fn delta(text: &str, turn: u32) -> RunEvent {
        RunEvent::Assistant(Delta::new(text, turn))
    }

    fn out(text: &str) -> Piece {
        Piece::Out(text.to_owned())
    }

    #[test]
    fn the_text_of_a_turn_is_printed_as_it_comes_and_turns_are_kept_apart() {
        let mut show = Show::new(false, false);
        assert_eq!(shown(&mut show, &delta("Let me ", 1)), [out("Let me ")]);
        assert_eq!(shown(&mut show, &delta("look.", 1)), [out("look.")]);
        assert_eq!(
            shown(&mut show, &delta("Done.\n", 2)),
            [out("\n"), out("Done.\n")]
        );
        assert_eq!(shown(&mut show, &delta("Bye", 3)), [out("Bye")]);
    }

    #[test]
    fn notes_do_not_cut_into_piped_text() {
        let warning = RunEvent::Warning(WarningEvent::new(WarningCode::LlmRetry, "again"));
        let note = Piece::Note("warning: again".to_owned());
        let mut piped = Show::new(false, false);
        shown(&mut piped, &delta("half ", 1));
        assert_eq!(shown(&mut piped, &warning), std::slice::from_ref(&note));
        assert_eq!(shown(&mut piped, &delta("line", 1)), [out("line")]);
        let mut terminal = Show::new(false, true);
        shown(&mut terminal, &delta("half ", 1));
        assert_eq!(shown(&mut terminal, &warning), [out("\n"), note]);
    }

    #[test]
    fn json_is_one_event_per_line_byte_for_byte() {
        let stored = StoredEvent::new(Seq(7), &delta("a\nb", 1)).unwrap();
        let expected = out(&format!("{}\n", stored.json));
        assert_eq!(Show::new(true, true).event(&stored), [expected]);
    }

    #[test]
    fn a_result_shows_cost_tokens_and_turns() {
        let fields = json!({"stopReason": "max_turns", "costUsd": 0.0042, "inputTokens": 1204,
            "outputTokens": 876, "numTurns": 3, "durationSecs": 2.06, "model": "claude-sonnet-4-6"});
        assert_eq!(
            note(EventType::Result, &fields),
            "ended early: max_turns\ncost $0.0042 · 1204 tokens in, 876 out · 3 turns · 2.1 s · claude-sonnet-4-6"
        );
    }
}
