//! `/files`: whole files in and out.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::Stdio;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::edge::{self, Answer, Query, User};
use super::machine;
use super::sandboxes::SandboxBox;

/// Largest multipart body, which is held in memory while it is parsed.
const LARGEST: usize = 256 << 20;

fn who(parts: &Parts, query: &Query) -> Result<User, Answer> {
    let user = match query.get("username") {
        Some(name) => edge::named_user(Some(name)),
        None => edge::user(&parts.headers),
    };
    user.map_err(|error| Answer::refusal(401, &error.message))
}

/// `GET /files`.
pub(super) async fn download(sandbox: &SandboxBox, parts: &Parts) -> Answer {
    let query = Query::of(parts);
    let user = match who(parts, &query) {
        Ok(user) => user,
        Err(answer) => return answer,
    };
    let path = match machine::inside(query.get("path").unwrap_or_default(), user.home()) {
        Ok(path) => path,
        Err(why) => return Answer::error(400, &why),
    };
    let host = sandbox.machine.host(&path);
    let Ok(meta) = std::fs::metadata(&host) else {
        return Answer::error(404, &format!("path '{path}' does not exist"));
    };
    if meta.is_dir() {
        return Answer::error(400, &format!("path '{path}' is a directory"));
    }
    if !meta.is_file() {
        return Answer::error(400, &format!("path '{path}' is not a regular file"));
    }
    let modified = meta
        .modified()
        .ok()
        .and_then(|at| Timestamp::try_from(at).ok())
        .map(|at| at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .unwrap_or_default();
    let wants_gzip = accepts_gzip(&parts.headers);
    let (mut response, ranged) = if wants_gzip {
        match zipped(&host) {
            Ok(response) => (response, false),
            Err(error) => return Answer::error(500, &error.to_string()),
        }
    } else {
        let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
        if header("if-modified-since") == Some(modified.as_str()) {
            return Answer::empty(304);
        }
        match plain(&host, meta.len(), header("range")).await {
            Ok(found) => found,
            Err(answer) => return answer,
        }
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let headers = response.headers_mut();
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    set("content-type", content_type(name));
    set(
        "content-disposition",
        &format!("inline; filename=\"{}\"", name.escape_default()),
    );
    set("vary", "Accept-Encoding");
    set("last-modified", &modified);
    if !wants_gzip && !ranged {
        set("accept-ranges", "bytes");
    }
    response.into()
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get("accept-encoding").and_then(|v| v.to_str().ok());
    accepted.unwrap_or_default().split(',').any(|item| {
        let mut parts = item.split(';').map(str::trim);
        parts.next() == Some("gzip") && parts.next() != Some("q=0")
    })
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("txt" | "md" | "log") => "text/plain; charset=utf-8",
        Some("html") => "text/html; charset=utf-8",
        Some("json") => "application/json",
        Some("png") => "image/png",
        _ => "application/octet-stream",
    }
}

/// A reader as a body; `kept` lives as long as it is read.
fn body_of<K: Send + 'static>(reader: impl AsyncRead + Send + Unpin + 'static, kept: K) -> Body {
    let stream = futures::stream::unfold((reader, kept), |(mut reader, kept)| async move {
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(buffer.freeze()), (reader, kept))),
            Err(error) => Some((Err(error), (reader, kept))),
        }
    });
    Body::from_stream(stream)
}

async fn plain(
    host: &Path,
    size: u64,
    range: Option<&str>,
) -> Result<(Response<Body>, bool), Answer> {
    let failed = |error: std::io::Error| Answer::error(500, &error.to_string());
    let mut file = tokio::fs::File::open(host).await.map_err(failed)?;
    let wanted = range.and_then(|range| one_range(range, size));
    let (from, to) = wanted.unwrap_or((0, size));
    file.seek(std::io::SeekFrom::Start(from))
        .await
        .map_err(failed)?;
    let mut response = Response::new(body_of(file.take(to - from), ()));
    response
        .headers_mut()
        .insert("content-length", HeaderValue::from(to - from));
    if wanted.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let text = format!("bytes {from}-{}/{size}", to - 1);
        if let Ok(value) = HeaderValue::try_from(text) {
            response.headers_mut().insert("content-range", value);
        }
    }
    Ok((response, wanted.is_some()))
}

/// `bytes=a-b`, `a-` or `-n`, as a half-open range that isn't empty.
fn one_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = if from.is_empty() {
        (size.saturating_sub(to.parse().ok()?), size)
    } else {
        let end = match to {
            "" => size,
            to => to.parse::<u64>().ok()?.saturating_add(1).min(size),
        };
        (from.parse().ok()?, end)
    };
    (from < to).then_some((from, to))
}

fn zipped(host: &Path) -> std::io::Result<Response<Body>> {
    let mut child = Command::new("gzip")
        .arg("-c")
        .stdin(Stdio::from(std::fs::File::open(host)?))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    let mut response = Response::new(body_of(stdout, child));
    response
        .headers_mut()
        .insert("content-encoding", HeaderValue::from_static("gzip"));
    Ok(response)
}

/// `POST /files`.
pub(super) async fn upload(sandbox: &SandboxBox, parts: &Parts, body: Body) -> Answer {
    match receive(sandbox, parts, body).await {
        Ok(written) => {
            // E2B's answer is JSON under a sniffed type.
            let mut response = Response::new(Body::from(Value::Array(written).to_string()));
            response.headers_mut().insert(
                "content-type",
                HeaderValue::from_static("text/plain; charset=utf-8"),
            );
            response.into()
        }
        Err(answer) => answer,
    }
}

async fn receive(sandbox: &SandboxBox, parts: &Parts, body: Body) -> Result<Vec<Value>, Answer> {
    let query = Query::of(parts);
    let user = who(parts, &query)?;
    let header = |name: &str| {
        let value = parts.headers.get(name);
        value.and_then(|v| v.to_str().ok()).unwrap_or_default()
    };
    let metadata = metadata(&parts.headers)?;
    let encoding = header("content-encoding");
    if !matches!(encoding, "" | "identity" | "gzip") {
        let why = format!("unsupported content encoding: {encoding}");
        return Err(Answer::refusal(400, &why));
    }
    let kind = header("content-type");
    let target = Target {
        sandbox,
        user: &user,
        metadata: &metadata,
    };
    if kind.starts_with("application/octet-stream") {
        let Some(path) = query.get("path").filter(|path| !path.is_empty()) else {
            return Err(Answer::refusal(400, "path is required"));
        };
        return Ok(vec![target.write(path, body, encoding == "gzip").await?]);
    }
    let Some(boundary) = kind
        .strip_prefix("multipart/form-data")
        .and_then(|rest| rest.split_once("boundary="))
        .map(|(_, boundary)| {
            boundary
                .split(';')
                .next()
                .unwrap_or_default()
                .trim_matches('"')
        })
    else {
        let why = format!("unsupported content type: '{kind}'");
        return Err(Answer::refusal(400, &why));
    };
    let whole = axum::body::to_bytes(body, LARGEST)
        .await
        .map_err(|_| Answer::error(400, "error reading the body"))?;
    let Some(files) = multipart(&whole, boundary) else {
        return Err(Answer::refusal(400, "error parsing multipart form"));
    };
    let mut written = Vec::new();
    let mut paths = HashSet::new();
    for (filename, bytes) in files {
        let path = query.get("path").unwrap_or(&filename);
        let resolved = target.resolve(path)?;
        if !paths.insert(resolved.clone()) {
            let why = format!(
                "several files for the same path '{resolved}' in one request: only the first was written"
            );
            return Err(Answer::error(400, &why));
        }
        written.push(
            target
                .write(path, Body::from(bytes), encoding == "gzip")
                .await?,
        );
    }
    if written.is_empty() {
        return Err(Answer::refusal(400, "no part named 'file'"));
    }
    Ok(written)
}

/// `X-Metadata-*`.
fn metadata(headers: &HeaderMap) -> Result<BTreeMap<String, String>, Answer> {
    let mut out = BTreeMap::new();
    let mut size = 0;
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix("x-metadata-") else {
            continue;
        };
        size += key.len() + value.len();
        match value.to_str() {
            Ok(text) if size <= 4096 => out.insert(key.to_owned(), text.to_owned()),
            _ => return Err(Answer::refusal(400, "invalid file metadata")),
        };
    }
    Ok(out)
}

/// The `file` parts of a form: name and bytes.
fn multipart(body: &Bytes, boundary: &str) -> Option<Vec<(String, Bytes)>> {
    let find = |from: usize, needle: &[u8]| {
        let window = body.get(from..)?;
        let at = window.windows(needle.len()).position(|w| w == needle)?;
        Some(from + at)
    };
    let opening = format!("--{boundary}");
    let delimiter = format!("\r\n--{boundary}");
    let mut at = find(0, opening.as_bytes())? + opening.len();
    let mut files = Vec::new();
    while !body.get(at..)?.starts_with(b"--") {
        let head_end = find(at, b"\r\n\r\n")?;
        let end = find(head_end + 4, delimiter.as_bytes())?;
        let head = String::from_utf8_lossy(body.get(at..head_end)?).into_owned();
        let disposition = head.lines().find(|line| {
            line.to_ascii_lowercase()
                .starts_with("content-disposition:")
        })?;
        let param = |name: &str| {
            let (_, rest) = disposition.split_once(&format!("; {name}=\""))?;
            Some(rest.split('"').next()?.to_owned())
        };
        if param("name").as_deref() == Some("file") {
            files.push((param("filename")?, body.slice(head_end + 4..end)));
        }
        at = end + delimiter.len();
    }
    Some(files)
}

struct Target<'a> {
    sandbox: &'a SandboxBox,
    user: &'a User,
    metadata: &'a BTreeMap<String, String>,
}

impl Target<'_> {
    fn resolve(&self, path: &str) -> Result<String, Answer> {
        machine::inside(path, self.user.home()).map_err(|why| Answer::error(400, &why))
    }

    /// Writes as it comes: what was there is gone at once, and a body that breaks leaves its beginning.
    async fn write(&self, path: &str, body: Body, gzip: bool) -> Result<Value, Answer> {
        let path = self.resolve(path)?;
        let host = self.sandbox.machine.host(&path);
        if !self.sandbox.machine.owns(&host) {
            let why =
                format!("the stand-in writes below /home/user, /root and /tmp only, not {path}");
            return Err(Answer::refusal(500, &why));
        }
        if host.is_dir() {
            return Err(Answer::error(400, &format!("path '{path}' is a directory")));
        }
        let failed = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::ENOSPC) => Answer::error(507, "not enough disk space available"),
            _ => Answer::error(500, &format!("error writing '{path}': {error}")),
        };
        if let Some(parent) = host.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let file = std::fs::File::create(&host).map_err(failed)?;
        let whole = if gzip {
            let mut child = Command::new("gzip")
                .arg("-dc")
                .stdin(Stdio::piped())
                .stdout(Stdio::from(file))
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .map_err(failed)?;
            let stdin = child
                .stdin
                .take()
                .ok_or_else(|| Answer::error(500, "no pipe"))?;
            let copied = copy(body, stdin).await;
            let status = child.wait().await.map_err(failed)?;
            if copied.is_ok() && !status.success() {
                return Err(Answer::refusal(400, "invalid gzip body"));
            }
            copied
        } else {
            copy(body, tokio::fs::File::from_std(file)).await
        };
        whole.map_err(failed)?;
        let mut kept = self.sandbox.file_metadata.lock();
        let name = path.rsplit('/').next().unwrap_or_default();
        let mut json = json!({"name": name, "path": path, "type": "file"});
        if self.metadata.is_empty() {
            kept.remove(&host);
        } else {
            json["metadata"] = json!(self.metadata);
            kept.insert(host, self.metadata.clone());
        }
        Ok(json)
    }
}

async fn copy(
    body: Body,
    mut to: impl tokio::io::AsyncWrite + Unpin,
) -> Result<(), std::io::Error> {
    let mut body = body.into_data_stream();
    while let Some(chunk) = body.next().await {
        to.write_all(&chunk.map_err(std::io::Error::other)?).await?;
    }
    to.flush().await?;
    to.shutdown().await
}
