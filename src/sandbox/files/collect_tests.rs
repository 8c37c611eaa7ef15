use super::*;

#[test]
fn a_name_tells_where_its_line_ends_whatever_is_in_it() {
    let mut output = b".\0./b\n81a4|9|9|x|./fake\0./gone\0./a b\0\x0041ed|6|1|x|.\n".to_vec();
    output
        .extend(b"81a4|5|1700000000|2023-11-14 22:13:20.500000000 +0000|./b\n81a4|9|9|x|./fake\n");
    output.extend(b"a1ff|3|1700000001|2023|./a b\n\0");
    output.extend(b"./d/c\0/\0\x0081a4|7|1700000002|2023|./d/c\n41ed|6|1|x|/\n\0\0\0");
    let listing = parse(&output, false).unwrap();
    assert!(!listing.cut);
    let paths: Vec<&[u8]> = listing
        .files
        .iter()
        .map(|(path, _)| path.as_slice())
        .collect();
    assert_eq!(paths, [&b"a b"[..], b"b\n81a4|9|9|x|./fake", b"d/c"]);
    assert!(!listing.files[0].1.regular);
    assert!(listing.files[1].1.is_fine() && listing.files[1].1.size == 5);
    assert!(!listing.files[2].1.is_fine());
}

#[test]
fn a_listing_without_a_beginning_or_an_end_is_none() {
    let whole = b".\0./a\0/\0\x0041ed|6|1|x|.\n81a4|7|2|x|./a\n41ed|6|1|x|/\n\0\0\0";
    assert_eq!(parse(whole, false).unwrap().files.len(), 1);
    for cut in 0..whole.len() - 1 {
        assert!(parse(&whole[..cut], false).is_none(), "{cut}");
    }
    assert!(parse(&whole[..whole.len() - 2], true).unwrap().cut);
    // `find` was ended after two names.
    let ended = b".\0./a\0\x0041ed|6|1|x|.\n81a4|7|2|x|./a\n\0\0\0";
    assert!(parse(ended, false).is_none());
    // The programs are there, but give something else.
    assert!(parse(b".\0./a\0\0\0\0\0", false).is_none());
    assert!(parse(b"\0\0", false).is_none());
}

#[test]
fn a_listing_of_very_many_files_is_cut_and_costs_linear_time() {
    let (mut names, mut lines) = (b".\0".to_vec(), b"41ed|6|1|x|.\n".to_vec());
    for n in 0..LISTED / 2 {
        names.extend(format!("./{n}\0").bytes());
        lines.extend(format!("81a4|7|2|x|./{n}\n").bytes());
    }
    let batch = [&names[..], b"\0", &lines, b"\0"].concat();
    let listing = parse(&[batch.repeat(3), b"\0\0".to_vec()].concat(), false).unwrap();
    assert_eq!((listing.files.len(), listing.cut), (LISTED, true));
    // Lines without a mark, which no name may look through.
    let blank = vec![b'x'; lines.len()];
    let end = b"\0/\0\x0041ed|6|1|x|/\n\0\0\0";
    let output = [&names[..], b"\0", &lines[..13], &blank, end].concat();
    let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    assert_eq!(parse(&output, false).unwrap().files.len(), 0);
    let took = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .saturating_sub(started);
    // 0.02 s when it was measured, and minutes without a bound.
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
}

#[test]
fn names_that_clients_cannot_use_are_left_out_with_a_reason() {
    assert_eq!(usable_name(b"a/b c'\"$.txt"), Ok("a/b c'\"$.txt"));
    for (name, word) in [
        (&b"a\nb"[..], "control"),
        (b"a\\b", "backslash"),
        (b"\xff", "UTF-8"),
        (b"dot.", "dot or blank"),
    ] {
        assert!(usable_name(name).unwrap_err().contains(word));
    }
}

#[test]
fn contents_travel_as_text_or_base64_up_to_the_limit() {
    assert_eq!(
        inline("é".as_bytes()),
        (FileEncoding::Utf8, Some("é".to_owned()))
    );
    assert_eq!(
        inline(b"\xff\x00"),
        (FileEncoding::Base64, Some("/wA=".to_owned()))
    );
    assert_eq!(
        inline(&vec![b'a'; INLINE_MOST + 1]),
        (FileEncoding::Utf8, None)
    );
    assert!(inline(&vec![b'a'; INLINE_MOST]).1.is_some());
    assert_eq!(
        sha256_hex(b"abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn types_come_from_bytes_first_and_names_second() {
    for (name, bytes, mime) in [
        ("a.txt", &b"\x89PNG\r\n\x1a\n"[..], "image/png"),
        ("a.md", b"# x", "text/markdown"),
        ("report.PDF", b"not really", "application/pdf"),
        ("x.csv", b"\xff\xfe\0", "application/octet-stream"),
        (
            "x.xlsx",
            b"PK\x03\x04",
            "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        ),
        ("x.bin", b"PK\x03\x04", "application/zip"),
        ("Makefile", b"all:\n", "text/plain"),
        ("noext", b"\0\x01", "application/octet-stream"),
        ("BMW", b"BMW, GIF and MZ are letters", "text/plain"),
        ("noext", b"%PDF-1.4\n", "application/pdf"),
        ("x.whl", b"PK\x03\x04\0\0", "application/zip"),
        ("x.jar", b"PK\x03\x04\0\0", "application/java-archive"),
        ("a.b/c", b"", "text/plain"),
    ] {
        assert_eq!(mime_type(name, bytes), mime, "{name}");
    }
}
