//! The usage of one answer: what its provider tells, and what arrived where it tells nothing.

use super::estimate::Size;
use super::types::{ModelFacts, Usage};

/// Output tokens between two estimates. An answer may be dropped at any time, and nothing can be told then.
const STEP: u64 = 256;

/// The window of a model of which nothing is known: larger than any there is.
const UNKNOWN_WINDOW: u64 = 10_000_000;
/// More often than this no provider asks its model for one answer, nor searches for it.
const MOST_PASSES: u64 = 1000;

/// The most that a provider's figures can tell of one answer.
#[derive(Clone, Copy, Debug)]
struct Most {
    input: u64,
    output: u64,
}

impl Most {
    fn of(facts: ModelFacts) -> Self {
        let window = facts.context_window.unwrap_or(UNKNOWN_WINDOW);
        let answer = facts.max_output_tokens.map_or(0, u64::from);
        Self {
            input: window.saturating_mul(MOST_PASSES),
            output: window.max(2 * answer),
        }
    }

    /// `usage` without what can't be: it is as if it was not told.
    fn possible(self, mut usage: Usage) -> Usage {
        if usage.total_input() > self.input {
            usage.input = 0;
            usage.cache_read = 0;
            usage.cache_write_5m = 0;
            usage.cache_write_1h = 0;
            usage.last_pass = None;
            usage.estimated = true;
        }
        if usage.output > self.output {
            usage.output = 0;
            usage.last_pass = None;
            usage.estimated = true;
        }
        if usage.searches > MOST_PASSES {
            usage.searches = 0;
            usage.estimated = true;
        }
        usage.reasoning = usage.reasoning.min(self.output);
        usage
    }
}

/// The account of one answer.
#[derive(Debug)]
pub(super) struct Account {
    /// The request's tokens, should the provider not tell them.
    input: u64,
    most: Most,
    told: Usage,
    seen: Size,
    /// Some output is not in what was told: it came later, or no output was told.
    open: bool,
    /// What was passed on last.
    passed: Option<Usage>,
}

impl Account {
    /// Of an answer to a request of about `input` tokens, by a model of which `facts` are known.
    pub(super) fn new(input: u64, facts: ModelFacts) -> Self {
        Self::begin(input, Most::of(facts))
    }

    fn begin(input: u64, most: Most) -> Self {
        Self {
            input,
            most,
            told: Usage::default(),
            seen: Size::default(),
            open: true,
            passed: None,
        }
    }

    /// A piece of the answer came.
    pub(super) fn arrived(&mut self, size: Size) {
        if !size.is_empty() {
            self.seen += size;
            self.open = true;
        }
    }

    /// The provider told its figures; [`Usage::estimated`] where the output is not among them. Gives what
    /// to pass on.
    pub(super) fn told(&mut self, usage: Usage) -> Usage {
        self.told = self.most.possible(usage);
        self.open = self.told.estimated;
        let usage = if self.open { self.best() } else { self.told };
        self.passed = Some(usage);
        usage
    }

    /// An estimate, if much came since the last figures.
    pub(super) fn so_far(&mut self) -> Option<Usage> {
        let before = self.passed.map_or(0, |usage| usage.output);
        let much = self.open && self.seen.tokens() >= before.saturating_add(STEP);
        much.then(|| self.news()).flatten()
    }

    /// The attempt is over without its end: it costs at least what arrived, and what was sent if that `may_be_billed`
    /// or if anything arrived.
    pub(super) fn failed(&mut self, may_be_billed: bool) -> Option<Usage> {
        (may_be_billed || !self.seen.is_empty())
            .then(|| self.news())
            .flatten()
    }

    /// The answer is complete: an estimate of what was never told.
    pub(super) fn complete(&mut self) -> Option<Usage> {
        self.news()
    }

    /// What came is void.
    pub(super) fn restart(&mut self) {
        *self = Self::begin(self.input, self.most);
    }

    /// The best figures, unless they were passed on already.
    fn news(&mut self) -> Option<Usage> {
        let best = self.best();
        (self.passed.replace(best) != Some(best)).then_some(best)
    }

    fn best(&self) -> Usage {
        let mut usage = self.told;
        if usage.total_input() == 0 {
            usage.input = self.input;
            usage.estimated = true;
        }
        let arrived = self.seen.tokens();
        if self.open || (usage.output == 0 && arrived > 0) {
            usage.output = usage.output.max(arrived);
            usage.estimated = true;
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_cannot_be_is_not_told() {
        let facts = ModelFacts {
            context_window: Some(200_000),
            max_output_tokens: Some(64_000),
            ..ModelFacts::default()
        };
        let told = |input, output, facts| {
            let mut account = Account::new(50, facts);
            account.arrived(Size::of_bytes(4000));
            let usage = Usage {
                input,
                output,
                ..Usage::default()
            };
            account.told(usage)
        };
        let arrived = Size::of_bytes(4000).tokens();
        for (facts, input, output, expected) in [
            (facts, 7, 64_000, (7, 64_000, false)),
            (facts, 7, 200_001, (7, arrived, true)),
            (facts, 7, 1_000_000_000_000, (7, arrived, true)),
            (facts, 1_000_000_000_000, 9, (50, arrived, true)),
            (ModelFacts::default(), 7, 200_001, (7, 200_001, false)),
            (
                ModelFacts::default(),
                7,
                1_000_000_000_000,
                (7, arrived, true),
            ),
        ] {
            let usage = told(input, output, facts);
            let got = (usage.input, usage.output, usage.estimated);
            assert_eq!(got, expected, "{input} {output}");
        }
    }

    #[test]
    fn searches_that_cannot_be_cost_nothing() {
        let mut account = Account::new(50, ModelFacts::default());
        let usage = account.told(Usage {
            input: 1,
            output: 1,
            searches: 1_000_000_000_000,
            ..Usage::default()
        });
        assert_eq!((usage.searches, usage.estimated), (0, true));
    }
}
