//! Requests whose framing hyper lets pass but other servers might read differently: refused (HT-9).

use axum::http::header::{HOST, TRANSFER_ENCODING};
use axum::http::{HeaderMap, Uri, Version};

use super::access::Access;
use crate::error::{ErrorCode, Problem};

/// Refuses a request without exactly one well-formed `Host`, with a target that names another host, or
/// with a transfer encoding other than chunked. Gives the `Host`.
///
/// Load balancers poll the public routes without naming a host: in HTTP/1.0, which needs none (RFC 9112, 3.2), or
/// with an empty one. Nothing depends on it there.
pub(super) fn check<'h>(
    uri: &Uri,
    version: Version,
    headers: &'h HeaderMap,
    access: Access,
) -> Result<&'h str, Problem> {
    let refuse = |field: &str, message: &str| {
        Err(Problem::field(ErrorCode::ValidationFailed, field, message))
    };
    let public = access == Access::Public;
    let mut hosts = headers.get_all(HOST).iter();
    let host = match hosts.next() {
        Some(host) => host.as_bytes(),
        None if public && version == Version::HTTP_10 => b"",
        None => return refuse("Host", "the request has no Host header"),
    };
    if hosts.next().is_some() {
        return refuse("Host", "the request has more than one Host header");
    }
    let fits = |host: &&str| well_formed(host) || (public && host.is_empty());
    let Some(host) = std::str::from_utf8(host).ok().filter(fits) else {
        return refuse(
            "Host",
            "the Host header is not a host name with an optional port",
        );
    };
    if let Some(authority) = uri.authority()
        && !authority.as_str().eq_ignore_ascii_case(host)
    {
        return refuse(
            "Host",
            "the request's target names another host than its Host header",
        );
    }
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        let chunked = encoding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !chunked || encodings.next().is_some() {
            return refuse(
                "Transfer-Encoding",
                "the only transfer encoding that is understood is chunked",
            );
        }
    }
    Ok(host)
}

/// `name`, `1.2.3.4` or `[v6]`, with an optional port.
fn well_formed(host: &str) -> bool {
    let (name, port) = split_port(host);
    let name_ok = match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|v6| {
            !v6.is_empty()
                && v6
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.')
        }),
        None => {
            !name.is_empty()
                && name.len() <= 253
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        }
    };
    name_ok
        && port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
        })
}

/// The host and its port, if it names one. A v6 address keeps its brackets.
pub(super) fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.starts_with('[') || name.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_what_only_looks_like_one() {
        for good in [
            "localhost",
            "a-b.example",
            "127.0.0.1:3000",
            "[::1]",
            "[::1]:80",
            "my_host",
        ] {
            assert!(well_formed(good), "{good}");
        }
        for bad in [
            "", "a/b", "a?b", "a#b", "u@h", "a b", "a:", "a:b", "a:99999", "a:123456", "::1",
            "[::1", "[]", "[::1]x", "a:+1", "a\\b", "a,b",
        ] {
            assert!(!well_formed(bad), "{bad}");
        }
    }
}
