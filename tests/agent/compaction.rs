//! A conversation that no longer fits: summarised by the model, and gone on with from there.

use sandcaster::ids::nonce;

use super::{bash, check_log, end};
use crate::support::app::{TestApp, ask, of_kind, text, warnings};
use crate::support::fake_llm::{FakeLlm, Reply};

/// More than a response may have used before room is made, for a window of a million tokens.
const CROWDED: u64 = 161_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowded_conversation_is_summarised_and_the_run_goes_on_from_the_summary() {
    let secret_of_turn_one = nonce();
    let long = "head -c 29000 /dev/zero | tr '\\0' z";
    let llm = FakeLlm::start([
        Reply::new().call("bash", &bash(&format!("echo {secret_of_turn_one}; {long}"))),
        Reply::new().call("bash", &bash(&format!("echo second; {long}"))),
        Reply::new()
            .call("bash", &bash(&format!("echo third; {long}")))
            .usage(CROWDED, 10),
        Reply::says("GOAL: count. DONE: two echoes.").usage(1000, 50),
        Reply::says("All done."),
    ])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let events = app.run(ask("Count to two")).await;

    check_log(&events);
    assert_eq!(end(&events)["content"], "All done.");
    assert_eq!(warnings(&events), ["CONTEXT_COMPACTED"]);
    let warning = of_kind(&events, "warning")[0];
    assert!(warning["tokensBefore"].as_u64() > warning["tokensAfter"].as_u64());
    assert!(!text(&events).contains("GOAL"), "the summary is no answer");
    assert_eq!(end(&events)["inputTokens"], 20 + CROWDED + 1000 + 10);

    let asked = llm.request(3).await;
    assert!(asked.tools_are_off());
    assert!(
        asked
            .last_text()
            .starts_with("[sandcaster] The conversation is about to be shortened")
    );
    let went_on = llm.request(4).await;
    let body = went_on.body.to_string();
    assert!(body.contains("Count to two"), "the user's words stay");
    assert!(
        body.contains("GOAL: count."),
        "the summary stands in for the rest"
    );
    assert!(!body.contains(&secret_of_turn_one), "the old turn is gone");
    assert!(body.contains("echo third"), "the newest turn stays whole");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_summary_that_fails_is_done_without() {
    let llm = FakeLlm::start([
        Reply::new().call("bash", &bash("echo first")),
        Reply::new()
            .call("bash", &bash("echo second"))
            .usage(CROWDED, 10),
        Reply::error(400, "invalid_request_error", "no summaries today"),
        Reply::says("Done all the same."),
    ])
    .await;
    let app = TestApp::with_llm(&llm).await;
    let events = app.run(ask("Count to two")).await;
    check_log(&events);
    assert_eq!(end(&events)["content"], "Done all the same.");
    assert_eq!(end(&events)["type"], "result");
    app.stop().await;
}
