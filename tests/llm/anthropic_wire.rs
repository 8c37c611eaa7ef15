//! What Anthropic's provider puts on the wire besides the body.

use sandcaster::llm::anthropic::{self, Anthropic};
use sandcaster::llm::{LlmDelta, LlmProvider as _, LlmStop, StreamLimits, provider as row};
use sandcaster::secrets::Secret;

use super::{ask, prompt};
use crate::support::fake_llm::{FakeLlm, KEY, Reply};
use crate::support::http;

#[tokio::test]
async fn the_key_goes_into_the_header_that_its_variable_stands_for() {
    for (variable, header, value) in [
        ("ANTHROPIC_API_KEY", "x-api-key", KEY.to_owned()),
        (
            "ANTHROPIC_AUTH_TOKEN",
            "authorization",
            format!("Bearer {KEY}"),
        ),
    ] {
        let llm = FakeLlm::start([Reply::says("hi")]).await;
        let config = anthropic::DEF.config(
            http(),
            |name| (name == variable).then(|| Secret::new(&format!("{KEY}\n"))),
            Some(&llm.base_url()),
        );
        let provider = Anthropic::new(config, StreamLimits::default());
        assert!(!format!("{provider:?}").contains(KEY));
        let (deltas, error) = ask(&provider, &prompt()).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(deltas.last(), Some(&LlmDelta::Stop(LlmStop::End)));
        let headers = llm.request(0).await.headers;
        assert_eq!(headers.get(header), Some(&value));
        let keys = ["x-api-key", "authorization"];
        let sent = keys.iter().filter(|name| headers.contains_key(**name));
        assert_eq!(sent.count(), 1);
        assert!(!headers.contains_key("accept-encoding"));
    }
}

#[tokio::test]
async fn an_api_key_wins_over_a_token() {
    let key = |name: &str| Some(Secret::new(name));
    let config = anthropic::DEF.config(http(), key, None);
    assert_eq!(config.key_var, "ANTHROPIC_API_KEY");
    assert_eq!(config.base_url, "https://api.anthropic.com");
}

#[tokio::test]
async fn a_gateways_path_prefix_is_kept() {
    for (suffix, path) in [
        ("", "/v1/messages"),
        ("/", "/v1/messages"),
        ("/v1", "/v1/messages"),
        ("/gateway/a", "/gateway/a/v1/messages"),
        ("/gateway/v1/", "/gateway/v1/messages"),
    ] {
        let llm = FakeLlm::start([Reply::says("hi")]).await;
        let provider = super::provider(&format!("{}{suffix}", llm.base_url()));
        assert!(ask(&provider, &prompt()).await.1.is_none());
        assert_eq!(llm.request(0).await.path, path);
    }
}

#[tokio::test]
async fn the_table_builds_it_and_demo() {
    for name in ["anthropic", "demo"] {
        let def = row(name).unwrap();
        let sandcaster::llm::Build::With(build) = def.build else {
            panic!("{name} is not built")
        };
        let config = def.config(http(), |_| Some(Secret::new(KEY)), None);
        let provider = build(config);
        assert!(provider.model(def.default_model).is_some());
        assert!(provider.model("no-such-model").is_none());
    }
}

#[tokio::test]
async fn a_key_that_no_header_can_hold_is_an_error_without_the_key() {
    let config = anthropic::DEF.config(http(), |_| Some(Secret::new("sk-\u{1}secret")), None);
    let provider = Anthropic::new(config, StreamLimits::default());
    let error = provider.open(&prompt().request()).await.err().unwrap();
    assert!(error.message.contains("ANTHROPIC_API_KEY") && !error.message.contains("secret"));
}
