use super::*;

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
