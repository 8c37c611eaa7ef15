//! Near misses: the right name for one that was mistyped or written in another style.

/// Names longer than this are no slip of the pen.
const LONGEST: usize = 64;

/// The name among `known` that `typed` was most likely meant to be: the same letters in another style
/// (`max_turns` for `maxTurns`), else the closest within a third of its length.
pub(crate) fn nearest<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if typed.is_empty() || typed.chars().nth(LONGEST).is_some() {
        return None;
    }
    let letters = plain(typed);
    let allowed = (letters.len() / 3).clamp(1, 4);
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(&letters, &plain(name)), name))
        .filter(|(distance, name)| *distance <= allowed && *distance < name.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `; did you mean …?`, or nothing.
pub(crate) fn did_you_mean<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(typed, known).map(|name| format!("did you mean `{name}`?"))
}

/// Lower case, without the marks that styles differ in.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '_' | '-' | ' ' | '.'))
        .flat_map(char::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_and_other_styles_find_the_right_name() {
        let known = ["prompt", "maxTurns", "timeout", "files", "file_read"];
        for (typed, right) in [
            ("max_turns", Some("maxTurns")),
            ("MAXTURNS", Some("maxTurns")),
            ("maxTurn", Some("maxTurns")),
            ("promt", Some("prompt")),
            ("tiemout", Some("timeout")),
            ("fileRead", Some("file_read")),
            ("temperature", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, known), right, "{typed}");
        }
        assert_eq!(nearest(&"p".repeat(1_000_000), known), None);
    }
}
