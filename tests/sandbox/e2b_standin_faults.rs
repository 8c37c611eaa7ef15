//! The stand-in for E2B itself: faults on demand, and what it holds against a client.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::support::fake_e2b::rawclient::{Made, RawClient, Told, read};
use crate::support::fake_e2b::{
    Death, Ending, FakeE2b, Reply, Route, StreamFault, end_frame, frame, message_frame,
};

pub(super) const SOON: Duration = Duration::from_secs(10);

pub(super) async fn sandbox() -> (FakeE2b, RawClient, Made) {
    let e2b = FakeE2b::start().await;
    let client = RawClient::of(&e2b);
    let made = client
        .create(json!({"templateID": "base", "timeout": 120}))
        .await;
    (e2b, client, made)
}

/// Polls until it holds; panics after [`SOON`].
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn kinds(told: &Told) -> Vec<String> {
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
