//! Helpers shared by the tests.

pub mod fake_llm;
pub mod recordings;
