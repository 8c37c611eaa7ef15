//! E2B's own SDKs, which judge the stand-in: pinned by the files in `clients/`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::clients::{INSTALL_PATIENCE, bounded, installed, scripts, succeeded};

/// A Python with E2B's SDK and nothing that is not in `requirements.txt`.
pub async fn e2b_python() -> PathBuf {
    let dir = installed("python", &["e2b==2.63.0"], async |dir| {
        let mut venv = Command::new("python3");
        let venv = bounded(venv.args(["-m", "venv"]).arg(dir), INSTALL_PATIENCE).await;
        succeeded(&venv, "python3 -m venv (Debian: package python3-venv)");
        let mut pip = Command::new(dir.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--no-deps"])
            .args(["--disable-pip-version-check", "-r"])
            .arg(scripts().join("requirements.txt"));
        succeeded(&bounded(&mut pip, INSTALL_PATIENCE).await, "pip install");
    })
    .await;
    dir.join("bin/python")
}

/// A directory with E2B's JavaScript SDK and the scripts of `clients/`.
pub async fn e2b_node() -> PathBuf {
    let dir = installed("node", &["e2b@2.51.0"], async |dir| {
        std::fs::create_dir_all(dir).unwrap();
        for file in ["package.json", "package-lock.json"] {
            std::fs::copy(scripts().join(file), dir.join(file)).unwrap();
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
            .current_dir(dir);
        succeeded(&bounded(&mut npm, INSTALL_PATIENCE).await, "npm ci");
    })
    .await;
    copy_scripts(&dir);
    dir
}

fn copy_scripts(to: &Path) {
    for entry in std::fs::read_dir(scripts()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() == Some(OsStr::new("mjs")) {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}
