//! Why a run stops: the first reason wins, then the token fires.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::error::{ErrorCode, Problem};

/// Stops a run. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct RunControl {
    token: CancellationToken,
    reason: Arc<Mutex<Option<Stop>>>,
}

/// Why a run was stopped from outside its agent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stop {
    /// By request.
    Cancelled,
    /// Nobody read its stream for the grace period.
    ClientGone {
        /// The grace period, in seconds.
        grace_secs: u64,
    },
    /// Its time was over.
    DeadlineReached {
        /// The run's `timeout`, in seconds.
        timeout_secs: u64,
    },
    /// The server stops.
    ServerStopping,
    /// Its sandbox could not be made, or died.
    Sandbox(Problem),
}

impl RunControl {
    /// Keeps the first reason, then fires the token.
    pub(super) fn stop(&self, reason: Stop) {
        self.reason.lock().get_or_insert(reason);
        self.token.cancel();
    }

    /// Fires once the run is to stop.
    pub(super) const fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Why, if it was stopped.
    pub(super) fn reason(&self) -> Option<Stop> {
        self.reason.lock().clone()
    }
}

impl Stop {
    /// What the run's `error` event says.
    pub(super) fn problem(&self) -> Problem {
        match self {
            Self::Cancelled => {
                Problem::new(ErrorCode::Cancelled, "the run was cancelled by request")
            }
            Self::ClientGone { grace_secs } => Problem::new(
                ErrorCode::ClientGone,
                format!("the run was cancelled: nobody read its stream for {grace_secs} s"),
            )
            .hint("to let a run go on without a reader, send \"background\": true"),
            Self::DeadlineReached { timeout_secs } => Problem::new(
                ErrorCode::DeadlineExceeded,
                format!("the run did not end within its timeout of {timeout_secs} s"),
            )
            .hint("send a larger timeout (up to 3600), or a smaller task"),
            Self::ServerStopping => Problem::new(
                ErrorCode::ServerShutdown,
                "the server stopped while the run went on",
            )
            .hint("send the request again"),
            Self::Sandbox(problem) => problem.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_is_kept() {
        let control = RunControl::default();
        assert_eq!(control.reason(), None);
        control.stop(Stop::ServerStopping);
        control.clone().stop(Stop::Cancelled);
        assert!(control.token().is_cancelled());
        assert_eq!(control.reason(), Some(Stop::ServerStopping));
    }
}
