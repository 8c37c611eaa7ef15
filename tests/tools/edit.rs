//! `file_edit`: scenarios 17 and 18.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::in_every_shell;

in_every_shell! {
    async fn an_edit_changes_only_what_it_names(rig) {
        let before = b"\xef\xbb\xbffirst\r\nsecond \xff\r\nthird\nlast".to_vec();
        rig.put("mixed.txt", &before);
        let path = rig.sandbox.home().join("mixed.txt");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let answer = rig
            .answer("file_edit", json!({"path": "mixed.txt", "old_string": "third", "new_string": "3rd"}))
            .await;
        assert!(answer.text.starts_with("edited mixed.txt: 1 replacement\n"), "{}", answer.text);
        assert!(answer.text.contains("3\t3rd"), "{}", answer.text);
        assert!(answer.diff.unwrap().contains("-third\n+3rd"));
        assert_eq!(rig.get("mixed.txt"), b"\xef\xbb\xbffirst\r\nsecond \xff\r\n3rd\nlast");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    async fn what_can_not_be_edited_is_told(rig) {
        rig.put("a.txt", "one\ntwo\ntwo\n");
        rig.put("b.bin", b"a\0b");
        rig.put("c.txt", b"\xff\xfea\0");
        rig.put("wide.txt", b"\xff\xfe\0\0a\0\0\0");
        rig.put("empty.txt", "");
        rig.put("latin.txt", b"caf\xe9 one\n");
        rig.put("table.tsv", "id\tname\n5\tBob\tx\n6\tCy\ty\n");
        rig.put("last.txt", "timeout = 300");
        for (path, old, new, word) in [
            ("a.txt", "two", "2", "2 times, in lines 2, 3"),
            ("a.txt", "three", "3", "not found"),
            ("a.txt", "one", "one", "same"),
            ("a.txt", "", "x", "file_write"),
            ("b.bin", "a", "x", "binary"),
            ("c.txt", "a", "x", "UTF-16"),
            ("wide.txt", "a", "x", "UTF-32"),
            ("empty.txt", "a", "x", "is empty; use file_write"),
            ("empty.txt", "", "x", "use file_write"),
            ("new.txt", "", "x", "use file_write to create it"),
            ("latin.txt", "caf\u{fffd} one", "x", "not UTF-8"),
            ("table.tsv", "7\tBob\tx", "7\tRob\tx", "not found"),
            ("last.txt", "timeout = 30\n", "timeout = 60\n", "not found"),
            (".", "a", "x", "directory"),
            ("a.tx", "a", "x", "a.txt"),
        ] {
            let args = json!({"path": path, "old_string": old, "new_string": new});
            let why = rig.complaint("file_edit", args).await;
            assert!(why.contains(word), "{path} {old}: {why}");
        }
        assert_eq!(rig.get("a.txt"), b"one\ntwo\ntwo\n");
        assert_eq!(rig.get("table.tsv"), b"id\tname\n5\tBob\tx\n6\tCy\ty\n");
        assert_eq!(rig.get("last.txt"), b"timeout = 300");
        let args = json!({"path": "a.txt", "old_string": "two", "new_string": "2", "replace_all": true});
        assert!(rig.text("file_edit", args).await.contains("2 replacements"));
        assert_eq!(rig.get("a.txt"), b"one\n2\n2\n");
    }

    async fn edits_of_one_file_at_once_are_all_applied(rig) {
        let text = (0..8).map(|n| format!("<{n}>\n")).collect::<Vec<_>>().concat();
        rig.put("f", &text);
        std::os::unix::fs::symlink("f", rig.sandbox.home().join("link")).unwrap();
        let edits = (0..8).map(|n| {
            let path = if n % 2 == 0 { "f" } else { "link" };
            rig.call("file_edit", json!({"path": path, "old_string": format!("<{n}>"), "new_string": format!("[{n}]")}))
        });
        futures::future::join_all(edits).await;
        let expected = (0..8).map(|n| format!("[{n}]\n")).collect::<Vec<_>>().concat();
        assert_eq!(String::from_utf8(rig.get("f")).unwrap(), expected);
    }

    async fn the_line_ends_of_the_place_are_kept_and_told(rig) {
        rig.put("m.txt", "a\r\nb\r\nc\nd\r\n");
        let args = json!({"path": "m.txt", "old_string": "a\nb", "new_string": "A\nB"});
        let answer = rig.answer("file_edit", args).await;
        assert_eq!(
            answer.text,
            "edited m.txt: 1 replacement (new_string got the CRLF line ends of the text that it replaces)\n\
             1\tA\n2\tB\n3\tc\n4\td"
        );
        assert_eq!(answer.diff.unwrap(), "@@ -1,4 +1,4 @@\n-a\n-b\n+A\n+B\n c\n d");
        assert_eq!(rig.get("m.txt"), b"A\r\nB\r\nc\nd\r\n");
    }

    async fn no_mark_is_shown_and_what_a_write_loses_is_told(rig) {
        rig.put("t.txt", "\u{feff}hello\r\n");
        let args = json!({"path": "t.txt", "old_string": "hello", "new_string": "hello2"});
        let answer = rig.answer("file_edit", args).await;
        assert_eq!(answer.text, "edited t.txt: 1 replacement\n1\thello2");
        assert_eq!(answer.diff.unwrap(), "@@ -1,1 +1,1 @@\n-hello\n+hello2");
        assert_eq!(rig.get("t.txt"), "\u{feff}hello2\r\n".as_bytes());
        for (before, content, lost) in [
            ("\u{feff}a\r\n".as_bytes(), "b\n", "; not kept: the byte order mark (BOM), CRLF line ends"),
            ("\u{feff}a\r\n".as_bytes(), "\u{feff}b\r\n", ""),
            ("\u{feff}a\r\n".as_bytes(), "b", "; not kept: the byte order mark (BOM)"),
            (b"a\r\nb\nc\xff", "b\n", "; not kept: CRLF line ends (1 of 3 lines had them)"),
            (b"a\r\nb\r\n", "a\r\nb\n", "; not kept: CRLF line ends (only some lines have them now)"),
            (b"\xff\xfea\0\n\0", "a\n", "; not kept: UTF-16 with its byte order mark (BOM)"),
            (b"\xff\xfe\0\0a\0\0\0", "a\n", "; not kept: UTF-32 with its byte order mark (BOM)"),
            (b"a\0b\0", "a\n", "; not kept: UTF-16"),
            (b"\0a\0b", "a\n", "; not kept: UTF-16"),
            // WebAssembly; an odd number of bytes.
            (b"\0asm\x01\0\0\0", "a\n", ""),
            (b"a\0b", "a\n", ""),
            (b"a\rb\n", "b\n", ""),
            (b"a\n", "b\r\n", ""),
            (b"", "b\n", ""),
        ] {
            rig.put("w.txt", before);
            let text = rig.text("file_write", json!({"path": "w.txt", "content": content})).await;
            let (_, told) = text.split_once(", now 1").or_else(|| text.split_once(", now 2")).unwrap();
            assert_eq!(told, format!("){lost}"), "{before:?} {text}");
            assert_eq!(rig.get("w.txt"), content.as_bytes());
        }
    }
}
