//! `glob` and `grep`: scenarios 20 and 21.

use serde_json::json;

use crate::support::host_sandbox::{Shell, write_program};

use super::in_every_shell;

in_every_shell! {
    async fn globs_find_files_shallow_first(rig) {
        for path in ["z.py", "a/b.py", "a/c/d.py", ".hidden.py", "node_modules/x.py", ".git/y.py", "a/no.txt"] {
            rig.put(path, "");
        }
        let find = |args| rig.text("glob", args);
        assert_eq!(find(json!({"pattern": "*.py"})).await, "z.py\na/b.py\na/c/d.py");
        assert_eq!(find(json!({"pattern": "a/**/*.py"})).await, "a/b.py\na/c/d.py");
        assert_eq!(find(json!({"pattern": "*.py", "path": "a"})).await, "a/b.py\na/c/d.py");
        assert_eq!(find(json!({"pattern": ".*.py"})).await, ".hidden.py");
        assert_eq!(find(json!({"pattern": "node_modules/*.py"})).await, "node_modules/x.py");
        assert_eq!(find(json!({"pattern": "**/.git/*"})).await, ".git/y.py");
        let home = rig.home();
        assert_eq!(find(json!({"pattern": format!("{home}/a/*.py")})).await, format!("{home}/a/b.py"));
        let none = find(json!({"pattern": "*.rs"})).await;
        assert!(none.starts_with("(no matches among 5 files)") && none.contains("node_modules"), "{none}");
        let none = find(json!({"pattern": "nowhere/*.rs"})).await;
        assert!(none.contains("nowhere/ is no directory"), "{none}");
        let why = rig.complaint("glob", json!({"pattern": "*", "path": "nowhere"})).await;
        assert!(why.contains("no such file"), "{why}");
        let why = rig.complaint("glob", json!({"pattern": "[a"})).await;
        assert!(why.contains("[a"), "{why}");
    }

    async fn very_many_hits_give_200_and_the_total(rig) {
        for n in 0..1_200 {
            rig.put(&format!("d{}/{}{n}.txt", n % 10, "long".repeat(15)), "needle\n");
        }
        rig.put("top.txt", "needle\n");
        let text = rig.text("glob", json!({"pattern": "*.txt"})).await;
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 201);
        assert_eq!(lines[0], "top.txt");
        assert!(lines[200].starts_with("[200 of 1,201 files"), "{}", lines[200]);
        // The list of files is too long for one pipe's stdin and goes through a file.
        let text = rig.text("grep", json!({"pattern": "needle"})).await;
        assert!(text.starts_with("top.txt:1:needle\n"), "{}", &text[..100]);
        assert!(text.contains("All 1,201 matching lines by file"), "{text}");
        assert!(text.ends_with("[1,201 matching lines in 1,201 files; the first 100 are shown]"), "{text}");
        let text = rig.text("grep", json!({"pattern": "needle", "mode": "count"})).await;
        assert_eq!(text, "[1,201 matching lines in 1,201 files]");
    }

    async fn a_name_that_is_like_the_one_asked_for_is_told(rig) {
        rig.put("a.txt", "");
        rig.put("deep/er/a.txt", "");
        rig.put("deep/Report.md", "");
        for (pattern, near) in [
            ("A.TXT", " Similar names: a.txt."),
            ("deep/**/A.txt", ""),
            ("reports.md", " Similar names: deep/Report.md."),
            ("xyzzy", ""),
        ] {
            let text = rig.text("glob", json!({"pattern": pattern})).await;
            let told = text.split_once(')').unwrap().1.split(" [not looked").next();
            assert_eq!(told, Some(near), "{pattern}: {text}");
        }
    }

    async fn very_long_names_are_not_all_shown_and_that_is_told(rig) {
        for n in 0..150 {
            rig.put(&format!("{n:03}{}", "n".repeat(240)), "");
        }
        let text = rig.text("glob", json!({"pattern": "*"})).await;
        assert!(text.chars().count() < 20_100, "{}", text.len());
        assert!(text.ends_with("\n[81 of 150 files, shallow ones first; narrow the pattern or path]"), "{text}");
    }

    async fn short_lines_in_utf16_without_a_mark_are_told_as_such(rig) {
        let little = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        let big = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>();
        for lines in ["a\nb\n", "a\r\nb\r\n", "ab\nc", "a, \u{442}\n"] {
            for (file, order) in [(little(lines), "little"), (big(lines), "big")] {
                rig.put("w.txt", &file);
                let text = rig.text("file_read", json!({"path": "w.txt"})).await;
                let note = format!("\n[UTF-16 ({order}-endian) without a byte-order mark in the file; file_edit can't change it]");
                assert!(text.starts_with("1\ta") && text.contains(&note), "{lines:?}: {text}");
                let why = rig.complaint("grep", json!({"pattern": "a", "path": "w.txt"})).await;
                assert!(why.contains("UTF-16"), "{lines:?}, {order}: {why}");
                let change = json!({"path": "w.txt", "old_string": "a", "new_string": "c"});
                let why = rig.complaint("file_edit", change).await;
                assert!(why.contains("is in UTF-16"), "{why}");
                let text = rig.text("file_write", json!({"path": "w.txt", "content": "x"})).await;
                assert!(text.ends_with("; not kept: UTF-16"), "{lines:?}, {order}: {text}");
            }
        }
        rig.put("w.txt", [1, 0, 2, 0, 3, 0]);
        let text = rig.text("file_read", json!({"path": "w.txt"})).await;
        assert!(text.starts_with("w.txt: a binary file"), "{text}");
    }

    async fn patterns_mean_the_same_everywhere(rig) {
        rig.put("a.txt", "foo 42\nbar\nFoo-bar\n\ttab\nx.y\nfoobar\nüben\n");
        rig.put("it's \"b\".txt", "foo 7\n");
        rig.put("-e", "dash foo 9\n");
        rig.put("bin.dat", b"\0foo 1\n");
        rig.put(".hidden", "foo 5\n");
        rig.put("node_modules/m.txt", "foo 6\n");
        for (pattern, found) in [
            (r"foo \d+", "-e:1:dash foo 9\n.hidden:1:foo 5\na.txt:1:foo 42\nit's \"b\".txt:1:foo 7"),
            (r"^(?:foo|bar)$", "a.txt:2:bar"),
            (r"\bbar\b", "a.txt:2:bar\na.txt:3:Foo-bar"),
            (r"^\s+\w", "a.txt:4:\ttab"),
            ("x.y", "a.txt:5:x.y"),
            (r"x\.y", "a.txt:5:x.y"),
            (r"(?i)^foo-", "a.txt:3:Foo-bar"),
            ("-bar", "a.txt:3:Foo-bar"),
            ("üb", "a.txt:7:üben"),
        ] {
            let text = rig.text("grep", json!({"pattern": pattern})).await;
            // BusyBox looks into binary files, whose lines are left out; GNU doesn't.
            let shown = text.split("\n[matching lines that are not text").next();
            assert_eq!(shown, Some(found), "{pattern}");
        }
        let why = rig.complaint("grep", json!({"pattern": "foo(?=x)"})).await;
        assert!(why.contains("look-ahead"), "{why}");
        let why = rig.complaint("grep", json!({"pattern": "foo("})).await;
        assert!(why.contains("character 4") && why.contains(r"foo\("), "{why}");
        let none = rig.text("grep", json!({"pattern": "nothing like it"})).await;
        assert!(none.starts_with("(no matches in 5 files)"), "{none}");
    }

    async fn searches_can_be_narrowed_and_summed_up(rig) {
        rig.put("src/a.rs", "one\nfn two\nthree\nfn four\n");
        rig.put("src/b.py", "fn five\n");
        rig.put("src/deep/c.rs", "fn six\n");
        let find = |args| rig.text("grep", args);
        assert_eq!(
            find(json!({"pattern": "fn", "glob": "*.rs", "mode": "files"})).await,
            "src/a.rs:2\nsrc/deep/c.rs:1"
        );
        assert_eq!(find(json!({"pattern": "fn", "path": "src/deep"})).await, "src/deep/c.rs:1:fn six");
        assert_eq!(find(json!({"pattern": "five", "path": "src/b.py"})).await, "src/b.py:1:fn five");
        assert_eq!(
            find(json!({"pattern": "THREE", "ignore_case": true, "context": 1, "path": "src/a.rs"})).await,
            "src/a.rs-2-fn two\nsrc/a.rs:3:three\nsrc/a.rs-4-fn four"
        );
        assert_eq!(find(json!({"pattern": "six", "glob": "deep/*.rs"})).await, "src/deep/c.rs:1:fn six");
        rig.put("long.txt", format!("start {}\n", "x".repeat(5_000)));
        let text = find(json!({"pattern": "start"})).await;
        assert!(text.ends_with(" […]") && text.chars().count() < 320, "{text}");
        let why = rig.complaint("grep", json!({"pattern": "x", "path": "srx"})).await;
        assert!(why.contains("names there: src"), "{why}");
    }

    async fn text_of_any_language_is_found_as_the_pattern_means_it(rig) {
        rig.put("a.txt", "Müller\nМосква и мы\nx_1 = y\nfoo bar\nüfoo\n中文\nTODO one\nplain\n");
        // The same word with its accent as a character of its own.
        rig.put("nfd.txt", "Mu\u{308}ller\n");
        rig.put("latin1.txt", b"caf\xe9 \xabfoo\xbb\n");
        rig.put("dos.txt", "end;\r\n");
        for (pattern, found) in [
            ("^M.ller$", "a.txt:1:Müller"),
            (r"^M\p{L}ller", "a.txt:1:Müller"),
            ("Müller", "a.txt:1:Müller\nnfd.txt:1:Mu\u{308}ller"),
            ("Mu\u{308}ller", "a.txt:1:Müller\nnfd.txt:1:Mu\u{308}ller"),
            ("(?i)MÜLLER", "a.txt:1:Müller\nnfd.txt:1:Mu\u{308}ller"),
            (r"^\w+$", "a.txt:1:Müller\na.txt:5:üfoo\na.txt:6:中文\na.txt:8:plain\nnfd.txt:1:Mu\u{308}ller"),
            ("[а-я]+ и", "a.txt:2:Москва и мы"),
            ("[一-龥]", "a.txt:6:中文"),
            (r"\bмы\b", "a.txt:2:Москва и мы"),
            (r"\bfoo\b", "a.txt:4:foo bar\nlatin1.txt:1:caf\u{fffd} \u{fffd}foo\u{fffd}"),
            (r"x[\W_]1", "a.txt:3:x_1 = y"),
            (r"^[^\W\d]+\b.*=", ""),
            (r"^foo[\S ]+$", "a.txt:4:foo bar"),
            ("(?i)todo|fixme", "a.txt:7:TODO one"),
            (r"^pl[^\n]+$", "a.txt:8:plain"),
            (r"^[^\x00-\x7f]+$", "a.txt:6:中文"),
            ("end;$", "dos.txt:1:end;\\r"),
        ] {
            let text = rig.text("grep", json!({"pattern": pattern})).await;
            if found.is_empty() {
                assert!(text.starts_with("(no matches in 4 files)"), "{pattern}: {text}");
            } else {
                assert_eq!(text, found, "{pattern}");
            }
        }
    }

    async fn nothing_is_cut_before_it_is_counted(rig) {
        use sandcaster::sandbox::Sandbox as _;
        let mark = rig.sandbox.id().to_owned();
        for n in 0..6_000 {
            rig.put(&format!("{mark}{}/{n:05}.txt", "long".repeat(40)), "x\n");
        }
        rig.put(&format!("{mark}{}/z.txt", "long".repeat(40)), "needle\n");
        for n in 0..1_500 {
            rig.put(&format!("{}/{n:05}.log", "more".repeat(40)), format!("{}\n", "y".repeat(1_500)));
        }
        // A mebibyte of counts that are zero.
        let text = rig.text("grep", json!({"pattern": "needle", "mode": "files"})).await;
        assert!(text.ends_with("/z.txt:1"), "{text}");
        // More lines than are fetched.
        let text = rig.text("grep", json!({"pattern": "y"})).await;
        assert!(text.contains("All 1,500 matching lines by file"), "{text}");
        assert!(text.ends_with("[1,500 matching lines in 1,500 files; the first 100 are shown]"), "{text}");
        // Nothing of ours is left.
        let left = rig.bash(&format!("grep -lsF {mark} /tmp/.sandcaster/search-*; true")).await;
        assert!(!left.text.contains("search-"), "{}", left.text);
    }

    async fn what_could_not_be_searched_is_told(rig) {
        rig.put("a.txt", "needle\n");
        rig.put("wide.txt", "\u{feff}needle\n".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>());
        rig.put("big.txt", "\u{feff}needle\n".encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>());
        for (args, found) in [
            (json!({"pattern": "needle"}), "a.txt:1:needle"),
            (json!({"pattern": "n.edle"}), "a.txt:1:needle"),
            (json!({"pattern": "needle", "mode": "files"}), "a.txt:1"),
            (json!({"pattern": "e+dle", "mode": "count"}), "[1 matching line in 1 file]"),
            (json!({"pattern": "none"}), "(no matches in 1 file)"),
            (json!({"pattern": "none", "mode": "files"}), "(no matches in 1 file)"),
        ] {
            let text = rig.text("grep", args.clone()).await;
            assert!(text.starts_with(found), "{args}: {text}");
            assert!(text.ends_with("\n[not searched, for they are in UTF-16 or UTF-32 (see iconv): 2: big.txt, wide.txt]"), "{args}: {text}");
        }
        // What grep itself says of a pattern.
        let why = rig.complaint("grep", json!({"pattern": "ab{40000}|foo"})).await;
        assert!(why.contains("nothing was searched: grep: "), "{why}");
        for (tool, args) in [
            ("grep", json!({"pattern": "x".repeat(140_000)})),
            ("grep", json!({"pattern": "x", "path": "y".repeat(140_000)})),
            ("grep", json!({"pattern": "x", "glob": "y".repeat(140_000)})),
            ("glob", json!({"pattern": "y".repeat(140_000)})),
            ("glob", json!({"pattern": "*", "path": "y".repeat(140_000)})),
        ] {
            let is_path = args.get("path").is_some();
            let why = rig.complaint(tool, args).await;
            let words = if is_path { "no path can have more than 4,095" } else { "longer than 4000" };
            assert!(why.contains(words), "{why}");
        }
    }

    async fn a_glob_that_names_a_directory_is_told(rig) {
        rig.put("src/deep/a.rs", "needle\n");
        let text = rig.text("grep", json!({"pattern": "needle", "glob": "deep"})).await;
        assert_eq!(
            text,
            "(no matches): glob names files, and src/deep is a directory. Give it as path, or deep/** as glob"
        );
        let found = rig.text("grep", json!({"pattern": "needle", "glob": "deep/**"})).await;
        assert_eq!(found, "src/deep/a.rs:1:needle");
        assert_eq!(rig.text("grep", json!({"pattern": "needle", "path": "src/deep"})).await, "src/deep/a.rs:1:needle");
    }

    async fn files_in_utf32_are_told(rig) {
        let wide: Vec<u8> = "\u{feff}needle\n".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        rig.put("a.txt", &wide);
        let why = rig.complaint("grep", json!({"pattern": "needle", "path": "a.txt"})).await;
        assert!(why.contains("UTF-32"), "{why}");
        let text = rig.text("file_read", json!({"path": "a.txt"})).await;
        assert!(text.starts_with("a.txt: UTF-32 text, 32 bytes. Make a copy"), "{text}");
    }

    async fn marks_of_utf16_within_files_are_no_matches(rig) {
        rig.put("a.txt", "needle\n");
        rig.put("bin.dat", b"x\xfe\xff\xff\n");
        rig.put("second.dat", b"a\n\xff\xfeb\n");
        for pattern in ["needle", "ne+dle"] {
            for (mode, found) in [
                ("content", "a.txt:1:needle"),
                ("files", "a.txt:1"),
                ("count", "[1 matching line in 1 file]"),
            ] {
                let text = rig.text("grep", json!({"pattern": pattern, "mode": mode})).await;
                assert_eq!(text, found, "{pattern} {mode}");
            }
        }
        // What the pattern itself finds there is no text.
        let text = rig.text("grep", json!({"pattern": "x", "path": "bin.dat"})).await;
        assert_eq!(text, "bin.dat:1:x\u{fffd}\u{fffd}\u{fffd}");
        rig.put("nul.dat", b"x\0\0\n");
        let text = rig.text("grep", json!({"pattern": "x", "path": "nul.dat"})).await;
        assert!(!text.contains("no matches in 1 file"), "{text}");
    }

    async fn large_repetitions_find_their_lines(rig) {
        rig.put("a.txt", "mail joe.doe@mail.example.org\nabcde123zz\nfunction some_name()\nax\nöäü@\n");
        for (pattern, found) in [
            (r"[\w.-]{1,64}@[\w-]{1,63}(\.[\w-]{1,63}){1,5}", "a.txt:1:mail joe.doe@mail.example.org\n[letters beyond ASCII"),
            (r"\w{1,200}x$", "a.txt:4:ax"),
            (r"\w{1,64}@", "a.txt:1:mail joe.doe@mail.example.org\na.txt:5:öäü@"),
            (r"\w{5,60}\d{3}zz", "a.txt:2:abcde123zz"),
            (r"\bfunction \w{3,30}\b", "a.txt:3:function some_name()\n[letters beyond ASCII"),
        ] {
            let text = rig.text("grep", json!({"pattern": pattern})).await;
            assert!(text.starts_with(found), "{pattern}: {text}");
            assert_eq!(text.contains("beyond ASCII"), found.contains("beyond ASCII"), "{text}");
        }
        let why = rig.complaint("grep", json!({"pattern": "xa{1,30000}y"})).await;
        assert!(why.contains("smaller counts"), "{why}");
    }

    async fn a_text_that_is_taken_for_a_pattern_is_told(rig) {
        rig.put("a.txt", "- [ ] todo\n$HOME\narr[0]\nf(x)\nF(X)\n");
        for (pattern, escaped) in [
            ("- [ ] todo", r"\- \[ \] todo"),
            ("$HOME", r"\$HOME"),
            ("arr[0]", r"arr\[0\]"),
            ("f(x)", r"f\(x\)"),
        ] {
            for mode in ["content", "files", "count"] {
                let text = rig.text("grep", json!({"pattern": pattern, "mode": mode})).await;
                let words = format!("[as plain text the pattern stands in 1 line; to find these, escape it: {escaped}]");
                assert!(text.starts_with("(no matches in 1 file)") && text.contains(&words), "{text}");
            }
            let text = rig.text("grep", json!({"pattern": escaped})).await;
            assert!(text.ends_with(pattern), "{text}");
        }
        let text = rig.text("grep", json!({"pattern": "f(x)", "ignore_case": true})).await;
        assert!(text.contains("stands in 2 lines"), "{text}");
        let text = rig.text("grep", json!({"pattern": "g(x)"})).await;
        assert!(!text.contains("plain text"), "{text}");
    }

    async fn a_named_file_that_cannot_be_searched_is_a_complaint(rig) {
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        rig.put("a.txt", "needle\n");
        rig.put("marked.txt", wide("\u{feff}needle\n"));
        rig.put("little.txt", wide("needle\nneedle\n"));
        rig.put("big.txt", "needle\n".encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>());
        for name in ["marked.txt", "little.txt", "big.txt"] {
            for pattern in ["needle", "n.e"] {
                let why = rig.complaint("grep", json!({"pattern": pattern, "path": name})).await;
                assert!(why.contains("can't be searched") && why.contains("UTF-16"), "{why}");
            }
        }
        let text = rig.text("grep", json!({"pattern": "none"})).await;
        assert_eq!(
            text.split_once('\n').map(|(_, notes)| notes),
            Some("[not searched, for they are in UTF-16 or UTF-32 (see iconv): 3: big.txt, little.txt, marked.txt]")
        );
        assert!(text.starts_with("(no matches in 1 file)"), "{text}");
        rig.put("g/src/a.rs", "needle\n");
        let text = rig.text("grep", json!({"pattern": "needle", "path": "g/src/a.rs/"})).await;
        assert_eq!(text, "g/src/a.rs:1:needle");
    }

    async fn searches_stay_where_they_are_asked_for(rig) {
        rig.put("src/b.txt", "needle\n");
        rig.put("src/.env", "needle\n");
        rig.put("src2/a.rs", "needle\n");
        let none = rig.text("glob", json!({"pattern": "src2/*.rs", "path": "src"})).await;
        assert!(none.starts_with("(no matches): src2/ is no directory"), "{none}");
        let text = rig.text("glob", json!({"pattern": "../src/*", "path": "src2"})).await;
        assert_eq!(text, "src2/../src/b.txt");
        rig.put("odd\nname.txt", "needle\n");
        let why = rig.complaint("grep", json!({"pattern": "needle", "path": "odd\nname.txt"})).await;
        assert!(why.contains("line end in its name"), "{why}");
        let deep = ["d".repeat(150), "e".repeat(150), "f.txt".to_owned()].join("/");
        rig.put(&deep, "a needle in it\n");
        let text = rig.text("grep", json!({"pattern": "a needle"})).await;
        assert_eq!(text.lines().next(), Some(format!("{deep}:1:a needle in it").as_str()));
    }

    async fn half_of_a_secret_is_never_shown(rig) {
        let mut rig = rig;
        let key = "sandcaster-key-of-some-length-0123456789";
        rig.context.redactor = sandcaster::secrets::Redactor::new([&sandcaster::secrets::Secret::new(key)]);
        for at in [270, 290, 1_250, 1_290] {
            rig.put("a.txt", format!("needle {}{key} end\n", "x".repeat(at)));
            let text = rig.text("grep", json!({"pattern": "needle"})).await;
            assert!(!text.contains("sandc"), "{at}: {text}");
        }
        // The last line that is fetched is cut within a key.
        for over in [8, 20, 30] {
            let line = format!("needle {}\n", "x".repeat(993));
            let last = format!("needle {key} end\n");
            // `./a.txt:1000:` and the like stand before each.
            let (mut text, mut printed) = (String::new(), 0);
            for number in 1.. {
                let before = format!("./a.txt:{number}:").len();
                let left = (1024 * 1024_usize).saturating_sub(printed + before);
                if left < line.len() + 100 {
                    // The last but one leaves just so much of the key.
                    let short = left - before - "needle ".len() - over - "needle \n".len();
                    text.extend(["needle ", &"x".repeat(short), "\n"]);
                    text += &last.repeat(2);
                    break;
                }
                text.push_str(&line);
                printed += before + line.len();
            }
            rig.put("a.txt", text);
            let text = rig.text("grep", json!({"pattern": "needle"})).await;
            assert!(!text.contains("sandc") && text.contains("by file"), "{over}: {text}");
        }
        // So many that what is left of the line is short.
        rig.put("a.txt", format!("needle {}\n", format!("{key} ").repeat(100)));
        let text = rig.text("grep", json!({"pattern": "needle"})).await;
        assert!(!text.contains("sandc") && text.contains("[redacted]"), "{text}");
    }

    async fn odd_names_are_found_by_what_they_are(rig) {
        rig.put("pages/[id]/view.tsx", "x\n");
        rig.put("cost $5/- [ ] todo.md", "x\n");
        rig.put("a:1:b.txt", "x\n");
        rig.put("c-2-d.txt", "x\ny\n");
        rig.put("cafe\u{301}/menu.txt", "x\n");
        rig.put(".tool/options.json", "x\n");
        std::fs::create_dir_all(rig.sandbox.home().join("src/empty")).unwrap();
        rig.put("src/a.rs", "x\n");
        std::os::unix::fs::symlink("src/a.rs", rig.sandbox.home().join("link.rs")).unwrap();
        std::os::unix::fs::symlink("..", rig.sandbox.home().join("src/up")).unwrap();
        std::os::unix::fs::symlink("nowhere", rig.sandbox.home().join("dangling.rs")).unwrap();
        let find = |args| rig.text("glob", args);
        for (args, found) in [
            (json!({"pattern": "pages/[id]/view.tsx"}), "pages/[id]/view.tsx"),
            (json!({"pattern": "pages/[id]/*"}), "pages/[id]/view.tsx"),
            (json!({"pattern": "- [ ] todo.md"}), "cost $5/- [ ] todo.md"),
            (json!({"pattern": "cost $5/*"}), "cost $5/- [ ] todo.md"),
            (json!({"pattern": "*.rs"}), "link.rs\nsrc/a.rs"),
            (json!({"pattern": "/src/*.rs"}), "src/a.rs"),
            (json!({"pattern": "src/*.rs", "path": "src"}), "src/a.rs"),
            (json!({"pattern": "*.rs,*.tsx"}), "link.rs\nsrc/a.rs\npages/[id]/view.tsx"),
            (json!({"pattern": "**/options.json"}), ".tool/options.json\n[only names with a part that begins with a dot match]"),
            (json!({"pattern": "**/cafe\u{301}/*"}), "cafe\u{301}/menu.txt"),
            (json!({"pattern": "**/caf\u{e9}/*"}), "cafe\u{301}/menu.txt"),
        ] {
            assert_eq!(find(args.clone()).await, found, "{args}");
        }
        let home = rig.home();
        assert_eq!(find(json!({"pattern": "caf\u{e9}/*"})).await, format!("{home}/cafe\u{301}/menu.txt"));
        for dir in ["src", "src/empty", "*/empty", "[id]"] {
            let text = find(json!({"pattern": dir})).await;
            let expected = if dir == "*/empty" { "(no matches among 8 files)" } else { "is a directory" };
            assert!(text.contains(expected), "{dir}: {text}");
        }
        let find = |args| rig.text("grep", args);
        for (args, found) in [
            (json!({"pattern": "x", "glob": "pages/[id]/*"}), "pages/[id]/view.tsx:1:x"),
            (json!({"pattern": "x", "glob": "/src/*.rs"}), "src/a.rs:1:x"),
            (json!({"pattern": "x", "path": "src", "glob": "src/*.rs"}), "src/a.rs:1:x"),
            (json!({"pattern": "x", "path": "src", "glob": format!("{home}/src/*.rs")}), "src/a.rs:1:x"),
            (json!({"pattern": "x", "glob": "*.rs"}), "link.rs:1:x\nsrc/a.rs:1:x"),
            (json!({"pattern": "x", "glob": "!*.{rs,md,json,txt}"}), "pages/[id]/view.tsx:1:x"),
            (json!({"pattern": "x", "glob": "*.tsx, *.md"}), "cost $5/- [ ] todo.md:1:x\npages/[id]/view.tsx:1:x"),
            (json!({"pattern": "x", "glob": "a:*"}), "a:1:b.txt:1:x"),
            (json!({"pattern": "y", "context": 1, "glob": "c-2*"}), "c-2-d.txt-1-x\nc-2-d.txt:2:y"),
            (json!({"pattern": "x", "path": "cost $5"}), "cost $5/- [ ] todo.md:1:x"),
            (json!({"pattern": "x", "path": "cost $5/- [ ] todo.md"}), "cost $5/- [ ] todo.md:1:x"),
        ] {
            assert_eq!(find(args.clone()).await, found, "{args}");
        }
        let text = find(json!({"pattern": "x", "path": "caf\u{e9}"})).await;
        assert_eq!(text, format!("{home}/cafe\u{301}/menu.txt:1:x"));
        let none = find(json!({"pattern": "x", "glob": "*.zig"})).await;
        assert!(none.starts_with("(no matches: of 8 files none has a name like *.zig)"), "{none}");
    }
}

/// `BusyBox` takes a line that it has no memory for as the end of its file, and says nothing.
#[tokio::test]
#[cfg_attr(not(program = "dash"), ignore = "needs dash")]
async fn a_file_with_a_line_that_no_memory_holds_hides_no_other() {
    let rig = super::Rig::new(Shell::Dash);
    rig.put("a.txt", "needle\n");
    let huge = std::fs::File::create(rig.sandbox.home().join("huge.bin")).unwrap();
    // Nothing but a hole, which is one line.
    huge.set_len(700 << 20).unwrap();
    let told =
        "[not all was searched: a program needed more memory than a search may use (512 MiB)";
    let text = rig.text("grep", json!({"pattern": "needle"})).await;
    assert!(
        text.starts_with("a.txt:1:needle\n") && text.contains(told),
        "{text}"
    );
    assert!(!text.contains("pattern"), "{text}");
    let why = rig
        .complaint("grep", json!({"pattern": "needle", "path": "huge.bin"}))
        .await;
    assert!(
        why.contains("can't be searched") && why.contains(told),
        "{why}"
    );
}

#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn that_not_all_names_were_looked_at_is_told_whatever_was_found() {
    let rig = super::Rig::new(Shell::Bash);
    // More names than a listing takes, and a directory that can't be entered.
    let find = "echo \"find: './closed': Permission denied\" >&2\n\
        yes ./d/0123456789012345678901234567890123456789012345678901234567890123456789.txt | head -c 9000000 | tr '\\n' '\\0'";
    write_program(
        &rig.sandbox.bin().join("find"),
        &format!("#!/bin/sh\n{find}\n"),
    );
    for glob in ["*.zig", "d"] {
        let text = rig
            .text("grep", json!({"pattern": "x", "glob": glob}))
            .await;
        assert!(text.starts_with("(no matches"), "{text}");
        let notes =
            "\n[too many files to look at all of them: give a narrower path]\n[not looked into: ";
        assert!(text.contains(notes), "{glob}: {text}");
    }
}

#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn a_program_that_fails_at_the_end_of_a_search_is_not_taken_for_no_matches() {
    let rig = super::Rig::new(Shell::Bash);
    rig.put("a.txt", "needle\n");
    let fails = "case \"$*\" in '-c 1048576') cat >/dev/null; exit 3;; esac";
    write_program(
        &rig.sandbox.bin().join("head"),
        &format!("#!/bin/sh\n{fails}\nexec /usr/bin/head \"$@\"\n"),
    );
    let why = rig.complaint("grep", json!({"pattern": "needle"})).await;
    assert!(why.contains("failed with exit code 3"), "{why}");
}

#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn a_search_whose_programs_are_killed_does_not_say_that_there_is_nothing() {
    for (program, lists) in [
        ("xargs", false),
        ("cut", false),
        ("grep", false),
        ("find", true),
        ("head", true),
    ] {
        for mode in ["content", "files", "count"] {
            let rig = super::Rig::new(Shell::Bash);
            rig.put("a.txt", "needle\n");
            let path = rig.sandbox.bin().join(program);
            write_program(&path, "#!/bin/sh\nkill -9 $$\n");
            let args = json!({"pattern": "needle", "mode": mode});
            if program == "cut" && mode != "content" {
                let found = rig.text("grep", args).await;
                assert!(
                    found.contains("1 file") || found.contains("a.txt"),
                    "{mode}: {found}"
                );
                continue;
            }
            let why = rig.complaint("grep", args).await;
            assert!(!why.contains("no matches"), "{program} {mode}: {why}");
            assert!(!why.contains("MiB"), "{program} {mode}: {why}");
            if lists {
                rig.complaint("glob", json!({"pattern": "a*"})).await;
            }
        }
    }
}

/// Only another user than root can be refused anything.
#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn files_and_directories_that_are_closed_are_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let rig = super::Rig::new(Shell::Bash);
    rig.put("a.txt", "needle\n");
    rig.put("closed.txt", "needle\n");
    rig.put("closed/b.txt", "needle\n");
    let set = |name: &str, mode| {
        let path = rig.sandbox.home().join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set("closed.txt", 0);
    set("closed", 0);
    // Root is refused nothing: then the programs say what they would say to another.
    if nix::unistd::geteuid().is_root() {
        let bin = rig.sandbox.bin();
        let says = "case \"$*\" in *closed.txt*) echo 'grep: ./closed.txt: Permission denied' >&2\n\
             case \"$*\" in *./a.txt*) ;; *) exit 2 ;; esac ;; esac";
        write_program(
            &bin.join("grep"),
            &format!("#!/bin/sh\n{says}\nexec /usr/bin/grep \"$@\"\n"),
        );
        let says = "echo \"find: './closed': Permission denied\" >&2";
        write_program(
            &bin.join("find"),
            &format!("#!/bin/sh\n{says}\nexec /usr/bin/find \"$@\"\n"),
        );
    }
    let text = rig
        .text("grep", json!({"pattern": "needle", "path": "."}))
        .await;
    assert!(text.starts_with("a.txt:1:needle"), "{text}");
    assert!(
        text.contains("[not searched: 1: grep: ./closed.txt: Permission denied]"),
        "{text}"
    );
    assert!(
        text.contains("[not looked into: 1: find: './closed': Permission denied]"),
        "{text}"
    );
    let why = rig
        .complaint("grep", json!({"pattern": "needle", "path": "closed.txt"}))
        .await;
    assert!(
        why.contains("can't be searched") && why.contains("Permission denied"),
        "{why}"
    );
    let text = rig.text("grep", json!({"pattern": "none"})).await;
    // Root looks into the closed directory all the same.
    let searched = if nix::unistd::geteuid().is_root() {
        "2 files"
    } else {
        "1 file"
    };
    assert!(
        text.starts_with(&format!("(no matches in {searched})")),
        "{text}"
    );
    let text = rig.text("glob", json!({"pattern": "*.zig"})).await;
    assert!(
        text.contains("[not looked into: 1: find: './closed'"),
        "{text}"
    );
    set("closed", 0o755);
}

#[tokio::test]
#[cfg_attr(not(program = "dash"), ignore = "needs dash")]
async fn a_sandbox_without_a_program_that_is_needed_says_so() {
    let rig = super::Rig::new(Shell::Dash);
    rig.put("a.txt", "needle\n");
    let bin = rig.sandbox.bin();
    for (missing, tool, args) in [
        ("xargs", "grep", json!({"pattern": "needle"})),
        ("find", "glob", json!({"pattern": "*"})),
        ("cut", "grep", json!({"pattern": "needle"})),
    ] {
        std::fs::rename(bin.join(missing), bin.join("hidden")).unwrap();
        let why = rig.complaint(tool, args).await;
        std::fs::rename(bin.join("hidden"), bin.join(missing)).unwrap();
        assert!(why.contains(&format!("no `{missing}`")), "{why}");
    }
}
