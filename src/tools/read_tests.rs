use super::super::page::shell_word;
use super::super::piece::{BEGINNING, MARK, SLICE_BYTES};
use super::*;
use crate::secrets::{Redactor, Secret};

fn page_of(piece: &Piece, window: Window, redactor: &Redactor) -> Result<String, Failure> {
    let place = Place::parse("/w/my f.txt".to_owned(), b"f\x00500000\0\0\x001");
    shown("my f.txt", &place, piece, window, redactor).map(|answer| answer.text)
}

type Shown = Result<String, Failure>;

/// What is shown of a small file.
fn small(file: &[u8], window: Window) -> Result<String, Failure> {
    page_of(&Piece::whole(file, window), window, &Redactor::default())
}

/// The same through what the sandbox would cut out of a large one.
fn large(file: &[u8], window: Window, counted: bool) -> Result<String, Failure> {
    let lines: Vec<&[u8]> = file.split_inclusive(|b| *b == b'\n').collect();
    let from = match window {
        Window::From(from, _) => from,
        Window::Last(last, _) => count(lines.len()).saturating_sub(last) + 1,
    };
    let skip = usize::try_from(from - 1).unwrap();
    let rest = lines.get(skip..).unwrap_or_default().concat();
    let mut printed = file[..file.len().min(BEGINNING)].to_vec();
    let start = printed.len();
    printed.extend(&rest[..rest.len().min(SLICE_BYTES + 1)]);
    let total = if counted {
        lines.len().to_string()
    } else {
        String::new()
    };
    printed.extend(format!("\0{start}\0{from}\0{total}").bytes());
    page_of(
        &Piece::parse(&printed).unwrap(),
        window,
        &Redactor::default(),
    )
}

fn complaint(answer: Result<String, Failure>) -> String {
    match answer {
        Err(Failure::Complaint(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn all() -> Window {
    Window::new(None, None)
}

#[test]
fn texts_are_decoded_and_oddities_told_in_files_of_any_size() {
    for (file, shown) in [
        (&b"plain\n"[..], "1\tplain"),
        (
            b"\xef\xbb\xbfbom",
            "1\tbom\n[the file begins with a byte-order mark (BOM), which is not shown]",
        ),
        (b"a\r\nb", "1\ta\n2\tb\n[lines end in CRLF in the file]"),
        (
            b"a\r\nb\nc",
            "1\ta\n2\tb\n3\tc\n[1 of these 2 lines end in CRLF in the file, the others in LF]",
        ),
        (
            b"a\rb\r",
            "1\ta\u{fffd}b\u{fffd}\n[a CR without LF after it ends no line; it is shown as U+FFFD]",
        ),
        (
            b"latin \xe4",
            "1\tlatin \u{fffd}\n[some bytes are not UTF-8; they are shown as U+FFFD]",
        ),
        (
            b"esc \x1b[0m",
            "1\tesc \u{fffd}[0m\n[control characters and U+FEFF are shown as U+FFFD]",
        ),
        (
            "a\u{feff}b".as_bytes(),
            "1\ta\u{fffd}b\n[control characters and U+FEFF are shown as U+FFFD]",
        ),
        (b"\n\n", "1\t\n2\t"),
    ] {
        assert_eq!(small(file, all()).unwrap(), shown, "{file:?}");
        assert_eq!(large(file, all(), true).unwrap(), shown, "{file:?}");
        assert_eq!(large(file, all(), false).unwrap(), shown, "{file:?}");
    }
    for (file, order) in [
        (b"\xff\xfeh\0\n\0\x3d\xd8\0\xde", "little"),
        (b"\xfe\xff\0h\0\n\xd8\x3d\xde\0", "big"),
    ] {
        let note = format!("UTF-16 ({order}-endian) in the file; file_edit can't change it");
        assert_eq!(
            small(file, all()).unwrap(),
            format!("1\th\n2\t😀\n[{note}]")
        );
    }
}

#[test]
fn empty_files_and_files_of_a_mark_alone_are_told_apart() {
    assert_eq!(small(b"", all()).unwrap(), "(empty file)");
    for file in [&b"\xef\xbb\xbf"[..], b"\xff\xfe"] {
        let text = small(file, Window::new(Some(3), None)).unwrap();
        assert!(
            text.starts_with("(empty file)\n[") && text.contains("(BOM)"),
            "{text}"
        );
    }
}

#[test]
fn the_kind_of_a_file_is_told_by_its_beginning() {
    for (file, content) in [
        (&b"%PDF-1.7\0"[..], Content::Binary(Some("application/pdf"))),
        (
            &[&b"\x7fELF"[..], &[0; 60]].concat(),
            Content::Binary(Some("application/x-executable")),
        ),
        (b"\0\x01", Content::Binary(None)),
        (b"\x89PNG\r\n\x1a\n\0", Content::Image(ImageType::Png)),
        (b"BM is text", Content::Text),
    ] {
        assert_eq!(Content::of(file), content, "{file:?}");
    }
}

#[test]
fn pages_join_to_the_file_counted_or_not() {
    let text = (1..=10_000)
        .map(|n| format!("line {n}\n"))
        .collect::<Vec<_>>()
        .concat();
    let kinds: [fn(&[u8], Window) -> Shown; 3] = [
        small,
        |file, window| large(file, window, true),
        |file, window| large(file, window, false),
    ];
    for read in kinds {
        let mut offset = 1;
        let mut joined = String::new();
        loop {
            let page = read(text.as_bytes(), Window::new(Some(offset), None)).unwrap();
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
}

#[test]
fn windows_count_from_the_end_and_say_when_they_are_past_it() {
    let text = b"a\nb\nc\n";
    for (offset, limit, shown) in [
        (-2, None, "2\tb\n3\tc"),
        (-2, Some(1), "2\tb\n[lines 2–2 of 3; go on with offset=3]"),
        (-1, Some(5), "3\tc"),
        (-9, None, "1\ta\n2\tb\n3\tc"),
        (2, Some(1), "2\tb\n[lines 2–2 of 3; go on with offset=3]"),
        (i64::MIN, None, "1\ta\n2\tb\n3\tc"),
        (0, None, "1\ta\n2\tb\n3\tc"),
    ] {
        let window = Window::new(Some(offset), limit);
        assert_eq!(small(text, window).unwrap(), shown);
        assert_eq!(large(text, window, true).unwrap(), shown);
    }
    let past = Window::new(Some(4), None);
    assert_eq!(
        complaint(small(text, past)),
        "offset 4 is past the end: my f.txt has 3 lines"
    );
    assert_eq!(
        complaint(large(text, past, true)),
        "offset 4 is past the end: my f.txt has 3 lines"
    );
    assert!(complaint(large(text, past, false)).contains("past the end of my f.txt"));
    assert!(complaint(small(text, Window::new(Some(i64::MAX), None))).contains("has 3 lines"));
}

#[test]
fn a_giant_line_is_cut_and_the_way_on_is_named_for_a_shell() {
    let text = "é".repeat(5_000);
    let shown = small(text.as_bytes(), all()).unwrap();
    let command = "tail -n +1 '/w/my f.txt' | head -c 6000 | tail -c +4001";
    assert!(
        shown.contains("6,000 more bytes") && shown.contains(command),
        "{shown}"
    );
    let marked = small(&[MARK, text.as_bytes()].concat(), all()).unwrap();
    assert!(
        marked.contains("| head -c 6003 | tail -c +4004]"),
        "{marked}"
    );
    let odd = small(&[&[0xff; 2_500][..], b"\nb"].concat(), all()).unwrap();
    assert!(
        odd.contains("[… 500 more bytes in this line") && odd.contains("tail -c +2001]\n2\tb"),
        "{odd}"
    );
    assert_eq!(shell_word("/a\nb"), None);
    assert_eq!(shell_word("/x; rm -rf y").unwrap(), "'/x; rm -rf y'");
}

#[test]
fn a_line_longer_than_the_slice_is_shown_alone_and_its_length_is_not_guessed() {
    let mut file = b"x\n".to_vec();
    file.resize(SLICE_BYTES * 2, b'a');
    let shown = large(&file, all(), false).unwrap();
    assert_eq!(
        shown,
        "1\tx\n[lines 1–1 of a file of 500.0 kB; go on with offset=2]"
    );
    let shown = large(&file, Window::new(Some(2), None), false).unwrap();
    assert!(
        shown.contains("[… more than 1,046,576 more bytes in this line;"),
        "{shown}"
    );
    assert!(
        shown.ends_with("further lines, if there are any, have offset=3]"),
        "{shown}"
    );
    assert!(
        !large(&file, Window::new(Some(2), None), true)
            .unwrap()
            .contains("offset")
    );
}

#[test]
fn no_half_of_a_secret_is_left_where_a_line_is_cut() {
    let redactor = Redactor::new([&Secret::new("sandcaster-key-0123456789")]);
    for at in 1_975..2_001 {
        let text = format!(
            "{}sandcaster-key-0123456789{}",
            "x".repeat(at),
            "y".repeat(500)
        );
        let shown = page_of(&Piece::whole(text.as_bytes(), all()), all(), &redactor).unwrap();
        assert!(!shown.contains("sandc"), "{at}: {shown}");
    }
}

#[test]
fn what_the_sandbox_cuts_out_is_read_strictly() {
    for printed in [
        &b""[..],
        b"text",
        b"a\x001",
        b"a\x009\x001\x00",
        b"a\x00x\x001\x005",
        b"a\x001\x00\x005",
    ] {
        assert_eq!(Piece::parse(printed), None, "{printed:?}");
    }
    // A NUL in a line forges nothing.
    let piece = Piece::parse(b"ab\0c\x001\x007\x009").unwrap();
    assert_eq!(
        (piece.bytes.as_slice(), piece.from, piece.total),
        (&b"b\0c"[..], 7, Some(9))
    );
}

#[test]
fn numbers_that_no_file_has_are_refused() {
    for absurd in [u64::MAX, u64::MAX - 1, 1 << 63] {
        assert_eq!(
            Piece::parse(format!("x\0{absurd}\x001\x001").as_bytes()),
            None
        );
        assert_eq!(
            Piece::parse(format!("x\x001\0{absurd}\x001").as_bytes()),
            None
        );
    }
    let window = Window::new(Some(i64::MAX), None);
    let piece = Piece::parse(format!("xa\nb\n\x001\0{}\0", i64::MAX).as_bytes()).unwrap();
    let page = page_of(&piece, window, &Redactor::default()).unwrap();
    assert!(
        page.starts_with("9223372036854775807\ta\n9223372036854775808\tb"),
        "{page}"
    );
    assert!(complaint(small(b"a\n", window)).contains("past the end"));
}

#[test]
fn no_part_of_a_key_is_shown_of_a_line_that_goes_on() {
    let key = Secret::new("sandcaster-key-0123456789");
    let redactor = Redactor::new([&key]);
    for before in 0..key.expose().len() {
        // So many keys that what is left of all that is looked at is shown whole.
        let line = "y".repeat(before) + &key.expose().repeat(20_000);
        let piece = Piece::whole(line.as_bytes(), all());
        let page = page_of(&piece, all(), &redactor).unwrap();
        assert!(
            page.contains("more bytes in this line"),
            "{}",
            &page[page.len() - 300..]
        );
        assert!(!page.contains("sandc"), "{before}");
        let mut long = key.expose().repeat(SLICE_BYTES / key.expose().len() + 1);
        long.insert_str(0, &"y".repeat(before));
        let page = large(long.as_bytes(), all(), false).unwrap();
        assert!(page.starts_with("1\t"), "{page}");
    }
    // With a short line that ends where all of the key but its end has come.
    let dense = format!("{}{}", "[]".repeat(600), "sandcaster-key-");
    let mut cut = Piece::whole(dense.as_bytes(), all());
    cut.cut = true;
    let page = page_of(&cut, all(), &redactor).unwrap();
    assert!(!page.contains("sandc"), "{page}");
}

#[tokio::test]
async fn another_image_of_the_same_size_is_another_outcome() {
    let look = async |data: &str| {
        let head = b"\xff\xd8\xff\xe0\0\x04ab\xff\xc2\0\x07\x08\x03\x20\x04\xb0\xff\xda\0\x04ab";
        let file = [head, data.as_bytes(), b"\xff\xd9"].concat();
        let answer = picture("a.jpg", ImageType::Jpeg, file.into()).await;
        answer.unwrap().fingerprint()
    };
    assert_eq!(look("one").await, look("one").await);
    assert_ne!(look("one").await, look("two").await);
}
