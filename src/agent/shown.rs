//! Calls and results as clients see them, within the bounds of an event (rule EV-1). Secrets are taken out of
//! arguments here; a result was cleaned where it left its tool.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::types::RunContext;
use crate::chat::{CallId, ToolArgs, ToolCall};
use crate::encoding::split_at_json_size;
use crate::events::{Name, RanBy, RunEvent, ToolResultEvent, ToolUseEvent};
use crate::secrets::Redactor;
use crate::tools::ToolAnswer;

/// Longer strings of a call's arguments are shortened in its event, in bytes of their JSON.
const SHOWN_ARGUMENT: usize = 16 * 1024;
/// Arguments whose JSON is longer in all are shown as its beginning. The event holds it twice, once as a
/// text that is JSON itself.
const SHOWN_ARGUMENTS: usize = 64 * 1024;
/// Of a result's text, in bytes of its JSON.
const SHOWN_RESULT: usize = 160 * 1024;
/// Of a diff.
const SHOWN_DIFF: usize = 32 * 1024;
/// Of a path.
const SHOWN_PATH: usize = 8 * 1024;

/// The event of a call of `tool`: with `args` as the tool gets them, or as the model wrote them.
pub(super) fn tool_use(
    context: &RunContext,
    call: &ToolCall,
    tool: &Name,
    args: Option<&Map<String, Value>>,
    turn: u32,
) -> ToolUseEvent {
    let mut cut = false;
    let input = match (args, &call.args) {
        (Some(args), _) => shown_fields(&context.redactor, args, &mut cut),
        (None, args) => as_written(&context.redactor, args, &mut cut),
    };
    let (input, content, input_truncated) = bounded(input, cut);
    ToolUseEvent {
        tool_name: tool.clone(),
        content,
        input,
        input_truncated,
        tool_call_id: call.id.as_str().to_owned(),
        ran_by: RanBy::Primary,
        turn,
    }
}

/// The event of an answer, which is clean already.
pub(super) fn tool_result(
    call: &ToolCall,
    tool: &Name,
    answer: &ToolAnswer,
    took: Duration,
) -> ToolResultEvent {
    let mut truncated = answer.truncated;
    let content = middle_cut(&answer.text, SHOWN_RESULT, &mut truncated);
    let total_chars = answer.total_chars.or_else(|| {
        let chars = || answer.text.chars().count() as u64;
        (content.len() != answer.text.len()).then(chars)
    });
    let mut path = |path: &Option<String>| {
        let path = path.as_deref()?;
        Some(middle_cut(path, SHOWN_PATH, &mut truncated))
    };
    let (output_path, cwd) = (path(&answer.output_path), path(&answer.cwd));
    let diff = answer.diff.as_deref();
    ToolResultEvent {
        tool_name: tool.clone(),
        content,
        tool_call_id: call.id.as_str().to_owned(),
        is_error: answer.is_error,
        exit_code: answer.exit_code,
        diff: diff.map(|diff| middle_cut(diff, SHOWN_DIFF, &mut truncated)),
        truncated,
        total_chars,
        output_path,
        cwd,
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        ran_by: RanBy::Primary,
    }
}

/// As much of an answer as its event has room for; whether that is all.
pub(super) fn answer(text: String) -> (String, bool) {
    let mut cut = false;
    let shown = middle_cut(&text, SHOWN_RESULT, &mut cut);
    (if cut { shown } else { text }, !cut)
}

/// The events of a tool that the LLM's provider runs: the call, and where its result is.
pub(super) fn provider_tool(
    tool: &'static str,
    query: &str,
    id: &CallId,
    turn: u32,
) -> [RunEvent; 2] {
    let input = json!({ "query": query });
    let (tool_call_id, ran_by) = (id.as_str().to_owned(), RanBy::Provider);
    let used = ToolUseEvent {
        tool_name: tool.into(),
        content: input.to_string(),
        input,
        input_truncated: false,
        tool_call_id: tool_call_id.clone(),
        ran_by,
        turn,
    };
    let result = ToolResultEvent {
        tool_name: tool.into(),
        content: "asked of the LLM's provider, which gives what it finds to the model itself"
            .into(),
        tool_call_id,
        ran_by,
        ..ToolResultEvent::default()
    };
    [RunEvent::ToolUse(used), RunEvent::ToolResult(result)]
}

fn as_written(redactor: &Redactor, args: &ToolArgs, cut: &mut bool) -> Value {
    match args {
        ToolArgs::Json(value) => shown(redactor, value, cut),
        ToolArgs::Malformed { raw, .. } => Value::String(beginning(redactor, raw, cut)),
    }
}

/// A call's arguments, their JSON text, and whether something was left out.
fn bounded(input: Value, cut: bool) -> (Value, String, bool) {
    let content = input.to_string();
    let (begin, rest) = split_at_json_size(&content, SHOWN_ARGUMENTS);
    if rest.is_empty() {
        return (input, content, cut);
    }
    let (begin, _) = split_at_json_size(begin, SHOWN_ARGUMENT);
    let input = Value::String(with_count(begin, content.len() - begin.len()));
    let content = input.to_string();
    (input, content, true)
}

/// A copy of `value` with its strings cleaned and shortened. So are names, which may be keys
/// that a later cut would leave half of.
fn shown(redactor: &Redactor, value: &Value, cut: &mut bool) -> Value {
    match value {
        Value::String(text) => Value::String(beginning(redactor, text, cut)),
        Value::Array(items) => items
            .iter()
            .map(|item| shown(redactor, item, cut))
            .collect(),
        Value::Object(fields) => shown_fields(redactor, fields, cut),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

fn shown_fields(redactor: &Redactor, fields: &Map<String, Value>, cut: &mut bool) -> Value {
    fields
        .iter()
        .map(|(name, value)| (beginning(redactor, name, cut), shown(redactor, value, cut)))
        .collect()
}

/// The beginning of `text`, cleaned, with no half of a secret at its end. What is left out is not looked at: it may
/// have megabytes.
fn beginning(redactor: &Redactor, text: &str, cut: &mut bool) -> String {
    let (begin, rest) = split_at_json_size(text, SHOWN_ARGUMENT);
    if rest.is_empty() {
        return redactor.clean(text).into_owned();
    }
    *cut = true;
    with_count(&redactor.clean_cut(begin), rest.len())
}

fn with_count(begin: &str, left_out: usize) -> String {
    format!("{begin}[… {left_out} bytes more]")
}

/// `text` without its middle, if its JSON is longer than `most` bytes.
fn middle_cut(text: &str, most: usize, cut: &mut bool) -> String {
    if split_at_json_size(text, most).1.is_empty() {
        return text.to_owned();
    }
    *cut = true;
    let (begin, rest) = split_at_json_size(text, most / 2);
    // A byte of text is at most six of JSON.
    let mut end = rest.len().saturating_sub(most / 12);
    while !rest.is_char_boundary(end) {
        end += 1;
    }
    let (left_out, end) = rest.split_at(end);
    format!("{begin}\n[… {} bytes left out]\n{end}", left_out.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::CallIds;
    use crate::secrets::{REDACTED, Secret};

    const KEY: &str = "a-key-of-16-or-more";

    fn input(args: &ToolArgs) -> (Value, String, bool) {
        let mut cut = false;
        let input = as_written(&redactor(), args, &mut cut);
        bounded(input, cut)
    }

    fn redactor() -> Redactor {
        Redactor::new([&Secret::new(KEY)])
    }

    #[test]
    fn strings_and_names_are_cleaned_before_they_are_cut() {
        let at_the_cut = format!("{}{KEY}", "x".repeat(SHOWN_ARGUMENT - 5));
        let args = ToolArgs::Json(json!({ KEY: format!("say {KEY}"), "long": at_the_cut }));
        let (input, content, cut) = input(&args);
        assert_eq!(input[REDACTED], format!("say {REDACTED}"));
        assert!(cut && !content.contains("a-key") && content.contains("bytes more]"));
        assert!(!input["long"].as_str().unwrap().contains("a-key"));
        // A name at the cut of the whole.
        let before = SHOWN_ARGUMENT - r#"{"","#.len() - 10;
        let many = "x".repeat(SHOWN_ARGUMENT - 1);
        let name = format!("{}{KEY}", "x".repeat(before));
        let args = json!({ name: 1, "y1": many, "y2": many, "y3": many, "y4": many, "y5": many });
        let (_, content, cut) = self::input(&ToolArgs::Json(args));
        assert!(cut && !content.contains("a-key"), "{content}");
    }

    #[test]
    fn an_event_stays_within_its_bound_whatever_the_characters() {
        for piece in ["\u{1}", "\"\\", "é", "x", "\u{fffd}"] {
            let long = piece.repeat(100_000);
            let many: Vec<&str> = vec![piece; 50_000];
            for args in [
                ToolArgs::Json(json!({ "a": long, "b": long, "c": long, "d": long, "e": long })),
                ToolArgs::Json(json!(many)),
                ToolArgs::Malformed {
                    raw: long.clone(),
                    error: String::new(),
                },
            ] {
                let (input, content, cut) = input(&args);
                let event = json!({ "input": input, "content": content }).to_string();
                assert!(cut && event.len() < 200 * 1024, "{} {piece:?}", event.len());
            }
            let call = ToolCall {
                id: CallIds::default().issue(""),
                name: "bash".to_owned(),
                args: ToolArgs::Json(json!({})),
                echo: None,
            };
            let answer = ToolAnswer {
                diff: Some(long.clone()),
                cwd: Some(long.clone()),
                output_path: Some(long.clone()),
                ..ToolAnswer::text(long.repeat(2))
            };
            let event = tool_result(&call, &"bash".into(), &answer, Duration::ZERO);
            let size = serde_json::to_string(&event).unwrap().len();
            assert!(event.truncated && size < 256 * 1024, "{size} {piece:?}");
            assert!(event.total_chars.is_some());
        }
    }

    #[test]
    fn what_fits_is_shown_whole() {
        let args = ToolArgs::Json(json!({ "command": "ls\n", "n": 1.50 }));
        let (input, content, cut) = input(&args);
        assert!(!cut);
        assert_eq!(
            (&input, content),
            (&json!({ "command": "ls\n", "n": 1.50 }), input.to_string())
        );
        let mut cut = false;
        assert_eq!(middle_cut("ab\u{1}", 8, &mut cut), "ab\u{1}");
        assert!(!cut);
    }
}
