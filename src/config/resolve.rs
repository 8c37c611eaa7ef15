//! Request over file over environment over defaults: the one place where choices are made.

use std::collections::BTreeMap;

use super::{Config, QueryRequest};
use crate::error::{ErrorCode, Problem};
use crate::sandbox::SandboxError;
use crate::spec::RunSpec;

/// Which sandbox backends can be used here, as probed at start.
#[derive(Clone, Debug, Default)]
pub struct Usable {
    /// By the backend's name: usable, or why not.
    pub backends: BTreeMap<&'static str, Result<(), SandboxError>>,
}

impl Config {
    /// Makes every choice that a run needs.
    ///
    /// # Errors
    /// What can be known to be impossible now, with the field and a hint.
    pub fn resolve(&self, _request: QueryRequest, _usable: &Usable) -> Result<RunSpec, Problem> {
        Err(Problem::new(
            ErrorCode::NotImplemented,
            "requests can't be resolved yet",
        ))
    }
}
