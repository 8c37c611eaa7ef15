//! Time: the wall clock behind a seam that tests can hold still, and absolute deadlines.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The wall clock. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Held(Arc<Mutex<Timestamp>>),
}

impl Clock {
    /// The system's clock.
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `at` until it is moved.
    pub fn held(at: Timestamp) -> Self {
        Self(Source::Held(Arc::new(Mutex::new(at))))
    }

    /// The time now, in UTC, between the years 1970 and 9000: a machine's clock may say anything, and what is reckoned
    /// with a time must not pass the end of what times can say.
    #[expect(clippy::disallowed_methods, reason = "this is the seam for wall time")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => within_reason(SystemTime::now()),
            Source::Held(at) => *at.lock(),
        }
    }

    /// Whether the clock says a year that all can write: the HTTP library ends each connection in others.
    pub fn is_set(&self) -> bool {
        let now = self.now();
        now > Timestamp::UNIX_EPOCH && now.as_nanosecond().unsigned_abs() < LATEST_NANOS
    }

    /// Moves a held clock forward; the system's clock is left alone.
    pub fn advance(&self, by: Duration) {
        if let Source::Held(at) = &self.0 {
            let mut at = at.lock();
            if let Ok(later) = at.checked_add(by) {
                *at = later;
            }
        }
    }
}

fn within_reason(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    let nanos = since.map_or(0, |since| since.as_nanos()).min(LATEST_NANOS);
    let nanos = i128::try_from(nanos).unwrap_or_default();
    Timestamp::from_nanosecond(nanos).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The beginning of the year 9000, in nanoseconds.
const LATEST_NANOS: u128 = 221_845_392_000 * 1_000_000_000;

/// RFC 3339 in UTC with whole seconds, as `GET /runs` shows times (`2026-03-20T14:22:10Z`).
pub fn rfc3339_seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A point in time by the monotonic clock that work must not pass. Passed down, never made afresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// `after` from now.
    pub fn after(after: Duration) -> Self {
        Self(Instant::now() + after)
    }

    /// At `instant`.
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The instant itself, for `tokio::time::timeout_at` and `sleep_until`.
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// What is left; zero once passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether nothing is left.
    pub fn passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// The earlier of this deadline and `limit` from now.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self(self.0.min(Instant::now() + limit))
    }

    /// This deadline, `earlier` sooner.
    #[must_use]
    pub fn minus(self, earlier: Duration) -> Self {
        Self(self.0.checked_sub(earlier).unwrap_or(self.0))
    }

    /// This deadline, `later` later.
    #[must_use]
    pub fn plus(self, later: Duration) -> Self {
        Self(self.0 + later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_s_clock_may_say_anything() {
        let epoch = SystemTime::UNIX_EPOCH;
        let secs = Duration::from_secs;
        for (said, told) in [
            (epoch + secs(1_800_000_000), "2027-01-15T08:00:00Z"),
            (epoch, "1970-01-01T00:00:00Z"),
            (epoch - secs(1000), "1970-01-01T00:00:00Z"),
            (epoch + secs(300_000_000_000), "9000-01-01T00:00:00Z"),
        ] {
            let at = within_reason(said);
            assert_eq!(rfc3339_seconds(at), told);
            assert_eq!(Clock::held(at).is_set(), told.starts_with("2027"), "{told}");
        }
        assert!(Clock::system().now() > Timestamp::UNIX_EPOCH);
    }
}
