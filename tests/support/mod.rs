//! Helpers shared by the tests.

pub mod app;
pub mod clients;
#[cfg(target_os = "linux")]
pub mod fake_e2b;
pub mod fake_llm;
pub mod host_sandbox;
pub mod http;
pub mod imports;
pub mod judges;
pub mod memory_store;
pub mod processes;
pub mod recordings;
pub mod records;
pub mod served;

use std::time::Duration;

use sandcaster::net;

/// An HTTP client. Building one reads the system's certificates, so a test's thread builds one only.
pub fn http() -> net::HttpClient {
    thread_local! {
        static CLIENT: net::HttpClient = net::build().unwrap();
    }
    CLIENT.with(Clone::clone)
}

/// Lets `time` pass at once: timers of all that runs in this test go off, and go on from there.
pub async fn skip(time: Duration) {
    tokio::time::pause();
    // Timers go by whole milliseconds.
    tokio::time::advance(time + Duration::from_millis(1)).await;
    tokio::time::resume();
}
