//! A writer that never blocks: a bounded queue, and a thread that empties it.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::secrets::Redactor;

/// Lines that wait for a slow stderr; further ones are dropped.
const QUEUED_LINES: usize = 4096;
/// Longest wait for the last lines when the process ends.
const LAST_LINES: Duration = Duration::from_secs(1);

enum Message {
    Line(Vec<u8>),
    /// Everything before this is written.
    Flush(SyncSender<()>),
}

/// Makes writers for the subscriber; each write is one line.
#[derive(Clone)]
pub(super) struct LogWriter {
    lines: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// Writes what is queued when it is dropped, for at most a second.
#[must_use = "dropping it ends the log"]
pub struct LogGuard {
    lines: SyncSender<Message>,
}

impl std::fmt::Debug for LogGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogGuard").finish_non_exhaustive()
    }
}

/// Starts the thread that writes to `out`. It ends with the last writer.
pub(super) fn start(redactor: Redactor, out: impl Write + Send + 'static) -> (LogWriter, LogGuard) {
    let (lines, receiver) = sync_channel(QUEUED_LINES);
    let dropped = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&dropped);
    let thread = std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || run(&receiver, &redactor, &counter, out));
    // Without the thread the queue has no reader, and every line is dropped: no log, but no harm.
    drop(thread);
    let guard = LogGuard {
        lines: lines.clone(),
    };
    (LogWriter { lines, dropped }, guard)
}

/// A failed write is not reported: there is nowhere left to report it.
fn run(lines: &Receiver<Message>, redactor: &Redactor, dropped: &AtomicU64, mut out: impl Write) {
    while let Ok(message) = lines.recv() {
        match message {
            Message::Line(line) => {
                let text = String::from_utf8_lossy(&line);
                drop(out.write_all(redactor.clean(&text).as_bytes()));
                let lost = dropped.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    drop(writeln!(
                        out,
                        "{lost} log lines were dropped: stderr is too slow"
                    ));
                }
            }
            Message::Flush(done) => {
                drop(out.flush());
                done.try_send(()).unwrap_or_default();
            }
        }
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (done, written) = sync_channel(1);
        let lines = self.lines.clone();
        // A full queue may only be behind: a thread of its own waits for room in it.
        let asked = std::thread::Builder::new()
            .name("log-end".to_owned())
            .spawn(move || lines.send(Message::Flush(done)).is_ok());
        drop(asked);
        written.recv_timeout(LAST_LINES).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Sender;

    use super::*;
    use crate::secrets::Secret;

    struct Collect(Sender<Vec<u8>>);

    impl Write for Collect {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            drop(self.0.send(bytes.to_vec()));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_without_secrets_before_the_guard_is_gone() {
        let (sent, received) = std::sync::mpsc::channel();
        let redactor = Redactor::new([&Secret::new("sk-a-very-secret-key")]);
        let (mut writer, guard) = start(redactor, Collect(sent));
        writer
            .write_all(b"key sk-a-very-secret-key refused\n")
            .unwrap();
        drop(guard);
        let written: Vec<u8> = received.try_iter().flatten().collect();
        assert_eq!(written, b"key [redacted] refused\n");
    }

    #[test]
    fn a_stuck_stderr_drops_lines_and_holds_nobody_up() {
        struct Stuck(Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.recv().unwrap_or_default();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, gate) = sync_channel(0);
        let (mut writer, guard) = start(Redactor::default(), Stuck(gate));
        for _ in 0..QUEUED_LINES + 100 {
            writer.write_all(b"x\n").unwrap();
        }
        assert!(writer.dropped.load(Ordering::Relaxed) >= 99);
        drop(release);
        drop(guard);
    }

    #[test]
    fn a_queue_that_is_full_at_the_end_is_still_written() {
        struct Late(Receiver<()>, Sender<()>);
        impl Write for Late {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.recv().unwrap_or_default();
                self.1.send(()).unwrap_or_default();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, gate) = sync_channel(0);
        let (sent, received) = std::sync::mpsc::channel();
        let (mut writer, guard) = start(Redactor::default(), Late(gate, sent));
        for _ in 0..QUEUED_LINES + 100 {
            writer.write_all(b"x\n").unwrap();
        }
        let late = std::thread::spawn(move || drop(release));
        drop(guard);
        late.join().unwrap();
        assert!(received.try_iter().count() >= QUEUED_LINES);
    }
}
