//! A conversation that no longer fits: summarised by the model, and gone on with from there.

use sandcaster::ids::nonce;
use serde_json::{Value, json};

use super::{bash, check_log, end};
use crate::support::app::{TestApp, ask, of_kind, text, warnings};
use crate::support::fake_llm::{FakeLlm, Received, Reply};

/// More than a response may have used before room is made, for a window of a million tokens.
const CROWDED: u64 = 161_000;

/// A turn whose result has some 7,000 tokens.
fn long_turn(word: &str) -> Reply {
    let command = format!("echo {word}; head -c 29000 /dev/zero | tr '\\0' z");
    Reply::new().call("bash", &bash(&command))
}

/// Eight of them: the newest two stay, so that six make room.
fn long_turns(secret: &str) -> Vec<Reply> {
    let mut turns: Vec<Reply> = (2..8).map(|n| long_turn(&format!("turn-{n}"))).collect();
    turns.insert(0, long_turn(secret));
    turns.push(long_turn("turn-8").usage(CROWDED, 10));
    turns
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowded_conversation_is_summarised_and_the_run_goes_on_from_the_summary() {
    let secret_of_turn_one = nonce();
    let mut turns = long_turns(&secret_of_turn_one);
    turns.extend([
        Reply::says("GOAL: count. DONE: eight echoes.").usage(1000, 50),
        Reply::says("All done."),
    ]);
    let llm = FakeLlm::start(turns).await;
    let app = TestApp::with_llm(&llm).await;
    let events = app.run(ask("Count to eight")).await;

    check_log(&events);
    assert_eq!(end(&events)["content"], "All done.");
    assert_eq!(warnings(&events), ["CONTEXT_COMPACTED"]);
    let warning = of_kind(&events, "warning")[0];
    assert!(warning["tokensBefore"].as_u64() > warning["tokensAfter"].as_u64());
    assert!(!text(&events).contains("GOAL"), "the summary is no answer");
    assert_eq!(end(&events)["inputTokens"], 70 + CROWDED + 1000 + 10);

    let (before, asked) = (llm.request(7).await, llm.request(8).await);
    assert!(
        asked.last_text().ends_with("Invent nothing. Call no tool."),
        "{}",
        asked.last_text()
    );
    // What the provider has cached is read from its cache: everything before the last message is the same,
    // and so is what would void it.
    for field in ["system", "tools", "tool_choice", "thinking"] {
        assert_eq!(before.body.get(field), asked.body.get(field), "{field}");
    }
    let without_marks = |request: &Received, count: usize| {
        let text = Value::from(&request.messages()[..count]).to_string();
        text.replace(r#","cache_control":{"type":"ephemeral"}"#, "")
    };
    let shared = before.messages().len();
    assert_eq!(
        without_marks(&before, shared),
        without_marks(&asked, shared)
    );
    let went_on = llm.request(9).await;
    let body = went_on.body.to_string();
    assert!(body.contains("Count to eight"), "the user's words stay");
    assert!(
        body.contains("GOAL: count."),
        "the summary stands in for the rest"
    );
    assert!(!body.contains(&secret_of_turn_one), "the old turn is gone");
    assert!(body.contains("echo turn-8"), "the newest turn stays whole");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_summary_that_fails_is_done_without_and_told() {
    let failing = [
        (
            Reply::error(400, "invalid_request_error", "no summaries today"),
            "a summary failed",
        ),
        // All was thought, nothing said.
        (
            Reply::new().thinking("Hm", "s").stops("max_tokens"),
            "the model gave no summary",
        ),
        (
            Reply::new().call("bash", &bash("echo no > no")),
            "the model gave no summary",
        ),
    ];
    for (summary, told) in failing {
        let mut turns = long_turns("one");
        turns.extend([summary, Reply::says("Done all the same.")]);
        let llm = FakeLlm::start(turns).await;
        let app = TestApp::with_llm(&llm).await;
        let events = app.run(ask("Count")).await;
        check_log(&events);
        assert_eq!(end(&events)["content"], "Done all the same.");
        assert_eq!(warnings(&events), ["CONTEXT_CLEARED"]);
        let message = of_kind(&events, "warning")[0]["message"].as_str().unwrap();
        assert!(message.starts_with(told), "{message}");
        assert_eq!(of_kind(&events, "tool_use").len(), 8, "{told}");
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_summary_that_was_cut_is_kept_and_says_so() {
    let mut turns = long_turns("one");
    turns.extend([
        Reply::says("GOAL: count. DONE: ei").stops("max_tokens"),
        Reply::says("Done."),
    ]);
    let llm = FakeLlm::start(turns).await;
    let app = TestApp::with_llm(&llm).await;
    let events = app.run(ask("Count")).await;
    assert_eq!(warnings(&events), ["CONTEXT_COMPACTED"]);
    let body = llm.request(9).await.body.to_string();
    assert!(body.contains("DONE: ei") && body.contains("cut off here"));
    // Thinking counts towards the limit: there is room for both.
    let asked = llm.request(8).await;
    assert!(asked.body["max_tokens"].as_u64() >= Some(16_000));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_summary_is_paid_for_ahead_of_the_last_turn() {
    let mut turns = long_turns("one");
    turns.push(Reply::says("Done."));
    let llm = FakeLlm::start(turns).await;
    let app = TestApp::with_llm(&llm).await;
    let mut body = ask("Count");
    body["maxTurns"] = json!(9);
    let events = app.run(body).await;
    check_log(&events);
    assert_eq!(end(&events)["content"], "Done.");
    assert!(!warnings(&events).contains(&"CONTEXT_COMPACTED"));
    assert!(llm.request(8).await.tools_are_off());
    assert_eq!(llm.requests().len(), 9);
    app.stop().await;
}

#[tokio::test]
async fn a_long_prompt_is_sent_once() {
    let llm = FakeLlm::start([Reply::says("Long.").usage(180_000, 10)]).await;
    let app = TestApp::with_llm(&llm).await;
    let events = app.run(ask(&"word ".repeat(120_000))).await;
    check_log(&events);
    assert_eq!(end(&events)["content"], "Long.");
    assert!(warnings(&events).is_empty());
    assert_eq!(llm.requests().len(), 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_that_does_not_fit_is_cleared_then_summarised_then_given_up() {
    let too_long = || Reply::error(400, "invalid_request_error", "prompt is too long: 2 > 1");
    let full = || Reply::says("Half a sen").stops("model_context_window_exceeded");
    // What was shown of an answer that is void is told.
    for (refused, restarted, fails) in [
        (too_long as fn() -> Reply, 0, false),
        (full, 2, false),
        (full, 2, true),
    ] {
        let mut turns: Vec<Reply> = (1..=4).map(|n| long_turn(&format!("turn-{n}"))).collect();
        turns.extend([refused(), refused(), Reply::says("GOAL: count.")]);
        turns.push(if fails {
            refused()
        } else {
            Reply::says("Done.")
        });
        let llm = FakeLlm::start(turns).await;
        let app = TestApp::with_llm(&llm).await;
        let events = app.run(ask("Count")).await;
        check_log(&events);
        let mut warned = warnings(&events);
        let before = warned.len();
        warned.retain(|code| *code != "TURN_RESTARTED");
        assert_eq!(warned, ["CONTEXT_CLEARED", "CONTEXT_COMPACTED"], "{fails}");
        assert_eq!(before - warned.len(), restarted);
        let end = end(&events);
        if fails {
            assert_eq!(
                (&end["type"], &end["code"]),
                (&json!("error"), &json!("CONTEXT_TOO_LONG"))
            );
        } else {
            assert_eq!(
                (&end["type"], &end["content"]),
                (&json!("result"), &json!("Done."))
            );
        }
        app.stop().await;
    }
}
