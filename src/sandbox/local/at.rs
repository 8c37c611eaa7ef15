//! Failures of system calls, with the step that failed.

use super::protocol::{Failed, Step};

/// A failed step with what it was about.
pub(super) trait At<T> {
    fn at(self, step: Step, about: &str) -> Result<T, Failed>;
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, step: Step, about: &str) -> Result<T, Failed> {
        self.map_err(|errno| Failed {
            step,
            errno: errno as i32,
            about: about.to_owned(),
        })
    }
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, step: Step, about: &str) -> Result<T, Failed> {
        self.map_err(|error| Failed {
            step,
            errno: error.raw_os_error().unwrap_or(0),
            about: about.to_owned(),
        })
    }
}
