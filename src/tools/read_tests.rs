use super::*;

#[test]
fn texts_are_decoded_and_oddities_noted() {
    let notes = |bytes: &[u8]| {
        let decoded = decode(bytes).unwrap();
        (decoded.text, decoded.notes.len())
    };
    assert_eq!(notes(b"plain\n"), ("plain\n".to_owned(), 0));
    assert_eq!(notes(b"\xef\xbb\xbfbom"), ("bom".to_owned(), 0));
    assert_eq!(notes(b"a\r\nb"), ("a\nb".to_owned(), 1));
    assert_eq!(notes(b"\xff\xfeh\0i\0"), ("hi".to_owned(), 1));
    assert_eq!(notes(b"\xfe\xff\0h\0i"), ("hi".to_owned(), 1));
    assert_eq!(notes(b"latin \xe4"), ("latin \u{fffd}".to_owned(), 1));
    assert_eq!(notes(b"esc \x1b[0m"), ("esc \u{fffd}[0m".to_owned(), 1));
    assert_eq!(decode(b"%PDF-1.7\0"), Err("a PDF"));
    assert_eq!(decode(b"\x7fELF\0\0"), Err("an ELF program or library"));
}

#[test]
fn pages_join_to_the_file() {
    let text = (1..=10_000)
        .map(|n| format!("line {n}\n"))
        .collect::<Vec<_>>()
        .concat();
    let mut offset = 1;
    let mut joined = String::new();
    loop {
        let page = lines(&text, Window::new(Some(offset), None), "f").unwrap();
        let mut next = None;
        for line in page.lines() {
            if let Some((_, after)) = line.split_once("go on with offset=") {
                next = Some(after.trim_end_matches(']').parse::<i64>().unwrap());
            } else {
                joined.push_str(line.split_once('\t').unwrap().1);
                joined.push('\n');
            }
        }
        match next {
            Some(next) => {
                assert_eq!(next, offset + 2000);
                offset = next;
            }
            None => break,
        }
    }
    assert_eq!(joined, text);
}

#[test]
fn windows_count_from_the_end_and_say_when_they_are_past_it() {
    let text = "a\nb\nc\n";
    assert_eq!(
        lines(text, Window::new(Some(-2), None), "f").unwrap(),
        "2\tb\n3\tc"
    );
    assert_eq!(
        lines(text, Window::new(Some(-9), None), "f").unwrap(),
        "1\ta\n2\tb\n3\tc"
    );
    assert_eq!(
        lines(text, Window::new(Some(2), Some(1)), "f").unwrap(),
        "2\tb\n[lines 2–2 of 3; go on with offset=3]"
    );
    let Failure::Complaint(why) = lines(text, Window::new(Some(4), None), "f").unwrap_err() else {
        panic!("a complaint")
    };
    assert!(why.contains("has 3 lines"), "{why}");
}

#[test]
fn a_giant_line_is_cut_and_the_way_on_is_named() {
    let text = "é".repeat(5_000);
    let shown = lines(&text, Window::new(None, None), "f.txt").unwrap();
    assert!(shown.contains("3,000 more characters"), "{shown}");
    assert!(
        shown.contains("sed -n 1p f.txt | cut -b 4001-6000"),
        "{shown}"
    );
}
