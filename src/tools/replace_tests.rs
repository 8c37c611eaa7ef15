use super::*;

fn edited(file: &str, old: &str, new: &str) -> (String, Option<&'static str>) {
    let replaced = replace(file.as_bytes(), old, new, false).unwrap();
    (String::from_utf8(replaced.bytes).unwrap(), replaced.note)
}

fn refused(file: &str, old: &str, new: &str) -> String {
    replace(file.as_bytes(), old, new, false).unwrap_err()
}

#[test]
fn one_place_is_replaced_and_several_are_refused() {
    assert_eq!(edited("a b c", "b", "x").0, "a x c");
    let why = refused("x\nb\nb\n", "b", "c");
    assert!(why.contains("2 times, in lines 2, 3"), "{why}");
    let all = replace(b"b b b", "b", "cc", true).unwrap();
    assert_eq!(all.bytes, b"cc cc cc");
    assert_eq!(all.places, [0..2, 3..5, 6..8]);
}

#[test]
fn line_ends_of_the_file_are_kept() {
    let (text, note) = edited("one\r\ntwo\r\nthree\r\n", "one\ntwo\n", "1\n2\n");
    assert_eq!(text, "1\r\n2\r\nthree\r\n");
    assert!(note.unwrap().contains("CRLF"));
    // A file with both kinds gets exactly what was given where it was matched exactly.
    assert_eq!(edited("a\nb\r\nc", "a\n", "x\ny\n").0, "x\ny\nb\r\nc");
    // One line replaced by two in a file of CRLF only.
    assert_eq!(edited("a\r\nb\r\n", "a", "x\ny").0, "x\r\ny\r\nb\r\n");
}

#[test]
fn pasted_numbers_and_a_surplus_line_end_are_helped() {
    let (text, note) = edited(
        "fn a() {\n\tb\n}\n",
        "1\tfn a() {\n2\t\tb\n",
        "1\tfn a() {\n2\t\tc\n",
    );
    assert_eq!(text, "fn a() {\n\tc\n}\n");
    assert!(note.unwrap().contains("line numbers"));
    let (text, note) = edited("last line", "last line\n", "new line\n");
    assert_eq!(text, "new line");
    assert!(note.unwrap().contains("line end"));
}

#[test]
fn what_is_not_found_is_explained() {
    let file = "def add(a, b):\n\treturn a + b\n\nprint('sum')\n";
    for (old, new, words) in [
        ("", "x", "file_write"),
        ("a", "a", "same"),
        ("    return a + b", "x", "blanks"),
        (" return a + b", "x", "tabs"),
        ("print(\"sum\")", "x", "quotes"),
        ("DEF add", "x", "case"),
        ("def sub(a, b):", "def add(a, b):", "already"),
        ("def addd(a, b):", "x", "1\tdef add(a, b):"),
        (
            "zzzzzzzzzzzzzzzzzzzzzz",
            "x",
            "no line of the file is similar",
        ),
    ] {
        let why = refused(file, old, new);
        assert!(why.contains(words), "{old:?}: {why}");
    }
}

proptest::proptest! {
    #[test]
    fn bytes_outside_the_match_never_change(
        before in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
        after in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
        new in "[a-zé€ ]{0,20}",
    ) {
        let old = "<the §unique§ text>";
        let mut file = before.clone();
        file.extend_from_slice(old.as_bytes());
        file.extend_from_slice(&after);
        let replaced = replace(&file, old, &new, false).unwrap();
        let mut expected = before;
        expected.extend_from_slice(new.as_bytes());
        expected.extend_from_slice(&after);
        proptest::prop_assert_eq!(replaced.bytes, expected);
    }

    #[test]
    fn any_edit_either_changes_only_its_places_or_is_refused(
        file in "([ab\r\n\t1]{0,12})", old in "[ab\r\n\t1]{0,4}", new in "[ab\r\n\t1]{0,4}", all in proptest::prelude::any::<bool>()
    ) {
        if let Ok(replaced) = replace(file.as_bytes(), &old, &new, all) {
            // Put the old text back at each place: the file must be as it was.
            let mut restored = Vec::new();
            let mut from = 0;
            for place in &replaced.places {
                restored.extend_from_slice(&replaced.bytes[from..place.start]);
                restored.extend_from_slice(&replaced.old);
                from = place.end;
            }
            restored.extend_from_slice(&replaced.bytes[from..]);
            proptest::prop_assert_eq!(restored, file.into_bytes());
        }
    }
}
