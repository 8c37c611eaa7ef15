//! Faults on demand: what the n-th call of a route gets in place of, before or after its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::journal::Seen;
use super::routes::Route;

/// How a faulty body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a well-formed end of the HTTP body.
    Clean,
    /// With a broken connection.
    Reset,
}

/// What happens to a stream of envelopes. `after` counts the frames sent whole before it: 0 is "before
/// the start event", 1 "after it".
#[derive(Clone, Debug)]
pub enum StreamFault {
    /// Half of the next frame is the last that is sent.
    CutInFrame {
        /// Whole frames before it.
        after: usize,
        /// What follows the half.
        ending: Ending,
    },
    /// Nothing follows, not even an end frame.
    EndAfter {
        /// Whole frames before it.
        after: usize,
        /// How the body ends.
        ending: Ending,
    },
    /// Everything but the end frame.
    NoEndFrame,
    /// This end frame in place of what would have followed.
    EndFrame {
        /// Whole frames before it.
        after: usize,
        /// `{}` or `{"error":{…}}`.
        message: Value,
    },
    /// Nothing more, and the connection stays open.
    Stall {
        /// Whole frames before it.
        after: usize,
    },
    /// Keepalive events and nothing else, for ever.
    KeepalivesOnly {
        /// Whole frames before it.
        after: usize,
        /// Time between two.
        every: Duration,
    },
    /// Every frame in pieces.
    Trickle {
        /// Bytes of a piece.
        bytes: usize,
        /// Pause after each.
        every: Duration,
    },
    /// Raw bytes between two frames: an unknown event, a compressed flag, a length beyond all bounds.
    Insert {
        /// Whole frames before it.
        after: usize,
        /// What is put in.
        bytes: Bytes,
    },
    /// No start event.
    NoStart,
    /// No end *event*; the end frame comes.
    NoExit,
    /// The end frame twice.
    DoubleEnd,
    /// An error frame where the end frame belongs, after the end event.
    ErrorAfterExit {
        /// Connect code.
        code: &'static str,
        /// Its message.
        message: &'static str,
    },
}

/// What breaks a connection as the next piece of a body, once what came before it has left.
pub(super) async fn breakage() -> std::io::Result<Bytes> {
    // The server writes what it has when a body has nothing for it yet, and throws it away on an error.
    tokio::task::yield_now().await;
    Err(std::io::Error::other("the stand-in broke it"))
}

/// An answer made up by a test.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    cut: Option<usize>,
}

impl Reply {
    /// This status with no body.
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
            cut: None,
        }
    }

    /// A JSON body.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status)
            .header("content-type", "application/json; charset=utf-8")
            .body(body.to_string())
    }

    /// A body that is not JSON, as load balancers send.
    pub fn html(status: u16, body: &str) -> Self {
        Self::new(status)
            .header("content-type", "text/html")
            .body(body.to_owned())
    }

    /// A stream with these frames, byte for byte.
    pub fn frames(frames: impl IntoIterator<Item = Bytes>) -> Self {
        let body: Vec<u8> = frames.into_iter().flatten().collect();
        Self::new(200)
            .header("content-type", "application/connect+json")
            .body(body)
    }

    /// The edge's answer for a sandbox that is gone.
    pub fn sandbox_gone(id: &str) -> Self {
        let message = "The sandbox was not found";
        Self::json(
            502,
            &json!({"sandboxId": id, "message": message, "code": 502}),
        )
    }

    /// The edge's answer while envd can't be reached.
    pub fn port_closed(id: &str) -> Self {
        let message = "The sandbox is running but port is not open";
        Self::json(
            502,
            &json!({"sandboxId": id, "message": message, "port": 49983, "code": 502}),
        )
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Announces the whole body, sends `bytes` of it and breaks the connection.
    #[must_use]
    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    pub(super) fn response(&self) -> Response<Body> {
        let body = match self.cut {
            None => Body::from(self.body.clone()),
            Some(at) => {
                let sent = self.body.slice(..at.min(self.body.len()));
                let whole = futures::stream::iter([Ok(sent)]);
                Body::from_stream(whole.chain(futures::stream::once(breakage())))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap();
        if self.cut.is_some() {
            response
                .headers_mut()
                .insert("content-length", HeaderValue::from(self.body.len()));
        }
        for (name, value) in &self.headers {
            response.headers_mut().append(
                HeaderName::try_from(name.as_str()).unwrap(),
                HeaderValue::try_from(value.as_str()).unwrap(),
            );
        }
        response
    }
}

/// `{"code","message"}` with that status, as E2B's API answers.
impl From<u16> for Reply {
    fn from(status: u16) -> Self {
        let message = match status {
            400 => "Bad request",
            401 => {
                "Invalid API key, please visit https://e2b.dev/docs/api-key for more information"
            }
            403 => "Team is blocked",
            404 => "Not found",
            429 => "Rate limit exceeded, please try again later",
            503 => "Failed to place sandbox",
            _ => "Internal server error",
        };
        Self::json(status, &json!({"code": status, "message": message}))
    }
}

type Matcher = Arc<dyn Fn(&Seen) -> bool + Send + Sync>;

#[derive(Clone, Default)]
pub(super) enum Deed {
    /// Act and answer as usual.
    #[default]
    Usual,
    /// Answer this, without acting.
    Respond(Reply),
    /// Act, then answer this.
    RespondAfterActing(Reply),
    /// Close the connection without acting.
    DropBefore,
    /// Act, then close the connection without an answer.
    DropAfter,
    /// Never answer, without acting.
    Hang,
    /// Act, and never answer.
    HangAfter,
}

#[derive(Clone, Default)]
pub(super) struct Plan {
    pub delay: Duration,
    pub late: Duration,
    pub gate: Option<watch::Receiver<bool>>,
    pub deed: Deed,
    pub stream: Option<StreamFault>,
}

struct Rule {
    route: Route,
    from: usize,
    to: usize,
    matching: Option<Matcher>,
    plan: Plan,
    calls: usize,
    optional: bool,
}

struct Shared {
    rule: Mutex<Rule>,
    hits: AtomicUsize,
    hit: Notify,
}

/// All rules of a stand-in; the first that applies wins.
#[derive(Default)]
pub(super) struct Faults(Mutex<Vec<Arc<Shared>>>);

impl Faults {
    pub(super) fn on(&self, route: Route) -> Fault {
        let shared = Arc::new(Shared {
            rule: Mutex::new(Rule {
                route,
                from: 1,
                to: 1,
                matching: None,
                plan: Plan::default(),
                calls: 0,
                optional: false,
            }),
            hits: AtomicUsize::new(0),
            hit: Notify::new(),
        });
        self.0.lock().push(shared.clone());
        Fault(shared)
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    /// The plan for this call.
    pub(super) fn plan(&self, seen: &Seen) -> Plan {
        for shared in self.0.lock().iter() {
            let mut rule = shared.rule.lock();
            let wanted = rule.matching.as_ref().is_none_or(|wanted| wanted(seen));
            if rule.route != seen.route || !wanted {
                continue;
            }
            rule.calls += 1;
            if (rule.from..=rule.to).contains(&rule.calls) {
                shared.hits.fetch_add(1, Ordering::AcqRel);
                shared.hit.notify_waiters();
                return rule.plan.clone();
            }
        }
        Plan::default()
    }

    /// Rules that no call ever met.
    pub(super) fn unmet(&self) -> Vec<String> {
        let rules = self.0.lock();
        let unmet = rules.iter().filter(|shared| {
            shared.hits.load(Ordering::Acquire) == 0 && !shared.rule.lock().optional
        });
        unmet
            .map(|shared| {
                let rule = shared.rule.lock();
                format!(
                    "{:?}: {} calls, wanted no. {}",
                    rule.route, rule.calls, rule.from
                )
            })
            .collect()
    }
}

/// A fault being described: in force from the moment of [`super::FakeE2b::on`], for the first call
/// unless [`nth`](Self::nth), [`first`](Self::first) or [`always`](Self::always) say otherwise. Calls
/// are counted from that moment on. Every method can be chained, and used later to change the fault.
#[derive(Clone)]
pub struct Fault(Arc<Shared>);

impl Fault {
    fn set(self, change: impl FnOnce(&mut Rule)) -> Self {
        change(&mut self.0.rule.lock());
        self
    }

    /// Only the `n`-th call, from 1.
    pub fn nth(self, n: usize) -> Self {
        self.set(|rule| (rule.from, rule.to) = (n, n))
    }

    /// The first `n` calls.
    pub fn first(self, n: usize) -> Self {
        self.set(|rule| (rule.from, rule.to) = (1, n))
    }

    /// Every call from the `n`-th on.
    pub fn from(self, n: usize) -> Self {
        self.set(|rule| (rule.from, rule.to) = (n, usize::MAX))
    }

    /// Every call.
    pub fn always(self) -> Self {
        self.from(1)
    }

    /// Only calls of which this holds; others aren't counted.
    pub fn matching(self, wanted: impl Fn(&Seen) -> bool + Send + Sync + 'static) -> Self {
        self.set(|rule| rule.matching = Some(Arc::new(wanted)))
    }

    /// Answers this without acting. A bare status gets E2B's usual body for it.
    pub fn respond(self, reply: impl Into<Reply>) -> Self {
        let reply = reply.into();
        self.set(|rule| rule.plan.deed = Deed::Respond(reply))
    }

    /// Acts, then answers this instead of the truth.
    pub fn respond_after_acting(self, reply: impl Into<Reply>) -> Self {
        let reply = reply.into();
        self.set(|rule| rule.plan.deed = Deed::RespondAfterActing(reply))
    }

    /// Closes the connection without acting.
    pub fn drop_before_acting(self) -> Self {
        self.set(|rule| rule.plan.deed = Deed::DropBefore)
    }

    /// Acts, then closes the connection: the answer is lost.
    pub fn drop_after_send(self) -> Self {
        self.set(|rule| rule.plan.deed = Deed::DropAfter)
    }

    /// Neither acts nor answers; the connection stays open.
    pub fn hang(self) -> Self {
        self.set(|rule| rule.plan.deed = Deed::Hang)
    }

    /// Acts and never answers.
    pub fn hang_after_acting(self) -> Self {
        self.set(|rule| rule.plan.deed = Deed::HangAfter)
    }

    /// Waits before acting.
    pub fn delay(self, by: Duration) -> Self {
        self.set(|rule| rule.plan.delay = by)
    }

    /// Acts at once and answers late.
    pub fn delay_answer(self, by: Duration) -> Self {
        self.set(|rule| rule.plan.late = by)
    }

    /// Spoils the stream that answers.
    pub fn stream(self, fault: StreamFault) -> Self {
        self.set(|rule| rule.plan.stream = Some(fault))
    }

    /// Holds the call, before it acts, until the gate is opened.
    pub fn gate(self) -> Gate {
        let (open, opened) = watch::channel(false);
        let fault = self.set(|rule| rule.plan.gate = Some(opened));
        Gate { open, fault }
    }

    /// No failure at the end of the test if no call met it.
    pub fn optional(self) -> Self {
        self.set(|rule| rule.optional = true)
    }

    /// How many calls met it.
    pub fn hits(&self) -> usize {
        self.0.hits.load(Ordering::Acquire)
    }

    /// Waits until a call has met it; panics after 10 s.
    pub async fn reached(&self) {
        let met = async {
            loop {
                let next = self.0.hit.notified();
                tokio::pin!(next);
                next.as_mut().enable();
                if self.hits() > 0 {
                    return;
                }
                next.await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(10), met).await;
        assert!(in_time.is_ok(), "no call met the fault within 10 s");
    }
}

/// Holds calls until it is opened; dropping it opens it.
pub struct Gate {
    open: watch::Sender<bool>,
    fault: Fault,
}

impl Gate {
    /// Waits until a call stands before it; panics after 10 s.
    pub async fn reached(&self) {
        self.fault.reached().await;
    }

    /// Lets every call through, now and later.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}
