//! The usage of an answer, and the size of the conversation after it.

use serde_json::value::RawValue;

use super::wire::Figures;
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
        let whole = figures(raw)?;
        let passes = whole.iterations.0.as_deref().unwrap_or_default();
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
                if let Some(figures) = figures(pass) {
                    told.replace(&mut one, &figures);
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

fn figures(raw: &RawValue) -> Option<Figures<'_>> {
    serde_json::from_str(raw.get()).ok()
}

/// Which figures were given.
#[derive(Debug, Default)]
struct Told {
    any: bool,
    output: bool,
}

impl Told {
    /// Takes over the figures that are given.
    fn replace(&mut self, usage: &mut Usage, figures: &Figures<'_>) {
        let split = figures.cache_creation.0.unwrap_or_default();
        let details = figures.output_tokens_details.0.unwrap_or_default();
        let tools = figures.server_tool_use.0.unwrap_or_default();
        for (figure, before) in [
            (figures.input_tokens, &mut usage.input),
            (figures.output_tokens, &mut usage.output),
            (figures.cache_read_input_tokens, &mut usage.cache_read),
            (split.ephemeral_1h_input_tokens, &mut usage.cache_write_1h),
            (split.ephemeral_5m_input_tokens, &mut usage.cache_write_5m),
            (details.thinking_tokens, &mut usage.reasoning),
            (tools.web_search_requests, &mut usage.searches),
        ] {
            if let Some(count) = figure.0 {
                *before = count;
                self.any = true;
            }
        }
        self.output |= figures.output_tokens.0.is_some();
        let told = split
            .ephemeral_1h_input_tokens
            .0
            .or(split.ephemeral_5m_input_tokens.0);
        // A total without its split: an hour's part that is known already stays one.
        if let (Some(total), None) = (figures.cache_creation_input_tokens.0, told) {
            usage.cache_write_1h = usage.cache_write_1h.min(total);
            usage.cache_write_5m = total - usage.cache_write_1h;
            self.any = true;
        }
    }
}
