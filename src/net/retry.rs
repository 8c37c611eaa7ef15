//! When to send a request again, and when to give up: arithmetic only, no sleeping and no I/O.
//!
//! Rules RT-2 to RT-4 of the reliability sheet: a provider's own `retry-after` is a minimum; throttling
//! backs off with half of the delay fixed, so that tries aren't burnt within seconds; transport faults
//! come back quickly. Whoever sleeps also tells the client, with a warning.

use std::time::Duration;

use crate::ids::random_fraction;

/// At most this many retries of one call.
pub const MAX_RETRIES_PER_CALL: u32 = 3;
/// At most this many retries in one run.
pub const MAX_RETRIES_PER_RUN: u32 = 10;

/// What kind of fault is waited out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backoff {
    /// The service is at a limit: 1 s, doubling up to 30 s, half fixed and half random.
    Throttled,
    /// The way there failed: 250 ms, doubling up to 8 s, all random.
    Transport,
}

/// Why nothing is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GiveUp {
    /// The call has had its retries.
    #[error("it was tried again {MAX_RETRIES_PER_CALL} times")]
    CallLimit,
    /// The run has had its retries.
    #[error("the run has used all its {MAX_RETRIES_PER_RUN} retries")]
    RunLimit,
    /// The wait would pass the deadline.
    #[error("the next try would be in {} s, and the run has {} s left", wait.as_secs(), left.as_secs())]
    Deadline {
        /// How long it would be.
        wait: Duration,
        /// What the run has left.
        left: Duration,
    },
    /// A quarter of the run's time was already spent waiting, or would be.
    #[error("the next try would be in {} s, and the run may wait {} s more", wait.as_secs(), left.as_secs())]
    WaitBudget {
        /// How long it would be.
        wait: Duration,
        /// What is left of the quarter.
        left: Duration,
    },
}

/// The delay before retry `attempt` (0 for the first), with `jitter` in `0.0..1.0`.
pub fn delay(
    attempt: u32,
    backoff: Backoff,
    retry_after: Option<Duration>,
    jitter: f64,
) -> Duration {
    let jitter = jitter.clamp(0.0, 1.0);
    if let Some(least) = retry_after {
        // A huge wish stays huge: the deadline refuses it, not an overflow.
        let least = least.min(Duration::from_secs(u64::from(u32::MAX)));
        return least + least.mul_f64(0.1 * jitter);
    }
    let factor = 1_u32 << attempt.min(16);
    match backoff {
        Backoff::Throttled => {
            let full = (Duration::from_secs(1) * factor).min(Duration::from_secs(30));
            full / 2 + (full / 2).mul_f64(jitter)
        }
        Backoff::Transport => {
            let full = (Duration::from_millis(250) * factor).min(Duration::from_secs(8));
            full.mul_f64(jitter)
        }
    }
}

/// What a run may still spend on retries.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    retries_left: u32,
    wait_left: Duration,
}

impl RetryBudget {
    /// The budget of a run that has `time` in all: a quarter of it for waiting.
    pub fn new(time: Duration) -> Self {
        Self {
            retries_left: MAX_RETRIES_PER_RUN,
            wait_left: time / 4,
        }
    }

    /// Takes one retry from the budget and gives the wait before it. `attempt` counts the retries that
    /// this call has had; `remaining` is what the run has left.
    ///
    /// # Errors
    /// When a limit is reached, or the wait would be too long. Nothing is taken then.
    pub fn take(
        &mut self,
        attempt: u32,
        backoff: Backoff,
        retry_after: Option<Duration>,
        remaining: Duration,
    ) -> Result<Duration, GiveUp> {
        if attempt >= MAX_RETRIES_PER_CALL {
            return Err(GiveUp::CallLimit);
        }
        if self.retries_left == 0 {
            return Err(GiveUp::RunLimit);
        }
        let wait = delay(attempt, backoff, retry_after, random_fraction());
        if wait >= remaining {
            return Err(GiveUp::Deadline {
                wait,
                left: remaining,
            });
        }
        let Some(wait_left) = self.wait_left.checked_sub(wait) else {
            return Err(GiveUp::WaitBudget {
                wait,
                left: self.wait_left,
            });
        };
        self.wait_left = wait_left;
        self.retries_left -= 1;
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn throttling_keeps_half_of_the_delay_and_doubles_to_thirty_seconds() {
        for (attempt, full) in [(0, 1), (1, 2), (2, 4), (4, 16), (5, 30), (40, 30)] {
            let full = Duration::from_secs(full);
            assert_eq!(delay(attempt, Backoff::Throttled, None, 0.0), full / 2);
            assert_eq!(delay(attempt, Backoff::Throttled, None, 1.0), full);
        }
    }

    #[test]
    fn transport_faults_come_back_at_once_or_within_eight_seconds() {
        for (attempt, full) in [(0, 250), (1, 500), (2, 1000), (5, 8000), (40, 8000)] {
            assert_eq!(
                delay(attempt, Backoff::Transport, None, 0.0),
                Duration::ZERO
            );
            assert_eq!(
                delay(attempt, Backoff::Transport, None, 1.0),
                Duration::from_millis(full)
            );
        }
    }

    #[test]
    fn a_wish_that_passes_the_deadline_is_refused_and_named() {
        let mut budget = RetryBudget::new(HOUR);
        let wish = Duration::from_secs(400);
        let got = budget.take(0, Backoff::Throttled, Some(wish), Duration::from_mins(5));
        let told = got.unwrap_err().to_string();
        assert!(
            told.contains("in 4") && told.contains("300 s left"),
            "{told}"
        );
    }

    #[test]
    fn three_per_call_and_ten_per_run() {
        let mut budget = RetryBudget::new(HOUR);
        assert_eq!(
            budget.take(3, Backoff::Transport, None, HOUR),
            Err(GiveUp::CallLimit)
        );
        for _ in 0..10 {
            budget.take(0, Backoff::Transport, None, HOUR).unwrap();
        }
        assert_eq!(
            budget.take(0, Backoff::Transport, None, HOUR),
            Err(GiveUp::RunLimit)
        );
    }

    #[test]
    fn waiting_takes_a_quarter_of_the_time_at_most() {
        let time = Duration::from_secs(100);
        let mut budget = RetryBudget::new(time);
        let ten = Some(Duration::from_secs(10));
        budget.take(0, Backoff::Throttled, ten, time).unwrap();
        budget.take(1, Backoff::Throttled, ten, time).unwrap();
        assert!(matches!(
            budget.take(2, Backoff::Throttled, ten, time),
            Err(GiveUp::WaitBudget { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_delay_is_never_below_the_wish_nor_ten_per_cent_above(
            attempt in any::<u32>(), wish in 0_u64..4_000_000, jitter in 0.0..1.0_f64, throttled in any::<bool>()
        ) {
            let backoff = if throttled { Backoff::Throttled } else { Backoff::Transport };
            let wish = Duration::from_millis(wish);
            let got = delay(attempt, backoff, Some(wish), jitter);
            prop_assert!(got >= wish && got <= wish.mul_f64(1.1) + Duration::from_nanos(1));
            prop_assert!(delay(attempt, backoff, None, jitter) <= Duration::from_secs(30));
            prop_assert!(delay(attempt, backoff, Some(Duration::MAX), jitter) >= Duration::from_secs(4_000_000));
        }
    }
}
