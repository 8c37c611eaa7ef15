//! Bearer keys: which routes need one, and what is said without.

use sandcaster::api::{Access, ROUTES};

use crate::support::http::{TestServer, keyed, keyless};

const KEY: &str = "my-secret-token";
const RUN: &str = "run_0123456789abcdef0123456789abcdef";

fn concrete(path: &str) -> String {
    path.replace("{id}", RUN).replace("{*path}", "a/b.txt")
}

#[tokio::test]
async fn every_route_but_the_public_ones_needs_the_key() {
    let server = TestServer::start(keyed(&[KEY])).await;
    let mut public = Vec::new();
    for route in ROUTES {
        let reply = server
            .request(route.method, &concrete(route.path))
            .send()
            .await;
        if route.access == Access::Public {
            public.push(route.path);
            assert_eq!(reply.status, 200, "{}", route.path);
            continue;
        }
        if route.access == Access::Signed {
            // Without a secret for signatures, a server with a key wants the key here too.
            assert_eq!(reply.status, 401, "{}", route.path);
            continue;
        }
        assert_eq!(reply.status, 401, "{} {}", route.method, route.path);
        assert_eq!(reply.code(), "UNAUTHORIZED");
        assert_eq!(
            reply.header("www-authenticate"),
            Some("Bearer realm=\"sandcaster\"")
        );
    }
    assert_eq!(public, ["/health", "/health/live"]);
}

#[tokio::test]
async fn paths_that_only_resemble_a_public_route_need_the_key() {
    let server = TestServer::start(keyed(&[KEY])).await;
    for path in [
        "/",
        "/none",
        "/health/",
        "/health/x",
        "//health",
        "/health/../runs",
        "/health%2f..%2fruns",
        "/HEALTH",
        "/./health",
        "/runs/health",
        "/runs?x=/health",
    ] {
        let reply = server.get(path).send().await;
        assert_eq!(reply.status, 401, "{path}");
    }
    for method in ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "FOO"] {
        let reply = server.request(method, "/runs").send().await;
        assert_eq!(reply.status, 401, "{method}");
    }
}

#[tokio::test]
async fn whatever_is_wrong_with_a_key_gives_the_same_answer() {
    let server = TestServer::start(keyed(&[KEY])).await;
    let mut answers = Vec::new();
    for value in [
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer my-secret-toke",
        "Bearer my-secret-tokenn",
        "Bearer MY-SECRET-TOKEN",
        "Bearer my-secret-token, my-secret-token",
        "Basic bXktc2VjcmV0LXRva2Vu",
        "my-secret-token",
        "Token my-secret-token",
        "Bearer\tmy-secret-token",
        "Bearer my-secret-token\u{e9}",
    ] {
        let reply = server
            .get("/runs")
            .header("Authorization", value)
            .send()
            .await;
        assert_eq!(reply.status, 401, "{value}");
        answers.push((reply.code(), reply.body.clone()));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1);
    let twice = server.get("/runs").bearer(KEY).bearer(KEY).send().await;
    assert_eq!(twice.status, 401);
}

#[tokio::test]
async fn every_configured_key_is_accepted_and_the_scheme_is_case_blind() {
    let server = TestServer::start(keyed(&["old-key", "new-key"])).await;
    for value in ["Bearer old-key", "bearer new-key", "BEARER  new-key "] {
        let reply = server
            .get("/runs")
            .header("Authorization", value)
            .send()
            .await;
        assert_eq!(reply.status, 200, "{value}");
    }
}

#[tokio::test]
async fn a_server_without_a_key_asks_for_none() {
    let server = TestServer::start(keyless()).await;
    assert_eq!(server.get("/runs").send().await.status, 200);
    assert_eq!(server.get("/runs").bearer("any").send().await.status, 200);
}

#[tokio::test]
async fn an_address_that_fails_too_often_is_told_to_wait_but_a_right_key_passes() {
    let server = TestServer::start(keyed(&[KEY])).await;
    for n in 0..20 {
        let reply = server.get("/runs").bearer("guess").send().await;
        assert_eq!(reply.status, 401, "{n}");
    }
    let reply = server.get("/runs").bearer("guess").send().await;
    assert_eq!(reply.status, 429);
    assert_eq!(reply.code(), "TOO_MANY_REQUESTS");
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(reply.json()["retryAfterSecs"], wait);
    assert_eq!(server.get("/runs").bearer(KEY).send().await.status, 200);
    assert_eq!(server.get("/health").send().await.status, 200);
}

#[tokio::test]
async fn a_wrong_key_is_refused_before_the_body_is_looked_at() {
    let server = TestServer::start(keyed(&[KEY])).await;
    // The announced body never comes, and a wrong type would be refused as well.
    let request = server
        .post("/query")
        .header("Content-Type", "text/plain")
        .header("Content-Length", "1000");
    let mut stream = server.connect().await;
    let reply = crate::support::http::first_reply(&mut stream, &request.bytes()).await;
    assert_eq!(reply.status, 401);
}
