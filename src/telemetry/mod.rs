//! Tracing: text or JSON lines on stderr, cleaned of secrets, without ever holding up the program.

mod writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::secrets::Redactor;

pub use writer::LogGuard;

/// What is logged, and how.
#[derive(Clone, Debug)]
pub struct Logging {
    /// Directives as in `info,sandcaster=debug`; checked before.
    pub filter: String,
    /// One JSON object per line.
    pub json: bool,
    /// Colours, for a terminal.
    pub ansi: bool,
    /// Cleans every line.
    pub redactor: Redactor,
}

/// Starts logging for the whole process. Only the first call has an effect.
///
/// Lines go through a bounded queue to a thread of their own: when stderr is slower than the log, lines
/// are dropped and counted, and nothing waits. Keep the guard: dropping it writes what is queued.
pub fn start(logging: Logging) -> LogGuard {
    let Logging {
        filter,
        json,
        ansi,
        redactor,
    } = logging;
    let (writer, guard) = writer::start(redactor, std::io::stderr());
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let started = if json {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        registry
            .with(layer.with_ansi(ansi).with_target(false))
            .try_init()
    };
    // An embedder or test has its own subscriber: theirs stays.
    if started.is_ok() {
        panic::set_hook(Box::new(log_panic));
    }
    guard
}

/// Panics go where all else goes, and lose their secrets there.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    tracing::error!(
        panic = panic.payload_as_str().unwrap_or("of an unknown kind"),
        place = panic.location().map(tracing::field::display),
        backtrace = (backtrace.status() == BacktraceStatus::Captured)
            .then(|| tracing::field::display(&backtrace)),
        "a panic; this is a fault in sandcaster"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::secrets::Secret;

    struct Collect(mpsc::Sender<Vec<u8>>);

    impl std::io::Write for Collect {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            drop(self.0.send(bytes.to_vec()));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_a_line_of_the_log_without_secrets() {
        let (sent, received) = mpsc::channel();
        let redactor = Redactor::new([&Secret::new("sk-a-very-secret-key")]);
        let (writer, guard) = writer::start(redactor, Collect(sent));
        let layer = tracing_subscriber::fmt::layer().with_writer(writer);
        let usual = panic::take_hook();
        panic::set_hook(Box::new(log_panic));
        let fell =
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                panic::catch_unwind(|| panic!("no {} here", "sk-a-very-secret-key"))
            });
        panic::set_hook(usual);
        assert!(fell.is_err());
        drop(guard);
        let written: Vec<u8> = received.try_iter().flatten().collect();
        let line = String::from_utf8(written).unwrap();
        assert!(
            line.contains("no [redacted] here") && line.contains("telemetry/mod.rs:"),
            "{line}"
        );
    }
}
