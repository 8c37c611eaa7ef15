//! LLM APIs: one neutral request and stream, one file per provider, one table.
//!
//! Knows no sandbox, no HTTP server and no store.

mod account;
pub mod anthropic;
mod args;
#[cfg(test)]
mod asked;
mod def;
pub mod demo;
mod driver;
mod effort;
pub mod estimate;
mod fault;
mod json;
pub mod models;
pub mod prices;
mod protocol;
mod reading;
mod text;
mod types;

pub use def::{Build, ProviderConfig, ProviderDef, StreamLimits};
pub use effort::{Effort, Efforts};
pub use json::Json;
pub use protocol::{Decoder, Deltas, Heard, Protocol, Wire};
pub use types::{
    AnswerSize, Citation, LlmDelta, LlmError, LlmErrorKind, LlmProvider, LlmRequest, LlmStop,
    LlmStream, ModelFacts, ServerTool, ThinkingStyle, ToolChoice, Usage,
};

/// Every provider that a request may name, in the order in which keys suggest one.
pub static PROVIDERS: &[ProviderDef] = &[anthropic::DEF, OPENAI, GOOGLE, OPENROUTER, demo::DEF];

const OPENAI: ProviderDef = ProviderDef {
    name: "openai",
    key_vars: &["OPENAI_API_KEY"],
    base_url_var: "OPENAI_BASE_URL",
    default_base_url: "https://api.openai.com/v1",
    default_model: "gpt-5.4",
    aliases: &[("gpt5", "gpt-5.4"), ("gpt5mini", "gpt-5-mini")],
    model_prefixes: &["gpt-", "o1", "o3", "o4"],
    recordings: &["openai", "openai-compatible"],
    build: Build::NotYet,
};

const GOOGLE: ProviderDef = ProviderDef {
    name: "google",
    key_vars: &[
        "GOOGLE_API_KEY",
        "GEMINI_API_KEY",
        "GOOGLE_GENERATIVE_AI_API_KEY",
    ],
    base_url_var: "GOOGLE_GEMINI_BASE_URL",
    default_base_url: "https://generativelanguage.googleapis.com",
    default_model: "gemini-3.1-pro-preview",
    aliases: &[("gemini", "gemini-3.1-pro-preview")],
    model_prefixes: &["gemini-"],
    recordings: &["gemini"],
    build: Build::NotYet,
};

const OPENROUTER: ProviderDef = ProviderDef {
    name: "openrouter",
    key_vars: &["OPENROUTER_API_KEY"],
    base_url_var: "OPENROUTER_BASE_URL",
    default_base_url: "https://openrouter.ai/api/v1",
    default_model: "anthropic/claude-sonnet-4.6",
    aliases: &[],
    model_prefixes: &[],
    recordings: &["openrouter"],
    build: Build::NotYet,
};

/// The row named `name`.
pub fn provider(name: &str) -> Option<&'static ProviderDef> {
    PROVIDERS.iter().find(|def| def.name == name)
}
