//! Work that would hold up the runtime's threads.
//!
//! Runs and tools have places of their own, at least two each: in common places a run's beginning would queue behind
//! whole works of tools, and one place would be held up by one long work for all others. On few cores these are more
//! threads than cores, which costs less than a queue: the kernel gives each its turn within milliseconds, and a thread
//! of the runtime, which mostly sleeps, goes first when it wakes.

use std::num::NonZero;
use std::sync::{Arc, LazyLock};
use std::thread::available_parallelism;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio::task::block_in_place;

/// For what the runs themselves wait for: their beginning, answers of models, their files.
static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(fresh);
/// For the work of tools, which runs can make long and much of: the others' beginnings don't wait for it.
static TOOLS: LazyLock<Arc<Semaphore>> = LazyLock::new(fresh);

/// What has more bytes is neither written nor read on the runtime's threads.
const LARGE: usize = 1 << 20;

fn fresh() -> Arc<Semaphore> {
    let cores = available_parallelism().map_or(1, NonZero::get);
    Arc::new(Semaphore::new(places(cores)))
}

/// One core is left to those who only wait, health checks and streams, where one is left for two others: a single
/// place could be held up by one run for all.
fn places(cores: usize) -> usize {
    (cores - 1).max(2)
}

/// Does `work` where it holds nobody up, and gives what came of it: `None` if the runtime is ending. Waits its turn
/// while as many are at work as there are cores less one, but at least two; `work` that began goes on when nobody
/// waits for it any more. A panic goes on here.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    apart_in(PLACES.clone(), work).await
}

/// [`apart`] for the work of a tool, which waits only for other tools'.
pub(crate) async fn apart_for_tools<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    apart_in(TOOLS.clone(), work).await
}

async fn apart_in<T: Send + 'static>(
    places: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let place = places.acquire_owned().await.ok()?;
    let placed = move || {
        let done = work();
        drop(place);
        done
    };
    match tokio::task::spawn_blocking(placed).await {
        Ok(done) => Some(done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}

/// Does `work`, which is long where there are many `bytes`: other tasks of this thread go on elsewhere meanwhile.
pub(crate) fn aside<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let many_threads = || {
        Handle::try_current()
            .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread)
    };
    if bytes > LARGE && many_threads() {
        block_in_place(work)
    } else {
        work()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use futures::FutureExt as _;
    use parking_lot::Mutex;

    use super::*;

    #[tokio::test]
    async fn work_is_done_on_another_thread_and_its_panic_goes_on() {
        let here = std::thread::current().id();
        let there = apart(|| std::thread::current().id()).await;
        assert!(there.is_some_and(|there| there != here));
        for _ in 0..100 {
            let end = AssertUnwindSafe(apart(|| assert_eq!(1, 2)))
                .catch_unwind()
                .await;
            assert!(end.is_err(), "and gives its place back");
        }
    }

    #[test]
    fn one_core_is_left_where_there_are_others_for_two() {
        assert_eq!([1, 2, 3, 4, 16].map(places), [2, 2, 2, 3, 15]);
    }

    #[tokio::test]
    async fn what_a_run_waits_for_does_not_wait_for_tools() {
        let all = places(available_parallelism().map_or(1, NonZero::get));
        let held = TOOLS.acquire_many(all.try_into().unwrap()).await.unwrap();
        let mut tool = Box::pin(apart_for_tools(|| 1));
        assert!(futures::poll!(&mut tool).is_pending());
        let run = tokio::time::timeout(Duration::from_secs(30), apart(|| 2)).await;
        assert_eq!(run.unwrap(), Some(2));
        drop(held);
        assert_eq!(tool.await, Some(1));
    }

    #[tokio::test]
    async fn no_more_are_at_work_than_there_are_places() {
        let places = Arc::new(Semaphore::new(2));
        let at_work = Arc::new(AtomicUsize::new(0));
        let (begun, begins) = mpsc::channel();
        let (go, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let work = |_| {
            let (begun, held, at_work) = (begun.clone(), held.clone(), at_work.clone());
            apart_in(places.clone(), move || {
                let others = at_work.fetch_add(1, Ordering::SeqCst);
                begun.send(()).unwrap();
                held.lock().recv().ok();
                at_work.fetch_sub(1, Ordering::SeqCst);
                others + 1
            })
        };
        let mut all = futures::future::join_all((0..5).map(work));
        assert!(futures::poll!(&mut all).is_pending());
        begins.recv().unwrap();
        begins.recv().unwrap();
        assert_eq!(places.available_permits(), 0, "while both are at work");
        drop(go);
        let at_once: Vec<usize> = all.await.into_iter().flatten().collect();
        assert!(
            at_once.len() == 5 && at_once.iter().all(|n| *n <= 2),
            "{at_once:?}"
        );
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_keeps_its_place_until_it_is_done() {
        let places = Arc::new(Semaphore::new(1));
        let (go, held) = mpsc::channel::<()>();
        let begun = Arc::new(tokio::sync::Notify::new());
        let work = {
            let begun = begun.clone();
            move || {
                begun.notify_one();
                held.recv().ok()
            }
        };
        let mut waiting = Box::pin(apart_in(places.clone(), work));
        assert!(futures::poll!(&mut waiting).is_pending());
        begun.notified().await;
        drop(waiting);
        assert_eq!(places.available_permits(), 0);
        drop(go);
        assert!(places.acquire().await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_long_is_done_in_place_while_other_tasks_go_on() {
        let (told, heard) = std::sync::mpsc::channel();
        let mut other = tokio::task::JoinSet::new();
        let done = aside(LARGE + 1, || {
            // On the only thread of the runtime this would wait for ever.
            other.spawn(async move { told.send(()) });
            heard.recv_timeout(Duration::from_secs(30))
        });
        done.unwrap();
    }
}
