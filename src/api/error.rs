//! The only place that maps an [`ErrorCode`] to a status, and a [`Problem`] to a response.

use std::any::Any;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::{Detail, ErrorCode, Problem};
use crate::show::short;

/// How long a client should wait when nobody knows better.
const DEFAULT_RETRY: Duration = Duration::from_secs(5);
/// Characters of a path that a message shows.
pub(super) const SHOWN_PATH: usize = 200;

/// The status of a request that is refused with `code`, and of a run in waiting JSON mode that ended
/// with it (but see [`status_of_end`]).
pub(super) const fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidJson
        | ErrorCode::ValidationFailed
        | ErrorCode::UnknownModel
        | ErrorCode::ProviderUnknown
        | ErrorCode::InvalidTemplateForProvider
        | ErrorCode::LlmKeyMissing
        | ErrorCode::CursorInvalid
        | ErrorCode::ProviderAuthMissing => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::ForbiddenHost | ErrorCode::ForbiddenOrigin => StatusCode::FORBIDDEN,
        ErrorCode::NotFound | ErrorCode::RunNotFound => StatusCode::NOT_FOUND,
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::CursorAhead
        | ErrorCode::RunActive
        | ErrorCode::SessionBusy
        | ErrorCode::Cancelled
        | ErrorCode::ClientGone => StatusCode::CONFLICT,
        ErrorCode::EventsExpired => StatusCode::GONE,
        ErrorCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorCode::IdempotencyKeyReused
        | ErrorCode::MaxTurns
        | ErrorCode::BudgetExceeded
        | ErrorCode::OutputInvalid
        | ErrorCode::LogLimit
        | ErrorCode::ContextTooLong
        | ErrorCode::LlmRefused => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::QueueFull | ErrorCode::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        ErrorCode::NoModelConfigured
        | ErrorCode::NoSandboxConfigured
        | ErrorCode::Draining
        | ErrorCode::StoreUnavailable
        | ErrorCode::ServerBusy
        | ErrorCode::ServerShutdown
        | ErrorCode::ServerCrashed
        | ErrorCode::LeaseLost => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::DeadlineExceeded | ErrorCode::QueueTimeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::LlmAuth
        | ErrorCode::LlmBilling
        | ErrorCode::LlmRateLimited
        | ErrorCode::LlmOverloaded
        | ErrorCode::LlmUnavailable
        | ErrorCode::LlmTimeout
        | ErrorCode::LlmStreamCut
        | ErrorCode::LlmBadResponse
        | ErrorCode::LlmBadRequest
        | ErrorCode::LlmModelNotFound
        | ErrorCode::RateLimit
        | ErrorCode::TemplateNotFound
        | ErrorCode::TemplateIncompatible
        | ErrorCode::SandboxTimeout
        | ErrorCode::SandboxError
        | ErrorCode::SandboxLost => StatusCode::BAD_GATEWAY,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The status of a run that ended with `code`: a key that the backend refuses then is no fault of the
/// request.
pub(super) const fn status_of_end(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::ProviderAuthMissing => StatusCode::BAD_GATEWAY,
        other => status(other),
    }
}

/// The code of a refused request, left on its response for the log line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused(pub(super) ErrorCode);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorBody<'a> {
    error: &'a str,
    message: &'a str,
    code: ErrorCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "<[Detail]>::is_empty")]
    details: &'a [Detail],
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_secs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<&'a str>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = status(self.code);
        let retry_after = self.retry_after.or_else(|| {
            let passes = matches!(
                self.code,
                ErrorCode::QueueFull
                    | ErrorCode::TooManyRequests
                    | ErrorCode::ServerBusy
                    | ErrorCode::Draining
                    | ErrorCode::StoreUnavailable
            );
            // Where there is a run already, the same request might start a second one.
            (passes && self.run_id.is_none()).then_some(DEFAULT_RETRY)
        });
        let retry_after_secs = retry_after.map(whole_seconds);
        let body = ErrorBody {
            error: &self.message,
            message: &self.message,
            code: self.code,
            field: self.details.first().map(|detail| detail.path.as_str()),
            hint: self.hint.as_deref(),
            details: &self.details,
            retry_after_secs,
            run_id: self.run_id.as_ref().map(crate::ids::RunId::as_str),
        };
        let mut response = json(status, &body);
        let headers = response.headers_mut();
        if let Some(secs) = retry_after_secs {
            headers.insert(RETRY_AFTER, HeaderValue::from(secs));
        }
        if self.code == ErrorCode::Unauthorized {
            headers.insert(
                WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"sandcaster\""),
            );
        }
        if let Some(run) = &self.run_id {
            super::view::about(&mut response, run);
        }
        response.extensions_mut().insert(Refused(self.code));
        response
    }
}

/// Seconds as `Retry-After` counts them, rounded up, at least one.
pub(super) fn whole_seconds(after: Duration) -> u64 {
    (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1)
}

/// A JSON response.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => json_bytes(status, Body::from(bytes)),
        Err(error) => {
            tracing::error!(%error, "a response could not be written as JSON");
            internal().into_response()
        }
    }
}

/// A response whose `body` is JSON.
pub(super) fn json_bytes(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The text in the place of a run's id is none. It is the client's, and not shown.
pub(super) fn not_a_run_id(text: &str) -> Problem {
    if text.is_empty() {
        let message = "there is no run without an id";
        return Problem::new(ErrorCode::RunNotFound, message)
            .hint("the run's id is missing: it stands after /runs/");
    }
    let message = "there is no such run: an id is run_ and 32 lower-case hex digits";
    Problem::new(ErrorCode::RunNotFound, message).hint("GET /runs lists the newest runs")
}

/// A fault of ours.
pub(super) fn internal() -> Problem {
    Problem::new(
        ErrorCode::Internal,
        "sandcaster failed to answer this request; its log says why",
    )
}

/// No such method here. axum adds `Allow`.
pub(super) async fn method_not_allowed(request: Request) -> Problem {
    let path = short(request.uri().path(), SHOWN_PATH);
    Problem::new(
        ErrorCode::MethodNotAllowed,
        format!("{path} does not answer {}", request.method()),
    )
    .hint("the Allow header names the methods that it answers")
}

/// A handler panicked: the panic hook has printed where.
pub(super) fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("a request handler panicked");
    internal().into_response()
}

/// A range that lies outside of a file of `size` bytes.
pub(super) fn range_not_satisfiable(size: u64) -> Response {
    let mut response = Problem::field(
        ErrorCode::ValidationFailed,
        "Range",
        format!("the range lies outside of the file, which has {size} bytes"),
    )
    .into_response();
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::ids::RunId;

    async fn body(problem: Problem) -> (Response, Value) {
        let (parts, body) = problem.into_response().into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 16).await.unwrap();
        let value = serde_json::from_slice(&bytes).unwrap();
        (Response::from_parts(parts, Body::empty()), value)
    }

    #[tokio::test]
    async fn a_problem_shows_all_that_it_has_and_nothing_else() {
        let (response, plain) = body(Problem::new(ErrorCode::NotFound, "nothing here")).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(
            plain,
            json!({"error": "nothing here", "message": "nothing here", "code": "NOT_FOUND"})
        );
        let run = RunId::new();
        let mut problem = Problem::field(ErrorCode::QueueFull, "files[2].name", "too long")
            .hint("shorten it")
            .retry_after(Duration::from_millis(1500))
            .about(&run);
        problem.details.push(Detail {
            path: "prompt".to_owned(),
            message: "empty".to_owned(),
        });
        let (response, whole) = body(problem).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["x-run-id"], run.as_str());
        assert_eq!(
            whole,
            json!({
                "error": "too long", "message": "too long", "code": "QUEUE_FULL",
                "field": "files[2].name", "hint": "shorten it",
                "details": [
                    {"path": "files[2].name", "message": "too long"},
                    {"path": "prompt", "message": "empty"},
                ],
                "retryAfterSecs": 2, "runId": run,
            })
        );
    }

    #[tokio::test]
    async fn every_code_is_an_error_status_and_overload_says_when_to_come_back() {
        for code in ErrorCode::ALL.iter().copied() {
            let status = status(code);
            assert!(
                status.is_client_error() || status.is_server_error(),
                "{code}"
            );
            let waits = matches!(
                code,
                ErrorCode::QueueFull
                    | ErrorCode::TooManyRequests
                    | ErrorCode::ServerBusy
                    | ErrorCode::Draining
                    | ErrorCode::StoreUnavailable
            );
            let (response, _) = body(Problem::new(code, "x")).await;
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                waits,
                "{code}"
            );
        }
    }
}
