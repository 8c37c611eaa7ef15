//! A stand-in for LLM providers on loopback: scripts in neutral words, spoken in a provider's dialect.
//!
//! ```text
//! let gate = Gate::new();
//! let llm = FakeLlm::start([
//!     Reply::new().text("Looking").wait(&gate).call("bash", &json!({"command": "ls"})),
//!     Reply::says("Done."),
//! ])
//! .await;
//! // … point ANTHROPIC_BASE_URL at llm.base_url(), with `KEY` as the key, and start a run …
//! gate.reached().await; // "Looking" is on the wire, the call is not: mid-stream, as a fact
//! gate.open();
//! assert_eq!(llm.request(1).await.tool_results()[0].text, "…");
//! ```
//!
//! Every request is checked against much of what the real service would refuse (`check.rs` of the dialect says what);
//! a bad one gets a 400 and fails the test when the stand-in is dropped, and so does a reply that nobody asked for.

mod anthropic;
mod dialect;
mod script;
mod server;
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use dialect::Prefix;
pub use dialect::{Dialect, Said};
pub use script::{Gate, Reply};

/// Every dialect that is spoken here: one for each provider that is built.
pub static DIALECTS: &[&dyn Dialect] = &[ANTHROPIC];

const ANTHROPIC: &dyn Dialect = &anthropic::Anthropic;

/// The key that the stand-in accepts.
pub const KEY: &str = "sk-ant-fake-0123456789abcdef";

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for `future`; fails the test when it takes too long.
pub(super) async fn bounded<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited {} s for {what}", PATIENCE.as_secs()))
}

/// How a request's answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Sent whole.
    Finished,
    /// Broken off, as the script said.
    Cut,
    /// The client closed the connection first.
    ClientGone,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    dialect: &'static dyn Dialect,
    pub path: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: Value,
    pub raw: Vec<u8>,
    /// Which connection it came on, from 0.
    pub connection: usize,
}

/// A tool's result in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentResult {
    pub id: String,
    pub text: String,
    pub is_error: bool,
}

impl Received {
    pub fn messages(&self) -> &[Value] {
        self.body["messages"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The texts of message `at`, joined by line feeds.
    pub fn text_of_message(&self, at: usize) -> String {
        let texts = self.dialect.texts(&self.body);
        texts
            .get(at)
            .map_or_else(String::new, |texts| texts.join("\n"))
    }

    /// The texts of the last message: the prompt, or what was said besides tool results.
    pub fn last_text(&self) -> String {
        let texts = self.dialect.texts(&self.body);
        texts
            .last()
            .map_or_else(String::new, |texts| texts.join("\n"))
    }

    /// The tool results of the last message, in order.
    pub fn tool_results(&self) -> Vec<SentResult> {
        self.dialect.tool_results(&self.body)
    }

    pub fn system_text(&self) -> String {
        self.dialect.system_text(&self.body)
    }

    pub fn tool_names(&self) -> Vec<String> {
        self.dialect.tool_names(&self.body)
    }

    /// Whether calls are forbidden in this request.
    pub fn tools_are_off(&self) -> bool {
        self.dialect.tools_are_off(&self.body)
    }
}

/// What the connections and the test share.
#[derive(Debug)]
struct Shared {
    dialect: &'static dyn Dialect,
    state: Mutex<State>,
    changed: Notify,
    instant: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct State {
    replies: VecDeque<Reply>,
    requests: Vec<Received>,
    outcomes: BTreeMap<usize, Outcome>,
    /// What must not change in a conversation, by its beginning.
    prefixes: BTreeMap<String, Prefix>,
    faults: Vec<String>,
    instant_requests: usize,
}

impl State {
    fn changed_prefix(&mut self, request: &Received) -> Option<String> {
        let prefix = request.dialect.prefix(&request.raw)?;
        // A conversation is known by how it begins.
        let begin = request.text_of_message(0);
        let known = self.prefixes.entry(begin).or_insert_with(|| prefix.clone());
        if prefix.thinking.is_empty() {
            known.thinking.clear();
        }
        (*known != prefix).then(|| {
            "system, tools, output_config or thinking differ from the conversation's first request"
                .to_owned()
        })
    }
}

impl Shared {
    fn new(dialect: &'static dyn Dialect) -> Self {
        Self {
            dialect,
            state: Mutex::default(),
            changed: Notify::new(),
            instant: None,
        }
    }

    /// Takes a request in and gives its number and its answer.
    fn take(&self, request: Received) -> (usize, Reply) {
        let mut state = self.state.lock();
        let number = state.requests.len();
        let mut faults = request.dialect.faults(&request);
        faults.extend(state.changed_prefix(&request));
        state.requests.push(request);
        let reply = state.replies.pop_front();
        if reply.is_none() {
            faults.push("no reply was scripted for it".to_owned());
        }
        let bad = faults.join("; ");
        for fault in faults {
            state.faults.push(format!("request {number}: {fault}"));
        }
        self.changed.notify_waiters();
        match reply {
            Some(reply) if bad.is_empty() => (number, reply.finished()),
            _ => (number, Reply::error(400, "invalid_request_error", &bad)),
        }
    }

    fn ended(&self, number: usize, outcome: Outcome) {
        self.state.lock().outcomes.insert(number, outcome);
        self.changed.notify_waiters();
    }

    fn count(&self) {
        self.state.lock().instant_requests += 1;
    }

    /// Waits until `look` finds something.
    async fn wait_for<T>(&self, what: &str, look: impl Fn(&State) -> Option<T>) -> T {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                let mut changed = std::pin::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = look(&self.state.lock()) {
                    return found;
                }
                changed.await;
            }
        };
        bounded(what, wait).await
    }
}

/// The stand-in. Dropping it ends it and, unless the test is failing already, fails the test for every
/// fault and every reply that nobody asked for.
#[derive(Debug)]
pub struct FakeLlm {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: AbortHandle,
}

impl FakeLlm {
    /// Speaks Anthropic's dialect on a free port, with the answers to the requests to come, in order.
    pub async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::speaking(ANTHROPIC, replies).await
    }

    /// The same in any dialect.
    pub async fn speaking(
        dialect: &'static dyn Dialect,
        replies: impl IntoIterator<Item = Reply>,
    ) -> Self {
        let shared = Shared::new(dialect);
        shared.state.lock().replies.extend(replies);
        Self::serve(shared).await
    }

    /// Answers any number of requests at once, each with `deltas` pieces of text and no pause, unchecked.
    pub async fn instant(deltas: usize) -> Self {
        Self::serve(Shared {
            instant: Some(server::instant(ANTHROPIC, deltas)),
            ..Shared::new(ANTHROPIC)
        })
        .await
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a stand-in outside the system; it ends with the test"
    )]
    async fn serve(shared: Shared) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(shared);
        let server = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self {
            address,
            shared,
            server,
        }
    }

    /// For the provider's `…_BASE_URL`.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds an answer.
    pub fn then(&self, reply: Reply) {
        self.shared.state.lock().replies.push_back(reply);
    }

    /// Waits for request `number`, from 0.
    pub async fn request(&self, number: usize) -> Received {
        let what = format!("request {number}");
        self.shared
            .wait_for(&what, |state| state.requests.get(number).cloned())
            .await
    }

    /// How the answer to request `number` ended; waits for that.
    pub async fn outcome(&self, number: usize) -> Outcome {
        let what = format!("the end of answer {number}");
        self.shared
            .wait_for(&what, |state| state.outcomes.get(&number).copied())
            .await
    }

    /// Waits until the client has closed the connection of request `number` before its answer ended: the
    /// proof that a cancel reached the wire.
    pub async fn connection_closed(&self, number: usize) {
        assert_eq!(self.outcome(number).await, Outcome::ClientGone);
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.state.lock().requests.clone()
    }

    /// How many requests came in instant mode.
    pub fn instant_requests(&self) -> usize {
        self.shared.state.lock().instant_requests
    }

    /// The faults so far, which then no longer fail the test.
    pub fn take_faults(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.state.lock().faults)
    }

    /// Takes back the replies that were not asked for, and tells how many there were.
    pub fn take_unused(&self) -> usize {
        std::mem::take(&mut self.shared.state.lock().replies).len()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Aborted with the stand-in, and its connections with it.
    let mut connections = JoinSet::new();
    for number in 0.. {
        let socket = loop {
            tokio::select! {
                accepted = listener.accept() => break accepted,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        let fault = format!("the stand-in failed: {error}");
                        shared.state.lock().faults.push(fault);
                    }
                }
            }
        };
        if let Ok((socket, _)) = socket {
            connections.spawn(server::serve(socket, Arc::clone(&shared), number));
        }
    }
}

impl Drop for FakeLlm {
    fn drop(&mut self) {
        self.server.abort();
        if std::thread::panicking() {
            return;
        }
        let state = self.shared.state.lock();
        assert!(state.faults.is_empty(), "bad requests: {:#?}", state.faults);
        assert!(
            state.replies.is_empty(),
            "{} replies were never asked for",
            state.replies.len()
        );
    }
}
