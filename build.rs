//! Tells the tests whether the shared evidence (recorded provider traffic) is at hand, so that tests which
//! need it show as ignored where it is not, instead of passing in silence.

use std::path::Path;

#[expect(
    clippy::disallowed_methods,
    reason = "a build script has no settings but its environment"
)]
fn main() {
    println!("cargo::rustc-check-cfg=cfg(shared_evidence)");
    println!("cargo::rerun-if-env-changed=SANDCASTER_SHARED");
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let shared = std::env::var("SANDCASTER_SHARED").unwrap_or_default();
    let shared = if shared.is_empty() {
        Path::new(&root).join("../shared")
    } else {
        Path::new(&root).join(shared)
    };
    let recordings = shared.join("recordings");
    println!("cargo::rerun-if-changed=build.rs");
    if recordings.is_dir() {
        println!("cargo::rerun-if-changed={}", recordings.display());
        println!("cargo::rustc-cfg=shared_evidence");
    }
}
