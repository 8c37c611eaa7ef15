//! What a run is asked for, for unit tests.

use std::time::Duration;

use crate::spec::{
    ModelChoice, Network, Presence, RunSpec, SandboxChoice, SandboxStart, SystemPrompt,
    ThinkingLevel,
};

pub(super) fn spec() -> RunSpec {
    RunSpec {
        prompt: "hi".to_owned(),
        model: ModelChoice {
            provider: "anthropic",
            id: "claude-sonnet-4-6".to_owned(),
        },
        thinking: ThinkingLevel::Unset,
        tools: vec!["bash"],
        unavailable_tools: Vec::new(),
        max_turns: 100,
        timeout: Duration::from_mins(5),
        max_budget: None,
        files: Vec::new(),
        sandbox: SandboxChoice {
            backend: "local",
            template: None,
            network: Network::None,
            start: SandboxStart::Eager,
        },
        system_prompt: SystemPrompt::default(),
        presence: Presence::Background,
    }
}
