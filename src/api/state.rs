//! What handlers share.

use std::sync::Arc;

use super::auth::Auth;
use super::browser::BrowserRules;
use super::extract::Intake;
use super::gate::WebhookGates;
use super::limits::ApiLimits;
use crate::app::App;

/// What handlers share. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    /// Settings, backends and runs.
    pub app: App,
    pub(super) auth: Arc<Auth>,
    pub(super) browser: Arc<BrowserRules>,
    pub(super) intake: Arc<Intake>,
    pub(super) webhook_intake: Arc<Intake>,
    pub(super) webhook_gates: Arc<WebhookGates>,
}

impl ApiState {
    /// The API's state over `app`.
    pub fn new(app: App) -> Self {
        Self::with_limits(app, ApiLimits::default())
    }

    /// As [`ApiState::new`], with other limits.
    pub fn with_limits(app: App, limits: ApiLimits) -> Self {
        let server = &app.config.server;
        let intake = |at_once| Arc::new(Intake::new(limits.body_timeout, at_once));
        Self {
            auth: Arc::new(Auth::new(&server.api_keys)),
            browser: Arc::new(BrowserRules::new(
                !server.api_keys.is_empty(),
                &server.allowed_hosts,
                &server.allowed_origins,
            )),
            intake: intake(limits.bodies_at_once),
            webhook_intake: intake(limits.deliveries_at_once),
            webhook_gates: Arc::default(),
            app,
        }
    }
}
