//! How long a sandbox is asked to live: longer than its run, and not much longer.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Deadline;
use crate::sandbox::{Sandbox, SandboxError};

/// Longer than the run: what the backend is asked to keep a sandbox for.
const MARGIN: Duration = Duration::from_mins(2);
/// The longest lifetime asked for at once.
const LONGEST: Duration = Duration::from_hours(1);
/// Between tries to extend a life.
const LEAST_PAUSE: Duration = Duration::from_secs(30);

/// What to ask for, for a run that ends at `deadline`.
pub(super) fn lifetime(deadline: Deadline) -> Duration {
    (deadline.remaining() + MARGIN).min(LONGEST)
}

/// Extends the life of `sandbox`, which ends at `end`, where the run's deadline needs that: each time when
/// half of it is over. A failure is tried again while there is time. Never returns; costs nothing where
/// nothing is to be done.
pub(super) async fn extend(
    sandbox: &dyn Sandbox,
    mut end: Instant,
    deadline: Deadline,
) -> Infallible {
    let needed = deadline.instant() + MARGIN;
    let mut told = false;
    // A second more or less comes from rounding.
    while end + Duration::from_secs(1) < needed {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        tokio::time::sleep((left / 2).max(LEAST_PAUSE)).await;
        let asked = Instant::now();
        let wanted = lifetime(deadline);
        match sandbox.extend(wanted).await {
            Ok(()) => {
                end = asked + wanted;
                tracing::debug!(sandbox.id = sandbox.id(), "extended the sandbox's life");
            }
            // Whoever watches the sandbox learns it by himself.
            Err(SandboxError::Gone(_)) => break,
            Err(error) if told => {
                tracing::debug!(sandbox.id = sandbox.id(), %error, "failed to extend the sandbox's life");
            }
            Err(error) => {
                told = true;
                tracing::warn!(sandbox.id = sandbox.id(), %error, "failed to extend the sandbox's life; the run may lose it before its deadline");
            }
        }
    }
    std::future::pending().await
}

#[cfg(test)]
#[path = "lifetime_tests.rs"]
mod tests;
