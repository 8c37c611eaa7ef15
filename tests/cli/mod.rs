//! The command, as users start it.

mod command;
mod connections;
mod query;
mod serve;
