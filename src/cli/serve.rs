//! `sandcaster serve`.

use std::io;

use tokio::net::TcpListener;

use super::descriptors;
use super::exit::{FAILED, INTERRUPTED, REFUSED};
use super::printer::Printer;
use crate::api::Limits;
use crate::app::{App, Role, StartError};
use crate::clock::Clock;
use crate::config::Config;
use crate::lifecycle::{self, End};
use crate::signals::Signals;

/// Serves until a signal or a fault.
pub(super) async fn run(config: Config, printer: Printer) -> u8 {
    for warning in config.warnings.iter().chain(config.exposure().as_ref()) {
        tracing::warn!("{warning}");
    }
    if !Clock::system().is_set() {
        printer.note("error: this machine's clock is before 1970 or after 9000: set it");
        return REFUSED;
    }
    let descriptors = match descriptors::for_a_server() {
        Ok(descriptors) => descriptors,
        Err(error) => {
            printer.note(&format!("error: {error}"));
            return REFUSED;
        }
    };
    let (host, port) = (config.server.host.clone(), config.server.port);
    let listener = match TcpListener::bind((host.as_str(), port)).await {
        Ok(listener) => listener,
        Err(error) => {
            printer.note(&format!("error: {}", bind_fault(&host, port, &error)));
            return REFUSED;
        }
    };
    let started = match Signals::new().and_then(|signals| Ok((signals, listener.local_addr()?))) {
        Ok((mut signals, address)) => {
            match App::build_until(config, Role::Serve, signals.next()).await {
                Ok(app) => Ok((signals, address, app)),
                // In order: a supervisor that stops a start has not seen it fail.
                Err(StartError::Stopped) => {
                    printer.note("stopped before it served");
                    return 0;
                }
                Err(error) => Err(error.to_string()),
            }
        }
        Err(error) => Err(error.to_string()),
    };
    let (mut signals, address, app) = match started {
        Ok(started) => started,
        Err(error) => {
            printer.note(&format!("error: {error}"));
            return REFUSED;
        }
    };
    let line = format!(
        "sandcaster listening on http://{address} ({})",
        choices(&app)
    );
    if let Err(error) = printer.line(&line) {
        tracing::warn!("the start line could not be printed: {error}");
    }

    let limits = Limits::fitting(descriptors, app.config.server.max_concurrent_runs);
    match lifecycle::serve(&app, listener, limits, &mut signals).await {
        End::Stopped => 0,
        End::StoppedAtOnce => {
            printer.note(
                "stopped at once; the next start marks the runs that were live as interrupted",
            );
            INTERRUPTED
        }
        End::Broken(why) => {
            printer.note(&format!("error: {why}"));
            FAILED
        }
        End::Hung => {
            printer.note("error: the runs and the store did not end within 10 s");
            FAILED
        }
    }
}

/// Why the address can't be had, and what to do.
fn bind_fault(host: &str, port: u16, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there: stop it, or choose another --port"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need privileges: choose another --port"
        }
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address: change --host",
        _ => "check --host and --port",
    };
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    format!("can't listen on {host}:{port}: {error}; {advice}")
}

/// What a request that says nothing gets, and where runs are kept.
fn choices(app: &App) -> String {
    let provider = app.config.default_model().map_or_else(
        |_| {
            "no provider: set ANTHROPIC_API_KEY, or send \"model\": \"demo\" with a request"
                .to_owned()
        },
        |model| format!("provider {}, model {}", model.provider, model.id),
    );
    let sandbox = app.config.default_backend(&app.usable).map_or_else(
        |_| "no sandbox: see sandcaster doctor".to_owned(),
        |name| format!("sandbox {name}"),
    );
    let store = app.config.data_dir.display();
    format!("{provider}; {sandbox}; store {store}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_fault_names_the_address_and_the_way_out() {
        let error = io::Error::from(io::ErrorKind::AddrInUse);
        let text = bind_fault("::1", 3000, &error);
        assert!(
            text.contains("[::1]:3000") && text.contains("--port"),
            "{text}"
        );
    }
}
