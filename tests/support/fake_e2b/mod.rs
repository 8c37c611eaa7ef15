//! `FakeE2b`: E2B on a loopback port. Control plane, edge proxy and envd in one, as E2B's own SDKs see
//! them; commands really run, as processes of this machine.
//!
//! # Use
//! ```ignore
//! let e2b = FakeE2b::start().await;
//! // Point a client at it: base URL of API and of sandboxes, and the key.
//! client(e2b.url(), e2b.url(), e2b.key());      // or the variables in e2b.env()
//!
//! e2b.on(Route::Create).nth(1).respond(503);                                // E2B's body for a 503
//! e2b.on(Route::Create).nth(1).respond(Reply::from(429).header("Retry-After", "1"));
//! e2b.on(Route::Create).nth(1).drop_after_send();                           // made, but the answer is lost
//! e2b.on(Route::Delete).first(2).respond(500);
//! e2b.on(Route::Start).nth(1).stream(StreamFault::CutInFrame { after: 1, ending: Ending::Reset });
//! let gate = e2b.on(Route::Create).nth(1).gate();                           // gate.reached().await; gate.open();
//! e2b.set_create_latency(Duration::from_millis(150));
//! e2b.die(&id, Death::Reset, "timeout").await;                              // sudden death
//!
//! assert_eq!(e2b.sandboxes().len(), 0);
//! e2b.wait_until_empty(Duration::from_secs(5)).await;                       // no sandbox, no process
//! ```
//!
//! # What fails the test
//! Dropping a `FakeE2b` ends all its processes, and panics if a request came that E2B would have refused
//! from any correct client (no or wrong key or token, malformed body, unknown template, unknown path, an
//! API key sent to a sandbox, …), if a fault was set up that no call met, or if a handler panicked. Tests of such
//! refusals call [`FakeE2b::expect_refusal`] afterwards, or [`FakeE2b::allow_refusals`]. What a correct
//! client can meet is no refusal: 404 and 502 of a sandbox that is gone, 409, 429, missing files,
//! processes that have ended, a missing working directory.
//!
//! # What a sandbox is
//! A temporary directory with its own `/home/user`, `/root` and `/tmp`. Commands see them under these names
//! where the host lets us make a mount namespace; elsewhere these names are replaced by the host's in
//! arguments. Nothing else can be written through `/files` and the filesystem service. Commands run as
//! the test's own user, whatever `USER` says. The first command of a sandbox makes its namespace (some
//! 10 ms); `SANDCASTER_FAKE_E2B_NO_NAMESPACE=1` does without, for measurements. Not played: `sudo`, watchers
//! of directories, ports of a user's services, `fork`, `/files/compose`, waking by traffic.

#![expect(
    clippy::disallowed_methods,
    reason = "it stands for another machine, whose tasks are none of the product's"
)]

mod connect;
mod control;
mod controls;
mod create;
mod edge;
mod faults;
mod filesystem;
mod journal;
mod machine;
mod process;
mod processes;
pub mod rawclient;
mod routes;
mod sandboxes;
mod server;
mod transfer;
mod webhooks;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use connect::{end_frame, frame, message_frame};
pub use faults::{Ending, Fault, Reply, StreamFault};
pub use journal::{Refusal, Seen};
pub use routes::Route;
pub use sandboxes::{Death, SandboxView, State};
pub use webhooks::{Delivery, Spelling, signature};

/// The key that is accepted unless another is chosen; E2B's SDK check uses it.
pub const KEY: &str = "e2b_0000000000000000000000000000000000000000";

/// Templates that exist from the start.
const TEMPLATES: [&str; 4] = ["base", "code-interpreter-v1", "desktop", "mcp-gateway"];

struct Inner {
    this: Weak<Inner>,
    address: SocketAddr,
    key: String,
    http: reqwest::Client,
    sandboxes: sandboxes::Sandboxes,
    faults: faults::Faults,
    journal: journal::Journal,
    webhooks: webhooks::Webhooks,
    promises: Mutex<HashMap<String, create::Promise>>,
    templates: Mutex<HashSet<String>>,
    snapshots: Mutex<Vec<Value>>,
    create_latency: Mutex<Duration>,
    most_running: Mutex<usize>,
    most_hours: Mutex<u64>,
    panics: Mutex<Vec<String>>,
    lenient: AtomicBool,
    controls: AtomicBool,
    closing: CancellationToken,
}

impl Inner {
    fn longest(&self) -> Duration {
        Duration::from_hours(*self.most_hours.lock())
    }

    fn too_long(&self) -> edge::Answer {
        let hours = *self.most_hours.lock();
        // A client is meant to learn the limit from this answer, so it is no refusal.
        edge::Answer::error(
            400,
            &format!("Timeout cannot be greater than {hours} hours"),
        )
    }

    /// Whether a template or snapshot of that name exists; team and tag don't matter here.
    fn knows(&self, template: &str) -> bool {
        let templates = self.templates.lock();
        let name = template.rsplit('/').next().unwrap_or_default();
        let name = name.split(':').next().unwrap_or_default();
        templates.contains(template) || templates.contains(name)
    }

    /// Kills a sandbox for a reason that its event tells; false if it was gone.
    async fn kill(&self, id: &str, death: Death, reason: &str) -> bool {
        let Some(sandbox) = self.sandboxes.kill(id, death).await else {
            return false;
        };
        let mut data = sandbox.execution();
        data["kill_reason"] = json!(reason);
        self.event(&sandbox, "killed", data);
        true
    }
}

/// E2B on a loopback port. See the module's head.
pub struct FakeE2b {
    inner: Arc<Inner>,
}

impl FakeE2b {
    /// Starts one that accepts [`KEY`].
    pub async fn start() -> Self {
        Self::with_key(KEY).await
    }

    /// Starts one that accepts `key` (`e2b_` and 40 hex digits).
    pub async fn with_key(key: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        let inner = Arc::new_cyclic(|this| Inner {
            this: this.clone(),
            address,
            key: key.to_owned(),
            http,
            sandboxes: sandboxes::Sandboxes::default(),
            faults: faults::Faults::default(),
            journal: journal::Journal::default(),
            webhooks: webhooks::Webhooks::default(),
            promises: Mutex::default(),
            templates: Mutex::new(TEMPLATES.map(str::to_owned).into()),
            snapshots: Mutex::default(),
            create_latency: Mutex::default(),
            most_running: Mutex::new(10_000),
            most_hours: Mutex::new(24),
            panics: Mutex::default(),
            lenient: AtomicBool::new(false),
            controls: AtomicBool::new(false),
            closing: CancellationToken::new(),
        });
        tokio::spawn(server::serve(inner.clone(), listener));
        Self { inner }
    }

    /// `http://127.0.0.1:<port>`: base URL of the API and of every sandbox.
    pub fn url(&self) -> String {
        format!("http://{}", self.inner.address)
    }

    /// The key that it accepts.
    pub fn key(&self) -> &str {
        &self.inner.key
    }

    /// What points E2B's SDKs, and us, at it.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("E2B_API_KEY", self.key().to_owned()),
            ("E2B_API_URL", self.url()),
            ("E2B_SANDBOX_URL", self.url()),
        ]
    }

    /// A fault for calls of `route`, in force at once; see [`Fault`].
    pub fn on(&self, route: Route) -> Fault {
        self.inner.faults.on(route)
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.inner.faults.clear();
    }

    /// How long every creation takes.
    pub fn set_create_latency(&self, latency: Duration) {
        *self.inner.create_latency.lock() = latency;
    }

    /// The plan's longest life of a sandbox, in hours (24 unless set).
    pub fn set_max_hours(&self, hours: u64) {
        *self.inner.most_hours.lock() = hours;
    }

    /// How many sandboxes may run at once; beyond it creation is answered 429.
    pub fn set_max_concurrent(&self, most: usize) {
        *self.inner.most_running.lock() = most;
    }

    /// Makes a template known.
    pub fn add_template(&self, name: &str) {
        self.inner.templates.lock().insert(name.to_owned());
    }

    /// The sandboxes that are there, the newest first.
    pub fn sandboxes(&self) -> Vec<SandboxView> {
        let all = self.inner.sandboxes.list();
        all.iter().map(|sandbox| sandbox.view()).collect()
    }

    /// How many were ever made.
    pub fn created(&self) -> u64 {
        self.inner.sandboxes.made()
    }

    /// Live processes of all sandboxes, also of those that are gone.
    pub fn processes_left(&self) -> usize {
        self.inner.sandboxes.processes_left()
    }

    /// Waits until neither sandbox nor process is left; panics after `limit`, saying what is.
    pub async fn wait_until_empty(&self, limit: Duration) {
        let until = tokio::time::Instant::now() + limit;
        loop {
            let left = (self.sandboxes().len(), self.processes_left());
            if left == (0, 0) {
                return;
            }
            let (sandboxes, processes) = left;
            assert!(
                tokio::time::Instant::now() < until,
                "after {limit:?} {sandboxes} sandboxes and {processes} processes are left"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Makes a sandbox behind the client's back, as another program with the same account would.
    pub fn add_sandbox(&self, metadata: &[(&str, &str)]) -> String {
        let wish = sandboxes::Wish {
            template: "base".to_owned(),
            timeout: Duration::from_hours(1),
            metadata: metadata
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            secure: true,
            ..sandboxes::Wish::default()
        };
        self.inner.sandboxes.create(wish).unwrap().id.clone()
    }

    /// Kills a sandbox as E2B itself would (`reason`: `timeout`, `admin`, …): open streams end by `death`,
    /// later calls find nothing, webhooks are told. False if it was gone.
    pub async fn die(&self, id: &str, death: Death, reason: &str) -> bool {
        self.inner.kill(id, death, reason).await
    }

    /// Pauses a sandbox as E2B itself would.
    pub fn pause(&self, id: &str) -> bool {
        let Some(sandbox) = self.inner.sandboxes.get(id) else {
            return false;
        };
        let paused = sandbox.pause();
        if paused {
            self.inner.event(&sandbox, "paused", sandbox.execution());
        }
        paused
    }

    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Seen> {
        self.inner.journal.seen()
    }

    /// The requests of one call.
    pub fn requests_of(&self, route: Route) -> Vec<Seen> {
        let mut all = self.requests();
        all.retain(|seen| seen.route == route);
        all
    }

    /// How often a call was made.
    pub fn calls(&self, route: Route) -> usize {
        self.inner.journal.count(route)
    }

    /// Requests that E2B would have refused.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.inner.journal.refusals()
    }

    /// There was a refusal whose reason contains `part`, and it was meant; panics if there was none.
    pub fn expect_refusal(&self, part: &str) {
        let forgiven = self.inner.journal.forgive(part);
        let refusals = self.refusals();
        assert!(
            forgiven > 0,
            "no refusal says {part:?}; there are {refusals:?}"
        );
    }

    /// Refusals don't fail this test.
    pub fn allow_refusals(&self) {
        self.inner.lenient.store(true, Ordering::Release);
    }

    /// Serves `/__standin`, by which the shared SDK check provokes faults from outside.
    pub fn serve_check_controls(&self) {
        self.inner.controls.store(true, Ordering::Release);
    }

    /// How events are written from now on.
    pub fn set_spelling(&self, spelling: Spelling) {
        *self.inner.webhooks.spelling.lock() = spelling;
    }

    /// The pause between two attempts of a delivery (10 s unless set).
    pub fn set_webhook_pause(&self, pause: Duration) {
        *self.inner.webhooks.pause.lock() = pause;
    }

    /// Every attempt to deliver an event so far.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.inner.webhooks.deliveries()
    }

    /// An event's body, to be sent by hand: `kind` is the last word of its type, `data` its `event_data`.
    pub fn event(&self, sandbox: &str, kind: &str, data: &Value) -> Value {
        let spelling = *self.inner.webhooks.spelling.lock();
        webhooks::event(sandbox, kind, data, spelling)
    }

    /// Sends one signed delivery of any body to a URL on this machine; the answer's status.
    pub async fn send_webhook(&self, url: &str, secret: &str, body: &str) -> Option<u16> {
        webhooks::post(&self.inner.http, url, "by-hand", secret, body.to_owned()).await
    }
}

impl Drop for FakeE2b {
    fn drop(&mut self) {
        self.inner.closing.cancel();
        self.inner.sandboxes.end_all();
        if std::thread::panicking() {
            return;
        }
        let panics = self.inner.panics.lock().clone();
        assert!(panics.is_empty(), "the stand-in panicked: {panics:?}");
        let refusals = self.refusals();
        assert!(
            refusals.is_empty() || self.inner.lenient.load(Ordering::Acquire),
            "E2B would have refused: {refusals:#?}"
        );
        let unmet = self.inner.faults.unmet();
        assert!(unmet.is_empty(), "faults that no call met: {unmet:?}");
    }
}
