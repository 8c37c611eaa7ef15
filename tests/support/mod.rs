//! Helpers shared by the tests.

pub mod host_sandbox;
