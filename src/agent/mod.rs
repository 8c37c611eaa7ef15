//! The agent: one run of an LLM with its tools, from the prompt to the answer.
//!
//! It is given a spec, an LLM, a workspace that may still be on its way, an event sink and a token; it
//! knows no HTTP server, no store and no settings. What must hold: every LLM request, a
//! summary's too, passes `Conversation::attempts`, which asks the budget before each attempt and bounds the answer by
//! what it and the window leave; every call of a response that is kept has a result in the history of the next
//! request, and one in the log also when the run is stopped; a tool runs only after its intent is durable; no call
//! of a response that did not end well is run.

mod calls;
mod context;
mod conversation;
mod limits;
mod loops;
mod prompt;
mod run;
mod shown;
mod tally;
mod turn;
mod types;
mod workspace;

pub use limits::reserve;
pub use run::run_agent;
pub use tally::Tally;
pub use types::{Answer, Halt, RunContext};
pub use workspace::{Workspace, WorkspaceSource};
