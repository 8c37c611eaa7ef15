//! A request's body: pure, and byte-stable, since the provider's cache compares bytes.
//!
//! Everything that the API would refuse for good is kept out here, because a conversation is sent again
//! with every request: empty text, blocks of other providers, pictures that the model can't see.

use std::borrow::Cow;

use serde::Deserialize;

use super::wire::{
    Body, Content, Format, Mark, Message as WireMessage, NAME, OutputConfig, Own, Source, Thinking,
    Tool, ToolChoice as WireChoice,
};
use crate::chat::{Block, Message, Part, ToolResult, ToolSpec};
use crate::error::WarningCode;
use crate::llm::effort::Effort;
use crate::llm::prices;
use crate::llm::types::{
    AnswerSize, LlmRequest, ModelFacts, ServerTool, ThinkingStyle, ToolChoice,
};
use crate::spec::ThinkingLevel;

/// The most tokens of an answer that are asked for unless the request says otherwise.
const USUAL_MAX_TOKENS: u32 = 32_000;
/// The same for a model whose limit is not known.
const UNKNOWN_MAX_TOKENS: u32 = 8_192;
/// Marks on messages: two of the four that a request may have are on the tools and the system prompt.
const MESSAGE_MARKS: usize = 2;
const WEB_SEARCH: &str = "web_search_20250305";

/// What could not be followed to the letter.
pub(super) type Warnings = Vec<(WarningCode, String)>;

/// The body of `POST /v1/messages`.
pub(super) fn body<'a>(request: &LlmRequest<'a>, warnings: &mut Warnings) -> Body<'a> {
    let facts = prices::facts(NAME, request.model);
    let plan = Plan::new(request, &facts);
    let warned = plan
        .warning
        .map(|warning| (WarningCode::ThinkingAdjusted, warning));
    warnings.extend(warned);
    let tools = tools(request.tools, request.server_tools);
    let format = request
        .output_schema
        .map(|schema| Format::JsonSchema { schema });
    let config = OutputConfig {
        effort: plan.effort,
        format,
    };
    Body {
        model: request.model,
        max_tokens: plan.max_tokens,
        stream: true,
        system: system(request.system),
        tool_choice: (request.tool_choice == ToolChoice::None && !tools.is_empty())
            .then_some(WireChoice::None),
        tools,
        thinking: plan.thinking,
        output_config: (config.effort.is_some() || config.format.is_some()).then_some(config),
        messages: messages(request.messages, &facts),
    }
}

/// How long the answer may be, and how much of it is for thinking.
struct Plan {
    max_tokens: u32,
    thinking: Option<Thinking>,
    effort: Option<&'static str>,
    warning: Option<String>,
}

impl Plan {
    fn new(request: &LlmRequest<'_>, facts: &ModelFacts) -> Self {
        let limit = facts.max_output_tokens;
        let usual = limit.map_or(UNKNOWN_MAX_TOKENS, |limit| limit.min(USUAL_MAX_TOKENS));
        let answer = match request.answer {
            AnswerSize::Usual => usual,
            AnswerSize::Full => limit.unwrap_or(usual),
            AnswerSize::AtMost(tokens) => tokens.min(limit.unwrap_or(usual)),
        };
        let most = limit
            .unwrap_or(u32::MAX)
            .min(request.affordable.unwrap_or(u32::MAX))
            .max(1);
        let mut plan = Self {
            max_tokens: answer.clamp(1, most),
            thinking: None,
            effort: None,
            warning: None,
        };
        plan.think(request, facts, most);
        plan
    }

    fn think(&mut self, request: &LlmRequest<'_>, facts: &ModelFacts, most: u32) {
        let style = facts.thinking;
        let wanted = match request.thinking {
            ThinkingLevel::Unset => return,
            ThinkingLevel::None => {
                match style {
                    ThinkingStyle::Unknown | ThinkingStyle::Budget | ThinkingStyle::OptIn => {}
                    ThinkingStyle::OptOut => self.thinking = Some(Thinking::Disabled),
                    ThinkingStyle::BetweenTools => {
                        self.thinking = Some(Thinking::BetweenTools);
                        self.warning = Some(format!(
                            "{} can't be kept from thinking altogether: it thinks between calls only",
                            request.model
                        ));
                    }
                    ThinkingStyle::Always => {
                        self.set_effort(Effort::None, request.model, facts);
                    }
                }
                return;
            }
            ThinkingLevel::Low => Effort::Low,
            ThinkingLevel::Medium => Effort::Medium,
            ThinkingLevel::High => Effort::High,
        };
        let (Some(budget_tokens), Some(least)) = (
            facts.thinking_budget(request.thinking),
            facts.least_with_thinking(request.thinking),
        ) else {
            // Newer models leave the text out unless it is asked for.
            self.thinking = Some(Thinking::Adaptive {
                display: "summarized",
            });
            self.set_effort(wanted, request.model, facts);
            return;
        };
        if most < least {
            let words = "the rest of the budget or of the model's window has no room for thinking";
            self.warning = Some(words.to_owned());
            return;
        }
        // It counts towards the answer's limit.
        self.max_tokens = self.max_tokens.saturating_add(budget_tokens).min(most);
        self.thinking = Some(Thinking::Enabled { budget_tokens });
    }

    /// The nearest effort that the model takes.
    fn set_effort(&mut self, wanted: Effort, model: &str, facts: &ModelFacts) {
        let taken = facts.efforts.nearest(wanted);
        self.effort = taken.map(Effort::as_str);
        if taken != Some(wanted) {
            self.warning = Some(format!(
                "{model} can't be asked with {} effort: it is asked with {}",
                wanted.as_str(),
                self.effort.unwrap_or("the usual one")
            ));
        }
    }
}

fn system(blocks: &[String]) -> Vec<Content<'_>> {
    let mut blocks: Vec<_> = blocks.iter().filter_map(|text| text_block(text)).collect();
    if let Some(last) = blocks.last_mut() {
        mark(last);
    }
    blocks
}

fn tools<'a>(specs: &[&'a ToolSpec], server_tools: &[ServerTool]) -> Vec<Tool<'a>> {
    let ours = specs.iter().map(|spec| Tool::Ours {
        name: spec.name,
        description: &spec.description,
        input_schema: &spec.input_schema,
        cache_control: None,
    });
    let theirs = server_tools.iter().map(|tool| match *tool {
        ServerTool::WebSearch { max_uses } => Tool::WebSearch {
            r#type: WEB_SEARCH,
            name: "web_search",
            max_uses,
            cache_control: None,
        },
    });
    let mut tools: Vec<Tool<'_>> = ours.chain(theirs).collect();
    if let Some(Tool::Ours { cache_control, .. } | Tool::WebSearch { cache_control, .. }) =
        tools.last_mut()
    {
        *cache_control = Some(Mark {});
    }
    tools
}

fn messages<'a>(history: &'a [Message], facts: &ModelFacts) -> Vec<WireMessage<'a>> {
    let mut out: Vec<WireMessage<'_>> = Vec::new();
    for message in history {
        let (role, content): (_, Vec<Content<'_>>) = match message {
            Message::User(parts) => (
                "user",
                parts
                    .iter()
                    .filter_map(|part| part_block(part, facts))
                    .collect(),
            ),
            Message::Assistant(reply) => {
                let own = reply.provider == NAME;
                let blocks = reply.blocks.iter().filter_map(|block| echo(block, own));
                ("assistant", blocks.collect())
            }
            Message::ToolResults { results, notice } => {
                let results = results.iter().map(|result| tool_result(result, facts));
                let notice = notice.as_deref().and_then(text_block);
                ("user", results.chain(notice).collect())
            }
        };
        match out.last_mut() {
            // The service joins neighbours of one role anyway.
            Some(last) if last.role == role => last.content.extend(content),
            _ if content.is_empty() => {}
            _ => out.push(WireMessage { role, content }),
        }
    }
    // Thinking that led to nothing more is refused at the end of a message.
    for message in &mut out {
        while message.role == "assistant" && message.content.last().is_some_and(is_thinking) {
            message.content.pop();
        }
    }
    out.retain(|message| !message.content.is_empty());
    // The newest user message is marked, and the place that the request before marked: a mark looks back
    // only 20 blocks for an entry, which a turn with many calls exceeds.
    let users = out
        .iter_mut()
        .rev()
        .filter(|message| message.role == "user");
    for message in users.take(MESSAGE_MARKS) {
        if let Some(block) = message.content.last_mut() {
            mark(block);
        }
    }
    out
}

fn is_thinking(content: &Content<'_>) -> bool {
    #[derive(Deserialize)]
    struct Kind<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
    }
    let Content::Echo(raw) = content else {
        return false;
    };
    serde_json::from_str::<Kind<'_>>(raw.get())
        .is_ok_and(|block| matches!(&*block.kind, "thinking" | "redacted_thinking"))
}

/// One block of a reply, as it is sent back. `None` for what the API would refuse.
fn echo(block: &Block, own: bool) -> Option<Content<'_>> {
    match block {
        Block::Text { text, .. } if text.trim().is_empty() => None,
        Block::Text {
            echo: Some(echo), ..
        }
        | Block::Opaque(echo)
            if own =>
        {
            Some(Content::Echo(echo.raw()))
        }
        Block::Text { text, .. } => text_block(text),
        Block::Call(call) => Some(Content::Own(Own::ToolUse {
            id: call.id.wire(),
            name: call.wire_name(),
            input: call.wire_args(),
        })),
        Block::Opaque(_) => None,
    }
}

fn part_block<'a>(part: &'a Part, facts: &ModelFacts) -> Option<Content<'a>> {
    let base64 = |media_type, data| Source::Base64 { media_type, data };
    match part {
        Part::Text(text) => text_block(text),
        Part::Image(image) if facts.vision => Some(Content::Own(Own::Image {
            source: base64(image.media_type.as_str(), &image.base64),
            cache_control: None,
        })),
        Part::Document(document) if facts.documents => Some(Content::Own(Own::Document {
            title: &document.name,
            source: base64("application/pdf", &document.base64),
            cache_control: None,
        })),
        Part::Image(_) => text_block("[a picture is left out here: this model can't see]"),
        Part::Document(_) => text_block("[a PDF is left out here: this model can't read it]"),
    }
}

fn tool_result<'a>(result: &'a ToolResult, facts: &ModelFacts) -> Content<'a> {
    let content = result
        .content
        .iter()
        .filter_map(|part| part_block(part, facts));
    Content::Own(Own::ToolResult {
        tool_use_id: result.id.wire(),
        content: content.collect(),
        is_error: result.is_error,
        cache_control: None,
    })
}

/// A text block, or nothing for blank text, which is refused.
fn text_block(text: &str) -> Option<Content<'_>> {
    if text.trim().is_empty() {
        return None;
    }
    Some(Content::Own(Own::Text {
        text,
        cache_control: None,
    }))
}

fn mark(block: &mut Content<'_>) {
    match block {
        Content::Own(
            Own::Text { cache_control, .. }
            | Own::Image { cache_control, .. }
            | Own::Document { cache_control, .. }
            | Own::ToolResult { cache_control, .. },
        ) => *cache_control = Some(Mark {}),
        Content::Own(Own::ToolUse { .. }) | Content::Echo(_) => {}
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
