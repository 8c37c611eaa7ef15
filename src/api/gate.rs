//! How many webhook deliveries are looked at.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::{ErrorCode, Problem};

const PER_SECOND: u32 = 50;

/// One for deliveries that are genuine, one for those that are not.
#[derive(Debug, Default)]
pub(super) struct WebhookGates {
    pub(super) genuine: Gate,
    pub(super) refused: Gate,
}

/// At most 50 deliveries a second.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Option<(Instant, u32)>>);

impl Gate {
    /// Counts a delivery.
    ///
    /// # Errors
    /// `TOO_MANY_REQUESTS`.
    pub(super) fn pass(&self, now: Instant) -> Result<(), Problem> {
        let mut window = self.0.lock();
        let (since, count) = match *window {
            Some((since, count)) if now.duration_since(since) < Duration::from_secs(1) => {
                (since, count)
            }
            _ => (now, 0),
        };
        *window = Some((since, count + 1));
        if count < PER_SECOND {
            return Ok(());
        }
        Err(
            Problem::new(ErrorCode::TooManyRequests, "too many deliveries at once")
                .retry_after(Duration::from_secs(1)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_fifty_deliveries_a_second_are_put_off() {
        let gate = Gate::default();
        let now = Instant::now();
        assert!((0..50).all(|_| gate.pass(now).is_ok()));
        assert_eq!(gate.pass(now).unwrap_err().code, ErrorCode::TooManyRequests);
        assert!(gate.pass(now + Duration::from_secs(1)).is_ok());
    }
}
