//! Helpers shared by the tests.

pub mod app;
pub mod clients;
pub mod fake_llm;
pub mod host_sandbox;
pub mod http;
pub mod memory_store;
pub mod recordings;

use sandcaster::net;

/// An HTTP client. Building one reads the system's certificates, so a test's thread builds one only.
pub fn http() -> net::HttpClient {
    thread_local! {
        static CLIENT: net::HttpClient = net::build().unwrap();
    }
    CLIENT.with(Clone::clone)
}
