//! `sandcaster query` as a process: the answer on stdout, everything else on stderr.

use std::path::Path;
use std::process::Output;
use std::process::Stdio;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::app::{binary, kinds};
use crate::support::clients::{PATIENCE, json_lines, run};
use crate::support::fake_llm::{FakeLlm, KEY, Reply};

fn query(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .arg("query")
        .args(arguments)
        .current_dir(dir)
        .env_clear();
    command
}

fn texts(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test]
async fn the_answer_is_on_stdout_and_calls_files_and_cost_on_stderr() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/in.csv"), "a,b\n").unwrap();
    let llm = FakeLlm::start([
        Reply::new().text("Copying.").call(
            "bash",
            &serde_json::json!({"command": "cp data/in.csv out.csv"}),
        ),
        Reply::says("Copied it."),
    ])
    .await;
    let mut command = query(dir.path(), &["copy it", "-f", "data/in.csv", "-m", "haiku"]);
    command
        .env("ANTHROPIC_API_KEY", KEY)
        .env("ANTHROPIC_BASE_URL", llm.base_url());
    let (code, stdout, stderr) = texts(run(&mut command).await);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stdout, "Copying.\nCopied it.\n");
    for says in [
        "> bash {\"command\":\"cp data/in.csv out.csv\"}",
        "< bash ok",
        "file out.csv (4 bytes)",
        "cost $",
        "2 turns",
    ] {
        assert!(stderr.contains(says), "{says:?} is missing: {stderr}");
    }
    assert!(!stderr.contains(KEY));
}

#[tokio::test]
async fn json_is_one_event_per_line_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stdout, _) = texts(
        run(&mut query(
            dir.path(),
            &["--json", "-m", "demo", "$ echo hi"],
        ))
        .await,
    );
    assert_eq!(code, Some(0));
    let events = json_lines(&stdout);
    assert_eq!(kinds(&events).last(), Some(&"result"));
    let seqs: Vec<_> = events
        .iter()
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs, (1..=events.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn exit_codes_tell_a_failed_run_from_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let refused = Reply::error(401, "authentication_error", "invalid x-api-key");
    let llm = FakeLlm::start([refused]).await;
    let mut failing = query(dir.path(), &["hi", "-m", "sonnet"]);
    failing
        .env("ANTHROPIC_API_KEY", KEY)
        .env("ANTHROPIC_BASE_URL", llm.base_url());
    let (code, stdout, stderr) = texts(run(&mut failing).await);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("(LLM_AUTH)"), "{stderr}");
    assert_eq!(stdout, "");
    for (arguments, says) in [
        (&["hi"][..], "\"demo\""),
        (&["hi", "-m", "sonnet"], "ANTHROPIC_API_KEY"),
        (&["hi", "-m", "sonet"], "did you mean `sonnet`?"),
        (&["hi", "--provider", "openai"], "not implemented yet"),
    ] {
        let (code, stdout, stderr) = texts(run(&mut query(dir.path(), arguments)).await);
        assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
        assert_eq!(stdout, "", "{arguments:?}");
    }
}

#[tokio::test]
async fn ctrl_c_cancels_the_run_and_says_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = query(dir.path(), &["-m", "demo", "$ echo up\n$ sleep 600"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut said = String::new();
    let mut part = [0; 1024];
    let mut sent = false;
    let ending = async {
        loop {
            let read = stderr.read(&mut part).await.unwrap();
            if read == 0 {
                break child.wait().await.unwrap();
            }
            said.push_str(&String::from_utf8_lossy(&part[..read]));
            if said.contains("< bash ok") && !sent {
                sent = true;
                let pid = child.id().unwrap().to_string();
                let status = std::process::Command::new("kill")
                    .args(["-s", "INT", &pid])
                    .status();
                assert!(status.unwrap().success());
            }
        }
    };
    let status = timeout(PATIENCE, ending).await.expect("an end in time");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("cancelling the run"), "{said}");
    assert!(said.contains("(CANCELLED)"), "{said}");
}
