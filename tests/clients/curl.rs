//! curl, as the README and the API reference show it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::app::{demo, kinds, text};
use crate::support::clients::{Watched, stdout_of};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};
use crate::support::served::Served;

const KEY: &str = "my-secret-token";

fn curl(arguments: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "--noproxy", "*", "--max-time", "40"])
        .args(arguments);
    command
}

/// A request with a JSON body, as the reference writes it.
fn post(url: &str, body: &Value) -> Command {
    let mut command = curl(&["-N", "-X", "POST", url]);
    command
        .args(["-H", "Content-Type: application/json", "-d"])
        .arg(body.to_string());
    command
}

/// Status, headers by lower-case name, and body of what `curl -i` printed.
fn parts(printed: &str) -> (u16, BTreeMap<String, String>, &str) {
    let (head, body) = printed.split_once("\r\n\r\n").expect("a head");
    // What curl was told to wait for comes first.
    if head.starts_with("HTTP/1.1 100") {
        return parts(body);
    }
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    (status.parse().unwrap(), headers, body)
}

/// The events of a stream as printed, each frame checked: `id`, `event` and `data` on a line each.
fn events(stream: &str) -> Vec<Value> {
    let mut events = Vec::new();
    for frame in stream.split_terminator("\n\n") {
        let lines: Vec<&str> = frame
            .lines()
            .filter(|line| !line.starts_with(':') && !line.starts_with("retry: "))
            .collect();
        if lines.is_empty() {
            continue;
        }
        let [id, event, data] = lines[..] else {
            panic!("an odd frame: {frame}")
        };
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(id, format!("id: {}", data["seq"]));
        assert_eq!(
            event.strip_prefix("event: ").unwrap(),
            data["type"].as_str().unwrap()
        );
        events.push(data);
    }
    events
}

#[tokio::test]
#[cfg_attr(not(program = "curl"), ignore = "needs curl")]
async fn curl_streams_a_demo_run_in_a_real_sandbox() {
    let server = Served::keyless().await;
    let body = demo(&["echo over > result.txt", "cat result.txt"]);
    let printed = stdout_of(post(&server.url("/query"), &body).arg("-i")).await;
    let (status, headers, stream) = parts(&printed);
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "text/event-stream");
    assert!(headers["cache-control"].contains("no-cache"));
    assert_eq!(headers["x-accel-buffering"], "no");
    let events = events(stream);
    assert_eq!(events[0]["runId"], headers["x-run-id"].as_str());
    let seqs: Vec<u64> = events
        .iter()
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    let last = events.last().unwrap();
    assert_eq!(last["type"], "result", "{last}");
    assert!(last["content"].as_str().unwrap().contains("over"));
    assert_eq!(last["costUsd"], 0.0);
    let file = events.iter().find(|event| event["type"] == "file").unwrap();
    assert_eq!(
        (&file["path"], &file["content"]),
        (&json!("result.txt"), &json!("over\n"))
    );
    let download = server.url(file["url"].as_str().unwrap());
    assert_eq!(stdout_of(&mut curl(&[&download])).await, "over\n");
}

/// Without what differs from run to run. When the sandbox is there differs too.
fn settled(events: Vec<Value>) -> Vec<Value> {
    let changing = [
        "seq",
        "runId",
        "sandboxId",
        "deadline",
        "durationMs",
        "durationSecs",
        "url",
    ];
    let mut settled: Vec<Value> = events
        .into_iter()
        .filter(|event| event["subtype"] != "sandbox_created")
        .collect();
    for event in &mut settled {
        let fields = event.as_object_mut().unwrap();
        fields.retain(|name, _| !changing.contains(&name.as_str()));
        // A failed command's result ends in `[exit 1 · 0.0 s]`.
        if fields["type"] == "tool_result"
            && let Some((untimed, _)) = fields["content"].as_str().unwrap().split_once(" · ")
        {
            fields["content"] = json!(untimed);
        }
    }
    settled
}

#[tokio::test]
#[cfg_attr(not(program = "curl"), ignore = "needs curl")]
async fn the_readmes_session_runs_as_it_is_printed_there() {
    let readme = include_str!("../../README.md");
    let (_, after) = readme.split_once("-d '{\"model\": \"demo\"").unwrap();
    let (body, after) = after.split_once("'\n```\n").unwrap();
    let (_, after) = after.split_once("```\n").unwrap();
    let (printed, _) = after.split_once("\n```").unwrap();
    let body: Value = serde_json::from_str(&format!("{{\"model\": \"demo\"{body}")).unwrap();
    let server = Served::keyless().await;
    let stream = stdout_of(&mut post(&server.url("/query"), &body)).await;
    assert_eq!(settled(events(&stream)), settled(events(printed)));
}

#[tokio::test]
#[cfg_attr(not(program = "curl"), ignore = "needs curl")]
async fn the_references_example_gives_the_references_stream() {
    // A sandbox that comes after the answer is told to nobody.
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new()
        .text("Let me research these tools...")
        .wait(&gate)
        .text(" starting with Notion.")
        .usage(1204, 876)])
    .await;
    let server = Served::with_llm(&llm, &[("SANDCASTER_API_KEY", KEY)]).await;
    let request = json!({
        "prompt": "Compare Notion, Coda, and Slite for async product teams",
        "model": "sonnet",
        "maxTurns": 30
    });
    let bearer = format!("Authorization: Bearer {KEY}");
    let mut curled = Watched::spawn(post(&server.url("/query"), &request).args(["-H", &bearer]));
    let mut stream = String::new();
    while let Some(line) = curled.line().await {
        if line.contains("Sandbox created") {
            gate.open();
        }
        stream.push_str(&line);
        stream.push('\n');
    }
    curled.finish().await;
    let mut events = events(&stream);
    let created = events
        .iter()
        .position(|event| event["message"] == "Sandbox created")
        .expect("a sandbox");
    // It comes when the sandbox is there, before or after the first words.
    let created = events.remove(created);
    assert_eq!(created["type"], "system");
    assert!(created["sandboxId"].is_string());
    assert_eq!(kinds(&events), ["system", "assistant", "result"]);
    let chunks: Vec<&str> = events
        .iter()
        .filter(|event| event["type"] == "assistant")
        .map(|event| event["content"].as_str().unwrap())
        .collect();
    assert_eq!(
        chunks,
        ["Let me research these tools...", " starting with Notion."]
    );
    let result = events.last().unwrap();
    assert_eq!(result["content"], text(&events));
    assert_eq!(result["inputTokens"], 1204);
    assert_eq!(result["outputTokens"], 876);
    assert!(result["costUsd"].as_f64().unwrap() > 0.0);
    let limited = server.url("/runs?limit=5");
    let runs = stdout_of(&mut curl(&[&limited, "-H", &bearer])).await;
    let runs: Value = serde_json::from_str(&runs).unwrap();
    let run = &runs[0];
    assert_eq!(run["status"], "completed");
    assert_eq!(run["model"], "claude-sonnet-4-6");
    assert_eq!(run["prompt"], request["prompt"]);
    for field in ["id", "startedAt", "completedAt", "costUsd", "inputTokens"] {
        assert!(!run[field].is_null(), "{field} is missing: {run}");
    }
}

#[tokio::test]
#[cfg_attr(not(program = "curl"), ignore = "needs curl")]
async fn words_are_printed_while_the_model_still_speaks_and_a_cut_stream_is_resumed() {
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("first ").wait(&gate).text("last")]).await;
    let server = Served::with_llm(&llm, &[("SANDCASTER_SANDBOX_START", "lazy")]).await;
    let body = json!({"prompt": "go", "model": "sonnet"});
    let mut first = Watched::spawn(&mut post(&server.url("/query"), &body));
    let (mut seen, mut id, mut run) = (Vec::new(), String::new(), String::new());
    while !seen
        .iter()
        .any(|event: &Value| event["type"] == "assistant")
    {
        let line = first.line().await.expect("the stream is open");
        if let Some(seq) = line.strip_prefix("id: ") {
            seq.clone_into(&mut id);
        }
        if let Some(data) = line.strip_prefix("data: ") {
            let event: Value = serde_json::from_str(data).unwrap();
            if let Some(of) = event["runId"].as_str() {
                of.clone_into(&mut run);
            }
            seen.push(event);
        }
    }
    // The model has said nothing more: what was printed did not wait for it.
    assert_eq!(text(&seen), "first ");
    first.kill().await;
    let events_url = server.url(&format!("/runs/{run}/events"));
    let mut second = curl(&["-N", &events_url, "-H", &format!("Last-Event-ID: {id}")]);
    let mut second = Watched::spawn(&mut second);
    // The head and its comment come at once, with the model still silent.
    assert_eq!(second.line().await, Some(format!(": {run}")));
    gate.open();
    let mut rest = String::new();
    while let Some(line) = second.line().await {
        rest.push_str(&line);
        rest.push('\n');
    }
    second.finish().await;
    let missing = events(&rest);
    assert_eq!(
        missing[0]["seq"].as_u64().unwrap(),
        id.parse::<u64>().unwrap() + 1
    );
    seen.extend(missing);
    assert_eq!(text(&seen), "first last");
    let whole = stdout_of(&mut curl(&["-N", &events_url])).await;
    assert_eq!(
        seen,
        events(&whole),
        "the two pieces are the log, nothing twice"
    );
    let last = seen.last().unwrap()["seq"].to_string();
    let at_end = format!("Last-Event-ID: {last}");
    let at_end = stdout_of(&mut curl(&["-i", &events_url, "-H", &at_end])).await;
    assert_eq!(parts(&at_end).0, 204);
}

#[tokio::test]
#[cfg_attr(not(program = "curl"), ignore = "needs curl")]
async fn only_holders_of_the_key_get_in() {
    let server = Served::with(&[("SANDCASTER_API_KEY", KEY)]).await;
    let runs = server.url("/runs");
    for header in [
        "X-None: 1",
        "Authorization: Bearer wrong",
        "Authorization: my-secret-token",
    ] {
        let printed = stdout_of(&mut curl(&["-i", &runs, "-H", header])).await;
        let (status, headers, body) = parts(&printed);
        assert_eq!(status, 401, "{header}");
        assert_eq!(
            headers["www-authenticate"], "Bearer realm=\"sandcaster\"",
            "{header}"
        );
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["code"], "UNAUTHORIZED");
        assert!(body["error"].is_string());
    }
    let bearer = format!("Authorization: Bearer {KEY}");
    assert_eq!(stdout_of(&mut curl(&[&runs, "-H", &bearer])).await, "[]");
    let health = stdout_of(&mut curl(&[&server.url("/health")])).await;
    assert_eq!(
        serde_json::from_str::<Value>(&health).unwrap(),
        json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")})
    );
}

#[tokio::test]
#[cfg_attr(not(program = "curl"), ignore = "needs curl")]
async fn every_refusal_is_json_with_a_code() {
    let server = Served::keyless().await;
    let query = server.url("/query");
    let large = server.dir().join("large.json");
    std::fs::write(&large, vec![b' '; (32 << 20) + 1]).unwrap();
    let large = format!("@{}", large.display());
    let json_type = "Content-Type: application/json";
    let nowhere = server.url("/nowhere");
    for (arguments, status, code) in [
        (&[nowhere.as_str()][..], 404, "NOT_FOUND"),
        (&["-X", "DELETE", &query], 405, "METHOD_NOT_ALLOWED"),
        // curl's own default is the type of a form.
        (
            &[&query, "-d", "{\"prompt\":\"hi\"}"],
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (
            &[&query, "-H", json_type, "-d", "{\"prompt\""],
            400,
            "INVALID_JSON",
        ),
        (
            &[&query, "-H", json_type, "-d", "{\"promt\":\"hi\"}"],
            400,
            "VALIDATION_FAILED",
        ),
        (
            &[&query, "-H", json_type, "-d", "{\"prompt\":\"hi\"}"],
            503,
            "NO_MODEL_CONFIGURED",
        ),
        (
            &[&query, "-H", json_type, "--data-binary", &large],
            413,
            "BODY_TOO_LARGE",
        ),
        (
            &[
                &query,
                "-H",
                json_type,
                "-H",
                "Origin: https://evil.example",
                "-d",
                "{}",
            ],
            403,
            "FORBIDDEN_ORIGIN",
        ),
    ] {
        let printed = stdout_of(curl(&["-i"]).args(arguments)).await;
        let (got, headers, body) = parts(&printed);
        assert_eq!(got, status, "{arguments:?}: {printed}");
        assert_eq!(headers["content-type"], "application/json", "{arguments:?}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["code"], code, "{arguments:?}");
        assert_eq!(body["error"], body["message"], "{arguments:?}");
    }
    assert_eq!(server.json("/runs").await, json!([]), "nothing was started");
}

#[tokio::test]
#[cfg_attr(not(program = "curl"), ignore = "needs curl")]
async fn a_client_that_wants_json_waits_for_the_answer() {
    let server = Served::keyless().await;
    let mut request = post(&server.url("/query"), &demo(&["exit 3"]));
    request.args(["-H", "Accept: application/json"]);
    let answer: Value = serde_json::from_str(&stdout_of(&mut request).await).unwrap();
    assert_eq!(answer["type"], "result");
    assert!(answer["content"].as_str().unwrap().contains("exit 3"));
    assert!(answer["runId"].is_string());
}
