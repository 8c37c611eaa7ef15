//! `bash`: one command in a fresh shell, whose directory is remembered.
//!
//! No live shell session: the end of a command in one can only be guessed, and a bad command takes the
//! session along. What goes on between calls is the working directory alone.

use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::ids;
use crate::llm::ToolSpec;
use crate::sandbox::{ExecOutput, ExecStream, SandboxError};

use super::facts::Facts;
use super::quote::quote;
use super::schema::{bool_arg, int_arg, str_arg};
use super::script::Failure;
use super::text::{Excerpt, Limits, TextKeeper, one_line};
use super::types::{Tool, ToolAnswer, ToolContext, ToolOutcome};
use super::wrapper::{EndRecord, RecordScanner, Wrapped, sweep, trim};

const DEFAULT_SECS: i64 = 120;
const MOST_SECS: i64 = 600;
/// A single argument may have 131,071 bytes on Linux; longer commands go through a file.
const LONGEST_ARGUMENT: usize = 100_000;
/// Output after which a command is stopped (`design.md`, settled 31).
const FLOOD: u64 = 32 * 1024 * 1024;
/// What `ulimit -f 20480` lets into the output file at least.
const OUTPUT_FILE: u64 = 10 * 1024 * 1024;
/// Between TERM and KILL.
const GRACE: Duration = Duration::from_secs(2);
/// For the end record, once all processes of the command are dead.
const RECORD_WAIT: Duration = Duration::from_secs(1);
const SHOWN: Limits = Limits {
    full: 30_000,
    head: 8_000,
    tail: 16_000,
};

/// The tool.
#[derive(Debug)]
pub(super) struct Bash;

pub(super) fn spec() -> ToolSpec {
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
}

#[async_trait]
impl Tool for Bash {
    async fn call(&self, args: &Map<String, Value>, context: &ToolContext) -> ToolOutcome {
        let command = str_arg(args, "command");
        if let Some(complaint) = unusable(command) {
            return ToolOutcome::Complaint(complaint);
        }
        let timeout = match timeout(int_arg(args, "timeout_seconds")) {
            Ok(timeout) => timeout,
            Err(complaint) => return ToolOutcome::Complaint(complaint),
        };
        let facts = context.session.probe(context.sandbox.as_ref()).await;
        let call = Call {
            context,
            facts,
            output_path: format!("{}/out/{}", facts.state_dir, context.session.output_name()),
            cwd: context.session.cwd(),
            timeout,
            background: bool_arg(args, "background"),
        };
        match call.run(command).await {
            Ok(ended) => call.outcome(ended).await,
            Err(error) => Failure::from(error).into(),
        }
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

struct Call<'a> {
    context: &'a ToolContext,
    facts: &'a Facts,
    output_path: String,
    cwd: String,
    timeout: Duration,
    background: bool,
}

/// Why a command was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Cancelled,
    TimedOut,
    /// The run's time is nearly over.
    Deadline,
    Flood,
    /// Too many programs of earlier calls are still read.
    Crowd,
}

/// How a command came to its end.
struct Ended {
    record: Option<EndRecord>,
    /// The outer shell's own exit code, when there is no record.
    shell_exit: Option<i32>,
    stopped: Option<Stop>,
    took: Duration,
    excerpt: Excerpt,
    /// Bytes of output before the record.
    bytes: u64,
}

type Sweeping = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Waits for a sweep, for ever if there is none.
async fn finished(sweeping: &mut Option<Sweeping>) {
    match sweeping {
        Some(sweeping) => sweeping.await,
        None => std::future::pending().await,
    }
}

/// Waits for a moment, for ever if there is none.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Call<'_> {
    async fn run(&self, command: &str) -> Result<Ended, SandboxError> {
        let started = Instant::now();
        let limit = self.context.deadline.within(self.timeout);
        let out_of_time = if limit == self.context.deadline {
            Stop::Deadline
        } else {
            Stop::TimedOut
        };
        let (nonce, marker) = (ids::nonce(), ids::nonce());
        let mut keeper = TextKeeper::new(&self.context.redactor);
        let mut scanner = RecordScanner::new(&nonce);
        let (mut record, mut shell_exit, mut bytes) = (None, None, 0);
        let mut stopped = None;

        let opening = self.open(command, &nonce, &marker);
        // Before there is a stream there is nothing to stop: the sandbox's own end takes care of a command
        // that starts all the same.
        let opened = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(Stop::Cancelled),
            opened = tokio::time::timeout_at(limit.instant(), opening) => opened.map_err(|_| out_of_time),
        };
        let mut stream = match opened {
            Ok(stream) => Some(stream?),
            Err(stop) => {
                stopped = Some(stop);
                None
            }
        };
        let mut sweeping: Option<Sweeping> = None;
        let mut give_up: Option<Instant> = None;
        while let Some(reading) = &mut stream {
            // The token and the clock first: output that never pauses must not hide them. Nothing is lost,
            // since receiving can be dropped, and reading goes on while the command is being stopped.
            let output = tokio::select! {
                biased;
                () = self.context.cancel.cancelled(), if stopped != Some(Stop::Cancelled) => Err(Stop::Cancelled),
                () = tokio::time::sleep_until(limit.instant()), if stopped.is_none() => Err(out_of_time),
                () = finished(&mut sweeping) => {
                    sweeping = None;
                    give_up = Some(Instant::now() + RECORD_WAIT);
                    continue;
                }
                () = due(give_up) => {
                    reading.control.kill().await;
                    break;
                }
                output = reading.next() => Ok(output),
            };
            let stop = match output {
                Ok(Ok(ExecOutput::Stdout(piece))) => {
                    let (shown, end) = scanner.push(&piece);
                    bytes += u64::try_from(shown.len()).unwrap_or(u64::MAX);
                    keeper.push(&shown);
                    if end.is_some() {
                        record = end;
                        break;
                    }
                    (bytes > FLOOD && stopped.is_none()).then_some(Stop::Flood)
                }
                // The outer shell's own words ("Killed"), which are no output of the command.
                Ok(Ok(ExecOutput::Stderr(_))) => None,
                Ok(Ok(ExecOutput::Exit(code))) => {
                    shell_exit = Some(code);
                    stream = None;
                    break;
                }
                Ok(Err(error)) if stopped.is_some() && !error.is_fatal() => break,
                Ok(Err(error)) => return Err(error),
                Err(stop) => Some(stop),
            };
            if let Some(stop) = stop {
                stopped = Some(stop);
                sweeping = Some(self.stop(stop, &marker, reading));
            }
        }
        // The record comes when the command's shell is dead; its children may have the worst yet to come.
        if let Some(sweeping) = sweeping {
            sweeping.await;
        }
        if record.is_none() {
            keeper.push(&scanner.finish());
        }
        if let Some(stream) = stream
            && record.is_some()
            && let Err(crowded) = leave(stream, self.context).await
        {
            stopped.get_or_insert(Stop::Crowd);
            sweep(self.context.sandbox.as_ref(), &marker, Duration::ZERO).await;
            crowded.control.kill().await;
        }
        Ok(Ended {
            record,
            shell_exit,
            stopped,
            took: started.elapsed(),
            excerpt: keeper.finish().excerpt(&SHOWN),
            bytes,
        })
    }

    async fn open(
        &self,
        command: &str,
        nonce: &str,
        marker: &str,
    ) -> Result<ExecStream, SandboxError> {
        let sandbox = self.context.sandbox.as_ref();
        let from_file;
        let mut short = command;
        if command.len() > LONGEST_ARGUMENT {
            let file = format!("{}.sh", self.output_path);
            let word = quote(&file).unwrap_or_default();
            from_file = format!("eval \"$(cat {word})\"");
            short = &from_file;
            sandbox
                .write(&file, Bytes::copy_from_slice(command.as_bytes()))
                .await?;
        }
        let wrapped = Wrapped {
            command: short,
            cwd: &self.cwd,
            start_dir: self.context.session.start_dir(),
            output: &self.output_path,
            facts: self.facts,
            marker,
            nonce,
            background: self.background,
        };
        sandbox.exec(wrapped.spec()).await
    }

    /// Ends every process of the command, in a few seconds at most.
    fn stop(&self, stop: Stop, marker: &str, stream: &ExecStream) -> Sweeping {
        let sandbox = Arc::clone(&self.context.sandbox);
        let control = Arc::clone(&stream.control);
        let marker = marker.to_owned();
        Box::pin(async move {
            if stop == Stop::Cancelled {
                // The run is over: nobody waits for a directory or an exit code.
                control.kill().await;
                sweep(sandbox.as_ref(), &marker, Duration::ZERO).await;
            } else {
                sweep(sandbox.as_ref(), &marker, GRACE).await;
            }
        })
    }

    async fn outcome(&self, ended: Ended) -> ToolOutcome {
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
            trim(
                sandbox,
                &self.output_path,
                ended.bytes,
                &self.context.cancel,
            )
            .await;
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
        ToolOutcome::Answer(ToolAnswer {
            text: self.context.redactor.clean(&text).into_owned(),
            is_error: ended.stopped.is_some() || code != Some(0),
            exit_code: code,
            truncated,
            total_chars: truncated.then_some(ended.excerpt.total_chars),
            output_path: truncated.then(|| self.output_path.clone()),
            cwd: new_cwd,
            ..ToolAnswer::default()
        })
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
        if ended.record.is_none() && ended.stopped.is_none() {
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
    fn started(&self, record: &EndRecord, ended: &Ended) -> ToolOutcome {
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
        ToolOutcome::Answer(ToolAnswer {
            text: self.context.redactor.clean(&text).into_owned(),
            is_error: record.code.is_some_and(|code| code != 0),
            exit_code: record.code,
            output_path: Some(self.output_path.clone()),
            ..ToolAnswer::default()
        })
    }
}

/// Waits a moment for the end of a stream whose record has come; one that goes on, because a program in
/// the background holds it, is drained. Gives it back where there is no place for that.
async fn leave(mut stream: ExecStream, context: &ToolContext) -> Result<(), ExecStream> {
    let ending =
        async { while !matches!(stream.next().await, Ok(ExecOutput::Exit(_)) | Err(_)) {} };
    if tokio::time::timeout(Duration::from_millis(30), ending)
        .await
        .is_ok()
    {
        return Ok(());
    }
    context.session.drain(stream)
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
