//! A request that owns what [`LlmRequest`] borrows, for unit tests.

use std::time::Duration;

use serde_json::{Value, json};

use super::types::{AnswerSize, LlmRequest, ServerTool, ToolChoice};
use crate::chat::{CallIds, Message, ToolSpec};
use crate::clock::Deadline;
use crate::spec::ThinkingLevel;

/// Every field is as in [`LlmRequest`].
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) system: Vec<String>,
    pub(super) tools: Vec<&'static ToolSpec>,
    pub(super) server_tools: Vec<ServerTool>,
    pub(super) tool_choice: ToolChoice,
    pub(super) messages: Vec<Message>,
    pub(super) output_schema: Option<Value>,
    pub(super) answer: AnswerSize,
    pub(super) affordable: Option<u32>,
    pub(super) thinking: ThinkingLevel,
    pub(super) ids: CallIds,
}

impl Asked {
    pub(super) fn new(model: &str, tools: &[&'static str], messages: Vec<Message>) -> Self {
        let spec = |name: &&'static str| -> &'static ToolSpec {
            Box::leak(Box::new(ToolSpec {
                name,
                description: format!("{name}s"),
                input_schema: json!({"type": "object", "properties": {}}),
            }))
        };
        Self {
            model: model.to_owned(),
            system: Vec::new(),
            tools: tools.iter().map(spec).collect(),
            server_tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            messages,
            output_schema: None,
            answer: AnswerSize::Usual,
            affordable: None,
            thinking: ThinkingLevel::Unset,
            ids: CallIds::default(),
        }
    }

    pub(super) fn request(&self) -> LlmRequest<'_> {
        let deadline = Deadline::after(Duration::from_mins(1));
        LlmRequest {
            system: &self.system,
            tools: &self.tools,
            server_tools: &self.server_tools,
            tool_choice: self.tool_choice,
            output_schema: self.output_schema.as_ref(),
            answer: self.answer,
            affordable: self.affordable,
            thinking: self.thinking,
            ..LlmRequest::plain(&self.model, &self.messages, &self.ids, deadline)
        }
    }
}
