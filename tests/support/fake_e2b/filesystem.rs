//! `filesystem.Filesystem`: what is where.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::connect::ConnectError;
use super::edge::User;
use super::machine;
use super::routes::Route;
use super::sandboxes::SandboxBox;

type Outcome = Result<Value, ConnectError>;

/// Answers one call.
pub(super) fn call(sandbox: &SandboxBox, user: &User, route: Route, request: &Value) -> Outcome {
    let path = |key: &str| {
        let Some(text) = request[key].as_str() else {
            let why = format!("unmarshal message: bad field {key}");
            return Err(ConnectError::refusal("invalid_argument", why));
        };
        machine::inside(text, user.home()).map_err(|why| ConnectError::new("invalid_argument", why))
    };
    match route {
        Route::Stat => stat(sandbox, &path("path")?),
        Route::ListDir => {
            let depth = match &request["depth"] {
                Value::Null => 1,
                depth => depth.as_u64().ok_or_else(|| {
                    ConnectError::refusal("invalid_argument", "unmarshal message: bad field depth")
                })?,
            };
            list_dir(sandbox, &path("path")?, depth.max(1))
        }
        Route::MakeDir => make_dir(sandbox, &path("path")?),
        Route::Move => rename(sandbox, &path("source")?, &path("destination")?),
        Route::Remove => remove(sandbox, &path("path")?),
        _ => Err(ConnectError::refusal(
            "unimplemented",
            "the stand-in plays no watchers",
        )),
    }
}

fn missing(path: &str) -> ConnectError {
    ConnectError::new("not_found", format!("path '{path}' does not exist"))
}

fn internal(error: &std::io::Error) -> ConnectError {
    ConnectError::new("internal", error.to_string())
}

/// The host path, if it may be written.
fn own(sandbox: &SandboxBox, path: &str) -> Result<PathBuf, ConnectError> {
    let host = sandbox.machine.host(path);
    if sandbox.machine.owns(&host) {
        Ok(host)
    } else {
        let why = format!("the stand-in writes below /home/user, /root and /tmp only, not {path}");
        Err(ConnectError::refusal("permission_denied", why))
    }
}

fn stat(sandbox: &SandboxBox, path: &str) -> Outcome {
    Ok(json!({"entry": entry(sandbox, path)?}))
}

fn list_dir(sandbox: &SandboxBox, path: &str, depth: u64) -> Outcome {
    let host = sandbox.machine.host(path);
    match fs::metadata(&host) {
        Err(_) => return Err(missing(path)),
        Ok(meta) if !meta.is_dir() => {
            let why = format!("path is not a directory: {path}");
            return Err(ConnectError::new("invalid_argument", why));
        }
        Ok(_) => {}
    }
    let mut entries = Vec::new();
    walk(sandbox, path, depth, &mut entries)?;
    if entries.is_empty() {
        Ok(json!({}))
    } else {
        Ok(json!({"entries": entries}))
    }
}

fn walk(
    sandbox: &SandboxBox,
    path: &str,
    depth: u64,
    out: &mut Vec<Value>,
) -> Result<(), ConnectError> {
    let read = fs::read_dir(sandbox.machine.host(path)).map_err(|error| internal(&error))?;
    let mut names: Vec<_> = read.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names {
        let below = format!("{}/{}", path.trim_end_matches('/'), name.to_string_lossy());
        // It may have gone since it was listed.
        let Ok(found) = entry(sandbox, &below) else {
            continue;
        };
        let real_dir = fs::symlink_metadata(sandbox.machine.host(&below)).is_ok_and(|m| m.is_dir());
        out.push(found);
        if real_dir && depth > 1 {
            walk(sandbox, &below, depth - 1, out)?;
        }
    }
    Ok(())
}

fn make_dir(sandbox: &SandboxBox, path: &str) -> Outcome {
    let host = sandbox.machine.host(path);
    match fs::metadata(&host) {
        Ok(meta) if meta.is_dir() => {
            let why = format!("directory already exists: {path}");
            return Err(ConnectError::new("already_exists", why));
        }
        Ok(_) => {
            let why = format!("path already exists but it is not a directory: {path}");
            return Err(ConnectError::new("invalid_argument", why));
        }
        Err(_) => {}
    }
    fs::create_dir_all(own(sandbox, path)?).map_err(|error| internal(&error))?;
    stat(sandbox, path)
}

fn rename(sandbox: &SandboxBox, source: &str, destination: &str) -> Outcome {
    let (from, to) = (own(sandbox, source)?, own(sandbox, destination)?);
    if fs::symlink_metadata(&from).is_err() {
        return Err(missing(source));
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(|error| internal(&error))?;
    }
    fs::rename(&from, &to).map_err(|error| internal(&error))?;
    let mut metadata = sandbox.file_metadata.lock();
    metadata.remove(&to);
    if let Some(kept) = metadata.remove(&from) {
        metadata.insert(to, kept);
    }
    drop(metadata);
    stat(sandbox, destination)
}

fn remove(sandbox: &SandboxBox, path: &str) -> Outcome {
    let host = own(sandbox, path)?;
    let removed = match fs::symlink_metadata(&host) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&host),
        Ok(_) => fs::remove_file(&host),
        Err(_) => Ok(()),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(internal(&error)),
        _ => {
            sandbox
                .file_metadata
                .lock()
                .retain(|file, _| !file.starts_with(&host));
            Ok(json!({}))
        }
    }
}

/// `EntryInfo` of what is at `path`.
fn entry(sandbox: &SandboxBox, path: &str) -> Outcome {
    let host = sandbox.machine.host(path);
    let link = fs::symlink_metadata(&host).map_err(|_| missing(path))?;
    let followed = fs::metadata(&host);
    let shown = followed.as_ref().unwrap_or(&link);
    let kind = if shown.is_dir() {
        "FILE_TYPE_DIRECTORY"
    } else if shown.is_file() {
        "FILE_TYPE_FILE"
    } else if shown.is_symlink() {
        "FILE_TYPE_SYMLINK"
    } else {
        "FILE_TYPE_UNSPECIFIED"
    };
    let modified = link
        .modified()
        .ok()
        .and_then(|at| Timestamp::try_from(at).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH);
    let mode = link.permissions().mode() & 0o7777;
    let mut json = json!({
        "name": path.rsplit('/').next().unwrap_or_default(),
        "type": kind,
        "path": path,
        "size": link.len().to_string(),
        "mode": mode,
        "permissions": permissions(&link),
        "owner": "user",
        "group": "user",
        "modifiedTime": modified.to_string(),
    });
    if link.len() == 0
        && let Some(fields) = json.as_object_mut()
    {
        fields.remove("size");
    }
    if link.is_symlink()
        && let Ok(target) = fs::read_link(&host)
    {
        let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
        let absolute = parent.join(target).to_string_lossy().into_owned();
        json["symlinkTarget"] = json!(machine::inside(&absolute, "/").unwrap_or(absolute));
    }
    if let Some(metadata) = sandbox.file_metadata.lock().get(&host) {
        json["metadata"] = json!(metadata);
    }
    Ok(json)
}

/// As Go's `FileMode` prints it.
fn permissions(meta: &fs::Metadata) -> String {
    let mode = meta.permissions().mode();
    let first = if meta.is_dir() {
        'd'
    } else if meta.is_symlink() {
        'L'
    } else {
        '-'
    };
    let bits = (0..9).map(|bit| {
        if mode & (0o400 >> bit) == 0 {
            '-'
        } else {
            ['r', 'w', 'x'][bit % 3]
        }
    });
    std::iter::once(first).chain(bits).collect()
}
