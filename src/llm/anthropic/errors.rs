//! What Anthropic's errors mean: by the error's type, and by the status where there is none or they contradict.

use serde_json::Value;

use crate::llm::text::mended;
use crate::llm::types::LlmErrorKind;

/// The kind of failure and the provider's words, from a status and a body. Inside a stream the status is
/// 200 and the type alone tells.
pub(super) fn classify(status: u16, body: &str) -> (LlmErrorKind, String) {
    let Ok(body) = serde_json::from_str::<Value>(&mended(body)) else {
        return (by_size(status, by_status(status)), plain(body));
    };
    let error = body.get("error").unwrap_or(&body);
    let kind = error
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let message = error
        .get("message")
        .or_else(|| body.get("message"))
        .and_then(Value::as_str)
        .or(error.as_str())
        .unwrap_or_default();
    let words = match (kind, message) {
        ("", message) => message.to_owned(),
        (kind, "") => kind.to_owned(),
        (kind, message) => format!("{kind}: {message}"),
    };
    let kind = match kind {
        "invalid_request_error" => by_words(message, LlmErrorKind::BadRequest),
        "authentication_error" | "permission_error" => LlmErrorKind::Auth,
        "billing_error" => LlmErrorKind::Billing,
        "not_found_error" if message.to_ascii_lowercase().contains("model") => {
            LlmErrorKind::ModelNotFound
        }
        "request_too_large" => LlmErrorKind::ContentRefused,
        "not_found_error" => LlmErrorKind::BadRequest,
        "rate_limit_error" => LlmErrorKind::RateLimited,
        "overloaded_error" => LlmErrorKind::Overloaded,
        "api_error" | "timeout_error" => LlmErrorKind::Unavailable,
        _ => by_words_too(by_status(status), message),
    };
    let told = by_status(status);
    let kind = if status == 200 || agree(told, kind) {
        kind
    } else {
        by_words_too(told, message)
    };
    (by_size(status, kind), words)
}

/// Whether an error's type may be of `kind` where its status says `told`: a failure that passes is none of the
/// request's, and what the key may not do is no fault of the request's shape.
const fn agree(told: LlmErrorKind, kind: LlmErrorKind) -> bool {
    use LlmErrorKind as K;
    let passes = matches!(kind, K::RateLimited | K::Overloaded | K::Unavailable);
    match told {
        K::RateLimited | K::Overloaded | K::Unavailable => passes,
        K::Auth | K::Billing => matches!(kind, K::Auth | K::Billing),
        K::BadRequest => !passes,
        _ => true,
    }
}

fn by_words_too(kind: LlmErrorKind, message: &str) -> LlmErrorKind {
    match kind {
        LlmErrorKind::BadRequest => by_words(message, LlmErrorKind::BadRequest),
        kind => kind,
    }
}

fn by_status(status: u16) -> LlmErrorKind {
    match status {
        401 | 403 => LlmErrorKind::Auth,
        402 => LlmErrorKind::Billing,
        429 => LlmErrorKind::RateLimited,
        529 => LlmErrorKind::Overloaded,
        // 200: an error object of an unknown type, in a stream or in place of an answer.
        200 | 408 | 409 | 500 | 502..=504 | 520..=524 => LlmErrorKind::Unavailable,
        400..=499 => LlmErrorKind::BadRequest,
        _ => LlmErrorKind::BadResponse,
    }
}

/// Too large a body is refused as a whole, whoever refuses it: what can be left out are pictures.
const fn by_size(status: u16, kind: LlmErrorKind) -> LlmErrorKind {
    match (status, kind) {
        (413, LlmErrorKind::BadRequest) => LlmErrorKind::ContentRefused,
        _ => kind,
    }
}

/// Two kinds of refused request that only their words tell apart from the others.
fn by_words(message: &str, otherwise: LlmErrorKind) -> LlmErrorKind {
    let message = message.to_ascii_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
    if has(&[
        "prompt is too long",
        "exceed context limit",
        "context window",
        "context length",
    ]) {
        LlmErrorKind::ContextTooLong
    } else if has(&["credit balance"]) {
        LlmErrorKind::Billing
    } else if (message.starts_with("messages.") && has(&["image", "pdf", ".document"]))
        || has(&[
            "process image",
            "image exceeds",
            "image dimensions",
            "process pdf",
            "pdf pages",
            "the pdf specified",
        ])
    {
        LlmErrorKind::ContentRefused
    } else {
        otherwise
    }
}

/// A body that is no JSON, as words: a web page tells nothing, so only that it is one.
fn plain(body: &str) -> String {
    let text = body.trim();
    if text.starts_with('<') {
        return "a web page instead of an error object".to_owned();
    }
    // Shortened only after secrets are out of it, so that no half of one is left.
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, kind: &str, message: &str) -> LlmErrorKind {
        let body =
            serde_json::json!({"type": "error", "error": {"type": kind, "message": message}});
        classify(status, &body.to_string()).0
    }

    #[test]
    fn a_413_is_about_content_whatever_its_body_says() {
        for body in [
            "<html>413 Request Entity Too Large</html>",
            "",
            "{}",
            r#"{"error": {"type": "invalid_request_error", "message": "too big"}}"#,
            r#"{"error": "Payload Too Large"}"#,
        ] {
            assert_eq!(
                classify(413, body).0,
                LlmErrorKind::ContentRefused,
                "{body}"
            );
        }
        let long = kind(413, "invalid_request_error", "prompt is too long");
        assert_eq!(long, LlmErrorKind::ContextTooLong);
    }

    #[test]
    fn the_type_tells_even_inside_a_stream() {
        const TABLE: &str = "
            400 invalid_request_error BadRequest max_tokens: required
            400 invalid_request_error ContextTooLong prompt is too long: 200001 tokens > 200000 maximum
            400 invalid_request_error ContextTooLong input length and `max_tokens` exceed context limit: 1 + 2 > 3
            400 invalid_request_error Billing Your credit balance is too low to access the Anthropic API.
            400 invalid_request_error ContentRefused messages.4.content.1.image.source.base64.data: Could not process
            400 invalid_request_error ContentRefused Could not process image
            400 invalid_request_error ContentRefused Could not process PDF
            400 invalid_request_error ContentRefused A maximum of 100 PDF pages may be provided.
            400 invalid_request_error BadRequest tools.3.custom.input_schema.properties.image_path: invalid
            400 invalid_request_error BadRequest messages.2: tool_use ids without tool_result blocks
            401 authentication_error Auth invalid x-api-key
            402 billing_error Billing
            403 permission_error Auth
            404 not_found_error ModelNotFound model: claude-x
            404 not_found_error BadRequest Not Found
            413 request_too_large ContentRefused
            429 rate_limit_error RateLimited
            200 rate_limit_error RateLimited
            500 api_error Unavailable
            200 api_error Unavailable
            504 timeout_error Unavailable
            529 overloaded_error Overloaded
            200 overloaded_error Overloaded Overloaded
            200 brand_new_error Unavailable
            401 invalid_request_error Auth no key
            403 not_found_error Auth model: claude-x
            403 billing_error Billing
            402 invalid_request_error Billing
            429 invalid_request_error RateLimited slow down
            500 invalid_request_error Unavailable
            503 authentication_error Unavailable
            529 not_found_error Overloaded
            503 overloaded_error Overloaded
            400 overloaded_error BadRequest
            400 api_error ContextTooLong prompt is too long
            400 authentication_error Auth
            200 invalid_request_error BadRequest";
        for row in TABLE.trim().lines() {
            let fields: Vec<&str> = row.trim().splitn(4, ' ').collect();
            let [status, name, expected, ref message @ ..] = fields[..] else {
                panic!("{row}")
            };
            let kind = kind(status.parse().unwrap(), name, &message.concat());
            assert_eq!(format!("{kind:?}"), expected, "{row}");
        }
    }

    #[test]
    fn bodies_that_are_no_error_object_go_by_status() {
        use LlmErrorKind as K;
        for (status, body, expected, words) in [
            (
                502,
                "<html>Bad Gateway</html>",
                K::Unavailable,
                "a web page instead of an error object",
            ),
            (503, "", K::Unavailable, ""),
            (524, "", K::Unavailable, ""),
            (529, "busy", K::Overloaded, "busy"),
            (429, "{\"detail\":\"slow down\"}", K::RateLimited, ""),
            (401, "{\"error\":\"no key\"}", K::Auth, "no key"),
            (
                400,
                "{\"message\":\"context length exceeded\"}",
                K::ContextTooLong,
                "context length exceeded",
            ),
            (
                404,
                "404 page not found",
                K::BadRequest,
                "404 page not found",
            ),
            (418, "[1]", K::BadRequest, ""),
            (501, "", K::BadResponse, ""),
        ] {
            assert_eq!(
                classify(status, body),
                (expected, words.to_owned()),
                "{status} {body}"
            );
        }
    }
}
