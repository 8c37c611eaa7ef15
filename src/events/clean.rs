//! Secrets out of events: only out of what is shown, by each field's meaning.
//!
//! A field's name, a type, a code, an id or a tool's name is a word of the protocol. A key that happens to be
//! part of one must not break every client, so such words are never searched.

use std::borrow::Cow;

use super::facts::{Fact, Facts, Name};
use super::types::{
    Citation, Delta, ErrorEvent, ResultEvent, RunEvent, SystemEvent, ToolResultEvent, ToolUseEvent,
    Totals, UserEvent, WarningEvent,
};
use crate::secrets::{Names, Redactor};

fn clean_name(redactor: &Redactor, name: &mut Name) {
    if let Cow::Owned(text) = name {
        redactor.clean_text(text);
    }
}

impl RunEvent {
    /// Takes every secret out of what the event shows. A file stays what its checksum says. Each event is taken
    /// apart whole, so that a new field doesn't compile until it is decided about.
    pub fn clean(&mut self, redactor: &Redactor) {
        let text = |text: &mut String| {
            redactor.clean_text(text);
        };
        match self {
            Self::System(SystemEvent {
                subtype: _,
                message,
                content,
                sandbox_id: _,
                run_id: _,
                facts,
            })
            | Self::Warning(WarningEvent {
                code: _,
                message,
                content,
                facts,
            }) => {
                text(message);
                text(content);
                clean_facts(redactor, facts);
            }
            Self::Assistant(delta) | Self::Thinking(delta) => {
                let Delta {
                    subtype: _,
                    content,
                    turn: _,
                } = delta;
                text(content);
            }
            Self::User(UserEvent { content }) => text(content),
            Self::ToolUse(ToolUseEvent {
                tool_name,
                content,
                input,
                input_truncated: _,
                tool_call_id: _,
                ran_by: _,
                turn: _,
            }) => {
                clean_name(redactor, tool_name);
                // The names in it are the model's words.
                if redactor.clean_value(input, Names::Theirs) {
                    *content = input.to_string();
                }
            }
            Self::ToolResult(ToolResultEvent {
                tool_name,
                content,
                tool_call_id: _,
                is_error: _,
                exit_code: _,
                truncated: _,
                total_chars: _,
                output_path,
                cwd,
                diff,
                duration_ms: _,
                ran_by: _,
            }) => {
                clean_name(redactor, tool_name);
                text(content);
                [output_path, cwd, diff]
                    .into_iter()
                    .flatten()
                    .for_each(text);
            }
            Self::File(_) => {}
            Self::Result(ResultEvent {
                subtype: _,
                content,
                stop_reason: _,
                truncated: _,
                totals,
            }) => {
                text(content);
                clean_totals(redactor, totals);
            }
            Self::Error(ErrorEvent {
                message,
                content,
                code: _,
                hint,
                retryable: _,
                retry_after_secs: _,
                totals,
            }) => {
                text(message);
                text(content);
                hint.iter_mut().for_each(text);
                clean_totals(redactor, totals);
            }
        }
    }
}

fn clean_facts(redactor: &Redactor, facts: &mut Facts) {
    for fact in facts.values() {
        match fact {
            Fact::Word(name) => clean_name(redactor, name),
            Fact::Id(_) => {}
            Fact::Data(value) => {
                redactor.clean_value(value, Names::Ours);
            }
        }
    }
}

fn clean_totals(redactor: &Redactor, totals: &mut Totals) {
    let Totals {
        cost_usd: _,
        tokens: _,
        usage_complete: _,
        num_turns: _,
        duration_secs: _,
        model: _,
        served_model,
        tool_calls: _,
        citations,
    } = totals;
    // The provider's words, unlike the rest.
    let cited = citations
        .iter_mut()
        .flat_map(|Citation { url, title, quote }| [url, title, quote]);
    for text in cited.flatten().chain(served_model) {
        redactor.clean_text(text);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{FileEncoding, FileEvent, RanBy, StopReason, StoredEvent};
    use super::*;
    use crate::error::{ErrorCode, Problem, WarningCode};
    use crate::ids::{RunId, Seq};
    use crate::secrets::{REDACTED, Secret};
    use crate::spec::ModelChoice;

    /// Every event, with `said` wherever somebody's words can stand.
    fn events(said: &str) -> Vec<RunEvent> {
        let text = || said.to_owned();
        let totals = || Totals {
            usage_complete: true,
            model: "claude-sonnet-4-6".to_owned(),
            served_model: Some(text()),
            citations: vec![Citation {
                url: Some(text()),
                title: Some(text()),
                quote: Some(text()),
            }],
            ..Totals::default()
        };
        let mut system = SystemEvent::new("sandbox_created", said);
        system.sandbox_id = Some("local-0123456789".to_owned());
        system.run_id = RunId::parse("run_0123456789abcdef0123456789abcdef");
        system.facts.add("sandboxProvider", "cloudflare");
        let run = RunId::parse("run_fedcba9876543210fedcba9876543210").unwrap();
        let model = ModelChoice {
            provider: "anthropic",
            id: "claude-opus-4-6".to_owned(),
        };
        let mut init = SystemEvent::init(run, &model, "e2b", "2026-03-20T14:22:10Z");
        (init.message, init.content) = (text(), text());
        let problem =
            Problem::new(ErrorCode::InvalidTemplateForProvider, said).hint(said.to_owned());
        let used = |name: Name| ToolUseEvent {
            tool_name: name,
            content: json!({ said: said }).to_string(),
            input: json!({ said: said }),
            input_truncated: true,
            tool_call_id: "call_0123456789abcdef".to_owned(),
            ran_by: RanBy::Primary,
            turn: 1,
        };
        vec![
            RunEvent::System(init),
            RunEvent::System(system),
            RunEvent::Assistant(Delta::new(said, 1)),
            RunEvent::Thinking(Delta::new(said, 1)),
            RunEvent::User(UserEvent { content: text() }),
            RunEvent::ToolUse(used("read_skill".into())),
            RunEvent::ToolUse(used(text().into())),
            RunEvent::ToolResult(ToolResultEvent {
                tool_name: "read_skill".into(),
                content: text(),
                tool_call_id: "call_0123456789abcdef".to_owned(),
                output_path: Some(text()),
                cwd: Some(text()),
                diff: Some(text()),
                ran_by: RanBy::Provider,
                ..ToolResultEvent::default()
            }),
            RunEvent::Warning(
                WarningEvent::new(WarningCode::ContextCompacted, said)
                    .fact("toolName", "read_skill")
                    .fact("event", text())
                    .fact("sandboxId", Fact::id("ixyz0123456789abcdef"))
                    .fact("tokensBefore", 7_u64)
                    .fact("files", vec![json!({"reason": said})]),
            ),
            RunEvent::Result(ResultEvent {
                subtype: StopReason::MaxBudget.subtype(),
                content: text(),
                stop_reason: StopReason::MaxBudget,
                truncated: true,
                totals: totals(),
            }),
            RunEvent::Error(ErrorEvent::new(&problem, totals())),
        ]
    }

    fn json_of(event: &RunEvent) -> String {
        StoredEvent::new(Seq(1), event).unwrap().json
    }

    #[test]
    fn what_is_said_is_cleaned_in_every_field_of_every_event() {
        let secret = "a-key-of-16-or-more";
        let redactor = Redactor::new([&Secret::new(secret)]);
        for (mut event, clean) in events(secret).into_iter().zip(events(REDACTED)) {
            event.clean(&redactor);
            assert_eq!(json_of(&event), json_of(&clean));
        }
    }

    #[test]
    fn no_name_type_code_or_id_is_touched_whatever_the_key_is() {
        let mut words = std::collections::BTreeSet::new();
        for event in events("said") {
            let json = json_of(&event);
            words.extend(json.split('"').map(str::to_owned));
        }
        words.retain(|word| !word.contains("said") && word.len() >= 2);
        assert!(words.contains("toolCallId") && words.contains("sandbox_created"));
        assert!(words.contains("claude-opus-4-6") && words.contains("2026-03-20T14:22:10Z"));
        assert!(words.contains("ixyz0123456789abcdef"));
        for word in words {
            let redactor = Redactor::searching(&word);
            for mut event in events("said") {
                let before = json_of(&event);
                event.clean(&redactor);
                assert_eq!(json_of(&event), before, "{word:?}");
            }
        }
    }

    #[test]
    fn a_returned_file_stays_what_its_checksum_says() {
        let secret = "a-key-of-16-or-more";
        let file = RunEvent::File(FileEvent {
            path: secret.to_owned(),
            mime_type: "text/plain".to_owned(),
            size: 19,
            sha256: "00".to_owned(),
            encoding: FileEncoding::Utf8,
            content: Some(secret.to_owned()),
            url: "/runs/x/files/y".to_owned(),
        });
        let mut cleaned = file.clone();
        cleaned.clean(&Redactor::new([&Secret::new(secret)]));
        assert_eq!(cleaned, file);
    }

    #[test]
    fn facts_stand_in_their_order_beside_the_other_fields() {
        let mut event = SystemEvent::new("init", "x");
        event.facts.add("zeta", 1_u64);
        event.facts.add("alpha", "two");
        assert!(json_of(&RunEvent::System(event)).ends_with(r#","zeta":1,"alpha":"two","seq":1}"#));
    }
}
