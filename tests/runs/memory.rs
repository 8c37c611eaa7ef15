//! What is stored may be large: what a request takes of memory is not.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandcaster::store::{
    FileRecord, Role, RunFacts, RunLease, RunStore, SqliteStore, StoreOptions, StoredFile,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::fake_llm::{FakeLlm, KEY, Reply};
use crate::support::records::{facts, first_event};
use crate::support::served::Served;

async fn run(store: &SqliteStore, prompt: &str) -> RunLease {
    let facts = RunFacts {
        prompt: prompt.to_owned(),
        ..facts(jiff::Timestamp::from_second(1_800_000_000).unwrap())
    };
    store.create(facts, first_event()).await.unwrap()
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

/// Makes `0.jpg` to `9.jpg`, whole images of 3.6 MB each, where files are not collected.
const IMAGES: &str = r"mkdir /tmp/i && cd /tmp/i && {
    printf '\377\330\377\340\000\004ab\377\302\000\007\010\003\040\004\260\377\332\000\004ab'
    head -c 3600000 /dev/zero
    printf '\377\331'
} > 0.jpg && for n in 1 2 3 4 5 6 7 8 9; do cp 0.jpg $n.jpg; done";

#[tokio::test]
async fn a_run_that_looks_at_ten_large_images_takes_memory_for_its_history_once() {
    let read = |n: u32| json!({"path": format!("/tmp/i/{n}.jpg")});
    let all = (0..10).fold(Reply::new(), |reply, n| reply.call("file_read", &read(n)));
    let llm = FakeLlm::start([
        Reply::says("Hi."),
        Reply::new().call("bash", &json!({ "command": IMAGES })),
        all,
        Reply::new().call("file_read", &read(0)),
        Reply::says("Zeros."),
    ])
    .await;
    let dir = tempfile::tempdir().unwrap();
    let url = llm.base_url();
    let env = [("ANTHROPIC_API_KEY", KEY), ("ANTHROPIC_BASE_URL", &url)];
    let server = Served::start(dir.path(), &env).await;
    let ask = json!({"prompt": "Look", "model": "sonnet", "sandboxProvider": "local"});
    server.query(&ask).await.rest().await;
    let before = server.peak_kib();
    let events = server.query(&ask).await.rest().await;
    assert_eq!(events.last().unwrap()["type"], "result", "{events:?}");
    let requests = llm.requests();
    let sizes = requests.iter().map(|request| {
        assert!(!request.headers.contains_key("transfer-encoding"));
        assert_eq!(
            request.headers["content-length"],
            request.raw.len().to_string()
        );
        request.raw.len() as u64 / 1024
    });
    let history = sizes.max().unwrap();
    assert!(history > 3 * 4600, "three images: {history} KiB");
    let grown = server.peak_kib() - before;
    assert!(
        grown < history * 3 / 2,
        "{grown} KiB for a history of {history}"
    );
}
