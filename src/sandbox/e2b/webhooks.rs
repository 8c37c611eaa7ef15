//! Registrations of webhooks at E2B (E2B documentation, lifecycle events: webhooks).

use std::fmt;

use reqwest::{Method, RequestBuilder};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::backend::Settings;
use super::control::{Control, is_id};
use super::errors::Fault;
use super::facts::Timing;
use crate::clock::Deadline;
use crate::sandbox::{BackendConfig, SandboxError};
use crate::secrets::{Redactor, Secret};

/// What we want to be told. Creations are our own and no news.
const EVENTS: [&str; 5] = [
    "sandbox.lifecycle.killed",
    "sandbox.lifecycle.paused",
    "sandbox.lifecycle.resumed",
    "sandbox.lifecycle.updated",
    "sandbox.lifecycle.checkpointed",
];
const NAME: &str = "sandcaster";
const PATH: &str = "/events/webhooks";
const TRIES: u32 = 3;

/// A webhook as E2B describes it; it never gives the secret back.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Webhook {
    /// E2B's id for it.
    pub id: String,
    /// What it was called.
    #[serde(default)]
    pub name: String,
    /// Where deliveries go.
    pub url: String,
    /// Whether any are sent.
    #[serde(default)]
    pub enabled: bool,
    /// Types of events that are sent.
    #[serde(default)]
    pub events: Vec<String>,
}

/// What became of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// There was none for the URL.
    New(Webhook),
    /// There was one for the URL; it has our events and secret now.
    Updated(Webhook),
}

/// E2B's registrations of webhooks.
pub struct Webhooks {
    control: Control,
    secret: Option<Secret>,
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks").finish_non_exhaustive()
    }
}

impl Webhooks {
    /// The registrations of the account that the key belongs to. `secret` is what deliveries are to be signed
    /// with.
    ///
    /// # Errors
    /// `Auth` or `HostCannot` when the settings can't be used.
    pub fn new(config: &BackendConfig, secret: Option<Secret>) -> Result<Self, SandboxError> {
        let settings = Settings::read(config, Timing::default())?;
        let known = Redactor::new(secret.iter().chain([&settings.key]));
        Ok(Self {
            control: Control {
                http: config.http.clone(),
                base: settings.control.base.clone(),
                key: settings.control.key.clone(),
                redactor: known,
                timing: settings.control.timing,
            },
            secret,
        })
    }

    /// All of the account.
    ///
    /// # Errors
    /// When E2B can't be asked or refuses.
    pub async fn list(&self) -> Result<Vec<Webhook>, SandboxError> {
        self.call("listing webhooks", TRIES, || {
            self.control.request(Method::GET, PATH)
        })
        .await
    }

    /// Has E2B send its events to `url`, signed with the secret. One that has this URL already is changed, so
    /// that this can be done again at any time.
    ///
    /// # Errors
    /// When there is no secret, or E2B can't be asked or refuses.
    pub async fn register(&self, url: &str) -> Result<Registered, SandboxError> {
        let Some(secret) = &self.secret else {
            return Err(SandboxError::HostCannot {
                message: "there is no secret to sign deliveries with".to_owned(),
                hint: "set SANDCASTER_WEBHOOK_SECRET, here and where the server runs".to_owned(),
            });
        };
        let body = json!({
            "name": NAME, "url": url, "enabled": true, "events": EVENTS,
            "signatureSecret": secret.expose(),
        });
        let known = self.list().await?;
        if let Some(known) = known.into_iter().find(|webhook| webhook.url == url) {
            let path = webhook_path(&known.id)?;
            let updated = self.call("changing a webhook", TRIES, || {
                self.control.request(Method::PATCH, &path).json(&body)
            });
            return updated.await.map(Registered::Updated);
        }
        // Once only: a second one would deliver everything twice.
        let made = self.call("registering a webhook", 1, || {
            self.control.request(Method::POST, PATH).json(&body)
        });
        made.await.map(Registered::New)
    }

    /// Deletes one; false if there was none with that id.
    ///
    /// # Errors
    /// When E2B can't be asked or refuses.
    pub async fn delete(&self, id: &str) -> Result<bool, SandboxError> {
        let path = webhook_path(id)?;
        let request = || self.control.request(Method::DELETE, &path);
        match self.send(TRIES, request).await {
            Ok(_) => Ok(true),
            Err(Fault::Refused(answer)) if answer.status == 404 => Ok(false),
            Err(fault) => Err(fault.control_error("deleting a webhook")),
        }
    }

    async fn send(
        &self,
        tries: u32,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<bytes::Bytes, Fault> {
        let until = Deadline::after(self.control.timing.call.saturating_mul(3));
        let answered = self.control.repeat(tries, until, request, Fault::may_pass);
        answered.await.map(|(_, body)| body)
    }

    async fn call<T: for<'a> Deserialize<'a>>(
        &self,
        doing: &str,
        tries: u32,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T, SandboxError> {
        let read = async { self.control.read(&self.send(tries, request).await?) };
        read.await
            .map_err(|fault: Fault| fault.control_error(doing))
    }
}

fn webhook_path(id: &str) -> Result<String, SandboxError> {
    if is_id(id) {
        return Ok(format!("{PATH}/{id}"));
    }
    Err(SandboxError::Backend(
        "this is not the id of a webhook at E2B".to_owned(),
    ))
}
