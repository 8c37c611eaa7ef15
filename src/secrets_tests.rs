use proptest::prelude::*;
use serde_json::json;

use super::*;

const KEY: &str = "sk-ant-secret/0123+456789";

/// What of `bytes` is no line end.
fn unbroken(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().copied().filter(|byte| !is_break(*byte))
}

fn redactor() -> Redactor {
    Redactor::new([&Secret::new(KEY)])
}

#[test]
fn debug_never_shows_the_value() {
    assert_eq!(format!("{:?}", Secret::new("hunter2hunter2")), "***");
    assert!(!format!("{:?}", redactor()).contains("secret"));
    assert!(!format!("{:?}", redactor().stream()).contains("secret"));
}

/// `text` in lines of so many columns.
fn wrapped(text: &str, columns: usize, line_end: &str) -> String {
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(columns)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    lines.join(line_end)
}

#[test]
fn base64_is_found_at_every_alignment_however_it_is_wrapped() {
    let cleaned = redactor();
    let inner = |text: &[u8]| {
        let text = String::from_utf8_lossy(text).into_owned();
        text.contains(&KEY[2..KEY.len() - 2])
    };
    for before in 0..120 {
        let plain = format!("{}{KEY}tail", "b".repeat(before));
        for encoder in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let encoded = encoder.encode(&plain);
            for (columns, line_end) in [
                (10_000, ""),
                (64, "\n"),
                (76, "\n"),
                (76, "\r\n"),
                (5, "\n"),
            ] {
                let text = wrapped(&encoded, columns, line_end);
                let out = cleaned.clean(&text).into_owned();
                assert_eq!(
                    out.matches(REDACTED).count(),
                    1,
                    "{before} {columns}: {out}"
                );
                for rest in out.split(REDACTED) {
                    let rest: String = unbroken(rest.as_bytes()).map(char::from).collect();
                    for cut in 0..4.min(rest.len()) {
                        let whole = &rest[cut..cut + (rest.len() - cut) / 4 * 4];
                        assert!(!encoder.decode(whole).is_ok_and(|text| inner(&text)));
                    }
                }
            }
        }
    }
}

#[test]
fn a_key_is_found_as_programs_write_it() {
    let cleaned = redactor();
    for spelling in [
        "sk-ant-secret/0123+456789",
        "sk-ant-secret%2F0123%2B456789",
        "sk-ant-secret%2f0123%2b456789",
        "sk-ant-secret/0123%2B456789",
        "sk-ant-secret/0123%2b456789",
        "sk-ant-secret\\/0123+456789",
        "736b2d616e742d7365637265742f303132332b343536373839",
        "736B2D616E742D7365637265742F303132332B343536373839",
        "sk-ant-\nsecret/01\r\n23+456789",
    ] {
        assert_eq!(cleaned.clean(&format!("x{spelling}y")), "x[redacted]y");
    }
    assert!(matches!(cleaned.clean("nothing here"), Cow::Borrowed(_)));
}

#[test]
fn what_was_cut_shows_no_half_of_a_key() {
    for cut in 0..KEY.len() {
        let text = format!("bad key {}", &KEY[..cut]);
        assert_eq!(redactor().clean_cut(&text), "bad key ", "{cut}");
    }
}

/// Whoever chooses the text must not learn the next character of a key from where it is cut.
#[test]
fn what_is_held_back_tells_nothing_of_a_key() {
    let key = Redactor::new([&Secret::new(KEY)]);
    let spellings = spellings(KEY);
    for spelling in &spellings {
        for cut in 1..spelling.len() {
            let right = format!("a guess: {}", &spelling[..cut]);
            let wrong = format!("{}~", &right[..right.len() - 1]);
            let shown = |guess: &str| {
                let mut stream = key.live_stream();
                let pieces = [stream.push(guess), stream.push("! "), stream.finish()];
                (key.clean_cut(guess).len(), pieces.map(|piece| piece.len()))
            };
            assert_eq!(shown(&right), shown(&wrong), "{right}");
        }
    }
}

#[test]
fn of_a_long_word_that_may_go_on_the_beginning_is_given_out() {
    let mut stream = redactor().live_stream();
    let given = [
        "Hello",
        " world, incompre",
        "hensible",
        "\n",
        "你好，",
        "世界",
        "\tx",
        "",
    ];
    let given = given.map(|piece| stream.push(piece));
    let expected = [
        "Hello",
        " world, incompre",
        "",
        "",
        "hensible\n你好，",
        "世界",
        "\tx",
        "",
    ];
    assert_eq!(given, expected);
    assert_eq!(stream.finish(), "");
}

/// At each pause all is given out, and yet nothing that is joined afterwards has the key.
#[test]
fn a_key_across_pauses_is_never_given_out_whole() {
    for cut in 1..KEY.len() {
        let (head, tail) = KEY.split_at(cut);
        let mut stream = redactor().stream();
        let shown = [
            stream.push("a "),
            stream.push(head),
            stream.finish(),
            stream.push(""),
            stream.finish(),
            stream.push(tail),
            stream.push(" b"),
            stream.finish(),
        ];
        assert_eq!(shown.concat(), format!("a {head}[redacted] b"));
        let mut stream = redactor().stream();
        let shown = [
            stream.push(head),
            stream.finish(),
            stream.push("!"),
            stream.finish(),
        ];
        assert_eq!(shown.concat(), format!("{head}!"));
    }
}

#[test]
fn a_short_word_is_no_secret_to_search_for() {
    for word in ["import", "ollama", "fifteen-letters"] {
        let cleaned = Redactor::new([&Secret::new(word)]);
        let text = format!("{word} os\n");
        assert_eq!(cleaned.clean(&text), text);
        assert_eq!(cleaned.stream().push(&text), text);
    }
    assert_eq!(
        Redactor::new([&Secret::new("sixteen-letters-")]).clean("a sixteen-letters-!"),
        "a [redacted]!"
    );
}

#[test]
fn a_secret_that_begins_another_never_leaves_its_rest() {
    let (short, long) = ("sk-team-0123456789", "sk-team-0123456789-of-2026");
    let cleaned = Redactor::new([&Secret::new(short), &Secret::new(long)]);
    assert_eq!(
        cleaned.clean(&format!("{long} {short}.")),
        "[redacted] [redacted]."
    );
    for cut in 0..long.len() {
        let mut stream = cleaned.stream();
        let (head, tail) = long.split_at(cut);
        let out = stream.push(head) + &stream.push(tail) + &stream.push(" x") + &stream.finish();
        assert_eq!(out, "[redacted] x", "{cut}");
    }
}

#[test]
fn quotes_at_a_secrets_ends_are_part_of_it() {
    let secret = "\"quoted-0123456789\"";
    let cleaned = Redactor::new([&Secret::new(secret)]);
    let text = json!({ "k": secret }).to_string();
    assert_eq!(cleaned.clean(&text), r#"{"k":"[redacted]"}"#);
}

#[test]
fn a_value_loses_secrets_in_strings_and_in_names_that_are_not_ours() {
    let (digits, quoted) = ("1234567890123456", "se\"cret!-0123456789");
    let cleaned = Redactor::new([&Secret::new(digits), &Secret::new(quoted)]);
    let value =
        json!({"n": 1_234_567_890_123_456_u64, quoted: [format!("x{digits}")], "s": quoted});
    let mut theirs = value.clone();
    assert!(cleaned.clean_value(&mut theirs, Names::Theirs));
    assert_eq!(
        theirs.to_string(),
        r#"{"n":1234567890123456,"[redacted]":["x[redacted]"],"s":"[redacted]"}"#
    );
    let mut ours = value;
    assert!(cleaned.clean_value(&mut ours, Names::Ours));
    assert_eq!(ours[quoted][0], "x[redacted]");
    let mut plain = json!({"a": [1.5, null, "b"]});
    assert!(!cleaned.clean_value(&mut plain, Names::Theirs));
}

/// The same as [`Redactor::clean`], slowly.
fn by_hand(needles: &[String], text: &str) -> String {
    let end = |needle: &String, start: usize| {
        let (mut at, mut breaks) = (start, 0);
        for byte in needle.bytes() {
            while at > start
                && breaks < MOST_BREAKS
                && text.as_bytes().get(at).is_some_and(|b| is_break(*b))
            {
                (at, breaks) = (at + 1, breaks + 1);
            }
            if text.as_bytes().get(at) != Some(&byte) {
                return None;
            }
            (at, breaks) = (at + 1, 0);
        }
        Some(at)
    };
    let (mut out, mut at) = (String::new(), 0);
    while let Some(next) = text[at..].chars().next() {
        let longest = needles
            .iter()
            .filter_map(|needle| Some((needle.len(), end(needle, at)?)))
            .max();
        if let Some((_, end)) = longest {
            out.push_str(REDACTED);
            at = end;
        } else {
            out.push(next);
            at += next.len_utf8();
        }
    }
    out
}

proptest! {
    #[test]
    fn pieces_are_cleaned_as_the_whole_is_and_no_needle_stays(
        needles in prop::collection::vec("[xyé]{1,5}", 0..6),
        pieces in prop::collection::vec(("[xyzé]{0,7}(\n|\r\n|\n{6})?[xyé]?", any::<bool>()), 0..10),
    ) {
        let cleaned = Redactor::of(needles.clone());
        let whole: String = pieces.iter().map(|(piece, _)| piece.as_str()).collect();
        let expected = cleaned.clean(&whole).into_owned();
        prop_assert_eq!(&expected, &by_hand(&needles, &whole));
        let longest = needles.iter().map(String::len).max().unwrap_or(1);
        for (live, with_pauses) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut stream = if live { cleaned.live_stream() } else { cleaned.stream() };
            let mut out = String::new();
            for (piece, pause) in &pieces {
                out.push_str(&stream.push(piece));
                if with_pauses && *pause {
                    out.push_str(&stream.finish());
                }
                prop_assert!(stream.held.len() < longest * (MOST_BREAKS + 1));
            }
            out.push_str(&stream.finish());
            if !live && !with_pauses {
                prop_assert_eq!(&out, &expected);
            }
            for part in out.split(REDACTED) {
                prop_assert!(!needles.iter().any(|needle| part.contains(needle)), "{}", out);
            }
        }
    }

    #[test]
    fn ordinary_text_is_left_alone(
        before in "[-a-zA-Z0-9+/=%_ \n]{0,80}", after in "[-a-zA-Z0-9+/=%_ \n]{0,80}",
        spelling in any::<prop::sample::Index>(), cut in any::<bool>()
    ) {
        let all = spellings(KEY);
        let spelling = spelling.get(&all);
        // All but one character of a key is none.
        let part = if cut { &spelling[1..] } else { &spelling[..spelling.len() - 1] };
        let text = format!("{before}!{part}!{after}");
        prop_assert!(matches!(redactor().clean(&text), Cow::Borrowed(_)), "{}", text);
    }

    #[test]
    fn chunking_never_lets_a_secret_through(
        before in "[a-zé]{0,12}", after in "[a-zé]{0,12}", cuts in prop::collection::vec(0_usize..60, 0..6),
        live in any::<bool>(),
    ) {
        let text = format!("{before}{KEY}{after}");
        let mut stream = if live { redactor().live_stream() } else { redactor().stream() };
        let most_shown = if live { MOST_SHOWN } else { 0 };
        let mut out = String::new();
        let mut rest = text.as_str();
        for cut in cuts {
            let at = (0..=cut.min(rest.len())).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(0);
            let (head, tail) = rest.split_at(at);
            out.push_str(&stream.push(head));
            rest = tail;
        }
        out.push_str(&stream.push(rest));
        out.push_str(&stream.finish());
        let (shown, rest) = out.split_once(REDACTED).unwrap();
        prop_assert_eq!(rest, &after);
        let of_the_key = shown.strip_prefix(&before).unwrap();
        prop_assert!(KEY.starts_with(of_the_key) && of_the_key.len() <= most_shown, "{}", out);
    }
}
