//! The request's files, in both forms.

use sandcaster::config::QueryRequest;
use sandcaster::spec::InputFile;

fn files(json: &str) -> Vec<(String, Vec<u8>)> {
    let body = format!(r#"{{"prompt": "x", "files": {json}}}"#);
    let request = QueryRequest::parse(body.as_bytes())
        .unwrap_or_else(|problem| panic!("{json}: {problem:?}"));
    request
        .files
        .into_iter()
        .map(|InputFile { path, bytes }| (path.as_str().to_owned(), bytes.to_vec()))
        .collect()
}

#[test]
fn base64_of_either_alphabet_is_taken_with_or_without_padding() {
    for content in ["+/+/YQ==", "-_-_YQ==", "+/+/YQ", "-_-_YQ"] {
        let json = format!(r#"[{{"name": "a", "content": "{content}"}}]"#);
        assert_eq!(
            files(&json),
            [("a".to_owned(), vec![0xfb, 0xff, 0xbf, b'a'])],
            "{content}"
        );
    }
}

#[test]
fn base64_may_be_broken_into_lines() {
    for content in [
        r"+/+/\nYQ==\n",
        r" +/+ / YQ = = ",
        r"-_-_\r\n\tYQ",
        r"\n+\n/\n+\n/YQ",
    ] {
        let json = format!(r#"[{{"name": "a", "content": "{content}", "encoding": null}}]"#);
        assert_eq!(
            files(&json),
            [("a".to_owned(), vec![0xfb, 0xff, 0xbf, b'a'])],
            "{content}"
        );
    }
}

#[test]
fn the_size_limit_counts_the_bytes_that_are_meant() {
    // 300 of the bytes stand in lines of four characters: blanks and the coding itself cost nothing.
    let lines = r"AAAA\r\n".repeat(100);
    let of = |others: usize| {
        let text = "x".repeat(others);
        let body = format!(
            r#"{{"prompt": "x", "files": [{{"name": "a", "content": "{lines}"}},
                {{"name": "b", "content": "{text}", "encoding": "utf-8"}}]}}"#
        );
        QueryRequest::parse(body.as_bytes())
    };
    assert_eq!(of(9_999_700).unwrap().files[0].bytes.len(), 300);
    let problem = of(9_999_701).unwrap_err();
    assert!(problem.message.contains("10000001 bytes"), "{problem}");
}

#[test]
fn an_object_holds_text_as_it_is() {
    assert_eq!(
        files(r#"{"a.txt": "aGk="}"#),
        [("a.txt".to_owned(), b"aGk=".to_vec())]
    );
    assert_eq!(
        files(r#"{"a": "é"}"#),
        [("a".to_owned(), "é".as_bytes().to_vec())]
    );
    assert_eq!(files("{}"), []);
}

#[test]
fn an_item_may_hold_text() {
    let json =
        r#"[{"encoding": "utf-8", "name": "a", "content": "aGk="}, {"name": "e", "content": ""}]"#;
    let expected = [("a".to_owned(), b"aGk=".to_vec()), ("e".to_owned(), vec![])];
    assert_eq!(files(json), expected);
}

#[test]
fn names_are_kept_in_their_normal_form() {
    for (name, normal) in [
        ("./a//b", "a/b"),
        ("a\\\\b", "a/b"),
        ("x/../y", "y"),
        ("A", "A"),
    ] {
        assert_eq!(files(&format!(r#"{{"{name}": ""}}"#))[0].0, normal);
    }
    // No case folding: these are two files.
    assert_eq!(files(r#"{"a": "", "A": ""}"#).len(), 2);
}
