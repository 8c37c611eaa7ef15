use proptest::prelude::*;

use super::*;
use crate::llm::types::ThinkingStyle;

fn usage(input: u64, cache_read: u64, write_5m: u64, write_1h: u64, output: u64) -> Usage {
    Usage {
        input,
        cache_read,
        cache_write_5m: write_5m,
        cache_write_1h: write_1h,
        output,
        ..Usage::default()
    }
}

fn nanos(provider: &str, model: &str, usage: Usage) -> u64 {
    cost(provider, model, &usage).unwrap().0
}

#[test]
fn the_table_parses_and_has_every_provider() {
    for (provider, least) in [
        ("anthropic", 23),
        ("google", 16),
        ("openai", 68),
        ("openrouter", 100),
    ] {
        assert!(known_models(provider).count() >= least, "{provider}");
    }
    assert_eq!(known_models("acme").count(), 0);
}

#[test]
fn every_kind_of_token_has_its_price() {
    // $3, $15, $0.30, $3.75 and $6 per million.
    let million = 1_000_000;
    let cases = [
        (usage(million, 0, 0, 0, 0), 3_000_000_000),
        (usage(0, million, 0, 0, 0), 300_000_000),
        (usage(0, 0, million, 0, 0), 3_750_000_000),
        (usage(0, 0, 0, million, 0), 6_000_000_000),
        (usage(0, 0, 0, 0, million), 15_000_000_000),
        (usage(1, 1, 1, 1, 1), 28_050),
        (Usage::default(), 0),
    ];
    for (usage, nano) in cases {
        assert_eq!(
            nanos("anthropic", "claude-sonnet-4-6", usage),
            nano,
            "{usage:?}"
        );
    }
}

#[test]
fn a_tier_holds_for_the_whole_request_once_its_total_input_is_over_the_threshold() {
    let at = usage(60_000, 30_000, 10_000, 0, 1000);
    // $0.10, $0.01, $0.125 and $0.50 per million.
    assert_eq!(
        nanos("anthropic", "claude-haiku-5-5", at),
        6_000_000 + 300_000 + 1_250_000 + 500_000
    );
    let above = usage(60_001, 30_000, 10_000, 0, 1000);
    // $0.50, $0.05, $0.625 and $2.50 per million.
    assert_eq!(
        nanos("anthropic", "claude-haiku-5-5", above),
        30_000_500 + 1_500_000 + 6_250_000 + 2_500_000
    );
    let hour = usage(200_000, 0, 0, 1000, 0);
    assert_eq!(
        nanos("anthropic", "claude-haiku-5-5", hour),
        100_000_000 + 1_000_000
    );
}

#[test]
fn writes_without_a_price_of_their_own_are_plain_input() {
    assert_eq!(
        nanos("openai", "gpt-5.4", usage(0, 0, 10, 0, 0)),
        nanos("openai", "gpt-5.4", usage(10, 0, 0, 0, 0))
    );
    // gpt-6-luna bills writes at $0.125 per million, an eighth above its input.
    assert_eq!(
        nanos("openai", "gpt-6-luna", usage(0, 0, 1000, 0, 0)),
        125_000
    );
}

#[test]
fn dated_ids_are_found_and_unknown_ones_have_no_price() {
    let some = usage(1000, 0, 0, 0, 100);
    for (provider, dated, plain) in [
        ("anthropic", "claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        (
            "anthropic",
            "claude-sonnet-4-6-20991231",
            "claude-sonnet-4-6",
        ),
        ("openai", "gpt-5.5-2099-12-31", "gpt-5.5"),
    ] {
        assert_eq!(nanos(provider, dated, some), nanos(provider, plain, some));
    }
    for unknown in [
        "",
        "claude",
        "claude-sonnet-4-6-2099",
        "claude-sonnet-9",
        "é-2026-01-01",
    ] {
        assert_eq!(cost("anthropic", unknown, &some), None, "{unknown}");
    }
    assert_eq!(cost("acme", "claude-sonnet-4-6", &some), None);
}

#[test]
fn the_dearer_of_the_requested_and_the_served_model_is_billed() {
    let some = usage(1_000_000, 0, 0, 0, 0);
    let billed = |requested, served| {
        cost_as_served("anthropic", requested, served, &some).map(|cost| cost.0)
    };
    for (requested, served) in [
        ("claude-haiku-4-5", "claude-opus-4-6"),
        ("claude-opus-4-6", "claude-haiku-4-5"),
    ] {
        assert_eq!(billed(requested, Some(served)), Some(5_000_000_000));
    }
    assert_eq!(
        billed("claude-haiku-4-5", Some("other")),
        Some(1_000_000_000)
    );
    assert_eq!(
        billed("gateway-name", Some("claude-opus-4-6")),
        Some(5_000_000_000)
    );
    assert_eq!(billed("gateway-name", Some("other")), None);
    assert_eq!(billed("gateway-name", None), None);
}

#[test]
fn demo_is_free() {
    assert_eq!(cost("demo", "demo", &Usage::default()), Some(NanoUsd(0)));
}

proptest! {
    #[test]
    fn costs_add_up_and_never_overflow(
        a in prop::array::uniform5(0_u64..50_000_000), b in prop::array::uniform5(0_u64..50_000_000)
    ) {
        let of = |x: [u64; 5]| nanos("anthropic", "claude-opus-4-6", usage(x[0], x[1], x[2], x[3], x[4]));
        let sum = std::array::from_fn(|i| a[i] + b[i]);
        prop_assert!(of(sum).abs_diff(of(a) + of(b)) <= 1);
        prop_assert_eq!(of([0; 5]), 0);
    }
}

#[test]
fn the_providers_own_figure_is_the_truth() {
    let given = Usage {
        input: 1_000_000,
        given_cost: Some(NanoUsd(7)),
        ..Usage::default()
    };
    assert_eq!(
        cost("anthropic", "claude-sonnet-4-6", &given),
        Some(NanoUsd(7))
    );
    assert_eq!(
        cost("openrouter", "no/such-model", &given),
        Some(NanoUsd(7))
    );
    assert!(!known("openrouter", "no/such-model"));
}

#[test]
fn the_rest_of_a_budget_buys_so_much_output_and_no_more() {
    let dollars = |dollars: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small and positive"
        )]
        let nanos = (dollars * 1e9) as u64;
        NanoUsd(nanos)
    };
    let input = |tokens| usage(tokens, 0, 0, 0, 999);
    for (model, tokens, rest, buys) in [
        ("claude-sonnet-4-6", 0, 0.15, Some(10_000)),
        ("claude-sonnet-4-6", 10_000, 0.15, Some(8000)),
        ("claude-sonnet-4-6", 50_000, 0.15, Some(0)),
        ("claude-sonnet-4-6", 90_000, 0.15, Some(0)),
        ("claude-sonnet-4-6", 0, 1e6, Some(u32::MAX)),
        ("claude-haiku-5-5", 100_000, 0.06, Some(100_000)),
        // Above the step, input and output are dearer.
        ("claude-haiku-5-5", 100_001, 0.06, Some(3999)),
        ("no-such-model", 0, 1.0, None),
    ] {
        let output = affordable_output("anthropic", model, &input(tokens), dollars(rest));
        assert_eq!(output, buys, "{model} {tokens} {rest}");
    }
    assert_eq!(
        affordable_output("demo", "demo", &input(1), dollars(1.0)),
        None
    );
}

#[test]
fn facts_are_those_of_the_model_or_of_its_name() {
    for (model, thinking, most) in [
        ("claude-haiku-4-5", ThinkingStyle::Budget, Some(64_000)),
        (
            "claude-sonnet-4-5-20250929",
            ThinkingStyle::Budget,
            Some(64_000),
        ),
        ("claude-sonnet-4-6", ThinkingStyle::OptIn, Some(128_000)),
        ("claude-opus-5", ThinkingStyle::OptOut, Some(128_000)),
        (
            "claude-sonnet-5-5",
            ThinkingStyle::BetweenTools,
            Some(128_000),
        ),
        ("claude-fable-5-2", ThinkingStyle::Always, Some(128_000)),
        ("claude-fable-9", ThinkingStyle::Always, None),
        ("claude-3-haiku-20240307", ThinkingStyle::Budget, None),
        ("gateway-model", ThinkingStyle::OptIn, None),
    ] {
        let facts = facts("anthropic", model);
        assert_eq!(
            (facts.thinking, facts.max_output_tokens),
            (thinking, most),
            "{model}"
        );
        assert!(facts.vision, "{model}");
    }
    for model in known_models("anthropic") {
        let facts = listed("anthropic", model).unwrap();
        assert_ne!(facts.thinking, ThinkingStyle::Unknown, "{model}");
        assert!(
            facts.vision && facts.documents && facts.native_schema,
            "{model}"
        );
        assert!(
            facts.context_window.is_some() && facts.max_output_tokens.is_some(),
            "{model}"
        );
    }
    assert_eq!(
        listed("anthropic", "claude-haiku-5-5").unwrap().price_step,
        Some(100_000)
    );
    assert_eq!(
        listed("anthropic", "claude-sonnet-4-6").unwrap().price_step,
        None
    );
    assert_eq!(facts("acme", "x"), ModelFacts::default());
}
