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
pub mod served;

use sandcaster::net;

/// An HTTP client. Building one reads the system's certificates, so a test's thread builds one only.
pub fn http() -> net::HttpClient {
    thread_local! {
        static CLIENT: net::HttpClient = net::build().unwrap();
    }
    CLIENT.with(Clone::clone)
}
