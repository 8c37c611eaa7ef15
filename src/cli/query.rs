//! `sandcaster query`: the same runner in this process, its events on the terminal.

use std::io::{self, Read as _};
use std::path::{Component, Path};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::args::Query;
use super::exit::{FAILED, INTERRUPTED, REFUSED};
use super::printer::Printer;
use super::show::{Piece, Show};
use crate::app::{App, Role, StartError};
use crate::config::{Config, QueryRequest};
use crate::error::Problem;
use crate::events::EventType;
use crate::ids::RunId;
use crate::runs::RunHandle;
use crate::signals::Signals;

/// More than a request may carry; reading stops there.
const MOST_BYTES: u64 = 10_000_001;
const LONGEST_STOP: Duration = Duration::from_secs(10);
/// After a second signal.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Runs one prompt to its end.
pub(super) async fn run(query: Query, config: Config, cwd: &Path, printer: Printer) -> u8 {
    for warning in &config.warnings {
        printer.note(&format!("warning: {warning}"));
    }
    let json = query.json;
    let request = match body(query, cwd).and_then(|body| {
        QueryRequest::parse(body.as_bytes()).map_err(|problem| described(&problem))
    }) {
        Ok(request) => request,
        Err(error) => {
            printer.note(&format!("error: {error}"));
            return REFUSED;
        }
    };
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            printer.note(&format!("error: {error}"));
            return FAILED;
        }
    };
    let app = match App::build_until(config, Role::OneShot, signals.next()).await {
        Ok(app) => app,
        Err(error) => {
            printer.note(&format!("error: {error}"));
            return match error {
                StartError::Stopped => INTERRUPTED,
                StartError::Store(_) | StartError::Http(_) => REFUSED,
            };
        }
    };
    let code = match start(&app, request).await {
        Ok(handle) => {
            follow(
                &app,
                handle,
                signals,
                Show::new(json, printer.notes_on_terminal()),
                printer,
            )
            .await
        }
        Err((code, error)) => {
            printer.note(&format!("error: {error}"));
            code
        }
    };
    let limit = if code == INTERRUPTED {
        AT_ONCE
    } else {
        LONGEST_STOP
    };
    if tokio::time::timeout(limit, app.shutdown()).await.is_err() {
        printer.note("warning: the run's sandbox did not end in time; the next start removes it");
    }
    code
}

/// Starts the run; else the exit code and why.
async fn start(app: &App, request: QueryRequest) -> Result<RunHandle, (u8, String)> {
    // What can't be done with these arguments and settings, as opposed to what went wrong.
    let spec = app
        .config
        .resolve(request, &app.usable)
        .map_err(|problem| (REFUSED, described(&problem)))?;
    app.runs
        .start(spec)
        .await
        .map_err(|problem| (FAILED, described(&problem)))
}

/// Shows events until the terminal one.
async fn follow(
    app: &App,
    handle: RunHandle,
    mut signals: Signals,
    mut show: Show,
    printer: Printer,
) -> u8 {
    let RunHandle { id, mut reader } = handle;
    let mut cancelled = false;
    let mut ended = None;
    loop {
        // The signal first, so that a busy stream can't hold it up; `next` loses no event by it.
        let event = tokio::select! {
            biased;
            () = signals.next() => {
                if cancelled {
                    return INTERRUPTED;
                }
                cancelled = true;
                printer.note("cancelling the run; once more to leave at once");
                cancel(app, &id, printer).await;
                continue;
            }
            event = reader.next() => event,
        };
        match event {
            Ok(Some(event)) => {
                if event.kind.terminal() {
                    ended = Some(event.kind);
                }
                if print(printer, show.event(&event)).is_err() && !cancelled {
                    // Nobody reads the answer any more, as with `| head`.
                    cancelled = true;
                    cancel(app, &id, printer).await;
                }
            }
            Ok(None) => break,
            Err(error) => {
                printer.note(&format!("error: the run can't be read any more: {error}"));
                return FAILED;
            }
        }
    }
    if ended == Some(EventType::Result) {
        0
    } else {
        FAILED
    }
}

async fn cancel(app: &App, id: &RunId, printer: Printer) {
    if let Err(problem) = app.runs.cancel(id).await {
        printer.note(&format!("error: {}", described(&problem)));
    }
}

fn print(printer: Printer, pieces: Vec<Piece>) -> io::Result<()> {
    for piece in pieces {
        match piece {
            Piece::Out(text) => printer.text(&text)?,
            Piece::Note(text) => printer.note(&text),
        }
    }
    Ok(())
}

/// The request's body, so that the command line is checked exactly as the API is.
fn body(query: Query, cwd: &Path) -> Result<String, String> {
    let Query {
        prompt,
        model,
        provider,
        sandbox_provider,
        files,
        timeout,
        max_turns,
        // Taken into the settings already.
        template: _,
        json: _,
    } = query;
    let mut body = Map::new();
    body.insert("prompt".to_owned(), Value::String(prompt));
    let texts = [
        ("model", model),
        ("provider", provider),
        ("sandboxProvider", sandbox_provider),
    ];
    for (name, value) in texts {
        body.extend(value.map(|value| (name.to_owned(), Value::String(value))));
    }
    for (name, value) in [("timeout", timeout), ("maxTurns", max_turns)] {
        body.extend(value.map(|value| (name.to_owned(), Value::from(value))));
    }
    if !files.is_empty() {
        let files: Result<Vec<Value>, String> = files
            .iter()
            .map(|path| {
                let bytes = read(&cwd.join(path))
                    .map_err(|error| format!("{} can't be read: {error}", path.display()))?;
                Ok(json!({ "name": name_of(path), "content": STANDARD.encode(bytes) }))
            })
            .collect();
        body.insert("files".to_owned(), Value::Array(files?));
    }
    serde_json::to_string(&body).map_err(|error| error.to_string())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MOST_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A path inside the working directory keeps its directories; any other is named by its last part.
fn name_of(path: &Path) -> String {
    let inside = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let name = if inside {
        Some(path.as_os_str())
    } else {
        path.file_name()
    };
    name.unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

fn described(problem: &Problem) -> String {
    let mut text = problem.message.clone();
    if problem.details.len() > 1 {
        for detail in &problem.details {
            text = format!("{text}\n  {}: {}", detail.path, detail.message);
        }
    }
    if let Some(hint) = &problem.hint {
        text = format!("{text}\nhint: {hint}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_as_the_agent_should_see_them() {
        for (path, name) in [
            ("data/a.csv", "data/a.csv"),
            ("./a.csv", "./a.csv"),
            ("/etc/hosts", "hosts"),
            ("../up/b.txt", "b.txt"),
        ] {
            assert_eq!(name_of(Path::new(path)), name);
        }
    }
}
