//! Ends the runs of processes that died. Nothing is run again: tools have side effects.

use crate::error::{ErrorCode, Problem};
use crate::events::{ErrorEvent, RunEvent, StoredEvent, Totals};
use crate::ids::RunId;
use crate::sandbox;
use crate::spec::NanoUsd;
use crate::store::{OpenRun, RunEnd, RunHead, RunState, RunStore, RunUsage, StoreError};
use futures::{StreamExt as _, stream};

/// Runs ended side by side: what is queued together is committed and synced together.
const AT_ONCE: usize = 128;

/// Ends every unfinished run whose process is gone as `interrupted`, with an `error` event `SERVER_CRASHED`,
/// and names them (rule RC-1). To be called before listening: nothing remote is asked, so it can't hang.
/// Sandboxes of these runs that outlive their process are the reaper's. What it costs does not grow with their logs.
///
/// Turns, tool calls, the time of the end and the duration (up to the last event) are those of the log. What the
/// model used is told as far as the record of the last answered turn goes, and said to be incomplete.
///
/// # Errors
/// When they can't be looked for. One that can't be ended is logged and holds up none of the others.
pub async fn recover(store: &dyn RunStore) -> Result<Vec<RunId>, StoreError> {
    let ended = stream::iter(store.expired_runs().await?)
        .map(|run| async move {
            match end(store, &run).await {
                Ok(()) => {}
                Err(error) => {
                    // Another process, or its own after all, may have done so meanwhile.
                    if let Ok(RunHead { ended: true, .. }) = store.head(&run.lease.run).await {
                        tracing::debug!(run.id = %run.lease.run, %error, "a dead run was ended by someone else");
                        return None;
                    }
                    tracing::error!(run.id = %run.lease.run, %error, "a run whose process died could not be ended; the next look tries again");
                    return None;
                }
            }
            let run = run.lease.run;
            if let Err(error) = forget_dead_sandboxes(store, &run).await {
                tracing::warn!(run.id = %run, %error, "failed to record that a dead run's sandbox is gone");
            }
            tracing::warn!(run.id = %run, "a run was interrupted: the process that it ran in died");
            Some(run)
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    Ok(ended)
}

/// Records as gone what ended with the run's process. Any other sandbox is the reaper's.
async fn forget_dead_sandboxes(store: &dyn RunStore, run: &RunId) -> Result<(), StoreError> {
    for made in store.sandboxes(run).await? {
        if sandbox::backend(&made.backend).is_some_and(|def| def.dies_with_server) {
            store.sandbox_gone(run, made.attempt).await?;
        }
    }
    Ok(())
}

async fn end(store: &dyn RunStore, run: &OpenRun) -> Result<(), StoreError> {
    let problem = Problem::new(
        ErrorCode::ServerCrashed,
        "the process that ran it died, so the run was interrupted",
    )
    .hint("send the request again; tools may already have acted");
    let duration = run.last_event_at.duration_since(run.started_at);
    // What the turn that was under way has used is not known: there is more than this.
    let spent = run.last_turn;
    let cost_nanos = spent.and_then(|turn| turn.cost_nanos);
    let turns = run.turns.max(spent.map_or(0, |turn| turn.turn));
    let totals = Totals {
        cost_usd: cost_nanos.map(|nanos| NanoUsd(nanos).to_usd()),
        tokens: spent.map(|turn| turn.tokens),
        usage_complete: false,
        num_turns: turns,
        duration_secs: duration.as_secs_f64(),
        model: run.model.clone(),
        tool_calls: run
            .calls
            .iter()
            .map(|(tool, count)| (tool.clone(), (*count).into()))
            .collect(),
        ..Totals::default()
    };
    let event = RunEvent::Error(ErrorEvent::new(&problem, totals));
    let event = StoredEvent::new(run.last_seq.next(), &event)
        .map_err(|error| StoreError::Refused(error.to_string()))?;
    let end = RunEnd {
        state: RunState::Interrupted,
        completed_at: run.last_event_at,
        error: Some((problem.code, problem.message)),
        cost_nanos,
        usage: spent.map(|turn| RunUsage {
            input_tokens: turn.tokens.input_tokens,
            output_tokens: turn.tokens.output_tokens,
            complete: false,
        }),
        num_turns: turns,
        duration_secs: duration.as_secs_f64(),
    };
    store.finish(&run.lease, event.into(), end).await
}
