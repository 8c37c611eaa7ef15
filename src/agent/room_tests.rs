//! What is done when a conversation no longer fits.

use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

use super::scripted::{
    Deltas, Ran, Scripted, context, ends, filled, fly, long_turn, run, run_with, says, spec, stops,
    thought, used,
};
use super::*;
use crate::chat::{Block, Echo, Image, ImageType, Part, ToolArgs, ToolResult};
use crate::llm::{LlmDelta, LlmError, LlmErrorKind, ModelFacts, ThinkingStyle, Usage};
use crate::spec::{NanoUsd, RunSpec, ThinkingLevel};

#[tokio::test]
async fn a_conversation_too_long_to_be_summarised_goes_by_halves() {
    let provider = Scripted {
        most_chars: Some(160_000),
        ..Scripted::default()
    };
    // Five of them fit; the sixth request does not, nor does that for a summary.
    let mut replies: Vec<Deltas> = (1..=6).map(long_turn).collect();
    replies.extend([says("GOAL: fly."), says("Done.")]);
    let ran = run_with(provider, spec(), replies).await;
    assert_eq!(ran.answer().0, "Done.", "{:?}", ran.warnings());
    let asked = ran.summaries();
    assert_eq!(asked.len(), 2, "{:?}", ran.warnings());
    assert!(asked[0].contains("turn-1 ") && !asked[1].contains("turn-1 "));
    assert!(asked[1].contains("turn-5 "));
    assert!(ran.requests.last().unwrap().contains("GOAL: fly."));
}

#[tokio::test(start_paused = true)]
async fn a_summary_that_breaks_off_is_asked_for_again_and_one_that_begins_anew_is_the_new_one() {
    let cut = vec![
        Ok(LlmDelta::Text("void".to_owned())),
        Err(LlmError::new(LlmErrorKind::Cut, "it broke off")),
    ];
    let mut anew = says("GOAL: fly.");
    anew.splice(
        0..0,
        [
            Ok(LlmDelta::Text("void".to_owned())),
            Ok(LlmDelta::Block(Block::text("void"))),
            Ok(LlmDelta::Restarted),
        ],
    );
    for summary in [vec![cut, says("GOAL: fly.")], vec![anew]] {
        let mut replies: Vec<Deltas> = (1..=8).map(long_turn).collect();
        replies[7].insert(0, Ok(used(165_000)));
        replies.extend(summary);
        replies.push(says("Done."));
        let ran = run(replies).await;
        assert_eq!(ran.answer().0, "Done.");
        let last = ran.requests.last().unwrap();
        assert!(last.contains("GOAL: fly.") && !last.contains("void"));
    }
}

/// A summary, and what is said of it.
type Odd = (fn() -> Deltas, &'static str);

#[tokio::test]
async fn a_summary_that_came_to_nothing_is_not_paid_for_again() {
    const MUCH: u64 = 165_000;
    fn odd(text: &str, stop: LlmStop) -> Deltas {
        ends(Some(used(MUCH)), text, stop)
    }
    let odd_ones: [Odd; 9] = [
        (
            || {
                let (category, explanation) = (None, Some("no".to_owned()));
                odd(
                    "Well, ",
                    LlmStop::Refusal {
                        category,
                        explanation,
                    },
                )
            },
            "the model refused",
        ),
        (|| odd("", LlmStop::End), "the model gave no summary"),
        (
            || odd(" \n", LlmStop::Unknown("tired".to_owned())),
            "the model gave no summary",
        ),
        (
            || vec![Ok(used(MUCH)), Ok(LlmDelta::Stop(LlmStop::MaxTokens))],
            "the model gave no summary",
        ),
        (
            || {
                let mut reply = odd("I'll look first.", LlmStop::ToolUse);
                reply.insert(2, fly(ToolArgs::Json(json!({}))));
                reply
            },
            "the model gave no summary",
        ),
        (
            || {
                let attempt = String::new();
                odd("I'll look first.", LlmStop::MalformedCall { attempt })
            },
            "the model gave no summary",
        ),
        (
            || odd("GOAL: fl", LlmStop::Pause),
            "its provider paused the summary",
        ),
        (
            || odd(&"word ".repeat(8000), LlmStop::End),
            "the summary was too long",
        ),
        (
            || odd(&"word ".repeat(8000), LlmStop::MaxTokens),
            "the summary was too long",
        ),
    ];
    let cases = odd_ones.iter().map(|odd| (odd, 13, MUCH, 1));
    // A conversation that has grown is worth another try, but not a third.
    let grown = odd_ones.iter().take(1).map(|odd| (odd, 18, 400_000, 2));
    for (&(summary, told), turns, grown, most) in cases.chain(grown) {
        let turn = |n: usize| {
            let mut reply = long_turn(n);
            reply.insert(0, Ok(used(if n < 11 { MUCH } else { grown })));
            reply
        };
        let mut replies: Vec<Deltas> = (1..=turns).map(turn).collect();
        replies.push(ends(Some(used(0)), "Done.", LlmStop::End));
        let provider = Scripted {
            summary: Some(summary),
            ..Scripted::default()
        };
        let ran = run_with(provider, spec(), replies).await;
        assert_eq!(ran.answer().0, "Done.", "{told}");
        let asked = ran.summaries();
        assert_eq!(asked.len(), most, "{told}: {:?}", ran.warnings());
        let tokens = MUCH * (10 + most as u64) + grown * (turns as u64 - 10);
        let paid = ran.tally.totals(Duration::ZERO).cost_usd.unwrap();
        let right = f64::from(u32::try_from(tokens).unwrap()) * 3e-6;
        assert!((paid - right).abs() < 1e-6, "{told}: {paid} {right}");
        let said = ran.events_of("code", "SUMMARY_FAILED");
        let words: Vec<&str> = said.filter_map(|event| event["message"].as_str()).collect();
        assert_eq!(words.len(), most, "{told}");
        assert!(
            words.iter().all(|words| words.starts_with(told)),
            "{words:?}"
        );
    }
}

#[tokio::test]
async fn what_does_not_fit_is_left_out_without_a_summary_once_two_have_failed() {
    let provider = Scripted {
        summary: Some(|| vec![Ok(used(165_000)), Ok(LlmDelta::Stop(LlmStop::ContextFull))]),
        ..Scripted::default()
    };
    let too_long = LlmError::new(LlmErrorKind::ContextTooLong, "too long");
    let mut replies: Vec<Deltas> = (1..=6).map(long_turn).collect();
    replies.extend([vec![Err(too_long)], says("Done.")]);
    let ran = run_with(provider, spec(), replies).await;
    assert_eq!(ran.answer().0, "Done.");
    let asked = ran.summaries();
    assert_eq!(asked.len(), 2, "{:?}", ran.warnings());
    assert!(ran.requests.last().unwrap().contains(prompt::LEFT_OUT));
}

#[tokio::test]
async fn a_request_too_large_without_any_image_makes_room() {
    let too_large = LlmError::new(LlmErrorKind::ContentRefused, "request too large");
    let mut replies: Vec<Deltas> = (1..=3).map(long_turn).collect();
    replies.extend([vec![Err(too_large)], says("GOAL: fly."), says("Done.")]);
    let ran = run(replies).await;
    assert_eq!(ran.answer().0, "Done.");
    assert!(ran.warnings().contains(&"CONTEXT_COMPACTED"));
}

#[tokio::test]
async fn the_window_bounds_the_rest_of_an_answer() {
    let cut = |input: u64, text: &str| {
        let mut reply = stops(text, LlmStop::MaxTokens);
        reply.insert(0, Ok(used(input)));
        reply
    };
    let ran = run([cut(190_000, "One, "), cut(198_500, "two, ")]).await;
    assert_eq!(ran.answer(), ("One, two, ", true));
    assert_eq!(ran.warnings(), ["ANSWER_TRUNCATED"]);
    assert!(ran.told("ANSWER_TRUNCATED").contains("context window"));
    let most = ran.most(1);
    assert!((9_000..=10_000).contains(&most), "{most}");
}

#[tokio::test]
async fn thinking_that_was_cut_leaves_its_room_to_the_next_try() {
    let usage = Usage {
        input: 150_000,
        output: 32_000,
        ..Usage::default()
    };
    let ran = run([thought(usage), says("Done.")]).await;
    assert_eq!(ran.answer().0, "Done.");
    assert_eq!(ran.most(1), 50_000);
    assert_eq!(ran.warnings(), ["TURN_RESTARTED"]);
}

#[tokio::test]
async fn an_answer_cut_by_the_window_makes_room_and_is_told_of() {
    let all_that_fits = Usage {
        input: 190_100,
        output: 9_900,
        ..Usage::default()
    };
    let mut replies = filled(190_000);
    replies.extend([thought(all_that_fits), says("GOAL: fly."), says("Done.")]);
    let ran = run(replies).await;
    assert_eq!(ran.answer().0, "Done.");
    assert_eq!(ran.warnings()[1..], ["CONTEXT_COMPACTED", "TURN_RESTARTED"]);
}

#[tokio::test]
async fn a_history_has_a_bound_whatever_is_told_of_its_tokens() {
    let turn = |n: usize| {
        let args = json!({ "n": n, "x": "x".repeat(600_000) });
        vec![
            Ok(used(10)),
            fly(ToolArgs::Json(args)),
            Ok(LlmDelta::Stop(LlmStop::ToolUse)),
        ]
    };
    let mut replies: Vec<Deltas> = (1..=12).map(turn).collect();
    replies.push(says("Done."));
    let provider = Scripted {
        summary: Some(|| says("GOAL: fly.")),
        ..Scripted::default()
    };
    let ran = run_with(provider, spec(), replies).await;
    assert_eq!(ran.answer().0, "Done.");
    let most = ran.requests.iter().map(String::len).max().unwrap();
    assert!(most < 6_000_000, "{most}");
}

#[tokio::test(start_paused = true)]
async fn the_budget_does_not_count_on_a_cache_that_a_long_wait_has_voided() {
    let mut cached = long_turn(1);
    cached.insert(
        0,
        Ok(LlmDelta::Usage(Usage {
            cache_write_5m: 150_000,
            ..Usage::default()
        })),
    );
    let mut throttled = LlmError::new(LlmErrorKind::RateLimited, "slow down");
    throttled.retry_after = Some(Duration::from_secs(280));
    let spec = RunSpec {
        timeout: Duration::from_hours(1),
        max_budget: Some(NanoUsd::from_usd(1.2)),
        ..spec()
    };
    let replies = [cached, vec![Err(throttled)], says("Done.")];
    let ran = run_with(Scripted::default(), spec, replies).await;
    assert_eq!(ran.answer().0, "Done.");
    // 0.56 dollars before; read from the cache the input costs 0.08 dollars, written to it anew 0.6.
    let [before, after] = [ran.most(1), ran.most(2)];
    assert!(before > 30_000 && after < 5000, "{before} {after}");
}

#[tokio::test]
async fn a_window_that_is_full_for_a_moment_does_not_end_thinking() {
    let facts = ModelFacts {
        context_window: Some(200_000),
        max_output_tokens: Some(64_000),
        thinking: ThinkingStyle::Budget,
        ..ModelFacts::default()
    };
    let spec = || RunSpec {
        thinking: ThinkingLevel::High,
        ..spec()
    };
    let thinking = |ran: &Ran, request: usize| ran.requests[request].contains("thinking=High");
    let mut replies: Vec<Deltas> = (1..=8).map(long_turn).collect();
    replies[7].insert(0, Ok(used(185_000)));
    replies.extend([says("GOAL: fly."), says("Done.")]);
    let provider = Scripted {
        facts,
        ..Scripted::default()
    };
    let ran = run_with(provider, spec(), replies).await;
    assert_eq!(ran.answer().0, "Done.");
    assert_eq!(ran.warnings(), ["TOOL_UNKNOWN", "CONTEXT_COMPACTED"]);
    assert!((0..ran.requests.len()).all(|request| thinking(&ran, request)));

    // There is nothing to leave out; the rest of an answer has no room either.
    let mut cut = stops("One, ", LlmStop::MaxTokens);
    cut.insert(0, Ok(used(190_000)));
    let provider = Scripted {
        facts,
        ..Scripted::default()
    };
    let ran = run_with(provider, spec(), [cut, says("two")]).await;
    assert_eq!(ran.answer().0, "One, two");
    assert!(ran.warnings().is_empty() && thinking(&ran, 1));
}

#[tokio::test]
async fn a_summary_that_the_budget_lets_not_think_is_not_asked_for_and_ends_no_thinking() {
    let facts = ModelFacts {
        context_window: Some(1_000_000),
        max_output_tokens: Some(64_000),
        thinking: ThinkingStyle::Budget,
        ..ModelFacts::default()
    };
    let turn = |n: usize| {
        let mut reply = long_turn(n);
        reply.insert(0, Ok(used(if n < 8 { 10 } else { 161_000 })));
        reply
    };
    let mut replies: Vec<Deltas> = (1..=8).map(turn).collect();
    replies.push(says("Done."));
    // 0.48 dollars before. A turn buys some 32,000 tokens; a summary, with what it holds back, some 8,000.
    let spec = RunSpec {
        thinking: ThinkingLevel::High,
        max_budget: Some(NanoUsd::from_usd(1.467)),
        ..spec()
    };
    let provider = Scripted {
        facts,
        ..Scripted::default()
    };
    let ran = run_with(provider, spec, replies).await;
    assert_eq!(ran.answer().0, "Done.");
    assert!(ran.told("SUMMARY_FAILED").starts_with("the budget"));
    assert!(!ran.warnings().contains(&"THINKING_ADJUSTED"));
    assert!(
        ran.requests
            .iter()
            .all(|sent| sent.contains("thinking=High"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_summary_leaves_time_for_a_last_turn() {
    for (secs, told, ends) in [
        (300, "a summary failed", 270),
        (24, "there is no time for a summary", 0),
    ] {
        let mut replies: Vec<Deltas> = (1..=8).map(long_turn).collect();
        replies[7].insert(0, Ok(used(165_000)));
        replies.push(says("So far."));
        let provider = Scripted {
            no_summary: true,
            ..Scripted::default()
        };
        let spec = RunSpec {
            timeout: Duration::from_secs(secs),
            ..spec()
        };
        let begun = tokio::time::Instant::now();
        let ran = run_with(provider, spec, replies).await;
        assert_eq!(ran.answer().0, "So far.");
        assert_eq!(begun.elapsed().as_secs(), ends);
        assert!(ran.told("SUMMARY_FAILED").starts_with(told), "{told}");
    }
}

#[tokio::test]
async fn an_image_that_is_refused_in_a_summary_is_left_out_of_it() {
    let provider = Arc::new(Scripted::default());
    let refused = LlmError::new(LlmErrorKind::ContentRefused, "could not process image");
    let replies = [vec![Err(refused)], says("GOAL: fly.")];
    provider.replies.lock().extend(replies);
    let context = context(&provider, spec(), Arc::default());
    let mut conversation = Conversation::new(&context);
    for n in 1..=3 {
        let Ok(LlmDelta::Block(block)) = long_turn(n).swap_remove(0) else {
            panic!("a turn begins with its call");
        };
        conversation.reply(vec![block]);
        let image = Part::Image(Image {
            media_type: ImageType::Png,
            base64: "AAAA".into(),
        });
        let result = ToolResult {
            id: conversation.open_calls()[0].id.clone(),
            name: "fly".to_owned(),
            content: vec![image],
            is_error: false,
        };
        conversation.results(vec![result], None);
    }
    assert!(conversation.make_room_now(4).await.unwrap());
    let requests = provider.requests.lock();
    assert_eq!(requests.len(), 2);
    assert!(requests[1].contains("turn-1 ") && !requests[1].contains("Image("));
}

#[tokio::test(start_paused = true)]
async fn what_was_shown_of_an_answer_that_is_asked_for_anew_is_told_to_be_void() {
    let fault = |kind| Err(LlmError::new(kind, "prompt is too long"));
    let too_long = vec![
        Ok(LlmDelta::Text("Let me".to_owned())),
        fault(LlmErrorKind::ContextTooLong),
    ];
    let mut replies = filled(100_000);
    replies.extend([too_long, says("GOAL: fly."), says("Done.")]);
    let ran = run(replies).await;
    assert_eq!(ran.answer().0, "Done.");
    assert_eq!(ran.warnings()[1..], ["CONTEXT_COMPACTED", "TURN_RESTARTED"]);

    // Neither what only its provider understands nor a call is shown: it may be asked for again.
    let echo = Echo::of(&json!({"type": "thinking", "thinking": ""})).unwrap();
    let call = fly(ToolArgs::Json(json!({})));
    for unseen in [Ok(LlmDelta::Block(Block::Opaque(echo))), call] {
        let anew = vec![unseen.clone(), Ok(LlmDelta::Restarted)];
        let anew = anew.into_iter().chain(says("Done.")).collect();
        let ran = run([anew]).await;
        assert_eq!(ran.answer().0, "Done.");
        assert!(ran.warnings().is_empty());

        let broken = vec![unseen, fault(LlmErrorKind::Cut)];
        let ran = run([broken, says("Done.")]).await;
        assert_eq!(ran.answer().0, "Done.");
        assert_eq!(ran.warnings(), ["LLM_RETRY"]);
    }
}

#[tokio::test]
async fn an_answer_whose_rest_does_not_fit_is_given_as_far_as_it_came() {
    let too_long = LlmError::new(LlmErrorKind::ContextTooLong, "too long");
    for (rest, whole) in [
        (vec![Err(too_long)], "One, "),
        (stops("two", LlmStop::ContextFull), "One, two"),
    ] {
        let ran = run([stops("One, ", LlmStop::MaxTokens), rest]).await;
        assert_eq!(ran.answer(), (whole, true));
        assert!(ran.told("ANSWER_TRUNCATED").contains("context window"));
    }
}
