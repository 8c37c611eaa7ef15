//! What every provider must do with an answer, however it speaks.

use std::time::Duration;

use sandcaster::chat::{Block, ToolArgs, ToolCall};
use sandcaster::llm::{LlmDelta, LlmErrorKind, LlmStop, StreamLimits, Usage};
use serde_json::json;

use super::{blocks_of, rows, text_of};
use crate::support::fake_llm::{Outcome, Reply};

fn limits() -> StreamLimits {
    StreamLimits::default()
}

fn calls(deltas: &[LlmDelta]) -> Vec<ToolCall> {
    blocks_of(deltas)
        .into_iter()
        .filter_map(|block| match block {
            Block::Call(call) => Some(call),
            _ => None,
        })
        .collect()
}

fn usage(deltas: &[LlmDelta]) -> Usage {
    let usage = |delta: &LlmDelta| match delta {
        LlmDelta::Usage(usage) => Some(*usage),
        _ => None,
    };
    deltas.iter().rev().find_map(usage).unwrap()
}

/// The deltas of `reply`, which ends well, for each provider.
async fn deltas(reply: impl Fn() -> Reply) -> Vec<Vec<LlmDelta>> {
    let mut all = Vec::new();
    for row in rows() {
        let (deltas, error) = row.ask_once(reply(), limits()).await;
        assert!(error.is_none(), "{}: {error:?}", row.def.name);
        let stops = deltas
            .iter()
            .filter(|delta| matches!(delta, LlmDelta::Stop(_)));
        assert_eq!(stops.count(), 1);
        assert!(matches!(deltas.last(), Some(LlmDelta::Stop(_))));
        all.push(deltas);
    }
    all
}

#[tokio::test]
async fn text_comes_in_pieces_and_as_one_block_in_a_stream_and_in_one_document() {
    for whole in [false, true] {
        let reply = || {
            let reply = Reply::new()
                .text("Hel")
                .text("lo")
                .served_by("another")
                .usage(30, 4);
            if whole {
                reply.in_one_document()
            } else {
                reply
            }
        };
        for deltas in deltas(reply).await {
            assert_eq!(text_of(&deltas), "Hello");
            let [Block::Text { text, .. }] = &blocks_of(&deltas)[..] else {
                panic!("{deltas:?}")
            };
            assert_eq!(text, "Hello");
            let usage = usage(&deltas);
            assert_eq!((usage.total_input(), usage.output), (30, 4));
            assert!(!usage.estimated);
            assert!(deltas.contains(&LlmDelta::ServedModel("another".to_owned())));
            assert_eq!(deltas.last(), Some(&LlmDelta::Stop(LlmStop::End)));
        }
    }
}

#[tokio::test]
async fn parallel_calls_come_whole_in_order_and_with_ids_of_ours() {
    let odd = "functions.bash:0";
    let args = [
        json!({"a": 1}),
        json!({}),
        json!({"b": [null, "é"]}),
        json!({}),
    ];
    for whole in [false, true] {
        let reply = || {
            let reply = Reply::new()
                .text("Four.")
                .call("bash", &args[0])
                .call_with_id(odd, "grep", &args[1])
                .call_with_id(odd, "bash", &args[2])
                .call_with_id("", "bash", &args[3]);
            if whole {
                reply.in_one_document()
            } else {
                reply
            }
        };
        for deltas in deltas(reply).await {
            let calls = calls(&deltas);
            let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
            assert_eq!(names, ["bash", "grep", "bash", "bash"]);
            for (call, args) in calls.iter().zip(&args) {
                assert_eq!(call.args, ToolArgs::Json(args.clone()));
            }
            let ids: Vec<&str> = calls.iter().map(|call| call.id.as_str()).collect();
            assert_eq!(ids, ["call_1", "call_2", "call_3", "call_4"]);
            let wire: std::collections::BTreeSet<&str> =
                calls.iter().map(|call| call.id.wire()).collect();
            assert_eq!(wire.len(), 4, "{calls:?}");
            assert_eq!(deltas.last(), Some(&LlmDelta::Stop(LlmStop::ToolUse)));
        }
    }
}

#[tokio::test]
async fn arguments_that_are_no_json_are_told_as_such() {
    for deltas in deltas(|| Reply::new().call_so_far("bash", "{not json")).await {
        let args = &calls(&deltas)[0].args;
        assert!(
            matches!(args, ToolArgs::Malformed { raw, error } if raw == "{not json" && !error.is_empty()),
            "{args:?}"
        );
    }
}

#[tokio::test]
async fn why_an_answer_ended_is_told() {
    for (reason, stop) in [
        ("end_turn", LlmStop::End),
        ("max_tokens", LlmStop::MaxTokens),
    ] {
        for deltas in deltas(|| Reply::says("a").stops(reason)).await {
            assert_eq!(deltas.last(), Some(&LlmDelta::Stop(stop.clone())));
        }
    }
    for deltas in deltas(|| Reply::says("a").refuses("cyber", "No.")).await {
        assert!(matches!(
            deltas.last(),
            Some(LlmDelta::Stop(LlmStop::Refusal { .. }))
        ));
    }
}

#[tokio::test]
async fn without_figures_there_is_an_estimate() {
    for whole in [false, true] {
        let text = "word ".repeat(400);
        let reply = || {
            let reply = Reply::says(&text).without_usage();
            if whole {
                reply.in_one_document()
            } else {
                reply
            }
        };
        for deltas in deltas(reply).await {
            let usage = usage(&deltas);
            assert!(usage.estimated);
            assert!((400..=600).contains(&usage.output), "{usage:?}");
            assert!((20..=400).contains(&usage.input), "{usage:?}");
        }
    }
}

#[tokio::test]
async fn pings_between_all_pieces_change_nothing() {
    let reply = || {
        Reply::new()
            .ping()
            .text("a")
            .ping()
            .text("b")
            .ping()
            .call("bash", &json!({}))
            .ping()
    };
    for deltas in deltas(reply).await {
        assert_eq!(text_of(&deltas), "ab");
        assert_eq!(calls(&deltas).len(), 1);
    }
}

#[tokio::test]
async fn a_reason_without_the_mark_of_the_end_is_an_end_whatever_follows() {
    let said = || {
        Reply::new()
            .text("a")
            .call("bash", &json!({"x": 1}))
            .reason_only()
    };
    for (place, reply) in [
        ("the end of the stream", said().ends_early()),
        ("[DONE]", said().bytes(b"data: [DONE]\n\n".to_vec()).stall()),
        ("a cut", said().cut()),
        ("a reset", said().reset()),
        ("silence", said().stall()),
        ("pings", said().ping().ping().stall()),
        ("comments", said().bytes(b": x\n\n".to_vec()).stall()),
    ] {
        for row in rows() {
            let soon = StreamLimits {
                end: Duration::from_millis(300),
                ..limits()
            };
            let (deltas, error) = row.ask_to_the_end(reply.clone(), soon).await;
            assert!(error.is_none(), "{place}: {error:?}");
            assert_eq!(text_of(&deltas), "a", "{place}");
            assert_eq!(calls(&deltas).len(), 1, "{place}");
            let stop = LlmDelta::Stop(LlmStop::ToolUse);
            assert_eq!(deltas.last(), Some(&stop), "{place}");
        }
    }
}

#[tokio::test]
async fn done_before_the_reason_is_a_cut() {
    for row in rows() {
        let reply = Reply::new().text("a").bytes(b"data: [DONE]\n\n".to_vec());
        let (deltas, error) = row.ask_to_the_end(reply.stall(), limits()).await;
        assert_eq!(error.unwrap().kind, LlmErrorKind::Cut);
        assert_eq!(text_of(&deltas), "a");
    }
}

#[tokio::test]
async fn what_is_before_the_first_byte_of_an_answer_tells_nothing() {
    for row in rows() {
        for before in ["\u{feff}", "\n\n", "\r\n\u{feff}", ": waiting\n\n"] {
            for whole in [false, true] {
                if whole && before.starts_with(':') {
                    continue;
                }
                let reply = Reply::says("a");
                let said = if whole {
                    reply.in_one_document()
                } else {
                    reply
                };
                let bytes = row.llm([said]).await;
                let body = fetch(row, &bytes).await;
                let answer = [before.as_bytes(), &body].concat();
                for label in ["text/event-stream", "application/json", "text/plain", ""] {
                    let reply = Reply::body(200, label, &answer);
                    let (deltas, error) = row.ask_once(reply, limits()).await;
                    assert!(error.is_none(), "{before:?} {label}: {error:?}");
                    assert_eq!(text_of(&deltas), "a");
                }
            }
        }
    }
}

/// The bytes of the next answer.
async fn fetch(row: &super::Row, llm: &crate::support::fake_llm::FakeLlm) -> Vec<u8> {
    let asked = row.prompt();
    let wire = row.wire(&asked.request());
    let path = wire.url.split_once("127.0.0.1:1").unwrap().1.to_owned();
    let request = crate::support::http()
        .post(format!("{}{path}", llm.base_url()))
        .headers(wire.headers)
        .body(wire.body);
    let response = request.send().await.unwrap();
    response.bytes().await.unwrap().to_vec()
}

#[tokio::test]
async fn an_answer_that_is_read_to_its_end_leaves_the_connection() {
    for row in rows() {
        let llm = row.llm([Reply::says("1"), Reply::says("2")]).await;
        let provider = row.provider(&llm.base_url());
        for number in 0..2 {
            let (_, error) = super::ask(&*provider, &row.prompt()).await;
            assert!(error.is_none());
            assert_eq!(llm.outcome(number).await, Outcome::Finished);
        }
        assert_eq!(llm.request(1).await.connection, 0);
    }
}
