//! The run log by itself: a store, its writers and readers, without HTTP or agent.

use std::sync::Arc;
use std::time::Duration;

use sandcaster::error::{ErrorCode, Problem};
use sandcaster::events::{Delta, ErrorEvent, EventSink, RunEvent, SystemEvent, Totals};
use sandcaster::ids::{RunId, Seq};
use sandcaster::runs::{LogReader, LogWriter, Logs, TaskKind, Tasks};
use sandcaster::store::{Role, RunEnd, RunFacts, RunState, RunStore, SqliteStore, StoreOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a load was like.
#[derive(Clone, Copy, Debug)]
pub struct LogFigures {
    /// Deltas through the store per second.
    pub events_per_sec: f64,
    /// Median time from `emit` to the reader, one run alone.
    pub idle_median: Duration,
    /// The same, 99 of 100.
    pub idle_p99: Duration,
}

/// `runs` runs at once with `deltas` deltas each and one reader each, then one run alone for the latencies.
pub async fn log_figures(runs: usize, deltas: usize) -> LogFigures {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = SqliteStore::open(StoreOptions::new(dir.path(), Role::Serve)).expect("a store");
    let logs = Logs::new(Arc::clone(&store) as _);
    let tasks = Tasks::new();

    let mut work = Vec::new();
    let mut writers = Vec::new();
    for _ in 0..runs {
        let writer = create(&logs).await;
        let mut reader = reader(&store, &writer, Seq::ZERO).await;
        work.push(tasks.spawn(TaskKind::Cleanup, async move {
            while reader.next().await.expect("an event").is_some() {}
        }));
        writers.push(writer);
    }
    let started = Instant::now();
    for writer in writers {
        work.push(tasks.spawn(TaskKind::Run, async move {
            for turn in 0..deltas {
                writer.emit(piece(turn)).await.expect("an open log");
                // A real delta comes from a socket; without a yield one run would fill the queue alone.
                tokio::task::yield_now().await;
            }
            finish(&writer).await;
        }));
    }
    for task in work {
        task.await.expect("a task without a panic");
    }
    let events_per_sec = (runs * deltas) as f64 / started.elapsed().as_secs_f64();

    let writer = create(&logs).await;
    let mut reader = reader(&store, &writer, Seq(1)).await;
    let mut times = Vec::with_capacity(2000);
    for turn in 0..2000 {
        let sent = Instant::now();
        writer.emit(piece(turn)).await.expect("an open log");
        reader.next().await.expect("an event");
        times.push(sent.elapsed());
    }
    finish(&writer).await;
    store.close().await;
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    LogFigures {
        events_per_sec,
        idle_median: at(0.5),
        idle_p99: at(0.99),
    }
}

fn piece(turn: usize) -> RunEvent {
    RunEvent::Assistant(Delta::new(" and some more words", turn as u32))
}

async fn reader(store: &Arc<SqliteStore>, writer: &LogWriter, after: Seq) -> LogReader {
    let (store, live) = (Arc::clone(store), Arc::clone(writer.live()));
    LogReader::open(store, writer.run_id(), after, Some(live))
        .await
        .expect("a reader")
}

async fn create(logs: &Logs) -> LogWriter {
    let facts = RunFacts {
        id: RunId::new(),
        prompt: "Say hi".to_owned(),
        model: "demo".to_owned(),
        provider: "demo".to_owned(),
        sandbox_provider: "local".to_owned(),
        background: false,
        started_at: jiff::Timestamp::UNIX_EPOCH,
    };
    let first = RunEvent::System(SystemEvent::new("init", "Agent started"));
    logs.create(facts, first).await.expect("a run")
}

async fn finish(writer: &LogWriter) {
    let problem = Problem::new(ErrorCode::MaxTurns, "all turns were used");
    let facts = RunEnd {
        state: RunState::Failed,
        completed_at: jiff::Timestamp::UNIX_EPOCH,
        error: Some((problem.code, problem.message.clone())),
        cost_nanos: None,
        usage: None,
        num_turns: 1,
        duration_secs: 1.0,
    };
    let event = RunEvent::Error(ErrorEvent::new(&problem, Totals::default()));
    writer
        .finish(event, facts, &CancellationToken::new())
        .await
        .expect("an end");
}
