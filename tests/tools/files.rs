//! `file_read` and `file_write`: scenarios 14, 15 and 19.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;

use sandcaster::chat::{Image, ImageType};
use sandcaster::tools::Failure;
use serde_json::json;

use super::failing::Limited;
use super::in_every_shell;

/// A PNG of these sides, whole: nothing but its picture is wrong.
fn png(width: u32, height: u32) -> Vec<u8> {
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 6, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, content) in [(b"IHDR", &header[..]), (b"IDAT", b"data"), (b"IEND", b"")] {
        let chunk = [name, content].concat();
        bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
        bytes.extend(&chunk);
        bytes.extend(crc32fast::hash(&chunk).to_be_bytes());
    }
    bytes
}

in_every_shell! {
    async fn a_name_with_a_slash_at_its_end_is_no_file(rig) {
        for name in ["new/", "new//", "new/deep/"] {
            let why = rig.complaint("file_write", json!({"path": name, "content": "x"})).await;
            assert!(why.starts_with(name) && why.contains("a directory's"), "{why}");
        }
        assert!(!rig.sandbox.home().join("new").exists());
    }

    async fn lines_are_numbered_and_long_files_are_paged(rig) {
        let text = (1..=10_000).map(|n| format!("l{n}\n")).collect::<Vec<_>>().concat();
        rig.put("big.txt", &text);
        let page = rig.text("file_read", json!({"path": "big.txt"})).await;
        assert!(page.starts_with("1\tl1\n2\tl2\n"));
        assert!(page.ends_with("2000\tl2000\n[lines 1–2,000 of 10,000; go on with offset=2001]"), "{}", &page[page.len() - 80..]);
        let page = rig.text("file_read", json!({"path": "./big.txt", "offset": 9_999})).await;
        assert_eq!(page, "9999\tl9999\n10000\tl10000");
        let page = rig.text("file_read", json!({"path": "big.txt", "offset": -2, "limit": 1})).await;
        assert_eq!(page, "9999\tl9999\n[lines 9,999–9,999 of 10,000; go on with offset=10000]");
        let why = rig.complaint("file_read", json!({"path": "big.txt", "offset": 10_001})).await;
        assert!(why.contains("has 10,000 lines"), "{why}");
    }

    async fn what_is_no_text_file_is_told(rig) {
        rig.put("dir/b.txt", "12345");
        rig.put("dir/sub/x", "");
        rig.put("dir/line\nend", "1");
        rig.put("empty", "");
        rig.put("data.bin", [&b"\x7fELF"[..], &[0; 60]].concat());
        rig.put("big.bin", [b"\x7fELF".to_vec(), vec![0; 300_000]].concat());
        rig.bash("mkfifo fifo; ln -s nowhere dangling").await;
        assert_eq!(
            rig.text("file_read", json!({"path": "dir"})).await,
            "b.txt (5 bytes)\nline\\nend (1 byte)\nsub/"
        );
        assert_eq!(rig.text("file_read", json!({"path": "empty"})).await, "(empty file)");
        for (path, size) in [("data.bin", "64 bytes"), ("big.bin", "300.0 kB")] {
            let binary = rig.text("file_read", json!({"path": path})).await;
            let what = format!("{path}: a binary file (application/x-executable by its first bytes), {size}.");
            assert!(binary.starts_with(&what) && binary.contains("strings"), "{binary}");
        }
        for (path, what) in [
            ("fifo", "a pipe"),
            ("dangling", "nowhere, where nothing can be reached"),
            ("/dev/zero", "a device"),
        ] {
            let why = rig.complaint("file_read", json!({"path": path})).await;
            assert!(why.contains("no regular file") && why.contains(what), "{why}");
        }
        let cpus = rig.text("file_read", json!({"path": "/proc/self/status"})).await;
        assert!(cpus.starts_with("1\tName:"), "{cpus}");
        let why = rig.complaint("file_read", json!({"path": "dir/b.txd"})).await;
        assert!(why.contains("no such file") && why.contains("b.txt") && why.contains(&rig.home()), "{why}");
        let why = rig.complaint("file_read", json!({"path": "dri/sub/x"})).await;
        assert!(why.contains(" has no dri. Similar names there: dir/"), "{why}");
        let why = rig.complaint("file_read", json!({"path": "empty/x/y"})).await;
        assert!(why.contains("empty is no directory"), "{why}");
        let why = rig.complaint("file_read", json!({"path": "a\u{0}b"})).await;
        assert!(why.contains("NUL"), "{why}");
        let why = rig.complaint("file_read", json!({"path": "x".repeat(140_000)})).await;
        assert!(why.contains("bytes long") && why.len() < 200, "{why}");
        let why = rig.complaint("file_read", json!({"path": "y".repeat(300)})).await;
        assert!(why.contains("no such file"), "{why}");
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
        assert_eq!(page, "999\tline 999\n1000\tline 1000\n[lines 999–1,000 of 1,002; go on with offset=1001]");
        let page = rig.text("file_read", json!({"path": "long", "offset": -1})).await;
        assert!(page.starts_with("1002\tlast"), "{page}");
        let page = rig.text("file_read", json!({"path": "long", "offset": 1001})).await;
        let (line, command) = page.split_once(" more bytes in this line; see them with bash: ").unwrap();
        assert!(line.ends_with("[… more than 1,046,576"), "{line}");
        let command = command.split_once(']').unwrap().0;
        assert_eq!(rig.bash(command).await.text.matches('x').count(), 2_000, "{command}");
    }

    async fn files_of_any_size_are_read_alike(rig) {
        for lines in [3, 60_000] {
            let text = (1..=lines).map(|n| format!("\u{1b}[31m{n}\r\n")).collect::<Vec<_>>().concat();
            rig.put("odd", format!("\u{feff}{text}"));
            let notes = "[the file begins with a byte-order mark (BOM), which is not shown]\n\
                [lines end in CRLF in the file]\n[control characters and U+FEFF are shown as U+FFFD]";
            let page = rig.text("file_read", json!({"path": "odd", "offset": lines - 1})).await;
            let expected = format!("{}\t\u{fffd}[31m{}\n{lines}\t\u{fffd}[31m{lines}\n{notes}", lines - 1, lines - 1);
            assert_eq!(page, expected);
            let page = rig.text("file_read", json!({"path": "odd", "offset": -2})).await;
            assert_eq!(page, expected);
            let page = rig.text("file_read", json!({"path": "odd", "limit": 1})).await;
            assert!(page.starts_with("1\t\u{fffd}[31m1\n[lines 1–1 of "), "{page}");
            let why = rig.complaint("file_read", json!({"path": "odd", "offset": lines + 1})).await;
            assert!(why.contains("is past the end: odd has "), "{why}");
            let wide: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
            rig.put("wide", wide);
            let page = rig.text("file_read", json!({"path": "wide"})).await;
            let says = if lines == 3 { "[UTF-16 (little-endian) in the file" } else { "wide: UTF-16 text" };
            assert!(page.contains(says), "{page}");
        }
        rig.put("mark", "\u{feff}");
        let page = rig.text("file_read", json!({"path": "mark"})).await;
        assert!(page.starts_with("(empty file)") && page.contains("(BOM)"), "{page}");
    }

    async fn a_hint_for_the_shell_runs_nothing_that_a_name_says(rig) {
        let name = "my file; touch pwned; $(touch pwned) '`touch pwned`'.txt";
        rig.put(name, format!("{}\n", "é".repeat(3_000)));
        let page = rig.text("file_read", json!({"path": name})).await;
        let command = page.split_once("with bash: ").unwrap().1.trim_end_matches(']');
        let answer = rig.bash(command).await;
        assert_eq!(answer.exit_code, Some(0), "{}", answer.text);
        assert!(answer.text.contains(&"é".repeat(999)), "{}", answer.text);
        assert!(!rig.sandbox.home().join("pwned").exists());
    }

    async fn links_and_their_ends_are_listed_and_all_entries_counted(rig) {
        rig.put("d/sub/x", "");
        rig.put("d/a", "12");
        rig.put("d/.hidden", "");
        rig.bash("cd d; ln -s a to-a; ln -s sub to-sub; ln -s gone lost; ln -s loop loop; ln -s a -- '-n'").await;
        rig.bash("cd").await;
        let lost = "(a link to nothing that can be reached)";
        assert_eq!(
            rig.text("file_read", json!({"path": "d"})).await,
            format!("-n -> a\n.hidden (0 bytes)\na (2 bytes)\nloop -> loop {lost}\nlost -> gone {lost}\nsub/\nto-a -> a\nto-sub/ -> sub")
        );
        rig.bash("mkdir e many; cd many; i=0; while [ $i -lt 3000 ]; do : >$i-abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz; i=$((i+1)); done").await;
        rig.bash("cd").await;
        assert_eq!(rig.text("file_read", json!({"path": "e"})).await, "(empty directory)");
        let many = rig.text("file_read", json!({"path": "many"})).await;
        assert!(many.ends_with("\n[200 of 3,000 entries, not the first by name; use glob for the others]"), "{many}");
        assert_eq!(many.lines().count(), 201);
    }

    async fn a_reason_is_permission_only_if_it_is(rig) {
        rig.put("closed/in/x", "1");
        rig.put("secret", "1");
        let mut limited = rig;
        // Root is refused nothing.
        Limited::of(&mut limited).await;
        let home = limited.sandbox.home();
        let mode = |path: &str, mode| std::fs::set_permissions(home.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        mode("closed", 0o000);
        mode("secret", 0o000);
        for path in ["closed", "closed/in/x", "secret"] {
            let why = limited.complaint("file_read", json!({"path": path})).await;
            assert!(why.contains("permission denied"), "{path}: {why}");
        }
        mode("closed", 0o755);
        mode("closed/in", 0o755);
        mode("secret", 0o644);
        for path in ["closed", "closed/in/x", "secret"] {
            let text = limited.text("file_read", json!({"path": path})).await;
            assert!(!text.contains("denied"), "{path}: {text}");
        }
    }

    async fn images_come_as_images_whatever_their_name(rig) {
        rig.put("shot.txt", png(1200, 800));
        let answer = rig.answer("file_read", json!({"path": "shot.txt"})).await;
        assert_eq!(answer.text, "shot.txt, 1200×800, 61 bytes");
        let [Image { media_type: ImageType::Png, base64 }] = answer.images.as_slice() else {
            panic!("{answer:?}")
        };
        assert!(base64.starts_with("iVBORw0KGgo"));
        rig.put("wide.png", png(9000, 10));
        let why = rig.complaint("file_read", json!({"path": "wide.png"})).await;
        assert!(why.contains("9000×10") && why.contains("thumbnail"), "{why}");
        rig.put("zero.png", png(0, 10));
        let why = rig.complaint("file_read", json!({"path": "zero.png"})).await;
        assert!(why.contains("0×10"), "{why}");
        let whole = png(10, 10);
        for (bytes, damage) in [
            (&whole[..whole.len() - 1], "ends in the middle"),
            (&whole[..33], "ends in the middle"),
            (&[&whole[..33], &whole[whole.len() - 12..]].concat(), "has no image data"),
        ] {
            rig.put("damaged.png", bytes);
            let why = rig.complaint("file_read", json!({"path": "damaged.png"})).await;
            assert!(why.contains(damage), "{why}");
        }
        let mut large = png(10, 10);
        large.resize(3_700_000, 0);
        rig.put("large.png", large);
        let answer = rig.answer("file_read", json!({"path": "large.png"})).await;
        assert_eq!((answer.text.as_str(), answer.images.len()), ("large.png, 10×10, 3.7 MB", 1));
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

    async fn a_name_is_found_however_its_accents_are_typed(rig) {
        for (stored, asked) in [("cafe\u{301}.txt", "caf\u{e9}.txt"), ("th\u{e9}.txt", "the\u{301}.txt")] {
            rig.put(stored, "one\n");
            assert_eq!(rig.text("file_read", json!({"path": asked})).await, "1\tone");
            rig.text("file_edit", json!({"path": asked, "old_string": "one", "new_string": "two"})).await;
            assert_eq!(rig.get(stored), b"two\n");
            let told = rig.text("file_write", json!({"path": asked, "content": "three"})).await;
            assert!(told.starts_with("replaced "), "{told}");
            assert_eq!(rig.get(stored), b"three");
            assert!(!rig.sandbox.home().join(asked).exists());
        }
        // Some parts in one way, some in the other.
        rig.put("cafe\u{301}/th\u{e9}/x.txt", "one");
        let asked = "caf\u{e9}/the\u{301}";
        assert_eq!(rig.text("file_read", json!({"path": format!("{asked}/x.txt")})).await, "1\tone");
        let why = rig.complaint("grep", json!({"pattern": "one", "path": asked})).await;
        let given = why.rsplit_once(": give ").unwrap().1;
        let text = rig.text("grep", json!({"pattern": "one", "path": given})).await;
        assert!(text.ends_with("x.txt:1:one"), "{text}");
        rig.text("file_write", json!({"path": "neu\u{e9}", "content": "x"})).await;
        assert_eq!(rig.get("neu\u{e9}"), b"x");
    }

    async fn a_link_whose_name_is_no_text_is_not_said_to_lead_nowhere(rig) {
        use std::os::unix::ffi::OsStrExt as _;
        rig.put("d/f", "x");
        symlink("f", rig.sandbox.home().join("d").join(std::ffi::OsStr::from_bytes(b"l\xe9"))).unwrap();
        symlink("f", rig.sandbox.home().join("d/m")).unwrap();
        let entries = rig.text("file_read", json!({"path": "d"})).await;
        assert_eq!(entries, "f (1 byte)\nl\u{fffd} (a link; its name is not UTF-8)\nm -> f");
    }

    async fn what_was_and_what_is_have_one_unit(rig) {
        rig.put("big", vec![b'x'; 9_400_000]);
        let told = rig.text("file_write", json!({"path": "big", "content": "1\n2\n3\n"})).await;
        assert_eq!(told, "replaced big (was 9.4 MB, now 6 bytes)");
    }

    async fn a_text_that_begins_like_an_image_is_a_text(rig) {
        for text in ["GIF89a is a format", "GIF87a\n", "RIFF1234WEBP is one too"] {
            rig.put("note", text);
            let page = rig.text("file_read", json!({"path": "note"})).await;
            assert_eq!(page, format!("1\t{}", text.trim_end()));
        }
    }

    async fn nothing_is_written_through_a_link_to_a_pipe(rig) {
        rig.bash("mkfifo pipe; ln -s pipe link; ln -s new dangling").await;
        for name in ["pipe", "link"] {
            let why = rig.complaint("file_write", json!({"path": name, "content": "x"})).await;
            assert!(why.contains("is no regular file"), "{why}");
            let why = rig.complaint("file_read", json!({"path": name})).await;
            assert!(why.contains("is no regular file but a pipe"), "{why}");
        }
        let text = rig.text("file_write", json!({"path": "dangling", "content": "x"})).await;
        assert!(text.starts_with("created dangling -> "), "{text}");
        assert_eq!(rig.get("new"), b"x");
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
