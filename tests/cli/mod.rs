//! The command, as users start it.

mod command;
mod query;
mod serve;
