//! A run's log: what the writer emits is what every reader gets, whenever and however fast it reads.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sandcaster::error::{ErrorCode, Problem};
use sandcaster::events::{Delta, ErrorEvent, EventSink, LogFailed, RunEvent, StoredEvent, Totals};
use sandcaster::ids::{RunId, Seq};
use sandcaster::runs::{CursorError, Live, LogLimits, LogReader, LogWriter, Logs, TaskKind, Tasks};
use sandcaster::store::{RunEnd, RunState, RunStore, StoreError};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::faulty_store::FaultyStore;
use crate::support::records::{facts, init};

const PATIENCE: Duration = Duration::from_mins(1);

struct Fixture {
    logs: Logs,
    store: Arc<FaultyStore>,
    tasks: Tasks,
    _dir: TempDir,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FaultyStore::over(dir.path()));
    Fixture {
        logs: Logs::new(Arc::clone(&store) as _),
        store,
        tasks: Tasks::new(),
        _dir: dir,
    }
}

impl Fixture {
    async fn run(&self) -> LogWriter {
        let facts = facts(jiff::Timestamp::UNIX_EPOCH);
        self.logs.create(facts, init()).await.unwrap()
    }

    async fn open(
        &self,
        run: &RunId,
        after: Seq,
        live: Option<&Arc<Live>>,
    ) -> Result<LogReader, CursorError> {
        let store = Arc::clone(&self.store) as Arc<dyn RunStore>;
        LogReader::open(store, run, after, live.cloned()).await
    }

    /// As a reader in the writer's process has it.
    async fn reader(&self, writer: &LogWriter, after: u64) -> LogReader {
        self.open(writer.run_id(), Seq(after), Some(writer.live()))
            .await
            .unwrap()
    }

    /// The log as the store has it.
    async fn stored(&self, run: &RunId) -> Vec<StoredEvent> {
        let mut all: Vec<StoredEvent> = Vec::new();
        loop {
            let after = all.last().map_or(Seq::ZERO, |event| event.seq);
            let page = self.store.read(run, after, 500).await.unwrap();
            if page.is_empty() {
                return all;
            }
            all.extend(page);
        }
    }
}

fn delta(text: &str) -> RunEvent {
    RunEvent::Assistant(Delta::new(text, 1))
}

fn end() -> (RunEvent, RunEnd) {
    let problem = Problem::new(ErrorCode::MaxTurns, "all turns were used");
    let event = RunEvent::Error(ErrorEvent::new(&problem, Totals::default()));
    let facts = RunEnd {
        state: RunState::Failed,
        completed_at: jiff::Timestamp::UNIX_EPOCH,
        error: Some((problem.code, problem.message)),
        cost_nanos: None,
        usage: None,
        num_turns: 1,
        duration_secs: 1.0,
    };
    (event, facts)
}

async fn finish(writer: &LogWriter) -> Result<Seq, StoreError> {
    let (event, facts) = end();
    writer.finish(event, facts, &CancellationToken::new()).await
}

async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it hung")
}

async fn read_to_end(mut reader: LogReader) -> Vec<StoredEvent> {
    let mut all = Vec::new();
    while let Some(event) = bounded(reader.next()).await.unwrap() {
        all.push((*event).clone());
    }
    assert_eq!(bounded(reader.next()).await.unwrap(), None);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reader_of_200_live_runs_gets_its_log_byte_for_byte() {
    let fixture = Arc::new(fixture());
    let mut readers = Vec::new();
    let mut writers = Vec::new();
    for _ in 0..200 {
        let writer = fixture.run().await;
        for after in [0, 1] {
            let reader = fixture.reader(&writer, after as u64).await;
            let run = writer.run_id().clone();
            let read = fixture.tasks.spawn(TaskKind::Cleanup, read_to_end(reader));
            readers.push((run, after, read));
        }
        writers.push(fixture.tasks.spawn(TaskKind::Run, async move {
            for i in 0..100 {
                writer.emit(delta(&format!("piece {i} "))).await.unwrap();
                if i % 10 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            finish(&writer).await.unwrap();
        }));
    }
    for writer in writers {
        bounded(writer).await.unwrap().unwrap();
    }
    for (run, after, read) in readers {
        let read = bounded(read).await.unwrap().unwrap();
        let stored = fixture.stored(&run).await;
        assert_eq!(stored.len(), 102);
        assert_eq!(stored.iter().filter(|e| e.kind.terminal()).count(), 1);
        assert_eq!(read, stored[after..]);
    }
}

#[tokio::test]
async fn an_event_is_read_only_after_it_is_stored() {
    let fixture = fixture();
    let writer = fixture.run().await;
    let mut reader = fixture.reader(&writer, 1).await;
    for i in 0..200 {
        let seq = writer.emit(delta("x")).await.unwrap();
        let event = bounded(reader.next()).await.unwrap().unwrap();
        assert_eq!(event.seq, seq);
        let stored = fixture.store.read(writer.run_id(), Seq(seq.0 - 1), 1).await;
        assert_eq!(stored.unwrap(), [(*event).clone()], "at {i}");
    }
}

#[tokio::test]
async fn a_waiting_read_can_be_dropped_at_any_time_without_losing_an_event() {
    let fixture = fixture();
    let writer = fixture.run().await;
    let mut reader = fixture.reader(&writer, 0).await;
    let mut read = Vec::new();
    let write = async {
        for _ in 0..300 {
            writer.emit(delta("x")).await.unwrap();
            tokio::task::yield_now().await;
        }
        finish(&writer).await.unwrap();
    };
    let reading = async {
        let mut turn = 0_u32;
        loop {
            turn += 1;
            tokio::select! {
                biased;
                event = reader.next() => match event.unwrap() {
                    Some(event) => read.push(event),
                    None => break,
                },
                () = async { for _ in 0..turn % 5 { tokio::task::yield_now().await } } => {}
            }
        }
    };
    bounded(async { tokio::join!(write, reading) }).await;
    let seqs: Vec<u64> = read.iter().map(|event| event.seq.0).collect();
    assert_eq!(seqs, (1..=302).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_reader_that_falls_far_behind_gets_everything_and_holds_back_nobody() {
    let fixture = fixture();
    let writer = fixture.run().await;
    let mut slow = fixture.reader(&writer, 0).await;
    let first = bounded(slow.next()).await.unwrap().unwrap();
    assert_eq!(first.seq, Seq(1));
    writer.emit(delta("unread")).await.unwrap();
    let mut fast = fixture.reader(&writer, 1).await;
    let unread = Arc::downgrade(&bounded(fast.next()).await.unwrap().unwrap());
    assert!(unread.upgrade().is_some(), "near the head it is at hand");
    for i in 0..3000 {
        writer
            .emit(delta(&format!("{i} {}", "x".repeat(1000))))
            .await
            .unwrap();
    }
    bounded(writer.sync()).await.unwrap();
    assert_eq!(writer.head(), Seq(3002));
    assert!(unread.upgrade().is_none(), "nothing is kept for a reader");
    finish(&writer).await.unwrap();
    let rest = read_to_end(slow).await;
    assert_eq!(rest, fixture.stored(writer.run_id()).await[1..]);
}

#[tokio::test]
async fn a_run_that_has_ended_reads_the_same_and_its_end_is_known_at_once() {
    let fixture = fixture();
    let writer = fixture.run().await;
    writer.emit(delta("x")).await.unwrap();
    assert_eq!(finish(&writer).await.unwrap(), Seq(3));
    let run = writer.run_id();
    // Also between the end and the moment when the run is no longer among the live ones.
    for live in [None, Some(writer.live())] {
        let reader = async |after| fixture.open(run, Seq(after), live).await.unwrap();
        assert_eq!(read_to_end(reader(0).await).await.len(), 3);
        let mut at_end = reader(3).await;
        assert_eq!(bounded(at_end.next()).await.unwrap(), None);
        let last = bounded(reader(2).await.next()).await.unwrap();
        assert_eq!(last.unwrap().seq, Seq(3));
    }
}

#[tokio::test]
async fn cursors_past_the_head_and_unknown_runs_are_refused() {
    let fixture = fixture();
    let writer = fixture.run().await;
    for ended in [false, true] {
        let head = if ended {
            finish(&writer).await.unwrap()
        } else {
            Seq(1)
        };
        for after in [head.next(), Seq::MAX] {
            for live in [None, Some(writer.live())] {
                match fixture.open(writer.run_id(), after, live).await {
                    Err(CursorError::Ahead { head: told }) => assert_eq!(told, head),
                    other => panic!("{:?}", other.err()),
                }
            }
        }
    }
    let unknown = RunId::new();
    assert!(matches!(
        fixture.open(&unknown, Seq::ZERO, None).await,
        Err(CursorError::Store(StoreError::NotFound(id))) if id == unknown
    ));
}

#[tokio::test]
async fn emitters_side_by_side_share_one_dense_sequence() {
    let fixture = fixture();
    let writer = fixture.run().await;
    let emit = |name: &'static str| {
        let writer = &writer;
        async move {
            let mut seqs = Vec::new();
            for _ in 0..100 {
                seqs.push(writer.emit(delta(name)).await.unwrap());
                tokio::task::yield_now().await;
            }
            assert!(seqs.is_sorted());
            seqs
        }
    };
    let (a, b) = bounded(async { tokio::join!(emit("a"), emit("b")) }).await;
    finish(&writer).await.unwrap();
    let stored = fixture.stored(writer.run_id()).await;
    assert_eq!(stored.len(), 202);
    for (seqs, name) in [(a, "a"), (b, "b")] {
        for seq in seqs {
            let json = &stored[usize::try_from(seq.0).unwrap() - 1].json;
            assert!(json.contains(&format!("\"content\":\"{name}\"")), "{json}");
        }
    }
}

#[tokio::test]
async fn a_log_that_is_full_says_so_and_still_takes_its_end() {
    assert_eq!(
        LogLimits::default(),
        LogLimits {
            events: 200_000,
            bytes: 64 << 20
        }
    );
    let mut fixture = fixture();
    for (events, bytes, fitting) in [(10, 1 << 20, 10), (1000, 9_000, 9)] {
        let limits = LogLimits { events, bytes };
        fixture.logs = Logs::with_limits(Arc::clone(&fixture.store) as _, limits);
        let writer = fixture.run().await;
        let text = "x".repeat(1000);
        let mut last = Seq(1);
        let error = loop {
            match writer.emit(delta(&text)).await {
                Ok(seq) => last = seq,
                Err(error) => break error,
            }
        };
        assert_eq!((error, last), (LogFailed::TooLarge, Seq(fitting)));
        assert_eq!(writer.emit(delta("")).await, Err(LogFailed::TooLarge));
        assert_eq!(writer.sync().await, Ok(last));
        assert_eq!(finish(&writer).await.unwrap(), last.next());
        assert_eq!(
            fixture.stored(writer.run_id()).await.len() as u64,
            fitting + 1
        );
    }
}

#[tokio::test]
async fn a_failed_store_fails_the_log_for_good_and_its_end_follows_the_last_event_stored() {
    let fixture = fixture();
    let writer = fixture.run().await;
    let mut reader = fixture.reader(&writer, 0).await;
    writer.emit(delta("stored")).await.unwrap();
    writer.sync().await.unwrap();
    fixture.store.set_down(true);
    writer.emit(delta("lost")).await.unwrap();
    let failed = writer.sync().await.unwrap_err();
    assert!(
        matches!(&failed, LogFailed::Store(why) if why.contains("disk is full")),
        "{failed}"
    );
    fixture.store.set_down(false);
    assert!(matches!(
        writer.emit(delta("late")).await,
        Err(LogFailed::Store(_))
    ));
    assert_eq!(finish(&writer).await.unwrap(), Seq(3));
    let mut read = Vec::new();
    while let Some(event) = bounded(reader.next()).await.unwrap() {
        read.push((*event).clone());
    }
    assert_eq!(read, fixture.stored(writer.run_id()).await);
    assert!(read[1].json.contains("stored") && read[2].kind.terminal());
}

#[tokio::test]
async fn an_end_is_tried_until_it_is_stored_or_given_up() {
    let fixture = fixture();
    let writer = fixture.run().await;
    fixture.store.set_down(true);
    let give_up = CancellationToken::new();
    give_up.cancel();
    let (event, facts) = end();
    assert!(matches!(
        bounded(writer.finish(event, facts, &give_up)).await,
        Err(StoreError::Failed(_))
    ));
    // Nobody was told of an end that is not stored.
    let mut reader = fixture.reader(&writer, 1).await;
    assert!(reader.next().now_or_never().is_none());
    assert!(matches!(
        writer.emit(delta("late")).await,
        Err(LogFailed::Store(_))
    ));

    let heal = async {
        tokio::time::sleep(Duration::from_millis(120)).await;
        fixture.store.set_down(false);
    };
    let (seq, ()) = bounded(async { tokio::join!(finish(&writer), heal) }).await;
    assert_eq!(seq.unwrap(), Seq(2));
    assert!(
        bounded(reader.next())
            .await
            .unwrap()
            .unwrap()
            .kind
            .terminal()
    );
    assert_eq!(bounded(reader.next()).await.unwrap(), None);
}

#[tokio::test]
async fn only_finish_ends_a_log_and_only_once() {
    let fixture = fixture();
    let writer = fixture.run().await;
    let (event, facts) = end();
    assert!(matches!(writer.emit(event).await, Err(LogFailed::Store(_))));
    assert!(matches!(
        writer
            .finish(delta("x"), facts, &CancellationToken::new())
            .await,
        Err(StoreError::Refused(_))
    ));
    writer.emit(delta("still open")).await.unwrap();
    finish(&writer).await.unwrap();
    assert!(matches!(finish(&writer).await, Err(StoreError::Refused(_))));
    assert_eq!(fixture.stored(writer.run_id()).await.len(), 3);
}

#[tokio::test]
async fn a_writer_that_goes_without_an_end_breaks_off_its_readers() {
    let fixture = fixture();
    let writer = fixture.run().await;
    let mut reader = fixture.reader(&writer, 0).await;
    writer.emit(delta("x")).await.unwrap();
    writer.sync().await.unwrap();
    drop(writer);
    for seq in [1, 2] {
        assert_eq!(bounded(reader.next()).await.unwrap().unwrap().seq, Seq(seq));
    }
    assert!(matches!(
        bounded(reader.next()).await,
        Err(StoreError::Failed(_))
    ));
}

#[tokio::test]
async fn a_run_of_another_process_is_followed_to_its_end() {
    let fixture = fixture();
    let writer = fixture.run().await;
    // Without what the writer shares with its readers: as if it were in another process.
    let reader = fixture.open(writer.run_id(), Seq::ZERO, None).await;
    let reader = reader.unwrap();
    let write = async {
        for i in 0..100 {
            writer.emit(delta(&format!("{i}"))).await.unwrap();
        }
        finish(&writer).await.unwrap();
    };
    let (read, ()) = tokio::join!(read_to_end(reader), write);
    assert_eq!(read, fixture.stored(writer.run_id()).await);
}

/// A step of a random story.
#[derive(Clone, Debug)]
enum Step {
    Emit(usize),
    Sync,
    /// Reader, and how many events it takes at most.
    Read(usize, usize),
    /// Reader leaves and comes back with its cursor.
    Resume(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop_oneof![19 => 0..300_usize, 1 => 0..80_000_usize].prop_map(Step::Emit),
        1 => Just(Step::Sync),
        2 => (0..3_usize, 1..40_usize).prop_map(|(reader, count)| Step::Read(reader, count)),
        2 => (0..3_usize).prop_map(Step::Resume),
    ];
    proptest::collection::vec(step, 0..200)
}

#[test]
fn pieces_read_and_resumed_at_random_join_to_the_log() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    // One store for all cases: each has a run of its own.
    let fixture = fixture();
    TestRunner::new(ProptestConfig::with_cases(128))
        .run(&steps(), |steps| {
            runtime.block_on(bounded(story(&fixture, steps)));
            Ok(())
        })
        .unwrap();
}

async fn story(fixture: &Fixture, steps: Vec<Step>) {
    let writer = fixture.run().await;
    let run = writer.run_id();
    let mut pieces: Vec<Vec<StoredEvent>> = vec![Vec::new(); 3];
    let mut readers = Vec::new();
    for _ in 0..3 {
        readers.push(fixture.reader(&writer, 0).await);
    }
    let cursor = |piece: &[StoredEvent]| piece.last().map_or(0, |event| event.seq.0);
    for step in steps {
        match step {
            Step::Emit(len) => {
                writer.emit(delta(&"y".repeat(len))).await.unwrap();
            }
            Step::Sync => {
                let seq = writer.sync().await.unwrap();
                assert_eq!(writer.head(), seq);
            }
            Step::Read(reader, count) => {
                for _ in 0..count {
                    if cursor(&pieces[reader]) >= writer.head().0 {
                        break;
                    }
                    let event = bounded(readers[reader].next()).await.unwrap().unwrap();
                    pieces[reader].push((*event).clone());
                }
            }
            Step::Resume(reader) => {
                readers[reader] = fixture.reader(&writer, cursor(&pieces[reader])).await;
            }
        }
    }
    finish(&writer).await.unwrap();
    let stored = fixture.stored(run).await;
    for (reader, mut piece) in readers.into_iter().zip(pieces) {
        piece.extend(read_to_end(reader).await);
        assert_eq!(piece, stored);
    }
    assert_eq!(
        stored.iter().filter(|event| event.kind.terminal()).count(),
        1
    );
}
