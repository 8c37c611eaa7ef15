//! Integration tests: one binary, by behaviour.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "tests fail by panicking, and helpers are shared by tests that need different parts of them"
)]

mod agent;
mod cli;
mod clients;
mod config;
mod corpora;
mod docs;
#[cfg(target_os = "linux")]
mod e2b;
mod http;
mod llm;
mod runs;
mod sandbox;
mod store;
mod support;
mod tidy;
mod tools;
