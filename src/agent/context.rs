//! What fits into the model's context window, and what goes when it no longer does.

use crate::chat::{Block, Message, Part, ToolArgs};
use crate::llm::{ModelFacts, Usage};

/// Results of so many newest tool turns stay when old ones are cleared ahead of need.
pub(super) const KEEP_RECENT: usize = 6;
/// Results of so many newest tool turns stay when the provider has refused the conversation as too long.
pub(super) const KEEP_LAST: usize = 2;

/// The newest turns that a summary leaves as they are have about so many tokens, or are one turn.
const KEPT_TOKENS: u64 = 20_000;
/// Quality falls long before a window of a million tokens is full.
const MOST_TOKENS: u64 = 160_000;
/// Room kept for the next answer beyond the output limit.
const MARGIN: u64 = 16_000;
/// Results shorter than this are not worth clearing.
const WORTH_CLEARING: usize = 600;
/// Images of the conversation that are sent along.
const IMAGES: usize = 10;
/// What an image costs, roughly.
const IMAGE_TOKENS: u64 = 1600;

/// How full the window is.
#[derive(Debug)]
pub(super) struct Window {
    trigger: u64,
    last: Option<Usage>,
    /// Tokens taken out of the conversation since.
    freed: u64,
}

/// What clearing has done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cleared {
    pub(super) results: usize,
    pub(super) tokens_before: u64,
    pub(super) tokens_after: u64,
}

impl Window {
    pub(super) fn new(facts: Option<ModelFacts>) -> Self {
        let window = facts
            .and_then(|facts| facts.context_window)
            .unwrap_or(200_000);
        let output = u64::from(
            facts
                .and_then(|facts| facts.max_output_tokens)
                .unwrap_or(8192),
        )
        .min(32_000);
        let trigger = (window * 4 / 5)
            .min(window.saturating_sub(output + MARGIN))
            .min(MOST_TOKENS);
        Self {
            trigger,
            last: None,
            freed: 0,
        }
    }

    pub(super) const fn saw(&mut self, usage: &Usage) {
        self.last = Some(*usage);
        self.freed = 0;
    }

    /// So much was taken out of the conversation; the next response's usage will show it.
    pub(super) const fn freed(&mut self, before: u64, after: u64) {
        self.freed += before.saturating_sub(after);
    }

    pub(super) const fn last_usage(&self) -> Option<Usage> {
        self.last
    }

    /// Whether the next request is likely to pass the trigger.
    pub(super) fn over_trigger(&self, history: &[Message]) -> bool {
        self.estimate(history) > self.trigger
    }

    /// Whether it is likely to pass three fifths of the trigger: then clearing has not freed enough.
    pub(super) fn still_crowded(&self, history: &[Message]) -> bool {
        self.estimate(history) > self.trigger * 3 / 5
    }

    /// The last request's tokens, what came since, less what was taken out.
    fn estimate(&self, history: &[Message]) -> u64 {
        let whole = match &self.last {
            Some(last) => last.context() + history.last().map_or(0, tokens),
            None => history.iter().map(tokens).sum(),
        };
        whole.saturating_sub(self.freed)
    }
}

/// Replaces the text of old tool results by a note, in place. The calls stay, so every call keeps its
/// result. `None` if there was nothing to clear.
pub(super) fn clear(history: &mut [Message], keep: usize) -> Option<Cleared> {
    let tokens_before = history.iter().map(tokens).sum();
    let turns = history
        .iter()
        .filter(|message| matches!(message, Message::ToolResults { .. }))
        .count();
    let mut results_cleared = 0;
    let old = history
        .iter_mut()
        .filter_map(|message| match message {
            Message::ToolResults { results, .. } => Some(results),
            Message::User(_) | Message::Assistant(_) => None,
        })
        .take(turns.saturating_sub(keep));
    for result in old.flatten() {
        let size: usize = result.content.iter().map(size).sum();
        if size < WORTH_CLEARING {
            continue;
        }
        result.content = vec![Part::Text(format!(
            "[cleared to save space: {size} characters; call {} again if you need it]",
            result.name
        ))];
        results_cleared += 1;
    }
    (results_cleared > 0).then(|| Cleared {
        results: results_cleared,
        tokens_before,
        tokens_after: history.iter().map(tokens).sum(),
    })
}

/// The conversation with all but its first message and its newest turns replaced by `summary`. Turns stay
/// whole: no result without its call, no thinking without its turn. `None` if nothing would go.
pub(super) fn compacted(history: &[Message], summary: String) -> Option<Vec<Message>> {
    let (first, later) = history.split_first()?;
    let mut kept = 0;
    let mut from = later.len();
    for (index, message) in later.iter().enumerate().rev() {
        kept += tokens(message);
        let begins_turn = matches!(message, Message::Assistant(_));
        if from < later.len() && kept > KEPT_TOKENS {
            break;
        }
        if begins_turn {
            from = index;
        }
    }
    if from == 0 || from == later.len() {
        return None;
    }
    let mut shorter = vec![first.clone(), Message::user(summary)];
    shorter.extend_from_slice(later.get(from..)?);
    Some(shorter)
}

/// About how many tokens a conversation has.
pub(super) fn total(history: &[Message]) -> u64 {
    history.iter().map(tokens).sum()
}

/// Keeps the newest [`IMAGES`] images of the conversation and replaces the others by a note: one image that
/// a provider can't take would fail every later request, and many of them fill the window.
pub(super) fn limit_images(history: &mut [Message]) {
    let mut left = IMAGES;
    let results = history
        .iter_mut()
        .rev()
        .filter_map(|message| match message {
            Message::ToolResults { results, .. } => Some(results),
            Message::User(_) | Message::Assistant(_) => None,
        });
    for content in results
        .flat_map(|results| results.iter_mut().rev())
        .flat_map(|result| result.content.iter_mut().rev())
    {
        if matches!(content, Part::Image(_)) {
            match left.checked_sub(1) {
                Some(fewer) => left = fewer,
                None => {
                    *content = Part::Text(
                        "[an older image was left out; read the file again if you need it]"
                            .to_owned(),
                    );
                }
            }
        }
    }
}

fn size(content: &Part) -> usize {
    match content {
        Part::Text(text) => text.chars().count(),
        Part::Image(image) => image.base64.len(),
        Part::Document(document) => document.base64.len(),
    }
}

/// About how many tokens a message has: 0.3 per ASCII character, 0.8 per other.
fn tokens(message: &Message) -> u64 {
    match message {
        Message::User(parts) => parts.iter().map(part_tokens).sum(),
        Message::Assistant(reply) => reply
            .blocks
            .iter()
            .map(|block| match block {
                Block::Text { text, .. } => of_text(text),
                Block::Call(call) => match &call.args {
                    ToolArgs::Json(value) => of_text(&value.to_string()),
                    ToolArgs::Malformed { .. } => 1,
                },
                Block::Opaque(echo) => of_text(echo.json()),
            })
            .sum(),
        Message::ToolResults { results, notice } => {
            let content = results
                .iter()
                .flat_map(|result| &result.content)
                .map(part_tokens);
            content.sum::<u64>() + notice.as_deref().map_or(0, of_text)
        }
    }
}

fn part_tokens(part: &Part) -> u64 {
    match part {
        Part::Text(text) => of_text(text),
        Part::Image(_) => IMAGE_TOKENS,
        Part::Document(document) => document.base64.len() as u64 / 4,
    }
}

fn of_text(text: &str) -> u64 {
    let ascii = text.bytes().filter(u8::is_ascii).count() as u64;
    let other = text.chars().count() as u64 - ascii;
    (ascii * 3 + other * 8).div_ceil(10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{CallIds, ToolResult};

    fn results(id: &str, text: &str) -> Message {
        Message::ToolResults {
            results: vec![ToolResult {
                id: CallIds::default().issue(id),
                name: "bash".to_owned(),
                content: vec![Part::Text(text.to_owned())],
                is_error: false,
            }],
            notice: None,
        }
    }

    #[test]
    fn old_long_results_are_cleared_and_recent_and_short_ones_kept() {
        let long = "x".repeat(5000);
        let mut history = vec![Message::user("go".to_owned()), results("0", "short")];
        history.extend((1..=8).map(|n| results(&n.to_string(), &long)));
        let cleared = clear(&mut history, KEEP_RECENT).unwrap();
        assert_eq!(cleared.results, 2);
        assert!(cleared.tokens_after < cleared.tokens_before);
        assert_eq!(history.last(), Some(&results("8", &long)));
        assert_eq!(history[1], results("0", "short"));
        assert_eq!(
            clear(&mut history, KEEP_RECENT),
            None,
            "nothing is cleared twice"
        );
    }

    fn turn(id: &str, text: &str) -> [Message; 2] {
        let call = Block::Call(crate::chat::ToolCall {
            id: CallIds::default().issue(id),
            name: "bash".to_owned(),
            args: ToolArgs::Json(serde_json::json!({})),
            echo: None,
        });
        let reply = crate::chat::Reply {
            provider: "anthropic",
            blocks: vec![call],
        };
        [Message::Assistant(reply), results(id, text)]
    }

    #[test]
    fn a_summary_replaces_old_turns_and_leaves_the_newest_whole() {
        let mut history = vec![Message::user("go".to_owned())];
        for n in 0..6 {
            history.extend(turn(&n.to_string(), &"z".repeat(30_000)));
        }
        let shorter = compacted(&history, "[sandcaster] so far".to_owned()).unwrap();
        assert_eq!(
            shorter[..2],
            [
                Message::user("go".to_owned()),
                Message::user("[sandcaster] so far".to_owned())
            ]
        );
        assert_eq!(
            shorter[2..],
            history[9..],
            "two turns of 9,000 tokens fit into 20,000"
        );
        let one = [
            vec![Message::user("go".to_owned())],
            turn("1", &"z".repeat(300_000)).to_vec(),
        ]
        .concat();
        assert_eq!(compacted(&one, String::new()), None, "the only turn stays");
    }

    #[test]
    fn only_the_newest_ten_images_stay() {
        let image = Part::Image(crate::chat::Image {
            media_type: crate::chat::ImageType::Png,
            base64: "aGk=".into(),
        });
        let mut history: Vec<Message> = (0..12)
            .map(|n| Message::ToolResults {
                results: vec![ToolResult {
                    id: CallIds::default().issue(&n.to_string()),
                    name: "file_read".to_owned(),
                    content: vec![image.clone()],
                    is_error: false,
                }],
                notice: None,
            })
            .collect();
        limit_images(&mut history);
        let images: Vec<bool> = history
            .iter()
            .map(|message| matches!(message, Message::ToolResults { results, .. } if results[0].content[0] == image))
            .collect();
        assert_eq!(images.iter().position(|is_image| *is_image), Some(2));
        assert_eq!(images.iter().filter(|is_image| **is_image).count(), 10);
    }

    #[test]
    fn the_trigger_leaves_room_for_an_answer() {
        let facts = ModelFacts {
            context_window: Some(200_000),
            max_output_tokens: Some(64_000),
        };
        let mut window = Window::new(Some(facts));
        assert_eq!(window.trigger, 152_000);
        window.saw(&Usage {
            cache_read: 151_000,
            output: 500,
            ..Usage::default()
        });
        assert!(!window.over_trigger(&[results("1", "short")]));
        assert!(window.over_trigger(&[results("1", &"y".repeat(3000))]));
    }
}
