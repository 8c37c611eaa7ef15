//! What holds for every request and response: framing, browser rules, authentication, request id,
//! security headers, and one log line per refusal.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use tracing::Instrument as _;

use super::access::Access;
use super::error::Refused;
use super::framing;
use super::listen::Peer;
use super::state::ApiState;
use crate::error::Problem;
use crate::ids::nonce;

/// The methods that web pages of allowed origins may use.
const CORS_METHODS: [Method; 3] = [Method::GET, Method::POST, Method::DELETE];

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");

/// Who may call the route with this path; `None`: none was matched.
pub(super) type AccessOf = fn(Option<&str>) -> Access;

/// The outermost layer. Runs after routing, so that access is decided by the route that was matched
/// and not by the text of the path (HT-2).
pub(super) async fn guard(
    State((state, access)): State<(ApiState, AccessOf)>,
    request: Request,
    next: Next,
) -> Response {
    let request_id = nonce();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let mut origin = None;
    let mut response = match admit(&state, access, &request, &mut origin) {
        Ok(Admission::Preflight) => preflight(),
        Ok(Admission::Handle) => {
            let route = matched.as_ref().map_or("-", MatchedPath::as_str);
            let span = tracing::error_span!("request", id = request_id, %method, route);
            next.run(request).instrument(span).await
        }
        Err(problem) => problem.into_response(),
    };
    if let Some(Refused(code)) = response.extensions().get().copied()
        && may_log(state.app.clock.now().as_second())
    {
        tracing::info!(
            %code,
            status = response.status().as_u16(),
            %method,
            route = matched.as_ref().map_or("-", MatchedPath::as_str),
            request.id = request_id,
            "refused a request"
        );
    }
    decorate(response.headers_mut(), &request_id, origin);
    response
}

enum Admission {
    Handle,
    Preflight,
}

/// In the order of cost; sets `origin` to an allowed origin, for the CORS headers.
fn admit(
    state: &ApiState,
    access: AccessOf,
    request: &Request,
    origin: &mut Option<HeaderValue>,
) -> Result<Admission, Problem> {
    let headers = request.headers();
    let matched = request.extensions().get::<MatchedPath>();
    let access = access(matched.map(MatchedPath::as_str));
    let host = framing::check(request.uri(), request.version(), headers, access)?;
    *origin = state.browser.check(access, host, headers)?;
    if origin.is_some()
        && request.method() == Method::OPTIONS
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    {
        return Ok(Admission::Preflight);
    }
    match access {
        Access::Key => state.auth.check(headers, Peer::of(request))?,
        Access::Public | Access::Signed => {}
    }
    Ok(Admission::Handle)
}

fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    let methods = CORS_METHODS.map(|method| method.to_string()).join(", ");
    if let Ok(methods) = HeaderValue::from_str(&methods) {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    }
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Authorization, Content-Type, Idempotency-Key, Last-Event-ID"),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// The headers of every response (HT-10). A handler's own `Cache-Control` and policy stay.
fn decorate(headers: &mut HeaderMap, request_id: &str, origin: Option<HeaderValue>) {
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(X_REQUEST_ID, id);
    }
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-store"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    if let Some(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("Location, Retry-After, X-Request-Id, X-Run-Id"),
        );
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
}

/// Refusals logged per window of time: a flood of bad requests must not become a flood of lines.
const LOGGED_PER_WINDOW: u64 = 20;

/// Counts lines in the low bits and the window (about a second) in the high bits.
static WINDOW: AtomicU64 = AtomicU64::new(0);

fn may_log(now: i64) -> bool {
    let window = u64::try_from(now).unwrap_or(0) << 16;
    let before = WINDOW.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seen| {
        let count = if seen & !0xffff == window {
            seen & 0xffff
        } else {
            0
        };
        (count < LOGGED_PER_WINDOW).then_some(window | (count + 1))
    });
    before.is_ok()
}
