//! The composition root: settings in, a running system out. Used by `serve`, the command line and tests.

use std::sync::Arc;

use crate::config::{Config, Usable};
use crate::runs::Runs;

/// Everything that a request needs. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The settings.
    pub config: Arc<Config>,
    /// Which sandbox backends can be used.
    pub usable: Arc<Usable>,
    /// The runs.
    pub runs: Runs,
}
