//! A page in a real browser (HT-4, HT-5). Runs where Chromium is installed; the rules themselves are
//! tested in `tests/http/browser.rs` everywhere.

use std::process::Stdio;

use axum::Router;
use axum::extract::State;
use axum::response::Html;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::app::{demo, kinds, text};
use crate::support::clients::{PATIENCE, chromium, scripts};
use crate::support::http;
use crate::support::served::Served;

/// A web site with one page, which reports once.
struct Site {
    listener: TcpListener,
    /// As the browser writes it: another site than `127.0.0.1`.
    origin: String,
}

impl Site {
    async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self {
            listener,
            origin: format!("http://localhost:{port}"),
        }
    }

    /// Opens the page in a browser, and gives what it reports.
    async fn visit(self, program: &str, page: String) -> Value {
        let (report, mut reports) = mpsc::channel::<Value>(1);
        let app = Router::new()
            .route("/", get(move || async move { Html(page) }))
            .route("/report", post(take_report))
            .with_state(report);
        let mut serving = JoinSet::new();
        serving.spawn(async { axum::serve(self.listener, app).await });
        let profile = tempfile::tempdir().unwrap();
        let _browser = open(program, &profile, &self.origin);
        timeout(PATIENCE, reports.recv())
            .await
            .expect("a report in time")
            .unwrap()
    }
}

async fn take_report(State(report): State<mpsc::Sender<Value>>, body: String) {
    report
        .send(serde_json::from_str(&body).unwrap())
        .await
        .unwrap();
}

fn open(program: &str, profile: &TempDir, url: &str) -> Child {
    Command::new(program)
        .args(["--headless", "--no-sandbox", "--disable-gpu"])
        .args(["--no-first-run", "--disable-dev-shm-usage"])
        // It must speak to nobody but the two servers of the test.
        .args(["--no-proxy-server", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

fn page(name: &str, server: &Served, run: &str) -> String {
    let page = std::fs::read_to_string(scripts().join(name)).unwrap();
    page.replace("TARGET", &server.url).replace("RUN", run)
}

/// Starts a run, lets the page of `site` try everything, and gives what it reports and the runs then.
async fn attack(program: &str, server: &Served, site: Site) -> (Value, Vec<Value>) {
    let mut body = demo(&["sleep 600"]);
    body["background"] = json!(true);
    let started = http().post(server.url("/query")).json(&body).send();
    let started = timeout(PATIENCE, started).await.unwrap().unwrap();
    let started: Value = started.json().await.unwrap();
    let run = started["id"].as_str().unwrap();
    let tries = site.visit(program, page("attack.html", server, run)).await;
    let runs = server.json("/runs").await;
    (tries, runs.as_array().unwrap().clone())
}

#[tokio::test]
#[cfg_attr(not(program = "chromium"), ignore = "needs chromium")]
async fn a_page_of_another_origin_gets_nothing_and_starts_nothing() {
    let program = chromium();
    let server = Served::keyless().await;
    let (tries, runs) = attack(program, &server, Site::bind().await).await;
    // Some of these are sent without asking first, and their answers kept from the page.
    for name in ["json", "runs", "events", "text", "urlencoded", "cancel"] {
        assert_eq!(tries[name], "refused", "{tries}");
    }
    for (name, outcome) in [("beacon", "true"), ("form", "sent"), ("multipart", "sent")] {
        assert_eq!(tries[name], outcome, "{tries}");
    }
    assert_eq!(runs.len(), 1, "only the run that was there: {runs:?}");
    assert_eq!(
        runs[0]["statusDetail"], "running",
        "and it was not cancelled"
    );
}

/// Shows that the test above can fail: it is the rule that keeps the page out, not the page.
#[tokio::test]
#[cfg_attr(not(program = "chromium"), ignore = "needs chromium")]
async fn the_same_page_gets_in_where_its_origin_is_allowed() {
    let program = chromium();
    let site = Site::bind().await;
    let server = Served::with(&[("SANDCASTER_CORS_ORIGINS", &site.origin)]).await;
    let (tries, runs) = attack(program, &server, site).await;
    for name in ["json", "runs", "events"] {
        assert_eq!(tries[name], "READ", "{tries}");
    }
    assert_eq!(runs.len(), 2, "JSON starts a run, other types don't");
    let first = runs[1]["id"].as_str().unwrap();
    server.run_is(first, "cancelled").await;
}

#[tokio::test]
#[cfg_attr(not(program = "chromium"), ignore = "needs chromium")]
async fn event_source_of_an_allowed_page_reads_a_run_and_stops_at_its_end() {
    let program = chromium();
    let site = Site::bind().await;
    let server = Served::with(&[("SANDCASTER_CORS_ORIGINS", &site.origin)]).await;
    let report = site.visit(program, page("reader.html", &server, "")).await;
    assert_eq!(report["status"], 202, "{report}");
    let events = report["events"].as_array().unwrap();
    assert_eq!(kinds(events).last(), Some(&"result"), "{report}");
    assert!(text(events).contains("from a page"));
    let seqs: Vec<String> = events
        .iter()
        .map(|event| event["seq"].to_string())
        .collect();
    assert_eq!(report["ids"], json!(seqs));
    let dense: Vec<String> = (1..=seqs.len()).map(|seq| seq.to_string()).collect();
    assert_eq!(seqs, dense);
}
