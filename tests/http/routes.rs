//! What holds for every route: methods, unknown paths, headers, health, panics, query strings.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use sandcaster::api::{Limits, ROUTES};

use crate::support::http::{Reply, TestServer, keyless};

const RUN: &str = "run_0123456789abcdef0123456789abcdef";

fn has_security_headers(reply: &Reply) {
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        (
            "content-security-policy",
            "default-src 'none'; frame-ancestors 'none'",
        ),
        ("cross-origin-resource-policy", "same-origin"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
    let id = reply.header("x-request-id").unwrap();
    assert!(
        id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{id}"
    );
}

#[tokio::test]
async fn health_has_the_documented_form() {
    let server = TestServer::start(keyless()).await;
    for path in ["/health", "/health/live", "/health?probe=1"] {
        let reply = server.get(path).send().await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            reply.text(),
            format!("{{\"status\":\"ok\",\"version\":\"{version}\"}}")
        );
        has_security_headers(&reply);
    }
    assert_eq!(server.request("HEAD", "/health").send().await.status, 200);
}

#[tokio::test]
async fn health_says_when_the_store_is_gone_and_liveness_does_not() {
    let server = TestServer::start(keyless()).await;
    server.store.set_broken(true);
    let reply = server.get("/health").send().await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["status"], "unavailable");
    assert_eq!(server.get("/health/live").send().await.status, 200);
    let query = server.post("/query").json("{}").send().await;
    assert_eq!(query.status, 503);
    assert_eq!(query.code(), "STORE_UNAVAILABLE");
    assert!(query.header("retry-after").is_some());
    let runs = server.get("/runs").send().await;
    assert_eq!(runs.status, 503);
    assert!(!runs.text().contains("/secret/path"), "{}", runs.text());
}

#[tokio::test]
async fn unknown_paths_are_answered_in_json() {
    let server = TestServer::start(keyless()).await;
    for path in [
        "/",
        "/none",
        "/runs/",
        "/sessions",
        "/query/x",
        "/health/",
        "/runs/a/b/c",
    ] {
        let reply = server.get(path).send().await;
        assert_eq!(reply.status, 404, "{path}");
        assert_eq!(reply.code(), "NOT_FOUND");
        has_security_headers(&reply);
    }
}

#[tokio::test]
async fn a_surplus_slash_is_named_with_the_path_that_is_meant() {
    let server = TestServer::start(keyless()).await;
    let run = format!("/runs/{RUN}");
    for (path, meant) in [
        ("//query", "/query"),
        ("/query/", "/query"),
        ("/runs/", "/runs"),
        ("/runs/?limit=5", "/runs"),
        ("/health/", "/health"),
        ("///health//live//", "/health/live"),
        (&format!("{run}/"), &run),
        (&format!("/{run}/events"), &format!("{run}/events")),
        (&format!("/{run}//files/a"), &format!("{run}/files/a")),
    ] {
        for method in ["GET", "POST"] {
            let reply = server.request(method, path).send().await;
            assert_eq!(
                (reply.status, reply.code()),
                (404, "NOT_FOUND".to_owned()),
                "{path}"
            );
            assert_eq!(
                reply.json()["hint"],
                format!("did you mean {meant}?"),
                "{path}"
            );
        }
        assert_eq!(server.request("HEAD", path).send().await.status, 404);
    }
    for path in ["/", "//", "/none/", "//runs/a/b/c"] {
        let hint = server.get(path).send().await.json()["hint"].clone();
        assert!(
            !hint.as_str().unwrap().contains("did you mean"),
            "{path}: {hint}"
        );
    }
}

#[tokio::test]
async fn a_missing_id_is_told_as_that() {
    let server = TestServer::start(keyless()).await;
    for (method, path) in [
        ("GET", "/runs//events"),
        ("GET", "//runs///events/"),
        ("POST", "/runs//cancel"),
        ("GET", "/runs//files/a//b"),
    ] {
        let reply = server.request(method, path).send().await;
        assert_eq!(reply.status, 404, "{path}");
        let hint = reply.json()["hint"].as_str().unwrap().to_owned();
        assert!(
            hint.starts_with("the run's id is missing: "),
            "{path} {hint}"
        );
    }
}

#[tokio::test]
async fn a_long_path_is_shown_with_a_mark_where_it_is_cut() {
    let server = TestServer::start(keyless()).await;
    let cut = format!("/{}…", "x".repeat(199));
    let reply = server.get(&format!("/{}", "x".repeat(300))).send().await;
    assert_eq!(
        reply.json()["message"],
        format!("there is nothing at GET {cut}")
    );
    let file = format!("/runs/{RUN}/files/{}", "x".repeat(300));
    let reply = server.request("PUT", &file).send().await;
    let message = reply.json()["message"].clone();
    assert!(
        message
            .as_str()
            .unwrap()
            .ends_with("x… does not answer PUT"),
        "{message}"
    );
}

#[tokio::test]
async fn other_methods_are_answered_in_json_with_those_that_work() {
    let server = TestServer::start(keyless()).await;
    for route in ROUTES {
        let path = route.path.replace("{id}", RUN).replace("{*path}", "f");
        let answered = |method: &str| {
            let mut routes = ROUTES.iter().filter(|other| other.path == route.path);
            routes.any(|other| other.method == method)
        };
        for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            if answered(method) {
                continue;
            }
            let reply = server.request(method, &path).send().await;
            assert_eq!(reply.status, 405, "{method} {path}");
            assert_eq!(reply.code(), "METHOD_NOT_ALLOWED");
            assert!(reply.header("allow").unwrap().contains(route.method));
            has_security_headers(&reply);
        }
        let other = if answered("GET") { "POST" } else { "GET" };
        assert_eq!(server.request(other, &path).send().await.status, 405);
    }
}

#[tokio::test]
async fn a_panic_in_a_handler_is_an_internal_error_and_no_more() {
    let routes = Router::new().route(
        "/runs",
        get(|| async {
            let (one, two) = (1, 2);
            assert_eq!(one, two, "this text stays inside");
        }),
    );
    let server = TestServer::routes(keyless(), routes, Limits::default()).await;
    for _ in 0..2 {
        let reply = server.get("/runs").send().await;
        assert_eq!(reply.status, 500);
        assert_eq!(reply.code(), "INTERNAL");
        assert!(!reply.text().contains("stays inside"));
        has_security_headers(&reply);
    }
}

#[tokio::test]
async fn a_request_id_is_always_ours_and_always_fresh() {
    let server = TestServer::start(keyless()).await;
    let request = server.get("/health").header("X-Request-Id", "mine");
    let first = request.clone().send().await;
    let second = request.send().await;
    assert_ne!(first.header("x-request-id"), Some("mine"));
    assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
}

#[tokio::test]
async fn unknown_query_parameters_are_refused_by_name() {
    let server = TestServer::start(keyless()).await;
    for (method, path, field, hint) in [
        ("GET", "/runs?limt=5".to_owned(), "limt", "limit"),
        ("GET", "/runs?Limit=5".to_owned(), "Limit", "limit"),
        ("GET", "/runs?offset=5".to_owned(), "offset", "limit"),
        (
            "GET",
            format!("/runs/{RUN}?full=1"),
            "full",
            "no query parameters",
        ),
        ("GET", format!("/runs/{RUN}/events?afer=1"), "afer", "after"),
        (
            "POST",
            format!("/runs/{RUN}/cancel?force=1"),
            "force",
            "no query parameters",
        ),
        (
            "POST",
            "/query?stream=1".to_owned(),
            "stream",
            "no query parameters",
        ),
        (
            "GET",
            format!("/runs/{RUN}/files/a?x=1"),
            "x",
            "no query parameters",
        ),
    ] {
        let reply = server.request(method, &path).send().await;
        assert_eq!(reply.status, 400, "{path}");
        assert_eq!(reply.code(), "VALIDATION_FAILED");
        assert_eq!(reply.json()["field"], field);
        assert!(
            reply.json()["hint"].as_str().unwrap().contains(hint),
            "{}",
            reply.json()
        );
        assert_eq!(reply.json()["details"][0]["path"], field);
    }
}

/// Lines of a log.
#[derive(Clone, Default)]
struct Lines(Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_handler_logs_can_be_found_by_the_id_that_the_client_was_told() {
    let lines = Lines::default();
    let written = lines.clone();
    let log = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || written.clone())
        .finish();
    let _log = tracing::subscriber::set_default(log);
    let handler = || async { tracing::error!("something went wrong") };
    let routes = Router::new().route("/health", get(handler));
    let server = TestServer::routes(keyless(), routes, Limits::default()).await;
    let reply = server.get("/health").send().await;
    let log = String::from_utf8(lines.0.lock().clone()).unwrap();
    let line = log
        .lines()
        .find(|line| line.contains("something went wrong"));
    let id = reply.header("x-request-id").unwrap();
    assert!(line.is_some_and(|line| line.contains(id)), "{log}");
}
