//! What handlers share.

use std::sync::Arc;

use super::answers::Answers;
use super::auth::Auth;
use super::browser::BrowserRules;
use super::extract::{Intake, WhenFull};
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
    pub(super) answers: Arc<Answers>,
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
        Self {
            auth: Arc::new(Auth::new(&server.api_keys)),
            browser: Arc::new(BrowserRules::new(
                !server.api_keys.is_empty(),
                &server.allowed_hosts,
                &server.allowed_origins,
            )),
            intake: Arc::new(Intake::new(
                limits.body_timeout,
                limits.bodies_at_once,
                WhenFull::Refuse,
            )),
            answers: Arc::new(Answers::new(limits.answers_at_once)),
            webhook_intake: Arc::new(Intake::new(
                limits.delivery_timeout,
                limits.deliveries_at_once,
                WhenFull::RefuseOldest,
            )),
            webhook_gates: Arc::default(),
            app,
        }
    }
}
