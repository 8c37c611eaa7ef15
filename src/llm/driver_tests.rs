use super::*;
use crate::secrets::Secret;

#[test]
fn messages_lose_secrets_control_characters_and_excess() {
    let redactor = Redactor::new([&Secret::new("sk-ant-secret-key")]);
    let shown = shown(
        &redactor,
        &format!("bad key sk-ant-secret-key\n{}", "x".repeat(600)),
    );
    assert!(shown.starts_with("bad key [redacted] xxx") && shown.ends_with('…'));
    assert_eq!(shown.chars().count(), SHOWN_CHARS + 1);
}
