//! `demo`: a provider that needs no key and is no LLM, and says so.
//!
//! It runs each line of the prompt that starts with `$ ` as one `bash` call, one per turn, and then
//! answers with a summary. It keeps nothing between requests: which line is next follows from the
//! conversation alone. Quick starts, smoke tests of a deployment and load tests use it, since it takes
//! the same path through sandbox, tools, events and files as any model.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream;
use serde_json::json;

use super::def::{Build, ProviderConfig, ProviderDef};
use super::prices;
use super::types::{
    LlmDelta, LlmError, LlmErrorKind, LlmProvider, LlmRequest, LlmStop, LlmStream, ModelFacts,
    ToolChoice, Usage,
};
use crate::chat::{Block, Message, Part, ToolArgs, ToolCall, ToolResult};

/// The row of the table. It has no key variable, so it is never chosen unless named.
pub const DEF: ProviderDef = ProviderDef {
    name: "demo",
    key_vars: &[],
    base_url_var: "",
    default_base_url: "",
    default_model: "demo",
    aliases: &[("demo", "demo")],
    model_prefixes: &[],
    recordings: &[],
    build: Build::With(build),
};

fn build(_config: ProviderConfig) -> Arc<dyn LlmProvider> {
    Arc::new(Demo)
}

/// The tool that it calls.
const BASH: &str = "bash";
/// Lines and characters of one command's output that the summary shows.
const SHOWN_LINES: usize = 20;
const SHOWN_CHARS: usize = 2000;
/// Characters of one delta of text, at least, so that an answer comes in several.
const DELTA_CHARS: usize = 24;

/// The provider.
#[derive(Clone, Copy, Debug)]
struct Demo;

#[async_trait]
impl LlmProvider for Demo {
    async fn open(&self, request: &LlmRequest<'_>) -> Result<LlmStream, LlmError> {
        let (text, call) = answer(request)?;
        Ok(Box::pin(stream::iter(deltas(text, call).map(Ok))))
    }

    fn model(&self, model: &str) -> ModelFacts {
        prices::facts(DEF.name, model)
    }
}

/// What to say, and the call to make.
fn answer(request: &LlmRequest<'_>) -> Result<(String, Option<ToolCall>), LlmError> {
    let prompt = prompt(request.messages).ok_or_else(|| {
        LlmError::new(
            LlmErrorKind::BadRequest,
            "demo refused the request: the conversation does not start with a prompt",
        )
    })?;
    let commands: Vec<&str> = prompt
        .lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .map(str::trim)
        .filter(|command| !command.is_empty())
        .collect();
    let results: Vec<&ToolResult> = request
        .messages
        .iter()
        .filter_map(|message| match message {
            Message::ToolResults { results, .. } => Some(results),
            Message::User(_) | Message::Assistant(_) => None,
        })
        .flatten()
        .collect();
    let has_bash = request.tools.iter().any(|tool| tool.name == BASH);
    if commands.is_empty() {
        return Ok((explanation(), None));
    }
    if !has_bash {
        return Ok((without_bash(&commands), None));
    }
    match (commands.get(results.len()), request.tool_choice) {
        (Some(command), ToolChoice::Auto) => {
            let place = results.len() + 1;
            let text = if place == 1 {
                first_words(commands.len())
            } else {
                format!("Line {place} of {}.", commands.len())
            };
            let call = ToolCall {
                id: request.call_ids.issue(""),
                name: BASH.to_owned(),
                args: ToolArgs::Json(json!({ "command": command })),
                echo: None,
            };
            Ok((text, Some(call)))
        }
        (Some(_), ToolChoice::None) | (None, _) => Ok((summary(&commands, &results), None)),
    }
}

/// The user's prompt: the first message, without the block of facts that the agent puts before it.
fn prompt(messages: &[Message]) -> Option<&str> {
    let Some(Message::User(parts)) = messages.first() else {
        return None;
    };
    let Some(Part::Text(text)) = parts.first() else {
        return None;
    };
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        at += line.len();
        if line.trim_end_matches(['\r', '\n']) == "</environment>" {
            return text.get(at..);
        }
    }
    Some(text)
}

const NO_LLM: &str = "This is sandcaster's demo, not an LLM";

fn lines(count: usize) -> String {
    if count == 1 {
        "the 1 line".to_owned()
    } else {
        format!("the {count} lines")
    }
}

/// The lines of the prompt that demo runs, in words.
fn command_lines(count: usize) -> String {
    let verb = if count == 1 { "starts" } else { "start" };
    format!("{} of the prompt that {verb} with `$ `", lines(count))
}

fn first_words(count: usize) -> String {
    format!("{NO_LLM}. It runs {}, one per turn.", command_lines(count))
}

fn explanation() -> String {
    format!(
        "{NO_LLM}. It runs each line of the prompt that starts with `$ ` as a command in the sandbox, \
         one per turn, and sums up what came out. This prompt has no such line, so nothing was run. \
         Try:\n\n$ uname -a\n$ echo hello > hello.txt\n\nFor a real agent, set an LLM key such as \
         ANTHROPIC_API_KEY and name a model."
    )
}

fn without_bash(commands: &[&str]) -> String {
    let mut out = vec![format!(
        "{NO_LLM}. It can only run commands with the `bash` tool, which this run does not offer \
         (see allowedTools), so {} did not run:\n",
        lines(commands.len())
    )];
    out.extend(commands.iter().map(|command| format!("- `$ {command}`")));
    out.join("\n")
}

fn summary(commands: &[&str], results: &[&ToolResult]) -> String {
    let asked = results.len().min(commands.len());
    let was_refused = |result: &&&ToolResult| {
        let text = result.content.first();
        result.is_error && matches!(text, Some(Part::Text(text)) if text.starts_with("Not run: "))
    };
    let refused = results.iter().take(asked).filter(was_refused).count();
    let ran = asked - refused;
    let mut out = vec![format!(
        "{NO_LLM}. {ran} of {} ran.",
        command_lines(commands.len())
    )];
    for (command, result) in commands.iter().zip(results) {
        let (output, end) = outcome(result);
        out.push(format!("\n`$ {command}`: {end}"));
        if !output.is_empty() {
            let fence = fence_for(&output);
            out.extend([fence.clone(), output, fence]);
        }
    }
    if asked < commands.len() {
        out.push("\nNot run, since this run allows no further turn with tools:".to_owned());
        let rest = commands.iter().skip(asked);
        out.extend(rest.map(|command| format!("- `$ {command}`")));
    }
    out.join("\n")
}

/// A call's output, shortened, and how it ended.
fn outcome(result: &ToolResult) -> (String, String) {
    let mut text = String::new();
    for part in &result.content {
        if let Part::Text(part) = part {
            text.push_str(part);
        }
    }
    let text = text.trim_end();
    let code = result.is_error.then(|| exit_code(text)).flatten();
    let (body, end) = match (result.is_error, code) {
        (false, _) => (text, "exit 0".to_owned()),
        (true, Some(code)) => (
            text.rsplit_once('\n').map_or("", |(body, _)| body),
            format!("exit {code}"),
        ),
        (true, None) => (text, "failed".to_owned()),
    };
    (shortened(body), end)
}

/// The code in a last line such as `[exit 1 · 12.4 s]`.
fn exit_code(text: &str) -> Option<i32> {
    let last = text.lines().next_back()?.trim();
    let rest = last.strip_prefix("[exit ")?.strip_suffix(']')?;
    let digits = rest
        .find(|c: char| !c.is_ascii_digit() && c != '-')
        .unwrap_or(rest.len());
    rest.get(..digits)?.parse().ok()
}

fn shortened(body: &str) -> String {
    let mut out = String::new();
    for (shown, line) in body.trim_end().lines().enumerate() {
        if shown == SHOWN_LINES || out.chars().count() + line.chars().count() > SHOWN_CHARS {
            let room = SHOWN_CHARS.saturating_sub(out.chars().count());
            if shown == 0 {
                out.extend(line.chars().take(room));
                out.push('\n');
            }
            out.push_str("[…]\n");
            break;
        }
        out.push_str(line);
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}

/// A code fence that no line of `output` closes.
fn fence_for(output: &str) -> String {
    let longest = output
        .lines()
        .map(|line| line.chars().take_while(|c| *c == '`').count())
        .max()
        .unwrap_or(0);
    "`".repeat(longest.max(2) + 1)
}

fn deltas(text: String, call: Option<ToolCall>) -> impl Iterator<Item = LlmDelta> {
    let mut out = vec![LlmDelta::ServedModel(DEF.default_model.to_owned())];
    let mut piece = String::new();
    for word in text.split_inclusive(char::is_whitespace) {
        piece.push_str(word);
        if piece.len() >= DELTA_CHARS {
            out.push(LlmDelta::Text(std::mem::take(&mut piece)));
        }
    }
    if !piece.is_empty() {
        out.push(LlmDelta::Text(piece));
    }
    out.push(LlmDelta::Block(Block::text(text)));
    let stop = if call.is_some() {
        LlmStop::ToolUse
    } else {
        LlmStop::End
    };
    out.extend(call.map(|call| LlmDelta::Block(Block::Call(call))));
    out.push(LlmDelta::Usage(Usage::default()));
    out.push(LlmDelta::Stop(stop));
    out.into_iter()
}

#[cfg(test)]
#[path = "demo_tests.rs"]
mod tests;
