//! The only way out: one HTTP client, retry arithmetic, and a bounded SSE decoder.

mod client;
pub mod retry;
pub mod sse;

pub use client::{HttpClient, NoClient, Proxies, build, build_with, never_sent, refusal};
