//! Whole conversations: what was received is sent back, and the service would take it.

use proptest::prelude::*;
use sandcaster::chat::{Block, CallIds, Echo, Message, Part, ToolArgs, ToolCall, ToolResult};
use sandcaster::llm::anthropic::request_body;
use sandcaster::llm::{LlmDelta, LlmStop};
use serde_json::json;

use super::{ask, prompt, provider, request, said};
use crate::support::fake_llm::{FakeLlm, Reply, SentResult, body_faults};

fn blocks(deltas: &[LlmDelta]) -> Vec<Block> {
    deltas
        .iter()
        .filter_map(|delta| match delta {
            LlmDelta::Block(block) => Some(block.clone()),
            _ => None,
        })
        .collect()
}

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
async fn thinking_parallel_calls_pauses_and_notices_go_back_as_the_service_wants_them() {
    let search = json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search",
        "input": {"query": "x"}});
    let llm = FakeLlm::start([
        Reply::new()
            .thinking("Two at once.", "signature")
            .text("Looking.")
            .call("bash", &json!({"command": "ls"}))
            .call_so_far("bash", "{not json"),
        Reply::new().whole_block(search.clone()).stops("pause_turn"),
        Reply::new()
            .text("")
            .call("bash", &json!({"command": "pwd"})),
        Reply::says("Done."),
    ])
    .await;
    let provider = provider(&llm.base_url());
    let mut request = prompt();
    let mut stops = Vec::new();
    loop {
        let (deltas, error) = ask(&provider, &request).await;
        assert!(error.is_none(), "{error:?}");
        let Some(LlmDelta::Stop(stop)) = deltas.last() else {
            panic!("{deltas:?}")
        };
        stops.push(stop.clone());
        let blocks = blocks(&deltas);
        let results = results(&blocks);
        request.messages.push(said(blocks));
        match stop {
            LlmStop::ToolUse => request.messages.push(Message::ToolResults {
                results,
                notice: (stops.len() == 1).then(|| "Half of the turns are used.".to_owned()),
            }),
            LlmStop::Pause => {}
            _ => break,
        }
    }
    let (call, pause) = (LlmStop::ToolUse, LlmStop::Pause);
    assert_eq!(stops, [call.clone(), pause, call, LlmStop::End]);
    let second = llm.request(1).await;
    assert_eq!(second.last_text(), "Half of the turns are used.");
    let sent = |id: &str, is_error| SentResult {
        id: id.to_owned(),
        text: format!("result of {id}"),
        is_error,
    };
    let (first_id, second_id) = ("toolu_fake_0_2", "toolu_fake_0_3");
    assert_eq!(
        second.tool_results(),
        [sent(first_id, false), sent(second_id, true)]
    );
    assert_eq!(second.messages()[1]["content"][0]["signature"], "signature");
    let third = llm.request(2).await;
    assert_eq!(third.messages()[3]["content"], json!([search]));
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
        let mut messages = vec![Message::user("go")];
        let ids = CallIds::default();
        for (mut blocks, notice) in turns {
            for block in &mut blocks {
                if let Block::Call(call) = block {
                    call.id = ids.issue(call.id.wire());
                }
            }
            let results = results(&blocks);
            messages.push(said(blocks));
            if results.is_empty() {
                messages.push(Message::user("go on"));
            } else {
                messages.push(Message::ToolResults { results, notice });
            }
        }
        let body = request_body(&request(messages).request());
        prop_assert_eq!(body_faults(&body), Vec::<String>::new(), "{}", body);
    }
}
