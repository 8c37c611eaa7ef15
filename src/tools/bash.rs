//! `bash`: one command in a fresh shell, whose directory is remembered.
//!
//! No live shell session: the end of a command in one can only be guessed, and a bad command takes the
//! session along. What goes on between calls is the working directory alone.

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::chat::ToolSpec;
use crate::show::one_line;

use super::command::{Call, Ended, OUTPUT_FILE, Stop};
use super::schema::typed;
use super::types::{Failure, Tool, ToolAnswer, ToolContext, fingerprint};
use super::wrapper::{EndRecord, trim};

const DEFAULT_SECS: i64 = 120;
const MOST_SECS: i64 = 600;
/// The tool.
#[derive(Debug)]
pub(super) struct Bash;

pub(super) static SPEC: LazyLock<ToolSpec> = LazyLock::new(|| {
    ToolSpec {
        name: "bash",
        description: "Runs a command in a fresh bash (or sh) in the sandbox and returns stdout and stderr \
            merged. The working directory carries over to the next call; variables, functions and activated \
            environments don't: chain with && or write a script. No keyboard: pass -y, --no-pager, --batch. \
            Stopped after 120 s unless timeout_seconds says otherwise. Servers and longer work: background: \
            true, which returns a pid and an output file after a second. Over 30,000 characters the middle is \
            left out and the whole output is in a file that is named. For files prefer file_read, file_edit, \
            grep and glob. Put independent reads into one turn."
            .to_owned(),
        input_schema: json!({
            "type": "object",
            "properties": {
                "command": {"type": "string", "description": "Shell command or script"},
                "timeout_seconds": {"type": "integer", "description": "1 to 600, default 120"},
                "background": {"type": "boolean", "description": "Start and return; runs until the sandbox ends"}
            },
            "required": ["command"],
            "additionalProperties": false
        }),
}
});

#[derive(Debug, Deserialize)]
struct BashArgs {
    command: String,
    #[serde(default)]
    timeout_seconds: Option<i64>,
    #[serde(default)]
    background: bool,
}

#[async_trait]
impl Tool for Bash {
    async fn call(
        &self,
        args: Map<String, Value>,
        context: &ToolContext,
    ) -> Result<ToolAnswer, Failure> {
        let args: BashArgs = typed(args)?;
        if let Some(complaint) = unusable(&args.command) {
            return Err(Failure::Complaint(complaint));
        }
        let timeout = timeout(args.timeout_seconds).map_err(Failure::Complaint)?;
        let facts = context.session.probe(context.sandbox.as_ref()).await;
        let call = Call {
            context,
            facts,
            output_path: format!("{}/out/{}", facts.state_dir, context.session.output_name()),
            cwd: context.session.cwd(),
            timeout,
            background: args.background,
        };
        let ended = call.run(&args.command).await?;
        Ok(call.answer(ended).await)
    }
}

/// Why `command` is not worth running, if so.
fn unusable(command: &str) -> Option<String> {
    let trimmed = command.trim();
    if trimmed.is_empty() {
        return Some(
            "the command is empty; give a shell command, as in {\"command\": \"ls -la\"}"
                .to_owned(),
        );
    }
    if command.contains('\0') {
        return Some(
            "the command has a NUL character, which no shell can take; write it as \\0 to printf"
                .to_owned(),
        );
    }
    let literal = matches!(
        trimmed.as_bytes(),
        [b'[', b'{' | b'"' | b'\'', ..] | [b'{', b'"' | b'\'', ..]
    );
    literal.then(|| {
        "the command is a JSON or Python literal, not shell; give the command itself as a string, \
         as in {\"command\": \"ls -la\"}"
            .to_owned()
    })
}

/// The time that the model asks for. 1000 and more are milliseconds, which models write as well.
fn timeout(asked: Option<i64>) -> Result<Duration, String> {
    let secs = match asked {
        None => DEFAULT_SECS,
        Some(secs) if secs < 1 => {
            return Err(format!(
                "timeout_seconds is {secs}; it must be between 1 and {MOST_SECS}"
            ));
        }
        Some(millis) if millis >= 1000 => millis.saturating_add(999) / 1000,
        Some(secs) => secs,
    };
    Ok(Duration::from_secs(secs.clamp(1, MOST_SECS).unsigned_abs()))
}

impl Call<'_> {
    async fn answer(&self, ended: Ended) -> ToolAnswer {
        if self.background
            && ended.stopped.is_none()
            && let Some(record) = &ended.record
        {
            return self.started(record, &ended);
        }
        let mut notes: Vec<String> = Vec::new();
        let mut new_cwd = None;
        if let Some(record) = &ended.record {
            let start_dir = self.context.session.start_dir();
            let ran_in = if record.moved { start_dir } else { &self.cwd };
            if record.moved {
                notes.push(format!(
                    "the working directory {} no longer exists; ran in {}",
                    one_line(&self.cwd),
                    one_line(start_dir)
                ));
            }
            let now = if record.rest.starts_with('/') {
                &record.rest
            } else {
                ran_in
            };
            if now != self.cwd {
                self.context.session.set_cwd(now);
                new_cwd = Some(now.to_owned());
            }
        }
        let code = ended
            .record
            .as_ref()
            .map_or(ended.shell_exit, |record| record.code);
        let status = self.status(code, &ended, new_cwd.as_deref());
        let truncated = ended.excerpt.is_cut();
        if truncated && ended.record.is_some() && ended.bytes < OUTPUT_FILE {
            let sandbox = self.context.sandbox.as_ref();
            trim(sandbox, &self.output_path, ended.bytes).await;
        }
        let mut text = self.output_text(&ended);
        for note in notes.iter().chain(&status) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            write!(text, "[{note}]").ok();
        }
        if text.trim().is_empty() {
            "(no output)".clone_into(&mut text);
        }
        ToolAnswer {
            text: self.context.redactor.clean(&text).into_owned(),
            is_error: ended.stopped.is_some() || code != Some(0),
            exit_code: code,
            truncated,
            total_chars: truncated.then_some(ended.excerpt.total_chars),
            output_path: truncated.then(|| self.output_path.clone()),
            cwd: new_cwd,
            outcome: Some(fingerprint((
                code,
                &ended.excerpt.head,
                &ended.excerpt.tail,
            ))),
            ..ToolAnswer::default()
        }
    }

    fn output_text(&self, ended: &Ended) -> String {
        let whole = if ended.bytes < OUTPUT_FILE {
            "Whole output"
        } else {
            "The beginning of the output"
        };
        ended.excerpt.with_notice(&format!(
            "{whole}: {}. See more with file_read offset={}, or grep in it.",
            self.output_path,
            ended.excerpt.head_lines() + 1
        ))
    }

    /// The lines after the output: why it was stopped, how it ended, where it is now.
    fn status(&self, code: Option<i32>, ended: &Ended, cwd: Option<&str>) -> Vec<String> {
        let secs = ended.took.as_secs_f64();
        let mut lines = Vec::new();
        lines.extend(ended.stopped.map(|stop| match stop {
            Stop::Cancelled => "cancelled".to_owned(),
            Stop::TimedOut => format!(
                "timed out after {} s and was stopped. For longer work: timeout_seconds up to {MOST_SECS}, \
                 or background: true.",
                self.timeout.as_secs()
            ),
            Stop::Deadline => format!("stopped after {secs:.0} s: the run's time is nearly over"),
            Stop::Flood => "stopped after 32 MiB of output; write it to a file, or filter it".to_owned(),
            Stop::Crowd => "stopped what it left in the background: too many programs of earlier calls \
                            still run; end some of them"
                .to_owned(),
        }));
        if ended.gap {
            let lost = if code.is_none() {
                ", and so is how the command ended"
            } else {
                ""
            };
            lines.push(format!(
                "the connection to the sandbox broke: some output is missing{lost}. What was kept: {}",
                self.output_path
            ));
        } else if ended.record.is_none() && ended.stopped.is_none() {
            lines.push(
                "the command ended the shell that ran it; the working directory is unchanged"
                    .to_owned(),
            );
        }
        let mut parts = Vec::new();
        if let Some(code) = code.filter(|code| *code != 0) {
            parts.push(match code {
                126 => "exit 126: found, but it can't be executed".to_owned(),
                127 if self.facts.known => {
                    format!(
                        "exit 127: command not found. {}",
                        self.facts.programs_in_words()
                    )
                }
                127 => "exit 127: command not found".to_owned(),
                137 if ended.stopped.is_none() => {
                    "exit 137: killed, perhaps out of memory".to_owned()
                }
                code => format!("exit {code}"),
            });
        }
        if secs > 10.0 || code.is_some_and(|code| code != 0) {
            parts.push(format!("{secs:.1} s"));
        }
        parts.extend(cwd.map(|cwd| format!("now in {}", one_line(cwd))));
        if !parts.is_empty() {
            lines.push(parts.join(" · "));
        }
        lines
    }

    /// The answer for a program that was started in the background.
    fn started(&self, record: &EndRecord, ended: &Ended) -> ToolAnswer {
        let output = ended.excerpt.head.trim_end();
        let state = match record.code {
            None => format!(
                "[running in the background: pid {}, output in {}. Stop it with kill {}.]",
                record.rest, self.output_path, record.rest
            ),
            Some(code) => format!(
                "[ended already: exit {code}; whole output in {}]",
                self.output_path
            ),
        };
        let text = if output.is_empty() {
            state
        } else {
            format!("{output}\n{state}")
        };
        ToolAnswer {
            text: self.context.redactor.clean(&text).into_owned(),
            is_error: record.code.is_some_and(|code| code != 0),
            exit_code: record.code,
            output_path: Some(self.output_path.clone()),
            outcome: Some(fingerprint((record.code, output))),
            ..ToolAnswer::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_up_to_999_and_milliseconds_above() {
        for (asked, secs) in [
            (None, 120),
            (Some(1), 1),
            (Some(600), 600),
            (Some(999), 600),
            (Some(1000), 1),
            (Some(30_000), 30),
            (Some(1_500), 2),
            (Some(i64::MAX), 600),
        ] {
            assert_eq!(timeout(asked), Ok(Duration::from_secs(secs)), "{asked:?}");
        }
        assert!(timeout(Some(0)).is_err());
        assert!(timeout(Some(-5)).is_err());
    }

    #[test]
    fn literals_are_told_from_commands() {
        for bad in [
            "",
            "  \n",
            "[{\"command\": 1}]",
            "{\"cmd\": \"ls\"}",
            "['ls', '-l']",
            "a\0b",
        ] {
            assert!(unusable(bad).is_some(), "{bad:?}");
        }
        for good in [
            "ls",
            "[ -f x ] && echo y",
            "{ echo a; }",
            "[[ a == b ]]",
            "\"$x\"",
        ] {
            assert_eq!(unusable(good), None, "{good:?}");
        }
    }
}
