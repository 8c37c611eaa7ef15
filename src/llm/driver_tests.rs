use super::super::anthropic::Anthropic;
use super::*;
use crate::chat::{Document, Image, ImageType, Part};
use crate::llm::estimate::of_message;
use crate::llm::json::Json;
use crate::llm::protocol::media;

#[tokio::test(start_paused = true)]
async fn a_document_of_blanks_is_no_answer_and_a_slow_one_is() {
    let every_minute = |chunk: &'static [u8]| {
        stream::unfold((), move |()| async move {
            tokio::time::sleep(Duration::from_mins(1)).await;
            Some((Ok(Bytes::from_static(chunk)), ()))
        })
    };
    let limits = StreamLimits::default();
    let blank = document("p", every_minute(b" "), limits).await;
    assert_eq!(blank.unwrap_err().kind, LlmErrorKind::Timeout);
    let slow = document("p", every_minute(b"1").take(30), limits).await;
    assert_eq!(slow.unwrap().len(), 30);
}

#[test]
fn what_is_no_text_has_the_same_tokens_in_a_request_as_in_a_conversation() {
    let base64 = "A".repeat(400_000);
    for part in [
        Part::Document(Document {
            name: String::new(),
            base64: base64.as_str().into(),
        }),
        Part::Image(Image {
            media_type: ImageType::Png,
            base64: base64.as_str().into(),
        }),
    ] {
        let message = [Message::User(vec![part])];
        let wire = Wire {
            url: String::new(),
            headers: HeaderMap::new(),
            body: Json::write(&base64, media(&message)).unwrap(),
            warnings: Vec::new(),
        };
        assert!(estimated_input(&wire, &message).abs_diff(of_message(&message[0])) < 3);
    }
}

#[test]
fn what_is_too_large_for_its_provider_is_not_sent() {
    const MOST: usize = Anthropic::MOST_BYTES;
    for (texts, media, kind) in [
        (MOST - 1, 1, None),
        (MOST - 1, 2, Some(LlmErrorKind::ContentRefused)),
        (MOST, 1, Some(LlmErrorKind::ContentRefused)),
        (MOST + 1, 0, Some(LlmErrorKind::ContextTooLong)),
    ] {
        let error = fits::<Anthropic>(texts, media).err();
        assert_eq!(error.map(|error| error.kind), kind, "{texts} {media}");
    }
}

#[test]
fn the_first_byte_tells_what_an_answer_is() {
    for (first, label, expected) in [
        ("data: x", "text/event-stream", "events"),
        ("event: x", "application/json", "events"),
        (": x", "text/html", "events"),
        ("{}", "text/event-stream", "json"),
        ("[]", "", "json"),
        ("not json", "application/json", "json"),
        ("<html>", "text/event-stream", "page"),
        ("Not found", "text/html", "other"),
        ("x", "text/plain", "events"),
    ] {
        let shape = match shape(first.as_bytes(), label) {
            Shape::Events => "events",
            Shape::Json => "json",
            Shape::Page => "page",
            Shape::Other => "other",
        };
        assert_eq!(shape, expected, "{first} {label}");
    }
}

#[test]
fn a_certificates_fault_names_no_host() {
    let host = "invalid peer certificate: certificate not valid for name \"llm.internal\"; certificate \
                is only valid for DnsName(\"other.internal\")";
    assert_eq!(
        nameless(host),
        "invalid peer certificate: certificate not valid for name"
    );
    for whole in [
        "invalid peer certificate: UnknownIssuer",
        "refused (os error 111)",
    ] {
        assert_eq!(nameless(whole), whole);
    }
}

#[test]
fn an_error_object_is_an_object_with_an_error() {
    assert!(is_error(r#"{"error": {"type": "x"}}"#));
    for none in [r#"[{"type": "x"}]"#, r#"{"error": null}"#, "{}", r#""x""#] {
        assert!(!is_error(none), "{none}");
    }
}
