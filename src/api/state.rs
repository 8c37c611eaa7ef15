//! What handlers share.

use std::sync::Arc;

use super::auth::Auth;
use super::browser::BrowserRules;
use super::extract::Intake;
use super::gate::Gate;
use super::limits::ApiLimits;
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
