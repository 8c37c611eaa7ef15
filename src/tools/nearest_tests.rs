use super::*;

fn explained(file: impl AsRef<[u8]>, old: &str, new: &str) -> String {
    not_found(file.as_ref(), old, new, &Redactor::default())
}

#[test]
fn what_is_not_found_is_explained() {
    let file = "def add(a, b):\n\treturn a + b\n\nprint('sum')\n";
    for (old, new, words) in [
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
        ("\n\n  \n", "x", "nothing that can be seen"),
        ("prin\u{e0041}t('sum')", "x", "invisible characters"),
    ] {
        let why = explained(file, old, new);
        assert!(why.contains(words), "{old:?}: {why}");
    }
}

#[test]
fn a_reason_is_told_only_if_it_is_the_whole_difference() {
    for (file, old, reason) in [
        ("a\r\nb\nc = 1\n", "a\nb\r\nc = 1\n", "line ends"),
        (
            "let a = 1;   \nlet b = 2;\n",
            "let a = 1;\nlet b = 2;",
            "blanks at the ends of lines",
        ),
        ("x  =  1\t# tab\n", "x = 1", "the number of blanks"),
        (
            "\tif x:\n\t\treturn\n",
            "    if x:\n        return",
            "tabs and blanks",
        ),
        (
            "a\u{a0}b c d\n",
            "a b c d",
            "no-break or invisible characters",
        ),
        (
            "zero\u{200b}width\n",
            "zerowidth",
            "no-break or invisible characters",
        ),
        (
            "say “hello” to him\n",
            "say \"hello\" to him",
            "the kind of quotes or dashes",
        ),
        (
            "from 1–2 pages\n",
            "from 1-2 pages",
            "the kind of quotes or dashes",
        ),
        (
            "cafe\u{301} au lait\n",
            "café au lait",
            "how accented letters are composed (NFC, NFD)",
        ),
        ("Hello World\n", "hello world", "upper and lower case"),
        ("call( a,b )\n", "call(a, b)", "blanks and line ends"),
        ("f(a,\n  b)\ng()\n", "f(a, b)\n", "blanks and line ends"),
        (
            "timeout = 30",
            "timeout = 30  ",
            "blanks at the ends of lines",
        ),
        (
            "Say “hello”\tto him\n",
            "say \"hello\" to him",
            "blanks, invisible characters, quotes, dashes, accents or case",
        ),
    ] {
        let why = explained(file, old, "-");
        assert!(
            why.contains(&format!("it differs in {reason} only\n")),
            "{old:?}: {why}"
        );
    }
    for (file, old) in [
        ("\treturn a + b\n", "    return a - b"),
        ("print('sum')\n", "print(\"sun\")"),
        ("Hello World\n", "hello worlds"),
        // What is cut away with the blanks at its end is not all that differs.
        ("timeout = 300\n", "timeout = 30\n"),
        ("timeout = 300\n", "timeout = 30 "),
        ("timeout = 300\n", "timeout = 30\r\n"),
        ("timeout  = 300\n", "timeout = 30\u{200b}"),
        ("timeout = 30 # seconds\n", "timeout = 30\n"),
        ("my_timeout = 30\n", "\ntimeout  = 30"),
        ("foo(a)\n})\n", "foo(a)\n}\n"),
        ("foo(a)\n  })\n", "foo(a)\n}\n"),
        ("Timeout = 300\n", "timeout  = 30\n"),
    ] {
        let why = explained(file, old, "-");
        assert!(!why.contains("differs"), "{old:?}: {why}");
    }
    // Blanks alone are in every text when blanks don't count.
    assert!(!explained("a\n", "\t\t", "-").contains("differs"));
    // Only what stands there once may have been made before.
    assert!(!explained("x = 1\nx = 1\n", "x = 2", "x = 1").contains("already"));
    assert!(explained("x = 1\r\ny\r\n", "x = 2", "x = 1\ny").contains("in line 1 already"));
}

#[test]
fn bytes_that_are_not_utf8_are_the_reason_where_they_stand() {
    for old in ["caf\u{fffd} one", "café one"] {
        let why = explained(b"x\ncaf\xe9 one\n", old, "tea");
        assert!(
            why.contains("not UTF-8") && why.contains("2\tcaf\u{fffd} one"),
            "{why}"
        );
        assert!(
            !why.contains("differs") && !why.contains("no line"),
            "{why}"
        );
    }
    let why = explained(
        "zwei tassen kaffee\n".to_owned() + &"-\n".repeat(20) + "\u{e9}",
        "zwei Tassen Tee",
        "x",
    );
    assert!(!why.contains("UTF-8"), "{why}");
}

#[test]
fn neighbours_decide_between_lines_that_are_alike() {
    let block = |name: &str| format!("fn {name}() {{\n    let result = compute();\n}}\n");
    let file: String = ["one", "two", "three"].map(block).concat();
    let why = explained(&file, "fn two() {\n    let result = compute()\n}\n", "x");
    assert!(
        why.contains("\n4\tfn two() {\n5\t    let result = compute();\n6\t}"),
        "{why}"
    );
}

#[test]
fn of_a_long_text_the_first_difference_is_shown() {
    let file = (1..=200)
        .map(|n| format!("line number {n} of the file\n"))
        .collect::<Vec<_>>()
        .concat();
    let old = file.replace("number 150 of", "numbre 150 of");
    let why = explained(&file, &old, "x");
    assert!(
        why.contains("\n149\tline number 149 of the file\n150\tline number 150"),
        "{why}"
    );
    assert!(why.lines().count() <= 2 + SHOWN, "{why}");
}

#[test]
fn the_work_is_bounded_and_the_last_line_of_many_is_found() {
    let mut file = (0..20_000)
        .map(|n| format!("2026-11-27 12:00:00 INFO request {n} was answered\n"))
        .collect::<Vec<_>>()
        .concat();
    let wanted = key(b"2026-11-27 12:00:00 INFO request 19998 was not answered");
    let found = candidates(file.as_bytes(), &wanted);
    assert_eq!(found.len(), COMPARED);
    assert!(found.iter().all(|Reverse(line)| line.key.len() <= KEY));
    assert!(found.iter().any(|Reverse(line)| line.number.0 == 19_999));
    file.push_str("the one that is looked for\n");
    let why = explained(&file, "the one that was looked for", "x");
    assert!(why.contains("20001\tthe one that is looked for"), "{why}");
    // One line of megabytes is compared by its beginning, and shown in part.
    let why = explained("x".repeat(1 << 20), &"x".repeat(60), "y");
    assert!(why.len() < 1000, "{}", why.len());
}

#[test]
fn secrets_and_marks_are_not_shown() {
    let key = crate::secrets::Secret::new("sandcaster-key-0123456789");
    let file = format!("\u{feff}{} {}\n", "x".repeat(285), key.expose());
    let why = not_found(
        file.as_bytes(),
        &"x".repeat(284).replace("xxxx", "xxx"),
        "y",
        &Redactor::new([&key]),
    );
    assert!(
        why.contains("1\txxx") && !why.contains("sandcaster-k") && !why.contains('\u{feff}'),
        "{why}"
    );
}
