use std::os::unix::fs::symlink;

use super::super::super::protocol;
use super::*;

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Fault> {
    let mut reading = Reading::open(&protocol::Read {
        path: path.to_str().unwrap().to_owned(),
        limit,
    })?;
    let mut all = Vec::new();
    loop {
        let piece = reading.next()?;
        if piece.is_empty() {
            return Ok(all);
        }
        all.extend(piece);
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let mut writing = Writing::open(&protocol::Write {
        path: path.to_str().unwrap().to_owned(),
    });
    writing.append(bytes);
    writing.finish()
}

#[test]
fn a_write_creates_parents_and_keeps_the_mode_of_what_it_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/c.sh");
    write(&path, b"one").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    write(&path, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o755);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_write_follows_links_and_keeps_hard_links_together() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    symlink("real", &link).unwrap();
    write(&link, b"new").unwrap();
    assert_eq!(fs::read(&real).unwrap(), b"new");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

    let other = dir.path().join("other");
    fs::hard_link(&real, &other).unwrap();
    write(&real, b"newer").unwrap();
    assert_eq!(fs::read(&other).unwrap(), b"newer");

    symlink("loop", dir.path().join("loop")).unwrap();
    assert_eq!(
        write(&dir.path().join("loop"), b""),
        Err(Fault::Errno(libc::ELOOP))
    );
}

#[test]
fn a_write_to_what_is_no_file_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(write(dir.path(), b"x"), Err(Fault::Errno(libc::EISDIR)));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(write(&fifo, b"x"), Err(Fault::NotRegular));
    fs::write(dir.path().join("file"), b"").unwrap();
    assert_eq!(
        write(&dir.path().join("file/below"), b"x"),
        Err(Fault::Errno(libc::ENOTDIR))
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn an_abandoned_write_leaves_the_old_content_and_no_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, b"old").unwrap();
    let mut writing = Writing::open(&protocol::Write {
        path: path.to_str().unwrap().to_owned(),
    });
    writing.append(b"half");
    drop(writing);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_read_stops_at_its_limit_and_at_what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, vec![7; 100_000]).unwrap();
    assert_eq!(read(&path, 100_000).unwrap().len(), 100_000);
    assert_eq!(read(&path, 99_999), Err(Fault::TooLarge));
    assert_eq!(read(dir.path(), 10), Err(Fault::Errno(libc::EISDIR)));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(read(&fifo, 10), Err(Fault::NotRegular));
    assert_eq!(read(Path::new("/dev/zero"), 10), Err(Fault::NotRegular));
    // The size that this file claims is 0.
    assert_eq!(
        read(Path::new("/proc/self/status"), 10),
        Err(Fault::TooLarge)
    );
    assert_eq!(
        read(&dir.path().join("none"), 10),
        Err(Fault::Errno(libc::ENOENT))
    );
}
