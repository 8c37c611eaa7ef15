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

/// What the file at `path` is called by the disk itself: a copy of it is called otherwise.
#[cfg(unix)]
pub(super) fn name_on_disk(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or_else(
        |_unknown| String::new(),
        |file| format!("{}:{}", file.dev(), file.ino()),
    )
}

#[cfg(not(unix))]
pub(super) fn name_on_disk(path: &Path) -> String {
    path.display().to_string()
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
