//! Downloads of what a run returned.

use bytes::Bytes;
use sandcaster::ids::RunId;
use sandcaster::store::{FileRecord, RunStore as _, StoredFile};

use super::runs::{begin_leased, id};
use crate::support::http::{TestServer, keyless};

async fn with_file(path: &str, mime_type: &str, bytes: &'static [u8]) -> (TestServer, RunId) {
    let server = TestServer::start(keyless()).await;
    let lease = begin_leased(&server.store, 1, "hello", 0).await;
    let record = FileRecord {
        path: path.to_owned(),
        mime_type: mime_type.to_owned(),
        size: bytes.len() as u64,
        sha256: "c0ffee".to_owned(),
    };
    let bytes = Bytes::from_static(bytes);
    server
        .store
        .put_file(&lease, StoredFile { record, bytes })
        .await
        .unwrap();
    (server, lease.run)
}

#[tokio::test]
async fn a_file_is_served_byte_for_byte_and_never_shown() {
    static BYTES: &[u8] = b"\x00\xff\r\n<script>alert(1)</script>\x80";
    let (server, run) = with_file("out/r\u{e9}sum\u{e9} 1.html", "text/html", BYTES).await;
    let reply = server
        .get(&format!("/runs/{run}/files/out/r%C3%A9sum%C3%A9%201.html"))
        .send()
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.body, BYTES);
    assert_eq!(reply.header("content-type"), Some("text/html"));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.header("accept-ranges"), Some("bytes"));
    assert_eq!(reply.header("etag"), Some("\"c0ffee\""));
    assert_eq!(
        reply.header("content-disposition"),
        Some("attachment; filename=\"r_sum_ 1.html\"; filename*=UTF-8''r%C3%A9sum%C3%A9%201.html")
    );
    assert!(
        reply
            .header("content-security-policy")
            .unwrap()
            .ends_with("; sandbox")
    );
}

#[tokio::test]
async fn parts_of_a_file_can_be_asked_for() {
    let (server, run) = with_file("a.txt", "text/plain", b"0123456789").await;
    let get = || server.get(&format!("/runs/{run}/files/a.txt"));
    let part = get().header("Range", "bytes=2-4").send().await;
    assert_eq!((part.status, part.text()), (206, "234"));
    assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
    let tail = get().header("Range", "bytes=-3").send().await;
    assert_eq!((tail.status, tail.text()), (206, "789"));
    let beyond = get().header("Range", "bytes=10-").send().await;
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), Some("bytes */10"));
    beyond.code();
    let several = get().header("Range", "bytes=0-1,4-5").send().await;
    assert_eq!((several.status, several.text()), (200, "0123456789"));
    let changed = get()
        .header("Range", "bytes=2-4")
        .header("If-Range", "\"old\"")
        .send()
        .await;
    assert_eq!(changed.status, 200);
    let same = get()
        .header("If-None-Match", "\"x\", \"c0ffee\"")
        .send()
        .await;
    assert_eq!((same.status, same.text()), (304, ""));
}

#[tokio::test]
async fn only_files_of_the_run_are_found() {
    let (server, run) = with_file("a.txt", "text/plain", b"hi").await;
    let other = id(7);
    for path in [
        format!("/runs/{run}/files/b.txt"),
        format!("/runs/{run}/files/../a.txt"),
        format!("/runs/{run}/files/%2e%2e/a.txt"),
        format!("/runs/{run}/files/%2Fetc%2Fpasswd"),
        format!("/runs/{run}/files//etc/passwd"),
        format!("/runs/{run}/files/A.TXT"),
        format!("/runs/{other}/files/a.txt"),
        "/runs/nonsense/files/a.txt".to_owned(),
    ] {
        let reply = server.get(&path).send().await;
        assert_eq!(reply.status, 404, "{path}");
        let code = reply.code();
        assert!(code == "NOT_FOUND" || code == "RUN_NOT_FOUND", "{code}");
    }
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused() {
    let (server, run) = with_file("a.txt", "text/plain", b"hi").await;
    let reply = server
        .get(&format!("/runs/{run}/files/%ff%fe"))
        .send()
        .await;
    assert_eq!(reply.status, 400);
    assert_eq!(reply.code(), "VALIDATION_FAILED");
}
