//! Files, in and out. Paths mean what they mean inside, to the sandbox's user: a symlink can only lead
//! to what a command could open as well.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::super::protocol::{self, CHUNK, Fault};

/// Never waits for the other end of a FIFO, and never becomes a terminal's owner.
const CAREFUL: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

fn regular(metadata: &Metadata) -> Result<(), Fault> {
    if metadata.is_dir() {
        Err(Fault::Errno(libc::EISDIR))
    } else if metadata.is_file() {
        Ok(())
    } else {
        Err(Fault::NotRegular)
    }
}

/// A file being read.
pub(super) struct Reading {
    file: File,
    /// Bytes that may still come; whatever size the file claims.
    left: u64,
}

impl Reading {
    pub(super) fn open(read: &protocol::Read) -> Result<Self, Fault> {
        // The kind is looked at before the file is opened, because opening a device may have an effect,
        // and again after it, because it may have been exchanged in between.
        regular(&fs::metadata(&read.path)?)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(CAREFUL)
            .open(&read.path)?;
        let metadata = file.metadata()?;
        regular(&metadata)?;
        if metadata.len() > read.limit {
            return Err(Fault::TooLarge);
        }
        Ok(Self {
            file,
            left: read.limit,
        })
    }

    /// The next piece; empty at the end.
    pub(super) fn next(&mut self) -> Result<Vec<u8>, Fault> {
        let mut buffer = vec![0; CHUNK];
        let count = loop {
            match self.file.read(&mut buffer) {
                Ok(count) => break count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        };
        buffer.truncate(count);
        let size = u64::try_from(count).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(size).ok_or(Fault::TooLarge)?;
        Ok(buffer)
    }
}

/// A file being written. The first fault is kept for the end, since the host sends the bytes anyway.
pub(super) struct Writing(Result<Open, Fault>);

struct Open {
    file: File,
    /// A file that takes the target's place at the end; none if the target is written where it is.
    replaces: Option<Replacement>,
}

/// A temporary file beside its target. Removed unless it has taken the target's place.
struct Replacement {
    temporary: PathBuf,
    target: PathBuf,
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // After the rename there is nothing at this name, and that is fine.
        fs::remove_file(&self.temporary).ok();
    }
}

impl Writing {
    pub(super) fn open(write: &protocol::Write) -> Self {
        Self(open_target(Path::new(&write.path)))
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        if let Ok(open) = &mut self.0
            && let Err(error) = open.file.write_all(bytes)
        {
            self.0 = Err(error.into());
        }
    }

    pub(super) fn finish(self) -> Result<(), Fault> {
        let open = self.0?;
        if let Some(replacement) = &open.replaces {
            fs::rename(&replacement.temporary, &replacement.target)?;
        }
        Ok(())
    }
}

fn open_target(path: &Path) -> Result<Open, Fault> {
    let target = follow(path)?;
    let parent = target.parent().ok_or(Fault::Errno(libc::EISDIR))?;
    let name = target.file_name().ok_or(Fault::Errno(libc::EISDIR))?;
    fs::create_dir_all(parent).map_err(|error| match error.raw_os_error() {
        // A file lies where a directory should.
        Some(libc::EEXIST) => Fault::Errno(libc::ENOTDIR),
        _ => error.into(),
    })?;
    let existing = match fs::symlink_metadata(&target) {
        Ok(metadata) => {
            regular(&metadata)?;
            access(&target, AccessFlags::W_OK)?;
            Some(metadata)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(existing) = &existing
        && (existing.nlink() > 1 || access(parent, AccessFlags::W_OK).is_err())
    {
        // A new file would not be seen under the other names, or can't be made here.
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(CAREFUL | libc::O_NOFOLLOW)
            .open(&target)?;
        regular(&file.metadata()?)?;
        file.set_len(0)?;
        return Ok(Open {
            file,
            replaces: None,
        });
    }
    let mode = existing.map_or(0o644, |metadata| metadata.mode() & 0o7777);
    let mut attempt = 0_u32;
    loop {
        // A short name of its own: the target's may have all 255 bytes.
        let temporary = parent.join(format!(
            ".sandcaster-{:x}-{attempt}",
            fnv(name.as_encoded_bytes())
        ));
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary);
        match made {
            Ok(file) => {
                let replacement = Replacement { temporary, target };
                file.set_permissions(fs::Permissions::from_mode(mode))?;
                return Ok(Open {
                    file,
                    replaces: Some(replacement),
                });
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Where a write to `path` lands: symlinks in the last place are followed, also to what isn't there yet.
fn follow(path: &Path) -> Result<PathBuf, Fault> {
    const MOST_LINKS: usize = 40;
    let mut target = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::symlink_metadata(&target) {
            Ok(metadata) if metadata.is_symlink() => {
                let link = fs::read_link(&target)?;
                let base = target.parent().unwrap_or(Path::new("/"));
                target = base.join(link);
            }
            _ => return Ok(target),
        }
    }
    Err(Fault::Errno(libc::ELOOP))
}

/// A number for a name (FNV-1a), only to tell temporary files of one directory apart.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
