//! The only writer to stdout and stderr.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::show::deceives;

/// How long notes are waited for since stderr last took one: no exit depends on who reads it.
const LONGEST: Duration = Duration::from_secs(1);
/// Notes that wait for a slow stderr; further ones are dropped.
const QUEUED: usize = 1024;

static NOTES: LazyLock<Notes> = LazyLock::new(|| Notes::to(io::stderr()));

/// A thread that writes notes.
struct Notes {
    lines: SyncSender<Note>,
    waiting: Arc<Mutex<Option<Instant>>>,
}

struct Note {
    line: String,
    written: SyncSender<()>,
}

impl Notes {
    fn to(out: impl Write + Send + 'static) -> Self {
        let (lines, receiver) = sync_channel(QUEUED);
        let waiting = Arc::default();
        let since = Arc::clone(&waiting);
        let thread = std::thread::Builder::new()
            .name("notes".to_owned())
            .spawn(move || write_notes(&receiver, &since, out));
        // Without the thread the queue has no reader, and notes are dropped.
        drop(thread);
        Self { lines, waiting }
    }

    /// Returns when the line is written, or nobody waits for it any more.
    fn write(&self, line: String) {
        let now = Instant::now();
        let since = *self.waiting.lock().get_or_insert(now);
        let (written, told) = sync_channel(1);
        if self.lines.try_send(Note { line, written }).is_ok() {
            let left = (since + LONGEST).saturating_duration_since(now);
            told.recv_timeout(left).unwrap_or_default();
        }
    }
}

/// A failed write is no fault: nobody reads it.
fn write_notes(notes: &Receiver<Note>, waiting: &Mutex<Option<Instant>>, mut out: impl Write) {
    while let Ok(Note { line, written }) = notes.recv() {
        drop(out.write_all(line.as_bytes()));
        *waiting.lock() = None;
        written.try_send(()).unwrap_or_default();
    }
}

/// Writes answers and notes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Printer {
    out_is_terminal: bool,
    err_is_terminal: bool,
}

impl Printer {
    pub(super) fn new() -> Self {
        Self {
            out_is_terminal: io::stdout().is_terminal(),
            err_is_terminal: io::stderr().is_terminal(),
        }
    }

    /// Whether notes go to a terminal.
    pub(super) const fn notes_on_terminal(self) -> bool {
        self.err_is_terminal
    }

    /// Text to stdout as it is, at once; on a terminal without control characters, which a model or
    /// command could use to rewrite the screen.
    pub(super) fn text(self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.out_is_terminal {
            out.write_all(visible(text).as_bytes())?;
        } else {
            out.write_all(text.as_bytes())?;
        }
        out.flush()
    }

    /// A line to stdout.
    pub(super) fn line(self, text: &str) -> io::Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// A line to stderr, without control characters: notes quote services and models, and end up on terminals
    /// by way of files too. Waits for the line to be written, but not for a stderr that takes nothing.
    #[expect(
        clippy::unused_self,
        reason = "only who has the printer writes, and text() needs to know its terminal"
    )]
    pub(super) fn note(self, text: &str) {
        NOTES.write(visible(text) + "\n");
    }
}

fn visible(text: &str) -> String {
    text.chars()
        .filter(|c| !deceives(*c) || matches!(c, '\n' | '\t'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_written_when_they_return_and_a_stuck_stderr_holds_up_nobody() {
        struct Out(Receiver<()>, SyncSender<Vec<u8>>);
        impl Write for Out {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.recv().unwrap_or_default();
                self.1.send(bytes.to_vec()).unwrap_or_default();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (take, gate) = sync_channel(1);
        let (sent, lines) = sync_channel(3 * QUEUED);
        let notes = Notes::to(Out(gate, sent));
        take.send(()).unwrap();
        notes.write("first\n".to_owned());
        assert_eq!(lines.try_recv().unwrap(), b"first\n");
        let begun = Instant::now();
        for _ in 0..2 * QUEUED {
            notes.write("x\n".to_owned());
        }
        assert!(begun.elapsed() < LONGEST * 10);
        // Once it takes some again, it is waited for again.
        drop(take);
        while lines.recv_timeout(LONGEST).is_ok() {}
        notes.write("last\n".to_owned());
        assert_eq!(lines.try_recv().unwrap(), b"last\n");
    }

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb\u{9b}1mc\td\n"), "a[2Jb1mc\td\n");
    }
}
