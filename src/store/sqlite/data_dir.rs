//! The data directory: who may use it, and which of its processes are alive.
//!
//! Two kinds of lock, both advisory locks that the kernel drops when their process dies, however it dies:
//! `serve.lock` is held by the one server of the directory, and `instances/<owner>.lock` by every process
//! that writes runs here, a one-shot `query` too. A run's row names its owner: its lease lasts for as long as
//! the owner's lock is held. A file that was removed says nothing, for its process may be alive: that makes
//! the file anew within a second or so, and only an owner whose file stays away counts as dead.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::super::types::StoreError;
use super::inode::{is_same_file, sync_dir};
use super::options::Role;
use crate::ids::nonce;

const DATABASE: &str = "sandcaster.db";
const SERVE_LOCK: &str = "serve.lock";
const SETUP_LOCK: &str = "setup.lock";
const INSTANCES: &str = "instances";

/// How long a lock file may be away before its process counts as dead. Much longer than a live process takes to
/// make it anew, however busy it is.
const MISSING: Duration = Duration::from_secs(30);

/// The ending of a lock file before it has its name.
const UNNAMED: &str = "new";
/// How long another process may set the database up before that is told, and before this one gives up.
const SETUP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// Between looks whether it is done.
const SETUP_PAUSE: Duration = Duration::from_millis(20);

/// A data directory and this process's name in it.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    owner: Arc<str>,
    unclean: bool,
    /// Owners whose lock files are not there, since when.
    missing: Mutex<HashMap<String, Instant>>,
}

/// The right to use a data directory, until it is dropped.
#[derive(Debug)]
pub(super) struct Locks {
    instance: Lock,
    serve: Option<Lock>,
}

type Locking = fn(&File) -> io::Result<()>;

/// A locked file.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    file: File,
    /// The file stays when the lock goes.
    kept: bool,
}

impl DataDir {
    /// Creates the directory if need be (only for its user), and takes the locks of `role`. Waits for its turn to set
    /// the database up, until the last of these is dropped: two processes that start on a new directory would get in
    /// each other's way.
    pub(super) fn open(path: &Path, role: Role) -> Result<(Self, Locks, File), StoreError> {
        let unusable = |what: &str, error: &io::Error| {
            StoreError::Unusable(format!(
                "could not {what} the data directory {}: {error}",
                path.display()
            ))
        };
        private_dir(path).map_err(|error| unusable("create", &error))?;
        keep_private(path).map_err(|error| unusable("write to", &error))?;
        private_dir(&path.join(INSTANCES)).map_err(|error| unusable("write to", &error))?;
        let serve = match role {
            Role::OneShot => None,
            Role::Serve => Some(serve_lock(path, unusable)?),
        };
        let turn = setup_turn(path, SETUP)?;
        let owner = nonce();
        let file = instance_path(path, &owner);
        let instance =
            claim(&file, File::lock).map_err(|error| unusable("take a lock in", &error))?;
        let locks = Locks {
            instance: Lock {
                path: file,
                file: instance,
                kept: false,
            },
            serve,
        };
        // Shared, so that another process that asks for an owner at this moment is not misled.
        let unclean = role == Role::Serve
            && instance_files(path).any(|(_, file)| file.try_lock_shared().is_ok());
        let path = path.to_owned();
        let this = Self {
            path,
            owner: owner.into(),
            unclean,
            missing: Mutex::default(),
        };
        Ok((this, locks, turn))
    }

    /// Whether a process had died here without closing the store, when this server came.
    pub(super) fn unclean(&self) -> bool {
        self.unclean
    }

    /// This process in the rows of its runs.
    pub(super) const fn owner(&self) -> &Arc<str> {
        &self.owner
    }

    /// Makes sure that no process of an older version uses the directory, whose database is that old: none of this
    /// version holds its lock before it has brought the database up to date. To be asked while it is this one's turn.
    pub(super) fn without_older(&self) -> Result<(), StoreError> {
        let own = instance_path(&self.path, &self.owner);
        let held = |(path, file): (PathBuf, File)| {
            path != own && matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
        };
        if instance_files(&self.path).any(held) {
            return Err(StoreError::InUse(format!(
                "a server or a command of an older version uses the data directory {}: stop or restart it first",
                self.path.display()
            )));
        }
        Ok(())
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

    /// Whether the process named `owner` is gone. What can't be told is not, so that no live run is ever
    /// declared dead.
    pub(super) fn gone(&self, owner: &str) -> bool {
        if owner == &*self.owner {
            return false;
        }
        if !is_instance(owner) {
            return true;
        }
        let opened = OpenOptions::new()
            .read(true)
            .open(instance_path(&self.path, owner));
        let mut missing = self.missing.lock();
        match opened {
            Ok(file) => {
                missing.remove(owner);
                file.try_lock_shared().is_ok()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let since = missing.entry(owner.to_owned()).or_insert_with(Instant::now);
                since.elapsed() >= MISSING
            }
            Err(_unknown) => false,
        }
    }

    /// Removes the lock files of processes that are gone: their runs were ended, and the database is whole.
    pub(super) fn sweep(&self) {
        for (path, file) in instance_files(&self.path) {
            // Removed under its lock: a process that is just claiming it waits for that, sees it and claims anew.
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
            if path.extension().is_some_and(|end| end == UNNAMED) {
                return None;
            }
            let file = OpenOptions::new().read(true).write(true).open(&path).ok()?;
            Some((path, file))
        })
}

impl Locks {
    /// Makes lock files anew that somebody has removed. To be called every second.
    pub(super) fn renew(&mut self) {
        // Nobody else holds a file of this process's own name for longer than a look at it.
        let serve = self.serve.iter_mut().map(|lock| (lock, at_once as Locking));
        for (lock, locking) in serve.chain([(&mut self.instance, File::lock as Locking)]) {
            if is_same_file(&lock.file, &lock.path) {
                continue;
            }
            tracing::warn!(path = %lock.path.display(), "a lock file of a running process was removed; it is made anew");
            let dir = lock.path.parent().map_or(Ok(()), private_dir);
            match dir.and_then(|()| claim_anew(&lock.path, locking)) {
                Ok(file) => lock.file = file,
                Err(error) => {
                    tracing::error!(%error, "a lock file can't be made; do not start another server on this data directory");
                }
            }
        }
    }

    /// Leaves this process's lock file behind when the lock goes, as a death would: there are runs to be ended.
    pub(super) fn leave_mark(&mut self) {
        self.instance.kept = true;
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(%error, "a lock file of this process stays until the next start");
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
) -> Result<Lock, StoreError> {
    let path = dir.join(SERVE_LOCK);
    match claim(&path, at_once) {
        Ok(file) => Ok(Lock {
            path,
            file,
            kept: true,
        }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(StoreError::InUse(format!(
            "another sandcaster server is using the data directory {}: stop it, or choose another one with --data-dir",
            dir.display()
        ))),
        Err(error) => Err(unusable("take a lock in", &error)),
    }
}

/// Waits until no other process sets the database up: says so after the first time, and gives up after the second.
fn setup_turn(dir: &Path, (tell, give_up): (Duration, Duration)) -> Result<File, StoreError> {
    let path = dir.join(SETUP_LOCK);
    let begun = Instant::now();
    let mut told = false;
    loop {
        match claim(&path, at_once) {
            Ok(turn) => return Ok(turn),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                return Err(StoreError::Unusable(format!(
                    "could not take a lock in the data directory {}: {error}",
                    dir.display()
                )));
            }
        }
        let waited = begun.elapsed();
        if waited >= give_up {
            return Err(StoreError::InUse(format!(
                "another process has been setting up the data directory {} for {} s: wait until it is done, or end \
                 the process that holds {SETUP_LOCK}",
                dir.display(),
                waited.as_secs()
            )));
        }
        if waited >= tell && !told {
            told = true;
            tracing::warn!(path = %path.display(), "waiting for another process that sets up the data directory");
        }
        // Not a thread of the runtime.
        thread::park_timeout(SETUP_PAUSE);
    }
}

/// Makes and locks a lock file, so that the name leads to the locked file when this returns.
fn claim(path: &Path, lock: Locking) -> io::Result<File> {
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        let file = private_options().create(true).truncate(false).open(path)?;
        lock(&file)?;
        if is_same_file(&file, path) {
            return Ok(file);
        }
    }
    Err(io::Error::other("the lock file keeps being removed"))
}

/// As [`claim`], of a name that is asked for all the time: it leads to no file that is not locked yet, which would
/// tell that this process is dead.
fn claim_anew(path: &Path, lock: Locking) -> io::Result<File> {
    let made = path.with_extension(UNNAMED);
    let file = claim(&made, lock)?;
    match fs::hard_link(&made, path) {
        Ok(()) => fs::remove_file(&made).map(|()| file),
        // Another's, or one that can be locked like any other.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&made)?;
            claim(path, lock)
        }
        // Not every file system has a second name for a file.
        Err(_) => fs::rename(&made, path).map(|()| file),
    }
}

/// Fails with `WouldBlock` when another holds it.
fn at_once(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        TryLockError::Error(error) => error,
    })
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
        Ok(mut file) => file.write_all(b"*\n"),
        // What is there is its user's own.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a directory and those above it, only for their user, so that their names survive a power cut.
fn private_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() || path.as_os_str().is_empty() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    private_dir(parent)?;
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Ok(()) => {}
        // Two processes may find it missing.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    if parent.as_os_str().is_empty() {
        return sync_dir(Path::new("."));
    }
    sync_dir(parent)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_lock_file_that_is_made_anew_is_never_seen_without_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let (_dir, mut locks, _turn) = DataDir::open(dir.path(), Role::Serve).unwrap();
        let path = locks.instance.path.clone();
        let done = AtomicBool::new(false);
        let free = || {
            File::open(&path)
                .is_ok_and(|file| file.try_lock_shared().is_ok() && is_same_file(&file, &path))
        };
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut told = 0;
                while !done.load(Ordering::Relaxed) {
                    told += u32::from(free());
                }
                told
            });
            for _ in 0..500 {
                fs::remove_file(&path).unwrap();
                locks.renew();
                assert!(is_same_file(&locks.instance.file, &path));
            }
            done.store(true, Ordering::Relaxed);
            assert_eq!(asking.join().unwrap(), 0);
        });
        assert_eq!(instance_files(dir.path()).count(), 1);
        assert_eq!(fs::read_dir(dir.path().join(INSTANCES)).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_was_there_before_is_kept_out_of_repositories_too() {
        let dir = tempfile::tempdir().unwrap();
        let (deep, mine) = (dir.path().join("a/b/c"), "!keep\n");
        for _ in 0..2 {
            drop(DataDir::open(&deep, Role::OneShot).unwrap());
            let ignore = deep.join(".gitignore");
            assert_eq!(fs::read_to_string(&ignore).unwrap(), "*\n");
            fs::remove_file(&ignore).unwrap();
        }
        fs::write(deep.join(".gitignore"), mine).unwrap();
        drop(DataDir::open(&deep, Role::OneShot).unwrap());
        assert_eq!(fs::read_to_string(deep.join(".gitignore")).unwrap(), mine);
    }

    #[test]
    fn a_look_at_a_new_lock_file_does_not_stop_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new.lock");
        // Another process is just about to remove it as stale.
        let looks = private_options().create(true).truncate(false).open(&path);
        let looks = looks.unwrap();
        looks.lock().unwrap();
        std::thread::scope(|threads| {
            let owner = threads.spawn(|| claim(&path, File::lock));
            fs::remove_file(&path).unwrap();
            drop(looks);
            let claimed = owner.join().unwrap().unwrap();
            assert!(is_same_file(&claimed, &path));
        });
    }

    #[test]
    fn a_process_that_never_ends_its_setup_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let (_dir, _locks, turn) = DataDir::open(dir.path(), Role::OneShot).unwrap();
        let refused = setup_turn(dir.path(), (Duration::ZERO, Duration::from_millis(50)));
        assert!(
            matches!(&refused, Err(StoreError::InUse(why)) if why.contains("setup.lock")),
            "{refused:?}"
        );
        std::thread::scope(|threads| {
            let waiting = threads.spawn(|| setup_turn(dir.path(), SETUP).is_ok());
            drop(turn);
            assert!(waiting.join().unwrap());
        });
    }
}
