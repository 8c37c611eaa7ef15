//! The agent: the sandbox's PID 1. It runs commands and moves files for the host, reaps what dies, and
//! watches the memory. One thread, one loop, nothing that can block it.
//!
//! It does nothing that a command in the sandbox could not do as well: it resolves paths inside, as the
//! sandbox's user, behind all the walls. It ends when its socket does, and everything with it.

mod commands;
mod files;
mod memory;
mod processes;
mod serve;

pub(super) use serve::run;
