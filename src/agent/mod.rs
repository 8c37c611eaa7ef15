//! The agent: one run of an LLM with its tools.

pub mod files;
