//! The faults of one request, gathered into one answer.

use std::fmt;

use super::check::Wrong;
use crate::error::{Detail, ErrorCode, Problem};

/// Faults that one answer lists.
const MOST_LISTED: usize = 20;

/// What was found wrong so far. What is known but not built yet is kept apart: it only counts when
/// nothing else is wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    wrong: Vec<(String, Wrong)>,
    unlisted: usize,
    planned: Vec<(String, String)>,
}

impl Faults {
    /// A value that breaks a rule. Of a fault that isn't listed neither the place nor the rule is put into words.
    pub(crate) fn add(&mut self, at: impl fmt::Display, wrong: impl FnOnce() -> Wrong) {
        if self.wrong.len() < MOST_LISTED {
            self.wrong.push((at.to_string(), wrong()));
        } else {
            self.unlisted += 1;
        }
    }

    /// The value, or `None` once its fault is noted.
    pub(crate) fn note<T>(&mut self, at: impl fmt::Display, result: Result<T, Wrong>) -> Option<T> {
        result.map_err(|wrong| self.add(at, || wrong)).ok()
    }

    /// Something that sandcaster will do, but doesn't yet.
    pub(crate) fn planned(&mut self, at: impl fmt::Display, message: impl Into<String>) {
        if self.planned.len() < MOST_LISTED {
            self.planned.push((at.to_string(), message.into()));
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
                    path: path.clone(),
                    message: message.clone(),
                })
                .collect();
            return Err(problem);
        }
        Ok(())
    }
}

fn detail((path, wrong): &(String, Wrong)) -> Detail {
    Detail {
        path: path.clone(),
        message: wrong.to_string(),
    }
}
