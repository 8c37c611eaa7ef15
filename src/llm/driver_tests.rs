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
