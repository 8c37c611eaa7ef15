//! Deliveries of E2B's lifecycle events (E2B webhooks: delivery and signature).
//!
//! The signature is a plain SHA-256 over secret and body, which can be extended by who has one signed body,
//! so the body must be exactly one JSON object, and what counts as the same event is decided by the
//! body's `id`, since headers are not signed (WH-2).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::encoding::without_bom;
use crate::ids::RunId;
use crate::sandbox::{SandboxNews, SandboxReport};
use crate::secrets::Secret;
use crate::show;

/// The header of the signature.
pub const SIGNATURE: &str = "e2b-signature";

/// As much of a reason is kept, in characters.
const REASON: usize = 200;
/// The longest name of ours or of E2B, in bytes.
const NAME: usize = 200;

/// What E2B sends. Newer deliveries are in `snake_case`, older ones in `camelCase`; only these fields
/// are relied on, whatever else there is.
#[derive(Debug, Deserialize)]
struct Payload {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    timestamp: String,
    #[serde(alias = "sandboxId")]
    sandbox_id: Option<String>,
    #[serde(alias = "eventData")]
    event_data: Option<EventData>,
}

#[derive(Debug, Default, Deserialize)]
struct EventData {
    #[serde(alias = "sandboxMetadata")]
    sandbox_metadata: Option<Labelled>,
    #[serde(alias = "killReason")]
    kill_reason: Option<Value>,
}

/// Any value is taken: what isn't text is no label of ours.
#[derive(Debug, Deserialize)]
struct Labelled {
    #[serde(rename = "sandcaster-run")]
    run: Option<Value>,
    #[serde(rename = "sandcaster-instance")]
    instance: Option<Value>,
}

/// A delivery's body: exactly one JSON object with the fields that are relied on, each of them once and in either
/// of its spellings. `None` for anything else.
pub fn read(body: &[u8]) -> Option<SandboxReport> {
    let text = std::str::from_utf8(without_bom(body)).ok()?;
    // An array with the values of the fields in order would be read, too.
    if !text.trim_ascii_start().starts_with('{') {
        return None;
    }
    let payload: Payload = serde_json::from_str(text).ok()?;
    let named = |text: &str| (1..=NAME).contains(&text.len()) && !text.contains(show::deceives);
    let sandbox_ok = payload.sandbox_id.as_deref().is_none_or(named);
    if !named(&payload.id) || !named(&payload.kind) || !sandbox_ok {
        return None;
    }
    let data = payload.event_data.unwrap_or_default();
    let labels = data.sandbox_metadata.as_ref();
    let run = labels.and_then(|labels| labels.run.as_ref()?.as_str());
    let instance = labels.and_then(|labels| labels.instance.as_ref()?.as_str());
    let news = match payload.kind.as_str() {
        "sandbox.lifecycle.created" => SandboxNews::Created,
        "sandbox.lifecycle.killed" => SandboxNews::Killed {
            reason: data
                .kill_reason
                .as_ref()
                .and_then(|reason| Some(show::prose(reason.as_str()?, REASON))),
        },
        other => SandboxNews::Other {
            event: other.to_owned(),
        },
    };
    Some(SandboxReport {
        sent_at: payload.timestamp.parse().ok()?,
        run: run.and_then(RunId::parse),
        // No store has a longer id, so the beginning tells as well that it is another.
        instance: instance.map(|id| show::start(id, NAME).to_owned()),
        event_id: payload.id,
        event_type: payload.kind,
        sandbox_id: payload.sandbox_id,
        news,
    })
}

/// Whether `signature` is SHA-256(secret ‖ body) in base64, of either alphabet, with or without padding and the
/// scheme's name in front.
pub fn signature_fits(secret: &Secret, signature: &str, body: &[u8]) -> bool {
    let text = signature.trim();
    let text = text.strip_prefix("sha256=").unwrap_or(text);
    let text = text
        .trim_end_matches('=')
        .replace('+', "-")
        .replace('/', "_");
    let Ok(claimed) = URL_SAFE_NO_PAD.decode(text) else {
        return false;
    };
    let digest = Sha256::new()
        .chain_update(secret.expose())
        .chain_update(body)
        .finalize();
    claimed.ct_eq(digest.as_slice()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_a_field_in_both_is_not() {
        let run = RunId::new();
        let timestamp = r#""timestamp":"2026-01-02T03:04:05Z""#;
        let old = format!(
            r#"{{"id":"1","type":"sandbox.lifecycle.killed",{timestamp},"sandboxId":"s","eventData":{{"killReason":"timeout","sandboxMetadata":{{"sandcaster-run":"{run}","sandcaster-instance":"i"}}}}}}"#
        );
        let new = old
            .replace("sandboxId", "sandbox_id")
            .replace("eventData", "event_data")
            .replace("killReason", "kill_reason")
            .replace("sandboxMetadata", "sandbox_metadata");
        for body in [&old, &new] {
            let report = read(body.as_bytes()).unwrap();
            assert_eq!(report.sandbox_id.as_deref(), Some("s"));
            assert_eq!(report.run.as_ref(), Some(&run));
            assert_eq!(report.instance.as_deref(), Some("i"));
            let reason = Some("timeout".to_owned());
            assert_eq!(report.news, SandboxNews::Killed { reason });
            for (sent, kept) in [
                ("é".repeat(1000), format!("{}…", "é".repeat(REASON))),
                (r"a\u0000b\n\u202ec".to_owned(), "a b c".to_owned()),
            ] {
                let sent = body.replace("timeout", &sent);
                let news = SandboxNews::Killed { reason: Some(kept) };
                assert_eq!(read(sent.as_bytes()).unwrap().news, news);
            }
            let foreign = body.replace(r#":"i""#, &format!(r#":"{}""#, "i".repeat(100_000)));
            let instance = read(foreign.as_bytes()).unwrap().instance.unwrap();
            assert_eq!(instance.len(), NAME);
        }
        let least = format!(r#"{{"id":"1","type":"t",{timestamp},"eventData":null}}"#);
        assert!(read(least.as_bytes()).is_some());
        for wrong in [
            least.replace("null", "null,\"event_data\":null"),
            format!("{least} {{}}"),
            format!("[{least}]"),
            least.replace("2026", "soon"),
            least.replace("\"1\"", "\"\""),
            least.replace("\"1\"", "\"\\u202e1\""),
        ] {
            assert_eq!(read(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
