//! One command of `bash`, from its start to the facts of its end.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::apart::apart_for_tools;
use crate::ids;
use crate::sandbox::{
    ExecOutput, ExecStream, FileErrorKind, SandboxError, Short, exec_sh, unforked,
};
use crate::secrets::Redactor;
use crate::show::{grouped, one_line};

use super::facts::Facts;
use super::listing::count;
use super::state::{Unkept, discard, keep};
use super::text::{Excerpt, Limits, TextKeeper};
use super::types::{Failure, ToolContext};
use super::wrapper::{Begun, EndRecord, Left, RecordScanner, UNBEGUN, Wrapped, side_files, sweep};

/// A single argument may have 131,071 bytes on Linux; longer commands go through a file.
const LONGEST_COMMAND: usize = 100_000;
/// Output after which a command is stopped (`design.md`, settled 31).
const FLOOD: u64 = 32 * 1024 * 1024;
/// What `ulimit -f 20480` lets into the output file at least.
pub(super) const OUTPUT_FILE: u64 = 10 * 1024 * 1024;
/// Of what the outer shell and the sandbox say beside the output.
const OUTER_SAID: usize = 4096;
/// Output that is cleaned at once, where it holds nobody up: a few milliseconds.
const SLICE: usize = 64 * 1024;
/// So little is cleaned in place.
const LITTLE: usize = 4096;
/// Between TERM and KILL.
const GRACE: Duration = Duration::from_secs(2);
/// Between looks at what is left of processes that were killed.
const REAPING: [Duration; 6] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// For the end record, once all processes of the command are dead.
const RECORD_WAIT: Duration = Duration::from_secs(1);
const SHOWN: Limits = Limits {
    full: 30_000,
    head: 8_000,
    tail: 16_000,
};

/// A call of `bash`.
pub(super) struct Call<'a> {
    pub(super) context: &'a ToolContext,
    pub(super) facts: &'a Facts,
    /// The number of its output file.
    pub(super) output: u64,
    pub(super) output_path: String,
    /// A file with the command, if it is too long for an argument.
    pub(super) script: String,
    pub(super) cwd: String,
    pub(super) timeout: Duration,
    pub(super) background: bool,
}

/// Why a command was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Cancelled,
    TimedOut,
    /// The run's time is nearly over.
    Deadline,
    Flood,
    /// Too many programs of earlier calls are still read.
    Crowd,
}

/// How a command came to its end.
pub(super) struct Ended {
    pub(super) begun: Option<Begun>,
    pub(super) record: Option<EndRecord>,
    /// The outer shell's own exit code, when there is no record.
    pub(super) shell_exit: Option<i32>,
    /// There is no record, for no process could be started: why.
    pub(super) unforked: Option<Unforked>,
    /// Some of the output is missing, for the connection to the sandbox broke.
    pub(super) gap: bool,
    pub(super) stopped: Option<Stop>,
    /// What is left of what was stopped.
    pub(super) left: Left,
    /// Of programs that were killed, by the sandbox itself.
    pub(super) killed: Vec<String>,
    pub(super) took: Duration,
    pub(super) excerpt: Excerpt,
    /// Bytes of output before the record.
    pub(super) bytes: u64,
}

/// No process could be started for a command, for want of this.
pub(super) struct Unforked {
    pub(super) short: Short,
    /// The command itself was not begun; otherwise nobody knows.
    pub(super) never_begun: bool,
}

/// The output as the sandbox has kept it.
struct Reread {
    keeper: TextKeeper,
    bytes: u64,
    end: EndRecord,
}

type Working<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Waits for the end of `work`, for ever if there is none.
async fn finished<T>(work: &mut Option<Working<T>>) -> T {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// Output on its way to the keeper, which takes long over some bytes.
struct Cleaning {
    keeper: Arc<Mutex<TextKeeper>>,
    waiting: Vec<u8>,
}

impl Cleaning {
    fn new(redactor: &Redactor) -> Self {
        Self {
            keeper: Arc::new(Mutex::new(TextKeeper::new(redactor))),
            waiting: Vec::new(),
        }
    }

    /// The work on what waits, once that is a slice.
    fn slice(&mut self) -> Option<Working<()>> {
        (self.waiting.len() >= SLICE).then(|| self.work())
    }

    fn work(&mut self) -> Working<()> {
        let (keeper, bytes) = (Arc::clone(&self.keeper), std::mem::take(&mut self.waiting));
        Box::pin(async move {
            apart_for_tools(move || keeper.lock().push(&bytes)).await;
        })
    }

    /// Everything that was taken, once no slice is at work.
    async fn finish(mut self) -> Excerpt {
        if self.waiting.len() <= LITTLE {
            self.keeper.lock().push(&self.waiting);
        } else {
            self.work().await;
        }
        self.keeper.lock().end().excerpt(&SHOWN)
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
    /// Runs the command to its end, whatever that is.
    pub(super) async fn run(&self, command: &str) -> Result<Ended, SandboxError> {
        let started = Instant::now();
        let limit = self.context.deadline.within(self.timeout);
        let out_of_time = if limit == self.context.deadline {
            Stop::Deadline
        } else {
            Stop::TimedOut
        };
        let (nonce, marker) = (ids::nonce(), ids::nonce());
        let mut cleaning = Cleaning::new(&self.context.redactor);
        let mut slice: Option<Working<()>> = None;
        let mut scanner = RecordScanner::new(&nonce);
        let (mut record, mut shell_exit, mut bytes) = (None, None, 0);
        let (mut stopped, mut left) = (None, None);
        let mut outer_said = Vec::new();
        // The stream lost output, or ended before the command's end was told.
        let (mut gap, mut broken) = (false, None);

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
        let mut sweeping: Option<Working<Left>> = None;
        let mut give_up: Option<Instant> = None;
        while let Some(reading) = &mut stream {
            // The token and the clock first: output that never pauses must not hide them. Nothing is lost,
            // since receiving can be dropped, and reading goes on while the command is being stopped.
            let output = tokio::select! {
                biased;
                () = self.context.cancel.cancelled(), if stopped != Some(Stop::Cancelled) => Err(Stop::Cancelled),
                () = tokio::time::sleep_until(limit.instant()), if stopped.is_none() => Err(out_of_time),
                swept = finished(&mut sweeping) => {
                    sweeping = None;
                    left = swept;
                    give_up = Some(Instant::now() + RECORD_WAIT);
                    continue;
                }
                () = due(give_up) => {
                    reading.control.kill().await;
                    break;
                }
                () = finished(&mut slice) => {
                    slice = None;
                    continue;
                }
                output = reading.next(), if slice.is_none() => Ok(output),
            };
            let stop = match output {
                Ok(Ok(ExecOutput::Stdout(piece))) => {
                    let (shown, end) = scanner.push(&piece);
                    bytes += u64::try_from(shown.len()).unwrap_or(u64::MAX);
                    cleaning.waiting.extend_from_slice(&shown);
                    slice = cleaning.slice();
                    if end.is_some() {
                        record = end;
                        break;
                    }
                    (bytes > FLOOD && stopped.is_none()).then_some(Stop::Flood)
                }
                Ok(Ok(ExecOutput::Gap)) => {
                    gap = true;
                    None
                }
                // No output of the command: the outer shell's own words ("Killed"), and the sandbox's.
                Ok(Ok(ExecOutput::Stderr(piece))) => {
                    let room = OUTER_SAID.saturating_sub(outer_said.len()).min(piece.len());
                    outer_said.extend_from_slice(piece.get(..room).unwrap_or_default());
                    None
                }
                Ok(Ok(ExecOutput::Exit(code))) => {
                    shell_exit = Some(code);
                    stream = None;
                    break;
                }
                Ok(Err(error)) if error.is_fatal() => return Err(error),
                Ok(Err(error)) => {
                    broken = stopped.is_none().then_some(error);
                    stream = None;
                    break;
                }
                Err(stop) => Some(stop),
            };
            if let Some(stop) = stop {
                stopped = Some(stop);
                sweeping = Some(self.stop(stop, &marker, scanner.begun(), reading));
            }
        }
        if let Some(slice) = slice {
            slice.await;
        }
        // The record comes when the command's shell is dead; its children may have the worst yet to come.
        if let Some(sweeping) = sweeping {
            left = sweeping.await;
        }
        let begun = scanner.begun().cloned();
        let reread = if stopped.is_none() && (gap || broken.is_some()) {
            self.reread(&nonce).await
        } else {
            None
        };
        if let Some(whole) = reread {
            cleaning.keeper = Arc::new(Mutex::new(whole.keeper));
            cleaning.waiting.clear();
            (bytes, record) = (whole.bytes, Some(whole.end));
            gap = false;
        } else if let Some(error) = broken {
            return Err(error);
        } else if record.is_none() {
            if stopped.is_some() && left.as_ref().is_some_and(Vec::is_empty) {
                self.context.session.settle_output(self.output);
            }
            cleaning.waiting.extend_from_slice(&scanner.finish());
            // That of the outer shell says nothing about a command whose record was lost.
            shell_exit = shell_exit.filter(|_| !gap);
        }
        let unforked = if record.is_none() && stopped.is_none() && !gap {
            self.unforked(&outer_said, begun.as_ref()).await
        } else {
            None
        };
        if let Some(stream) = stream
            && record.is_some()
        {
            match self.leave(stream).await {
                Leaving::Ended => self.context.session.settle_output(self.output),
                Leaving::Drained => {}
                Leaving::Crowded(crowded) => {
                    stopped.get_or_insert(Stop::Crowd);
                    let sandbox = self.context.sandbox.as_ref();
                    left = sweep(sandbox, &marker, begun.as_ref(), Duration::ZERO).await;
                    crowded.control.kill().await;
                }
            }
        }
        Ok(Ended {
            begun,
            record,
            shell_exit,
            unforked,
            gap,
            stopped,
            left,
            killed: killed(&outer_said, &self.context.redactor),
            took: started.elapsed(),
            excerpt: cleaning.finish().await,
            bytes,
        })
    }

    /// Whether the outer shell ended since it could start no process, and whether the command had begun then.
    async fn unforked(&self, outer_said: &[u8], begun: Option<&Begun>) -> Option<Unforked> {
        let short = unforked(outer_said)?;
        let never_begun = match begun {
            // The background's record comes whatever happens, once the program is begun.
            None => true,
            Some(_) if self.background => true,
            Some(begun) => begun.kept && self.is_unbegun().await,
        };
        Some(Unforked { short, never_begun })
    }

    /// That the side file, wherever it is, says that the command was not begun. No process is needed to look.
    async fn is_unbegun(&self) -> bool {
        let sandbox = self.context.sandbox.as_ref();
        let mut seen = false;
        for side in side_files(&self.output_path, &self.facts.home) {
            let reading = sandbox.read(&side, 16);
            match tokio::time::timeout(Duration::from_secs(2), reading).await {
                Ok(Ok(bytes)) if bytes == UNBEGUN => seen = true,
                Ok(Err(SandboxError::File {
                    kind: FileErrorKind::NotFound,
                    ..
                })) => {}
                _ => return false,
            }
        }
        seen
    }

    /// The output and the end record as the sandbox has kept them, where the stream lost something.
    async fn reread(&self, nonce: &str) -> Option<Reread> {
        let sandbox = self.context.sandbox.as_ref();
        let reading = sandbox.read(&self.output_path, OUTPUT_FILE);
        let bytes = tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => return None,
            read = tokio::time::timeout_at(self.context.deadline.instant(), reading) => read.ok()?.ok()?,
        };
        let (nonce, redactor) = (nonce.to_owned(), self.context.redactor.clone());
        // Up to 10 MiB: too much for the runtime's threads.
        let read = move || {
            let (shown, end) = RecordScanner::new(&nonce).push(&bytes);
            let end = end?;
            let mut keeper = TextKeeper::new(&redactor);
            keeper.push(&shown);
            let bytes = u64::try_from(shown.len()).unwrap_or(u64::MAX);
            Some(Reread { keeper, bytes, end })
        };
        apart_for_tools(read).await?
    }

    async fn open(
        &self,
        command: &str,
        nonce: &str,
        marker: &str,
    ) -> Result<ExecStream, SandboxError> {
        let sandbox = self.context.sandbox.as_ref();
        let session = &self.context.session;
        let earlier = session.kept_outputs().into_iter();
        let wrapped = Wrapped {
            command: if self.script.is_empty() { command } else { "" },
            script: &self.script,
            cwd: &self.cwd,
            start_dir: session.start_dir(),
            output: &self.output_path,
            earlier: earlier
                .filter(|number| *number != self.output)
                .map(|number| self.path_of(number))
                .collect(),
            facts: self.facts,
            marker,
            nonce,
            background: self.background,
        };
        exec_sh(sandbox, wrapped.spec()).await
    }

    /// Puts a command that is too long for an argument into a file.
    pub(super) async fn place(&mut self, command: &str) -> Result<(), Unkept> {
        if command.len() > LONGEST_COMMAND {
            let name = format!("{}.sh", self.context.session.output_file(self.output));
            let text = Bytes::copy_from_slice(command.as_bytes());
            let kept = keep(&name, &text, self.facts, self.context).await;
            self.script = kept.map_err(|unkept| match unkept {
                Unkept::Failure(Failure::Complaint(why)) => {
                    Unkept::Failure(Failure::Complaint(format!(
                        "nothing was run: a command of more than {} bytes goes through a file, which could not be \
                         written ({why}); make it shorter",
                        grouped(count(LONGEST_COMMAND))
                    )))
                }
                unkept => unkept,
            })?;
        }
        Ok(())
    }

    /// Removes the file of a long command that was not begun, and so could not remove it.
    pub(super) async fn forget(&self) {
        if !self.script.is_empty() {
            discard(&self.script, self.context).await;
        }
    }

    /// The path of an output file.
    pub(super) fn path_of(&self, number: u64) -> String {
        let name = self.context.session.output_file(number);
        format!("{}/out/{name}", self.facts.state_dir)
    }

    /// Waits a moment for the end of a stream whose record has come; one that goes on, because a program in
    /// the background holds it, is drained.
    async fn leave(&self, mut stream: ExecStream) -> Leaving {
        let ending =
            async { while !matches!(stream.next().await, Ok(ExecOutput::Exit(_)) | Err(_)) {} };
        if tokio::time::timeout(Duration::from_millis(30), ending)
            .await
            .is_ok()
        {
            return if self.background {
                Leaving::Drained
            } else {
                Leaving::Ended
            };
        }
        match self.context.session.drain(stream, self.output) {
            Ok(()) => Leaving::Drained,
            Err(crowded) => Leaving::Crowded(crowded),
        }
    }

    /// Ends every process of the command, in a few seconds at most.
    fn stop(
        &self,
        stop: Stop,
        marker: &str,
        begun: Option<&Begun>,
        stream: &ExecStream,
    ) -> Working<Left> {
        let sandbox = Arc::clone(&self.context.sandbox);
        let control = Arc::clone(&stream.control);
        let (marker, begun) = (marker.to_owned(), begun.cloned());
        Box::pin(async move {
            let mut grace = GRACE;
            if stop == Stop::Cancelled {
                // The run is over: nobody waits for a directory or an exit code.
                control.kill().await;
                grace = Duration::ZERO;
            }
            let swept = sweep(sandbox.as_ref(), &marker, begun.as_ref(), grace).await;
            if swept.is_some() || stop == Stop::Cancelled {
                return swept;
            }
            // A sweep needs processes of its own, and the command may have them all: the backend needs none.
            control.kill().await;
            // What was killed has them until it is dead and the sandbox's first process took note of that: some look
            // for the dead every two seconds only.
            for pause in REAPING {
                let swept = sweep(sandbox.as_ref(), &marker, begun.as_ref(), Duration::ZERO).await;
                if swept.is_some() {
                    return swept;
                }
                tokio::time::sleep(pause).await;
            }
            None
        })
    }
}

/// What the sandbox says of processes that it killed itself, among the outer shell's words.
fn killed(outer_said: &[u8], redactor: &Redactor) -> Vec<String> {
    // It may have been cut, in a key too: of that line nothing is told.
    let said = String::from_utf8_lossy(outer_said);
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    redactor
        .clean(whole)
        .lines()
        .filter_map(|line| line.strip_prefix("sandcaster: "))
        .filter(|said| said.starts_with("killed process "))
        .map(one_line)
        .collect()
}

/// What became of a stream whose record has come.
enum Leaving {
    Ended,
    Drained,
    /// There is no place for it.
    Crowded(ExecStream),
}
