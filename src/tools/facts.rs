//! What is known of a sandbox after one look into it.

use std::fmt::Write as _;
use std::time::Duration;

use crate::clock::Deadline;
use crate::sandbox::{Sandbox, Script};
use crate::show::{one_line, size};

/// Programs that a model asks for first.
const PROGRAMS: &[&str] = &["python3", "node", "git", "curl", "jq", "rg"];
/// The probe must not hold up the first tool call; what it has said by then counts.
const LIMIT: Duration = Duration::from_secs(2);

/// Says one fact a line, the login shell's PATH last: a slow profile may use up the time. Where no process can be
/// started, nothing is said.
const PROBE: &str = r#"
d=/tmp/.sandcaster
{ mkdir -p "$d" && echo >"$d/room"; } 2>/dev/null || d=$HOME/.sandcaster
echo "state=$d"
if command -v bash >/dev/null 2>&1; then b=bash; else b=sh; fi
echo "shell=$b"
echo "home=$HOME"
for p in "$@"; do command -v "$p" >/dev/null 2>&1 && echo "has=$p"; done
echo "looked=1"
echo "own=$PATH"
echo "uid=$(id -u 2>/dev/null)"
echo "arch=$(uname -m 2>/dev/null)"
if [ -r /etc/os-release ]; then echo "os=$(. /etc/os-release 2>/dev/null; echo "$PRETTY_NAME")"; fi
df -kP . 2>/dev/null | { read -r _; read -r _ _ _ free _; echo "free=$free"; }
"$b" -lc 'echo "path=$PATH"' </dev/null 2>/dev/null | grep '^path=/'
"#;

/// What the probe found. Where it found nothing, the default is what any POSIX image has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The shell that commands run in: `bash` or `sh`.
    pub shell: String,
    /// The PATH of a login shell, with the sandbox's own in it.
    pub path: Option<String>,
    /// The operating system's name for itself.
    pub os: Option<String>,
    /// The machine's architecture.
    pub arch: Option<String>,
    /// Which of the usual programs there are.
    pub programs: Vec<&'static str>,
    /// All of them were looked for.
    pub looked: bool,
    /// Free space in the working directory, in bytes.
    pub disk_free: Option<u64>,
    /// The user that commands run as.
    pub uid: Option<u32>,
    /// That user's home.
    pub home: String,
    /// Where relative paths start.
    pub working_dir: String,
    /// Where outputs are kept: not in the working directory, so that they are no result of the run.
    pub state_dir: String,
    /// The look was taken and gave something.
    pub known: bool,
}

/// Directories that a system's profile names when it sets PATH anew.
const STANDARD: &[&str] = &[
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// The login shell's PATH, in which nothing of the sandbox's own is lost: what a profile adds, what the image
/// was made for, what every system has.
fn merged(own: &str, login: &str) -> String {
    let own: Vec<&str> = own.split(':').filter(|dir| !dir.is_empty()).collect();
    let (added, standard): (Vec<&str>, Vec<&str>) = login
        .split(':')
        .filter(|dir| !own.contains(dir))
        .partition(|dir| !STANDARD.contains(dir));
    [added, own, standard].concat().join(":")
}

impl Facts {
    pub(super) fn unknown(working_dir: &str) -> Self {
        Self {
            shell: "sh".to_owned(),
            path: None,
            os: None,
            arch: None,
            programs: Vec::new(),
            looked: false,
            disk_free: None,
            uid: None,
            home: working_dir.to_owned(),
            working_dir: working_dir.to_owned(),
            state_dir: "/tmp/.sandcaster".to_owned(),
            known: false,
        }
    }

    /// Looks once, for at most two seconds. A sandbox without a shell gives the defaults.
    pub(super) async fn look(sandbox: &dyn Sandbox) -> Self {
        let mut facts = Self::unknown(sandbox.working_dir());
        let found = Script {
            text: PROBE,
            args: PROGRAMS.to_vec(),
            cwd: sandbox.working_dir(),
            keep: 64 * 1024,
            ..Script::default()
        }
        .run_until(sandbox, Deadline::after(LIMIT))
        .await;
        for line in String::from_utf8_lossy(&found).lines() {
            if let Some((name, value)) = line.split_once('=') {
                facts.learn(name, value.trim());
            }
        }
        facts
    }

    fn learn(&mut self, name: &str, value: &str) {
        if value.is_empty() || value.len() > 4096 {
            return;
        }
        let value_owned = || one_line(value);
        match name {
            "state" if value.starts_with('/') => value.clone_into(&mut self.state_dir),
            "shell" if value == "bash" => "bash".clone_into(&mut self.shell),
            "home" if value.starts_with('/') => value.clone_into(&mut self.home),
            "has" => self
                .programs
                .extend(PROGRAMS.iter().filter(|program| **program == value)),
            "looked" => self.looked = true,
            "uid" => self.uid = value.parse().ok(),
            "arch" => self.arch = Some(value_owned()),
            // Nothing is cut: half of a key could stay.
            "os" if value.len() <= 200 => self.os = Some(value_owned()),
            "free" => {
                self.disk_free = value
                    .parse::<u64>()
                    .ok()
                    .and_then(|kib| kib.checked_mul(1024));
            }
            "own" => self.path = Some(value.to_owned()),
            "path" => self.path = Some(merged(self.path.as_deref().unwrap_or_default(), value)),
            _ => return,
        }
        self.known = true;
    }

    /// One paragraph for the model, shown once with the first results; empty when nothing is known.
    pub fn notice(&self) -> String {
        if !self.known {
            return String::new();
        }
        let mut out = String::from("Sandbox:");
        for fact in [&self.os, &self.arch].into_iter().flatten() {
            write!(out, " {fact},").ok();
        }
        write!(out, " shell {}", self.shell).ok();
        if let Some(uid) = self.uid {
            write!(out, ", uid {uid}").ok();
        }
        write!(out, "; working directory {}", one_line(&self.working_dir)).ok();
        if let Some(free) = self.disk_free {
            write!(out, " ({} free)", size(free)).ok();
        }
        out.push('.');
        if let Some(programs) = self.programs_in_words() {
            write!(out, " {programs}.").ok();
        }
        out
    }

    /// Which of the usual programs there are and which not, if they were looked for.
    pub(super) fn programs_in_words(&self) -> Option<String> {
        if !self.looked {
            return None;
        }
        let (there, missing): (Vec<_>, Vec<_>) = PROGRAMS
            .iter()
            .partition(|program| self.programs.contains(program));
        let list = |names: Vec<&&str>| names.into_iter().copied().collect::<Vec<_>>().join(" ");
        Some(match (there.is_empty(), missing.is_empty()) {
            (true, _) => format!("Not installed: {}", list(missing)),
            (_, true) => format!("Installed: {}", list(there)),
            _ => format!("Installed: {}; not: {}", list(there), list(missing)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_system_has_is_not_believed() {
        let mut facts = Facts::unknown("/w");
        facts.learn("free", &u64::MAX.to_string());
        facts.learn("os", &"x".repeat(201));
        assert_eq!((facts.disk_free, &facts.os), (None, &None));
        facts.learn("free", "3");
        assert_eq!(facts.disk_free, Some(3072));
    }

    #[test]
    fn a_profile_adds_to_the_path_and_hides_nothing() {
        for (own, login, both) in [
            ("/bin", "/opt/x:/bin", "/opt/x:/bin"),
            ("/venv:/usr/bin", "/usr/bin:/bin", "/venv:/usr/bin:/bin"),
            (
                "/venv:/bin",
                "/conda:/usr/bin:/bin",
                "/conda:/venv:/bin:/usr/bin",
            ),
            ("", "/usr/bin", "/usr/bin"),
        ] {
            assert_eq!(merged(own, login), both);
        }
    }
}
