//! What a run has used so far, readable at any time and from outside the agent.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::events::{Citation, Tokens, Totals};
use crate::llm::{Citation as Cited, Usage, prices};
use crate::show::{one_line, prose};
use crate::spec::{ModelChoice, NanoUsd};

/// The running account of a run: survives the agent's end, whatever it was.
#[derive(Debug)]
pub struct Tally {
    model: ModelChoice,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    done: Usage,
    cost: NanoUsd,
    price_unknown: bool,
    in_flight: Option<Usage>,
    incomplete: bool,
    served_model: Option<String>,
    num_turns: u32,
    tool_calls: BTreeMap<&'static str, u64>,
    citations: Vec<Citation>,
    /// Of the JSON of all of them.
    cited_bytes: usize,
}

/// At most so many sources are told of,
const MOST_CITATIONS: usize = 100;
/// whose JSON has at most so many bytes in all: the event that tells of them is bounded (rule EV-1).
const MOST_CITED_BYTES: usize = 64 * 1024;

impl Tally {
    /// An empty account.
    pub fn new(model: &ModelChoice) -> Self {
        Self {
            model: model.clone(),
            inner: Mutex::default(),
        }
    }

    /// A request is under way; its usage so far (replaces what was said before).
    pub fn in_flight(&self, usage: Usage) {
        self.inner.lock().in_flight = Some(usage);
    }

    /// The request under way ended; `complete` if its usage is final.
    pub fn settle(&self, complete: bool) {
        let mut inner = self.inner.lock();
        let Some(usage) = inner.in_flight.take() else {
            return;
        };
        let cost = self.price_as_served(&usage, inner.served_model.as_deref());
        inner.add(&usage, cost);
        inner.incomplete |= !complete || usage.estimated;
    }

    /// The request under way was refused before anything of it was billed.
    pub fn refused(&self) {
        self.inner.lock().in_flight = None;
    }

    /// The model that answers.
    pub fn served_by(&self, model: &str) {
        self.inner.lock().served_model = Some(model.to_owned());
    }

    /// Something of `turn`'s answer came: the turn counts, whatever becomes of it.
    pub fn turn_answered(&self, turn: u32) {
        self.inner.lock().num_turns = turn;
    }

    /// A tool was called.
    pub fn tool_called(&self, name: &'static str) {
        *self.inner.lock().tool_calls.entry(name).or_default() += 1;
    }

    /// The model's text names a source.
    pub fn cited(&self, source: Cited) {
        let Cited { url, title, quote } = source;
        let words = |text: Option<String>| text.map(|text| prose(&text, usize::MAX));
        let citation = Citation {
            url: url.as_deref().map(one_line),
            title: words(title),
            quote: words(quote),
        };
        let size = json_size(&citation);
        let inner = &mut *self.inner.lock();
        if inner.citations.len() < MOST_CITATIONS
            && inner.cited_bytes + size <= MOST_CITED_BYTES
            && !inner.citations.contains(&citation)
        {
            inner.cited_bytes += size;
            inner.citations.push(citation);
        }
    }

    /// How many sources were named so far, to go back to with [`Self::forget_sources`].
    pub(super) fn sources(&self) -> usize {
        self.inner.lock().citations.len()
    }

    /// The texts that named the sources after the first `count` are void.
    pub(super) fn forget_sources(&self, count: usize) {
        let inner = &mut *self.inner.lock();
        let forgotten = inner.citations.drain(count.min(inner.citations.len())..);
        inner.cited_bytes -= forgotten
            .map(|citation| json_size(&citation))
            .sum::<usize>();
    }

    /// What was spent; a lower bound while a price is unknown.
    pub fn spent(&self) -> NanoUsd {
        let inner = self.inner.lock();
        let flying = inner
            .in_flight
            .and_then(|usage| self.price_as_served(&usage, inner.served_model.as_deref()))
            .unwrap_or_default();
        NanoUsd(inner.cost.0.saturating_add(flying.0))
    }

    /// Whether some request had no known price.
    pub fn price_unknown(&self) -> bool {
        self.inner.lock().price_unknown
    }

    /// The cost, if every price is known, also that of a request under way.
    pub fn cost(&self) -> Option<NanoUsd> {
        let inner = self.inner.lock();
        let flying = match &inner.in_flight {
            Some(usage) => self.price_as_served(usage, inner.served_model.as_deref())?,
            None => NanoUsd::default(),
        };
        (!inner.price_unknown).then_some(NanoUsd(inner.cost.0.saturating_add(flying.0)))
    }

    /// Everything, as a terminal event shows it. A request still under way counts as incomplete.
    pub fn totals(&self, duration: Duration) -> Totals {
        let cost = self.cost();
        let inner = self.inner.lock();
        let mut usage = inner.done;
        if let Some(flying) = &inner.in_flight {
            add(&mut usage, flying);
        }
        Totals {
            cost_usd: cost.map(NanoUsd::to_usd),
            tokens: Some(Tokens {
                input_tokens: usage.total_input(),
                output_tokens: usage.output,
                cache_read_tokens: usage.cache_read,
                cache_write_tokens: usage.cache_write_5m + usage.cache_write_1h,
            }),
            usage_complete: !inner.incomplete && inner.in_flight.is_none(),
            num_turns: inner.num_turns,
            duration_secs: (duration.as_secs_f64() * 1000.0).round() / 1000.0,
            model: self.model.id.clone(),
            served_model: inner
                .served_model
                .as_ref()
                .filter(|served| **served != self.model.id)
                .map(|served| one_line(served)),
            tool_calls: inner
                .tool_calls
                .iter()
                .map(|(name, count)| ((*name).to_owned(), (*count).into()))
                .collect(),
            citations: inner.citations.clone(),
        }
    }

    /// What a request of `usage` is likely to cost, if a price is known.
    pub(super) fn price(&self, usage: &Usage) -> Option<NanoUsd> {
        self.price_as_served(usage, self.inner.lock().served_model.as_deref())
    }

    /// The output tokens that `rest` buys besides `input`, whichever model answers; `None` if nothing bounds
    /// them.
    pub(super) fn affordable_output(&self, input: &Usage, rest: NanoUsd) -> Option<u32> {
        let inner = self.inner.lock();
        let models = [Some(self.model.id.as_str()), inner.served_model.as_deref()];
        let bounds = models
            .into_iter()
            .flatten()
            .filter_map(|model| prices::affordable_output(self.model.provider, model, input, rest));
        bounds.min()
    }

    /// The model that answered in the place of the one asked for, if it is dearer.
    pub(super) fn dearer_model(&self) -> Option<String> {
        let served = self.inner.lock().served_model.clone()?;
        let million = Usage {
            input: 1_000_000,
            output: 1_000_000,
            ..Usage::default()
        };
        let price = |model: &str| prices::cost(self.model.provider, model, &million);
        let asked = price(&self.model.id)?;
        (price(&served)? > asked).then_some(served)
    }

    fn price_as_served(&self, usage: &Usage, served: Option<&str>) -> Option<NanoUsd> {
        prices::cost_as_served(self.model.provider, &self.model.id, served, usage)
    }
}

impl Inner {
    fn add(&mut self, usage: &Usage, cost: Option<NanoUsd>) {
        add(&mut self.done, usage);
        match cost {
            Some(cost) => self.cost.0 = self.cost.0.saturating_add(cost.0),
            None => self.price_unknown = true,
        }
    }
}

fn json_size(citation: &Citation) -> usize {
    serde_json::to_string(citation).map_or(0, |json| json.len())
}

const fn add(sum: &mut Usage, usage: &Usage) {
    sum.input = sum.input.saturating_add(usage.input);
    sum.cache_read = sum.cache_read.saturating_add(usage.cache_read);
    sum.cache_write_5m = sum.cache_write_5m.saturating_add(usage.cache_write_5m);
    sum.cache_write_1h = sum.cache_write_1h.saturating_add(usage.cache_write_1h);
    sum.output = sum.output.saturating_add(usage.output);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input: u64, output: u64) -> Usage {
        Usage {
            input,
            output,
            ..Usage::default()
        }
    }

    #[test]
    fn usage_of_requests_adds_up_and_of_one_request_replaces() {
        let tally = Tally::new(&ModelChoice {
            provider: "anthropic",
            id: "claude-sonnet-4-6".to_owned(),
        });
        tally.in_flight(usage(1000, 1));
        tally.in_flight(usage(1000, 200));
        tally.settle(true);
        tally.in_flight(usage(500, 100));
        let flying = tally.totals(Duration::from_millis(1500));
        let tokens = flying.tokens.unwrap();
        assert_eq!(
            (
                tokens.input_tokens,
                tokens.output_tokens,
                flying.usage_complete
            ),
            (1500, 300, false)
        );
        tally.settle(true);
        let totals = tally.totals(Duration::from_millis(1500));
        assert_eq!(totals.cost_usd, Some(0.009));
        assert!(totals.usage_complete);
        assert!((totals.duration_secs - 1.5).abs() < f64::EPSILON);
    }

    #[test]
    fn sources_are_bounded_in_bytes_and_those_of_void_texts_are_forgotten() {
        let tally = Tally::new(&ModelChoice {
            provider: "anthropic",
            id: "claude-sonnet-4-6".to_owned(),
        });
        let source = |n: u32| Cited {
            url: Some(format!("https://example.com/{n}{}", "\u{1}".repeat(2000))),
            title: None,
            quote: None,
        };
        let cite = |count: u32| (0..count).for_each(|n| tally.cited(source(n)));
        let size = || {
            let citations = tally.totals(Duration::ZERO).citations;
            serde_json::to_string(&citations).unwrap().len()
        };
        cite(100);
        let full = size();
        assert!((50_000..70_000).contains(&full), "{full}");
        tally.forget_sources(1);
        assert_eq!(tally.sources(), 1);
        cite(100);
        assert_eq!(size(), full);
    }

    #[test]
    fn names_and_sources_are_shown_as_what_they_are() {
        let tally = Tally::new(&ModelChoice {
            provider: "anthropic",
            id: "claude-sonnet-4-6".to_owned(),
        });
        let odd = || "a\u{202e}b\n\u{1b}[31mc".to_owned();
        tally.served_by(&odd());
        tally.cited(Cited {
            url: Some(odd()),
            title: Some(odd()),
            quote: Some(odd()),
        });
        let totals = tally.totals(Duration::ZERO);
        let escaped = r"a\u{202e}b\n\u{1b}[31mc";
        let words = Some("ab [31mc".to_owned());
        assert_eq!(totals.served_model.as_deref(), Some(escaped));
        let right = Citation {
            url: Some(escaped.to_owned()),
            title: words.clone(),
            quote: words,
        };
        assert_eq!(totals.citations, [right]);
    }

    #[test]
    fn an_unknown_price_gives_no_cost() {
        let tally = Tally::new(&ModelChoice {
            provider: "anthropic",
            id: "claude-unheard-of-9".to_owned(),
        });
        tally.in_flight(usage(10, 10));
        assert_eq!(tally.totals(Duration::ZERO).cost_usd, None);
        tally.settle(true);
        assert_eq!(tally.totals(Duration::ZERO).cost_usd, None);
        assert!(tally.price_unknown());
    }
}
