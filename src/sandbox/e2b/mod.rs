//! E2B: a microVM per run, over its REST API, its edge and the daemon (envd) in each sandbox.
//!
//! `control` speaks to the control plane (create, list, kill, lifetime), `create` holds what must hold
//! when an answer gets lost, `envd` is one sandbox (files, life), `process` its commands, `connect`
//! the framing of their streams, `errors` what failures mean, `webhooks` the registrations that have E2B tell us
//! of a sandbox's death.
//!
//! What must hold: the key goes to the control plane only, and neither it nor a sandbox's token into any
//! sandbox, error or log. Every wait has an end. A create whose answer was lost never leads to a second
//! sandbox for the run: it is looked for by its labels first. A command is sent again only if it surely
//! reached nobody.

mod backend;
mod connect;
mod control;
mod create;
mod envd;
mod errors;
mod files;
mod follow;
mod input;
mod process;
mod webhooks;

use std::time::Duration;

use crate::sandbox::{BackendDef, Build};
use crate::spec::Network;

pub use backend::build_with;
pub use webhooks::{Registered, Webhook, Webhooks};

/// The row of E2B in [`super::BACKENDS`].
pub const DEF: BackendDef = BackendDef {
    name: "e2b",
    key_vars: &[KEY_VAR],
    url_vars: &[API_URL_VAR, SANDBOX_URL_VAR],
    host_vars: &[DOMAIN_VAR],
    default_network: Network::Full,
    working_dir: "/home/user",
    isolates: "a microVM per run at E2B",
    build: Build::With(|config| build_with(config, Timing::default())),
};

/// The variable with the key.
const KEY_VAR: &str = "E2B_API_KEY";
/// The domain below which API and sandboxes lie (a name, not a URL).
pub const DOMAIN_VAR: &str = "E2B_DOMAIN";
/// The API's base URL; wins over the domain.
pub const API_URL_VAR: &str = "E2B_API_URL";
/// One origin for all sandboxes, told apart by headers.
pub const SANDBOX_URL_VAR: &str = "E2B_SANDBOX_URL";

/// The directory that commands start in.
const WORKING_DIR: &str = "/home/user";
/// The stock template: all that a run needs is a POSIX shell.
const DEFAULT_TEMPLATE: &str = "base";

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
    fn pause(&self, tries: u32, asked: Option<Duration>) -> Duration {
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
