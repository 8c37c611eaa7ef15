//! `sandcaster query`: a run in the command's own process.

use std::path::Path;
use std::process::Output;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::Child;

use crate::support::app::{PATIENCE, kinds, of_kind, text};
use crate::support::clients::program;
use crate::support::fake_llm::{FakeLlm, KEY, Reply};
use crate::support::processes::{own_sleep, running, until_gone, until_sleeping};
use crate::support::served::Served;

fn query(dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Child {
    let arguments = [&["query"], arguments].concat();
    program(dir, &arguments, env).spawn().unwrap()
}

async fn ended(child: Child) -> Output {
    tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap()
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    std::str::from_utf8(bytes)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn the_answer_goes_to_stdout_and_all_else_to_stderr() {
    let llm = FakeLlm::start([
        Reply::new()
            .text("Let me look.")
            .call("bash", &json!({"command": "cat in.txt"})),
        Reply::new().text("It says ").text("hello."),
    ])
    .await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("in.txt"), "hello").unwrap();
    let base_url = llm.base_url();
    let env = [
        ("ANTHROPIC_API_KEY", KEY),
        ("ANTHROPIC_BASE_URL", base_url.as_str()),
    ];
    let output = ended(query(
        dir.path(),
        &["what does it say?", "-f", "in.txt", "-m", "sonnet"],
        &env,
    ))
    .await;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "Let me look.\nIt says hello.\n"
    );
    for said in ["Sandbox created", "> bash", "cat in.txt", "cost $"] {
        assert!(stderr.contains(said), "{said} is missing: {stderr}");
    }
    let read = &llm.request(1).await.tool_results()[0];
    assert!(read.text.contains("hello"), "{read:?}");
}

#[tokio::test]
async fn json_is_one_event_per_line_as_the_api_gives_them() {
    let dir = tempfile::tempdir().unwrap();
    let output = ended(query(
        dir.path(),
        &["$ echo hi > out.txt", "-m", "demo", "--json"],
        &[],
    ))
    .await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let events = lines(&output.stdout);
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["seq"], at + 1);
    }
    assert!(text(&events).contains("not an LLM"), "{}", text(&events));
    assert_eq!(of_kind(&events, "file")[0]["content"], "hi\n");
    assert_eq!(kinds(&events).last(), Some(&"result"));
    // It is in the store that a server in this directory shows.
    let server = Served::start(dir.path(), &[]).await;
    let runs = server.json("/runs").await;
    assert_eq!(runs[0]["id"], events[0]["runId"]);
    assert_eq!(runs[0]["status"], "completed");
}

#[tokio::test]
async fn a_run_that_fails_exits_with_1() {
    let llm = FakeLlm::start([Reply::error(
        401,
        "authentication_error",
        "invalid x-api-key",
    )])
    .await;
    let dir = tempfile::tempdir().unwrap();
    let base_url = llm.base_url();
    let env = [
        ("ANTHROPIC_API_KEY", KEY),
        ("ANTHROPIC_BASE_URL", base_url.as_str()),
    ];
    let output = ended(query(dir.path(), &["hi"], &env)).await;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("LLM_AUTH") && stderr.contains("doctor"),
        "{stderr}"
    );
    assert!(output.stdout.is_empty());
}

#[tokio::test]
async fn ctrl_c_cancels_the_run_and_destroys_its_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let sleep = own_sleep();
    let child = query(
        dir.path(),
        &[&format!("$ sleep {sleep}"), "-m", "demo", "--json"],
        &[],
    );
    until_sleeping(&sleep).await;
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let output = ended(child).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let events = lines(&output.stdout);
    assert_eq!(events.last().unwrap()["code"], "CANCELLED");
    assert_eq!(of_kind(&events, "tool_result").len(), 1);
    assert_eq!(running(&sleep), [0; 0]);
    assert_eq!(running(events[0]["runId"].as_str().unwrap()), [0; 0]);
}

#[tokio::test]
async fn a_command_that_was_killed_leaves_no_sandbox_and_its_run_is_ended_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let sleep = own_sleep();
    let mut child = query(
        dir.path(),
        &[&format!("$ sleep {sleep}"), "-m", "demo"],
        &[],
    );
    until_sleeping(&sleep).await;
    child.kill().await.unwrap();
    until_gone(&sleep).await;
    let server = Served::start(dir.path(), &[]).await;
    let runs = server.json("/runs").await;
    assert_eq!(
        (&runs[0]["statusDetail"], &runs[0]["errorCode"]),
        (&json!("interrupted"), &json!("SERVER_CRASHED"))
    );
}

#[tokio::test]
async fn a_server_shows_the_run_of_a_command_beside_it_but_does_not_stop_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Served::start(dir.path(), &[]).await;
    let sleep = own_sleep();
    let prompt = format!("$ echo hi\n$ sleep {sleep}");
    let child = query(dir.path(), &[&prompt, "-m", "demo", "--json"], &[]);
    until_sleeping(&sleep).await;
    let runs = server.json("/runs").await;
    assert_eq!(runs[0]["status"], "running");
    let run = runs[0]["id"].as_str().unwrap();
    let mut stream = server.events(run).await;
    assert_eq!(stream.until("tool_result").await["exitCode"], 0);
    let refused = server
        .post(&format!("/runs/{run}/cancel"), &json!({}))
        .await;
    assert_eq!(refused.status(), 501);
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let output = ended(child).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(stream.until("error").await["code"], "CANCELLED");
    assert_eq!(stream.next().await, None);
}
