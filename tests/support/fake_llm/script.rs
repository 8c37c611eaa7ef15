//! What the stand-in answers: one [`Reply`] per request, written as a story. Neutral; a dialect speaks it.

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::dialect::{Figures, Piece, Stop};

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
    Say(Piece),
    /// A body that is an error object.
    Error {
        kind: String,
        message: String,
    },
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
    /// All in one JSON document.
    pub(super) whole: bool,
    stop: Stop,
    usage: Figures,
    closed: bool,
}

impl Default for Reply {
    fn default() -> Self {
        Self::new()
    }
}

impl Reply {
    /// A message that streams in, empty so far. It ends by itself: with calls if it has some, else as
    /// complete.
    pub fn new() -> Self {
        let mut reply = Self::plain(200, "text/event-stream; charset=utf-8");
        reply.push(Piece::Start {
            served_by: None,
            usage: true,
        });
        reply
    }

    /// A message of one text in one piece.
    pub fn says(text: &str) -> Self {
        Self::new().text(text)
    }

    /// An HTTP error in the provider's form.
    pub fn error(status: u16, kind: &str, message: &str) -> Self {
        let mut reply = Self::plain(status, "application/json");
        reply.closed = true;
        reply.steps.push(Step::Error {
            kind: kind.to_owned(),
            message: message.to_owned(),
        });
        reply
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

    /// Whether it falls silent at its end.
    pub fn stalls(&self) -> bool {
        self.end == End::Stall
    }

    /// Whether nothing of it is ever sent.
    pub const fn is_headless(&self) -> bool {
        self.headless
    }

    fn plain(status: u16, content_type: &str) -> Self {
        Self {
            status,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            steps: Vec::new(),
            end: End::Finish,
            headless: false,
            whole: false,
            stop: Stop::ByItself,
            usage: Figures::Counts {
                input: 10,
                output: 5,
            },
            closed: false,
        }
    }

    fn push(&mut self, piece: Piece) {
        self.steps.push(Step::Say(piece));
    }

    fn with(mut self, piece: Piece) -> Self {
        self.push(piece);
        self
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
        if let Some(Step::Say(Piece::Start { served_by, .. })) = self.steps.first_mut() {
            *served_by = Some(name.to_owned());
        }
        self
    }

    /// A piece of text; pieces that follow each other belong to one block.
    #[must_use]
    pub fn text(self, piece: &str) -> Self {
        self.with(Piece::Text(piece.to_owned()))
    }

    /// A whole block of thinking.
    #[must_use]
    pub fn thinking(self, text: &str, signature: &str) -> Self {
        self.with(Piece::Thinking {
            text: text.to_owned(),
            signature: signature.to_owned(),
        })
    }

    /// A whole call. Several in a row are parallel calls.
    #[must_use]
    pub fn call(self, name: &str, args: &Value) -> Self {
        self.call_by(None, name, args)
    }

    /// A whole call with an id of its own.
    #[must_use]
    pub fn call_with_id(self, id: &str, name: &str, args: &Value) -> Self {
        self.call_by(Some(id.to_owned()), name, args)
    }

    fn call_by(self, id: Option<String>, name: &str, args: &Value) -> Self {
        let args = args.to_string();
        let half = (0..=args.len() / 2)
            .rev()
            .find(|at| args.is_char_boundary(*at))
            .unwrap_or(0);
        let (first, second) = args.split_at(half);
        self.with(Piece::Call {
            id,
            name: name.to_owned(),
        })
        .with(Piece::Args(first.to_owned()))
        .with(Piece::Args(second.to_owned()))
        .with(Piece::Called)
    }

    /// A call with these arguments, JSON or not. What comes next belongs to it until another block
    /// begins, so `.cut()` after it cuts within the call.
    #[must_use]
    pub fn call_so_far(self, name: &str, args: &str) -> Self {
        self.with(Piece::Call {
            id: None,
            name: name.to_owned(),
        })
        .with(Piece::Args(args.to_owned()))
    }

    /// A block that is complete in its start event, such as a server tool's result.
    #[must_use]
    pub fn whole_block(self, block: Value) -> Self {
        self.with(Piece::Block(block))
    }

    /// Any event.
    #[must_use]
    pub fn event(self, data: Value) -> Self {
        self.with(Piece::Event(data))
    }

    /// A sign of life.
    #[must_use]
    pub fn ping(self) -> Self {
        self.with(Piece::Ping)
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
        self.stop = Stop::Reason(reason.to_owned());
        self
    }

    /// Ends refused, with details.
    #[must_use]
    pub fn refuses(mut self, category: &str, explanation: &str) -> Self {
        self.stop = Stop::Refusal {
            category: category.to_owned(),
            explanation: explanation.to_owned(),
        };
        self
    }

    /// The figures of the whole reply: uncached input and output.
    #[must_use]
    pub fn usage(mut self, input: u64, output: u64) -> Self {
        self.usage = Figures::Counts { input, output };
        self
    }

    /// Any figures, as the provider writes them.
    #[must_use]
    pub fn usage_figures(mut self, figures: Value) -> Self {
        self.usage = Figures::Own(figures);
        self
    }

    /// No figures at all.
    #[must_use]
    pub fn without_usage(mut self) -> Self {
        self.usage = Figures::Unknown;
        if let Some(Step::Say(Piece::Start { usage, .. })) = self.steps.first_mut() {
            *usage = false;
        }
        self
    }

    /// All of it in one JSON document.
    #[must_use]
    pub fn in_one_document(mut self) -> Self {
        self.whole = true;
        self.header("content-type", "application/json")
    }

    /// An error within the stream, and its end.
    #[must_use]
    pub fn breaks(self, kind: &str, message: &str) -> Self {
        self.with(Piece::Error {
            kind: kind.to_owned(),
            message: message.to_owned(),
        })
        .ends(End::Finish)
    }

    /// The reason and the figures come, the mark of the end doesn't: what comes next instead is told next.
    #[must_use]
    pub fn reason_only(mut self) -> Self {
        self.say_reason();
        self.closed = true;
        self
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

    fn say_reason(&mut self) {
        self.push(Piece::Reason {
            stop: self.stop.clone(),
            usage: self.usage.clone(),
        });
    }

    /// The steps with the message's own end.
    pub(super) fn finished(mut self) -> Self {
        if !self.closed {
            self.say_reason();
            self.push(Piece::End);
        }
        self
    }
}
