use super::*;
use crate::chat::{
    Block, CallIds, Document, Image, ImageType, Reply, ToolArgs, ToolCall, ToolResult,
};
use crate::llm::estimate::IMAGE_TOKENS;

fn results(id: &str, content: Vec<Part>) -> Message {
    Message::ToolResults {
        results: vec![ToolResult {
            id: CallIds::default().issue(id),
            name: "bash".to_owned(),
            content,
            is_error: false,
        }],
        notice: None,
    }
}

fn said(id: &str, text: &str) -> Message {
    results(id, vec![Part::Text(text.to_owned())])
}

fn turn(id: &str, text: &str) -> [Message; 2] {
    let call = Block::Call(ToolCall {
        id: CallIds::default().issue(id),
        name: "bash".to_owned(),
        args: ToolArgs::Json(serde_json::json!({})),
        echo: None,
    });
    let reply = Reply {
        provider: "anthropic",
        blocks: vec![call],
    };
    [Message::Assistant(reply), said(id, text)]
}

/// A turn whose reply is kept as it came.
fn take(history: &mut History, [reply, results]: [Message; 2]) {
    history.push_counted(reply);
    history.push(results);
}

fn facts(window: u64, output: u32, step: Option<u64>) -> ModelFacts {
    ModelFacts {
        context_window: Some(window),
        max_output_tokens: Some(output),
        price_step: step,
        ..ModelFacts::default()
    }
}

/// A conversation of turns of 30,000 characters: 9,000 tokens each.
fn conversation(turns: usize) -> History {
    let window = Window::new(&facts(1_000_000, 64_000, None), &[], &[]);
    let mut history = History::new(Message::user("go"), window);
    for n in 0..turns {
        for message in turn(&n.to_string(), &"z".repeat(30_000)) {
            history.push(message);
        }
    }
    history
}

fn counted_anew(history: &History) -> u64 {
    history.messages().iter().map(of_message).sum()
}

fn cleared(history: &History) -> Vec<bool> {
    let texts = history
        .messages()
        .iter()
        .filter_map(|message| match message {
            Message::ToolResults { results, .. } => text_of(&results[0].content[0]),
            Message::User(_) | Message::Assistant(_) => None,
        });
    texts.map(|text| text.starts_with("[cleared")).collect()
}

#[test]
fn old_long_results_are_cleared_and_recent_and_short_ones_kept() {
    let long = "x".repeat(30_000);
    let mut history = conversation(0);
    history.push(said("0", "short"));
    for n in 1..=8 {
        history.push(said(&n.to_string(), &long));
    }
    let change = history.clear_beyond(6, 0, 10_000).unwrap();
    assert_eq!(change.results, 2);
    assert!(change.tokens_after < change.tokens_before);
    let messages = history.messages();
    assert_eq!(change.tokens_after, counted_anew(&history));
    assert_eq!(messages.last(), Some(&said("8", &long)));
    assert_eq!(messages[1], said("0", "short"));
    assert_eq!(
        history.clear_beyond(6, 0, 1),
        None,
        "nothing is cleared twice"
    );
}

#[test]
fn ahead_of_need_the_newest_turns_stay_and_little_is_not_worth_it() {
    // Six turns stay, and what has gone must be 30,000 tokens: four more turns.
    assert_eq!(conversation(9).clear(Need::Ahead), None);
    let mut history = conversation(10);
    history.clear(Need::Ahead).unwrap();
    assert_eq!(
        cleared(&history),
        [[true; 4].as_slice(), &[false; 6]].concat()
    );
    let mut history = conversation(3);
    history.clear(Need::Now).unwrap();
    assert_eq!(cleared(&history), [true, false, false]);
    let mut small = conversation(0);
    for n in 0..40 {
        small.push(said(&n.to_string(), &"y".repeat(3000)));
    }
    let before = small.messages().to_vec();
    assert_eq!(
        small.clear_beyond(6, 40_000, 1),
        None,
        "all of it is recent"
    );
    assert_eq!(small.messages(), before);
}

#[test]
fn skills_and_images_stay_when_results_are_cleared() {
    let long = "x".repeat(9000);
    let mut skill = said("1", &long);
    if let Message::ToolResults { results, .. } = &mut skill {
        results[0].name = NEVER_CLEARED.to_owned();
    }
    let pictured = results("2", vec![Part::Text(long), picture(4)]);
    let mut history = conversation(0);
    history.push(skill.clone());
    history.push(pictured);
    for n in 3..6 {
        history.push(said(&n.to_string(), "short"));
    }
    assert_eq!(history.clear_beyond(2, 0, 1).unwrap().results, 1);
    let messages = history.messages();
    assert_eq!(messages[1], skill);
    let Message::ToolResults { results, .. } = &messages[2] else {
        panic!("{:?}", messages[2]);
    };
    assert_eq!(results[0].content[1], picture(4));
}

#[test]
fn a_summary_replaces_old_turns_and_leaves_the_newest_whole() {
    let mut history = conversation(6);
    let before = history.messages().to_vec();
    let count = history.summarisable(Need::Ahead).unwrap();
    let change = history.summarise(count, "[sandcaster] so far".to_owned());
    assert_eq!(
        history.messages()[..2],
        [Message::user("go"), Message::user("[sandcaster] so far")]
    );
    assert_eq!(
        history.messages()[2..],
        before[9..],
        "two turns of 9,000 tokens fit into 20,000"
    );
    assert!(change.tokens_before - change.tokens_after > 35_000);
    assert_eq!(history.summarisable(Need::Ahead), None, "not again at once");
}

#[test]
fn nothing_is_summarised_that_would_not_make_room() {
    let window = || Window::new(&facts(1_000_000, 64_000, None), &[], &[]);
    let prompt = History::new(Message::user("x".repeat(600_000)), window());
    assert!(prompt.over_trigger());
    let mut one = History::new(Message::user("go"), window());
    for message in turn("1", &"z".repeat(600_000)) {
        one.push(message);
    }
    for history in [prompt, one, conversation(1), conversation(5)] {
        assert_eq!(history.summarisable(Need::Ahead), None);
    }
    assert_eq!(conversation(3).summarisable(Need::Now), Some(4));
    assert_eq!(conversation(1).summarisable(Need::Now), None);
}

fn picture(bytes: usize) -> Part {
    Part::Image(Image {
        media_type: ImageType::Png,
        base64: "A".repeat(bytes).into(),
    })
}

/// Which of these parts, each in a turn of its own, are still sent.
fn sent(parts: &[Part]) -> Vec<bool> {
    let mut history = conversation(0);
    for (n, part) in parts.iter().enumerate() {
        history.push(results(&n.to_string(), vec![part.clone()]));
    }
    let kept = history.messages().iter().skip(1).zip(parts);
    kept.map(|(message, part)| {
        matches!(message, Message::ToolResults { results, .. } if results[0].content[0] == *part)
    })
    .collect()
}

#[test]
fn only_the_newest_images_and_documents_stay_by_number_and_by_bytes() {
    let twelve = sent(&vec![picture(4); 12]);
    assert_eq!(twelve, [[false; 6], [true; 6]].concat(), "several at once");
    let document = Part::Document(Document {
        name: "a.pdf".to_owned(),
        base64: "A".repeat(8_000_000).into(),
    });
    assert_eq!(
        sent(&[
            picture(4),
            document.clone(),
            picture(4_800_000),
            document.clone(),
            picture(4)
        ]),
        [false, false, false, true, true]
    );
    assert_eq!(sent(&[picture(19_000_000)]), [false]);
    let ten = sent(&vec![picture(4_800_000); 10]);
    assert_eq!(ten.iter().filter(|sent| **sent).count(), 2);
    let mut history = conversation(0);
    history.push(results("1", vec![picture(4); 12]));
    let left_out = history.leave_out_media();
    assert_eq!(left_out, MOST_MEDIA, "a turn may bring all that is allowed");
}

#[test]
fn images_that_go_are_taken_off_the_estimate_and_void_the_cache() {
    let seen = |pictures: usize| {
        let mut history = conversation(0);
        for n in 0..pictures {
            history.push(results(&n.to_string(), vec![picture(4)]));
        }
        history.saw(
            &Usage {
                cache_read: 50_000,
                ..Usage::default()
            },
            Instant::now(),
        );
        assert_eq!(history.next_input().cache_read, 50_000);
        history
    };
    let note = of_part(&Part::Text(LEFT_OUT.to_owned()));
    let mut history = seen(10);
    history.push(results("new", vec![picture(4)]));
    let input = history.next_input();
    assert_eq!(input.cache_read, 0, "the prefix is another one");
    assert_eq!(
        input.cache_write_5m,
        50_000 + IMAGE_TOKENS - 6 * (IMAGE_TOKENS - note)
    );
    history.saw(&input, Instant::now());
    history.push(results("newer", vec![picture(4)]));
    assert!(history.next_input().cache_read > 0, "not at every image");
    let mut history = seen(2);
    assert_eq!(history.leave_out_media(), 2);
    let input = history.next_input();
    assert!(input.cache_read == 0 && input.total_input() < 50_000);
}

#[test]
fn the_older_half_is_whole_turns_and_more_than_one_note() {
    let history = conversation(8);
    assert_eq!(history.older_half(14), Some(8));
    assert_eq!(history.older_half(2), None);
    assert_eq!(conversation(1).older_half(2), None);
    let mut short = conversation(6);
    let change = short.summarise(10, "so far".to_owned());
    assert!(change.tokens_after < change.tokens_before);
    assert_eq!(short.older_half(1), None);
}

#[test]
fn a_refused_image_is_looked_for_among_the_new_ones_first() {
    let mut history = conversation(0);
    history.push(results("1", vec![picture(1)]));
    history.saw(&Usage::default(), Instant::now());
    history.push(results("2", vec![picture(2), picture(3)]));
    assert_eq!(history.leave_out_media(), 2);
    assert_eq!(history.messages()[1], results("1", vec![picture(1)]));
    assert_eq!(history.leave_out_media(), 1);
    assert_eq!(history.leave_out_media(), 0);
}

#[test]
fn the_trigger_leaves_room_for_an_answer_and_stays_below_the_dearer_price() {
    let window = |window, output, step| Window::new(&facts(window, output, step), &[], &[]);
    assert_eq!(window(200_000, 64_000, None).trigger, 152_000);
    assert_eq!(window(1_000_000, 64_000, None).trigger, 160_000);
    assert_eq!(window(1_000_000, 64_000, Some(100_000)).trigger, 95_000);
    assert_eq!(
        Window::new(&ModelFacts::default(), &[], &[]).trigger,
        160_000
    );
    let haiku = crate::llm::prices::listed("anthropic", "claude-haiku-5-5").unwrap();
    assert_eq!(Window::new(&haiku, &[], &[]).trigger, 95_000);
}

#[test]
fn the_estimate_counts_what_the_last_usage_did_not() {
    let mut history = History::new(
        Message::user("go"),
        Window::new(&facts(200_000, 64_000, None), &["x".repeat(1000)], &[]),
    );
    assert_eq!(history.next_input().cache_write_5m, 301);
    history.saw(
        &Usage {
            cache_read: 151_000,
            output: 500,
            ..Usage::default()
        },
        Instant::now(),
    );
    take(&mut history, turn("1", "short"));
    assert!(!history.over_trigger());
    let input = history.next_input();
    assert_eq!((input.cache_read, input.cache_write_5m), (151_000, 502));
    history.push(said("2", &"y".repeat(3000)));
    assert!(history.over_trigger());
    // Several passes for one request count only once.
    history.saw(
        &Usage {
            input: 300_000,
            last_pass: Some(100_000),
            ..Usage::default()
        },
        Instant::now(),
    );
    assert!(!history.over_trigger());
}

#[test]
fn what_was_taken_out_is_taken_off_the_estimate() {
    let mut history = conversation(12);
    history.truncate(23);
    history.saw(
        &Usage {
            cache_read: 161_000,
            output: 10,
            ..Usage::default()
        },
        Instant::now(),
    );
    take(&mut history, turn("new", &"z".repeat(30_000)));
    let estimate = History::estimate;
    assert_eq!(estimate(&history), 161_010 + 9000);
    let change = history.clear(Need::Ahead).unwrap();
    let freed = change.tokens_before - change.tokens_after;
    assert_eq!(estimate(&history), 161_010 + 9000 - freed);
    let count = history.summarisable(Need::Now).unwrap();
    let change = history.summarise(count, "so far".to_owned());
    let freed = freed + change.tokens_before - change.tokens_after;
    assert_eq!(estimate(&history), 161_010 + 9000 - freed);
    assert_eq!(
        history.next_input().cache_read,
        0,
        "the prefix is another one"
    );
}

#[test]
fn a_conversation_is_not_taken_for_smaller_than_its_bytes_allow_whatever_is_told() {
    let told_little = Usage {
        input: 10,
        output: 10,
        ..Usage::default()
    };
    let call = |args: ToolArgs| {
        let call = Block::Call(ToolCall {
            id: CallIds::default().issue(""),
            name: "bash".to_owned(),
            args,
            echo: None,
        });
        Message::Assistant(Reply {
            provider: "anthropic",
            blocks: vec![call],
        })
    };
    let text = "x".repeat(800_000);
    let unread = ToolArgs::Malformed {
        raw: text.clone(),
        error: String::new(),
    };
    for args in [
        ToolArgs::Json(serde_json::json!({ "x": text })),
        ToolArgs::Json(serde_json::json!([text])),
        unread,
    ] {
        // What nobody told the size of, what is kept as it came, and what was seen before.
        let mut history = conversation(0);
        history.push(call(args.clone()));
        assert!(history.estimate() >= 100_000);
        let mut history = conversation(0);
        history.saw(&told_little, Instant::now());
        history.push_counted(call(args));
        assert!(history.estimate() >= 100_000);
        history.saw(&told_little, Instant::now());
        assert!(history.estimate() >= 100_000);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_provider_has_cached_lasts_five_minutes_after_it_was_asked() {
    let mut history = conversation(0);
    let usage = Usage {
        cache_write_5m: 150_000,
        ..Usage::default()
    };
    history.saw(&usage, Instant::now());
    for (secs, read) in [(260, 150_000), (20, 0)] {
        tokio::time::advance(Duration::from_secs(secs)).await;
        assert_eq!(history.next_input().cache_read, read);
        assert_eq!(history.next_input().total_input(), 150_000);
    }
    // An answer that takes its time doesn't keep it.
    let asked_at = Instant::now();
    tokio::time::advance(CACHED).await;
    history.saw(&usage, asked_at);
    assert_eq!(history.next_input().cache_read, 0);
}

#[test]
fn what_was_thrown_away_is_not_counted() {
    let window = Window::new(&facts(200_000, 64_000, None), &[], &[]);
    let mut history = History::new(Message::user("go"), window);
    let saw = |history: &mut History| {
        history.saw(
            &Usage {
                cache_read: 150_000,
                output: 32_000,
                ..Usage::default()
            },
            Instant::now(),
        );
    };
    saw(&mut history);
    assert_eq!(
        history.room_for_answer(),
        50_000,
        "all was thought, and cut"
    );
    assert_eq!(history.next_input().total_input(), 150_000);
    // What is left of a reply counts as what it is.
    history.push(turn("1", "").into_iter().next().unwrap());
    assert_eq!(history.estimate(), 150_002);
    history.truncate(1);
    take(&mut history, turn("1", ""));
    assert_eq!(history.estimate(), 182_000);
    saw(&mut history);
    history.truncate(1);
    assert!(
        history.estimate() < 150_000,
        "taken back, it is not counted"
    );
}

#[test]
fn each_message_is_counted_once_and_as_it_is_after_every_change() {
    let mut history = conversation(8);
    let check = |history: &History, after: &str| {
        let (kept, anew) = (history.total(), counted_anew(history));
        assert!(kept.abs_diff(anew) <= 2, "{after}: {kept}, not {anew}");
        assert_eq!(history.tokens.len(), history.messages.len(), "{after}");
    };
    check(&history, "turns");
    history.push(results("pictures", vec![picture(4); 12]));
    check(&history, "images that are too many");
    assert!(history.add_notice("said besides") && history.add_notice("and more"));
    check(&history, "notices");
    history.clear(Need::Now).unwrap();
    check(&history, "clearing");
    history.leave_out_media();
    check(&history, "leaving out");
    history.summarise(5, "so far".to_owned());
    check(&history, "a summary");
    history.truncate(4);
    check(&history, "going back");
}
