//! Random writes, against a model that is a few lines long.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sandcaster::events::StoredEvent;
use sandcaster::store::{Append, Flush, RunLease, RunStore, StoreError};

use super::{Heard, NewRun, PATIENCE, at, created, delta, end_event, finish, log, new_run, sqlite};

const RUNS: usize = 3;

#[derive(Clone, Debug)]
enum Write {
    Create(usize),
    /// Events from `head + ahead`; 1 is the right place.
    Append {
        run: usize,
        ahead: u64,
        count: u64,
    },
    Finish {
        run: usize,
        ahead: u64,
    },
    /// The last accepted end once more.
    FinishAgain(usize),
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let ahead = prop_oneof![6 => Just(1_u64), 1 => 0..4_u64];
    let write = prop_oneof![
        2 => (0..RUNS).prop_map(Write::Create),
        12 => (0..RUNS, ahead.clone(), 1..4_u64)
            .prop_map(|(run, ahead, count)| Write::Append { run, ahead, count }),
        1 => (0..RUNS, ahead).prop_map(|(run, ahead)| Write::Finish { run, ahead }),
        1 => (0..RUNS).prop_map(Write::FinishAgain),
    ];
    proptest::collection::vec(write, 0..80)
}

/// A run as it should be: its events, or none if it was not created.
struct Model {
    new: NewRun,
    lease: RunLease,
    events: Vec<StoredEvent>,
    ended: bool,
}

impl Model {
    fn accepts(&self, seq: u64) -> bool {
        !self.events.is_empty() && !self.ended && seq == self.events.len() as u64 + 1
    }
}

#[test]
fn random_writes_leave_what_a_model_says() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    // One store for all cases: each has runs of its own.
    let (_dir, store) = sqlite();
    TestRunner::new(ProptestConfig::with_cases(256))
        .run(&(writes(), any::<u64>()), |(writes, waits)| {
            runtime.block_on(async {
                tokio::time::timeout(PATIENCE, check(&*store, writes, waits))
                    .await
                    .unwrap();
            });
            Ok(())
        })
        .unwrap();
}

async fn check(store: &dyn RunStore, writes: Vec<Write>, waits: u64) {
    // The lease that a run will have.
    let any = created(store).await;
    let mut models: Vec<Model> = (0..RUNS)
        .map(|_| {
            let new = new_run(at(0));
            Model {
                lease: RunLease {
                    run: new.facts.id.clone(),
                    ..any.clone()
                },
                new,
                events: Vec::new(),
                ended: false,
            }
        })
        .collect();
    let mut expected: Vec<(Arc<Heard>, usize, bool)> = Vec::new();
    for (i, write) in writes.into_iter().enumerate() {
        match write {
            Write::Create(run) => {
                let model = &mut models[run];
                let result = model.new.clone().create(store).await;
                if model.events.is_empty() {
                    assert_eq!(result.unwrap(), model.lease);
                    model.events.push(model.new.first.clone());
                } else {
                    assert!(matches!(result, Err(StoreError::Refused(_))));
                }
            }
            Write::Append { run, ahead, count } => {
                let model = &mut models[run];
                let from = (model.events.len() as u64 + ahead).max(1);
                let events: Vec<_> = (from..from + count).map(|seq| delta(seq, "x")).collect();
                let good = model.accepts(from);
                if good {
                    model
                        .events
                        .extend(events.iter().map(|event| (**event).clone()));
                }
                let heard = Arc::new(Heard::default());
                expected.push((Arc::clone(&heard), events.len(), good));
                let append = Append {
                    lease: model.lease.clone(),
                    events,
                    listener: heard,
                };
                store.append(append).await.unwrap();
            }
            Write::Finish { run, ahead } => {
                let model = &mut models[run];
                let seq = (model.events.len() as u64 + ahead).max(1);
                let event = end_event(seq, &format!("end {i}"));
                let result = finish(store, &model.lease, Arc::clone(&event)).await;
                assert_eq!(result.is_ok(), model.accepts(seq), "{result:?}");
                if result.is_ok() {
                    model.events.push((*event).clone());
                    model.ended = true;
                }
            }
            Write::FinishAgain(run) => {
                let model = &models[run];
                if let (true, Some(last)) = (model.ended, model.events.last()) {
                    let again = Arc::new(last.clone());
                    finish(store, &model.lease, again).await.unwrap();
                }
            }
        }
        if waits >> (i % 64) & 1 == 1 {
            store.flush(Flush::Synced).await.unwrap();
        }
    }
    store.flush(Flush::Synced).await.unwrap();
    for (heard, count, good) in expected {
        let told = (heard.committed.lock().len(), heard.failed.lock().len());
        assert_eq!(told, if good { (count, 0) } else { (0, count) });
    }
    for model in &models {
        let id = &model.lease.run;
        let Some(record) = store.get(id).await.unwrap() else {
            assert!(model.events.is_empty());
            continue;
        };
        assert_eq!(record.last_seq.0, model.events.len() as u64);
        assert_eq!(record.state().terminal(), model.ended);
        assert_eq!(log(store, id).await, model.events);
    }
    assert!(store.healthy());
}
