//! The stand-in's own tests: what it checks, what it reports, how it fails a test.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use serde_json::{Value, json};

use super::{FakeLlm, Gate, KEY, Outcome, Reply};
use crate::support::http;

#[expect(clippy::needless_pass_by_value, reason = "reads better at the calls")]
fn body(messages: Value) -> Value {
    json!({"model": "m", "max_tokens": 10, "stream": true, "messages": messages,
        "tools": [{"name": "bash", "input_schema": {"type": "object"}}]})
}

fn prompt() -> Value {
    body(json!([{"role": "user", "content": "go"}]))
}

async fn post(llm: &FakeLlm, body: &Value) -> Result<String, String> {
    let response = http()
        .post(format!("{}/v1/messages", llm.base_url()))
        .header("x-api-key", KEY)
        .header("anthropic-version", "2023-06-01")
        .header("content-type", "application/json")
        .body(body.to_string())
        .send()
        .await
        .map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let text = response.text().await.map_err(|error| error.to_string())?;
    Ok(format!("{status} {text}"))
}

#[tokio::test]
async fn replies_come_in_order_and_requests_are_kept() {
    let llm = FakeLlm::start([
        Reply::new().text("Hel").text("lo").usage(3, 4),
        Reply::error(529, "overloaded_error", "Overloaded").header("retry-after", "1"),
    ])
    .await;
    let first = post(&llm, &prompt()).await.unwrap();
    assert!(first.contains(r#""text":"Hel""#) && first.contains(r#""text":"lo""#));
    assert!(first.contains(r#""stop_reason":"end_turn""#));
    assert!(
        first
            .trim_end()
            .ends_with(r#"data: {"type":"message_stop"}"#)
    );
    let second = post(&llm, &prompt()).await.unwrap();
    assert!(second.starts_with("529 ") && second.contains("overloaded_error"));
    assert_eq!(llm.request(1).await.last_text(), "go");
    assert_eq!(llm.outcome(0).await, Outcome::Finished);
    assert_eq!(llm.requests().len(), 2);
}

#[tokio::test]
async fn a_gate_holds_the_reply_and_a_client_that_leaves_is_reported() {
    let gate = Gate::new();
    let llm = FakeLlm::start([Reply::new().text("a").wait(&gate).text("b")]).await;
    {
        let request = prompt();
        let mut asked = std::pin::pin!(post(&llm, &request));
        tokio::select! {
            answer = &mut asked => panic!("not held: {answer:?}"),
            () = gate.reached() => {}
        }
    }
    llm.connection_closed(0).await;
}

#[tokio::test]
async fn cut_and_reset_replies_fail_within_the_body() {
    let llm = FakeLlm::start([
        Reply::new().text("a").cut(),
        Reply::new().call_so_far("bash", "{\"comm").reset(),
        Reply::hang_up(),
    ])
    .await;
    for number in 0..3 {
        post(&llm, &prompt()).await.unwrap_err();
        assert_eq!(llm.outcome(number).await, Outcome::Cut);
    }
}

#[tokio::test]
async fn requests_that_the_service_would_refuse_are_faults() {
    let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "bash", "input": {}});
    let result = |id: &str| json!({"type": "tool_result", "tool_use_id": id, "content": "x"});
    let turn = |calls: Value, results: Value| {
        body(json!([
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": calls},
            {"role": "user", "content": results},
        ]))
    };
    let mut marks = prompt();
    marks["system"] = (0..5)
        .map(|at| json!({"type": "text", "text": at.to_string(), "cache_control": {}}))
        .collect();
    let mut no_tools = turn(json!([call("a")]), json!([result("a")]));
    no_tools["tools"] = json!([]);
    let thinking = json!({"type": "thinking", "thinking": "a", "signature": "s"});
    let mut marked = thinking.clone();
    marked["cache_control"] = json!({"type": "ephemeral"});
    let text = json!({"type": "text", "text": "x"});
    let said = |blocks: Value| turn(blocks, json!([text.clone()]));
    let mut blank_system = prompt();
    blank_system["system"] = json!([{"type": "text", "text": " "}]);
    let budget = |tokens: u32| {
        let mut request = prompt();
        request["max_tokens"] = json!(2000);
        request["thinking"] = json!({"type": "enabled", "budget_tokens": tokens});
        request
    };
    let mut blank_result = result("a");
    blank_result["content"] = json!([{"type": "text", "text": " "}]);
    for (request, fault) in [
        (body(json!([])), "no messages"),
        (
            body(json!([{"role": "assistant", "content": "x"}])),
            "the first message is not the user's",
        ),
        (
            body(json!([{"role": "user", "content": [{"type": "text", "text": " "}]}])),
            "empty text block",
        ),
        (
            turn(json!([call("a"), call("b")]), json!([result("a")])),
            "the call b has no result",
        ),
        (
            turn(json!([call("a")]), json!([result("a"), result("a")])),
            "a result for no call: a",
        ),
        (
            turn(
                json!([call("a"), call("a")]),
                json!([result("a"), result("a")]),
            ),
            "not unique",
        ),
        (
            turn(
                json!([call("a")]),
                json!([{"type": "text", "text": "x"}, result("a")]),
            ),
            "text before the result",
        ),
        (
            body(json!([{"role": "user", "content": "go"}, {"role": "assistant", "content": "x"}])),
            "the last message is the assistant's",
        ),
        (marks, "5 cache marks"),
        (said(json!([text.clone(), thinking])), "ends with thinking"),
        (
            said(json!([marked, text.clone()])),
            "a cache mark on thinking",
        ),
        (blank_system, "an empty system block"),
        (budget(1023), "a budget of 1023"),
        (budget(2000), "a budget of 2000"),
        (
            turn(json!([call("a")]), json!([blank_result])),
            "the result of a has an empty text block",
        ),
        (body(json!([{"role": "user", "content": "a\0"}])), "U+0000"),
        (no_tools, "no tools"),
        (json!({"messages": 3}), "no model"),
    ] {
        let llm = FakeLlm::start([Reply::says("never")]).await;
        let answer = post(&llm, &request).await.unwrap();
        assert!(
            answer.starts_with("400 ") && answer.contains(fault),
            "{answer}"
        );
        let faults = llm.take_faults();
        assert!(
            faults.iter().any(|found| found.contains(fault)),
            "{faults:?}"
        );
    }
}

#[tokio::test]
async fn system_and_tools_may_not_change_within_a_conversation() {
    let llm = FakeLlm::start([Reply::says("1"), Reply::says("2"), Reply::says("3")]).await;
    post(&llm, &prompt()).await.unwrap();
    let mut other = body(json!([{"role": "user", "content": "something else"}]));
    other["tools"] = json!([]);
    post(&llm, &other).await.unwrap();
    assert!(llm.take_faults().is_empty());
    let mut changed = prompt();
    changed["tools"][0]["description"] = json!("new");
    post(&llm, &changed).await.unwrap();
    assert!(llm.take_faults()[0].contains("differ"));
}

#[tokio::test]
async fn thinking_may_end_within_a_conversation_but_not_change_or_begin() {
    let thinking = |budget: Option<u32>| {
        let mut request = prompt();
        request["max_tokens"] = json!(20_000);
        if let Some(tokens) = budget {
            request["thinking"] = json!({"type": "enabled", "budget_tokens": tokens});
        }
        request
    };
    for (budgets, fits) in [
        ([Some(2048), Some(2048), None], true),
        ([Some(2048), Some(2047), None], false),
        ([Some(2048), None, Some(2048)], false),
        ([None, None, Some(2048)], false),
    ] {
        let llm = FakeLlm::start([Reply::says("1"), Reply::says("2"), Reply::says("3")]).await;
        for budget in budgets {
            post(&llm, &thinking(budget)).await.unwrap();
        }
        assert_eq!(llm.take_faults().is_empty(), fits, "{budgets:?}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_a_fault() {
    let llm = FakeLlm::start([Reply::says("never")]).await;
    let response = http()
        .post(format!("{}/v1/messages", llm.base_url()))
        .body("{}")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 400);
    assert!(llm.take_faults()[0].contains("key"));
}

#[tokio::test]
async fn dropping_it_fails_the_test_for_faults_and_for_unused_replies() {
    let unused = FakeLlm::start([Reply::says("never")]).await;
    let drop_it = std::panic::catch_unwind(AssertUnwindSafe(|| drop(unused)));
    assert!(drop_it.is_err());
    let unasked = FakeLlm::start([]).await;
    post(&unasked, &prompt()).await.unwrap();
    let drop_it = std::panic::catch_unwind(AssertUnwindSafe(|| drop(unasked)));
    assert!(drop_it.is_err());
}

#[tokio::test]
async fn instant_mode_answers_many_at_once() {
    let llm = FakeLlm::instant(20).await;
    let request = prompt();
    let answers = (0..50).map(|_| post(&llm, &request).boxed());
    for answer in futures::future::join_all(answers).await {
        assert!(answer.unwrap().contains("word19"));
    }
    assert_eq!(llm.instant_requests(), 50);
}
