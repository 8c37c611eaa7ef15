//! Tells the tests what they can use here, so that a test which needs more shows as ignored, with its reason,
//! instead of passing in silence: the shared evidence (recorded provider traffic), programs, and the rights
//! of root. With `SANDCASTER_REQUIRE_PROGRAMS=1`, as in the gate, nothing is ignored for want of a program.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Programs that are not on every machine, under each of their names.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("bash", &["bash"]),
    ("busybox", &["busybox"]),
    ("chromium", &["chromium", "chromium-headless-shell"]),
    ("curl", &["curl"]),
    ("dash", &["dash"]),
    ("node", &["node"]),
    ("npm", &["npm"]),
    ("prlimit", &["prlimit"]),
    ("python3", &["python3"]),
    ("setpriv", &["setpriv"]),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    shared_evidence();
    programs();
    println!("cargo::rustc-check-cfg=cfg(root_user)");
    if std::fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0) {
        println!("cargo::rustc-cfg=root_user");
    }
}

fn shared_evidence() {
    println!("cargo::rustc-check-cfg=cfg(shared_evidence)");
    let shared = match variable("SANDCASTER_SHARED").as_str() {
        "" => "../shared".to_owned(),
        shared => shared.to_owned(),
    };
    let root = variable("CARGO_MANIFEST_DIR");
    let recordings = Path::new(&root).join(shared).join("recordings");
    if recordings.is_dir() {
        println!("cargo::rerun-if-changed={}", recordings.display());
        println!("cargo::rustc-cfg=shared_evidence");
    }
}

fn programs() {
    let names: Vec<String> = PROGRAMS
        .iter()
        .map(|(name, _)| format!("{name:?}"))
        .collect();
    println!(
        "cargo::rustc-check-cfg=cfg(program, values({}))",
        names.join(", ")
    );
    let required = variable("SANDCASTER_REQUIRE_PROGRAMS") == "1";
    let path = variable("PATH");
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut all = true;
    for (name, files) in PROGRAMS {
        let mut places = files
            .iter()
            .flat_map(|file| dirs.iter().map(move |dir| dir.join(file)));
        let found = places.any(|place| place.is_file());
        all &= found;
        if found || required {
            println!("cargo::rustc-cfg=program={name:?}");
        }
    }
    if !all && !required {
        // What is missing may be installed.
        for dir in dirs.iter().filter(|dir| dir.is_dir()) {
            println!("cargo::rerun-if-changed={}", dir.display());
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a build script has no settings but its environment"
)]
fn variable(name: &str) -> String {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var(name).unwrap_or_default()
}
