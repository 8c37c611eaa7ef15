//! The stand-in for E2B itself: faults on demand, deaths, counts, and what it holds against a client.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::support::fake_e2b::rawclient::{Made, RawClient, Told, in_background, read};
use crate::support::fake_e2b::{
    Death, Ending, FakeE2b, Reply, Route, Spelling, State, StreamFault, end_frame, frame,
    message_frame, signature,
};

const SOON: Duration = Duration::from_secs(10);

async fn sandbox() -> (FakeE2b, RawClient, Made) {
    let e2b = FakeE2b::start().await;
    let client = RawClient::of(&e2b);
    let made = client
        .create(json!({"templateID": "base", "timeout": 120}))
        .await;
    (e2b, client, made)
}

/// Polls until it holds; panics after [`SOON`].
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn kinds(told: &Told) -> Vec<String> {
    let (frames, _) = told.frames();
    let kind = |(flags, message): &(u8, Value)| {
        if *flags == 2 {
            return if message["error"].is_null() {
                "finish"
            } else {
                "error"
            }
            .to_owned();
        }
        let fields = message["event"].as_object();
        fields
            .and_then(|fields| fields.keys().next().cloned())
            .unwrap_or_default()
    };
    frames.iter().map(kind).collect()
}

#[tokio::test]
async fn commands_run_in_the_sandboxs_own_home() {
    let (e2b, client, made) = sandbox().await;
    let other = client.create(json!({"templateID": "base"})).await;
    assert_eq!(
        client.output(&made, "echo one > note; cat note").await,
        "one\n"
    );
    assert_eq!(client.output(&other, "ls").await, "");
    let upload = client.to(&other, "POST", "/files?path=%2Ftmp%2Fdeep%2Fnote");
    let upload = upload
        .header("content-type", "application/octet-stream")
        .body("two");
    assert_eq!(read(upload).await.unwrap().status, 200);
    assert_eq!(
        client
            .output(&made, "cat /tmp/deep/note 2>/dev/null || echo none")
            .await,
        "none\n"
    );
    let view = e2b
        .sandboxes()
        .into_iter()
        .find(|view| view.id == made.id)
        .unwrap();
    assert_eq!(std::fs::read(view.dir.join("home/note")).unwrap(), b"one\n");
    assert_eq!(view.state, State::Running);
}

#[tokio::test]
async fn a_fault_strikes_the_call_that_it_names_and_no_other() {
    let (e2b, client, _) = sandbox().await;
    e2b.on(Route::Create)
        .nth(2)
        .respond(Reply::from(503).header("Retry-After", "1"));
    let create = || {
        read(
            client
                .api("POST", "/v2/sandboxes")
                .json(&json!({"templateID": "base"})),
        )
    };
    assert_eq!(create().await.unwrap().status, 201);
    let second = create().await.unwrap();
    assert_eq!(
        (second.status, second.json()["code"].as_u64()),
        (503, Some(503))
    );
    assert_eq!(second.headers["retry-after"], "1");
    assert_eq!(create().await.unwrap().status, 201);
    assert_eq!((e2b.created(), e2b.calls(Route::Create)), (3, 4));
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_is_found_again_by_its_key() {
    let e2b = FakeE2b::start().await;
    let client = RawClient::of(&e2b);
    e2b.on(Route::Create).nth(1).drop_after_send();
    let create = |body: Value| {
        read(
            client
                .api("POST", "/v2/sandboxes")
                .header("idempotency-key", "attempt-1")
                .json(&body),
        )
    };
    assert!(create(json!({"templateID": "base"})).await.is_err());
    assert_eq!(e2b.created(), 1);
    let again = create(json!({"templateID": "base"})).await.unwrap();
    assert_eq!(
        again.json()["sandboxID"].as_str().unwrap(),
        e2b.sandboxes()[0].id
    );
    assert_eq!((again.status, e2b.created()), (201, 1));
    let other = create(json!({"templateID": "base", "timeout": 5}))
        .await
        .unwrap();
    assert_eq!(other.json()["error_code"], "idempotency_request_mismatch");
    e2b.expect_refusal("Idempotency-Key");
}

#[tokio::test]
async fn a_second_create_with_the_key_of_one_under_way_conflicts() {
    let e2b = FakeE2b::start().await;
    let client = RawClient::of(&e2b);
    e2b.set_create_latency(Duration::from_millis(300));
    let create = || {
        let request = client
            .api("POST", "/v2/sandboxes")
            .header("idempotency-key", "k");
        read(request.json(&json!({"templateID": "base"})))
    };
    let (one, two) = tokio::join!(create(), create());
    let mut statuses = [one.unwrap().status, two.unwrap().status];
    statuses.sort_unstable();
    assert_eq!((statuses, e2b.created()), ([201, 409], 1));
}

#[tokio::test]
async fn what_was_asked_for_is_done_even_if_the_client_leaves() {
    let e2b = FakeE2b::start().await;
    let client = RawClient::of(&e2b);
    let gate = e2b.on(Route::Create).nth(1).gate();
    let request = client
        .api("POST", "/v2/sandboxes")
        .json(&json!({"templateID": "base"}));
    {
        let sending = request.send();
        tokio::pin!(sending);
        tokio::select! {
            _ = &mut sending => panic!("answered through a closed gate"),
            () = gate.reached() => {}
        }
    }
    assert_eq!(e2b.created(), 0);
    gate.open();
    until("the sandbox is there", || e2b.sandboxes().len() == 1).await;
}

#[tokio::test]
async fn what_e2b_would_refuse_fails_the_test() {
    let (e2b, client, made) = sandbox().await;
    let no_token = Made {
        token: "wrong".to_owned(),
        ..made.clone()
    };
    assert_eq!(
        read(client.bash(&no_token, "true")).await.unwrap().status,
        401
    );
    e2b.expect_refusal("unauthorized access");
    let unknown = client
        .api("POST", "/v2/sandboxes")
        .json(&json!({"templateID": "nonesuch"}));
    assert_eq!(read(unknown).await.unwrap().status, 404);
    e2b.expect_refusal("template 'nonesuch' not found");
    let late = client
        .api("POST", "/v2/sandboxes")
        .json(&json!({"templateID": "base", "timeout": "5"}));
    assert_eq!(read(late).await.unwrap().status, 400);
    e2b.expect_refusal("timeout must be an integer");
    let leak = client
        .to(&made, "GET", "/health")
        .header("x-api-key", e2b.key());
    assert_eq!(read(leak).await.unwrap().status, 204);
    e2b.expect_refusal("the API key was sent to a sandbox");
    let wrong_type = client
        .to(&made, "POST", "/process.Process/Start")
        .json(&json!({}));
    assert_eq!(read(wrong_type).await.unwrap().status, 415);

    let failed = catch_unwind(AssertUnwindSafe(|| drop(e2b))).unwrap_err();
    let why = failed.downcast_ref::<String>().unwrap();
    assert!(
        why.contains("E2B would have refused") && why.contains("415"),
        "{why}"
    );
}

#[tokio::test]
async fn a_fault_that_no_call_met_fails_the_test() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Delete).nth(1).respond(500);
    e2b.on(Route::List).optional().hang();
    let failed = catch_unwind(AssertUnwindSafe(|| drop(e2b))).unwrap_err();
    let why = failed.downcast_ref::<String>().unwrap();
    assert!(why.contains("Delete") && !why.contains("List"), "{why}");
}

#[tokio::test]
async fn a_sandbox_that_dies_breaks_its_streams_and_leaves_no_process() {
    for (death, reads) in [
        (Death::Reset, vec!["start"]),
        (Death::EndFrame, vec!["start", "error"]),
    ] {
        let (e2b, client, made) = sandbox().await;
        // One hangs on, one is a daemon, one escaped to a session of its own.
        let script = "sleep 60 & setsid sleep 61 >/dev/null 2>&1 & sleep 62";
        let running = in_background(client.bash(&made, script));
        until("all processes run", || e2b.processes_left() >= 4).await;
        assert!(e2b.die(&made.id, death, "timeout").await);
        let told = running.await.unwrap().unwrap();
        assert_eq!(kinds(&told), reads);
        assert_eq!(told.broken, death == Death::Reset);
        assert_eq!(e2b.processes_left(), 0);
        let health = read(client.to(&made, "GET", "/health")).await.unwrap();
        let gone =
            json!({"sandboxId": made.id, "message": "The sandbox was not found", "code": 502});
        assert_eq!((health.status, health.json()), (502, gone));
        let delete = client.api("DELETE", &format!("/sandboxes/{}", made.id));
        assert_eq!(read(delete).await.unwrap().status, 404);
    }
}

#[tokio::test]
async fn a_sandbox_ends_with_its_time() {
    let e2b = FakeE2b::start().await;
    let client = RawClient::of(&e2b);
    let made = client
        .create(json!({"templateID": "base", "timeout": 1}))
        .await;
    let told = read(client.bash(&made, "sleep 60")).await.unwrap();
    assert!(told.broken);
    e2b.wait_until_empty(SOON).await;
}

#[tokio::test]
async fn a_command_is_killed_at_its_own_timeout() {
    let (e2b, client, made) = sandbox().await;
    let request = client
        .bash(&made, "exec sleep 60")
        .header("connect-timeout-ms", "300");
    let told = read(request).await.unwrap();
    assert_eq!(kinds(&told), ["start", "error"]);
    assert_eq!(told.frames().0[1].1["error"]["code"], "deadline_exceeded");
    until("it is dead", || e2b.processes_left() == 0).await;
}

#[tokio::test]
async fn a_paused_sandbox_looks_gone_and_comes_back() {
    let (e2b, client, made) = sandbox().await;
    let running = in_background(client.bash(&made, "sleep 60"));
    until("it runs", || e2b.processes_left() > 0).await;
    assert!(e2b.pause(&made.id));
    let told = running.await.unwrap().unwrap();
    assert_eq!(
        told.frames().0.last().unwrap().1["error"]["code"],
        "canceled"
    );
    assert_eq!(
        read(client.to(&made, "GET", "/health"))
            .await
            .unwrap()
            .status,
        502
    );
    let connect = client
        .api("POST", &format!("/v2/sandboxes/{}/connect", made.id))
        .json(&json!({}));
    assert_eq!(read(connect).await.unwrap().status, 201);
    assert_eq!(client.output(&made, "echo back").await, "back\n");
}

async fn spoiled(fault: StreamFault) -> Told {
    let (e2b, client, made) = sandbox().await;
    e2b.on(Route::Start).nth(1).stream(fault);
    read(client.bash(&made, "echo hi")).await.unwrap()
}

#[tokio::test]
async fn streams_are_cut_where_the_fault_says() {
    let told = spoiled(StreamFault::CutInFrame {
        after: 1,
        ending: Ending::Clean,
    })
    .await;
    assert_eq!(
        (kinds(&told), told.broken),
        (vec!["start".to_owned()], false)
    );
    assert!(told.frames().1 > 5, "half a frame follows");
    let told = spoiled(StreamFault::CutInFrame {
        after: 2,
        ending: Ending::Reset,
    })
    .await;
    assert_eq!((kinds(&told).len(), told.broken), (2, true));
    let told = spoiled(StreamFault::EndAfter {
        after: 0,
        ending: Ending::Clean,
    })
    .await;
    assert_eq!((told.bytes.len(), told.broken), (0, false));
    let told = spoiled(StreamFault::EndAfter {
        after: 1,
        ending: Ending::Reset,
    })
    .await;
    assert_eq!(
        (kinds(&told), told.broken),
        (vec!["start".to_owned()], true)
    );
}

#[tokio::test]
async fn streams_end_as_the_fault_says() {
    assert_eq!(
        kinds(&spoiled(StreamFault::NoEndFrame).await),
        ["start", "data", "end"]
    );
    assert_eq!(
        kinds(&spoiled(StreamFault::NoStart).await),
        ["data", "end", "finish"]
    );
    assert_eq!(
        kinds(&spoiled(StreamFault::NoExit).await),
        ["start", "data", "finish"]
    );
    let doubled = spoiled(StreamFault::DoubleEnd).await;
    assert_eq!(
        kinds(&doubled),
        ["start", "data", "end", "finish", "finish"]
    );
    let error = StreamFault::ErrorAfterExit {
        code: "internal",
        message: "late",
    };
    assert_eq!(
        kinds(&spoiled(error).await),
        ["start", "data", "end", "error"]
    );
    let gone = json!({"error": {"code": "unavailable", "message": "gone"}});
    let told = spoiled(StreamFault::EndFrame {
        after: 1,
        message: gone,
    })
    .await;
    assert_eq!(kinds(&told), ["start", "error"]);
    let unknown = message_frame(&json!({"event": {"novelty": {}}}));
    let told = spoiled(StreamFault::Insert {
        after: 1,
        bytes: unknown,
    })
    .await;
    assert_eq!(kinds(&told), ["start", "novelty", "data", "end", "finish"]);
    let every = Duration::from_millis(1);
    let told = spoiled(StreamFault::Trickle { bytes: 3, every }).await;
    assert_eq!(kinds(&told), ["start", "data", "end", "finish"]);
}

#[tokio::test]
async fn streams_fall_silent_until_the_sandbox_dies() {
    let every = Duration::from_millis(5);
    for fault in [
        StreamFault::Stall { after: 1 },
        StreamFault::KeepalivesOnly { after: 1, every },
    ] {
        let (e2b, client, made) = sandbox().await;
        let pings = matches!(fault, StreamFault::KeepalivesOnly { .. });
        let fault = e2b.on(Route::Start).nth(1).stream(fault);
        let response = client.bash(&made, "echo hi").send().await.unwrap();
        fault.reached().await;
        let mut body = response.bytes_stream();
        let mut told = body.next().await.unwrap().unwrap().to_vec();
        if pings {
            while !String::from_utf8_lossy(&told).contains("keepalive") {
                told.extend(body.next().await.unwrap().unwrap());
            }
        }
        until("the command has ended", || e2b.processes_left() == 0).await;
        assert!(e2b.die(&made.id, Death::Reset, "admin").await);
        let broke = async {
            loop {
                match body.next().await {
                    Some(Ok(more)) => told.extend(more),
                    Some(Err(_)) => return,
                    None => panic!("a clean end"),
                }
            }
        };
        tokio::time::timeout(SOON, broke).await.unwrap();
        assert!(
            !String::from_utf8_lossy(&told).contains("aGkK"),
            "output came through"
        );
    }
}

#[tokio::test]
async fn made_up_streams_and_cut_downloads_come_byte_for_byte() {
    let (e2b, client, made) = sandbox().await;
    let frames = [frame(1, b"{}"), end_frame(&json!({}))];
    e2b.on(Route::Start)
        .nth(1)
        .respond(Reply::frames(frames.clone()));
    let told = read(client.bash(&made, "true")).await.unwrap();
    assert_eq!(told.bytes, frames.concat());
    e2b.on(Route::Download)
        .nth(1)
        .respond(Reply::new(200).body("0123456789").cut_after(4));
    let told = read(client.to(&made, "GET", "/files?path=x"))
        .await
        .unwrap();
    assert_eq!(
        (told.bytes.as_slice(), told.broken),
        (b"0123".as_slice(), true)
    );
    e2b.on(Route::EnvdHealth)
        .first(2)
        .respond(Reply::port_closed(&made.id));
    e2b.on(Route::EnvdHealth).drop_before_acting();
    for _ in 0..2 {
        let health = read(client.to(&made, "GET", "/health")).await.unwrap();
        assert_eq!(
            (health.status, health.json()["port"].as_u64()),
            (502, Some(49983))
        );
    }
    assert!(read(client.to(&made, "GET", "/health")).await.is_err());
    assert_eq!(
        read(client.to(&made, "GET", "/health"))
            .await
            .unwrap()
            .status,
        204
    );
}

#[tokio::test]
async fn the_list_comes_in_pages_by_metadata() {
    let e2b = FakeE2b::start().await;
    let client = RawClient::of(&e2b);
    let ours: Vec<String> = (0..5)
        .map(|_| e2b.add_sandbox(&[("instance", "a b")]))
        .collect();
    e2b.add_sandbox(&[("instance", "other")]);
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("/v2/sandboxes?metadata=instance%3Da%2520b&limit=2&nextToken={token}");
        let page = read(client.api("GET", &path)).await.unwrap();
        let entries = page.json();
        let ids = entries
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["sandboxID"].as_str().unwrap());
        found.extend(ids.map(str::to_owned));
        match page.headers.get("x-next-token") {
            Some(next) => next.to_str().unwrap().clone_into(&mut token),
            None => break,
        }
    }
    found.reverse();
    assert_eq!((found, e2b.calls(Route::List)), (ours, 3));
}

#[tokio::test]
async fn an_account_at_its_limit_gets_no_more() {
    let (e2b, client, made) = sandbox().await;
    e2b.set_max_concurrent(1);
    let create = || {
        read(
            client
                .api("POST", "/v2/sandboxes")
                .json(&json!({"templateID": "base"})),
        )
    };
    let refused = create().await.unwrap();
    assert_eq!(refused.status, 429);
    assert!(
        refused.json()["message"]
            .as_str()
            .unwrap()
            .contains("maximum number of concurrent")
    );
    assert!(e2b.die(&made.id, Death::Reset, "request").await);
    assert_eq!(create().await.unwrap().status, 201);
    e2b.set_max_hours(1);
    let long = client
        .api("POST", "/v2/sandboxes")
        .json(&json!({"templateID": "base", "timeout": 7200}));
    let long = read(long).await.unwrap();
    let message = long.json()["message"].as_str().unwrap().to_owned();
    assert_eq!(
        (long.status, message.as_str()),
        (400, "Timeout cannot be greater than 1 hours")
    );
}

#[test]
fn webhooks_are_signed_as_e2b_signs_them() {
    // The sheet's worked examples.
    let body = br#"{"version":"v2","id":"f5911677-cb60-498f-afed-f68143b3cc59","type":"sandbox.lifecycle.killed","sandbox_id":"iea43m3325j517takcjvx","timestamp":"2026-01-02T03:04:05Z","event_data":{"kill_reason":"timeout"}}"#;
    assert_eq!(
        signature("whsec_sandcaster_1", body),
        "UhgPWshbc2PiyiZmj4owsnI_sRI6NfjYW8vuoN8i-nQ"
    );
    assert_eq!(
        signature("whsec_sandcaster_test", body),
        "I6v0w6PVcNfmV5DODaG4h64npXekGfxidnYLgxcAUYI"
    );
    let secret = "whsec_test_0123456789abcdef0123456789";
    assert_eq!(
        signature(secret, br#"{"id":"evt_7"}"#),
        "LS_u1EgtY5ok8djIg7gmnXMpx-njwzVW6qCJlrnTuaI"
    );
}

/// Answers each connection's request with the next of `statuses`, and gives the bodies.
async fn hook(statuses: Vec<u16>) -> (String, tokio::sync::mpsc::Receiver<Value>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    let left = std::sync::Arc::new(parking_lot::Mutex::new(statuses.into_iter()));
    let app = axum::Router::new().fallback(move |headers: axum::http::HeaderMap, body: String| {
        let (tx, left) = (tx.clone(), left.clone());
        async move {
            assert_eq!(
                headers["e2b-signature"].to_str().unwrap(),
                signature("s3cret", body.as_bytes())
            );
            tx.send(serde_json::from_str(&body).unwrap()).await.unwrap();
            let status = left.lock().next().unwrap_or(200);
            axum::http::StatusCode::from_u16(status).unwrap()
        }
    });
    let serving = axum::serve(listener, app).into_future();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(serving);
    (url, rx)
}

#[tokio::test]
async fn a_death_is_told_to_the_registered_webhook_until_it_listens() {
    let (url, mut bodies) = hook(vec![500, 200, 200]).await;
    let e2b = FakeE2b::start().await;
    let client = RawClient::of(&e2b);
    e2b.set_webhook_pause(Duration::from_millis(10));
    let registration = json!({
        "name": "h", "url": url, "enabled": true, "signatureSecret": "s3cret",
        "events": ["sandbox.lifecycle.killed", "sandbox.lifecycle.paused"],
    });
    let made = read(client.api("POST", "/events/webhooks").json(&registration))
        .await
        .unwrap();
    assert_eq!(
        (made.status, made.json().get("signatureSecret")),
        (201, None)
    );
    let doomed = e2b.add_sandbox(&[("run", "r1")]);
    assert!(e2b.die(&doomed, Death::Reset, "timeout").await);
    let (first, second) = (bodies.recv().await.unwrap(), bodies.recv().await.unwrap());
    assert_eq!(first, second);
    assert_eq!(first["sandbox_id"], json!(doomed));
    assert_eq!(first["event_data"]["kill_reason"], "timeout");
    assert_eq!(
        first["event_data"]["sandbox_metadata"],
        json!({"run": "r1"})
    );
    e2b.set_spelling(Spelling::Camel);
    let frozen = e2b.add_sandbox(&[]);
    assert!(e2b.pause(&frozen));
    let third = bodies.recv().await.unwrap();
    assert_eq!(
        (&third["sandboxId"], &third["version"]),
        (&json!(frozen), &json!("v1"))
    );
    until("all are noted", || e2b.deliveries().len() == 3).await;
    let statuses: Vec<_> = e2b.deliveries().iter().map(|d| d.status.unwrap()).collect();
    assert_eq!(statuses, [500, 200, 200]);
}
