//! `file_read` and `file_write`: scenarios 14, 15 and 19.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;

use sandcaster::chat::{Image, ImageType};
use sandcaster::tools::Failure;
use serde_json::json;

use super::in_every_shell;

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.extend([8, 6, 0, 0, 0]);
    bytes
}

in_every_shell! {
    async fn lines_are_numbered_and_long_files_are_paged(rig) {
        let text = (1..=10_000).map(|n| format!("l{n}\n")).collect::<Vec<_>>().concat();
        rig.put("big.txt", &text);
        let page = rig.text("file_read", json!({"path": "big.txt"})).await;
        assert!(page.starts_with("1\tl1\n2\tl2\n"));
        assert!(page.ends_with("2000\tl2000\n[lines 1–2,000 of 10,000; go on with offset=2001]"), "{}", &page[page.len() - 80..]);
        let page = rig.text("file_read", json!({"path": "./big.txt", "offset": 9_999})).await;
        assert_eq!(page, "9999\tl9999\n10000\tl10000");
        let page = rig.text("file_read", json!({"path": "big.txt", "offset": -2, "limit": 1})).await;
        assert_eq!(page, "9999\tl9999\n10000\tl10000");
        let why = rig.complaint("file_read", json!({"path": "big.txt", "offset": 10_001})).await;
        assert!(why.contains("has 10,000 lines"), "{why}");
    }

    async fn what_is_no_text_file_is_told(rig) {
        rig.put("dir/b.txt", "12345");
        rig.put("dir/sub/x", "");
        rig.put("dir/line\nend", "1");
        rig.put("empty", "");
        rig.put("data.bin", b"\x7fELF\0\0\x01");
        rig.bash("mkfifo fifo; ln -s nowhere dangling").await;
        assert_eq!(
            rig.text("file_read", json!({"path": "dir"})).await,
            "b.txt (5 bytes)\nline\\nend (1 byte)\nsub/"
        );
        assert_eq!(rig.text("file_read", json!({"path": "empty"})).await, "(empty file)");
        let binary = rig.text("file_read", json!({"path": "data.bin"})).await;
        assert!(binary.contains("ELF program") && binary.contains("strings"), "{binary}");
        for path in ["fifo", "dangling", "/dev/zero"] {
            let why = rig.complaint("file_read", json!({"path": path})).await;
            assert!(why.contains("no regular file"), "{why}");
        }
        let why = rig.complaint("file_read", json!({"path": "dir/b.txd"})).await;
        assert!(why.contains("no such file") && why.contains("b.txt") && why.contains(&rig.home()), "{why}");
        let why = rig.complaint("file_read", json!({"path": "a\u{0}b"})).await;
        assert!(why.contains("NUL"), "{why}");
    }

    async fn paths_follow_the_directory_the_home_and_links(rig) {
        rig.put("sub/a.txt", "in sub");
        rig.bash("cd sub").await;
        assert_eq!(rig.text("file_read", json!({"path": "a.txt"})).await, "1\tin sub");
        assert_eq!(rig.text("file_read", json!({"path": "~/sub/a.txt"})).await, "1\tin sub");
        symlink("a.txt", rig.sandbox.home().join("sub/link")).unwrap();
        let text = rig.text("file_read", json!({"path": "link"})).await;
        assert_eq!(text, format!("1\tin sub\n[a link to {}/sub/a.txt]", rig.home()));
        rig.text("file_write", json!({"path": "link", "content": "changed"})).await;
        assert_eq!(rig.get("sub/a.txt"), b"changed");
        assert!(rig.sandbox.home().join("sub/link").is_symlink());
        let odd = "it's \"odd\" $HOME `x`.txt";
        rig.text("file_write", json!({"path": odd, "content": "odd"})).await;
        assert_eq!(rig.text("file_read", json!({"path": odd})).await, "1\todd");
        rig.text("file_write", json!({"path": "-n", "content": "dash"})).await;
        assert_eq!(rig.text("file_read", json!({"path": "-n"})).await, "1\tdash");
    }

    async fn huge_files_are_read_in_part(rig) {
        let path = rig.sandbox.home().join("huge");
        let mut text = (1..=1000).map(|n| format!("line {n}\n")).collect::<Vec<_>>().concat();
        std::fs::write(&path, &text).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2 << 30).unwrap();
        let page = rig.text("file_read", json!({"path": "huge", "limit": 2})).await;
        assert_eq!(page, "1\tline 1\n2\tline 2\n[lines 1–2 of a file of 2.1 GB; go on with offset=3]");
        text.push_str(&"x".repeat(9 << 20));
        text.push_str("\nlast\n");
        rig.put("long", &text);
        let page = rig.text("file_read", json!({"path": "long", "offset": 999, "limit": 2})).await;
        assert!(page.starts_with("999\tline 999\n1000\tline 1000\n[lines 999–1000 of"), "{page}");
        let page = rig.text("file_read", json!({"path": "long", "offset": -1})).await;
        assert!(page.starts_with("1\tlast"), "{page}");
    }

    async fn images_come_as_images_whatever_their_name(rig) {
        rig.put("shot.txt", png(1200, 800));
        let answer = rig.answer("file_read", json!({"path": "shot.txt"})).await;
        assert_eq!(answer.text, "shot.txt, 1200×800, 29 bytes");
        let [Image { media_type: ImageType::Png, base64 }] = answer.images.as_slice() else {
            panic!("{answer:?}")
        };
        assert!(base64.starts_with("iVBORw0KGgo"));
        rig.put("wide.png", png(9000, 10));
        let why = rig.complaint("file_read", json!({"path": "wide.png"})).await;
        assert!(why.contains("9000×10") && why.contains("thumbnail"), "{why}");
        let mut heavy = png(10, 10);
        heavy.resize(3_800_000, 0);
        rig.put("heavy.png", heavy);
        let why = rig.complaint("file_read", json!({"path": "heavy.png"})).await;
        assert!(why.contains("at most 3.7 MB"), "{why}");
    }

    async fn writing_says_whether_it_created_or_replaced(rig) {
        let text = rig.text("file_write", json!({"path": "new/dir/a.py", "content": "a\nb\n"})).await;
        assert_eq!(text, "created new/dir/a.py (2 lines, 4 bytes)");
        assert_eq!(rig.get("new/dir/a.py"), b"a\nb\n");
        let path = rig.sandbox.home().join("new/dir/a.py");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        let text = rig.text("file_write", json!({"path": "new/dir/a.py", "content": "ü"})).await;
        assert_eq!(text, "replaced new/dir/a.py (was 2 lines, now 1)");
        assert_eq!(rig.get("new/dir/a.py"), "ü".as_bytes());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o750);
        let why = rig.complaint("file_write", json!({"path": "new", "content": ""})).await;
        assert!(why.contains("is a directory"), "{why}");
        let why = rig.complaint("file_write", json!({"path": "new/dir/a.py/b", "content": ""})).await;
        assert!(why.contains("not a directory"), "{why}");
        let why = rig.complaint("file_write", json!({"path": "x", "content": "y".repeat(200_001)})).await;
        assert!(why.contains("200,001 characters"), "{why}");
        let text = rig.text("file_write", json!({"path": "nothing", "content": ""})).await;
        assert_eq!(text, "created nothing (0 lines, 0 bytes)");
    }

    async fn a_cancelled_call_still_answers(rig) {
        rig.context.cancel.cancel();
        for (name, args) in [
            ("file_read", json!({"path": "a"})),
            ("file_write", json!({"path": "a", "content": "x"})),
            ("file_edit", json!({"path": "a", "old_string": "x", "new_string": "y"})),
            ("glob", json!({"pattern": "*"})),
            ("grep", json!({"pattern": "x"})),
        ] {
            assert_eq!(rig.call(name, args).await, Err(Failure::Cancelled), "{name}");
        }
        assert!(!rig.sandbox.home().join("a").exists());
    }
}
