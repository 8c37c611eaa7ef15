//! A small Node client on npm's `eventsource-parser`, which behaves as the published SDK does.

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::support::app::{demo, kinds};
use crate::support::clients::{Watched, json_lines, node_client, run, stdout_of};
use crate::support::fake_llm::{FakeLlm, Gate, Reply};
use crate::support::processes::{sandbox_gone, sandbox_processes};
use crate::support::served::Served;

fn drive(client: &TempDir, what: &Value) -> Command {
    let mut command = Command::new("node");
    command
        .arg(client.path().join("drive.mjs"))
        .arg(what.to_string());
    command
}

#[tokio::test]
#[cfg_attr(
    not(all(program = "node", program = "npm")),
    ignore = "needs node and npm"
)]
async fn the_sdk_runs_a_query_and_sees_every_event() {
    let client = node_client().await;
    let thinking = Reply::new().thinking("hm", "c2ln").text("Looking. ");
    let llm = FakeLlm::start([
        thinking.call("bash", &json!({"command": "echo data > out.txt"})),
        Reply::says("Done."),
    ])
    .await;
    let server = Served::with_llm(&llm, &[("SANDCASTER_API_KEY", "k")]).await;
    // Trailing slashes are the client's to cut.
    let calls = json!({"baseUrl": format!("{}//", server.url), "apiKey": "k", "calls": [
        ["health"],
        ["query", {"prompt": "go", "model": "sonnet", "thinkingLevel": "low"}],
        ["listRuns"],
    ]});
    let mut lines = json_lines(&stdout_of(&mut drive(&client, &calls)).await);
    let runs = lines.pop().unwrap();
    let dropped = lines.pop().unwrap();
    let health = lines.remove(0);
    assert_eq!(health["status"], "ok");
    assert_eq!(
        dropped,
        json!({"dropped": []}),
        "an SDK user misses no event"
    );
    for kind in [
        "system",
        "thinking",
        "assistant",
        "tool_use",
        "tool_result",
        "file",
        "result",
    ] {
        assert!(kinds(&lines).contains(&kind), "{kind}: {:?}", kinds(&lines));
    }
    assert_eq!(runs.as_array().unwrap().len(), 1);
    assert_eq!(runs[0]["status"], "completed");
    assert_eq!(lines.last().unwrap()["content"], "Done.");
}

#[tokio::test]
#[cfg_attr(
    not(all(program = "node", program = "npm")),
    ignore = "needs node and npm"
)]
async fn the_sdk_throws_a_refusal_as_status_and_reason() {
    let client = node_client().await;
    let server = Served::with(&[("SANDCASTER_API_KEY", "k")]).await;
    let calls = [json!(["query", demo(&["true"])]), json!(["listRuns"])];
    let wrong = json!({"baseUrl": server.url, "apiKey": "wrong", "calls": calls});
    let lines = json_lines(&stdout_of(&mut drive(&client, &wrong)).await);
    assert_eq!(lines, vec![json!({"thrown": "401 Unauthorized"}); 2]);
    let right = json!({"baseUrl": server.url, "apiKey": "k", "calls": [
        ["query", {"prompt": "x", "maxTurns": 0}],
        ["listRuns"],
    ]});
    let lines = json_lines(&stdout_of(&mut drive(&client, &right)).await);
    assert_eq!(lines, [json!({"thrown": "400 Bad Request"}), json!([])]);
}

/// Starts a run that would last for minutes, aborts it in the client as `how` says, and gives its id.
async fn abort_within_a_command(
    server: &Served,
    client: &TempDir,
    how: Value,
) -> (String, Watched) {
    let calls = json!({"baseUrl": server.url, "calls": [
        ["query", demo(&["echo up", "sleep 600"]), how],
    ]});
    let mut node = Watched::spawn(&mut drive(client, &calls));
    let run = node.json().await["runId"].as_str().unwrap().to_owned();
    loop {
        let line = node.json().await;
        if line["dropped"].is_array() {
            // It has left; the process lives on, so that only the abort can end the run.
            return (run, node);
        }
    }
}

#[tokio::test]
#[cfg_attr(
    not(all(program = "node", program = "npm")),
    ignore = "needs node and npm"
)]
async fn leaving_the_loop_ends_the_run_and_its_sandbox() {
    let client = node_client().await;
    let server = Served::with(&[("SANDCASTER_DISCONNECT_GRACE_SECS", "1")]).await;
    for how in [
        json!({"leaveAt": "tool_result"}),
        json!({"abortAt": "tool_result"}),
    ] {
        let (run, node) = abort_within_a_command(&server, &client, how).await;
        assert_eq!(
            server.json(&format!("/runs/{run}")).await["status"],
            "running"
        );
        assert!(
            !sandbox_processes(&run).is_empty(),
            "the grace is not over: the sandbox is there"
        );
        let ended = server.run_is(&run, "cancelled").await;
        assert_eq!(ended["status"], "error");
        sandbox_gone(&run).await;
        let last = server.json(&format!("/runs/{run}/events?limit=1000")).await;
        let last = last["events"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            (&last["type"], &last["code"]),
            (&json!("error"), &json!("CLIENT_GONE"))
        );
        node.finish().await;
    }
}

#[tokio::test]
#[cfg_attr(
    not(all(program = "node", program = "npm")),
    ignore = "needs node and npm"
)]
async fn an_abort_closes_the_connection_to_the_model() {
    let client = node_client().await;
    let never = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("I will go on").wait(&never)]).await;
    let grace = ("SANDCASTER_DISCONNECT_GRACE_SECS", "0");
    let server = Served::with_llm(&llm, &[grace]).await;
    let calls = json!({"baseUrl": server.url, "calls": [
        ["query", {"prompt": "go", "model": "sonnet"}, {"leaveAt": "assistant"}],
    ]});
    let mut node = Watched::spawn(&mut drive(&client, &calls));
    let id = node.json().await["runId"].as_str().unwrap().to_owned();
    llm.connection_closed(0).await;
    server.run_is(&id, "cancelled").await;
    sandbox_gone(&id).await;
    node.finish().await;
}

#[tokio::test]
#[cfg_attr(
    not(all(program = "node", program = "npm")),
    ignore = "needs node and npm"
)]
async fn the_sdk_skips_what_it_can_not_read_and_types_that_it_does_not_know() {
    let client = node_client().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let calls = json!({"baseUrl": url, "apiKey": "k", "calls": [["query", {"prompt": "x"}]]});
    let mut command = drive(&client, &calls);
    let client = run(&mut command);
    let server = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let read = socket.read(&mut request).await.unwrap();
        let head = String::from_utf8_lossy(&request[..read]).to_lowercase();
        let body = ": hb\n\nretry: 2000\n\nid: 1\nevent: x\ndata: {\"type\":\"invented\"}\n\n\
            data: {broken\n\ndata: null\n\nevent: other\ndata: {\"type\":\"result\",\"content\":\"r\"}\n\n";
        let response = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{body}"
        );
        socket.write_all(response.as_bytes()).await.unwrap();
        socket.shutdown().await.unwrap();
        head
    };
    let (output, head) = tokio::join!(client, server);
    assert!(head.starts_with("post /query http/1.1"), "{head}");
    assert!(head.contains("authorization: bearer k"), "{head}");
    let lines = json_lines(std::str::from_utf8(&output.stdout).unwrap());
    assert_eq!(lines[0], json!({"type": "result", "content": "r"}));
    assert_eq!(
        lines[1],
        json!({"dropped": ["{\"type\":\"invented\"}", "{broken", "null"]})
    );
    assert_eq!(lines.len(), 2);
}
