use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::*;
use crate::sandbox::{FoundSandbox, Labels, Sandbox, SandboxSpec};

/// A backend that only answers whether a sandbox is alive.
struct Oracle {
    answer: Result<bool, SandboxError>,
    asked: AtomicUsize,
}

impl Oracle {
    fn says(answer: Result<bool, SandboxError>) -> Arc<Self> {
        let asked = AtomicUsize::new(0);
        Arc::new(Self { answer, asked })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn unreachable() -> SandboxError {
    SandboxError::Backend("no route".to_owned())
}

#[async_trait]
impl SandboxBackend for Oracle {
    async fn create(&self, _: &SandboxSpec, _: &Labels) -> Result<Arc<dyn Sandbox>, SandboxError> {
        Err(unreachable())
    }

    async fn list(&self, _: &str) -> Result<Vec<FoundSandbox>, SandboxError> {
        Ok(Vec::new())
    }

    async fn kill(&self, _: &str) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn alive(&self, _: &str) -> Result<bool, SandboxError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.answer.clone()
    }

    async fn probe(&self) -> Result<(), SandboxError> {
        Ok(())
    }
}

async fn ask(
    questions: &Questions,
    oracle: &Oracle,
    reason: Option<&str>,
    signed: bool,
) -> Option<String> {
    let reason = reason.map(str::to_owned);
    let lost = questions.ask(oracle, "e2b", "sb1", reason, signed).await;
    lost.map(|error| error.to_string())
}

#[tokio::test(start_paused = true)]
async fn only_a_signed_report_counts_where_nobody_answers() {
    for (answer, signed, lost) in [
        (Ok(true), true, None),
        (Ok(true), false, None),
        (
            Ok(false),
            true,
            Some("the sandbox is gone: e2b ended it (timeout)"),
        ),
        (
            Ok(false),
            false,
            Some("the sandbox is gone: e2b ended it (timeout)"),
        ),
        (
            Err(unreachable()),
            true,
            Some("the sandbox is gone: e2b reports that it ended it (timeout), and can't be asked"),
        ),
        (Err(unreachable()), false, None),
    ] {
        let oracle = Oracle::says(answer.clone());
        let told = ask(&Questions::default(), &oracle, Some("timeout"), signed).await;
        assert_eq!(told.as_deref(), lost, "{answer:?} {signed}");
        assert_eq!(oracle.asked(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn many_reports_make_one_question_in_five_seconds_and_the_last_is_asked_too() {
    let oracle = Oracle::says(Ok(true));
    let questions = Questions::default();
    let begun = Instant::now();
    assert_eq!(ask(&questions, &oracle, None, true).await, None);
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "the first at once"
    );
    let reports = (0..20).map(|_| ask(&questions, &oracle, None, true));
    futures::future::join_all(reports).await;
    assert_eq!(oracle.asked(), 2);
    assert!(begun.elapsed() >= ASK_EVERY);
}

#[tokio::test(start_paused = true)]
async fn a_signed_report_strengthens_the_unsigned_one_that_still_waits() {
    let oracle = Oracle::says(Err(unreachable()));
    let questions = Questions::default();
    assert_eq!(ask(&questions, &oracle, None, false).await, None);
    let (hint, proof) = tokio::join!(
        ask(&questions, &oracle, Some("made up"), false),
        ask(&questions, &oracle, Some("admin"), true),
    );
    assert!(hint.is_some_and(|hint| hint.contains("(admin)")));
    assert_eq!(proof, None);
    assert_eq!(oracle.asked(), 2);
}

#[test]
fn a_foreign_word_is_cleaned_before_it_is_cut() {
    let key = "a-key-of-16-or-more";
    let redactor = Redactor::new([&crate::secrets::Secret::new(key)]);
    for before in 0..=WORD {
        let shown = word(&format!("{}{key}", "x".repeat(before)), &redactor);
        assert!(!shown.contains("a-k"), "{before}: {shown}");
    }
    assert_eq!(word("timeout\n", &redactor), "timeout");
}
