//! Anthropic's Messages API, from the service's side.

mod check;
mod reader;

use sandcaster::chat::Message;
use serde_json::{Value, json};

use super::dialect::{Dialect, Figures, Piece, Prefix, Said, Speaker, Stop};
use super::{Received, SentResult};
use crate::support::recordings::Response;

#[derive(Debug)]
pub(super) struct Anthropic;

impl Dialect for Anthropic {
    fn provider(&self) -> &'static str {
        "anthropic"
    }

    fn speaker(&self, request: &Received, number: usize) -> Box<dyn Speaker> {
        Box::new(Speaking::new(request, number))
    }

    fn whole(&self, pieces: &[Piece], request: &Received, number: usize) -> Value {
        let mut speaking = Speaking::new(request, number);
        let events: Vec<Value> = pieces
            .iter()
            .flat_map(|piece| speaking.events(piece))
            .collect();
        reader::message(&events).unwrap()
    }

    fn error(&self, kind: &str, message: &str) -> Value {
        json!({"type": "error", "error": {"type": kind, "message": message}})
    }

    fn faults(&self, request: &Received) -> Vec<String> {
        check::faults(request)
    }

    fn body_faults(&self, body: &Value) -> Vec<String> {
        check::body_faults(body)
    }

    fn prefix(&self, raw: &[u8]) -> Option<Prefix> {
        check::prefix(raw)
    }

    fn texts(&self, body: &Value) -> Vec<Vec<String>> {
        let messages = body["messages"].as_array().into_iter().flatten();
        messages.map(|message| texts(&blocks_of(message))).collect()
    }

    fn tool_results(&self, body: &Value) -> Vec<SentResult> {
        let last = body["messages"].as_array().and_then(|list| list.last());
        let blocks = last.map(blocks_of).unwrap_or_default();
        blocks
            .iter()
            .filter(|block| block["type"] == "tool_result")
            .map(|block| SentResult {
                id: block["tool_use_id"].as_str().unwrap_or_default().to_owned(),
                text: texts(&blocks_of(block)).join("\n"),
                is_error: block["is_error"] == true,
            })
            .collect()
    }

    fn system_text(&self, body: &Value) -> String {
        let blocks = body["system"].as_array().cloned().unwrap_or_default();
        texts(&blocks).join("\n")
    }

    fn tool_names(&self, body: &Value) -> Vec<String> {
        let tools = body["tools"].as_array().into_iter().flatten();
        tools
            .filter_map(|tool| tool["name"].as_str().map(str::to_owned))
            .collect()
    }

    fn tools_are_off(&self, body: &Value) -> bool {
        body["tool_choice"]["type"] == "none"
    }

    fn recorded(&self, response: &Response) -> Option<Said> {
        reader::recorded(response)
    }

    fn carried(&self, echo: &Value) -> (String, Option<String>) {
        let string = |name: &str| echo[name].as_str().unwrap_or_default().to_owned();
        let kind = string("type");
        let thought = (kind == "thinking").then(|| string("thinking") + &string("signature"));
        (kind, thought)
    }

    fn conversation(&self, body: &Value) -> Vec<Message> {
        reader::conversation(body)
    }

    fn meaning(&self, body: &Value) -> Vec<Value> {
        reader::meaning(body)
    }
}

/// The blocks of a message; a string counts as one text block.
fn blocks_of(message: &Value) -> Vec<Value> {
    match &message["content"] {
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        Value::Array(blocks) => blocks.clone(),
        _ => Vec::new(),
    }
}

fn texts(blocks: &[Value]) -> Vec<String> {
    blocks
        .iter()
        .filter_map(|block| block["text"].as_str().map(str::to_owned))
        .collect()
}

/// An answer, as far as it was spoken.
struct Speaking {
    number: usize,
    model: Value,
    /// The kind of the block that is open, if one is.
    open: Option<&'static str>,
    index: u64,
    calls: usize,
}

impl Speaker for Speaking {
    fn say(&mut self, piece: &Piece) -> Vec<u8> {
        let events = self.events(piece);
        events.iter().flat_map(frame).collect()
    }
}

fn frame(data: &Value) -> Vec<u8> {
    let name = data["type"].as_str().unwrap_or("message");
    format!("event: {name}\ndata: {data}\n\n").into_bytes()
}

impl Speaking {
    fn new(request: &Received, number: usize) -> Self {
        Self {
            number,
            model: request.body["model"].clone(),
            open: None,
            index: 0,
            calls: 0,
        }
    }

    fn events(&mut self, piece: &Piece) -> Vec<Value> {
        let mut out = Vec::new();
        match piece {
            Piece::Start { served_by, usage } => {
                let model = served_by
                    .clone()
                    .map_or_else(|| self.model.clone(), Value::from);
                let mut message = json!({
                    "id": format!("msg_fake_{}", self.number), "type": "message",
                    "role": "assistant", "model": model, "content": [], "stop_reason": null,
                    "stop_sequence": null,
                });
                if *usage {
                    message["usage"] = json!({"input_tokens": 10, "output_tokens": 1});
                }
                out.push(json!({"type": "message_start", "message": message}));
            }
            Piece::Text(text) => {
                self.block("text", &json!({"type": "text", "text": ""}), &mut out);
                out.push(self.delta(json!({"type": "text_delta", "text": text})));
            }
            Piece::Thinking { text, signature } => {
                self.close(&mut out);
                let start = json!({"type": "thinking", "thinking": "", "signature": ""});
                self.block("thinking", &start, &mut out);
                out.push(self.delta(json!({"type": "thinking_delta", "thinking": text})));
                out.push(self.delta(json!({"type": "signature_delta", "signature": signature})));
            }
            Piece::Call { id, name } => {
                self.close(&mut out);
                self.calls += 1;
                let made = || format!("toolu_fake_{}_{}", self.number, self.index);
                let id = id.clone().unwrap_or_else(made);
                let start = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.block("tool_use", &start, &mut out);
            }
            Piece::Args(json) => {
                out.push(self.delta(json!({"type": "input_json_delta", "partial_json": json})));
            }
            Piece::Called => self.close(&mut out),
            Piece::Block(block) => {
                self.close(&mut out);
                self.block("whole", block, &mut out);
                self.close(&mut out);
            }
            Piece::Event(data) => out.push(data.clone()),
            Piece::Ping => out.push(json!({"type": "ping"})),
            Piece::Error { kind, message } => out.push(Anthropic.error(kind, message)),
            Piece::Reason { stop, usage } => {
                self.close(&mut out);
                out.push(self.reason(stop, usage));
            }
            Piece::End => out.push(json!({"type": "message_stop"})),
        }
        out
    }

    fn reason(&self, stop: &Stop, usage: &Figures) -> Value {
        let delta = match stop {
            Stop::ByItself if self.calls > 0 => json!({"stop_reason": "tool_use"}),
            Stop::ByItself => json!({"stop_reason": "end_turn"}),
            Stop::Reason(reason) => json!({"stop_reason": reason}),
            Stop::Refusal {
                category,
                explanation,
            } => json!({"stop_reason": "refusal", "stop_details":
                {"type": "refusal", "category": category, "explanation": explanation}}),
        };
        let mut event = json!({"type": "message_delta", "delta": delta});
        match usage {
            Figures::Counts { input, output } => {
                event["usage"] = json!({"input_tokens": input, "output_tokens": output});
            }
            Figures::Own(figures) => event["usage"] = figures.clone(),
            Figures::Unknown => {}
        }
        event
    }

    fn block(&mut self, kind: &'static str, start: &Value, out: &mut Vec<Value>) {
        if self.open != Some(kind) {
            self.close(out);
            out.push(json!({
                "type": "content_block_start", "index": self.index, "content_block": start,
            }));
            self.open = Some(kind);
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better at the calls")]
    fn delta(&self, delta: Value) -> Value {
        json!({"type": "content_block_delta", "index": self.index, "delta": delta})
    }

    fn close(&mut self, out: &mut Vec<Value>) {
        if self.open.take().is_some() {
            out.push(json!({"type": "content_block_stop", "index": self.index}));
            self.index += 1;
        }
    }
}
