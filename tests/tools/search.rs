//! `glob` and `grep`: scenarios 20 and 21.

use serde_json::json;

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
        assert!(why.contains("src/"), "{why}");
    }
}
