use proptest::prelude::*;

use super::*;

fn piece(json: &str) -> Piece<'_> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn text_without_escapes_is_borrowed() {
    let Piece(Cow::Borrowed(bytes)) = piece("\"plain é\"") else {
        panic!("it was copied")
    };
    assert_eq!(bytes, "plain é".as_bytes());
    assert!(serde_json::from_str::<Piece<'_>>("5").is_err());
}

#[test]
fn a_bounded_text_is_cut_between_characters() {
    assert_eq!(piece("\"ééé\"").bounded(2), "éé");
    assert_eq!(piece("\"a😀b\"").bounded(2), "a😀");
    assert_eq!(piece("\"a\"").bounded(2), "a");
    assert_eq!(piece(r#""\ud83d""#).bounded(2), "\u{fffd}");
}

#[test]
fn lone_halves_are_mended_and_nothing_else() {
    for (json, expected) in [
        (r#""a\ud83d""#, r#""a\ufffd""#),
        (r#""\uD83D\uDE00""#, r#""\uD83D\uDE00""#),
        (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
        (r#""\ude00\ud83dx""#, r#""\ufffd\ufffdx""#),
        (r#""\\ud83d""#, r#""\\ud83d""#),
        (r#""\\\ud83d""#, r#""\\\ufffd""#),
        (r#""\u00e9\n""#, r#""\u00e9\n""#),
        (r#""\ud83"#, r#""\ud83"#),
        ("\\", "\\"),
        ("\\é\\u", "\\é\\u"),
    ] {
        assert_eq!(mended(json), expected, "{json}");
    }
}

/// Text in UTF-16, of few letters, so that halves meet and miss each other.
fn units() -> impl Strategy<Value = Vec<u16>> {
    let unit = prop_oneof![
        Just(0x61),
        Just(0xe9),
        Just(0xd83d),
        Just(0xd83e),
        Just(0xde00),
        Just(0xde01)
    ];
    prop::collection::vec(unit, 0..12)
}

fn escaped(units: &[u16]) -> String {
    let escapes: Vec<String> = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
    format!("\"{}\"", escapes.concat())
}

#[test]
fn values_are_counted_outside_strings() {
    let list = |of: &str, count| format!("[{}]", vec![of; count].join(","));
    for value in ["[]", "{}", "0", r#""""#] {
        assert!(values(&list(value, 1000)) > 1000, "{value}");
        assert!(values(&list(value, 1000)) < 2005, "{value}");
    }
    let text = serde_json::to_string(&"[,{\"\\".repeat(1000)).unwrap();
    assert_eq!(values(&text), 1);
}

proptest! {
    #[test]
    fn wherever_text_is_cut_it_is_what_utf_16_says(units in units(), cuts in prop::collection::vec(0_usize..12, 0..4)) {
        let expected = String::from_utf16_lossy(&units);
        let whole = escaped(&units);
        let text = piece(&whole).text().into_owned();
        prop_assert_eq!(&text, &expected);
        let mended = mended(&whole).into_owned();
        prop_assert_eq!(serde_json::from_str::<String>(&mended).unwrap(), &*expected);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(units.len())).collect();
        cuts.extend([0, units.len()]);
        cuts.sort_unstable();
        let mut joiner = Joiner::default();
        let mut joined = String::new();
        for pair in cuts.windows(2) {
            joined.push_str(&joiner.join(&piece(&escaped(&units[pair[0]..pair[1]]))));
        }
        joined.extend(joiner.end());
        prop_assert_eq!(joined, expected);
    }
}
