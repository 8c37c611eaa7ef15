//! Files into the sandbox and out again.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::time::Duration;

use bytes::Bytes;
use sandcaster::clock::Deadline;
use sandcaster::events::FileEncoding;
use sandcaster::paths::SandboxPath;
use sandcaster::sandbox::files::{
    Baseline, CollectLimits, CollectedFile, Collecting, Omitted, file_event, upload,
};
use sandcaster::spec::InputFile;

use super::{Rig, in_every_shell};
use crate::support::host_sandbox::{Shell, write_program};

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

fn input(path: &str, bytes: &'static [u8]) -> InputFile {
    InputFile {
        path: SandboxPath::parse(path).unwrap(),
        bytes: Bytes::from_static(bytes),
    }
}

async fn start(rig: &Rig, inputs: &[InputFile]) -> Baseline {
    upload(rig.sandbox.as_ref(), inputs).await.unwrap();
    Baseline::take(rig.sandbox.as_ref(), inputs, soon())
        .await
        .unwrap()
}

/// All that came out.
struct Collected {
    files: Vec<CollectedFile>,
    omitted: Vec<Omitted>,
}

async fn collect(
    rig: &Rig,
    before: &Baseline,
    limits: CollectLimits,
    deadline: Deadline,
) -> Collected {
    let sandbox = rig.sandbox.as_ref();
    let mut collecting = Collecting::begin(sandbox, before, limits, deadline).await;
    let mut files = Vec::new();
    while let Some(file) = collecting.next().await {
        files.push(file);
    }
    let omitted = collecting.omitted();
    Collected { files, omitted }
}

async fn end(rig: &Rig, before: &Baseline) -> Collected {
    collect(rig, before, CollectLimits::default(), soon()).await
}

fn paths(collected: &Collected) -> Vec<&str> {
    collected
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect()
}

fn reason<'c>(collected: &'c Collected, path: &str) -> &'c str {
    &collected
        .omitted
        .iter()
        .find(|omitted| omitted.path == path)
        .unwrap_or_else(|| panic!("{path}: {:?}", collected.omitted))
        .reason
}

in_every_shell! {
    async fn new_and_changed_files_come_back_exactly(rig) {
        rig.put("image/old.txt", "was in the image");
        rig.put("image/touched.txt", "12345");
        let inputs = [input("in/same.csv", b"a,b\n"), input("in/changed.csv", b"1,2\n"), input("in/rewritten.csv", b"x")];
        let before = start(&rig, &inputs).await;
        assert_eq!(rig.get("in/same.csv"), b"a,b\n");
        let binary: Vec<u8> = (0..=255).collect();
        rig.put("out.bin", &binary);
        rig.put("deep/er/report.md", "# é");
        rig.put("quote's \"name\" $x.txt", "q");
        rig.put("in/changed.csv", "2,1\n");
        // Written anew with the same bytes: no change.
        rig.put("in/rewritten.csv", "x");
        rig.put("image/touched.txt", "123456");
        let collected = end(&rig, &before).await;
        assert_eq!(
            paths(&collected),
            ["out.bin", "quote's \"name\" $x.txt", "image/touched.txt", "in/changed.csv", "deep/er/report.md"]
        );
        assert_eq!(collected.omitted, []);
        assert_eq!(collected.files[0].bytes, binary);
        let event = file_event(&collected.files[0], "/x".to_owned());
        assert_eq!((event.encoding, event.size), (FileEncoding::Base64, 256));
        assert_eq!(event.mime_type, "application/octet-stream");
        let event = file_event(&collected.files[4], "/x".to_owned());
        assert_eq!((event.content.as_deref(), event.encoding), (Some("# é"), FileEncoding::Utf8));
        assert_eq!(event.mime_type, "text/markdown");
    }

    async fn what_is_left_out_is_named(rig) {
        let before = start(&rig, &[]).await;
        for n in 0..11 {
            rig.put(&format!("f{n:02}.txt"), "x");
        }
        rig.put("line\nend", "x");
        rig.bash("mkfifo pipe; truncate -s 27262976 huge.bin").await;
        symlink("/etc/passwd", rig.sandbox.home().join("link")).unwrap();
        let odd = rig.sandbox.home().join(OsStr::from_bytes(b"latin-\xe4"));
        std::fs::write(odd, "x").unwrap();
        rig.put(".hidden/secret", "x");
        rig.put(".env", "x");
        rig.put("node_modules/m.js", "x");
        rig.put("sub/__pycache__/c.pyc", "x");
        let collected = end(&rig, &before).await;
        assert_eq!(collected.files.len(), 10);
        assert_eq!(paths(&collected)[9], "f09.txt");
        assert!(reason(&collected, "f10.txt").contains("at most 10 files"));
        assert!(reason(&collected, "pipe").contains("not a regular file"));
        assert!(reason(&collected, "link").contains("not a regular file"));
        assert!(reason(&collected, "line\\nend").contains("control characters"));
        assert!(reason(&collected, "latin-\u{fffd}").contains("UTF-8"));
        assert!(reason(&collected, "huge.bin").contains("at most 10 files"));
        assert_eq!(collected.omitted.len(), 6, "{:?}", collected.omitted);
    }

    async fn sizes_are_limited_one_by_one_and_together(rig) {
        let before = start(&rig, &[]).await;
        rig.put("a", vec![b'a'; 600]);
        rig.put("b", vec![b'b'; 1001]);
        rig.put("c", vec![b'c'; 500]);
        rig.put("d", vec![b'd'; 400]);
        let limits = CollectLimits { files: 10, file_bytes: 1000, total_bytes: 1000 };
        let collected = collect(&rig, &before, limits, soon()).await;
        assert_eq!(paths(&collected), ["a", "d"]);
        assert!(reason(&collected, "b").contains("at most 0 MiB"));
        assert!(reason(&collected, "c").contains("all files together"));
    }

    async fn very_many_omissions_are_counted(rig) {
        let before = start(&rig, &[]).await;
        for n in 0..300 {
            rig.put(&format!("d/{n}"), "x");
        }
        let collected = end(&rig, &before).await;
        assert_eq!((collected.files.len(), collected.omitted.len()), (10, 101));
        assert_eq!(collected.omitted[100].reason, "190 further files were left out");
    }

    async fn a_deadline_that_has_passed_still_names_what_is_missing(rig) {
        let before = start(&rig, &[]).await;
        rig.put("a", "x");
        let gone = Deadline::after(Duration::ZERO);
        let collected = collect(&rig, &before, CollectLimits::default(), gone).await;
        assert_eq!(collected.files, []);
        assert_eq!(collected.omitted.len(), 1);
        assert!(collected.omitted[0].reason.contains("could not be listed"));
    }
}

#[tokio::test]
#[cfg_attr(not(program = "dash"), ignore = "needs dash")]
async fn files_that_cannot_be_listed_are_no_empty_directory() {
    let rig = Rig::new(Shell::Dash);
    let bin = rig.sandbox.bin();
    rig.put("old", "x");
    for missing in ["find", "head", "xargs", "stat"] {
        let before = start(&rig, &[]).await;
        rig.put("made", "x");
        std::fs::rename(bin.join(missing), bin.join("hidden")).unwrap();
        let unlisted = end(&rig, &before).await;
        // Nor is all that was there before the run new.
        let unlooked = start(&rig, &[]).await;
        std::fs::rename(bin.join("hidden"), bin.join(missing)).unwrap();
        for collected in [unlisted, end(&rig, &unlooked).await] {
            assert_eq!(collected.files, []);
            let reason = reason(&collected, &rig.home()).to_owned();
            assert!(reason.ends_with(&format!("has no `{missing}`")), "{reason}");
        }
        assert_eq!(paths(&end(&rig, &before).await), ["made"]);
        std::fs::remove_file(rig.sandbox.home().join("made")).unwrap();
    }
    // One that is there, but knows nothing of this.
    let before = start(&rig, &[]).await;
    std::fs::rename(bin.join("stat"), bin.join("hidden")).unwrap();
    write_program(&bin.join("stat"), "#!/bin/sh\nexit 1\n");
    let collected = end(&rig, &before).await;
    assert!(reason(&collected, &rig.home()).contains("can't be used for it"));
}

#[tokio::test]
#[cfg_attr(not(program = "dash"), ignore = "needs dash")]
async fn a_program_that_is_killed_while_it_lists_has_not_listed_all() {
    let rig = Rig::new(Shell::Dash);
    let bin = rig.sandbox.bin();
    rig.put("old", "x");
    rig.put("other", "x");
    let before = start(&rig, &[]).await;
    rig.put("made", "x");
    for (name, prints) in [
        ("find", r"printf '.\000./made\000'"),
        ("stat", "echo '41ed|6|1|1.5|.'"),
    ] {
        std::fs::rename(bin.join(name), bin.join("hidden")).unwrap();
        write_program(
            &bin.join(name),
            &format!("#!/bin/sh\n{prints}\nkill -9 $$\n"),
        );
        let ended = end(&rig, &before).await;
        let unlooked = start(&rig, &[]).await;
        if name == "find" {
            let text = rig.text("glob", serde_json::json!({"pattern": "*"})).await;
            assert!(text.contains("files may be missing"), "{text}");
        }
        std::fs::rename(bin.join("hidden"), bin.join(name)).unwrap();
        for collected in [ended, end(&rig, &unlooked).await] {
            assert_eq!(collected.files, [], "{name}");
            assert!(reason(&collected, &rig.home()).contains("could not be listed"));
        }
    }
    assert_eq!(paths(&end(&rig, &before).await), ["made"]);
}

#[tokio::test]
#[cfg_attr(not(program = "bash"), ignore = "needs bash")]
async fn files_are_read_one_by_one() {
    let rig = Rig::new(Shell::Bash);
    let before = start(&rig, &[]).await;
    rig.put("a", "1");
    rig.put("b", "2");
    let sandbox = rig.sandbox.as_ref();
    let mut collecting =
        Collecting::begin(sandbox, &before, CollectLimits::default(), soon()).await;
    assert_eq!(collecting.next().await.unwrap().path, "a");
    // The second is read when it is asked for, and not before.
    rig.put("b", "two");
    assert_eq!(collecting.next().await.unwrap().bytes, "two");
    assert!(collecting.next().await.is_none());
}
