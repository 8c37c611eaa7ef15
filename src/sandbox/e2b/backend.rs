//! The backend: its settings, and what its two traits promise.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::HeaderValue;

use super::control::{Control, Created, EXPIRES, INSTANCE, RUN};
use super::create;
use super::envd::{Envd, WORKING_DIR};
use super::timing::Timing;
use super::{files, process};
use crate::ids::RunId;
use crate::sandbox::def::BackendConfig;
use crate::sandbox::types::{
    ExecSpec, ExecStream, FoundSandbox, Labels, Sandbox, SandboxBackend, SandboxError, SandboxSpec,
};
use crate::secrets::{Redactor, Secret};

/// The variable with the key.
pub(super) const KEY_VAR: &str = "E2B_API_KEY";
/// The domain below which API and sandboxes lie (a name, not a URL).
pub const DOMAIN_VAR: &str = "E2B_DOMAIN";
/// The API's base URL; wins over the domain.
pub const API_URL_VAR: &str = "E2B_API_URL";
/// One origin for all sandboxes, told apart by headers.
pub const SANDBOX_URL_VAR: &str = "E2B_SANDBOX_URL";

/// E2B's own domain.
const DEFAULT_DOMAIN: &str = "e2b.app";
/// envd's port.
const PORT: u16 = 49983;
/// Older daemons can't do what is needed; the official clients refuse them as well.
const OLDEST_ENVD: (u32, u32, u32) = (0, 1, 0);

/// Makes the backend, with limits of one's own.
pub fn build_with(config: &BackendConfig, timing: Timing) -> Arc<dyn SandboxBackend> {
    Arc::new(E2b {
        settings: Settings::read(config, timing),
    })
}

struct E2b {
    /// Why it can't be used, if it can't: said by every call.
    settings: Result<Settings, SandboxError>,
}

pub(super) struct Settings {
    pub(super) control: Arc<Control>,
    pub(super) key: Secret,
    /// Of sandboxes whose answer names none.
    domain: String,
    /// One origin for all sandboxes.
    sandbox_url: Option<String>,
}

impl Settings {
    pub(super) fn read(config: &BackendConfig, timing: Timing) -> Result<Self, SandboxError> {
        let key = config
            .keys
            .iter()
            .find_map(|(name, key)| (*name == KEY_VAR).then(|| key.clone()))
            .filter(|key| !key.expose().is_empty());
        let auth = |message: &str| SandboxError::Auth {
            message: message.to_owned(),
            hint: format!("set {KEY_VAR} to a key of the team (https://e2b.dev/dashboard)"),
        };
        let Some(key) = key else {
            return Err(auth("E2B_API_KEY is not set"));
        };
        if key.expose().starts_with("sk_e2b_") {
            return Err(auth(
                "E2B_API_KEY holds an access token (sk_e2b_…), not an API key (e2b_…)",
            ));
        }
        let mut header = HeaderValue::from_str(key.expose()).map_err(|_| {
            auth("E2B_API_KEY can't be sent in a header: it has blanks or other odd characters")
        })?;
        header.set_sensitive(true);
        let url = |name: &str| {
            config
                .base_urls
                .get(name)
                .map(|url| url.trim_end_matches('/').to_owned())
        };
        let domain = match config.base_urls.get(DOMAIN_VAR) {
            None => DEFAULT_DOMAIN.to_owned(),
            Some(domain) if is_domain(domain) => domain.clone(),
            Some(_) => {
                return Err(SandboxError::HostCannot {
                    message: format!("{DOMAIN_VAR} is not the name of a domain"),
                    hint: format!("give it a bare name such as {DEFAULT_DOMAIN}, or unset it"),
                });
            }
        };
        Ok(Self {
            control: Arc::new(Control {
                http: config.http.clone(),
                base: url(API_URL_VAR).unwrap_or_else(|| format!("https://api.{domain}")),
                key: header,
                redactor: Redactor::new([&key]),
                timing,
            }),
            key,
            domain,
            sandbox_url: url(SANDBOX_URL_VAR),
        })
    }

    /// The sandbox that `created` describes, for use.
    fn open(&self, created: Created) -> Result<Envd, SandboxError> {
        let domain = created
            .domain
            .as_deref()
            .filter(|domain| !domain.is_empty());
        let domain = domain.unwrap_or(&self.domain);
        if !is_domain(domain) {
            return Err(SandboxError::Backend(
                "E2B's answer names a domain of an unknown form".to_owned(),
            ));
        }
        let origin = match &self.sandbox_url {
            Some(origin) => origin.clone(),
            None => format!("https://{PORT}-{}.{domain}", created.id),
        };
        let version = version(&created.envd_version);
        if version < OLDEST_ENVD {
            return Err(SandboxError::TemplateIncompatible(
                "the template was built for a very old E2B: build it again".to_owned(),
            ));
        }
        let unreadable = || {
            SandboxError::Backend(
                "E2B's answer has an access token that can't be sent in a header".to_owned(),
            )
        };
        let token = created.token.as_deref().map(Secret::new);
        let mut header = token
            .as_ref()
            .map(|token| HeaderValue::from_str(token.expose()).map_err(|_| unreadable()))
            .transpose()?;
        if let Some(header) = &mut header {
            header.set_sensitive(true);
        }
        Ok(Envd::new(
            &self.control,
            created.id,
            origin,
            header,
            version,
            Redactor::new(token.iter().chain([&self.key])),
        ))
    }
}

/// Whether `text` is a host name, perhaps with a port, and nothing that would change a URL around it.
fn is_domain(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    !host.is_empty()
        && host.len() <= 253
        && port.parse::<u16>().is_ok()
        && host.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// envd's version; what doesn't read as one counts as the newest.
fn version(text: &str) -> (u32, u32, u32) {
    let mut parts = text
        .trim()
        .trim_start_matches('v')
        .splitn(3, '.')
        .map(|part| {
            part.split(|c: char| !c.is_ascii_digit())
                .next()
                .and_then(|digits| digits.parse::<u32>().ok())
        });
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Some(major)), Some(Some(minor)), Some(Some(patch))) => (major, minor, patch),
        _ => (u32::MAX, 0, 0),
    }
}

#[async_trait]
impl SandboxBackend for E2b {
    async fn create(
        &self,
        spec: &SandboxSpec,
        labels: &Labels,
    ) -> Result<Arc<dyn Sandbox>, SandboxError> {
        let settings = self.settings.as_ref().map_err(Clone::clone)?;
        let control = Arc::clone(&settings.control);
        let made = create::create(&control, spec, labels).await?;
        let id = made.sandbox.id.clone();
        match settings.open(made.sandbox) {
            Ok(envd) => Ok(Arc::new(E2bSandbox {
                envd: Arc::new(envd),
                control,
                doubtful: made.doubtful.then(|| labels.clone()),
            })),
            Err(error) => {
                if let Err(left) = control.kill(&id).await {
                    tracing::warn!(sandbox.id = %id, error = %left, "could not destroy an unusable sandbox");
                }
                Err(error)
            }
        }
    }

    async fn list(&self, instance: &str) -> Result<Vec<FoundSandbox>, SandboxError> {
        let settings = self.settings.as_ref().map_err(Clone::clone)?;
        let listed = settings.control.list(&[(INSTANCE, instance)]).await?;
        let found = listed.into_iter().map(|listed| FoundSandbox {
            run: listed.metadata.get(RUN).and_then(|run| RunId::parse(run)),
            started_at: listed.started_at.and_then(|at| at.parse().ok()),
            expires: listed.metadata.get(EXPIRES).and_then(|at| at.parse().ok()),
            id: listed.id,
        });
        Ok(found.collect())
    }

    async fn kill(&self, id: &str) -> Result<(), SandboxError> {
        let settings = self.settings.as_ref().map_err(Clone::clone)?;
        settings.control.kill(id).await
    }

    async fn alive(&self, id: &str) -> Result<bool, SandboxError> {
        let settings = self.settings.as_ref().map_err(Clone::clone)?;
        settings.control.exists(id).await
    }

    /// Looks at the settings only. A question to E2B would make each start of the server wait for it, and
    /// a passing fault there would rule the backend out for good.
    async fn probe(&self) -> Result<(), SandboxError> {
        self.settings.as_ref().map(|_| ()).map_err(Clone::clone)
    }
}

struct E2bSandbox {
    envd: Arc<Envd>,
    control: Arc<Control>,
    /// Its labels, if another sandbox with the same ones might exist.
    doubtful: Option<Labels>,
}

#[async_trait]
impl Sandbox for E2bSandbox {
    fn id(&self) -> &str {
        self.envd.id()
    }

    fn working_dir(&self) -> &'static str {
        WORKING_DIR
    }

    /// Dropping the stream closes the connection; the command runs on, its output going nowhere.
    async fn exec(&self, spec: ExecSpec) -> Result<ExecStream, SandboxError> {
        let started = process::exec(&self.envd, spec);
        self.envd.while_here(started).await
    }

    async fn read(&self, path: &str, max_bytes: u64) -> Result<Bytes, SandboxError> {
        let read = files::read(&self.envd, path, max_bytes);
        self.envd.while_here(read).await
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
        let written = files::write(&self.envd, path, bytes);
        self.envd.while_here(written).await
    }

    async fn extend(&self, lifetime: Duration) -> Result<(), SandboxError> {
        self.envd.ensure_here()?;
        let extended = self.control.set_lifetime(self.envd.id(), lifetime).await;
        if let Err(SandboxError::Gone(why)) = &extended {
            self.envd.lose(why);
        }
        extended
    }

    async fn kill(&self) -> Result<(), SandboxError> {
        let killed = self.control.kill(self.envd.id()).await;
        if killed.is_ok() {
            self.envd.lose("it was destroyed");
        }
        if let Some(labels) = &self.doubtful {
            create::kill_labelled(&self.control, labels, None).await?;
        }
        killed
    }

    async fn gone(&self) -> SandboxError {
        self.envd.gone().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(urls: &[(&'static str, &str)]) -> Settings {
        let config = BackendConfig {
            http: crate::net::build().unwrap(),
            keys: vec![(KEY_VAR, Secret::new("e2b_0123456789"))],
            base_urls: urls
                .iter()
                .map(|(name, url)| (*name, (*url).to_owned()))
                .collect(),
            launcher: std::path::PathBuf::new(),
            local: crate::sandbox::def::LocalLimits::default(),
        };
        Settings::read(&config, Timing::default()).unwrap()
    }

    #[test]
    fn urls_come_from_the_settings_and_the_answer() {
        let origin = |settings: &Settings, domain: serde_json::Value| {
            let created = serde_json::json!({"sandboxID": "i1", "domain": domain});
            let created = serde_json::from_value(created).unwrap();
            settings.open(created).map(|envd| envd.origin().to_owned())
        };
        let plain = settings(&[]);
        assert_eq!(plain.control.base, "https://api.e2b.app");
        for (domain, expected) in [
            (serde_json::json!(null), "https://49983-i1.e2b.app"),
            (serde_json::json!(""), "https://49983-i1.e2b.app"),
            (
                serde_json::json!("eu.example.com"),
                "https://49983-i1.eu.example.com",
            ),
        ] {
            assert_eq!(origin(&plain, domain), Ok(expected.to_owned()));
        }
        assert!(origin(&plain, serde_json::json!("x.org/@evil")).is_err());
        let own = settings(&[(DOMAIN_VAR, "e2b.example.org")]);
        assert_eq!(own.control.base, "https://api.e2b.example.org");
        assert_eq!(
            origin(&own, serde_json::json!(null)),
            Ok("https://49983-i1.e2b.example.org".to_owned())
        );
        let urls = settings(&[
            (DOMAIN_VAR, "e2b.example.org"),
            (API_URL_VAR, "http://127.0.0.1:1/api/"),
            (SANDBOX_URL_VAR, "http://127.0.0.1:2"),
        ]);
        assert_eq!(urls.control.base, "http://127.0.0.1:1/api");
        assert_eq!(
            origin(&urls, serde_json::json!("eu.example.com")),
            Ok("http://127.0.0.1:2".to_owned())
        );
    }

    #[test]
    fn versions_are_read_and_odd_ones_count_as_new() {
        assert_eq!(version("0.6.13"), (0, 6, 13));
        assert_eq!(version("v1.2.3-rc1"), (1, 2, 3));
        for odd in ["", "new", "1.2", "1.x.3"] {
            assert_eq!(version(odd).0, u32::MAX, "{odd}");
        }
    }

    #[test]
    fn a_domain_can_not_smuggle_a_url_in() {
        for good in ["e2b.app", "sbx.example-1.org", "localhost:8080"] {
            assert!(is_domain(good), "{good}");
        }
        for bad in [
            "",
            "a/b",
            "x@evil.org",
            "e2b.app?x",
            "https://e2b.app",
            "a..b",
            "a:b",
            "a b",
        ] {
            assert!(!is_domain(bad), "{bad}");
        }
    }
}
