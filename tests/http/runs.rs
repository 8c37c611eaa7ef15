//! Runs as JSON, pages of events, and cursors, from a store with known runs in it.

use std::sync::Arc;

use jiff::Timestamp;
use sandcaster::api::ApiLimits;
use sandcaster::error::ErrorCode;
use sandcaster::events::{Delta, ResultEvent, RunEvent, StopReason, StoredEvent, Totals};
use sandcaster::ids::{RunId, Seq};
use sandcaster::store::{
    Append, CommitListener, FileRecord, RunEnd, RunFacts, RunLease, RunState, RunStore as _,
    RunUsage, SandboxRecord, StoreError, StoredFile, WebhookDelivery,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::http::{TestServer, keyed, keyless};
use crate::support::memory_store::MemoryStore;
use crate::support::records::{facts, first_event};

pub fn id(n: u32) -> RunId {
    RunId::parse(&format!("run_{n:032x}")).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_774_016_530 + second).unwrap()
}

struct Quiet;

impl CommitListener for Quiet {
    fn committed(&self, _: &[Arc<StoredEvent>]) {}
    fn failed(&self, _: &[Arc<StoredEvent>], error: &StoreError) {
        panic!("{error}");
    }
}

/// A run with `deltas` events after its first.
pub async fn begin(store: &MemoryStore, n: u32, prompt: &str, deltas: u64) -> RunId {
    begin_leased(store, n, prompt, deltas).await.run
}

pub async fn begin_leased(store: &MemoryStore, n: u32, prompt: &str, deltas: u64) -> RunLease {
    let facts = RunFacts {
        id: id(n),
        prompt: prompt.to_owned(),
        model: "claude-sonnet-4-6".to_owned(),
        provider: "anthropic".to_owned(),
        ..facts(at(i64::from(n)))
    };
    let lease = store.create(facts, first_event()).await.unwrap();
    let events = (0..deltas)
        .map(|k| {
            let delta = RunEvent::Assistant(Delta::new(format!("{k} "), 1));
            Arc::new(StoredEvent::new(Seq(k + 2), &delta).unwrap())
        })
        .collect();
    let append = Append {
        lease: lease.clone(),
        events,
        listener: Arc::new(Quiet),
    };
    store.append(append).await.unwrap();
    lease
}

pub async fn end(store: &MemoryStore, run: &RunLease, last: u64) {
    let event = RunEvent::Result(ResultEvent {
        subtype: "success",
        content: "done".to_owned(),
        stop_reason: StopReason::End,
        truncated: false,
        totals: Totals::default(),
    });
    let end = RunEnd {
        state: RunState::Completed,
        completed_at: at(28),
        error: None,
        cost_nanos: Some(4_200_000),
        usage: Some(RunUsage {
            input_tokens: 1204,
            output_tokens: 876,
            complete: true,
        }),
        num_turns: 3,
        duration_secs: 27.5,
    };
    let event = Arc::new(StoredEvent::new(Seq(last), &event).unwrap());
    store.finish(run, event, end).await.unwrap();
}

#[tokio::test]
async fn a_run_that_ended_has_every_documented_field() {
    let server = TestServer::start(keyless()).await;
    let lease = begin_leased(&server.store, 1, "Compare Notion, Coda, and Slite", 2).await;
    end(&server.store, &lease, 4).await;
    let run = lease.run;
    let reply = server.get("/runs").send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.json(),
        json!([{
            "id": run, "prompt": "Compare Notion, Coda, and Slite", "model": "claude-sonnet-4-6",
            "status": "completed", "statusDetail": "completed", "costUsd": 0.0042,
            "inputTokens": 1204, "outputTokens": 876, "numTurns": 3, "durationSecs": 27.5,
            "startedAt": "2026-03-20T14:22:11Z", "completedAt": "2026-03-20T14:22:38Z",
            "filesCount": 0, "provider": "anthropic", "sandboxProvider": "local", "background": false,
        }])
    );
}

#[tokio::test]
async fn what_is_unknown_is_absent() {
    let server = TestServer::start(keyless()).await;
    let run = begin(&server.store, 1, "hello", 0).await;
    let reply = server.get(&format!("/runs/{run}")).send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.json(),
        json!({
            "id": run, "prompt": "hello", "model": "claude-sonnet-4-6",
            "status": "running", "statusDetail": "running", "startedAt": "2026-03-20T14:22:11Z",
            "filesCount": 0, "provider": "anthropic", "sandboxProvider": "local", "background": false,
            "lastSeq": 1, "eventsUrl": format!("/runs/{run}/events"),
            "files": [], "sandboxes": [], "webhooks": [],
        })
    );
}

#[tokio::test]
async fn a_failed_run_says_why_and_what_is_unknown_of_its_end_is_absent() {
    let server = TestServer::start(keyless()).await;
    for (n, usage) in [
        (1, None),
        (
            2,
            Some(RunUsage {
                input_tokens: 7,
                output_tokens: 0,
                complete: false,
            }),
        ),
    ] {
        let lease = begin_leased(&server.store, n, "hello", 0).await;
        let problem = sandcaster::error::Problem::new(ErrorCode::LlmAuth, "the key was refused");
        let event = RunEvent::Error(sandcaster::events::ErrorEvent::new(
            &problem,
            Totals::default(),
        ));
        let end = RunEnd {
            state: RunState::Failed,
            completed_at: at(2),
            error: Some((ErrorCode::LlmAuth, problem.message)),
            cost_nanos: None,
            usage,
            num_turns: 0,
            duration_secs: 0.5,
        };
        let event = Arc::new(StoredEvent::new(Seq(2), &event).unwrap());
        server.store.finish(&lease, event, end).await.unwrap();
        let path = format!("/runs/{}", lease.run);
        let body = server.get(&path).send().await.json();
        assert_eq!(body["status"], "error");
        assert_eq!(body["statusDetail"], "failed");
        assert_eq!(body["error"], "the key was refused");
        assert_eq!(body["errorCode"], "LLM_AUTH");
        assert!(body.get("costUsd").is_none());
        let told = ["inputTokens", "outputTokens", "usageComplete"].map(|name| body.get(name));
        let expected = [json!(7), json!(0), json!(false)];
        match usage {
            Some(_) => assert_eq!(told, expected.each_ref().map(Some)),
            None => assert_eq!(told, [None; 3]),
        }
    }
}

#[tokio::test]
async fn a_run_shows_what_belongs_to_it() {
    let server = TestServer::start(keyless()).await;
    let lease = begin_leased(&server.store, 1, "hello", 0).await;
    let run = &lease.run;
    let record = FileRecord {
        path: "out/a b.txt".to_owned(),
        mime_type: "text/plain".to_owned(),
        size: 2,
        sha256: "ab".to_owned(),
    };
    let bytes = bytes::Bytes::from_static(b"hi");
    server
        .store
        .put_file(&lease, StoredFile { record, bytes })
        .await
        .unwrap();
    for (attempt, sandbox_id, destroyed) in [(1, None, true), (2, Some("sb1".to_owned()), false)] {
        let sandbox = SandboxRecord {
            backend: "e2b".to_owned(),
            attempt,
            sandbox_id,
            expires: 0,
            destroyed,
        };
        server.store.put_sandbox(&lease, sandbox).await.unwrap();
    }
    for (n, reason) in (1..).zip(["timeout", "request", "odd"]) {
        let delivery = WebhookDelivery {
            event_id: format!("e{n}"),
            event_type: "sandbox.lifecycle.killed".to_owned(),
            sandbox_id: Some("sb1".to_owned()),
            run: Some(run.clone()),
            signed: true,
            received_at: at(5),
            kill_reason: Some(reason.to_owned()),
        };
        server.store.put_webhook(delivery).await.unwrap();
    }
    let body = server.get(&format!("/runs/{run}")).send().await.json();
    assert_eq!(body["filesCount"], 1);
    assert_eq!(
        body["files"],
        json!([{"path": "out/a b.txt", "mimeType": "text/plain", "size": 2, "sha256": "ab",
                "url": format!("/runs/{run}/files/out/a%20b.txt")}])
    );
    assert_eq!(
        body["sandboxes"],
        json!([{"backend": "e2b", "attempt": 1, "destroyed": true},
               {"backend": "e2b", "attempt": 2, "destroyed": false, "id": "sb1"}])
    );
    let reasons = body["webhooks"].as_array().unwrap().iter();
    let reasons: Vec<_> = reasons.map(|webhook| &webhook["killReason"]).collect();
    assert_eq!(reasons, ["timeout", "request", "odd"]);
    assert_eq!(
        body["webhooks"][0],
        json!({"id": "e1", "type": "sandbox.lifecycle.killed", "signed": true,
                "receivedAt": "2026-03-20T14:22:15Z", "sandboxId": "sb1", "killReason": "timeout"})
    );
}

#[tokio::test]
async fn the_list_is_newest_first_short_and_cut() {
    let server = TestServer::start(keyless()).await;
    let long = "é".repeat(150);
    for n in 1..=25 {
        begin(&server.store, n, &long, 0).await;
    }
    let list = server.get("/runs").send().await.json();
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 20);
    assert_eq!(list[0]["id"], id(25).as_str());
    assert_eq!(list[0]["prompt"].as_str().unwrap(), "é".repeat(100));
    let whole = server.get(&format!("/runs/{}", id(25))).send().await.json();
    assert_eq!(whole["prompt"].as_str().unwrap(), long);
    for (limit, count) in [("5", 5), ("1", 1), ("200", 25)] {
        let list = server
            .get(&format!("/runs?limit={limit}"))
            .send()
            .await
            .json();
        assert_eq!(list.as_array().unwrap().len(), count);
    }
    for bad in ["0", "201", "-1", "x", "", "1.0", "5&limit=6"] {
        let reply = server.get(&format!("/runs?limit={bad}")).send().await;
        assert_eq!(reply.status, 400, "{bad}");
        assert_eq!(reply.json()["field"], "limit");
        if !bad.contains('&') {
            assert!(reply.text().contains("1 to 200"), "{}", reply.text());
        }
    }
}

#[tokio::test]
async fn an_unknown_run_is_not_found_whatever_its_id_looks_like() {
    let server = TestServer::start(keyless()).await;
    let known_form = id(9).to_string();
    for run in [
        known_form.as_str(),
        "run_abc",
        "1",
        "..",
        "RUN_0",
        "%00",
        "run_%C3%A9",
    ] {
        for (method, tail) in [("GET", ""), ("GET", "/events"), ("POST", "/cancel")] {
            let reply = server
                .request(method, &format!("/runs/{run}{tail}"))
                .send()
                .await;
            assert_eq!(reply.status, 404, "{method} {run}{tail}");
            assert_eq!(reply.code(), "RUN_NOT_FOUND");
            let hint = &reply.json()["hint"];
            assert!(
                hint.as_str().is_some_and(|hint| hint.contains("/runs")),
                "{hint}"
            );
        }
        let page = server.get(&format!("/runs/{run}/events"));
        let page = page.header("Accept", "application/json").send().await;
        assert_eq!(page.code(), "RUN_NOT_FOUND");
    }
}

#[tokio::test]
async fn what_a_client_may_leave_unread_is_bounded() {
    let limits = ApiLimits {
        answers_at_once: 256 << 10,
        ..ApiLimits::default()
    };
    let server = TestServer::start_with(keyless(), limits).await;
    let lease = begin_leased(&server.store, 1, &"é".repeat(200_000), 0).await;
    let run = lease.run.clone();
    let events = (2..=201)
        .map(|seq| {
            let delta = RunEvent::Assistant(Delta::new("x".repeat(4000), 1));
            Arc::new(StoredEvent::new(Seq(seq), &delta).unwrap())
        })
        .collect();
    let append = Append {
        lease: lease.clone(),
        events,
        listener: Arc::new(Quiet),
    };
    server.store.append(append).await.unwrap();
    let (mut after, mut pages) = (0, 0);
    while after < 201 {
        let request = server.get(&format!("/runs/{run}/events?after={after}"));
        let reply = request.header("Accept", "application/json").send().await;
        assert_eq!(reply.status, 200);
        assert!(reply.text().len() < 140 << 10, "{}", reply.text().len());
        let page = reply.json();
        let first = &page["events"][0]["seq"];
        assert_eq!(*first, after + 1, "nothing is left out");
        after = page["nextAfter"].as_u64().unwrap();
        pages += 1;
    }
    assert_eq!(pages, 7);
    let whole = server.get(&format!("/runs/{run}")).send().await;
    assert_eq!((whole.status, whole.code().as_str()), (503, "SERVER_BUSY"));
    // Who cancels a run does not ask for its prompt.
    end(&server.store, &lease, 202).await;
    let cancelled = server.post(&format!("/runs/{run}/cancel")).send().await;
    assert_eq!(cancelled.json()["prompt"], "é".repeat(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_large_answers_unread_keeps_nobody_else_from_reading() {
    let limits = ApiLimits {
        answers_at_once: 10 << 20,
        ..ApiLimits::default()
    };
    let server = TestServer::start_with(keyless(), limits).await;
    let prompt = "\u{1f600}".repeat(1_000_000);
    let run = begin_leased(&server.store, 1, &prompt, 0).await.run;
    let whole = server.get(&format!("/runs/{run}"));
    let mut lazy = Vec::new();
    for _ in 0..4 {
        let mut stream = server.connect().await;
        stream.write_all(&whole.bytes()).await.unwrap();
        let mut beginning = [0; 12];
        stream.read_exact(&mut beginning).await.unwrap();
        assert_eq!(&beginning, b"HTTP/1.1 200");
        lazy.push(stream);
    }
    let reply = whole.clone().send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["prompt"], prompt);
    // The first made room; the last may take its time.
    let mut lengths = Vec::new();
    for mut stream in lazy {
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
        lengths.push(rest.len() > prompt.len());
    }
    assert_eq!(lengths, [false, false, false, true]);
}

#[tokio::test]
async fn events_come_in_pages_of_json() {
    let server = TestServer::start(keyless()).await;
    let lease = begin_leased(&server.store, 1, "hello", 100).await;
    let run = lease.run.clone();
    let page = async |query: &str| {
        let request = server.get(&format!("/runs/{run}/events{query}"));
        let reply = request.header("Accept", "application/json").send().await;
        assert_eq!(reply.status, 200, "{query}");
        reply.json()
    };
    let first = page("?limit=3").await;
    assert_eq!(first["events"].as_array().unwrap().len(), 3);
    assert_eq!(first["events"][0]["type"], "system");
    assert_eq!(first["events"][2]["seq"], 3);
    assert_eq!(first["nextAfter"], 3);
    assert_eq!(first["terminal"], false);
    let rest = page("?after=3").await;
    assert_eq!(rest["events"].as_array().unwrap().len(), 98);
    assert_eq!(rest["nextAfter"], 101);
    let head = page("?after=101").await;
    assert_eq!(
        head,
        json!({"events": [], "nextAfter": 101, "terminal": false})
    );
    end(&server.store, &lease, 102).await;
    let last = page("?after=100").await;
    assert_eq!(last["terminal"], true);
    assert_eq!(last["events"][1]["type"], "result");
    let over = page("?after=102").await;
    assert_eq!(
        over,
        json!({"events": [], "nextAfter": 102, "terminal": true})
    );
    // The header wins.
    let request = server.get(&format!("/runs/{run}/events?after=1&limit=1"));
    let request = request.header("Accept", "application/json");
    let reply = request.header("Last-Event-ID", "50").send().await;
    assert_eq!(reply.json()["nextAfter"], 51);
}

#[tokio::test]
async fn wrong_cursors_are_loud() {
    let server = TestServer::start(keyless()).await;
    let run = begin(&server.store, 1, "hello", 2).await;
    for accept in ["application/json", "text/event-stream"] {
        for cursor in [
            "x",
            "-1",
            "1.5",
            "9007199254740992",
            "99999999999999999999",
            "0x1",
            " 1",
        ] {
            let cursor = cursor.replace(' ', "%20");
            let request = server.get(&format!("/runs/{run}/events?after={cursor}"));
            let reply = request.header("Accept", accept).send().await;
            assert_eq!(reply.status, 400, "{cursor}");
            assert_eq!(reply.code(), "CURSOR_INVALID");
            assert_eq!(reply.json()["field"], "after");
        }
        let request = server.get(&format!("/runs/{run}/events?after=1"));
        let request = request
            .header("Accept", accept)
            .header("Last-Event-ID", "abc");
        let reply = request.send().await;
        assert_eq!(reply.code(), "CURSOR_INVALID");
        assert_eq!(reply.json()["field"], "Last-Event-ID");
    }
    let ahead = server.get(&format!("/runs/{run}/events?after=4"));
    let reply = ahead.header("Accept", "application/json").send().await;
    assert_eq!(reply.status, 409);
    assert_eq!(reply.code(), "CURSOR_AHEAD");
    assert_eq!(reply.json()["runId"], run.as_str());
    let limited = server
        .get(&format!("/runs/{run}/events?limit=2"))
        .send()
        .await;
    assert_eq!(limited.status, 400);
    assert_eq!(limited.json()["field"], "limit");
}

#[tokio::test]
async fn a_stream_at_the_end_of_an_ended_run_tells_the_client_to_stop() {
    let server = TestServer::start(keyless()).await;
    let lease = begin_leased(&server.store, 1, "hello", 2).await;
    end(&server.store, &lease, 4).await;
    let run = lease.run;
    let request = server.get(&format!("/runs/{run}/events"));
    let reply = request.header("Last-Event-ID", "4").send().await;
    assert_eq!(reply.status, 204);
    assert!(reply.body.is_empty());
}

#[tokio::test]
async fn a_run_is_deleted_when_it_has_ended_and_then_it_is_known_to_be_gone() {
    let server = TestServer::start(keyless()).await;
    let lease = begin_leased(&server.store, 1, "hello", 2).await;
    let run = lease.run.clone();
    let delete = || server.request("DELETE", &format!("/runs/{run}"));
    let live = delete().send().await;
    assert_eq!((live.status, live.code().as_str()), (409, "RUN_ACTIVE"));
    assert_eq!(live.json()["runId"], run.as_str());
    // It is not this process's.
    let hint = live.json()["hint"].to_string();
    assert!(hint.contains("sandcaster query"), "{hint}");
    end(&server.store, &lease, 4).await;
    let odd = server.request("DELETE", &format!("/runs/{run}?force=1"));
    assert_eq!(odd.send().await.status, 400);
    let deleted = delete().send().await;
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    for (method, tail) in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/files/a.txt"),
    ] {
        let path = format!("/runs/{run}{tail}");
        let reply = server.request(method, &path).send().await;
        assert_eq!(reply.status, 404, "{method} {path}");
        assert_eq!(reply.code(), "RUN_NOT_FOUND");
        assert_eq!(reply.json()["hint"], "GET /runs lists the newest runs");
    }
    for accept in ["application/json", "text/event-stream"] {
        let request = server.get(&format!("/runs/{run}/events"));
        let reply = request.header("Accept", accept).send().await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (410, "EVENTS_EXPIRED")
        );
    }
    assert_eq!(server.get("/runs").send().await.json(), json!([]));
    let never = server.request("DELETE", &format!("/runs/{}", id(9)));
    assert_eq!(never.send().await.status, 404);
}

#[tokio::test]
async fn deleting_needs_the_key() {
    let key = "k".repeat(40);
    let server = TestServer::start(keyed(&[&key])).await;
    let lease = begin_leased(&server.store, 1, "hello", 2).await;
    end(&server.store, &lease, 4).await;
    let delete = || server.request("DELETE", &format!("/runs/{}", lease.run));
    assert_eq!(delete().send().await.status, 401);
    let keyed = delete().header("Authorization", &format!("Bearer {key}"));
    assert_eq!(keyed.send().await.status, 204);
}
