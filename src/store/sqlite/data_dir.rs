//! The data directory: who may use it, and which of its processes are alive.
//!
//! Two kinds of lock, both advisory locks that the kernel drops when their process dies, however it dies:
//! `serve.lock` is held by the one server of the directory, and `instances/<owner>.lock` by every process
//! that writes runs here, a one-shot `query` too. A run's row names its owner, so a run is dead exactly
//! when its owner's lock is free.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::super::types::StoreError;
use super::inode::{is_same_file, sync_dir};
use super::options::Role;
use crate::ids::nonce;

const DATABASE: &str = "sandcaster.db";
const SERVE_LOCK: &str = "serve.lock";
const SETUP_LOCK: &str = "setup.lock";
const INSTANCES: &str = "instances";

/// A data directory and this process's name in it.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    owner: String,
    unclean: bool,
}

/// The right to use a data directory, until it is dropped.
#[derive(Debug)]
pub(super) struct Locks {
    instance: (PathBuf, File),
    _serve: Option<File>,
}

impl DataDir {
    /// Creates the directory if need be (only for its user), and takes the locks of `role`.
    pub(super) fn open(path: &Path, role: Role) -> Result<(Self, Locks), StoreError> {
        let unusable = |what: &str, error: &io::Error| {
            StoreError::Unusable(format!(
                "could not {what} the data directory {}: {error}",
                path.display()
            ))
        };
        let fresh = !path.exists();
        private_dir(path).map_err(|error| unusable("create", &error))?;
        if fresh {
            keep_private(path).map_err(|error| unusable("write to", &error))?;
        }
        private_dir(&path.join(INSTANCES)).map_err(|error| unusable("write to", &error))?;
        let serve = match role {
            Role::OneShot => None,
            Role::Serve => Some(serve_lock(path, unusable)?),
        };
        let owner = nonce();
        let file = instance_path(path, &owner);
        let instance = claim(&file).map_err(|error| unusable("take a lock in", &error))?;
        let locks = Locks {
            instance: (file, instance),
            _serve: serve,
        };
        // Shared, so that another process that asks for an owner at this moment is not misled.
        let unclean = instance_files(path).any(|(_, file)| file.try_lock_shared().is_ok());
        let path = path.to_owned();
        let this = Self {
            path,
            owner,
            unclean,
        };
        Ok((this, locks))
    }

    /// Whether a process had died here without closing the store, when this one came.
    pub(super) fn unclean(&self) -> bool {
        self.unclean
    }

    /// This process in the rows of its runs.
    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// Waits for its turn to set the database up: two processes that start on a new directory would get in
    /// each other's way.
    pub(super) fn take_turn(&self) -> Result<File, StoreError> {
        let turn = || {
            let file = private_options()
                .create(true)
                .truncate(false)
                .open(self.path.join(SETUP_LOCK))?;
            file.lock()?;
            Ok(file)
        };
        turn().map_err(|error: io::Error| {
            StoreError::Unusable(format!(
                "could not take a lock in the data directory {}: {error}",
                self.path.display()
            ))
        })
    }

    /// The database's path. The file is created empty and private if it is not there, because `SQLite` would
    /// take the umask; an existing one is not opened here, since closing any descriptor of it would drop
    /// `SQLite`'s own locks of this process.
    pub(super) fn database(&self) -> Result<PathBuf, StoreError> {
        let path = self.path.join(DATABASE);
        match private_file(&path) {
            Ok(_) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(path),
            Err(error) => Err(StoreError::Unusable(format!(
                "could not create the database {}: {error}",
                path.display()
            ))),
        }
    }

    /// Whether the process named `owner` still holds its lock. What can't be told counts as alive, so that
    /// no live run is ever declared dead.
    pub(super) fn owner_alive(&self, owner: &str) -> bool {
        if owner == self.owner {
            return true;
        }
        if !is_instance(owner) {
            return false;
        }
        match OpenOptions::new()
            .read(true)
            .open(instance_path(&self.path, owner))
        {
            Ok(file) => file.try_lock_shared().is_err(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Removes the lock files of processes that are gone.
    pub(super) fn sweep(&self) {
        for (path, file) in instance_files(&self.path) {
            // Removed under its lock: a process that is just claiming it sees that and claims anew.
            if file.try_lock().is_ok()
                && let Err(error) = fs::remove_file(path)
            {
                tracing::debug!(%error, "a stale lock file stays");
            }
        }
    }
}

fn instance_files(dir: &Path) -> impl Iterator<Item = (PathBuf, File)> + use<> {
    fs::read_dir(dir.join(INSTANCES))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let file = OpenOptions::new().read(true).write(true).open(&path).ok()?;
            Some((path, file))
        })
}

impl Drop for Locks {
    fn drop(&mut self) {
        let (path, _held_meanwhile) = &self.instance;
        if let Err(error) = fs::remove_file(path) {
            tracing::debug!(%error, "the lock file of this process stays until the next start");
        }
    }
}

fn instance_path(dir: &Path, owner: &str) -> PathBuf {
    dir.join(INSTANCES).join(format!("{owner}.lock"))
}

/// Owners come out of the database; only our own form may become part of a path.
fn is_instance(owner: &str) -> bool {
    !owner.is_empty() && owner.len() <= 64 && owner.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn serve_lock(
    dir: &Path,
    unusable: impl Fn(&str, &io::Error) -> StoreError,
) -> Result<File, StoreError> {
    let path = dir.join(SERVE_LOCK);
    let file = private_options()
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| unusable("take a lock in", &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(format!(
            "another sandcaster server is using the data directory {}: stop it, or choose another one with --data-dir",
            dir.display()
        ))),
        Err(TryLockError::Error(error)) => Err(unusable("take a lock in", &error)),
    }
}

/// Makes and locks a lock file, so that the name leads to the locked file when this returns.
fn claim(path: &Path) -> io::Result<File> {
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        let file = private_options().create(true).truncate(false).open(path)?;
        file.lock()?;
        if is_same_file(&file, path) {
            return Ok(file);
        }
    }
    Err(io::Error::other("the lock file keeps being removed"))
}

fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A new file that only its user can read (rule SE-6).
fn private_file(path: &Path) -> io::Result<File> {
    private_options().create_new(true).open(path)
}

/// Prompts and outputs lie here: a project's repository should not pick them up by accident.
fn keep_private(dir: &Path) -> io::Result<()> {
    match private_file(&dir.join(".gitignore")) {
        Ok(mut file) => file.write_all(b"*\n")?,
        // Two processes may find the directory new.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    dir.parent().map_or(Ok(()), sync_parent)
}

/// Makes a new directory's own name survive a power cut; `""` is the parent of a relative one.
fn sync_parent(parent: &Path) -> io::Result<()> {
    if parent.as_os_str().is_empty() {
        return sync_dir(Path::new("."));
    }
    sync_dir(parent)
}

fn private_dir(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}
