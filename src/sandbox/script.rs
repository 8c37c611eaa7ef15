//! Short commands of ours in a sandbox: a fixed text for `sh`, everything variable as an argument.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Deadline;

use super::types::{ExecCollected, ExecOutput, ExecSpec, ExecStream, Sandbox, SandboxError, Short};

/// The longest argument that Linux takes, without the NUL at its end.
const LONGEST_ARGUMENT: usize = 131_071;
/// For a look whether there is a shell at all.
const SHELL_LIMIT: Duration = Duration::from_secs(10);

/// A fixed text for `sh -c`, and what differs from call to call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script<'a> {
    /// The program text: a constant, never built from outside text.
    pub(crate) text: &'static str,
    /// `$1`, `$2`, ….
    pub(crate) args: Vec<&'a str>,
    /// Where it starts; `/` if empty.
    pub(crate) cwd: &'a str,
    /// Standard input.
    pub(crate) stdin: Bytes,
    /// Added to the environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Bytes of output that are kept.
    pub(crate) keep: usize,
}

impl Script<'_> {
    /// Runs it to its end, until `limit`. Dropping the future lets the backend end it.
    ///
    /// # Errors
    /// The sandbox's own. `Timeout` at `limit`; it has been killed then. `NoShell` if the
    /// sandbox has none: a script that can't be started for another reason is `Starved` or `NotStarted`. `Backend` if some of
    /// the output was lost, for the rest would read as an answer to another question.
    pub(crate) async fn run(
        self,
        sandbox: &dyn Sandbox,
        limit: Deadline,
    ) -> Result<ExecCollected, SandboxError> {
        let allowed = limit.remaining();
        let mut control = None;
        let work = async {
            let stream = exec_sh(sandbox, self.spec()).await?;
            control = Some(Arc::clone(&stream.control));
            let collected = stream.collect(self.keep).await?;
            if collected.gap {
                return Err(SandboxError::Backend(
                    "the connection to the sandbox broke, and what it said was lost; try again"
                        .to_owned(),
                ));
            }
            Ok(collected)
        };
        if let Ok(ended) = tokio::time::timeout_at(limit.instant(), work).await {
            return ended;
        }
        if let Some(control) = control {
            // A backend that can't even kill must not hold up the answer.
            drop(tokio::time::timeout(Duration::from_secs(1), control.kill()).await);
        }
        Err(SandboxError::Timeout(format!(
            "gave up after {} s",
            allowed.as_secs().max(1)
        )))
    }

    /// Runs it and gives what it printed until `limit`, whatever became of it.
    pub(crate) async fn run_until(self, sandbox: &dyn Sandbox, limit: Deadline) -> Vec<u8> {
        let mut printed = Vec::new();
        let keep = self.keep;
        let work = async {
            let mut stream = sandbox.exec(self.spec()).await?;
            let control = Arc::clone(&stream.control);
            let reading = async {
                loop {
                    match stream.next().await? {
                        ExecOutput::Stdout(bytes) if printed.len() < keep => {
                            printed.extend_from_slice(&bytes);
                        }
                        ExecOutput::Stdout(_) | ExecOutput::Stderr(_) | ExecOutput::Gap => {}
                        ExecOutput::Exit(_) => return Ok(()),
                    }
                }
            };
            if let Ok(ended) = tokio::time::timeout_at(limit.instant(), reading).await {
                return ended;
            }
            control.kill().await;
            Ok::<(), SandboxError>(())
        };
        // A second more for the kill. What failed is told by the call that needs the sandbox next.
        drop(tokio::time::timeout_at(limit.plus(Duration::from_secs(1)).instant(), work).await);
        printed
    }

    fn spec(&self) -> ExecSpec {
        let fixed = ["sh", "-c", self.text, "sandcaster"];
        ExecSpec {
            argv: fixed
                .iter()
                .chain(&self.args)
                .map(|arg| (*arg).to_owned())
                .collect(),
            env: self.env.clone(),
            cwd: if self.cwd.is_empty() { "/" } else { self.cwd }.to_owned(),
            stdin: self.stdin.clone(),
        }
    }
}

/// That no process could be started, by the words of a script's shell or of what starts programs for it. Their
/// place in the line is what counts: names of files stand elsewhere, and a reason that follows one is about that file.
pub(crate) fn unforked(said: &[u8]) -> Option<Short> {
    String::from_utf8_lossy(said).lines().find_map(|line| {
        if let Some(words) = line
            .strip_prefix("sandcaster: ")
            .or_else(|| line.strip_prefix("sh: "))
        {
            let words = words.strip_prefix("line ").unwrap_or(words);
            let words = words.trim_start_matches(|c: char| c.is_ascii_digit());
            let words = words.strip_prefix(": ").unwrap_or(words);
            if words.starts_with("xmalloc: ") || words == "Out of space" {
                return Some(Short::Memory);
            }
            // bash tries again: that it gave up has a line of its own.
            if words.starts_with("fork: retry: ") {
                return None;
            }
            // dash gives no reason.
            short_of(words).or_else(|| (words == "Cannot fork").then_some(Short::Either))
        } else if let Some(words) = line.strip_prefix("find: ") {
            starts_program(words).then(|| short_of(words)).flatten()
        } else {
            let words = line.strip_prefix("xargs: ")?;
            // BusyBox gives the program alone, GNU only where it was started but is too large.
            let program = words.split(": ").next()?;
            let named = !program.contains(['/', ' ']);
            (named || starts_program(words))
                .then(|| short_of(words))
                .flatten()
        }
    })
}

/// Whether `words` are about a program that was to be started.
fn starts_program(words: &str) -> bool {
    words.starts_with("cannot fork: ") || words.starts_with("can't execute '")
}

/// What there is too little of, if that is how `words` end.
fn short_of(words: &str) -> Option<Short> {
    let (_, reason) = words.rsplit_once(": ")?;
    let reason = reason.split(" (os error ").next()?;
    match reason {
        "Resource temporarily unavailable" | "Try again" => Some(Short::Processes),
        "Cannot allocate memory" | "Out of memory" => Some(Short::Memory),
        _ => None,
    }
}

/// Starts a command whose program is `sh`, and tells a sandbox without a shell from a command that can't be
/// started for another reason.
///
/// # Errors
/// `NoShell` without one; `Starved` or `NotStarted` with the true cause; otherwise as [`Sandbox::exec`].
pub(crate) async fn exec_sh(
    sandbox: &dyn Sandbox,
    spec: ExecSpec,
) -> Result<ExecStream, SandboxError> {
    if let Some(arg) = spec.argv.iter().find(|arg| arg.contains('\0')) {
        return Err(SandboxError::NotStarted(format!(
            "an argument of {} bytes has a NUL character, which no argument can hold",
            arg.len()
        )));
    }
    if let Some(arg) = spec.argv.iter().find(|arg| arg.len() > LONGEST_ARGUMENT) {
        return Err(SandboxError::NotStarted(format!(
            "an argument has {} bytes (at most {LONGEST_ARGUMENT})",
            arg.len()
        )));
    }
    match sandbox.exec(spec).await {
        Err(SandboxError::NotStarted(why)) => {
            if let Some(short) = short_of(&why) {
                return Err(SandboxError::Starved(short));
            }
            require_shell(sandbox, Deadline::after(SHELL_LIMIT)).await?;
            Err(SandboxError::NotStarted(why))
        }
        started => started,
    }
}

/// Tells a sandbox that is slow, which may pass, from one that has no shell, where no tool can work.
///
/// # Errors
/// `NoShell` if `sh` can't be run; a fatal error of the sandbox.
pub(crate) async fn require_shell(
    sandbox: &dyn Sandbox,
    limit: Deadline,
) -> Result<(), SandboxError> {
    let spec = ExecSpec {
        argv: ["sh", "-c", "exit 0"].map(str::to_owned).into(),
        cwd: "/".to_owned(),
        ..ExecSpec::default()
    };
    let trying = async { sandbox.exec(spec).await?.collect(0).await };
    let until = limit.within(SHELL_LIMIT);
    let why = match tokio::time::timeout_at(until.instant(), trying).await {
        Ok(Ok(ended)) if matches!(ended.exit_code, 126 | 127) => {
            format!("sh can't be run: exit code {}", ended.exit_code)
        }
        Ok(Err(SandboxError::NotStarted(why))) if short_of(&why).is_none() => why,
        Ok(Err(error)) if error.is_fatal() => return Err(error),
        // It answers somehow, or will: the tools say what fails.
        Ok(_) | Err(_) => return Ok(()),
    };
    Err(SandboxError::NoShell(format!(
        "the sandbox has no POSIX shell, which nearly every tool needs ({why}); use a template or image with \
         `sh` on its PATH"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::ExecControl;

    struct Nothing;

    #[async_trait::async_trait]
    impl ExecControl for Nothing {
        async fn kill(&self) {}
    }

    async fn collected(said: Vec<ExecOutput>) -> ExecCollected {
        let (sender, output) = tokio::sync::mpsc::channel(said.len() + 1);
        for piece in said.into_iter().chain([ExecOutput::Exit(0)]) {
            sender.try_send(Ok(piece)).unwrap();
        }
        let control = Arc::new(Nothing);
        let stream = ExecStream { output, control };
        stream.collect(16).await.unwrap()
    }

    #[tokio::test]
    async fn of_much_standard_error_the_beginning_and_the_end_are_kept() {
        let much = Bytes::from("find: ./x: Permission denied\n".repeat(10_000));
        let mut said = vec![ExecOutput::Stderr("begin\n".into())];
        said.extend(std::iter::repeat_n(ExecOutput::Stderr(much), 60));
        said.push(ExecOutput::Stderr("sandcaster: 3: Cannot fork\n".into()));
        let found = collected(said).await;
        assert!(found.truncated && found.stderr.len() <= 128 * 1024 + 1);
        assert!(found.stderr.starts_with(b"begin\nfind: "));
        assert_eq!(unforked(&found.stderr), Some(Short::Either));
        let few = collected(vec![ExecOutput::Stderr("few".into()), ExecOutput::Gap]).await;
        assert_eq!(
            (&*few.stderr, few.truncated, few.gap),
            (&b"few"[..], false, true)
        );
    }

    #[test]
    fn that_no_process_could_be_started_is_told_from_names_and_other_words() {
        for (said, why) in [
            ("sandcaster: 16: Cannot fork", Short::Either),
            (
                "x\nsandcaster: fork: retry: Resource temporarily unavailable\n\
                 sandcaster: fork: Resource temporarily unavailable\n",
                Short::Processes,
            ),
            ("xargs: sh: Try again", Short::Processes),
            (
                "sandcaster: line 3: fork: Cannot allocate memory",
                Short::Memory,
            ),
            (
                "sandcaster: line 0: can't fork: Resource temporarily unavailable",
                Short::Processes,
            ),
            (
                "sandcaster: line 1: can't fork: Out of memory",
                Short::Memory,
            ),
            ("sandcaster: 7: grep: Cannot allocate memory", Short::Memory),
            (
                "xargs: cannot fork: Resource temporarily unavailable",
                Short::Processes,
            ),
            (
                "find: can't execute 'stat': Resource temporarily unavailable",
                Short::Processes,
            ),
        ] {
            assert_eq!(unforked(said.as_bytes()), Some(why), "{said}");
        }
        for said in [
            "",
            "find: './Cannot fork': Permission denied",
            "grep: Cannot fork: Permission denied",
            "sandcaster: 3: cd: can't cd to /w/Cannot fork",
            "sandcaster: 3: wc: not found",
            "tail: x: Resource temporarily unavailable",
            // Tried again, and done then.
            "sandcaster: fork: retry: Resource temporarily unavailable\n",
            "sandcaster: line 3: fork: retry: Cannot allocate memory\n",
            // About a file.
            "find: ./x: Resource temporarily unavailable",
            "find: './x': Cannot allocate memory",
            // Closed directories with a line end in their names.
            "find: ./q\nsandcaster: 1: Cannot fork: Permission denied",
            "find: ./q\nsandcaster: 1: can't fork: Permission denied",
            "find: ./q\nxargs: cannot fork: Permission denied",
        ] {
            assert_eq!(unforked(said.as_bytes()), None, "{said}");
        }
        assert_eq!(short_of("sh: Try again"), Some(Short::Processes));
        assert_eq!(
            short_of("sh: Resource temporarily unavailable (os error 11)"),
            Some(Short::Processes)
        );
        assert_eq!(short_of("sh: No such file or directory (os error 2)"), None);
    }
}
