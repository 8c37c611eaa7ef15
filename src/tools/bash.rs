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
use crate::sandbox::SandboxError;
use crate::show::{first_chars, one_line, size};

use super::command::{Call, Ended, OUTPUT_FILE, Stop, Unforked};
use super::room::Room;
use super::schema::typed;
use super::state::Unkept;
use super::text::Excerpt;
use super::types::{Failure, Tool, ToolAnswer, ToolContext, fingerprint};
use super::wrapper::{EndRecord, Moved, kept};

const DEFAULT_SECS: i64 = 120;
const MOST_SECS: i64 = 600;
/// Bytes of a background program's first output that are read, as the text around it has it.
const READ: u64 = 8192;
/// Characters of it that are shown.
const STARTED: usize = 4096;

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
        let output = context.session.take_output();
        let mut call = Call {
            context,
            facts,
            output,
            output_path: String::new(),
            script: String::new(),
            cwd: context.session.cwd(),
            timeout,
            background: args.background,
        };
        call.output_path = call.path_of(output);
        let mut room = Room::enter(context).await?;
        let ended = loop {
            let short = match call.place(&args.command).await {
                Err(Unkept::Short(short)) => short,
                Err(Unkept::Failure(failure)) => {
                    call.give_up(false).await;
                    return Err(failure);
                }
                Ok(()) => match call.run(&args.command).await {
                    Ok(ended) => match &ended.unforked {
                        Some(Unforked {
                            short,
                            never_begun: true,
                        }) => {
                            call.before(&ended)
                                .into_iter()
                                .for_each(|note| context.session.note(note));
                            *short
                        }
                        _ => break ended,
                    },
                    Err(SandboxError::Starved(short)) => short,
                    Err(error) => {
                        // What was begun may still write: its file is not used for another command.
                        let begun = !matches!(error, SandboxError::NotStarted(_));
                        call.give_up(begun).await;
                        return Err(error.into());
                    }
                },
            };
            room = match room.make(short).await {
                Ok(room) => room,
                Err(failure) => {
                    call.give_up(false).await;
                    return Err(failure);
                }
            };
        };
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
    /// Settles the files of a command that has no answer.
    async fn give_up(&self, begun: bool) {
        if !begun {
            self.forget().await;
        }
        self.context.session.tell_output(self.output, begun);
        self.context.session.settle_output(self.output);
    }

    async fn answer(&self, ended: Ended) -> ToolAnswer {
        let mut notes = self.before(&ended);
        if self.background
            && ended.stopped.is_none()
            && let Some(record) = &ended.record
        {
            return self.started(record, &ended, &notes);
        }
        let new_cwd = self.note_cwd(&ended, &mut notes);
        // Without a record the outer shell's success is not the command's.
        let code = ended.record.as_ref().map_or_else(
            || {
                ended
                    .shell_exit
                    .filter(|code| *code != 0 && ended.unforked.is_none())
            },
            |record| record.code,
        );
        let truncated = ended.excerpt.is_cut();
        let told = truncated || ended.gap;
        let kept = if told { self.kept(&ended).await } else { None };
        let session = &self.context.session;
        session.tell_output(self.output, kept.is_some());
        notes.extend(self.stopped(&ended));
        notes.extend(self.broken(code, &ended, kept));
        notes.extend(self.status(code, &ended, new_cwd.as_deref()));
        let mut text = self.output_text(&ended, kept);
        for note in &notes {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            write!(text, "[{note}]").ok();
        }
        if text.trim().is_empty() {
            "(no output)".clone_into(&mut text);
        }
        ToolAnswer {
            text,
            is_error: ended.stopped.is_some() || code != Some(0),
            exit_code: code,
            truncated,
            total_chars: truncated.then_some(ended.excerpt.total_chars),
            output_path: kept.map(|_| self.output_path.clone()),
            outcome: Some(fingerprint((
                code,
                &new_cwd,
                &ended.excerpt.head,
                &ended.excerpt.tail,
            ))),
            cwd: new_cwd,
            ..ToolAnswer::default()
        }
    }

    /// What is to be said of the time before the command.
    fn before(&self, ended: &Ended) -> Vec<String> {
        let session = &self.context.session;
        let mut notes = Vec::new();
        if let Some(begun) = &ended.begun
            && !begun.emptied.is_empty()
        {
            session.emptied_outputs(&begun.emptied);
            let files: Vec<String> = begun.emptied.iter().map(|n| self.path_of(*n)).collect();
            notes.push(format!(
                "these older output files were emptied, for all together had more than 64 MiB: {}",
                files.join(", ")
            ));
        }
        if let Some(Moved { closed, to_root }) = ended.record.as_ref().and_then(|end| end.moved) {
            let why = if closed {
                "can't be entered"
            } else {
                "no longer exists"
            };
            let ran_in = if to_root { "/" } else { session.start_dir() };
            notes.push(format!(
                "the working directory {} {why}; ran in {}",
                one_line(&self.cwd),
                one_line(ran_in)
            ));
        }
        notes
    }

    /// Remembers the directory that the command ended in; gives it if it is another one than before, and a
    /// note if nobody knows it.
    fn note_cwd(&self, ended: &Ended, notes: &mut Vec<String>) -> Option<String> {
        let record = ended.record.as_ref()?;
        let session = &self.context.session;
        let now = if record.rest.starts_with('/') {
            &record.rest
        } else {
            let stays = match record.moved {
                None => &self.cwd,
                Some(Moved { to_root: true, .. }) => "/",
                Some(_) => session.start_dir(),
            };
            notes.push(format!(
                "the directory that the command ended in is not known; the next one starts in {}",
                one_line(stays)
            ));
            stays
        };
        (now != self.cwd).then(|| {
            session.set_cwd(now);
            now.to_owned()
        })
    }

    /// How much of the output is in its file, if it is any.
    async fn kept(&self, ended: &Ended) -> Option<u64> {
        // After a gap the file has more than came here; a full one lacks the record.
        let exact = !ended.gap && ended.bytes < OUTPUT_FILE;
        let record = ended.record.as_ref().filter(|_| exact);
        let sandbox = self.context.sandbox.as_ref();
        let kept = kept(sandbox, &self.output_path, ended.bytes, record).await;
        kept.filter(|bytes| *bytes > 0)
    }

    fn output_text(&self, ended: &Ended, kept: Option<u64>) -> String {
        let Some(kept) = kept else {
            let lost = "It could not be kept in a file: write it to one, or filter it.";
            return ended.excerpt.with_notice(lost);
        };
        let whole = if ended.gap {
            format!("What the sandbox kept of the output ({})", size(kept))
        } else if kept >= ended.bytes {
            "Whole output".to_owned()
        } else {
            format!("The first {} of the output", size(kept))
        };
        ended.excerpt.with_notice(&format!(
            "{whole}: {}. See more with file_read offset={}, or grep in it.",
            self.output_path,
            ended.excerpt.head_lines() + 1
        ))
    }

    /// Why the command was stopped, and what is left of it.
    fn stopped(&self, ended: &Ended) -> Vec<String> {
        let Some(stop) = ended.stopped else {
            return Vec::new();
        };
        let (was, sweeping) = match stop {
            Stop::Cancelled => return vec!["cancelled".to_owned()],
            Stop::TimedOut => (
                format!("timed out after {} s", self.timeout.as_secs()),
                true,
            ),
            Stop::Deadline => (
                format!(
                    "the run's time is nearly over: stopped after {:.0} s",
                    ended.took.as_secs_f64()
                ),
                false,
            ),
            Stop::Flood => (
                "stopped after 32 MiB of output; write it to a file, or filter it".to_owned(),
                false,
            ),
            Stop::Crowd => (
                "too many programs of earlier calls still run: what this one left in the background was \
                 stopped; end some of them"
                    .to_owned(),
                false,
            ),
        };
        let mut line = was;
        match &ended.left {
            None => line.push_str("; whether all of it has ended is not known"),
            Some(left) => {
                if sweeping {
                    line.push_str(" and was stopped");
                }
                if !left.is_empty() {
                    let shown: Vec<&str> = left.iter().take(20).map(String::as_str).collect();
                    write!(
                        line,
                        ". Begun meanwhile and still running: {}",
                        shown.join(", ")
                    )
                    .ok();
                }
            }
        }
        let mut lines = vec![line];
        if ended.begun.is_none() {
            lines.push("nothing shows that the command was begun".to_owned());
        } else if stop == Stop::TimedOut {
            lines.push(format!(
                "for longer work: timeout_seconds up to {MOST_SECS}, or background: true"
            ));
        }
        lines
    }

    /// What is to be said when the command's end was not told.
    fn broken(&self, code: Option<i32>, ended: &Ended, kept: Option<u64>) -> Option<String> {
        if ended.gap {
            let lost = if code.is_none() {
                ", and so is how the command ended"
            } else {
                ""
            };
            let file = kept.map_or_else(String::new, |_| {
                format!(". What was kept: {}", self.output_path)
            });
            Some(format!(
                "the connection to the sandbox broke: some output is missing{lost}{file}"
            ))
        } else if let Some(Unforked { short, .. }) = &ended.unforked {
            Some(format!(
                "{}; the command may have been begun, and how it ended is not known",
                SandboxError::Starved(*short)
            ))
        } else if ended.record.is_none() && ended.stopped.is_none() {
            let why = if ended.begun.is_some() {
                "the command ended the shell that ran it; the working directory is unchanged"
            } else {
                "the shell that was to run the command ended; nothing shows that the command was begun"
            };
            Some(why.to_owned())
        } else {
            None
        }
    }

    /// The lines after the output: what was killed, how it ended, where it is now.
    fn status(&self, code: Option<i32>, ended: &Ended, cwd: Option<&str>) -> Vec<String> {
        let mut lines = ended.killed.clone();
        let secs = ended.took.as_secs_f64();
        let mut parts = Vec::new();
        if let Some(code) = code.filter(|code| *code != 0) {
            parts.push(format!("exit {code}"));
            // Only what is so for certain: a program may have its own reasons for any code, and the shell's
            // words are in the output.
            let Excerpt { head, tail, .. } = &ended.excerpt;
            if code == 127 && not_found(if tail.is_empty() { head } else { tail }) {
                parts.extend(self.facts.programs_in_words());
            }
            if code == 137 && ended.stopped.is_none() && ended.killed.is_empty() {
                parts
                    .push("as after SIGKILL, with which running out of memory ends too".to_owned());
            }
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
    fn started(&self, record: &EndRecord, ended: &Ended, notes: &[String]) -> ToolAnswer {
        let kept = ended.begun.as_ref().is_none_or(|begun| begun.kept);
        let session = &self.context.session;
        session.tell_output(self.output, kept);
        if record.code.is_some() || !kept {
            session.settle_output(self.output);
        }
        let mut read = ended.excerpt.head.clone();
        if ended.bytes >= READ {
            // It goes on in the file: what may be the beginning of a key is held back.
            let whole = read.trim_end_matches(['\u{fffd}', '\n']);
            read = self.context.redactor.clean_cut(whole);
        }
        let output = first_chars(&read, STARTED).trim_end();
        let mut text = output.to_owned();
        let file = if kept {
            format!("output (up to 10 MiB of it) in {}", self.output_path)
        } else {
            "its output could not be kept in a file".to_owned()
        };
        let state = match record.code {
            None => {
                let pid = record.rest.trim_start_matches('-');
                let target = &record.rest;
                format!(
                    "running in the background: pid {pid}, {file}. Stop it with kill -TERM {target}."
                )
            }
            Some(code) => format!("ended already: exit {code}; {file}"),
        };
        for note in notes.iter().chain([&state]) {
            if !text.is_empty() {
                text.push('\n');
            }
            write!(text, "[{note}]").ok();
        }
        ToolAnswer {
            text,
            is_error: record.code.is_some_and(|code| code != 0),
            exit_code: record.code,
            output_path: kept.then(|| self.output_path.clone()),
            outcome: Some(fingerprint((record.code, output))),
            ..ToolAnswer::default()
        }
    }
}

/// Whether a shell's last words are that it didn't find a program.
fn not_found(output: &str) -> bool {
    output.lines().rev().take(3).any(|line| {
        let line = line.trim_end();
        line.ends_with(": not found") || line.ends_with(": command not found")
    })
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
