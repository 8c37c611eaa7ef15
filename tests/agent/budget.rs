//! Money: every request asks the budget first, whatever the response before it was.

use serde_json::{Value, json};

use super::{bash, check_log, end};
use crate::support::app::{TestApp, of_kind, warnings};
use crate::support::fake_llm::{FakeLlm, Received, Reply};

/// Dollars per token of the model that the runs here ask for.
const INPUT: f64 = 3e-6;
const OUTPUT: f64 = 15e-6;
/// What a last request may have although the budget doesn't pay for it.
const LAST: u64 = 2000;

fn dollars(tokens: u64, price: f64) -> f64 {
    f64::from(u32::try_from(tokens).unwrap()) * price
}

/// A run: what is answered, and what must come of it.
struct Case {
    name: &'static str,
    budget: f64,
    prompt: String,
    replies: Vec<Billed>,
    /// `max_tokens` of each request that must be sent.
    asked: Vec<u64>,
    /// The end: `stopReason` and the text, or the code.
    end: Result<(&'static str, &'static str), &'static str>,
    warnings: Vec<&'static str>,
    /// The last request is billed for far more than its text could be foreseen to be.
    surprises: bool,
}

/// A response, and the input and output tokens that it is billed for.
type Billed = (Reply, u64, u64);

fn case(name: &'static str, budget: f64, replies: Vec<Billed>) -> Case {
    Case {
        name,
        budget,
        prompt: "hi".to_owned(),
        replies,
        asked: Vec::new(),
        end: Err(""),
        warnings: Vec::new(),
        surprises: false,
    }
}

impl Case {
    fn asks(mut self, asked: &[u64]) -> Self {
        self.asked = asked.to_vec();
        self
    }

    fn answers(mut self, reason: &'static str, text: &'static str) -> Self {
        self.end = Ok((reason, text));
        self
    }

    fn fails(mut self, code: &'static str) -> Self {
        self.end = Err(code);
        self
    }

    fn surprises(mut self) -> Self {
        self.surprises = true;
        self
    }

    fn warns(mut self, codes: &[&'static str]) -> Self {
        self.warnings = codes.to_vec();
        self
    }
}

fn cut(text: &str, input: u64, output: u64) -> Billed {
    (Reply::says(text).stops("max_tokens"), input, output)
}

fn says(text: &str, input: u64, output: u64) -> Billed {
    (Reply::says(text), input, output)
}

fn thought(input: u64, output: u64) -> Billed {
    let reply = Reply::new().thinking("Hm", "s").stops("max_tokens");
    (reply, input, output)
}

fn paused(input: u64, output: u64) -> Billed {
    let search = json!({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search",
        "input": {"query": "x"}});
    let reply = Reply::new().text("Searching. ").whole_block(search);
    (reply.stops("pause_turn"), input, output)
}

fn call(n: u32, input: u64, output: u64) -> Billed {
    let reply = Reply::new().call("bash", &bash(&format!("echo {n}")));
    (reply, input, output)
}

/// A request that is billed and fails before anything is shown.
fn billed_in_vain(input: u64) -> Billed {
    let usage = json!({"type": "message_delta", "delta": {"stop_reason": null},
        "usage": {"input_tokens": input, "output_tokens": 1}});
    let reply = Reply::new().event(usage);
    (reply.breaks("overloaded_error", "Overloaded"), input, 1)
}

fn answers_that_are_cut() -> Vec<Case> {
    vec![
        // 0.483, then 2.502, then 4.905 dollars.
        case(
            "the first cut has used it up",
            0.5,
            vec![cut("One, ", 1000, 32_000)],
        )
        .asks(&[32_000])
        .answers("max_budget", "One, ")
        .warns(&["ANSWER_TRUNCATED"]),
        case(
            "it buys the whole of what is allowed",
            5.0,
            vec![
                cut("One, ", 1000, 32_000),
                cut("two, ", 33_000, 128_000),
                cut("three", 161_000, 128_000),
            ],
        )
        .asks(&[32_000, 128_000, 128_000])
        .answers("end", "One, two, three")
        .warns(&["ANSWER_TRUNCATED"]),
        case(
            "not even a little of the third piece",
            3.0,
            vec![cut("One, ", 1000, 32_000), cut("two, ", 33_000, 128_000)],
        )
        .asks(&[32_000, 128_000])
        .answers("max_budget", "One, two, ")
        .warns(&["ANSWER_TRUNCATED"]),
        case(
            "a third piece of what is left",
            3.2,
            vec![
                cut("One, ", 1000, 32_000),
                cut("two, ", 33_000, 128_000),
                says("three", 161_000, 14_000),
            ],
        )
        // 0.698 dollars less an input of some 161,035 tokens.
        .asks(&[32_000, 128_000, 14_326])
        .answers("end", "One, two, three"),
        case(
            "all was thought",
            0.5,
            vec![thought(1000, 32_000), says("So far.", 1000, 100)],
        )
        .asks(&[32_000, LAST])
        .answers("max_budget", "So far.")
        .warns(&["SOFT_LIMIT", "MAX_BUDGET"]),
        case(
            "a cut call's announcement is no answer",
            0.5,
            vec![
                (
                    Reply::says("I'll now write the report.")
                        .call_so_far("bash", "{\"comm")
                        .stops("max_tokens"),
                    1000,
                    32_000,
                ),
                says("Half of it.", 1100, 100),
            ],
        )
        .asks(&[32_000, LAST])
        .answers("max_budget", "Half of it.")
        .warns(&["SOFT_LIMIT", "MAX_BUDGET"]),
        case("a pause", 0.1, vec![paused(10_000, 1500)])
            .answers("max_budget", "Searching. ")
            .warns(&["ANSWER_TRUNCATED"]),
    ]
}

fn turns() -> Vec<Case> {
    vec![
        // 0.045 dollars for the first, then an input alone of 0.033.
        case(
            "a last turn is asked",
            0.05,
            vec![call(1, 10_000, 1000), says("So far.", 10_000, 100)],
        )
        .answers("max_budget", "So far.")
        .warns(&["SOFT_LIMIT", "MAX_BUDGET"]),
        case(
            "a last turn says nothing",
            0.05,
            vec![call(1, 10_000, 1000), (Reply::new(), 10, 5)],
        )
        .fails("BUDGET_EXCEEDED")
        .warns(&["SOFT_LIMIT", "MAX_BUDGET"]),
        case(
            "a last turn is cut",
            0.05,
            vec![call(1, 10_000, 1000), cut("So fa", 10_000, LAST)],
        )
        .answers("max_budget", "So fa")
        .warns(&["SOFT_LIMIT", "MAX_BUDGET", "ANSWER_TRUNCATED"]),
        case(
            "it is passed before anything was said",
            0.05,
            vec![call(1, 100_000, 1000)],
        )
        .surprises()
        .fails("BUDGET_EXCEEDED")
        .warns(&["SOFT_LIMIT"]),
        case(
            "an empty answer",
            0.05,
            vec![(Reply::new(), 10_000, 100), says("So far.", 10_100, 100)],
        )
        .answers("max_budget", "So far.")
        .warns(&["EMPTY_ANSWER", "MAX_BUDGET"]),
        case(
            "an attempt that was billed in vain",
            0.05,
            vec![billed_in_vain(100_000)],
        )
        .surprises()
        .fails("BUDGET_EXCEEDED"),
        case(
            "an attempt that was billed and can be paid for again",
            1.0,
            vec![billed_in_vain(100_000), says("Done.", 100_000, 10)],
        )
        .asks(&[32_000, 32_000])
        .answers("end", "Done.")
        .warns(&["LLM_RETRY"]),
        Case {
            prompt: "word ".repeat(120_000),
            ..case("not even the prompt", 0.6, vec![]).fails("BUDGET_EXCEEDED")
        },
        case("hardly anything", 0.000_001, vec![]).fails("BUDGET_EXCEEDED"),
        // 0.51 dollars, then an input alone of 0.417, of which old results are 0.1.
        case(
            "a last turn has to be short, however much room the window has",
            0.55,
            (1..6)
                .map(|n| long(n, 10, 5))
                .chain([long(6, 120_000, 10_000), says("So far.", 100_000, 100)])
                .collect(),
        )
        .answers("max_budget", "So far.")
        .warns(&["CONTEXT_CLEARED", "SOFT_LIMIT", "MAX_BUDGET"]),
        // 0.06 dollars, then an input alone of some 0.086.
        case(
            "a last turn that costs more than the whole budget",
            0.07,
            vec![long(1, 20_000, 10)],
        )
        .fails("BUDGET_EXCEEDED")
        .warns(&["SOFT_LIMIT"]),
        Case {
            prompt: "word ".repeat(120_000),
            ..case("the prompt alone", 0.7, vec![says("Long.", 180_000, 100)])
                .asks(&[LAST])
                .answers("max_budget", "Long.")
                .warns(&["MAX_BUDGET"])
        },
    ]
}

/// A call whose result is long.
fn long(n: u32, input: u64, output: u64) -> Billed {
    let command = format!("echo {n}; head -c 29000 /dev/zero | tr '\\0' z");
    (Reply::new().call("bash", &bash(&command)), input, output)
}

fn summaries() -> Vec<Case> {
    let crowded = |more: Vec<Billed>| {
        let mut replies: Vec<Billed> = (1..8).map(|n| long(n, 10, 5)).collect();
        replies.push(long(8, 161_000, 10));
        replies.extend(more);
        replies
    };
    vec![
        // 0.4834 dollars before; the summary reads as much again.
        case(
            "no summary is paid for that a last answer needs",
            0.6,
            crowded(vec![says("So far.", 60_000, 100)]),
        )
        .answers("max_budget", "So far.")
        .warns(&["CONTEXT_CLEARED", "SOFT_LIMIT", "MAX_BUDGET"]),
        // It would leave nothing of 0.546 dollars.
        case(
            "no summary is paid for that leaves no last answer",
            1.03,
            crowded(vec![says("Done.", 60_000, 100)]),
        )
        .answers("end", "Done.")
        .warns(&["CONTEXT_CLEARED"]),
        case(
            "a summary counts",
            1.45,
            crowded(vec![
                says("GOAL", 168_000, 2000),
                call(9, 100_000, 1000),
                says("Done.", 20_000, 100),
            ]),
        )
        .answers("max_budget", "Done.")
        .warns(&[
            "CONTEXT_COMPACTED",
            "CONTEXT_CLEARED",
            "SOFT_LIMIT",
            "MAX_BUDGET",
        ]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_costs_at_most_its_budget_and_one_request_whatever_is_answered() {
    let mut cases = answers_that_are_cut();
    cases.extend(turns());
    cases.extend(summaries());
    for case in cases {
        check(case).await;
    }
}

async fn check(case: Case) {
    let name = case.name;
    let costs: Vec<f64> = case
        .replies
        .iter()
        .map(|(_, input, output)| dollars(*input, INPUT) + dollars(*output, OUTPUT))
        .collect();
    let replies = case.replies.into_iter();
    let llm =
        FakeLlm::start(replies.map(|(reply, input, output)| reply.usage(input, output))).await;
    let app = TestApp::with_llm(&llm).await;
    let body = json!({"prompt": case.prompt, "model": "sonnet", "maxBudgetUsd": case.budget});
    let events = app.run(body).await;
    check_log(&events);
    app.stop().await;
    let end = end(&events);
    match case.end {
        Ok((reason, text)) => {
            let got = (&end["stopReason"], &end["subtype"], &end["content"]);
            let subtype = if reason == "end" { "success" } else { reason };
            let right = (&json!(reason), &json!(subtype), &json!(text));
            assert_eq!(got, right, "{name}");
        }
        Err(code) => {
            let right = (&json!("error"), &json!(code));
            assert_eq!((&end["type"], &end["code"]), right, "{name}");
        }
    }
    assert_eq!(warnings(&events), case.warnings, "{name}");
    let requests = llm.requests();
    assert_eq!(requests.len(), costs.len(), "{name}");
    let asked: Vec<u64> = requests
        .iter()
        .map(|request| request.body["max_tokens"].as_u64().unwrap())
        .collect();
    if !case.asked.is_empty() {
        assert_eq!(asked, case.asked, "{name}");
    }

    let cost: f64 = costs.iter().sum();
    assert!(
        (end["costUsd"].as_f64().unwrap() - cost).abs() < 1e-6,
        "{name}"
    );
    let mut spent = 0.0;
    for ((request, most), cost) in requests.iter().zip(&asked).zip(&costs) {
        assert!(spent < case.budget, "{name}: asked with nothing left");
        // Only a last request, without tools, may ask for more than what is left, and only for so much.
        let last = request.tools_are_off() && *most == LAST;
        let bounded = spent + dollars(*most, OUTPUT) <= case.budget;
        assert!(bounded || last, "{name}: {asked:?}");
        spent += cost;
    }
    let last = requests.last().is_some_and(Received::tools_are_off);
    assert!(
        spent <= case.budget || last || case.surprises,
        "{name}: {spent} of {}",
        case.budget
    );
}

#[tokio::test]
async fn the_soft_limit_of_a_budget_is_told_in_dollars() {
    let replies = [call(1, 10_000, 3700), says("Done.", 14_000, 10)];
    let llm =
        FakeLlm::start(replies.map(|(reply, input, output)| reply.usage(input, output))).await;
    let app = TestApp::with_llm(&llm).await;
    let body = json!({"prompt": "hi", "model": "sonnet", "maxBudgetUsd": 0.1});
    let events = app.run(body).await;
    app.stop().await;
    let soft: &Value = of_kind(&events, "warning")[0];
    assert_eq!(soft["code"], "SOFT_LIMIT");
    assert_eq!(
        (&soft["limit"], &soft["used"], &soft["max"]),
        (&json!("budget"), &json!(0.0855), &json!(0.1))
    );
    assert_eq!(soft["message"], "0.0855 of 0.1 USD are used");
}
