//! `sandcaster doctor`: what is set up, what can be used, and why not. Never shows a secret.

use std::path::Path;

use tokio::net::TcpListener;

use super::exit::{FAILED, REFUSED};
use super::printer::Printer;
use crate::config::{Config, Usable};
use crate::error::Problem;
use crate::llm::{self, PROVIDERS, ProviderDef};
use crate::net;
use crate::sandbox::{self, BACKENDS, BackendDef};

/// Looks at everything. The code is 0 if a run is possible here.
pub(super) async fn run(config: &Config, printer: Printer) -> u8 {
    let http = match net::build_with(config.proxies.clone()) {
        Ok(http) => http,
        Err(error) => {
            printer.note(&format!("error: HTTPS can't be used: {error}"));
            return REFUSED;
        }
    };
    let usable = Usable::probe(&sandbox::build(&config.backend_config(http))).await;
    let store = store_fault(&config.data_dir);
    let backend = config.default_backend(&usable);

    let mut report = Report::default();
    report.head(&format!("sandcaster {}", env!("CARGO_PKG_VERSION")));
    let file = config.file.as_ref().map(|path| path.display().to_string());
    report.row(
        "settings",
        &file.unwrap_or_else(|| "no sandcaster.json: defaults".to_owned()),
    );

    report.head("LLM providers");
    for def in PROVIDERS {
        report.row(def.name, &provider_state(config, def));
    }
    report.head("Sandbox backends");
    for def in BACKENDS {
        report.row(def.name, &backend_state(config, def, &usable));
    }
    report.head("A request that names nothing gets");
    let model = config.default_model();
    report.row(
        "model",
        &or_problem(model.map(|model| format!("{} ({})", model.id, model.provider))),
    );
    report.row("sandbox", &or_problem(backend.clone().map(str::to_owned)));

    report.head("Server");
    report.row("address", &address_state(config).await);
    let mut key = variables(config, &["SANDCASTER_API_KEY"]);
    match config.server.api_keys.len() {
        0 => key.push_str(": all requests are accepted"),
        1 => {}
        _ => key.push_str(", two keys"),
    }
    report.row("API key", &key);
    report.row(
        "webhook",
        &variables(config, &["SANDCASTER_WEBHOOK_SECRET"]),
    );
    let state = store
        .clone()
        .err()
        .unwrap_or_else(|| "can be written".to_owned());
    report.row("store", &format!("{}: {state}", config.data_dir.display()));

    let warnings: Vec<String> = config
        .warnings
        .iter()
        .cloned()
        .chain(config.exposure())
        .collect();
    if !warnings.is_empty() {
        report.head("Warnings");
        for warning in &warnings {
            report.row("!", warning);
        }
    }
    if printer.text(&report.0).is_err() {
        return FAILED;
    }
    if backend.is_ok() && store.is_ok() {
        0
    } else {
        FAILED
    }
}

#[derive(Default)]
struct Report(String);

impl Report {
    fn head(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn row(&mut self, name: &str, text: &str) {
        let row = format!("  {name:<12} {text}\n");
        self.0.push_str(&row);
    }
}

fn or_problem(outcome: Result<String, Problem>) -> String {
    outcome.unwrap_or_else(|problem| match problem.hint {
        Some(hint) => format!("none: {}; {hint}", problem.message),
        None => format!("none: {}", problem.message),
    })
}

/// `ANTHROPIC_API_KEY set (environment)`, for each variable.
fn variables(config: &Config, names: &[&'static str]) -> String {
    let states: Vec<String> = names
        .iter()
        .map(|name| match config.key_sources.get(name) {
            Some(source) => format!("{name} set ({})", source.as_str()),
            None => format!("{name} not set"),
        })
        .collect();
    states.join(", ")
}

fn provider_state(config: &Config, def: &ProviderDef) -> String {
    if matches!(def.build, llm::Build::NotYet) {
        let keys = variables(config, def.key_vars);
        return format!("not implemented yet; {keys}");
    }
    if def.key_vars.is_empty() {
        return "usable; needs no key".to_owned();
    }
    let keys = variables(config, def.key_vars);
    let state = if config.has_key(def) {
        "usable"
    } else {
        "not usable"
    };
    match config.base_urls.get(def.base_url_var) {
        // The URL may hold an internal name; that it is set is what explains a surprise.
        Some(_) => format!("{state}; {keys}; {} set", def.base_url_var),
        None => format!("{state}; {keys}"),
    }
}

fn backend_state(config: &Config, def: &BackendDef, usable: &Usable) -> String {
    let keys = if def.key_vars.is_empty() {
        String::new()
    } else {
        format!("; {}", variables(config, def.key_vars))
    };
    if matches!(def.build, sandbox::Build::NotYet) {
        return format!("not implemented yet{keys}");
    }
    match usable.backends.get(def.name) {
        Some(Ok(())) => format!("usable: {}{keys}", def.isolates),
        Some(Err(error)) => match error.hint() {
            Some(hint) => format!("not usable: {error}; {hint}{keys}"),
            None => format!("not usable: {error}{keys}"),
        },
        None => format!("not usable{keys}"),
    }
}

async fn address_state(config: &Config) -> String {
    let (host, port) = (config.server.host.as_str(), config.server.port);
    match TcpListener::bind((host, port)).await {
        Ok(_) => format!("{host} port {port}: free"),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            format!("{host} port {port}: in use (by a running sandcaster?)")
        }
        Err(error) => format!("{host} port {port}: {error}"),
    }
}

/// Whether the store's directory can be written, or made. Leaves nothing behind.
fn store_fault(dir: &Path) -> Result<(), String> {
    let Some(existing) = dir.ancestors().find(|path| path.exists()) else {
        return Err("no part of the path exists".to_owned());
    };
    if !existing.is_dir() {
        return Err(format!("{} is not a directory", existing.display()));
    }
    let probe = existing.join(format!(".sandcaster-doctor-{}", crate::ids::nonce()));
    std::fs::File::create_new(&probe)
        .and_then(|_| std::fs::remove_file(&probe))
        .map_err(|error| format!("{} can't be written: {error}", existing.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_below_a_file_is_a_fault_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(store_fault(&file.join("store")).is_err());
        assert_eq!(store_fault(&dir.path().join("a/b")), Ok(()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
