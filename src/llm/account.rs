//! The usage of one answer: what its provider tells, and what arrived where it tells nothing.

use super::estimate::Size;
use super::types::Usage;

/// Output tokens between two estimates. An answer may be dropped at any time, and nothing can be told then.
const STEP: u64 = 256;

/// The account of one answer.
#[derive(Debug)]
pub(super) struct Account {
    /// The request's tokens, should the provider not tell them.
    input: u64,
    told: Usage,
    seen: Size,
    /// Some output is not in what was told: it came later, or no output was told.
    open: bool,
    /// What was passed on last.
    passed: Option<Usage>,
}

impl Account {
    /// Of an answer to a request of about `input` tokens.
    pub(super) fn new(input: u64) -> Self {
        Self {
            input,
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
        self.told = usage;
        self.open = usage.estimated;
        let usage = if self.open { self.best() } else { usage };
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
        *self = Self::new(self.input);
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
