use parking_lot::Mutex;
use serde_json::{Value, json};
use std::time::Duration;

use super::scripted::{
    Deltas, Scripted, filled, fly, long_turn, run, run_with, says, spec, stops, thought,
    unreadable_call, used,
};
use super::*;
use crate::chat::{Block, CallIds, Echo, ToolArgs, ToolCall};
use crate::clock::Deadline;
use crate::llm::{Citation, LlmDelta, LlmError, LlmErrorKind, Usage};
use crate::spec::RunSpec;

#[tokio::test]
async fn a_call_that_its_provider_cannot_read_is_asked_for_twice_more_by_the_same_request() {
    let ran = run([unreadable_call(), unreadable_call(), says("Done.")]).await;
    assert_eq!(ran.answer().0, "Done.");
    assert_eq!(ran.warnings(), ["TURN_RESTARTED"; 2]);
    assert!(
        ran.requests
            .iter()
            .all(|request| *request == ran.requests[0])
    );

    let ran = run([unreadable_call(), unreadable_call(), unreadable_call()]).await;
    assert_eq!(ran.code(), Some(ErrorCode::LlmBadResponse));
    assert_eq!(ran.requests.len(), 3);
    assert_eq!(ran.ended, 3, "read to its end, or its connection is lost");
}

#[tokio::test]
async fn what_a_provider_warns_of_reaches_the_client_once() {
    let warned = |message: &str, reply: Deltas| -> Deltas {
        let warning = LlmDelta::Warning {
            code: WarningCode::StopReasonUnknown,
            message: message.to_owned(),
        };
        std::iter::once(Ok(warning)).chain(reply).collect()
    };
    let ran = run([
        warned("thinking can't be turned off", unreadable_call()),
        warned("thinking can't be turned off", unreadable_call()),
        warned("something else", says("Done.")),
    ])
    .await;
    let told = ran.events_of("code", "STOP_REASON_UNKNOWN");
    let told: Vec<&str> = told.filter_map(|event| event["message"].as_str()).collect();
    assert_eq!(told, ["thinking can't be turned off", "something else"]);
}

#[tokio::test]
async fn an_answer_that_begins_anew_is_paid_for_twice_and_shown_once() {
    let mut reply = vec![Ok(used(1000)), Ok(LlmDelta::Restarted), Ok(used(10))];
    reply.extend(says("Done."));
    let ran = run([reply]).await;
    assert_eq!(ran.answer().0, "Done.");
    let totals = ran.tally.totals(Duration::ZERO);
    let tokens = totals.tokens.unwrap();
    assert_eq!((tokens.input_tokens, totals.usage_complete), (1010, false));

    let mut reply = says("Half");
    reply.insert(2, Ok(LlmDelta::Restarted));
    let ran = run([reply]).await;
    assert_eq!(ran.code(), Some(ErrorCode::LlmStreamCut));
}

#[tokio::test]
async fn a_refusal_of_content_without_any_ends_the_run() {
    let refused = LlmError::new(LlmErrorKind::ContentRefused, "could not process image");
    let ran = run([vec![Err(refused)]]).await;
    assert_eq!(ran.code(), Some(ErrorCode::LlmBadRequest));
    assert_eq!(ran.requests.len(), 1);
}

#[tokio::test]
async fn calls_that_were_refused_are_answered_in_the_history() {
    let ids = CallIds::default();
    let call = |name: &str, args: ToolArgs| {
        Ok(LlmDelta::Block(Block::Call(ToolCall {
            id: ids.issue("call_0"),
            name: name.to_owned(),
            args,
            echo: None,
        })))
    };
    let malformed = ToolArgs::Malformed {
        raw: "{".to_owned(),
        error: "it ends too soon".to_owned(),
    };
    let reply = vec![
        call("fly", ToolArgs::Json(json!({}))),
        call("bash", malformed),
        Ok(LlmDelta::Stop(LlmStop::ToolUse)),
    ];
    let ran = run([reply, says("Done.")]).await;
    assert_eq!(ran.answer().0, "Done.");
    let of = |kind: &'static str| -> Vec<&Value> {
        let events = ran.events_of("type", kind);
        events.map(|event| &event["toolCallId"]).collect()
    };
    assert_eq!(of("tool_use"), of("tool_result"));
    assert_ne!(
        of("tool_use")[0],
        of("tool_use")[1],
        "ids are ours, and unique"
    );
    for words in ["There is no tool", "it ends too soon"] {
        assert!(ran.requests[1].contains(words), "{}", ran.requests[1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_without_figures_is_not_counted_as_free() {
    let billed = || {
        let mut reply = says("Done.");
        reply.insert(0, Ok(used(10)));
        reply
    };
    let fault = |kind| LlmError::new(kind, "it failed");
    let after = |kind| Scripted {
        faults: Mutex::new([fault(kind)].into()),
        ..Scripted::default()
    };
    let silent = Scripted {
        silent: true,
        ..Scripted::default()
    };
    let broken = vec![Err(fault(LlmErrorKind::Overloaded))];
    let cut_off = vec![Ok(LlmDelta::Text("Well".to_owned()))];
    let ten = 10..11;
    // Of the prompt's 20,000 letters, besides the system prompt and the tools.
    let sent = 5000..50_000;
    for (provider, replies, complete, input) in [
        (Scripted::default(), vec![billed()], true, &ten),
        (Scripted::default(), vec![says("Done.")], false, &sent),
        (Scripted::default(), vec![broken, billed()], false, &ten),
        (Scripted::default(), vec![cut_off], false, &sent),
        (after(LlmErrorKind::Timeout), vec![billed()], false, &ten),
        (after(LlmErrorKind::RateLimited), vec![billed()], true, &ten),
        (silent, vec![], false, &sent),
    ] {
        let mut spec = spec();
        spec.prompt = "word ".repeat(4000);
        let ran = run_with(provider, spec, replies).await;
        let totals = ran.tally.totals(Duration::ZERO);
        assert_eq!(totals.usage_complete, complete, "{:?}", ran.end);
        assert!(
            input.contains(&totals.tokens.unwrap().input_tokens),
            "{totals:?}"
        );
        assert!(totals.cost_usd > Some(0.0), "{totals:?}");
    }
}

#[tokio::test]
async fn a_turn_counts_once_something_of_its_answer_came() {
    let refusal = || LlmStop::Refusal {
        category: None,
        explanation: None,
    };
    let cut_call = || {
        let mut reply = stops("Writing.", LlmStop::MaxTokens);
        reply.push(fly(ToolArgs::Json(json!({}))));
        reply.swap(2, 3);
        reply
    };
    let fault = |kind| Err(LlmError::new(kind, "it failed"));
    let cut = vec![
        Ok(LlmDelta::Text("Half".to_owned())),
        fault(LlmErrorKind::Cut),
    ];
    for (replies, turns) in [
        (vec![stops("Well, ", refusal())], 1),
        (vec![stops("Half a sen", LlmStop::ContextFull)], 1),
        (vec![cut_call(), cut_call(), cut_call()], 1),
        (vec![cut], 1),
        (vec![long_turn(1), stops("", refusal())], 2),
        (vec![vec![fault(LlmErrorKind::Auth)]], 0),
        // What a provider's client says of a request that came to nothing.
        (
            vec![vec![
                Ok(LlmDelta::Warning {
                    code: WarningCode::StopReasonUnknown,
                    message: "thinking can't be turned off".to_owned(),
                }),
                Ok(used(10)),
                fault(LlmErrorKind::BadResponse),
            ]],
            0,
        ),
        (vec![long_turn(1), vec![fault(LlmErrorKind::Auth)]], 1),
    ] {
        let ran = run(replies).await;
        assert!(ran.end.is_err());
        let totals = ran.tally.totals(Duration::ZERO);
        assert_eq!(totals.num_turns, turns, "{:?}", ran.end);
    }
}

#[tokio::test]
async fn a_pause_that_brings_nothing_is_paid_for_twice_at_most() {
    let nothing = || vec![Ok(LlmDelta::Stop(LlmStop::Pause))];
    let searches = || {
        let echo = Echo::of(&json!({"type": "server_tool_use"})).unwrap();
        let block = LlmDelta::Block(Block::Opaque(echo));
        vec![Ok(block), Ok(LlmDelta::Stop(LlmStop::Pause))]
    };
    let half = || stops("Half, ", LlmStop::Pause);
    let bad = Err(ErrorCode::LlmBadResponse);
    for (replies, end) in [
        (vec![nothing(), nothing()], bad),
        (vec![nothing(), says("Done.")], Ok(("Done.", false))),
        (vec![half(), nothing(), nothing()], Ok(("Half, ", true))),
        (
            vec![nothing(), half(), nothing(), says("whole.")],
            Ok(("Half, whole.", false)),
        ),
        ((0..6).map(|_| searches()).collect(), bad),
    ] {
        let ran = run(replies).await;
        let got = match &ran.end {
            Ok(answer) => Ok((answer.content.as_str(), answer.truncated)),
            Err(_) => Err(ran.code().unwrap()),
        };
        assert_eq!(got, end, "{:?}", ran.requests.len());
    }
}

#[tokio::test]
async fn calls_of_tools_that_do_not_exist_are_told_of_by_name_and_within_bounds() {
    let calls = |name: fn(usize) -> String, count: usize| -> Deltas {
        let ids = CallIds::default();
        let call = |n| {
            Ok(LlmDelta::Block(Block::Call(ToolCall {
                id: ids.issue(""),
                name: name(n),
                args: ToolArgs::Json(json!({ "n": n })),
                echo: None,
            })))
        };
        let stop = Ok(LlmDelta::Stop(LlmStop::ToolUse));
        (0..count).map(call).chain([stop]).collect()
    };
    for (name, count, told) in [
        ((|_| "fly".to_owned()) as fn(usize) -> String, 1, vec![1]),
        (|_| "fly".to_owned(), 5000, vec![64]),
        (|n| format!("fly{}", n % 2), 64, vec![32, 32]),
        (
            |n| format!("fly{n}"),
            5000,
            [[1; 8].as_slice(), &[56]].concat(),
        ),
    ] {
        let ran = run([calls(name, count), says("Done.")]).await;
        let warned = ran.events_of("code", "TOOL_UNKNOWN");
        let counts: Vec<u64> = warned.filter_map(|event| event["count"].as_u64()).collect();
        assert_eq!(counts, told);
        let over = ran.events_of("code", "TOOL_CALLS_LIMIT").next();
        assert_eq!(over.is_some(), count > 64);
    }
}

#[tokio::test]
async fn sources_stand_in_the_totals_and_tools_of_the_provider_are_shown_as_its_own() {
    let cites = |quote: &str| {
        Ok(LlmDelta::Citation(Citation {
            url: Some("https://example.com/".to_owned()),
            title: None,
            quote: Some(quote.to_owned()),
        }))
    };
    let mut reply = says("It rains.");
    let (tool, query) = ("web_search", "rain".to_owned());
    reply.splice(
        ..0,
        [
            Ok(LlmDelta::ServerToolUse { tool, query }),
            cites("wet"),
            cites("wet"),
            cites("rain"),
        ],
    );
    let ran = run([reply]).await;
    let totals = serde_json::to_value(ran.tally.totals(Duration::ZERO)).unwrap();
    let url = "https://example.com/";
    assert_eq!(
        totals["citations"],
        json!([{"url": url, "quote": "wet"}, {"url": url, "quote": "rain"}])
    );
    assert_eq!(totals["toolCalls"], json!({"web_search": 1}));
    let events: Vec<&Value> = ran.events_of("toolName", "web_search").collect();
    assert_eq!(events.len(), 2, "a call, and its result");
    assert_eq!(
        (&events[0]["type"], &events[1]["type"]),
        (&json!("tool_use"), &json!("tool_result"))
    );
    assert_eq!(events[0]["toolCallId"], events[1]["toolCallId"]);
    assert_eq!(events[0]["input"], json!({"query": "rain"}));
    for event in events {
        assert_eq!(
            (&event["executor"], event.get("sandbox")),
            (&json!("provider"), None)
        );
    }
}

#[tokio::test]
async fn a_dearer_model_that_answers_is_told_of_once_and_paid_for() {
    let served = |mut reply: Deltas| {
        reply.splice(
            ..0,
            [
                Ok(LlmDelta::ServedModel("claude-opus-4-6".to_owned())),
                Ok(used(10_000)),
            ],
        );
        reply
    };
    let spec = RunSpec {
        max_budget: Some(NanoUsd::from_usd(1.0)),
        ..spec()
    };
    let replies = [
        served(long_turn(1)),
        served(long_turn(2)),
        served(says("Done.")),
    ];
    let ran = run_with(Scripted::default(), spec, replies).await;
    assert_eq!(
        ran.warnings()
            .iter()
            .filter(|code| **code == "PRICE_DEARER")
            .count(),
        1
    );
    // Three times 10,000 tokens at 5 dollars for a million.
    assert_eq!(ran.tally.totals(Duration::ZERO).cost_usd, Some(0.15));
    let most = |at: usize| ran.most(at);
    // At 25 dollars for a million, not 15.
    assert!(
        most(0) > 60_000 && most(1) < 38_000,
        "{} {}",
        most(0),
        most(1)
    );
}

#[tokio::test]
async fn a_call_that_is_cut_on_the_last_turn_is_text_that_was_cut() {
    let cut = |text: &str| {
        let mut reply = stops(text, LlmStop::MaxTokens);
        reply.insert(2, fly(ToolArgs::Json(json!({}))));
        reply
    };
    let spec = RunSpec {
        max_turns: 1,
        ..spec()
    };
    let replies = [cut("One, "), cut("two, "), cut("three")];
    let ran = run_with(Scripted::default(), spec, replies).await;
    assert_eq!(ran.answer(), ("One, two, three", true));
}

#[tokio::test]
async fn a_call_alone_that_is_cut_on_the_last_turn_is_no_answer_of_that_turn() {
    let mut cut = stops("", LlmStop::MaxTokens);
    cut.insert(0, fly(ToolArgs::Json(json!({}))));
    let spec = RunSpec {
        max_turns: 1,
        ..spec()
    };
    let ran = run_with(Scripted::default(), spec.clone(), [cut.clone()]).await;
    assert_eq!(ran.code(), Some(ErrorCode::MaxTurns));
    assert!(ran.warnings().is_empty(), "{:?}", ran.warnings());
    // What was said before it is an answer.
    let replies = [stops("One, ", LlmStop::MaxTokens), cut];
    let ran = run_with(Scripted::default(), spec, replies).await;
    assert_eq!(ran.answer(), ("One, ", true));
}

#[tokio::test(start_paused = true)]
async fn an_answer_whose_rest_fails_is_given_as_far_as_it_came() {
    let fails = |kind| vec![Err(LlmError::new(kind, "it failed"))];
    let overloaded = || fails(LlmErrorKind::Overloaded);
    let half = vec![
        Ok(LlmDelta::Text("tw".to_owned())),
        Err(LlmError::new(LlmErrorKind::Cut, "it failed")),
    ];
    for rest in [
        vec![overloaded(), overloaded(), overloaded(), overloaded()],
        vec![fails(LlmErrorKind::Auth)],
        vec![half],
    ] {
        for stop in [LlmStop::MaxTokens, LlmStop::Pause] {
            let replies = [stops("One, ", stop)].into_iter().chain(rest.clone());
            let ran = run_with(Scripted::default(), spec(), replies).await;
            assert_eq!(ran.answer(), ("One, ", true));
            let told = ran.told("ANSWER_TRUNCATED");
            assert!(told.contains("its rest failed: it failed"), "{told}");
            assert_eq!(ran.end.unwrap().stop_reason, StopReason::End);
        }
    }
    // Of blanks nothing is worth keeping.
    let replies = [stops(" ", LlmStop::Pause), fails(LlmErrorKind::Auth)];
    assert_eq!(run(replies).await.code(), Some(ErrorCode::LlmAuth));
}

#[test]
fn time_that_is_nearly_over_is_called_time() {
    let mut limits = Limits::new(&spec(), Deadline::after(Duration::from_secs(30)));
    let warning = limits.warning(1, NanoUsd(0)).unwrap();
    let event = serde_json::to_value(RunEvent::Warning(warning)).unwrap();
    assert_eq!(event["limit"], "time");
}

#[tokio::test]
async fn thinking_cut_by_the_budget_is_no_fault_of_the_model() {
    // Read from the cache, the prompt costs far less than could be foreseen: so more could be paid for.
    let usage = Usage {
        cache_read: 100_000,
        output: 41_500,
        ..Usage::default()
    };
    let spec = RunSpec {
        prompt: "word ".repeat(66_000),
        max_budget: Some(NanoUsd::from_usd(1.0)),
        ..spec()
    };
    let replies = [thought(usage), says("So far.")];
    let ran = run_with(Scripted::default(), spec, replies).await;
    assert!(ran.most(0) < 42_000, "{}", ran.most(0));
    let answer = ran.end.as_ref().unwrap();
    assert_eq!(
        (answer.content.as_str(), answer.stop_reason),
        ("So far.", StopReason::MaxBudget)
    );
    assert!(ran.requests[1].contains("budget is nearly used"));
}

#[tokio::test]
async fn a_first_turn_that_has_to_be_the_last_is_told_to_the_model() {
    let spec = RunSpec {
        prompt: "word ".repeat(100_000),
        max_budget: Some(NanoUsd::from_usd(0.59)),
        ..spec()
    };
    let ran = run_with(Scripted::default(), spec.clone(), [says("Long.")]).await;
    assert_eq!(ran.warnings(), ["MAX_BUDGET"]);
    assert!(ran.requests[0].contains("budget is nearly used. No more tools."));

    let less = RunSpec {
        max_budget: Some(NanoUsd::from_usd(0.5)),
        ..spec
    };
    let ran = run_with(Scripted::default(), less, []).await;
    assert!(ran.requests.is_empty());
    let told = "the budget of 0.5 USD does not pay for an answer to all that would have to be sent";
    assert_eq!(ran.failure(), told);
}

#[tokio::test]
async fn calls_that_are_all_refused_are_not_called_a_repeat() {
    let call = |n: usize| {
        vec![
            fly(ToolArgs::Json(json!({ "n": n }))),
            Ok(LlmDelta::Stop(LlmStop::ToolUse)),
        ]
    };
    let mut replies: Vec<Deltas> = (1..=20).map(call).collect();
    replies.push(stops("", LlmStop::End));
    let ran = run(replies).await;
    let told = ran.told("LOOP_DETECTED");
    assert!(
        told.contains("refused") && !told.contains("repeat"),
        "{told}"
    );
    assert!(ran.requests[20].contains("Calls are refused or impossible again and again."));
    let failure = ran.failure();
    assert!(
        failure.contains("refused") && !failure.contains("circles"),
        "{failure}"
    );
}

#[tokio::test]
async fn tools_that_a_provider_runs_by_the_thousand_are_counted_and_not_all_shown() {
    let search = |n: usize| {
        Ok(LlmDelta::ServerToolUse {
            tool: "web_search",
            query: n.to_string(),
        })
    };
    let mut reply: Deltas = (0..1000).map(search).collect();
    reply.extend(says("Done."));
    let ran = run([reply]).await;
    let shown = ran.events.iter();
    let shown = shown.filter(|event| event["toolName"] == "web_search");
    assert_eq!(shown.count(), 2 * 64);
    let totals = ran.tally.totals(Duration::ZERO);
    assert_eq!(totals.tool_calls["web_search"], 1000);
}

#[tokio::test]
async fn sources_of_a_text_that_is_void_are_forgotten() {
    let cites = |url: &str, mut reply: Deltas| {
        let source = Citation {
            url: Some(url.to_owned()),
            title: None,
            quote: None,
        };
        reply.insert(1, Ok(LlmDelta::Citation(source)));
        reply
    };
    let mut full = filled(100_000);
    full.extend([
        cites("void", stops("Half", LlmStop::ContextFull)),
        says("GOAL: fly."),
        cites("kept", says("Done.")),
    ]);
    let unreadable = vec![
        cites("void", unreadable_call()),
        cites("kept", says("Done.")),
    ];
    for replies in [full, unreadable] {
        let ran = run(replies).await;
        let citations = ran.tally.totals(Duration::ZERO).citations;
        let urls: Vec<_> = citations
            .iter()
            .map(|source| source.url.as_deref())
            .collect();
        assert_eq!(urls, [Some("kept")]);
    }
}

#[tokio::test(start_paused = true)]
async fn why_a_request_is_not_sent_again_is_told() {
    let overloaded = || LlmError::new(LlmErrorKind::Overloaded, "overloaded");
    let provider = Scripted {
        faults: Mutex::new((0..4).map(|_| overloaded()).collect()),
        ..Scripted::default()
    };
    let ran = run_with(provider, spec(), []).await;
    let failure = ran.failure();
    assert!(
        failure.starts_with("overloaded; not sent again: "),
        "{failure}"
    );

    let spec = RunSpec {
        max_budget: Some(NanoUsd::from_usd(0.05)),
        ..spec()
    };
    let in_vain = vec![Ok(used(100_000)), Err(overloaded())];
    let ran = run_with(Scripted::default(), spec, [in_vain]).await;
    assert_eq!(ran.code(), Some(ErrorCode::BudgetExceeded));
    let failure = ran.failure();
    assert!(
        failure.contains("the last request failed (overloaded)"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_key_that_goes_on_in_the_rest_of_an_answer_or_after_thinking_is_not_shown_whole() {
    const KEY: &str = "a-key-of-16-or-more";
    let (head, tail) = KEY.split_at(9);
    let mut between = says(tail);
    between.splice(
        ..0,
        [
            Ok(LlmDelta::Text(head.to_owned())),
            Ok(LlmDelta::Thinking("Hm".to_owned())),
        ],
    );
    for replies in [
        vec![stops(head, LlmStop::MaxTokens), says(tail)],
        vec![between],
    ] {
        let provider = Scripted {
            key: KEY,
            ..Scripted::default()
        };
        let ran = run_with(provider, spec(), replies).await;
        let said = ran.events_of("type", "assistant");
        let said: String = said.filter_map(|event| event["content"].as_str()).collect();
        assert!(said.starts_with(head) && !said.contains(KEY), "{said}");
        assert!(!ran.answer().0.contains(KEY));
    }
}
