//! Helpers shared by the tests.

pub mod http;
pub mod memory_store;
