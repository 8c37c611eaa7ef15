//! Canary keys: whatever a model or provider repeats, and wherever it is looked for, no key of ours is there.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::support::app::TestApp;
use crate::support::fake_llm::{FakeLlm, KEY, Reply};
use crate::support::served::Served;

/// Has what each encoding changes.
const CANARY: &str = "canary/\"key\"+%=0123456789";

/// Every form that a secret is looked for in.
fn forms(secret: &str) -> Vec<String> {
    let percent: String = secret
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect();
    let json = serde_json::to_string(secret).unwrap();
    let mut forms = vec![
        secret.to_owned(),
        percent,
        json.trim_matches('"').to_owned(),
    ];
    for before in ["", "x", "xx"] {
        let encoded = STANDARD.encode(format!("{before}{secret}"));
        // Without the characters that what stands around the secret has a part in.
        forms.push(encoded[4..encoded.len() - 4].to_owned());
    }
    forms
}

/// What the model and the provider say, with `secret` in every place and form that they have.
fn script(secret: &str) -> Vec<Reply> {
    let (first, second) = secret.split_at(7);
    let encoded = STANDARD.encode(secret);
    let look = "env; cat /proc/*/environ /proc/*/cmdline | tr '\\000' '\\n'; \
        grep -rs 'sk-ant-f[a]ke\\|c[a]nary' /etc /home /tmp /var /run .; true";
    vec![
        Reply::error(429, "rate_limit_error", &format!("key {secret} is throttled"))
            .header("retry-after-ms", "1"),
        Reply::new()
            .thinking(&format!("The key is {secret}, or {encoded}"), "signature")
            .text(&format!("It is {first}"))
            .text(second)
            .text(&format!(" or {encoded}, in JSON {}.", json!({ "k": secret })))
            .call("bash", &json!({"command": format!("echo '{secret}' > leak.txt; echo {encoded} >> leak.txt")}))
            .call("file_write", &json!({"path": "note.txt", "content": secret}))
            .call("file_read", &json!({"path": format!("{secret}.txt")}))
            .call("bash", &json!({ secret: secret }))
            .call(secret, &json!({ "x": secret }))
            .call_so_far("bash", &format!("{{\"command\": \"{secret}"))
            .call("bash", &json!({"command": look})),
        Reply::new().text("Well. ").stops(secret),
    ]
}

/// Where `secret` is found, in any form, after a run in which it was said: by place.
async fn hits(secret: &str, env: &[(&str, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    let dir = tempfile::tempdir().unwrap();
    let mut replies = script(secret);
    replies.push(Reply::error(
        400,
        "invalid_request_error",
        &format!("bad key {secret}"),
    ));
    let llm = FakeLlm::start(replies).await;
    let base_url = llm.base_url();
    let mut all = vec![
        ("ANTHROPIC_API_KEY", KEY),
        ("ANTHROPIC_BASE_URL", base_url.as_str()),
        ("SANDCASTER_LOG", "debug"),
    ];
    all.extend_from_slice(env);
    // What is unknown in it is logged by name.
    let settings = json!({ secret: 1 }).to_string();
    std::fs::write(dir.path().join("sandcaster.json"), settings).unwrap();
    let server = Served::start(dir.path(), &all).await;
    let mut received = String::new();
    let mut runs = Vec::new();
    for _ in 0..2 {
        let stream = server
            .query(&json!({"prompt": "hi", "model": "sonnet"}))
            .await;
        runs.push(stream.run_id.clone());
        received.push_str(&stream.frames().await.concat());
    }
    for path in runs
        .iter()
        .flat_map(|run| {
            ["", "/events", "/files/leak.txt", "/files/note.txt"]
                .map(|rest| format!("/runs/{run}{rest}"))
        })
        .chain(["/runs".to_owned()])
    {
        received.push_str(&server.get(&path).await.text().await.unwrap());
    }
    // What the sandbox was asked came back in a tool result, which the client got.
    assert!(received.contains("PATH="), "{received}");
    let requests = llm.requests();
    let looked = requests[2].tool_results().last().unwrap().text.clone();
    let places = [
        ("client", received),
        ("log", server.log()),
        ("sandbox", looked),
    ];
    for (place, text) in places {
        if forms(secret).iter().any(|form| text.contains(form)) {
            found.push(place.to_owned());
        }
    }
    // With the write-ahead log, while the server is still up.
    if in_files(&dir.path().join(".sandcaster"), secret) {
        found.push("store".to_owned());
    }
    found
}

fn in_files(dir: &Path, secret: &str) -> bool {
    let forms = forms(secret);
    std::fs::read_dir(dir).unwrap().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return in_files(&path, secret);
        }
        let bytes = std::fs::read(&path).unwrap();
        forms.iter().any(|form| {
            bytes
                .windows(form.len())
                .any(|window| window == form.as_bytes())
        })
    })
}

#[tokio::test]
async fn no_key_comes_out_anywhere() {
    assert_eq!(hits(KEY, &[]).await, [""; 0]);
    assert_eq!(
        hits(CANARY, &[("SANDCASTER_API_KEY", CANARY)]).await,
        [""; 0]
    );
}

#[tokio::test]
async fn the_search_for_keys_finds_one_that_nobody_knows_to_be_a_key() {
    // The twin: the same run with a server that wasn't told that this is a secret.
    assert_eq!(
        hits(CANARY, &[]).await,
        ["client", "log", "sandbox", "store"]
    );
}

#[tokio::test]
async fn the_servers_keys_are_nowhere_in_a_sandbox() {
    let llm = FakeLlm::start([
        Reply::new().call(
            "bash",
            &json!({"command": "env; cat /proc/*/environ /proc/*/cmdline | tr '\\000' '\\n'; ls -la /proc/1/root/ ~ 2>&1"}),
        ),
        Reply::says("Done."),
    ])
    .await;
    let app = TestApp::with_llm(&llm).await;
    app.run(json!({"prompt": "hi", "model": "sonnet"})).await;
    let looked = llm.request(1).await.tool_results()[0].text.clone();
    assert!(looked.contains("PATH="), "{looked}");
    // Nothing was there to be hidden either.
    assert!(
        !looked.contains("sk-ant") && !looked.contains("[redacted]"),
        "{looked}"
    );
    app.stop().await;
}

#[tokio::test]
async fn a_short_api_key_harms_no_text_that_has_its_word_in_it() {
    let program = "import os\nprint('os imported', len(os.sep))\n";
    let llm = FakeLlm::start([
        Reply::new().call("file_write", &json!({"path": "a.py", "content": program})),
        Reply::new().call("bash", &json!({"command": "cat a.py; grep -c import a.py"})),
        Reply::says("It begins with import os."),
    ])
    .await;
    let server = Served::with_llm(&llm, &[("SANDCASTER_API_KEY", "import")]).await;
    let stream = server
        .query(&json!({"prompt": "hi", "model": "sonnet"}))
        .await;
    let run = stream.run_id.clone();
    let frames = stream.frames().await.concat();
    let file = server.get(&format!("/runs/{run}/files/a.py")).await;
    assert_eq!(file.text().await.unwrap(), program);
    let written = serde_json::to_string(program).unwrap();
    assert!(frames.contains(&written), "{frames}");
    assert!(frames.contains("import os\\nprint"), "{frames}");
    assert!(frames.contains("It begins with import os."), "{frames}");
    assert!(!frames.contains("[redacted]"), "{frames}");
    let log = server.log();
    assert!(log.contains("is not searched for"), "{log}");
}
