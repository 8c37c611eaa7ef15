//! Ends the runs of processes that died. Nothing is run again: tools have side effects.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{ErrorCode, Problem};
use crate::events::{ErrorEvent, EventType, RunEvent, StoredEvent, Totals};
use crate::ids::Seq;
use crate::store::{Finish, RunRecord, RunState, RunStore, StoreError};

/// Events folded at once.
const PAGE: u32 = 256;

/// Ends every unfinished run whose owner is not alive as `interrupted`, with an `error` event
/// `SERVER_CRASHED`, and gives them as they are then (rule RC-1). To be called before listening: nothing
/// remote is asked, so it can't hang. Sandboxes of these runs are the reaper's.
///
/// Turns, tool calls and duration (up to the last event) are those of the log; what the model used is not
/// in it, so the event says that its usage is incomplete.
///
/// # Errors
/// When the store fails. Runs that were ended before stay so.
pub async fn recover(
    store: &dyn RunStore,
    owner_alive: &(dyn Fn(&str) -> bool + Sync),
    now: Timestamp,
) -> Result<Vec<RunRecord>, StoreError> {
    let mut ended = Vec::new();
    for run in store.unfinished().await? {
        if owner_alive(&run.owner) {
            continue;
        }
        match end(store, &run, now).await {
            Ok(()) => {}
            // Another process, started at the same time, was faster.
            Err(StoreError::Refused(reason)) => {
                tracing::debug!(run.id = %run.id, %reason, "a dead run was ended by someone else");
                continue;
            }
            Err(error) => return Err(error),
        }
        tracing::warn!(run.id = %run.id, "a run was interrupted: the process that it ran in died");
        ended.extend(store.get(&run.id).await?);
    }
    Ok(ended)
}

async fn end(store: &dyn RunStore, run: &RunRecord, now: Timestamp) -> Result<(), StoreError> {
    let problem = Problem::new(
        ErrorCode::ServerCrashed,
        "the server died while the run went on, so the run was interrupted",
    )
    .hint("send the request again; tools may already have acted");
    let done = fold(store, run).await?;
    let duration_secs = run.duration_secs.unwrap_or(0.0);
    let totals = Totals {
        usage_complete: false,
        num_turns: done.turns,
        duration_secs,
        model: run.model.clone(),
        tool_calls: done.calls,
        ..Totals::default()
    };
    let event = RunEvent::Error(ErrorEvent::new(&problem, totals));
    let event = StoredEvent::new(run.last_seq.next(), &event)
        .map_err(|error| StoreError::Refused(error.to_string()))?;
    store
        .finish(Finish {
            run: run.id.clone(),
            event: event.into(),
            state: RunState::Interrupted,
            completed_at: now,
            error_code: Some(problem.code),
            error: Some(problem.message),
            cost_nanos: None,
            input_tokens: 0,
            output_tokens: 0,
            num_turns: done.turns,
            duration_secs,
        })
        .await
}

/// What the log tells of the work that was done.
#[derive(Default)]
struct Done {
    turns: u32,
    calls: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Turn {
    turn: u32,
    tool_name: Option<String>,
}

async fn fold(store: &dyn RunStore, run: &RunRecord) -> Result<Done, StoreError> {
    let mut done = Done::default();
    let mut after = Seq::ZERO;
    loop {
        let page = store.read(&run.id, after, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(done);
        };
        after = last.seq;
        for event in &page {
            done.add(event);
        }
    }
}

impl Done {
    fn add(&mut self, event: &StoredEvent) {
        if !matches!(
            event.kind,
            EventType::Assistant | EventType::Thinking | EventType::ToolUse
        ) {
            return;
        }
        let Ok(turn) = serde_json::from_str::<Turn>(&event.json) else {
            return;
        };
        self.turns = self.turns.max(turn.turn);
        if let Some(name) = turn.tool_name {
            let count = self.calls.get(&name).and_then(Value::as_u64).unwrap_or(0);
            self.calls.insert(name, (count + 1).into());
        }
    }
}
