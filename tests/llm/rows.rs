//! The providers under test: every row of the table that speaks HTTP and is built.

use std::sync::{Arc, LazyLock};

use sandcaster::chat::CallIds;
use sandcaster::llm::anthropic::Anthropic;
use sandcaster::llm::{
    Build, Decoder, LlmProvider, LlmRequest, PROVIDERS, Protocol, ProviderConfig, ProviderDef,
    StreamLimits, Wire,
};
use sandcaster::secrets::Secret;
use serde_json::Value;

use crate::support::fake_llm::{DIALECTS, Dialect, FakeLlm, KEY, Reply};
use crate::support::http;

/// A provider, and the other side of its wire.
pub struct Row {
    pub def: &'static ProviderDef,
    pub dialect: &'static dyn Dialect,
    pub decoder: fn(&CallIds) -> Box<dyn Decoder>,
    wire: fn(&ProviderConfig, &LlmRequest<'_>) -> Wire,
}

impl Row {
    fn of<P: Protocol>() -> Self {
        let def = sandcaster::llm::provider(P::NAME).unwrap();
        let dialect = DIALECTS.iter().find(|known| known.provider() == P::NAME);
        Self {
            def,
            dialect: *dialect.unwrap_or_else(|| panic!("{} has no dialect", P::NAME)),
            decoder: |ids| Box::new(P::decoder(ids)),
            wire: |config, request| P::new(config).request(request).unwrap(),
        }
    }

    pub fn config(&self, base_url: &str) -> ProviderConfig {
        let first = self.def.key_vars[0];
        let key = |name: &str| (name == first).then(|| Secret::new(KEY));
        self.def.config(http(), key, Some(base_url))
    }

    pub fn provider_of(&self, config: ProviderConfig) -> Arc<dyn LlmProvider> {
        let Build::With(build) = self.def.build else {
            panic!("{} is not built", self.def.name)
        };
        build(config)
    }

    pub fn provider_with(&self, base_url: &str, limits: StreamLimits) -> Arc<dyn LlmProvider> {
        self.provider_of(ProviderConfig {
            limits,
            ..self.config(base_url)
        })
    }

    pub fn provider(&self, base_url: &str) -> Arc<dyn LlmProvider> {
        self.provider_with(base_url, StreamLimits::default())
    }

    /// A stand-in that speaks its dialect.
    pub async fn llm(&self, replies: impl IntoIterator<Item = Reply>) -> FakeLlm {
        FakeLlm::speaking(self.dialect, replies).await
    }

    pub fn wire(&self, request: &LlmRequest<'_>) -> Wire {
        (self.wire)(&self.config("http://127.0.0.1:1"), request)
    }

    pub fn body(&self, request: &LlmRequest<'_>) -> Value {
        serde_json::from_slice(&self.wire(request).body.to_vec()).unwrap()
    }
}

pub fn rows() -> &'static [Row] {
    static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| vec![Row::of::<Anthropic>()]);
    &ROWS
}

#[test]
fn every_provider_that_is_built_is_tested() {
    let mut over_http = 0;
    for def in PROVIDERS {
        if matches!(def.build, Build::NotYet) || def.base_url_var.is_empty() {
            continue;
        }
        over_http += 1;
        let row = rows().iter().find(|row| row.def.name == def.name);
        assert!(row.is_some(), "{} has no row in the suite", def.name);
        assert!(!def.recordings.is_empty(), "{} has no recordings", def.name);
    }
    assert_eq!(over_http, rows().len());
    assert_eq!(over_http, DIALECTS.len());
}
