//! Files as the disk knows them: what a name leads to, and that a name lasts.

use std::fs::File;
use std::io;
use std::path::Path;

/// Whether `path` still leads to `file`.
#[cfg(unix)]
pub(super) fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held.dev(), held.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
pub(super) fn is_same_file(_file: &File, path: &Path) -> bool {
    path.exists()
}

/// What tells the file that a name leads to from every other one of this moment; `None` if there is none.
#[cfg(unix)]
pub(super) fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Ok(file) => Ok(Some((file.dev(), file.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
pub(super) fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    Ok(path.exists().then_some((0, 0)))
}

/// The file's number on its disk. The disk's own is none of it: many get another one when the machine starts.
#[cfg(unix)]
pub(super) fn inode(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path)
        .ok()
        .map(|file| file.ino().to_string())
}

#[cfg(not(unix))]
pub(super) fn inode(_path: &Path) -> Option<String> {
    None
}

/// What tells this system from others, empty where it has nothing that does, as in many containers.
pub(super) fn machine() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    id.trim().to_owned()
}

/// Makes the names in a directory survive a power cut.
#[cfg(unix)]
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Directories can't be synced here; the file system does it by itself.
#[cfg(not(unix))]
pub(super) fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}
