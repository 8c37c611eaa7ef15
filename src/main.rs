//! A shim.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = sandcaster::sandbox::local::launcher_main() {
        return code;
    }
    ExitCode::SUCCESS
}
