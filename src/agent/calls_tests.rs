use serde_json::json;

use super::*;
use crate::chat::ImageType;
use crate::secrets::{REDACTED, Secret};

const KEY: &str = "a-key-of-16-or-more";

#[test]
fn whatever_leaves_a_tool_is_cleaned_and_noted_and_bounded() {
    let redactor = Redactor::new([&Secret::new(KEY)]);
    let mut answer = ToolAnswer {
        output_path: Some(format!("/tmp/{KEY}")),
        cwd: Some(format!("/{KEY}")),
        diff: Some(format!("+{KEY}")),
        ..ToolAnswer::text(format!("{}{KEY}", "x".repeat(2990)))
    };
    let room = Room::new(3000, 1);
    finish(&redactor, &mut answer, Some("said besides"), &room);
    let seen = format!("{answer:?}");
    assert!(!seen.contains("a-key") && answer.truncated, "{seen}");
    assert!(answer.text.ends_with("said besides"), "{seen}");
    assert_eq!(answer.output_path, Some(format!("/tmp/{REDACTED}")));
}

#[tokio::test(start_paused = true)]
async fn a_tool_that_ignores_its_deadline_is_left_behind_in_time_for_a_last_turn() {
    let deadline = Deadline::after(Duration::from_mins(5));
    let wrap_up = deadline.minus(crate::agent::reserve(Duration::from_mins(5)));
    let limit = left_behind_at(wrap_up, deadline);
    let token = CancellationToken::new();
    let left = bounded(std::future::pending::<()>(), limit, &token).await;
    let told = left.unwrap_err();
    assert!(told.contains("nearly over") && told.contains("may still be at work"));
    let rest = deadline.remaining();
    assert!(
        wrap_up.passed() && rest >= Duration::from_secs(20),
        "{rest:?}"
    );
    let short = Deadline::after(Duration::from_secs(2));
    assert_eq!(left_behind_at(short, short), short);
    let twenty = Duration::from_secs(20);
    let deadline = Deadline::after(twenty);
    let wrap_up = deadline.minus(crate::agent::reserve(twenty));
    let rest = deadline.instant() - left_behind_at(wrap_up, deadline).instant();
    assert_eq!(rest, Duration::from_millis(2500), "time for a last turn");
}

#[test]
fn the_results_of_a_turn_fit_in_all_and_none_gets_nothing() {
    for (calls, chars) in [(1, 200_000), (64, 200_000), (64, 20_000), (3, 5)] {
        let room = Room::new(chars, calls);
        let taken: Vec<usize> = (0..calls).map(|_| room.take(150_000)).collect();
        assert!(taken.iter().sum::<usize>() <= chars, "{calls} {chars}");
        assert!(
            taken
                .iter()
                .all(|most| *most >= LEAST_CHARS.min(chars / calls))
        );
    }
    let room = Room::new(10_000, 2);
    assert_eq!(
        room.take(10),
        2000,
        "what a short one leaves is its own share at most"
    );
    assert_eq!(room.take(50_000), 8000);
}

#[test]
fn images_that_could_not_be_sent_are_not_kept() {
    let answer = |bytes: usize| ToolAnswer {
        images: vec![Image {
            media_type: ImageType::Png,
            base64: "A".repeat(bytes).into(),
        }],
        ..ToolAnswer::text("a.png")
    };
    for (bytes, calls, most) in [(4_800_000, 10, 3), (4, 12, 10), (19_000_000, 1, 0)] {
        let room = Room::new(10_000, calls);
        let mut kept = 0;
        for _ in 0..calls {
            let mut answer = answer(bytes);
            finish(&Redactor::default(), &mut answer, None, &room);
            assert_eq!(answer.images.is_empty(), answer.text.contains("left out"));
            kept += answer.images.len();
        }
        assert_eq!(kept, most);
    }
}

#[test]
fn a_key_is_found_wherever_it_stands_in_the_arguments() {
    let redactor = Redactor::new([&Secret::new(KEY)]);
    for held in [
        json!(KEY),
        json!([["x", format!("in {KEY}.")]]),
        json!({ "a": { "b": KEY } }),
        json!({ KEY: 1 }),
    ] {
        assert!(holds_key(&redactor, &held), "{held}");
    }
    assert!(!holds_key(
        &redactor,
        &json!(["a-key-of-16", 1, null, true])
    ));
}
