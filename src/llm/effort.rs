//! How hard a model works on its answer, where it is told so in words.

use serde::Deserialize;

/// The words that all providers share, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words say it")]
pub enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
}

impl Effort {
    const ALL: [Self; 5] = [
        Self::None,
        Self::Minimal,
        Self::Low,
        Self::Medium,
        Self::High,
    ];

    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// The efforts that a model takes; a list of words in the table, and the three of nearly all models without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Vec<Effort>")]
pub struct Efforts([bool; Effort::ALL.len()]);

impl From<Vec<Effort>> for Efforts {
    fn from(taken: Vec<Effort>) -> Self {
        Self(Effort::ALL.map(|effort| taken.contains(&effort)))
    }
}

impl Default for Efforts {
    fn default() -> Self {
        Self(Effort::ALL.map(|effort| effort >= Effort::Low))
    }
}

impl Efforts {
    /// `wanted`, else the next higher one that is taken, else the highest. `None` if none is.
    pub fn nearest(self, wanted: Effort) -> Option<Effort> {
        let all = Effort::ALL.into_iter().zip(self.0);
        let mut taken = all.filter_map(|(effort, taken)| taken.then_some(effort));
        let highest = taken.clone().next_back();
        taken.find(|effort| *effort >= wanted).or(highest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_effort_is_the_next_higher_or_the_highest() {
        for (taken, none, low, high) in [
            (r#"["high"]"#, "high", "high", "high"),
            (r#"["medium", "high"]"#, "medium", "medium", "high"),
            (r#"["medium"]"#, "medium", "medium", "medium"),
            (r#"["high", "low", "none"]"#, "none", "low", "high"),
            (r#"["minimal", "low"]"#, "minimal", "low", "low"),
            ("[]", "", "", ""),
        ] {
            let taken: Efforts = serde_json::from_str(taken).unwrap();
            let nearest = |wanted| taken.nearest(wanted).map_or("", Effort::as_str);
            let all = [Effort::None, Effort::Low, Effort::High].map(nearest);
            assert_eq!(all, [none, low, high], "{taken:?}");
        }
        assert_eq!(Efforts::default().nearest(Effort::None), Some(Effort::Low));
    }
}
