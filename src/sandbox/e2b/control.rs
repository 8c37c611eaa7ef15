//! The control plane: REST with JSON bodies, the key in `X-API-Key`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Url};
use serde::{Deserialize, Serialize};

use super::errors::{Fault, body, succeed, unreadable};
use super::timing::Timing;
use crate::clock::Deadline;
use crate::net::HttpClient;
use crate::sandbox::types::{Labels, SandboxError};
use crate::secrets::Redactor;

/// The longest answer: a page of 100 sandboxes with all their metadata stays far below.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// Sandboxes on a page, the most that E2B gives.
const PAGE: usize = 100;
/// More pages than any account has sandboxes for.
const MAX_PAGES: usize = 200;
/// Tries of a call that can be repeated, the first included.
const TRIES: u32 = 4;
/// Tries of a kill, with [`Timing::call`] each.
const KILL_TRIES: u32 = 3;

pub(super) const RUN: &str = "sandcaster-run";
pub(super) const INSTANCE: &str = "sandcaster-instance";
pub(super) const ATTEMPT: &str = "sandcaster-attempt";
pub(super) const EXPIRES: &str = "sandcaster-expires";

/// The control plane, with its key.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) http: HttpClient,
    /// Without a trailing slash.
    pub(super) base: String,
    /// Marked sensitive.
    pub(super) key: HeaderValue,
    pub(super) redactor: Redactor,
    pub(super) timing: Timing,
}

/// The body of a create.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NewSandbox {
    #[serde(rename = "templateID")]
    pub(super) template: String,
    /// Seconds.
    pub(super) timeout: u64,
    pub(super) metadata: BTreeMap<&'static str, String>,
    /// E2B spells this one with underscores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) allow_internet_access: Option<bool>,
}

/// A sandbox as create and detail answers describe it.
#[derive(Clone, Deserialize)]
pub(super) struct Created {
    #[serde(rename = "sandboxID")]
    pub(super) id: String,
    #[serde(rename = "envdVersion", default)]
    pub(super) envd_version: String,
    #[serde(default)]
    pub(super) domain: Option<String>,
    #[serde(rename = "envdAccessToken", default)]
    pub(super) token: Option<String>,
    /// Only in details: `running` or `paused`.
    #[serde(default)]
    state: Option<String>,
}

/// A sandbox in a list.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Listed {
    #[serde(rename = "sandboxID")]
    pub(super) id: String,
    #[serde(default)]
    pub(super) metadata: BTreeMap<String, String>,
    /// RFC 3339.
    #[serde(rename = "startedAt", default)]
    pub(super) started_at: Option<String>,
}

/// Labels as metadata.
pub(super) fn metadata(labels: &Labels) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (RUN, labels.run.to_string()),
        (INSTANCE, labels.instance.clone()),
        (ATTEMPT, labels.attempt.to_string()),
        (EXPIRES, labels.expires.to_string()),
    ])
}

/// Whole seconds, rounded up, at least one: 0 is refused.
pub(super) fn seconds(lifetime: Duration) -> u64 {
    let up = u64::from(lifetime.subsec_nanos() > 0);
    (lifetime.as_secs() + up).max(1)
}

/// Whether `id` can stand in a path: what E2B's own ids look like, the old composite form included.
pub(super) fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl Control {
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .header("X-API-Key", self.key.clone())
            .header(ACCEPT, "application/json")
    }

    /// One create request. `key` makes E2B take a repetition for the same request.
    pub(super) async fn create_once(
        &self,
        new: &NewSandbox,
        key: &str,
        until: Deadline,
    ) -> Result<Created, Fault> {
        let request = self
            .request(Method::POST, "/v2/sandboxes")
            .header("Idempotency-Key", key)
            .json(new);
        let response = succeed(request, until, &self.redactor).await?;
        let bytes = body(response, MAX_ANSWER, until).await?;
        self.read_created(&bytes)
    }

    fn read_created(&self, bytes: &[u8]) -> Result<Created, Fault> {
        let created: Created = self.read(bytes)?;
        if is_id(&created.id) {
            Ok(created)
        } else {
            Err(Fault::Protocol(
                "a sandbox id of an unknown form".to_owned(),
            ))
        }
    }

    pub(super) fn read<T: for<'a> Deserialize<'a>>(&self, bytes: &[u8]) -> Result<T, Fault> {
        serde_json::from_slice(bytes).map_err(|error| {
            // An answer that can't be read may still hold a token, of a form that we don't know.
            if String::from_utf8_lossy(bytes).contains("oken") {
                return Fault::Protocol("JSON of an unknown form".to_owned());
            }
            Fault::Protocol(unreadable(&error.to_string(), bytes, &self.redactor))
        })
    }

    /// Sends a request that may be repeated until it succeeds, fails for good, or `tries` are used up. Gives
    /// the answer's headers and body.
    pub(super) async fn repeat(
        &self,
        tries: u32,
        until: Deadline,
        request: impl Fn() -> RequestBuilder,
        again: impl Fn(&Fault) -> bool,
    ) -> Result<(HeaderMap, Bytes), Fault> {
        let mut tried = 0;
        loop {
            let limit = until.within(self.timing.call);
            let answered = async {
                let response = succeed(request(), limit, &self.redactor).await?;
                let headers = response.headers().clone();
                Ok::<_, Fault>((headers, body(response, MAX_ANSWER, limit).await?))
            };
            let fault = match answered.await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            tried += 1;
            let pause = self.timing.pause(tried, fault.retry_after());
            if tried >= tries || !again(&fault) || pause >= until.remaining() {
                return Err(fault);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// All sandboxes, running or paused, whose metadata has every one of `labels`.
    pub(super) async fn list(&self, labels: &[(&str, &str)]) -> Result<Vec<Listed>, SandboxError> {
        let doing = "listing sandboxes";
        let filter = query_string(labels.iter().copied());
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let page = PAGE.to_string();
            let query = query_string(
                [
                    ("metadata", filter.as_str()),
                    ("state", "running,paused"),
                    ("limit", page.as_str()),
                ]
                .into_iter()
                .chain(token.as_deref().map(|token| ("nextToken", token))),
            );
            let path = format!("/v2/sandboxes?{query}");
            let until = Deadline::after(self.timing.call.saturating_mul(3));
            let request = || self.request(Method::GET, &path);
            let answered = async {
                let (headers, bytes) = self.repeat(TRIES, until, request, Fault::may_pass).await?;
                let next = headers
                    .get("x-next-token")
                    .and_then(|next| next.to_str().ok())
                    .filter(|next| !next.is_empty())
                    .map(str::to_owned);
                Ok::<_, Fault>((self.read::<Vec<Listed>>(&bytes)?, next))
            };
            let (listed, next) = answered.await.map_err(|fault| fault.control_error(doing))?;
            // The filter is E2B's; what we may kill is decided here.
            found.extend(listed.into_iter().filter(|listed| {
                is_id(&listed.id)
                    && labels
                        .iter()
                        .all(|(name, value)| listed.metadata.get(*name).is_some_and(|v| v == value))
            }));
            match next {
                None => return Ok(found),
                Some(next) if token.as_ref() == Some(&next) => {
                    return Err(SandboxError::Backend(
                        "E2B's list of sandboxes doesn't end: it names the same next page twice"
                            .to_owned(),
                    ));
                }
                Some(next) => token = Some(next),
            }
        }
        Err(SandboxError::Backend(format!(
            "E2B's list of sandboxes has more than {MAX_PAGES} pages"
        )))
    }

    /// A running sandbox by its id, with its token; `None` if there is none.
    pub(super) async fn detail(&self, id: &str) -> Result<Option<Created>, SandboxError> {
        let running = |detail: &Created| detail.state.as_deref().is_none_or(|s| s == "running");
        Ok(self.described(id).await?.filter(running))
    }

    /// Whether a sandbox exists, in whatever state.
    pub(super) async fn exists(&self, id: &str) -> Result<bool, SandboxError> {
        Ok(is_id(id) && self.described(id).await?.is_some())
    }

    /// A sandbox by its id, in whatever state; `None` if there is none.
    async fn described(&self, id: &str) -> Result<Option<Created>, SandboxError> {
        let until = Deadline::after(self.timing.call.saturating_mul(3));
        let path = format!("/sandboxes/{id}");
        let request = || self.request(Method::GET, &path);
        let read = async {
            let (_, bytes) = self.repeat(TRIES, until, request, Fault::may_pass).await?;
            self.read_created(&bytes)
        };
        match read.await {
            Ok(detail) => Ok(Some(detail)),
            Err(Fault::Refused(answer)) if answer.status == 404 => Ok(None),
            Err(fault) => Err(fault.control_error("asking for a sandbox")),
        }
    }

    /// Destroys a sandbox; one that is gone already is success.
    pub(super) async fn kill(&self, id: &str) -> Result<(), SandboxError> {
        if !is_id(id) {
            return Err(SandboxError::Backend(
                "this is not the id of an E2B sandbox".to_owned(),
            ));
        }
        let path = format!("/sandboxes/{id}");
        let until = Deadline::after(self.timing.call.saturating_mul(KILL_TRIES));
        let request = || self.request(Method::DELETE, &path);
        let again = |fault: &Fault| match fault {
            Fault::Refused(answer) => !matches!(answer.status, 400..=404),
            _ => true,
        };
        match self.repeat(KILL_TRIES, until, request, again).await {
            Ok(_) => Ok(()),
            Err(Fault::Refused(answer)) if answer.status == 404 => Ok(()),
            Err(fault) => Err(fault.control_error("destroying a sandbox")),
        }
    }

    /// Moves a sandbox's end to `lifetime` from now. Where the plan's limit comes before it, E2B cuts it
    /// there, names the limit, or refuses; the last is the only failure.
    pub(super) async fn set_lifetime(
        &self,
        id: &str,
        lifetime: Duration,
    ) -> Result<(), SandboxError> {
        let path = format!("/sandboxes/{id}/timeout");
        let until = Deadline::after(self.timing.call.saturating_mul(3));
        let again = |fault: &Fault| {
            fault.may_pass() || matches!(fault, Fault::Refused(answer) if answer.status == 409)
        };
        let mut secs = seconds(lifetime);
        let mut capped = false;
        loop {
            let request = || {
                self.request(Method::POST, &path)
                    .json(&serde_json::json!({ "timeout": secs }))
            };
            let Err(fault) = self.repeat(TRIES, until, request, again).await else {
                return Ok(());
            };
            match &fault {
                Fault::Refused(answer) if answer.status == 404 => {
                    return Err(SandboxError::Gone(
                        "E2B no longer knows it: it was killed, or its time was over".to_owned(),
                    ));
                }
                Fault::Refused(answer) if !capped && answer.longest_hours().is_some() => {
                    capped = true;
                    secs = answer.longest_hours().map_or(secs, |hours| hours * 3600);
                }
                Fault::Refused(answer) if answer.at_longest_life() => {
                    return Err(SandboxError::Backend(
                        "E2B lets a sandbox of this plan live no longer".to_owned(),
                    ));
                }
                _ => return Err(fault.control_error("extending a sandbox's life")),
            }
        }
    }
}

/// `pairs`, form-encoded.
pub(super) fn query_string<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let Ok(mut url) = Url::parse("http://localhost/") else {
        return String::new();
    };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_rounded_up_and_never_zero() {
        assert_eq!(seconds(Duration::ZERO), 1);
        assert_eq!(seconds(Duration::from_millis(1001)), 2);
        assert_eq!(seconds(Duration::from_mins(7)), 420);
    }

    #[test]
    fn a_filter_is_encoded_once_inside_and_once_outside() {
        let inner = query_string([("run", "a b&c"), ("x", "ü")]);
        assert_eq!(inner, "run=a+b%26c&x=%C3%BC");
        assert_eq!(
            query_string([("metadata", inner.as_str())]),
            "metadata=run%3Da%2Bb%2526c%26x%3D%25C3%25BC"
        );
    }

    #[test]
    fn only_ids_get_into_paths() {
        for id in ["iea43m3325j517takcjvx", "abc-6532622b"] {
            assert!(is_id(id), "{id}");
        }
        for id in ["", "a/b", "..", "a?b", "a b", "ü"] {
            assert!(!is_id(id), "{id}");
        }
    }

    #[test]
    fn a_new_sandbox_has_no_environment() {
        let new = NewSandbox {
            template: "base".to_owned(),
            timeout: 420,
            metadata: BTreeMap::from([(RUN, "r".to_owned())]),
            allow_internet_access: Some(false),
        };
        assert_eq!(
            serde_json::to_value(new).unwrap(),
            serde_json::json!({
                "templateID": "base", "timeout": 420, "metadata": {"sandcaster-run": "r"},
                "allow_internet_access": false
            })
        );
    }
}
