//! The run store in one `SQLite` file: nothing to set up, one writer thread, any number of readers.
//!
//! | file | what it does |
//! |---|---|
//! | `options`, `store` | how it is opened, and the trait's face of it |
//! | `data_dir` | the directory and its locks: who may use it, which processes are alive |
//! | `schema` | tables, and the triggers that hold a log together; migrations; connections |
//! | `queue` | the bounded queue in front of the writer |
//! | `writer`, `ops` | the thread that writes, in grouped transactions, and each write as SQL |
//! | `retention` | deleting runs, a little at a time |
//! | `sync`, `checkpoint` | durability and the log's size, each beside the writer |
//! | `fault` | what its errors mean |
//! | `health` | whether writing works |
//! | `reads`, `watch` | every query, and following the runs of other processes |
//! | `names` | whether the files are still where their names lead |
//! | `inode` | what a file's name leads to, and that a name lasts |
//!
//! Several processes may write to one directory (a server, and one-shot commands); each has its own writer,
//! and `BEGIN IMMEDIATE` makes them take turns.

mod checkpoint;
mod data_dir;
mod fault;
mod health;
mod inode;
mod names;
mod ops;
mod options;
mod queue;
mod reads;
mod retention;
mod schema;
mod store;
mod sync;
mod watch;
mod writer;

pub use options::{Role, StoreOptions};
pub use store::SqliteStore;
