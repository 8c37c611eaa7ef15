//! A budget of thinking and a budget of money in one run.

use serde_json::{Value, json};

use crate::support::app::{TestApp, warnings};
use crate::support::fake_llm::{FakeLlm, Reply};

/// Dollars per token of the model that is asked for.
const INPUT: f64 = 1e-6;
const READ: f64 = 0.1 * INPUT;
const WRITTEN: f64 = 1.25 * INPUT;
const OUTPUT: f64 = 5.0 * INPUT;

/// A response, with its tokens read from the cache and written to it, and those of its output.
fn billed(reply: Reply, read: u32, written: u32, output: u32) -> (Reply, f64) {
    let figures = json!({"input_tokens": 0, "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written, "output_tokens": output});
    let [read, written, output] = [read, written, output].map(f64::from);
    let cost = read * READ + written * WRITTEN + output * OUTPUT;
    (reply.usage_figures(figures), cost)
}

fn call(n: u32) -> Reply {
    Reply::new().call("bash", &json!({"command": format!("echo {n}")}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thinking_stays_the_same_while_it_can_be_paid_for_and_goes_once_at_the_uncached_price() {
    let (replies, costs): (Vec<Reply>, Vec<f64>) = [
        billed(call(1), 0, 30_000, 1000),
        billed(call(2), 30_000, 1000, 20_000),
        // 0.085 dollars are left: what is cached costs 0.03, all of it anew 0.064.
        billed(call(3), 0, 51_000, 10),
        billed(Reply::says("Done."), 51_000, 100, 10),
    ]
    .into_iter()
    .unzip();
    let budget = 0.231;
    let llm = FakeLlm::start(replies).await;
    let app = TestApp::with_llm(&llm).await;
    let body =
        json!({"prompt": "hi", "model": "haiku", "thinkingLevel": "high", "maxBudgetUsd": budget});
    let events = app.run(body).await;
    app.stop().await;
    assert_eq!(events.last().unwrap()["content"], "Done.");
    let requests = llm.requests();
    let thinking: Vec<&Value> = requests
        .iter()
        .map(|request| &request.body["thinking"]["budget_tokens"])
        .collect();
    let none = &Value::Null;
    assert_eq!(thinking, [&json!(16_384), &json!(16_384), none, none]);
    let told = warnings(&events);
    let told = told.iter().filter(|code| **code == "THINKING_ADJUSTED");
    assert_eq!(told.count(), 1, "{events:?}");
    let most = requests[2].body["max_tokens"].as_f64().unwrap();
    let dearest = costs[0] + costs[1] + 51_000.0 * WRITTEN + most * OUTPUT;
    assert!(most >= 2000.0 && dearest <= budget, "{most}: {dearest}");
}
