//! The walls that every process of the sandbox inherits: limits, no capabilities, Landlock, and the
//! system call filters of [`super::filters`].

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use super::at::At as _;
use super::filters;
use super::mounts::HOME;
use super::protocol::{Failed, Step};
use super::settings::{Settings, stands};
use super::sys;

/// The newest Landlock that this file was written for; an older kernel enforces what it knows.
const LANDLOCK: ABI = ABI::V6;

/// Raises all of them, in the order in which each still has the rights that it needs. Gives what
/// Landlock adds: `enforced`, `partial` or `absent`.
pub(super) fn raise(settings: &Settings) -> Result<&'static str, Failed> {
    limits(settings)?;
    if stands!(settings, Capabilities) {
        sys::drop_capabilities().at(Step::Capabilities, "")?;
    }
    prctl::set_no_new_privs().at(Step::Capabilities, "no_new_privs")?;
    let landlock = if stands!(settings, Landlock) && stands!(settings, OwnRoot) {
        landlock(settings).map_err(|about| Failed {
            step: Step::Landlock,
            errno: 0,
            about,
        })?
    } else {
        "absent"
    };
    if stands!(settings, Seccomp) {
        filters::install().map_err(|about| Failed {
            step: Step::Seccomp,
            errno: 0,
            about,
        })?;
    }
    if stands!(settings, HiddenAgent) {
        prctl::set_dumpable(false).at(Step::Agent, "dumpable")?;
    }
    Ok(landlock)
}

fn limits(settings: &Settings) -> Result<(), Failed> {
    // Generous: V8 and Go reserve far more than they use. What is used is the watchdog's business.
    let data = settings.memory_bytes().saturating_mul(4).max(4 << 30);
    for (resource, limit) in [
        (Resource::RLIMIT_NOFILE, 4096),
        (Resource::RLIMIT_FSIZE, settings.disk_bytes()),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_DATA, data),
        (Resource::RLIMIT_MEMLOCK, 8 << 20),
        (Resource::RLIMIT_MSGQUEUE, 819_200),
        (Resource::RLIMIT_RTPRIO, 0),
    ] {
        limit_to(resource, limit)?;
    }
    if stands!(settings, ProcessLimit) {
        limit_to(Resource::RLIMIT_NPROC, settings.max_processes)?;
    }
    Ok(())
}

fn limit_to(resource: Resource, limit: u64) -> Result<(), Failed> {
    let (_, hard) = getrlimit(resource).at(Step::Limits, "getrlimit")?;
    let limit = limit.min(hard);
    setrlimit(resource, limit, limit).at(Step::Limits, "setrlimit")
}

/// A second wall around the same places that the mounts leave: read and run programs, read `/etc` and
/// `/proc`, use devices, and do anything at home.
fn landlock(settings: &Settings) -> Result<&'static str, String> {
    let run = AccessFs::from_read(LANDLOCK);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let all = AccessFs::from_all(LANDLOCK);
    let use_devices = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let mut places: Vec<(&std::path::Path, BitFlags<AccessFs>)> = Vec::new();
    places.push(("/".as_ref(), AccessFs::ReadDir.into()));
    for path in [
        "/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32",
    ] {
        places.push((path.as_ref(), run));
    }
    for path in &settings.read_only_paths {
        places.push((path.as_ref(), run));
    }
    for path in ["/etc", "/proc"] {
        places.push((path.as_ref(), read));
    }
    places.push(("/dev".as_ref(), use_devices));
    for path in [HOME, "/tmp", "/dev/shm"] {
        places.push((path.as_ref(), all));
    }

    let named = |error: landlock::RulesetError| error.to_string();
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .map_err(named)?
        .scope(Scope::from_all(LANDLOCK))
        .map_err(named)?
        .create()
        .map_err(named)?;
    for (path, access) in places {
        let Ok(metadata) = std::fs::metadata(path) else {
            continue;
        };
        let Ok(fd) = PathFd::new(path) else {
            continue;
        };
        let access = if metadata.is_dir() {
            access
        } else {
            access & AccessFs::from_file(LANDLOCK)
        };
        rules = rules
            .add_rule(PathBeneath::new(fd, access))
            .map_err(named)?;
    }
    let status = rules.restrict_self().map_err(named)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => "enforced",
        RulesetStatus::PartiallyEnforced => "partial",
        RulesetStatus::NotEnforced => "absent",
    })
}
