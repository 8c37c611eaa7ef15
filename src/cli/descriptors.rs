//! How many files and connections this process may have open.

/// Enough for every connection and run that there may be; a limit far beyond it makes programs slow that close
/// whatever may be open.
#[cfg(target_os = "linux")]
const WANTED: u64 = 1 << 16;

/// What every system gives without asking, and what a server needs: connections that are refused need some too.
const USUAL: u64 = 256;

/// As [`raise`]; else why a server can't do its work here.
pub(super) fn for_a_server() -> Result<u64, String> {
    let most = raise();
    if most < USUAL {
        return Err(format!(
            "this process may have only {most} files and connections open, and a server needs {USUAL}: raise the \
             limit (ulimit -n)"
        ));
    }
    Ok(most)
}

/// Raises the limit of this process as far as it may by itself, and gives what then holds.
#[cfg(target_os = "linux")]
fn raise() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return USUAL;
    };
    let wanted = WANTED.min(hard);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        return wanted;
    }
    soft
}

/// What is certain.
#[cfg(not(target_os = "linux"))]
fn raise() -> u64 {
    USUAL
}
