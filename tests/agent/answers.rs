//! Odd responses: whatever a model ends with, the run ends truthfully.

use serde_json::json;

use super::{bash, end, run};
use crate::support::app::{ask, kinds, of_kind, text, warnings};
use crate::support::fake_llm::{FakeLlm, Reply};

#[tokio::test]
async fn a_call_then_an_answer() {
    let llm = FakeLlm::start([
        Reply::new()
            .text("Looking.")
            .call("bash", &bash("echo hi; echo oops >&2")),
        Reply::says("Done."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    let use_ = of_kind(&events, "tool_use")[0];
    assert_eq!(use_["toolName"], "bash");
    assert_eq!(use_["content"], bash("echo hi; echo oops >&2").to_string());
    assert_eq!(use_["turn"], 1);
    let result = of_kind(&events, "tool_result")[0];
    assert_eq!(result["toolCallId"], use_["toolCallId"]);
    assert_eq!(
        (&result["exitCode"], &result["isError"]),
        (&json!(0), &json!(false))
    );
    // What the client saw is what the model saw.
    let sent = llm.request(1).await.tool_results();
    assert_eq!(result["content"], sent[0].text);
    assert!(sent[0].text.contains("hi\noops"), "{}", sent[0].text);
    let end = end(&events);
    assert_eq!(end["content"], "Done.");
    assert_eq!(end["toolCalls"], json!({"bash": 1}));
    assert_eq!(end["numTurns"], 2);
}

#[tokio::test]
async fn an_empty_answer_after_results_is_asked_for_once_more() {
    let llm = FakeLlm::start([
        Reply::new().call("bash", &bash("true")),
        Reply::new(),
        Reply::says("Done."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(warnings(&events), ["EMPTY_ANSWER"]);
    assert_eq!(of_kind(&events, "user").len(), 1);
    assert_eq!(end(&events)["content"], "Done.");
}

#[tokio::test]
async fn two_empty_answers_fail_the_run() {
    let llm = FakeLlm::start([Reply::new(), Reply::new().text("  \n")]).await;
    let events = run(&llm, ask("hi")).await;
    let error = end(&events);
    assert_eq!(error["code"], "LLM_BAD_RESPONSE");
    assert_eq!(error["retryable"], true);
    assert_eq!(error["message"], error["content"]);
    assert!(error["hint"].is_string());
    assert_eq!(error["inputTokens"], 20);
}

#[tokio::test]
async fn an_answer_cut_at_the_output_limit_is_gone_on_with_and_joined() {
    let llm = FakeLlm::start([
        Reply::says("One, ").stops("max_tokens"),
        Reply::says("two, ").stops("max_tokens"),
        Reply::says("three."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(end(&events)["content"], "One, two, three.");
    assert_eq!(text(&events), "One, two, three.");
    assert_eq!(end(&events)["numTurns"], 1);
    assert_eq!(end(&events).get("truncated"), None);
    let (first, second) = (llm.request(0).await, llm.request(1).await);
    assert!(second.body["max_tokens"].as_u64() > first.body["max_tokens"].as_u64());
}

#[tokio::test]
async fn an_answer_cut_three_times_is_given_as_it_is() {
    let cut = |piece: &str| Reply::says(piece).stops("max_tokens");
    let llm = FakeLlm::start([cut("a"), cut("b"), cut("c")]).await;
    let events = run(&llm, ask("hi")).await;
    let result = end(&events);
    assert_eq!(
        (&result["content"], &result["truncated"]),
        (&json!("abc"), &json!(true))
    );
    assert_eq!(warnings(&events), ["ANSWER_TRUNCATED"]);
}

#[tokio::test]
async fn a_call_cut_at_the_output_limit_is_not_run_and_the_model_is_told() {
    let llm = FakeLlm::start([
        Reply::new()
            .text("Writing.")
            .call("bash", &bash("echo whole"))
            .call_so_far("bash", "{\"command\": \"echo ha")
            .stops("max_tokens"),
        Reply::says("Done."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    assert!(of_kind(&events, "tool_use").is_empty());
    assert_eq!(kinds(&events).last(), Some(&"result"));
    let second = llm.request(1).await;
    assert!(
        second.last_text().contains("cut off"),
        "{}",
        second.last_text()
    );
}

#[tokio::test]
async fn thinking_cut_at_the_output_limit_gets_one_more_try_with_more_room() {
    let thinks = || {
        Reply::new()
            .thinking("Hmm", "signature")
            .stops("max_tokens")
    };
    let llm = FakeLlm::start([thinks(), Reply::says("Done.")]).await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(end(&events)["content"], "Done.");
    assert_eq!(of_kind(&events, "thinking")[0]["content"], "Hmm");

    let llm = FakeLlm::start([thinks(), thinks()]).await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(end(&events)["type"], "error");
    assert_eq!(end(&events)["code"], "CONTEXT_TOO_LONG");
}

#[tokio::test]
async fn a_refusal_ends_the_run_and_shown_text_is_no_result() {
    let llm = FakeLlm::start([Reply::says("Well, ").refuses("cyber", "That would do harm.")]).await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(text(&events), "Well, ");
    let error = end(&events);
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("error"), &json!("LLM_REFUSED"))
    );
    assert_eq!(error["retryable"], false);
    assert!(
        error["message"].as_str().unwrap().contains("cyber"),
        "{error}"
    );
    assert!(of_kind(&events, "result").is_empty());
}

#[tokio::test]
async fn a_paused_response_is_sent_back_and_goes_on() {
    let search = json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search",
        "input": {"query": "x"}});
    let llm = FakeLlm::start([
        Reply::new()
            .text("Searching. ")
            .whole_block(search.clone())
            .stops("pause_turn"),
        Reply::says("Found."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(end(&events)["content"], "Searching. Found.");
    assert_eq!(end(&events)["numTurns"], 1);
    let second = llm.request(1).await;
    let last = second.messages().last().unwrap();
    assert_eq!(last["role"], "assistant");
    assert_eq!(last["content"].as_array().unwrap().last(), Some(&search));
}

#[tokio::test]
async fn an_unknown_stop_reason_is_warned_of_and_the_text_is_the_answer() {
    let llm = FakeLlm::start([Reply::says("Done.").stops("tired")]).await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(warnings(&events), ["STOP_REASON_UNKNOWN"]);
    assert_eq!(end(&events)["content"], "Done.");
}

#[tokio::test]
async fn a_conversation_that_no_longer_fits_is_cleared_once_and_sent_again() {
    let too_long = || Reply::error(400, "invalid_request_error", "prompt is too long: 2 > 1");
    let reads = |n: u32| Reply::new().call("bash", &bash(&format!("seq -w {n} 1 {}", n + 900)));
    let llm = FakeLlm::start([
        reads(1),
        reads(2),
        reads(3),
        reads(4),
        too_long(),
        Reply::says("Done."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(end(&events)["content"], "Done.");
    let warning = of_kind(&events, "warning")[0];
    assert_eq!(warning["code"], "CONTEXT_CLEARED");
    assert!(warning["tokensAfter"].as_u64() < warning["tokensBefore"].as_u64());
    let last = llm.request(5).await;
    let results: Vec<_> = last
        .messages()
        .iter()
        .filter_map(|message| message["content"][0]["content"][0]["text"].as_str())
        .map(|text| text.starts_with("[cleared"))
        .collect();
    assert_eq!(results, [true, true, false, false]);
}

#[tokio::test]
async fn a_conversation_that_cannot_be_made_to_fit_fails() {
    let too_long = || Reply::error(400, "invalid_request_error", "prompt is too long: 2 > 1");
    let llm = FakeLlm::start([too_long()]).await;
    let events = run(&llm, ask("hi")).await;
    let error = end(&events);
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("CONTEXT_TOO_LONG"), &json!(false))
    );
    assert!(error["hint"].as_str().unwrap().contains("smaller"));
}

#[tokio::test]
async fn a_very_long_delta_becomes_several_events_of_the_same_text() {
    for (long, whole) in [
        ("wörd ".repeat(60_000), false),
        ("\u{1}".repeat(64 * 1024), false),
        ("wörd ".repeat(25_000), true),
    ] {
        let llm = FakeLlm::start([Reply::says(&long)]).await;
        let events = run(&llm, ask("hi")).await;
        assert!(of_kind(&events, "assistant").len() > 2);
        assert!(
            events
                .iter()
                .all(|event| event.to_string().len() < 256 * 1024)
        );
        assert_eq!(text(&events), long);
        let end = end(&events);
        let content = end["content"].as_str().unwrap();
        assert_eq!(content == long, whole);
        assert_eq!(content.contains("bytes left out]"), !whole);
        let told: &[&str] = if whole { &[] } else { &["ANSWER_TRUNCATED"] };
        assert_eq!(warnings(&events), told);
        assert_eq!(end["truncated"] == true, !whole);
        assert_eq!(end["stopReason"], "end");
    }
}

#[tokio::test]
async fn what_goes_on_for_ever_is_warned_of_once_and_ends() {
    let odd = |n: u32| {
        Reply::new()
            .call("bash", &bash(&format!("echo {n}")))
            .call("nosuch", &json!({ "n": n }))
            .stops("strange")
    };
    let mut replies: Vec<Reply> = (0..8).map(odd).collect();
    replies.push(Reply::says("Done."));
    let llm = FakeLlm::start(replies).await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(warnings(&events), ["STOP_REASON_UNKNOWN", "TOOL_UNKNOWN"]);
    assert_eq!(end(&events)["content"], "Done.");

    let replies = (0..6).flat_map(|n| {
        let work = Reply::new().call("bash", &bash(&format!("echo {n}")));
        [work, Reply::new()]
    });
    let llm = FakeLlm::start(replies).await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(warnings(&events), ["EMPTY_ANSWER"; 5]);
    let error = end(&events);
    assert_eq!(error["code"], "LLM_BAD_RESPONSE");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("6 times without an answer"), "{message}");
}

#[tokio::test]
async fn two_empty_answers_with_work_between_them_do_not_fail_the_run() {
    let llm = FakeLlm::start([
        Reply::new(),
        Reply::new().call("bash", &bash("true")),
        Reply::new(),
        Reply::says("Done."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(end(&events)["content"], "Done.");
    assert_eq!(warnings(&events), ["EMPTY_ANSWER"; 2]);
}

#[tokio::test]
async fn what_announced_a_call_that_was_cut_is_no_part_of_the_answer() {
    let announced = || {
        Reply::says("Writing the file.")
            .call_so_far("bash", "{\"command\": \"echo ha")
            .stops("max_tokens")
    };
    let llm = FakeLlm::start([announced(), Reply::says("The answer is 42.")]).await;
    assert_eq!(
        end(&run(&llm, ask("hi")).await)["content"],
        "The answer is 42."
    );

    let thinks = || {
        Reply::new()
            .thinking("Hmm", "signature")
            .stops("max_tokens")
    };
    let llm = FakeLlm::start([announced(), thinks(), thinks()]).await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(end(&events)["code"], "CONTEXT_TOO_LONG");
}

#[tokio::test]
async fn a_full_window_is_no_success_with_half_a_sentence() {
    let full = Reply::says("Let me look at the next file ").stops("model_context_window_exceeded");
    let llm = FakeLlm::start([full]).await;
    let events = run(&llm, ask("hi")).await;
    let error = end(&events);
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("error"), &json!("CONTEXT_TOO_LONG"))
    );
}

#[tokio::test]
async fn a_pause_with_a_call_in_it_runs_the_call() {
    let search = json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search",
        "input": {"query": "x"}});
    let llm = FakeLlm::start([
        Reply::new()
            .whole_block(search)
            .call("bash", &bash("echo hi"))
            .stops("pause_turn"),
        Reply::says("Done."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    assert!(llm.request(1).await.tool_results()[0].text.contains("hi"));
    assert_eq!(end(&events)["content"], "Done.");
}

#[tokio::test]
async fn an_answer_that_is_paused_for_ever_is_given_as_far_as_it_came_with_a_warning() {
    let paused = |n: u32| {
        let search = json!({"type": "server_tool_use", "id": format!("srvtoolu_{n}"),
            "name": "web_search", "input": {"query": "x"}});
        Reply::says("Searching. ")
            .whole_block(search)
            .stops("pause_turn")
    };
    let llm = FakeLlm::start((0..6).map(paused)).await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(end(&events)["content"], "Searching. ".repeat(6));
    assert_eq!(end(&events)["truncated"], true);
    assert_eq!(warnings(&events), ["ANSWER_TRUNCATED"]);
    let message = of_kind(&events, "warning")[0]["message"].to_string();
    assert!(message.contains("paused"), "{message}");
}

#[tokio::test]
async fn thinking_stays_with_a_text_that_is_gone_on_with() {
    let llm = FakeLlm::start([
        Reply::new()
            .thinking("Hmm", "signature")
            .text("One, ")
            .stops("max_tokens"),
        Reply::says("two."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    assert_eq!(end(&events)["content"], "One, two.");
    let second = llm.request(1).await;
    let reply = &second.messages()[1]["content"];
    assert_eq!(
        (&reply[0]["type"], &reply[1]["text"]),
        (&json!("thinking"), &json!("One, "))
    );
}

#[tokio::test]
async fn control_characters_count_as_the_json_that_they_become() {
    let noise = "\u{1}".repeat(64 * 1024);
    let llm = FakeLlm::start([
        Reply::says(&noise).call("bash", &json!({ "command": noise })),
        Reply::says("Done."),
    ])
    .await;
    let events = run(&llm, ask("hi")).await;
    let largest = events.iter().map(|event| event.to_string().len()).max();
    assert!(largest < Some(256 * 1024), "{largest:?}");
    assert_eq!(text(&events), format!("{noise}Done."));
}
