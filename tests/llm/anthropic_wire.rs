//! What Anthropic's provider puts on the wire besides the body.

use std::sync::Arc;

use sandcaster::chat::Message;
use sandcaster::llm::{
    Build, LlmDelta, LlmProvider, LlmRequest, LlmStop, ProviderConfig, anthropic, provider as row,
};
use sandcaster::secrets::Secret;
use sandcaster::spec::ThinkingLevel;
use serde_json::json;

use super::{Row, ask, blocks_of, rows};
use crate::support::fake_llm::{FakeLlm, KEY, Reply};
use crate::support::http;

fn ours() -> &'static Row {
    rows()
        .iter()
        .find(|row| row.def.name == "anthropic")
        .unwrap()
}

fn built(config: ProviderConfig) -> Arc<dyn LlmProvider> {
    let Build::With(build) = anthropic::DEF.build else {
        panic!("it is built")
    };
    build(config)
}

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
        assert!(!format!("{config:?}").contains(KEY));
        let (deltas, error) = ask(&*built(config), &ours().prompt()).await;
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
        let provider = ours().provider(&format!("{}{suffix}", llm.base_url()));
        assert!(ask(&*provider, &ours().prompt()).await.1.is_none());
        assert_eq!(llm.request(0).await.path, path);
    }
}

#[tokio::test]
async fn the_table_builds_it_and_demo() {
    for name in ["anthropic", "demo"] {
        let def = row(name).unwrap();
        let Build::With(build) = def.build else {
            panic!("{name} is not built")
        };
        let config = def.config(http(), |_| Some(Secret::new(KEY)), None);
        let facts = build(config).model(def.default_model);
        assert_eq!(facts.context_window.is_some(), name == "anthropic");
    }
}

#[test]
fn a_run_reckons_with_the_facts_that_its_requests_are_made_by_also_of_an_unlisted_model() {
    let (ours, prompt) = (ours(), ours().prompt());
    let provider = ours.provider("http://127.0.0.1:1");
    for model in ["claude-haiku-4-5", "claude-opus-4-1"] {
        let facts = provider.model(model);
        let least = facts.least_with_thinking(ThinkingLevel::High).unwrap();
        for affordable in [least, least - 1] {
            let body = ours.body(&LlmRequest {
                model,
                thinking: ThinkingLevel::High,
                affordable: Some(affordable),
                ..prompt.request()
            });
            assert_eq!(body["thinking"].is_object(), affordable == least, "{model}");
        }
    }
}

#[tokio::test]
async fn a_key_that_no_header_can_hold_is_an_error_without_the_key() {
    let config = anthropic::DEF.config(http(), |_| Some(Secret::new("sk-\u{1}secret")), None);
    let error = built(config)
        .open(&ours().prompt().request())
        .await
        .err()
        .unwrap();
    assert!(error.message.contains("ANTHROPIC_API_KEY") && !error.message.contains("secret"));
}

#[tokio::test]
async fn a_pause_is_continued_with_what_its_tools_did() {
    let search = json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search",
        "input": {"query": "x"}});
    let llm = FakeLlm::start([
        Reply::new().whole_block(search.clone()).stops("pause_turn"),
        Reply::says("Done."),
    ])
    .await;
    let provider = ours().provider(&llm.base_url());
    let mut request = ours().prompt();
    let (deltas, _) = ask(&*provider, &request).await;
    assert_eq!(deltas.last(), Some(&LlmDelta::Stop(LlmStop::Pause)));
    assert!(deltas.contains(&LlmDelta::ServerToolUse {
        tool: "web_search",
        query: "x".to_owned()
    }));
    let paused: Message = ours().said(blocks_of(&deltas));
    request.messages.push(paused);
    let (deltas, error) = ask(&*provider, &request).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(deltas.last(), Some(&LlmDelta::Stop(LlmStop::End)));
    let sent = llm.request(1).await;
    assert_eq!(sent.body["messages"][1]["content"], json!([search]));
}

#[tokio::test]
async fn a_thinking_level_that_cant_be_followed_is_the_first_thing_told() {
    let llm = FakeLlm::start([Reply::says("Done.")]).await;
    let provider = ours().provider(&llm.base_url());
    let mut request = ours().prompt();
    request.model = "claude-opus-5-5".to_owned();
    request.thinking = ThinkingLevel::None;
    let (deltas, _) = ask(&*provider, &request).await;
    assert!(matches!(
        deltas.first(),
        Some(LlmDelta::Warning { code, message })
            if code.as_str() == "THINKING_ADJUSTED" && message.contains("claude-opus-5-5")
    ));
}
