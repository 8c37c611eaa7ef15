//! What the host tells its launcher: by command line, so that a sandbox can be found by its labels.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ids::RunId;
use crate::sandbox::def::LocalLimits;
use crate::sandbox::types::Labels;

/// The hidden subcommand.
pub(super) const SUBCOMMAND: &str = "__sandbox";

const ID: &str = "sandcaster-sandbox=";
const RUN: &str = "sandcaster-run=";
const INSTANCE: &str = "sandcaster-instance=";
const ATTEMPT: &str = "sandcaster-attempt=";
const EXPIRES: &str = "sandcaster-expires=";

/// How a sandbox is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Settings {
    /// The host's process that starts the launcher; when that isn't its parent any more, it is orphaned.
    pub(super) parent: u32,
    pub(super) memory_mb: u64,
    pub(super) disk_mb: u64,
    pub(super) max_processes: u64,
    /// The uid and gid to become when started by root.
    pub(super) host_uid: u32,
    pub(super) read_only_paths: Vec<PathBuf>,
    /// Walls to leave out, to prove that their tests can fail.
    #[cfg(debug_assertions)]
    #[serde(default)]
    pub(super) without: Vec<Wall>,
}

/// A wall that a test build can leave out. Release builds can't: they have no such setting, and refuse
/// it as unknown.
#[cfg(debug_assertions)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Wall {
    Seccomp,
    Landlock,
    Capabilities,
    NetworkNamespace,
    ReadOnlyMounts,
    OwnRoot,
    ClosedDescriptors,
    HiddenAgent,
    ProcessLimit,
    MemoryWatchdog,
}

impl Settings {
    pub(super) fn new(limits: &LocalLimits) -> Self {
        Self {
            parent: std::process::id(),
            memory_mb: limits.memory_mb,
            disk_mb: limits.disk_mb,
            max_processes: limits.max_processes,
            host_uid: limits.host_uid,
            read_only_paths: limits.read_only_paths.clone(),
            #[cfg(debug_assertions)]
            without: Vec::new(),
        }
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_mb << 20
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_mb << 20
    }

    /// Size of `/tmp`: a quarter of the memory, at most 256 MiB.
    pub(super) fn tmp_bytes(&self) -> u64 {
        (self.memory_bytes() / 4).min(256 << 20)
    }

    /// Size of `/dev/shm`.
    pub(super) fn shm_bytes(&self) -> u64 {
        (self.memory_bytes() / 16).min(64 << 20)
    }
}

/// Whether a wall stands. Always, in a release build.
macro_rules! stands {
    ($settings:expr, $wall:ident) => {{
        #[cfg(debug_assertions)]
        {
            !$settings
                .without
                .contains(&$crate::sandbox::local::settings::Wall::$wall)
        }
        #[cfg(not(debug_assertions))]
        {
            let _: &$crate::sandbox::local::settings::Settings = $settings;
            true
        }
    }};
}
pub(super) use stands;

/// The launcher's arguments.
pub(super) fn arguments(id: &str, labels: &Labels, settings: &Settings) -> Vec<String> {
    vec![
        SUBCOMMAND.to_owned(),
        format!("{ID}{id}"),
        format!("{RUN}{}", labels.run),
        format!("{INSTANCE}{}", labels.instance),
        format!("{ATTEMPT}{}", labels.attempt),
        format!("{EXPIRES}{}", labels.expires),
        serde_json::to_string(settings).unwrap_or_default(),
    ]
}

/// The settings in a launcher's arguments.
pub(super) fn settings_in(arguments: &[String]) -> Option<Settings> {
    serde_json::from_str(arguments.last()?).ok()
}

/// What a command line of a launcher says about its sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LabelsInArgv {
    pub(super) id: String,
    pub(super) run: Option<RunId>,
    pub(super) instance: String,
}

/// Reads the content of a `/proc/<pid>/cmdline`; `None` if that is no launcher's.
pub(super) fn labels_in(cmdline: &[u8]) -> Option<LabelsInArgv> {
    let mut words = cmdline
        .split(|byte| *byte == 0)
        .map(|word| std::str::from_utf8(word).unwrap_or_default())
        .skip(1);
    if words.next() != Some(SUBCOMMAND) {
        return None;
    }
    let (mut id, mut run, mut instance) = (None, None, None);
    for word in words {
        if let Some(value) = word.strip_prefix(ID) {
            id = Some(value.to_owned());
        } else if let Some(value) = word.strip_prefix(RUN) {
            run = RunId::parse(value);
        } else if let Some(value) = word.strip_prefix(INSTANCE) {
            instance = Some(value.to_owned());
        }
    }
    Some(LabelsInArgv {
        id: id?,
        run,
        instance: instance?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_again_in_a_command_line() {
        let labels = Labels {
            run: RunId::new(),
            instance: "inst-1".to_owned(),
            attempt: 1,
            expires: 17,
        };
        let settings = Settings::new(&LocalLimits::default());
        let arguments = arguments("abc", &labels, &settings);
        let cmdline = format!("/proc/self/exe\0{}\0", arguments.join("\0"));
        assert_eq!(
            labels_in(cmdline.as_bytes()),
            Some(LabelsInArgv {
                id: "abc".to_owned(),
                run: Some(labels.run),
                instance: "inst-1".to_owned()
            })
        );
        assert_eq!(settings_in(&arguments), Some(settings));
        assert_eq!(labels_in(b"bash\0-c\0__sandbox\0"), None);
        assert_eq!(labels_in(b""), None);
    }

    #[test]
    fn unknown_settings_are_refused() {
        let text = r#"{"parent":1,"memoryMb":1,"diskMb":1,"maxProcesses":1,"hostUid":1,"readOnlyPaths":[],"x":1}"#;
        assert_eq!(settings_in(&[text.to_owned()]), None);
    }
}
