//! The life of a serving process, from its first connection to its exit code.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::api::{self, ApiState, Limits, Shutdown};
use crate::app::App;
use crate::signals::Signals;

/// From the signal to the exit.
const LONGEST_STOP: Duration = Duration::from_secs(10);
/// How long runs may take to end.
const RUNS: Duration = Duration::from_secs(7);
/// How long streams may take to bring what they have to readers that are behind, from the signal.
const STREAMS: Duration = Duration::from_secs(8);
/// What streams have at least for that, once the runs are over.
const LAST_EVENTS: Duration = Duration::from_secs(1);

const NOT_SERVING: &str = "the server stopped serving by itself";
const TASK_FAILED: &str = "a task failed without which the server can't do its work";

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In order, because it was asked to.
    Stopped,
    /// At once, because it was asked twice.
    StoppedAtOnce,
    /// For want of something that it needs; in order.
    Broken(&'static str),
    /// Not in time.
    Hung,
}

/// Serves `app` until a signal or a fault, then stops: no new work, no new connections; the runs end, each with its
/// terminal event; streams bring it to their readers; what is left of them is cut; the store is closed.
pub(crate) async fn serve(
    app: &App,
    listener: TcpListener,
    limits: Limits,
    signals: &mut Signals,
) -> End {
    let shutdown = Shutdown::default();
    let state = ApiState::new(app.clone());
    let begin = || {
        app.runs.refuse_new();
        shutdown.begin.cancel();
    };
    until_end(
        api::serve(listener, state, limits, shutdown.clone()),
        app.tasks.broken().cancelled(),
        async || signals.next().await,
        begin,
        app.runs.shutdown(RUNS),
        &shutdown.cut,
        app.runs.store().close(),
    )
    .await
}

/// Serves until the first `signal` or a fault, calls `begin`, and stops.
async fn until_end(
    serving: impl Future<Output = ()>,
    broken: impl Future<Output = ()>,
    mut signal: impl AsyncFnMut(),
    begin: impl FnOnce(),
    runs: impl Future<Output = ()>,
    cut: &CancellationToken,
    close_store: impl Future<Output = ()>,
) -> End {
    let mut serving = pin!(serving);
    // Serving first: a server that has failed must not wait for a signal.
    let mut served = false;
    let end = tokio::select! {
        biased;
        () = &mut serving => {
            served = true;
            End::Broken(NOT_SERVING)
        }
        () = broken => End::Broken(TASK_FAILED),
        () = signal() => End::Stopped,
    };
    tracing::info!("stopping; a second signal ends the process at once");
    begin();
    let serving = async {
        if !served {
            serving.await;
        }
    };
    let stopping = stop(serving, runs, cut, close_store);
    // The end first: what is done needs no signal. The other branches leave work undone on purpose.
    tokio::select! {
        biased;
        () = stopping => end,
        () = signal() => End::StoppedAtOnce,
        () = sleep(LONGEST_STOP) => End::Hung,
    }
}

/// What follows once no new work is taken.
async fn stop(
    serving: impl Future<Output = ()>,
    runs: impl Future<Output = ()>,
    cut: &CancellationToken,
    close_store: impl Future<Output = ()>,
) {
    let by_then = Instant::now() + STREAMS;
    let served = CancellationToken::new();
    let serving = async {
        serving.await;
        served.cancel();
    };
    let ending = async {
        runs.await;
        let by_then = by_then.max(Instant::now() + LAST_EVENTS);
        if timeout_at(by_then, served.cancelled()).await.is_err() {
            tracing::info!("cutting the connections whose peers don't take what is left for them");
            cut.cancel();
        }
    };
    // Streams end with their runs.
    tokio::join!(serving, ending);
    // Last, for streams read from it.
    close_store.await;
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::sleep_until;

    use super::*;

    /// Stops where serving goes on until `reader` is done or cut, and gives how long it took and whether the reader
    /// got its end. The store must not be closed before.
    async fn stopped(runs: Duration, reader: Duration) -> (Duration, bool) {
        let begun = Instant::now();
        let cut = CancellationToken::new();
        let got = Arc::new(AtomicBool::new(false));
        let (over, told) = (CancellationToken::new(), Arc::clone(&got));
        let serving = async {
            tokio::select! {
                () = sleep(reader) => told.store(true, Ordering::Relaxed),
                () = cut.cancelled() => {}
            }
            over.cancel();
        };
        let close = async { assert!(over.is_cancelled(), "the store is closed under a reader") };
        stop(serving, sleep(runs), &cut, close).await;
        (begun.elapsed(), got.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn the_store_is_closed_after_the_last_reader_and_a_reader_that_does_not_read_is_cut() {
        let secs = Duration::from_secs;
        for (runs, reader, took, got) in [
            (0, 0, 0, true),
            (2, 0, 2, true),
            (0, 5, 5, true),
            (2, 7, 7, true),
            (0, 3600, 8, false),
            (7, 3600, 8, false),
            // Streams have a moment also after runs that took too long.
            (8, 3600, 9, false),
        ] {
            let case = format!("{runs} {reader}");
            assert_eq!(
                stopped(secs(runs), secs(reader)).await,
                (secs(took), got),
                "{case}"
            );
        }
        assert!(RUNS + LAST_EVENTS < LONGEST_STOP && STREAMS < LONGEST_STOP);
    }

    #[tokio::test(start_paused = true)]
    async fn runs_that_hang_are_waited_for_and_not_forgotten() {
        let cut = CancellationToken::new();
        let stopping = stop(async {}, pending(), &cut, async {});
        assert!(
            tokio::time::timeout(Duration::from_secs(100), stopping)
                .await
                .is_err()
        );
    }

    /// Serves with runs that take `runs` to end, breaks after `broken` and gets a signal at each of `signals`;
    /// all times are from the start, in seconds. Gives how it ended and when.
    async fn ended(serving: u64, broken: u64, signals: &[u64], runs: u64) -> (End, u64) {
        let begun = Instant::now();
        let at = |second| begun + Duration::from_secs(second);
        let (begin, cut) = (CancellationToken::new(), CancellationToken::new());
        let mut signals = signals;
        let end = until_end(
            async {
                tokio::select! {
                    () = begin.cancelled() => {}
                    () = sleep_until(at(serving)) => {}
                }
            },
            sleep_until(at(broken)),
            async || {
                let Some((second, later)) = signals.split_first() else {
                    return pending().await;
                };
                sleep_until(at(*second)).await;
                signals = later;
            },
            || begin.cancel(),
            async {
                assert!(
                    begin.is_cancelled(),
                    "the runs end before new ones are refused"
                );
                sleep(Duration::from_secs(runs)).await;
            },
            &cut,
            async {},
        );
        (end.await, begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn each_end_is_told_from_the_others() {
        const NEVER: u64 = 1 << 20;
        for (serving, broken, signals, runs, expected) in [
            (NEVER, NEVER, &[5][..], 3, (End::Stopped, 8)),
            (NEVER, NEVER, &[5, 6], 3, (End::StoppedAtOnce, 6)),
            (NEVER, NEVER, &[5, 8], 2, (End::Stopped, 7)),
            (NEVER, NEVER, &[5], NEVER, (End::Hung, 15)),
            (NEVER, 4, &[5], 0, (End::Broken(TASK_FAILED), 4)),
            (NEVER, 4, &[5], 3, (End::StoppedAtOnce, 5)),
            (NEVER, 4, &[], NEVER, (End::Hung, 14)),
            (3, NEVER, &[], 2, (End::Broken(NOT_SERVING), 5)),
            (3, 3, &[3], 0, (End::Broken(NOT_SERVING), 3)),
        ] {
            let case = format!("{serving} {broken} {signals:?} {runs}");
            assert_eq!(
                ended(serving, broken, signals, runs).await,
                expected,
                "{case}"
            );
        }
    }
}
