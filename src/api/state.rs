//! What handlers share.

use std::sync::Arc;
use std::time::Duration;

use super::auth::Auth;
use super::browser::BrowserRules;
use super::extract::Intake;
use super::webhooks::Gate;
use crate::app::App;
use crate::clock::Clock;

/// What handlers share. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// Settings, backends and runs.
    pub app: App,
    /// Wall time, for the age of webhook deliveries.
    pub clock: Clock,
    pub(super) auth: Arc<Auth>,
    pub(super) browser: Arc<BrowserRules>,
    pub(super) intake: Arc<Intake>,
    pub(super) webhook_gate: Arc<Gate>,
}

/// Limits of requests that no setting changes, but tests do.
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

impl ApiState {
    /// The API's state over `app`.
    pub fn new(app: App, clock: Clock) -> Self {
        Self::with_limits(app, clock, ApiLimits::default())
    }

    /// As [`ApiState::new`], with other limits.
    pub fn with_limits(app: App, clock: Clock, limits: ApiLimits) -> Self {
        let server = &app.config.server;
        Self {
            auth: Arc::new(Auth::new(&server.api_keys)),
            browser: Arc::new(BrowserRules::new(
                !server.api_keys.is_empty(),
                &server.allowed_hosts,
                &server.allowed_origins,
            )),
            intake: Arc::new(Intake::new(limits)),
            webhook_gate: Arc::new(Gate::default()),
            app,
            clock,
        }
    }
}
