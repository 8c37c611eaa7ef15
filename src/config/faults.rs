//! The faults of one request, gathered into one answer.

use super::check::Wrong;
use super::json::Path;
use crate::error::{Detail, ErrorCode, Problem};

/// Faults that one answer lists.
const MOST_LISTED: usize = 20;

/// What was found wrong so far. What is known but not built yet is kept apart: it only counts when
/// nothing else is wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    wrong: Vec<(Path, Wrong)>,
    unlisted: usize,
    planned: Vec<(Path, String)>,
}

impl Faults {
    /// A value that breaks a rule.
    pub(crate) fn add(&mut self, path: Path, wrong: Wrong) {
        self.add_with(path, || wrong);
    }

    /// As [`Self::add`], where the fault costs something to describe.
    pub(crate) fn add_with(&mut self, path: Path, wrong: impl FnOnce() -> Wrong) {
        if self.wrong.len() < MOST_LISTED {
            self.wrong.push((path, wrong()));
        } else {
            self.unlisted += 1;
        }
    }

    /// The value, or `None` once its fault is noted.
    pub(crate) fn note<T>(&mut self, path: Path, result: Result<T, Wrong>) -> Option<T> {
        result.map_err(|wrong| self.add(path, wrong)).ok()
    }

    /// Something that sandcaster will do, but doesn't yet.
    pub(crate) fn planned(&mut self, path: Path, message: impl Into<String>) {
        if self.planned.len() < MOST_LISTED {
            self.planned.push((path, message.into()));
        }
    }

    /// The answer, if anything was wrong.
    pub(crate) fn into_result(self) -> Result<(), Problem> {
        if let Some((path, wrong)) = self.wrong.first() {
            let same = self.wrong.iter().all(|(_, other)| other.code == wrong.code);
            let code = if same {
                wrong.code
            } else {
                ErrorCode::ValidationFailed
            };
            let found = self.wrong.len() + self.unlisted;
            let mut message = format!("Validation failed: `{path}` {}", wrong.message);
            if found > 1 {
                message = format!("{message} (and {} more, see details)", found - 1);
            }
            let mut problem = Problem::new(code, message);
            problem.hint.clone_from(&wrong.hint);
            problem.details = self.wrong.iter().map(detail).collect();
            if let (Some(last), more @ 1..) = (problem.details.last_mut(), self.unlisted) {
                last.message = format!(
                    "{} (and {more} further faults that are not listed)",
                    last.message
                );
            }
            return Err(problem);
        }
        if let Some((path, message)) = self.planned.first() {
            let mut problem =
                Problem::new(ErrorCode::NotImplemented, format!("`{path}` {message}"))
                    .hint("leave it out; it is known, and will come with a later version");
            problem.details = self
                .planned
                .iter()
                .map(|(path, message)| Detail {
                    path: path.to_string(),
                    message: message.clone(),
                })
                .collect();
            return Err(problem);
        }
        Ok(())
    }
}

fn detail((path, wrong): &(Path, Wrong)) -> Detail {
    let message = match &wrong.hint {
        Some(hint) => format!("{}; {hint}", wrong.message),
        None => wrong.message.clone(),
    };
    Detail {
        path: path.to_string(),
        message,
    }
}
