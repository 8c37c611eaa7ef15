//! The composition root: settings in, a running system out. Used by `serve`, the command line and tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::time::timeout;

use crate::clock::Clock;
use crate::config::{Config, Usable};
use crate::llm;
use crate::net;
use crate::runs::{Keep, Runs, RunsConfig, Tasks, recover};
use crate::sandbox;
use crate::secrets::Redactor;
use crate::store::{self, RunStore, StoreError, StoreOptions};

pub use crate::store::Role;

/// How long runs may take to end when the process stops.
const STOP_LIMIT: Duration = Duration::from_secs(8);
/// How long the store may take to open, and then to close, when a start is given up.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(1);

/// Everything that a request needs. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The settings.
    pub config: Arc<Config>,
    /// Which sandbox backends can be used.
    pub usable: Arc<Usable>,
    /// The runs.
    pub runs: Runs,
    /// Every task of the process.
    pub tasks: Tasks,
    /// Cleans what is shown and logged.
    pub redactor: Redactor,
    /// Wall time.
    pub clock: Clock,
}

/// Why the system can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store can't be opened or read.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The HTTP client can't be built.
    #[error("failed to set up TLS for outgoing requests: {0}")]
    Http(String),
    /// It was asked to stop before.
    #[error("stopped before it had started")]
    Stopped,
}

type Opening = Shared<BoxFuture<'static, Result<Arc<dyn RunStore>, StoreError>>>;

impl App {
    /// Opens the store, closes the logs of runs whose process died, builds what is configured, and probes
    /// the sandbox backends.
    ///
    /// # Errors
    /// When the store or the HTTP client can't be had.
    pub async fn build(config: Config, role: Role) -> Result<Self, StartError> {
        Self::build_at(config, role, Clock::system()).await
    }

    /// As [`Self::build`], until `stop`; then the store is closed, so that the directory is left as by an end in order.
    ///
    /// # Errors
    /// As [`Self::build`]; [`StartError::Stopped`].
    pub async fn build_until(
        config: Config,
        role: Role,
        stop: impl Future<Output = ()>,
    ) -> Result<Self, StartError> {
        let clock = Clock::system();
        let opening = opening(&config, role, clock.clone());
        // Built first: what is done is not thrown away.
        let built = tokio::select! {
            biased;
            built = Self::assemble(config, role, clock, opening.clone()) => built,
            () = stop => Err(StartError::Stopped),
        };
        if built.is_err() {
            give_up(opening).await;
        }
        built
    }

    /// As [`Self::build`], with another clock.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub async fn build_at(config: Config, role: Role, clock: Clock) -> Result<Self, StartError> {
        let opening = opening(&config, role, clock.clone());
        let built = Self::assemble(config, role, clock, opening.clone()).await;
        if built.is_err() {
            give_up(opening).await;
        }
        built
    }

    async fn assemble(
        config: Config,
        role: Role,
        clock: Clock,
        opening: Opening,
    ) -> Result<Self, StartError> {
        let proxies = config.proxies.clone();
        // Side by side, for a quick start: the one writes to the disk, the other reads certificates.
        let (store, http) = tokio::join!(
            opening,
            tokio::task::spawn_blocking(move || net::build_with(proxies)),
        );
        let store = store?;
        let http = http
            .map_err(|_panicked| StartError::Http("it panicked".to_owned()))?
            .map_err(|error| StartError::Http(error.to_string()))?;
        let redactor = config.redactor();
        let tasks = Tasks::default();
        let backends = sandbox::build(&config.backend_config(http.clone()));
        let (recovered, usable) = tokio::join!(recover(store.as_ref()), Usable::probe(&backends));
        if let Err(error) = recovered {
            tracing::error!(%error, "failed to look for runs whose process died; it is tried again");
        }
        let runs = Runs::new(RunsConfig {
            store,
            keep: Keep {
                age: config.server.retention,
                runs: config.server.max_stored_runs,
            },
            providers: build_providers(&config, &http),
            backends: backends
                .into_iter()
                .map(|(name, backend)| {
                    (
                        name,
                        (backend, config.server.max_sandboxes.get(name).copied()),
                    )
                })
                .collect(),
            max_concurrent_runs: config.server.max_concurrent_runs,
            redactor: redactor.clone(),
            clock: clock.clone(),
            tasks: tasks.clone(),
        });
        runs.start_housekeeping(role);
        Ok(Self {
            config: Arc::new(config),
            usable: Arc::new(usable),
            runs,
            tasks,
            redactor,
            clock,
        })
    }

    /// Ends every run with its terminal event and destroys the sandboxes, within 8 s, then closes the store.
    pub async fn shutdown(&self) {
        self.runs.shutdown(STOP_LIMIT).await;
        self.runs.store().close().await;
    }
}

/// Closes the store, which leaves the directory as by an end in order.
async fn give_up(opening: Opening) {
    if let Ok(Ok(store)) = timeout(GIVE_UP_LIMIT, opening).await
        && timeout(GIVE_UP_LIMIT, store.close()).await.is_err()
    {
        tracing::warn!("the run store did not close in time");
    }
}

fn opening(config: &Config, role: Role, clock: Clock) -> Opening {
    let options = StoreOptions {
        durability: config.store_durability,
        clock,
        ..StoreOptions::new(&config.data_dir, role)
    };
    store::open(options).boxed().shared()
}

fn build_providers(
    config: &Config,
    http: &net::HttpClient,
) -> BTreeMap<&'static str, Arc<dyn llm::LlmProvider>> {
    let mut providers = BTreeMap::new();
    for def in llm::PROVIDERS {
        let llm::Build::With(build) = def.build else {
            continue;
        };
        let base_url = config.base_urls.get(def.base_url_var).map(String::as_str);
        let made_from = def.config(
            http.clone(),
            |name| config.keys.get(name).cloned(),
            base_url,
        );
        if made_from.key.is_none() && !def.key_vars.is_empty() {
            continue;
        }
        let redactor = config.redactor();
        let provider = build(llm::ProviderConfig {
            redactor,
            ..made_from
        });
        providers.insert(def.name, provider);
    }
    providers
}
