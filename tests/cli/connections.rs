//! Connections of the serving process: how many there may be, and those that don't read when it stops.

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::app::{EventStream, binary, demo};
use crate::support::clients::run;
use crate::support::http::{Reply, first_reply};
use crate::support::served::Served;

fn address(server: &Served) -> SocketAddr {
    server.address().parse().unwrap()
}

fn health(server: &Served) -> Vec<u8> {
    format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", address(server)).into_bytes()
}

/// Opens `count` connections and gives the status of each one's first answer.
async fn open(server: &Served, count: usize) -> Vec<(TcpStream, u16)> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address(server)).await.unwrap();
        let Reply { status, .. } = first_reply(&mut stream, &health(server)).await;
        all.push((stream, status));
    }
    all
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_as_far_as_it_may() {
    let server = Served::with_open_files(64, 4096).await;
    let all = open(&server, 150).await;
    assert!(all.iter().all(|(_, status)| *status == 200));
}

#[tokio::test]
async fn idle_connections_are_refused_before_a_run_lacks_open_files() {
    let server = Served::with_open_files(256, 256).await;
    let all = open(&server, 120).await;
    let served = all.iter().filter(|(_, status)| *status == 200).count();
    assert!(all.iter().all(|(_, status)| matches!(status, 200 | 503)));
    assert_eq!(served, 64, "a quarter is for connections");
    drop(all.into_iter().next());
    // One has left, and a run has all it needs.
    let mut tried = 0;
    let sent = loop {
        let request = crate::support::http().post(server.url("/query"));
        let sent = request.json(&demo(&["echo up"])).send().await.unwrap();
        tried += 1;
        if sent.status() == 200 || tried == 50 {
            break sent;
        }
    };
    assert_eq!(sent.status(), 200);
    let events = EventStream::new(sent).rest().await;
    let last = events.last().unwrap();
    assert_eq!(last["type"], json!("result"), "{last} {}", server.log());
    assert!(
        !server.log().contains("could not accept"),
        "{}",
        server.log()
    );
}

#[tokio::test]
async fn a_start_with_too_few_open_files_is_refused_with_the_number() {
    let dir = tempfile::tempdir().unwrap();
    let mut limited = Command::new("/usr/bin/prlimit");
    limited
        .arg("--nofile=64:128")
        .arg(binary())
        .args(["serve", "--port", "0"])
        .current_dir(dir.path())
        .env_clear();
    let output = run(&mut limited).await;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("only 128 files") && stderr.contains("needs 256"),
        "{stderr}"
    );
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn a_peer_that_does_not_read_decides_nothing_about_the_exit() {
    let mut server = Served::keyless().await;
    let mut stalled = TcpStream::connect(address(&server)).await.unwrap();
    // Requests until neither side's buffers hold more.
    let many = health(&server).repeat(64);
    let full = std::time::Duration::from_millis(500);
    while let Ok(sent) = tokio::time::timeout(full, stalled.write_all(&many)).await {
        sent.unwrap();
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.ended().await.code(), Some(0), "{}", server.log());
}
