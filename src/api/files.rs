//! `GET /runs/{id}/files/{path}`: a file that a run returned, byte for byte, and a piece at a time: a client
//! that stalls holds one piece, however large the file is.
//!
//! Its content comes out of a sandbox, so nothing about it may make a browser run it: it is always an
//! attachment, of its own type, never sniffed, and under a policy that allows nothing.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, stream};
use percent_encoding::utf8_percent_encode;
use tracing::Span;

use super::ApiState;
use super::error::range_not_satisfiable;
use super::params::{Params, PathOf};
use super::runs::run_id;
use crate::encoding::RESERVED;
use crate::error::{ErrorCode, Problem};
use crate::ids::RunId;
use crate::runs::store_problem;
use crate::store::{FileRecord, RunStore, StoreError};
use std::sync::Arc;

/// `GET /runs/{id}/files/{path}`, with `Range`, `If-Range` and `If-None-Match`.
pub(super) async fn download(
    State(state): State<ApiState>,
    PathOf((id, path)): PathOf<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Params::none(&uri)?;
    let run = run_id(&id)?;
    let store = Arc::clone(state.app.runs.store());
    let found = store.file(&run, &path).await;
    let record = found
        .map_err(|error| store_problem(&error))?
        .ok_or_else(|| {
            Problem::new(ErrorCode::NotFound, "the run returned no such file")
                .hint(format!("GET /runs/{run} lists its files"))
                .about(&run)
        })?;
    let size = record.size;
    let etag = format!("\"{}\"", record.sha256);
    let (status, sent, range) = if matches(&headers, &etag) {
        (StatusCode::NOT_MODIFIED, None, None)
    } else {
        match wanted(&headers, &etag, size) {
            Wanted::Whole => (StatusCode::OK, Some((0, size)), None),
            Wanted::Part(first, last) => (
                StatusCode::PARTIAL_CONTENT,
                Some((first, last + 1)),
                Some(format!("bytes {first}-{last}/{size}")),
            ),
            Wanted::Nothing => return Ok(range_not_satisfiable(size)),
        }
    };
    let length = sent.map(|(from, to)| (to - from).to_string());
    let mime_type = record.mime_type.clone();
    let body = sent.map_or_else(Body::empty, |(from, to)| {
        Body::from_stream(pieces(store, run, record, from, to))
    });
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let octets = HeaderValue::from_static("application/octet-stream");
    let mime_type = HeaderValue::from_str(&mime_type).unwrap_or(octets);
    headers.insert(CONTENT_TYPE, mime_type);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox"),
    );
    for (name, value) in [
        (ETAG, Some(etag)),
        (CONTENT_DISPOSITION, Some(disposition(&path))),
        (CONTENT_LENGTH, length),
        (CONTENT_RANGE, range),
    ] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

/// The bytes from `at` up to `end`, which the file has, each piece read when it is wanted.
fn pieces(
    store: Arc<dyn RunStore>,
    run: RunId,
    file: FileRecord,
    at: u64,
    end: u64,
) -> impl Stream<Item = Result<Bytes, StoreError>> + Send {
    // A body is polled outside the request's span.
    let request = Span::current();
    stream::try_unfold(
        (store, run, file, at, request),
        move |(store, run, file, at, request)| async move {
            if at >= end {
                return Ok(None);
            }
            let read = store.read_file(&run, &file, at).await;
            let mut bytes = read.inspect_err(|error| {
                tracing::warn!(parent: &request, run.id = %run, %error, "cut a download");
            })?;
            bytes.truncate(usize::try_from(end - at).unwrap_or(usize::MAX));
            let next = at + bytes.len() as u64;
            Ok(Some((bytes, (store, run, file, next, request))))
        },
    )
}

/// `If-None-Match` names this version, or any.
fn matches(request: &HeaderMap, etag: &str) -> bool {
    request
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    /// First and last byte.
    Part(u64, u64),
    Nothing,
}

/// What of a file of `size` bytes is asked for. Several ranges, other units and malformed ones are
/// ignored, as RFC 9110 allows.
fn wanted(request: &HeaderMap, etag: &str, size: u64) -> Wanted {
    let same = request
        .get(IF_RANGE)
        .is_none_or(|version| version.as_bytes() == etag.as_bytes());
    let spec = request
        .get(RANGE)
        .filter(|_| same)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("bytes="))
        .and_then(|spec| spec.trim().split_once('-'));
    let Some((first, last)) = spec else {
        return Wanted::Whole;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let end = size.saturating_sub(1);
    match (number(first), number(last)) {
        (Some(first), None) if last.is_empty() => part(first, end, size),
        (Some(first), Some(last)) if first <= last => part(first, last.min(end), size),
        (None, Some(0)) if first.is_empty() => Wanted::Nothing,
        (None, Some(suffix)) if first.is_empty() => part(size.saturating_sub(suffix), end, size),
        _ => Wanted::Whole,
    }
}

fn part(first: u64, last: u64, size: u64) -> Wanted {
    if first < size {
        Wanted::Part(first, last)
    } else {
        Wanted::Nothing
    }
}

/// An attachment under the file's own name: in ASCII for old clients, and exactly (RFC 6266).
fn disposition(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let mut plain = String::new();
    for character in name.chars() {
        let keep = character.is_ascii_graphic() && !matches!(character, '"' | '\\' | '%' | ';');
        plain.push(if keep || character == ' ' {
            character
        } else {
            '_'
        });
    }
    let exact = utf8_percent_encode(name, &RESERVED);
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_defines_them() {
        for (range, size, expected) in [
            ("bytes=0-0", 10, Wanted::Part(0, 0)),
            ("bytes=2-", 10, Wanted::Part(2, 9)),
            ("bytes=-3", 10, Wanted::Part(7, 9)),
            ("bytes=-30", 10, Wanted::Part(0, 9)),
            ("bytes=8-99", 10, Wanted::Part(8, 9)),
            ("bytes=10-", 10, Wanted::Nothing),
            ("bytes=-0", 10, Wanted::Nothing),
            ("bytes=0-", 0, Wanted::Nothing),
            ("bytes=99999999999999999999-", 10, Wanted::Nothing),
            ("bytes=5-2", 10, Wanted::Whole),
            ("bytes=0-1,3-4", 10, Wanted::Whole),
            ("bytes=a-b", 10, Wanted::Whole),
            ("bytes=-", 10, Wanted::Whole),
            ("items=0-1", 10, Wanted::Whole),
            ("bytes=+1-2", 10, Wanted::Whole),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, HeaderValue::from_static(range));
            assert_eq!(wanted(&headers, "\"x\"", size), expected, "{range}");
            headers.insert(IF_RANGE, HeaderValue::from_static("\"other\""));
            assert_eq!(wanted(&headers, "\"x\"", size), Wanted::Whole, "{range}");
        }
    }

    #[test]
    fn names_can_not_leave_their_quotes() {
        assert_eq!(
            disposition("dir/a\"b\r\n;é.txt"),
            "attachment; filename=\"a_b____.txt\"; filename*=UTF-8''a%22b%0D%0A%3B%C3%A9.txt"
        );
    }
}
