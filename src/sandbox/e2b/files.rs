//! Files of a sandbox: `GET` and `POST /files` of envd.

use std::future::Future;

use bytes::{Bytes, BytesMut};
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use serde::Deserialize;

use super::control::query_string;
use super::envd::Envd;
use super::errors::{Answer, Edge, Fault, succeed, transport};
use super::facts::WORKING_DIR;
use crate::clock::Deadline;
use crate::ids;
use crate::sandbox::{FileErrorKind, SandboxError};

/// Uploads as plain bytes exist since this version of envd; before, only as forms.
const PLAIN_UPLOAD: (u32, u32, u32) = (0, 5, 7);
/// Tries of a read or write, the first included.
const TRIES: u32 = 4;

/// How a read failed.
enum ReadFault {
    Fault(Fault),
    TooLarge,
    NotRegular(FileErrorKind),
}

impl From<Fault> for ReadFault {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// `path` as envd must see it: absolute, so that it never means the home of someone else.
pub(super) fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{WORKING_DIR}/{path}")
    }
}

fn files_path(envd: &Envd, path: &str) -> String {
    let absolute = absolute(path);
    let user = envd.user().map(|user| ("username", user));
    let query = query_string([("path", absolute.as_str())].into_iter().chain(user));
    format!("/files?{query}")
}

/// Reads a file, whole.
pub(super) async fn read(envd: &Envd, path: &str, max_bytes: u64) -> Result<Bytes, SandboxError> {
    let until = Deadline::after(envd.timing.file);
    let url = files_path(envd, path);
    let fetched = async {
        // What is no file is found out beside the download, which would wait for ever at a FIFO and
        // give nothing for a device.
        let download = retrying(envd, until, || fetch(envd, &url, max_bytes, until));
        let (bytes, ()) = tokio::try_join!(download, ensure_regular(envd, path, until))?;
        Ok(bytes)
    };
    match fetched.await {
        Ok(bytes) => Ok(bytes),
        Err(ReadFault::TooLarge) => Err(SandboxError::TooLarge {
            path: path.to_owned(),
            max_bytes,
        }),
        Err(ReadFault::NotRegular(kind)) => Err(SandboxError::File {
            path: path.to_owned(),
            kind,
        }),
        Err(ReadFault::Fault(fault)) => Err(explain(envd, path, fault, "reading a file").await),
    }
}

async fn fetch(
    envd: &Envd,
    url: &str,
    max_bytes: u64,
    until: Deadline,
) -> Result<Bytes, ReadFault> {
    let request = envd
        .request(Method::GET, url)
        .header(ACCEPT, "application/json, */*");
    let mut response = succeed(request, until, &envd.redactor).await?;
    let promised = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if promised.is_some_and(|length| length > max_bytes) {
        return Err(ReadFault::TooLarge);
    }
    let mut held = BytesMut::new();
    loop {
        let chunk = match tokio::time::timeout_at(until.instant(), response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => return Ok(held.freeze()),
            Ok(Err(error)) => return Err(transport(&error).into()),
            Err(_) => return Err(Fault::Late.into()),
        };
        let total = u64::try_from(held.len() + chunk.len()).unwrap_or(u64::MAX);
        if total > max_bytes {
            return Err(ReadFault::TooLarge);
        }
        held.extend_from_slice(&chunk);
    }
}

#[derive(Deserialize)]
struct Stat {
    #[serde(default)]
    entry: Option<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type", default)]
    kind: serde_json::Value,
}

/// Fails if `path` surely is no regular file (a link counts as what it points to).
async fn ensure_regular(envd: &Envd, path: &str, until: Deadline) -> Result<(), ReadFault> {
    let asked = serde_json::json!({ "path": absolute(path) });
    let Ok(stat) = envd
        .unary::<Stat>("filesystem.Filesystem/Stat", &asked, until)
        .await
    else {
        // The download tells the reason.
        return Ok(());
    };
    match stat.entry.map(|entry| entry.kind) {
        Some(serde_json::Value::String(kind)) => match kind.as_str() {
            "FILE_TYPE_DIRECTORY" => Err(ReadFault::NotRegular(FileErrorKind::IsDirectory)),
            "FILE_TYPE_UNSPECIFIED" => Err(ReadFault::NotRegular(FileErrorKind::NotRegular)),
            _ => Ok(()),
        },
        // Left out is the zero value: neither file nor directory nor link.
        Some(serde_json::Value::Null) => Err(ReadFault::NotRegular(FileErrorKind::NotRegular)),
        _ => Ok(()),
    }
}

/// Writes a file, whole. The same bytes may be sent more than once.
pub(super) async fn write(envd: &Envd, path: &str, bytes: Bytes) -> Result<(), SandboxError> {
    let until = Deadline::after(envd.timing.file);
    let url = files_path(envd, path);
    let plain = envd.version >= PLAIN_UPLOAD;
    let boundary = format!("sandcaster-{}", ids::nonce());
    let (content_type, content) = if plain {
        ("application/octet-stream".to_owned(), bytes)
    } else {
        (
            format!("multipart/form-data; boundary={boundary}"),
            form(&boundary, &bytes),
        )
    };
    let upload = || async {
        let request = envd
            .request(Method::POST, &url)
            .header(ACCEPT, "application/json, */*")
            .header(CONTENT_TYPE, &content_type)
            .body(content.clone());
        let response = succeed(request, until, &envd.redactor).await?;
        // Read to the end, so that the connection can be used again; what it says is known.
        super::errors::body(response, 1024 * 1024, until).await?;
        Ok::<_, ReadFault>(())
    };
    match retrying(envd, until, upload).await {
        Ok(()) => Ok(()),
        Err(ReadFault::Fault(fault)) => Err(explain(envd, path, fault, "writing a file").await),
        Err(ReadFault::TooLarge | ReadFault::NotRegular(_)) => Err(SandboxError::Backend(
            "a write failed in a way that only reads can".to_owned(),
        )),
    }
}

/// A form with one part, whose path is in the query.
fn form(boundary: &str, bytes: &Bytes) -> Bytes {
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let mut out = BytesMut::with_capacity(head.len() + bytes.len() + tail.len());
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(tail.as_bytes());
    out.freeze()
}

/// Tries again what may pass: a transfer of the same bytes can be repeated.
async fn retrying<T, F>(
    envd: &Envd,
    until: Deadline,
    mut attempt: impl FnMut() -> F,
) -> Result<T, ReadFault>
where
    F: Future<Output = Result<T, ReadFault>>,
{
    let mut tries = 0;
    loop {
        let fault = match attempt().await {
            Err(ReadFault::Fault(fault)) => fault,
            done => return done,
        };
        tries += 1;
        // Doubling pauses: the last one comes after about a second.
        let pause = envd.timing.pause(tries, fault.retry_after());
        if tries >= TRIES || !fault.may_pass() || pause >= until.remaining() {
            return Err(fault.into());
        }
        tokio::time::sleep(pause).await;
    }
}

/// The error for the caller. What is wrong with the file is told apart from what is wrong with the sandbox.
async fn explain(envd: &Envd, path: &str, fault: Fault, doing: &str) -> SandboxError {
    if let Fault::Refused(answer) = &fault
        && answer.edge().is_none()
        && let Some(kind) = file_error(answer)
    {
        return SandboxError::File {
            path: path.to_owned(),
            kind,
        };
    }
    envd.explain(fault, doing).await
}

/// What envd's answer says of the file; `None` if it speaks of something else.
fn file_error(answer: &Answer) -> Option<FileErrorKind> {
    if answer.edge() == Some(Edge::Gone) || answer.status == 401 {
        return None;
    }
    let message = answer.message.to_ascii_lowercase();
    let says = |text: &str| message.contains(text);
    let kind = if answer.status == 507 || says("no space left") || says("not enough disk space") {
        FileErrorKind::NoSpace
    } else if says("not a directory") {
        FileErrorKind::NotDirectory
    } else if says("not a regular file") {
        FileErrorKind::NotRegular
    } else if says("is a directory") {
        FileErrorKind::IsDirectory
    } else if says("permission denied") || answer.status == 403 {
        FileErrorKind::PermissionDenied
    } else if says("read-only file system") {
        FileErrorKind::ReadOnly
    } else if answer.status == 404 {
        FileErrorKind::NotFound
    } else if matches!(answer.status, 400 | 406 | 415 | 500) {
        FileErrorKind::Other(if answer.message.is_empty() {
            format!("HTTP {}", answer.status)
        } else {
            answer.message.clone()
        })
    } else {
        return None;
    };
    Some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_start_in_the_working_directory() {
        assert_eq!(absolute("a/b"), "/home/user/a/b");
        assert_eq!(absolute("/etc/x"), "/etc/x");
        assert_eq!(absolute("~root"), "/home/user/~root");
    }

    #[test]
    fn the_daemons_words_become_kinds() {
        let kind = |status, message: &str| {
            file_error(&Answer {
                status,
                message: message.to_owned(),
                ..Answer::default()
            })
        };
        assert_eq!(
            kind(404, "path '/x' does not exist"),
            Some(FileErrorKind::NotFound)
        );
        assert_eq!(
            kind(400, "path '/x' is a directory"),
            Some(FileErrorKind::IsDirectory)
        );
        assert_eq!(
            kind(500, "mkdir /a/b: not a directory"),
            Some(FileErrorKind::NotDirectory)
        );
        assert_eq!(
            kind(
                507,
                "attempted to write 5 bytes: not enough disk space available"
            ),
            Some(FileErrorKind::NoSpace)
        );
        assert_eq!(
            kind(500, "open /x: permission denied"),
            Some(FileErrorKind::PermissionDenied)
        );
        assert_eq!(
            kind(500, "open /x: read-only file system"),
            Some(FileErrorKind::ReadOnly)
        );
        assert_eq!(
            kind(400, "odd"),
            Some(FileErrorKind::Other("odd".to_owned()))
        );
        assert_eq!(kind(401, "unauthorized access"), None);
        assert_eq!(kind(503, ""), None);
    }

    #[test]
    fn a_form_holds_the_bytes_as_they_are() {
        let form = form("b", &Bytes::from_static(b"\x00\xff\r\n"));
        assert!(form.starts_with(b"--b\r\nContent-Disposition: form-data; name=\"file\""));
        assert!(form.ends_with(b"\r\n\r\n\x00\xff\r\n\r\n--b--\r\n"));
    }
}
