//! One sandbox, through the edge: what every call to it shares, and whether it is still there.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, RequestBuilder};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use super::control::Control;
use super::errors::{Code, Edge, Fault, body, presentable, send, succeed};
use super::facts::Timing;
use crate::clock::Deadline;
use crate::net::HttpClient;
use crate::sandbox::SandboxError;
use crate::secrets::Redactor;

/// The longest answer of a unary call.
const MAX_ANSWER: usize = 1024 * 1024;
/// Questions to a sandbox that doesn't answer, before it counts as lost.
const LIFE_TRIES: u32 = 3;
/// Since this version the template's own user is the default.
const OWN_USER: (u32, u32, u32) = (0, 4, 0);

/// A sandbox's daemon.
pub(super) struct Envd {
    http: HttpClient,
    pub(super) timing: Timing,
    pub(super) redactor: Redactor,
    id: String,
    origin: String,
    token: Option<HeaderValue>,
    pub(super) version: (u32, u32, u32),
    /// Why it is gone, once that is known.
    lost: watch::Sender<Option<String>>,
}

/// Whether a sandbox is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Alive,
    Gone,
    /// Nobody knows; why.
    Unknown(String),
}

impl Envd {
    pub(super) fn new(
        control: &Arc<Control>,
        id: String,
        origin: String,
        token: Option<HeaderValue>,
        version: (u32, u32, u32),
        redactor: Redactor,
    ) -> Self {
        Self {
            http: control.http.clone(),
            timing: control.timing,
            redactor,
            id,
            origin,
            token,
            version,
            lost: watch::Sender::new(None),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The base of all its URLs.
    #[cfg(test)]
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// The user that must be named so that files and commands have the same owner; mostly none.
    pub(super) fn user(&self) -> Option<&'static str> {
        (self.version < OWN_USER).then_some("user")
    }

    /// A request to the daemon. `path` starts with a slash and is encoded already.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.origin))
            .header("E2b-Sandbox-Id", &self.id)
            .header("E2b-Sandbox-Port", "49983")
            .header(ACCEPT_ENCODING, "identity");
        if let Some(token) = &self.token {
            request = request.header("X-Access-Token", token.clone());
        }
        if self.user().is_some() {
            // `user:` in base64: a name, not a secret.
            request = request.header(AUTHORIZATION, "Basic dXNlcjo=");
        }
        request
    }

    /// A unary call.
    pub(super) async fn unary<T: DeserializeOwned>(
        &self,
        method: &str,
        message: &Value,
        until: Deadline,
    ) -> Result<T, Fault> {
        let request = self
            .request(Method::POST, &format!("/{method}"))
            .header("Connect-Protocol-Version", "1")
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .body(message.to_string());
        let response = succeed(request, until, &self.redactor).await?;
        let bytes = body(response, MAX_ANSWER, until).await?;
        serde_json::from_slice(&bytes).map_err(|error| Fault::Protocol(error.to_string()))
    }

    /// An error if the sandbox is known to be gone.
    pub(super) fn ensure_here(&self) -> Result<(), SandboxError> {
        match &*self.lost.borrow() {
            Some(why) => Err(SandboxError::Gone(why.clone())),
            None => Ok(()),
        }
    }

    /// Notes that the sandbox is gone. The first reason stays.
    pub(super) fn lose(&self, why: &str) -> SandboxError {
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            if first {
                *lost = Some(why.to_owned());
            }
            first
        });
        let known = self.lost.borrow().clone();
        SandboxError::Gone(known.unwrap_or_else(|| why.to_owned()))
    }

    /// Returns once any call has found out that the sandbox is gone.
    pub(super) async fn until_lost(&self) -> SandboxError {
        let mut lost = self.lost.subscribe();
        // The sender is a field of `self`, so this ends with a reason only.
        let why = lost.wait_for(Option::is_some).await;
        let why = why.ok().and_then(|why| why.clone());
        SandboxError::Gone(why.unwrap_or_default())
    }

    /// `work`, given up as soon as the sandbox is known to be gone.
    pub(super) async fn while_here<T>(
        &self,
        work: impl Future<Output = Result<T, SandboxError>>,
    ) -> Result<T, SandboxError> {
        self.ensure_here()?;
        // What was finished counts; unfinished work has lost its meaning.
        tokio::select! {
            biased;
            done = work => done,
            gone = self.until_lost() => Err(gone),
        }
    }

    /// Notes that the edge no longer knows it.
    pub(super) fn vanished(&self) -> SandboxError {
        self.lose("E2B no longer runs it: it was killed or paused, or its time was over")
    }

    /// Asks once, and for a short time.
    pub(super) async fn life(&self) -> Life {
        let until = Deadline::after(self.timing.health);
        let request = self
            .request(Method::GET, "/health")
            .header(ACCEPT, "application/json");
        let response = match send(request, until).await {
            Ok(response) if response.status().is_success() => return Life::Alive,
            Ok(response) => response,
            Err(fault) => return Life::Unknown(fault.cause()),
        };
        let answer = super::errors::answer(response, until, &self.redactor).await;
        match answer.edge() {
            Some(Edge::Gone) => Life::Gone,
            _ => Life::Unknown(Fault::Refused(answer).cause()),
        }
    }

    /// Finds out whether the sandbox is alive, for at most a few times [`Timing::health`].
    ///
    /// # Errors
    /// `Gone`, also when it can't be reached at all.
    pub(super) async fn ensure_alive(&self) -> Result<(), SandboxError> {
        let mut tries = 0;
        loop {
            self.ensure_here()?;
            let why = match self.life().await {
                Life::Alive => return Ok(()),
                Life::Gone => return Err(self.vanished()),
                Life::Unknown(why) => why,
            };
            tries += 1;
            if tries >= LIFE_TRIES {
                return Err(self.lose(&format!("it can't be reached ({why})")));
            }
            tokio::time::sleep(self.timing.pause(tries + 2, None)).await;
        }
    }

    /// Returns once the sandbox is known to be gone: at once when any call finds out, else by a question
    /// to the edge every [`Timing::watch`]. Asked twice before it is believed, since nothing else has
    /// failed yet. Costs nothing while nobody awaits it.
    pub(super) async fn gone(&self) -> SandboxError {
        let mut doubted = false;
        loop {
            let pause = if doubted {
                self.timing.watch.min(Duration::from_secs(1))
            } else {
                self.timing.watch
            };
            let looked = async {
                tokio::time::sleep(pause).await;
                self.life().await
            };
            // Neither branch loses anything: the reason is kept.
            let life = tokio::select! {
                biased;
                gone = self.until_lost() => return gone,
                life = looked => life,
            };
            match life {
                Life::Gone if doubted => return self.vanished(),
                Life::Gone => doubted = true,
                Life::Alive | Life::Unknown(_) => doubted = false,
            }
        }
    }

    /// The error for a call that failed with something that isn't the call's own matter; `doing` fits
    /// after "while". Asks whether the sandbox is alive where the fault leaves that open.
    pub(super) async fn explain(&self, fault: Fault, doing: &str) -> SandboxError {
        match &fault {
            Fault::Refused(answer) => match answer.edge() {
                Some(Edge::Gone) => return self.vanished(),
                Some(Edge::PortClosed) => {
                    return self.lose("it runs, but no longer answers");
                }
                Some(Edge::Transitioning) => {
                    return SandboxError::Backend(format!(
                        "the sandbox kept changing its state while {doing}"
                    ));
                }
                Some(Edge::Crowded) => {
                    return SandboxError::RateLimited {
                        message: format!("E2B throttled us while {doing}: {}", answer.message),
                        retry_after: answer.retry_after,
                        at_capacity: false,
                    };
                }
                None => match answer.rpc() {
                    Code::Unauthenticated => return refused(&answer.message, doing),
                    Code::Unavailable | Code::Canceled => {}
                    Code::DeadlineExceeded => {
                        return SandboxError::Timeout(format!(
                            "the sandbox did not answer in time while {doing}"
                        ));
                    }
                    _ => {
                        return SandboxError::Backend(format!(
                            "the sandbox failed while {doing}: {}",
                            fault.cause()
                        ));
                    }
                },
            },
            Fault::Protocol(cause) => {
                return SandboxError::Backend(format!(
                    "the sandbox's answer could not be understood while {doing}: {}",
                    presentable(cause, &self.redactor)
                ));
            }
            Fault::Unsent(_) | Fault::Lost(_) | Fault::Late => {}
        }
        if let Err(gone) = self.ensure_alive().await {
            return gone;
        }
        match fault {
            Fault::Late => {
                SandboxError::Timeout(format!("the sandbox did not answer in time while {doing}"))
            }
            other => SandboxError::Backend(format!(
                "the connection to the sandbox failed while {doing} ({})",
                other.cause()
            )),
        }
    }
}

/// The token or the user is wrong: no call to this sandbox can succeed.
pub(super) fn refused(message: &str, doing: &str) -> SandboxError {
    SandboxError::Auth {
        message: format!(
            "the sandbox refused its own access token or user while {doing} ({message})"
        ),
        hint: "send the request again; if it happens again, check the template's default user"
            .to_owned(),
    }
}
