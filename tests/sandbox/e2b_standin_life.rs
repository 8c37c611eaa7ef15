//! The stand-in for E2B itself: how sandboxes live, are found and die, and who is told.

use std::time::Duration;

use serde_json::{Value, json};

use super::e2b_standin_faults::{SOON, kinds, sandbox, until};
use crate::support::fake_e2b::rawclient::{RawClient, in_background, read};
use crate::support::fake_e2b::{Death, FakeE2b, Route, Spelling, State, signature};

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
