//! The E2B backend against faults of the control plane: the right code, the right decision to try again,
//! and never a second sandbox. Faults of a sandbox itself are in `e2b_breaks`.

use std::time::Duration;

use sandcaster::clock::Deadline;
use sandcaster::error::ErrorCode;
use sandcaster::sandbox::e2b::Timing;
use sandcaster::sandbox::{SandboxError, SandboxSpec};
use serde_json::json;
use tokio::time::Instant;

use super::e2b_support::*;
use crate::support::fake_e2b::{FakeE2b, Fault, KEY, Reply, Route};

const SOON: Duration = Duration::from_secs(10);

async fn create_error(e2b: &FakeE2b) -> SandboxError {
    bounded(backend(e2b).create(&spec(), &labels()))
        .await
        .err()
        .unwrap()
}

fn keys(e2b: &FakeE2b) -> Vec<String> {
    let requests = e2b.requests_of(Route::Create);
    requests
        .iter()
        .map(|seen| seen.header("idempotency-key").to_owned())
        .collect()
}

#[tokio::test]
async fn refusals_of_a_create_are_final_and_have_their_codes() {
    for (reply, code, part) in [
        (Reply::from(400), ErrorCode::SandboxError, "HTTP 400"),
        (
            Reply::from(401),
            ErrorCode::ProviderAuthMissing,
            "refused the key",
        ),
        (Reply::from(402), ErrorCode::SandboxError, "HTTP 402"),
        (
            Reply::from(403),
            ErrorCode::ProviderAuthMissing,
            "refused the key",
        ),
        (Reply::from(404), ErrorCode::TemplateNotFound, "`base`"),
        (Reply::from(422), ErrorCode::SandboxError, "HTTP 422"),
        (Reply::from(500), ErrorCode::SandboxError, "HTTP 500"),
        (
            Reply::from(503).header("Should-Retry", "false"),
            ErrorCode::SandboxError,
            "HTTP 503",
        ),
        (
            Reply::html(302, "elsewhere").header("Location", "http://127.0.0.1:1/"),
            ErrorCode::SandboxError,
            "HTTP 302",
        ),
        (
            Reply::json(
                400,
                &json!({"code": 400, "message": "template must be rebuilt"}),
            ),
            ErrorCode::TemplateIncompatible,
            "rebuilt",
        ),
        (
            Reply::json(
                503,
                &json!({"code": 503, "message": "no", "error_code": "sandbox_create_refused"}),
            ),
            ErrorCode::SandboxError,
            "no",
        ),
    ] {
        let e2b = FakeE2b::start().await;
        e2b.on(Route::Create).respond(reply);
        let error = create_error(&e2b).await;
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(e2b.calls(Route::Create), 1, "{error}");
        assert_eq!(e2b.created(), 0);
    }
}

#[tokio::test]
async fn a_wrong_key_or_template_is_told_by_e2b_itself() {
    let e2b = FakeE2b::start().await;
    let wrong = "e2b_1111111111111111111111111111111111111111";
    let refused = backend_with(&e2b, Some(wrong), quick());
    let error = refused.create(&spec(), &labels()).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::ProviderAuthMissing);
    assert!(error.hint().unwrap().contains("E2B_API_KEY"));
    assert!(!format!("{error:?}").contains(wrong));
    e2b.expect_refusal("API key");
    let unknown = SandboxSpec {
        template: Some("no-such-template".to_owned()),
        ..spec()
    };
    let error = backend(&e2b)
        .create(&unknown, &labels())
        .await
        .err()
        .unwrap();
    assert_eq!(error.code(), ErrorCode::TemplateNotFound);
    assert!(error.to_string().contains("`no-such-template`"), "{error}");
    e2b.allow_refusals();
}

#[tokio::test]
async fn a_key_that_comes_back_in_an_error_is_not_shown() {
    let e2b = FakeE2b::start().await;
    let echo = format!("Invalid API key {KEY}");
    e2b.on(Route::Create)
        .respond(Reply::json(401, &json!({"code": 401, "message": echo})));
    e2b.on(Route::List)
        .respond(Reply::html(400, &format!("<p>{KEY}</p>")));
    let error = create_error(&e2b).await;
    assert!(!format!("{error:?} {error}").contains(KEY), "{error}");
    let error = backend(&e2b).list(INSTANCE).await.unwrap_err();
    assert!(!format!("{error:?} {error}").contains(KEY), "{error}");
}

#[tokio::test]
async fn passing_faults_of_a_create_are_tried_again_under_the_same_key() {
    for (reply, calls) in [
        (Reply::from(429), 2),
        (Reply::from(502), 2),
        (Reply::from(503), 2),
        (Reply::html(504, "upstream request timeout"), 2),
        (Reply::from(409), 2),
        (Reply::from(500).header("Should-Retry", "true"), 2),
        (Reply::html(201, "<html>not what was promised"), 2),
    ] {
        let e2b = FakeE2b::start().await;
        e2b.on(Route::Create).respond(reply.clone());
        let made = bounded(backend(&e2b).create(&spec(), &labels())).await;
        assert!(made.is_ok(), "{reply:?}: {:?}", made.err());
        let keys = keys(&e2b);
        assert_eq!(keys.len(), calls, "{reply:?}");
        assert_eq!(keys[0], keys[1], "{reply:?}");
        assert_eq!(e2b.created(), 1, "{reply:?}");
    }
}

#[tokio::test]
async fn faults_that_stay_end_after_a_few_tries() {
    for (status, calls, code) in [
        (502, 4, ErrorCode::SandboxError),
        (503, 4, ErrorCode::SandboxError),
        (504, 4, ErrorCode::SandboxTimeout),
    ] {
        let e2b = FakeE2b::start().await;
        e2b.on(Route::Create).always().respond(status);
        let error = create_error(&e2b).await;
        assert_eq!(
            (error.code(), e2b.calls(Route::Create)),
            (code, calls),
            "{error}"
        );
    }
    let e2b = FakeE2b::start().await;
    let asked = Reply::from(500).header("Should-Retry", "true");
    e2b.on(Route::Create).always().respond(asked);
    create_error(&e2b).await;
    assert_eq!(e2b.calls(Route::Create), 2);
}

#[tokio::test]
async fn retry_after_is_obeyed_and_never_beyond_the_deadline() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create)
        .respond(Reply::from(429).header("Retry-After", "1"));
    let began = Instant::now();
    backend(&e2b).create(&spec(), &labels()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));

    e2b.on(Route::Create)
        .respond(Reply::from(429).header("Retry-After", "600"));
    let began = Instant::now();
    let error = create_error(&e2b).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    let SandboxError::RateLimited {
        retry_after,
        at_capacity,
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(retry_after, Some(Duration::from_mins(10)));
    assert!(!at_capacity);
}

#[tokio::test]
async fn an_account_at_its_limit_is_told_at_once() {
    let e2b = FakeE2b::start().await;
    e2b.set_max_concurrent(0);
    let error = create_error(&e2b).await;
    assert!(
        matches!(
            error,
            SandboxError::RateLimited {
                at_capacity: true,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(e2b.calls(Route::Create), 1);
}

/// Makes one call go wrong.
type Spoil = fn(&FakeE2b) -> Fault;

#[tokio::test]
async fn a_sandbox_whose_answer_was_lost_is_taken_over() {
    let timing = Timing {
        create_try: Duration::from_millis(300),
        ..quick()
    };
    let ways: [(&str, Spoil); 5] = [
        ("dropped", |e2b| e2b.on(Route::Create).drop_after_send()),
        ("hung", |e2b| e2b.on(Route::Create).hang_after_acting()),
        ("late", |e2b| {
            e2b.on(Route::Create).delay_answer(Duration::from_secs(3))
        }),
        ("504", |e2b| {
            let gave_up = Reply::html(504, "upstream request timeout");
            e2b.on(Route::Create).respond_after_acting(gave_up)
        }),
        ("unreadable", |e2b| {
            let unreadable = Reply::html(201, "<html>");
            e2b.on(Route::Create).respond_after_acting(unreadable)
        }),
    ];
    for (way, spoil) in ways {
        let e2b = FakeE2b::start().await;
        spoil(&e2b);
        let backend = backend_with(&e2b, Some(KEY), timing);
        let sandbox = bounded(backend.create(&spec(), &labels())).await.unwrap();
        assert_eq!(e2b.calls(Route::Create), 1, "{way}");
        assert_eq!(e2b.created(), 1, "{way}");
        assert_eq!(
            text(&sh(&*sandbox, "echo here").await.stdout),
            "here\n",
            "{way}"
        );
        sandbox.kill().await.unwrap();
        e2b.wait_until_empty(SOON).await;
    }
}

#[tokio::test]
async fn a_create_that_never_arrived_is_sent_again_under_the_same_key() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create).drop_before_acting();
    backend(&e2b).create(&spec(), &labels()).await.unwrap();
    let keys = keys(&e2b);
    assert_eq!((keys.len(), e2b.created()), (2, 1));
    assert_eq!(keys[0], keys[1]);
    let order: Vec<Route> = e2b
        .requests()
        .iter()
        .map(|seen| seen.route)
        .take(3)
        .collect();
    assert_eq!(order, [Route::Create, Route::List, Route::Create]);
}

#[tokio::test]
async fn without_a_look_at_what_is_there_no_second_create_is_sent() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create).drop_after_send();
    e2b.on(Route::List).always().respond(500);
    let error = create_error(&e2b).await;
    assert_eq!(error.code(), ErrorCode::SandboxError, "{error}");
    assert_eq!(e2b.calls(Route::Create), 1);
    // What was left is found as soon as E2B answers again.
    e2b.clear_faults();
    e2b.wait_until_empty(SOON).await;
}

#[tokio::test]
async fn a_failed_create_leaves_nothing_behind() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create).respond_after_acting(500);
    create_error(&e2b).await;
    e2b.wait_until_empty(SOON).await;
    assert_eq!(e2b.created(), 1);
}

#[tokio::test]
async fn a_create_past_its_deadline_leaves_nothing_behind() {
    let e2b = FakeE2b::start().await;
    e2b.on(Route::Create).hang_after_acting();
    let spec = SandboxSpec {
        deadline: Deadline::after(Duration::from_millis(400)),
        ..spec()
    };
    let error = bounded(backend(&e2b).create(&spec, &labels()))
        .await
        .err()
        .unwrap();
    assert_eq!(error.code(), ErrorCode::SandboxTimeout, "{error}");
    e2b.wait_until_empty(SOON).await;
    assert_eq!(e2b.created(), 1);
}

#[tokio::test]
async fn a_create_that_is_dropped_leaves_nothing_behind() {
    let e2b = FakeE2b::start().await;
    let met = e2b.on(Route::Create).hang_after_acting();
    let backend = backend(&e2b);
    let (spec, labels) = (spec(), labels());
    tokio::select! {
        made = backend.create(&spec, &labels) => panic!("{:?}", made.err()),
        () = async {
            met.reached().await;
            while e2b.created() == 0 {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    e2b.wait_until_empty(SOON).await;
    assert_eq!(e2b.created(), 1);
}

#[tokio::test]
async fn only_the_sandbox_of_this_attempt_is_taken_over_or_killed() {
    let e2b = FakeE2b::start().await;
    let labels = labels();
    let run = labels.run.as_str();
    let others = [
        e2b.add_sandbox(&[
            ("sandcaster-run", run),
            ("sandcaster-instance", "another"),
            ("sandcaster-attempt", "1"),
        ]),
        e2b.add_sandbox(&[
            ("sandcaster-run", run),
            ("sandcaster-instance", INSTANCE),
            ("sandcaster-attempt", "2"),
        ]),
        e2b.add_sandbox(&[
            ("sandcaster-run", "run_x"),
            ("sandcaster-instance", INSTANCE),
            ("sandcaster-attempt", "1"),
        ]),
    ];
    e2b.on(Route::Create).drop_after_send();
    let sandbox = backend(&e2b).create(&spec(), &labels).await.unwrap();
    assert!(!others.contains(&sandbox.id().to_owned()));
    sandbox.kill().await.unwrap();
    let mut left: Vec<String> = e2b.sandboxes().into_iter().map(|left| left.id).collect();
    left.sort();
    let mut others = others.to_vec();
    others.sort();
    assert_eq!(left, others);
}

#[tokio::test]
async fn a_twin_that_appears_late_is_killed_and_the_one_in_use_is_not() {
    let e2b = FakeE2b::start().await;
    let labels = labels();
    let twin = [
        ("sandcaster-run", labels.run.as_str()),
        ("sandcaster-instance", INSTANCE),
        ("sandcaster-attempt", "1"),
    ];
    e2b.on(Route::Create).drop_before_acting();
    let sandbox = backend(&e2b).create(&spec(), &labels).await.unwrap();
    let late = e2b.add_sandbox(&twin);
    bounded(async {
        while e2b.sandboxes().iter().any(|left| left.id == late) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(text(&sh(&*sandbox, "echo here").await.stdout), "here\n");
    e2b.add_sandbox(&twin);
    sandbox.kill().await.unwrap();
    e2b.wait_until_empty(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn no_connection_is_an_error_that_names_no_address() {
    let e2b = FakeE2b::start().await;
    let backend = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", closed.local_addr().unwrap());
        drop(closed);
        backend_at(&url, Some(KEY), quick())
    };
    let error = bounded(backend.create(&spec(), &labels()))
        .await
        .err()
        .unwrap();
    assert_eq!(error.code(), ErrorCode::SandboxError);
    assert!(error.to_string().contains("could not reach E2B"), "{error}");
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    drop(e2b);
}

#[tokio::test]
async fn a_kill_is_tried_three_times() {
    let e2b = FakeE2b::start().await;
    let backend = backend(&e2b);
    let sandbox = backend.create(&spec(), &labels()).await.unwrap();
    e2b.on(Route::Delete).first(2).respond(500);
    sandbox.kill().await.unwrap();
    assert_eq!(e2b.calls(Route::Delete), 3);
    e2b.wait_until_empty(SOON).await;

    let sandbox = backend.create(&spec(), &labels()).await.unwrap();
    e2b.on(Route::Delete).first(3).respond(500);
    let error = sandbox.kill().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SandboxError);
    backend.kill(sandbox.id()).await.unwrap();
    e2b.wait_until_empty(SOON).await;
}

#[tokio::test]
async fn a_kill_that_hangs_or_loses_its_answer_ends() {
    let e2b = FakeE2b::start().await;
    let timing = Timing {
        call: Duration::from_millis(300),
        ..quick()
    };
    let backend = backend_with(&e2b, Some(KEY), timing);
    let sandbox = backend.create(&spec(), &labels()).await.unwrap();
    e2b.on(Route::Delete).hang();
    e2b.on(Route::Delete).drop_after_send();
    bounded(sandbox.kill()).await.unwrap();
    assert_eq!(e2b.calls(Route::Delete), 3);
    e2b.wait_until_empty(SOON).await;

    let id = e2b.add_sandbox(&[]);
    e2b.on(Route::Delete).always().hang();
    let error = bounded(backend.kill(&id)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SandboxTimeout);
}

#[tokio::test]
async fn a_page_that_fails_is_asked_for_again() {
    let e2b = FakeE2b::start().await;
    for _ in 0..101 {
        e2b.add_sandbox(&[("sandcaster-instance", INSTANCE)]);
    }
    e2b.on(Route::List).nth(2).respond(503);
    let found = backend(&e2b).list(INSTANCE).await.unwrap();
    assert_eq!(found.len(), 101);
    assert_eq!(e2b.calls(Route::List), 3);
    e2b.on(Route::List).respond(401);
    let error = backend(&e2b).list(INSTANCE).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::ProviderAuthMissing);
}

#[tokio::test]
async fn a_list_that_never_ends_is_an_error() {
    let e2b = FakeE2b::start().await;
    let page = Reply::json(200, &json!([])).header("X-Next-Token", "same");
    e2b.on(Route::List).always().respond(page);
    let error = bounded(backend(&e2b).list(INSTANCE)).await.unwrap_err();
    assert!(error.to_string().contains("doesn't end"), "{error}");
    assert_eq!(e2b.calls(Route::List), 2);
}

#[tokio::test]
async fn what_e2b_lists_beyond_the_filter_is_left_alone() {
    let e2b = FakeE2b::start().await;
    let page = Reply::json(
        200,
        &json!([
            {"sandboxID": "iaaa", "metadata": {"sandcaster-instance": "another"}},
            {"sandboxID": "ibbb"},
            {"sandboxID": "../x", "metadata": {"sandcaster-instance": INSTANCE}},
            {"sandboxID": "iccc", "metadata": {"sandcaster-instance": INSTANCE}, "new": 1},
        ]),
    );
    e2b.on(Route::List).respond(page);
    let found = backend(&e2b).list(INSTANCE).await.unwrap();
    let ids: Vec<&str> = found.iter().map(|found| found.id.as_str()).collect();
    assert_eq!(ids, ["iccc"]);
}

#[tokio::test]
async fn extending_survives_passing_faults_and_tells_of_death() {
    let e2b = FakeE2b::start().await;
    let sandbox = sandbox(&e2b).await;
    for reply in [409, 429, 503] {
        e2b.on(Route::Timeout).respond(reply);
        sandbox.extend(Duration::from_mins(10)).await.unwrap();
    }
    e2b.on(Route::Timeout).drop_after_send();
    sandbox.extend(Duration::from_mins(10)).await.unwrap();
    assert_eq!(e2b.calls(Route::Timeout), 8);
    e2b.on(Route::Timeout).respond(404);
    let error = sandbox.extend(Duration::from_mins(10)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SandboxLost);
    let error = sandbox.exec(command(&["true"])).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::SandboxLost);
    assert_eq!(e2b.calls(Route::Start), 0);
}

#[tokio::test]
async fn an_ancient_or_odd_sandbox_is_refused_and_killed() {
    for (odd, code) in [
        (
            json!({"envdVersion": "0.0.9"}),
            ErrorCode::TemplateIncompatible,
        ),
        (
            json!({"envdVersion": "0.6.13", "envdAccessToken": "line\nbreak"}),
            ErrorCode::SandboxError,
        ),
    ] {
        let e2b = FakeE2b::start().await;
        let id = e2b.add_sandbox(&[]);
        let mut body = json!({"templateID": "base", "sandboxID": id, "clientID": "x"});
        for (name, value) in odd.as_object().unwrap() {
            body[name] = value.clone();
        }
        e2b.on(Route::Create).respond(Reply::json(201, &body));
        let error = create_error(&e2b).await;
        assert_eq!(error.code(), code, "{error}");
        assert!(!error.to_string().contains("break"), "{error}");
        e2b.wait_until_empty(SOON).await;
    }
}
