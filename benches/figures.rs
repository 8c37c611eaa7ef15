//! Samples, and how they are printed.

use std::fmt;
use std::time::Duration;

/// Durations of one kind.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn of_nanos(nanos: impl IntoIterator<Item = u64>) -> Self {
        Self(nanos.into_iter().map(Duration::from_nanos).collect())
    }

    /// The sample below which this share of all samples lies.
    pub fn at(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = (sorted.len().saturating_sub(1)) as f64 * share;
        sorted.get(at as usize).copied().unwrap_or_default()
    }

    pub fn median(&self) -> Duration {
        self.at(0.5)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (best {}, p99 {}; n = {})",
            Shown(self.median()),
            Shown(self.at(0.0)),
            Shown(self.at(0.99)),
            self.0.len()
        )
    }
}

/// A duration at a readable unit.
pub struct Shown(pub Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_secs_f64() * 1e6;
        if micros < 1000.0 {
            write!(f, "{micros:.0} µs")
        } else if micros < 1e6 {
            write!(f, "{:.2} ms", micros / 1e3)
        } else {
            write!(f, "{:.2} s", micros / 1e6)
        }
    }
}

/// Prints one line of the table.
pub fn row(what: &str, figure: impl fmt::Display) {
    println!("  {what:<58} {figure}");
}

/// Prints one line, and how the figure stands to its aim.
pub fn row_with_aim(what: &str, figure: impl fmt::Display, value: f64, aim: f64, unit: &str) {
    row(
        what,
        format_args!("{figure}   [aim < {aim} {unit}: {:.2} of it]", value / aim),
    );
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
