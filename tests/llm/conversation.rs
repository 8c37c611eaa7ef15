//! Whole conversations: what was received is sent back, and the service would take it.

use proptest::prelude::*;
use sandcaster::chat::{Block, CallIds, Echo, Message, Part, ToolArgs, ToolCall, ToolResult};
use sandcaster::llm::{LlmDelta, LlmStop};
use serde_json::json;

use super::{ask, blocks_of, rows};
use crate::support::fake_llm::{Reply, SentResult};

fn results(blocks: &[Block]) -> Vec<ToolResult> {
    blocks
        .iter()
        .filter_map(|block| match block {
            Block::Call(call) => Some(ToolResult {
                id: call.id.clone(),
                name: call.name.clone(),
                content: vec![Part::Text(format!("result of {}", call.id.wire()))],
                is_error: matches!(call.args, ToolArgs::Malformed { .. }),
            }),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn thinking_parallel_calls_and_notices_go_back_as_the_service_wants_them() {
    for row in rows() {
        let llm = row
            .llm([
                Reply::new()
                    .thinking("Two at once.", "signature")
                    .text("Looking.")
                    .call("bash", &json!({"command": "ls"}))
                    .call_so_far("bash", "{not json"),
                Reply::new()
                    .text("")
                    .call("bash", &json!({"command": "pwd"})),
                Reply::says("Done."),
            ])
            .await;
        let provider = row.provider(&llm.base_url());
        let mut request = row.prompt();
        let mut stops = Vec::new();
        loop {
            let (deltas, error) = ask(&*provider, &request).await;
            assert!(error.is_none(), "{error:?}");
            let Some(LlmDelta::Stop(stop)) = deltas.last() else {
                panic!("{deltas:?}")
            };
            stops.push(stop.clone());
            let blocks = blocks_of(&deltas);
            let results = results(&blocks);
            request.messages.push(row.said(blocks));
            if *stop != LlmStop::ToolUse {
                break;
            }
            request.messages.push(Message::ToolResults {
                results,
                notice: (stops.len() == 1).then(|| "Half of the turns are used.".to_owned()),
            });
        }
        assert_eq!(stops, [LlmStop::ToolUse, LlmStop::ToolUse, LlmStop::End]);
        let second = llm.request(1).await;
        assert_eq!(second.last_text(), "Half of the turns are used.");
        let sent: Vec<SentResult> = second.tool_results();
        assert_eq!(sent.len(), 2);
        for result in &sent {
            assert_eq!(result.text, format!("result of {}", result.id));
        }
        let body = String::from_utf8(second.raw).unwrap();
        assert!(body.contains("\"signature\""), "{body}");
    }
}

fn block() -> impl Strategy<Value = Block> {
    let args = prop_oneof![
        Just(ToolArgs::Json(json!({"command": "ls"}))),
        Just(ToolArgs::Json(json!("not an object"))),
        Just(ToolArgs::Malformed {
            raw: "{".to_owned(),
            error: "eof".to_owned(),
        }),
    ];
    prop_oneof![
        "[ a\0]{0,3}".prop_map(Block::text),
        ("(call_0|functions\\.x:0|é|)", "(bash|multi tool|)", args).prop_map(|(id, name, args)| {
            Block::Call(ToolCall {
                id: CallIds::default().issue(&id),
                name,
                args,
                echo: None,
            })
        }),
        Just(Block::Opaque(
            Echo::of(&json!({"type": "redacted_thinking", "data": "x"})).unwrap()
        )),
    ]
}

fn turn() -> impl Strategy<Value = (Vec<Block>, Option<String>)> {
    let notice = prop::option::of("[ n]{0,2}".prop_map(String::from));
    (prop::collection::vec(block(), 0..6), notice)
}

proptest! {
    #[test]
    fn any_history_of_an_agent_makes_a_request_that_the_service_takes(
        turns in prop::collection::vec(turn(), 0..6)
    ) {
        for row in rows() {
        let turns = turns.clone();
        let mut messages = vec![Message::user("go")];
        let ids = CallIds::default();
        for (mut blocks, notice) in turns {
            for block in &mut blocks {
                if let Block::Call(call) = block {
                    call.id = ids.issue(call.id.wire());
                }
            }
            let results = results(&blocks);
            messages.push(row.said(blocks));
            if results.is_empty() {
                messages.push(Message::user("go on"));
            } else {
                messages.push(Message::ToolResults { results, notice });
            }
        }
        let body = row.body(&row.request(messages).request());
        prop_assert_eq!(row.dialect.body_faults(&body), Vec::<String>::new(), "{}", body);
        }
    }
}
