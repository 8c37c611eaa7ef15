//! No key of ours gets into a sandbox, an event, a log, an error or the store (rule SE-1).

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::json;

use super::process::{Server, environment};
use super::{calls, left};
use crate::support::app::ask;
use crate::support::fake_e2b::{self, FakeE2b, Route};
use crate::support::fake_llm::{FakeLlm, Gate, KEY, Reply};

const E2B_KEY: &str = "e2b_c0ffee0123456789c0ffee0123456789c0ffee01";
const WEBHOOK: &str = "whsec_canary_0123456789abcdef01234567";
const OTHER: &str = "sk-or-canary-0123456789abcdef0123456789";

/// Every file below `dir` that holds one of `words`.
fn files_with(dir: &Path, words: &[&str], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            files_with(&path, words, found);
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let text = String::from_utf8_lossy(&bytes);
            let held = words.iter().filter(|word| text.contains(**word));
            found.extend(held.map(|word| format!("{} holds {word}", path.display())));
        }
    }
}

#[tokio::test]
async fn no_key_is_anywhere_but_in_the_requests_that_need_it() {
    let e2b = FakeE2b::with_key(E2B_KEY).await;
    // Both sides repeat the key that they were sent, as careless services do.
    let echo = json!({"code": 503, "message": format!("no place for {E2B_KEY}")});
    e2b.on(Route::Create)
        .nth(1)
        .respond(fake_e2b::Reply::json(503, &echo));
    let gate = Gate::new();
    // Only the command's own processes: the stand-in's "machine" is this one, where the server is seen too.
    let look =
        "env; tr '\\0' '\\n' </proc/self/environ; tr '\\0' '\\n' </proc/$$/cmdline; echo looked";
    let end = Reply::error(401, "authentication_error", &format!("{KEY} is not valid"));
    let held = Reply::new()
        .text("Hm.")
        .wait(&gate)
        .call("bash", &json!({"command": "true"}));
    let llm = FakeLlm::start([calls(look), held, end]).await;
    let dir = tempfile::tempdir().unwrap();
    let mut env = environment(&e2b, &llm);
    for (name, value) in [
        ("SANDCASTER_WEBHOOK_SECRET", WEBHOOK),
        ("OPENROUTER_API_KEY", OTHER),
        ("SANDCASTER_LOG", "trace"),
    ] {
        env.push((name, value.to_owned()));
    }
    let server = Server::start(dir.path(), &env).await;
    let mut run = server.query(ask("look around")).await;
    let mut events = Vec::new();
    loop {
        let event = run.next().await.unwrap();
        let last = event["type"] == "tool_result";
        events.push(event);
        if last {
            break;
        }
    }
    let shown = events.last().unwrap()["content"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(shown.contains("looked"), "{shown}");
    gate.reached().await;

    let words = [KEY, E2B_KEY, WEBHOOK, OTHER];
    let view = e2b.sandboxes().pop().unwrap();
    assert!(view.envs.is_empty(), "{:?}", view.envs);
    let mut found = Vec::new();
    files_with(&view.dir, &words, &mut found);
    for seen in e2b.requests() {
        let control = seen.path.starts_with("/v2/sandboxes") || seen.path.starts_with("/sandboxes");
        assert_eq!(!seen.header("x-api-key").is_empty(), control, "{seen:?}");
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        assert!(!words.iter().any(|word| body.contains(word)), "{body}");
    }
    let token = e2b
        .requests_of(Route::Start)
        .first()
        .map(|seen| seen.header("x-access-token").to_owned())
        .unwrap();
    assert!(token.len() > 8);

    gate.open();
    let id = run.run_id.clone();
    events.extend(run.rest().await);
    let end = events.last().unwrap();
    assert_eq!(end["code"], "LLM_AUTH", "{end}");
    left(&e2b, &[]).await;
    let record = server.json(&format!("/runs/{id}")).await;
    let list = server.json("/runs").await;
    let (code, log) = server.end(Signal::SIGTERM).await;
    assert_eq!(code, Some(0));
    assert!(log.contains("run ended"), "the log was on: {log}");

    let mut words = words.to_vec();
    words.push(&token);
    files_with(dir.path(), &words, &mut found);
    assert_eq!(found, [] as [&str; 0]);
    for (what, text) in [
        ("events", json!(events).to_string()),
        ("record", record.to_string()),
        ("list", list.to_string()),
        ("log", log),
    ] {
        for word in &words {
            assert!(!text.contains(word), "{word} in the {what}:\n{text}");
        }
    }
}
