//! What the stand-in answers: one [`Reply`] per request, written as a story.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// A place in a reply that the test lets it pass. Sticky: it may be opened before it is reached.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    reached: CancellationToken,
    opened: CancellationToken,
}

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the reply go on.
    pub fn open(&self) {
        self.opened.cancel();
    }

    /// Waits until everything before the gate has been written to the connection.
    pub async fn reached(&self) {
        super::bounded("the gate to be reached", self.reached.cancelled()).await;
    }

    pub(super) async fn pass(&self) {
        self.reached.cancel();
        self.opened.cancelled().await;
    }
}

/// One step of a reply's body.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// The message's start, with the model that the request names unless another one answers.
    Start {
        model: Option<String>,
        usage: Value,
    },
    /// An event. A call without an id gets one that is unique in the conversation.
    Event(Value),
    Bytes(Vec<u8>),
    Wait(Gate),
}

/// How a reply ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Well.
    Finish,
    /// The connection is closed within the body.
    Cut,
    /// The connection is reset.
    Reset,
    /// Nothing more comes until the client leaves.
    Stall,
}

/// The answer to one request.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) steps: Vec<Step>,
    pub(super) end: End,
    /// Nothing at all is sent, not even a head: the end comes at once.
    pub(super) headless: bool,
    stop: Option<Value>,
    usage: Value,
    /// The kind of the block that is open, if one is.
    open: Option<&'static str>,
    index: u64,
    calls: usize,
    closed: bool,
}

impl Default for Reply {
    fn default() -> Self {
        Self::new()
    }
}

impl Reply {
    /// A message that streams in, empty so far. It ends by itself: with `tool_use` if it has calls, else
    /// with `end_turn`.
    pub fn new() -> Self {
        let usage = json!({"input_tokens": 10, "output_tokens": 1});
        Self {
            steps: vec![Step::Start { model: None, usage }],
            usage: json!({"output_tokens": 5}),
            ..Self::plain(200, "text/event-stream; charset=utf-8")
        }
    }

    /// A message of one text in one piece.
    pub fn says(text: &str) -> Self {
        Self::new().text(text)
    }

    /// An HTTP error in the provider's form.
    pub fn error(status: u16, kind: &str, message: &str) -> Self {
        let body = json!({"type": "error", "error": {"type": kind, "message": message}});
        Self::body(status, "application/json", body.to_string().as_bytes())
    }

    /// Any status, type and body.
    pub fn body(status: u16, content_type: &str, body: &[u8]) -> Self {
        let mut reply = Self::plain(status, content_type);
        reply.closed = true;
        reply.steps.push(Step::Bytes(body.to_vec()));
        reply
    }

    /// The request is read, and no answer ever begins.
    pub fn silence() -> Self {
        Self {
            headless: true,
            end: End::Stall,
            closed: true,
            ..Self::plain(200, "")
        }
    }

    /// The request is read, and the connection closed.
    pub fn hang_up() -> Self {
        Self {
            end: End::Cut,
            ..Self::silence()
        }
    }

    fn plain(status: u16, content_type: &str) -> Self {
        Self {
            status,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            steps: Vec::new(),
            end: End::Finish,
            headless: false,
            stop: None,
            usage: json!({}),
            open: None,
            index: 0,
            calls: 0,
            closed: false,
        }
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The model that answers.
    #[must_use]
    pub fn served_by(mut self, name: &str) -> Self {
        if let Some(Step::Start { model, .. }) = self.steps.first_mut() {
            *model = Some(name.to_owned());
        }
        self
    }

    /// A piece of text; pieces that follow each other belong to one block.
    #[must_use]
    pub fn text(mut self, piece: &str) -> Self {
        self.block("text", || json!({"type": "text", "text": ""}));
        self.delta(json!({"type": "text_delta", "text": piece}));
        self
    }

    /// A whole block of thinking.
    #[must_use]
    pub fn thinking(mut self, text: &str, signature: &str) -> Self {
        self.close_block();
        self.block(
            "thinking",
            || json!({"type": "thinking", "thinking": "", "signature": ""}),
        );
        self.delta(json!({"type": "thinking_delta", "thinking": text}));
        self.delta(json!({"type": "signature_delta", "signature": signature}));
        self
    }

    /// A whole call. Several in a row are parallel calls.
    #[must_use]
    pub fn call(self, name: &str, args: &Value) -> Self {
        let args = args.to_string();
        let half = (0..=args.len() / 2)
            .rev()
            .find(|at| args.is_char_boundary(*at))
            .unwrap_or(0);
        let (first, second) = args.split_at(half);
        let mut reply = self.call_so_far(name, first);
        reply.delta(json!({"type": "input_json_delta", "partial_json": second}));
        reply.close_block();
        reply
    }

    /// A call with these arguments, JSON or not. What comes next belongs to it until another block
    /// begins, so `.cut()` after it cuts within the call.
    #[must_use]
    pub fn call_so_far(mut self, name: &str, args: &str) -> Self {
        self.close_block();
        self.calls += 1;
        self.block(
            "tool_use",
            || json!({"type": "tool_use", "id": null, "name": name, "input": {}}),
        );
        self.delta(json!({"type": "input_json_delta", "partial_json": args}));
        self
    }

    /// A block that is complete in its start event, such as a server tool's result.
    #[must_use]
    pub fn whole_block(mut self, block: Value) -> Self {
        self.close_block();
        self.block("whole", || block);
        self.close_block();
        self
    }

    /// Any event.
    #[must_use]
    pub fn event(mut self, data: Value) -> Self {
        self.steps.push(Step::Event(data));
        self
    }

    /// Any bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.steps.push(Step::Bytes(bytes.into()));
        self
    }

    /// Waits here until the test opens `gate`.
    #[must_use]
    pub fn wait(mut self, gate: &Gate) -> Self {
        self.steps.push(Step::Wait(gate.clone()));
        self
    }

    /// Ends for this reason (`max_tokens`, `refusal`, `pause_turn`, …).
    #[must_use]
    pub fn stops(mut self, reason: &str) -> Self {
        self.stop = Some(json!({"stop_reason": reason, "stop_sequence": null}));
        self
    }

    /// Ends refused, with details.
    #[must_use]
    pub fn refuses(mut self, category: &str, explanation: &str) -> Self {
        self.stop = Some(
            json!({"stop_reason": "refusal", "stop_sequence": null, "stop_details":
            {"type": "refusal", "category": category, "explanation": explanation}}),
        );
        self
    }

    /// The figures of the whole reply: uncached input and output.
    #[must_use]
    pub fn usage(self, input: u64, output: u64) -> Self {
        self.usage_figures(json!({"input_tokens": input, "output_tokens": output}))
    }

    /// Any figures, as the provider writes them.
    #[must_use]
    pub fn usage_figures(mut self, figures: Value) -> Self {
        self.usage = figures;
        self
    }

    /// An `error` event within the stream, and its end.
    #[must_use]
    pub fn breaks(self, kind: &str, message: &str) -> Self {
        let error = json!({"type": "error", "error": {"type": kind, "message": message}});
        self.event(error).ends(End::Finish)
    }

    /// The connection is closed here.
    #[must_use]
    pub fn cut(self) -> Self {
        self.ends(End::Cut)
    }

    /// The connection is reset here.
    #[must_use]
    pub fn reset(self) -> Self {
        self.ends(End::Reset)
    }

    /// Nothing more comes.
    #[must_use]
    pub fn stall(self) -> Self {
        self.ends(End::Stall)
    }

    /// The body ends here, in good order for HTTP, though the message doesn't.
    #[must_use]
    pub fn ends_early(self) -> Self {
        self.ends(End::Finish)
    }

    /// The HTTP status.
    pub const fn status(&self) -> u16 {
        self.status
    }

    fn ends(mut self, end: End) -> Self {
        self.end = end;
        self.closed = true;
        self
    }

    /// The steps with the message's own end.
    pub(super) fn finished(mut self) -> Self {
        if self.closed {
            return self;
        }
        self.close_block();
        let reason = if self.calls > 0 {
            "tool_use"
        } else {
            "end_turn"
        };
        let stop = self
            .stop
            .take()
            .unwrap_or_else(|| json!({"stop_reason": reason, "stop_sequence": null}));
        let usage = std::mem::take(&mut self.usage);
        let steps = [
            json!({"type": "message_delta", "delta": stop, "usage": usage}),
            json!({"type": "message_stop"}),
        ];
        self.steps.extend(steps.map(Step::Event));
        self
    }

    fn block(&mut self, kind: &'static str, start: impl FnOnce() -> Value) {
        if self.open == Some(kind) {
            return;
        }
        self.close_block();
        let start = json!({
            "type": "content_block_start", "index": self.index, "content_block": start(),
        });
        self.steps.push(Step::Event(start));
        self.open = Some(kind);
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better at the calls")]
    fn delta(&mut self, delta: Value) {
        let delta = json!({"type": "content_block_delta", "index": self.index, "delta": delta});
        self.steps.push(Step::Event(delta));
    }

    fn close_block(&mut self) {
        if self.open.take().is_some() {
            let stop = json!({"type": "content_block_stop", "index": self.index});
            self.steps.push(Step::Event(stop));
            self.index += 1;
        }
    }
}
