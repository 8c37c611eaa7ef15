//! What the tools of one sandbox remember between calls.

use parking_lot::Mutex;

/// The state that calls of one run share.
#[derive(Debug)]
pub struct ShellSession {
    cwd: Mutex<String>,
}

impl ShellSession {
    /// A session that starts in `working_dir`.
    pub fn new(working_dir: &str) -> Self {
        Self {
            cwd: Mutex::new(working_dir.to_owned()),
        }
    }

    /// The directory that the next command starts in.
    pub fn cwd(&self) -> String {
        self.cwd.lock().clone()
    }
}
