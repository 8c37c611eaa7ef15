//! Makes `local` sandboxes, and finds them again.

use std::os::unix::net;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use super::diagnosis::{self, HostFacts};
use super::launcher::{self, Spawner};
use super::mounts::unfit_read_only_path;
use super::protocol::{Decoder, Failed, Hello, Kind, VERSION};
use super::sandbox::{LocalSandbox, Ready};
use super::settings::{Settings, arguments};
use crate::clock::Deadline;
use crate::ids::{RunId, nonce};
use crate::sandbox::def::{BackendConfig, LocalLimits};
use crate::sandbox::types::{
    FoundSandbox, Labels, Sandbox, SandboxBackend, SandboxError, SandboxSpec,
};
use crate::show::one_line;
use crate::spec::Network;

/// How long an agent may take to greet, on a machine that is busy. Usually it takes milliseconds.
const GREETING: Duration = Duration::from_secs(10);

struct Local {
    launcher: PathBuf,
    limits: LocalLimits,
    settings: Settings,
    spawner: OnceCell<Arc<Spawner>>,
}

pub(super) fn make(config: &BackendConfig) -> Arc<dyn SandboxBackend> {
    Arc::new(backend(config))
}

/// A backend whose sandboxes lack some walls, to prove that the tests of those walls can fail. Only in
/// debug builds; a release build has neither this nor a launcher that would obey it.
#[cfg(debug_assertions)]
pub fn make_without(
    config: &BackendConfig,
    walls: &[super::settings::Wall],
) -> Arc<dyn SandboxBackend> {
    let mut local = backend(config);
    local.settings.without = walls.to_vec();
    Arc::new(local)
}

fn backend(config: &BackendConfig) -> Local {
    Local {
        launcher: config.launcher.clone(),
        limits: config.local.clone(),
        settings: Settings::new(&config.local),
        spawner: OnceCell::new(),
    }
}

#[async_trait]
impl SandboxBackend for Local {
    async fn create(
        &self,
        spec: &SandboxSpec,
        labels: &Labels,
    ) -> Result<Arc<dyn Sandbox>, SandboxError> {
        check_limits(&self.limits, &self.settings)?;
        match spec.network {
            Network::None => {}
            Network::Full => {
                return Err(SandboxError::HostCannot {
                    message: "local sandboxes have no network, and network `full` was asked for"
                        .to_owned(),
                    hint: "set `network` to `none`, or choose another sandbox backend".to_owned(),
                });
            }
        }
        if let Some(template) = &spec.template {
            return Err(SandboxError::TemplateNotFound(format!(
                "local sandboxes have no templates, and `{template}` was asked for"
            )));
        }
        let id = format!("local-{}", nonce());
        let spawner = self
            .spawner
            .get_or_try_init(|| async { Spawner::new().map(Arc::new) })
            .await
            .map_err(|error| cannot_start(&error))?;
        let (ours, theirs) = net::UnixStream::pair().map_err(|error| cannot_start(&error))?;
        let socket = ours
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(ours))
            .map_err(|error| cannot_start(&error))?;
        self.launch(id, Arc::clone(spawner), (socket, theirs), spec, labels)
            .await
    }

    async fn list(&self, instance: &str) -> Result<Vec<FoundSandbox>, SandboxError> {
        let program = self.launcher.clone();
        let found = blocking(move || launcher::find(&program)).await?;
        Ok(found
            .into_iter()
            .filter(|found| found.labels.instance == instance)
            .map(|found| FoundSandbox {
                id: found.labels.id,
                run: found.labels.run,
                started_at: None,
                // Nobody ends it but its server and the reaper.
                expires: None,
            })
            .collect())
    }

    async fn kill(&self, id: &str) -> Result<(), SandboxError> {
        let (program, id) = (self.launcher.clone(), id.to_owned());
        blocking(move || {
            for found in launcher::find(&program)? {
                if found.labels.id == id {
                    found.end(&program)?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn alive(&self, id: &str) -> Result<bool, SandboxError> {
        let (program, id) = (self.launcher.clone(), id.to_owned());
        let found = blocking(move || launcher::find(&program)).await?;
        Ok(found.iter().any(|found| found.labels.id == id))
    }

    async fn probe(&self) -> Result<(), SandboxError> {
        let deadline = Deadline::after(GREETING);
        let spec = SandboxSpec {
            template: None,
            network: Network::None,
            lifetime: GREETING,
            deadline,
        };
        let labels = Labels {
            run: RunId::new(),
            instance: "probe".to_owned(),
            attempt: 1,
            expires: 0,
        };
        self.create(&spec, &labels).await?.kill().await
    }
}

impl Local {
    async fn launch(
        &self,
        id: String,
        spawner: Arc<Spawner>,
        (mut socket, theirs): (UnixStream, net::UnixStream),
        spec: &SandboxSpec,
        labels: &Labels,
    ) -> Result<Arc<dyn Sandbox>, SandboxError> {
        let arguments = arguments(&id, labels, &self.settings);
        let mut launcher = spawner
            .start(self.launcher.clone(), arguments, theirs)
            .await
            .map_err(|error| cannot_start(&error))?;
        let mut decoder = Decoder::default();
        let until = spec.deadline.within(GREETING);
        let greeting =
            tokio::time::timeout_at(until.instant(), greet(&mut socket, &mut decoder)).await;
        let hello = match greeting {
            Ok(Greeting::Hello(hello)) => hello,
            Ok(Greeting::Failed(failed)) => {
                return Err(diagnosis::explain(&failed, &HostFacts::gather()));
            }
            Ok(Greeting::Nothing(what)) => {
                let code = tokio::time::timeout_at(until.instant(), launcher.ended()).await;
                let code = match code {
                    Ok(Ok(Some(code))) => format!(" (exit code {code})"),
                    _ => String::new(),
                };
                return Err(SandboxError::Backend(format!(
                    "the sandbox's launcher {what}{code} before the sandbox was ready"
                )));
            }
            Err(_) => {
                return Err(SandboxError::Timeout(
                    "the local sandbox was not ready in time; retrying is safe".to_owned(),
                ));
            }
        };
        tracing::debug!(sandbox.id = %id, landlock = %hello.landlock, "local sandbox created");
        Ok(Arc::new(LocalSandbox::run(Ready {
            id,
            launcher,
            socket,
            decoder,
            lifetime: spec.lifetime,
            spawner,
        })))
    }
}

enum Greeting {
    Hello(Hello),
    Failed(Failed),
    Nothing(&'static str),
}

async fn greet(socket: &mut UnixStream, decoder: &mut Decoder) -> Greeting {
    loop {
        match decoder.next() {
            Ok(Some(frame)) => {
                return match frame.kind {
                    Kind::Hello => match frame.json::<Hello>() {
                        Ok(hello) if hello.version == VERSION => Greeting::Hello(hello),
                        _ => Greeting::Nothing("is another version than this server"),
                    },
                    Kind::Failed => frame.json().map_or(
                        Greeting::Nothing("reported something unreadable"),
                        Greeting::Failed,
                    ),
                    _ => Greeting::Nothing("broke the protocol"),
                };
            }
            Ok(None) => {}
            Err(_) => return Greeting::Nothing("broke the protocol"),
        }
        decoder.buffer().reserve(1024);
        match socket.read_buf(decoder.buffer()).await {
            Ok(0) | Err(_) => return Greeting::Nothing("ended"),
            Ok(_) => {}
        }
    }
}

fn cannot_start(error: &std::io::Error) -> SandboxError {
    SandboxError::Backend(format!("could not start the sandbox's launcher: {error}"))
}

/// Runs a short look at `/proc` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, SandboxError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)
        .and_then(|result| result)
        .map_err(|error| {
            SandboxError::Backend(format!("could not look for local sandboxes: {error}"))
        })
}

/// Refuses limits that no sandbox could work with, by the names that an operator knows them by.
fn check_limits(limits: &LocalLimits, settings: &Settings) -> Result<(), SandboxError> {
    const LEAST_MEMORY_MB: u64 = 64;
    const LEAST_PROCESSES: u64 = 8;
    let cannot = |message: String, hint: &str| {
        Err(SandboxError::HostCannot {
            message,
            hint: hint.to_owned(),
        })
    };
    if limits.memory_mb < LEAST_MEMORY_MB {
        return cannot(
            format!(
                "`local.memoryMb` is {}, and a sandbox needs {LEAST_MEMORY_MB}",
                limits.memory_mb
            ),
            "raise `local.memoryMb`",
        );
    }
    let in_memory = (settings.disk_bytes() + settings.tmp_bytes() + settings.shm_bytes()) >> 20;
    if limits.disk_mb == 0 || in_memory >= limits.memory_mb {
        return cannot(
            format!(
                "`local.diskMb` is {}: files lie in memory, and with temporary ones may take {in_memory} of the {} MiB of `local.memoryMb`",
                limits.disk_mb, limits.memory_mb
            ),
            "lower `local.diskMb`, or raise `local.memoryMb`",
        );
    }
    if limits.max_processes < LEAST_PROCESSES {
        return cannot(
            format!(
                "`local.maxProcesses` is {}, and a sandbox needs {LEAST_PROCESSES}",
                limits.max_processes
            ),
            "raise `local.maxProcesses`",
        );
    }
    if limits.host_uid == 0 {
        return cannot(
            "`local.hostUid` is 0: a sandbox never runs as the host's root".to_owned(),
            "set `local.hostUid` to an unprivileged uid that nothing else uses",
        );
    }
    for path in &limits.read_only_paths {
        if let Some(why) = unfit_read_only_path(path) {
            return cannot(
                format!(
                    "`local.readOnlyPaths` has {}: {why}",
                    one_line(&path.to_string_lossy())
                ),
                "name the directory of the tools itself, e.g. /opt/node",
            );
        }
    }
    Ok(())
}
