//! A shim: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First, while the process has one thread and nothing open: a `local` sandbox re-executes this program.
    if let Some(code) = sandcaster::sandbox::local::launcher_main() {
        return code;
    }
    sandcaster::cli::main()
}
