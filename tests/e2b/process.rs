//! The binary itself: killed at once, stopped in order, started again.

use std::path::Path;
use std::process::{Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::{calls, left, others, talkative};
use crate::support::app::{EventStream, PATIENCE, ask, binary};
use crate::support::fake_e2b::{FakeE2b, Route};
use crate::support::fake_llm::{FakeLlm, Gate, KEY, Reply};
use crate::support::http;

type Env = Vec<(&'static str, String)>;

fn program(dir: &Path, arguments: &[&str], env: &[(&'static str, String)]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .envs(env.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs the binary to its end.
pub(super) async fn command(
    dir: &Path,
    arguments: &[&str],
    env: &[(&'static str, String)],
) -> Output {
    let output = program(dir, arguments, env).output();
    tokio::time::timeout(PATIENCE, output)
        .await
        .expect("it ended in time")
        .unwrap()
}

pub(super) fn environment(e2b: &FakeE2b, llm: &FakeLlm) -> Env {
    let mut env = e2b.env();
    env.push(("ANTHROPIC_API_KEY", KEY.to_owned()));
    env.push(("ANTHROPIC_BASE_URL", llm.base_url()));
    env
}

/// A server of its own process. Dropping it kills it.
pub(super) struct Server {
    child: Child,
    url: String,
    log: JoinHandle<String>,
}

impl Server {
    #[expect(
        clippy::disallowed_methods,
        reason = "reads a pipe until the child's end"
    )]
    pub(super) async fn start(dir: &Path, env: &[(&'static str, String)]) -> Self {
        let mut child = program(dir, &["serve", "--port", "0"], env)
            .spawn()
            .unwrap();
        let mut errors = child.stderr.take().unwrap();
        let log = tokio::spawn(async move {
            let mut text = Vec::new();
            errors.read_to_end(&mut text).await.unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let line = line.expect("a start line in time").unwrap().unwrap();
        let url = line.split(' ').find(|word| word.starts_with("http://"));
        let url = url.unwrap().to_owned();
        Self { child, url, log }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub(super) async fn query(&self, body: Value) -> EventStream {
        let sent = http().post(self.url("/query")).json(&body).send();
        let response = tokio::time::timeout(PATIENCE, sent).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        EventStream::new(response)
    }

    pub(super) async fn json(&self, path: &str) -> Value {
        let response = http().get(self.url(path)).send().await.unwrap();
        response.json().await.unwrap()
    }

    /// Sends a signal, waits for the end, and gives its exit code and log.
    pub(super) async fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let code = ended.expect("it ended in time").unwrap().code();
        (code, self.log.await.unwrap())
    }
}

#[tokio::test]
async fn a_terminated_server_leaves_no_sandbox() {
    let e2b = FakeE2b::start().await;
    let others = others(&e2b);
    let (llm, held) = talkative("sleep 600 & echo hi").await;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &environment(&e2b, &llm)).await;
    let mut run = server.query(ask("hi")).await;
    run.until("tool_result").await;
    held.reached().await;
    assert_eq!(e2b.sandboxes().len(), others.len() + 1);
    let reading = async { run.rest().await };
    let (events, (code, log)) = tokio::join!(reading, server.end(Signal::SIGTERM));
    assert_eq!(events.last().unwrap()["code"], "SERVER_SHUTDOWN");
    assert_eq!(code, Some(0), "{log}");
    left(&e2b, &others).await;
}

#[tokio::test]
async fn a_killed_servers_sandboxes_are_found_at_its_next_start() {
    let e2b = FakeE2b::start().await;
    let others = others(&e2b);
    let (llm, held) = talkative("sleep 600 & echo hi").await;
    let dir = tempfile::tempdir().unwrap();
    let env = environment(&e2b, &llm);
    let server = Server::start(dir.path(), &env).await;
    let mut run = server.query(ask("hi")).await;
    run.until("tool_result").await;
    held.reached().await;
    let id = run.run_id.clone();
    let (code, _log) = server.end(Signal::SIGKILL).await;
    assert_eq!(code, None);
    drop(run);
    assert_eq!(e2b.sandboxes().len(), others.len() + 1, "nobody was there");

    let server = Server::start(dir.path(), &env).await;
    left(&e2b, &others).await;
    let record = server.json(&format!("/runs/{id}")).await;
    assert_eq!(record["errorCode"], "SERVER_CRASHED");
    assert_eq!(record["statusDetail"], "interrupted");
    let (code, log) = server.end(Signal::SIGTERM).await;
    assert_eq!(code, Some(0), "{log}");
}

/// A server with a run that has told its answer, and whose sandbox is about to be destroyed.
async fn ended_but_for_its_sandbox(e2b: &FakeE2b, dir: &Path) -> (Server, Env, String) {
    let llm = FakeLlm::start([calls("echo hi"), Reply::says("Hi.")]).await;
    let env = environment(e2b, &llm);
    let server = Server::start(dir, &env).await;
    let run = server.query(ask("hi")).await;
    let id = run.run_id.clone();
    assert_eq!(run.rest().await.last().unwrap()["content"], "Hi.");
    (server, env, id)
}

#[tokio::test]
async fn a_server_killed_between_an_answer_and_the_end_of_its_sandbox_forgets_no_sandbox() {
    let e2b = FakeE2b::start().await;
    let others = others(&e2b);
    let kill = e2b.on(Route::Delete).hang();
    let dir = tempfile::tempdir().unwrap();
    let (server, env, id) = ended_but_for_its_sandbox(&e2b, dir.path()).await;
    kill.reached().await;
    server.end(Signal::SIGKILL).await;
    assert_eq!(e2b.sandboxes().len(), others.len() + 1);
    e2b.clear_faults();

    let server = Server::start(dir.path(), &env).await;
    left(&e2b, &others).await;
    let path = format!("/runs/{id}");
    let recorded = async {
        loop {
            let record = server.json(&path).await;
            assert_eq!(record["status"], "completed");
            if record["sandboxes"][0]["destroyed"] == true {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, recorded).await.unwrap();
    server.end(Signal::SIGTERM).await;
}

#[tokio::test]
async fn a_server_that_stops_waits_for_the_end_of_a_sandbox_whose_run_has_ended() {
    let e2b = FakeE2b::start().await;
    let others = others(&e2b);
    let kill = e2b.on(Route::Delete).gate();
    let dir = tempfile::tempdir().unwrap();
    let (server, _env, _id) = ended_but_for_its_sandbox(&e2b, dir.path()).await;
    kill.reached().await;
    let health = server.url("/health");
    let stopping = async {
        while let Ok(answer) = http().get(&health).send().await
            && answer.status() == 200
        {}
        kill.open();
    };
    let ((code, log), ()) = tokio::join!(server.end(Signal::SIGTERM), stopping);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(e2b.sandboxes().len(), others.len(), "{log}");
}

#[tokio::test]
async fn a_server_killed_in_a_second_turn_tells_what_the_first_has_used() {
    let e2b = FakeE2b::start().await;
    let gate = Gate::new();
    let llm = FakeLlm::start([
        calls("echo hi").usage(1000, 50),
        Reply::new().text("So ").wait(&gate).text("it is."),
    ])
    .await;
    let dir = tempfile::tempdir().unwrap();
    let env = environment(&e2b, &llm);
    let server = Server::start(dir.path(), &env).await;
    let mut run = server.query(ask("hi")).await;
    run.until("tool_result").await;
    // Something of the second answer is in the log.
    run.until("assistant").await;
    gate.reached().await;
    let id = run.run_id.clone();
    server.end(Signal::SIGKILL).await;
    drop(run);

    let server = Server::start(dir.path(), &env).await;
    let record = server.json(&format!("/runs/{id}")).await;
    for (field, value) in [
        ("errorCode", json!("SERVER_CRASHED")),
        ("inputTokens", json!(1000)),
        ("outputTokens", json!(50)),
        ("costUsd", json!(0.00375)),
        ("usageComplete", json!(false)),
        ("numTurns", json!(2)),
    ] {
        assert_eq!(record[field], value, "{record:#}");
    }
    left(&e2b, &[]).await;
    server.end(Signal::SIGTERM).await;
}

#[tokio::test]
async fn every_line_of_the_log_about_a_run_names_it_and_its_request() {
    let e2b = FakeE2b::start().await;
    let llm = FakeLlm::start([calls("echo hi"), Reply::says("Hi.")]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut env = environment(&e2b, &llm);
    env.push(("SANDCASTER_LOG_FORMAT", "json".to_owned()));
    env.push(("SANDCASTER_LOG", "warn,sandcaster::runs=debug".to_owned()));
    let server = Server::start(dir.path(), &env).await;
    let kill = e2b.on(Route::Delete).first(1).respond(401);
    let run = server.query(ask("hi")).await;
    let id = run.run_id.clone();
    run.rest().await;
    kill.reached().await;
    let (_code, log) = server.end(Signal::SIGTERM).await;
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let about = |message: &str| {
        let lines = lines.iter().filter(|line| line["message"] == message);
        lines.cloned().collect::<Vec<_>>()
    };
    // From the run's task, and from one that it left behind.
    for message in ["run started", "run ended", "failed to destroy the sandbox"] {
        let told = about(message);
        assert!(!told.is_empty(), "{message}: {log}");
        for line in told {
            let spans = line["spans"].as_array().unwrap();
            let names: Vec<&str> = spans
                .iter()
                .filter_map(|span| span["name"].as_str())
                .collect();
            assert_eq!(names, ["request", "run"], "{line}");
            assert_eq!(spans[1]["run.id"], id, "{line}");
            assert!(spans[0]["id"].is_string(), "{line}");
        }
    }
}

#[tokio::test]
async fn a_server_killed_between_the_create_call_and_its_answer_forgets_no_sandbox() {
    let e2b = FakeE2b::start().await;
    let others = others(&e2b);
    let creation = e2b.on(Route::Create).hang_after_acting();
    let (llm, _held) = talkative("echo hi").await;
    let dir = tempfile::tempdir().unwrap();
    let env = environment(&e2b, &llm);
    let server = Server::start(dir.path(), &env).await;
    let run = server
        .query(json!({"prompt": "hi", "model": "sonnet"}))
        .await;
    creation.reached().await;
    while e2b.sandboxes().len() == others.len() {
        tokio::task::yield_now().await;
    }
    server.end(Signal::SIGKILL).await;
    drop(run);
    llm.take_unused();
    let server = Server::start(dir.path(), &env).await;
    left(&e2b, &others).await;
    server.end(Signal::SIGTERM).await;
}
