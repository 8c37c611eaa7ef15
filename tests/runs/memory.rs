//! What is stored may be large: what a request takes of memory is not.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandcaster::events::{RunEvent, StoredEvent, SystemEvent};
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::{
    FileRecord, Role, RunFacts, RunLease, RunStore, SqliteStore, StoreOptions, StoredFile,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::served::Served;

async fn run(store: &SqliteStore, prompt: &str) -> RunLease {
    let facts = RunFacts {
        id: RunId::new(),
        prompt: prompt.to_owned(),
        model: "demo".to_owned(),
        provider: "demo".to_owned(),
        sandbox_provider: "local".to_owned(),
        background: false,
        started_at: jiff::Timestamp::from_second(1_800_000_000).unwrap(),
    };
    let first = RunEvent::System(SystemEvent::new("init", "Agent started"));
    let first = StoredEvent::new(Seq(1), &first).unwrap();
    store.create(facts, first).await.unwrap()
}

fn store(dir: &Path) -> Arc<SqliteStore> {
    SqliteStore::open(StoreOptions::new(dir.join(".sandcaster"), Role::Serve)).unwrap()
}

#[tokio::test]
async fn a_list_of_two_hundred_runs_with_large_prompts_takes_no_memory_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let kept = store(dir.path());
    let prompt = "p".repeat(1_000_000);
    for _ in 0..200 {
        run(&kept, &prompt).await;
    }
    kept.close().await;
    let server = Served::start(dir.path(), &[]).await;
    // The crashed runs are ended, and the code paths are warm.
    assert_eq!(
        server.json("/runs?limit=1").await.as_array().unwrap().len(),
        1
    );
    server.forget_peak();
    let before = server.rss_kib();
    for _ in 0..4 {
        let list = server.json("/runs?limit=200").await;
        assert_eq!(list.as_array().unwrap().len(), 200);
    }
    let grown = server.peak_kib().saturating_sub(before);
    assert!(grown < 5 * 1024, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_stalled_downloads_of_a_large_file_take_little_memory() {
    const SIZE: usize = 25 << 20;
    let dir = tempfile::tempdir().unwrap();
    let kept = store(dir.path());
    let lease = run(&kept, "hi").await;
    let record = FileRecord {
        path: "big".to_owned(),
        mime_type: "application/octet-stream".to_owned(),
        size: SIZE as u64,
        sha256: "c0ffee".to_owned(),
    };
    let bytes: Vec<u8> = (0..=250).cycle().take(SIZE).collect();
    let file = StoredFile {
        record,
        bytes: Bytes::from(bytes.clone()),
    };
    kept.put_file(&lease, file).await.unwrap();
    kept.close().await;
    let server = Served::start(dir.path(), &[]).await;
    let path = format!("/runs/{}/files/big", lease.run);
    let whole = server.get(&path).await.bytes().await.unwrap();
    assert!(whole == bytes);
    let before = server.rss_kib();
    let mut stalled = Vec::new();
    for _ in 0..40 {
        let mut client = TcpStream::connect(server.address()).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        client.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stalled.push(client);
    }
    // The sockets fill up meanwhile.
    let mut grown = 0;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        grown = grown.max(server.rss_kib().saturating_sub(before));
    }
    assert!(grown < 10 * 1024, "{grown} KiB");
    // Everyone else is answered, and a part is a part.
    let part = server.get_range(&path, "bytes=70000-70003").await;
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await.unwrap(), &bytes[70_000..70_004]);
    // Who stalled goes on where it was.
    let mut last = stalled.pop().unwrap();
    let mut rest = Vec::new();
    let reading = async {
        let head = |rest: &[u8]| rest.windows(4).position(|end| end == b"\r\n\r\n");
        let mut body_at = None;
        while body_at.is_none_or(|at| rest.len() < at + SIZE) {
            assert!(last.read_buf(&mut rest).await.unwrap() > 0);
            body_at = body_at.or_else(|| head(&rest).map(|at| at + 4));
        }
    };
    tokio::time::timeout(Duration::from_mins(1), reading)
        .await
        .unwrap();
    assert!(rest.ends_with(&bytes));
}
