//! What models cost and can do: a table of facts as data, and exact arithmetic on it.
//!
//! `model-prices.json` is collected by hand, with its sources and date inside. Money is integer
//! femto-dollars per token (10⁻¹⁵ US dollars) while adding up, and is rounded once, to nano-dollars.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer};

use super::types::{ModelFacts, Usage};
use crate::spec::NanoUsd;

/// Prices and facts of one model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ModelEntry {
    /// The prices of a request below any tier.
    #[serde(flatten)]
    pub price: Price,
    /// Dearer (or cheaper) prices of requests with much input, ascending by threshold.
    #[serde(default)]
    pub above_input_tokens: Vec<Tier>,
    /// What it can do.
    #[serde(flatten)]
    facts: ModelFacts,
}

/// Prices per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Price {
    input: Femto,
    output: Femto,
    cache_read: Option<Femto>,
    cache_write: Option<Femto>,
    cache_write_5m: Option<Femto>,
    cache_write_1h: Option<Femto>,
}

/// Prices of a whole request whose input is over a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Tier {
    /// Total input tokens, cached ones included, above which the tier holds.
    pub threshold: u64,
    /// Its prices.
    #[serde(flatten)]
    pub price: Price,
}

/// Femto-dollars per token; written in the table as dollars per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Femto(u64);

impl<'de> Deserialize<'de> for Femto {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let per_million = f64::deserialize(deserializer)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "prices are small and not negative, and casts saturate"
        )]
        let femto = (per_million * 1e9).round() as u64;
        Ok(Self(femto))
    }
}

impl Price {
    /// Femto-dollars of `usage`. Where a tier leaves out the price of an hour's cache write, the base
    /// price's ratio of an hour to five minutes holds; where nothing is known, a write is plain input.
    fn of(&self, usage: &Usage, base: &Self) -> u128 {
        let read = self.cache_read.unwrap_or(self.input);
        let write_5m = self
            .cache_write_5m
            .or(self.cache_write)
            .unwrap_or(self.input);
        let ratio = base
            .cache_write_1h
            .zip(base.cache_write_5m.or(base.cache_write))
            .filter(|(_, five)| five.0 > 0);
        let write_1h = match (self.cache_write_1h, ratio) {
            (Some(price), _) => u128::from(price.0),
            (None, Some((hour, five))) => {
                u128::from(write_5m.0) * u128::from(hour.0) / u128::from(five.0)
            }
            (None, None) => u128::from(write_5m.0),
        };
        let times = |tokens: u64, price: u128| u128::from(tokens) * price;
        times(usage.input, u128::from(self.input.0))
            + times(usage.cache_read, u128::from(read.0))
            + times(usage.cache_write_5m, u128::from(write_5m.0))
            + times(usage.cache_write_1h, write_1h)
            + times(usage.output, u128::from(self.output.0))
    }
}

impl ModelEntry {
    /// The prices of a request with so much input: dearer tiers count for the whole request.
    fn price(&self, total_input: u64) -> &Price {
        self.above_input_tokens
            .iter()
            .filter(|tier| total_input > tier.threshold)
            .max_by_key(|tier| tier.threshold)
            .map_or(&self.price, |tier| &tier.price)
    }

    fn femto(&self, usage: &Usage) -> u128 {
        self.price(usage.total_input()).of(usage, &self.price)
    }

    /// What is known of it.
    fn facts(&self) -> ModelFacts {
        let dearer = |tier: &&Tier| tier.price.input.0 > self.price.input.0;
        let steps = self.above_input_tokens.iter().filter(dearer);
        ModelFacts {
            price_step: steps.map(|tier| tier.threshold).min(),
            ..self.facts
        }
    }
}

/// Femto-dollars in a nano-dollar.
const FEMTO: u128 = 1_000_000;

fn rounded(femto: u128) -> NanoUsd {
    NanoUsd(u64::try_from((femto + FEMTO / 2) / FEMTO).unwrap_or(u64::MAX))
}

/// Facts of models that the table has no row for.
#[derive(Deserialize)]
struct Unlisted {
    begins: String,
    #[serde(flatten)]
    facts: ModelFacts,
}

#[derive(Deserialize)]
struct PriceTable {
    models: BTreeMap<String, BTreeMap<String, ModelEntry>>,
    unlisted: BTreeMap<String, Vec<Unlisted>>,
}

static TABLE: LazyLock<PriceTable> = LazyLock::new(|| {
    // A table that doesn't parse is caught by the tests; at run time it would mean "no price known".
    serde_json::from_str(include_str!("model-prices.json")).unwrap_or(PriceTable {
        models: BTreeMap::new(),
        unlisted: BTreeMap::new(),
    })
});

/// `model` at `provider`: by its exact id, or by its id without the date at its end.
fn entry(provider: &str, model: &str) -> Option<&'static ModelEntry> {
    let models = TABLE.models.get(provider)?;
    models
        .get(model)
        .or_else(|| models.get(without_date(model)?))
}

/// What is known of `model` at `provider`, if it is in the table.
pub fn listed(provider: &str, model: &str) -> Option<ModelFacts> {
    entry(provider, model).map(ModelEntry::facts)
}

/// What is known of `model` at `provider`, or what is likely by its name.
pub fn facts(provider: &str, model: &str) -> ModelFacts {
    listed(provider, model).unwrap_or_else(|| {
        let mut rows = TABLE.unlisted.get(provider).into_iter().flatten();
        rows.find(|row| model.starts_with(&row.begins))
            .map_or_else(ModelFacts::default, |row| row.facts)
    })
}

/// The known ids of `provider`, in order.
pub fn known_models(provider: &str) -> impl Iterator<Item = &'static str> {
    TABLE
        .models
        .get(provider)
        .into_iter()
        .flat_map(|models| models.keys().map(String::as_str))
}

/// What one request costs: what the provider says, else by the table; `None` when no price is known. The
/// table has no price for searches, so they are in the cost only where the provider says what it is.
pub fn cost(provider: &str, model: &str, usage: &Usage) -> Option<NanoUsd> {
    usage
        .given_cost
        .or_else(|| entry(provider, model).map(|entry| rounded(entry.femto(usage))))
}

/// Whether the price of a model is known.
pub fn known(provider: &str, model: &str) -> bool {
    entry(provider, model).is_some()
}

/// The output tokens that `rest` buys in a request with the input of `input` (its output is not looked
/// at); 0 if not even the input. `None` if no price is known, or output costs nothing.
pub fn affordable_output(provider: &str, model: &str, input: &Usage, rest: NanoUsd) -> Option<u32> {
    let entry = entry(provider, model)?;
    let of_input = entry.femto(&Usage {
        output: 0,
        ..*input
    });
    let rest = (u128::from(rest.0) * FEMTO).saturating_sub(of_input);
    let tokens = rest.checked_div(u128::from(entry.price(input.total_input()).output.0))?;
    Some(u32::try_from(tokens).unwrap_or(u32::MAX))
}

/// What one request costs by the dearer of the model that was asked for and the one that answered, as far as
/// their prices are known: whichever of them is billed, it is not more.
pub fn cost_as_served(
    provider: &str,
    requested: &str,
    served: Option<&str>,
    usage: &Usage,
) -> Option<NanoUsd> {
    let of_served = served.and_then(|served| cost(provider, served, usage));
    cost(provider, requested, usage).max(of_served)
}

/// `claude-haiku-4-5-20251001` and `gpt-5.4-2026-03-05` without their dates.
fn without_date(model: &str) -> Option<&str> {
    let compact = |text: &str| {
        let (name, date) = text.rsplit_once('-')?;
        (date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit())).then_some(name.len())
    };
    let dashed = |text: &str| {
        let start = text.len().checked_sub(11)?;
        let date = text.get(start..)?;
        let fits = date
            .bytes()
            .zip(b"-0000-00-00")
            .all(|(byte, shape)| match shape {
                b'-' => byte == b'-',
                _ => byte.is_ascii_digit(),
            });
        fits.then_some(start)
    };
    let end = compact(model).or_else(|| dashed(model))?;
    model.get(..end)
}

#[cfg(test)]
#[path = "prices_tests.rs"]
mod tests;
