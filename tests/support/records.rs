//! The beginning of a run's log, for tests that write one themselves.

use jiff::Timestamp;
use sandcaster::events::{RunEvent, StoredEvent, SystemEvent};
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::RunFacts;

/// A run of its own.
pub fn facts(started_at: Timestamp) -> RunFacts {
    RunFacts {
        id: RunId::new(),
        prompt: "hi".to_owned(),
        model: "demo".to_owned(),
        provider: "demo".to_owned(),
        sandbox_provider: "local".to_owned(),
        background: false,
        started_at,
    }
}

/// What every log begins with.
pub fn init() -> RunEvent {
    RunEvent::System(SystemEvent::new("init", "Agent started"))
}

/// The same as it is stored.
pub fn first_event() -> StoredEvent {
    StoredEvent::new(Seq(1), &init()).unwrap()
}
