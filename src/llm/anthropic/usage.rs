//! The usage of an answer, and the size of the conversation after it.

use serde_json::value::RawValue;

use super::wire::Fields;
use crate::llm::types::Usage;

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    usage: Usage,
    /// The model is asked anew after each run of the provider's own tools: the input of the first time,
    first_input: Option<u64>,
    /// how often it was asked after that,
    later: u64,
    /// and whether it will be.
    after_result: bool,
}

impl Tally {
    /// A block began.
    pub(super) fn saw_block(&mut self, is_tool_result: bool) {
        self.later += u64::from(self.after_result && !is_tool_result);
        self.after_result = is_tool_result;
    }

    /// Figures replace what was said before; a list of inner passes is their sum. `None` without any figure:
    /// what can't be read is none. Without one of the output, the usage is marked as estimated.
    pub(super) fn read(&mut self, raw: &RawValue) -> Option<Usage> {
        let whole = Fields::of(raw);
        let passes: Vec<&RawValue> = whole.get("iterations").unwrap_or_default();
        let mut told = Told::default();
        if passes.is_empty() {
            told.replace(&mut self.usage, &whole);
            let total = self.usage.total_input();
            let first = *self.first_input.get_or_insert(total);
            // The first pass's input is a part of each later one's.
            self.usage.last_pass = (self.later > 0).then(|| {
                let last = total.saturating_sub(first.saturating_mul(self.later));
                last.max(first) + self.usage.output
            });
        } else {
            let mut sum = Usage::default();
            for pass in passes {
                let mut one = Usage::default();
                if told.replace(&mut one, &Fields::of(pass)) {
                    sum.last_pass = Some(one.context());
                }
                sum.input = sum.input.saturating_add(one.input);
                sum.cache_read = sum.cache_read.saturating_add(one.cache_read);
                sum.cache_write_5m = sum.cache_write_5m.saturating_add(one.cache_write_5m);
                sum.cache_write_1h = sum.cache_write_1h.saturating_add(one.cache_write_1h);
                sum.output = sum.output.saturating_add(one.output);
                sum.reasoning = sum.reasoning.saturating_add(one.reasoning);
            }
            let mut top = self.usage;
            told.replace(&mut top, &whole);
            sum.searches = top.searches;
            sum.reasoning = sum.reasoning.max(top.reasoning);
            self.usage = sum;
        }
        self.usage.estimated = !told.output;
        told.any.then_some(self.usage)
    }
}

/// Which figures were given.
#[derive(Debug, Default)]
struct Told {
    any: bool,
    output: bool,
}

impl Told {
    /// Takes over the figures that are given; whether some were.
    fn replace(&mut self, usage: &mut Usage, figures: &Fields<'_>) -> bool {
        let split = figures.inner("cache_creation");
        let hour = split.count("ephemeral_1h_input_tokens");
        let minutes = split.count("ephemeral_5m_input_tokens");
        let output = figures.count("output_tokens");
        let details = figures.inner("output_tokens_details");
        let tools = figures.inner("server_tool_use");
        let mut any = false;
        for (figure, before) in [
            (figures.count("input_tokens"), &mut usage.input),
            (output, &mut usage.output),
            (
                figures.count("cache_read_input_tokens"),
                &mut usage.cache_read,
            ),
            (hour, &mut usage.cache_write_1h),
            (minutes, &mut usage.cache_write_5m),
            (details.count("thinking_tokens"), &mut usage.reasoning),
            (tools.count("web_search_requests"), &mut usage.searches),
        ] {
            if let Some(count) = figure {
                *before = count;
                any = true;
            }
        }
        // A total without its split: an hour's part that is known already stays one.
        let total = figures.count("cache_creation_input_tokens");
        if let (Some(total), None) = (total, hour.or(minutes)) {
            usage.cache_write_1h = usage.cache_write_1h.min(total);
            usage.cache_write_5m = total - usage.cache_write_1h;
            any = true;
        }
        self.output |= output.is_some();
        self.any |= any;
        any
    }
}
