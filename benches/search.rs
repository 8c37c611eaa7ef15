//! Figures of the search tools over 40,000 files of a `local` sandbox: `cargo bench --bench search`. Prints
//! them, and never fails for being slow.
#![allow(
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark prints figures and stops at the first fault; it uses a part of what others do"
)]

mod figures;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sandcaster::chat::ToolArgs;
use sandcaster::clock::Deadline;
use sandcaster::ids::RunId;
use sandcaster::sandbox::{
    BackendConfig, Build, ExecSpec, Labels, LocalLimits, Sandbox, SandboxSpec, backend,
};
use sandcaster::secrets::Redactor;
use sandcaster::spec::Network;
use sandcaster::tools::{ShellSession, ToolContext, prepare, tool};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use figures::{Times, row};

const PATIENCE: Duration = Duration::from_mins(5);
/// Times that each call is made.
const TIMES: usize = 5;
/// 200 directories of 200 files with some 30 lines each, one of which in each hundredth file is asked for.
const FILES: &str = r#"
i=0
while [ $i -lt 30 ]; do echo "let value_$i = compute(Größe, $i); // nothing to see"; i=$((i+1)); done >text
d=0
while [ $d -lt 200 ]; do
mkdir "dir$d"
f=0
while [ $f -lt 200 ]; do cat text; [ $f -gt 1 ] || echo "fn needle_$d() { foo }"; f=$((f+1)); done |
split -l 30 -a 3 - "dir$d/file-"
d=$((d+1))
done
find . -type f | wc -l
"#;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(search());
}

async fn search() {
    let sandbox = sandbox().await;
    let made = sandbox
        .exec(ExecSpec {
            argv: ["sh", "-c", FILES].map(str::to_owned).to_vec(),
            ..ExecSpec::default()
        })
        .await
        .expect("a shell")
        .collect(4096)
        .await
        .expect("an end");
    println!(
        "search tools, {} files",
        String::from_utf8_lossy(&made.stdout).trim()
    );
    let context = ToolContext {
        session: Arc::new(ShellSession::new(sandbox.working_dir())),
        sandbox: Arc::clone(&sandbox),
        deadline: Deadline::after(PATIENCE),
        cancel: CancellationToken::new(),
        redactor: Redactor::default(),
    };
    for (name, args) in [
        ("glob", json!({"pattern": "*-aaa"})),
        ("grep", json!({"pattern": r"needle_17\("})),
        ("grep", json!({"pattern": r"fn \w+\(\) \{ foo"})),
        ("grep", json!({"pattern": r"\bfoo\b"})),
        (
            "grep",
            json!({"pattern": "(?i)GRÖSSE|größe", "mode": "files"}),
        ),
        (
            "grep",
            json!({"pattern": "nothing like it", "mode": "count"}),
        ),
    ] {
        let mut times = Times::default();
        for _ in 0..TIMES {
            times.push(call(name, &args, &context).await);
        }
        row(&format!("{name} {args}"), times);
    }
    sandbox.kill().await.expect("an end");
}

async fn call(name: &str, args: &Value, context: &ToolContext) -> Duration {
    let built = tool(name).and_then(|def| def.built).expect("a tool");
    let prepared = prepare(built.spec, &ToolArgs::Json(args.clone()), &context.redactor);
    let begun = Instant::now();
    let prepared = prepared.unwrap_or_else(|why| panic!("{name} {args}: {why}"));
    let outcome = built.call(prepared.args, context).await;
    let took = begun.elapsed();
    match outcome {
        Ok(answer) if !answer.is_error => took,
        Ok(answer) => panic!("{name} {args}: {}", answer.text),
        Err(why) => panic!("{name} {args}: {why:?}"),
    }
}

async fn sandbox() -> Arc<dyn Sandbox> {
    let Build::With(build) = backend("local").expect("a backend").build else {
        unreachable!("`local` is built");
    };
    let spec = SandboxSpec {
        template: None,
        network: Network::None,
        lifetime: PATIENCE,
        deadline: Deadline::after(PATIENCE),
    };
    let labels = Labels {
        run: RunId::new(),
        instance: "bench".to_owned(),
        attempt: 1,
        expires: 4_102_444_800,
    };
    build(&BackendConfig {
        http: sandcaster::net::build().expect("a client"),
        keys: Vec::new(),
        base_urls: BTreeMap::new(),
        launcher: env!("CARGO_BIN_EXE_sandcaster").into(),
        local: LocalLimits {
            disk_mb: 1024,
            memory_mb: 2048,
            ..LocalLimits::default()
        },
    })
    .create(&spec, &labels)
    .await
    .expect("a sandbox")
}
