//! Work that would hold up the runtime's threads.

use std::num::NonZero;
use std::sync::{Arc, LazyLock};
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

/// One core is left to those who only wait: health checks, streams, other runs. On one core there is none to leave.
static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    Arc::new(Semaphore::new(places(
        available_parallelism().map_or(1, NonZero::get),
    )))
});

fn places(cores: usize) -> usize {
    (cores - 1).max(1)
}

/// Does `work` where it holds nobody up, and gives what came of it: `None` if the runtime is ending. Waits its turn
/// while as many are at work as there are cores less one; `work` that began goes on when nobody waits for it any
/// more. A panic goes on here.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    apart_in(PLACES.clone(), work).await
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

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures::FutureExt as _;

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
    fn one_core_is_left_where_there_is_another() {
        assert_eq!([1, 2, 3, 16].map(places), [1, 1, 2, 15]);
    }

    #[tokio::test]
    async fn no_more_are_at_work_than_there_are_places() {
        static AT_WORK: AtomicUsize = AtomicUsize::new(0);
        let most = places(available_parallelism().map_or(1, NonZero::get));
        let work = || {
            let others = AT_WORK.fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
            AT_WORK.fetch_sub(1, Ordering::SeqCst);
            others + 1
        };
        let all = futures::future::join_all((0..500).map(|_| apart(work))).await;
        assert!(all.into_iter().flatten().all(|at_once| at_once <= most));
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
}
