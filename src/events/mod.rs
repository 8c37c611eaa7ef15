//! What happens in a run: the closed set of events, as they are stored and as clients read them.
//!
//! The documented fields come from the API reference (SSE Event Types); the further ones are what
//! existing clients read. An event is serialised once, when it is appended; its JSON is what the store
//! keeps and what every reader gets.

mod clean;
mod facts;
mod sink;
mod stored;
mod types;

pub use facts::{Fact, Facts, Name};
pub use sink::{EventSink, LogFailed};
pub use stored::{EventType, StoredEvent};
pub use types::{
    Citation, Delta, DeltaSubtype, ErrorEvent, FileEncoding, FileEvent, RanBy, ResultEvent,
    RunEvent, StopReason, SystemEvent, Tokens, ToolResultEvent, ToolUseEvent, Totals, UserEvent,
    WarningEvent,
};
