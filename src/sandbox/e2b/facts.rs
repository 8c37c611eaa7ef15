//! Names and times of E2B.

use std::time::Duration;

/// The variable with the key.
pub(super) const KEY_VAR: &str = "E2B_API_KEY";
/// The domain below which API and sandboxes lie (a name, not a URL).
pub const DOMAIN_VAR: &str = "E2B_DOMAIN";
/// The API's base URL; wins over the domain.
pub const API_URL_VAR: &str = "E2B_API_URL";
/// One origin for all sandboxes, told apart by headers.
pub const SANDBOX_URL_VAR: &str = "E2B_SANDBOX_URL";

/// The directory that commands start in.
pub(super) const WORKING_DIR: &str = "/home/user";
/// The stock template: all that a run needs is a POSIX shell.
pub(super) const DEFAULT_TEMPLATE: &str = "base";

/// How long each thing may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Creating a sandbox, with all retries.
    pub create: Duration,
    /// One create request.
    pub create_try: Duration,
    /// One request to the control plane.
    pub call: Duration,
    /// Reading or writing a file, with all retries.
    pub file: Duration,
    /// From asking for a command to its first event.
    pub start: Duration,
    /// Silence on a command's stream, keepalives included, before its sandbox is looked at.
    pub idle: Duration,
    /// One question whether a sandbox is alive.
    pub health: Duration,
    /// Between such questions while nothing else is asked of it.
    pub watch: Duration,
    /// How long a sandbox that runs but doesn't answer is asked again.
    pub unreachable: Duration,
    /// The unit of the pauses before retries, which double.
    pub pause: Duration,
}

impl Default for Timing {
    /// The limits of `reliability-security` §5 and `e2b` §10.
    fn default() -> Self {
        Self {
            create: Duration::from_mins(1),
            create_try: Duration::from_secs(30),
            call: Duration::from_secs(10),
            file: Duration::from_secs(30),
            start: Duration::from_secs(30),
            idle: Duration::from_secs(45),
            health: Duration::from_secs(5),
            watch: Duration::from_secs(10),
            unreachable: Duration::from_secs(10),
            pause: Duration::from_millis(100),
        }
    }
}

impl Timing {
    /// The pause before retry `tries` (from 0): what the other side asks for, else a doubling one of at
    /// most 10 s; always with jitter that keeps many runs apart.
    pub(super) fn pause(&self, tries: u32, asked: Option<Duration>) -> Duration {
        /// A longer wish is cut: callers compare the pause with their deadline anyway.
        const LONGEST_WISH: Duration = Duration::from_hours(1);
        if let Some(asked) = asked {
            return asked
                .min(LONGEST_WISH)
                .mul_f64(1.0 + crate::ids::random_fraction() / 10.0);
        }
        let doubled = self.pause.saturating_mul(1 << tries.min(10));
        doubled
            .min(Duration::from_secs(10))
            .mul_f64(0.5 + crate::ids::random_fraction() / 2.0)
    }
}
