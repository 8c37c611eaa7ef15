//! What a web page could send is refused, what other clients send is not (T14).

use sandcaster::config::ServerSettings;

use crate::support::http::{TestServer, keyed, keyless};

const KEY: &str = "my-secret-token";

/// A row: the headers sent, and the status on a keyless server and (with the key) on one with a key.
type Row<'r> = (&'r [(&'r str, &'r str)], u16, u16);

const ROWS: &[Row<'_>] = &[
    // Hosts: addresses, localhost and bare names are this machine's own.
    (&[("Host", "127.0.0.1:3000")], 200, 200),
    (&[("Host", "127.0.0.1")], 200, 200),
    (&[("Host", "192.168.1.7:3000")], 200, 200),
    (&[("Host", "[::1]:3000")], 200, 200),
    (&[("Host", "[fe80::1]")], 200, 200),
    (&[("Host", "localhost")], 200, 200),
    (&[("Host", "LOCALHOST:3000")], 200, 200),
    (&[("Host", "localhost.")], 200, 200),
    (&[("Host", "app.localhost:3000")], 200, 200),
    (&[("Host", "sandcaster")], 200, 200),
    (&[("Host", "sandcaster-1:8000")], 200, 200),
    // Hosts: a domain may have been rebound.
    (&[("Host", "evil.example")], 403, 200),
    (&[("Host", "evil.example:3000")], 403, 200),
    (&[("Host", "127.0.0.1.evil.example")], 403, 200),
    (&[("Host", "localhost.evil.example")], 403, 200),
    (&[("Host", "evillocalhost.example")], 403, 200),
    (&[("Host", "example.")], 403, 200),
    (&[("Host", "0.0.0.0:3000")], 403, 200),
    (&[("Host", "[::]:3000")], 403, 200),
    (&[("Host", "[::ffff:0.0.0.0]")], 403, 200),
    (&[("Host", "0")], 403, 200),
    (&[("Host", "0x7f000001")], 403, 200),
    (&[("Host", "2130706433")], 403, 200),
    (&[("Host", "127.1")], 403, 200),
    (&[("Host", "metadata.google.internal")], 403, 200),
    // Origins.
    (&[("Origin", "https://evil.example")], 403, 403),
    (&[("Origin", "http://127.0.0.1:3000")], 403, 403),
    (&[("Origin", "http://localhost")], 403, 403),
    (&[("Origin", "null")], 403, 403),
    (&[("Origin", "")], 403, 403),
    (&[("Origin", "file://")], 403, 403),
    (&[("Origin", "chrome-extension://abcdef")], 403, 403),
    (
        &[("Origin", "https://evil.example"), ("Host", "evil.example")],
        403,
        403,
    ),
    (
        &[
            ("Origin", "https://evil.example"),
            ("Sec-Fetch-Site", "none"),
        ],
        403,
        403,
    ),
    (
        &[
            ("Origin", "https://a.example"),
            ("Origin", "https://b.example"),
        ],
        403,
        403,
    ),
    // Where a browser says the request comes from.
    (&[("Sec-Fetch-Site", "cross-site")], 403, 403),
    (&[("Sec-Fetch-Site", "same-site")], 403, 403),
    (&[("Sec-Fetch-Site", "same-origin")], 200, 200),
    (&[("Sec-Fetch-Site", "none")], 200, 200),
    (&[("Sec-Fetch-Site", "")], 403, 403),
    (&[("Sec-Fetch-Site", "future-value")], 403, 403),
    (
        &[("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")],
        403,
        403,
    ),
    (
        &[
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Mode", "no-cors"),
            ("Sec-Fetch-Dest", "image"),
        ],
        403,
        403,
    ),
    // What clients that are no browsers send.
    (&[("User-Agent", "curl/8.5.0"), ("Accept", "*/*")], 200, 200),
    (
        &[
            ("User-Agent", "node"),
            ("Sec-Fetch-Mode", "cors"),
            ("Accept-Language", "*"),
        ],
        200,
        200,
    ),
    (&[("User-Agent", "Bun/1.3.0"), ("Accept", "*/*")], 200, 200),
    (
        &[
            ("User-Agent", "python-httpx/0.28"),
            ("Accept-Encoding", "gzip, deflate"),
        ],
        200,
        200,
    ),
    (&[("Referer", "https://evil.example/")], 200, 200),
];

async fn walk(settings: ServerSettings, expected: impl Fn(&Row<'_>) -> u16) {
    let server = TestServer::start(settings).await;
    for row in ROWS {
        let mut request = server.get("/runs").bearer(KEY);
        for (name, value) in row.0 {
            request = request.header(name, value);
        }
        let reply = request.send().await;
        assert_eq!(reply.status, expected(row), "{:?}", row.0);
        if reply.status == 403 {
            let code = reply.code();
            assert!(
                code == "FORBIDDEN_HOST" || code == "FORBIDDEN_ORIGIN",
                "{code}"
            );
        }
        assert_eq!(reply.header("access-control-allow-origin"), None);
        assert_eq!(reply.header("access-control-allow-methods"), None);
    }
}

#[tokio::test]
async fn web_pages_can_not_drive_a_keyless_server() {
    walk(keyless(), |row| row.1).await;
}

#[tokio::test]
async fn web_pages_can_not_drive_a_server_with_a_key_either() {
    walk(keyed(&[KEY]), |row| row.2).await;
}

#[tokio::test]
async fn what_a_page_can_post_without_asking_is_refused() {
    let server = TestServer::start(keyless()).await;
    let body = r#"{"prompt":"$ id","model":"demo"}"#;
    for content_type in [
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "text/plain, application/json",
    ] {
        let request = server.post("/query").header("Content-Type", content_type);
        let reply = request.body(body).send().await;
        assert_eq!(reply.status, 415, "{content_type}");
        assert_eq!(reply.code(), "UNSUPPORTED_MEDIA_TYPE");
    }
    let reply = server.post("/query").body(body).send().await;
    assert_eq!(reply.status, 415, "no type at all");
    let from_page = server
        .post("/query")
        .header("Origin", "https://evil.example");
    assert_eq!(from_page.json(body).send().await.status, 403);
}

#[tokio::test]
async fn preflights_grant_nothing_to_other_origins() {
    for settings in [keyless(), keyed(&[KEY])] {
        let server = TestServer::start(settings).await;
        let preflight = |origin: &str| {
            server
                .request("OPTIONS", "/query")
                .header("Origin", origin)
                .header("Access-Control-Request-Method", "POST")
                .header("Access-Control-Request-Headers", "content-type")
        };
        let reply = preflight("https://evil.example").send().await;
        assert_eq!(reply.status, 403);
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_use_the_api() {
    let settings = ServerSettings {
        allowed_origins: vec![
            "https://app.example".to_owned(),
            "http://localhost:5173/".to_owned(),
        ],
        ..keyed(&[KEY])
    };
    let server = TestServer::start(settings).await;
    for origin in ["https://app.example", "http://localhost:5173"] {
        let preflight = server
            .request("OPTIONS", "/query")
            .header("Origin", origin)
            .header("Sec-Fetch-Site", "cross-site")
            .header("Access-Control-Request-Method", "POST")
            .header(
                "Access-Control-Request-Headers",
                "authorization,content-type",
            );
        let reply = preflight.send().await;
        assert_eq!(reply.status, 204);
        assert_eq!(reply.header("access-control-allow-origin"), Some(origin));
        assert_eq!(reply.header("access-control-allow-credentials"), None);
        assert_eq!(reply.header("vary"), Some("Origin"));
        assert_eq!(
            reply.header("access-control-allow-methods"),
            Some("GET, POST, DELETE")
        );
        let headers = reply.header("access-control-allow-headers").unwrap();
        for needed in [
            "Authorization",
            "Content-Type",
            "Last-Event-ID",
            "Idempotency-Key",
        ] {
            assert!(headers.contains(needed), "{needed}");
        }

        let real = server.get("/runs").header("Origin", origin);
        let real = real.header("Sec-Fetch-Site", "cross-site");
        assert_eq!(real.clone().send().await.status, 401, "still needs the key");
        let reply = real.bearer(KEY).send().await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("access-control-allow-origin"), Some(origin));
        let exposed = reply.header("access-control-expose-headers").unwrap();
        assert!(exposed.contains("X-Request-Id") && exposed.contains("X-Run-Id"));
    }
    for other in [
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://evil.example",
        "null",
    ] {
        let reply = server
            .get("/runs")
            .bearer(KEY)
            .header("Origin", other)
            .send()
            .await;
        assert_eq!(reply.status, 403, "{other}");
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
}

#[tokio::test]
async fn configured_hosts_are_answered_and_with_a_key_only_those() {
    let hosts = vec!["Agents.Example".to_owned()];
    for settings in [keyless(), keyed(&[KEY])] {
        let settings = ServerSettings {
            allowed_hosts: hosts.clone(),
            ..settings
        };
        let server = TestServer::start(settings).await;
        for (host, status) in [
            ("agents.example", 200),
            ("AGENTS.example:8443", 200),
            ("127.0.0.1", 200),
            ("x.agents.example", 403),
            ("evil.example", 403),
        ] {
            let reply = server
                .get("/runs")
                .bearer(KEY)
                .header("Host", host)
                .send()
                .await;
            assert_eq!(reply.status, status, "{host}");
        }
    }
}

#[tokio::test]
async fn health_is_answered_under_any_name_and_to_any_page() {
    let server = TestServer::start(keyless()).await;
    for path in ["/health", "/health/live"] {
        let request = server
            .get(path)
            .header("Host", "lb.internal.example")
            .header("Origin", "https://status.example")
            .header("Sec-Fetch-Site", "cross-site");
        let reply = request.send().await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
    let webhook = server
        .post("/webhooks/e2b")
        .header("Host", "agents.example");
    assert_eq!(webhook.body("{}").send().await.status, 400, "not 403");
}
