use super::*;

fn cleaned(bytes: &[u8]) -> String {
    let mut keeper = TextKeeper::new(&Redactor::default());
    keeper.push(bytes);
    whole(keeper.end())
}

fn whole(kept: Kept) -> String {
    let excerpt = kept.excerpt(&Limits {
        full: u64::MAX,
        head: 0,
        tail: 0,
    });
    format!("{}{}", excerpt.head, excerpt.tail)
}

#[test]
fn escapes_progress_bars_and_control_characters_are_cleaned() {
    for (bytes, shown) in [
        (&b"\x1b[31mred\x1b[0m"[..], "red"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"\x1b(Bplain", "plain"),
        (b" 1%\r 50%\r100%\ndone", "100%\ndone"),
        (b"a\r\nb\r\r\nc", "a\nb\nc"),
        (b"last\r", "last"),
        (b"nul\0\x1e!", "nul\u{fffd}\u{fffd}!"),
        (b"bell\x07 back\x08", "bell back"),
        (b"bad \xff\xfe utf", "bad \u{fffd}\u{fffd} utf"),
        (b"cut \xe2\x82", "cut \u{fffd}"),
        (b"\x1b]never ends\nnext", "\nnext"),
        ("\u{9b}31mc1".as_bytes(), "c1"),
        (b"tab\tstays", "tab\tstays"),
    ] {
        assert_eq!(cleaned(bytes), shown, "{bytes:?}");
    }
}

#[test]
fn a_secret_cut_by_chunks_is_redacted() {
    let redactor = Redactor::new([&crate::secrets::Secret::new("sk-very-secret-key")]);
    let mut keeper = TextKeeper::new(&redactor);
    keeper.push(b"key=sk-very-");
    keeper.push(b"secret-key\n");
    assert_eq!(whole(keeper.end()), "key=[redacted]\n");
}

proptest::proptest! {
    #[test]
    fn chunking_makes_no_difference(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), cut in 0_usize..200
    ) {
        let mut keeper = TextKeeper::new(&Redactor::default());
        let (a, b) = bytes.split_at(cut.min(bytes.len()));
        keeper.push(a);
        keeper.push(b);
        let shown = whole(keeper.end());
        proptest::prop_assert_eq!(&shown, &cleaned(&bytes));
        proptest::prop_assert_eq!(
            shown.matches('\n').count(),
            bytes.split(|b| *b == b'\n').count() - 1
        );
        proptest::prop_assert!(!shown.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
    }

    #[test]
    fn the_numbers_of_an_excerpt_add_up(text in "([a-zé€😀 ]{0,30}\n?){0,60}", head in 1_usize..50, tail in 1_usize..50) {
        let mut keeper = TextKeeper::new(&Redactor::default());
        keeper.push(text.as_bytes());
        let excerpt = keeper.end().excerpt(&Limits { full: 100, head, tail });
        let chars = u64::try_from(text.chars().count()).unwrap();
        proptest::prop_assert_eq!(excerpt.total_chars, chars);
        if chars <= 100 {
            proptest::prop_assert_eq!(excerpt.head, text);
        } else {
            proptest::prop_assert!(text.starts_with(&excerpt.head));
            proptest::prop_assert!(text.ends_with(&excerpt.tail));
            let shown = excerpt.head.chars().count() + excerpt.tail.chars().count();
            proptest::prop_assert_eq!(excerpt.left_out_chars + u64::try_from(shown).unwrap(), chars);
            let lines = text.matches('\n').count() - excerpt.head.matches('\n').count() - excerpt.tail.matches('\n').count();
            proptest::prop_assert_eq!(excerpt.left_out_lines, u64::try_from(lines).unwrap());
        }
    }
}

#[test]
fn a_flood_keeps_its_beginning_and_end_and_is_counted() {
    let mut keeper = TextKeeper::new(&Redactor::default());
    for n in 0..200_000 {
        keeper.push(format!("line {n}\n").as_bytes());
    }
    let kept = keeper.end();
    assert!(kept.head.len() + kept.tail.len() <= 3 * KEEP);
    let excerpt = kept.excerpt(&Limits {
        full: 30_000,
        head: 8_000,
        tail: 16_000,
    });
    assert!(excerpt.head.starts_with("line 0\n") && excerpt.head.ends_with('\n'));
    assert!(excerpt.tail.starts_with("line ") && excerpt.tail.ends_with("line 199999\n"));
    assert_eq!(
        excerpt.head_lines() + excerpt.left_out_lines + count_lines(&excerpt.tail),
        200_000
    );
}

#[test]
fn a_title_that_never_ends_swallows_no_text_untold() {
    let mut keeper = TextKeeper::new(&Redactor::default());
    keeper.push(format!("a\u{1b}]{}end", "x".repeat(5_000)).as_bytes());
    let kept = keeper.end();
    let text = format!("{}{}", kept.head, kept.tail);
    assert!(
        text.starts_with("a\u{fffd}x") && text.ends_with("xend"),
        "{text}"
    );
}
