//! Why this host can't make a sandbox, and what to do about it: by the step that failed, its error
//! number, and what the host says about itself.

use std::fs;
use std::path::Path;

use nix::errno::Errno;

use super::protocol::{Failed, Step};
use crate::sandbox::types::SandboxError;

/// What the host says about itself, as far as it explains a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostFacts {
    kernel: String,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1.
    apparmor_restricts: bool,
    /// `kernel.unprivileged_userns_clone` is 0.
    userns_off: bool,
    /// `user.max_user_namespaces` is 0.
    no_userns_left: bool,
    /// Inside a container, or behind somebody's system call filter.
    contained: bool,
}

impl HostFacts {
    pub(super) fn gather() -> Self {
        let text = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let status = text("/proc/self/status");
        let filtered = status
            .lines()
            .filter_map(|line| line.strip_prefix("Seccomp:"))
            .any(|mode| mode.trim() == "2");
        Self {
            kernel: text("/proc/sys/kernel/osrelease"),
            apparmor_restricts: text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
                == "1",
            userns_off: text("/proc/sys/kernel/unprivileged_userns_clone") == "0",
            no_userns_left: text("/proc/sys/user/max_user_namespaces") == "0",
            contained: filtered
                || Path::new("/.dockerenv").exists()
                || Path::new("/run/.containerenv").exists()
                || Path::new("/var/run/secrets/kubernetes.io").exists(),
        }
    }
}

const IN_CONTAINER: &str = "start the container with `--security-opt seccomp=unconfined --security-opt systempaths=unconfined` (Kubernetes: `hostUsers: false` and `procMount: Unmasked`), or use another sandbox backend";

/// The error that says it.
pub(super) fn explain(failed: &Failed, facts: &HostFacts) -> SandboxError {
    let errno = Errno::from_raw(failed.errno);
    let refused = matches!(errno, Errno::EPERM | Errno::EACCES);
    let cannot = |message: &str, hint: &str| SandboxError::HostCannot {
        message: format!("this host can't make local sandboxes: {message}"),
        hint: hint.to_owned(),
    };
    match failed.step {
        Step::Unshare if errno == Errno::ENOSPC => cannot(
            if facts.no_userns_left {
                "user namespaces are switched off (`user.max_user_namespaces` is 0)"
            } else {
                "the limit of user namespaces is used up"
            },
            "raise it: `sysctl -w user.max_user_namespaces=10000`",
        ),
        Step::Unshare if matches!(errno, Errno::EINVAL | Errno::ENOSYS) => cannot(
            "its kernel has no user namespaces",
            "use a kernel built with CONFIG_USER_NS, or another sandbox backend",
        ),
        Step::Unshare if refused && facts.userns_off => cannot(
            "unprivileged user namespaces are switched off (`kernel.unprivileged_userns_clone` is 0)",
            "switch them on: `sysctl -w kernel.unprivileged_userns_clone=1`",
        ),
        Step::Unshare | Step::IdMap | Step::Mount | Step::Loopback
            if refused && facts.apparmor_restricts =>
        {
            cannot(
                "AppArmor restricts unprivileged user namespaces (`kernel.apparmor_restrict_unprivileged_userns` is 1)",
                "add an AppArmor profile with `userns,` for this program, or `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`",
            )
        }
        Step::MountProc if refused => cannot(
            "it refuses a new /proc, as inside a container whose own /proc is masked",
            IN_CONTAINER,
        ),
        Step::Unshare | Step::IdMap | Step::Mount | Step::PivotRoot
            if refused && facts.contained =>
        {
            cannot(
                "the container that this runs in forbids namespaces or mounts",
                IN_CONTAINER,
            )
        }
        Step::Unshare | Step::IdMap if refused => cannot(
            "it refuses user namespaces",
            "allow unprivileged user namespaces for this program, or use another sandbox backend",
        ),
        Step::MountAttributes if errno == Errno::ENOSYS => cannot(
            &format!(
                "its kernel is older than 5.12 (it is {})",
                facts.kernel
            ),
            "use a newer kernel, or another sandbox backend",
        ),
        Step::BecomeUser => cannot(
            &format!("it refuses the change to another user ({})", detail(failed)),
            "set `local.hostUid` to an unprivileged uid that exists in this environment, or run the server as an ordinary user",
        ),
        Step::ReadOnlyPath => SandboxError::HostCannot {
            message: format!(
                "`local.readOnlyPaths` has {}, which can't be shown in a sandbox: {}",
                failed.about,
                reason(failed)
            ),
            hint: "it must exist and be readable by the user that sandboxes run as (`local.hostUid` when the server is root)".to_owned(),
        },
        Step::Prepare
        | Step::Unshare
        | Step::IdMap
        | Step::Fork
        | Step::Mount
        | Step::MountAttributes
        | Step::MountProc
        | Step::PivotRoot
        | Step::Loopback
        | Step::Capabilities
        | Step::Limits
        | Step::Landlock
        | Step::Seccomp
        | Step::Agent => cannot(
            &format!("step {:?} failed ({})", failed.step, detail(failed)),
            "use another sandbox backend, or report this with the output of `sandcaster doctor`",
        ),
    }
}

fn reason(failed: &Failed) -> String {
    match failed.errno {
        0 => "no reason given".to_owned(),
        errno => Errno::from_raw(errno).desc().to_lowercase(),
    }
}

/// What and why. The launcher's words are bounded here: they come from outside this process.
fn detail(failed: &Failed) -> String {
    let about: String = failed.about.chars().take(200).collect();
    match (about.as_str(), failed.errno) {
        ("", _) => reason(failed),
        (about, 0) => about.to_owned(),
        (about, _) => format!("{about}: {}", reason(failed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(step: Step, errno: Errno, facts: &HostFacts) -> (String, String) {
        let failed = Failed {
            step,
            errno: errno as i32,
            about: String::new(),
        };
        match explain(&failed, facts) {
            SandboxError::HostCannot { message, hint } => (message, hint),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_known_refusal_names_its_cause_and_its_cure() {
        let plain = HostFacts::default();
        let with = |change: fn(&mut HostFacts)| {
            let mut facts = HostFacts::default();
            change(&mut facts);
            facts
        };
        let apparmor = with(|facts| facts.apparmor_restricts = true);
        let off = with(|facts| facts.userns_off = true);
        let contained = with(|facts| facts.contained = true);
        for (step, errno, facts, cause, cure) in [
            (
                Step::Unshare,
                Errno::ENOSPC,
                &plain,
                "used up",
                "max_user_namespaces",
            ),
            (
                Step::Unshare,
                Errno::EINVAL,
                &plain,
                "no user namespaces",
                "CONFIG_USER_NS",
            ),
            (
                Step::Unshare,
                Errno::EPERM,
                &off,
                "switched off",
                "unprivileged_userns_clone=1",
            ),
            (
                Step::Unshare,
                Errno::EPERM,
                &apparmor,
                "AppArmor",
                "userns,",
            ),
            (Step::IdMap, Errno::EACCES, &apparmor, "AppArmor", "userns,"),
            (
                Step::Unshare,
                Errno::EPERM,
                &contained,
                "container",
                "seccomp=unconfined",
            ),
            (
                Step::MountProc,
                Errno::EPERM,
                &plain,
                "/proc",
                "systempaths=unconfined",
            ),
            (
                Step::MountAttributes,
                Errno::ENOSYS,
                &plain,
                "5.12",
                "newer kernel",
            ),
            (
                Step::Unshare,
                Errno::EPERM,
                &plain,
                "refuses user namespaces",
                "another sandbox",
            ),
            (Step::Landlock, Errno::EIO, &plain, "Landlock", "doctor"),
        ] {
            let (message, hint) = told(step, errno, facts);
            assert!(message.contains(cause), "{step:?} {errno}: {message}");
            assert!(hint.contains(cure), "{step:?} {errno}: {hint}");
        }
    }
}
