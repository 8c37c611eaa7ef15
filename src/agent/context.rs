//! What fits into the model's context window and into a request, and what goes when it no longer does.

use std::time::Duration;

use tokio::time::Instant;

use crate::apart::aside;
use crate::chat::{Message, Part, ToolSpec};
use crate::llm::estimate::{Size, bytes_of, least_of, of_message, of_part, of_text};
use crate::llm::{ModelFacts, Usage};

/// Quality falls long before a window of a million tokens is full.
const MOST_TOKENS: u64 = 160_000;
/// Room kept for the next answer beyond the output limit.
const MARGIN: u64 = 16_000;
/// Results shorter than this are not worth clearing.
const WORTH_CLEARING: usize = 600;
/// Results of this tool are instructions that hold for the rest of the run.
const NEVER_CLEARED: &str = "read_skill";
/// Images and documents of the conversation that are sent along: so many,
pub(super) const MOST_MEDIA: usize = 10;
/// and so many bytes of base64 in all. The smallest limit of a provider's whole request is 20 MB.
pub(super) const MOST_MEDIA_BYTES: usize = 18_000_000;
/// When they are too many, all go but so many of the newest, since each change voids the provider's cache,
const KEPT_MEDIA: usize = 5;
/// of so many bytes.
const KEPT_MEDIA_BYTES: usize = 12_000_000;
/// A provider keeps what it has cached for five minutes after it was asked last; what is asked now takes a while to
/// get there.
const CACHED: Duration = Duration::from_secs(270);
/// A summary's length, roughly, in tokens.
const SUMMARY: u64 = 2000;
/// What stands in for an image or document.
const LEFT_OUT: &str = "[left out to save space; read the file again if you need it]";
const REFUSED: &str = "[left out: the LLM provider could not read it]";
/// The results of one turn have at most so many characters,
const MOST_RESULT_CHARS: u64 = 200_000;
/// and may have so many however full the window is.
const LEAST_RESULT_CHARS: u64 = 20_000;

/// How full the window is.
#[derive(Debug)]
pub(super) struct Window {
    size: u64,
    trigger: u64,
    last: Option<Seen>,
    /// The tokens of the first `counted` messages, with system prompt and tools: as the provider counted them, less
    /// what was taken out since.
    tokens: u64,
    counted: usize,
    /// Something of it was changed since: the provider's cache holds another one.
    stale: bool,
}

/// What the last response used, and when it was asked for.
#[derive(Debug)]
struct Seen {
    usage: Usage,
    asked_at: Instant,
}

impl Window {
    pub(super) fn new(facts: &ModelFacts, system: &[String], tools: &[&ToolSpec]) -> Self {
        let size = facts.context_window.unwrap_or(200_000);
        let output = u64::from(facts.max_output_tokens.unwrap_or(8192)).min(32_000);
        // Above it the whole request is dearer.
        let step = facts.price_step;
        let trigger = (size * 4 / 5)
            .min(size.saturating_sub(output + MARGIN))
            .min(step.map_or(u64::MAX, |step| step / 20 * 19))
            .min(MOST_TOKENS);
        let tools = tools
            .iter()
            .map(|tool| of_text(&tool.description) + Size::of_json(&tool.input_schema).tokens());
        Self {
            size,
            trigger,
            last: None,
            tokens: system.iter().map(|text| of_text(text)).sum::<u64>() + tools.sum::<u64>(),
            counted: 0,
            stale: false,
        }
    }
}

/// The conversation, and how much of the window it takes: every change of it is counted.
#[derive(Debug)]
pub(super) struct History {
    messages: Vec<Message>,
    /// The tokens of each, so that nothing is counted twice: a message may be megabytes.
    tokens: Vec<u64>,
    window: Window,
}

/// What a change of the conversation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Results that were cleared.
    pub(super) results: usize,
    pub(super) tokens_before: u64,
    pub(super) tokens_after: u64,
}

/// Why room is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The window is nearly full: only what is worth the loss of the provider's cache.
    Ahead,
    /// The conversation does not fit any more: whatever can go.
    Now,
}

impl History {
    pub(super) fn new(first: Message, window: Window) -> Self {
        let mut history = Self {
            messages: Vec::new(),
            tokens: Vec::new(),
            window,
        };
        history.push(first);
        history
    }

    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Appends `message`, and leaves out older images and documents that are too many now.
    pub(super) fn push(&mut self, message: Message) {
        self.tokens.push(of_message(&message));
        self.messages.push(message);
        let evicted = limit_media(&mut self.messages, &mut self.tokens, self.window.counted);
        self.evicted(evicted);
    }

    /// Appends a reply that is kept as it came: the last usage counted it.
    pub(super) fn push_counted(&mut self, reply: Message) {
        let window = &mut self.window;
        if let Some(last) = &window.last
            && window.counted == self.messages.len()
        {
            window.tokens += last.usage.output.max(least_of(bytes_of(&reply)));
            window.counted += 1;
        }
        self.push(reply);
    }

    /// Takes back the messages from `len` on.
    pub(super) fn truncate(&mut self, len: usize) {
        let gone = self.tokens.get(len..self.window.counted);
        let gone: u64 = gone.unwrap_or_default().iter().sum();
        self.window.tokens = self.window.tokens.saturating_sub(gone);
        self.messages.truncate(len);
        self.tokens.truncate(len);
        self.window.counted = self.window.counted.min(len);
    }

    /// Says `text` besides the results at the end; whether there are some.
    pub(super) fn add_notice(&mut self, text: &str) -> bool {
        let (Some(Message::ToolResults { notice, .. }), Some(tokens)) =
            (self.messages.last_mut(), self.tokens.last_mut())
        else {
            return false;
        };
        *tokens += of_text(text);
        match notice {
            Some(before) => {
                before.push('\n');
                before.push_str(text);
            }
            None => *notice = Some(text.to_owned()),
        }
        true
    }

    /// A response to the conversation as it is, asked for at `asked_at`, has used this. What it brought is counted once
    /// it is kept.
    pub(super) fn saw(&mut self, usage: &Usage, asked_at: Instant) {
        let told = usage.context().saturating_sub(usage.output);
        let bytes = self.messages.iter().map(bytes_of).sum();
        let window = &mut self.window;
        window.last = Some(Seen {
            usage: *usage,
            asked_at,
        });
        window.tokens = told.max(least_of(bytes));
        window.counted = self.messages.len();
        window.stale = false;
    }

    /// The conversation was changed in its middle: the next response's usage will show it.
    fn changed(&mut self, change: Change) {
        self.evicted(Some(
            change.tokens_before.saturating_sub(change.tokens_after),
        ));
        self.window.counted = self.window.counted.min(self.messages.len());
    }

    /// The provider's cache of the messages is void: until the next response nothing is read from it.
    pub(super) const fn cache_is_void(&mut self) {
        self.window.stale = true;
    }

    /// Images or documents of so many tokens went out of messages that are counted.
    fn evicted(&mut self, tokens: Option<u64>) {
        let window = &mut self.window;
        if window.last.is_some() {
            window.tokens = window.tokens.saturating_sub(tokens.unwrap_or(0));
        }
        window.stale |= tokens.is_some();
    }

    /// Whether the next request is likely to pass the trigger.
    pub(super) fn over_trigger(&self) -> bool {
        self.estimate() > self.window.trigger
    }

    /// Whether it is likely to pass three fifths of the trigger: then clearing has not freed enough.
    pub(super) fn still_crowded(&self) -> bool {
        self.estimate() > self.window.trigger * 3 / 5
    }

    /// The next request's input, as it is likely to be billed.
    pub(super) fn next_input(&self) -> Usage {
        let tokens = self.estimate();
        let uncached = self.uncached(tokens);
        match &self.window.last {
            // What was taken out lay before most of the rest.
            Some(Seen { usage, asked_at })
                if !self.window.stale && uncached.input == 0 && asked_at.elapsed() < CACHED =>
            {
                let cached = usage.total_input().min(tokens);
                Usage {
                    cache_read: cached,
                    cache_write_5m: tokens - cached,
                    ..Usage::default()
                }
            }
            Some(_) | None => uncached,
        }
    }

    /// An input of so many tokens of which nothing is read from a cache.
    pub(super) fn uncached(&self, tokens: u64) -> Usage {
        match &self.window.last {
            // Its provider caches nothing, or not yet.
            Some(Seen { usage, .. }) if usage.total_input() == usage.input => Usage {
                input: tokens,
                ..Usage::default()
            },
            Some(_) | None => Usage {
                cache_write_5m: tokens,
                ..Usage::default()
            },
        }
    }

    /// About how many tokens the conversation has: those that were counted, and what came since;
    pub(super) fn estimate(&self) -> u64 {
        let newer = self.tokens.get(self.window.counted..).unwrap_or_default();
        self.window.tokens + newer.iter().sum::<u64>()
    }

    /// the `count` messages after the first have,
    pub(super) fn tokens_of(&self, count: usize) -> u64 {
        self.tokens.iter().skip(1).take(count).sum()
    }

    fn total(&self) -> u64 {
        self.tokens.iter().sum()
    }

    /// and it would have with a summary in their place.
    pub(super) fn estimate_without(&self, count: usize) -> u64 {
        self.estimate().saturating_sub(self.tokens_of(count)) + SUMMARY
    }

    /// How many tokens of an answer the window has room for.
    pub(super) fn room_for_answer(&self) -> u32 {
        let left = self.window.size.saturating_sub(self.estimate());
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// How many of `count` messages after the first are their older half, in whole turns. `None` if leaving
    /// them out would make no difference.
    pub(super) fn older_half(&self, count: usize) -> Option<usize> {
        let half = self.tokens_of(count) / 2;
        let old = self.messages.iter().zip(&self.tokens).skip(1).take(count);
        let (mut before, mut found) = (0, None);
        for (at, (message, tokens)) in old.enumerate() {
            if at > 1 && matches!(message, Message::Assistant(_)) {
                found = Some(at);
                if before >= half {
                    break;
                }
            }
            before += tokens;
        }
        found
    }

    /// How many characters the results of the next calls may have in all.
    pub(super) fn room_for_results(&self) -> usize {
        let left = self.window.size.saturating_sub(self.estimate() + MARGIN);
        let chars = (left * 2).clamp(LEAST_RESULT_CHARS, MOST_RESULT_CHARS);
        usize::try_from(chars).unwrap_or(usize::MAX)
    }

    /// Replaces the text of old tool results by a note, in place. The calls stay, so every call keeps its
    /// result. `None` if too little would go.
    pub(super) fn clear(&mut self, need: Need) -> Option<Change> {
        let trigger = self.window.trigger;
        let (turns, kept, least) = match need {
            Need::Ahead => (6, (trigger / 4).min(40_000), least_ahead(trigger)),
            Need::Now => (2, 0, 1000),
        };
        let change = self.clear_beyond(turns, kept, least)?;
        self.changed(change);
        Some(change)
    }

    /// How many messages after the first a summary would stand in for. `None` if too little would go.
    pub(super) fn summarisable(&self, need: Need) -> Option<usize> {
        let trigger = self.window.trigger;
        let (kept, least) = match need {
            Need::Ahead => ((trigger / 8).min(20_000), least_ahead(trigger)),
            // More than the summary itself is likely to take; only the newest turn stays.
            Need::Now => (0, (trigger / 10).min(4000)),
        };
        let old = self.old_messages(kept);
        (self.tokens_of(old) >= least).then_some(old)
    }

    /// Puts `summary` in the place of `count` messages after the first.
    pub(super) fn summarise(&mut self, count: usize, summary: String) -> Change {
        let tokens_before = self.total();
        let end = (1 + count).min(self.messages.len());
        let gone = 1.min(end)..end;
        let summary = Message::user(summary);
        self.tokens.splice(gone.clone(), [of_message(&summary)]);
        self.messages.splice(gone, [summary]);
        let change = Change {
            results: 0,
            tokens_before,
            tokens_after: self.total(),
        };
        self.window.counted = (self.window.counted + 1).saturating_sub(count);
        self.changed(change);
        change
    }

    /// Leaves out the images and documents that the provider can't have seen before or, if there are none,
    /// all. How many.
    pub(super) fn leave_out_media(&mut self) -> usize {
        let (newest, _) = self.leave_out_from(self.window.counted);
        if newest > 0 {
            return newest;
        }
        let (left_out, freed) = self.leave_out_from(0);
        self.evicted((left_out > 0).then_some(freed));
        left_out
    }

    /// Leaves out those of the messages from `first` on: how many, and the tokens that they had.
    fn leave_out_from(&mut self, first: usize) -> (usize, u64) {
        let (mut left_out, mut freed) = (0, 0);
        let messages = self.messages.iter_mut().zip(&mut self.tokens);
        for (message, tokens) in messages.skip(first) {
            for part in parts_newest_first(message) {
                if media_size(part).is_some() {
                    left_out += 1;
                    freed += replaced(part, REFUSED, tokens);
                }
            }
        }
        (left_out, freed)
    }

    /// Clears the results before the newest `turns` turns with some, and before the newest `kept` tokens of them,
    /// if that takes at least `least` tokens away.
    fn clear_beyond(&mut self, turns: usize, kept: u64, least: u64) -> Option<Change> {
        let tokens_before = self.total();
        let (mut newer_turns, mut newer_tokens) = (0, 0);
        let mut old = self.messages.len();
        let counted = self.messages.iter().zip(&self.tokens).enumerate();
        for (at, (message, tokens)) in counted.rev() {
            if !matches!(message, Message::ToolResults { .. }) {
                continue;
            }
            newer_turns += 1;
            newer_tokens += tokens;
            if newer_turns > turns && newer_tokens > kept {
                break;
            }
            old = at;
        }
        let messages = self.messages.iter_mut().zip(&mut self.tokens).take(old);
        let mut clearable = Vec::new();
        let (mut results, mut gone) = (0, 0);
        for (message, tokens) in messages {
            let (notes, freed) = aside(bytes_of(message), || notes(message));
            results += notes.len();
            gone += freed;
            clearable.push((notes, tokens, freed));
        }
        if results == 0 || gone < least {
            return None;
        }
        for (notes, tokens, freed) in clearable {
            *tokens = tokens.saturating_sub(freed);
            for (content, note) in notes {
                content.retain(|part| !matches!(part, Part::Text(_)));
                content.insert(0, Part::Text(note));
            }
        }
        Some(Change {
            results,
            tokens_before,
            tokens_after: tokens_before.saturating_sub(gone),
        })
    }

    /// How many messages lie between the first and the newest turns of at most `kept` tokens, or the newest turn.
    /// Turns stay whole: no result without its call, no thinking without its turn.
    fn old_messages(&self, kept: u64) -> usize {
        let later = self.messages.iter().zip(&self.tokens).skip(1);
        let mut newer = 0;
        let mut from = None;
        for (index, (message, tokens)) in later.enumerate().rev() {
            newer += tokens;
            if from.is_some() && newer > kept {
                break;
            }
            if matches!(message, Message::Assistant(_)) {
                from = Some(index);
            }
        }
        // Without a turn to go on from, nothing may go.
        from.unwrap_or(0)
    }
}

/// Clearing less than this ahead of need isn't worth the loss of the cache.
fn least_ahead(trigger: u64) -> u64 {
    (trigger / 5).min(30_000)
}

/// The results in `message` that are worth clearing, with what is said in their place, and the tokens that go.
fn notes(message: &mut Message) -> (Vec<(&mut Vec<Part>, String)>, u64) {
    let (mut notes, mut gone) = (Vec::new(), 0);
    let Message::ToolResults { results, .. } = message else {
        return (notes, gone);
    };
    for result in results {
        let texts = result.content.iter().filter_map(text_of);
        let size: usize = texts.clone().map(|text| text.chars().count()).sum();
        if size < WORTH_CLEARING || result.name == NEVER_CLEARED {
            continue;
        }
        let note = format!(
            "[cleared to save space: {size} characters; call {} again if you need it]",
            result.name
        );
        gone += texts
            .map(of_text)
            .sum::<u64>()
            .saturating_sub(of_text(&note));
        notes.push((&mut result.content, note));
    }
    (notes, gone)
}

fn text_of(part: &Part) -> Option<&str> {
    match part {
        Part::Text(text) => Some(text),
        Part::Image(_) | Part::Document(_) => None,
    }
}

/// Keeps the images and documents within the bounds: when they are too many, the older ones are replaced by a
/// note, several at once. A request over its provider's size limit would fail, and so would every later one.
/// The tokens that went out of the first `counted` messages, if anything did.
fn limit_media(history: &mut [Message], tokens: &mut [u64], counted: usize) -> Option<u64> {
    let (mut count, mut bytes) = (0, 0);
    for part in history.iter_mut().flat_map(parts_newest_first) {
        if let Some(size) = media_size(part) {
            count += 1;
            bytes += size;
        }
    }
    if count <= MOST_MEDIA && bytes <= MOST_MEDIA_BYTES {
        return None;
    }
    let (mut kept, mut kept_bytes, mut over) = (0, 0, false);
    let (mut freed, mut newest) = (None, true);
    for (at, (message, tokens)) in history.iter_mut().zip(tokens).enumerate().rev() {
        // The newest message brought them: it may have all that is allowed.
        let (most, most_bytes) = if std::mem::take(&mut newest) {
            (MOST_MEDIA, MOST_MEDIA_BYTES)
        } else {
            (KEPT_MEDIA, KEPT_MEDIA_BYTES)
        };
        for part in parts_newest_first(message) {
            let Some(size) = media_size(part) else {
                continue;
            };
            over |= kept >= most || kept_bytes + size > most_bytes;
            if !over {
                kept += 1;
                kept_bytes += size;
                continue;
            }
            let gone = replaced(part, LEFT_OUT, tokens);
            if at < counted {
                *freed.get_or_insert(0) += gone;
            }
        }
    }
    freed
}

/// Puts `note` in the place of `part` of a message of `tokens`: how many of them go.
fn replaced(part: &mut Part, note: &str, tokens: &mut u64) -> u64 {
    let note = Part::Text(note.to_owned());
    let gone = of_part(part).saturating_sub(of_part(&note));
    *tokens = tokens.saturating_sub(gone);
    *part = note;
    gone
}

fn parts_newest_first(message: &mut Message) -> Vec<&mut Part> {
    match message {
        Message::User(parts) => parts.iter_mut().rev().collect(),
        Message::Assistant(_) => Vec::new(),
        Message::ToolResults { results, .. } => results
            .iter_mut()
            .rev()
            .flat_map(|result| result.content.iter_mut().rev())
            .collect(),
    }
}

fn media_size(part: &Part) -> Option<usize> {
    match part {
        Part::Text(_) => None,
        Part::Image(image) => Some(image.base64.len()),
        Part::Document(document) => Some(document.base64.len()),
    }
}

#[cfg(test)]
#[path = "context_tests.rs"]
mod tests;
