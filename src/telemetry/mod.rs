//! Tracing: text or JSON lines on stderr, cleaned of secrets, without ever holding up the program.

mod writer;

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
    drop(started);
    guard
}
