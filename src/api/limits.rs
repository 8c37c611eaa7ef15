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
    /// How long a write may make no progress.
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

/// Limits of requests.
#[derive(Clone, Copy, Debug)]
pub struct ApiLimits {
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Bodies in memory at once, in bytes together.
    pub bodies_at_once: usize,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            body_timeout: Duration::from_secs(30),
            bodies_at_once: 256 << 20,
        }
    }
}
