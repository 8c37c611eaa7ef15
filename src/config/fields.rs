//! Every setting that `sandcaster.json` and the environment share: one row each.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Number;

use super::Config;
use super::check::{self, Bad, Wrong};
use super::env::{Layers, Source};
use super::json::{At, Node};
use super::values::{
    PROMPT_CHARS, allowed_tools, append_prompt, host, list, model_aliases, network, not, origin,
    port, seconds, system_prompt, whole,
};
use crate::sandbox::BACKENDS;
use crate::show::did_you_mean;
use crate::spec::{SandboxStart, StoreDurability};

/// Takes a value into the settings. A text is a warning: the value was understood, but something about
/// it is not built yet.
type Set = fn(&mut Config, &Node<'_>) -> Result<Option<String>, Bad>;

/// One setting.
pub(super) struct Field {
    /// Its place in the file; empty: only in the environment.
    pub(super) path: &'static str,
    /// Its variable; empty: only in the file.
    variable: &'static str,
    /// How the variable's text is read.
    kind: Kind,
    pub(super) set: Set,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Number,
    /// With commas between.
    List,
}

const fn field(path: &'static str, variable: &'static str, kind: Kind, set: Set) -> Field {
    Field {
        path,
        variable,
        kind,
        set,
    }
}

const SANDBOXES: RangeInclusive<u64> = 1..=10_000;

/// The rows.
pub(super) static FIELDS: &[Field] = &[
    field("$schema", "", Kind::Text, |_, node| {
        check::text(node, &(0..=2000))?;
        Ok(None)
    }),
    field("systemPrompt", "", Kind::Text, system_prompt),
    field("systemPromptAppend", "", Kind::Text, |config, node| {
        append_prompt(config, check::text(node, &(0..=PROMPT_CHARS))?);
        Ok(None)
    }),
    field("model", "SANDCASTER_MODEL", Kind::Text, |config, node| {
        config.project.model = Some(check::model(node)?.to_owned());
        Ok(None)
    }),
    field(
        "maxTurns",
        "SANDCASTER_MAX_TURNS",
        Kind::Number,
        |config, node| {
            config.project.max_turns = whole(node, &check::TURNS)?;
            Ok(None)
        },
    ),
    field(
        "timeout",
        "SANDCASTER_TIMEOUT",
        Kind::Number,
        |config, node| {
            config.project.timeout = seconds(node, &check::TIMEOUT_SECS)?;
            Ok(None)
        },
    ),
    field(
        "allowedTools",
        "SANDCASTER_ALLOWED_TOOLS",
        Kind::List,
        allowed_tools,
    ),
    field(
        "provider",
        "SANDCASTER_PROVIDER",
        Kind::Text,
        |config, node| {
            let def = check::provider(node)?;
            config.project.provider = Some(def.name);
            Ok(matches!(def.build, crate::llm::Build::NotYet).then(|| {
                format!(
                    "names the LLM provider `{}`, which is not implemented yet",
                    def.name
                )
            }))
        },
    ),
    field(
        "sandboxProvider",
        "SANDCASTER_SANDBOX_PROVIDER",
        Kind::Text,
        |config, node| {
            let def = check::backend(node)?;
            config.project.sandbox_provider = Some(def.name);
            Ok(matches!(def.build, crate::sandbox::Build::NotYet).then(|| {
                format!(
                    "names the sandbox backend `{}`, which is not implemented yet",
                    def.name
                )
            }))
        },
    ),
    field(
        "thinkingLevel",
        "SANDCASTER_THINKING_LEVEL",
        Kind::Text,
        |config, node| {
            config.project.thinking = check::thinking(node)?;
            Ok(None)
        },
    ),
    field(
        "template",
        "SANDCASTER_TEMPLATE",
        Kind::Text,
        |config, node| {
            config.project.template = Some(check::name(node, 255)?.to_owned());
            Ok(None)
        },
    ),
    field("network", "SANDCASTER_NETWORK", Kind::Text, network),
    field(
        "maxBudgetUsd",
        "SANDCASTER_MAX_BUDGET_USD",
        Kind::Number,
        |config, node| {
            config.project.max_budget = Some(check::usd(node)?);
            Ok(None)
        },
    ),
    field(
        "sandboxStart",
        "SANDCASTER_SANDBOX_START",
        Kind::Text,
        |config, node| {
            let words = [("eager", SandboxStart::Eager), ("lazy", SandboxStart::Lazy)];
            config.project.sandbox_start = check::word(node, &words)?;
            Ok(None)
        },
    ),
    field(
        "disconnectGraceSecs",
        "SANDCASTER_DISCONNECT_GRACE_SECS",
        Kind::Number,
        |config, node| {
            config.project.disconnect_grace = seconds(node, &(0..=3600))?;
            Ok(None)
        },
    ),
    field(
        "storeDurability",
        "SANDCASTER_STORE_DURABILITY",
        Kind::Text,
        |config, node| {
            let words = [
                ("normal", StoreDurability::Normal),
                ("full", StoreDurability::Full),
            ];
            config.store_durability = check::word(node, &words)?;
            Ok(None)
        },
    ),
    field("modelAliases", "", Kind::Text, model_aliases),
    field(
        "server.host",
        "SANDCASTER_HOST",
        Kind::Text,
        |config, node| {
            config.server.host = host(check::name(node, 255)?)?;
            Ok(None)
        },
    ),
    // Hosting platforms set PORT; our own variable is the more deliberate one and comes after it.
    field("server.port", "PORT", Kind::Number, port),
    field("server.port", "SANDCASTER_PORT", Kind::Number, port),
    field(
        "server.dataDir",
        "SANDCASTER_DATA_DIR",
        Kind::Text,
        |config, node| {
            config.data_dir = PathBuf::from(check::name(node, 4096)?);
            Ok(None)
        },
    ),
    field(
        "server.allowedHosts",
        "SANDCASTER_ALLOWED_HOSTS",
        Kind::List,
        |config, node| {
            config.server.allowed_hosts = list(node, |text| {
                let plain =
                    text.bytes().all(|b| b.is_ascii_graphic()) && !text.contains(['/', '*', '@']);
                plain.then(|| text.to_ascii_lowercase()).ok_or_else(|| {
                    not(
                        text,
                        "a host name as browsers send it, like agents.example.com",
                    )
                })
            })?;
            Ok(None)
        },
    ),
    field(
        "server.allowedOrigins",
        "SANDCASTER_CORS_ORIGINS",
        Kind::List,
        |config, node| {
            config.server.allowed_origins = list(node, origin)?;
            Ok(None)
        },
    ),
    field(
        "server.maxConcurrentRuns",
        "SANDCASTER_MAX_CONCURRENT_RUNS",
        Kind::Number,
        |config, node| {
            config.server.max_concurrent_runs = whole(node, &(1..=1_000_000))?;
            Ok(None)
        },
    ),
    field(
        "server.heartbeatSecs",
        "SANDCASTER_HEARTBEAT_SECS",
        Kind::Number,
        |config, node| {
            config.server.heartbeat = seconds(node, &(1..=300))?;
            Ok(None)
        },
    ),
    field(
        "server.retentionDays",
        "SANDCASTER_RETENTION_DAYS",
        Kind::Number,
        |config, node| {
            let days = check::integer(node, &(0..=36_500))?;
            config.server.retention = (days > 0).then(|| Duration::from_hours(days * 24));
            Ok(None)
        },
    ),
    field(
        "server.maxStoredRuns",
        "SANDCASTER_MAX_STORED_RUNS",
        Kind::Number,
        |config, node| {
            config.server.max_stored_runs = check::integer(node, &(1..=1_000_000_000))?;
            Ok(None)
        },
    ),
    field(
        "local.memoryMb",
        "SANDCASTER_LOCAL_MEMORY_MB",
        Kind::Number,
        |config, node| {
            config.local.memory_mb = check::integer(node, &(64..=1_048_576))?;
            Ok(None)
        },
    ),
    field(
        "local.diskMb",
        "SANDCASTER_LOCAL_DISK_MB",
        Kind::Number,
        |config, node| {
            config.local.disk_mb = check::integer(node, &(1..=1_048_576))?;
            Ok(None)
        },
    ),
    field(
        "local.maxProcesses",
        "SANDCASTER_LOCAL_MAX_PROCESSES",
        Kind::Number,
        |config, node| {
            config.local.max_processes = check::integer(node, &(8..=65_536))?;
            Ok(None)
        },
    ),
    field(
        "local.hostUid",
        "SANDCASTER_LOCAL_HOST_UID",
        Kind::Number,
        |config, node| {
            // 0 would be root, and the largest value means "no change" to the kernel.
            config.local.host_uid = whole(node, &(1..=4_294_967_294))?;
            Ok(None)
        },
    ),
    field(
        "local.readOnlyPaths",
        "SANDCASTER_LOCAL_READ_ONLY_PATHS",
        Kind::List,
        |config, node| {
            config.local.read_only_paths = list(node, |text| {
                let path = PathBuf::from(text);
                let plain = path
                    .components()
                    .all(|part| part != std::path::Component::ParentDir);
                (path.is_absolute() && plain)
                    .then_some(path)
                    .ok_or_else(|| not(text, "an absolute path without .."))
            })?;
            Ok(None)
        },
    ),
    field("", "SANDCASTER_LOG", Kind::Text, |config, node| {
        let filter = check::name(node, 1000)?;
        tracing_subscriber::EnvFilter::try_new(filter)
            .map_err(|_| not(filter, "a log filter like info,sandcaster=debug"))?;
        config.log.filter = Some(filter.to_owned());
        Ok(None)
    }),
    field("", "SANDCASTER_LOG_FORMAT", Kind::Text, |config, node| {
        config.log.json = check::word(node, &[("text", false), ("json", true)])?;
        Ok(None)
    }),
];

/// `server.maxSandboxes.<backend>`, a row for each backend.
pub(super) const MAX_SANDBOXES: &str = "server.maxSandboxes";

/// Sets the cap of one backend.
pub(super) fn set_max_sandboxes(
    config: &mut Config,
    backend: &str,
    node: &Node<'_>,
) -> Result<(), Bad> {
    let Some(def) = BACKENDS.iter().find(|def| def.name == backend) else {
        let hint = did_you_mean(backend, check::built_backends());
        return Err(Wrong::new("is no sandbox backend").hint(hint).into());
    };
    if !matches!(node, Node::Null) {
        config
            .server
            .max_sandboxes
            .insert(def.name, whole(node, &SANDBOXES)?);
    }
    Ok(())
}

/// Its variables, in one word.
const MAX_SANDBOXES_VARIABLE: &str = "SANDCASTER_MAX_SANDBOXES_<BACKEND>";

fn max_sandboxes_variable(backend: &str) -> String {
    MAX_SANDBOXES_VARIABLE.replace("<BACKEND>", &backend.to_ascii_uppercase())
}

/// Every setting by its place in the file and its variable; either may be empty. For the documentation's
/// test.
pub fn settings() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = FIELDS.iter().map(|field| (field.path, field.variable));
    rows.chain([(MAX_SANDBOXES, MAX_SANDBOXES_VARIABLE)])
}

/// Every variable that is read here.
pub(super) fn variables() -> impl Iterator<Item = String> {
    let rows = FIELDS
        .iter()
        .map(|field| field.variable)
        .filter(|name| !name.is_empty());
    let caps = BACKENDS.iter().map(|def| max_sandboxes_variable(def.name));
    rows.map(str::to_owned).chain(caps)
}

/// Takes what `.env` says, then what the environment says, so that no variable of `.env` counts above another one
/// of the environment.
pub(super) fn apply_environment(
    config: &mut Config,
    layers: &Layers<'_>,
    errors: &mut Vec<String>,
) {
    for layer in [Source::DotEnv, Source::Environment] {
        let get = |variable: &str| {
            let found = layers.get(variable).filter(|(_, source)| *source == layer);
            found.map(|(text, _)| text)
        };
        for field in FIELDS.iter().filter(|field| !field.variable.is_empty()) {
            let Some(text) = get(field.variable) else {
                continue;
            };
            // Kubernetes sets this for pods beside a service named "sandcaster"; it means no port of ours.
            if field.variable == "SANDCASTER_PORT" && text.starts_with("tcp://") {
                config.warnings.push(
                    "SANDCASTER_PORT looks like the link of a Kubernetes service and is ignored; set \
                     enableServiceLinks: false"
                        .to_owned(),
                );
                continue;
            }
            let outcome = (field.set)(config, &from_text(text, field.kind));
            note(config, errors, field.variable, outcome);
        }
        for def in BACKENDS {
            let variable = max_sandboxes_variable(def.name);
            if let Some(text) = get(&variable) {
                let number = from_text(text, Kind::Number);
                let outcome = set_max_sandboxes(config, def.name, &number).map(|()| None);
                note(config, errors, &variable, outcome);
            }
        }
    }
}

fn note(
    config: &mut Config,
    errors: &mut Vec<String>,
    variable: &str,
    outcome: Result<Option<String>, Bad>,
) {
    match outcome {
        Ok(None) => {}
        Ok(Some(warning)) => config.warnings.push(format!("{variable} {warning}")),
        Err(Bad(inside, wrong)) => {
            let at = inside.of(&At::Document);
            errors.push(format!("{variable}{at} {wrong}"));
        }
    }
}

fn from_text(text: &str, kind: Kind) -> Node<'_> {
    let text = text.trim();
    let whole = Node::Text(text.into());
    match kind {
        Kind::Text => whole,
        Kind::Number => {
            let integer = text.parse::<u64>().ok().map(Number::from);
            integer
                .or_else(|| text.parse::<i64>().ok().map(Number::from))
                .or_else(|| text.parse::<f64>().ok().and_then(Number::from_f64))
                .map_or(whole, Node::Number)
        }
        Kind::List => {
            let items = text.split(',').map(str::trim);
            let named = items.filter(|item| !item.is_empty());
            Node::Array(named.map(|item| Node::Text(item.into())).collect())
        }
    }
}
