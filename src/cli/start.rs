//! From the arguments to the exit code: settings, log and runtime for the command that was named.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use super::args::{self, Command, Parsed};
use super::exit::{FAILED, REFUSED};
use super::printer::Printer;
use super::{doctor, memory, query, serve, webhook};
use crate::config::{Config, process_arguments, process_environment, working_directory};
use crate::telemetry::{self, Logging};

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    run(process_arguments())
}

fn run(arguments: Vec<OsString>) -> ExitCode {
    memory::give_back();
    let printer = Printer::new();
    let cli = match args::parse(arguments) {
        Parsed::Command(cli) => cli,
        Parsed::Text(text) => {
            return printer
                .text(&text)
                .map_or(ExitCode::from(FAILED), |()| ExitCode::SUCCESS);
        }
        Parsed::Refused(text) => {
            printer.note(text.trim_end());
            return ExitCode::from(REFUSED);
        }
    };
    let environment = process_environment();
    let loaded = working_directory()
        .map_err(|error| format!("the working directory can't be used: {error}"))
        .and_then(|cwd| {
            let config = Config::load(&cli.overrides(), &environment, &cwd);
            config
                .map(|config| (config, cwd))
                .map_err(|error| error.to_string())
        });
    let (config, cwd) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            for line in error.lines() {
                printer.note(&format!("error: {line}"));
            }
            return ExitCode::from(REFUSED);
        }
    };
    let quiet = match cli.command {
        Command::Serve(_) => "info",
        Command::Query(_) | Command::Doctor | Command::Webhook(_) => "error",
    };
    let _log = telemetry::start(Logging {
        filter: config
            .log
            .filter
            .clone()
            .unwrap_or_else(|| quiet.to_owned()),
        json: config.log.json,
        ansi: printer.notes_on_terminal(),
        redactor: config.redactor(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            printer.note(&format!("error: no threads could be started: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let code = runtime.block_on(async {
        match cli.command {
            Command::Serve(_) => serve::run(config, printer).await,
            Command::Query(query) => query::run(query, config, &cwd, printer).await,
            Command::Doctor => doctor::run(&config, printer).await,
            Command::Webhook(command) => webhook::run(&command, &config, printer).await,
        }
    });
    // Blocking work that hangs must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_millis(200));
    ExitCode::from(code)
}
