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
        for (path, old, new, word) in [
            ("a.txt", "two", "2", "2 times, in lines 2, 3"),
            ("a.txt", "three", "3", "not found"),
            ("a.txt", "one", "one", "same"),
            ("a.txt", "", "x", "file_write"),
            ("b.bin", "a", "x", "binary"),
            ("c.txt", "a", "x", "UTF-16"),
            (".", "a", "x", "directory"),
            ("a.tx", "a", "x", "a.txt"),
        ] {
            let args = json!({"path": path, "old_string": old, "new_string": new});
            let why = rig.complaint("file_edit", args).await;
            assert!(why.contains(word), "{path} {old}: {why}");
        }
        assert_eq!(rig.get("a.txt"), b"one\ntwo\ntwo\n");
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
}
