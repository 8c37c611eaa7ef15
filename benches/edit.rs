//! Figures of `file_edit` on a file of 20,000 lines: `cargo bench --bench edit`. Prints them, and never fails
//! for being slow.
//!
//! Each call is a whole one, with two scripts in a shell of this host. Beside it a task wakes every
//! millisecond on the same thread: how late it comes is how long others would have waited.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a benchmark prints figures and stops at the first fault; it uses a part of the sandbox for tests"
)]

mod figures;
#[path = "../tests/support/host_sandbox.rs"]
mod host_sandbox;

use std::sync::Arc;
use std::time::Duration;

use sandcaster::clock::Deadline;
use sandcaster::sandbox::Sandbox as _;
use sandcaster::secrets::Redactor;
use sandcaster::tools::{ShellSession, ToolContext, tool};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use figures::{Times, row};
use host_sandbox::{HostSandbox, Shell};

const LINES: usize = 20_000;
const CALLS: usize = 50;

fn line(n: usize) -> String {
    format!("    let value_{n} = compute_the_value_of(context, {n})?;\n")
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let sandbox = HostSandbox::new(Shell::Dash);
        let file = sandbox.home().join("file.rs");
        let text: String = (1..=LINES).map(line).collect();
        std::fs::write(&file, &text).expect("a file");
        println!("file_edit, {LINES} lines, {} kB", text.len() / 1000);
        let context = ToolContext {
            session: Arc::new(ShellSession::new(sandbox.working_dir())),
            sandbox,
            deadline: Deadline::after(Duration::from_mins(10)),
            cancel: CancellationToken::new(),
            redactor: Redactor::default(),
        };
        let (here, there) = (line(15_000), line(15_000).replace("value", "other"));
        let missing = line(15_000).replace("context, 15", "contxt, 15");
        for (what, old, new) in [
            ("found", here.as_str(), there.as_str()),
            ("not found, a line is alike", &missing, "x"),
            ("not found, nothing is alike", &"-=".repeat(30), "x"),
        ] {
            let mut calls = Times::default();
            let mut late = Times::default();
            for round in 0..CALLS {
                // There and back again.
                let back = what == "found" && round % 2 == 1;
                let (old, new) = if back { (new, old) } else { (old, new) };
                let args = json!({"path": "file.rs", "old_string": old, "new_string": new});
                let Value::Object(args) = args else {
                    unreachable!()
                };
                let built = tool("file_edit").and_then(|def| def.built).expect("a tool");
                let begun = Instant::now();
                let mut call = Box::pin(built.call(args, &context));
                let done = loop {
                    let wake = Instant::now() + Duration::from_millis(1);
                    tokio::select! {
                        done = &mut call => break done,
                        () = tokio::time::sleep_until(wake) => late.push(wake.elapsed()),
                    }
                };
                calls.push(begun.elapsed());
                assert_eq!(done.is_ok(), what == "found", "{done:?}");
            }
            row(what, calls);
            row("  how late another task was", late);
        }
    });
}
