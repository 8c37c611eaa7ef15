//! Limits that no setting changes, but tests do.

use std::time::Duration;

/// Limits of connections; the defaults are the sheet's.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; further ones get 503.
    pub max_connections: usize,
    /// From the first byte of a request's head to its last.
    pub head_timeout: Duration,
    /// How long a connection may wait between requests.
    pub idle_timeout: Duration,
    /// How long a peer may take for as many bytes as are kept of a response, or all that waits for it.
    pub write_stall: Duration,
    /// How long a closed connection's last bytes are still taken.
    pub linger: Duration,
    /// Header lines in a head.
    pub max_headers: usize,
    /// Bytes in a head.
    pub max_head_bytes: usize,
    /// What is kept in memory of a response that a peer does not read; a single larger event is kept
    /// whole.
    pub buffer: usize,
    /// The kernel's buffer of what a peer has not read.
    pub send_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_stall: Duration::from_mins(1),
            linger: Duration::from_secs(1),
            max_headers: 64,
            max_head_bytes: 16 << 10,
            buffer: 32 << 10,
            send_buffer: 256 << 10,
        }
    }
}

/// Open files of the process itself: store, log, listener, connections that are being refused.
const OWN_DESCRIPTORS: usize = 160;
/// Open files of one run: its connection to the LLM service, its sandbox, and the pipes of commands.
const DESCRIPTORS_OF_A_RUN: usize = 16;

impl Limits {
    /// As many connections as `descriptors` open files leave room for beside `runs` runs at once: connections that
    /// are too many are refused before a run lacks what it needs. At least a quarter is for connections.
    pub fn fitting(descriptors: u64, runs: usize) -> Self {
        let usual = Self::default();
        let all = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let kept = OWN_DESCRIPTORS.saturating_add(runs.saturating_mul(DESCRIPTORS_OF_A_RUN));
        let room = all.saturating_sub(kept).max(all / 4).max(1);
        Self {
            max_connections: usual.max_connections.min(room),
            ..usual
        }
    }
}

/// Limits of requests.
#[derive(Clone, Copy, Debug)]
pub struct ApiLimits {
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Bodies in memory at once, in bytes together.
    pub bodies_at_once: usize,
    /// Answers of JSON that clients have not read yet, in bytes together.
    pub answers_at_once: usize,
    /// How long a delivery to the webhook may take: its sender is known only once it was read.
    pub delivery_timeout: Duration,
    /// Deliveries in memory at once, in bytes together.
    pub deliveries_at_once: usize,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            body_timeout: Duration::from_secs(30),
            bodies_at_once: 256 << 20,
            answers_at_once: 64 << 20,
            delivery_timeout: Duration::from_secs(3),
            deliveries_at_once: 4 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_the_runs() {
        for (descriptors, runs, connections) in [
            (1 << 16, 50, 10_000),
            (1 << 15, 4_000, 8_192),
            (4096, 50, 3136),
            (1024, 50, 256),
            (256, 50, 64),
            (0, 50, 1),
            (u64::MAX, usize::MAX, 10_000),
        ] {
            let fitting = Limits::fitting(descriptors, runs).max_connections;
            assert_eq!(fitting, connections, "{descriptors} {runs}");
        }
    }
}
