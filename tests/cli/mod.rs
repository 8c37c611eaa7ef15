//! The command, as users start it.

mod command;
